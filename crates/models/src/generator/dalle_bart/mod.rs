//! BART over image tokens: an encoder reads the caption, a decoder writes the picture's image tokens one after the other.
//!
//! **Paper.** BART: Lewis et al. 2019, <https://arxiv.org/abs/1910.13461>. DALL-E mini and mega: Dayma et al. 2021, <https://github.com/borisdayma/dalle-mini>,
//! which changes the blocks after NormFormer (<https://arxiv.org/abs/2110.09456>) and gates their feed-forward (<https://arxiv.org/abs/2002.05202>).
//!
//! **Idea.** A picture is a sentence in the language of the image tokenizer's codes, and drawing is translation:
//! p(t_1 .. t_n | text) = product over i of p(t_i | t_<i, encoder(text)).
//!
//! **Data flow.**
//! ```text
//! text_tokens [b, t] -> table + positions -> norm -> encoder blocks -> memory [b, t, channels]
//! image_tokens [b, n] -> shifted right behind the start token -> table + positions -> norm
//!                     -> decoder blocks (causal self-attention; attention to memory; feed-forward) -> logits [b, n, image_vocabulary]
//! ```
//! Teacher-forced in training ([`DalleBart::logits`]); with a [`Cache`] of keys and values one token at a time in generation
//! ([`DalleBart::decode_step`], and [`Candidates`] for all pictures of a prompt at once).
//!
//! **Differences.** Special entries of the image table (the start token, entries that round the table's size up) are cut off the logits, in training too:
//! published DALL-E mini trains them as classes that never occur, and min-dalle cuts them off when it samples. There is no dropout (DALL-E mini has none
//! either). Norms always have a scale; where DALL-E mini leaves it out, because a linear map follows, it is imported as 1.
//!
//! **The unconditional row** of super-conditioning is the empty caption as the text tokenizer encodes it, `<start><end>` and padding. It means something
//! only if training replaced some captions by it (DALL-E mini: `blank_caption_prob` 0.1 to 0.2), which is the recipe's part.
//!
//! **Verified** against `min_dalle` and `transformers` (encoder, logits, loss, every gradient) and for 256 greedy tokens against `min_dalle`'s own cache,
//! plain and super-conditioned: `tests.rs`, `goldens/`.

mod attention;
mod block;
mod cache;
mod candidates;
mod config;
mod cost;
pub mod import;
pub mod loss;
#[cfg(test)]
mod tests;

pub use attention::{Attention, KeyValues};
pub use block::{DecoderBlock, EncoderBlock, FeedForward, Residual};
pub use cache::Cache;
pub use candidates::{Candidates, Caption, CaptionError, StepLogits};
pub use config::{Config, FeedForward as FeedForwardKind, Norms, StackConfig, Vocabularies};

use block::{norm, normalised};
use burn::module::{Module, Param};
use burn::tensor::{Bool, Int, Tensor};
use smalti_nn::layers::{Embedding, LayerNorm, Linear};
use smalti_nn::{Initializer, ops};

/// Standard deviation of first weights (`init_std` of BART and of DALL-E mini).
const INITIAL_DEVIATION: f32 = 0.02;
/// PyTorch's default, which both families use.
const NORM_EPSILON: f32 = 1e-5;

#[derive(Module, Debug)]
pub struct DalleBart {
    /// [text_vocabulary, channels]; with shared vocabularies also the image tokens' table and, transposed, the head.
    pub text_table: Embedding,
    pub encoder: Encoder,
    /// [image_vocabulary + special_token_count, channels]
    pub image_table: Option<Embedding>,
    pub decoder: Decoder,
    /// [channels, image_vocabulary + special_token_count]
    pub head: Option<Linear>,
    pub logits_bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    config: Config,
}

#[derive(Module, Debug)]
pub struct Encoder {
    pub positions: Positions,
    pub input_norm: LayerNorm,
    pub blocks: Vec<EncoderBlock>,
    pub output_norm: Option<LayerNorm>,
}

#[derive(Module, Debug)]
pub struct Decoder {
    pub positions: Positions,
    pub input_norm: LayerNorm,
    pub blocks: Vec<DecoderBlock>,
    pub output_norm: Option<LayerNorm>,
}

/// A learned vector for each place of a sequence.
#[derive(Module, Debug)]
pub struct Positions {
    /// [offset + places, channels]
    pub table: Param<Tensor<2>>,
    #[module(skip)]
    offset: usize,
}

impl DalleBart {
    /// `config` must be valid ([`Config::validate`]).
    pub fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let table = |count: usize, initializer: &mut Initializer| Embedding::normal(count, config.channels, INITIAL_DEVIATION, initializer);
        let separate = config.vocabularies == Vocabularies::Separate;
        let size = config.image_table_size();
        Self {
            text_table: table(config.text_vocabulary, initializer),
            encoder: Encoder::new(config, initializer),
            image_table: separate.then(|| table(size, initializer)),
            decoder: Decoder::new(config, initializer),
            head: separate.then(|| Linear::normal(config.channels, size, false, INITIAL_DEVIATION, initializer)),
            logits_bias: config.logits_bias.then(|| initializer.constant([size], 0.0).map(|bias: Tensor<1>| bias.set_require_grad(false))),
            config: config.clone(),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// text_tokens [batch, tokens], each below `text_vocabulary`, at most `text_token_count` of them; visible [batch, tokens]: false for padding
    /// -> memory [batch, tokens, channels].
    pub fn encode(&self, text_tokens: Tensor<2, Int>, visible: Tensor<2, Bool>) -> Tensor<3> {
        let x = self.embed(&self.text_table, text_tokens);
        self.encoder.forward(x, visible)
    }

    /// Teacher-forced: memory [batch, text_tokens, channels], visible [batch, text_tokens], image_tokens [batch, tokens]
    /// -> [batch, tokens, image_vocabulary], where row i of the logits has seen the image tokens before i, so not token i itself.
    pub fn logits(&self, memory: Tensor<3>, visible: Tensor<2, Bool>, image_tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, tokens] = image_tokens.dims();
        let shifted = Tensor::cat(vec![self.start(batch), image_tokens], 1).narrow(1, 0, tokens);
        let x = self.embed(self.image_embedding(), shifted);
        self.predict(self.decoder.forward(x, memory, visible))
    }

