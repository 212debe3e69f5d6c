//! A bundle: one folder with everything that is needed to make pictures (`bundle.toml`, `*.safetensors`, text tokenizers, `MODEL_CARD.md`).
//!
//! [`BundleFolder`] is a bundle on disk, of which parts are loaded as they are needed; [`Bundle`] is one in memory, to be saved.

use crate::manifest::{
    self, ContrastiveEntry, ContrastiveModel, FILE_NAME, GeneratorEntry, GeneratorModel, ImageTokenizerEntry, ImageTokenizerModel, Manifest, Part, Provenance,
    TextTokenizerFile, VERSION, WeightsFile,
};
use crate::{PipelineError, model_card::model_card};
use burn::module::Module;
use burn::tensor::Device;
use sha2::{Digest, Sha256};
use smalti_data::text_tokenizer::TextTokenizer;
use smalti_models::contrastive::clip::Clip;
use smalti_models::generator::dalle_bart::DalleBart;
use smalti_models::image_tokenizer::vqgan::Vqgan;
use smalti_nn::Initializer;
use smalti_nn::weights::safetensors::{self, Storage};
use smalti_nn::weights::{apply, collect, flush_folder, write_atomically};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Pixels to image tokens and back.
#[derive(Clone, Debug)]
pub struct ImageTokenizerPart {
    pub model: Vqgan,
    /// Side in pixels of the square pictures it was trained on.
    pub image_size: usize,
    /// What brings latents to unit variance, measured on data.
    pub latent_scale: Option<f32>,
    pub provenance: Provenance,
}

impl ImageTokenizerPart {
    /// Rows and columns of the image tokens of one picture.
    pub fn grid(&self) -> [usize; 2] {
        [self.image_size / self.model.downsampling_factor(); 2]
    }

    pub fn device(&self) -> Device {
        self.model.devices().into_iter().next().unwrap_or_default()
    }
}

/// Text tokens to image tokens.
#[derive(Clone, Debug)]
pub struct GeneratorPart {
    pub model: DalleBart,
    /// Absent in imported weights whose text tokenizer was not given.
    pub text_tokenizer: Option<TextTokenizer>,
    pub provenance: Provenance,
}

/// How well a picture fits a text.
#[derive(Clone, Debug)]
pub struct ContrastivePart {
    pub model: Clip,
    pub text_tokenizer: Option<TextTokenizer>,
    pub provenance: Provenance,
}

/// All parts in memory.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    pub name: String,
    pub image_tokenizer: Option<ImageTokenizerPart>,
    pub generator: Option<GeneratorPart>,
    pub contrastive: Option<ContrastivePart>,
    /// Measures pictures, and never ranks them.
    pub judge: Option<ContrastivePart>,
    /// `MODEL_CARD.md`; without one the manifest in words is written.
    pub model_card: Option<String>,
}

impl Bundle {
    /// Loads every part of a bundle; see [`BundleFolder`] to load some.
    pub fn load(path: &Path, device: &Device) -> Result<Self, PipelineError> {
        let folder = BundleFolder::open(path)?;
        let parts = folder.manifest.parts();
        let has = |part| parts.contains(&part);
        Ok(Self {
            name: folder.manifest.name.clone(),
            image_tokenizer: has(Part::ImageTokenizer).then(|| folder.image_tokenizer(device, "load it")).transpose()?,
            generator: has(Part::Generator).then(|| folder.generator(device, "load it")).transpose()?,
            contrastive: has(Part::Contrastive).then(|| folder.contrastive(device, "load it")).transpose()?,
            judge: has(Part::Judge).then(|| folder.judge(device, "load it")).transpose()?,
            model_card: folder.model_card()?,
        })
    }

    /// Writes the bundle to the folder `path`, whole or not at all: it is built beside it under a temporary name and renamed. A bundle that is there already
    /// is replaced; any other folder with files in it is refused.
    pub fn save(&self, path: &Path, storage: Storage) -> Result<Manifest, PipelineError> {
        let replaces = check_target(path)?;
        let io = |source| PipelineError::io(path, source);
        let name =
            path.file_name().ok_or_else(|| io(io::Error::new(io::ErrorKind::InvalidInput, "expected the name of a folder")))?.to_string_lossy().into_owned();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(|source| PipelineError::io(parent, source))?;
        let temporary = parent.join(format!(".{name}.{}.tmp", std::process::id()));
        let old = parent.join(format!(".{name}.{}.old.tmp", std::process::id()));
        let written = self.write_parts(&temporary, storage).and_then(|manifest| {
            match replaces {
                Existing::Bundle => fs::rename(path, &old).map_err(io)?,
                Existing::EmptyFolder => fs::remove_dir(path).map_err(io)?,
                Existing::Nothing => {}
            }
            if let Err(error) = fs::rename(&temporary, path) {
                if replaces == Existing::Bundle {
                    fs::rename(&old, path).map_err(io)?;
                }
                return Err(io(error));
            }
            flush_folder(parent).map_err(io)?;
            Ok(manifest)
        });
        // Of what is not needed any more, nothing is left; the first error is the one to report.
        for folder in [&temporary, &old] {
            let _ = fs::remove_dir_all(folder);
        }
        written
    }

