//! CLIP: a picture and a text as unit vectors of one space, where the cosine says how well they fit.
//!
//! - Paper: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (2103.00020).
//! - Idea: two towers trained so that each picture of a batch finds its own caption among all captions of the batch, and each caption its picture.
//! - Data flow: picture `[batch, height, width, 3]` -> patches `[batch, patches, patch * patch * 3]` -> class token and patches
//!   `[batch, 1 + patches, channels]` -> blocks -> class token `[batch, channels]` -> unit vector `[batch, embedding_channels]`;
//!   text tokens `[batch, tokens]` -> causal blocks `[batch, tokens, channels]` -> end token `[batch, channels]` -> unit vector `[batch, embedding_channels]`.
//! - Where we differ: pictures are [-1, 1], and mean and standard deviation of the training pictures are part of the network, so that no caller can
//!   forget them; the patch convolution is a linear map of flattened patches (the same numbers); the place of the end token is an argument, because only the
//!   text tokenizer knows it.
//! - Verified: embeddings, logits, loss and gradients against `transformers.CLIPModel` (`goldens/make.py`), finite differences, `tests.rs`.

pub mod config;
mod cost;
pub mod import;
pub mod loss;
#[cfg(test)]
mod tests;
pub mod transformer;

pub use config::Config;

use crate::ConfigError;
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use config::{ImageTowerConfig, TextTowerConfig};
use loss::LOGIT_SCALE_LIMIT;
use smalti_nn::Initializer;
use smalti_nn::layers::{Embedding, LayerNorm, Linear};
use smalti_nn::ops::Mask;
use transformer::{Block, blocks};

/// Both towers and the learned temperature. Field names are weight names.
#[derive(Module, Debug)]
pub struct Clip {
    pub image: ImageTower,
    pub text: TextTower,
    /// Natural logarithm of the factor on cosines, [1].
    pub logit_scale: Param<Tensor<1>>,
    #[module(skip)]
    config: Config,
}

