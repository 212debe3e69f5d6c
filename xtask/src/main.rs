//! House rules as checks, and signposts: `cargo xtask tidy`, `cargo xtask where vqgan`, `cargo xtask bench --torch PYTHON --out DIR`,
//! `cargo xtask check-pictures KEPT.json ALL.json`.

mod bench;
mod check_pictures;
mod signpost;
mod tidy;

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let root = repository_root()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["tidy"] => tidy::run(&root),
        ["where", model] => signpost::run(&root, model),
        ["check-pictures", kept, all, size, token_count] => check_pictures::run(Path::new(kept), Path::new(all), size, token_count),
        ["bench", words @ ..] => bench::run(&root, words),
        _ => bail!(
            "expected `tidy`, `where MODEL_OR_SYSTEM`, `bench --torch PYTHON --out DIR` or `check-pictures KEPT.json ALL.json SIZE TOKENS`, found `{}`",
            arguments.join(" ")
        ),
    }
}

fn repository_root() -> Result<PathBuf> {
    // What cargo says when it runs this, not when it built it: a target folder may be shared by several clones.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").context("xtask is run by cargo: `cargo xtask ...`")?;
    Path::new(&manifest).parent().map(Path::to_path_buf).context("xtask lies in the repository root")
}
