//! The pictures of a run: `[data]` of a recipe, batches in an exact order, held-out pictures to judge by, sheets of samples to look at.

use crate::TrainError;
use crate::recipe::{Pass, Purpose, stream};
use crate::recipe_file::{RecipeError, RecipeFile};
use burn::tensor::{Device, Tensor, TensorData};
use rand::Rng;
use serde::{Deserialize, Serialize};
use smalti_data::dataset::{self, CaptionRule, Dataset, DatasetConfig, DatasetKind};
use smalti_data::grid::{self, GridOptions};
use smalti_data::loader::{Batch, Item, Loader, LoaderOptions};
use smalti_data::picture::DecodeOptions;
use smalti_data::resize::Filter;
use smalti_data::transform::{ColourJitter, Crop, PlacementJitter, Transform};
use smalti_data::{DataError, Picture};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// `[data]`: where the pictures are and how they become squares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PictureSettings {
    /// A folder or a shard, seen from the folder the program was started in. Where it holds splits, `train` is trained on.
    pub path: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<DatasetKind>,
    /// The folder beside `train` that evaluations use. Where it does not exist they use training pictures and say so.
    #[serde(default = "default_held_out")]
    pub held_out: String,
    /// Pictures of an evaluation, at most.
    #[serde(default = "default_evaluation_count")]
    pub evaluation_count: usize,
    /// Side of the squares in pixels.
    pub image_size: usize,
    #[serde(default)]
    pub crop: Crop,
    #[serde(default)]
    pub filter: Filter,
    #[serde(default)]
    pub flip_probability: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement_jitter: Option<PlacementJitter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub colour_jitter: Option<ColourJitter>,
    /// Behind transparent pictures, and the bars of `crop = "pad"`.
    #[serde(default = "white")]
    pub background: [u8; 3],
    #[serde(default = "default_pixel_limit")]
    pub pixel_limit: u64,
    /// Captions without a picture and the like that are skipped before it is an error.
    #[serde(default)]
    pub problem_limit: usize,
    /// Broken pictures that are replaced by others before it is an error.
    #[serde(default)]
    pub broken_limit: usize,
    /// Where image tokens and latents are kept that a generator trains on.
    #[serde(default = "default_image_token_cache")]
    pub image_token_cache: PathBuf,
    /// Where pictures are encoded once: how many versions of each are kept. The first is the plain picture, the others are its random changes.
    #[serde(default = "one")]
    pub encoded_variants: usize,
    /// Threads that decode ahead.
    #[serde(default = "one")]
    pub worker_count: usize,
}

fn default_held_out() -> String {
    "pairs".to_string()
}

fn default_evaluation_count() -> usize {
    256
}

fn default_image_token_cache() -> PathBuf {
    PathBuf::from("runs/image_tokens")
}

fn white() -> [u8; 3] {
    [255; 3]
}

fn default_pixel_limit() -> u64 {
    DecodeOptions::default().pixel_limit
}

fn one() -> usize {
    1
}

impl PictureSettings {
    /// Checks what can be checked without touching the disk.
    pub fn validate(&self, file: &RecipeFile) -> Result<(), RecipeError> {
        let checked = LoaderOptions { worker_count: self.worker_count, ..LoaderOptions::new(1, 0, self.transform()) }.validate();
        if let Err(DataError::Config { key, expected, found }) = checked {
            let key = if key == "size" { "image_size" } else { key };
            return Err(file.reject(&format!("data.{key}"), format!("expected {expected}, found {found}")));
        }
        if !(1..=64).contains(&self.encoded_variants) {
            return Err(file.reject("data.encoded_variants", format!("expected 1 to 64, found {}", self.encoded_variants)));
        }
        if self.encoded_variants > 1 && !self.transform().is_random() {
            let expected = "expected a random change of the pictures beside it, such as data.placement_jitter, found none: the variants would be equal";
            return Err(file.reject("data.encoded_variants", expected));
        }
        if self.evaluation_count == 0 {
            return Err(file.reject("data.evaluation_count", "expected at least 1, found 0"));
        }
        Ok(())
    }

    pub fn transform(&self) -> Transform {
        let Self { image_size, crop, filter, flip_probability, placement_jitter, colour_jitter, background, .. } = self.clone();
        Transform { size: image_size, crop, filter, flip_probability, placement_jitter, colour_jitter, background }
    }

    pub fn decode(&self) -> DecodeOptions {
        // Drawn at the size it is needed in, a drawing is never resized.
        DecodeOptions { background: self.background, pixel_limit: self.pixel_limit, svg_size: Some(self.image_size as u32) }
    }