impl Clip {
    /// Fresh weights; the factor on cosines starts at 1 / 0.07 (section 2.5). An impossible config is an error.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        let embedding_channels = config.embedding_channels;
        Ok(Self {
            image: ImageTower::new(&config.image, embedding_channels, initializer),
            text: TextTower::new(&config.text, embedding_channels, initializer),
            logit_scale: initializer.constant([1], (1.0f32 / 0.07).ln()),
            config: config.clone(),
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// x [batch, image_size, image_size, 3] in [-1, 1] -> [batch, embedding_channels] of unit length.
    pub fn encode_image(&self, x: Tensor<4>) -> Tensor<2> {
        unit_length(self.image.forward(x, &self.config.image))
    }

    /// text_tokens [batch, tokens], at most `context_length` of them; `end[i]` is the place of the end token in row i, and what follows it has no
    /// influence -> [batch, embedding_channels] of unit length.
    pub fn encode_text(&self, text_tokens: Tensor<2, Int>, end: &[usize]) -> Tensor<2> {
        unit_length(self.text.forward(text_tokens, end))
    }

    /// The factor on cosines, [1].
    pub fn logit_scale(&self) -> Tensor<1> {
        self.logit_scale.val().exp()
    }

    /// Puts the learned logarithm back under its limit, the logarithm of [`LOGIT_SCALE_LIMIT`]. Call after every optimiser step, as the authors do. (A limit in
    /// the forward pass would let no gradient through once it is reached, and hold it there for good.)
    pub fn clip_logit_scale(mut self) -> Self {
        self.logit_scale = self.logit_scale.map(|logarithm| {
            let requires_grad = logarithm.is_require_grad();
            logarithm.clamp_max(LOGIT_SCALE_LIMIT.ln()).detach().set_require_grad(requires_grad)
        });
        self
    }
}

/// Vision transformer (Dosovitskiy et al. 2020, 2010.11929) with a norm before the blocks and one on the class token after them.
#[derive(Module, Debug)]
pub struct ImageTower {
    /// Weight [patch * patch * 3, channels], rows in the order height, width, colour.
    pub patch_projection: Linear,
    /// [channels]
    pub class_token: Param<Tensor<1>>,
    /// [1 + patches, channels], the class token first
    pub positions: Param<Tensor<2>>,
    pub input_norm: LayerNorm,
    pub blocks: Vec<Block>,
    pub output_norm: LayerNorm,
    pub projection: Linear,
}

impl ImageTower {
    fn new(config: &ImageTowerConfig, embedding_channels: usize, initializer: &mut Initializer) -> Self {
        let ImageTowerConfig { image_size, patch_size, transformer, .. } = config;
        let (channels, epsilon) = (transformer.channels, transformer.layer_norm_epsilon);
        let patch_count = (image_size / patch_size).pow(2);
        let patch_values = patch_size * patch_size * 3;
        let deviation = (channels as f32).powf(-0.5);
        Self {
            // The spread of PyTorch's default for the patch convolution: uniform within 1 / sqrt(fan in).
            patch_projection: Linear::normal(patch_values, channels, false, (3.0 * patch_values as f32).powf(-0.5), initializer),
            class_token: initializer.normal([channels], deviation),
            positions: initializer.normal([1 + patch_count, channels], deviation),
            input_norm: LayerNorm::new(channels, true, epsilon, initializer),
            blocks: blocks(transformer, initializer),
            output_norm: LayerNorm::new(channels, true, epsilon, initializer),
            projection: Linear::normal(channels, embedding_channels, false, deviation, initializer),
        }
    }

    fn forward(&self, x: Tensor<4>, config: &ImageTowerConfig) -> Tensor<2> {
        let [batch, height, width, colours] = x.dims();
        let (size, patch) = (config.image_size, config.patch_size);
        assert!([height, width, colours] == [size, size, 3], "clip: pictures {:?}, expected [batch, {size}, {size}, 3]", x.dims());
        let (grid, channels) = (size / patch, config.transformer.channels);
        let patches = normalise(x, config).reshape([batch, grid, patch, grid, patch, 3]).permute([0, 1, 3, 2, 4, 5]);
        let patches = self.patch_projection.forward(patches.reshape([batch, grid * grid, patch * patch * 3])); // [batch, patches, channels]
        let class_token = self.class_token.val().reshape([1, 1, channels]).expand([batch, 1, channels]);
        let x = Tensor::cat(vec![class_token, patches], 1) + self.positions.val().unsqueeze(); // [batch, 1 + patches, channels]
        let x = self.blocks.iter().fold(self.input_norm.forward(x), |x, block| block.forward(x, Mask::None));
        let class_token = x.narrow(1, 0, 1).reshape([batch, channels]);
        self.projection.forward(self.output_norm.forward(class_token))
    }
}

/// Causal transformer whose value at the end token, which alone has seen the whole text, stands for the text.
#[derive(Module, Debug)]
pub struct TextTower {
    pub token_embedding: Embedding,
    /// [context_length, channels]
    pub positions: Param<Tensor<2>>,
    pub blocks: Vec<Block>,
    pub output_norm: LayerNorm,
    pub projection: Linear,
}

impl TextTower {
    fn new(config: &TextTowerConfig, embedding_channels: usize, initializer: &mut Initializer) -> Self {
        let TextTowerConfig { vocabulary_size, context_length, transformer } = config;
        let channels = transformer.channels;
        Self {
            // 0.02 and 0.01 are openai/CLIP's (`clip/model.py`, `CLIP.initialize_parameters`).
            token_embedding: Embedding::normal(*vocabulary_size, channels, 0.02, initializer),
            positions: initializer.normal([*context_length, channels], 0.01),
            blocks: blocks(transformer, initializer),
            output_norm: LayerNorm::new(channels, true, transformer.layer_norm_epsilon, initializer),
            projection: Linear::normal(channels, embedding_channels, false, (channels as f32).powf(-0.5), initializer),
        }
    }

    fn forward(&self, text_tokens: Tensor<2, Int>, end: &[usize]) -> Tensor<2> {
        let [batch, tokens] = text_tokens.dims();
        let [context_length, channels] = self.positions.val().dims();
        assert!(tokens <= context_length, "clip: text tokens [{batch}, {tokens}], expected at most {context_length} a row");
        assert!(end.len() == batch && end.iter().all(|&end| end < tokens), "clip: end tokens at {end:?} of text tokens [{batch}, {tokens}]");
        let x = self.token_embedding.forward(text_tokens) + self.positions.val().narrow(0, 0, tokens).unsqueeze();
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, Mask::Causal)); // [batch, tokens, channels]
        let rows: Vec<i64> = end.iter().enumerate().map(|(row, end)| (row * tokens + end) as i64).collect();
        let rows = Tensor::<1, Int>::from_data(rows.as_slice(), &x.device());
        let pooled = x.reshape([batch * tokens, channels]).select(0, rows); // [batch, channels]
        self.projection.forward(self.output_norm.forward(pooled))
    }
}

/// [-1, 1] -> [0, 1] -> what the network was trained on: zero mean, unit variance.
fn normalise(x: Tensor<4>, config: &ImageTowerConfig) -> Tensor<4> {
    let statistic = |values: [f32; 3]| Tensor::<1>::from_data(values, &x.device()).reshape([1, 1, 1, 3]);
    let (mean, deviation) = (statistic(config.pixel_mean), statistic(config.pixel_standard_deviation));
    ((x + 1.0) * 0.5 - mean) / deviation
}

/// Each row divided by its Euclidean length; the small term keeps the gradient of a zero row finite.
fn unit_length(x: Tensor<2>) -> Tensor<2> {
    let length = (x.clone().powi_scalar(2).sum_dim(1) + 1e-12).sqrt();
    x / length
}
