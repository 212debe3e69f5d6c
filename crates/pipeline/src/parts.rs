//! The parts of a bundle in memory: networks of several kinds behind the few things a pipeline asks of them.

use crate::Provenance;
use crate::manifest::{ClassifierConfig, DiffusionConfig, GeneratorModel, ImageTokenSampling, ImageTokenizerModel, NetworkConfig, TextEncoderModel};
use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor};
use smalti_data::text_tokenizer::TextTokenizer;
use smalti_models::ConfigError;
use smalti_models::classifier::noisy::NoisyClassifier;
use smalti_models::contrastive::clip::Clip;
use smalti_models::generator::conditions::Conditions;
use smalti_models::generator::dalle_bart::DalleBart;
use smalti_models::generator::efficient_unet::EfficientUnet;
use smalti_models::generator::unet::Unet;
use smalti_models::image_tokenizer::autoencoder_kl::AutoencoderKl;
use smalti_models::image_tokenizer::autoencoder_tiny::AutoencoderTiny;
use smalti_models::image_tokenizer::vqgan::Vqgan;
use smalti_models::text_encoder::bert::Bert;
use smalti_models::text_encoder::clip_text::ClipText;
use smalti_models::text_encoder::t5::T5Encoder;
use smalti_nn::Initializer;
use smalti_nn::precision::{HalfFormat, store_weights};
use smalti_nn::weights::{NamedTensors, WeightsError, apply, collect};

/// Pixels to latents, which may be image tokens, and back.
#[derive(Clone, Debug)]
pub struct ImageTokenizerPart {
    pub model: ImageTokenizer,
    /// Side in pixels of the square pictures it was trained on.
    pub image_size: usize,
    /// What brings latents to unit variance, measured on data.
    pub latent_scale: Option<f32>,
    pub provenance: Provenance,
}

impl ImageTokenizerPart {
    /// Rows and columns of the latents of one picture.
    pub fn grid(&self) -> [usize; 2] {
        [self.image_size / self.model.downsampling_factor(); 2]
    }

    pub fn device(&self) -> Device {
        self.model.device()
    }
}

/// The networks that can be an image tokenizer.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a program holds one or two: a box would only be in the way
pub enum ImageTokenizer {
    Vqgan(Vqgan),
    AutoencoderKl(AutoencoderKl),
    AutoencoderTiny(AutoencoderTiny),
}

impl ImageTokenizer {
    pub fn new(config: &ImageTokenizerModel, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        Ok(match config {
            ImageTokenizerModel::Vqgan(config) => Self::Vqgan(Vqgan::new(config, initializer)?),
            ImageTokenizerModel::AutoencoderKl(config) => Self::AutoencoderKl(AutoencoderKl::new(config, initializer)?),
            ImageTokenizerModel::AutoencoderTiny(config) => Self::AutoencoderTiny(AutoencoderTiny::new(config, initializer)?),
        })
    }

    pub fn config(&self) -> ImageTokenizerModel {
        match self {
            Self::Vqgan(model) => ImageTokenizerModel::Vqgan(model.config().clone()),
            Self::AutoencoderKl(model) => ImageTokenizerModel::AutoencoderKl(model.config().clone()),
            Self::AutoencoderTiny(model) => ImageTokenizerModel::AutoencoderTiny(model.config().clone()),
        }
    }

    pub fn downsampling_factor(&self) -> usize {
        self.config().downsampling_factor()
    }

    /// The network with a codebook, whose latents are image tokens; `None` where latents are continuous.
    pub fn discrete(&self) -> Option<&Vqgan> {
        match self {
            Self::Vqgan(model) => Some(model),
            Self::AutoencoderKl(_) | Self::AutoencoderTiny(_) => None,
        }
    }

    /// pictures [batch, height, width, 3] in [-1, 1] -> latents [batch, rows, columns, latent channels]: the means of a KL autoencoder, the vectors that a
    /// codebook has not yet replaced (latent-diffusion's "VQ-reg": the generator never sees the codebook).
    pub fn encode(&self, pictures: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Vqgan(model) => model.encode(pictures),
            Self::AutoencoderKl(model) => model.encode(pictures).mean,
            Self::AutoencoderTiny(model) => model.encode(pictures),
        }
    }

    /// [`Self::encode`] undone: a codebook is a part of the decoder.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Vqgan(model) => model.decode(model.quantize(latents).latents),
            Self::AutoencoderKl(model) => model.decode(latents),
            Self::AutoencoderTiny(model) => model.decode(latents),
        }
    }

    fn device(&self) -> Device {
        match self {
            Self::Vqgan(model) => device_of(model),
            Self::AutoencoderKl(model) => device_of(model),
            Self::AutoencoderTiny(model) => device_of(model),
        }
    }
}