    /// Whether `path` holds splits: a folder `train`, no metadata of its own, and no folder that is not a split (one may be a class of vehicles).
    fn is_split(&self) -> bool {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return false };
        let entries: Vec<_> = entries.filter_map(|entry| entry.ok()).collect();
        let names = |folders: bool| {
            let of_kind = entries.iter().filter(move |entry| entry.path().is_dir() == folders);
            of_kind.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        let (folders, files) = (names(true), names(false));
        let known = |name: &String| name == TRAIN || *name == self.held_out || OTHER_SPLITS.contains(&name.as_str()) || name.starts_with('.');
        folders.iter().any(|name| name == TRAIN) && folders.iter().all(known) && !files.iter().any(|name| name == "metadata.jsonl" || name == "metadata.csv")
    }

    fn open(&self, path: PathBuf, captions: CaptionRule) -> Result<Dataset, TrainError> {
        Ok(dataset::open(&DatasetConfig { kind: self.kind, captions, problem_limit: self.problem_limit, ..DatasetConfig::new(path) })?)
    }
}

/// The split that is trained on.
const TRAIN: &str = "train";

/// Other names of splits, as `smalti data build` and Hugging Face's imagefolder have them.
const OTHER_SPLITS: [&str; 9] = ["pairs", "concepts", "test", "testing", "validation", "valid", "val", "dev", "eval"];

/// An opened data set with its batches.
pub struct Pictures {
    settings: PictureSettings,
    training: Arc<Dataset>,
    loader: Option<Loader>,
    /// The pass that the loader makes next.
    next_pass: u64,
    /// Keys of the broken pictures that were named already.
    broken: BTreeSet<String>,
    evaluation: Vec<Item>,
    held_out: bool,
}

impl Pictures {
    /// Opens the data and decodes the pictures of evaluations, in even steps through the held-out ones.
    pub fn open(settings: &PictureSettings, captions: CaptionRule) -> Result<Self, TrainError> {
        let split = settings.is_split();
        let training = settings.open(if split { settings.path.join(TRAIN) } else { settings.path.clone() }, captions)?;
        for problem in training.problems() {
            crate::say!("warning: {problem}; skipped");
        }
        let held_out_path = settings.path.join(&settings.held_out);
        let held_out = (split && !settings.held_out.is_empty() && held_out_path.is_dir()).then(|| settings.open(held_out_path, captions)).transpose()?;
        let source = held_out.as_ref().unwrap_or(&training);
        let evaluation = evenly_spread(source, settings, settings.evaluation_count)?;
        let held_out = held_out.is_some();
        Ok(Self { settings: settings.clone(), training: Arc::new(training), loader: None, next_pass: 0, broken: BTreeSet::new(), evaluation, held_out })
    }

    pub fn settings(&self) -> &PictureSettings {
        &self.settings
    }

    pub fn training(&self) -> &Dataset {
        &self.training
    }

    /// The pictures to judge by, never empty.
    pub fn evaluation(&self) -> &[Item] {
        &self.evaluation
    }

    /// A name for a measure that says when it was not taken on held-out pictures.
    pub fn measure(&self, name: &str) -> String {
        if self.held_out { name.to_string() } else { format!("{name} (training pictures)") }
    }

    /// The batch of a pass; decoded ahead while passes come in order.
    pub fn batch(&mut self, pass: Pass) -> Result<Batch, TrainError> {
        let number = (pass.step * pass.accumulation + pass.index) as u64;
        if self.loader.is_none() || number != self.next_pass {
            let PictureSettings { worker_count, broken_limit, .. } = self.settings;
            let options = LoaderOptions {
                decode: self.settings.decode(),
                worker_count,
                broken_limit,
                ..LoaderOptions::new(pass.batch_size, pass.seed, self.settings.transform())
            };
            self.loader = Some(Loader::new(Arc::clone(&self.training), options, number)?);
        }
        let loader = self.loader.as_mut().expect("made above");
        let batch = loader.next_batch()?;
        for broken in loader.broken() {
            if self.broken.insert(broken.key.clone()) {
                crate::say!("warning: picture `{}`: {}; another takes its place", broken.key, broken.reason);
            }
        }
        self.next_pass = number + 1;
        Ok(batch)
    }

    /// Training picture `index`, decoded: variant 0 without anything random, the others with random changes of their own, the same in every run.
    pub fn item(&self, index: usize, variant: usize) -> Result<Item, DataError> {
        let transform = self.settings.transform();
        let transform = if variant == 0 { transform.without_randomness() } else { transform };
        let mut rng = stream(variant as u64, Purpose::Variant, index as u64);
        decoded(&self.training, index, &transform, &self.settings.decode(), &mut rng)
    }

    /// `count` training pictures at most, in even steps through the data set, decoded and without anything random.
    pub fn spread(&self, count: usize) -> Result<Vec<Item>, TrainError> {
        evenly_spread(&self.training, &self.settings, count)
    }
}

