//! Dolls: pixel figures put together from parts, with exact captions, and with combinations that are held out on purpose.
//!
//! Data flow: [`parts`] (folders of PNGs with transparency, one for each attribute) -> a value of each attribute by hash -> [`captions`] (templates)
//! -> `train` where no two values are a held-out combination, `pairs` where at least two are -> shards, `parts.tar`, README.md, ATTRIBUTION.md.
//!
//! Because the parts lie beside the pictures (`parts.tar`), whether a generated doll wears what was asked for can be measured attribute by attribute.

mod captions;
pub mod config;
mod parts;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, json};

pub use config::Config;
pub use parts::{Attribute, Doll, Encoded, Parts, Value};

use crate::by_hash::fraction;
use crate::shard_writer::{Member, Shards};
use crate::{DataError, PictureError, atomic_write, new_folder};

/// The parts, beside the splits of a data set.
pub const PARTS_FILE: &str = "parts.tar";

/// Draws for each picture that is wanted, after which the recipe is found impossible.
const DRAWS_PER_PICTURE: usize = 200;

/// Figures of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub train_count: usize,
    pub held_out_count: usize,
    /// Combinations of two values of different attributes, and how many of them are held out.
    pub combination_count: usize,
    pub held_out_combination_count: usize,
}

struct Made {
    key: String,
    doll: Doll,
    png: Vec<u8>,
}

/// Builds the set into `out`, which must not exist or be empty. `on_progress(done, of)` is called now and then. On error `out` is left as it was.
pub fn build(config: &Config, source_folder: &Path, out: &Path, on_progress: &mut dyn FnMut(usize, usize)) -> Result<Summary, DataError> {
    config.validate()?;
    new_folder::check_free(out)?;
    let parts = Parts::read_folders(config, source_folder)?;
    let held_out = held_out_combinations(config, &parts);
    let [train, pairs] = draw(config, &parts, &held_out, on_progress)?;
    let summary = Summary {
        train_count: train.len(),
        held_out_count: pairs.len(),
        combination_count: combinations(&parts).count(),
        held_out_combination_count: held_out.len(),
    };
    new_folder::fill(out, |unfinished| {
        let shards = Shards { name: &config.name, size: config.shard_size, compress: config.compress };
        for (split, made) in [("train", &train), ("pairs", &pairs)] {
            let members = made.iter().map(|one| Member { key: &one.key, png: &one.png, description: description(config, &parts, one, split) });
            shards.write(members.collect(), split, unfinished)?;
        }
        parts.write(&unfinished.join(PARTS_FILE))?;
        atomic_write::write(&unfinished.join("README.md"), readme(config, &parts, &summary).as_bytes())?;
        atomic_write::write(&unfinished.join("ATTRIBUTION.md"), attribution(config).as_bytes())?;
        let recipe = toml::to_string(config).map_err(|error| DataError::Recipe { path: out.to_path_buf(), reason: error.to_string() })?;
        atomic_write::write(&unfinished.join("recipe.toml"), recipe.as_bytes())
    })?;
    Ok(summary)
}

/// (attribute, value) twice, the attributes in order.
type Combination = [(usize, usize); 2];

/// All combinations of two values of different attributes.
fn combinations(parts: &Parts) -> impl Iterator<Item = Combination> {
    let values = |attribute: usize| (0..parts.attributes[attribute].values.len()).map(move |value| (attribute, value));
    let attributes = (0..parts.attributes.len()).flat_map(|one| (0..one).map(move |other| (other, one)));
    attributes.flat_map(move |(one, other)| values(one).flat_map(move |first| values(other).map(move |second| [first, second])))
}

fn held_out_combinations(config: &Config, parts: &Parts) -> BTreeSet<Combination> {
    let words = |(attribute, value): (usize, usize)| parts.attributes[attribute].values[value].words.as_str();
    let held_out = |&[one, other]: &Combination| fraction(&[&config.seed, "combination", words(one), words(other)]) < config.held_out_combinations;
    combinations(parts).filter(held_out).collect()
}

