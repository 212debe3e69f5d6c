//! The pictograms of each split as shards.

use std::path::Path;

use serde_json::json;

use super::captions;
use super::config::Config;
use super::rasterise::Drawn;
use super::splits::Split;
use crate::DataError;
use crate::shard_writer::{Member, Shards};

/// Writes `OUT/SPLIT/NAME-SPLIT-NNNN.tar` for each split that has pictures.
pub(super) fn write_all(config: &Config, drawn: &[Drawn], assigned: &[Split], out: &Path) -> Result<(), DataError> {
    let shards = Shards { name: &config.name, size: config.shard_size, compress: config.compress };
    for split in Split::ALL {
        let of_split = drawn.iter().zip(assigned).filter(|(_, assigned)| **assigned == split);
        let members = of_split.map(|(one, _)| Member { key: &one.key, png: &one.png, description: description(config, one, split) }).collect();
        shards.write(members, split.name(), out)?;
    }
    Ok(())
}

fn description(config: &Config, one: &Drawn, split: Split) -> String {
    let source = &config.sources[one.source];
    json!({
        "captions": captions::write(&config.captions, &one.meaning, &source.style),
        "label": one.meaning.label,
        "concept": one.meaning.concept,
        "style": source.style,
        "split": split.name(),
        "licence": source.licence,
        "source": format!("{} {}", source.package, source.version),
    })
    .to_string()
}
