//! A bundle: one folder with everything that is needed to make pictures (`bundle.toml`, `*.safetensors`, text tokenizers, `MODEL_CARD.md`).
//!
//! [`BundleFolder`] is a bundle on disk, of which parts are loaded as they are needed; [`Bundle`] is one in memory, to be saved.

use crate::agreement::{check_agreement, check_classifier};
use crate::manifest::{
    self, ClassifierEntry, ClassifierModel, ContrastiveEntry, ContrastiveModel, FILE_NAME, GeneratorEntry, ImageTokenizerEntry, Manifest, Part, Provenance,
    TextEncoderEntry, TextTokenizerFile, VERSION, WeightsFile,
};
use crate::parts::{ClassifierPart, ContrastivePart, Generator, GeneratorPart, ImageTokenizer, ImageTokenizerPart, TextEncoder, TextEncoderPart, Weights};
use crate::{PipelineError, model_card::model_card};
use burn::tensor::Device;
use sha2::{Digest, Sha256};
use smalti_data::text_tokenizer::TextTokenizer;
use smalti_models::classifier::noisy::NoisyClassifier;
use smalti_models::contrastive::clip::Clip;
use smalti_nn::precision::{self, HalfFormat};
use smalti_nn::weights::safetensors::{self, Storage};
use smalti_nn::weights::{flush_folder, write_atomically};
use smalti_nn::{Initializer, Precision};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// All parts in memory.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    pub name: String,
    pub image_tokenizer: Option<ImageTokenizerPart>,
    pub text_encoder: Option<TextEncoderPart>,
    pub generator: Option<GeneratorPart>,
    /// The further stages of a cascade, from the smallest picture up.
    pub super_resolution: Vec<GeneratorPart>,
    /// Leads the first stage to a class, where a request asks for it.
    pub classifier: Option<ClassifierPart>,
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
            text_encoder: has(Part::TextEncoder).then(|| folder.text_encoder(device, "load it")).transpose()?,
            super_resolution: folder.super_resolution(device)?,
            generator: has(Part::Generator).then(|| folder.generator(device, "load it")).transpose()?,
            classifier: has(Part::Classifier).then(|| folder.classifier(device, "load it")).transpose()?,
            contrastive: has(Part::Contrastive).then(|| folder.contrastive(device, "load it")).transpose()?,
            judge: has(Part::Judge).then(|| folder.judge(device, "load it")).transpose()?,
            model_card: folder.model_card()?,
        })
    }

    /// Writes the bundle to the folder `path`, whole or not at all: it is built beside it under a temporary name and renamed. A bundle that is there already
    /// is replaced; any other folder with files in it is refused.
    pub fn save(&self, path: &Path, storage: Storage) -> Result<Manifest, PipelineError> {
        self.save_parts(path, &|_| storage)
    }

    /// [`Self::save`] with the weights of each part stored as `storage` says.
    pub fn save_parts(&self, path: &Path, storage: &dyn Fn(Part) -> Storage) -> Result<Manifest, PipelineError> {
        let replaces = check_target(path)?;
        let io = |source| PipelineError::io(path, source);
        let name =
            path.file_name().ok_or_else(|| io(io::Error::new(io::ErrorKind::InvalidInput, "expected the name of a folder")))?.to_string_lossy().into_owned();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(|source| PipelineError::io(parent, source))?;
        // A process that was killed may have left some behind, and its number may be this one's now.
        let unused =
            |ending: &str| (0u32..).map(|attempt| parent.join(format!(".{name}.{}-{attempt}.{ending}", std::process::id()))).find(|path| !path.exists());
        let exhausted = || io(io::Error::new(io::ErrorKind::AlreadyExists, "no temporary name is free"));
        let (temporary, old) = (unused("tmp").ok_or_else(exhausted)?, unused("old.tmp").ok_or_else(exhausted)?);
        let written = self.write_parts(&temporary, storage).and_then(|manifest| {
            match replaces {
                Existing::Bundle => fs::rename(path, &old).map_err(io)?,
                Existing::EmptyFolder => fs::remove_dir(path).map_err(io)?,
                Existing::Nothing => {}
            }
            if let Err(error) = fs::rename(&temporary, path) {
                if replaces == Existing::Bundle && fs::rename(&old, path).is_err() {
                    let kept = format!("{error}; the bundle that was there is now {}", old.display());
                    return Err(io(io::Error::new(error.kind(), kept)));
                }
                return Err(io(error));
            }
            flush_folder(parent).map_err(io)?;
            Ok(manifest)
        });
        // The first error is the one to report. The old bundle goes only once the new one is in its place.
        let _ = fs::remove_dir_all(&temporary);
        if written.is_ok() {
            let _ = fs::remove_dir_all(&old);
        }
        written
    }

    fn write_parts(&self, folder: &Path, storage: &dyn Fn(Part) -> Storage) -> Result<Manifest, PipelineError> {
        let mut writer = Writer { folder, storage, text_tokenizers: Vec::new() };
        fs::create_dir(folder).map_err(|source| PipelineError::io(folder, source))?;
        let image_tokenizer = |part: &ImageTokenizerPart| {
            Ok::<_, PipelineError>(ImageTokenizerEntry {
                weights: writer.weights(Part::ImageTokenizer, &part.model)?,
                image_size: part.image_size,
                latent_scale: part.latent_scale,
                model: part.model.config(),
                provenance: part.provenance.clone(),
            })
        };
        let image_tokenizer = self.image_tokenizer.as_ref().map(image_tokenizer).transpose()?;
        let text_encoder = |part: &TextEncoderPart| {
            Ok::<_, PipelineError>(TextEncoderEntry {
                weights: writer.weights(Part::TextEncoder, &part.model)?,
                text_tokenizer: writer.text_tokenizer(Part::TextEncoder, part.text_tokenizer.as_ref())?,
                model: part.model.config(),
                provenance: part.provenance.clone(),
            })
        };
        let text_encoder = self.text_encoder.as_ref().map(text_encoder).transpose()?;
        let mut generator = |name: Part, part: &GeneratorPart| {
            Ok::<_, PipelineError>(GeneratorEntry {
                weights: writer.weights(name, &part.model)?,
                text_tokenizer: writer.text_tokenizer(name, part.text_tokenizer.as_ref())?,
                model: part.model.config(),
                sampling: part.sampling,
                provenance: part.provenance.clone(),
            })
        };
        let super_resolution: Vec<_> =
            self.super_resolution.iter().enumerate().map(|(stage, part)| generator(Part::SuperResolution(stage), part)).collect::<Result<_, _>>()?;
        let generator = self.generator.as_ref().map(|part| generator(Part::Generator, part)).transpose()?;
        let classifier = |part: &ClassifierPart| {
            Ok::<_, PipelineError>(ClassifierEntry {
                weights: writer.weights(Part::Classifier, &part.network)?,
                model: ClassifierModel::Noisy(part.config.clone()),
                provenance: part.provenance.clone(),
            })
        };
        let classifier = self.classifier.as_ref().map(classifier).transpose()?;
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
        let (version, name) = (VERSION, self.name.clone());
        let manifest = Manifest { version, name, image_tokenizer, text_encoder, generator, super_resolution, classifier, contrastive, judge };
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
    storage: &'a dyn Fn(Part) -> Storage,
    /// Checksum and entry of those written; parts that share one share the file.
    text_tokenizers: Vec<TextTokenizerFile>,
}

