//! How much arithmetic a network is, layer by layer from its config. Norms and activations are left out: they are bytes, not arithmetic.

use smalti_models::generator::unet;
use smalti_models::image_tokenizer::vqgan;

/// For one picture, forward.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// A multiply-add is two.
    pub flops: f64,
    /// Weights of convolutions and linear maps, without biases.
    pub weights: f64,
}

impl Count {
    /// A convolution whose output is `size` by `size`.
    fn convolution(&mut self, size: usize, kernel_size: usize, input: usize, output: usize) {
        let weights = (kernel_size * kernel_size * input * output) as f64;
        self.weights += weights;
        self.flops += 2.0 * weights * (size * size) as f64;
    }

    /// A linear map of one vector.
    fn linear(&mut self, input: usize, output: usize) {
        self.convolution(1, 1, input, output);
    }

    fn residual_block(&mut self, size: usize, input: usize, output: usize) {
        self.convolution(size, 3, input, output);
        self.convolution(size, 3, output, output);
        if input != output {
            self.convolution(size, 1, input, output);
        }
    }

    /// Every place of a map looks at every place.
    fn attention(&mut self, size: usize, channels: usize) {
        (0..4).for_each(|_| self.convolution(size, 1, channels, channels));
        self.flops += 4.0 * (size * size * size * size * channels) as f64;
    }
}

/// The linear map before the decoder, and the decoder.
pub fn decoder(config: &vqgan::Config, latent_size: usize) -> Count {
    let network = &config.network;
    let channels_of = |level: usize| network.base_channels * network.channel_multipliers[level];
    let (mut count, mut size) = (Count::default(), latent_size);
    let last = network.channel_multipliers.len() - 1;
    let mut channels = channels_of(last);
    count.convolution(size, 1, config.quantizer.code_channels, network.latent_channels);
    count.convolution(size, 3, network.latent_channels, channels);
    count.residual_block(size, channels, channels);
    if network.middle_attention {
        count.attention(size, channels);
    }
    count.residual_block(size, channels, channels);
    for level in (0..=last).rev() {
        for _ in 0..=network.residual_block_count {
            count.residual_block(size, channels, channels_of(level));
            channels = channels_of(level);
            if network.attention_levels.contains(&level) {
                count.attention(size, channels);
            }
        }
        if level > 0 {
            size *= 2;
            count.convolution(size, 3, channels, channels);
        }
    }
    count.convolution(size, 3, channels, network.picture_channels);
    count
}

/// A U-Net without text.
pub fn unet(config: &unet::Config, picture_size: usize) -> Count {
    let (mut count, mut size) = (Count::default(), picture_size);
    let last = config.level_channels.len() - 1;
    let mut channels = config.level_channels[0];
    let stage = |count: &mut Count, size: usize, level: usize, input: usize| {
        let output = config.level_channels[level];
        count.linear(config.time.channels, output);
        count.residual_block(size, input, output);
        if config.attention_levels.contains(&level) {
            count.attention(size, output);
        }
    };
    count.linear(config.time.sinusoid_channels, config.time.channels);
    count.linear(config.time.channels, config.time.channels);
    count.convolution(size, 3, config.input_channels, channels);
    let mut skips = vec![channels];
    for (level, &level_channels) in config.level_channels.iter().enumerate() {
        for _ in 0..config.residual_block_count {
            stage(&mut count, size, level, channels);
            channels = level_channels;
            skips.push(channels);
        }
        if level < last {
            size /= 2;
            count.convolution(size, 3, channels, channels);
            skips.push(channels);
        }
    }
    for _ in 0..2 {
        count.linear(config.time.channels, channels);
        count.residual_block(size, channels, channels);
    }
    if config.middle_attention {
        count.attention(size, channels);
    }
    for level in (0..=last).rev() {
        for _ in 0..=config.residual_block_count {
            let skip = skips.pop().expect("as many skips as stages");
            stage(&mut count, size, level, channels + skip);
            channels = config.level_channels[level];
        }
        if level > 0 {
            size *= 2;
            count.convolution(size, 3, channels, channels);
        }
    }
    count.convolution(size, 3, channels, config.predicted_channels());
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Module;
    use burn::tensor::Device;
    use smalti_models::generator::unet::Unet;
    use smalti_models::image_tokenizer::convolutional::Decoder;
    use smalti_nn::Initializer;

    /// The weights that were counted are the network's, but for biases and norms: fewer, and by little.
    #[track_caller]
    fn check(counted: f64, real: usize) {
        let missing = real as f64 - counted;
        assert!((0.0..0.02 * real as f64).contains(&missing), "counted {counted}, found {real}");
    }

    #[test]
    fn every_layer_is_counted() {
        let config = vqgan::Config::imagenet_f16_16384();
        let mut small = config.clone();
        (small.network.base_channels, small.network.latent_channels, small.quantizer.code_channels) = (32, 16, 16);
        let device = Device::flex();
        let network = Decoder::new(&small.network, &mut Initializer::unread(&device));
        check(decoder(&small, 4).weights, network.num_params() + 16 * 16 + 16);
        let config = unet::Config { attention_levels: vec![0, 2], residual_block_count: 1, ..unet::Config::ddpm_cifar10() };
        let network = Unet::new(&config, &mut Initializer::unread(&device)).unwrap();
        check(unet(&config, 8).weights, network.num_params());
    }

    #[test]
    fn a_convolution_and_attention_by_hand() {
        let mut count = Count::default();
        count.convolution(4, 3, 5, 7);
        assert_eq!((count.flops, count.weights), (2.0 * 16.0 * 9.0 * 35.0, 315.0));
        let mut count = Count::default();
        count.attention(2, 3);
        assert_eq!((count.flops, count.weights), (4.0 * 2.0 * 4.0 * 9.0 + 2.0 * 2.0 * 16.0 * 3.0, 36.0));
    }
}
