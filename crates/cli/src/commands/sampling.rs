//! How pictures are drawn: the flags that `generate`, `sheet` and `evaluate` share.

use crate::failure::WrongUse;
use anyhow::Context;
use clap::builder::Resettable;
use clap::{Args, FromArgMatches};
use smalti_generation::diffusion::guidance::{Interval, ProjectionOptions};
use smalti_generation::diffusion::{Sampler, Threshold};
use smalti_pipeline::BundleFolder;
use smalti_pipeline::text_to_image::{ClassifierGuidance, DiffusionOptions, ImageTokenOptions, Request};
use std::path::{Path, PathBuf};

/// Percentile of dynamic thresholding; the paper names none, this is that of `diffusers`.
const PERCENTILE: f64 = 0.995;

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingFlags {
    /// How much the prompt counts: 1 as trained, more exaggerates it, 0 ignores it [default: what the bundle is usually drawn with]
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    guidance_scale: Option<f32>,
    /// Pictures drawn side by side; changes time and memory, never a picture
    #[arg(long, value_name = "N", default_value_t = 16, allow_negative_numbers = true)]
    batch_size: usize,
    #[command(flatten)]
    image_tokens: ImageTokenFlags,
    #[command(flatten)]
    diffusion: DiffusionFlags,
    #[command(flatten)]
    guidance: GuidanceFlags,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling of bundles that draw image tokens")]
struct ImageTokenFlags {
    /// Less is safer, more is wilder [default: the bundle's]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Choose among the K likeliest image tokens only [default: the bundle's]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<usize>,
    /// Choose among the likeliest image tokens that together have probability P [default: 1, all of them]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Take the likeliest image token each time
    #[arg(long)]
    greedy: bool,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling of bundles with a diffusion network")]
struct DiffusionFlags {
    /// Steps from noise to picture, of a cascade's first stage [default: the bundle's]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
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
    /// Cascades: noise added to the smaller picture before it is enlarged, 0 to 1 [default: the bundle's]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    augmentation: Option<f64>,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Guidance of bundles with a diffusion network")]
struct GuidanceFlags {
    /// How much of the contrast that guidance adds is taken back, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    guidance_rescale: f64,
    /// Guide only where noise to signal (sigma / alpha) is within these bounds, such as 0.3:5 [default: everywhere]
    #[arg(long, value_name = "LOW:HIGH", value_parser = interval)]
    guidance_interval: Option<Interval>,
    /// Projected guidance: the share kept of the part of guidance that only makes a picture stronger, 0 to 1 [default: 1, all of it]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    projection_parallel: Option<f64>,
    /// Projected guidance: how much of the last step's guidance is added; less than 0 takes back [default: 0]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    projection_momentum: Option<f64>,
    /// Projected guidance: the most that guidance may move a picture in one step, as the length of the change [default: any length]
    #[arg(long, value_name = "LENGTH", allow_negative_numbers = true)]
    projection_norm: Option<f64>,
    /// A bundle whose classifier leads pictures to a class [default: the bundle's own]
    #[arg(long, value_name = "DIR")]
    classifier: Option<PathBuf>,
    /// How strongly a classifier leads to a class: 1 as it judges, more exaggerates, less than 0 leads away [default: it is not asked]
    #[arg(long, value_name = "W", allow_negative_numbers = true)]
    classifier_scale: Option<f64>,
    /// The class that the classifier leads to [default: the prompt, unless the bundle reads captions]
    #[arg(long, value_name = "NAME")]
    classifier_class: Option<String>,
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
    /// The bundle whose classifier is to be asked, where it is not the one that draws.
    pub(super) fn classifier(&self) -> Option<PathBuf> {
        self.guidance.classifier.clone()
    }

    /// The same flags with some set anew: the names and values of the command line, `true` and `false` for flags without a value.
    pub(super) fn with(&self, chosen: &[(&str, &str)]) -> anyhow::Result<Self> {
        // Values are set one beside the other, so what one flag demands of another is left to `request`; and nothing unsaid is set back to its default.
        let command = Self::augment_args_for_update(clap::Command::new("sweep").no_binary_name(true)).mut_args(|arg| {
            let arg = if arg.get_action().takes_values() { arg } else { arg.action(clap::ArgAction::Set).num_args(1) };
            arg.default_value(None::<&'static str>).requires(Resettable::<clap::Id>::Reset)
        });
        // Another classifier is another bundle, which a sweep does not load.
        let names = command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_string)).filter(|name| name != "classifier");
        let names: Vec<String> = names.collect();
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
        let Self { guidance_scale, batch_size, image_tokens, diffusion, guidance } = self;
        guidance.check_classifier()?;
        let ImageTokenFlags { temperature, top_k, top_p, greedy } = image_tokens;
        let image_tokens = ImageTokenOptions { greedy, temperature, top_k, top_p };
        Ok(Request { guidance_scale, image_tokens, diffusion: guidance.set(diffusion.options()?), batch_size, ..Request::new(prompt) })
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
            SamplerName::Lcm => Sampler::LCM,
        });
        let threshold = self.threshold.map(|name| match name {
            ThresholdName::None => Threshold::None,
            ThresholdName::Static => Threshold::Static,
            ThresholdName::Dynamic => Threshold::dynamic(self.percentile.unwrap_or(PERCENTILE)),
        });
        let Self { steps, negative, augmentation, .. } = self;
        Ok(DiffusionOptions { steps, sampler, threshold, negative, augmentation, ..DiffusionOptions::default() })
    }
}

