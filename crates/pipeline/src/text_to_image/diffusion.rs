//! Noise becomes latents or pixels, step by step; in a cascade each stage enlarges what the one before made (Imagen), with latents an image tokenizer decodes
//! them at the end (latent diffusion).

use super::conditions::{Meaning, Rows, wanted_class};
use super::estimate::{Estimate, Watch};
use super::guided::{Guided, Pull};
use super::request::{DiffusionOptions, ImageTokenOptions, InitialPicture, Request};
use super::{Made, MadePicture, absent};
use crate::agreement::{LatentFacts, check_guidance, check_stages, refuse_image_token_sampling};
use crate::manifest::{Canvas, ClassifierConfig, DiffusionConfig};
use crate::parts::{Diffusion, Generator};
use crate::progress::{Progress, Stage};
use crate::reconstruct::fitted;
use crate::rerank::finite;
use crate::{ClassifierPart, GeneratorPart, ImageTokenizerPart, Part, PipelineError, TextEncoderPart};
use burn::tensor::{Tensor, TensorData};
use rand_chacha::ChaCha12Rng;
use smalti_data::Picture;
use smalti_data::resize::{Filter, resize};
use smalti_generation::diffusion::{Known, Level, Plan, Process, sample};
use smalti_generation::diffusion::{augmentation, flow};
use smalti_generation::random::{normal_pictures, picture_rng};
use smalti_models::generator::conditions::LowResolution;
use std::convert::Infallible;

/// Latents decoded at once.
const DECODE_BATCH_SIZE: usize = 8;

/// One picture, and what was thought of it on the way.
pub(super) struct Drawn {
    pub picture: Picture,
    pub film_strip: Vec<Picture>,
}

#[derive(Clone, Debug)]
pub(super) struct DiffusionSystem {
    image_tokenizer: Option<ImageTokenizerPart>,
    text_encoder: Option<TextEncoderPart>,
    /// From the smallest picture up; never empty.
    stages: Vec<Diffusion>,
    classifier: Option<ClassifierPart>,
}

/// Pictures that are drawn side by side.
struct Batch<'a> {
    /// Of the first of them; the others differ from it in prompt and seed only.
    request: &'a Request,
    /// Of each picture.
    rows: Vec<&'a Rows>,
    pull: Option<Pull<'a>>,
    /// Of the first of the batch.
    start: usize,
    rngs: Vec<ChaCha12Rng>,
}

impl DiffusionSystem {
    pub fn new(
        image_tokenizer: Option<ImageTokenizerPart>,
        text_encoder: Option<TextEncoderPart>,
        first: Diffusion,
        super_resolution: Vec<GeneratorPart>,
        classifier: Option<ClassifierPart>,
    ) -> Result<Self, PipelineError> {
        if first.config.canvas == Canvas::Latents && image_tokenizer.is_none() {
            return Err(absent(Part::ImageTokenizer, "one that makes pictures of latents"));
        }
        if first.config.text.is_some() && text_encoder.is_none() {
            return Err(absent(Part::TextEncoder, "one whose states the generator attends to"));
        }
        let mut stages = vec![first];
        for (stage, part) in super_resolution.into_iter().enumerate() {
            refuse_image_token_sampling(Part::SuperResolution(stage), part.sampling)?;
            match part.model {
                Generator::Diffusion(model) => stages.push(*model),
                Generator::DalleBart(_) => return Err(absent(Part::SuperResolution(stage), "a diffusion network")),
            }
        }
        let configs: Vec<&DiffusionConfig> = stages.iter().map(|stage| &stage.config).collect();
        let tokenizer_model = image_tokenizer.as_ref().map(|part| part.model.config());
        let facts = image_tokenizer.as_ref().zip(tokenizer_model.as_ref());
        let facts = facts.map(|(part, model)| LatentFacts { model, image_size: part.image_size, latent_scale: part.latent_scale });
        check_stages(&configs, facts, text_encoder.as_ref().map(|part| part.model.config()).as_ref())?;
        if let Some(classifier) = &classifier {
            check_guidance(&classifier.config, configs[0], facts)?;
        }
        Ok(Self { image_tokenizer, text_encoder, stages, classifier })
    }

    /// Side in pixels of the pictures it makes.
    pub fn image_size(&self) -> usize {
        self.stages.last().map_or(0, |stage| stage.config.image_size)
    }

