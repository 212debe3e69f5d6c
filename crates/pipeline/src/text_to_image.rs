//! A prompt becomes pictures: text tokens -> image tokens, one after the other -> pixels -> ranked by how well they fit the prompt.
//!
//! Picture i of seed S draws from its own random stream, and no network's result depends on its neighbours in a batch: it is the same bytes whatever the
//! count, the batch size and the number of threads.

use crate::progress::{Progress, Stage};
use crate::rerank::{self, no_text_tokenizer};
use crate::{BundleFolder, ContrastivePart, GeneratorPart, ImageTokenizerPart, Part, PipelineError, reconstruct};
use burn::tensor::Device;
use smalti_data::Picture;
use smalti_data::text_tokenizer::{Encoded, TextTokenizer};
use smalti_generation::autoregressive::{sample, super_condition};
use smalti_generation::random::picture_rng;
use smalti_models::generator::dalle_bart::{Candidates, Caption, StepLogits};
use std::convert::Infallible;
use std::ops::Range;

pub use smalti_generation::autoregressive::Options as SamplingOptions;

/// Most pictures of one request; a bound on memory.
const COUNT_LIMIT: usize = 10_000;
/// Most pictures drawn side by side; a bound on memory.
const BATCH_SIZE_LIMIT: usize = 1024;
/// Pictures decoded at once.
const DECODE_BATCH_SIZE: usize = 8;

/// What to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub prompt: String,
    /// Pictures drawn.
    pub count: usize,
    /// Pictures kept, the best first; `None` keeps all in the order in which they were drawn.
    pub keep: Option<usize>,
    pub seed: u64,
    /// 1: as trained; above 1 exaggerates what the prompt changes; 0: as if there were no prompt.
    pub guidance_scale: f32,
    pub options: SamplingOptions,
    /// Pictures drawn side by side. It changes time and memory, never a picture.
    pub batch_size: usize,
}

impl Request {
    /// One picture as trained.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), count: 1, keep: None, seed: 0, guidance_scale: 1.0, options: SamplingOptions::default(), batch_size: 16 }
    }

    /// Names the first impossible value.
    pub fn validate(&self) -> Result<(), PipelineError> {
        let wrong = |key, expected: String, found: String, hint| Err(PipelineError::Request { key, expected, found, hint });
        if self.prompt.trim().is_empty() {
            return Err(PipelineError::EmptyPrompt);
        }
        if !(1..=COUNT_LIMIT).contains(&self.count) {
            return wrong("count", format!("1 to {COUNT_LIMIT}"), self.count.to_string(), None);
        }
        if let Some(keep) = self.keep.filter(|keep| !(1..=self.count).contains(keep)) {
            return wrong("keep", format!("1 to count, which is {}", self.count), keep.to_string(), Some("raise --count, from which the best are kept"));
        }
        if !self.guidance_scale.is_finite() || self.guidance_scale.abs() > 1000.0 {
            return wrong("guidance_scale", "a number from -1000 to 1000".into(), self.guidance_scale.to_string(), Some("1 is off, 3 to 10 is usual"));
        }
        if !(1..=BATCH_SIZE_LIMIT).contains(&self.batch_size) {
            return wrong("batch_size", format!("1 to {BATCH_SIZE_LIMIT}"), self.batch_size.to_string(), None);
        }
        self.options.validate().map_err(|error| PipelineError::Sampling(error.into()))
    }
}

/// One picture and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct MadePicture {
    pub picture: Picture,
    /// Its number among those drawn: with the seed it names the picture.
    pub index: usize,
    /// How well it fits the prompt, in [-1, 1]; absent when the bundle ranks nothing.
    pub score: Option<f32>,
    /// Row after row.
    pub image_tokens: Vec<u32>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    pub pictures: Vec<MadePicture>,
    /// Set when the prompt was longer than the generator reads.
    pub truncated: Option<Truncation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// Text tokens of the prompt.
    pub token_count: usize,
    /// Text tokens that were read, from the start.
    pub kept_count: usize,
}

