//! `smalti evaluate --sweep NAME=V1,V2`: the same pictures drawn in every way of a grid, a row of figures for each.
//!
//! Everything found is kept in `sweep.json`, whole after every row; `sweep.csv`, `sweep.svg` and the sheets are made of it. A row that is there already is not
//! computed again, so that a sweep can be stopped, resumed and widened.

use super::instruments::Instruments;
use super::split::Split;
use super::{Job, judge_hint};
use crate::commands::sampling::SamplingFlags;
use crate::commands::settings::Settings;
use crate::failure::WrongUse;
use crate::made_files::{slug, write_png};
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smalti_data::Picture;
use smalti_data::grid::{GridOptions, assemble};
use smalti_data::picture::DecodeOptions;
use smalti_metrics::sweep::grid;
use smalti_metrics::{Axis, Figure, Mean, Row, Sweep};
use smalti_nn::weights::write_atomically;
use smalti_pipeline::BundleFolder;
use smalti_pipeline::text_to_image::Request;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Pictures of each way of drawing that the sheets show.
const STRIP_COUNT: usize = 8;
/// Of `evaluate`, not of `generate`, but as much a way of drawing.
const CANDIDATES: &str = "candidates";
/// What says "as without the flag".
const DEFAULT: &str = "default";

/// One way of drawing.
#[derive(Debug)]
pub(super) struct Way {
    pub values: Vec<String>,
    pub request: Request,
}

/// `NAME=V1,V2,...`
pub(super) fn axis(text: &str) -> Result<Axis, String> {
    let (flag, values) = text.split_once('=').ok_or("expected NAME=V1,V2,... with the name of a sampling flag")?;
    let axis = Axis { flag: flag.trim().trim_start_matches("--").to_string(), values: values.split(',').map(|value| value.trim().to_string()).collect() };
    if axis.values.iter().any(String::is_empty) {
        return Err("expected a value between any two commas".to_string());
    }
    match axis.values.iter().enumerate().find(|(index, value)| axis.values[..*index].contains(value)) {
        Some((_, twice)) => Err(format!("expected different values, found {twice} twice")),
        None => Ok(axis),
    }
}

/// Every choice of the grid as a request.
pub(super) fn ways(
    axes: &[Axis],
    sampling: &SamplingFlags,
    request: impl Fn(SamplingFlags, Option<usize>) -> anyhow::Result<Request>,
) -> anyhow::Result<Vec<Way>> {
    for (index, axis) in axes.iter().enumerate() {
        if axes[..index].iter().any(|before| before.flag == axis.flag) {
            bail!(WrongUse(format!("--sweep: expected every flag once, found {} twice", axis.flag)));
        }
    }
    let way = |values: Vec<String>| {
        let chosen: Vec<(&str, &str)> =
            axes.iter().zip(&values).map(|(axis, value)| (axis.flag.as_str(), value.as_str())).filter(|(_, value)| *value != DEFAULT).collect();
        let (own, others): (Vec<_>, Vec<_>) = chosen.into_iter().partition(|(flag, _)| *flag == CANDIDATES);
        let wrong = |value: &str| WrongUse(format!("--sweep {CANDIDATES}: expected whole numbers, found {value}"));
        let candidates = own.first().map(|(_, value)| value.parse::<usize>().map_err(|_| wrong(value))).transpose()?;
        let request = request(sampling.with(&others)?, candidates)?;
        request.validate()?;
        Ok(Way { values, request })
    };
    grid(axes).into_iter().map(way).collect()
}

/// What rows of one file have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    bundle: String,
    judge: Option<String>,
    features: String,
    precision: String,
    count: usize,
    seed: u64,
    /// The fingerprint of each split.
    data: BTreeMap<String, String>,
}

