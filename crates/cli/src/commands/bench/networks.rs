//! Rows of whole networks: A decodes a picture, B trains a step, C writes image tokens one by one.

use super::flops;
use super::operations::values;
use super::row::Prepared;
use super::transformer::{self, Transformer};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use smalti_models::generator::unet::{self, Conditions, DownsamplingPadding, TimeUse, Unet, time_embedding};
use smalti_models::image_tokenizer::convolutional::Decoder;
use smalti_models::image_tokenizer::vqgan;
use smalti_nn::layers::Linear;
use smalti_nn::optimizer::FusedAdamW;
use smalti_nn::precision::{self, HalfFormat};
use smalti_nn::{Initializer, Precision};

pub const SEED: u64 = 0;

/// As bundles are loaded for drawing: in bf16 runs weights are stored so.
pub fn stored<M: Module>(network: M) -> M {
    match precision::current() {
        Precision::F32 => network,
        Precision::Bf16 => precision::store_weights(network, HalfFormat::Bf16),
    }
}

/// Of a weight of such a network.
pub fn weight_bytes() -> f64 {
    match precision::current() {
        Precision::F32 => 4.0,
        Precision::Bf16 => 2.0,
    }
}

/// The decoder of taming-transformers' f16 VQGAN with the linear map before it (`post_quant_conv` there), without the encoder, which no picture needs.
pub fn decoder(batch: usize, picture_size: usize) -> Prepared {
    let config = vqgan::Config::imagenet_f16_16384();
    let device = Device::flex();
    let mut initializer = Initializer::new(SEED, &device);
    let (code_channels, latent_channels) = (config.quantizer.code_channels, config.network.latent_channels);
    let from_code = Linear::uniform(code_channels, latent_channels, true, &mut initializer);
    let network = stored(Decoder::new(&config.network, &mut initializer));
    let latent_size = picture_size / config.network.downsampling_factor();
    let latents: Tensor<4> = values([batch, latent_size, latent_size, code_channels], &device);
    let count = flops::decoder(&config, latent_size);
    let body = Box::new(move || {
        network.picture(network.features(from_code.forward(latents.clone())));
    });
    // Of the bytes only the weights: how often feature maps travel is the program's doing, not the task's.
    Prepared { body, units: batch, flops: batch as f64 * count.flops, bytes: weight_bytes() * count.weights }
}

/// U-Net of base 64 with multipliers 1, 2, 4, attention of one head at 8x8; 16 pictures of 32x32; mean squared error of the noise; AdamW.
pub fn unet_step() -> Prepared {
    const BATCH: usize = 16;
    const SIZE: usize = 32;
    let config = unet::Config {
        input_channels: 3,
        output_channels: 3,
        learned_variance: false,
        level_channels: vec![64, 128, 256],
        residual_block_count: 2,
        attention_levels: vec![2],
        middle_attention: true,
        head_counts: vec![1; 3],
        text: None,
        class_count: None,
        time: time_embedding::Config::ddpm(64),
        time_use: TimeUse::Shift,
        downsampling_padding: DownsamplingPadding::AllSides,
        group_count: 32,
        norm_epsilon: 1e-5,
    };
    let device = Device::flex().autodiff();
    let mut network = Some(Unet::new(&config, &mut Initializer::new(SEED, &device)).expect("the config is a valid one"));
    let mut optimizer = FusedAdamW { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }.init();
    let shape = [BATCH, SIZE, SIZE, 3];
    let (noisy, noise): (Tensor<4>, Tensor<4>) = (values(shape, &Device::flex()), values(shape, &Device::flex()));
    let times: Vec<f32> = (0..BATCH).map(|i| (i * 61 % 1000) as f32).collect();
    let times: Tensor<1> = Tensor::from_data(TensorData::new(times, [BATCH]), &Device::flex());
    let count = flops::unet(&config, SIZE);
    let body = Box::new(move || {
        let current = network.take().expect("put back below");
        let prediction = current.forward(Tensor::from_inner(noisy.clone()), Tensor::from_inner(times.clone()), Conditions::default());
        let loss = unet::loss::squared_error(prediction, Tensor::from_inner(noise.clone())).mean();
        let gradients = GradientsParams::from_module(&mut loss.backward(), &current);
        network = Some(optimizer.step(1e-4, current, gradients));
    });
    // Weights are read forward and backward; AdamW reads four and writes three of their size.
    Prepared { body, units: 1, flops: 3.0 * BATCH as f64 * count.flops, bytes: 4.0 * 9.0 * count.weights }
}

#[derive(Clone, Copy)]
pub struct Decoding {
    pub batch: usize,
}

/// 256 tokens with a cache, each the likeliest; a unit is one token of every row.
pub fn decoding(Decoding { batch }: Decoding) -> Prepared {
    let device = Device::flex();
    let network = stored(Transformer::new(&mut Initializer::new(SEED, &device)));
    let body = Box::new(move || {
        let mut cache = network.cache(batch);
        let mut tokens: Tensor<2, Int> = Tensor::zeros([batch, 1], &device);
        for position in 0..transformer::TOKEN_COUNT {
            let logits = network.step(&mut cache, tokens, position); // [batch, vocabulary]
            tokens = logits.argmax(1);
        }
    });
    let tokens = transformer::TOKEN_COUNT as f64;
    // On average half of the cache is read.
    let history = tokens * (transformer::BLOCK_COUNT * transformer::CHANNELS) as f64 * tokens / 2.0;
    let weights = transformer::weights_read_per_token() as f64;
    let flops = batch as f64 * (2.0 * tokens * weights + 4.0 * history);
    Prepared { body, units: transformer::TOKEN_COUNT, flops, bytes: weight_bytes() * tokens * weights + 4.0 * 2.0 * batch as f64 * history }
}