/// The parts of a bundle that make pictures, loaded once for many requests.
#[derive(Clone, Debug)]
pub struct TextToImage {
    image_tokenizer: ImageTokenizerPart,
    generator: GeneratorPart,
    contrastive: Option<ContrastivePart>,
}

/// The parts that [`TextToImage`] would make the pictures of a request with, without loading any weights; what it would refuse is refused here too.
pub fn parts(bundle: &BundleFolder, request: &Request) -> Result<Vec<Part>, PipelineError> {
    request.validate()?;
    let (manifest, purpose) = (bundle.manifest(), "make pictures");
    manifest.image_tokenizer.as_ref().ok_or_else(|| bundle.missing(Part::ImageTokenizer, purpose))?;
    let generator = manifest.generator.as_ref().ok_or_else(|| bundle.missing(Part::Generator, purpose))?;
    generator.text_tokenizer.as_ref().ok_or_else(|| no_text_tokenizer(Part::Generator))?;
    let mut parts = vec![Part::ImageTokenizer, Part::Generator];
    match &manifest.contrastive {
        Some(contrastive) if contrastive.text_tokenizer.is_none() => return Err(no_text_tokenizer(Part::Contrastive)),
        Some(_) => parts.push(Part::Contrastive),
        None if request.keep.is_some() => return Err(nothing_to_rank_by()),
        None => {}
    }
    Ok(parts)
}

fn nothing_to_rank_by() -> PipelineError {
    let (expected, found) = ("a bundle with a `contrastive` part to rank by".to_string(), "none".to_string());
    PipelineError::Request { key: "keep", expected, found, hint: Some("leave --keep out to keep every picture") }
}

impl TextToImage {
    pub fn load(bundle: &BundleFolder, device: &Device) -> Result<Self, PipelineError> {
        let contrastive = bundle.manifest().contrastive.as_ref().map(|_| bundle.contrastive(device, "rank pictures")).transpose()?;
        Self::new(bundle.image_tokenizer(device, "make pictures")?, bundle.generator(device, "make pictures")?, contrastive)
    }

    /// The image tokenizer and generator must speak of the same codes and the same number of image tokens.
    pub fn new(image_tokenizer: ImageTokenizerPart, generator: GeneratorPart, contrastive: Option<ContrastivePart>) -> Result<Self, PipelineError> {
        let (config, [rows, columns]) = (generator.model.config(), image_tokenizer.grid());
        for (key, expected, found) in
            [("image_vocabulary", image_tokenizer.model.code_count(), config.image_vocabulary), ("image_token_count", rows * columns, config.image_token_count)]
        {
            if expected != found {
                let expected = format!("{expected}, as the image tokenizer has");
                return Err(PipelineError::Disagreement { part: Part::Generator, key, expected, found: found.to_string() });
            }
        }
        Ok(Self { image_tokenizer, generator, contrastive })
    }

    /// Whether pictures get a score, which `keep` needs.
    pub fn ranks(&self) -> bool {
        self.contrastive.is_some()
    }

    /// Makes the pictures of a request. `progress` is called after each token of each batch, and while decoding and ranking.
    pub fn generate(&self, request: &Request, progress: &mut dyn FnMut(Progress)) -> Result<Made, PipelineError> {
        request.validate()?;
        if request.keep.is_some() && !self.ranks() {
            return Err(nothing_to_rank_by());
        }
        let (prompt, truncated) = self.encode(&request.prompt)?;
        let image_tokens = self.draw(request, &prompt, progress)?;
        let pictures = self.decode(&image_tokens, progress)?;
        let scores = match &self.contrastive {
            Some(contrastive) => Some(rerank::scores(contrastive, &request.prompt, &pictures, progress)?),
            None => None,
        };
        let mut made: Vec<MadePicture> = pictures
            .into_iter()
            .zip(image_tokens)
            .enumerate()
            .map(|(index, (picture, image_tokens))| MadePicture { picture, index, score: scores.as_ref().map(|scores| scores[index]), image_tokens })
            .collect();
        if let (Some(keep), Some(scores)) = (request.keep, scores) {
            let kept = rerank::order(&scores).into_iter().take(keep);
            made = kept.map(|index| made[index].clone()).collect();
        }
        Ok(Made { pictures: made, truncated })
    }

