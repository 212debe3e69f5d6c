//! Published systems by their sizes alone: what they would take, beside what their papers say.

use super::{Budget, PartBudget, image_tokenizer, text_encoder};
use crate::manifest::{ImageTokenizerModel, TextEncoderModel};
use smalti_models::generator::{dalle_bart, efficient_unet, unet};
use smalti_models::image_tokenizer::autoencoder_kl;
use smalti_models::text_encoder::{clip_text, t5};

/// A system whose sizes are known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// Saharia et al. 2022 (2205.11487).
    Imagen,
    /// Rombach et al. 2022 (2112.10752), version 1.x.
    StableDiffusion1,
    /// Dayma et al. 2021, the generator.
    DalleMini,
    /// Ho, Jain and Abbeel 2020 (2006.11239), on CIFAR-10.
    Ddpm,
}

/// One network of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct PublishedPart {
    #[serde(flatten)]
    pub budget: PartBudget,
    /// Side of the picture or of its latents.
    pub side: Option<usize>,
    /// Parameters as its paper or its makers give them, rounded as there.
    pub claimed_parameters: Option<u64>,
}

/// Text tokens that Imagen's figures are counted with; the paper does not say how many there were.
const IMAGEN_TOKEN_COUNT: usize = 128;
/// The prompt, and what guidance leads away from.
const GUIDED: u64 = 2;

impl Published {
    /// Steps of each diffusion network, which the totals are counted with: DDPM's own 1,000, the 50 that Stable Diffusion's makers draw with, and for Imagen,
    /// whose paper gives no number, the 250 of guided diffusion (2105.05233). None where tokens are drawn.
    pub fn steps(self) -> Option<u64> {
        match self {
            Self::Imagen => Some(250),
            Self::StableDiffusion1 => Some(50),
            Self::DalleMini => None,
            Self::Ddpm => Some(1000),
        }
    }

    /// In the order in which a picture is made; passes are those of a whole picture, with guidance where there is text.
    pub fn parts(self) -> Vec<PublishedPart> {
        let guided = self != Self::Ddpm;
        let passes = if guided { GUIDED } else { 1 } * self.steps().unwrap_or(1);
        let generator = |name: &str, network, cost, side, claimed_parameters| {
            let budget = PartBudget::new(name, network, cost, passes).side_by_side(guided);
            PublishedPart { budget, side, claimed_parameters: Some(claimed_parameters) }
        };
        let text = |network, cost, claimed_parameters| {
            let budget = PartBudget::new("text_encoder", network, cost, GUIDED);
            PublishedPart { budget, side: None, claimed_parameters: Some(claimed_parameters) }
        };
        match self {
            Self::Imagen => {
                let stage = |name: &str, config: efficient_unet::Config, side: usize, claimed: u64| {
                    generator(name, "efficient_unet", config.cost(side * side, IMAGEN_TOKEN_COUNT), Some(side), claimed)
                };
                let encoder = TextEncoderModel::T5(t5::Config::version_1_1_xxl());
                vec![
                    text("t5", text_encoder(&encoder, IMAGEN_TOKEN_COUNT), 4_600_000_000),
                    stage("generator", efficient_unet::Config::imagen_64(), 64, 2_000_000_000),
                    stage("super_resolution 1", efficient_unet::Config::imagen_256(), 256, 600_000_000),
                    stage("super_resolution 2", efficient_unet::Config::imagen_1024(), 1024, 400_000_000),
                ]
            }
            Self::StableDiffusion1 => {
                let encoder = TextEncoderModel::ClipText(clip_text::Config::stable_diffusion_1());
                let autoencoder = ImageTokenizerModel::AutoencoderKl(autoencoder_kl::Config::stable_diffusion());
                let [_, decoder] = image_tokenizer(&autoencoder, 512);
                vec![
                    text("clip_text", text_encoder(&encoder, 77), 123_000_000),
                    generator("generator", "unet", unet::Config::stable_diffusion_1().cost(64 * 64, 77), Some(64), 860_000_000),
                    PublishedPart { budget: decoder, side: Some(512), claimed_parameters: None },
                ]
            }
            Self::DalleMini => vec![generator("generator", "dalle_bart", dalle_bart::Config::dalle_mini().cost(), None, 400_000_000)],
            Self::Ddpm => vec![generator("generator", "unet", unet::Config::ddpm_cifar10().cost(32 * 32, 0), Some(32), 35_700_000)],
        }
    }

    /// All of it, for totals.
    pub fn budget(self) -> Budget {
        Budget { parts: self.parts().into_iter().map(|part| part.budget).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: two passes of the text encoder and two for each step of each diffusion network, all weights at once and the most features of any part.
    #[test]
    fn totals_are_of_a_whole_picture() {
        let budget = Published::StableDiffusion1.budget();
        let [text, unet, decoder] = budget.parts.as_slice() else { panic!("{budget:?}") };
        assert_eq!([text.passes, unet.passes, decoder.passes], [2, 100, 1]);
        assert_eq!(budget.multiply_adds(), 2 * text.multiply_adds + 100 * unet.multiply_adds + decoder.multiply_adds);
        let parameters: u64 = Published::Imagen.parts().iter().map(|part| part.budget.parameters).sum();
        let features = Published::Imagen.parts().iter().map(|part| part.budget.activation_bytes).max().unwrap();
        assert_eq!(Published::Imagen.budget().memory_bytes(), 4 * parameters + features);
        assert_eq!(Published::Ddpm.parts()[0].budget.passes, 1000);
        assert_eq!(Published::DalleMini.parts()[0].budget.passes, 2, "a pass is a whole picture of tokens");
    }

    /// Within what rounding and open choices explain; Imagen's super-resolution models are not what the paper says (see `efficient_unet::Config`).
    #[test]
    fn sizes_are_those_of_the_papers() {
        for (system, shares) in [
            (Published::Imagen, &[1.0f64, 1.0, 0.79, 1.17][..]),
            (Published::StableDiffusion1, &[1.0, 1.0]),
            (Published::DalleMini, &[1.09]),
            (Published::Ddpm, &[1.0]),
        ] {
            let claimed = system.parts().into_iter().filter_map(|part| Some(part.budget.parameters as f64 / part.claimed_parameters? as f64));
            for (found, expected) in claimed.zip(shares) {
                assert!((found - expected).abs() < 0.05, "{system:?}: expected {expected} of what is claimed, found {found}");
            }
        }
    }
}
