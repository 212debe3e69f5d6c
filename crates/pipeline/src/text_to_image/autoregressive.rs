//! Text tokens -> image tokens, one after the other -> pixels (DALL-E mini).

use super::{Made, MadePicture, Request, Watch};
use crate::manifest::ImageTokenSampling;
use crate::progress::{Progress, Stage};
use crate::reading::{self, Text, Truncation};
use crate::rerank::no_text_tokenizer;
use crate::{ImageTokenizerPart, Part, PipelineError, reconstruct};
use smalti_data::Picture;
use smalti_data::text_tokenizer::{Encoded, TextTokenizer};
use smalti_generation::autoregressive::{sample, super_condition};
use smalti_generation::random::picture_rng;
use smalti_models::generator::dalle_bart::{Candidates, Caption, DalleBart, StepLogits};
use std::convert::Infallible;
use std::ops::Range;

/// Pictures decoded at once.
const DECODE_BATCH_SIZE: usize = 8;

/// An image tokenizer with a codebook and a generator of its codes.
#[derive(Clone, Debug)]
pub(super) struct Autoregressive {
    image_tokenizer: ImageTokenizerPart,
    generator: DalleBart,
    text_tokenizer: Option<TextTokenizer>,
    sampling: ImageTokenSampling,
}

impl Autoregressive {
    /// They must speak of the same codes and the same number of image tokens.
    pub fn new(
        image_tokenizer: ImageTokenizerPart,
        generator: DalleBart,
        text_tokenizer: Option<TextTokenizer>,
        sampling: ImageTokenSampling,
    ) -> Result<Self, PipelineError> {
        let (config, [rows, columns]) = (generator.config(), image_tokenizer.grid());
        let Some(code_count) = image_tokenizer.model.discrete().map(|model| model.code_count()) else {
            let expected = "one with a codebook, whose image tokens the generator draws".to_string();
            let found = image_tokenizer.model.config().kind().to_string();
            return Err(PipelineError::Disagreement { part: Part::ImageTokenizer, key: "model", expected, found });
        };
        for (key, expected, found) in
            [("image_vocabulary", code_count, config.image_vocabulary), ("image_token_count", rows * columns, config.image_token_count)]
        {
            if expected != found {
                let expected = format!("{expected}, as the image tokenizer has");
                return Err(PipelineError::Disagreement { part: Part::Generator, key, expected, found: found.to_string() });
            }
        }
        Ok(Self { image_tokenizer, generator, text_tokenizer, sampling })
    }

    pub fn image_size(&self) -> usize {
        self.image_tokenizer.image_size
    }

    /// The pictures of a request, not ranked.
    pub fn draw(&self, request: &Request, watch: &mut Watch) -> Result<Made, PipelineError> {
        check(request)?;
        let (prompt, truncated) = self.encode(&request.prompt)?;
        let image_tokens = self.draw_tokens(request, &prompt, watch)?;
        let pictures = self.decode(&image_tokens, watch.progress)?;
        let made = |(index, (picture, image_tokens))| MadePicture { picture, index, score: None, image_tokens, film_strip: Vec::new() };
        let pictures: Vec<MadePicture> = pictures.into_iter().zip(image_tokens).enumerate().map(made).collect();
        Ok(Made { drawn: pictures.len(), pictures, truncated: truncated.into_iter().collect() })
    }

    fn text_tokenizer(&self) -> Result<&TextTokenizer, PipelineError> {
        self.text_tokenizer.as_ref().ok_or_else(|| no_text_tokenizer(Part::Generator))
    }

    fn encode(&self, prompt: &str) -> Result<(Encoded, Option<Truncation>), PipelineError> {
        reading::read(self.text_tokenizer()?, Part::Generator, Text::Prompt, prompt, self.generator.config().text_token_count)
    }

    /// Image tokens of all pictures, batch by batch. The prompt is encoded once.
    fn draw_tokens(&self, request: &Request, prompt: &Encoded, watch: &mut Watch) -> Result<Vec<Vec<u32>>, PipelineError> {
        let guidance_scale = request.guidance_scale.unwrap_or(self.sampling.guidance_scale as f32);
        let (null, _) = self.encode("")?;
        let null = (guidance_scale != 1.0).then_some(&null);
        let mut candidates = Candidates::new(&self.generator, caption(prompt), null.map(caption), request.count.min(request.batch_size))?;
        let mut image_tokens = Vec::with_capacity(request.count);
        for start in (0..request.count).step_by(request.batch_size) {
            let batch = start..request.count.min(start + request.batch_size);
            if start > 0 {
                if (watch.stop)() {
                    break;
                }
                candidates = candidates.further(batch.len());
            }
            image_tokens.extend(self.draw_batch(request, guidance_scale, &mut candidates, batch, watch.progress)?);
        }
        Ok(image_tokens)
    }

    fn draw_batch(
        &self,
        request: &Request,
        guidance_scale: f32,
        candidates: &mut Candidates,
        batch: Range<usize>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Vec<u32>>, PipelineError> {
        let token_count = self.generator.config().image_token_count;
        let total = token_count * request.count;
        let mut rngs: Vec<_> = batch.clone().map(|index| picture_rng(request.seed, index as u64)).collect();
        let options = request.image_tokens.resolve(&self.sampling);
        let drawn = sample(&mut rngs, token_count, &options, |previous, position| {
            let StepLogits { conditional, unconditional } = candidates.next_logits(previous, position);
            progress(Progress { stage: Stage::ImageTokens, done: batch.start * token_count + batch.len() * (position + 1), total });
            Ok::<_, Infallible>(match unconditional {
                Some(unconditional) => super_condition(&conditional, &unconditional, guidance_scale),
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

/// Whether such a generator can draw a request at all; looks at no weights.
pub(super) fn check(request: &Request) -> Result<(), PipelineError> {
    if let Some(key) = request.diffusion.first_set() {
        let expected = "nothing: this bundle draws image tokens one after the other".to_string();
        return Err(PipelineError::Request { key, expected, found: "a value".to_string(), hint: Some("this option is for bundles with a diffusion network") });
    }
    if request.prompt.trim().is_empty() { Err(PipelineError::EmptyPrompt) } else { Ok(()) }
}

fn caption(encoded: &Encoded) -> Caption<'_> {
    Caption { text_tokens: &encoded.tokens, visible: &encoded.visible }
}
