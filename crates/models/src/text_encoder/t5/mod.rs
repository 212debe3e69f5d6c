//! The encoder of T5, whose states Imagen, Muse, Stable Diffusion 3 and FLUX draw from.
//!
//! Paper: Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (1910.10683), section 2.1; the gated
//! feed-forward of version 1.1: Shazeer 2020 (2002.05202). Flan-T5 (Chung et al. 2022, 2210.11416) is version 1.1 with other weights.
//!
//! Idea: a pre-norm transformer that knows positions only by a learned bias on attention scores, by how far apart query and key are, in buckets that widen
//! with distance; all layers share the first layer's.
//!
//! Data flow: text tokens [batch, tokens] -> embeddings [batch, tokens, channels] -> blocks: x + attention(norm(x)), x + feed_forward(norm(x)) -> norm ->
//! states [batch, tokens, channels]. Norms are root-mean-square, nothing has a bias vector, and scores are not divided by sqrt(head channels): that factor
//! is part of the weights.
//!
//! Where we differ from the reference: dropout is left out (frozen); the bias table sits beside the blocks instead of in the first.
//!
//! Verified against `transformers.T5EncoderModel` with small random weights of versions 1.0 and 1.1, and its buckets at all distances to 300
//! (`goldens/make.py`).

mod block;
mod config;
mod cost;
pub mod import;
mod relative_position;
#[cfg(test)]
mod tests;

pub use config::{Config, FeedForward};
pub use relative_position::bucket;

use crate::ConfigError;
use block::Block;
use burn::module::{Module, Param};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use smalti_nn::Initializer;
use smalti_nn::layers::{Embedding, RmsNorm};

#[derive(Module, Debug)]
pub struct T5Encoder {
    token_embedding: Embedding,
    /// [buckets, heads], added to the scores of every layer
    relative_bias: Param<Tensor<2>>,
    blocks: Vec<Block>,
    output_norm: RmsNorm,
    #[module(skip)]
    config: Config,
}

impl T5Encoder {
    /// A network with first weights; an impossible config is an error that names the key.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        // Standard deviations as Mesh TensorFlow's, which transformers follows: 1 for tokens, 1 / sqrt(channels) for the biases.
        Ok(Self {
            token_embedding: Embedding::normal(config.vocabulary_size, config.channels, 1.0, initializer),
            relative_bias: initializer.normal([config.bucket_count, config.head_count], (config.channels as f32).powf(-0.5)),
            blocks: (0..config.layer_count).map(|_| Block::new(config, initializer)).collect(),
            output_norm: RmsNorm::new(config.channels, config.norm_epsilon, initializer),
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Channels of the states.
    pub fn channels(&self) -> usize {
        self.config.channels
    }

    /// tokens [batch, tokens], each below the vocabulary's size, visible [batch, tokens], at least one in each row -> states [batch, tokens, channels].
    /// What stands at invisible places has no influence on the states at visible ones.
    pub fn encode(&self, tokens: Tensor<2, Int>, visible: Tensor<2, Bool>) -> Tensor<3> {
        let [batch, count] = tokens.dims();
        assert!(visible.dims() == [batch, count], "t5: visible {:?} does not fit tokens {:?}", visible.dims(), tokens.dims());
        let bias = self.bias(count);
        let x = self.token_embedding.forward(tokens);
        let hidden = visible.bool_not().reshape([batch, 1, 1, count]);
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, bias.clone(), hidden.clone()));
        self.output_norm.forward(x)
    }

    /// What is added to the scores, [1, heads, queries, keys].
    fn bias(&self, count: usize) -> Tensor<4> {
        let buckets: Vec<i64> = (0..count * count)
            .map(|place| {
                let (query, key) = (place / count, place % count);
                bucket(key as i64 - query as i64, self.config.bucket_count, self.config.distance_limit) as i64
            })
            .collect();
        let table = self.relative_bias.val();
        let buckets = Tensor::<1, Int>::from_data(TensorData::new(buckets, [count * count]), &table.device());
        table.select(0, buckets).reshape([1, count, count, self.config.head_count]).permute([0, 3, 1, 2])
    }
}
