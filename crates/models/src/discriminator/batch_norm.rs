//! Batch normalisation (Ioffe and Szegedy 2015), channels last. Running statistics change only where the caller says so.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use smalti_nn::Initializer;

/// As PyTorch's default.
const EPSILON: f32 = 1e-5;
const MOMENTUM: f32 = 0.1;

/// Mean and unbiased variance of each channel over one batch, both [channels], without gradient.
#[derive(Clone, Debug)]
pub struct BatchStatistics {
    mean: Tensor<1>,
    variance: Tensor<1>,
}

#[derive(Module, Debug)]
pub(super) struct BatchNorm {
    scale: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    running_mean: Param<Tensor<1>>,
    running_variance: Param<Tensor<1>>,
}

impl BatchNorm {
    /// Scale normal around 1 with deviation 0.02 (taming `weights_init`).
    pub(super) fn new(channels: usize, initializer: &mut Initializer) -> Self {
        Self {
            scale: initializer.normal([channels], 0.02).map(|scale| (scale.detach() + 1.0).detach()).set_require_grad(true),
            bias: initializer.constant([channels], 0.0),
            running_mean: initializer.constant([channels], 0.0).set_require_grad(false),
            running_variance: initializer.constant([channels], 1.0).set_require_grad(false),
        }
    }

    /// Normalised by the batch's own statistics. x [batch, height, width, channels].
    pub(super) fn forward_training(&self, x: Tensor<4>) -> (Tensor<4>, BatchStatistics) {
        let [batch, height, width, channels] = x.dims();
        let count = (batch * height * width) as f32;
        let mean = x.clone().mean_dims(&[0, 1, 2]); // [1, 1, 1, channels]
        let variance = (x.clone() - mean.clone()).powi_scalar(2).mean_dims(&[0, 1, 2]);
        let unbiased = variance.clone().detach() * (count / (count - 1.0).max(1.0));
        let statistics = BatchStatistics { mean: mean.clone().detach().reshape([channels]), variance: unbiased.reshape([channels]) };
        (self.normalise(x, mean, variance), statistics)
    }

    /// Normalised by the running statistics.
    pub(super) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.normalise(x, self.running_mean.val().reshape([1, 1, 1, -1]), self.running_variance.val().reshape([1, 1, 1, -1]))
    }

    fn normalise(&self, x: Tensor<4>, mean: Tensor<4>, variance: Tensor<4>) -> Tensor<4> {
        (x - mean) * (variance + EPSILON).sqrt().recip() * self.scale.val().reshape([1, 1, 1, -1]) + self.bias.val().reshape([1, 1, 1, -1])
    }

    /// running = 0.9 * running + 0.1 * batch.
    pub(super) fn update(self, statistics: &BatchStatistics) -> Self {
        let blend = |running: Param<Tensor<1>>, batch: &Tensor<1>| running.map(|running| (running * (1.0 - MOMENTUM) + batch.clone() * MOMENTUM).detach());
        Self { running_mean: blend(self.running_mean, &statistics.mean), running_variance: blend(self.running_variance, &statistics.variance), ..self }
    }
}
