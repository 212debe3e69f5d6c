//! Drawings of `@iconify-json/*` packages: `icons.json` (bodies and sizes), `chars.json` (code points).

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::config::{PackageConfig, SourceConfig};
use super::{Drawing, package};
use crate::DataError;

/// `icons.json` as far as it is used. Sizes of the set hold where an icon says nothing; 16 where the set does not either.
#[derive(Deserialize)]
struct IconSet {
    icons: BTreeMap<String, Icon>,
    #[serde(default)]
    aliases: BTreeMap<String, Alias>,
    #[serde(default = "default_size")]
    width: f64,
    #[serde(default = "default_size")]
    height: f64,
}

fn default_size() -> f64 {
    16.0
}

#[derive(Deserialize)]
struct Icon {
    body: String,
    width: Option<f64>,
    height: Option<f64>,
    #[serde(default)]
    left: f64,
    #[serde(default)]
    top: f64,
    /// Kept by the package for old users; not part of the set.
    #[serde(default)]
    hidden: bool,
}

/// Another name for an icon; only a mirrored one is another picture.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Alias {
    parent: String,
    #[serde(default)]
    h_flip: bool,
    #[serde(default)]
    hidden: bool,
}

pub(super) fn read(source: &SourceConfig, source_folder: &Path) -> Result<Vec<Drawing>, DataError> {
    let pinned = source.pinned();
    let set: IconSet = package::parse(&package::read_file(&pinned, source_folder, "icons.json")?, &pinned, "icons.json")?;
    let code_points = code_points(&pinned, source, source_folder)?;
    let drawings = set.icons.iter().filter(|(_, icon)| !icon.hidden).map(|(name, icon)| {
        let code_points = code_points.get(name).cloned();
        Drawing { name: name.clone(), code_points, svg: document(&set, icon, false) }
    });
    let mut drawings: Vec<Drawing> = drawings.collect();
    for (name, alias) in set.aliases.iter().filter(|(_, alias)| alias.h_flip && !alias.hidden) {
        if let Some(icon) = set.icons.get(&alias.parent) {
            drawings.push(Drawing { name: name.clone(), code_points: code_points.get(name).cloned(), svg: document(&set, icon, true) });
        }
    }
    Ok(drawings)
}

/// Code points by icon name. A set without a table of its own may share the names of a sister set (`fluent-emoji` those of
/// `fluent-emoji-flat`); without either, names are spelled out.
fn code_points(pinned: &PackageConfig, source: &SourceConfig, source_folder: &Path) -> Result<BTreeMap<String, String>, DataError> {
    let names_from = source.names_from.as_ref().unwrap_or(pinned);
    let table: BTreeMap<String, String> = package::parse(&package::read_file(names_from, source_folder, "chars.json")?, names_from, "chars.json")?;
    let mut by_name = BTreeMap::new();
    for (code_points, name) in table {
        by_name.entry(name).or_insert_with(|| super::labels::normal_code_points(&code_points));
    }
    Ok(by_name)
}

/// A square document around the drawing: a flag keeps its proportions and is centred.
fn document(set: &IconSet, icon: &Icon, mirrored: bool) -> String {
    let (width, height) = (icon.width.unwrap_or(set.width), icon.height.unwrap_or(set.height));
    let side = width.max(height);
    let (left, top) = (icon.left - (side - width) / 2.0, icon.top - (side - height) / 2.0);
    let body = &icon.body;
    let body = if mirrored { format!(r#"<g transform="translate({} 0) scale(-1 1)">{body}</g>"#, 2.0 * left + side) } else { body.clone() };
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{side}" height="{side}" viewBox="{left} {top} {side} {side}">{body}</svg>"#
    )
}
