//! Guidance: the prediction is pushed further towards what the condition changes.
//!
//! The scale w is Imagen's (2205.11487, equation 2) and `diffusers`': 1 is the conditional prediction, 0 the unconditional one. The weight of Ho and Salimans
//! (2207.12598) is w - 1. Every parameterization is a straight mixture of sample and output, so raw outputs are guided as they are.

use super::level::combine;
use super::{Level, Parameterization, SettingError};

/// Classifier-free guidance: u + w (c - u). At 1 it is `conditional` and at 0 `unconditional`, both bit for bit. Slices of the same length.
pub fn classifier_free(conditional: &[f32], unconditional: &[f32], scale: f64) -> Vec<f32> {
    combine([(scale, conditional), (1.0 - scale, unconditional)])
}

/// Rescaled guidance (2305.08891, equations 15 and 16): each picture of `guided` gets the standard deviation it has in `conditional`, and `share`, in [0, 1], of
/// that is taken; 0 changes nothing. The paper's share is 0.7.
pub fn rescale(guided: &mut [f32], conditional: &[f32], value_count: usize, share: f64) {
    if share == 0.0 {
        return;
    }
    for (guided, conditional) in guided.chunks_mut(value_count).zip(conditional.chunks(value_count)) {
        let spread = standard_deviation(guided);
        if spread > 0.0 {
            let factor = share * standard_deviation(conditional) / spread + (1.0 - share);
            guided.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
        }
    }
}

fn standard_deviation(values: &[f32]) -> f64 {
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64;
    (values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

/// The levels at which guidance helps (2404.07724): outside, the scale is 1, and the unconditional half of the work is saved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lowest sigma / alpha with guidance, at least 0.
    pub low: f64,
    /// Highest sigma / alpha with guidance; infinite is no bound.
    pub high: f64,
}

impl Interval {
    /// Everywhere.
    pub fn whole() -> Self {
        Self { low: 0.0, high: f64::INFINITY }
    }

    pub fn validate(&self) -> Result<(), SettingError> {
        SettingError::unless(self.low >= 0.0, "guidance.low", "a number of at least 0", self.low)?;
        SettingError::unless(self.high >= self.low, "guidance.high", "a number of at least guidance.low", self.high)
    }

    pub fn contains(&self, level: &Level) -> bool {
        (self.low..=self.high).contains(&level.noise_to_signal())
    }

    /// The scale to use at a level: `scale` inside, 1 outside.
    pub fn scale_at(&self, level: &Level, scale: f64) -> f64 {
        if self.contains(level) { scale } else { 1.0 }
    }
}

/// Adaptive projected guidance (APG, 2410.02416, algorithm 1), which keeps strong guidance from over-saturating.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProjectionOptions {
    /// Share kept of the part of the update that only makes the picture stronger, in [0, 1]; 1 is plain guidance. The paper: 0.
    pub parallel: f64,
    /// How much of the last step's update is added; negative takes back. The paper: -0.5 for Stable Diffusion 2.
    pub momentum: f64,
    /// The update of one picture has at most this Euclidean norm, above 0; infinite is no bound. The paper: 7.5 for Stable Diffusion 2, depends on the size.
    pub norm: f64,
}

impl ProjectionOptions {
    pub fn validate(&self) -> Result<(), SettingError> {
        SettingError::unless((0.0..=1.0).contains(&self.parallel), "projection.parallel", "a number from 0 to 1", self.parallel)?;
        SettingError::unless(self.momentum.abs() < 1.0, "projection.momentum", "a number between -1 and 1", self.momentum)?;
        SettingError::unless(self.norm > 0.0, "projection.norm", "a number above 0", self.norm)
    }
}

/// One walk's projected guidance: it remembers the running update.
#[derive(Clone, Debug)]
pub struct Projection {
    options: ProjectionOptions,
    /// Numbers per picture.
    value_count: usize,
    running: Vec<f32>,
}

impl Projection {
    /// `options` are valid, `value_count` is at least 1.
    pub fn new(options: ProjectionOptions, value_count: usize) -> Self {
        Self { options, value_count, running: Vec::new() }
    }

    /// Guides predicted *clean pictures*, not raw outputs. At scale 1 the result is `conditional`, bit for bit.
    pub fn guide_clean(&mut self, conditional: &[f32], unconditional: &[f32], scale: f64) -> Vec<f32> {
        let change = combine([(1.0, conditional), (-1.0, unconditional)]);
        self.running = match self.running.is_empty() {
            true => change,
            false => combine([(1.0, &change), (self.options.momentum, &self.running)]),
        };
        let mut update = self.running.clone();
        for (update, conditional) in update.chunks_mut(self.value_count).zip(conditional.chunks(self.value_count)) {
            self.options.project(update, conditional);
        }
        combine([(1.0, conditional), (scale - 1.0, &update)])
    }

