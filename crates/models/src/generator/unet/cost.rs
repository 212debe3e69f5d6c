//! What a U-Net costs.

use super::attention::FEED_FORWARD_MULTIPLIER;
use super::config::Config;
use super::residual_block::BlockOptions;
use super::time_embedding::{self, TimeUse};
use crate::cost::{Cost, Map, Tally};

impl Config {
    /// One pass over one input of `places` = height times width, beside `text_token_count` text tokens.
    pub fn cost(&self, places: usize, text_token_count: usize) -> Cost {
        let tally = &mut Tally::default();
        let options = self.block_options();
        self.time.add(tally);
        tally.parameters(self.class_count.map_or(0, |count| count * self.time.channels));
        let input = Map { places, channels: self.input_channels };
        let mut map = input.with(self.level_channels[0]);
        tally.convolution(3, input, map);
        let mut skips = Vec::new();
        let mut skip = |tally: &mut Tally, map: Map| {
            tally.hold(map);
            skips.push(map);
        };
        skip(tally, map);
        let last = self.level_channels.len() - 1;
        for level in 0..=last {
            for _ in 0..self.residual_block_count {
                map = self.stage(tally, &options, map, level, self.attention_levels.contains(&level), text_token_count);
                skip(tally, map);
            }
            if level < last {
                tally.convolution(3, map, map.halved());
                map = map.halved();
                skip(tally, map);
            }
        }
        map = self.stage(tally, &options, map, last, self.middle_attention, text_token_count);
        map = options.add(tally, map, map.channels);
        for level in (0..=last).rev() {
            for _ in 0..=self.residual_block_count {
                let skipped = skips.pop().unwrap_or(map);
                tally.release(skipped);
                let both = map.with(map.channels + skipped.channels);
                map = self.stage(tally, &options, both, level, self.attention_levels.contains(&level), text_token_count);
            }
            if level > 0 {
                map = map.doubled();
                tally.convolution(3, map, map);
            }
        }
        tally.norm(map.channels);
        tally.convolution(3, map, map.with(self.predicted_channels()));
        std::mem::take(tally).finish()
    }

    /// A residual block and what follows it at its level.
    fn stage(&self, tally: &mut Tally, options: &BlockOptions, from: Map, level: usize, attends: bool, text_token_count: usize) -> Map {
        let map = options.add(tally, from, self.level_channels[level]);
        if !attends {
            return map;
        }
        tally.hold(map);
        let channels = map.channels;
        tally.norm(channels);
        match &self.text {
            None => {
                (0..4).for_each(|_| tally.linear(map, channels));
                tally.attention(map.places, map.places, channels);
            }
            Some(text) => {
                tally.linear(map, channels);
                for _ in 0..text.block_count {
                    // Three norms: before self-attention, text attention and the feed-forward.
                    (0..3).for_each(|_| tally.norm(channels));
                    for seen in [map, Map { places: text_token_count, channels: text.channels }] {
                        tally.linear_without_bias(map, channels);
                        (0..2).for_each(|_| tally.linear_without_bias(seen, channels));
                        tally.attention(map.places, seen.places, channels);
                        tally.linear(map, channels);
                    }
                    let inner = FEED_FORWARD_MULTIPLIER * channels;
                    (0..2).for_each(|_| tally.linear(map, inner));
                    tally.linear(map.with(inner), channels);
                }
                tally.linear(map, channels);
            }
        }
        tally.release(map);
        map
    }
}

impl BlockOptions {
    /// Adds a residual block that brings `channels`.
    pub(in crate::generator) fn add(&self, tally: &mut Tally, from: Map, channels: usize) -> Map {
        let to = from.with(channels);
        tally.hold(from);
        tally.norm(from.channels);
        tally.convolution(3, from, to);
        tally.vector(
            self.time_channels,
            match self.time_use {
                TimeUse::Shift => channels,
                TimeUse::ScaleShift => 2 * channels,
            },
        );
        tally.norm(channels);
        tally.convolution(3, to, to);
        if from.channels != channels {
            tally.linear(from, channels);
        }
        tally.release(from);
        to
    }
}

impl time_embedding::Config {
    pub(in crate::generator) fn add(&self, tally: &mut Tally) {
        tally.vector(self.sinusoid_channels, self.channels);
        tally.vector(self.channels, self.channels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::unet::{TextConfig, Unet};
    use burn::module::Module;
    use burn::tensor::Device;
    use smalti_nn::Initializer;

    fn tiny() -> Config {
        Config {
            level_channels: vec![8, 16],
            residual_block_count: 1,
            attention_levels: vec![1],
            head_counts: vec![2; 2],
            time: time_embedding::Config::ddpm(8),
            group_count: 4,
            ..Config::ddpm_cifar10()
        }
    }

    #[test]
    fn no_layer_is_missed() {
        let text = Some(TextConfig { channels: 12, block_count: 2 });
        let learned = Config { learned_variance: true, class_count: Some(3), time_use: TimeUse::ScaleShift, middle_attention: false, ..tiny() };
        for config in [tiny(), Config { text, residual_block_count: 2, ..tiny() }, learned] {
            let made = Unet::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap().num_params() as u64;
            assert_eq!(config.cost(64, 5).parameters, made, "{config:?}");
        }
    }

    /// By hand, for one level of 8 channels at 4 places, without attention: conv_in 9 x 3 x 8 x 4; time 8 x 32 + 32 x 32; down a block of 8 to 8 channels,
    /// the middle two, up two of 16 to 8 channels with their shortcuts, each with its 32 x 8 of the time; conv_out 9 x 8 x 3 x 4.
    #[test]
    fn multiplications_by_hand() {
        let config = Config { level_channels: vec![8], attention_levels: vec![], middle_attention: false, head_counts: vec![1], ..tiny() };
        let same = 2 * (9 * 8 * 8 * 4) + 32 * 8;
        let wide = 9 * 16 * 8 * 4 + 9 * 8 * 8 * 4 + 16 * 8 * 4 + 32 * 8;
        assert_eq!(config.cost(4, 0).multiply_adds, 9 * 3 * 8 * 4 + 8 * 32 + 32 * 32 + 3 * same + 2 * wide + 9 * 8 * 3 * 4);
    }

    /// 859.5 million parameters; about 0.4 trillion products for a pass at 64x64 latents, attention's own among them.
    #[test]
    fn stable_diffusion_has_its_published_size() {
        let cost = Config::stable_diffusion_1().cost(64 * 64, 77);
        assert_eq!(cost.parameters, 859_520_964);
        assert!((0.39e12..0.41e12).contains(&(cost.multiply_adds as f64)), "{cost:?}");
    }
}
