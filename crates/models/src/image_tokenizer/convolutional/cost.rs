//! What the convolutional encoder and decoder cost.

use super::Config;
use crate::cost::{Map, Tally};

impl Config {
    /// A picture of `places` pixels to latents of `latent_channels`.
    pub(in crate::image_tokenizer) fn add_encoder(&self, tally: &mut Tally, places: usize, latent_channels: usize) {
        let picture = Map { places, channels: self.picture_channels };
        let mut map = picture.with(self.base_channels);
        tally.convolution(3, picture, map);
        let last = self.channel_multipliers.len() - 1;
        for level in 0..=last {
            map = self.add_level(tally, map, level, self.residual_block_count);
            if level < last {
                tally.convolution(3, map, map.halved());
                map = map.halved();
            }
        }
        self.add_middle(tally, map);
        tally.norm(map.channels);
        tally.convolution(3, map, map.with(latent_channels));
    }

    /// Latents of a picture of `places` pixels to the picture.
    pub(in crate::image_tokenizer) fn add_decoder(&self, tally: &mut Tally, places: usize) {
        let latents = Map { places: places / self.downsampling_factor().pow(2), channels: self.latent_channels };
        let mut map = latents.with(self.last_channels());
        tally.convolution(3, latents, map);
        self.add_middle(tally, map);
        for level in (0..self.channel_multipliers.len()).rev() {
            map = self.add_level(tally, map, level, self.residual_block_count + 1);
            if level > 0 {
                map = map.doubled();
                tally.convolution(3, map, map);
            }
        }
        tally.norm(map.channels);
        tally.convolution(3, map, map.with(self.picture_channels));
    }

    fn add_level(&self, tally: &mut Tally, from: Map, level: usize, block_count: usize) -> Map {
        let mut map = from;
        for _ in 0..block_count {
            map = add_block(tally, map, self.channels(level));
            if self.attention_levels.contains(&level) {
                add_attention(tally, map);
            }
        }
        map
    }

    fn add_middle(&self, tally: &mut Tally, map: Map) {
        add_block(tally, map, map.channels);
        if self.middle_attention {
            add_attention(tally, map);
        }
        add_block(tally, map, map.channels);
    }
}

fn add_block(tally: &mut Tally, from: Map, channels: usize) -> Map {
    let to = from.with(channels);
    tally.hold(from);
    tally.norm(from.channels);
    tally.convolution(3, from, to);
    tally.norm(channels);
    tally.convolution(3, to, to);
    if from.channels != channels {
        tally.linear(from, channels);
    }
    tally.release(from);
    to
}

fn add_attention(tally: &mut Tally, map: Map) {
    tally.hold(map);
    tally.norm(map.channels);
    (0..4).for_each(|_| tally.linear(map, map.channels));
    tally.attention(map.places, map.places, map.channels);
    tally.release(map);
}
