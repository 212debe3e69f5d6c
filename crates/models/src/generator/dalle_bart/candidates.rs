//! All candidate pictures of one prompt, decoded side by side: where the network meets `generation::autoregressive::sample`.

use super::{Cache, DalleBart};
use burn::tensor::{Bool, Int, Tensor, TensorData};

/// A caption as the text tokenizer encoded it, padded or cut to one length.
#[derive(Clone, Copy, Debug)]
pub struct Caption<'a> {
    pub text_tokens: &'a [u32],
    /// False for padding; as long as `text_tokens`.
    pub visible: &'a [bool],
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptionError {
    #[error("caption: expected 1 to {expected} text tokens and as many marks of visibility, found {tokens} and {visible}")]
    Length { expected: usize, tokens: usize, visible: usize },
    #[error("caption and null caption: expected the same length, found {caption} and {null}; hint: pad both to the generator's text_token_count")]
    Lengths { caption: usize, null: usize },
    #[error("caption: text token {token} is not below the generator's text vocabulary of {vocabulary}; hint: this is another model's text tokenizer")]
    Vocabulary { token: u32, vocabulary: usize },
    #[error("caption: every text token is marked as padding")]
    Invisible,
}

/// Decodes `picture_count` pictures of one caption, with super-conditioning when a null caption is given. Captions are encoded once, whatever the count,
/// and each step runs the network once, over conditional and unconditional rows together.
///
/// ```ignore
/// let null = text_tokenizer.encode("", length);                       // the empty caption, as dropped captions were trained
/// let mut candidates = Candidates::new(&model, caption, (guidance_scale != 1.0).then_some(null), picture_count)?;
/// let mut rngs: Vec<_> = pictures.map(|picture| picture_rng(seed, picture)).collect();
/// let image_tokens = sample(&mut rngs, model.config().image_token_count, &options, |previous, position| {
///     let StepLogits { conditional, unconditional } = candidates.next_logits(previous, position);
///     Ok::<_, Infallible>(match unconditional {
///         Some(unconditional) => super_condition(&conditional, &unconditional, guidance_scale),
///         None => conditional,
///     })
/// })?;
/// ```
#[derive(Debug)]
pub struct Candidates<'a> {
    model: &'a DalleBart,
    /// The captions as the encoder read them, [captions, text_tokens, channels], and which of their text tokens are visible.
    memory: Tensor<3>,
    visible: Tensor<2, Bool>,
    cache: Cache,
    picture_count: usize,
    caption_count: usize,
}

/// Logits of one position, [picture_count * image_vocabulary] each, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct StepLogits {
    pub conditional: Vec<f32>,
    /// Given the null caption, for the same image tokens so far.
    pub unconditional: Option<Vec<f32>>,
}

impl<'a> Candidates<'a> {
    /// `null` is the empty caption; leave it out when the guidance scale is 1, which halves the work. `picture_count` is at least 1.
    pub fn new(model: &'a DalleBart, caption: Caption, null: Option<Caption>, picture_count: usize) -> Result<Self, CaptionError> {
        let captions: Vec<Caption> = std::iter::once(caption).chain(null).collect();
        for caption in &captions {
            caption.check(model)?;
        }
        if let Some(null) = null.filter(|null| null.text_tokens.len() != caption.text_tokens.len()) {
            return Err(CaptionError::Lengths { caption: caption.text_tokens.len(), null: null.text_tokens.len() });
        }
        let device = model.text_table.weight.val().device();
        let shape = [captions.len(), caption.text_tokens.len()];
        let tokens: Vec<i64> = captions.iter().flat_map(|caption| caption.text_tokens).map(|token| i64::from(*token)).collect();
        let visible: Vec<bool> = captions.iter().flat_map(|caption| caption.visible).copied().collect();
        let visible = Tensor::<2, Bool>::from_data(TensorData::new(visible, shape), &device);
        let memory = model.encode(Tensor::<2, Int>::from_data(TensorData::new(tokens, shape), &device), visible.clone());
        let cache = model.cache(memory.clone(), visible.clone(), picture_count);
        Ok(Self { model, memory, visible, cache, picture_count, caption_count: captions.len() })
    }

    /// Further pictures of the same caption, from position 0. The caption is not encoded again.
    pub fn further(&self, picture_count: usize) -> Self {
        let cache = self.model.cache(self.memory.clone(), self.visible.clone(), picture_count);
        Self { model: self.model, memory: self.memory.clone(), visible: self.visible.clone(), cache, picture_count, caption_count: self.caption_count }
    }

    /// `previous` holds the image token that each picture got at `position - 1` and is empty at position 0. Positions come in order.
    pub fn next_logits(&mut self, previous: &[u32], position: usize) -> StepLogits {
        let row_count = self.caption_count * self.picture_count;
        let start = self.model.start(row_count);
        let previous = if position == 0 {
            start
        } else {
            assert!(previous.len() == self.picture_count, "next_logits: expected {} image tokens, found {}", self.picture_count, previous.len());
            let tokens: Vec<i64> = (0..self.caption_count).flat_map(|_| previous).map(|token| i64::from(*token)).collect();
            Tensor::from_data(TensorData::new(tokens, [row_count, 1]), &start.device())
        };
        let logits = self.model.decode_step(&mut self.cache, previous, position);
        let mut conditional = logits.into_data().convert::<f32>().try_into_vec::<f32>().expect("logits are f32 after conversion");
        let unconditional = (self.caption_count == 2).then(|| conditional.split_off(self.picture_count * self.model.config().image_vocabulary));
        StepLogits { conditional, unconditional }
    }
}

impl Caption<'_> {
    fn check(&self, model: &DalleBart) -> Result<(), CaptionError> {
        let config = model.config();
        let (tokens, visible) = (self.text_tokens.len(), self.visible.len());
        if tokens != visible || tokens == 0 || tokens > config.text_token_count {
            return Err(CaptionError::Length { expected: config.text_token_count, tokens, visible });
        }
        if let Some(&token) = self.text_tokens.iter().find(|token| **token as usize >= config.text_vocabulary) {
            return Err(CaptionError::Vocabulary { token, vocabulary: config.text_vocabulary });
        }
        if !self.visible.contains(&true) { Err(CaptionError::Invisible) } else { Ok(()) }
    }
}
