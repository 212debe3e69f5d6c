//! Attention pooling: the mean of all places asks what is among them (Radford et al. 2021, section 2.4, `AttentionPool2d`).

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use smalti_nn::Initializer;
use smalti_nn::layers::Linear;
use smalti_nn::ops::{self, Mask};

#[derive(Module, Debug)]
pub struct AttentionPooling {
    /// [1 + places, channels]: the mean's, then one for each place, row after row.
    positions: Param<Tensor<2>>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    #[module(skip)]
    head_count: usize,
}

impl AttentionPooling {
    pub fn new(side: usize, channels: usize, head_count: usize, initializer: &mut Initializer) -> Self {
        Self {
            positions: initializer.normal([side * side + 1, channels], (channels as f32).powf(-0.5)),
            query: Linear::uniform(channels, channels, true, initializer),
            key: Linear::uniform(channels, channels, true, initializer),
            value: Linear::uniform(channels, channels, true, initializer),
            output: Linear::uniform(channels, channels, true, initializer),
            head_count,
        }
    }

    /// places [batch, side * side, channels] -> [batch, channels].
    pub fn forward(&self, places: Tensor<3>) -> Tensor<2> {
        let ([batch, count, channels], [expected, _]) = (places.dims(), self.positions.lazy_shape().dims());
        assert!(count + 1 == expected, "attention pooling: {count} places do not fit {}; hint: the picture has another size", expected - 1);
        let tokens = Tensor::cat(vec![places.clone().mean_dim(1), places], 1) + self.positions.val().unsqueeze_dim::<3>(0);
        let split = |x: Tensor<3>| {
            let [_, tokens, _] = x.dims();
            x.reshape([batch, tokens, self.head_count, channels / self.head_count]).swap_dims(1, 2)
        };
        let query = split(self.query.forward(tokens.clone().narrow(1, 0, 1))); // only the mean asks
        let mixed = ops::attention(query, split(self.key.forward(tokens.clone())), split(self.value.forward(tokens)), Mask::None);
        self.output.forward(mixed.reshape([batch, channels])) // one query: heads and channels already lie side by side
    }
}