    /// The pictures of each request, not ranked. The requests may differ in prompt and seed only ([`Request::may_share_batches`]).
    pub fn draw(&self, requests: &[Request], watch: &mut Watch) -> Result<Vec<Made>, PipelineError> {
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let configs: Vec<&DiffusionConfig> = self.stages.iter().map(|stage| &stage.config).collect();
        let plans = plans(&configs, self.canvas(configs[0]), self.classifier.as_ref().map(|part| &part.config), first)?;
        let rows = Rows::of_all(configs[0], self.text_encoder.as_ref(), requests)?;
        let (pull, kept) = (self.pull(first)?, self.kept(first)?);
        let step_count: usize = plans.iter().map(Plan::steps_walked).sum();
        let total = requests.len() * first.count;
        let mut made = Vec::with_capacity(total);
        for start in (0..total).step_by(first.batch_size) {
            if start > 0 && (watch.stop)() {
                break;
            }
            let numbers = start..total.min(start + first.batch_size);
            // Which request a picture is of, and its number there.
            let places = numbers.clone().map(|number| (number / first.count, number % first.count));
            let rngs = places.clone().map(|(request, index)| picture_rng(requests[request].seed, index as u64)).collect();
            let mut batch = Batch { request: first, rows: places.map(|(request, _)| &rows[request]).collect(), pull, start, rngs };
            let mut step = 0;
            let mut observe = |estimate: &Estimate| {
                step += 1;
                let done = numbers.start * step_count + numbers.len() * step;
                (watch.progress)(Progress { stage: Stage::Steps, done, total: total * step_count });
                (watch.estimate)(estimate);
            };
            let mut drawn: Vec<Drawn> = Vec::new();
            for (stage, plan) in self.stages.iter().zip(&plans) {
                drawn = self.draw_stage(stage, plan, &mut batch, drawn, &mut observe)?;
            }
            if let Some(kept) = &kept {
                drawn.iter_mut().try_for_each(|drawn| kept.put_into(&mut drawn.picture))?;
            }
            made.extend(drawn);
        }
        let mut made = made.into_iter();
        let mut next =
            |index| made.next().map(|Drawn { picture, film_strip }| MadePicture { picture, index, score: None, image_tokens: Vec::new(), film_strip });
        let of_request = |rows: Rows| {
            let pictures: Vec<MadePicture> = (0..first.count).map_while(&mut next).collect();
            Made { drawn: pictures.len(), pictures, truncated: rows.truncated }
        };
        Ok(rows.into_iter().map(of_request).collect())
    }