    /// Guides raw outputs of a parameterization, by way of the clean pictures they stand for.
    pub fn guide(
        &mut self,
        parameterization: Parameterization,
        level: &Level,
        sample: &[f32],
        conditional: &[f32],
        unconditional: &[f32],
        scale: f64,
    ) -> Vec<f32> {
        let clean = |output| parameterization.clean(level, sample, output);
        let guided = self.guide_clean(&clean(conditional), &clean(unconditional), scale);
        parameterization.output(level, sample, &guided)
    }
}

impl ProjectionOptions {
    /// Bounds the update of one picture, then takes out (1 - parallel) of its part along the conditional prediction.
    fn project(&self, update: &mut [f32], conditional: &[f32]) {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let bound = (self.norm / dot(update, update).sqrt()).min(1.0);
        let bound = if bound.is_finite() { bound } else { 1.0 }; // an update of nothing
        let length = dot(conditional, conditional);
        let along = if length > 0.0 { bound * dot(update, conditional) / length } else { 0.0 };
        let projected = combine([(bound, update), (-(1.0 - self.parallel) * along, conditional)]);
        update.copy_from_slice(&projected);
    }
}

/// Classifier guidance (2105.05233, algorithm 2): noise - sigma * scale * gradient, where the gradient is that of the log-probability of the wanted class at
/// the sample, from a classifier trained on noisy pictures. The result is an output of the same parameterization. Slices of the same length.
///
/// The predicted clean picture moves by sigma^2 / alpha times scale times gradient. At pure noise (alpha 0), which says nothing of any class, the output stays.
pub fn classifier(parameterization: Parameterization, level: &Level, output: &[f32], gradient: &[f32], scale: f64) -> Vec<f32> {
    if level.alpha == 0.0 {
        return output.to_vec();
    }
    // The noise is output * n + sample * ..., so a change of the noise is a change of the output divided by n.
    let of_output = match parameterization {
        Parameterization::Noise => 1.0,
        _ => -level.alpha * parameterization.clean_coefficients(level).1 / level.sigma,
    };
    combine([(1.0, output), (-level.sigma * scale / of_output, gradient)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEVEL: Level = Level { timestep: 500.0, alpha: 0.8, sigma: 0.6 };

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// The two papers' weights differ by one; ours is Imagen's.
    #[test]
    fn scale_one_is_the_condition_and_zero_is_none() {
        let (conditional, unconditional) = ([1.1_f32, 3.0e38, 0.3, -7.7], [0.7_f32, -3.0e38, 1.0e-30, 0.1]);
        assert_eq!(bits(&classifier_free(&conditional, &unconditional, 1.0)), bits(&conditional));
        assert_eq!(bits(&classifier_free(&conditional, &unconditional, 0.0)), bits(&unconditional));
        assert_eq!(classifier_free(&[1.0, 2.0], &[3.0, 0.0], 10.0), [-17.0, 20.0]); // u + 10 (c - u)
    }

    #[test]
    fn a_rescaled_picture_has_the_spread_of_the_conditional_one() {
        let conditional = [1.0_f32, -1.0, 0.5, -0.5, 2.0, 0.0];
        let mut guided = [4.0_f32, -4.0, 1.0, 9.0, 0.0, 1.0];
        rescale(&mut guided, &conditional, 3, 1.0);
        for picture in [0..3, 3..6] {
            assert!((standard_deviation(&guided[picture.clone()]) - standard_deviation(&conditional[picture])).abs() < 1e-6);
        }
        let mut untouched = [0.1_f32, 0.7];
        rescale(&mut untouched, &[5.0, 6.0], 2, 0.0);
        assert_eq!(untouched, [0.1, 0.7]);
        let mut half = [2.0_f32, -2.0]; // spread 2, conditional 1: half way is 1.5
        rescale(&mut half, &[1.0, -1.0], 2, 0.5);
        assert_eq!(half, [1.5, -1.5]);
    }

    #[test]
    fn guidance_is_off_outside_its_interval() {
        let interval = Interval { low: 0.3, high: 5.0 };
        let at = |noise_to_signal: f64| interval.scale_at(&Level { timestep: 0.0, alpha: 1.0, sigma: noise_to_signal }, 7.5);
        assert_eq!([at(0.2), at(0.3), at(2.0), at(5.0), at(9.0)], [1.0, 7.5, 7.5, 7.5, 1.0]);
        assert_eq!(Interval::whole().scale_at(&Level { timestep: 0.0, alpha: 0.0, sigma: 1.0 }, 7.5), 7.5);
        assert_eq!(Interval { low: 2.0, high: 1.0 }.validate().unwrap_err().key, "guidance.high");
    }

    proptest! {
        /// Without projection, momentum and bound it is plain guidance; at scale 1 it is the conditional prediction whatever the options.
        #[test]
        fn projection_generalises_plain_guidance(
            conditional in prop::collection::vec(-1.0_f32..1.0, 6), unconditional in prop::collection::vec(-1.0_f32..1.0, 6), scale in 0.0_f64..12.0,
        ) {
            let plain = ProjectionOptions { parallel: 1.0, momentum: 0.0, norm: f64::INFINITY };
            let found = Projection::new(plain, 3).guide_clean(&conditional, &unconditional, scale);
            for (found, expected) in found.iter().zip(classifier_free(&conditional, &unconditional, scale)) {
                prop_assert!((found - expected).abs() < 1e-5);
            }
            let paper = ProjectionOptions { parallel: 0.0, momentum: -0.5, norm: 0.3 };
            let mut projection = Projection::new(paper, 3);
            prop_assert_eq!(&projection.guide_clean(&conditional, &unconditional, 1.0), &conditional);
            // Of the update nothing is left along the prediction, and its norm is bounded.
            let guided = projection.guide_clean(&conditional, &unconditional, 2.0);
            for picture in [0..3, 3..6] {
                let update: Vec<f64> = picture.clone().map(|index| f64::from(guided[index]) - f64::from(conditional[index])).collect();
                let along: f64 = update.iter().zip(&conditional[picture]).map(|(a, b)| a * f64::from(*b)).sum();
                prop_assert!(along.abs() < 1e-5 && update.iter().map(|value| value * value).sum::<f64>().sqrt() < 0.3 + 1e-5);
            }
        }

        /// In every parameterization the noise moves by the same amount: that of the paper.
        #[test]
        fn classifier_guidance_shifts_the_noise(output in -2.0_f32..2.0, sample in -2.0_f32..2.0, gradient in -2.0_f32..2.0, scale in 0.0_f64..5.0) {
            for parameterization in [Parameterization::Noise, Parameterization::Clean, Parameterization::Velocity, Parameterization::Flow] {
                let noise = |output: &[f32]| f64::from(parameterization.noise(&LEVEL, &[sample], output)[0]);
                let moved = noise(&classifier(parameterization, &LEVEL, &[output], &[gradient], scale)) - noise(&[output]);
                prop_assert!((moved + 0.6 * scale * f64::from(gradient)).abs() < 1e-4, "{parameterization:?}: {moved}");
            }
        }
    }

    #[test]
    fn pure_noise_belongs_to_no_class() {
        let level = Level { timestep: 999.0, alpha: 0.0, sigma: 1.0 };
        for parameterization in [Parameterization::Velocity, Parameterization::Flow, Parameterization::Clean] {
            assert_eq!(classifier(parameterization, &level, &[0.3, -2.0], &[1.0, 1.0], 5.0), [0.3, -2.0], "{parameterization:?}");
        }
    }

    /// Tweedie's formula with the score of the class added: the clean picture moves by sigma^2 / alpha of the gradient, towards the class.
    #[test]
    fn classifier_guidance_moves_the_clean_picture_along_the_gradient() {
        let edm = Parameterization::Edm { sigma_data: 0.5 };
        for (parameterization, level) in
            [(Parameterization::Velocity, LEVEL), (Parameterization::Noise, LEVEL), (edm, Level { timestep: 0.0, alpha: 1.0, sigma: 2.0 })]
        {
            let clean = |output: &[f32]| f64::from(parameterization.clean(&level, &[0.4], output)[0]);
            let moved = clean(&classifier(parameterization, &level, &[0.3], &[0.7], 1.5)) - clean(&[0.3]);
            assert!((moved - level.sigma.powi(2) / level.alpha * 1.5 * 0.7).abs() < 1e-5, "{parameterization:?}: {moved}");
        }
    }

    /// 2410.02416, algorithm 1: the running update is this step's plus momentum times the last running one.
    #[test]
    fn momentum_takes_back_a_part_of_the_last_update() {
        let options = ProjectionOptions { parallel: 1.0, momentum: -0.5, norm: f64::INFINITY };
        let mut projection = Projection::new(options, 1);
        assert_eq!(projection.guide_clean(&[1.0], &[0.0], 3.0), [3.0]); // update 1
        assert_eq!(projection.guide_clean(&[1.0], &[0.0], 3.0), [2.0]); // update 1 - 0.5
        assert_eq!(projection.guide_clean(&[1.0], &[0.0], 3.0), [2.5]); // update 1 - 0.25
        let mut raw = Projection::new(options, 1);
        let guided = raw.guide(Parameterization::Velocity, &LEVEL, &[0.5], &[0.2], &[-0.1], 3.0);
        assert!((guided[0] - 0.8).abs() < 1e-6, "plain guidance of velocity, -0.1 + 3 * 0.3: {guided:?}");
    }
}
