//! Composition: does a doll wear what was asked for, attribute by attribute?
//!
//! The parts are known exactly, so no network has to judge: a value came out right when the doll composed with it, all else as asked, is nearer to the
//! picture (squared error over pixels) than the doll composed with any other value of that attribute, its absence included.

use crate::{Mean, MetricsError};
use serde::{Deserialize, Serialize};
use smalti_data::Picture;
use smalti_data::dolls::{Doll, Parts};

/// Over dolls of one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Composition {
    pub attributes: Vec<AttributeRate>,
    /// The share of dolls with every visible attribute right.
    pub whole: Mean,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeRate {
    pub name: String,
    /// The share of dolls that wear what was asked for, among those where another value would look different.
    pub right: Mean,
    /// What a blind guess gets.
    pub chance: f64,
}

/// Counts one doll after the other.
#[derive(Clone, Debug)]
pub struct CompositionMeter<'a> {
    parts: &'a Parts,
    /// 1 for right, 0 for wrong, by attribute.
    right: Vec<Vec<f64>>,
    whole: Vec<f64>,
}

impl<'a> CompositionMeter<'a> {
    pub fn new(parts: &'a Parts) -> Self {
        Self { parts, right: vec![Vec::new(); parts.attributes.len()], whole: Vec::new() }
    }

    /// `picture` was drawn for `asked`; it must have the size of the parts' pictures.
    pub fn add(&mut self, picture: &Picture, asked: &Doll) -> Result<(), MetricsError> {
        let size = self.parts.size();
        if (picture.width, picture.height) != (size, size) {
            let found = format!("{}x{}", picture.width, picture.height);
            return Err(MetricsError::shape("composition", format!("a picture of {size}x{size} pixels"), found));
        }
        let found: Vec<Option<bool>> = (0..self.parts.attributes.len()).map(|attribute| self.came_out(picture, asked, attribute)).collect();
        for (rates, right) in self.right.iter_mut().zip(&found) {
            rates.extend(right.map(f64::from));
        }
        self.whole.push(f64::from(found.iter().all(|right| *right != Some(false))));
        Ok(())
    }

    /// `None` where every other value would look the same, as a cloak under a wide robe.
    fn came_out(&self, picture: &Picture, asked: &Doll, attribute: usize) -> Option<bool> {
        let own = self.parts.compose(asked);
        let distance = |doll: &Picture| doll.rgb.iter().zip(&picture.rgb).map(|(one, other)| u64::from(one.abs_diff(*other)).pow(2)).sum::<u64>();
        let own_distance = distance(&own);
        let absent = self.parts.attributes[attribute].may_be_absent.then_some(None);
        let values = (0..self.parts.attributes[attribute].values.len()).map(Some).chain(absent);
        let others = values.map(|value| {
            let mut doll = asked.clone();
            doll.0[attribute] = value;
            self.parts.compose(&doll)
        });
        // Least of those that differ from what was asked for.
        let nearest = others.filter(|other| *other != own).map(|other| distance(&other)).min()?;
        Some(own_distance < nearest)
    }

    /// At least one doll.
    pub fn finish(&self) -> Result<Composition, MetricsError> {
        let whole = Mean::of(&self.whole).ok_or(MetricsError::TooFew { metric: "composition", things: "dolls", expected: 1, found: 0 })?;
        let rates = self.parts.attributes.iter().zip(&self.right).filter_map(|(attribute, right)| {
            let chance = 1.0 / (attribute.values.len() + usize::from(attribute.may_be_absent)) as f64;
            Some(AttributeRate { name: attribute.name.clone(), right: Mean::of(right)?, chance })
        });
        Ok(Composition { attributes: rates.collect(), whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use image::{ImageFormat, Rgba, RgbaImage};
    use smalti_data::dolls::Encoded;

    /// A 4x4 part that fills one row.
    fn row(row: u32, colour: [u8; 3]) -> Vec<u8> {
        let mut picture = RgbaImage::new(4, 4);
        (0..4).for_each(|x| picture.put_pixel(x, row, Rgba([colour[0], colour[1], colour[2], 255])));
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    /// A cloak under the coat, which covers it, and a hat that may be absent.
    fn parts() -> Parts {
        let attribute = |name: &str, may_be_absent, at: u32| -> Encoded {
            let colours = [("red", [200, 0, 0]), ("green", [0, 200, 0]), ("blue", [0, 0, 200])];
            (name.to_string(), may_be_absent, colours.map(|(word, colour)| (format!("{word} {name}"), row(at, colour))).to_vec())
        };
        Parts::new(4, [255; 3], vec![attribute("cloak", false, 1), attribute("coat", false, 1), attribute("hat", true, 0)]).unwrap()
    }

    #[test]
    fn what_is_worn_is_told_by_the_nearest_composition() {
        let parts = parts();
        let asked = Doll(vec![Some(0), Some(1), Some(2)]);
        let mut meter = CompositionMeter::new(&parts);
        // As asked, but for a little noise; then a coat of the wrong colour; then no hat.
        let mut noisy = parts.compose(&asked);
        noisy.rgb.iter_mut().enumerate().for_each(|(place, value)| *value = value.saturating_add((place % 30) as u8));
        meter.add(&noisy, &asked).unwrap();
        meter.add(&parts.compose(&Doll(vec![Some(0), Some(0), Some(2)])), &asked).unwrap();
        meter.add(&parts.compose(&Doll(vec![Some(0), Some(1), None])), &asked).unwrap();
        meter.add(&parts.compose(&asked), &asked).unwrap();
        let composition = meter.finish().unwrap();
        let rates: Vec<(&str, f64, usize)> = composition.attributes.iter().map(|rate| (rate.name.as_str(), rate.right.value, rate.right.count)).collect();
        // The covered cloak counts nowhere.
        assert_eq!(rates, [("coat", 0.75, 4), ("hat", 0.75, 4)]);
        assert_eq!(composition.attributes[1].chance, 0.25);
        assert_eq!(composition.whole.value, 0.5);
    }

    #[test]
    fn a_grey_picture_and_an_asked_absence_are_told() {
        let parts = parts();
        let bare = Doll(vec![Some(0), Some(1), None]);
        let mut meter = CompositionMeter::new(&parts);
        meter.add(&parts.compose(&bare), &bare).unwrap();
        assert_eq!(meter.finish().unwrap().whole.value, 1.0);
        // Equally far from every colour: nothing is nearest, so nothing came out.
        meter.add(&Picture::filled(4, 4, [100; 3]), &Doll(vec![Some(0), Some(1), Some(0)])).unwrap();
        assert_eq!(meter.finish().unwrap().whole.value, 0.5);
        assert!(meter.add(&Picture::filled(8, 8, [0; 3]), &bare).unwrap_err().to_string().contains("4x4"));
        assert!(CompositionMeter::new(&parts).finish().unwrap_err().to_string().contains("dolls"));
    }
}