impl Writer<'_> {
    fn weights(&self, part: Part, model: &impl Weights) -> Result<WeightsFile, PipelineError> {
        let tensors = model.tensors();
        let file = format!("{}.safetensors", part.file_stem());
        let path = self.folder.join(&file);
        let storage = (self.storage)(part);
        safetensors::write(&path, &tensors, storage).map_err(|source| PipelineError::Weights { part, source })?;
        let parameter_count = tensors.values().map(|tensor| tensor.values.len()).sum();
        Ok(WeightsFile { file, sha256: file_sha256(&path)?, parameter_count, storage })
    }

    fn text_tokenizer(&mut self, part: Part, text_tokenizer: Option<&TextTokenizer>) -> Result<Option<TextTokenizerFile>, PipelineError> {
        let Some(text_tokenizer) = text_tokenizer else { return Ok(None) };
        let entry = |file| TextTokenizerFile::new(file, text_tokenizer);
        if let Some(written) = self.text_tokenizers.iter().find(|written| entry(written.file.clone()) == **written) {
            return Ok(Some(written.clone()));
        }
        let file = if self.text_tokenizers.is_empty() { "text_tokenizer.json".to_string() } else { format!("text_tokenizer_{}.json", part.file_stem()) };
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
    inference: bool,
    /// Another bundle, whose classifier takes the place of this one's.
    classifier_lender: Option<Box<BundleFolder>>,
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
        Ok(Self { path: path.to_path_buf(), manifest, inference: false, classifier_lender: None })
    }

    /// The same folder for networks that will only compute: weights that the file stores in 16 bits stay so in memory on the CPU, which changes no result, and
    /// with bf16 precision all do.
    pub fn for_inference(&self) -> Self {
        Self { inference: true, ..self.clone() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// With the classifier of another bundle in place of its own; it must fit the generator.
    pub fn with_classifier_of(self, lender: Self) -> Result<Self, PipelineError> {
        let entry = lender.manifest.classifier.as_ref().ok_or_else(|| lender.missing(Part::Classifier, "lead pictures to a class"))?;
        check_classifier(&entry.model, &self.manifest)?;
        Ok(Self { classifier_lender: Some(Box::new(lender)), ..self })
    }

    /// The bundle that the classifier is of.
    pub fn classifier_bundle(&self) -> &Self {
        self.classifier_lender.as_deref().unwrap_or(self)
    }

    pub fn classifier_entry(&self) -> Option<&ClassifierEntry> {
        self.classifier_bundle().manifest.classifier.as_ref()
    }

    /// The weights, kind of network and provenance of a part, a lent one too.
    pub fn summary(&self, part: Part) -> Option<(&WeightsFile, &'static str, &Provenance)> {
        if part == Part::Classifier { self.classifier_bundle().manifest.summary(part) } else { self.manifest.summary(part) }
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
        let model = ImageTokenizer::new(&entry.model, &mut Initializer::unread(device)).map_err(|source| PipelineError::Config { part, source })?;
        let model = self.load(part, &entry.weights, model, device)?;
        Ok(ImageTokenizerPart { model, image_size: entry.image_size, latent_scale: entry.latent_scale, provenance: entry.provenance.clone() })
    }

    pub fn text_encoder(&self, device: &Device, purpose: &'static str) -> Result<TextEncoderPart, PipelineError> {
        let part = Part::TextEncoder;
        let entry = self.manifest.text_encoder.as_ref().ok_or_else(|| self.missing(part, purpose))?;
        let model = TextEncoder::new(&entry.model, &mut Initializer::unread(device)).map_err(|source| PipelineError::Config { part, source })?;
        let model = self.load(part, &entry.weights, model, device)?;
        let text_tokenizer = self.text_tokenizer(part, entry.text_tokenizer.as_ref(), entry.model.vocabulary_size())?;
        Ok(TextEncoderPart { model, text_tokenizer, provenance: entry.provenance.clone() })
    }

    pub fn generator(&self, device: &Device, purpose: &'static str) -> Result<GeneratorPart, PipelineError> {
        let entry = self.manifest.generator.as_ref().ok_or_else(|| self.missing(Part::Generator, purpose))?;
        self.generator_part(Part::Generator, entry, device)
    }

    /// The further stages of a cascade, from the smallest picture up.
    pub fn super_resolution(&self, device: &Device) -> Result<Vec<GeneratorPart>, PipelineError> {
        let stages = self.manifest.super_resolution.iter().enumerate();
        stages.map(|(stage, entry)| self.generator_part(Part::SuperResolution(stage), entry, device)).collect()
    }

    fn generator_part(&self, part: Part, entry: &GeneratorEntry, device: &Device) -> Result<GeneratorPart, PipelineError> {
        let model = Generator::new(&entry.model, &mut Initializer::unread(device)).map_err(|source| PipelineError::Config { part, source })?;
        let model = self.load(part, &entry.weights, model, device)?;
        let text_tokenizer = match entry.model.text_vocabulary() {
            Some(vocabulary) => self.text_tokenizer(part, entry.text_tokenizer.as_ref(), vocabulary)?,
            None => None,
        };
        Ok(GeneratorPart { model, text_tokenizer, sampling: entry.sampling, provenance: entry.provenance.clone() })
    }

    pub fn classifier(&self, device: &Device, purpose: &'static str) -> Result<ClassifierPart, PipelineError> {
        let (part, bundle) = (Part::Classifier, self.classifier_bundle());
        let entry = bundle.manifest.classifier.as_ref().ok_or_else(|| self.missing(part, purpose))?;
        let ClassifierModel::Noisy(config) = &entry.model;
        let network = NoisyClassifier::new(&config.network, &mut Initializer::unread(device)).map_err(|source| PipelineError::Config { part, source })?;
        let network = bundle.load(part, &entry.weights, network, device)?;
        Ok(ClassifierPart { network, config: config.clone(), provenance: entry.provenance.clone() })
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

    fn load<M: Weights>(&self, part: Part, weights: &WeightsFile, model: M, device: &Device) -> Result<M, PipelineError> {
        let path = self.path.join(&weights.file);
        check_sha256(&path, &weights.sha256)?;
        let tensors = safetensors::read(&path).map_err(|source| PipelineError::Weights { part, source })?;
        let model = model.with(tensors, device).map_err(|source| PipelineError::Weights { part, source })?;
        let format = match (precision::current(), weights.storage) {
            _ if !self.inference || *device != Device::flex() => None,
            (Precision::Bf16, _) | (_, Storage::Bf16) => Some(HalfFormat::Bf16),
            (Precision::F32, Storage::F16) => Some(HalfFormat::F16),
            (Precision::F32, Storage::F32) => None,
        };
        Ok(match format {
            Some(format) => model.stored(format),
            None => model,
        })
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