    fn write_parts(&self, folder: &Path, storage: Storage) -> Result<Manifest, PipelineError> {
        let mut writer = Writer { folder, storage, text_tokenizers: Vec::new() };
        fs::create_dir(folder).map_err(|source| PipelineError::io(folder, source))?;
        let image_tokenizer = |part: &ImageTokenizerPart| {
            Ok::<_, PipelineError>(ImageTokenizerEntry {
                weights: writer.weights(Part::ImageTokenizer, &part.model)?,
                image_size: part.image_size,
                latent_scale: part.latent_scale,
                model: ImageTokenizerModel::Vqgan(part.model.config().clone()),
                provenance: part.provenance.clone(),
            })
        };
        let image_tokenizer = self.image_tokenizer.as_ref().map(image_tokenizer).transpose()?;
        let generator = |part: &GeneratorPart| {
            Ok::<_, PipelineError>(GeneratorEntry {
                weights: writer.weights(Part::Generator, &part.model)?,
                text_tokenizer: writer.text_tokenizer(Part::Generator, part.text_tokenizer.as_ref())?,
                model: GeneratorModel::DalleBart(part.model.config().clone()),
                provenance: part.provenance.clone(),
            })
        };
        let generator = self.generator.as_ref().map(generator).transpose()?;
        let mut contrastive = |name: Part, part: &ContrastivePart| {
            Ok::<_, PipelineError>(ContrastiveEntry {
                weights: writer.weights(name, &part.model)?,
                text_tokenizer: writer.text_tokenizer(name, part.text_tokenizer.as_ref())?,
                model: ContrastiveModel::Clip(part.model.config().clone()),
                provenance: part.provenance.clone(),
            })
        };
        let judge = self.judge.as_ref().map(|part| contrastive(Part::Judge, part)).transpose()?;
        let contrastive = self.contrastive.as_ref().map(|part| contrastive(Part::Contrastive, part)).transpose()?;
        let manifest = Manifest { version: VERSION, name: self.name.clone(), image_tokenizer, generator, contrastive, judge };
        // What would not load is not written.
        let text = manifest.to_toml();
        let path = folder.join(FILE_NAME);
        let manifest = Manifest::parse(&path, &text)?;
        check_agreement(&manifest)?;
        let card = self.model_card.clone().unwrap_or_else(|| model_card(&manifest));
        for (name, text) in [("MODEL_CARD.md", &card), (FILE_NAME, &text)] {
            let path = folder.join(name);
            write_atomically(&path, |writer| writer.write_all(text.as_bytes())).map_err(|source| PipelineError::io(&path, source))?;
        }
        Ok(manifest)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Nothing,
    EmptyFolder,
    Bundle,
}

fn check_target(path: &Path) -> Result<Existing, PipelineError> {
    if path.join(FILE_NAME).is_file() {
        return Ok(Existing::Bundle);
    }
    match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(Existing::EmptyFolder),
            Some(_) => Err(PipelineError::WouldOverwrite { path: path.to_path_buf() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Existing::Nothing),
        Err(source) => Err(PipelineError::io(path, source)),
    }
}

struct Writer<'a> {
    folder: &'a Path,
    storage: Storage,
    /// Checksum and entry of those written; parts that share one share the file.
    text_tokenizers: Vec<TextTokenizerFile>,
}

impl Writer<'_> {
    fn weights<M: Module>(&self, part: Part, model: &M) -> Result<WeightsFile, PipelineError> {
        let tensors = collect(model);
        let file = format!("{}.safetensors", part.key());
        let path = self.folder.join(&file);
        safetensors::write(&path, &tensors, self.storage).map_err(|source| PipelineError::Weights { part, source })?;
        let parameter_count = tensors.values().map(|tensor| tensor.values.len()).sum();
        Ok(WeightsFile { file, sha256: file_sha256(&path)?, parameter_count, storage: self.storage })
    }

    fn text_tokenizer(&mut self, part: Part, text_tokenizer: Option<&TextTokenizer>) -> Result<Option<TextTokenizerFile>, PipelineError> {
        let Some(text_tokenizer) = text_tokenizer else { return Ok(None) };
        let entry = |file| TextTokenizerFile::new(file, text_tokenizer);
        if let Some(written) = self.text_tokenizers.iter().find(|written| entry(written.file.clone()) == **written) {
            return Ok(Some(written.clone()));
        }
        let file = if self.text_tokenizers.is_empty() { "text_tokenizer.json".to_string() } else { format!("text_tokenizer_{}.json", part.key()) };
        text_tokenizer.save(&self.folder.join(&file)).map_err(|source| PipelineError::TextTokenizer { part, source })?;
        self.text_tokenizers.push(entry(file.clone()));
        Ok(Some(entry(file)))
    }
}

