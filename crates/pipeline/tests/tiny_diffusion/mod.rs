//! Bundles of tiny untrained diffusion networks.

use burn::tensor::Device;
use smalti_data::text_tokenizer::TextTokenizer;
use smalti_generation::diffusion::{End, Parameterization, Process, Sampler, Schedule, ScheduleConfig, Spacing, Threshold, Variance};
use smalti_generation::random::{fill_normal, picture_rng};
use smalti_models::classifier::noisy::{self, NoisyClassifier, Pooling};
use smalti_models::generator::efficient_unet::{self, Level, Per};
use smalti_models::generator::unet::{self, TextConfig, time_embedding};
use smalti_models::image_tokenizer::{autoencoder_kl, convolutional};
use smalti_models::text_encoder::clip_text;
use smalti_nn::Initializer;
use smalti_pipeline::manifest::{
    Canvas, ClassifierConfig, DiffusionConfig, GeneratorModel, ImageTokenizerModel, LowResolutionCondition, NetworkConfig, SamplingDefaults, TextCondition,
    TextEncoderModel,
};
use smalti_pipeline::parts::{Generator, ImageTokenizer, TextEncoder, Weights};
use smalti_pipeline::{Bundle, ClassifierPart, GeneratorPart, ImageTokenizerPart, Provenance, TextEncoderPart};

/// Draws 8x8 pixels; of these classes, or of nothing where there are none.
pub fn pixel_bundle(classes: &[&str]) -> Bundle {
    let network = unet::Config { class_count: (!classes.is_empty()).then_some(classes.len() + 1), ..network(3) };
    let classes = classes.iter().map(|class| class.to_string()).collect();
    let config = DiffusionConfig { classes, ..config(8, Canvas::Pixels, network) };
    Bundle { name: "pixels".into(), generator: Some(generator(config)), ..Bundle::default() }
}

/// [`pixel_bundle`], whose pictures a second stage enlarges to 16x16.
#[allow(dead_code)] // not every test crate enlarges
pub fn cascade_bundle() -> Bundle {
    let level = |channels, downsample| Level { channels, residual_block_count: 1, downsample, self_attention: false, text_attention: false };
    let network = efficient_unet::Config {
        picture_channels: 3,
        low_resolution: true,
        base_channels: 8,
        levels: vec![level(8, false), level(16, true)],
        middle: false,
        per: Per::Level,
        head_channels: 8,
        text_channels: None,
        time: time_embedding::Config::latent_diffusion(8),
        group_count: 4,
    };
    let first = config(16, Canvas::Pixels, self::network(3));
    let config = DiffusionConfig {
        network: NetworkConfig::EfficientUnet(network),
        low_resolution: Some(LowResolutionCondition { image_size: 8, noise_level: 0.1 }),
        ..first
    };
    Bundle { name: "cascade".into(), super_resolution: vec![generator(config)], ..pixel_bundle(&["red", "blue"]) }
}

/// Draws latents of 4x4 and 4 channels, which become 16x16 pixels, of captions.
pub fn latent_bundle() -> Bundle {
    let initializer = &mut Initializer::new(6, &Device::flex());
    let text_tokenizer = TextTokenizer::train(&["a red heart", "a blue fish", "a green leaf, flat style"], 300).unwrap();
    let mut text = clip_text::Config { vocabulary_size: text_tokenizer.vocabulary_size(), context_length: 12, ..clip_text::Config::stable_diffusion_1() };
    let transformer = &mut text.transformer;
    (transformer.channels, transformer.layer_count, transformer.head_count, transformer.feed_forward_channels) = (16, 1, 2, 32);
    let autoencoder = autoencoder_kl::Config {
        network: convolutional::Config {
            picture_channels: 3,
            base_channels: 8,
            channel_multipliers: vec![1, 1, 2],
            residual_block_count: 1,
            attention_levels: vec![],
            middle_attention: true,
            group_count: 4,
            latent_channels: 4,
        },
        latent_projections: true,
    };
    let network = unet::Config { text: Some(TextConfig { channels: 16, block_count: 1 }), ..network(4) };
    let condition = Some(TextCondition { token_count: 12, attend_to_padding: true });
    let config = DiffusionConfig { text: condition, latent_scale: Some(0.5), ..config(16, Canvas::Latents, network) };
    Bundle {
        name: "latents".into(),
        image_tokenizer: Some(ImageTokenizerPart {
            model: ImageTokenizer::new(&ImageTokenizerModel::AutoencoderKl(autoencoder), initializer).unwrap(),
            image_size: 16,
            latent_scale: Some(0.5),
            provenance: Provenance::default(),
        }),
        text_encoder: Some(TextEncoderPart {
            model: TextEncoder::new(&TextEncoderModel::ClipText(text), initializer).unwrap(),
            text_tokenizer: Some(text_tokenizer),
            provenance: Provenance::default(),
        }),
        generator: Some(generator(config)),
        ..Bundle::default()
    }
}