    /// What the decoder reads at position 0: the start token, [row_count, 1].
    pub fn start(&self, row_count: usize) -> Tensor<2, Int> {
        let start = [self.config.start_token as i64];
        Tensor::<1, Int>::from_data(start, &self.text_table.weight.val().device()).reshape([1, 1]).expand([row_count, 1])
    }

    /// Prepares to decode `rows_per_caption` pictures of each caption side by side; rows of one caption are consecutive.
    ///
    /// The captions' keys and values are computed here, once: memory [captions, text_tokens, channels], visible [captions, text_tokens].
    pub fn cache(&self, memory: Tensor<3>, visible: Tensor<2, Bool>, rows_per_caption: usize) -> Cache {
        Cache::new(self, memory, visible, rows_per_caption)
    }

    /// previous [rows, 1]: the image token of each row at `position - 1` ([`DalleBart::start`] at position 0) -> logits [rows, image_vocabulary] of
    /// the image token at `position`. Positions come in order, as the cache keeps what came before; it panics when they do not.
    pub fn decode_step(&self, cache: &mut Cache, previous: Tensor<2, Int>, position: usize) -> Tensor<2> {
        let x = self.embed(self.image_embedding(), previous);
        let x = cache.advance(&self.decoder, x, position);
        self.predict(x).squeeze_dim(1)
    }

    fn embed(&self, table: &Embedding, tokens: Tensor<2, Int>) -> Tensor<3> {
        let x = table.forward(tokens);
        if self.config.scale_embedding { x * (self.config.channels as f32).sqrt() } else { x }
    }

    fn image_embedding(&self) -> &Embedding {
        self.image_table.as_ref().unwrap_or(&self.text_table)
    }

    /// [rows, tokens, channels] -> [rows, tokens, image_vocabulary].
    fn predict(&self, x: Tensor<3>) -> Tensor<3> {
        let bias = self.logits_bias.as_ref().map(Param::val);
        let weight = self.head.as_ref().map_or_else(|| self.text_table.weight.val().transpose(), |head| head.weight.val());
        let logits = ops::linear(x, weight, bias);
        if self.config.special_token_count == 0 { logits } else { logits.narrow(2, 0, self.config.image_vocabulary) }
    }
}

impl Encoder {
    fn new(config: &Config, initializer: &mut Initializer) -> Self {
        Self {
            positions: Positions::new(config.text_token_count, config, initializer),
            input_norm: norm(config.channels, initializer),
            blocks: (0..config.encoder.block_count).map(|_| EncoderBlock::new(config, initializer)).collect(),
            output_norm: output_norm(config, initializer),
        }
    }

    fn forward(&self, x: Tensor<3>, visible: Tensor<2, Bool>) -> Tensor<3> {
        let x = self.input_norm.forward(self.positions.add(x, 0));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, visible.clone()));
        normalised(&self.output_norm, x)
    }
}

impl Decoder {
    fn new(config: &Config, initializer: &mut Initializer) -> Self {
        Self {
            positions: Positions::new(config.image_token_count, config, initializer),
            input_norm: norm(config.channels, initializer),
            blocks: (0..config.decoder.block_count).map(|_| DecoderBlock::new(config, initializer)).collect(),
            output_norm: output_norm(config, initializer),
        }
    }

    fn forward(&self, x: Tensor<3>, memory: Tensor<3>, visible: Tensor<2, Bool>) -> Tensor<3> {
        let x = self.input_norm.forward(self.positions.add(x, 0));
        let x = self.blocks.iter().fold(x, |x, block| {
            let text = block.text_attention.key_values(memory.clone());
            block.forward(x, |keys| keys, text, visible.clone())
        });
        normalised(&self.output_norm, x)
    }
}

impl Positions {
    fn new(count: usize, config: &Config, initializer: &mut Initializer) -> Self {
        let table = initializer.normal([config.position_offset + count, config.channels], INITIAL_DEVIATION);
        Self { table, offset: config.position_offset }
    }

    /// x [batch, tokens, channels], whose first token stands at `position` -> the same shape.
    fn add(&self, x: Tensor<3>, position: usize) -> Tensor<3> {
        let table = self.table.val();
        let ([_, tokens, channels], [rows, _]) = (x.dims(), table.dims());
        let first = self.offset + position;
        assert!(first + tokens <= rows, "positions: {tokens} tokens from place {position} do not fit {} places", rows - self.offset);
        x + table.slice([first..first + tokens, 0..channels]).unsqueeze()
    }
}

/// NormFormer's residual stream is not normalised by its blocks, so it is at the end.
fn output_norm(config: &Config, initializer: &mut Initializer) -> Option<LayerNorm> {
    match config.norms {
        Norms::Post => None,
        Norms::NormFormer => Some(norm(config.channels, initializer)),
    }
}