/// A bundle on disk. Parts are loaded one by one; each file is compared with its checksum first.
#[derive(Clone, Debug)]
pub struct BundleFolder {
    path: PathBuf,
    manifest: Manifest,
}

impl BundleFolder {
    pub fn open(path: &Path) -> Result<Self, PipelineError> {
        let not_a_bundle = |found, hint| PipelineError::NotABundle { path: path.to_path_buf(), found, hint };
        let file = path.join(FILE_NAME);
        if !path.exists() {
            return Err(not_a_bundle("nothing", "is the path right? `smalti train` writes bundles to runs/<name>/bundle"));
        }
        if !path.is_dir() {
            return Err(not_a_bundle("a file", "name the folder; foreign checkpoints become bundles by `smalti import`"));
        }
        if !file.exists() {
            return Err(not_a_bundle("a folder without one", "in the folder of a run, the bundle is its subfolder `bundle`"));
        }
        let text = fs::read_to_string(&file).map_err(|source| PipelineError::io(&file, source))?;
        let manifest = Manifest::parse(&file, &text)?;
        check_agreement(&manifest)?;
        Ok(Self { path: path.to_path_buf(), manifest })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Compares every file with its checksum.
    pub fn verify(&self) -> Result<(), PipelineError> {
        let check = |file: &str, sha256: &str| check_sha256(&self.path.join(file), sha256);
        for part in self.manifest.parts() {
            if let Some((weights, _, _)) = self.manifest.summary(part) {
                check(&weights.file, &weights.sha256)?;
            }
        }
        self.manifest.text_tokenizers().try_for_each(|entry| check(&entry.file, &entry.sha256))
    }

    /// `None` where the bundle has no card.
    pub fn model_card(&self) -> Result<Option<String>, PipelineError> {
        let path = self.path.join("MODEL_CARD.md");
        match fs::read_to_string(&path) {
            Ok(card) => Ok(Some(card)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PipelineError::io(&path, source)),
        }
    }

    /// `purpose` completes "this bundle has no ..., which is needed to ...".
    pub fn image_tokenizer(&self, device: &Device, purpose: &'static str) -> Result<ImageTokenizerPart, PipelineError> {
        let part = Part::ImageTokenizer;
        let entry = self.manifest.image_tokenizer.as_ref().ok_or_else(|| self.missing(part, purpose))?;
        let ImageTokenizerModel::Vqgan(config) = &entry.model;
        let model = Vqgan::new(config, &mut Initializer::unread(device)).map_err(|source| PipelineError::Config { part, source })?;
        let model = self.load(part, &entry.weights, model, device)?;
        Ok(ImageTokenizerPart { model, image_size: entry.image_size, latent_scale: entry.latent_scale, provenance: entry.provenance.clone() })
    }

    pub fn generator(&self, device: &Device, purpose: &'static str) -> Result<GeneratorPart, PipelineError> {
        let part = Part::Generator;
        let entry = self.manifest.generator.as_ref().ok_or_else(|| self.missing(part, purpose))?;
        let GeneratorModel::DalleBart(config) = &entry.model;
        config.validate().map_err(|source| PipelineError::Config { part, source })?;
        let model = self.load(part, &entry.weights, DalleBart::new(config, &mut Initializer::unread(device)), device)?;
        let text_tokenizer = self.text_tokenizer(part, entry.text_tokenizer.as_ref(), config.text_vocabulary)?;
        Ok(GeneratorPart { model, text_tokenizer, provenance: entry.provenance.clone() })
    }

    pub fn contrastive(&self, device: &Device, purpose: &'static str) -> Result<ContrastivePart, PipelineError> {
        let entry = self.manifest.contrastive.as_ref().ok_or_else(|| self.missing(Part::Contrastive, purpose))?;
        self.contrastive_part(Part::Contrastive, entry, device)
    }

    pub fn judge(&self, device: &Device, purpose: &'static str) -> Result<ContrastivePart, PipelineError> {
        let entry = self.manifest.judge.as_ref().ok_or_else(|| self.missing(Part::Judge, purpose))?;
        self.contrastive_part(Part::Judge, entry, device)
    }

    fn contrastive_part(&self, part: Part, entry: &ContrastiveEntry, device: &Device) -> Result<ContrastivePart, PipelineError> {
        let ContrastiveModel::Clip(config) = &entry.model;
        let model = Clip::new(config, &mut Initializer::unread(device)).map_err(|source| PipelineError::Config { part, source })?;
        let model = self.load(part, &entry.weights, model, device)?;
        let text_tokenizer = self.text_tokenizer(part, entry.text_tokenizer.as_ref(), config.text.vocabulary_size)?;
        Ok(ContrastivePart { model, text_tokenizer, provenance: entry.provenance.clone() })
    }

    pub(crate) fn missing(&self, part: Part, purpose: &'static str) -> PipelineError {
        PipelineError::MissingPart { path: self.path.clone(), part, purpose, has: self.manifest.parts() }
    }

    fn load<M: Module>(&self, part: Part, weights: &WeightsFile, model: M, device: &Device) -> Result<M, PipelineError> {
        let path = self.path.join(&weights.file);
        check_sha256(&path, &weights.sha256)?;
        let tensors = safetensors::read(&path).map_err(|source| PipelineError::Weights { part, source })?;
        apply(model, tensors, device).map_err(|source| PipelineError::Weights { part, source })
    }

    fn text_tokenizer(&self, part: Part, entry: Option<&TextTokenizerFile>, vocabulary_size: usize) -> Result<Option<TextTokenizer>, PipelineError> {
        let Some(entry) = entry else { return Ok(None) };
        let path = self.path.join(&entry.file);
        check_sha256(&path, &entry.sha256)?;
        let wrong = |source| PipelineError::TextTokenizer { part, source };
        let text_tokenizer = TextTokenizer::from_file(&path).map_err(wrong)?.with_special_tokens(entry.special_tokens()).map_err(wrong)?;
        let found = text_tokenizer.vocabulary_size();
        if found > vocabulary_size {
            let expected = format!("at most {vocabulary_size} entries, as the network has");
            return Err(PipelineError::Disagreement { part, key: "text_tokenizer", expected, found: found.to_string() });
        }
        Ok(Some(text_tokenizer))
    }
}

/// Image tokenizer and generator must speak of the same pictures.
fn check_agreement(manifest: &Manifest) -> Result<(), PipelineError> {
    let Some(ImageTokenizerEntry { model: ImageTokenizerModel::Vqgan(image_tokenizer), image_size, .. }) = &manifest.image_tokenizer else {
        return Ok(());
    };
    image_tokenizer.validate().map_err(|source| PipelineError::Config { part: Part::ImageTokenizer, source })?;
    let disagreement = |part, key, expected: String, found: usize| Err(PipelineError::Disagreement { part, key, expected, found: found.to_string() });
    let factor = image_tokenizer.network.downsampling_factor();
    if *image_size == 0 || *image_size > 1 << 14 || !image_size.is_multiple_of(factor) {
        return disagreement(Part::ImageTokenizer, "image_size", format!("a multiple of {factor}, at most 16384"), *image_size);
    }
    let Some(GeneratorEntry { model: GeneratorModel::DalleBart(generator), .. }) = &manifest.generator else {
        return Ok(());
    };
    let code_count = image_tokenizer.quantizer.code_count;
    if generator.image_vocabulary != code_count {
        let expected = format!("{code_count}, the number of codes of the image tokenizer");
        return disagreement(Part::Generator, "image_vocabulary", expected, generator.image_vocabulary);
    }
    let token_count = (image_size / factor).pow(2);
    if generator.image_token_count != token_count {
        let expected = format!("{token_count}, as {image_size}x{image_size} pixels become");
        return disagreement(Part::Generator, "image_token_count", expected, generator.image_token_count);
    }
    Ok(())
}

fn check_sha256(path: &Path, expected: &str) -> Result<(), PipelineError> {
    let found = file_sha256(path)?;
    if found == expected { Ok(()) } else { Err(PipelineError::Checksum { path: path.to_path_buf(), expected: expected.to_string(), found }) }
}

fn file_sha256(path: &Path) -> Result<String, PipelineError> {
    struct Hashing(Sha256);

    impl Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let io = |source| PipelineError::io(path, source);
    let mut hashing = Hashing(Sha256::new());
    io::copy(&mut File::open(path).map_err(io)?, &mut hashing).map_err(io)?;
    Ok(manifest::hexadecimal(&hashing.0.finalize()))
}
