//! What a tiny autoencoder costs.

use super::Detour;
use super::config::Config;
use crate::cost::{Cost, Map, Tally};

impl Config {
    /// A picture of `places` pixels to latents.
    pub fn encoder_cost(&self, places: usize) -> Cost {
        let mut tally = Tally::default();
        let picture = Map { places, channels: self.picture_channels };
        let mut map = picture.with(self.channels);
        tally.convolution(3, picture, map);
        let lowest = self.encoder_block_counts.len() - 1;
        for (level, &count) in self.encoder_block_counts.iter().enumerate() {
            if level > 0 {
                tally.convolution_without_bias(3, map, map.halved());
                map = map.halved();
            }
            (0..count).for_each(|_| add_block(&mut tally, map, self.detours && level == lowest));
        }
        tally.convolution(3, map, map.with(self.latent_channels));
        tally.finish()
    }

    /// Latents of a picture of `places` pixels to the picture.
    pub fn decoder_cost(&self, places: usize) -> Cost {
        let mut tally = Tally::default();
        let latents = Map { places: places / self.downsampling_factor().pow(2), channels: self.latent_channels };
        let mut map = latents.with(self.channels);
        tally.convolution(3, latents, map);
        let highest = self.decoder_block_counts.len() - 1;
        for (level, &count) in self.decoder_block_counts.iter().enumerate() {
            (0..count).for_each(|_| add_block(&mut tally, map, self.detours && level == 0));
            if level < highest {
                map = map.doubled();
                tally.convolution_without_bias(3, map, map);
            }
        }
        tally.convolution(3, map, map.with(self.picture_channels));
        tally.finish()
    }
}

fn add_block(tally: &mut Tally, map: Map, detour: bool) {
    tally.hold(map);
    if detour {
        let wide = map.with(Detour::WIDENING * map.channels);
        tally.linear_without_bias(map, wide.channels);
        tally.norm(wide.channels);
        tally.linear_without_bias(wide, map.channels);
    }
    (0..3).for_each(|_| tally.convolution(3, map, map));
    tally.release(map);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_tokenizer::autoencoder_tiny::AutoencoderTiny;
    use burn::module::Module;
    use burn::tensor::Device;
    use smalti_nn::Initializer;

    #[test]
    fn no_layer_is_missed() {
        for config in [Config::stable_diffusion(), Config::flux_2()] {
            let made = AutoencoderTiny::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap().num_params() as u64;
            assert_eq!(config.encoder_cost(64).then(config.decoder_cost(64)).parameters, made);
        }
    }

    /// By hand: 4 channels, one level with one block, at 2 pixels; latents of 5 channels.
    #[test]
    fn multiplications_by_hand() {
        let config =
            Config { picture_channels: 3, channels: 4, latent_channels: 5, encoder_block_counts: vec![1], decoder_block_counts: vec![1], detours: false };
        assert_eq!(config.decoder_cost(2).multiply_adds, 9 * 5 * 4 * 2 + 3 * 9 * 4 * 4 * 2 + 9 * 4 * 3 * 2);
        let detours = Config { detours: true, ..config };
        assert_eq!(detours.encoder_cost(2).multiply_adds, 9 * 3 * 4 * 2 + 2 * 4 * 16 * 2 + 3 * 9 * 4 * 4 * 2 + 9 * 4 * 5 * 2);
    }
}
