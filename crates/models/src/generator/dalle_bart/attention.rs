//! Attention over several heads, with keys and values that can be kept (Vaswani et al. 2017, section 3.2.2).

use burn::module::Module;
use burn::tensor::Tensor;
use smalti_nn::layers::Linear;
use smalti_nn::ops::{self, Mask};
use smalti_nn::{Initializer, layers};

#[derive(Module, Debug)]
pub struct Attention {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub output: Linear,
    #[module(skip)]
    head_count: usize,
}

/// What queries look at, both [batch, heads, tokens, channels / heads].
#[derive(Clone, Debug)]
pub struct KeyValues {
    pub key: Tensor<4>,
    pub value: Tensor<4>,
}

impl Attention {
    pub(super) fn new(channels: usize, head_count: usize, bias: bool, initializer: &mut Initializer) -> Self {
        let mut linear = || layers::Linear::normal(channels, channels, bias, super::INITIAL_DEVIATION, initializer);
        Self { query: linear(), key: linear(), value: linear(), output: linear(), head_count }
    }

    /// x [batch, tokens, channels] -> its keys and values.
    pub fn key_values(&self, x: Tensor<3>) -> KeyValues {
        KeyValues { key: self.split(self.key.forward(x.clone())), value: self.split(self.value.forward(x)) }
    }

    /// x [batch, queries, channels] -> the same shape: what each query found among `keys`.
    pub fn forward(&self, x: Tensor<3>, keys: KeyValues, mask: Mask) -> Tensor<3> {
        let shape = x.dims();
        let mixed = ops::attention(self.split(self.query.forward(x)), keys.key, keys.value, mask); // [batch, heads, queries, channels / heads]
        self.output.forward(mixed.swap_dims(1, 2).reshape(shape))
    }

    /// [batch, tokens, channels] -> [batch, heads, tokens, channels / heads].
    fn split(&self, x: Tensor<3>) -> Tensor<4> {
        let [batch, tokens, channels] = x.dims();
        x.reshape([batch, tokens, self.head_count, channels / self.head_count]).swap_dims(1, 2)
    }
}
