//! What `evaluate` finds: every figure of the generated pictures beside the same figure of the real ones.

use crate::composition::AttributeRate;
use crate::frechet::{Conventions, halves};
use crate::neighbours::NEIGHBOUR_COUNT;
use crate::{
    Bootstrap, ClassAccuracy, ClipScore, CodebookUsage, Composition, Features, Figure, FrechetDistance, Mean, MetricsError, PrecisionRecall, RPrecision,
    Reconstruction,
};
use crate::{class_accuracy, clip_score, diversity, frechet_distance_with_interval, precision_recall, r_precision};
use serde::{Deserialize, Serialize};
use std::fmt;

/// All figures of one bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Identity of the bundle that made the pictures.
    pub bundle: String,
    /// The CLIP of R-precision, CLIP score and class accuracy; it must not have ranked the pictures.
    pub judge: Option<String>,
    /// What products computed in: f32 or bf16. Reports from before there was a choice say nothing, and were f32.
    #[serde(default = "f32_precision")]
    pub precision: String,
    #[serde(default)]
    pub pictures: PictureKind,
    pub splits: Vec<SplitReport>,
}

fn f32_precision() -> String {
    "f32".to_string()
}

/// Which pictures are compared with real ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureKind {
    #[default]
    Generated,
    /// The real ones through an image tokenizer and back, of bundles that have no generator.
    Reconstructed,
}

impl PictureKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::Reconstructed => "reconstructed",
        }
    }
}

/// The figures on one split of the data, such as `pairs` or `concepts`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitReport {
    pub split: String,
    pub generation: Generation,
    /// Of data sets of dolls.
    #[serde(default)]
    pub composition: Option<Composition>,
    /// Conventions of the Frechet distances of `generation`.
    pub conventions: Conventions,
    pub reconstruction: Option<Reconstruction>,
    pub codebook: Option<CodebookUsage>,
}

/// How well generated pictures show what was asked for, and how they resemble real ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Of bundles that read captions, where there is a judge.
    pub r_precision: Option<BesideReal<RPrecision>>,
    pub clip_score: Option<BesideReal<ClipScore>>,
    /// Of bundles that draw classes, where there is a judge.
    pub class_accuracy: Option<BesideReal<ClassAccuracy>>,
    /// All generated pictures against all real ones.
    pub frechet: FrechetDistance,
    /// Half of the pictures against the *other* half of the real ones: the real figure is the floor, and both have the same count and reference.
    pub frechet_half: BesideReal<FrechetDistance>,
    /// All generated pictures against all real ones.
    pub precision_recall: PrecisionRecall,
    /// Halves as of the Frechet distance: the real figure is the ceiling.
    pub precision_recall_half: BesideReal<PrecisionRecall>,
    /// Mean distance of two pictures.
    pub diversity: BesideReal<Mean>,
}

/// The same figure of both sets of pictures for the same captions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BesideReal<T> {
    pub generated: T,
    pub real: T,
}

/// Row i of everything belongs together.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What was asked for, and the judge's embeddings of the pictures; nothing where nobody asked or nobody judges.
    pub judged: Option<(Asked<'a>, BesideReal<&'a Features>)>,
    /// The feature network's vectors for distances.
    pub features: BesideReal<&'a Features>,
}

