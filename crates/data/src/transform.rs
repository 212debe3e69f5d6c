//! From a picture of any size to the square the model trains on.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::resize::{Filter, resize};
use crate::{DataError, Picture, grid};

/// Stated in the recipe. Without randomness unless asked: a flip is wrong for text, flags and hands, a colour change for anything
/// whose caption names colours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transform {
    /// Side of the square in pixels.
    pub size: usize,
    #[serde(default)]
    pub crop: Crop,
    #[serde(default)]
    pub filter: Filter,
    /// Probability of mirroring left and right, in [0, 1].
    #[serde(default)]
    pub flip_probability: f32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement_jitter: Option<PlacementJitter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub colour_jitter: Option<ColourJitter>,
    /// What [`Crop::Pad`] and [`PlacementJitter`] fill with.
    #[serde(default = "white")]
    pub background: [u8; 3],
}

/// How a rectangle becomes a square.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Crop {
    /// The shorter side to `size`, then the middle.
    #[default]
    Centre,
    /// The shorter side to `size`, then a random square.
    Random,
    /// Both sides to `size`; the proportions change.
    Squash,
    /// The longer side to `size`, then bars of the background.
    Pad,
}

/// The whole square made smaller and moved at random, on a canvas of the background: right for drawings on a plain ground. 0 leaves that property alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacementJitter {
    /// The farthest move along each axis, as a share of the side. What leaves the canvas is cut off.
    #[serde(default)]
    pub shift: f32,
    /// The side becomes a factor in [1 - x, 1] of itself.
    #[serde(default)]
    pub shrink: f32,
}

/// Random factors in [1 - x, 1 + x], drawn once for each picture. 0 leaves that property alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColourJitter {
    /// Factor on the values.
    #[serde(default)]
    pub brightness: f32,
    /// Factor on the distance from the mean grey of the picture.
    #[serde(default)]
    pub contrast: f32,
    /// Factor on the distance of each pixel from its own grey.
    #[serde(default)]
    pub saturation: f32,
}

fn white() -> [u8; 3] {
    [255; 3]
}

impl Transform {
    /// Centre crop, Lanczos, nothing random.
    pub fn new(size: usize) -> Self {
        Self { size, crop: Crop::Centre, filter: Filter::Lanczos, flip_probability: 0.0, placement_jitter: None, colour_jitter: None, background: white() }
    }

    /// The same without anything random: for evaluation and encoding.
    pub fn without_randomness(&self) -> Self {
        let crop = if self.crop == Crop::Random { Crop::Centre } else { self.crop };
        Self { crop, flip_probability: 0.0, placement_jitter: None, colour_jitter: None, ..self.clone() }
    }

    /// Whether two rngs can give two results.
    pub fn is_random(&self) -> bool {
        *self != self.without_randomness()
    }

    /// Names the first impossible value.
    pub fn validate(&self) -> Result<(), DataError> {
        let wrong = |key, expected: &str, found: String| Err(DataError::Config { key, expected: expected.into(), found });
        if !(1..=16384).contains(&self.size) {
            return wrong("size", "1 to 16384 pixels", self.size.to_string());
        }
        if !(0.0..=1.0).contains(&self.flip_probability) {
            return wrong("flip_probability", "a probability in [0, 1]", self.flip_probability.to_string());
        }
        if let Some(PlacementJitter { shift, shrink }) = self.placement_jitter {
            for (key, value) in [("shift", shift), ("shrink", shrink)] {
                if !(0.0..=0.5).contains(&value) {
                    return wrong(key, "a share of the side in [0, 0.5]", value.to_string());
                }
            }
        }
        if let Some(ColourJitter { brightness, contrast, saturation }) = self.colour_jitter {
            for (key, value) in [("brightness", brightness), ("contrast", contrast), ("saturation", saturation)] {
                if !(0.0..=1.0).contains(&value) {
                    return wrong(key, "a strength in [0, 1]", value.to_string());
                }
            }
        }
        Ok(())
    }

    /// A `size` x `size` picture. The number of draws from `rng` depends on the settings alone, never on the picture.
    pub fn apply(&self, picture: &Picture, rng: &mut impl Rng) -> Picture {
        let place: (f64, f64) = if self.crop == Crop::Random { (rng.random(), rng.random()) } else { (0.5, 0.5) };
        let mut square = match self.placement_jitter {
            Some(jitter) => self.place(picture, place, jitter, [rng.random(), rng.random(), rng.random()]),
            None => self.to_square(picture, place),
        };
        let flip = self.flip_probability > 0.0 && rng.random::<f32>() < self.flip_probability;
        if flip {
            mirror(&mut square);
        }
        if let Some(jitter) = self.colour_jitter {
            let mut factor = |strength: f32| 1.0 + strength * (rng.random::<f32>() * 2.0 - 1.0);
            let (brightness, contrast, saturation) = (factor(jitter.brightness), factor(jitter.contrast), factor(jitter.saturation));
            change_colours(&mut square, brightness, contrast, saturation);
        }
        square
    }