    /// The classifier that a request asks for, and the class.
    fn pull(&self, request: &Request) -> Result<Option<Pull<'_>>, PipelineError> {
        let class = wanted_class(&self.stages[0].config, self.classifier.as_ref().map(|part| &part.config), request)?;
        let asked = self.classifier.as_ref().zip(class).zip(request.diffusion.classifier.as_ref());
        Ok(asked.map(|((classifier, class), guidance)| Pull { classifier, class, scale: guidance.scale }))
    }

    /// One stage of one batch: a canvas of noise, walked to pictures.
    fn draw_stage(
        &self,
        stage: &Diffusion,
        plan: &Plan,
        batch: &mut Batch,
        below: Vec<Drawn>,
        observe: &mut dyn FnMut(&Estimate),
    ) -> Result<Vec<Drawn>, PipelineError> {
        let count = batch.rngs.len();
        let shape = self.canvas(&stage.config);
        let value_count: usize = shape.iter().product();
        let low_resolution = self.low_resolution(stage, plan, batch, &below)?;
        let noise = match &batch.request.diffusion.noise {
            // Other programs' noise replaces that of the first canvas only.
            Some(noise) if stage.config.low_resolution.is_none() => noise[batch.start * value_count..][..count * value_count].to_vec(),
            _ => normal_pictures(&mut batch.rngs, value_count),
        };
        let initial = self.initial(stage, batch.request, count)?;
        let start = match &initial {
            Some(initial) => plan.start_from_picture(&initial.clean, &noise),
            None => plan.start_from_noise(&noise),
        };
        let known = initial.as_ref().and_then(|initial| Some(Known { clean: &initial.clean, noise: &noise, keep: initial.keep.as_ref()? }));
        let guided = Guided::new(stage, batch.request, &batch.rows, shape).enlarging(low_resolution);
        // A classifier knows the canvases of the first stage; the others only enlarge.
        let mut guided = guided.pulled_by(batch.pull.filter(|_| stage.config.low_resolution.is_none()));
        let denoise = |input: &[f32], level: &Level| Ok::<_, Infallible>(guided.output(input, level));
        let mut film: Vec<Vec<f32>> = Vec::new();
        let shown = shown_steps(plan.steps_walked(), batch.request.diffusion.film_strip);
        let observe = |step: smalti_generation::diffusion::Step| {
            observe(&Estimate { system: self, config: &stage.config, clean: step.clean, count });
            if shown.contains(&step.index) {
                film.push(step.clean.to_vec());
            }
        };
        // The walk draws from streams of its own, lest `denoise` and it would both hold the batch.
        let mut rngs = batch.rngs.clone();
        let values = sample(plan, start, &mut rngs, known.as_ref(), denoise, observe)?;
        batch.rngs = rngs;
        let pictures = self.pictures(&stage.config, &values)?;
        let frames = film.iter().map(|values| self.pictures(&stage.config, values)).collect::<Result<Vec<_>, _>>()?;
        let strips = (0..count).map(|index| frames.iter().map(|frame| frame[index].clone()).collect::<Vec<_>>());
        let before = below.into_iter().map(|drawn| drawn.film_strip).chain(std::iter::repeat_with(Vec::new));
        Ok(pictures.into_iter().zip(strips).zip(before).map(|((picture, strip), before)| Drawn { picture, film_strip: [before, strip].concat() }).collect())
    }

    /// Height, width and channels of what a stage draws on.
    pub(super) fn canvas(&self, config: &DiffusionConfig) -> [usize; 3] {
        config.canvas_shape(self.image_tokenizer.as_ref().map_or(1, |image_tokenizer| image_tokenizer.model.downsampling_factor()))
    }

    /// The pictures of the stage below, enlarged, with noise on them as the stage was trained to see it.
    fn low_resolution(&self, stage: &Diffusion, plan: &Plan, batch: &mut Batch, below: &[Drawn]) -> Result<Option<LowResolution>, PipelineError> {
        let Some(condition) = &stage.config.low_resolution else { return Ok(None) };
        let size = stage.config.image_size;
        let level = augmentation_level(&plan.process, batch.request.diffusion.augmentation.unwrap_or(condition.noise_level));
        let clean: Vec<f32> = below.iter().flat_map(|drawn| resize(&drawn.picture, size, size, ENLARGING).to_f32()).collect();
        let noise = normal_pictures(&mut batch.rngs, size * size * 3);
        let (count, device) = (below.len(), stage.device());
        let picture = Tensor::from_data(TensorData::new(level.noised(&clean, &noise), [count, size, size, 3]), &device);
        Ok(Some(LowResolution { picture, noise_level: Tensor::from_data(vec![level.timestep.max(0.0) as f32; count].as_slice(), &device) }))
    }

    /// The picture to start from on the canvas of a stage, for every picture of the batch; in a cascade the later stages only enlarge.
    fn initial(&self, stage: &Diffusion, request: &Request, count: usize) -> Result<Option<Initial>, PipelineError> {
        let Some(InitialPicture { picture, mask, .. }) = &request.diffusion.initial else { return Ok(None) };
        if stage.config.low_resolution.is_some() {
            return Ok(None);
        }
        let [height, width, channels] = self.canvas(&stage.config);
        let clean = match (&self.image_tokenizer, stage.config.canvas) {
            (Some(image_tokenizer), Canvas::Latents) => {
                let size = image_tokenizer.image_size;
                let pixels = Tensor::<4>::from_data(TensorData::new(fitted(picture, size)?.to_f32(), [1, size, size, 3]), &image_tokenizer.device());
                let latents = image_tokenizer.model.encode(pixels) * latent_scale(image_tokenizer)?;
                latents.into_data().iter::<f32>().collect()
            }
            _ => fitted(picture, width)?.to_f32(),
        };
        let keep = match mask {
            None => None,
            Some(mask) => {
                // White is painted anew; any share of it in the pixels of a latent counts as that share.
                let mask = resize(&fitted(mask, stage.config.image_size)?, width, height, Filter::Area).to_f32();
                let keep = mask.chunks_exact(3).flat_map(|pixel| std::iter::repeat_n((1.0 - pixel[0]) / 2.0, channels)).collect::<Vec<f32>>();
                Some(keep.repeat(count))
            }
        };
        Ok(Some(Initial { clean: clean.repeat(count), keep }))
    }

    /// What a mask keeps, where the walk alone cannot keep it: in the pixels of pictures that are decoded or enlarged.
    fn kept(&self, request: &Request) -> Result<Option<Kept>, PipelineError> {
        let walk_keeps = self.stages.len() == 1 && self.stages[0].config.canvas == Canvas::Pixels;
        let Some(InitialPicture { picture, mask: Some(mask), .. }) = request.diffusion.initial.as_ref().filter(|_| !walk_keeps) else { return Ok(None) };
        let size = self.image_size();
        Ok(Some(Kept { picture: fitted(picture, size)?, mask: fitted(mask, size)? }))
    }

    /// What a canvas shows.
    pub(super) fn pictures(&self, config: &DiffusionConfig, values: &[f32]) -> Result<Vec<Picture>, PipelineError> {
        match config.canvas {
            Canvas::Latents => self.decode(values, self.canvas(config)),
            Canvas::Pixels => pictures_of(values, [config.image_size; 2]),
        }
    }

    /// What latents show, of any height and width.
    pub(super) fn decode(&self, values: &[f32], [height, width, channels]: [usize; 3]) -> Result<Vec<Picture>, PipelineError> {
        let image_tokenizer = self.image_tokenizer.as_ref().ok_or_else(|| absent(Part::ImageTokenizer, "one that makes pictures of latents"))?;
        let mut pictures = Vec::new();
        for values in values.chunks(DECODE_BATCH_SIZE * height * width * channels) {
            let shape = [values.len() / (height * width * channels), height, width, channels];
            let latents = Tensor::<4>::from_data(TensorData::new(values.to_vec(), shape), &image_tokenizer.device());
            let pixels = image_tokenizer.model.decode(latents / latent_scale(image_tokenizer)?);
            let [_, height, width, _] = pixels.dims();
            pictures.extend(pictures_of(&pixels.into_data().iter::<f32>().collect::<Vec<f32>>(), [height, width])?);
        }
        Ok(pictures)
    }
}

