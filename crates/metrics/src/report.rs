//! What `evaluate` finds: every figure of the generated pictures beside the same figure of the real ones.

use crate::frechet::{Conventions, halves};
use crate::{Bootstrap, ClipScore, CodebookUsage, Features, FrechetDistance, MetricsError, RPrecision, Reconstruction};
use crate::{clip_score, frechet_distance_with_interval, r_precision};
use serde::{Deserialize, Serialize};
use std::fmt;

/// All figures of one bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Identity of the bundle that made the pictures.
    pub bundle: String,
    /// The CLIP of R-precision and CLIP score; it must not have ranked the pictures.
    pub judge: String,
    /// What products computed in: f32 or bf16. Reports from before there was a choice say nothing, and were f32.
    #[serde(default = "f32_precision")]
    pub precision: String,
    pub splits: Vec<SplitReport>,
}

fn f32_precision() -> String {
    "f32".to_string()
}

/// The figures on one split of the data, such as `pairs` or `concepts`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitReport {
    pub split: String,
    pub generation: Generation,
    /// Conventions of the Frechet distances of `generation`.
    pub conventions: Conventions,
    pub reconstruction: Option<Reconstruction>,
    pub codebook: Option<CodebookUsage>,
}

/// How well generated pictures fit their captions and resemble real ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    pub r_precision: BesideReal<RPrecision>,
    pub clip_score: BesideReal<ClipScore>,
    /// All generated pictures against all real ones.
    pub frechet: FrechetDistance,
    /// Half of the pictures against the *other* half of the real ones: the real figure is the floor, and both have the same count and reference.
    pub frechet_half: BesideReal<FrechetDistance>,
}

/// The same figure of both sets of pictures for the same captions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BesideReal<T> {
    pub generated: T,
    pub real: T,
}

/// Row i of everything belongs to caption i.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    pub texts: &'a [String],
    /// The judge's embeddings of captions, generated pictures and real pictures.
    pub captions: &'a Features,
    pub judged: BesideReal<&'a Features>,
    /// The feature network's vectors for the Frechet distance.
    pub features: BesideReal<&'a Features>,
}

/// What is drawn at random, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasureOptions {
    /// Captions each picture meets in R-precision.
    pub candidate_count: usize,
    pub resample_count: usize,
    pub seed: u64,
}

impl Default for MeasureOptions {
    fn default() -> Self {
        Self { candidate_count: r_precision::CANDIDATE_COUNT, resample_count: Bootstrap::default().resample_count, seed: 0 }
    }
}

impl Generation {
    /// At least four captions, and at least `candidate_count` different ones.
    pub fn measure(evidence: Evidence, options: MeasureOptions) -> Result<Self, MetricsError> {
        let Evidence { texts, captions, judged, features } = evidence;
        let MeasureOptions { candidate_count, resample_count, seed } = options;
        let bootstrap = Bootstrap { resample_count, seed };
        let count = captions.count();
        for features in [features.generated, features.real] {
            if features.count() != count {
                return Err(MetricsError::shape("evaluation", format!("{count} feature vectors, one for each caption"), features.count().to_string()));
            }
        }
        let (one, other) = halves(count, seed);
        let other_real = features.real.select(&other);
        Ok(Self {
            r_precision: judged.measure(|pictures| r_precision(pictures, captions, texts, candidate_count, seed))?,
            clip_score: judged.measure(|pictures| clip_score(pictures, captions))?,
            frechet: frechet_distance_with_interval(features.generated, features.real, bootstrap)?,
            frechet_half: features.measure(|pictures| frechet_distance_with_interval(&pictures.select(&one), &other_real, bootstrap))?,
        })
    }
}

impl BesideReal<&Features> {
    fn measure<T>(&self, figure: impl Fn(&Features) -> Result<T, MetricsError>) -> Result<BesideReal<T>, MetricsError> {
        Ok(BesideReal { generated: figure(self.generated)?, real: figure(self.real)? })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { bundle, judge, precision, splits } = self;
        write!(f, "bundle: {bundle}\njudge:  {judge}\nprecision: {precision}")?;
        splits.iter().try_for_each(|split| write!(f, "\n\n{split}"))
    }
}