    fn text_tokenizer(&self) -> Result<&TextTokenizer, PipelineError> {
        self.generator.text_tokenizer.as_ref().ok_or_else(|| no_text_tokenizer(Part::Generator))
    }

    fn encode(&self, prompt: &str) -> Result<(Encoded, Option<Truncation>), PipelineError> {
        let wrong = |source| PipelineError::TextTokenizer { part: Part::Generator, source };
        let text_tokenizer = self.text_tokenizer()?;
        let length = self.generator.model.config().text_token_count;
        let encoded = text_tokenizer.encode(prompt, length).map_err(wrong)?;
        let token_count = text_tokenizer.text_tokens(prompt).map_err(wrong)?.len();
        let kept_count = encoded.end - usize::from(text_tokenizer.special_tokens().start.is_some());
        Ok((encoded, (kept_count < token_count).then_some(Truncation { token_count, kept_count })))
    }

    /// Image tokens of all pictures, batch by batch. The prompt is encoded once.
    fn draw(&self, request: &Request, prompt: &Encoded, progress: &mut dyn FnMut(Progress)) -> Result<Vec<Vec<u32>>, PipelineError> {
        let length = self.generator.model.config().text_token_count;
        let null = self.text_tokenizer()?.encode("", length).map_err(|source| PipelineError::TextTokenizer { part: Part::Generator, source })?;
        let null = (request.guidance_scale != 1.0).then_some(&null);
        let mut candidates = Candidates::new(&self.generator.model, caption(prompt), null.map(caption), request.count.min(request.batch_size))?;
        let mut image_tokens = Vec::with_capacity(request.count);
        for start in (0..request.count).step_by(request.batch_size) {
            let batch = start..request.count.min(start + request.batch_size);
            if start > 0 {
                candidates = candidates.further(batch.len());
            }
            image_tokens.extend(self.draw_batch(request, &mut candidates, batch, progress)?);
        }
        Ok(image_tokens)
    }

    fn draw_batch(
        &self,
        request: &Request,
        candidates: &mut Candidates,
        batch: Range<usize>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<u32>>, PipelineError> {
        let token_count = self.generator.model.config().image_token_count;
        let total = token_count * request.count;
        let mut rngs: Vec<_> = batch.clone().map(|index| picture_rng(request.seed, index as u64)).collect();
        let drawn = sample(&mut rngs, token_count, &request.options, |previous, position| {
            let StepLogits { conditional, unconditional } = candidates.next_logits(previous, position);
            progress(Progress { stage: Stage::ImageTokens, done: batch.start * token_count + batch.len() * (position + 1), total });
            Ok::<_, Infallible>(match unconditional {
                Some(unconditional) => super_condition(&conditional, &unconditional, request.guidance_scale),
                None => conditional,
            })
        });
        Ok(drawn?)
    }

    fn decode(&self, image_tokens: &[Vec<u32>], progress: &mut dyn FnMut(Progress)) -> Result<Vec<Picture>, PipelineError> {
        let mut pictures = Vec::with_capacity(image_tokens.len());
        for batch in image_tokens.chunks(DECODE_BATCH_SIZE) {
            let batch: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
            pictures.extend(reconstruct::decode(&self.image_tokenizer, &batch, self.image_tokenizer.grid())?);
            progress(Progress { stage: Stage::Pictures, done: pictures.len(), total: image_tokens.len() });
        }
        Ok(pictures)
    }
}

fn caption(encoded: &Encoded) -> Caption<'_> {
    Caption { text_tokens: &encoded.tokens, visible: &encoded.visible }
}