impl GuidanceFlags {
    /// Checked here and not by the command line, for a sweep may be what sets the scale.
    fn check_classifier(&self) -> anyhow::Result<()> {
        let named = [("--classifier", self.classifier.is_some()), ("--classifier-class", self.classifier_class.is_some())];
        match named.iter().find(|(_, said)| *said) {
            Some((name, _)) if self.classifier_scale.is_none() => {
                Err(WrongUse(format!("{name}: expected --classifier-scale <W> beside it, which says how strongly the classifier leads, found none")).into())
            }
            _ => Ok(()),
        }
    }

    fn set(self, options: DiffusionOptions) -> DiffusionOptions {
        let projection = self.projection();
        let Self { guidance_rescale, guidance_interval, classifier_scale, classifier_class: class, .. } = self;
        let classifier = classifier_scale.map(|scale| ClassifierGuidance { scale, class });
        DiffusionOptions { guidance_rescale, guidance_interval, projection, classifier, ..options }
    }

    /// What is not said is as in plain guidance.
    fn projection(&self) -> Option<ProjectionOptions> {
        let Self { projection_parallel: parallel, projection_momentum: momentum, projection_norm: norm, .. } = *self;
        let said = parallel.or(momentum).or(norm).is_some();
        said.then(|| ProjectionOptions { parallel: parallel.unwrap_or(1.0), momentum: momentum.unwrap_or(0.0), norm: norm.unwrap_or(f64::INFINITY) })
    }
}

/// The bundle that draws, with the classifier that was lent to it.
pub(super) fn open(bundle: &Path, classifier: Option<&Path>) -> anyhow::Result<BundleFolder> {
    let bundle = BundleFolder::open(bundle)?;
    Ok(match classifier {
        Some(path) => bundle.with_classifier_of(BundleFolder::open(path)?).with_context(|| format!("--classifier {}", path.display()))?,
        None => bundle,
    })
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
        assert_eq!((request.image_tokens.greedy, request.image_tokens.temperature), (true, Some(0.5)));
        assert_eq!(before.with(&[]).unwrap().request("x").unwrap(), before.clone().request("x").unwrap());
        assert!(!before.with(&[("greedy", "false")]).unwrap().request("x").unwrap().image_tokens.greedy);
        assert_eq!(before.with(&[("top-k", "7")]).unwrap().request("x").unwrap().image_tokens.top_k, Some(7));
    }

    #[test]
    fn wrong_names_and_values_are_named() {
        let message = |chosen: (&str, &str)| flags(&[]).with(&[chosen]).and_then(|flags| flags.request("x")).unwrap_err().to_string();
        assert!(message(("best", "1")).starts_with("--sweep: expected candidates, guidance-scale, batch-size, temperature,"), "{}", message(("best", "1")));
        assert!(message(("steps", "many")).starts_with("--sweep: invalid value 'many' for '--steps <N>'"), "{}", message(("steps", "many")));
        assert!(message(("eta", "1")).contains("--eta: expected --sampler ddim"));
    }

    #[test]
    fn a_sweep_may_set_the_classifiers_scale() {
        let lent = flags(&["--classifier", "shapes", "--classifier-class", "round"]);
        assert!(lent.clone().request("x").unwrap_err().to_string().starts_with("--classifier: expected --classifier-scale <W> beside it"));
        let request = lent.with(&[("classifier-scale", "3")]).unwrap().request("x").unwrap();
        assert_eq!(request.diffusion.classifier, Some(ClassifierGuidance { scale: 3.0, class: Some("round".to_string()) }));
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
