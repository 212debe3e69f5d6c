//! The network of row C: a decoder-only transformer over image tokens, as minDALL-E and GPT-2 have it (pre-norm, GELU, learned positions). None of our models
//! is one yet; this one is made of the same layers and keeps its keys and values as `dalle_bart` does.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use smalti_nn::Initializer;
use smalti_nn::layers::{Embedding, LayerNorm, Linear};
use smalti_nn::ops::{self, Mask};

pub const BLOCK_COUNT: usize = 12;
pub const CHANNELS: usize = 768;
pub const TOKEN_COUNT: usize = 256;
const HEADS: usize = 12;
const VOCABULARY: usize = 16384;
const FEED_FORWARD_CHANNELS: usize = 4 * CHANNELS;
const NORM_EPSILON: f32 = 1e-5;

#[derive(Module, Debug)]
pub struct Transformer {
    table: Embedding,
    positions: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

#[derive(Module, Debug)]
struct Block {
    attention_norm: LayerNorm,
    /// Query, key and value side by side, as GPT-2 has them.
    attention_input: Linear,
    output: Linear,
    feed_forward_norm: LayerNorm,
    expand: Linear,
    contract: Linear,
}

/// Keys and values of a block, [batch, heads, TOKEN_COUNT, channels / heads], filled up to the position.
pub struct KeyValues {
    key: Tensor<4>,
    value: Tensor<4>,
}

/// The weights that every token needs, which is all but the tables.
pub fn weights_read_per_token() -> usize {
    let linear = |input: usize, output: usize| input * output + output;
    let block = linear(CHANNELS, 3 * CHANNELS)
        + linear(CHANNELS, CHANNELS)
        + linear(CHANNELS, FEED_FORWARD_CHANNELS)
        + linear(FEED_FORWARD_CHANNELS, CHANNELS)
        + 4 * CHANNELS;
    BLOCK_COUNT * block + 2 * CHANNELS + CHANNELS * VOCABULARY
}

impl Transformer {
    pub fn new(initializer: &mut Initializer) -> Self {
        Self {
            table: Embedding::normal(VOCABULARY, CHANNELS, 0.02, initializer),
            positions: Embedding::normal(TOKEN_COUNT, CHANNELS, 0.02, initializer),
            blocks: (0..BLOCK_COUNT).map(|_| Block::new(initializer)).collect(),
            norm: LayerNorm::new(CHANNELS, true, NORM_EPSILON, initializer),
            head: Linear::normal(CHANNELS, VOCABULARY, false, 0.02, initializer),
        }
    }

    pub fn cache(&self, batch: usize) -> Vec<KeyValues> {
        let empty = || Tensor::zeros([batch, HEADS, TOKEN_COUNT, CHANNELS / HEADS], &Device::flex());
        self.blocks.iter().map(|_| KeyValues { key: empty(), value: empty() }).collect()
    }

    /// tokens [batch, 1] at `position` -> logits [batch, VOCABULARY] of the next one.
    pub fn step(&self, cache: &mut [KeyValues], tokens: Tensor<2, Int>, position: usize) -> Tensor<2> {
        let place = self.positions.weight.val().slice([position..position + 1, 0..CHANNELS]).unsqueeze();
        let mut x = self.table.forward(tokens) + place;
        for (block, cache) in self.blocks.iter().zip(cache) {
            x = block.forward(x, cache, position);
        }
        self.head.forward(self.norm.forward(x)).squeeze_dim(1)
    }
}

impl Block {
    fn new(initializer: &mut Initializer) -> Self {
        let norm = |initializer: &mut Initializer| LayerNorm::new(CHANNELS, true, NORM_EPSILON, initializer);
        let linear = |input: usize, output: usize, initializer: &mut Initializer| Linear::normal(input, output, true, 0.02, initializer);
        Self {
            attention_norm: norm(initializer),
            attention_input: linear(CHANNELS, 3 * CHANNELS, initializer),
            output: linear(CHANNELS, CHANNELS, initializer),
            feed_forward_norm: norm(initializer),
            expand: linear(CHANNELS, FEED_FORWARD_CHANNELS, initializer),
            contract: linear(FEED_FORWARD_CHANNELS, CHANNELS, initializer),
        }
    }

    /// x [batch, 1, channels] -> the same shape.
    fn forward(&self, x: Tensor<3>, cache: &mut KeyValues, position: usize) -> Tensor<3> {
        let shape = x.dims();
        let all = self.attention_input.forward(self.attention_norm.forward(x.clone()));
        let third =
            |index: usize| -> Tensor<4> { all.clone().narrow(2, index * CHANNELS, CHANNELS).reshape([shape[0], 1, HEADS, CHANNELS / HEADS]).swap_dims(1, 2) };
        let key = append(&mut cache.key, third(1), position);
        let value = append(&mut cache.value, third(2), position);
        let mixed = ops::attention(third(0), key, value, Mask::None);
        let x = x + self.output.forward(mixed.swap_dims(1, 2).reshape(shape));
        let h = ops::gelu(self.expand.forward(self.feed_forward_norm.forward(x.clone())));
        x + self.contract.forward(h)
    }
}

/// Writes one more token into the memory that is there (`inplace` gives the only handle away) and shows all so far, [batch, heads, position + 1, channels].
fn append(slot: &mut Tensor<4>, new: Tensor<4>, position: usize) -> Tensor<4> {
    let [batch, heads, _, channels] = slot.dims();
    slot.inplace(|slot| slot.slice_assign([0..batch, 0..heads, position..position + 1, 0..channels], new));
    slot.clone().narrow(2, 0, position + 1)
}
