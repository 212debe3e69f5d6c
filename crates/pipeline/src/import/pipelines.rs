//! Whole folders of diffusers: `model_index.json`, and a folder for each component.

use super::files::{Network, fitted, network, not_this, parse, read_text, wrong};
use super::image_tokenizers::{autoencoder_kl, autoencoder_tiny};
use super::scheduler::{self, Scheduler};
use super::text_encoders::clip_text;
use super::text_tokenizers::{clip_text_tokenizer, token_count};
use super::{ImportedPart, Source, provenance};
use crate::manifest::{Canvas, DiffusionConfig, NetworkConfig, SamplingDefaults, TextCondition};
use crate::parts::{Diffusion, DiffusionNetwork, Generator, ImageTokenizer, TextEncoder};
use crate::{GeneratorPart, ImageTokenizerPart, PipelineError, TextEncoderPart};
use burn::tensor::Device;
use serde::Deserialize;
use serde_json::{Map, Value};
use smalti_generation::diffusion::{Process, Sampler, Spacing, Threshold, Variance};
use smalti_models::ConfigError;
use smalti_models::generator::unet::{self, Unet};
use smalti_nn::Initializer;
use std::path::{Path, PathBuf};

/// What a published pipeline draws with unless told otherwise.
const STEPS: usize = 50;
const GUIDANCE_SCALE: f32 = 7.5;

/// Stable Diffusion 1.x and 2.x. A safety checker is left behind; everything else has its place.
pub(super) fn stable_diffusion(source: &Source, device: &Device) -> Result<Vec<ImportedPart>, PipelineError> {
    let root = &source.path;
    of_class(root, &["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"])?;
    let scheduler = as_stable_diffusion_corrects(root, scheduler_of(root)?)?;
    let text_encoder = clip_text(component(root, "text_encoder")?, device)?;
    let (image_tokenizer, latent_scale) = image_tokenizer(component(root, "vae")?, device)?;
    let unet = Component::read(root)?;

    let tokenizer_folder = root.join("tokenizer");
    let context_length = text_encoder.config().context_length;
    let condition = TextCondition { token_count: token_count(&tokenizer_folder)?.unwrap_or(context_length).min(context_length), attend_to_padding: true };
    let text_tokenizer = clip_text_tokenizer(source, &[tokenizer_folder], text_encoder.config().vocabulary_size)?;

    let latent_channels = image_tokenizer.config().latent_channels();
    let expected = format!("{latent_channels}, as the latents have: a network that is shown another picture (inpainting, depth, upscaling) is not known here");
    let found = unet.config.input_channels;
    ConfigError::check(found == latent_channels, "config.json: in_channels", expected, found).map_err(|error| wrong(&unet.network.path, error.to_string()))?;
    let image_size = unet.sample_size.saturating_mul(image_tokenizer.downsampling_factor());
    let generator = unet.generator(root, image_size, Canvas::Latents, Some(latent_scale), Some(condition), scheduler, device)?;

    let provenance = provenance(root);
    Ok(vec![
        ImportedPart::ImageTokenizer(Box::new(ImageTokenizerPart {
            model: image_tokenizer,
            image_size,
            latent_scale: Some(latent_scale),
            provenance: provenance.clone(),
        })),
        ImportedPart::TextEncoder(Box::new(TextEncoderPart { model: TextEncoder::ClipText(text_encoder), text_tokenizer, provenance })),
        generator,
    ])
}

/// A network of pixels without conditions.
pub(super) fn ddpm(source: &Source, device: &Device) -> Result<Vec<ImportedPart>, PipelineError> {
    let root = &source.path;
    of_class(root, &["DDPMPipeline", "DDIMPipeline"])?;
    let unet = Component::read(root)?;
    let classes = unet.config.class_count;
    let expected = "null: the names of classes are in no file";
    ConfigError::check(classes.is_none(), "config.json: num_class_embeds", expected, classes.unwrap_or(0))
        .map_err(|error| wrong(&unet.network.path, error.to_string()))?;
    let image_size = unet.sample_size;
    Ok(vec![unet.generator(root, image_size, Canvas::Pixels, None, None, scheduler_of(root)?, device)?])
}

/// The class that `model_index.json` names must be one of `expected`.
fn of_class(root: &Path, expected: &[&str]) -> Result<(), PipelineError> {
    let path = root.join("model_index.json");
    if !path.is_file() {
        return Err(wrong(root, "expected the folder of a pipeline, with model_index.json, found none; hint: parts have formats of their own".to_string()));
    }
    let index: Map<String, Value> = parse(&path, "the index of a pipeline", &read_text(&path)?)?;
    let found = index.get("_class_name").and_then(Value::as_str).unwrap_or("nothing");
    let expected_names = format!("`{}`", expected.join("` or `"));
    ConfigError::check(expected.contains(&found), "_class_name", expected_names, format!("`{found}`")).map_err(|error| not_this(&path, error))
}

