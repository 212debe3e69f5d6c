//! The loss: cross-entropy of the image tokens.

use burn::tensor::{Int, Tensor};
use smalti_nn::ops;

/// Mean over all tokens of -(1 - s) log p(t) - s mean over the vocabulary of log p, with label smoothing s in [0, 1) (Szegedy et al. 2016, section 7; 0 is
/// plain cross-entropy, in nats per image token).
///
/// logits [batch, tokens, image_vocabulary], teacher-forced; image_tokens [batch, tokens] -> [1]. A network that knows nothing scores ln(image_vocabulary).
pub fn cross_entropy(logits: Tensor<3>, image_tokens: Tensor<2, Int>, label_smoothing: f32) -> Tensor<1> {
    let [batch, tokens, vocabulary] = logits.dims();
    assert!(image_tokens.dims() == [batch, tokens], "cross_entropy: logits {:?} do not fit image tokens {:?}", logits.dims(), image_tokens.dims());
    ops::cross_entropy(logits.reshape([batch * tokens, vocabulary]), image_tokens.reshape([batch * tokens]), label_smoothing).mean()
}
