//! Held-out pictures and everything about them that no way of drawing changes.

use super::instruments::{Instruments, OfGenerator, Seen, class_of};
use anyhow::{Context, bail};
use smalti_data::Picture;
use smalti_data::dataset::{self, CaptionRule, Dataset, DatasetConfig};
use smalti_data::dolls::{PARTS_FILE, Parts};
use smalti_data::picture::DecodeOptions;
use smalti_metrics::report::{BesideReal, MeasureOptions};
use smalti_metrics::{Asked, Composition, CompositionMeter, Evidence, Features, Generation};
use smalti_pipeline::reconstruct::fitted;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The held-out splits below `data`, or all of it.
pub(in crate::commands) fn splits(data: &Path, captions: CaptionRule) -> anyhow::Result<Vec<(String, Dataset)>> {
    let open = |path: &Path| dataset::open(&DatasetConfig { captions, ..DatasetConfig::new(path) });
    let mut splits = Vec::new();
    for name in ["pairs", "concepts"] {
        if data.join(name).is_dir() {
            splits.push((name.to_string(), open(&data.join(name))?));
        }
    }
    if splits.is_empty() {
        let name = data.file_name().map_or_else(|| "data".to_string(), |name| name.to_string_lossy().into_owned());
        splits.push((name, open(data)?));
    }
    Ok(splits)
}

/// A picture at the size that is drawn, its first caption (empty without one), its key and its other fields.
pub(in crate::commands) struct Real {
    pub picture: Picture,
    pub caption: String,
    pub key: String,
    pub fields: BTreeMap<String, String>,
}

/// Picture `index` of a data set.
pub(in crate::commands) fn real_picture(dataset: &Dataset, index: usize, captions: CaptionRule, image_size: usize) -> anyhow::Result<Real> {
    let sample = dataset.sample(index)?;
    let caption = match (sample.captions.into_iter().next(), captions) {
        (Some(caption), _) => caption,
        (None, CaptionRule::Optional) => String::new(),
        (None, CaptionRule::Required) => bail!("{}: picture `{}` has no caption", dataset.path().display(), sample.key),
    };
    let picture = Picture::decode(&sample.picture, &DecodeOptions::default()).with_context(|| format!("picture `{}`", sample.key))?;
    Ok(Real { picture: fitted(&picture, image_size)?, caption, key: sample.key, fields: sample.fields })
}

/// At most `count` pictures, evenly spread over the data.
pub(in crate::commands) fn real_pictures(dataset: &Dataset, count: usize, captions: CaptionRule, image_size: usize) -> anyhow::Result<Vec<Real>> {
    let count = count.min(dataset.len());
    (0..count).map(|place| real_picture(dataset, place * dataset.len() / count, captions, image_size)).collect()
}

/// What the pictures are to show, as the judge reads it.
enum Wanted {
    Captions(Features),
    Classes { asked: Vec<Option<usize>>, names: Features },
}

pub(super) struct Split {
    pub name: String,
    pub place: String,
    pub real: Vec<Picture>,
    pub captions: Vec<String>,
    fields: Vec<BTreeMap<String, String>>,
    seen: Seen,
    wanted: Option<Wanted>,
    options: MeasureOptions,
}

impl Split {
    pub fn prepare(instruments: &Instruments, name: &str, dataset: &Dataset, count: usize, seed: u64) -> anyhow::Result<Self> {
        let pictures = real_pictures(dataset, count, instruments.prompts.caption_rule(), instruments.image_size())?;
        let (mut real, mut captions, mut fields) = (Vec::new(), Vec::new(), Vec::new());
        for picture in pictures {
            real.push(picture.picture);
            captions.push(picture.caption);
            fields.push(picture.fields);
        }
        let of_classes = |classes: &[String]| {
            let asked = captions.iter().map(|caption| class_of(classes, caption)).collect();
            anyhow::Ok(instruments.read(classes)?.map(|names| Wanted::Classes { asked, names }))
        };
        let prompts = &instruments.prompts;
        let wanted = match &prompts.of_generator {
            OfGenerator::Captions => instruments.read(&captions)?.map(Wanted::Captions),
            OfGenerator::Classes(classes) => of_classes(classes)?,
            OfGenerator::Nothing if prompts.classifier_classes.is_empty() => None,
            OfGenerator::Nothing => of_classes(&prompts.classifier_classes)?,
        };
        let usual = MeasureOptions::default();
        let distinct = captions.iter().collect::<BTreeSet<_>>().len();
        let options = MeasureOptions { candidate_count: usual.candidate_count.min(distinct), seed, ..usual };
        if matches!(wanted, Some(Wanted::Captions(_))) && options.candidate_count < usual.candidate_count {
            smalti_train::say!("warning: {name}: R-precision among {distinct} different captions, not {}; the figure is higher for it", usual.candidate_count);
        }
        let place = dataset.path().display().to_string();
        Ok(Self { name: name.to_string(), place, seen: instruments.see(&real)?, real, captions, fields, wanted, options })
    }

    /// The figures of pictures that were drawn for the prompts.
    pub fn measure(&self, instruments: &Instruments, generated: &[Picture]) -> anyhow::Result<Generation> {
        let seen = instruments.see(generated)?;
        let asked = self.wanted.as_ref().map(|wanted| match wanted {
            Wanted::Captions(embeddings) => Asked::Captions { texts: &self.captions, embeddings },
            Wanted::Classes { asked, names } => Asked::Classes { asked, names },
        });
        let judged = seen.judged.as_ref().zip(self.seen.judged.as_ref()).map(|(generated, real)| BesideReal { generated, real });
        let features = BesideReal { generated: &seen.features, real: &self.seen.features };
        Ok(Generation::measure(Evidence { judged: asked.zip(judged), features }, self.options)?)
    }

    /// Of dolls, whether they wear what was asked for.
    pub fn composition(&self, parts: &Parts, generated: &[Picture]) -> anyhow::Result<Composition> {
        let mut meter = CompositionMeter::new(parts);
        for (picture, fields) in generated.iter().zip(&self.fields) {
            let asked = parts.doll(fields).map_err(|reason| anyhow::anyhow!("{}: {reason}", self.place))?;
            meter.add(picture, &asked)?;
        }
        Ok(meter.finish()?)
    }
}

/// The parts of dolls, where they lie in a data set or beside the split that was named.
pub(super) fn parts(data: &Path) -> anyhow::Result<Option<Parts>> {
    let places = [data.join(PARTS_FILE), data.join("..").join(PARTS_FILE)];
    Ok(places.iter().find(|path| path.is_file()).map(|path| Parts::read(path)).transpose()?)
}
