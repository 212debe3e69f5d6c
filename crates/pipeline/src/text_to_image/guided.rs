//! What a diffusion network says of noisy canvases, guided: away from the null prompt (classifier-free, projected, rescaled), then towards a class by the
//! gradient of a classifier.

use super::Request;
use super::conditions::Rows;
use crate::manifest::DiffusionConfig;
use crate::parts::{ClassifierPart, Diffusion};
use burn::tensor::{Device, Int, Tensor, TensorData};
use smalti_generation::diffusion::Level;
use smalti_generation::diffusion::guidance::{self, Interval, Projection};
use smalti_models::generator::conditions::{Conditions, LowResolution};

/// A classifier and where it leads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pull<'a> {
    pub classifier: &'a ClassifierPart,
    /// Below the classifier's number of classes.
    pub class: usize,
    pub scale: f64,
}

/// One stage and one batch of canvases, as a function from noisy canvases to the network's output.
pub(super) struct Guided<'a> {
    stage: &'a Diffusion,
    /// Of each canvas.
    rows: &'a [&'a Rows],
    low_resolution: Option<LowResolution>,
    pull: Option<Pull<'a>>,
    /// Height, width and channels of each.
    shape: [usize; 3],
    scale: f64,
    interval: Interval,
    rescale: f64,
    projection: Option<Projection>,
    device: Device,
}

impl<'a> Guided<'a> {
    pub fn new(stage: &'a Diffusion, request: &Request, rows: &'a [&'a Rows], shape: [usize; 3]) -> Self {
        let options = &request.diffusion;
        Self {
            stage,
            rows,
            low_resolution: None,
            pull: None,
            shape,
            scale: f64::from(request.guidance_scale.unwrap_or(stage.config.sampling.guidance_scale)),
            interval: options.guidance_interval.unwrap_or(Interval::whole()),
            rescale: options.guidance_rescale,
            projection: options.projection.map(|options| Projection::new(options, shape.iter().product())),
            device: stage.device(),
        }
    }

    /// Enlarging one smaller picture for each canvas.
    pub fn enlarging(self, low_resolution: Option<LowResolution>) -> Self {
        Self { low_resolution, ..self }
    }

    pub fn pulled_by(self, pull: Option<Pull<'a>>) -> Self {
        Self { pull, ..self }
    }

    /// The output for canvases at a level; `input` is the samples as the network was trained to see them. For each canvas first all of the prediction, then,
    /// where the network says it, all of the variance.
    pub fn output(&mut self, input: &[f32], level: &Level) -> Vec<f32> {
        let output = self.told(input, level);
        match self.pull {
            Some(pull) if self.interval.contains(level) => self.pulled(pull, output, input, level),
            _ => output,
        }
    }

    fn value_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// In a cascade, stages that only enlarge need not be told what the first one is.
    fn is_told_something(&self) -> bool {
        self.stage.config.text.is_some() || !self.stage.config.classes.is_empty()
    }

    /// Guided by what the prompt changes.
    fn told(&mut self, input: &[f32], level: &Level) -> Vec<f32> {
        let scale = self.interval.scale_at(level, self.scale);
        if scale == 1.0 || !self.is_told_something() || !self.rows.iter().any(|rows| rows.differ()) {
            return self.forward(input, level, false);
        }
        let output = self.forward(input, level, true);
        let (conditional, unconditional) = output.split_at(output.len() / 2);
        let (value_count, mut output) = (self.value_count(), conditional.to_vec());
        // Guidance is a matter of the prediction alone; a learned variance, which follows it in each picture, stays that of the prompt.
        let [conditional, unconditional] = [conditional, unconditional].map(|rows| predictions(rows, self.rows.len(), value_count));
        let mut guided = match &mut self.projection {
            None => guidance::classifier_free(&conditional, &unconditional, scale),
            Some(projection) => {
                let DiffusionConfig { parameterization, process, .. } = &self.stage.config;
                // Projection looks at clean pictures, which are read out of the samples themselves.
                let sample = scaled(input, 1.0 / process.input_scale(level));
                projection.guide(*parameterization, level, &sample, &conditional, &unconditional, scale)
            }
        };
        guidance::rescale(&mut guided, &conditional, value_count, self.rescale);
        put_predictions(&mut output, &guided, value_count);
        output
    }

    /// The network's own output: of the prompt and, with `both`, then of what guidance leads away from.
    fn forward(&self, input: &[f32], level: &Level, both: bool) -> Vec<f32> {
        let copies = if both { 2 } else { 1 };
        let (rows, [height, width, channels]) = (copies * self.rows.len(), self.shape);
        let noisy = Tensor::<4>::from_data(TensorData::new(input.repeat(copies), [rows, height, width, channels]), &self.device);
        let timesteps = Tensor::<1>::from_data(vec![level.timestep as f32; rows].as_slice(), &self.device);
        let mut conditions = if self.is_told_something() { Rows::conditions(self.rows, both, &self.device) } else { Conditions::default() };
        conditions.low_resolution = self
            .low_resolution
            .as_ref()
            .map(|low| LowResolution { picture: low.picture.clone().repeat_dim(0, copies), noise_level: low.noise_level.clone().repeat_dim(0, copies) });
        by_picture(self.stage.network.forward(noisy, timesteps, conditions), channels)
    }

    /// Moved towards the class (Dhariwal and Nichol 2021, algorithm 2).
    fn pulled(&self, pull: Pull, mut output: Vec<f32>, input: &[f32], level: &Level) -> Vec<f32> {
        let DiffusionConfig { parameterization, process, .. } = &self.stage.config;
        // The classifier sees the sample times a scale, as the network does: the chain rule gives the gradient for the sample that scale.
        let gradient = scaled(&pull.gradient(input, level, self.rows.len(), self.shape), process.input_scale(level));
        let value_count = self.value_count();
        let predicted = predictions(&output, self.rows.len(), value_count);
        let moved = guidance::classifier(*parameterization, level, &predicted, &gradient, pull.scale);
        put_predictions(&mut output, &moved, value_count);
        output
    }
}

impl Pull<'_> {
    /// The gradient of the logarithm of the class's probability for `input`.
    fn gradient(&self, input: &[f32], level: &Level, count: usize, [height, width, channels]: [usize; 3]) -> Vec<f32> {
        let network = &self.classifier.network;
        let device = self.classifier.device();
        let noisy = Tensor::<4>::from_data(TensorData::new(input.to_vec(), [count, height, width, channels]), &device);
        let timesteps = Tensor::<1>::from_data(vec![level.timestep as f32; count].as_slice(), &device);
        let class = Tensor::<1, Int>::from_data(vec![self.class as i64; count].as_slice(), &device);
        network.log_probability_gradient(noisy, timesteps, class).into_data().iter::<f32>().collect()
    }
}

