//! The pictogram set: emoji of several drawing styles, rasterised, captioned and split, from npm packages to tar shards.
//!
//! Data flow: [`package`] (npm archives, checked by SHA-256) -> [`iconify`] / [`openmoji`] (named SVG drawings) + [`labels`] (what each one
//! shows) -> [`captions`] (templates) -> [`crate::picture`] (pixels) -> [`splits`] (train, pairs, concepts) -> [`shards`] (tar) and
//! [`report`] (README.md, ATTRIBUTION.md, LEFT_OUT.txt). The same packages and recipe give the same bytes.
//!
//! A *concept* is what is shown (all skin tones of one gesture are one concept), a *style* is who drew it.

mod captions;
pub mod config;
mod iconify;
mod labels;
mod openmoji;
mod package;
mod rasterise;
mod report;
mod shards;
mod splits;

use std::path::Path;

pub use config::Config;
pub use report::Summary;
pub use splits::Split;

use crate::{DataError, new_folder};
use config::{Layout, SourceConfig, Tones};
use labels::{Labels, Meaning};

/// One drawing of a package, before anything is known about its meaning.
struct Drawing {
    /// The package's name for it.
    name: String,
    /// Unicode code points in upper case hexadecimal, joined by `-`, without variation selectors; where the package says.
    code_points: Option<String>,
    /// A complete square SVG document.
    svg: String,
}

/// A drawing whose meaning is known.
struct Pictogram {
    source: usize,
    name: String,
    meaning: Meaning,
    svg: String,
}

/// One that was not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// `style/name`.
    pub key: String,
    pub reason: String,
}

/// Builds the set into `out`, which must not exist or be empty. `on_progress(done, of)` is called now and then while drawing.
///
/// `source_folder` holds the packages as `npm pack` names them (`.tgz`), or unpacked. On error `out` is left as it was.
pub fn build(config: &Config, source_folder: &Path, out: &Path, on_progress: &mut dyn FnMut(usize, usize)) -> Result<Summary, DataError> {
    config.validate()?;
    new_folder::check_free(out)?;
    let labels = Labels::read(config, source_folder)?;
    let mut left_out = Vec::new();
    let mut pictograms = Vec::new();
    for (number, source) in config.sources.iter().enumerate() {
        let drawings = read_drawings(source, source_folder, &mut left_out)?;
        identify(config, number, drawings, &labels, &mut pictograms, &mut left_out);
    }
    if let Some(concept_count) = config.concept_count {
        splits::keep_concepts(config, concept_count, &mut pictograms);
    }
    if pictograms.is_empty() {
        return Err(DataError::Source { path: source_folder.to_path_buf(), reason: "expected pictograms with known meaning, found none".into() });
    }
    let drawn = rasterise::draw_all(config, pictograms, &mut left_out, on_progress)?;
    let assigned = splits::assign(&config.splits, &drawn);
    let summary = Summary::new(config, &drawn, &assigned, left_out);

    new_folder::fill(out, |unfinished| {
        shards::write_all(config, &drawn, &assigned, unfinished)?;
        report::write(config, &summary, unfinished)
    })?;
    Ok(summary)
}

fn read_drawings(source: &SourceConfig, source_folder: &Path, left_out: &mut Vec<LeftOut>) -> Result<Vec<Drawing>, DataError> {
    match source.layout {
        Layout::Iconify => iconify::read(source, source_folder),
        Layout::Openmoji => openmoji::read(source, source_folder, left_out),
    }
}

/// Joins drawings with their meaning; each (style, label) once.
fn identify(config: &Config, source: usize, drawings: Vec<Drawing>, labels: &Labels, pictograms: &mut Vec<Pictogram>, left_out: &mut Vec<LeftOut>) {
    let style = &config.sources[source].style;
    let mut used = std::collections::BTreeSet::new();
    for Drawing { name, code_points, svg } in drawings {
        let mut leave = |reason: &str| left_out.push(LeftOut { key: format!("{style}/{name}"), reason: reason.into() });
        let meaning = match &code_points {
            Some(code_points) => Some(labels.of_code_points(code_points, &name)),
            None => labels.of_spelling(&name),
        };
        match meaning {
            None => leave("meaning unknown"),
            // Not left out but not asked for.
            Some(meaning) if meaning.has_tone && config.tones == Tones::None => {}
            Some(meaning) if !used.insert(meaning.label.clone()) => leave("second drawing of the same"),
            Some(meaning) => pictograms.push(Pictogram { source, name, meaning, svg }),
        }
    }
}

#[cfg(test)]
mod tests;
