//! Inception v3 as `pytorch-fid` uses it: the feature network of the usual Frechet distance (FID).
//!
//! - Paper: Szegedy et al. 2016, "Rethinking the Inception Architecture" (1512.00567); as FID's network Heusel et al. 2017 (1706.08500).
//! - Idea: branches of different reach side by side in every block; the mean of the last features over the picture describes its contents.
//! - Data flow: picture `[batch, 299, 299, 3]` in [-1, 1] -> stem `[batch, 35, 35, 192]` -> three blocks of 35 x 35 -> five of 17 x 17 -> three of 8 x 8
//!   -> `[batch, 8, 8, 2048]` -> mean `[batch, 2048]`.
//! - Where we differ: only inference, so batch normalisation is folded into the convolutions at import. As in `pytorch-fid`, and unlike torchvision, average
//!   pools leave padding out of the mean, and the very last block pools by maximum: the published FID weights were computed with both.
//! - Verified: features, import and folding against `pytorch_fid.inception` with weights from a formula (`goldens/make.py`), `tests.rs`.

mod architecture;
pub mod import;
#[cfg(test)]
mod tests;

use architecture::{BlockPlan, BranchPlan, LayerPlan, Pool};
use burn::module::{Module, Param};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions};
use burn::tensor::{Device, Tensor, activation, module};
use smalti_nn::Initializer;
use smalti_nn::ops::{self, Padding};

/// Height and width that the published weights expect.
pub const PICTURE_SIZE: usize = 299;
/// The smallest height and width of which anything is left at the end.
pub const SIZE_LIMIT: usize = 75;
/// Channels of the features.
pub const FEATURE_CHANNELS: usize = 2048;

/// All convolutions, without the classifier.
#[derive(Module, Debug)]
pub struct Inception {
    blocks: Vec<Block>,
}

impl Inception {
    /// Random weights, to be replaced by published ones.
    pub fn new(initializer: &mut Initializer) -> Self {
        let mut channels = 3;
        let blocks = architecture::blocks().into_iter().map(|plan| Block::new(plan, &mut channels, initializer)).collect();
        Self { blocks }
    }

    /// x [batch, height, width, 3] in [-1, 1], sides at least [`SIZE_LIMIT`], [`PICTURE_SIZE`] for comparable numbers -> [batch, 2048].
    pub fn features(&self, x: Tensor<4>) -> Tensor<2> {
        let [batch, height, width, colours] = x.dims();
        assert!(height >= SIZE_LIMIT && width >= SIZE_LIMIT && colours == 3, "inception: pictures {:?}, expected sides of at least {SIZE_LIMIT}", x.dims());
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x)); // [batch, height', width', 2048]
        x.mean_dims(&[1, 2]).reshape([batch, FEATURE_CHANNELS])
    }

    pub fn device(&self) -> Device {
        self.blocks[0].branches[0].layers[0].bias.val().device()
    }
}

/// Branches side by side, their channels joined.
#[derive(Module, Debug)]
struct Block {
    branches: Vec<Branch>,
}

impl Block {
    fn new(plan: BlockPlan, channels: &mut usize, initializer: &mut Initializer) -> Self {
        let input = *channels;
        *channels = plan.output_channels(input);
        Self { branches: plan.branches.into_iter().map(|plan| Branch::new(plan, input, initializer)).collect() }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let outputs: Vec<Tensor<4>> = self.branches.iter().map(|branch| branch.forward(x.clone())).collect();
        Tensor::cat(outputs, 3)
    }
}

/// A pool, then convolutions one after the other, then (in the last blocks) several side by side.
#[derive(Module, Debug)]
struct Branch {
    layers: Vec<Convolution>,
    fork: Vec<Convolution>,
    #[module(skip)]
    pool: Pool,
}

impl Branch {
    fn new(plan: BranchPlan, input: usize, initializer: &mut Initializer) -> Self {
        let mut channels = input;
        let mut build = |plan: LayerPlan, input: usize| Convolution::new(plan, input, initializer);
        let layers = plan.layers.into_iter().map(|layer| build(layer, std::mem::replace(&mut channels, layer.channels))).collect();
        let fork = plan.fork.into_iter().map(|layer| build(layer, channels)).collect();
        Self { layers, fork, pool: plan.pool }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.layers.iter().fold(pool(x, self.pool), |x, layer| layer.forward(x));
        if self.fork.is_empty() {
            return x;
        }
        let outputs = self.fork.iter().map(|layer| layer.forward(x.clone())).collect();
        Tensor::cat(outputs, 3)
    }
}

fn pool(x: Tensor<4>, pool: Pool) -> Tensor<4> {
    let last_to_first = |x: Tensor<4>| x.permute([0, 3, 1, 2]);
    let first_to_last = |x: Tensor<4>| x.permute([0, 2, 3, 1]);
    let padding = [1, 1];
    match pool {
        Pool::None => x,
        Pool::Mean => {
            let mut options = AvgPoolOptions::new([3, 3]).with_stride([1, 1]).with_padding(padding);
            options.count_include_pad = false;
            first_to_last(module::avg_pool2d(last_to_first(x), options))
        }
        Pool::Maximum => first_to_last(module::max_pool2d(last_to_first(x), MaxPoolOptions::new([3, 3]).with_stride([1, 1]).with_padding(padding))),
        Pool::MaximumHalving => first_to_last(module::max_pool2d(last_to_first(x), MaxPoolOptions::new([3, 3]).with_stride([2, 2]))),
    }
}

/// Convolution with folded batch normalisation, then ReLU.
#[derive(Module, Debug)]
struct Convolution {
    /// [kernel height, kernel width, input, output]
    weight: Param<Tensor<4>>,
    /// [output]
    bias: Param<Tensor<1>>,
    #[module(skip)]
    plan: LayerPlan,
}

impl Convolution {
    fn new(plan: LayerPlan, input: usize, initializer: &mut Initializer) -> Self {
        let [height, width] = plan.kernel_size;
        let deviation = (2.0 / (height * width * input) as f32).sqrt();
        let weight = initializer.normal([height, width, input, plan.channels], deviation);
        Self { weight, bias: initializer.constant([plan.channels], 0.0), plan }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let LayerPlan { kernel_size, stride, padding, .. } = self.plan;
        let (weight, bias) = (self.weight.val(), Some(self.bias.val()));
        let y = if kernel_size[0] == kernel_size[1] {
            ops::conv2d(x, weight, bias, stride, Padding::both(padding[0]))
        } else {
            // Our own convolution takes square kernels only; these are rows and columns.
            let options = ConvOptions::new([stride; 2], padding, [1, 1], 1);
            module::conv2d(x.permute([0, 3, 1, 2]), weight.permute([3, 2, 0, 1]), bias, options).permute([0, 2, 3, 1])
        };
        activation::relu(y)
    }
}
