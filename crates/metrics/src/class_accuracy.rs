//! Class accuracy: does a judge see in the picture the class that was asked for?
//!
//! Zero-shot classification (Radford et al. 2021, 2103.00020, section 3.1): the class whose name has the embedding nearest to the picture's.

use crate::features::cosine;
use crate::{Features, Mean, MetricsError};
use serde::{Deserialize, Serialize};

/// The share of pictures in which the judge sees their class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassAccuracy {
    /// In [0, 1], over the pictures of which a class was asked.
    pub accuracy: Mean,
    /// What a blind judge gets: 1 / number of classes.
    pub chance: f64,
}

/// Row i of `pictures` is of class `asked[i]`, a row of `classes`; pictures of no class do not count. Ties share the point.
pub fn class_accuracy(pictures: &Features, classes: &Features, asked: &[Option<usize>]) -> Result<ClassAccuracy, MetricsError> {
    const METRIC: &str = "class accuracy";
    if pictures.channels() != classes.channels() || pictures.count() != asked.len() {
        let expected = format!("[{}, {}]", asked.len(), classes.channels());
        return Err(MetricsError::shape(METRIC, expected, format!("[{}, {}]", pictures.count(), pictures.channels())));
    }
    if let Some(class) = asked.iter().flatten().find(|&&class| class >= classes.count()) {
        return Err(MetricsError::shape(METRIC, format!("classes below {}", classes.count()), class.to_string()));
    }
    let hits = pictures.rows().zip(asked).filter_map(|(picture, &class)| {
        let cosines: Vec<f64> = classes.rows().map(|name| cosine(picture, name)).collect();
        let own = cosines[class?];
        let better = cosines.iter().any(|&other| other > own);
        let equal = cosines.iter().filter(|&&other| other == own).count();
        Some(if better { 0.0 } else { 1.0 / equal as f64 })
    });
    let accuracy =
        Mean::of(&hits.collect::<Vec<f64>>()).ok_or(MetricsError::TooFew { metric: METRIC, things: "pictures of a class", expected: 1, found: 0 })?;
    Ok(ClassAccuracy { accuracy, chance: 1.0 / classes.count() as f64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_decides() {
        let classes = Features::new(2, vec![1.0, 0.0, 0.0, 1.0]).unwrap();
        // Nearest to the first, to the second, to both alike, to the second.
        let pictures = Features::new(2, vec![3.0, 1.0, 1.0, 3.0, 1.0, 1.0, 0.0, 9.0]).unwrap();
        let found = class_accuracy(&pictures, &classes, &[Some(0), Some(0), Some(1), None]).unwrap();
        assert_eq!((found.accuracy.value, found.accuracy.count, found.chance), (0.5, 3, 0.5));
    }

    #[test]
    fn classes_that_do_not_exist_are_errors() {
        let features = |count: usize| Features::new(1, vec![1.0; count]).unwrap();
        assert_eq!(class_accuracy(&features(1), &features(2), &[Some(2)]).unwrap_err().to_string(), "class accuracy: expected classes below 2, found 2");
        assert!(class_accuracy(&features(1), &features(2), &[None]).is_err());
        assert!(class_accuracy(&features(1), &features(2), &[Some(0), Some(1)]).is_err());
    }
}
