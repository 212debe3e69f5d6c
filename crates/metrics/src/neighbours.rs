//! Distances between feature vectors: how many generated pictures look real, how many real ones could have been generated, how different pictures are from
//! each other, and which of very many pictures is the nearest.

use crate::{Features, Mean, MetricsError};
use serde::{Deserialize, Serialize};

/// Neighbours that span the manifold around a picture (Kynkaanniemi et al. 2019, section 3.1).
pub const NEIGHBOUR_COUNT: usize = 3;

/// Improved precision and recall of Kynkaanniemi et al. 2019 (1904.06991), equations 1 and 2. Both depend on the counts of both sets: compare them only at
/// equal counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecisionRecall {
    /// Share of the pictures that lie within the manifold of the reference: fidelity.
    pub precision: Mean,
    /// Share of the reference that lies within the manifold of the pictures: variety.
    pub recall: Mean,
    /// The k of the k nearest neighbours.
    pub neighbour_count: usize,
}

/// A vector lies within the manifold of a set when, for any member, it is no farther away than that member's k-th nearest neighbour in the set (itself apart).
///
/// Takes about (pictures + reference)^2 x channels operations and no memory to speak of. Sets of `neighbour_count` and fewer are errors.
pub fn precision_recall(pictures: &Features, reference: &Features, neighbour_count: usize) -> Result<PrecisionRecall, MetricsError> {
    const METRIC: &str = "precision and recall";
    if pictures.channels() != reference.channels() {
        return Err(MetricsError::shape(METRIC, format!("{} channels", reference.channels()), pictures.channels().to_string()));
    }
    if neighbour_count == 0 {
        return Err(MetricsError::TooFew { metric: METRIC, things: "neighbours", expected: 1, found: 0 });
    }
    let found = pictures.count().min(reference.count());
    if found <= neighbour_count {
        return Err(MetricsError::TooFew { metric: METRIC, things: "feature vectors", expected: neighbour_count + 1, found });
    }
    let share = |of: &Features, within: &Features| {
        let radii = squared_radii(within, neighbour_count);
        let hits: Vec<f64> = of
            .rows()
            .map(|vector| f64::from(u8::from(within.rows().zip(&radii).any(|(centre, &radius)| squared_distance(vector, centre) <= radius))))
            .collect();
        Mean::of(&hits).ok_or(MetricsError::TooFew { metric: METRIC, things: "feature vectors", expected: 1, found: 0 })
    };
    Ok(PrecisionRecall { precision: share(pictures, reference)?, recall: share(reference, pictures)?, neighbour_count })
}

/// For each vector the squared distance to the k-th nearest of the others.
fn squared_radii(features: &Features, neighbour_count: usize) -> Vec<f64> {
    (0..features.count())
        .map(|own| {
            let others = (0..features.count()).filter(|&other| other != own);
            let mut distances: Vec<f64> = others.map(|other| squared_distance(features.row(own), features.row(other))).collect();
            *distances.select_nth_unstable_by(neighbour_count - 1, f64::total_cmp).1
        })
        .collect()
}

/// How different the pictures of a set are from each other: the mean distance of all pairs.
///
/// Pairs share pictures, so the standard error is that of a U-statistic of two arguments (Hoeffding 1948): twice that of the means of each picture's distances.
pub fn diversity(features: &Features) -> Result<Mean, MetricsError> {
    let count = features.count();
    if count < 2 {
        return Err(MetricsError::TooFew { metric: "diversity", things: "feature vectors", expected: 2, found: count });
    }
    let mut sums = vec![0.0; count];
    for left in 0..count {
        for right in 0..left {
            let distance = squared_distance(features.row(left), features.row(right)).sqrt();
            sums[left] += distance;
            sums[right] += distance;
        }
    }
    sums.iter_mut().for_each(|sum| *sum /= (count - 1) as f64);
    let none = MetricsError::TooFew { metric: "diversity", things: "feature vectors", expected: 2, found: count };
    Mean::of(&sums).map(|mean| Mean { standard_error: 2.0 * mean.standard_error, ..mean }).ok_or(none)
}

/// The nearest vector of a stream, for each of some vectors; no more of the stream is held than is handed over at once.
#[derive(Clone, Debug)]
pub struct Nearest {
    of: Features,
    found: Vec<Option<Neighbour>>,
    seen_count: usize,
}

/// A member of the stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Its place in the stream.
    pub index: usize,
    pub squared_distance: f64,
}

impl Nearest {
    pub fn new(of: Features) -> Self {
        let found = vec![None; of.count()];
        Self { of, found, seen_count: 0 }
    }

    /// The next vectors of the stream. Of equally near ones the first counts.
    pub fn add(&mut self, next: &Features) -> Result<(), MetricsError> {
        if next.channels() != self.of.channels() {
            return Err(MetricsError::shape("nearest neighbours", format!("{} channels", self.of.channels()), next.channels().to_string()));
        }
        for vector in next.rows() {
            for (own, found) in self.of.rows().zip(&mut self.found) {
                let limit = found.map_or(f64::INFINITY, |found| found.squared_distance);
                if let Some(squared_distance) = squared_distance_below(own, vector, limit) {
                    *found = Some(Neighbour { index: self.seen_count, squared_distance });
                }
            }
            self.seen_count += 1;
        }
        Ok(())
    }

