//! Hugging Face `imagefolder`: `metadata.jsonl` or `metadata.csv` in any folder, else one folder for each class.
//!
//! Without metadata the caption is the class: the name of the folder the picture lies in, `_` and `-` read as spaces; the name itself
//! is the field `class`.

use std::collections::BTreeSet;
use std::path::Path;

use super::{CaptionRule, CaptionSource, Description, FileEntry, Index, Problem, ProblemKind, Source, metadata, walk};
use crate::DataError;

/// Names that imagefolder reads as splits, not as classes.
const SPLITS: [&str; 8] = ["train", "training", "test", "testing", "validation", "valid", "val", "dev"];

pub(super) fn index(root: &Path, rule: CaptionRule) -> Result<Index, DataError> {
    let files = walk::files(root)?;
    let top: BTreeSet<&str> = files.iter().filter_map(|file| file.relative.split_once('/').map(|(folder, _)| folder)).collect();
    if top.len() > 1 && top.iter().any(|folder| *folder == "train" || *folder == "training") && top.iter().all(|folder| SPLITS.contains(folder)) {
        let found = format!("the splits {}", top.into_iter().collect::<Vec<_>>().join(", "));
        return Err(DataError::NoPictures { path: root.to_path_buf(), found, hint: "name one of the splits in `path`" });
    }
    let is_table = |file: &&walk::Found| matches!(file.relative.rsplit('/').next(), Some("metadata.jsonl" | "metadata.csv"));
    let tables: Vec<String> = files.iter().filter(is_table).map(|file| file.relative.clone()).collect();
    if !tables.is_empty() {
        return metadata::index_tables(root, &files, &tables, rule);
    }
    index_classes(&files, rule)
}

fn index_classes(files: &[walk::Found], rule: CaptionRule) -> Result<Index, DataError> {
    let mut problems: Vec<Problem> = walk::unsupported(files).collect();
    let (mut keys, mut picture_sizes, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for file in files.iter().filter(|file| file.is_picture()) {
        let class = file.relative.rsplit('/').nth(1);
        if !seen.insert(file.key()) {
            problems.push(Problem { place: file.relative.clone(), kind: ProblemKind::DuplicateKey });
            continue;
        }
        if class.is_none() && rule == CaptionRule::Required {
            problems.push(Problem { place: file.relative.clone(), kind: ProblemKind::PictureWithoutCaption });
            continue;
        }
        keys.push(file.key());
        picture_sizes.push(file.size);
        let captions = class.map_or(CaptionSource::None, |class| CaptionSource::Known(class_description(class)));
        entries.push(FileEntry { picture: file.path.clone(), captions });
    }
    Ok(Index { keys, picture_sizes, source: Source::Files(entries), problems })
}

fn class_description(class: &str) -> Description {
    let caption = class.replace(['_', '-'], " ").trim().to_owned();
    let captions = if caption.is_empty() { Vec::new() } else { vec![caption] };
    Description { captions, fields: [("class".to_owned(), class.to_owned())].into() }
}
