//! The tiny autoencoder: pictures to latents and back with few and plain convolutions, for previews and for machines with two cores.
//!
//! Source: Ollin Boer Bohan, "TAESD: Tiny AutoEncoder for Stable Diffusion" (github.com/madebyollin/taesd), distilled from the large autoencoders; no paper.
//!
//! Idea: 64 channels everywhere, blocks of three convolutions with ReLU and a skip, no attention and, but for one later family, no normalisation. It speaks
//! the language of the large autoencoder it was distilled from: its latents are those that a generator works on (the large one's times its scale factor).
//!
//! Data flow: x [batch, height, width, 3] in [-1, 1] -> conv 3x3 and blocks -> for each further level: strided convolution, blocks -> conv 3x3 ->
//! latents [batch, height / f, width / f, latent_channels]. The decoder squashes latents softly to (-3, 3), then conv 3x3 and ReLU, and for each level:
//! blocks, nearest-neighbour doubling, conv 3x3; a last conv 3x3 gives the picture. TAEF2 also puts a wide 1x1 detour with group normalisation before each
//! block of the lowest level.
//!
//! Where we differ from the references: pictures are in [-1, 1] (the published weights want [0, 1]; we convert inside, as diffusers does).
//!
//! Verified against diffusers' `AutoencoderTiny` with small random weights, gradients too (`goldens/make.py`); with the published TAEF2 weights
//! (`assets/taef2`) it reconstructs a pictogram as an independent NumPy forward pass did, 31.6 dB from the original.

mod config;
mod cost;
pub mod import;
#[cfg(test)]
mod tests;

pub use config::Config;

use crate::ConfigError;
use burn::module::Module;
use burn::tensor::Tensor;
use smalti_nn::Initializer;
use smalti_nn::layers::{Conv2d, Conv2dConfig, GroupNorm};
use smalti_nn::ops::{self, Activation};

/// Latents are squashed to this size before they are decoded (taesd.py, `Clamp`).
const LATENT_MAGNITUDE: f32 = 3.0;

/// Of the detour's normalisation: PyTorch's default.
const EPSILON: f32 = 1e-5;

#[derive(Module, Debug)]
pub struct AutoencoderTiny {
    encoder: Encoder,
    decoder: Decoder,
    #[module(skip)]
    config: Config,
}

impl AutoencoderTiny {
    /// A network with first weights; an impossible config is an error that names the key.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self { encoder: Encoder::new(config, initializer), decoder: Decoder::new(config, initializer), config: config.clone() })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// f: pixels of a side that become one place of the latents.
    pub fn downsampling_factor(&self) -> usize {
        self.config.downsampling_factor()
    }

    pub fn latent_channels(&self) -> usize {
        self.config.latent_channels
    }

    /// pictures [batch, height, width, 3] in [-1, 1], sides divisible by f -> latents [batch, height / f, width / f, latent_channels], scaled as a
    /// generator wants them.
    pub fn encode(&self, pictures: Tensor<4>) -> Tensor<4> {
        let ([_, height, width, _], f) = (pictures.dims(), self.downsampling_factor());
        assert!(height.is_multiple_of(f) && width.is_multiple_of(f), "autoencoder_tiny: picture {:?} has a side that {f} does not divide", pictures.dims());
        self.encoder.forward((pictures + 1.0) * 0.5)
    }

    /// latents [batch, height, width, latent_channels] -> pictures [batch, f * height, f * width, 3], about [-1, 1], not clamped.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let channels = self.latent_channels();
        assert!(latents.dims()[3] == channels, "autoencoder_tiny: latents {:?}, expected {channels} channels", latents.dims());
        self.decoder.forward((latents / LATENT_MAGNITUDE).tanh() * LATENT_MAGNITUDE) * 2.0 - 1.0
    }
}

#[derive(Module, Debug)]
struct Encoder {
    conv_in: Conv2d,
    /// from the picture's size down
    levels: Vec<EncoderLevel>,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let lowest = config.encoder_block_counts.len() - 1;
        let conv_in = Conv2d::new(Conv2dConfig::same(config.picture_channels, config.channels, 3), initializer);
        let mut levels = Vec::with_capacity(lowest + 1);
        for (level, &count) in config.encoder_block_counts.iter().enumerate() {
            let downsample = (level > 0).then(|| Conv2d::new(Conv2dConfig { stride: 2, bias: false, ..same(config) }, initializer));
            levels.push(EncoderLevel { downsample, blocks: blocks(config, count, level == lowest, initializer) });
        }
        Self { conv_in, levels, conv_out: Conv2d::new(Conv2dConfig::same(config.channels, config.latent_channels, 3), initializer) }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut h = self.conv_in.forward(x);
        for EncoderLevel { downsample, blocks } in &self.levels {
            if let Some(conv) = downsample {
                h = conv.forward(h); // [batch, height / 2, width / 2, channels]
            }
            h = run(blocks, h);
        }
        self.conv_out.forward(h)
    }
}