/// What the pictures were to show.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// A caption each, and the judge's embedding of each.
    Captions { texts: &'a [String], embeddings: &'a Features },
    /// A class each, or any; and the judge's embedding of each class's name.
    Classes { asked: &'a [Option<usize>], names: &'a Features },
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
    /// At least four pictures, and at least `candidate_count` different captions where there are captions.
    pub fn measure(evidence: Evidence, options: MeasureOptions) -> Result<Self, MetricsError> {
        let Evidence { judged, features } = evidence;
        let MeasureOptions { candidate_count, resample_count, seed } = options;
        let bootstrap = Bootstrap { resample_count, seed };
        let count = features.real.count();
        if features.generated.count() != count {
            return Err(MetricsError::shape("evaluation", format!("{count} feature vectors, as of real pictures"), features.generated.count().to_string()));
        }
        let (one, other) = halves(count, seed);
        let other_real = features.real.select(&other);
        let neighbours = |count: usize| NEIGHBOUR_COUNT.min(count.saturating_sub(1));
        let (mut r_precisions, mut clip_scores, mut class_accuracies) = (None, None, None);
        match judged {
            Some((Asked::Captions { texts, embeddings }, pictures)) => {
                r_precisions = Some(pictures.measure(|pictures| r_precision(pictures, embeddings, texts, candidate_count, seed))?);
                clip_scores = Some(pictures.measure(|pictures| clip_score(pictures, embeddings))?);
            }
            Some((Asked::Classes { asked, names }, pictures)) if asked.iter().any(Option::is_some) => {
                class_accuracies = Some(pictures.measure(|pictures| class_accuracy(pictures, names, asked))?);
            }
            _ => {}
        }
        Ok(Self {
            r_precision: r_precisions,
            clip_score: clip_scores,
            class_accuracy: class_accuracies,
            frechet: frechet_distance_with_interval(features.generated, features.real, bootstrap)?,
            frechet_half: features.measure(|pictures| frechet_distance_with_interval(&pictures.select(&one), &other_real, bootstrap))?,
            precision_recall: precision_recall(features.generated, features.real, neighbours(count))?,
            precision_recall_half: features.measure(|pictures| precision_recall(&pictures.select(&one), &other_real, neighbours(other.len())))?,
            diversity: features.measure(diversity)?,
        })
    }

    /// What a sweep compares: of the same counts, so that every difference is one of drawing.
    pub fn figures(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        figures.extend(self.r_precision.map(|both| Figure::of_share("r_precision", both.generated.precision).beside(both.real.precision)));
        figures.extend(self.clip_score.map(|both| Figure::of_mean("clip_score", both.generated.scaled).beside(both.real.scaled)));
        figures.extend(self.class_accuracy.map(|both| Figure::of_share("class_accuracy", both.generated.accuracy).beside(both.real.accuracy)));
        let FrechetDistance { distance, interval: (low, high), .. } = self.frechet;
        figures.push(Figure::new("frechet_distance", distance, (low, high)));
        figures.push(Figure::of_share("precision", self.precision_recall.precision));
        figures.push(Figure::of_share("recall", self.precision_recall.recall));
        figures.push(Figure::of_mean("diversity", self.diversity.generated).beside(self.diversity.real));
        figures
    }
}

impl BesideReal<&Features> {
    fn measure<T>(&self, figure: impl Fn(&Features) -> Result<T, MetricsError>) -> Result<BesideReal<T>, MetricsError> {
        Ok(BesideReal { generated: figure(self.generated)?, real: figure(self.real)? })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { bundle, judge, precision, pictures, splits } = self;
        write!(f, "bundle: {bundle}\njudge:  {}\nprecision: {precision}", judge.as_deref().unwrap_or("none"))?;
        for split in splits {
            write!(f, "\n\n")?;
            split.write(*pictures, f)?;
        }
        Ok(())
    }
}

impl SplitReport {
    fn write(&self, pictures: PictureKind, f: &mut fmt::Formatter) -> fmt::Result {
        let Generation { r_precision, clip_score, class_accuracy, frechet, frechet_half, precision_recall, precision_recall_half, diversity } =
            &self.generation;
        let mut row = |name: &str, generated: &dyn fmt::Display, real: &dyn fmt::Display, chance: &str| {
            // Padding applies to strings, not to what an arbitrary value displays.
            let line = format!("{name:<28}{:<46}{:<46}{chance}", generated.to_string(), real.to_string());
            writeln!(f, "{}", line.trim_end())
        };
        row(&self.split, &pictures.name(), &"real", "chance")?;
        if let Some(BesideReal { generated, real }) = r_precision {
            let name = format!("R-precision@1 of {}", generated.candidate_count);
            row(&name, &generated.precision, &real.precision, &format!("{:.4}", generated.chance))?;
        }
        if let Some(BesideReal { generated, real }) = clip_score {
            row("CLIP score 2.5 max(cos, 0)", &generated.scaled, &real.scaled, "")?;
            row("cosine", &generated.cosine, &real.cosine, "")?;
        }
        if let Some(BesideReal { generated, real }) = class_accuracy {
            row("class accuracy", &generated.accuracy, &real.accuracy, &format!("{:.4}", generated.chance))?;
        }
        row("Frechet distance", frechet, &"-", "")?;
        row("Frechet distance, halves", &frechet_half.generated, &frechet_half.real, "")?;
        let PrecisionRecall { precision, recall, neighbour_count } = precision_recall;
        row(&format!("precision, k = {neighbour_count}"), precision, &"-", "")?;
        row(&format!("recall, k = {neighbour_count}"), recall, &"-", "")?;
        let BesideReal { generated, real } = precision_recall_half;
        row("precision, halves", &generated.precision, &real.precision, "")?;
        row("recall, halves", &generated.recall, &real.recall, "")?;
        row("mean distance of two", &diversity.generated, &diversity.real, "")?;
        if let Some(Composition { attributes, whole }) = &self.composition {
            for AttributeRate { name, right, chance } in attributes {
                row(&format!("{name} as asked"), right, &"1", &format!("{chance:.4}"))?;
            }
            row("all of it as asked", whole, &"1", "")?;
        }
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
        let asked = Asked::Captions { texts: &texts, embeddings: &captions };
        let generation = Generation::measure(Evidence { judged: Some((asked, judged)), features: judged }, options).unwrap();
        let conventions = Conventions {
            feature_network: "judge".into(),
            resize: "64 x 64".into(),
            normalisation: "[-1, 1]".into(),
            reference: "real pictures of pairs".into(),
        };
        let mut counts = crate::CodeCounts::new(16);
        counts.add(&[0, 1, 2, 3]).unwrap();
        let codebook = Some(counts.usage().unwrap());
        let split = SplitReport { split: "pairs".into(), generation, composition: None, conventions, reconstruction: None, codebook };
        Report { bundle: "test".into(), judge: Some("judge".into()), precision: f32_precision(), pictures: PictureKind::Generated, splits: vec![split] }
    }

