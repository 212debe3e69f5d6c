//! What is to be walked: all the options of sampling that need no tensor, checked together.

use super::level::combine;
use super::timesteps::Grid;
use super::{End, Level, Parameterization, Process, Sampler, SettingError, Spacing, Threshold, Variance};

pub type PlanError = SettingError;

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub process: Process,
    pub parameterization: Parameterization,
    /// Used by the DDPM sampler; with `Learned` the other samplers pass over the second half of the network's output.
    pub variance: Variance,
    pub sampler: Sampler,
    /// At least 1; at most the trained steps, where the process has such.
    pub steps: usize,
    /// Used by variance-preserving processes.
    pub spacing: Spacing,
    /// Used by variance-preserving processes.
    pub end: End,
    pub threshold: Threshold,
    /// Picture to picture: which share of the steps is walked, in [0, 1]. 1 forgets the picture (all of the walk), 0 gives it back. 1 without a picture.
    pub strength: f64,
}

impl Plan {
    /// The usual walk for a network trained on `process`: whole, not thresholded, evenly spaced, on the fixed small variance.
    pub fn new(process: Process, parameterization: Parameterization, sampler: Sampler, steps: usize) -> Self {
        Self {
            process,
            parameterization,
            variance: Variance::FixedSmall,
            sampler,
            steps,
            spacing: Spacing::Trailing,
            end: End::Clean,
            threshold: Threshold::None,
            strength: 1.0,
        }
    }

    pub fn validate(&self) -> Result<(), PlanError> {
        self.process.validate()?;
        SettingError::unless(self.steps >= 1, "steps", "at least 1", self.steps)?;
        SettingError::unless((0.0..=1.0).contains(&self.strength), "strength", "a number from 0 to 1", self.strength)?;
        self.sampler.validate()?;
        self.threshold.validate()?;
        self.validate_parameterization()?;
        if let Process::VariancePreserving(schedule) = &self.process {
            let train_steps = schedule.train_steps();
            let at_most = format!("at most the {train_steps} trained steps");
            SettingError::unless(self.steps <= train_steps, "steps", at_most.clone(), self.steps)?;
            if let Sampler::LatentConsistency { distilled_steps } = self.sampler {
                SettingError::unless(self.steps <= distilled_steps, "steps", format!("at most the {distilled_steps} distilled steps"), self.steps)?;
                SettingError::unless(distilled_steps <= train_steps, "distilled_steps", at_most, distilled_steps)?;
            }
            self.spacing.validate(train_steps, self.steps, self.grid())?;
        }
        let unreadable = self.parameterization == Parameterization::Noise && self.levels().iter().any(|level| level.alpha == 0.0);
        SettingError::unless(!unreadable, "parameterization", "velocity or the clean picture, as the walk starts from pure noise", "noise")
    }

    fn validate_parameterization(&self) -> Result<(), PlanError> {
        let exploding = matches!(self.process, Process::VarianceExploding(_));
        if let Parameterization::Edm { sigma_data } = self.parameterization {
            SettingError::unless(exploding, "parameterization", "one that fits the process", "edm")?;
            SettingError::unless(sigma_data > 0.0 && sigma_data.is_finite(), "sigma_data", "a number above 0", sigma_data)?;
            if let Process::VarianceExploding(config) = &self.process {
                // The network's input is scaled by the process's, its output by the parameterization's: one picture has one.
                let expected = format!("the process's {}", config.sigma_data);
                SettingError::unless(sigma_data == config.sigma_data, "parameterization.edm.sigma_data", expected, sigma_data)?;
            }
        }
        let consistency = matches!(self.sampler, Sampler::LatentConsistency { .. });
        let preserving = matches!(self.process, Process::VariancePreserving(_));
        SettingError::unless(preserving || !consistency, "sampler", "one that fits the process", "latent consistency")
    }

    fn grid(&self) -> Grid {
        match self.sampler {
            Sampler::Ddpm | Sampler::Ddim { .. } | Sampler::LatentConsistency { .. } => Grid::Trained,
            Sampler::Euler | Sampler::EulerAncestral | Sampler::Heun => Grid::Continuous,
            Sampler::DpmSolverPlusPlus2M | Sampler::UniPc => Grid::Multistep,
        }
    }

    /// The levels of the walk, from the noisiest to the end: one more than there are steps to walk. The plan must be valid.
    pub fn levels(&self) -> Vec<Level> {
        let mut levels = match &self.process {
            Process::VarianceExploding(config) => config.levels(self.steps),
            Process::Flow(config) => config.levels(self.steps),
            Process::VariancePreserving(schedule) => {
                let end = match self.end {
                    End::Clean => schedule.clean(),
                    End::FirstTrainedStep => schedule.level(0),
                };
                let walked = match self.sampler {
                    Sampler::LatentConsistency { distilled_steps } => super::samplers::latent_consistency::levels(schedule, distilled_steps, self.steps),
                    _ => self.spacing.levels(schedule, self.steps, self.grid()),
                };
                walked.into_iter().chain([end]).collect()
            }
        };
        levels.drain(..self.steps - self.steps_walked());
        levels
    }

    /// How many of the steps are walked: all without a picture to start from. (The crumb keeps 0.29 of 100 steps at 29.)
    pub fn steps_walked(&self) -> usize {
        (self.steps as f64 * self.strength + 1e-9) as usize
    }