    /// `draws` in [0, 1): of the factor, of the moves to the right and down.
    fn place(&self, picture: &Picture, crop: (f64, f64), jitter: PlacementJitter, draws: [f32; 3]) -> Picture {
        let side = self.size as f32;
        let inner = ((side * (1.0 - jitter.shrink * draws[0])).round() as usize).max(1);
        let square = Self { size: inner, ..self.clone() }.to_square(picture, crop);
        let margin = (self.size - inner) / 2;
        let [left, top] = [draws[1], draws[2]].map(|draw| margin as isize + (side * jitter.shift * (2.0 * draw - 1.0)).round() as isize);
        let mut canvas = Picture::filled(self.size, self.size, self.background);
        let inside = |at: usize, offset: isize| usize::try_from(at as isize - offset).ok().filter(|&at| at < inner);
        for (row, pixels) in canvas.rgb.chunks_exact_mut(self.size * 3).enumerate() {
            for (column, pixel) in pixels.chunks_exact_mut(3).enumerate() {
                if let (Some(y), Some(x)) = (inside(row, top), inside(column, left)) {
                    let from = (y * inner + x) * 3;
                    pixel.copy_from_slice(&square.rgb[from..from + 3]);
                }
            }
        }
        canvas
    }

    fn to_square(&self, picture: &Picture, place: (f64, f64)) -> Picture {
        let (width, height, size) = (picture.width, picture.height, self.size);
        let scaled = |length: usize, by: usize| ((length as f64 * size as f64 / by as f64).round() as usize).max(1);
        match self.crop {
            Crop::Squash => resize(picture, size, size, self.filter),
            Crop::Pad => {
                let longer = width.max(height);
                let inner = resize(picture, scaled(width, longer).min(size), scaled(height, longer).min(size), self.filter);
                let mut square = Picture::filled(size, size, self.background);
                grid::paste(&mut square, &inner, (size - inner.width) / 2, (size - inner.height) / 2);
                square
            }
            Crop::Centre | Crop::Random => {
                // Cutting before resizing gives the same square and keeps a very long picture from becoming a huge one.
                let shorter = width.min(height);
                let offset = |length: usize, at: f64| (((length - shorter) as f64 * at).round() as usize).min(length - shorter);
                let (left, top) = (offset(width, place.0), offset(height, place.1));
                resize(&cut(picture, left, top, shorter), size, size, self.filter)
            }
        }
    }
}

/// The square of side `side` whose top left corner is (`left`, `top`).
fn cut(picture: &Picture, left: usize, top: usize, side: usize) -> Picture {
    let rows = picture.rgb.chunks_exact(picture.width * 3).skip(top).take(side);
    let rgb = rows.flat_map(|row| row[left * 3..(left + side) * 3].iter().copied()).collect();
    Picture { width: side, height: side, rgb }
}

fn mirror(picture: &mut Picture) {
    for row in picture.rgb.chunks_exact_mut(picture.width * 3) {
        row.reverse();
        row.chunks_exact_mut(3).for_each(|pixel| pixel.reverse());
    }
}

/// In this order: brightness, contrast, saturation. Grey is luma of ITU-R BT.601.
fn change_colours(picture: &mut Picture, brightness: f32, contrast: f32, saturation: f32) {
    let grey = |pixel: &[u8]| 0.299 * pixel[0] as f32 + 0.587 * pixel[1] as f32 + 0.114 * pixel[2] as f32;
    let pixel_count = (picture.width * picture.height) as f32;
    let mean = brightness * picture.rgb.chunks_exact(3).map(|pixel| grey(pixel) as f64).sum::<f64>() as f32 / pixel_count;
    for pixel in picture.rgb.chunks_exact_mut(3) {
        let own_grey = mean + contrast * (brightness * grey(pixel) - mean);
        for value in pixel {
            let contrasted = mean + contrast * (brightness * *value as f32 - mean);
            *value = (own_grey + saturation * (contrasted - own_grey)).round() as u8;
        }
    }
}

#[cfg(test)]
mod tests;
