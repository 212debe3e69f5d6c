//! What a VQGAN costs.

use super::config::Config;
use crate::cost::{Cost, Map, Tally};

impl Config {
    /// A picture of `places` pixels to image tokens: the encoder and the search for the nearest codes.
    pub fn encoder_cost(&self, places: usize) -> Cost {
        let mut tally = Tally::default();
        let latents = self.latents(places);
        self.network.add_encoder(&mut tally, places, self.network.latent_channels);
        tally.linear(latents.with(self.network.latent_channels), latents.channels);
        // The distances are products with all codes; the codes themselves are counted with the decoder.
        let parameters = Cost { parameters: 0, ..search(latents, self.quantizer.code_count) };
        tally.finish().then(parameters)
    }

    /// Image tokens of a picture of `places` pixels to the picture; with the codes.
    pub fn decoder_cost(&self, places: usize) -> Cost {
        let mut tally = Tally::default();
        let latents = self.latents(places);
        tally.parameters(self.quantizer.code_count * self.quantizer.code_channels);
        tally.linear(latents, self.network.latent_channels);
        self.network.add_decoder(&mut tally, places);
        tally.finish()
    }

    fn latents(&self, places: usize) -> Map {
        Map { places: places / self.network.downsampling_factor().pow(2), channels: self.quantizer.code_channels }
    }
}

fn search(latents: Map, code_count: usize) -> Cost {
    let mut tally = Tally::default();
    tally.linear_without_bias(latents, code_count);
    tally.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_tokenizer::convolutional;
    use crate::image_tokenizer::quantizer::vector;
    use crate::image_tokenizer::vqgan::Vqgan;
    use burn::module::Module;
    use burn::tensor::Device;
    use smalti_nn::Initializer;

    fn tiny(channel_multipliers: Vec<usize>) -> Config {
        let network = convolutional::Config {
            picture_channels: 3,
            base_channels: 8,
            channel_multipliers,
            residual_block_count: 1,
            attention_levels: vec![1],
            middle_attention: true,
            group_count: 4,
            latent_channels: 4,
        };
        Config { network, quantizer: vector::Config::learned(10, 6) }
    }

    #[test]
    fn no_layer_is_missed() {
        let config = tiny(vec![1, 2, 2]);
        let made = Vqgan::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap().num_params() as u64;
        assert_eq!(config.encoder_cost(256).then(config.decoder_cost(256)).parameters, made);
    }

    /// By hand: one level of 8 channels at 4 pixels, no attention. Encoder: conv_in, one block and two in the middle, conv_out, the map to 6 channels, 10 codes.
    #[test]
    fn multiplications_by_hand() {
        let mut config = tiny(vec![1]);
        (config.network.attention_levels, config.network.middle_attention) = (vec![], false);
        let block = 2 * 9 * 8 * 8 * 4;
        assert_eq!(config.encoder_cost(4).multiply_adds, 9 * 3 * 8 * 4 + 3 * block + 9 * 8 * 4 * 4 + 4 * 6 * 4 + 6 * 10 * 4);
        assert_eq!(config.decoder_cost(4).multiply_adds, 6 * 4 * 4 + 9 * 4 * 8 * 4 + 4 * block + 9 * 8 * 3 * 4);
    }
}
