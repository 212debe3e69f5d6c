//! What decided a picture in the end, as it is told in the picture itself, in JSON and to people.

use serde::Serialize;
use smalti_generation::autoregressive::Options;
use smalti_generation::diffusion::guidance::{Interval, ProjectionOptions};
use smalti_generation::diffusion::{Sampler, Threshold};
use smalti_pipeline::BundleFolder;
use smalti_pipeline::manifest::{DiffusionConfig, GeneratorModel};
use smalti_pipeline::text_to_image::{ClassifierGuidance, DiffusionOptions, Request};

/// What besides prompt, seed, number and bundle decides a picture: what was asked for, and where nothing was, what the bundle says.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Settings {
    ImageTokens(ImageTokenSettings),
    Diffusion(Box<DiffusionSettings>),
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct ImageTokenSettings {
    guidance_scale: f32,
    temperature: f32,
    top_k: Option<usize>,
    top_p: f32,
    greedy: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct DiffusionSettings {
    guidance_scale: f32,
    #[serde(flatten)]
    walk: Walk,
    /// The further stages of a cascade.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    super_resolution: Vec<Walk>,
    #[serde(skip_serializing_if = "Option::is_none")]
    negative: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    guidance_rescale: f64,
    /// Lowest and highest noise to signal; text, for the highest may be infinite.
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    projection: Option<ProjectionSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    classifier: Option<ClassifierSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
struct ProjectionSettings {
    parallel: f64,
    momentum: f64,
    /// Absent where there is no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    norm: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
struct ClassifierSettings {
    bundle: String,
    class: String,
    scale: f64,
}

/// How one stage goes from noise to picture.
#[derive(Clone, Debug, Serialize)]
struct Walk {
    sampler: Sampler,
    steps: usize,
    /// With its percentile: programs do not agree on it.
    threshold: Threshold,
    #[serde(skip_serializing_if = "Option::is_none")]
    augmentation: Option<f64>,
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Settings {
    /// `None` for a bundle without a generator.
    pub(super) fn of(bundle: &BundleFolder, request: &Request) -> Option<Self> {
        let manifest = bundle.manifest();
        let entry = manifest.generator.as_ref()?;
        let GeneratorModel::Diffusion(config) = &entry.model else {
            let sampling = entry.sampling.unwrap_or_default();
            let guidance_scale = request.guidance_scale.unwrap_or(sampling.guidance_scale as f32);
            let Options { greedy, temperature, top_k, top_p } = request.image_tokens.resolve(&sampling);
            return Some(Self::ImageTokens(ImageTokenSettings { guidance_scale, temperature, top_k, top_p, greedy }));
        };
        let guidance_scale = request.guidance_scale.unwrap_or(config.sampling.guidance_scale);
        let options = &request.diffusion;
        let further = manifest.super_resolution.iter().filter_map(|entry| match &entry.model {
            GeneratorModel::Diffusion(config) => Some(Walk::of(config, options)),
            GeneratorModel::DalleBart(_) => None,
        });
        Some(Self::Diffusion(Box::new(DiffusionSettings {
            guidance_scale,
            walk: Walk::of(config, options),
            super_resolution: further.collect(),
            negative: options.negative.clone(),
            guidance_rescale: options.guidance_rescale,
            guidance_interval: options.guidance_interval.map(|Interval { low, high }| format!("{low}:{high}")),
            projection: options.projection.map(|ProjectionOptions { parallel, momentum, norm }| ProjectionSettings {
                parallel,
                momentum,
                norm: norm.is_finite().then_some(norm),
            }),
            classifier: options.classifier.as_ref().map(|ClassifierGuidance { scale, class }| ClassifierSettings {
                bundle: bundle.classifier_bundle().manifest().id(),
                class: class.as_ref().unwrap_or(&request.prompt).trim().to_string(),
                scale: *scale,
            }),
            strength: options.initial.as_ref().map(|initial| initial.strength),
        })))
    }

    /// In one line, for people.
    pub(super) fn text(&self) -> String {
        match self {
            Self::ImageTokens(ImageTokenSettings { guidance_scale, greedy: true, .. }) => format!("guidance_scale {guidance_scale}, greedy"),
            Self::ImageTokens(ImageTokenSettings { guidance_scale, temperature, top_k, top_p, .. }) => {
                let top_k = top_k.map_or("all".to_string(), |top_k| top_k.to_string());
                format!("guidance_scale {guidance_scale}, temperature {temperature}, top_k {top_k}, top_p {top_p}")
            }
            Self::Diffusion(settings) => {
                let DiffusionSettings { guidance_scale, walk, super_resolution, negative, guidance_rescale, guidance_interval, strength, .. } = &**settings;
                let mut text = format!("guidance_scale {guidance_scale}, {}", walk.text());
                super_resolution.iter().for_each(|walk| text += &format!("; then {}", walk.text()));
                text += &strength.map(|strength| format!(", strength {strength}")).unwrap_or_default();
                text += &negative.as_ref().map(|negative| format!(", negative \"{negative}\"")).unwrap_or_default();
                if *guidance_rescale != 0.0 {
                    text += &format!(", guidance_rescale {guidance_rescale}");
                }
                text += &guidance_interval.as_ref().map(|interval| format!(", guidance_interval {interval}")).unwrap_or_default();
                if let Some(ProjectionSettings { parallel, momentum, norm }) = &settings.projection {
                    let norm = norm.map(|norm| format!(", norm {norm}")).unwrap_or_default();
                    text += &format!(", projection (parallel {parallel}, momentum {momentum}{norm})");
                }
                text += &settings
                    .classifier
                    .as_ref()
                    .map(|ClassifierSettings { bundle, class, scale }| format!(", classifier {bundle} (class \"{class}\", scale {scale})"))
                    .unwrap_or_default();
                text
            }
        }
    }
}

impl Walk {
    /// In a cascade, steps are the first stage's and noise on the smaller picture the others'.
    fn of(config: &DiffusionConfig, options: &DiffusionOptions) -> Self {
        let defaults = &config.sampling;
        let is_first = config.low_resolution.is_none();
        Self {
            sampler: options.sampler.unwrap_or(defaults.sampler),
            steps: options.steps.filter(|_| is_first).unwrap_or(defaults.steps),
            threshold: options.threshold.unwrap_or(defaults.threshold),
            augmentation: config.low_resolution.as_ref().map(|condition| options.augmentation.unwrap_or(condition.noise_level)),
        }
    }

    fn text(&self) -> String {
        let augmentation = self.augmentation.map(|augmentation| format!(", augmentation {augmentation}")).unwrap_or_default();
        format!("{} steps of {}, threshold {}{augmentation}", self.steps, sampler_text(self.sampler), threshold_text(self.threshold))
    }
}

/// A sampler as --sampler names it, with what it was told beside.
pub(super) fn sampler_text(sampler: Sampler) -> String {
    match sampler {
        Sampler::Ddpm => "ddpm".to_string(),
        Sampler::Ddim { eta } => format!("ddim (eta {eta})"),
        Sampler::Euler => "euler".to_string(),
        Sampler::EulerAncestral => "euler-ancestral".to_string(),
        Sampler::Heun => "heun".to_string(),
        Sampler::DpmSolverPlusPlus2M => "dpm++2m".to_string(),
        Sampler::UniPc => "unipc".to_string(),
        Sampler::LatentConsistency { distilled_steps } => format!("lcm (distilled over {distilled_steps} steps)"),
    }
}

pub(super) fn threshold_text(threshold: Threshold) -> String {
    match threshold {
        Threshold::None => "none".to_string(),
        Threshold::Static => "static".to_string(),
        Threshold::Dynamic { percentile, cap: None } => format!("dynamic (percentile {percentile})"),
        Threshold::Dynamic { percentile, cap: Some(cap) } => format!("dynamic (percentile {percentile}, at most {cap})"),
    }
}
