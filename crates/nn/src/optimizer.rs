//! AdamW (Loshchilov and Hutter 2019) as one pass over parameter, gradient and moments. Its state is that of burn's AdamW, so records of one fit the other.

use crate::ops::adamw;
use burn::optim::{AdamWState, AdaptiveMomentumState, LearningRate, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, Tensor};
use smalti_kernels::elementwise::AdamW;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FusedAdamW {
    /// Decay of the mean of gradients, in [0, 1).
    pub beta_1: f32,
    /// Decay of the mean of squared gradients, in [0, 1).
    pub beta_2: f32,
    /// Added to the square root, above 0.
    pub epsilon: f32,
    /// Share of a parameter that a learning rate of 1 would take away.
    pub weight_decay: f32,
}

impl FusedAdamW {
    pub fn init(self) -> ModuleOptimizer {
        ModuleOptimizer::from(self)
    }
}

impl Optimizer for FusedAdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        learning_rate: LearningRate,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let state = state.map(|state| state.momentum).unwrap_or_else(|| AdaptiveMomentumState::new(0, gradient.zeros_like(), gradient.zeros_like()));
        let time = state.time + 1;
        let &Self { beta_1, beta_2, epsilon, weight_decay } = self;
        let step = i32::try_from(time).unwrap_or(i32::MAX); // by then the corrections are 1
        let numbers = AdamW { learning_rate: learning_rate as f32, beta_1, beta_2, epsilon, weight_decay, step };
        let (parameter, [moment_1, moment_2]) = adamw(parameter, gradient, [state.moment_1, state.moment_2], numbers);
        (parameter, Some(AdamWState::new(AdaptiveMomentumState::new(time, moment_1, moment_2))))
    }

    fn to_device<const D: usize>(mut state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.momentum = state.momentum.to_device(device);
        state
    }
}
