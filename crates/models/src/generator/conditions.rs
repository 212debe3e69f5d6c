//! What a diffusion network is told beside the noisy picture and its timestep.

use burn::tensor::{Bool, Int, Tensor};

/// A network takes exactly the conditions that its config names; another set is a wrong program and panics.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    pub text: Option<Text>,
    /// [batch], each below the network's number of classes.
    pub class: Option<Tensor<1, Int>>,
    pub low_resolution: Option<LowResolution>,
}

/// Captions as a text encoder left them.
#[derive(Clone, Debug)]
pub struct Text {
    /// [batch, tokens, channels]
    pub states: Tensor<3>,
    /// [batch, tokens], false where a token is padding; all are seen where there is none. What a row without any visible token means is the network's matter.
    pub visible: Option<Tensor<2, Bool>>,
}

/// The picture that a super-resolution network enlarges (Ho et al. 2021, 2106.15282; Saharia et al. 2022, 2205.11487, section 2.3).
#[derive(Clone, Debug)]
pub struct LowResolution {
    /// [batch, height, width, channels] in [-1, 1], already enlarged to the size of the noisy picture and with its noise added.
    pub picture: Tensor<4>,
    /// [batch]: how much noise was added, as the network's own noise input, as large as its timesteps.
    pub noise_level: Tensor<1>,
}

impl Conditions {
    /// Conditioned on text alone.
    pub fn text(states: Tensor<3>, visible: Option<Tensor<2, Bool>>) -> Self {
        Self { text: Some(Text { states, visible }), ..Self::default() }
    }

    /// Conditioned on a class alone, [batch].
    pub fn class(class: Tensor<1, Int>) -> Self {
        Self { class: Some(class), ..Self::default() }
    }

    /// Panics unless the conditions fit `network`, whose batch is `batch` and whose text has `text_channels`.
    pub(crate) fn check(&self, network: &str, batch: usize, text_channels: Option<usize>, class_count: Option<usize>) {
        let text = self.text.as_ref().map(|text| text.states.dims());
        assert!(
            text.map(|[rows, _, channels]| (rows, channels)) == text_channels.map(|channels| (batch, channels)),
            "{network}: text {text:?} does not fit a batch of {batch} and {text_channels:?} channels"
        );
        if let Some(Text { states, visible: Some(visible) }) = &self.text {
            let [rows, tokens, _] = states.dims();
            assert!(visible.dims() == [rows, tokens], "{network}: visible {:?} does not fit text {:?}", visible.dims(), states.dims());
        }
        let class = self.class.as_ref().map(|class| class.dims());
        assert!(class == class_count.map(|_| [batch]), "{network}: class {class:?} does not fit a batch of {batch} and {class_count:?} classes");
    }
}
