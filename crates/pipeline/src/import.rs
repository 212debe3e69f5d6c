//! Others' checkpoints become parts of a bundle, or plain weights of the networks that only measure.
//!
//! Names, layouts and configs of each family are known to its model's own `import.rs`; here is which files a published checkpoint consists of. Loading is
//! strict: every tensor of the file has a place in the network and every weight of the network is in the file.

use crate::parts::{Generator, ImageTokenizer};
use crate::{Bundle, ContrastivePart, GeneratorPart, ImageTokenizerPart, Part, PipelineError, Provenance};
use burn::module::Module;
use burn::tensor::Device;
use smalti_data::text_tokenizer::{SpecialTokens, TextTokenizer};
use smalti_models::contrastive::clip::{self, Clip};
use smalti_models::generator::dalle_bart::{self, DalleBart};
use smalti_models::image_tokenizer::vqgan::{self, Vqgan};
use smalti_models::inception::{self, Inception};
use smalti_models::perceptual::lpips::Lpips;
use smalti_models::perceptual::{self, vgg};
use smalti_models::{ConfigError, generator::dalle_bart::import as dalle_bart_import};
use smalti_nn::Initializer;
use smalti_nn::weights::{NamedTensors, apply, foreign};
use std::fs;
use std::path::{Path, PathBuf};

/// Published formats of networks that are parts of bundles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A `.ckpt` of taming-transformers or latent-diffusion.
    TamingVqgan,
    /// A folder of diffusers' `VQModel`: `config.json`, `diffusion_pytorch_model.safetensors`.
    DiffusersVqgan,
    /// A folder of min-dalle: `encoder.pt`, `decoder.pt`.
    MinDalle,
    /// A folder of `transformers`' BART: `config.json`, `model.safetensors`.
    HuggingFaceBart,
    /// A folder of `transformers`' CLIP: `config.json`, `model.safetensors`.
    HuggingFaceClip,
    /// A state dictionary with the names of OpenAI's own CLIP.
    OpenAiClip,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct Source {
    /// A file or folder, as the format is published.
    pub path: PathBuf,
    /// A `tokenizer.json`, or OpenAI CLIP's merges (`.txt`, `.gz`). Without it `tokenizer.json` beside the weights is used, where there is one.
    pub text_tokenizer: Option<PathBuf>,
    /// For image tokenizers: side in pixels of the pictures it was trained on, which no checkpoint says.
    pub image_size: usize,
}

/// A part, ready to be put into a bundle.
#[derive(Clone, Debug)]
pub enum ImportedPart {
    ImageTokenizer(Box<ImageTokenizerPart>),
    Generator(Box<GeneratorPart>),
    Contrastive(Box<ContrastivePart>),
}

impl ImportedPart {
    pub fn part(&self) -> Part {
        match self {
            Self::ImageTokenizer(_) => Part::ImageTokenizer,
            Self::Generator(_) => Part::Generator,
            Self::Contrastive(_) => Part::Contrastive,
        }
    }

    /// Whether its text tokenizer is not known: then it cannot be prompted.
    pub fn lacks_text_tokenizer(&self) -> bool {
        match self {
            Self::ImageTokenizer(_) => false,
            Self::Generator(part) => part.text_tokenizer.is_none(),
            Self::Contrastive(part) => part.text_tokenizer.is_none(),
        }
    }

    /// Puts the part into a bundle, in the place of the one that was there.
    pub fn put_into(self, bundle: &mut Bundle) {
        match self {
            Self::ImageTokenizer(part) => bundle.image_tokenizer = Some(*part),
            Self::Generator(part) => bundle.generator = Some(*part),
            Self::Contrastive(part) => bundle.contrastive = Some(*part),
        }
    }
}

/// Reads a foreign checkpoint as a part.
pub fn import(format: Format, source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    match format {
        Format::TamingVqgan => taming_vqgan(source, device),
        Format::DiffusersVqgan => diffusers_vqgan(source, device),
        Format::MinDalle => min_dalle(source, device),
        Format::HuggingFaceBart => hugging_face_bart(source, device),
        Format::HuggingFaceClip => hugging_face_clip(source, device),
        Format::OpenAiClip => open_ai_clip(source, device),
    }
}

/// The weights of LPIPS with VGG16, checked against the network: from one file, or from a folder with VGG16 and the learned heads in two.
pub fn lpips(path: &Path, device: &Device) -> Result<NamedTensors, PipelineError> {
    let mut tensors = NamedTensors::new();
    for file in checkpoint_files(path)? {
        tensors.extend(read(&file)?);
    }
    let network = Lpips::new(&vgg::Config::vgg16(), &mut Initializer::unread(device)).map_err(|error| not_this(path, error))?;
    checked(path, network, perceptual::import::lpips(tensors), device)
}

