//! What a network takes the pictures for while it still draws: a first look, for those who wait.

use super::diffusion::DiffusionSystem;
use crate::manifest::{Canvas, DiffusionConfig};
use crate::progress::Progress;
use smalti_data::Picture;
use smalti_data::resize::{Filter, resize};

/// Sides of latents that are decoded for a look; larger ones are shrunk before, so that it costs a small share of a step.
const LATENT_LIMIT: usize = 16;

/// Who is told of a request under way. No answer changes a picture, but `stop` how many there are.
pub struct Watch<'a> {
    /// After each step of each batch, and while decoding and ranking.
    pub progress: &'a mut dyn FnMut(Progress),
    /// After each step of a diffusion network.
    pub estimate: &'a mut dyn FnMut(&Estimate),
    /// Asked before each batch but the first: whether to make do with the pictures drawn so far.
    pub stop: &'a dyn Fn() -> bool,
}

/// The clean pictures that a step predicted; made visible only when asked for.
pub struct Estimate<'a> {
    pub(super) system: &'a DiffusionSystem,
    pub(super) config: &'a DiffusionConfig,
    pub(super) clean: &'a [f32],
    /// Pictures of the batch.
    pub(super) count: usize,
}

impl Estimate<'_> {
    /// The first `count` pictures of the batch, at most `side` pixels a side; `None` where they cannot be shown, which ends nothing but the look.
    pub fn pictures(&self, count: usize, side: usize) -> Option<Vec<Picture>> {
        let [height, width, channels] = self.system.canvas(self.config);
        let values = &self.clean[..count.min(self.count) * height * width * channels];
        let pictures = match self.config.canvas {
            Canvas::Latents => {
                let factor = height.max(width).div_ceil(LATENT_LIMIT);
                let (small, shape) = if factor > 1 { shrunk(values, [height, width, channels], factor) } else { (values.to_vec(), [height, width, channels]) };
                self.system.decode(&small, shape).ok()?
            }
            Canvas::Pixels => self.system.pictures(self.config, values).ok()?,
        };
        let fit = |picture: Picture| {
            let limit = side.max(1);
            let longest = picture.width.max(picture.height);
            let shrink = |extent: usize| (extent * limit / longest).max(1);
            if longest <= limit { picture } else { resize(&picture, shrink(picture.width), shrink(picture.height), Filter::Area) }
        };
        Some(pictures.into_iter().map(fit).collect())
    }
}

/// Means over squares of `factor` places a side; what is left over at the right and below is left out.
fn shrunk(values: &[f32], [height, width, channels]: [usize; 3], factor: usize) -> (Vec<f32>, [usize; 3]) {
    let shape = [height / factor, width / factor, channels];
    let mut small = Vec::with_capacity(values.len() / factor.pow(2));
    for picture in values.chunks_exact(height * width * channels) {
        for y in 0..shape[0] {
            for x in 0..shape[1] {
                for channel in 0..channels {
                    let places = (0..factor * factor).map(|place| (y * factor + place / factor) * width + x * factor + place % factor);
                    small.push(places.map(|place| picture[place * channels + channel]).sum::<f32>() / (factor * factor) as f32);
                }
            }
        }
    }
    (small, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latents_shrink_to_means() {
        // Two pictures of 2x3 places and one channel; the third column is left over.
        let values = [1.0, 3.0, 9.0, 5.0, 7.0, 9.0, 0.0, 0.0, 9.0, 0.0, 4.0, 9.0];
        assert_eq!(shrunk(&values, [2, 3, 1], 2), (vec![4.0, 1.0], [1, 1, 1]));
        let channels = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
        assert_eq!(shrunk(&channels, [2, 2, 2], 2), (vec![2.5, 25.0], [1, 1, 2]));
    }
}
