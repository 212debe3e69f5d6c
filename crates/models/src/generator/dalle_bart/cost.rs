//! What DALL-E mini's BART costs.

use super::config::{Config, FeedForward, Norms, StackConfig, Vocabularies};
use crate::cost::{Cost, Map, Tally};

impl Config {
    /// A caption read once and all image tokens of one picture drawn one after the other, keys and values kept, without guidance.
    pub fn cost(&self) -> Cost {
        let mut tally = Tally::default();
        let (channels, text, image) = (self.channels, self.text_token_count, self.image_token_count);
        let separate = self.vocabularies == Vocabularies::Separate;
        tally.parameters(self.text_vocabulary * channels + if separate { self.image_table_size() * channels } else { 0 });
        for places in [text, image] {
            tally.parameters((self.position_offset + places) * channels);
            tally.norm(channels);
            if self.norms == Norms::NormFormer {
                tally.norm(channels);
            }
        }
        let read = Map { places: text, channels };
        for _ in 0..self.encoder.block_count {
            self.attention(&mut tally, read, read, text * text);
            self.feed_forward(&mut tally, read, &self.encoder);
        }
        // Of every block the keys and values of the text and of all image tokens wait.
        tally.hold(Map { places: 2 * self.decoder.block_count * (text + image), channels });
        for _ in 0..self.decoder.block_count {
            // Image token i sees i + 1 of them: image (image + 1) / 2 pairs.
            self.attention(&mut tally, Map { places: image, channels }, Map { places: image, channels }, image * (image + 1) / 2);
            self.attention(&mut tally, Map { places: image, channels }, read, image * text);
            self.feed_forward(&mut tally, Map { places: image, channels }, &self.decoder);
        }
        let mut head = Tally::default();
        head.linear_without_bias(Map { places: image, channels }, self.image_table_size());
        let head = head.finish();
        tally.parameters(if separate { head.parameters as usize } else { 0 } + if self.logits_bias { self.image_table_size() } else { 0 });
        // One token's logits at a time.
        tally.finish().then(Cost { parameters: 0, multiply_adds: head.multiply_adds, activations: 0 })
    }

    /// Four maps, the products of `pairs` of queries and keys, and the norms around.
    fn attention(&self, tally: &mut Tally, queries: Map, seen: Map, pairs: usize) {
        for from in [queries, seen, seen, queries] {
            self.linear(tally, from, self.channels);
        }
        tally.attention(pairs, 1, self.channels);
        (0..if self.norms == Norms::NormFormer { 2 } else { 1 }).for_each(|_| tally.norm(self.channels));
    }

    fn feed_forward(&self, tally: &mut Tally, tokens: Map, stack: &StackConfig) {
        let inner = stack.feed_forward_channels;
        (0..if self.feed_forward == FeedForward::GatedGelu { 2 } else { 1 }).for_each(|_| self.linear(tally, tokens, inner));
        self.linear(tally, tokens.with(inner), self.channels);
        tally.norm(self.channels);
        if self.norms == Norms::NormFormer {
            tally.norm(inner);
        }
    }

    fn linear(&self, tally: &mut Tally, from: Map, channels: usize) {
        if self.linear_bias { tally.linear(from, channels) } else { tally.linear_without_bias(from, channels) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::dalle_bart::DalleBart;
    use burn::module::Module;
    use burn::tensor::Device;
    use smalti_nn::Initializer;

    fn tiny(of: Config) -> Config {
        let stack = |block_count| StackConfig { block_count, head_count: 2, feed_forward_channels: 10 };
        let sizes = Config { text_vocabulary: 30, text_token_count: 5, image_token_count: 4, channels: 8, encoder: stack(1), decoder: stack(2), ..of };
        if sizes.vocabularies == Vocabularies::Shared {
            return Config { image_vocabulary: 30, special_token_count: 0, start_token: 2, ..sizes };
        }
        Config { image_vocabulary: 12, special_token_count: 1, start_token: 12, ..sizes }
    }

    #[test]
    fn no_layer_is_missed() {
        for config in [tiny(Config::dalle_mini()), tiny(Config::bart_base())] {
            let made = DalleBart::new(&config, &mut Initializer::new(1, &Device::flex())).num_params() as u64;
            assert_eq!(config.cost().parameters, made, "{config:?}");
        }
    }

    /// By hand: text of 5, pictures of 4 tokens, 8 channels, 10 inside and gated, one and two blocks, 13 logits.
    #[test]
    fn multiplications_by_hand() {
        let encoder = 4 * 8 * 8 * 5 + 2 * 5 * 5 * 8 + 3 * 8 * 10 * 5;
        let decoder = 4 * 8 * 8 * 4 + 2 * 10 * 8 + 2 * 8 * 8 * (4 + 5) + 2 * 4 * 5 * 8 + 3 * 8 * 10 * 4;
        assert_eq!(tiny(Config::dalle_mini()).cost().multiply_adds, encoder + 2 * decoder + 8 * 13 * 4);
    }
}
