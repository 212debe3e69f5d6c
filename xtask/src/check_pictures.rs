//! Checks what `smalti generate --json` printed: pictures that exist, decode, are not flat, are ranked, and repeat for the same seed.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Output {
    pictures: Vec<Made>,
}

#[derive(Deserialize)]
struct Made {
    file: PathBuf,
    index: usize,
    score: Option<f64>,
    image_tokens: Vec<u32>,
}

/// What each picture must be.
#[derive(Clone, Copy)]
struct Expected {
    /// Side in pixels.
    size: u32,
    /// 0 of a diffusion network.
    token_count: usize,
}

/// `kept` is a run with `--keep`, `all` another run of the same seed that drew at least as many pictures in another way (batch size, threads).
pub fn run(kept: &Path, all: &Path, size: &str, token_count: &str) -> Result<()> {
    let expected =
        Expected { size: size.parse().context("the size of the pictures")?, token_count: token_count.parse().context("the number of image tokens")? };
    let [kept, all] = [read(kept)?, read(all)?];
    ensure!(!kept.pictures.is_empty(), "expected kept pictures, found none");
    for made in kept.pictures.iter().chain(&all.pictures) {
        check(made, expected).with_context(|| made.file.display().to_string())?;
    }
    let scores: Vec<f64> = kept.pictures.iter().map(|made| made.score.context("expected a score, found none")).collect::<Result<_>>()?;
    ensure!(scores.is_sorted_by(|left, right| left >= right), "kept pictures are not ranked: {scores:?}");
    let others: BTreeMap<usize, &Made> = all.pictures.iter().map(|made| (made.index, made)).collect();
    for made in &kept.pictures {
        let other = others.get(&made.index).with_context(|| format!("picture {} is not in the second run", made.index))?;
        ensure!(fs::read(&made.file)? == fs::read(&other.file)?, "picture {}: same seed, other bytes", made.index);
    }
    println!("pictures: {} checked, {} compared byte for byte", kept.pictures.len() + all.pictures.len(), kept.pictures.len());
    Ok(())
}

fn read(path: &Path) -> Result<Output> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn check(made: &Made, Expected { size, token_count }: Expected) -> Result<()> {
    let mut reader = png::Decoder::new(BufReader::new(File::open(&made.file)?)).read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().context("the picture is too large")?];
    let info = reader.next_frame(&mut pixels)?;
    ensure!((info.width, info.height) == (size, size), "expected {size}x{size}, found {}x{}", info.width, info.height);
    let shades: BTreeSet<u8> = pixels.iter().copied().collect();
    ensure!(shades.len() > 16, "expected a picture, found only {} shades", shades.len());
    let tokens: BTreeSet<u32> = made.image_tokens.iter().copied().collect();
    let several = token_count == 0 || tokens.len() > 1;
    ensure!(made.image_tokens.len() == token_count && several, "expected {token_count} image tokens of several kinds, found {:?}", made.image_tokens);
    Ok(())
}