/// Conditions to latents or pictures.
#[derive(Clone, Debug)]
pub struct GeneratorPart {
    pub model: Generator,
    /// Of generators that read text tokens themselves. Absent in imported weights whose text tokenizer was not given.
    pub text_tokenizer: Option<TextTokenizer>,
    /// How image tokens are usually drawn.
    pub sampling: Option<ImageTokenSampling>,
    pub provenance: Provenance,
}

/// The networks that can be a generator.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a program holds one or two: a box would only be in the way
pub enum Generator {
    DalleBart(DalleBart),
    Diffusion(Box<Diffusion>),
}

impl Generator {
    pub fn new(config: &GeneratorModel, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        Ok(match config {
            GeneratorModel::DalleBart(config) => {
                config.validate()?;
                Self::DalleBart(DalleBart::new(config, initializer))
            }
            GeneratorModel::Diffusion(config) => Self::Diffusion(Box::new(Diffusion::new(config, initializer)?)),
        })
    }

    pub fn config(&self) -> GeneratorModel {
        match self {
            Self::DalleBart(model) => GeneratorModel::DalleBart(model.config().clone()),
            Self::Diffusion(model) => GeneratorModel::Diffusion(Box::new(model.config.clone())),
        }
    }
}

/// A denoising network and the process it was trained on.
#[derive(Clone, Debug)]
pub struct Diffusion {
    pub network: DiffusionNetwork,
    pub config: DiffusionConfig,
}

impl Diffusion {
    pub fn new(config: &DiffusionConfig, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self { network: DiffusionNetwork::new(&config.network, initializer)?, config: config.clone() })
    }

    pub fn device(&self) -> Device {
        match &self.network {
            DiffusionNetwork::Unet(network) => device_of(network),
            DiffusionNetwork::EfficientUnet(network) => device_of(network),
        }
    }
}

/// The networks that can denoise.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // a program holds one or two: a box would only be in the way
pub enum DiffusionNetwork {
    Unet(Unet),
    EfficientUnet(EfficientUnet),
}

impl DiffusionNetwork {
    pub fn new(config: &NetworkConfig, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        Ok(match config {
            NetworkConfig::Unet(config) => Self::Unet(Unet::new(config, initializer)?),
            NetworkConfig::EfficientUnet(config) => Self::EfficientUnet(EfficientUnet::new(config, initializer)?),
        })
    }

    /// noisy [batch, height, width, channels], timesteps [batch] -> what the parameterization means, [batch, height, width, predicted channels].
    pub fn forward(&self, noisy: Tensor<4>, timesteps: Tensor<1>, conditions: Conditions) -> Tensor<4> {
        match self {
            Self::Unet(network) => network.forward(noisy, timesteps, conditions),
            Self::EfficientUnet(network) => network.forward(noisy, timesteps, conditions),
        }
    }
}

/// Text tokens to states that a diffusion network attends to; frozen.
#[derive(Clone, Debug)]
pub struct TextEncoderPart {
    pub model: TextEncoder,
    pub text_tokenizer: Option<TextTokenizer>,
    pub provenance: Provenance,
}

#[derive(Clone, Debug)]
pub enum TextEncoder {
    ClipText(ClipText),
    T5(T5Encoder),
    Bert(Bert),
}

impl TextEncoder {
    pub fn new(config: &TextEncoderModel, initializer: &mut Initializer) -> Result<Self, ConfigError> {
        Ok(match config {
            TextEncoderModel::ClipText(config) => Self::ClipText(ClipText::new(config, initializer)?),
            TextEncoderModel::T5(config) => Self::T5(T5Encoder::new(config, initializer)?),
            TextEncoderModel::Bert(config) => Self::Bert(Bert::new(config, initializer)?),
        })
    }

