//! Where everything about one model is: `cargo xtask where vqgan`.

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// Prints the places of a model, those that exist first.
pub fn run(root: &Path, model: &str) -> Result<()> {
    let Some(folder) = model_folders(root)?.into_iter().find(|folder| folder.ends_with(model)) else {
        let known: Vec<String> = model_folders(root)?.iter().filter_map(|folder| folder.file_name()).map(|name| name.to_string_lossy().into_owned()).collect();
        bail!("no model `{model}`; hint: there are {}", known.join(", "));
    };
    let places = [
        ("network, config, loss, import, tests, goldens", folder),
        ("what a batch is and what a step does", root.join(format!("crates/train/src/recipes/{model}.rs"))),
        ("the numbers", root.join(format!("recipes/{model}"))),
        ("prose", root.join(format!("docs/models/{model}.md"))),
        ("what is saved and served", root.join("crates/pipeline/src/bundle.rs")),
    ];
    for (what, place) in places {
        let mark = if place.exists() { ' ' } else { '!' };
        println!("{mark} {:<48} {what}", place.strip_prefix(root).unwrap_or(&place).display());
    }
    Ok(())
}

/// Every folder of `crates/models/src` that holds a `config.rs`: a model.
pub fn model_folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![root.join("crates/models/src")];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.file_name().is_some_and(|name| name == "config.rs") {
                found.push(folder.clone());
            }
        }
    }
    found.sort();
    Ok(found)
}