/// [count, height, width, 3] in [-1, 1].
fn pictures_of(pixels: &[f32], [height, width]: [usize; 2]) -> Result<Vec<Picture>, PipelineError> {
    let picture = |pixels: &[f32]| {
        pixels.iter().try_for_each(|&value| finite("picture", value).map(drop))?;
        Ok(Picture::from_f32(width, height, pixels)?)
    };
    pixels.chunks_exact(height * width * 3).map(picture).collect()
}

/// How a smaller picture becomes as large as the next stage's canvas, in training and in sampling alike.
pub const ENLARGING: Filter = Filter::Bilinear;

/// The level of noise on a smaller picture, by a share in [0, 1]: of the trained steps where the process has such, else of the straight way to pure noise.
pub fn augmentation_level(process: &Process, share: f64) -> Level {
    match process {
        Process::VariancePreserving(schedule) => augmentation::level(schedule, share),
        Process::Flow(config) => config.level(share),
        // How far noise must reach to drown an exploding sample says nothing of a picture that stays within [-1, 1].
        Process::VarianceExploding(_) => flow::Config { train_steps: 1000, shift: 1.0 }.level(share),
    }
}

struct Initial {
    /// Once for each picture of the batch.
    clean: Vec<f32>,
    keep: Option<Vec<f32>>,
}

/// A picture and the mask that says where it is kept (black), of the size of the pictures made.
struct Kept {
    picture: Picture,
    mask: Picture,
}

impl Kept {
    fn put_into(&self, made: &mut Picture) -> Result<(), PipelineError> {
        let (kept, mask) = (self.picture.to_f32(), self.mask.to_f32());
        let blend = |((made, kept), mask): ((f32, f32), f32)| kept + (mask + 1.0) / 2.0 * (made - kept);
        let values: Vec<f32> = made.to_f32().into_iter().zip(kept).zip(mask).map(blend).collect();
        *made = Picture::from_f32(made.width, made.height, &values)?;
        Ok(())
    }
}

