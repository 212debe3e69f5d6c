//! What a diffusion network starts from: a picture, a mask over it, another program's noise.

use crate::failure::WrongUse;
use anyhow::bail;
use serde::Serialize;
use smalti_data::Picture;
use smalti_data::picture::DecodeOptions;
use smalti_nn::weights::safetensors;
use smalti_pipeline::text_to_image::{InitialPicture, Request};
use smalti_pipeline::{Manifest, PipelineError};
use std::path::{Path, PathBuf};

/// Share of the way that is walked from an initial picture: enough to change it, too little to forget it (Stable Diffusion's img2img has 0.75, `diffusers` 0.8).
const STRENGTH: f64 = 0.8;

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Start and film strip of bundles with a diffusion network")]
pub(super) struct StartFlags {
    /// A picture to start from; its middle square is resized
    #[arg(long, value_name = "FILE")]
    init_image: Option<PathBuf>,
    /// How much of the way is walked: 0 gives the picture back (as latents or a cascade hold it), 1 forgets it [default: 0.8, with --mask 1]
    #[arg(long, value_name = "SHARE", requires = "init_image", allow_negative_numbers = true)]
    strength: Option<f64>,
    /// What of the picture is painted anew (white) and what is kept (black); of the picture's size
    #[arg(long, value_name = "FILE", requires = "init_image")]
    mask: Option<PathBuf>,
    /// Unit normal noise to start from in place of the seed's: a safetensors file with one tensor [count, channels, height, width]; a cascade's first stage
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Beside each picture, a file with N pictures of the way to it, at most one for each step
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    film_strip: usize,
}

/// The files that decided a picture.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct StartFiles {
    #[serde(skip_serializing_if = "Option::is_none")]
    init_image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    noise: Option<String>,
}

/// The request with what the flags name read into it, and the shape of the noise, which has to wait for the bundle.
#[derive(Debug)]
pub(super) struct Start {
    pub files: StartFiles,
    noise_shape: Option<[usize; 4]>,
}

impl StartFlags {
    pub(super) fn read_into(self, request: &mut Request) -> anyhow::Result<Start> {
        let open = |path: &PathBuf| Picture::open(path, &DecodeOptions::default());
        let options = &mut request.diffusion;
        options.film_strip = self.film_strip;
        if let Some(path) = &self.init_image {
            let mask = self.mask.as_ref().map(open).transpose()?;
            let strength = self.strength.unwrap_or(if mask.is_some() { 1.0 } else { STRENGTH });
            options.initial = Some(InitialPicture { picture: open(path)?, strength, mask });
        }
        let noise = self.noise.as_deref().map(read_noise).transpose()?;
        let noise_shape = noise.as_ref().map(|(shape, _)| *shape);
        options.noise = noise.map(|(_, values)| values);
        let name = |path: Option<PathBuf>| path.map(|path| path.display().to_string());
        Ok(Start { files: StartFiles { init_image: name(self.init_image), mask: name(self.mask), noise: name(self.noise) }, noise_shape })
    }
}

impl Start {
    /// Noise must be laid out as the bundle's canvas is, not only be as many numbers.
    pub(super) fn check(&self, manifest: &Manifest, request: &Request) -> Result<(), PipelineError> {
        let (Some([count, channels, height, width]), Some(canvas)) = (self.noise_shape, manifest.canvas()) else { return Ok(()) };
        if (count, [height, width, channels]) == (request.count, canvas) {
            return Ok(());
        }
        let expected = format!("[{}, {}, {}, {}] (count, channels, height, width)", request.count, canvas[2], canvas[0], canvas[1]);
        let found = format!("[{count}, {channels}, {height}, {width}]");
        Err(PipelineError::Request { key: "noise", expected, found, hint: Some("--count says how many") })
    }
}

/// The shape [count, channels, height, width] of the only tensor of a file, and its numbers as [count, height, width, channels].
fn read_noise(path: &Path) -> anyhow::Result<([usize; 4], Vec<f32>)> {
    let place = path.display();
    let listed = safetensors::list(path)?;
    let [entry] = &listed[..] else { bail!(WrongUse(format!("--noise {place}: expected one tensor, found {}", listed.len()))) };
    let Ok(shape) = <[usize; 4]>::try_from(entry.shape.clone()) else {
        bail!(WrongUse(format!("--noise {place}: tensor `{}`: expected [count, channels, height, width], found {:?}", entry.name, entry.shape)));
    };
    let wrong_type = || WrongUse(format!("--noise {place}: tensor `{}`: expected floating-point numbers, found {}", entry.name, entry.format));
    let tensor = safetensors::read(path)?.remove(&entry.name).ok_or_else(wrong_type)?;
    if let Some(value) = tensor.values.iter().find(|value| !value.is_finite()) {
        bail!(WrongUse(format!("--noise {place}: tensor `{}`: expected finite numbers, found {value}", entry.name)));
    }
    Ok((shape, tensor.permute(&[0, 2, 3, 1]).values))
}