    pub fn config(&self) -> TextEncoderModel {
        match self {
            Self::ClipText(model) => TextEncoderModel::ClipText(model.config().clone()),
            Self::T5(model) => TextEncoderModel::T5(model.config().clone()),
            Self::Bert(model) => TextEncoderModel::Bert(model.config().clone()),
        }
    }

    /// Channels of each state.
    pub fn channels(&self) -> usize {
        self.config().channels()
    }

    /// tokens and visible [batch, length] -> states [batch, length, channels].
    pub fn encode(&self, tokens: Tensor<2, Int>, visible: Tensor<2, Bool>) -> Tensor<3> {
        match self {
            Self::ClipText(model) => model.encode(tokens, visible),
            Self::T5(model) => model.encode(tokens, visible),
            Self::Bert(model) => model.encode(tokens, visible),
        }
    }

    pub fn device(&self) -> Device {
        match self {
            Self::ClipText(model) => device_of(model),
            Self::T5(model) => device_of(model),
            Self::Bert(model) => device_of(model),
        }
    }
}

/// Which class a noisy canvas is of; its gradient leads a diffusion network there.
#[derive(Clone, Debug)]
pub struct ClassifierPart {
    pub network: NoisyClassifier,
    pub config: ClassifierConfig,
    pub provenance: Provenance,
}

impl ClassifierPart {
    pub fn device(&self) -> Device {
        device_of(&self.network)
    }
}

/// How well a picture fits a text.
#[derive(Clone, Debug)]
pub struct ContrastivePart {
    pub model: Clip,
    pub text_tokenizer: Option<TextTokenizer>,
    pub provenance: Provenance,
}

fn device_of<M: Module>(model: &M) -> Device {
    model.devices().into_iter().next().unwrap_or_default()
}

/// What is written to and read from a weights file, whatever the kind of network.
pub trait Weights: Sized {
    fn tensors(&self) -> NamedTensors;
    /// Every tensor finds its place and every place its tensor.
    fn with(self, tensors: NamedTensors, device: &Device) -> Result<Self, WeightsError>;
    /// For inference, with the weights of linear maps and convolutions in 16 bits.
    fn stored(self, format: HalfFormat) -> Self;
}

macro_rules! weights {
    ($($kind:ty { $($variant:ident),+ })+) => {$(
        impl Weights for $kind {
            fn tensors(&self) -> NamedTensors {
                match self { $(Self::$variant(model) => model.tensors(),)+ }
            }

            fn with(self, tensors: NamedTensors, device: &Device) -> Result<Self, WeightsError> {
                Ok(match self { $(Self::$variant(model) => Self::$variant(model.with(tensors, device)?),)+ })
            }

            fn stored(self, format: HalfFormat) -> Self {
                match self { $(Self::$variant(model) => Self::$variant(model.stored(format)),)+ }
            }
        }
    )+};
}

weights! {
    ImageTokenizer { Vqgan, AutoencoderKl, AutoencoderTiny }
    Generator { DalleBart, Diffusion }
    DiffusionNetwork { Unet, EfficientUnet }
    TextEncoder { ClipText, T5, Bert }
}

macro_rules! weights_of_modules {
    ($($module:ty),+) => {$(
        impl Weights for $module {
            fn tensors(&self) -> NamedTensors {
                collect(self)
            }

            fn with(self, tensors: NamedTensors, device: &Device) -> Result<Self, WeightsError> {
                apply(self, tensors, device)
            }

            fn stored(self, format: HalfFormat) -> Self {
                store_weights(self, format)
            }
        }
    )+};
}

weights_of_modules!(Vqgan, AutoencoderKl, AutoencoderTiny, DalleBart, Unet, EfficientUnet, ClipText, T5Encoder, Bert, Clip, NoisyClassifier);

impl Weights for Box<Diffusion> {
    fn tensors(&self) -> NamedTensors {
        self.network.tensors()
    }

    fn with(self, tensors: NamedTensors, device: &Device) -> Result<Self, WeightsError> {
        let Diffusion { network, config } = *self;
        Ok(Box::new(Diffusion { network: network.with(tensors, device)?, config }))
    }

    fn stored(self, format: HalfFormat) -> Self {
        let Diffusion { network, config } = *self;
        Box::new(Diffusion { network: network.stored(format), config })
    }
}
