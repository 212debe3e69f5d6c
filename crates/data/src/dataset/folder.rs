//! Pictures at any depth, with `NAME.txt` beside `NAME.png`: one caption a line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{CaptionRule, CaptionSource, FileEntry, Index, Problem, ProblemKind, Source, walk};
use crate::DataError;

pub(super) fn index(root: &Path, rule: CaptionRule) -> Result<Index, DataError> {
    let files = walk::files(root)?;
    let mut texts: BTreeMap<String, &walk::Found> = files.iter().filter(|file| file.extension() == "txt").map(|file| (file.key(), file)).collect();
    let mut problems: Vec<Problem> = walk::unsupported(&files).collect();
    let (mut keys, mut picture_sizes, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for file in files.iter().filter(|file| file.is_picture()) {
        let key = file.key();
        if !seen.insert(key.clone()) {
            problems.push(Problem { place: file.relative.clone(), kind: ProblemKind::DuplicateKey });
            continue;
        }
        let text = texts.remove(&key);
        // A text file of nothing but blanks is no caption; its size tells most of it without opening every file.
        if rule == CaptionRule::Required && text.is_none_or(|text| text.size == 0) {
            problems.push(Problem { place: file.relative.clone(), kind: ProblemKind::PictureWithoutCaption });
            continue;
        }
        keys.push(key);
        picture_sizes.push(file.size);
        let captions = text.map_or(CaptionSource::None, |text| CaptionSource::TextFile(text.path.clone()));
        entries.push(FileEntry { picture: file.path.clone(), captions });
    }
    for (key, text) in texts {
        if !seen.contains(&key) {
            problems.push(Problem { place: text.relative.clone(), kind: ProblemKind::CaptionWithoutPicture });
        }
    }
    Ok(Index { keys, picture_sizes, source: Source::Files(entries), problems })
}
