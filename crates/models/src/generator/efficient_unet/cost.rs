//! What an Efficient U-Net costs.

use super::config::{Config, Level, Per};
use crate::cost::{Cost, Map, Tally};

impl Config {
    /// One pass over one input of `places` = height times width, beside `text_token_count` text tokens.
    pub fn cost(&self, places: usize, text_token_count: usize) -> Cost {
        let tally = &mut Tally::default();
        let options = self.block_options();
        let pictures = if self.low_resolution { 2 } else { 1 };
        (0..pictures).for_each(|_| self.time.add(tally));
        if let Some(channels) = self.text_channels {
            tally.linear(Map { places: text_token_count, channels }, 1);
            tally.norm(channels);
            tally.vector(channels, self.time.channels);
            tally.vector(self.time.channels, self.time.channels);
        }
        let input = Map { places, channels: pictures * self.picture_channels };
        let mut map = input.with(self.base_channels);
        tally.convolution(3, input, map);
        let mut skips = Vec::new();
        for level in &self.levels {
            if level.downsample {
                let to = map.halved().with(level.channels);
                tally.convolution(3, map, to);
                map = to;
            }
            for index in 0..level.residual_block_count {
                map = options.add(tally, map, level.channels);
                self.attend(tally, level, index, map, text_token_count);
                if self.skips(level, index) {
                    tally.hold(map);
                    skips.push(map);
                }
            }
        }
        if let Some(level) = self.levels.last().filter(|_| self.middle) {
            map = options.add(tally, map, level.channels);
            if level.attends() {
                self.add_attention(tally, level, map, text_token_count);
            }
            map = options.add(tally, map, level.channels);
        }
        for (number, level) in self.levels.iter().enumerate().rev() {
            for index in 0..level.residual_block_count {
                if index == 0 || self.per == Per::Block {
                    let skipped = skips.pop().unwrap_or(map);
                    tally.release(skipped);
                    map = map.with(map.channels + skipped.channels);
                }
                map = options.add(tally, map, level.channels);
                self.attend(tally, level, index, map, text_token_count);
            }
            map = if level.downsample { map.doubled() } else { map };
            let to = map.with(if number == 0 { self.base_channels } else { self.levels[number - 1].channels });
            tally.convolution(3, map, to);
            map = to;
        }
        tally.norm(map.channels);
        tally.convolution(3, map, map.with(self.picture_channels));
        std::mem::take(tally).finish()
    }

    /// Parameters of the network, without making it.
    pub fn parameter_count(&self) -> u64 {
        self.cost(0, 0).parameters
    }

    fn skips(&self, level: &Level, index: usize) -> bool {
        self.per == Per::Block || index + 1 == level.residual_block_count
    }

    /// The attention after block `index`, if there is one.
    fn attend(&self, tally: &mut Tally, level: &Level, index: usize, map: Map, text_token_count: usize) {
        let places = self.places(level);
        if places == level.residual_block_count || places == 1 && index + 1 == level.residual_block_count {
            self.add_attention(tally, level, map, text_token_count);
        }
    }

    fn add_attention(&self, tally: &mut Tally, level: &Level, map: Map, text_token_count: usize) {
        let channels = map.channels;
        tally.hold(map);
        tally.norm(channels);
        tally.linear(map, channels);
        // The learned nothing is one more key, and one more value.
        tally.parameters(2 * channels);
        let mut keys = 1;
        if level.self_attention {
            (0..2).for_each(|_| tally.linear(map, channels));
            keys += map.places;
        }
        if let Some(text) = self.text_channels.filter(|_| level.text_attention) {
            tally.norm(text);
            (0..2).for_each(|_| tally.linear(Map { places: text_token_count, channels: text }, channels));
            keys += text_token_count;
        }
        tally.attention(map.places, keys, channels);
        tally.linear(map, channels);
        tally.release(map);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::efficient_unet::EfficientUnet;
    use crate::generator::unet::time_embedding;
    use burn::module::Module;
    use burn::tensor::Device;
    use smalti_nn::Initializer;

    fn level(channels: usize, residual_block_count: usize, self_attention: bool, text_attention: bool) -> Level {
        Level { channels, residual_block_count, downsample: true, self_attention, text_attention }
    }

    fn tiny(levels: Vec<Level>) -> Config {
        let time = time_embedding::Config::latent_diffusion(8);
        Config { base_channels: 8, levels, head_channels: 8, text_channels: Some(12), time, group_count: 4, ..Config::imagen_256() }
    }

    #[test]
    fn no_layer_is_missed() {
        let levels = vec![level(8, 1, false, false), level(16, 3, true, true)];
        let blocks = Config { per: Per::Block, middle: true, low_resolution: false, ..tiny(levels.clone()) };
        let unchanged = Config { levels: vec![Level { downsample: false, ..level(16, 2, false, true) }], ..tiny(levels.clone()) };
        let textless = Config { text_channels: None, ..tiny(vec![level(16, 2, true, false)]) };
        for config in [tiny(levels), blocks, unchanged, textless] {
            let made = EfficientUnet::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap().num_params() as u64;
            assert_eq!((config.cost(64, 5).parameters, config.parameter_count()), (made, made), "{config:?}");
        }
    }

    /// By hand: 16 places, one level of 8 channels at 4 places with one block each way and attention to 3 text tokens of 12 channels.
    #[test]
    fn multiplications_by_hand() {
        let config = tiny(vec![level(8, 1, false, true)]);
        let time = 2 * (8 * 32 + 32 * 32);
        let text = 3 * 12 + 12 * 32 + 32 * 32;
        let block = |channels: u64| 9 * channels * 8 * 4 + 9 * 8 * 8 * 4 + 32 * 16 + if channels == 8 { 0 } else { channels * 8 * 4 };
        // Queries and output at 4 places, keys and values of 3 tokens, 4 queries with 3 + 1 keys and values.
        let attention = 2 * 8 * 8 * 4 + 2 * 12 * 8 * 3 + 2 * 4 * 4 * 8;
        let convolutions = 9 * 6 * 8 * 16 + 9 * 8 * 8 * 4 + 9 * 8 * 8 * 16 + 9 * 8 * 3 * 16;
        assert_eq!(config.cost(16, 3).multiply_adds, time + text + block(8) + block(16) + 2 * attention + convolutions);
    }
}
