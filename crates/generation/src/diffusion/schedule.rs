//! Variance-preserving schedules: alpha^2 + sigma^2 = 1, and alpha-bar = alpha^2 falls over the trained steps from almost 1 to almost 0.
//!
//! x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) noise; alpha-bar_t is the product of (1 - beta_s) over s <= t (DDPM, equations 2 and 4).

use super::{Level, SettingError};
use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_PI_2;

/// How much noise each step adds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Betas {
    /// Evenly spaced; both ends in (0, 1). DDPM, section 4.
    Linear { start: f64, end: f64 },
    /// Their square roots are evenly spaced; both ends in (0, 1). Latent diffusion (2112.10752).
    ScaledLinear { start: f64, end: f64 },
    /// alpha-bar follows a squared cosine; each beta is at most 0.999. Improved DDPM (2102.09672), equation 17.
    Cosine,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    pub betas: Betas,
    /// How many steps the network was trained with; at least 2. 1000 in all the papers.
    pub train_steps: usize,
    /// Multiplies sigma / alpha of every step; above 0, and 1 changes nothing. Simple diffusion (2301.11093), equation 4: a picture of s times the side needs
    /// s times the noise to look as noisy.
    #[serde(default = "one")]
    pub shift: f64,
    /// Rescales so that the last step is pure noise, as sampling starts from (2305.08891, algorithm 1). The network must predict velocity or the clean picture.
    #[serde(default)]
    pub zero_terminal_snr: bool,
}

fn one() -> f64 {
    1.0
}

/// A hundred times what is usual, and little enough that its table fits everywhere.
const MOST_TRAIN_STEPS: usize = 100_000;

impl ScheduleConfig {
    fn of(betas: Betas) -> Self {
        Self { betas, train_steps: 1000, shift: 1.0, zero_terminal_snr: false }
    }

    /// DDPM, section 4.
    pub fn ddpm() -> Self {
        Self::of(Betas::Linear { start: 1e-4, end: 0.02 })
    }

    /// Latent diffusion from text, and Stable Diffusion 1 and 2 (`txt2img-1p4B-eval.yaml`).
    pub fn latent_diffusion() -> Self {
        Self::of(Betas::ScaledLinear { start: 0.00085, end: 0.012 })
    }

    /// Improved DDPM; Imagen.
    pub fn cosine() -> Self {
        Self::of(Betas::Cosine)
    }

    pub fn validate(&self) -> Result<(), SettingError> {
        if let Betas::Linear { start, end } | Betas::ScaledLinear { start, end } = self.betas {
            SettingError::unless(start > 0.0 && start < 1.0, "betas.start", "a number between 0 and 1", start)?;
            SettingError::unless(end >= start && end < 1.0, "betas.end", "a number from betas.start to below 1", end)?;
        }
        SettingError::unless(self.train_steps >= 2, "train_steps", "at least 2", self.train_steps)?;
        SettingError::unless(self.train_steps <= MOST_TRAIN_STEPS, "train_steps", "at most 100000", self.train_steps)?;
        SettingError::unless(self.shift > 0.0 && self.shift.is_finite(), "shift", "a number above 0", self.shift)
    }

