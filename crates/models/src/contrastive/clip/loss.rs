//! The contrastive loss: every picture of a batch must find its own text among all texts of the batch, and every text its picture.
//!
//! Radford et al. 2021 (2103.00020), figure 3: symmetric InfoNCE over a similarity matrix with a learned temperature.

use burn::tensor::{Int, Tensor, activation};

/// Similarities are never multiplied by more than this (Radford et al. 2021, section 2.5): without the limit training can run away.
pub const LOGIT_SCALE_LIMIT: f32 = 100.0;

/// Row i: how well picture i fits each text. image_embeddings [images, channels] and text_embeddings [texts, channels] of unit length,
/// scale [1] (from `Clip::logit_scale`) -> [images, texts] = scale * cosine.
pub fn logits(image_embeddings: Tensor<2>, text_embeddings: Tensor<2>, scale: Tensor<1>) -> Tensor<2> {
    image_embeddings.matmul(text_embeddings.transpose()) * scale.reshape([1, 1])
}

/// Symmetric InfoNCE in nats; row i of both embeddings [batch, channels] (unit length) belong together, scale [1] -> [1].
///
/// loss = 1/2 mean_i(-log softmax(L_i,:)_i) + 1/2 mean_i(-log softmax(L_:,i)_i), L = scale * cosine; log(batch) is chance.
///
/// The negatives are the rest of the batch, so this loss over k small batches is *not* the loss over one batch k times as large. To accumulate
/// gradients exactly, collect the embeddings of all k parts first and call this once.
pub fn contrastive(image_embeddings: Tensor<2>, text_embeddings: Tensor<2>, scale: Tensor<1>) -> Tensor<1> {
    assert!(
        image_embeddings.dims() == text_embeddings.dims(),
        "contrastive: pictures {:?} do not fit texts {:?}",
        image_embeddings.dims(),
        text_embeddings.dims()
    );
    let logits = logits(image_embeddings, text_embeddings, scale); // [pictures, texts]
    (pick_own(logits.clone()) + pick_own(logits.transpose())) * 0.5
}

/// Mean cross-entropy of choosing entry i in row i. logits [batch, batch] -> [1].
fn pick_own(logits: Tensor<2>) -> Tensor<1> {
    let [batch, _] = logits.dims();
    let own = Tensor::<1, Int>::arange(0..batch as i64, &logits.device()).reshape([batch, 1]);
    -activation::log_softmax(logits, 1).gather(1, own).mean()
}
