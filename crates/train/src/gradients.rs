//! Between backward and the optimiser: sum over the passes of a step, all-reduce, measure, clip.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// sums + share * gradients, parameter by parameter. A step of k passes gives each the share 1 / k, so that it equals one pass over all their pictures.
pub fn accumulate<M: Module>(network: &M, sums: GradientsParams, gradients: GradientsParams, share: f64) -> GradientsParams {
    let mut visitor = Accumulate { sums, gradients, share, result: GradientsParams::new() };
    network.visit(&mut visitor);
    visitor.result
}

/// The seam for data-parallel training: the mean of the gradients over all ranks, summed in rank order. With one process that is the gradients themselves.
pub fn all_reduce(gradients: GradientsParams) -> GradientsParams {
    gradients
}

/// The L2 norm over all parameters together; 0 without gradients.
pub fn global_norm<M: Module>(network: &M, gradients: &GradientsParams) -> f64 {
    let mut visitor = SquareSums { gradients, sums: Vec::new() };
    network.visit(&mut visitor);
    if visitor.sums.is_empty() {
        return 0.0;
    }
    let sums = Tensor::cat(visitor.sums, 0).into_data().convert::<f32>().try_into_vec::<f32>().expect("float tensors convert to f32");
    sums.iter().map(|&sum| sum as f64).sum::<f64>().sqrt()
}

/// Every gradient times `factor`.
pub fn scale<M: Module>(network: &M, gradients: GradientsParams, factor: f64) -> GradientsParams {
    accumulate(network, GradientsParams::new(), gradients, factor)
}

struct Accumulate {
    sums: GradientsParams,
    gradients: GradientsParams,
    share: f64,
    result: GradientsParams,
}

impl ModuleVisitor for Accumulate {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let share = |gradient: Tensor<D>| if self.share == 1.0 { gradient } else { gradient * self.share };
        let gradient = match (self.sums.remove::<D>(param.id), self.gradients.remove::<D>(param.id)) {
            (Some(sum), Some(gradient)) => sum + share(gradient),
            (Some(sum), None) => sum,
            (None, Some(gradient)) => share(gradient),
            (None, None) => return,
        };
        self.result.register(param.id, gradient);
    }
}

struct SquareSums<'a> {
    gradients: &'a GradientsParams,
    sums: Vec<Tensor<1>>,
}

impl ModuleVisitor for SquareSums<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.sums.push(gradient.square().sum());
        }
    }
}