#[derive(Module, Debug)]
struct EncoderLevel {
    downsample: Option<Conv2d>,
    blocks: Vec<Block>,
}

#[derive(Module, Debug)]
struct Decoder {
    conv_in: Conv2d,
    /// from the latents' size up
    levels: Vec<DecoderLevel>,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let highest = config.decoder_block_counts.len() - 1;
        let conv_in = Conv2d::new(Conv2dConfig::same(config.latent_channels, config.channels, 3), initializer);
        let mut levels = Vec::with_capacity(highest + 1);
        for (level, &count) in config.decoder_block_counts.iter().enumerate() {
            let blocks = blocks(config, count, level == 0, initializer);
            levels.push(DecoderLevel { blocks, upsample: (level < highest).then(|| Conv2d::new(Conv2dConfig { bias: false, ..same(config) }, initializer)) });
        }
        Self { conv_in, levels, conv_out: Conv2d::new(Conv2dConfig::same(config.channels, config.picture_channels, 3), initializer) }
    }

    fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let mut h = ops::relu(self.conv_in.forward(latents));
        for DecoderLevel { blocks, upsample } in &self.levels {
            h = run(blocks, h);
            if let Some(conv) = upsample {
                h = conv.forward(ops::upsample_nearest(h)); // [batch, 2 * height, 2 * width, channels]
            }
        }
        self.conv_out.forward(h)
    }
}

#[derive(Module, Debug)]
struct DecoderLevel {
    blocks: Vec<Block>,
    upsample: Option<Conv2d>,
}

fn same(config: &Config) -> Conv2dConfig {
    Conv2dConfig::same(config.channels, config.channels, 3)
}

fn blocks(config: &Config, count: usize, lowest: bool, initializer: &mut Initializer) -> Vec<Block> {
    (0..count).map(|_| Block::new(config, lowest && config.detours, initializer)).collect()
}

fn run(blocks: &[Block], h: Tensor<4>) -> Tensor<4> {
    blocks.iter().fold(h, |h, block| block.forward(h))
}

/// relu(x + conv(relu(conv(relu(conv(x)))))), after x = x + detour(x) where there is one.
#[derive(Module, Debug)]
struct Block {
    detour: Option<Detour>,
    conv_1: Conv2d,
    conv_2: Conv2d,
    conv_3: Conv2d,
}

impl Block {
    fn new(config: &Config, detour: bool, initializer: &mut Initializer) -> Self {
        let detour = detour.then(|| Detour::new(config.channels, initializer));
        let mut conv = || Conv2d::new(same(config), initializer);
        Self { detour, conv_1: conv(), conv_2: conv(), conv_3: conv() }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = match &self.detour {
            Some(detour) => x.clone() + detour.forward(x),
            None => x,
        };
        let h = ops::relu(self.conv_1.forward(x.clone()));
        let h = ops::relu(self.conv_2.forward(h));
        ops::relu(self.conv_3.forward_onto(x, h))
    }
}

/// Four times as many channels, normalised and rectified, and back; the published weights call it `pool`.
#[derive(Module, Debug)]
struct Detour {
    input: Conv2d,
    norm: GroupNorm,
    output: Conv2d,
}

impl Detour {
    /// Widening and groups as in taesd.py, `Block`.
    const WIDENING: usize = 4;
    const GROUP_COUNT: usize = 4;

    fn new(channels: usize, initializer: &mut Initializer) -> Self {
        let wide = Self::WIDENING * channels;
        let mut pointwise = |input, output| Conv2d::new(Conv2dConfig { bias: false, ..Conv2dConfig::same(input, output, 1) }, initializer);
        let (input, output) = (pointwise(channels, wide), pointwise(wide, channels));
        Self { input, norm: GroupNorm::new(Self::GROUP_COUNT, wide, EPSILON, initializer), output }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let h = self.norm.forward(self.input.forward(x), Activation::Identity);
        self.output.forward(ops::relu(h))
    }
}
