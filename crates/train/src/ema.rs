//! Exponential moving average of the weights: average <- d * average + (1 - d) * weights.
//!
//! The decay d rises with the number of updates t as min(decay, (1 + t) / (10 + t)) (TensorFlow's ExponentialMovingAverage with `num_updates`, used by
//! latent-diffusion's LitEma), so that the random first weights are forgotten early.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, container::TensorContainer};

/// The decay of update number `update`, counted from 0.
pub fn decay_at(decay: f64, update: usize) -> f64 {
    decay.min((1 + update) as f64 / (10 + update) as f64)
}

/// One update. `average` lives without gradients and has the parameter ids of `network`.
///
/// Parameters that no optimiser moves (a codebook kept as moving averages, batch statistics) are copied: they are averages already, and a code that was
/// restarted elsewhere must not be found halfway.
pub fn update<M: Module>(average: M, network: &M, decay: f64) -> M {
    let mut weights = Weights { tensors: TensorContainer::new() };
    network.visit(&mut weights);
    average.map(&mut Average { weights, decay })
}

struct Weights {
    /// Each with whether it learns.
    tensors: TensorContainer<ParamId>,
}

impl ModuleVisitor for Weights {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.tensors.register(param.id, (param.val().inner(), param.is_require_grad()));
    }
}

struct Average {
    weights: Weights,
    decay: f64,
}

impl ModuleMapper for Average {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let (weights, learns) = self.weights.tensors.remove::<(Tensor<D>, bool)>(&param.id).expect("the average has the parameters of its network");
        param.map(|average| if learns { average * self.decay + weights * (1.0 - self.decay) } else { weights })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use smalti_nn::Initializer;
    use smalti_nn::layers::Linear;
    use smalti_nn::weights::collect;

    #[test]
    fn decay_rises_to_its_limit() {
        assert_eq!(decay_at(0.999, 0), 0.1);
        assert_eq!(decay_at(0.999, 90), 0.91);
        assert_eq!(decay_at(0.999, 1_000_000), 0.999);
        assert_eq!(decay_at(0.0, 5), 0.0);
    }

    #[test]
    fn average_follows_its_formula_and_leaves_the_network_alone() {
        let device = Device::flex().autodiff();
        let network = Linear::normal(3, 2, true, 1.0, &mut Initializer::new(1, &device));
        let doubled = network.clone().map(&mut Double);
        let average = update(network.valid(), &doubled, 0.75);
        let (before, after) = (collect(&network), collect(&average));
        for (name, tensor) in &after {
            for (value, start) in tensor.values.iter().zip(&before[name].values) {
                assert!((value - 1.25 * start).abs() < 1e-6, "{name}");
            }
        }
        assert_eq!(collect(&doubled)["weight"].values[0], 2.0 * before["weight"].values[0]);
    }

    #[test]
    fn what_no_optimiser_moves_is_copied() {
        let device = Device::flex().autodiff();
        let network = Linear::normal(3, 2, true, 1.0, &mut Initializer::new(1, &device)).no_grad();
        let doubled = network.clone().map(&mut Double).no_grad();
        assert_eq!(collect(&update(network.valid(), &doubled, 0.75)), collect(&doubled));
    }

    struct Double;

    impl ModuleMapper for Double {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let learns = param.is_require_grad();
            param.map(|tensor| Tensor::from_inner(tensor.inner() * 2.0).set_require_grad(learns))
        }
    }
}