impl Common {
    /// The first thing that is not as it was.
    fn difference(&self, before: &Self) -> Option<(&'static str, String, String)> {
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        [
            ("bundle", text(&self.bundle), text(&before.bundle)),
            ("judge", text(&self.judge), text(&before.judge)),
            ("features", text(&self.features), text(&before.features)),
            ("--precision", text(&self.precision), text(&before.precision)),
            ("--count", text(&self.count), text(&before.count)),
            ("--seed", text(&self.seed), text(&before.seed)),
            ("data", text(&self.data), text(&before.data)),
        ]
        .into_iter()
        .find(|(_, now, before)| now != before)
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptRow {
    /// Everything that decided the pictures.
    settings: String,
    row: Row,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    common: Common,
    rows: Vec<KeptRow>,
}

impl Kept {
    /// The rows of an earlier sweep of the same things, or none yet.
    fn open(path: &Path, common: Common) -> anyhow::Result<Self> {
        let place = || path.display().to_string();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self { common, rows: Vec::new() }),
            Err(error) => return Err(error).with_context(place),
        };
        let kept: Self = serde_json::from_str(&text).with_context(place)?;
        if let Some((key, now, before)) = common.difference(&kept.common) {
            bail!("{}: {key}: expected {now}, found {before}; hint: rows that cannot be compared need another folder with --out DIR", place());
        }
        Ok(kept)
    }

    fn find(&self, split: &str, settings: &str) -> Option<&Row> {
        self.rows.iter().find(|kept| kept.row.split == split && kept.settings == settings).map(|kept| &kept.row)
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        write(path, &serde_json::to_string_pretty(self)?)
    }
}

/// Draws and measures what is missing; everything is written to `out` after every row.
pub(super) fn run(job: &Job, bundle: &BundleFolder, out: &Path) -> anyhow::Result<Sweep> {
    let requests: Vec<&Request> = job.ways.iter().map(|way| &way.request).collect();
    let instruments = Instruments::load(bundle, &job.instruments, &requests, &job.compute.device)?;
    let features = instruments.features().with_context(|| judge_hint(bundle))?.conventions("held-out pictures").to_string();
    let datasets = super::splits(&job.data, instruments.prompts.caption_rule())?;
    let common = Common {
        bundle: bundle.manifest().id(),
        judge: instruments.judge_name(),
        features,
        precision: job.compute.precision.name().to_string(),
        count: job.count,
        seed: job.request.seed,
        data: datasets.iter().map(|(name, dataset)| (name.clone(), dataset.fingerprint())).collect(),
    };
    let state = out.join("sweep.json");
    let mut kept = Kept::open(&state, common)?;
    let mut sweep = Sweep { axes: job.axes.clone(), rows: Vec::new() };
    let mut strips = Vec::new();
    fs::create_dir_all(out.join("sheets")).with_context(|| out.display().to_string())?;
    let mut done = 0;
    for (name, dataset) in &datasets {
        // Prepared only where something is left to do.
        let mut split = None;
        for way in &job.ways {
            let settings = settings(bundle, &way.request)?;
            let strip = out.join("sheets").join(strip_name(name, &job.axes, &way.values, &settings));
            let row = match kept.find(name, &settings).filter(|_| strip.is_file()) {
                Some(row) => Row { values: way.values.clone(), ..row.clone() },
                None => {
                    let split = match &mut split {
                        Some(split) => split,
                        none => none.insert(Split::prepare(&instruments, name, dataset, job.count, job.request.seed)?),
                    };
                    let (row, picture) = measure(&instruments, split, &job.axes, way)?;
                    write_png(&picture, &strip, &[("bundle", bundle.manifest().id()), ("settings", settings.clone())])?;
                    kept.rows.retain(|kept| kept.row.split != *name || kept.settings != settings);
                    kept.rows.push(KeptRow { settings, row: row.clone() });
                    kept.save(&state)?;
                    row
                }
            };
            sweep.rows.push(row);
            strips.push(strip);
            done += 1;
            smalti_train::say!("sweep: {done} of {} rows", datasets.len() * job.ways.len());
            write(&out.join("sweep.csv"), &sweep.csv())?;
            write(&out.join("sweep.svg"), &sweep.svg(&format!("{}, {} pictures each", bundle.manifest().name, job.count)))?;
        }
    }
    write_png(&sheet(&strips)?, &out.join("sheet.png"), &[("bundle", bundle.manifest().id())])?;
    Ok(sweep)
}