    /// The start of a walk from nothing: unit normal noise, scaled to the first level.
    pub fn start_from_noise(&self, noise: &[f32]) -> Vec<f32> {
        combine([(self.process.noise_scale(&self.levels()[0]), noise)])
    }

    /// The start of picture to picture: the picture, drowned in unit normal noise as deep as `strength` says. Variations of a picture are walks from it with
    /// other noise. With strength 1 it is [`Self::start_from_noise`]: the picture is forgotten.
    pub fn start_from_picture(&self, picture: &[f32], noise: &[f32]) -> Vec<f32> {
        if self.strength == 1.0 {
            return self.start_from_noise(noise);
        }
        if self.steps_walked() == 0 {
            return picture.to_vec();
        }
        self.levels()[0].noised(picture, noise)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Schedule, ScheduleConfig, flow, sigmas};
    use super::*;

    fn ddpm(sampler: Sampler, steps: usize) -> Plan {
        Plan::new(Process::VariancePreserving(Schedule::new(ScheduleConfig::ddpm()).unwrap()), Parameterization::Noise, sampler, steps)
    }

    #[test]
    fn wrong_plans_are_named() {
        let check = |plan: Plan, expected: &str| assert_eq!(plan.validate().unwrap_err().to_string(), expected);
        let plan = ddpm(Sampler::Ddpm, 50);
        assert_eq!(plan.validate(), Ok(()));
        check(ddpm(Sampler::Ddpm, 0), "steps: expected at least 1, found 0");
        check(ddpm(Sampler::Ddpm, 1001), "steps: expected at most the 1000 trained steps, found 1001");
        check(ddpm(Sampler::Ddim { eta: -0.1 }, 50), "eta: expected a number of at least 0, found -0.1");
        check(Plan { strength: 1.2, ..plan.clone() }, "strength: expected a number from 0 to 1, found 1.2");
        check(Plan { strength: f64::NAN, ..plan.clone() }, "strength: expected a number from 0 to 1, found NaN");
        check(Plan { threshold: Threshold::dynamic(0.0), ..plan.clone() }, "threshold.percentile: expected a number above 0 and at most 1, found 0");
        check(Plan { spacing: Spacing::Karras { rho: -1.0 }, ..plan.clone() }, "spacing.rho: expected a number above 0, found -1");
        let offset = Plan { spacing: Spacing::Leading { offset: 1 }, ..ddpm(Sampler::Ddpm, 1000) };
        check(offset, "spacing.offset: expected an offset that leaves the first step among the trained ones, found 1");
        check(ddpm(Sampler::LatentConsistency { distilled_steps: 4 }, 5), "steps: expected at most the 4 distilled steps, found 5");
        let edm = Plan { parameterization: Parameterization::Edm { sigma_data: 0.5 }, ..plan };
        check(edm, "parameterization: expected one that fits the process, found edm");
        let edm = Plan::new(Process::VarianceExploding(sigmas::Config::edm()), Parameterization::Edm { sigma_data: 5.0 }, Sampler::Heun, 18);
        check(edm, "parameterization.edm.sigma_data: expected the process's 0.5, found 5");
    }

    /// 2305.08891, section 3.1: nothing can be read from predicted noise where there is only noise.
    #[test]
    fn pure_noise_wants_velocity() {
        let config = ScheduleConfig { zero_terminal_snr: true, ..ScheduleConfig::ddpm() };
        let process = Process::VariancePreserving(Schedule::new(config).unwrap());
        let plan = Plan::new(process, Parameterization::Noise, Sampler::Euler, 10);
        assert!(plan.validate().unwrap_err().to_string().starts_with("parameterization: expected velocity"));
        assert_eq!(Plan { spacing: Spacing::Leading { offset: 0 }, ..plan.clone() }.validate(), Ok(()));
        assert_eq!(Plan { parameterization: Parameterization::Velocity, ..plan }.validate(), Ok(()));
    }

    #[test]
    fn strength_is_the_share_of_the_steps() {
        let walked = |strength, steps| Plan { strength, ..ddpm(Sampler::Euler, steps) }.levels().len() - 1;
        assert_eq!([walked(0.0, 50), walked(0.5, 50), walked(0.29, 100), walked(1.0, 50)], [0, 25, 29, 50]);
        let plan = Plan { strength: 0.0, ..ddpm(Sampler::Euler, 50) };
        assert_eq!(plan.start_from_picture(&[0.5], &[3.0]), [0.5]);
        let plan = Plan { strength: 1.0, ..plan };
        assert_eq!(plan.start_from_picture(&[0.5], &[3.0]), [3.0]);
    }

    #[test]
    fn walks_start_at_the_noise_of_their_process() {
        let edm = Plan::new(Process::VarianceExploding(sigmas::Config::edm()), Parameterization::Edm { sigma_data: 0.5 }, Sampler::Heun, 18);
        assert_eq!(edm.validate(), Ok(()));
        assert!((edm.start_from_noise(&[1.0])[0] - 80.0).abs() < 1e-4);
        let flow = Plan::new(Process::Flow(flow::Config { train_steps: 1000, shift: 3.0 }), Parameterization::Flow, Sampler::Euler, 18);
        assert_eq!((flow.validate(), flow.start_from_noise(&[1.0])[0]), (Ok(()), 1.0));
    }
}
