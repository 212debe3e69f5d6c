//! A table of vectors, looked up by index.

use crate::Initializer;
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

#[derive(Module, Debug)]
pub struct Embedding {
    /// [count, channels]
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    pub fn normal(count: usize, channels: usize, standard_deviation: f32, initializer: &mut Initializer) -> Self {
        Self { weight: initializer.normal([count, channels], standard_deviation) }
    }

    /// indices [batch, tokens], each below count -> [batch, tokens, channels].
    pub fn forward(&self, indices: Tensor<2, Int>) -> Tensor<3> {
        let [batch, tokens] = indices.dims();
        let weight = self.weight.val();
        let channels = weight.dims()[1];
        weight.select(0, indices.reshape([batch * tokens])).reshape([batch, tokens, channels])
    }
}
