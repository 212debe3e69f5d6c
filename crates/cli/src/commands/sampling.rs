//! How pictures are drawn: the flags that `generate`, `sheet` and `evaluate` share, and what decided a picture in the end.

use crate::failure::WrongUse;
use clap::builder::Resettable;
use clap::{Args, FromArgMatches};
use serde::Serialize;
use smalti_generation::diffusion::guidance::Interval;
use smalti_generation::diffusion::{Sampler, Threshold};
use smalti_pipeline::Manifest;
use smalti_pipeline::manifest::{DiffusionConfig, GeneratorModel};
use smalti_pipeline::text_to_image::{DiffusionOptions, Request, SamplingOptions};

/// Percentile of dynamic thresholding; the paper names none, this is that of `diffusers`.
const PERCENTILE: f64 = 0.995;
/// Steps that a latent consistency network was distilled over (2310.04378).
const DISTILLED_STEPS: usize = 50;

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingFlags {
    /// How much the prompt counts: 1 as trained, more exaggerates it, 0 ignores it [default: what the bundle is usually drawn with]
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    guidance_scale: Option<f32>,
    /// Pictures drawn side by side; changes time and memory, never a picture
    #[arg(long, value_name = "N", default_value_t = 16)]
    batch_size: usize,
    #[command(flatten)]
    image_tokens: ImageTokenFlags,
    #[command(flatten)]
    diffusion: DiffusionFlags,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling of bundles that draw image tokens")]
struct ImageTokenFlags {
    /// Less is safer, more is wilder
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Choose among the K likeliest image tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the likeliest image tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Take the likeliest image token each time
    #[arg(long)]
    greedy: bool,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling of bundles with a diffusion network")]
struct DiffusionFlags {
    /// Steps from noise to picture [default: the bundle's]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// The walk from noise to picture [default: the bundle's]
    #[arg(long, value_name = "NAME", value_enum)]
    sampler: Option<SamplerName>,
    /// Share of fresh noise at each step of --sampler ddim: 0 draws none, 1 as much as ddpm [default: 0]
    #[arg(long, value_name = "SHARE", requires = "sampler", allow_negative_numbers = true)]
    eta: Option<f64>,
    /// A caption to get away from
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// What keeps the picture predicted at each step within its range [default: the bundle's]
    #[arg(long, value_name = "HOW", value_enum)]
    threshold: Option<ThresholdName>,
    /// Of the values of one picture, for --threshold dynamic: what lies above is brought back into the range [default: 0.995]
    #[arg(long, value_name = "P", requires = "threshold", allow_negative_numbers = true)]
    percentile: Option<f64>,
    /// How much of the contrast that guidance adds is taken back, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    guidance_rescale: f64,
    /// Guide only where noise to signal (sigma / alpha) is within these bounds, such as 0.3:5 [default: everywhere]
    #[arg(long, value_name = "LOW:HIGH", value_parser = interval)]
    guidance_interval: Option<Interval>,
    /// Cascades: noise added to the smaller picture before it is enlarged, 0 to 1 [default: the bundle's]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    augmentation: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SamplerName {
    /// Fresh noise at every step; made for all the trained steps
    Ddpm,
    /// No fresh noise unless --eta says so
    Ddim,
    Euler,
    /// Euler with fresh noise at every step
    EulerAncestral,
    /// Second order, two calls of the network for each step
    Heun,
    /// DPM-Solver++, second order, one call for each step
    #[value(name = "dpm++2m")]
    DpmSolverPlusPlus2M,
    /// Second order, corrected by the next call
    #[value(name = "unipc")]
    UniPc,
    /// Latent consistency, for networks distilled to a few steps
    Lcm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ThresholdName {
    None,
    /// Clip
    Static,
    /// Clip at a percentile of the picture and scale back
    Dynamic,
}

fn interval(text: &str) -> Result<Interval, String> {
    let bounds = text.split_once(':').and_then(|(low, high)| Some(Interval { low: low.trim().parse().ok()?, high: high.trim().parse().ok()? }));
    let interval = bounds.ok_or("expected LOW:HIGH, two numbers")?;
    interval.validate().map_err(|error| error.to_string())?;
    Ok(interval)
}

impl SamplingFlags {
    /// The same flags with some set anew: the names and values of the command line, `true` and `false` for flags without a value.
    pub(super) fn with(&self, chosen: &[(&str, &str)]) -> anyhow::Result<Self> {
        // Values are set one beside the other, so what one flag demands of another is left to `request`; and nothing unsaid is set back to its default.
        let command = Self::augment_args_for_update(clap::Command::new("sweep").no_binary_name(true)).mut_args(|arg| {
            let arg = if arg.get_action().takes_values() { arg } else { arg.action(clap::ArgAction::Set).num_args(1) };
            arg.default_value(None::<&'static str>).requires(Resettable::<clap::Id>::Reset)
        });
        let names: Vec<String> = command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_string)).collect();
        for (name, _) in chosen {
            if !names.iter().any(|known| known == name) {
                return Err(WrongUse(format!("--sweep: expected candidates, {}; found {name}", names.join(", "))).into());
            }
        }
        let wrong = |error: clap::Error| {
            let message = error.to_string();
            let line = message.lines().next().unwrap_or_default();
            WrongUse(format!("--sweep: {}", line.strip_prefix("error: ").unwrap_or(line)))
        };
        let mut flags = self.clone();
        let matches = command.try_get_matches_from(chosen.iter().map(|(name, value)| format!("--{name}={value}"))).map_err(wrong)?;
        flags.update_from_arg_matches(&matches).map_err(wrong)?;
        Ok(flags)
    }

    /// One picture of a prompt, drawn as the flags say.
    pub(super) fn request(self, prompt: impl Into<String>) -> anyhow::Result<Request> {
        let Self { guidance_scale, batch_size, image_tokens, diffusion } = self;
        let ImageTokenFlags { temperature, top_k, top_p, greedy } = image_tokens;
        let options = SamplingOptions { greedy, temperature, top_k, top_p };
        Ok(Request { guidance_scale, options, diffusion: diffusion.options()?, batch_size, ..Request::new(prompt) })
    }
}

impl DiffusionFlags {
    fn options(self) -> anyhow::Result<DiffusionOptions> {
        if self.eta.is_some() && self.sampler != Some(SamplerName::Ddim) {
            return Err(WrongUse("--eta: expected --sampler ddim beside it, found another sampler".to_string()).into());
        }
        if self.percentile.is_some() && self.threshold != Some(ThresholdName::Dynamic) {
            return Err(WrongUse("--percentile: expected --threshold dynamic beside it, found another threshold".to_string()).into());
        }
        let sampler = self.sampler.map(|name| match name {
            SamplerName::Ddpm => Sampler::Ddpm,
            SamplerName::Ddim => Sampler::Ddim { eta: self.eta.unwrap_or(0.0) },
            SamplerName::Euler => Sampler::Euler,
            SamplerName::EulerAncestral => Sampler::EulerAncestral,
            SamplerName::Heun => Sampler::Heun,
            SamplerName::DpmSolverPlusPlus2M => Sampler::DpmSolverPlusPlus2M,
            SamplerName::UniPc => Sampler::UniPc,
            SamplerName::Lcm => Sampler::LatentConsistency { distilled_steps: DISTILLED_STEPS },
        });
        let threshold = self.threshold.map(|name| match name {
            ThresholdName::None => Threshold::None,
            ThresholdName::Static => Threshold::Static,
            ThresholdName::Dynamic => Threshold::dynamic(self.percentile.unwrap_or(PERCENTILE)),
        });
        let Self { steps, negative, guidance_rescale, guidance_interval, augmentation, .. } = self;
        Ok(DiffusionOptions { steps, sampler, threshold, negative, guidance_rescale, guidance_interval, augmentation, ..DiffusionOptions::default() })
    }
}

/// What besides prompt, seed, number and bundle decides a picture: what was asked for, and where nothing was, what the bundle says.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Settings {
    ImageTokens(ImageTokenSettings),
    Diffusion(DiffusionSettings),
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
    strength: Option<f64>,
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
    pub(super) fn of(manifest: &Manifest, request: &Request) -> Option<Self> {
        let model = &manifest.generator.as_ref()?.model;
        let guidance_scale = request.guidance_scale.unwrap_or_else(|| model.guidance_scale());
        let GeneratorModel::Diffusion(config) = model else {
            let SamplingOptions { greedy, temperature, top_k, top_p } = request.options;
            return Some(Self::ImageTokens(ImageTokenSettings { guidance_scale, temperature, top_k, top_p, greedy }));
        };
        let options = &request.diffusion;
        let further = manifest.super_resolution.iter().filter_map(|entry| match &entry.model {
            GeneratorModel::Diffusion(config) => Some(Walk::of(config, options)),
            GeneratorModel::DalleBart(_) => None,
        });
        Some(Self::Diffusion(DiffusionSettings {
            guidance_scale,
            walk: Walk::of(config, options),
            super_resolution: further.collect(),
            negative: options.negative.clone(),
            guidance_rescale: options.guidance_rescale,
            guidance_interval: options.guidance_interval.map(|Interval { low, high }| format!("{low}:{high}")),
            strength: options.initial.as_ref().map(|initial| initial.strength),
        }))
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
                let DiffusionSettings { guidance_scale, walk, super_resolution, negative, guidance_rescale, guidance_interval, strength } = settings;
                let mut text = format!("guidance_scale {guidance_scale}, {}", walk.text());
                super_resolution.iter().for_each(|walk| text += &format!("; then {}", walk.text()));
                text += &strength.map(|strength| format!(", strength {strength}")).unwrap_or_default();
                text += &negative.as_ref().map(|negative| format!(", negative \"{negative}\"")).unwrap_or_default();
                if *guidance_rescale != 0.0 {
                    text += &format!(", guidance_rescale {guidance_rescale}");
                }
                text + &guidance_interval.as_ref().map(|interval| format!(", guidance_interval {interval}")).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(arguments: &[&str]) -> SamplingFlags {
        let command = SamplingFlags::augment_args(clap::Command::new("test").no_binary_name(true));
        SamplingFlags::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap()
    }

    #[test]
    fn flags_are_set_anew_and_the_others_kept() {
        let before = flags(&["--steps", "20", "--sampler", "ddim", "--greedy", "--temperature", "0.5"]);
        let request = before.with(&[("guidance-scale", "-2"), ("eta", "0.5")]).unwrap().request("x").unwrap();
        assert_eq!((request.guidance_scale, request.diffusion.steps, request.diffusion.sampler), (Some(-2.0), Some(20), Some(Sampler::Ddim { eta: 0.5 })));
        assert_eq!((request.options.greedy, request.options.temperature), (true, 0.5));
        assert_eq!(before.with(&[]).unwrap().request("x").unwrap(), before.clone().request("x").unwrap());
        assert!(!before.with(&[("greedy", "false")]).unwrap().request("x").unwrap().options.greedy);
        assert_eq!(before.with(&[("top-k", "7")]).unwrap().request("x").unwrap().options.top_k, Some(7));
    }

    #[test]
    fn wrong_names_and_values_are_named() {
        let message = |chosen: (&str, &str)| flags(&[]).with(&[chosen]).and_then(|flags| flags.request("x")).unwrap_err().to_string();
        assert!(message(("best", "1")).starts_with("--sweep: expected candidates, guidance-scale, batch-size, temperature,"), "{}", message(("best", "1")));
        assert!(message(("steps", "many")).starts_with("--sweep: invalid value 'many' for '--steps <N>'"), "{}", message(("steps", "many")));
        assert!(message(("eta", "1")).contains("--eta: expected --sampler ddim"));
    }

    #[test]
    fn intervals_are_two_numbers_in_order() {
        assert_eq!(interval("0.3:5"), Ok(Interval { low: 0.3, high: 5.0 }));
        assert_eq!(interval("0:inf"), Ok(Interval::whole()));
        for wrong in ["", "3", "a:b", "1:2:3", "5:0.3", "-1:2", "nan:1"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
