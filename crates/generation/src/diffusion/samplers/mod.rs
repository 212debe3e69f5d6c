//! The walks from noise to picture, each a short function of three hands: one that judges a sample, one that draws noise, one that is told of each arrival.
//!
//! Every sampler is handed `levels`, falling, of which it judges all but the last, and a sample at the first of them; it returns the sample at the last.
//! They are written in alpha and sigma, so that one text serves variance-preserving and -exploding processes and flows, and both ends are finite.

pub mod ddim;
pub mod ddpm;
pub mod dpm_solver_pp_2m;
pub mod euler;
pub mod euler_ancestral;
pub mod heun;
pub mod latent_consistency;
pub mod unipc;

use super::{Level, Process, SettingError, Variance};
use serde::de::{IntoDeserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The closed set of walks. Recipes and bundles name them as the command line does, `"ddim"`, or with their settings, `{ ddim = { eta = 1.0 } }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "kebab-case")]
pub enum Sampler {
    /// Ancestral sampling, of DDPM (2006.11239, algorithm 2). Fresh noise at every step; made for all the trained steps.
    Ddpm,
    /// DDIM (2010.02502, equation 12). `eta`, at least 0, is the share of fresh noise: 0 draws none, 1 as much as DDPM.
    Ddim { eta: f64 },
    /// One Euler step of the probability flow per level.
    Euler,
    /// Euler to below the level, then fresh noise up to it (k-diffusion).
    #[serde(alias = "euler_ancestral")]
    EulerAncestral,
    /// Euler, then the mean of the slopes at both ends (EDM, 2206.00364, algorithm 1 without churn). Two calls of the network per step, one at the last.
    Heun,
    /// DPM-Solver++ of second order, which remembers the last prediction (2211.01095, algorithm 2). One call per step.
    #[serde(rename = "dpm++2m", alias = "dpm_solver_plus_plus2_m")]
    DpmSolverPlusPlus2M,
    /// UniPC of second order with B(h) = e^h - 1: that, and each step is corrected by the next call (2302.04867). One call per step.
    #[serde(rename = "unipc", alias = "uni_pc")]
    UniPc,
    /// Latent consistency sampling in a few steps, for networks distilled to it over `distilled_steps` steps (2310.04378, algorithm 3).
    #[serde(rename = "lcm", alias = "latent_consistency")]
    LatentConsistency { distilled_steps: usize },
}

impl Serialize for Sampler {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Sampler {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Named;

        impl<'de> Visitor<'de> for Named {
            type Value = Sampler;

            fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
                formatter.write_str("a sampler, as \"ddim\" or { ddim = { eta = 1.0 } }")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Sampler, E> {
                match name {
                    "ddim" => Ok(Sampler::Ddim { eta: 0.0 }),
                    "lcm" => Ok(Sampler::LCM),
                    _ => Sampler::deserialize(name.into_deserializer()),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, settings: A) -> Result<Sampler, A::Error> {
                Sampler::deserialize(MapAccessDeserializer::new(settings))
            }
        }

        deserializer.deserialize_any(Named)
    }
}

impl Sampler {
    /// Distilled over as many steps as in the paper.
    pub const LCM: Self = Self::LatentConsistency { distilled_steps: 50 };

    pub fn validate(self) -> Result<(), SettingError> {
        match self {
            Self::Ddim { eta } => SettingError::unless(eta >= 0.0 && eta.is_finite(), "eta", "a number of at least 0", eta),
            Self::LatentConsistency { distilled_steps } => SettingError::unless(distilled_steps >= 1, "distilled_steps", "at least 1", distilled_steps),
            _ => Ok(()),
        }
    }

    /// Walks. `process` and `variance` are looked at by the samplers that differ by them.
    pub fn walk<E>(self, process: &Process, variance: Variance, levels: &[Level], start: Vec<f32>, hands: &mut Hands<E>) -> Result<Vec<f32>, E> {
        match self {
            Self::Ddpm => ddpm::sample(levels, start, variance, hands),
            Self::Ddim { eta } => ddim::sample(levels, start, eta, hands),
            Self::Euler => euler::sample(levels, start, hands),
            Self::EulerAncestral => euler_ancestral::sample(levels, start, hands),
            Self::Heun => match process {
                Process::Flow(_) => heun::sample(levels, start, heun::Clock::Noise, hands),
                _ => heun::sample(levels, start, heun::Clock::NoiseToSignal, hands),
            },
            Self::DpmSolverPlusPlus2M => dpm_solver_pp_2m::sample(levels, start, hands),
            Self::UniPc => unipc::sample(levels, start, hands),
            Self::LatentConsistency { .. } => latent_consistency::sample(levels, start, hands),
        }
    }
}

/// What a network makes of a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The clean picture it sees, thresholded.
    pub clean: Vec<f32>,
    /// Where the variance lies between its bounds, in [-1, 1]; as long as `clean`, and empty unless it was learned.
    pub variance: Vec<f32>,
}

/// From a sample and its level to what the network makes of it.
pub type Predict<'a, E> = dyn FnMut(&[f32], &Level) -> Result<Prediction, E> + 'a;

/// From the index of a step, the sample it led to and the clean picture predicted on the way to nothing.
pub type Observe<'a> = dyn FnMut(usize, &[f32], &[f32]) + 'a;

/// What a sampler may do besides arithmetic.
pub struct Hands<'a, E> {
    /// Asks the network what it makes of a sample at a level.
    pub predict: &'a mut Predict<'a, E>,
    /// Fresh unit normal noise for all pictures.
    pub noise: &'a mut dyn FnMut() -> Vec<f32>,
    /// Puts back what is known of the pictures at a level.
    pub hold: &'a mut dyn FnMut(&mut [f32], &Level),
    /// Is told of each step that was walked.
    pub observe: &'a mut Observe<'a>,
}

impl<E> Hands<'_, E> {
    fn clean(&mut self, sample: &[f32], level: &Level) -> Result<Vec<f32>, E> {
        Ok((self.predict)(sample, level)?.clean)
    }

    /// A step is walked: known pixels are put back, then the observer is told.
    fn arrive(&mut self, step: usize, level: &Level, sample: &mut [f32], clean: &[f32]) {
        (self.hold)(sample, level);
        (self.observe)(step, sample, clean);
    }
}

/// The steps of a walk: index, where from, where to.
fn steps(levels: &[Level]) -> impl Iterator<Item = (usize, Level, Level)> {
    levels.windows(2).enumerate().map(|(index, pair)| (index, pair[0], pair[1]))
}

/// The noise that remains when the clean picture is taken out: (x - alpha clean) / sigma. After thresholding it is no longer what the network said.
fn remaining_noise(level: &Level, sample: &[f32], clean: &[f32]) -> Vec<f32> {
    super::level::combine([(1.0 / level.sigma, sample), (-level.alpha / level.sigma, clean)])
}

#[cfg(test)]
mod tests {
    use super::Sampler;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct File {
        sampler: Sampler,
    }

    fn read(text: &str) -> Result<Sampler, String> {
        toml::from_str::<File>(text).map(|file| file.sampler).map_err(|error| error.message().to_string())
    }

    #[test]
    fn samplers_are_named_as_on_the_command_line_with_or_without_their_settings() {
        let cases = [
            ("'ddim'", Sampler::Ddim { eta: 0.0 }),
            ("{ ddim = { eta = 0.5 } }", Sampler::Ddim { eta: 0.5 }),
            ("'dpm++2m'", Sampler::DpmSolverPlusPlus2M),
            ("'dpm_solver_plus_plus2_m'", Sampler::DpmSolverPlusPlus2M), // in bundles from before
            ("'euler_ancestral'", Sampler::EulerAncestral),
            ("'euler-ancestral'", Sampler::EulerAncestral),
            ("'unipc'", Sampler::UniPc),
            ("'lcm'", Sampler::LCM),
            ("{ latent_consistency = { distilled_steps = 4 } }", Sampler::LatentConsistency { distilled_steps: 4 }),
        ];
        for (text, expected) in cases {
            assert_eq!(read(&format!("sampler = {text}")), Ok(expected), "{text}");
            let written = toml::to_string(&File { sampler: expected }).unwrap();
            assert_eq!(read(&written), Ok(expected), "{written}");
        }
    }

    #[test]
    fn wrong_samplers_are_named() {
        assert!(read("sampler = 'foo'").unwrap_err().contains("unknown variant `foo`, expected one of `ddpm`, `ddim`,"));
        assert!(read("sampler = 3").unwrap_err().contains("expected a sampler, as \"ddim\" or { ddim = { eta = 1.0 } }"));
        assert!(read("sampler = { ddim = {} }").unwrap_err().contains("missing field `eta`"));
    }
}
