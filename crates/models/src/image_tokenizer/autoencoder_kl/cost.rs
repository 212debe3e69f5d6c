//! What a KL autoencoder costs.

use super::config::Config;
use crate::cost::{Cost, Map, Tally};

impl Config {
    /// A picture of `places` pixels to latents.
    pub fn encoder_cost(&self, places: usize) -> Cost {
        let mut tally = Tally::default();
        let moments = 2 * self.network.latent_channels;
        self.network.add_encoder(&mut tally, places, moments);
        if self.latent_projections {
            tally.linear(self.latents(places).with(moments), moments);
        }
        tally.finish()
    }

    /// Latents of a picture of `places` pixels to the picture.
    pub fn decoder_cost(&self, places: usize) -> Cost {
        let mut tally = Tally::default();
        if self.latent_projections {
            tally.linear(self.latents(places), self.network.latent_channels);
        }
        self.network.add_decoder(&mut tally, places);
        tally.finish()
    }

    fn latents(&self, places: usize) -> Map {
        Map { places: places / self.network.downsampling_factor().pow(2), channels: self.network.latent_channels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stable Diffusion's autoencoder has 83,653,863 parameters; its decoder does 1.24 trillion products for a picture of 512x512.
    #[test]
    fn stable_diffusions_autoencoder_has_its_published_size() {
        let config = Config::stable_diffusion();
        let decoder = config.decoder_cost(512 * 512);
        assert_eq!(config.encoder_cost(512 * 512).then(decoder).parameters, 83_653_863);
        assert!((1.2e12..1.3e12).contains(&(decoder.multiply_adds as f64)), "{decoder:?}");
    }
}
