//! The invariants of ARCHITECTURE.md, checked. A rule that is not a test is a wish.

use crate::signpost::{SYSTEMS, Training, model_folders};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// What each crate may import of ours. Imports point down only.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("nn", &["kernels"]),
    ("generation", &[]),
    ("data", &[]),
    ("models", &["nn"]),
    ("metrics", &["models", "data", "nn"]),
    ("pipeline", &["models", "generation", "data", "nn"]),
    ("train", &["pipeline", "metrics", "models", "generation", "data", "nn", "kernels"]),
    ("cli", &["train", "metrics", "pipeline", "models", "data", "nn", "generation", "kernels"]),
    ("testing", &["nn"]),
];

/// Names of files and folders that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "misc", "helper", "helpers", "core", "base", "manager"];

/// Longest a source file may be (tests aside) before it must be split.
const LINE_LIMIT: usize = 900;

pub fn run(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    let sources = source_files(root)?;
    imports(root, &mut findings)?;
    unsafe_code(root, &sources, &mut findings)?;
    forbidden_words(root, &sources, &mut findings)?;
    names_and_docs(root, &sources, &mut findings)?;
    model_places(root, &mut findings)?;
    entry_point(root, &mut findings)?;
    if findings.is_empty() {
        println!("tidy: {} source files, no findings", sources.len());
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("tidy: {} findings", findings.len())
}

/// Dependencies between our crates follow the table; `kernels`, `generation` and `data` know no engine.
fn imports(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join("crates"))? {
        let folder = entry?.path();
        let name = folder.file_name().context("a crate folder has a name")?.to_string_lossy().into_owned();
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(of, _)| *of == name) else {
            findings.push(format!("crates/{name}: not in tidy's import table; hint: say there what it may import"));
            continue;
        };
        let manifest = fs::read_to_string(folder.join("Cargo.toml"))?;
        let mut section = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line;
            }
            if section != "[dependencies]" {
                continue;
            }
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if let Some(ours) = dependency.strip_prefix("smalti-") {
                if !allowed.contains(&ours) {
                    findings.push(format!("crates/{name}: imports smalti-{ours}, which points the wrong way"));
                }
            } else if dependency == "burn" && ["kernels", "generation", "data"].contains(&name.as_str()) {
                findings.push(format!("crates/{name}: imports burn; hint: this crate works on slices"));
            }
        }
    }
    Ok(())
}

/// The one file outside `kernels` that promises something to it.
const OUTPUTS_OF_KERNELS: &str = "crates/nn/src/ops/flex.rs";

/// `unsafe` lives in `kernels`, and where outputs are handed to it, each with its reason.
fn unsafe_code(root: &Path, sources: &[PathBuf], findings: &mut Vec<String>) -> Result<()> {
    for path in sources {
        let text = fs::read_to_string(path)?;
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains("unsafe ") || code.contains("unsafe_op_in_unsafe_fn") || path.starts_with(root.join("xtask")) {
                continue;
            }
            if !path.starts_with(root.join("crates/kernels")) && *path != root.join(OUTPUTS_OF_KERNELS) {
                findings.push(format!("{}:{}: `unsafe` outside crates/kernels", shown(root, path), index + 1));
                continue;
            }
            let reason = lines[index.saturating_sub(12)..=index].iter().any(|near| near.contains("SAFETY") || near.contains("# Safety"));
            if code.contains("unsafe {") && !reason {
                findings.push(format!("{}:{}: `unsafe` block without a SAFETY line", shown(root, path), index + 1));
            }
        }
    }
    Ok(())
}