    /// One for each vector; nothing when the stream was empty.
    pub fn finish(self) -> Option<Vec<Neighbour>> {
        self.found.into_iter().collect()
    }
}

/// In f64, in the order of the channels.
fn squared_distance(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

/// The same, given up as soon as it cannot be below `limit`: most vectors of a stream are soon seen to be far away.
fn squared_distance_below(left: &[f32], right: &[f32], limit: f64) -> Option<f64> {
    const CHUNK: usize = 256;
    let mut sum = 0.0;
    for (left, right) in left.chunks(CHUNK).zip(right.chunks(CHUNK)) {
        sum += squared_distance(left, right);
        if sum >= limit {
            return None;
        }
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(places: &[f32]) -> Features {
        Features::new(1, places.to_vec()).unwrap()
    }

    /// By hand, on a line with k = 1. Reference 0, 1, 3, 10 has radii 1, 1, 2, 7, so it covers [-1, 2], [1, 5] and [3, 17]: all of -1 to 17. Of the pictures
    /// -2, -1, 6, 18 the second and third lie within. Pictures have radii 1, 1, 7, 12: they cover [-3, 0], [-1, 13] and [6, 30]: everything.
    #[test]
    fn a_case_computed_by_hand() {
        let found = precision_recall(&line(&[-2.0, -1.0, 6.0, 18.0]), &line(&[0.0, 1.0, 3.0, 10.0]), 1).unwrap();
        assert_eq!((found.precision.value, found.recall.value, found.neighbour_count), (0.5, 1.0, 1));
        // The other way round, the figures change places.
        let swapped = precision_recall(&line(&[0.0, 1.0, 3.0, 10.0]), &line(&[-2.0, -1.0, 6.0, 18.0]), 1).unwrap();
        assert_eq!((swapped.precision, swapped.recall), (found.recall, found.precision));
    }

    /// With k = 2 a reference of 0, 1, 3, 10 has radii 3, 2, 3, 9, and -2 lies within that of 0; with k = 3 radii are 10, 9, 7, 10.
    #[test]
    fn more_neighbours_widen_the_manifold() {
        let (pictures, reference) = (line(&[-2.0, -5.0, 21.0, -9.5]), line(&[0.0, 1.0, 3.0, 10.0]));
        let precision = |k| precision_recall(&pictures, &reference, k).unwrap().precision.value;
        assert_eq!([1, 2, 3].map(precision), [0.0, 0.25, 0.75]);
    }

    /// Fidelity without variety, and the other way round.
    #[test]
    fn one_picture_again_and_again_is_precise_and_recalls_nothing() {
        let reference = line(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let same = precision_recall(&line(&[2.5; 6]), &reference, 3).unwrap();
        assert_eq!((same.precision.value, same.recall.value), (1.0, 0.0));
        let wild = precision_recall(&line(&[-100.0, -50.0, 2.5, 60.0, 100.0, 200.0]), &reference, 3).unwrap();
        assert!(wild.precision.value < 0.2 && wild.recall.value == 1.0, "{wild:?}");
    }

    #[test]
    fn distances_of_pairs() {
        // 0, 3, 4: pairs 3, 4, 1; each picture's mean 3.5, 2, 2.5.
        let mean = diversity(&line(&[0.0, 3.0, 4.0])).unwrap();
        let spread: f64 = [3.5f64, 2.0, 2.5].iter().map(|one| (one - 8.0 / 3.0).powi(2)).sum();
        assert!((mean.value - 8.0 / 3.0).abs() < 1e-12 && (mean.standard_error - 2.0 * (spread / 2.0 / 3.0).sqrt()).abs() < 1e-12, "{mean:?}");
        assert_eq!(diversity(&line(&[7.0; 5])).unwrap().value, 0.0);
    }

    #[test]
    fn what_cannot_be_measured_is_an_error() {
        let (few, wide) = (line(&[1.0, 2.0, 3.0]), Features::new(2, vec![0.0; 8]).unwrap());
        assert_eq!(precision_recall(&few, &line(&[0.0; 4]), 3).unwrap_err().to_string(), "precision and recall: expected at least 4 feature vectors, found 3");
        assert!(precision_recall(&wide, &line(&[0.0; 4]), 1).is_err() && precision_recall(&few, &few, 0).is_err());
        assert!(diversity(&line(&[1.0])).is_err());
        assert!(Nearest::new(few).add(&wide).is_err());
        assert_eq!(Nearest::new(line(&[1.0])).finish(), None);
    }

    proptest! {
        /// Streaming in pieces of any size finds what looking at everything finds, ties included.
        #[test]
        fn the_nearest_of_a_stream(of in prop::collection::vec(-5i8..5, 1..6), stream in prop::collection::vec(-5i8..5, 1..40), piece in 1usize..9) {
            let rows = |values: &[i8]| Features::new(2, values.iter().flat_map(|&value| [f32::from(value), 1.0]).collect()).unwrap();
            let mut nearest = Nearest::new(rows(&of));
            for piece in stream.chunks(piece) {
                nearest.add(&rows(piece)).unwrap();
            }
            for (own, found) in of.iter().zip(nearest.finish().unwrap()) {
                let distances: Vec<f64> = stream.iter().map(|other| (f64::from(*own) - f64::from(*other)).powi(2)).collect();
                let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
                prop_assert_eq!((found.index, found.squared_distance), (distances.iter().position(|&one| one == least).unwrap(), least));
            }
        }
    }
}