fn latent_scale(image_tokenizer: &ImageTokenizerPart) -> Result<f32, PipelineError> {
    image_tokenizer.latent_scale.ok_or_else(|| absent(Part::ImageTokenizer, "a latent scale, measured on data, which a generator of latents needs"))
}

/// The walks of a request, one for each stage; refuses what they cannot draw, and looks at no weights. `canvas` is the first stage's.
pub(super) fn plans(
    stages: &[&DiffusionConfig],
    canvas: [usize; 3],
    classifier: Option<&ClassifierConfig>,
    request: &Request,
) -> Result<Vec<Plan>, PipelineError> {
    let options = &request.diffusion;
    let wrong = |key, expected: String, found: String, hint| Err(PipelineError::Request { key, expected, found, hint });
    if request.image_tokens != ImageTokenOptions::default() {
        let hint = Some("temperature, top_k, top_p and greedy are for bundles that draw image tokens one after the other");
        return wrong("temperature", "nothing: this bundle's generator is a diffusion network".to_string(), "a value".to_string(), hint);
    }
    if Meaning::of(stages[0], request)? == Meaning::Nothing {
        let nothing = "nothing: this bundle's generator takes no condition".to_string();
        if let Some(scale) = request.guidance_scale.filter(|&scale| scale != 1.0) {
            return wrong("guidance_scale", nothing, scale.to_string(), None);
        }
        if options.projection.is_some() {
            return wrong("projection", nothing, "a value".to_string(), Some("projected guidance is of --guidance-scale, not of a classifier"));
        }
    }
    wanted_class(stages[0], classifier, request)?;
    if let (Some(augmentation), 1) = (options.augmentation, stages.len()) {
        return wrong("augmentation", "nothing: this bundle has one stage, which enlarges nothing".to_string(), augmentation.to_string(), None);
    }
    if let Some(noise) = &options.noise {
        let [height, width, channels] = canvas;
        if noise.len() != request.count * height * width * channels {
            let expected = format!("{} pictures of {channels} channels and {height}x{width}", request.count);
            let hint = Some("a tensor [count, channels, height, width] of the first stage's canvas");
            return wrong("noise", expected, format!("{} numbers", noise.len()), hint);
        }
        if let Some(value) = noise.iter().find(|value| !value.is_finite()) {
            return wrong("noise", "finite numbers".to_string(), value.to_string(), None);
        }
    }
    stages.iter().map(|stage| plan(stage, options)).collect()
}

/// The walk of a request through one stage.
fn plan(config: &DiffusionConfig, options: &DiffusionOptions) -> Result<Plan, PipelineError> {
    let mut plan = config.plan_with(options.sampler.unwrap_or(config.sampling.sampler));
    // In a cascade, a request's steps and initial picture are the first stage's; thresholds and samplers are everyone's.
    if config.low_resolution.is_none() {
        plan.steps = options.steps.unwrap_or(plan.steps);
        plan.strength = options.initial.as_ref().map_or(1.0, |initial| initial.strength);
    }
    plan.threshold = options.threshold.unwrap_or(plan.threshold);
    if config.canvas == Canvas::Latents && plan.threshold != smalti_generation::diffusion::Threshold::None {
        let (expected, found) = ("none: latents have no range to be kept in".to_string(), "a threshold".to_string());
        return Err(PipelineError::Request { key: "threshold", expected, found, hint: Some("lower --guidance-scale, or use --guidance-rescale 0.7") });
    }
    plan.validate().map_err(|error| PipelineError::Request { key: error.key, expected: error.expected.to_string(), found: error.found, hint: None })?;
    Ok(plan)
}

/// `count` steps in even distances, the last among them.
fn shown_steps(steps: usize, count: usize) -> Vec<usize> {
    let count = count.min(steps);
    (1..=count).map(|place| place * steps / count - 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_film_strip_ends_with_the_last_step() {
        assert_eq!(shown_steps(50, 5), [9, 19, 29, 39, 49]);
        assert_eq!(shown_steps(3, 8), [0, 1, 2]);
        assert_eq!(shown_steps(7, 2), [2, 6]);
        assert!(shown_steps(7, 0).is_empty());
    }
}