/// The two splits, each doll once.
fn draw(config: &Config, parts: &Parts, held_out: &BTreeSet<Combination>, on_progress: &mut dyn FnMut(usize, usize)) -> Result<[Vec<Made>; 2], DataError> {
    let wanted = [config.train_count, config.held_out_count];
    let total: usize = wanted.iter().sum();
    let mut splits = [Vec::new(), Vec::new()];
    let mut seen = BTreeSet::new();
    for number in 0..total.saturating_mul(DRAWS_PER_PICTURE) {
        let key = format!("{}-{number:07}", config.name);
        let doll = drawn(config, &key);
        let worn: Vec<(usize, usize)> = doll.0.iter().enumerate().filter_map(|(attribute, value)| Some((attribute, (*value)?))).collect();
        let new = worn.iter().enumerate().any(|(place, &other)| worn[..place].iter().any(|&one| held_out.contains(&[one, other])));
        let split = &mut splits[usize::from(new)];
        if split.len() == wanted[usize::from(new)] || !seen.insert(doll.clone()) {
            continue;
        }
        let unwritable = |reason: PictureError| DataError::Picture { key: key.clone(), reason };
        let png = parts.compose(&doll).to_png(&[]).map_err(unwritable)?;
        split.push(Made { key, doll, png });
        let done = splits.iter().map(Vec::len).sum();
        if done % 500 == 0 {
            on_progress(done, total);
        }
        if done == total {
            return Ok(splits);
        }
    }
    let found = format!("{} and {} after {DRAWS_PER_PICTURE} draws for each", splits[0].len(), splits[1].len());
    let expected = format!("that many different dolls without and with held-out combinations ({} and {})", wanted[0], wanted[1]);
    Err(DataError::Config { key: "train_count", expected, found })
}

/// The doll of a key.
fn drawn(config: &Config, key: &str) -> Doll {
    let value = |attribute: &config::AttributeConfig| {
        let roll = |what: &str| fraction(&[&config.seed, what, key, &attribute.name]);
        (roll("absent") >= attribute.absent).then(|| (roll("value") * attribute.values.len() as f64) as usize)
    };
    Doll(config.attributes.iter().map(value).collect())
}

fn description(config: &Config, parts: &Parts, made: &Made, split: &str) -> String {
    let mut fields = Map::new();
    fields.insert("captions".into(), json!(captions::write(config, parts, &made.doll, &made.key)));
    for (attribute, value) in parts.attributes.iter().zip(&made.doll.0) {
        if let Some(value) = value {
            fields.insert(attribute.name.clone(), json!(attribute.values[*value].words));
        }
    }
    for (name, value) in [("split", split), ("licence", &config.licence), ("source", &config.source)] {
        fields.insert(name.into(), json!(value));
    }
    serde_json::Value::Object(fields).to_string()
}

fn readme(config: &Config, parts: &Parts, summary: &Summary) -> String {
    let mut text = format!(
        "# {}\n\nDolls put together from parts, {size}x{size} pixels, as WebDataset tar shards (`KEY.png`, `KEY.json`), built by `smalti data build` from the\n\
         recipe in `recipe.toml`. The first caption of each picture is the canonical one; the fields beside it name each part exactly.\n\n\
         | split | pictures | what |\n|---|---|---|\n| train | {} | no held-out combination |\n| pairs | {} | at least one |\n\n\
         {} of {} combinations of two parts are held out.\n\n| attribute | values | absent |\n|---|---|---|\n",
        config.name,
        summary.train_count,
        summary.held_out_count,
        summary.held_out_combination_count,
        summary.combination_count,
        size = config.size,
    );
    for (attribute, settings) in parts.attributes.iter().zip(&config.attributes) {
        text.push_str(&format!("| {} | {} | {:.0} % |\n", attribute.name, attribute.values.len(), 100.0 * settings.absent));
    }
    text
}

fn attribution(config: &Config) -> String {
    format!("# Attribution\n\nParts: {}\n\nLicence: {}\n\n{}\n", config.source, config.licence, config.attribution)
}

#[cfg(test)]
mod tests;