fn scaled(values: &[f32], factor: f64) -> Vec<f32> {
    if factor == 1.0 { values.to_vec() } else { values.iter().map(|value| (f64::from(*value) * factor) as f32).collect() }
}

/// Of outputs by picture, the predictions without the variances.
fn predictions(output: &[f32], count: usize, value_count: usize) -> Vec<f32> {
    output.chunks_exact(output.len() / count).flat_map(|picture| &picture[..value_count]).copied().collect()
}

/// [`predictions`] put back.
fn put_predictions(output: &mut [f32], predictions: &[f32], value_count: usize) {
    let count = predictions.len() / value_count;
    let output_count = output.len() / count;
    for (picture, prediction) in output.chunks_exact_mut(output_count).zip(predictions.chunks_exact(value_count)) {
        picture[..value_count].copy_from_slice(prediction);
    }
}

/// [batch, height, width, channels] or twice the channels -> for each picture all of the prediction, then all of the variance.
fn by_picture(output: Tensor<4>, channels: usize) -> Vec<f32> {
    let [batch, height, width, found] = output.dims();
    if found == channels {
        return output.into_data().iter::<f32>().collect();
    }
    let half = |from: usize| output.clone().narrow(3, from, channels).reshape([batch, height * width * channels]);
    Tensor::cat(vec![half(0), half(channels)], 1).into_data().iter::<f32>().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Provenance;
    use crate::manifest::{Canvas, ClassifierConfig, NetworkConfig, SamplingDefaults};
    use smalti_generation::diffusion::{End, Parameterization, Process, Sampler, Spacing, Threshold, Variance, sigmas};
    use smalti_models::classifier::noisy::{self, NoisyClassifier, Pooling, cross_entropy};
    use smalti_models::generator::unet::{self, time_embedding};
    use smalti_nn::Initializer;

    /// EDM shows its networks the sample times a scale. A step of the sample along what guidance adds must change the log-probability as the gradient says.
    #[test]
    fn the_pull_is_the_gradient_for_the_sample_whatever_the_network_sees() {
        let initializer = &mut Initializer::new(3, &Device::flex());
        let network = unet::Config {
            level_channels: vec![4, 8],
            residual_block_count: 1,
            attention_levels: vec![],
            head_counts: vec![1; 2],
            time: time_embedding::Config::ddpm(4),
            group_count: 2,
            class_count: None,
            ..unet::Config::ddpm_cifar10()
        };
        let noisy = noisy::Config {
            input_channels: 3,
            class_count: 3,
            level_channels: network.level_channels.clone(),
            residual_block_count: 1,
            attention_levels: vec![],
            head_counts: vec![1; 2],
            time: network.time,
            time_use: network.time_use,
            group_count: 2,
            norm_epsilon: 1e-5,
            pooling: Pooling::Mean,
        };
        let (process, parameterization) = (Process::VarianceExploding(sigmas::Config::edm()), Parameterization::Edm { sigma_data: 0.5 });
        let sampling =
            SamplingDefaults { sampler: Sampler::Heun, steps: 4, guidance_scale: 1.0, threshold: Threshold::None, spacing: Spacing::Trailing, end: End::Clean };
        let config = DiffusionConfig {
            image_size: 4,
            canvas: Canvas::Pixels,
            latent_scale: None,
            parameterization,
            variance: Variance::FixedSmall,
            process: process.clone(),
            text: None,
            classes: Vec::new(),
            low_resolution: None,
            sampling,
            network: NetworkConfig::Unet(network),
        };
        let stage = Diffusion::new(&config, initializer).unwrap();
        let classes = ["a", "b", "c"].map(String::from).to_vec();
        let classifier = ClassifierPart {
            network: NoisyClassifier::new(&noisy, initializer).unwrap(),
            config: ClassifierConfig { image_size: 4, canvas: Canvas::Pixels, latent_scale: None, process: process.clone(), classes, network: noisy },
            provenance: Provenance::default(),
        };
        let (level, scale) = (sigmas::level(2.0), 1.5);
        let (request, input_scale) = (Request::new(""), process.input_scale(&level));
        let rows = Rows::of_all(&config, None, std::slice::from_ref(&request)).unwrap().remove(0);
        let sample: Vec<f32> = (0..48).map(|index| (index as f32 * 0.7).sin() * 2.0).collect();
        let input = scaled(&sample, input_scale);
        let clean = |pull| parameterization.clean(&level, &sample, &Guided::new(&stage, &request, &[&rows], [4, 4, 3]).pulled_by(pull).output(&input, &level));
        let (free, pulled) = (clean(None), clean(Some(Pull { classifier: &classifier, class: 2, scale })));
        let gradient: Vec<f64> = pulled.iter().zip(&free).map(|(a, b)| f64::from(a - b) / (level.sigma.powi(2) / level.alpha * scale)).collect();

        let log_probability = |sample: &[f32]| {
            let noisy = Tensor::<4>::from_data(TensorData::new(scaled(sample, input_scale), [1, 4, 4, 3]), &Device::flex());
            let logits = classifier.network.forward(noisy, Tensor::from_data([level.timestep as f32], &Device::flex()));
            -f64::from(cross_entropy(logits, Tensor::from_data([2], &Device::flex())).into_scalar::<f32>())
        };
        let norm = gradient.iter().map(|value| value * value).sum::<f64>().sqrt();
        let step = 0.02;
        let moved = |sign: f64| sample.iter().zip(&gradient).map(|(value, along)| value + (sign * step * along / norm) as f32).collect::<Vec<f32>>();
        let slope = (log_probability(&moved(1.0)) - log_probability(&moved(-1.0))) / (2.0 * step);
        assert!(norm > 1e-3 && (slope / norm - 1.0).abs() < 0.05, "slope {slope} along the gradient of length {norm}");
    }

    #[test]
    fn learned_variances_follow_their_predictions() {
        let output = Tensor::<4>::from_data([[[[1.0, 2.0], [3.0, 4.0]]], [[[5.0, 6.0], [7.0, 8.0]]]], &Default::default());
        let by_pictures = by_picture(output.clone(), 1);
        assert_eq!(by_pictures, [1.0, 3.0, 2.0, 4.0, 5.0, 7.0, 6.0, 8.0]);
        assert_eq!(by_picture(output, 2), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(predictions(&by_pictures, 2, 2), [1.0, 3.0, 5.0, 7.0]);
        let mut moved = by_pictures;
        put_predictions(&mut moved, &[-1.0, -3.0, -5.0, -7.0], 2);
        assert_eq!(moved, [-1.0, -3.0, 2.0, 4.0, -5.0, -7.0, 6.0, 8.0], "variances stay");
    }
}