    #[test]
    fn real_pictures_set_the_mark() {
        let generation = report().splits[0].generation;
        let Generation { frechet_half, frechet, precision_recall_half, diversity, class_accuracy, .. } = generation;
        let (r_precision, clip_score) = (generation.r_precision.unwrap(), generation.clip_score.unwrap());
        assert!(r_precision.real.precision.value > r_precision.generated.precision.value);
        assert!(r_precision.generated.precision.value > 2.0 * r_precision.generated.chance);
        assert!(clip_score.real.cosine.value > clip_score.generated.cosine.value);
        assert!(frechet_half.real.distance < frechet_half.generated.distance);
        assert!(precision_recall_half.real.recall.value > precision_recall_half.generated.recall.value);
        assert!(diversity.generated.value > 0.0 && class_accuracy.is_none());
        assert_eq!((frechet.picture_count, frechet_half.real.picture_count, frechet_half.generated.reference_count), (60, 30, 30));
    }

    #[test]
    fn the_table_names_every_figure_and_its_conventions() {
        let table = report().to_string();
        for part in ["pairs", "R-precision@1 of 10", "0.1000", "CLIP score", "Frechet distance, halves", "(60 against 60)", "25.0 % of 16, perplexity 4.0"] {
            assert!(table.contains(part), "`{part}` is missing in\n{table}");
        }
        assert!(table.ends_with("features: judge; resize: 64 x 64; normalisation: [-1, 1]; reference: real pictures of pairs"), "{table}");
        assert!(table.lines().all(|line| line == line.trim_end()) && table.contains("generated"));
        let of_tokenizer = Report { pictures: PictureKind::Reconstructed, ..report() }.to_string();
        assert!(of_tokenizer.contains("reconstructed") && !of_tokenizer.contains("generated"), "{of_tokenizer}");
    }

    #[test]
    fn classes_have_an_accuracy_and_no_captions() {
        let (_, [names, real, generated]) = evidence(20);
        let pictures = BesideReal { generated: &generated, real: &real };
        let asked: Vec<Option<usize>> = (0..20).map(Some).collect();
        let judged = Some((Asked::Classes { asked: &asked, names: &names }, pictures));
        let generation = Generation::measure(Evidence { judged, features: pictures }, MeasureOptions::default()).unwrap();
        let accuracy = generation.class_accuracy.unwrap();
        assert!(accuracy.real.accuracy.value > accuracy.generated.accuracy.value && accuracy.real.chance == 0.05, "{accuracy:?}");
        let names = |generation: &Generation| generation.figures().into_iter().map(|figure| figure.name).collect::<Vec<_>>();
        assert_eq!(names(&generation), ["class_accuracy", "frechet_distance", "precision", "recall", "diversity"]);
        let alone = Generation::measure(Evidence { judged: None, features: pictures }, MeasureOptions::default()).unwrap();
        assert_eq!(names(&alone), ["frechet_distance", "precision", "recall", "diversity"]);
    }

    #[test]
    fn unequal_counts_are_errors() {
        let (texts, [captions, real, generated]) = evidence(20);
        let judged = BesideReal { generated: &generated, real: &real };
        let fewer = generated.select(&[0, 1, 2]);
        let asked = Asked::Captions { texts: &texts, embeddings: &captions };
        let evidence = Evidence { judged: Some((asked, judged)), features: BesideReal { generated: &fewer, real: &real } };
        let error = Generation::measure(evidence, MeasureOptions { candidate_count: 5, ..MeasureOptions::default() }).unwrap_err();
        assert_eq!(error.to_string(), "evaluation: expected 20 feature vectors, as of real pictures, found 3");
        assert!(Generation::measure(Evidence { features: judged, ..evidence }, MeasureOptions::default()).is_err(), "20 captions, 100 candidates");
    }
}
