//! What was built: README.md with counts, ATTRIBUTION.md with licences, LEFT_OUT.txt with everything not used and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use super::LeftOut;
use super::config::{Config, PackageConfig};
use super::rasterise::Drawn;
use super::splits::Split;
use crate::{DataError, atomic_write};

/// Figures of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// (split, style) -> pictures.
    pub pictures: BTreeMap<(Split, String), usize>,
    /// split -> concepts.
    pub concepts: BTreeMap<Split, usize>,
    pub left_out: Vec<LeftOut>,
}

impl Summary {
    pub(super) fn new(config: &Config, drawn: &[Drawn], assigned: &[Split], left_out: Vec<LeftOut>) -> Self {
        let mut pictures = BTreeMap::new();
        let mut concepts: BTreeMap<Split, BTreeSet<&str>> = BTreeMap::new();
        for (one, &split) in drawn.iter().zip(assigned) {
            *pictures.entry((split, config.sources[one.source].style.clone())).or_default() += 1;
            concepts.entry(split).or_default().insert(&one.meaning.concept);
        }
        let concepts = concepts.into_iter().map(|(split, names)| (split, names.len())).collect();
        Self { pictures, concepts, left_out }
    }

    /// Pictures of one split, all styles.
    pub fn picture_count(&self, split: Split) -> usize {
        self.pictures.iter().filter(|((of, _), _)| *of == split).map(|(_, count)| count).sum()
    }

    /// Reason -> how many.
    pub fn left_out_counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for one in &self.left_out {
            *counts.entry(one.reason.as_str()).or_default() += 1;
        }
        counts
    }
}

pub(super) fn write(config: &Config, summary: &Summary, out: &Path) -> Result<(), DataError> {
    atomic_write::write(&out.join("README.md"), readme(config, summary).as_bytes())?;
    atomic_write::write(&out.join("ATTRIBUTION.md"), attribution(config).as_bytes())?;
    let left_out: String = summary.left_out.iter().map(|one| format!("{}\t{}\n", one.key, one.reason)).collect();
    atomic_write::write(&out.join("LEFT_OUT.txt"), left_out.as_bytes())?;
    config.save(&out.join("recipe.toml"))
}

fn readme(config: &Config, summary: &Summary) -> String {
    let mut text = format!(
        "# {}\n\nCaptioned pictograms, {size}x{size} pixels, as WebDataset tar shards (`KEY.png`, `KEY.json`), built by `smalti data build` from the recipe\nin `recipe.toml`. The first caption of each picture is the canonical one.\n\n",
        config.name,
        size = config.size
    );
    text.push_str("| style | train | pairs | concepts |\n|---|---|---|---|\n");
    let count = |split: Split, style: &str| summary.pictures.get(&(split, style.to_owned())).copied().unwrap_or(0);
    for source in &config.sources {
        let [train, pairs, concepts] = Split::ALL.map(|split| count(split, &source.style));
        let _ = writeln!(text, "| {} | {train} | {pairs} | {concepts} |", source.style);
    }
    let [train, pairs, concepts] = Split::ALL.map(|split| summary.picture_count(split));
    let _ = writeln!(text, "| all | {train} | {pairs} | {concepts} |");
    let [train, pairs, concepts] = Split::ALL.map(|split| summary.concepts.get(&split).copied().unwrap_or(0));
    let _ = writeln!(text, "| different concepts | {train} | {pairs} | {concepts} |\n");
    text.push_str(
        "- *train*: for training.\n- *pairs*: concept and style are both in train, this pair is not.\n- *concepts*: the concept is not in train in any style. Skin tones go with their concept, and concepts that share a picture go together.\n\nLeft out (each named in `LEFT_OUT.txt`):\n\n",
    );
    for (reason, count) in summary.left_out_counts() {
        let _ = writeln!(text, "- {count}: {reason}");
    }
    text.push_str("\nLicences and authors: `ATTRIBUTION.md`.\n");
    text
}

fn attribution(config: &Config) -> String {
    let mut text = String::from(
        "# Attribution\n\nThe pictures were drawn by others. They were rasterised on a plain background and are otherwise unchanged.\n\n| style | package | licence | by |\n|---|---|---|---|\n",
    );
    for source in &config.sources {
        let _ = writeln!(text, "| {} | {} {} | {} | {} |", source.style, source.package, source.version, source.licence, source.attribution);
    }
    let name = |package: &PackageConfig| format!("{} {}", package.package, package.version);
    let (labels, keywords) = (name(&config.labels), name(&config.keywords));
    let _ = writeln!(text, "\nLabels and tags: {labels} (MIT, Miles Johnson). Keywords: {keywords} (MIT, Mu-An Chiou).\n");
    let mut licences: Vec<&str> = config.sources.iter().map(|source| source.licence.as_str()).chain(["MIT"]).collect();
    licences.sort_unstable();
    licences.dedup();
    text.push_str("Licence texts:\n\n");
    for licence in licences {
        let _ = writeln!(text, "- {licence}: <https://spdx.org/licenses/{licence}.html>");
    }
    text.push_str(MIT_NOTICE);
    text
}

/// MIT asks that its notice goes with the work.
const MIT_NOTICE: &str = "
The MIT licence, for the works marked so above:

> Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the
> \"Software\"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
> distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to
> the following conditions: The above copyright notice and this permission notice shall be included in all copies or substantial portions
> of the Software. THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
> WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS
> BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
> CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
";
