//! Which of the trained steps a short walk takes (2305.08891, table 2).

use super::{Level, Schedule, SettingError, sigmas};
use serde::{Deserialize, Serialize};

/// How the steps of a walk are spread over the trained ones. Variance-preserving processes only; the others have their own levels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Even, with the first and the last trained step.
    Linspace,
    /// Every k-th, from `offset` on. With 0 the last trained step is left out, so sampling starts where the network expects a rest of the picture: DDIM's own
    /// choice; Stable Diffusion 1 has the offset 1.
    Leading { offset: usize },
    /// Every k-th, down from the last trained step. The one that fits zero terminal SNR.
    Trailing,
    /// Noise levels as in EDM (equation 5) between those of the first and the last trained step; 7 is the paper's rho.
    Karras { rho: f64 },
}

/// Where a walk over a table ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// On the clean picture.
    Clean,
    /// On the first trained step, whose noise cannot be seen: Stable Diffusion with DDIM (`set_alpha_to_one = false` in its `scheduler_config.json`).
    FirstTrainedStep,
}

/// What a sampler asks of its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grid {
    /// Trained steps only: DDPM, DDIM.
    Trained,
    /// Between trained steps too: Euler, Heun.
    Continuous,
    /// Trained steps, spread as if for one step more, the last of which is left out: there is almost no noise left to judge there, and the multistep solvers
    /// count every call (`DPMSolverMultistepScheduler`, `UniPCMultistepScheduler`).
    Multistep,
}

impl Spacing {
    pub(crate) fn validate(self, train_steps: usize, steps: usize, grid: Grid) -> Result<(), SettingError> {
        match self {
            Self::Leading { offset } => {
                let room = train_steps - 1 - leading(train_steps, steps, grid)[0];
                SettingError::unless(offset <= room, "spacing.offset", "an offset that leaves the first step among the trained ones", offset)
            }
            Self::Karras { rho } => SettingError::unless(rho > 0.0 && rho.is_finite(), "spacing.rho", "a number above 0", rho),
            Self::Linspace | Self::Trailing => Ok(()),
        }
    }

    /// `steps` levels, falling. `steps` is at least 1 and at most the number of trained steps; the spacing is valid.
    pub(crate) fn levels(self, schedule: &Schedule, steps: usize, grid: Grid) -> Vec<Level> {
        let train_steps = schedule.train_steps();
        match self {
            Self::Karras { rho } => {
                let noisiest = schedule.alpha_bars().iter().rposition(|alpha_bar| *alpha_bar > 0.0).unwrap_or(0);
                let ends = [0, noisiest].map(|step| schedule.level(step).noise_to_signal());
                sigmas::karras(ends[0], ends[1], rho, steps).into_iter().map(|noise_to_signal| schedule.level_of(noise_to_signal)).collect()
            }
            Self::Linspace => linspace(train_steps, steps, grid).into_iter().map(|timestep| schedule.level_at(timestep)).collect(),
            Self::Leading { offset } => leading(train_steps, steps, grid).into_iter().map(|step| schedule.level(step + offset)).collect(),
            Self::Trailing => trailing(train_steps, steps).into_iter().map(|step| schedule.level(step)).collect(),
        }
    }
}

fn linspace(train_steps: usize, steps: usize, grid: Grid) -> Vec<f64> {
    let count = if grid == Grid::Multistep { (steps + 1).min(train_steps) } else { steps };
    let gap = (train_steps - 1) as f64 / count.saturating_sub(1).max(1) as f64;
    // One step is pure noise to picture in one jump: it must be the last trained step. (`diffusers` asks the network at step 0 then.)
    let first = if count == 1 { train_steps as f64 - 1.0 } else { 0.0 };
    let timesteps = (0..count).rev().map(|index| first + index as f64 * gap).take(steps);
    match grid {
        Grid::Continuous => timesteps.collect(),
        Grid::Trained | Grid::Multistep => timesteps.map(f64::round_ties_even).collect(),
    }
}

fn leading(train_steps: usize, steps: usize, grid: Grid) -> Vec<usize> {
    let count = if grid == Grid::Multistep { (steps + 1).min(train_steps) } else { steps }; // all trained steps leave no room for one more
    let (gap, lowest) = (train_steps / count, count - steps);
    (lowest..lowest + steps).rev().map(|index| index * gap).collect()
}

fn trailing(train_steps: usize, steps: usize) -> Vec<usize> {
    let gap = train_steps as f64 / steps as f64;
    (0..steps).map(|index| (train_steps as f64 - index as f64 * gap).round_ties_even() as usize - 1).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ScheduleConfig;
    use super::*;
    use proptest::prelude::*;

    fn timesteps(spacing: Spacing, steps: usize, grid: Grid) -> Vec<f64> {
        let schedule = Schedule::new(ScheduleConfig::ddpm()).unwrap();
        spacing.levels(&schedule, steps, grid).iter().map(|level| level.timestep).collect()
    }

    /// 2305.08891, table 2, counted from 0: ten of a thousand steps.
    #[test]
    fn ten_of_a_thousand() {
        let ends = |spacing| {
            let steps = timesteps(spacing, 10, Grid::Trained);
            (steps[0], steps[1], steps[9])
        };
        assert_eq!(ends(Spacing::Linspace), (999.0, 888.0, 0.0));
        assert_eq!(ends(Spacing::Leading { offset: 0 }), (900.0, 800.0, 0.0));
        assert_eq!(ends(Spacing::Leading { offset: 1 }), (901.0, 801.0, 1.0));
        assert_eq!(ends(Spacing::Trailing), (999.0, 899.0, 99.0));
        assert_eq!(timesteps(Spacing::Linspace, 4, Grid::Multistep), [999.0, 749.0, 500.0, 250.0]);
        assert_eq!(timesteps(Spacing::Linspace, 5, Grid::Continuous)[1], 749.25);
        assert_eq!(timesteps(Spacing::Linspace, 1, Grid::Trained), [999.0]);
    }

    proptest! {
        #[test]
        fn steps_fall_and_stay_among_the_trained(train_steps in 2_usize..1001, share in 0.0_f64..=1.0, offset in 0_usize..2, which in 0_usize..4, grid in 0_usize..3) {
            let schedule = Schedule::new(ScheduleConfig { train_steps, ..ScheduleConfig::cosine() }).unwrap();
            let steps = ((share * train_steps as f64) as usize).max(1);
            let spacing = [Spacing::Linspace, Spacing::Leading { offset }, Spacing::Trailing, Spacing::Karras { rho: 7.0 }][which];
            let grid = [Grid::Trained, Grid::Continuous, Grid::Multistep][grid];
            prop_assume!(spacing.validate(train_steps, steps, grid).is_ok());
            let levels = spacing.levels(&schedule, steps, grid);
            prop_assert_eq!(levels.len(), steps);
            prop_assert!(levels.is_sorted_by(|a, b| a.sigma > b.sigma), "{:?}", levels);
            prop_assert!(levels.iter().all(|level| level.timestep >= 0.0 && level.timestep <= train_steps as f64 - 1.0 && level.sigma > 0.0));
        }
    }
}
