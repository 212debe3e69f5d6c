//! What decoding one token at a time need not compute again: keys and values of the image tokens so far, and of the captions.

use super::attention::KeyValues;
use super::block::normalised;
use super::{DalleBart, Decoder};
use burn::tensor::{Bool, Tensor};

/// The state of decoding some rows of the same length; made by [`DalleBart::cache`].
#[derive(Debug)]
pub struct Cache {
    blocks: Vec<BlockCache>,
    /// [captions, text_tokens]
    visible: Tensor<2, Bool>,
    /// How many image tokens have been decoded.
    position: usize,
}

#[derive(Debug)]
struct BlockCache {
    /// [rows, heads, image_token_count, channels / heads], filled up to the position.
    history: KeyValues,
    /// [captions, heads, text_tokens, channels / heads]
    text: KeyValues,
}

impl Cache {
    pub(super) fn new(model: &DalleBart, memory: Tensor<3>, visible: Tensor<2, Bool>, rows_per_caption: usize) -> Self {
        let [captions, _, channels] = memory.dims();
        let config = model.config();
        let heads = config.decoder.head_count;
        let shape = [captions * rows_per_caption, heads, config.image_token_count, channels / heads];
        let empty = || Tensor::zeros(shape, &memory.device());
        let block = |text| BlockCache { history: KeyValues { key: empty(), value: empty() }, text };
        let blocks = model.decoder.blocks.iter().map(|layer| block(layer.text_attention.key_values(memory.clone()))).collect();
        Self { blocks, visible, position: 0 }
    }

    /// x [rows, 1, channels], the embedded token before `position` -> the decoder's output at `position`, the same shape.
    pub(super) fn advance(&mut self, decoder: &Decoder, x: Tensor<3>, position: usize) -> Tensor<3> {
        assert!(position == self.position, "decode_step: expected position {}, found {position}", self.position);
        self.position += 1;
        let x = decoder.input_norm.forward(decoder.positions.add(x, position));
        let blocks = decoder.blocks.iter().zip(&mut self.blocks);
        let x = blocks.fold(x, |x, (block, cache)| {
            let BlockCache { history, text } = cache;
            block.forward(x, |keys| history.append(keys, position), text.clone(), self.visible.clone())
        });
        normalised(&decoder.output_norm, x)
    }
}

impl KeyValues {
    /// Writes the keys and values of one more token and returns all there are so far.
    fn append(&mut self, new: KeyValues, position: usize) -> KeyValues {
        KeyValues { key: append(&mut self.key, new.key, position), value: append(&mut self.value, new.value, position) }
    }
}

/// `slot` [rows, heads, capacity, channels], new [rows, heads, 1, channels] -> [rows, heads, position + 1, channels].
fn append(slot: &mut Tensor<4>, new: Tensor<4>, position: usize) -> Tensor<4> {
    let [rows, heads, _, channels] = slot.dims();
    // `inplace` gives the only handle away, so that the backend writes into the memory that is there.
    slot.inplace(|slot| slot.slice_assign([0..rows, 0..heads, position..position + 1, 0..channels], new));
    slot.clone().narrow(2, 0, position + 1)
}