/// Words that must not occur in a crate: I/O in models and generation, foreign names outside import.rs, stubs anywhere.
fn forbidden_words(root: &Path, sources: &[PathBuf], findings: &mut Vec<String>) -> Result<()> {
    const RULES: &[(&str, &[&str], &str)] = &[
        (
            "crates/models/src",
            &["std::fs", "std::net", "println!", "eprintln!", "rand::rng()", "Tensor::random", "Distribution::"],
            "models do no I/O and draw no randomness they were not handed",
        ),
        ("crates/generation/src", &["std::fs", "std::net", "println!", "eprintln!", "rand::rng()"], "generation knows no network, no file, no text"),
        ("crates/pipeline/src", &["println!", "eprintln!", "backward()", "GradientsParams"], "the pipeline cannot train and does not print"),
        ("crates", &["todo!(", "unimplemented!(", "#[ignore"], "nothing is a stub"),
    ];
    for path in sources {
        let is_test = path.file_stem().is_some_and(|stem| stem == "tests") || path.components().any(|part| part.as_os_str() == "tests");
        let text = fs::read_to_string(path)?;
        for (folder, words, why) in RULES {
            if !path.starts_with(root.join(folder)) || (is_test && *folder != "crates") {
                continue;
            }
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (index, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap_or_default();
                for word in words.iter().filter(|word| line.contains(*word)) {
                    findings.push(format!("{}:{}: `{word}`: {why}", shown(root, path), index + 1));
                }
            }
        }
    }
    foreign_names(root, sources, findings)
}

/// Names of foreign checkpoints occur only in `import.rs`.
fn foreign_names(root: &Path, sources: &[PathBuf], findings: &mut Vec<String>) -> Result<()> {
    const FOREIGN: &[&str] = &["post_quant_conv.", "nin_shortcut", "self_attn.q_proj", "visual_projection.", "down_blocks.", "lin0.model", "resblocks."];
    for path in sources.iter().filter(|path| path.starts_with(root.join("crates/models/src"))) {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file == "import.rs" || file == "tests.rs" || path.components().any(|part| part.as_os_str() == "import" || part.as_os_str() == "tests") {
            continue;
        }
        for (index, line) in fs::read_to_string(path)?.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in FOREIGN.iter().filter(|word| code.contains(*word)) {
                findings.push(format!("{}:{}: foreign weight name `{word}` outside import.rs", shown(root, path), index + 1));
            }
        }
    }
    Ok(())
}

/// Files say what they are: a module doc, a telling name, a readable length.
fn names_and_docs(root: &Path, sources: &[PathBuf], findings: &mut Vec<String>) -> Result<()> {
    for path in sources {
        let text = fs::read_to_string(path)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let folder = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        if [stem.as_str(), folder.as_str()].iter().any(|name| EMPTY_NAMES.contains(name)) {
            findings.push(format!("{}: the name says nothing; hint: name the domain idea", shown(root, path)));
        }
        let first = text.lines().find(|line| !line.starts_with("#![")).unwrap_or_default();
        if !first.starts_with("//!") {
            findings.push(format!("{}: no module doc in the first line", shown(root, path)));
        }
        let line_count = text.lines().count();
        if line_count > LINE_LIMIT && stem != "tests" {
            findings.push(format!("{}: {line_count} lines, over {LINE_LIMIT}; hint: split by idea", shown(root, path)));
        }
    }
    Ok(())
}

/// Every model has prose, and goldens with the script that made them; every one that is trained here has its recipe module and recipes.
fn model_places(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let folders = model_folders(root)?;
    for folder in &folders {
        let model = folder.file_name().context("a model folder has a name")?.to_string_lossy().into_owned();
        let mut places = vec![folder.join("tests.rs"), folder.join("goldens/make.py"), root.join(format!("docs/models/{model}.md"))];
        if let Some(Training { module, recipes }) = Training::of(root, folder, &model) {
            places.push(module);
            places.extend(recipes);
        }
        for place in places.iter().filter(|place| !place.exists()) {
            findings.push(format!("model `{model}`: {} is missing", shown(root, place)));
        }
    }
    for system in SYSTEMS.iter().filter(|system| !folders.iter().any(|folder| folder.ends_with(system.network))) {
        findings.push(format!("system `{}`: its network `{}` is no model; hint: correct SYSTEMS in xtask/src/signpost.rs", system.name, system.network));
    }
    Ok(())
}

/// `main.rs` of the program stays a table of contents.
fn entry_point(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let lines = fs::read_to_string(root.join("crates/cli/src/main.rs"))?.lines().count();
    if lines >= 60 {
        findings.push(format!("crates/cli/src/main.rs: {lines} lines, expected under 60"));
    }
    Ok(())
}

fn source_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![root.join("crates"), root.join("xtask")];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}