/// Tells apart noisy 8x8 pixels, or the noisy latents of [`latent_bundle`].
#[allow(dead_code)] // not every test crate guides
pub fn classifier(canvas: Canvas, classes: &[&str]) -> ClassifierPart {
    let (input_channels, side, image_size, latent_scale) = match canvas {
        Canvas::Pixels => (3, 8, 8, None),
        Canvas::Latents => (4, 4, 16, Some(0.5)),
    };
    let unet = network(input_channels);
    let config = ClassifierConfig {
        image_size,
        canvas,
        latent_scale,
        process: Process::VariancePreserving(Schedule::new(ScheduleConfig::cosine()).unwrap()),
        classes: classes.iter().map(|class| class.to_string()).collect(),
        network: noisy::Config {
            input_channels,
            class_count: classes.len(),
            level_channels: unet.level_channels,
            residual_block_count: 1,
            attention_levels: unet.attention_levels,
            head_counts: unet.head_counts,
            time: unet.time,
            time_use: unet.time_use,
            group_count: 4,
            norm_epsilon: 1e-5,
            pooling: Pooling::Attention { side: side / 2 },
        },
    };
    let network = NoisyClassifier::new(&config.network, &mut Initializer::new(9, &Device::flex())).unwrap();
    ClassifierPart { network: moved(network), config, provenance: Provenance::default() }
}

fn network(channels: usize) -> unet::Config {
    unet::Config {
        input_channels: channels,
        output_channels: channels,
        level_channels: vec![8, 16],
        residual_block_count: 1,
        attention_levels: vec![1],
        head_counts: vec![2; 2],
        time: time_embedding::Config::ddpm(8),
        group_count: 4,
        ..unet::Config::ddpm_cifar10()
    }
}

fn config(image_size: usize, canvas: Canvas, network: unet::Config) -> DiffusionConfig {
    let threshold = if canvas == Canvas::Pixels { Threshold::Static } else { Threshold::None };
    DiffusionConfig {
        image_size,
        canvas,
        latent_scale: None,
        parameterization: Parameterization::Velocity,
        variance: Variance::FixedSmall,
        process: Process::VariancePreserving(Schedule::new(ScheduleConfig::cosine()).unwrap()),
        text: None,
        classes: Vec::new(),
        low_resolution: None,
        sampling: SamplingDefaults {
            sampler: Sampler::Ddim { eta: 0.0 },
            steps: 4,
            guidance_scale: 2.0,
            threshold,
            spacing: Spacing::Trailing,
            end: End::Clean,
        },
        network: NetworkConfig::Unet(network),
    }
}

fn generator(config: DiffusionConfig) -> GeneratorPart {
    let model = Generator::new(&GeneratorModel::Diffusion(Box::new(config)), &mut Initializer::new(7, &Device::flex())).unwrap();
    GeneratorPart { model: moved(model), text_tokenizer: None, sampling: None, provenance: Provenance::default() }
}

/// First weights make an output of zero, whatever the input; these are moved off it.
fn moved<M: Weights>(model: M) -> M {
    let mut tensors = model.tensors();
    for (index, tensor) in tensors.values_mut().enumerate() {
        let mut noise = vec![0.0; tensor.values.len()];
        fill_normal(&mut picture_rng(8, index as u64), &mut noise);
        tensor.values.iter_mut().zip(noise).for_each(|(value, noise)| *value += 0.1 * noise);
    }
    model.with(tensors, &Device::flex()).unwrap()
}
