//! A bundle of tiny untrained networks, with every part.

use burn::tensor::Device;
use smalti_data::text_tokenizer::TextTokenizer;
use smalti_models::contrastive::clip::{self, Clip};
use smalti_models::generator::dalle_bart::{self, DalleBart, StackConfig};
use smalti_models::image_tokenizer::quantizer::vector;
use smalti_models::image_tokenizer::{convolutional, vqgan};
use smalti_nn::Initializer;
use smalti_pipeline::parts::{Generator, ImageTokenizer};
use smalti_pipeline::{Bundle, ContrastivePart, GeneratorPart, ImageTokenizerPart, Provenance};
use std::collections::BTreeMap;

/// Pictures of 16 x 16 pixels, 16 image tokens of 32 codes.
pub fn tiny_bundle() -> Bundle {
    let initializer = &mut Initializer::new(5, &Device::flex());
    let text_tokenizer = TextTokenizer::train(&["a red heart", "a blue fish", "a green leaf, flat style"], 300).unwrap();
    let vocabulary = text_tokenizer.vocabulary_size();
    let vqgan = vqgan::Config {
        network: convolutional::Config {
            picture_channels: 3,
            base_channels: 8,
            channel_multipliers: vec![1, 2, 2],
            residual_block_count: 1,
            attention_levels: vec![2],
            middle_attention: true,
            group_count: 4,
            latent_channels: 8,
        },
        quantizer: vector::Config::learned(32, 8),
    };
    let stack = StackConfig { block_count: 2, head_count: 4, feed_forward_channels: 40 };
    let generator =
        dalle_bart::Config { text_token_count: 12, channels: 24, encoder: stack.clone(), decoder: stack, ..dalle_bart::Config::pictograms(vocabulary, 32, 16) };
    let mut clip = clip::Config::pictograms_64(vocabulary, 12);
    clip.embedding_channels = 16;
    (clip.image.image_size, clip.image.patch_size) = (16, 4);
    for transformer in [&mut clip.image.transformer, &mut clip.text.transformer] {
        (transformer.channels, transformer.layer_count, transformer.head_count, transformer.feed_forward_channels) = (24, 1, 4, 32);
    }
    let provenance = Provenance {
        source: None,
        data: Some("nothing".into()),
        steps: Some(0),
        seconds: Some(1.5),
        recipe: Some("name = \"tiny\"\n[train]\nsteps = 0\n".into()),
        results: BTreeMap::from([("psnr".to_string(), 12.5)]),
    };
    let contrastive = |initializer: &mut Initializer| ContrastivePart {
        model: Clip::new(&clip, initializer).unwrap(),
        text_tokenizer: Some(text_tokenizer.clone()),
        provenance: provenance.clone(),
    };
    Bundle {
        name: "tiny".into(),
        image_tokenizer: Some(ImageTokenizerPart {
            model: ImageTokenizer::Vqgan(vqgan::Vqgan::new(&vqgan, initializer).unwrap()),
            image_size: 16,
            latent_scale: Some(1.25),
            provenance: provenance.clone(),
        }),
        generator: Some(GeneratorPart {
            model: Generator::DalleBart(DalleBart::new(&generator, initializer)),
            text_tokenizer: Some(text_tokenizer.clone()),
            sampling: None,
            provenance: provenance.clone(),
        }),
        contrastive: Some(contrastive(initializer)),
        judge: Some(contrastive(initializer)),
        ..Bundle::default()
    }
}
