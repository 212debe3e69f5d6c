//! Drawings of the `openmoji` package: `color/svg/HEXCODE.svg`.

use std::path::Path;

use super::config::SourceConfig;
use super::{Drawing, LeftOut, labels, package};
use crate::DataError;

/// OpenMoji's own drawings outside Unicode (logos, extra objects) have private code points and no label in the emoji data.
pub(super) fn read(source: &SourceConfig, source_folder: &Path, left_out: &mut Vec<LeftOut>) -> Result<Vec<Drawing>, DataError> {
    let files = package::read_files(&source.pinned(), source_folder, |path| path.starts_with("color/svg/") && path.ends_with(".svg"))?;
    let mut drawings = Vec::new();
    for (path, bytes) in files {
        let name = path.trim_start_matches("color/svg/").trim_end_matches(".svg").to_owned();
        let mut leave = |reason: &str| left_out.push(LeftOut { key: format!("{}/{name}", source.style), reason: reason.into() });
        if name.split('-').any(labels::is_private) {
            leave("not part of Unicode");
            continue;
        }
        match String::from_utf8(bytes) {
            Ok(svg) => drawings.push(Drawing { code_points: Some(labels::normal_code_points(&name)), name, svg }),
            Err(_) => leave("not UTF-8"),
        }
    }
    Ok(drawings)
}
