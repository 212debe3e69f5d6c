//! R-precision: can a judge tell from the picture which of N captions it was made for?
//!
//! Xu et al. 2018 (AttnGAN, 1711.10485), section 4.1, with R = 1 and 99 wrong captions: a picture counts when its own caption is nearest among all N.

use crate::features::{check_paired, cosine};
use crate::{Features, Mean, MetricsError};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// AttnGAN's number of candidates.
pub const CANDIDATE_COUNT: usize = 100;

/// The share of pictures whose own caption the judge puts first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RPrecision {
    /// In [0, 1], over the pictures.
    pub precision: Mean,
    /// What a blind judge gets: 1 / candidate_count.
    pub chance: f64,
    /// Captions a picture is compared with, its own included.
    pub candidate_count: usize,
}

/// Row i of `pictures`, row i of `captions` and `texts[i]` belong together; the embeddings are the judge's.
///
/// Each picture meets its own caption and `candidate_count - 1` others, drawn without replacement from the *different* texts that are not its own. Which ones
/// depends only on the texts, the seed and i: generated and real pictures of the same captions meet the same distractors. Ties share the point, so that
/// a judge that cannot tell anything apart gets exactly chance.
pub fn r_precision(pictures: &Features, captions: &Features, texts: &[String], candidate_count: usize, seed: u64) -> Result<RPrecision, MetricsError> {
    const METRIC: &str = "R-precision";
    check_paired(METRIC, pictures, captions)?;
    if texts.len() != captions.count() {
        return Err(MetricsError::shape(METRIC, format!("{} texts, one for each caption", captions.count()), texts.len().to_string()));
    }
    if candidate_count < 2 {
        return Err(MetricsError::TooFew { metric: METRIC, things: "candidates", expected: 2, found: candidate_count });
    }
    // Different texts in a stable order, each with the row of its first occurrence.
    let mut first_rows = BTreeMap::new();
    for (row, text) in texts.iter().enumerate() {
        first_rows.entry(text.as_str()).or_insert(row);
    }
    let distinct: Vec<(&str, usize)> = first_rows.into_iter().collect();
    if distinct.len() < candidate_count {
        return Err(MetricsError::TooFew { metric: METRIC, things: "different captions", expected: candidate_count, found: distinct.len() });
    }
    let hits: Vec<f64> = (0..pictures.count())
        .map(|index| {
            let own = distinct.binary_search_by_key(&texts[index].as_str(), |(text, _)| text).expect("every text is among the different ones");
            let picture = pictures.row(index);
            let score = cosine(picture, captions.row(index));
            let rivals = distractors(distinct.len(), own, candidate_count - 1, seed, index).into_iter().map(|at| cosine(picture, captions.row(distinct[at].1)));
            let (mut better, mut equal) = (0usize, 0usize);
            for rival in rivals {
                better += usize::from(rival > score);
                equal += usize::from(rival == score);
            }
            if better > 0 { 0.0 } else { 1.0 / (1 + equal) as f64 }
        })
        .collect();
    let precision = Mean::of(&hits).ok_or(MetricsError::TooFew { metric: METRIC, things: "pictures", expected: 1, found: 0 })?;
    Ok(RPrecision { precision, chance: 1.0 / candidate_count as f64, candidate_count })
}

/// `wanted` different indices below `count`, none of them `own`, uniformly (the first steps of Fisher and Yates' shuffle). wanted < count.
fn distractors(count: usize, own: usize, wanted: usize, seed: u64, picture: usize) -> Vec<usize> {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream(picture as u64);
    let mut others: Vec<usize> = (0..count).filter(|&index| index != own).collect();
    for place in 0..wanted {
        let chosen = rng.random_range(place..others.len());
        others.swap(place, chosen);
    }
    others.truncate(wanted);
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("caption {index}")).collect()
    }

    /// Row i points along axis i.
    fn axes(count: usize) -> Features {
        Features::new(count, (0..count * count).map(|at| f32::from(at / count == at % count)).collect()).unwrap()
    }

    #[test]
    fn a_perfect_judge_finds_every_caption_and_a_blind_one_gets_chance() {
        let captions = axes(20);
        let perfect = r_precision(&captions, &captions, &texts(20), 10, 1).unwrap();
        assert_eq!((perfect.precision, perfect.chance), (Mean { value: 1.0, standard_error: 0.0, count: 20 }, 0.1));
        let blind = Features::new(20, vec![1.0; 400]).unwrap();
        assert!((r_precision(&blind, &captions, &texts(20), 10, 1).unwrap().precision.value - 0.1).abs() < 1e-12);
    }

    #[test]
    fn unrelated_pictures_score_about_chance() {
        let mut rng = ChaCha12Rng::seed_from_u64(5);
        let mut random = || Features::new(8, (0..8 * 2000).map(|_| rng.random_range(-1.0f32..1.0)).collect()).unwrap();
        let (pictures, captions) = (random(), random());
        let found = r_precision(&pictures, &captions, &texts(2000), 20, 3).unwrap().precision;
        assert!((found.value - 0.05).abs() < 4.0 * found.standard_error, "{found:?}");
        assert!((found.standard_error - (0.05f64 * 0.95 / 2000.0).sqrt()).abs() < 1e-3, "{found:?}");
    }

    #[test]
    fn the_same_text_is_never_a_distractor() {
        // Rows 2i and 2i + 1 share a text and an embedding; if one could be the other's distractor, ties would cost points.
        let doubled = axes(12).select(&(0..24).map(|row| row / 2).collect::<Vec<_>>());
        let texts: Vec<String> = (0..24).map(|row| format!("caption {}", row / 2)).collect();
        assert_eq!(r_precision(&doubled, &doubled, &texts, 12, 0).unwrap().precision.value, 1.0);
        let error = r_precision(&doubled, &doubled, &texts, 13, 0).unwrap_err();
        assert_eq!(error.to_string(), "R-precision: expected at least 13 different captions, found 12");
    }

    #[test]
    fn distractors_are_different_seeded_and_never_the_own_caption() {
        let mut seen = [0; 10];
        for picture in 0..2000 {
            let mut drawn = distractors(10, 4, 5, 9, picture);
            assert_eq!(drawn, distractors(10, 4, 5, 9, picture));
            drawn.iter().for_each(|&index| seen[index] += 1);
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn.len(), 5);
        }
        assert_eq!(seen[4], 0);
        // 2000 * 5 / 9 = 1111 each, standard deviation 22.
        assert!(seen.iter().enumerate().all(|(index, &count)| index == 4 || (1000..1220).contains(&count)), "{seen:?}");
        assert_ne!(distractors(1000, 4, 5, 9, 0), distractors(1000, 4, 5, 10, 0));
    }

    #[test]
    fn misuse_is_an_error() {
        let captions = axes(4);
        assert!(r_precision(&captions, &captions, &texts(3), 2, 0).is_err());
        assert!(r_precision(&captions, &captions, &texts(4), 1, 0).is_err());
        assert!(r_precision(&captions, &axes(5), &texts(5), 2, 0).is_err());
    }
}