/// The figures of one way of drawing, and its first pictures in a row.
fn measure(instruments: &Instruments, split: &Split, axes: &[Axis], way: &Way) -> anyhow::Result<(Row, Picture)> {
    let stage = format!("{}: drawing with {}", split.name, choice(axes, &way.values, " "));
    let drawn = instruments.draw(&stage, &way.request, &split.captions)?;
    let seconds: Vec<f64> = drawn.iter().map(|drawn| drawn.seconds).collect();
    let pictures: Vec<Picture> = drawn.into_iter().map(|drawn| drawn.picture).collect();
    let mut figures = split.measure(instruments, &pictures)?.figures();
    figures.extend(Mean::of(&seconds).map(|mean| Figure::of_mean("seconds_per_picture", mean)));
    let count = pictures.len().min(STRIP_COUNT);
    let shown: Vec<Picture> = (0..count).map(|place| pictures[place * pictures.len() / count].clone()).collect();
    let strip = assemble(&shown, &GridOptions { column_count: count, ..GridOptions::square(count) })?;
    Ok((Row { split: split.name.clone(), values: way.values.clone(), picture_count: pictures.len(), figures }, strip))
}

/// All strips below each other, in the order of the rows.
fn sheet(strips: &[PathBuf]) -> anyhow::Result<Picture> {
    let strips = strips.iter().map(|path| Picture::open(path, &DecodeOptions::default())).collect::<Result<Vec<_>, _>>()?;
    Ok(assemble(&strips, &GridOptions { column_count: 1, gap: 0, background: [255; 3] })?)
}

/// Two requests that draw the same pictures have the same settings.
fn settings(bundle: &BundleFolder, request: &Request) -> anyhow::Result<String> {
    let settings = Settings::of(bundle, request).context("the bundle was just seen to have a generator")?;
    Ok(serde_json::json!({ "settings": settings, "candidates": request.count }).to_string())
}

fn choice(axes: &[Axis], values: &[String], between: &str) -> String {
    axes.iter().zip(values).map(|(axis, value)| format!("{}{between}{value}", axis.flag)).collect::<Vec<_>>().join(if between == " " { ", " } else { "_" })
}

/// A name that people can read, and one for each of the settings: values may be long, or hold what no file name may.
fn strip_name(split: &str, axes: &[Axis], values: &[String], settings: &str) -> String {
    const LENGTH_LIMIT: usize = 100;
    let kept = |character: char| if character.is_alphanumeric() || "-._=+".contains(character) { character } else { '-' };
    let digest = Sha256::digest(settings);
    let chosen: String = choice(axes, values, "=").chars().map(kept).take(LENGTH_LIMIT).collect();
    format!("{}_{chosen}_{:02x}{:02x}{:02x}{:02x}.png", slug(split), digest[0], digest[1], digest[2], digest[3])
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    write_atomically(path, |writer| writer.write_all(text.as_bytes())).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_a_name_and_different_values() {
        assert_eq!(axis("steps=1,2, 4"), Ok(Axis { flag: "steps".into(), values: ["1", "2", "4"].map(str::to_string).to_vec() }));
        assert_eq!(axis("--negative=a=b"), Ok(Axis { flag: "negative".into(), values: vec!["a=b".into()] }));
        for wrong in ["steps", "steps=", "steps=1,,2", "steps=1,1"] {
            assert!(axis(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_named_by_what_they_show() {
        let axes = [axis("guidance-scale=0.5,2").unwrap(), axis("negative=a b").unwrap()];
        let name = |settings: &str| strip_name("pairs", &axes, &["0.5".into(), "a b/..".into()], settings);
        assert!(name("{}").starts_with("pairs_guidance-scale=0.5_negative=a-b-.._") && name("{}").ends_with(".png"));
        assert_ne!(name("{}"), name("{1}"), "what the axes do not tell makes another file");
    }
}
