//! CLIP score: how well pictures fit their captions, by the cosine of their embeddings.

use crate::features::{check_paired, cosine};
use crate::{Features, Mean, MetricsError};
use serde::{Deserialize, Serialize};

/// Hessel et al. 2021 (2104.08718), equation 1, scale the cosine by this so that usual scores fill [0, 1].
const SCALE: f64 = 2.5;

/// Both customs of reporting, so that no reader has to guess which one a number follows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipScore {
    /// Mean of 2.5 * max(cosine, 0) over the pairs (Hessel et al. 2021, equation 1 with w = 2.5).
    pub scaled: Mean,
    /// Mean of the plain cosine over the pairs; 100 times this is what many repositories print.
    pub cosine: Mean,
}

/// Row i of `pictures` and row i of `captions` belong together; lengths of rows do not matter.
pub fn clip_score(pictures: &Features, captions: &Features) -> Result<ClipScore, MetricsError> {
    check_paired("CLIP score", pictures, captions)?;
    let cosines: Vec<f64> = pictures.rows().zip(captions.rows()).map(|(picture, caption)| cosine(picture, caption)).collect();
    let scaled: Vec<f64> = cosines.iter().map(|cosine| SCALE * cosine.max(0.0)).collect();
    let none = MetricsError::TooFew { metric: "CLIP score", things: "pairs", expected: 1, found: 0 };
    Mean::of(&scaled).zip(Mean::of(&cosines)).map(|(scaled, cosine)| ClipScore { scaled, cosine }).ok_or(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opposite_pairs_count_zero_in_the_scaled_score_and_minus_one_in_the_cosine() {
        // Cosines 1, 0.6 and -1.
        let pictures = Features::new(2, vec![2.0, 0.0, 3.0, 4.0, 1.0, 0.0]).unwrap();
        let captions = Features::new(2, vec![1.0, 0.0, 1.0, 0.0, -5.0, 0.0]).unwrap();
        let score = clip_score(&pictures, &captions).unwrap();
        assert!((score.scaled.value - (2.5 + 1.5 + 0.0) / 3.0).abs() < 1e-9);
        assert!((score.cosine.value - 0.2).abs() < 1e-9);
        assert_eq!((score.scaled.count, score.cosine.count), (3, 3));
    }

    #[test]
    fn unpaired_rows_are_errors() {
        let features = |count: usize| Features::new(2, vec![1.0; 2 * count]).unwrap();
        assert_eq!(
            clip_score(&features(2), &features(3)).unwrap_err().to_string(),
            "CLIP score: expected two matrices of shape [2, 2], found [3, 2] beside it"
        );
        assert!(clip_score(&features(0), &features(0)).is_err());
    }
}
