//! Which files of a folder are weights, and how they are read.

use crate::PipelineError;
use burn::module::Module;
use burn::tensor::Device;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use smalti_models::ConfigError;
use smalti_nn::weights::{NamedTensors, apply, foreign};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What weights files of Hugging Face are called, without variant and extension.
const STEMS: [&str; 3] = ["diffusion_pytorch_model", "model", "pytorch_model"];

/// One network in the manner of Hugging Face: `config.json` and the weights beside it.
pub(super) struct Network {
    /// The weights, or the first of their files.
    pub path: PathBuf,
    /// The text of `config.json`.
    pub config: String,
    pub tensors: NamedTensors,
}

/// Reads a network from its folder, or from a weights file with `config.json` beside it. Of several forms of the same weights the one of full precision is
/// taken, then the one of f16; of each the safetensors, in one file or in several.
pub(super) fn network(path: &Path) -> Result<Network, PipelineError> {
    let files = weights_files(path)?;
    let first = files[0].clone();
    let config = read_text(&first.with_file_name("config.json"))?;
    let mut tensors = NamedTensors::new();
    for file in &files {
        tensors.extend(read(file)?);
    }
    Ok(Network { path: first, config, tensors })
}

/// At least one.
fn weights_files(path: &Path) -> Result<Vec<PathBuf>, PipelineError> {
    for variant in ["", ".fp16"] {
        for extension in ["safetensors", "bin"] {
            for stem in STEMS {
                let whole = path.join(format!("{stem}{variant}.{extension}"));
                if whole.is_file() {
                    return Ok(vec![whole]);
                }
                let index = path.join(format!("{stem}.{extension}.index{variant}.json"));
                if index.is_file() {
                    return shards(&index);
                }
            }
        }
    }
    Ok(vec![one_checkpoint(path)?])
}

/// The files that an index names, which lie beside it.
fn shards(index: &Path) -> Result<Vec<PathBuf>, PipelineError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Index { weight_map } = parse(index, "an index of weights", &read_text(index)?)?;
    let names: BTreeSet<String> = weight_map.into_values().collect();
    if let Some(name) = names.iter().find(|name| name.is_empty() || name.starts_with('.') || name.contains(['/', '\\', ':', '\0'])) {
        return Err(wrong(index, format!("weight_map: expected names of files beside it, found `{name}`")));
    }
    if names.is_empty() {
        return Err(wrong(index, "weight_map: expected at least one file, found none".to_string()));
    }
    Ok(names.into_iter().map(|name| index.with_file_name(name)).collect())
}

/// The weights without the training state that checkpoints of PyTorch Lightning keep beside them.
pub(super) fn read(path: &Path) -> Result<NamedTensors, PipelineError> {
    const TRAINING_STATE: [&str; 4] = ["optimizer_states.", "callbacks.", "lr_schedulers.", "loops."];
    let tensors = foreign::read_selected(path, |name| !TRAINING_STATE.iter().any(|state| name.starts_with(state)));
    tensors.map_err(|error| wrong(path, error.to_string().replacen(&format!("{}: ", path.display()), "", 1)))
}

pub(super) fn read_text(path: &Path) -> Result<String, PipelineError> {
    fs::read_to_string(path).map_err(|source| PipelineError::io(path, source))
}

/// JSON as Python writes it: -Infinity, which no JSON has, is read as null.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, what: &str, json: &str) -> Result<T, PipelineError> {
    serde_json::from_str(&json.replace("-Infinity", "null")).map_err(|error| wrong(path, format!("expected {what}: {error}")))
}

/// `path` itself, or the one checkpoint in the folder `path`; of two formats of the same weights the safetensors.
pub(super) fn one_checkpoint(path: &Path) -> Result<PathBuf, PipelineError> {
    let files = checkpoint_files(path)?;
    let safetensors: Vec<&PathBuf> = files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "safetensors")).collect();
    match (files.as_slice(), safetensors.as_slice()) {
        ([file], _) => Ok(file.clone()),
        (_, [file]) => Ok((*file).clone()),
        _ => {
            let names: Vec<_> = files.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned())).collect();
            Err(wrong(path, format!("expected one file of weights, found {}; hint: name the file itself", names.join(", "))))
        }
    }
}

pub(super) fn checkpoint_files(path: &Path) -> Result<Vec<PathBuf>, PipelineError> {
    const EXTENSIONS: [&str; 5] = ["safetensors", "ckpt", "pt", "pth", "bin"];
    if !path.is_dir() {
        fs::metadata(path).map_err(|source| PipelineError::io(path, source))?;
        return Ok(vec![path.to_path_buf()]);
    }
    let io = |source| PipelineError::io(path, source);
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.is_file() && file.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known)) {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(wrong(path, format!("expected a file of weights (.{}), found none", EXTENSIONS.join(", ."))));
    }
    Ok(files)
}

/// The network with the tensors, all of which must fit.
pub(super) fn fitted<M: Module>(path: &Path, network: M, tensors: NamedTensors, device: &Device) -> Result<M, PipelineError> {
    apply(network, tensors, device).map_err(|error| wrong(path, error.to_string()))
}

pub(super) fn not_this(path: &Path, error: ConfigError) -> PipelineError {
    wrong(path, format!("{error}; hint: is this the format named with --as?"))
}

pub(super) fn wrong(path: &Path, reason: String) -> PipelineError {
    PipelineError::Import { path: path.to_path_buf(), reason }
}
