//! Which bundle is meant when none is named: the one that ships with the repository.

use anyhow::bail;
use std::path::{Path, PathBuf};

/// Relative to the repository.
const SHIPPED: &str = "bundles/pictograms";

/// `named`, or the shipped bundle, looked for from the current folder upward and then from the program's own folder upward.
pub fn resolve(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path);
    }
    let starts = [std::env::current_dir(), std::env::current_exe()];
    match starts.iter().flatten().flat_map(|start| start.ancestors()).map(|folder| folder.join(SHIPPED)).find(|path| is_bundle(path)) {
        Some(path) => Ok(shortened(path)),
        None => bail!("no bundle: expected {SHIPPED} in this folder or one above it, found none; hint: name one with --bundle DIR"),
    }
}

fn is_bundle(path: &Path) -> bool {
    path.join(smalti_pipeline::manifest::FILE_NAME).is_file()
}

/// Relative to the current folder where it lies below.
fn shortened(path: PathBuf) -> PathBuf {
    let current = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(current).map(Path::to_path_buf).unwrap_or(path)
}
