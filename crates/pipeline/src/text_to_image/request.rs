//! What to make.

use crate::PipelineError;
use crate::manifest::ImageTokenSampling;
use smalti_data::Picture;
use smalti_generation::autoregressive::Options;
use smalti_generation::diffusion::guidance::{Interval, ProjectionOptions};
use smalti_generation::diffusion::{Sampler, Threshold};

/// Most pictures of one request; a bound on memory.
const COUNT_LIMIT: usize = 10_000;
/// Most pictures drawn side by side; a bound on memory.
const BATCH_SIZE_LIMIT: usize = 1024;

/// What to make. Options of the other kind of generator are refused, not passed over.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// A caption; the name of a class, for a generator of classes; nothing, for one that takes no condition.
    pub prompt: String,
    /// Pictures drawn.
    pub count: usize,
    /// Pictures kept, the best first; `None` keeps all in the order in which they were drawn.
    pub keep: Option<usize>,
    pub seed: u64,
    /// 1: as trained; above 1 exaggerates what the prompt changes; 0: as if there were no prompt. `None`: what the bundle is usually drawn with.
    pub guidance_scale: Option<f32>,
    /// Of a generator that draws image tokens one after the other.
    pub image_tokens: ImageTokenOptions,
    /// Of a diffusion network.
    pub diffusion: DiffusionOptions,
    /// Pictures drawn side by side. It changes time and memory, never a picture.
    pub batch_size: usize,
}

/// How image tokens are drawn; what is not said is as the bundle says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ImageTokenOptions {
    /// Take the likeliest image token each time; the others are not used.
    pub greedy: bool,
    /// Less than 1 is safer, more is wilder.
    pub temperature: Option<f32>,
    /// Choose among so many of the likeliest.
    pub top_k: Option<usize>,
    /// Choose among the likeliest that together have this probability; all unless said.
    pub top_p: Option<f32>,
}

impl ImageTokenOptions {
    /// With what the bundle says for what is unsaid.
    pub fn resolve(&self, bundle: &ImageTokenSampling) -> Options {
        Options {
            greedy: self.greedy,
            temperature: self.temperature.unwrap_or(bundle.temperature as f32),
            top_k: self.top_k.or(bundle.top_k),
            top_p: self.top_p.unwrap_or(1.0),
        }
    }
}

/// How a diffusion network is walked; what is not said is as the bundle says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DiffusionOptions {
    pub steps: Option<usize>,
    pub sampler: Option<Sampler>,
    pub threshold: Option<Threshold>,
    /// A caption to get away from, in place of the empty one.
    pub negative: Option<String>,
    /// In [0, 1]: how much of the contrast that guidance adds is taken back (Lin et al. 2023, 2305.08891); 0 is off.
    pub guidance_rescale: f64,
    /// Where guidance is on, that by a classifier too; everywhere unless said.
    pub guidance_interval: Option<Interval>,
    /// Projected guidance (APG, 2410.02416) in place of the plain one.
    pub projection: Option<ProjectionOptions>,
    /// Guidance by the bundle's classifier, or one lent to it; none unless said.
    pub classifier: Option<ClassifierGuidance>,
    /// Cascades: noise added to the smaller picture, in [0, 1].
    pub augmentation: Option<f64>,
    pub initial: Option<InitialPicture>,
    /// Unit normal noise to start from in place of the seed's: [count, height, width, channels] of the first canvas, row-major.
    pub noise: Option<Vec<f32>>,
    /// How many pictures of the way a film strip shows; 0 makes none.
    pub film_strip: usize,
}

/// Where a classifier leads, and how strongly (Dhariwal and Nichol 2021, 2105.05233).
#[derive(Clone, Debug, PartialEq)]
pub struct ClassifierGuidance {
    /// 1 adds the gradient of the class's log-probability as it is, more exaggerates it, less than 0 leads away.
    pub scale: f64,
    /// The name of a class; the prompt's, unless the generator reads the prompt as a caption.
    pub class: Option<String>,
}

/// A picture to start from.
#[derive(Clone, Debug, PartialEq)]
pub struct InitialPicture {
    /// Of any size; its middle square is resized.
    pub picture: Picture,
    /// How much of the way is walked, in [0, 1]: 1 forgets the picture; 0 gives it back, as well as an image tokenizer reconstructs it and the stages of a
    /// cascade enlarge it.
    pub strength: f64,
    /// White where the picture is painted anew, black where its pixels are kept; of the picture's size.
    pub mask: Option<Picture>,
}

impl Request {
    /// How many requests like this one fill a batch, at least 1.
    pub fn count_in_batch(&self) -> usize {
        (self.batch_size / self.count.max(1)).max(1)
    }

