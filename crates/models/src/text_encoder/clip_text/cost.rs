//! What CLIP's text tower costs as a text encoder.

use super::config::Config;
use crate::cost::{Cost, Map, Tally};

impl Config {
    /// A caption of `token_count` tokens to its states.
    pub fn cost(&self, token_count: usize) -> Cost {
        let mut tally = Tally::default();
        let channels = self.transformer.channels;
        tally.parameters((self.vocabulary_size + self.context_length) * channels);
        self.transformer.add(&mut tally, token_count);
        tally.norm(channels);
        if let Some(projection) = self.projection_channels {
            tally.linear_without_bias(Map { places: 1, channels }, projection);
        }
        tally.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openai/clip-vit-large-patch14`'s text tower has 123,060,480 parameters; each of its 12 layers does 12 x 768^2 products for a token, and attends.
    #[test]
    fn stable_diffusions_text_encoder_has_its_published_size() {
        let cost = Config::stable_diffusion_1().cost(77);
        assert_eq!(cost.parameters, 123_060_480);
        assert_eq!(cost.multiply_adds, 12 * (12 * 768 * 768 * 77 + 2 * 77 * 77 * 768));
    }
}
