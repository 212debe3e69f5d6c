//! What BERT costs.

use super::config::Config;
use crate::cost::{Cost, Map, Tally};

impl Config {
    /// A caption of `token_count` tokens to its states.
    pub fn cost(&self, token_count: usize) -> Cost {
        let mut tally = Tally::default();
        let tokens = Map { places: token_count, channels: self.channels };
        tally.parameters((self.vocabulary_size + self.context_length + self.segment_count) * self.channels);
        tally.norm(self.channels);
        for _ in 0..self.layer_count {
            tally.hold(tokens);
            (0..4).for_each(|_| tally.linear(tokens, self.channels));
            tally.attention(token_count, token_count, self.channels);
            tally.norm(self.channels);
            tally.linear(tokens, self.feed_forward_channels);
            tally.linear(tokens.with(self.feed_forward_channels), self.channels);
            tally.norm(self.channels);
            tally.release(tokens);
        }
        tally.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text_encoder::bert::Bert;
    use burn::module::Module;
    use burn::tensor::Device;
    use smalti_nn::Initializer;

    #[test]
    fn no_layer_is_missed() {
        let config = Config { vocabulary_size: 30, context_length: 7, channels: 12, layer_count: 2, head_count: 2, ..Config::all_mini_lm_l6_v2() };
        let made = Bert::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap().num_params() as u64;
        let cost = config.cost(5);
        let inner = config.feed_forward_channels as u64;
        assert_eq!((cost.parameters, cost.multiply_adds), (made, 2 * (4 * 12 * 12 * 5 + 2 * 12 * inner * 5 + 2 * 5 * 5 * 12)));
    }
}