/// The network in a subfolder.
fn component(root: &Path, name: &str) -> Result<Network, PipelineError> {
    let folder = root.join(name);
    if !folder.is_dir() {
        return Err(wrong(root, format!("expected a folder {name}/ with config.json and weights, found none; hint: is the download whole?")));
    }
    network(&folder)
}

fn scheduler_of(root: &Path) -> Result<Scheduler, PipelineError> {
    let path = root.join("scheduler").join("scheduler_config.json");
    let keys = parse(&path, "the config of a scheduler", &read_text(&path)?)?;
    scheduler::read(keys).map_err(|error| wrong(&path, error.to_string()))
}

/// The first files of Stable Diffusion lacked two keys; diffusers, which makes the pipeline of any file, sets them as they were meant: steps from 1 on, and
/// latents, which have no range, not clipped.
fn as_stable_diffusion_corrects(root: &Path, mut scheduler: Scheduler) -> Result<Scheduler, PipelineError> {
    if let Spacing::Leading { offset } = &mut scheduler.spacing {
        *offset = 1;
    }
    match scheduler.threshold {
        Threshold::None | Threshold::Static => Ok(Scheduler { threshold: Threshold::None, ..scheduler }),
        Threshold::Dynamic { .. } => {
            Err(wrong(root, "scheduler: thresholding: expected false, as latents have no range to be kept in, found true".to_string()))
        }
    }
}

fn image_tokenizer(network: Network, device: &Device) -> Result<(ImageTokenizer, f32), PipelineError> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "_class_name", default)]
        class: String,
    }
    let Named { class } = parse(&network.path.with_file_name("config.json"), "the config of an autoencoder", &network.config)?;
    if class == "AutoencoderTiny" { autoencoder_tiny(network, device) } else { autoencoder_kl(network, device) }
}

/// The folder `unet/`.
struct Component {
    network: Network,
    config: unet::Config,
    /// Side of the square canvas it was trained on.
    sample_size: usize,
}

impl Component {
    fn read(root: &Path) -> Result<Self, PipelineError> {
        #[derive(Deserialize)]
        struct Sized {
            sample_size: Option<Size>,
        }
        #[derive(Debug, Deserialize)]
        #[serde(untagged)]
        enum Size {
            Square(usize),
            Sides([usize; 2]),
        }
        let network = component(root, "unet")?;
        let path: PathBuf = network.path.with_file_name("config.json");
        let config = unet::import::diffusers_config(&network.config).map_err(|error| not_this(&path, error))?;
        let Sized { sample_size } = parse(&path, "the config of a U-Net", &network.config)?;
        let sample_size = match sample_size {
            Some(Size::Square(side)) => side,
            Some(Size::Sides([height, width])) if height == width => height,
            other => {
                let found = other.map_or("null".to_string(), |size| format!("{size:?}"));
                return Err(wrong(&path, format!("sample_size: expected the side of a square, found {found}")));
            }
        };
        Ok(Self { network, config, sample_size })
    }

    fn generator(
        self,
        root: &Path,
        image_size: usize,
        canvas: Canvas,
        latent_scale: Option<f32>,
        text: Option<TextCondition>,
        scheduler: Scheduler,
        device: &Device,
    ) -> Result<ImportedPart, PipelineError> {
        let Self { network, config: unet_config, .. } = self;
        let Scheduler { process, parameterization, variance, sampler, spacing, end, threshold } = scheduler;
        let steps = match (&process, sampler) {
            // Ancestral sampling is made for all the trained steps.
            (Process::VariancePreserving(schedule), Sampler::Ddpm) => schedule.train_steps(),
            _ => STEPS,
        };
        let guidance_scale = if text.is_some() { GUIDANCE_SCALE } else { 1.0 };
        let config = DiffusionConfig {
            image_size,
            canvas,
            latent_scale,
            parameterization,
            variance: if unet_config.learned_variance { Variance::Learned } else { variance },
            process,
            text,
            classes: Vec::new(),
            low_resolution: None,
            sampling: SamplingDefaults { sampler, steps, guidance_scale, threshold, spacing, end },
            network: NetworkConfig::Unet(unet_config.clone()),
        };
        config.validate().map_err(|error| wrong(root, error.to_string()))?;
        let model = Unet::new(&unet_config, &mut Initializer::unread(device)).map_err(|error| not_this(&network.path, error))?;
        let model = fitted(&network.path, model, unet::import::diffusers(network.tensors), device)?;
        let model = Generator::Diffusion(Box::new(Diffusion { network: DiffusionNetwork::Unet(model), config }));
        Ok(ImportedPart::Generator(Box::new(GeneratorPart { model, text_tokenizer: None, sampling: None, provenance: provenance(root) })))
    }
}
