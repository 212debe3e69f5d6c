//! What a T5 encoder costs.

use super::config::{Config, FeedForward};
use crate::cost::{Cost, Map, Tally};

impl Config {
    /// A caption of `token_count` tokens to its states.
    pub fn cost(&self, token_count: usize) -> Cost {
        let mut tally = Tally::default();
        let (channels, inner) = (self.channels, self.head_count * self.head_channels);
        let tokens = Map { places: token_count, channels };
        tally.parameters(self.vocabulary_size * channels + self.bucket_count * self.head_count);
        let wide = match self.feed_forward {
            FeedForward::Relu => 1,
            FeedForward::GatedGelu => 2,
        };
        for _ in 0..self.layer_count {
            tally.hold(tokens);
            (0..3).for_each(|_| tally.linear_without_bias(tokens, inner));
            tally.attention(token_count, token_count, inner);
            tally.linear_without_bias(tokens.with(inner), channels);
            (0..wide).for_each(|_| tally.linear_without_bias(tokens, self.feed_forward_channels));
            tally.linear_without_bias(tokens.with(self.feed_forward_channels), channels);
            // Two norms, which scale and do not shift.
            tally.parameters(2 * channels);
            tally.release(tokens);
        }
        tally.parameters(channels);
        tally.finish()
    }

    /// How many numbers the network holds.
    pub fn parameter_count(&self) -> u64 {
        self.cost(0).parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: 5 tokens of 6 channels, 2 heads of 4, 10 inside, gated; a table of 20 tokens and 32 buckets.
    #[test]
    fn a_layer_by_hand() {
        let config = Config {
            vocabulary_size: 20,
            channels: 6,
            layer_count: 1,
            head_count: 2,
            head_channels: 4,
            feed_forward_channels: 10,
            feed_forward: FeedForward::GatedGelu,
            bucket_count: 32,
            ..Config::small()
        };
        let cost = config.cost(5);
        assert_eq!(cost.parameters, 20 * 6 + 32 * 2 + 4 * 6 * 8 + 3 * 6 * 10 + 2 * 6 + 6);
        assert_eq!(cost.multiply_adds, 4 * 6 * 8 * 5 + 3 * 6 * 10 * 5 + 2 * 5 * 5 * 8);
    }
}
