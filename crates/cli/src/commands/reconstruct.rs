//! `smalti reconstruct IMAGE...`: pictures through the image tokenizer and back.

use crate::failure::WrongUse;
use crate::made_files::{prepare_folder, write_png};
use crate::output::{print, print_json};
use crate::preview::{self, When};
use crate::progress::Reporter;
use crate::{bundle_path, compute};
use anyhow::Context;
use serde::Serialize;
use smalti_data::Picture;
use smalti_data::grid::{GridOptions, assemble};
use smalti_data::picture::DecodeOptions;
use smalti_data::transform::Transform;
use smalti_metrics::{PictureShape, psnr, ssim};
use smalti_pipeline::BundleFolder;
use smalti_pipeline::reconstruct::{Reconstruction, fitted, reconstruct};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Encode pictures to image tokens and decode them again
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// PNG, JPEG, WebP or SVG files
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// The bundle whose image tokenizer is used [default: bundles/pictograms of the repository]
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Folder for the reconstructions
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Side in pixels to which pictures are cropped and resized [default: what the image tokenizer was trained on]
    #[arg(long, value_name = "N")]
    size: Option<usize>,
    /// Print one JSON object: file, PSNR, SSIM and image tokens of each picture
    #[arg(long)]
    json: bool,
    /// Show originals over reconstructions in the terminal, on stderr
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Auto, num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    preview: When,
    #[command(flatten)]
    compute: compute::Flags,
}

#[derive(Debug)]
pub struct Job {
    images: Vec<PathBuf>,
    bundle: PathBuf,
    out: PathBuf,
    size: Option<usize>,
    json: bool,
    preview: When,
    compute: compute::Compute,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    if let Some(size) = flags.size {
        Transform::new(size).validate().map_err(|error| WrongUse(format!("--size: {error}")))?;
    }
    let Flags { images, bundle, out, size, json, preview, compute } = flags;
    let compute = compute.resolve()?;
    Ok(Job { images, bundle: bundle_path::resolve(bundle)?, out, size, json, preview, compute })
}

#[derive(Serialize)]
struct Output {
    bundle: String,
    pictures: Vec<PictureOutput>,
}

#[derive(Serialize)]
struct PictureOutput {
    source: String,
    file: String,
    /// Decibels; absent for a perfect copy, which has no finite one.
    psnr: Option<f64>,
    ssim: f64,
    image_tokens: Vec<u32>,
}

pub fn run(job: Job) -> anyhow::Result<()> {
    let bundle = BundleFolder::open(&job.bundle)?.for_inference();
    prepare_folder(&job.out)?;
    let (originals, reconstructions) = job.compute.run(|| {
        let image_tokenizer = bundle.image_tokenizer(&job.compute.device, "reconstruct pictures")?;
        let size = job.size.unwrap_or(image_tokenizer.image_size);
        let mut originals = Vec::new();
        for path in &job.images {
            originals.push(fitted(&Picture::open(path, &DecodeOptions::default())?, size)?);
        }
        let mut reporter = Reporter::new();
        let reconstructions = reconstruct(&image_tokenizer, &originals, &mut |progress| reporter.pipeline(progress))?;
        anyhow::Ok((originals, reconstructions))
    })?;
    let output = write(&job, bundle.manifest().id(), &originals, reconstructions)?;
    if job.json {
        return print_json(&output);
    }
    let psnr = |psnr: Option<f64>| psnr.map_or("perfect".to_string(), |psnr| format!("{psnr:.2} dB"));
    print(&output.pictures.iter().map(|made| format!("{}  PSNR {}  SSIM {:.4}", made.file, psnr(made.psnr), made.ssim)).collect::<Vec<_>>().join("\n"))
}

fn write(job: &Job, bundle_id: String, originals: &[Picture], reconstructions: Vec<Reconstruction>) -> anyhow::Result<Output> {
    let names = names(&job.images);
    let mut pictures = Vec::new();
    let mut shown = originals.to_vec();
    for (((source, original), Reconstruction { picture, image_tokens }), name) in job.images.iter().zip(originals).zip(reconstructions).zip(names) {
        let file = job.out.join(name);
        let precision = job.compute.precision.name().to_string();
        write_png(&picture, &file, &[("source", source.display().to_string()), ("bundle", bundle_id.clone()), ("precision", precision)])?;
        let (before, after) = (original.to_f32(), picture.to_f32());
        let shape = PictureShape { height: picture.height, width: picture.width, channels: 3 };
        let psnr = Some(psnr(&after, &before, 2.0)?).filter(|psnr| psnr.is_finite());
        let ssim = ssim(&after, &before, shape, 2.0)?;
        shown.push(picture);
        pictures.push(PictureOutput { source: source.display().to_string(), file: file.display().to_string(), psnr, ssim, image_tokens });
    }
    let sheet = assemble(&shown, &GridOptions { column_count: originals.len(), ..GridOptions::square(shown.len()) }).context("preview")?;
    preview::show(&sheet, job.preview);
    Ok(Output { bundle: bundle_id, pictures })
}

/// `<name of the picture>-reconstructed.png`, with a number where two pictures have the same name.
fn names(images: &[PathBuf]) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let stem = |path: &Path| path.file_stem().map_or("picture".to_string(), |stem| stem.to_string_lossy().into_owned());
    let mut names = Vec::new();
    for image in images {
        let stem = stem(image);
        let mut name = format!("{stem}-reconstructed.png");
        let mut number = 2;
        while !taken.insert(name.clone()) {
            name = format!("{stem}-reconstructed-{number}.png");
            number += 1;
        }
        names.push(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_collide() {
        let images = ["a/x.png", "b/x.jpg", "x-reconstructed.png", "c/x.webp"].map(PathBuf::from);
        assert_eq!(names(&images), ["x-reconstructed.png", "x-reconstructed-2.png", "x-reconstructed-reconstructed.png", "x-reconstructed-3.png"]);
    }
}
