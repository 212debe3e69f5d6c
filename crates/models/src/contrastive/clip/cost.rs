//! What CLIP costs.

use super::config::{Config, TransformerConfig};
use crate::cost::{Cost, Map, Tally};

impl Config {
    /// One picture to its embedding.
    pub fn image_cost(&self) -> Cost {
        let mut tally = Tally::default();
        let tower = &self.image;
        let channels = tower.transformer.channels;
        let patches = Map { places: (tower.image_size / tower.patch_size).pow(2), channels: 3 * tower.patch_size.pow(2) };
        tally.linear_without_bias(patches, channels);
        // The class token, and a vector for each place, the class token's among them.
        let tokens = Map { places: 1 + patches.places, channels };
        tally.parameters(channels + tokens.places * channels);
        tally.norm(channels);
        tower.transformer.add(&mut tally, tokens.places);
        tally.norm(channels);
        tally.linear_without_bias(Map { places: 1, channels }, self.embedding_channels);
        tally.finish()
    }

    /// A caption of `token_count` tokens to its embedding; with the scale of the logits.
    pub fn text_cost(&self, token_count: usize) -> Cost {
        let mut tally = Tally::default();
        let channels = self.text.transformer.channels;
        tally.parameters((self.text.vocabulary_size + self.text.context_length) * channels + 1);
        self.text.transformer.add(&mut tally, token_count);
        tally.norm(channels);
        tally.linear_without_bias(Map { places: 1, channels }, self.embedding_channels);
        tally.finish()
    }
}

impl TransformerConfig {
    pub(crate) fn add(&self, tally: &mut Tally, token_count: usize) {
        let tokens = Map { places: token_count, channels: self.channels };
        for _ in 0..self.layer_count {
            tally.hold(tokens);
            tally.norm(self.channels);
            (0..4).for_each(|_| tally.linear(tokens, self.channels));
            tally.attention(token_count, token_count, self.channels);
            tally.norm(self.channels);
            tally.linear(tokens, self.feed_forward_channels);
            tally.linear(tokens.with(self.feed_forward_channels), self.channels);
            tally.release(tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openai/clip-vit-base-patch32` has 151,277,313 parameters; its image tower does about 4.4 billion products for a picture.
    #[test]
    fn vit_b_32_has_its_published_size() {
        let config = Config::vit_b_32();
        let image = config.image_cost();
        assert_eq!(image.then(config.text_cost(77)).parameters, 151_277_313);
        assert!((4.3e9..4.5e9).contains(&(image.multiply_adds as f64)), "{image:?}");
    }

    /// By hand: 3 tokens, 4 channels, 8 inside: four maps and two of the feed-forward, then 3 queries with 3 keys and values.
    #[test]
    fn a_layer_by_hand() {
        let mut tally = Tally::default();
        TransformerConfig { head_count: 2, feed_forward_channels: 8, ..TransformerConfig::quick_gelu(4, 1) }.add(&mut tally, 3);
        assert_eq!(tally.finish().multiply_adds, 4 * 4 * 4 * 3 + 2 * 4 * 8 * 3 + 2 * 3 * 3 * 4);
    }
}
