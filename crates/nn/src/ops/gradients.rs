//! What the backward passes of operations with x, weight and bias share.

use burn::backend::Backend;
use burn::backend::autodiff::{NodeId, grads::Gradients};
use burn::backend::tensor::FloatTensor;

/// Which gradients are wanted: a frozen network takes none for its weights, a first layer none for its input.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub x: bool,
    pub weight: bool,
    pub bias: bool,
}

impl Wanted {
    pub(super) fn by(parents: &[Option<NodeId>; 3]) -> Self {
        let [x, weight, bias] = parents.map(|parent| parent.is_some());
        Self { x, weight, bias }
    }
}

/// Hands each parent that is tracked its gradient.
pub(super) fn register<B: Backend, const N: usize>(grads: &mut Gradients, parents: [Option<NodeId>; N], gradients: [impl Into<Option<FloatTensor<B>>>; N]) {
    for (parent, gradient) in parents.into_iter().zip(gradients) {
        if let (Some(parent), Some(gradient)) = (parent, gradient.into()) {
            grads.register::<B>(parent, gradient);
        }
    }
}