impl fmt::Display for SplitReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Generation { r_precision, clip_score, frechet, frechet_half } = &self.generation;
        let mut row = |name: &str, generated: &dyn fmt::Display, real: &dyn fmt::Display, chance: &str| {
            // Padding applies to strings, not to what an arbitrary value displays.
            let line = format!("{name:<28}{:<46}{:<46}{chance}", generated.to_string(), real.to_string());
            writeln!(f, "{}", line.trim_end())
        };
        row(&self.split, &"generated", &"real", "chance")?;
        let name = format!("R-precision@1 of {}", r_precision.generated.candidate_count);
        row(&name, &r_precision.generated.precision, &r_precision.real.precision, &format!("{:.4}", r_precision.generated.chance))?;
        row("CLIP score 2.5 max(cos, 0)", &clip_score.generated.scaled, &clip_score.real.scaled, "")?;
        row("cosine", &clip_score.generated.cosine, &clip_score.real.cosine, "")?;
        row("Frechet distance", frechet, &"-", "")?;
        row("Frechet distance, halves", &frechet_half.generated, &frechet_half.real, "")?;
        if let Some(Reconstruction { psnr, ssim, lpips }) = &self.reconstruction {
            let or_none = |mean: &Option<crate::Mean>| mean.map_or("-".to_string(), |mean| mean.to_string());
            row("PSNR of reconstruction, dB", &or_none(psnr), &"-", "")?;
            row("SSIM of reconstruction", ssim, &"-", "")?;
            row("LPIPS of reconstruction", &or_none(lpips), &"-", "")?;
        }
        if let Some(CodebookUsage { codebook_size, usage, perplexity, .. }) = &self.codebook {
            row("codebook usage", &format!("{:.1} % of {codebook_size}, perplexity {perplexity:.1}", 100.0 * usage), &"-", "")?;
        }
        write!(f, "{}", self.conventions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha12Rng;

    /// Captions at random; real pictures near them, generated ones less near and shifted.
    fn evidence(count: usize) -> (Vec<String>, [Features; 3]) {
        let mut rng = ChaCha12Rng::seed_from_u64(1);
        let captions: Vec<f32> = (0..count * 8).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        let mut near = |noise: f32, shift: f32| captions.iter().map(|value| value + shift + noise * rng.random_range(-1.0f32..1.0)).collect::<Vec<f32>>();
        let (real, generated) = (near(0.3, 0.0), near(0.8, 0.3));
        let texts = (0..count).map(|index| format!("caption {index}")).collect();
        (texts, [captions, real, generated].map(|values| Features::new(8, values).unwrap()))
    }

    fn report() -> Report {
        let (texts, [captions, real, generated]) = evidence(60);
        let judged = BesideReal { generated: &generated, real: &real };
        let options = MeasureOptions { candidate_count: 10, resample_count: 20, seed: 1 };
        let generation = Generation::measure(Evidence { texts: &texts, captions: &captions, judged, features: judged }, options).unwrap();
        let conventions = Conventions {
            feature_network: "judge".into(),
            resize: "64 x 64".into(),
            normalisation: "[-1, 1]".into(),
            reference: "real pictures of pairs".into(),
        };
        let mut counts = crate::CodeCounts::new(16);
        counts.add(&[0, 1, 2, 3]).unwrap();
        let codebook = Some(counts.usage().unwrap());
        let split = SplitReport { split: "pairs".into(), generation, conventions, reconstruction: None, codebook };
        Report { bundle: "test".into(), judge: "judge".into(), precision: f32_precision(), splits: vec![split] }
    }

    #[test]
    fn real_pictures_set_the_mark() {
        let Generation { r_precision, clip_score, frechet_half, frechet } = report().splits[0].generation;
        assert!(r_precision.real.precision.value > r_precision.generated.precision.value);
        assert!(r_precision.generated.precision.value > 2.0 * r_precision.generated.chance);
        assert!(clip_score.real.cosine.value > clip_score.generated.cosine.value);
        assert!(frechet_half.real.distance < frechet_half.generated.distance);
        assert_eq!((frechet.picture_count, frechet_half.real.picture_count, frechet_half.generated.reference_count), (60, 30, 30));
    }

    #[test]
    fn the_table_names_every_figure_and_its_conventions() {
        let table = report().to_string();
        for part in ["pairs", "R-precision@1 of 10", "0.1000", "CLIP score", "Frechet distance, halves", "(60 against 60)", "25.0 % of 16, perplexity 4.0"] {
            assert!(table.contains(part), "`{part}` is missing in\n{table}");
        }
        assert!(table.ends_with("features: judge; resize: 64 x 64; normalisation: [-1, 1]; reference: real pictures of pairs"), "{table}");
        assert!(table.lines().all(|line| line == line.trim_end()));
    }

    #[test]
    fn unequal_counts_are_errors() {
        let (texts, [captions, real, generated]) = evidence(20);
        let judged = BesideReal { generated: &generated, real: &real };
        let fewer = generated.select(&[0, 1, 2]);
        let evidence = Evidence { texts: &texts, captions: &captions, judged, features: BesideReal { generated: &fewer, real: &real } };
        let error = Generation::measure(evidence, MeasureOptions { candidate_count: 5, ..MeasureOptions::default() }).unwrap_err();
        assert_eq!(error.to_string(), "evaluation: expected 20 feature vectors, one for each caption, found 3");
        assert!(Generation::measure(Evidence { features: judged, ..evidence }, MeasureOptions::default()).is_err(), "20 captions, 100 candidates");
    }
}
