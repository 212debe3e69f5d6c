//! Others' checkpoints become parts of a bundle, or plain weights of the networks that only measure.
//!
//! Names, layouts and configs of each family are known to its model's own `import.rs`; here is which files a published checkpoint consists of. Loading is
//! strict: every tensor of the file has a place in the network and every weight of the network is in the file.
//!
//! Reading order:
mod files; //              which files of a folder are weights, and how they are read
mod text_tokenizers; //    the text tokenizer beside a checkpoint, and what marks the ends of a text
mod image_tokenizers; //   VQGANs, KL autoencoders, tiny autoencoders
mod text_encoders; //      CLIP's text tower, T5, BERT
mod generators; //         DALL-E mini
mod contrastive; //        CLIP
mod measures; //           LPIPS and Inception
mod scheduler; //          `scheduler_config.json`: the process, what the network predicts, how it is walked
mod pipelines; //          whole folders of diffusers

pub use measures::{inception, lpips};

use crate::{Bundle, ContrastivePart, GeneratorPart, ImageTokenizerPart, Part, PipelineError, Provenance, TextEncoderPart};
use burn::tensor::Device;
use std::path::{Path, PathBuf};

/// Published formats of networks that are parts of bundles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A `.ckpt` of taming-transformers or latent-diffusion.
    TamingVqgan,
    /// A folder of diffusers' `VQModel`: `config.json`, `diffusion_pytorch_model.safetensors`.
    DiffusersVqgan,
    /// A folder of diffusers' `AutoencoderKL`.
    DiffusersAutoencoderKl,
    /// A folder of diffusers' `AutoencoderTiny`.
    DiffusersAutoencoderTiny,
    /// A folder with the author's pair of files: `taesd_encoder.pth`, `taesd_decoder.pth` and their kin.
    Taesd,
    /// A folder of `transformers`' `CLIPTextModel`.
    HuggingFaceClipText,
    /// A folder of `transformers`' T5.
    HuggingFaceT5,
    /// A folder of `transformers`' BERT, MiniLM's for one.
    HuggingFaceBert,
    /// A folder of min-dalle: `encoder.pt`, `decoder.pt`.
    MinDalle,
    /// A folder of `transformers`' BART: `config.json`, `model.safetensors`.
    HuggingFaceBart,
    /// A folder of `transformers`' CLIP: `config.json`, `model.safetensors`.
    HuggingFaceClip,
    /// A state dictionary with the names of OpenAI's own CLIP.
    OpenAiClip,
    /// A folder of diffusers' `StableDiffusionPipeline`, of Stable Diffusion 1.x or 2.x: a text encoder, an image tokenizer and a generator.
    DiffusersStableDiffusion,
    /// A folder of diffusers' `DDPMPipeline` or `DDIMPipeline`: a generator of pixels.
    DiffusersDdpm,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct Source {
    /// A file or folder, as the format is published.
    pub path: PathBuf,
    /// A `tokenizer.json`, or OpenAI CLIP's merges (`.txt`, `.gz`). Without it the one beside the weights is used, where there is one.
    pub text_tokenizer: Option<PathBuf>,
    /// For an image tokenizer on its own: side in pixels of the pictures it was trained on, which no checkpoint says.
    pub image_size: usize,
}

impl Source {
    /// Where files beside the checkpoint lie.
    fn folder(&self) -> &Path {
        if self.path.is_dir() { &self.path } else { self.path.parent().unwrap_or(Path::new(".")) }
    }
}

/// A part, ready to be put into a bundle.
#[derive(Clone, Debug)]
pub enum ImportedPart {
    ImageTokenizer(Box<ImageTokenizerPart>),
    TextEncoder(Box<TextEncoderPart>),
    Generator(Box<GeneratorPart>),
    Contrastive(Box<ContrastivePart>),
}

impl ImportedPart {
    pub fn part(&self) -> Part {
        match self {
            Self::ImageTokenizer(_) => Part::ImageTokenizer,
            Self::TextEncoder(_) => Part::TextEncoder,
            Self::Generator(_) => Part::Generator,
            Self::Contrastive(_) => Part::Contrastive,
        }
    }

    /// Whether its text tokenizer is not known: then it cannot be prompted.
    pub fn lacks_text_tokenizer(&self) -> bool {
        match self {
            Self::ImageTokenizer(_) => false,
            Self::TextEncoder(part) => part.text_tokenizer.is_none(),
            Self::Generator(part) => part.text_tokenizer.is_none() && part.model.config().text_vocabulary().is_some(),
            Self::Contrastive(part) => part.text_tokenizer.is_none(),
        }
    }

    /// Puts the part into a bundle, in the place of the one that was there.
    pub fn put_into(self, bundle: &mut Bundle) {
        match self {
            Self::ImageTokenizer(part) => bundle.image_tokenizer = Some(*part),
            Self::TextEncoder(part) => bundle.text_encoder = Some(*part),
            Self::Generator(part) => bundle.generator = Some(*part),
            Self::Contrastive(part) => bundle.contrastive = Some(*part),
        }
    }
}

/// Reads a foreign checkpoint: one part, or all parts of a whole pipeline in the order in which a picture is made.
pub fn import(format: Format, source: &Source, device: &Device) -> Result<Vec<ImportedPart>, PipelineError> {
    let part = match format {
        Format::TamingVqgan => image_tokenizers::taming_vqgan(source, device),
        Format::DiffusersVqgan => image_tokenizers::diffusers_vqgan(source, device),
        Format::DiffusersAutoencoderKl => image_tokenizers::diffusers_autoencoder_kl(source, device),
        Format::DiffusersAutoencoderTiny => image_tokenizers::diffusers_autoencoder_tiny(source, device),
        Format::Taesd => image_tokenizers::taesd(source, device),
        Format::HuggingFaceClipText => text_encoders::hugging_face_clip_text(source, device),
        Format::HuggingFaceT5 => text_encoders::hugging_face_t5(source, device),
        Format::HuggingFaceBert => text_encoders::hugging_face_bert(source, device),
        Format::MinDalle => generators::min_dalle(source, device),
        Format::HuggingFaceBart => generators::hugging_face_bart(source, device),
        Format::HuggingFaceClip => contrastive::hugging_face_clip(source, device),
        Format::OpenAiClip => contrastive::open_ai_clip(source, device),
        Format::DiffusersStableDiffusion => return pipelines::stable_diffusion(source, device),
        Format::DiffusersDdpm => return pipelines::ddpm(source, device),
    };
    Ok(vec![part?])
}

fn provenance(path: &Path) -> Provenance {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    Provenance { source: Some(name), ..Provenance::default() }
}