/// The weights of `pytorch-fid`'s Inception v3, checked against the network.
pub fn inception(path: &Path, device: &Device) -> Result<NamedTensors, PipelineError> {
    let tensors = read(&one_checkpoint(path)?)?;
    checked(path, Inception::new(&mut Initializer::unread(device)), inception::import::pytorch_fid(tensors), device)
}

fn taming_vqgan(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let path = one_checkpoint(&source.path)?;
    let tensors = vqgan::import::taming(read(&path)?).tensors;
    let config = vqgan::import::taming_config(&tensors).map_err(|error| not_this(&path, error))?;
    image_tokenizer(source, &path, &config, tensors, device)
}

fn diffusers_vqgan(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let (path, json) = with_config(&source.path)?;
    let config = vqgan::import::diffusers_config(&json).map_err(|error| not_this(&path, error))?;
    image_tokenizer(source, &path, &config, vqgan::import::diffusers(read(&path)?).tensors, device)
}

fn image_tokenizer(source: &Source, path: &Path, config: &vqgan::Config, tensors: NamedTensors, device: &Device) -> Result<ImportedPart, PipelineError> {
    let model = Vqgan::new(config, &mut Initializer::unread(device)).map_err(|error| not_this(path, error))?;
    let model = fitted(path, model, tensors, device)?;
    Ok(ImportedPart::ImageTokenizer(Box::new(ImageTokenizerPart {
        model: ImageTokenizer::Vqgan(model),
        image_size: source.image_size,
        latent_scale: None,
        provenance: provenance(path),
    })))
}

fn min_dalle(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let [encoder, decoder] = ["encoder", "decoder"].map(|side| {
        let files = checkpoint_files(&source.path)?;
        let found = files.into_iter().find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(side)));
        found.ok_or_else(|| wrong(&source.path, format!("expected a folder with {side}.pt, found none")))
    });
    let (encoder_path, decoder) = (encoder?, read(&decoder?)?);
    let encoder = read(&encoder_path)?;
    let config = dalle_bart_import::min_dalle_config(&encoder, &decoder).map_err(|error| not_this(&source.path, error))?;
    generator(source, &source.path, &config, dalle_bart_import::min_dalle(encoder, decoder), device)
}

fn hugging_face_bart(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let (path, json) = with_config(&source.path)?;
    let config = dalle_bart_import::hugging_face_config(&json).map_err(|error| not_this(&path, error))?;
    let tensors = dalle_bart_import::hugging_face(read(&path)?, &config);
    generator(source, &path, &config, tensors, device)
}

fn generator(source: &Source, path: &Path, config: &dalle_bart::Config, tensors: NamedTensors, device: &Device) -> Result<ImportedPart, PipelineError> {
    let model = fitted(path, DalleBart::new(config, &mut Initializer::unread(device)), tensors, device)?;
    let text_tokenizer = text_tokenizer(source, config.text_vocabulary)?;
    Ok(ImportedPart::Generator(Box::new(GeneratorPart { model: Generator::DalleBart(model), text_tokenizer, provenance: provenance(path) })))
}

fn hugging_face_clip(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let (path, json) = with_config(&source.path)?;
    let clip::import::HuggingFaceConfig { config, end_token } = clip::import::hugging_face_config(&json).map_err(|error| not_this(&path, error))?;
    contrastive(source, &path, &config, clip::import::hugging_face(read(&path)?), Some(end_token), device)
}

fn open_ai_clip(source: &Source, device: &Device) -> Result<ImportedPart, PipelineError> {
    let path = one_checkpoint(&source.path)?;
    let tensors = read(&path)?;
    let config = clip::import::open_ai_config(&tensors).map_err(|error| not_this(&path, error))?;
    contrastive(source, &path, &config, clip::import::open_ai(tensors), None, device)
}

fn contrastive(
    source: &Source,
    path: &Path,
    config: &clip::Config,
    tensors: NamedTensors,
    end_token: Option<u32>,
    device: &Device,
) -> Result<ImportedPart, PipelineError> {
    let model = Clip::new(config, &mut Initializer::unread(device)).map_err(|error| not_this(path, error))?;
    let model = fitted(path, model, tensors, device)?;
    let mut text_tokenizer = text_tokenizer(source, config.text.vocabulary_size)?;
    if let (Some(known), Some(end)) = (&text_tokenizer, end_token) {
        let specials = SpecialTokens { end, ..known.special_tokens() };
        text_tokenizer = Some(known.clone().with_special_tokens(specials)?);
    }
    Ok(ImportedPart::Contrastive(Box::new(ContrastivePart { model, text_tokenizer, provenance: provenance(path) })))
}