    fn betas(&self) -> Vec<f64> {
        let count = self.train_steps as f64;
        let even = |start: f64, end: f64, index: usize| start + (end - start) * index as f64 / (count - 1.0);
        // Equation 17 with s = 0.008. (All numbers are floating-point before they are divided: integer division makes every beta but the last 0.)
        let cosine = |index: usize| ((index as f64 / count + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
        let beta = |index: usize| match self.betas {
            Betas::Linear { start, end } => even(start, end, index),
            Betas::ScaledLinear { start, end } => even(start.sqrt(), end.sqrt(), index).powi(2),
            Betas::Cosine => (1.0 - cosine(index + 1) / cosine(index)).min(0.999),
        };
        (0..self.train_steps).map(beta).collect()
    }
}

/// A validated configuration with its table of alpha-bar.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ScheduleConfig", into = "ScheduleConfig")]
pub struct Schedule {
    config: ScheduleConfig,
    alpha_bars: Vec<f64>,
}

impl TryFrom<ScheduleConfig> for Schedule {
    type Error = SettingError;

    fn try_from(config: ScheduleConfig) -> Result<Self, SettingError> {
        Self::new(config)
    }
}

impl From<Schedule> for ScheduleConfig {
    fn from(schedule: Schedule) -> Self {
        schedule.config
    }
}

impl Schedule {
    pub fn new(config: ScheduleConfig) -> Result<Self, SettingError> {
        config.validate()?;
        let mut product = 1.0;
        let mut alpha_bars: Vec<f64> = config
            .betas()
            .iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        if config.shift != 1.0 {
            for alpha_bar in &mut alpha_bars {
                *alpha_bar /= *alpha_bar + config.shift.powi(2) * (1.0 - *alpha_bar);
            }
        }
        if config.zero_terminal_snr {
            rescale_to_zero_terminal_snr(&mut alpha_bars);
        }
        Ok(Self { config, alpha_bars })
    }

    pub fn config(&self) -> &ScheduleConfig {
        &self.config
    }

    pub fn train_steps(&self) -> usize {
        self.alpha_bars.len()
    }

    /// alpha-bar of every trained step, falling.
    pub fn alpha_bars(&self) -> &[f64] {
        &self.alpha_bars
    }

    /// The betas that the table amounts to, after shift and rescale.
    pub fn betas(&self) -> Vec<f64> {
        let before = std::iter::once(&1.0).chain(&self.alpha_bars);
        self.alpha_bars.iter().zip(before).map(|(alpha_bar, before)| 1.0 - alpha_bar / before).collect()
    }

    /// The level of a trained step; panics where there is none.
    pub fn level(&self, step: usize) -> Level {
        let alpha_bar = self.alpha_bars[step];
        Level { timestep: step as f64, alpha: alpha_bar.sqrt(), sigma: (1.0 - alpha_bar).sqrt() }
    }

    /// Before the first step: no noise at all.
    pub fn clean(&self) -> Level {
        Level { timestep: -1.0, alpha: 1.0, sigma: 0.0 }
    }

    /// The level at a timestep in [-1, train_steps - 1], between two trained steps too; -1 is the clean picture. sigma / alpha is interpolated linearly, as
    /// k-diffusion's samplers in `diffusers` do; beside pure noise, where it is infinite, alpha is.
    pub fn level_at(&self, timestep: f64) -> Level {
        let below = timestep.floor().clamp(-1.0, self.train_steps() as f64 - 1.0);
        let fraction = timestep - below;
        let at = |step: f64| if step < 0.0 { self.clean() } else { self.level(step as usize) };
        let low = at(below);
        if fraction <= 0.0 || below as usize + 1 >= self.train_steps() && below >= 0.0 {
            return low;
        }
        let high = at(below + 1.0);
        let between = |low: f64, high: f64| low + (high - low) * fraction;
        if high.alpha == 0.0 {
            let alpha = between(low.alpha, high.alpha);
            return Level { timestep, alpha, sigma: (1.0 - alpha * alpha).sqrt() };
        }
        Self::level_with(timestep, between(low.noise_to_signal(), high.noise_to_signal()))
    }

    /// The level at which sigma / alpha is `noise_to_signal`. Its timestep is interpolated in ln(sigma / alpha) and stays among the trained steps, which is
    /// where a network can be asked.
    pub fn level_of(&self, noise_to_signal: f64) -> Level {
        let logarithm = |step: usize| self.level(step).noise_to_signal().ln();
        let above = self.alpha_bars.partition_point(|alpha_bar| ((1.0 - alpha_bar) / alpha_bar).sqrt() <= noise_to_signal).clamp(1, self.train_steps() - 1);
        let (low, high) = (logarithm(above - 1), logarithm(above));
        let fraction = ((noise_to_signal.ln() - low) / (high - low)).clamp(0.0, 1.0);
        Self::level_with((above - 1) as f64 + fraction, noise_to_signal)
    }

    fn level_with(timestep: f64, noise_to_signal: f64) -> Level {
        let alpha = 1.0 / (1.0 + noise_to_signal * noise_to_signal).sqrt();
        Level { timestep, alpha, sigma: noise_to_signal * alpha }
    }
}

/// Lin et al. (2305.08891), algorithm 1: sqrt(alpha-bar) is shifted and scaled so that its last value is 0 and its first stays.
fn rescale_to_zero_terminal_snr(alpha_bars: &mut [f64]) {
    let (first, last) = (alpha_bars[0].sqrt(), alpha_bars[alpha_bars.len() - 1].sqrt());
    for alpha_bar in alpha_bars.iter_mut() {
        *alpha_bar = ((alpha_bar.sqrt() - last) * first / (first - last)).powi(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(config: ScheduleConfig) -> Schedule {
        Schedule::new(config).unwrap()
    }

    fn configs() -> impl Strategy<Value = ScheduleConfig> {
        let betas = (1e-5_f64..0.01, 0.011_f64..0.5)
            .prop_flat_map(|(start, end)| prop_oneof![Just(Betas::Linear { start, end }), Just(Betas::ScaledLinear { start, end }), Just(Betas::Cosine)]);
        (betas, 2_usize..1200, 0.2_f64..5.0, any::<bool>()).prop_map(|(betas, train_steps, shift, zero_terminal_snr)| ScheduleConfig {
            betas,
            train_steps,
            shift,
            zero_terminal_snr,
        })
    }

    proptest! {
        #[test]
        fn alpha_bar_falls_from_almost_one(config in configs()) {
            let schedule = schedule(config);
            let alpha_bars = schedule.alpha_bars();
            prop_assert!(alpha_bars.is_sorted_by(|a, b| a > b));
            prop_assert!(alpha_bars[0] < 1.0 && *alpha_bars.last().unwrap() >= 0.0);
            prop_assert!(!config.zero_terminal_snr || *alpha_bars.last().unwrap() == 0.0);
            prop_assert!(schedule.betas().iter().all(|beta| *beta > 0.0 && *beta <= 1.0));
        }

        #[test]
        fn levels_preserve_variance_and_invert(config in configs(), place in 0.0_f64..1.0) {
            let schedule = schedule(config);
            let level = schedule.level_at(place * config.train_steps as f64 - 1.0);
            prop_assert!((level.alpha.powi(2) + level.sigma.powi(2) - 1.0).abs() < 1e-12);
            let step = (place * (config.train_steps - 1) as f64) as usize;
            prop_assert_eq!(schedule.level_at(step as f64), schedule.level(step));
            if schedule.level(step).alpha > 0.0 && step > 0 {
                let found = schedule.level_of(schedule.level(step).noise_to_signal()).timestep;
                prop_assert!((found - step as f64).abs() < 1e-6, "{found} for {step}");
            }
        }
    }

    /// With integer division every beta but the last is 0.
    #[test]
    fn cosine_is_the_closed_form() {
        let schedule = schedule(ScheduleConfig::cosine());
        let closed = |step: f64| ((step / 1000.0 + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2) / (0.008_f64 / 1.008 * FRAC_PI_2).cos().powi(2);
        for step in [0, 1, 250, 500, 900] {
            let (found, expected) = (schedule.alpha_bars()[step], closed(step as f64 + 1.0));
            assert!((found / expected - 1.0).abs() < 1e-9, "step {step}: {found}, {expected}");
        }
        assert!(schedule.betas().is_sorted());
        assert!(schedule.alpha_bars()[999] < 1e-3);
        assert!((schedule.betas()[999] - 0.999).abs() < 1e-12, "{}", schedule.betas()[999]);
    }

    #[test]
    fn published_ends() {
        let ddpm = schedule(ScheduleConfig::ddpm());
        assert!((ddpm.betas()[0] - 1e-4).abs() < 1e-12 && (ddpm.betas()[999] - 0.02).abs() < 1e-12);
        assert!((ddpm.alpha_bars()[999] - 4.0e-5).abs() < 1e-6, "DDPM, section 4: the last step is almost pure noise");
        let latent = schedule(ScheduleConfig::latent_diffusion());
        assert!((latent.betas()[0] - 0.00085).abs() < 1e-12 && (latent.betas()[999] - 0.012).abs() < 1e-12);
    }

    #[test]
    fn a_shift_multiplies_the_noise() {
        let (plain, shifted) = (schedule(ScheduleConfig::cosine()), schedule(ScheduleConfig { shift: 4.0, ..ScheduleConfig::cosine() }));
        for step in [0, 400, 999] {
            let ratio = shifted.level(step).noise_to_signal() / plain.level(step).noise_to_signal();
            assert!((ratio - 4.0).abs() < 1e-6, "step {step}: {ratio}");
        }
    }

    #[test]
    fn zero_terminal_snr_keeps_the_first_step() {
        let config = ScheduleConfig::latent_diffusion();
        let (plain, rescaled) = (schedule(config), schedule(ScheduleConfig { zero_terminal_snr: true, ..config }));
        assert!((plain.alpha_bars()[0] - rescaled.alpha_bars()[0]).abs() < 1e-15);
        assert_eq!(rescaled.level(999), Level { timestep: 999.0, alpha: 0.0, sigma: 1.0 });
    }

    #[test]
    fn wrong_settings_are_named() {
        let check = |config: ScheduleConfig, expected: &str| assert_eq!(Schedule::new(config).unwrap_err().to_string(), expected);
        let config = ScheduleConfig::ddpm();
        check(ScheduleConfig { train_steps: 1, ..config }, "train_steps: expected at least 2, found 1");
        check(ScheduleConfig { shift: 0.0, ..config }, "shift: expected a number above 0, found 0");
        check(ScheduleConfig { betas: Betas::Linear { start: f64::NAN, end: 0.1 }, ..config }, "betas.start: expected a number between 0 and 1, found NaN");
        check(
            ScheduleConfig { betas: Betas::ScaledLinear { start: 0.1, end: 1.0 }, ..config },
            "betas.end: expected a number from betas.start to below 1, found 1",
        );
    }
}