fn evenly_spread(dataset: &Dataset, settings: &PictureSettings, count: usize) -> Result<Vec<Item>, TrainError> {
    let (transform, decode) = (settings.transform().without_randomness(), settings.decode());
    let count = count.min(dataset.len());
    let mut items = Vec::with_capacity(count);
    let mut broken_count = 0;
    for place in 0..count {
        // Nothing is drawn from it: the transform has nothing random left.
        let mut unused = stream(0, Purpose::Variant, 0);
        match decoded(dataset, place * dataset.len() / count, &transform, &decode, &mut unused) {
            Ok(item) => items.push(item),
            Err(error) if broken_count < settings.broken_limit => {
                crate::say!("warning: {error}; skipped");
                broken_count += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if items.is_empty() {
        return Err(TrainError::Unfit { place: dataset.path().display().to_string(), reason: "no picture can be read".to_string() });
    }
    Ok(items)
}

fn decoded(dataset: &Dataset, index: usize, transform: &Transform, decode: &DecodeOptions, rng: &mut impl Rng) -> Result<Item, DataError> {
    let sample = dataset.sample(index)?;
    let picture = Picture::decode(&sample.picture, decode).map_err(|reason| DataError::Picture { key: sample.key.clone(), reason })?;
    let picture = transform.apply(&picture, rng);
    Ok(Item { index, key: sample.key, picture, captions: sample.captions, fields: sample.fields })
}

/// [batch, size, size, 3] in [-1, 1] from as many values.
pub fn to_tensor(values: Vec<f32>, size: usize, device: &Device) -> Tensor<4> {
    let batch = values.len() / (size * size * 3);
    Tensor::from_data(TensorData::new(values, [batch, size, size, 3]), device)
}

/// The pictures of items as one tensor [batch, size, size, 3].
pub fn stack(items: &[Item], size: usize, device: &Device) -> Tensor<4> {
    to_tensor(items.iter().flat_map(|item| item.picture.to_f32()).collect(), size, device)
}

/// [batch, height, width, 3] in [-1, 1] -> pictures; values outside are clamped.
pub fn to_pictures(x: Tensor<4>) -> Result<Vec<Picture>, TrainError> {
    let [_, height, width, _] = x.dims();
    let values = host(x);
    values.chunks_exact(height * width * 3).map(|values| Ok(Picture::from_f32(width, height, values)?)).collect()
}

/// The values of a tensor on the host, in row-major order.
pub fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("float tensors convert to f32")
}

/// One number.
pub fn scalar(tensor: &Tensor<1>) -> f64 {
    tensor.clone().into_data().convert::<f32>().iter::<f32>().next().map_or(f64::NAN, f64::from)
}

/// Mean PSNR in dB and mean absolute difference of reconstructions, in the order of `items`. `reconstruct` is given `batch_size` items at a time and returns
/// [batch, height, width, 3] in [-1, 1].
pub fn reconstruction_measures(
    items: &[Item],
    batch_size: usize,
    mut reconstruct: impl FnMut(&[Item]) -> Tensor<4>,
) -> Result<[(&'static str, f64); 2], TrainError> {
    let (mut psnr, mut l1) = (0.0, 0.0);
    for items in items.chunks(batch_size) {
        // As 8-bit pictures, which is how everybody else will see them.
        for (made, item) in to_pictures(reconstruct(items))?.iter().zip(items) {
            let (made, original) = (made.to_f32(), item.picture.to_f32());
            l1 += made.iter().zip(&original).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / original.len() as f64;
            // A perfect picture has no finite PSNR; 99 dB is beyond what 8 bits can tell.
            psnr += smalti_metrics::psnr::psnr(&made, &original, 2.0)?.min(99.0);
        }
    }
    Ok([("psnr", psnr / items.len() as f64), ("l1", l1 / items.len() as f64)])
}

/// Eight originals over their reconstructions, twice.
pub fn reconstruction_sheet(items: &[Item], mut reconstruct: impl FnMut(&[Item]) -> Tensor<4>) -> Result<Picture, TrainError> {
    let mut rows = Vec::new();
    for items in items[..items.len().min(16)].chunks(8.min(items.len())) {
        rows.push(items.iter().map(|item| item.picture.clone()).collect());
        rows.push(to_pictures(reconstruct(items))?);
    }
    sheet(&rows)
}

/// Rows of pictures on one sheet, each row as long as the first.
pub fn sheet(rows: &[Vec<Picture>]) -> Result<Picture, TrainError> {
    let column_count = rows.first().map_or(1, Vec::len);
    let options = GridOptions { column_count, gap: 2, background: [255; 3] };
    Ok(grid::assemble(&rows.concat(), &options)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_called_train_is_no_split() {
        let folder = tempfile::tempdir().unwrap();
        let settings: PictureSettings = toml::from_str(&format!("path = {:?}\nimage_size = 8", folder.path())).unwrap();
        assert!(!settings.is_split());
        for (name, expected) in [("train", true), ("pairs", true), (".cache", true), ("ship", false)] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            assert_eq!(settings.is_split(), expected, "with {name}");
        }
        std::fs::remove_dir(folder.path().join("ship")).unwrap();
        std::fs::write(folder.path().join("metadata.jsonl"), "").unwrap();
        assert!(!settings.is_split(), "its own metadata");
    }
}