fn text_tokenizer(source: &Source, vocabulary_size: usize) -> Result<Option<TextTokenizer>, PipelineError> {
    let folder = if source.path.is_dir() { source.path.as_path() } else { source.path.parent().unwrap_or(Path::new(".")) };
    let beside = folder.join("tokenizer.json");
    let path = match &source.text_tokenizer {
        Some(path) => path,
        None if beside.is_file() => &beside,
        None => return Ok(None),
    };
    let text_tokenizer = match path.extension().and_then(|extension| extension.to_str()) {
        Some("txt" | "gz") => TextTokenizer::from_clip_merges(path, vocabulary_size)?,
        _ => TextTokenizer::from_file(path)?,
    };
    let found = text_tokenizer.vocabulary_size();
    if found > vocabulary_size {
        let reason = format!("expected a text tokenizer of at most {vocabulary_size} entries, as the network has, found {found}");
        return Err(wrong(path, reason));
    }
    Ok(Some(text_tokenizer))
}

fn provenance(path: &Path) -> Provenance {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    Provenance { source: Some(name), ..Provenance::default() }
}

/// The weights without the training state that checkpoints of PyTorch Lightning keep beside them.
fn read(path: &Path) -> Result<NamedTensors, PipelineError> {
    const TRAINING_STATE: [&str; 4] = ["optimizer_states.", "callbacks.", "lr_schedulers.", "loops."];
    let tensors = foreign::read_selected(path, |name| !TRAINING_STATE.iter().any(|state| name.starts_with(state)));
    tensors.map_err(|error| wrong(path, error.to_string().replacen(&format!("{}: ", path.display()), "", 1)))
}

/// The weights file of a folder in the manner of Hugging Face, and the text of its `config.json`.
fn with_config(path: &Path) -> Result<(PathBuf, String), PipelineError> {
    let weights = one_checkpoint(path)?;
    let config = weights.with_file_name("config.json");
    let json = fs::read_to_string(&config).map_err(|source| PipelineError::io(&config, source))?;
    Ok((weights, json))
}

/// `path` itself, or the one checkpoint in the folder `path`; of two formats of the same weights the safetensors.
fn one_checkpoint(path: &Path) -> Result<PathBuf, PipelineError> {
    let files = checkpoint_files(path)?;
    let safetensors: Vec<&PathBuf> = files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "safetensors")).collect();
    match (files.as_slice(), safetensors.as_slice()) {
        ([file], _) => Ok(file.clone()),
        (_, [file]) => Ok((*file).clone()),
        _ => {
            let names: Vec<_> = files.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned())).collect();
            Err(wrong(path, format!("expected one file of weights, found {}; hint: name the file itself", names.join(", "))))
        }
    }
}

fn checkpoint_files(path: &Path) -> Result<Vec<PathBuf>, PipelineError> {
    const EXTENSIONS: [&str; 5] = ["safetensors", "ckpt", "pt", "pth", "bin"];
    if !path.is_dir() {
        fs::metadata(path).map_err(|source| PipelineError::io(path, source))?;
        return Ok(vec![path.to_path_buf()]);
    }
    let io = |source| PipelineError::io(path, source);
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.is_file() && file.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known)) {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(wrong(path, format!("expected a file of weights (.{}), found none", EXTENSIONS.join(", ."))));
    }
    Ok(files)
}

fn fitted<M: Module>(path: &Path, network: M, tensors: NamedTensors, device: &Device) -> Result<M, PipelineError> {
    apply(network, tensors, device).map_err(|error| wrong(path, error.to_string()))
}

/// The tensors, once they are known to fit.
fn checked<M: Module>(path: &Path, network: M, tensors: NamedTensors, device: &Device) -> Result<NamedTensors, PipelineError> {
    fitted(path, network, tensors.clone(), device)?;
    Ok(tensors)
}

fn not_this(path: &Path, error: ConfigError) -> PipelineError {
    wrong(path, format!("{error}; hint: is this the format named with --as?"))
}

fn wrong(path: &Path, reason: String) -> PipelineError {
    PipelineError::Import { path: path.to_path_buf(), reason }
}
