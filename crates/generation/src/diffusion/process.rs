//! The road from noise to picture: one of three families of levels.

use super::{Betas, Level, Schedule, ScheduleConfig, SettingError, flow, sigmas};
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    /// DDPM, latent diffusion, Imagen: alpha^2 + sigma^2 = 1, with a table of trained steps.
    VariancePreserving(Schedule),
    /// EDM: alpha = 1.
    VarianceExploding(sigmas::Config),
    /// Rectified flow: alpha = 1 - sigma.
    Flow(flow::Config),
}

impl Process {
    pub fn validate(&self) -> Result<(), SettingError> {
        match self {
            Self::VariancePreserving(_) => Ok(()), // a `Schedule` is valid by construction
            Self::VarianceExploding(config) => config.validate(),
            Self::Flow(config) => config.validate(),
        }
    }

    /// What the network's input is multiplied with. Only EDM's is not the sample itself.
    pub fn input_scale(&self, level: &Level) -> f64 {
        match self {
            Self::VarianceExploding(config) => config.input_scale(level.sigma),
            Self::VariancePreserving(_) | Self::Flow(_) => 1.0,
        }
    }

    /// The scale of pure noise at the first level of a walk, where no picture shows through.
    ///
    /// A variance-preserving walk starts from unit noise even where its first level holds a rest of the picture, as DDPM and DDIM do.
    pub fn noise_scale(&self, first: &Level) -> f64 {
        match self {
            Self::VarianceExploding(_) | Self::Flow(_) => first.sigma,
            Self::VariancePreserving(_) => 1.0,
        }
    }
}

/// In a few words: "1000 trained steps, cosine schedule".
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::VariancePreserving(schedule) => {
                let ScheduleConfig { betas, train_steps, shift, zero_terminal_snr } = schedule.config();
                write!(f, "{train_steps} trained steps, ")?;
                match betas {
                    Betas::Linear { start, end } => write!(f, "linear betas from {start} to {end}")?,
                    Betas::ScaledLinear { start, end } => write!(f, "scaled linear betas from {start} to {end}")?,
                    Betas::Cosine => write!(f, "cosine schedule")?,
                }
                if *shift != 1.0 {
                    write!(f, ", shifted by {shift}")?;
                }
                if *zero_terminal_snr { write!(f, ", down to pure noise") } else { Ok(()) }
            }
            Self::VarianceExploding(config) => write!(f, "noise levels from {} to {} (EDM)", config.sigma_min, config.sigma_max),
            Self::Flow(config) => write!(f, "rectified flow, shift {}", config.shift),
        }
    }
}