    /// Whether pictures of both may be drawn side by side: they differ in prompt and seed only, and nothing else is bound to one of them.
    pub(super) fn may_share_batches(&self, other: &Self) -> bool {
        let free = |options: &DiffusionOptions| options.noise.is_none() && options.classifier.is_none();
        free(&self.diffusion) && *self == Self { prompt: self.prompt.clone(), seed: self.seed, ..other.clone() }
    }
}

impl DiffusionOptions {
    /// The name of an option that is not as it would be unsaid.
    pub(super) fn first_set(&self) -> Option<&'static str> {
        [
            ("steps", self.steps.is_some()),
            ("sampler", self.sampler.is_some()),
            ("threshold", self.threshold.is_some()),
            ("negative", self.negative.is_some()),
            ("guidance_rescale", self.guidance_rescale != 0.0),
            ("guidance_interval", self.guidance_interval.is_some()),
            ("projection", self.projection.is_some()),
            ("classifier_scale", self.classifier.is_some()),
            ("augmentation", self.augmentation.is_some()),
            ("init_image", self.initial.is_some()),
            ("noise", self.noise.is_some()),
            ("film_strip", self.film_strip > 0),
        ]
        .into_iter()
        .find_map(|(name, set)| set.then_some(name))
    }

    fn validate(&self) -> Result<(), PipelineError> {
        let wrong = |key, expected: &str, found: String, hint| Err(PipelineError::Request { key, expected: expected.to_string(), found, hint });
        if self.steps == Some(0) {
            return wrong("steps", "at least 1", "0".into(), Some("20 to 50 is usual"));
        }
        if let Some(level) = self.augmentation.filter(|level| !(0.0..=1.0).contains(level)) {
            return wrong("augmentation", "0 to 1", level.to_string(), None);
        }
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            return wrong("guidance_rescale", "0 to 1", self.guidance_rescale.to_string(), Some("0 is off, 0.7 is usual"));
        }
        if let Some(Err(error)) = self.guidance_interval.map(|interval| interval.validate()) {
            return wrong(error.key, &error.expected, error.found, None);
        }
        if let Some(Err(error)) = self.projection.map(|projection| projection.validate()) {
            return wrong(error.key, &error.expected, error.found, None);
        }
        if let Some(scale) = self.classifier.as_ref().map(|guidance| guidance.scale).filter(|scale| !(-1000.0..=1000.0).contains(scale)) {
            return wrong("classifier_scale", "a number from -1000 to 1000", scale.to_string(), Some("0 is off, 1 to 10 is usual"));
        }
        if let Some(Err(error)) = self.threshold.map(Threshold::validate) {
            return wrong(error.key, &error.expected, error.found, None);
        }
        if let Some(Err(error)) = self.sampler.map(Sampler::validate) {
            return wrong(error.key, &error.expected, error.found, None);
        }
        let Some(InitialPicture { picture, strength, mask }) = &self.initial else { return Ok(()) };
        if !(0.0..=1.0).contains(strength) {
            return wrong("strength", "0 to 1", strength.to_string(), Some("0 gives the picture back, 1 forgets it"));
        }
        match mask {
            Some(mask) if (mask.width, mask.height) != (picture.width, picture.height) => {
                let expected = format!("{}x{}, the size of the initial picture", picture.width, picture.height);
                wrong("mask", &expected, format!("{}x{}", mask.width, mask.height), None)
            }
            _ => Ok(()),
        }
    }
}

impl Request {
    /// One picture as the bundle is usually drawn.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            count: 1,
            keep: None,
            seed: 0,
            guidance_scale: None,
            image_tokens: ImageTokenOptions::default(),
            diffusion: DiffusionOptions::default(),
            batch_size: 16,
        }
    }

    /// Names the first impossible value.
    pub fn validate(&self) -> Result<(), PipelineError> {
        let wrong = |key, expected: String, found: String, hint| Err(PipelineError::Request { key, expected, found, hint });
        if !(1..=COUNT_LIMIT).contains(&self.count) {
            return wrong("count", format!("1 to {COUNT_LIMIT}"), self.count.to_string(), None);
        }
        if let Some(keep) = self.keep.filter(|keep| !(1..=self.count).contains(keep)) {
            return wrong("keep", format!("1 to count, which is {}", self.count), keep.to_string(), Some("raise --count, from which the best are kept"));
        }
        if let Some(scale) = self.guidance_scale.filter(|scale| !scale.is_finite() || scale.abs() > 1000.0) {
            return wrong(
                "guidance_scale",
                "a number from -1000 to 1000".into(),
                scale.to_string(),
                Some("1 is off; image tokens like 2 to 3, diffusion 2 to 10"),
            );
        }
        if !(1..=BATCH_SIZE_LIMIT).contains(&self.batch_size) {
            return wrong("batch_size", format!("1 to {BATCH_SIZE_LIMIT}"), self.batch_size.to_string(), None);
        }
        self.diffusion.validate()?;
        self.image_tokens.resolve(&ImageTokenSampling::default()).validate().map_err(|error| PipelineError::Sampling(error.into()))
    }
}
