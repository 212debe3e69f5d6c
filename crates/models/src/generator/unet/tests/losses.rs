//! The losses against closed forms in f64.

use super::super::loss::*;
use burn::tensor::{Device, Tensor, TensorData};
use smalti_testing::{check_close, gradient_check};

const SHAPE: [usize; 4] = [3, 1, 2, 2];
const COUNT: usize = 12;

fn tensor(values: &[f64], shape: [usize; 4], device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(values.iter().map(|value| *value as f32).collect::<Vec<f32>>(), shape), device)
}

fn row(values: [f64; 3], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.map(|value| value as f32).to_vec(), [3]), device)
}

fn wave(phase: f64) -> Vec<f64> {
    (0..COUNT).map(|i| (i as f64 * 1.7 + phase).sin()).collect()
}

/// Three rows at the first, second and 500th of DDPM's 1000 linear steps.
struct Step {
    abar: [f64; 3],
    beta: [f64; 3],
    posterior_variance: [f64; 3],
    mean_of_clean: [f64; 3],
    mean_of_noisy: [f64; 3],
}

impl Step {
    fn new() -> Self {
        let beta = |t: usize| 1e-4 + (0.02 - 1e-4) * t as f64 / 999.0;
        let abar = |count: usize| (0..count).map(|t| 1.0 - beta(t)).product::<f64>(); // the product of the first `count` alphas
        let steps = [0usize, 1, 499];
        let variance = |t: usize| beta(t) * (1.0 - abar(t)) / (1.0 - abar(t + 1));
        Self {
            abar: steps.map(|t| abar(t + 1)),
            beta: steps.map(beta),
            posterior_variance: steps.map(|t| variance(t.max(1))),
            mean_of_clean: steps.map(|t| abar(t).sqrt() * beta(t) / (1.0 - abar(t + 1))),
            mean_of_noisy: steps.map(|t| (1.0 - beta(t)).sqrt() * (1.0 - abar(t)) / (1.0 - abar(t + 1))),
        }
    }

    fn terms(&self, device: &Device) -> StepTerms {
        StepTerms {
            clean_of_noisy: row(self.abar.map(|abar| 1.0 / abar.sqrt()), device),
            clean_of_prediction: row(self.abar.map(|abar| -(1.0 / abar - 1.0).sqrt()), device),
            mean_of_clean: row(self.mean_of_clean, device),
            mean_of_noisy: row(self.mean_of_noisy, device),
            log_posterior_variance: row(self.posterior_variance.map(f64::ln), device),
            log_beta: row(self.beta.map(f64::ln), device),
            first: row([1.0, 0.0, 0.0], device),
        }
    }
}

/// An 8-bit picture with both ends in its first row.
fn clean() -> Vec<f64> {
    let levels = [0.0, 255.0, 17.0, 200.0];
    (0..COUNT).map(|i| levels[i % 4] / 127.5 - 1.0).collect()
}

/// x_t and a prediction near the noise that made it.
fn noisy_and_prediction(step: &Step) -> (Vec<f64>, Vec<f64>) {
    let noise = wave(0.3);
    let noisy = (0..COUNT).map(|i| step.abar[i / 4].sqrt() * clean()[i] + (1.0 - step.abar[i / 4]).sqrt() * noise[i]).collect();
    (noisy, noise.iter().zip(wave(2.0)).map(|(noise, error)| noise + 0.2 * error).collect())
}

fn joined(prediction: &[f64], variance: &[f64]) -> Vec<f64> {
    (0..COUNT / 2).flat_map(|pixel| [&prediction[2 * pixel..][..2], &variance[2 * pixel..][..2]].concat()).collect()
}

/// The mass of a standard normal distribution in [a, b], by Simpson's rule.
fn mass(a: f64, b: f64) -> f64 {
    let (count, width) = (4000, b - a);
    let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let weight = |i: usize| if i == 0 || i == count { 1.0 } else { [2.0, 4.0][i % 2] };
    (0..=count).map(|i| weight(i) * density(a + width * i as f64 / count as f64)).sum::<f64>() * width / count as f64 / 3.0
}

/// Bits per dimension of each row, from the definitions: the divergence of two Gaussians, integrated numerically, and the mass of an 8-bit value's interval.
fn expected_bound(step: &Step, variance: &[f64]) -> Vec<f64> {
    let ((noisy, prediction), clean) = (noisy_and_prediction(step), clean());
    let element = |i: usize| {
        let r = i / 4;
        let predicted_clean = (noisy[i] - (1.0 - step.abar[r]).sqrt() * prediction[i]) / step.abar[r].sqrt();
        let mean = |clean: f64| step.mean_of_clean[r] * clean + step.mean_of_noisy[r] * noisy[i];
        let fraction = (variance[i] + 1.0) / 2.0;
        let deviation = (0.5 * (fraction * step.beta[r].ln() + (1.0 - fraction) * step.posterior_variance[r].ln())).exp();
        if r == 0 {
            let scaled = |x: f64| ((x - mean(predicted_clean)) / deviation).clamp(-12.0, 12.0);
            let (low, high) =
                (if i.is_multiple_of(4) { -12.0 } else { scaled(clean[i] - 1.0 / 255.0) }, if i % 4 == 1 { 12.0 } else { scaled(clean[i] + 1.0 / 255.0) });
            -mass(low, high).log2()
        } else {
            // E_q[log q - log p] over 12 deviations of q.
            let (true_mean, true_deviation) = (mean(clean[i]), step.posterior_variance[r].sqrt());
            let log_density = |x: f64, mean: f64, deviation: f64| -0.5 * ((x - mean) / deviation).powi(2) - deviation.ln();
            let count = 4000;
            let width = 24.0 * true_deviation / count as f64;
            let integrand = |k: usize| {
                let x = true_mean + (k as f64 - count as f64 / 2.0) * width;
                let (q, p) = (log_density(x, true_mean, true_deviation), log_density(x, mean(predicted_clean), deviation));
                q.exp() / (2.0 * std::f64::consts::PI).sqrt() * (q - p)
            };
            (0..=count).map(integrand).sum::<f64>() * width / std::f64::consts::LN_2
        }
    };
    (0..3).map(|r| (0..4).map(|i| element(4 * r + i)).sum::<f64>() / 4.0).collect()
}

#[test]
fn squared_errors_and_their_weights() {
    let device = Device::flex();
    let (a, b) = (wave(0.0), wave(1.0));
    let rows: Vec<f64> = (0..3).map(|r| (4 * r..4 * r + 4).map(|i| (a[i] - b[i]).powi(2)).sum::<f64>() / 4.0).collect();
    let found = squared_error(tensor(&a, SHAPE, &device), tensor(&b, SHAPE, &device));
    check_close("rows", found, rows.iter().map(|row| *row as f32).collect::<Vec<_>>(), 1e-5);
    let expected = (0.5 * rows[0] + 2.0 * rows[2]) / 3.0;
    let found = weighted_squared_error(tensor(&a, SHAPE, &device), tensor(&b, SHAPE, &device), row([0.5, 0.0, 2.0], &device));
    check_close("weighted", found, [expected as f32], 1e-5);
}

#[test]
fn the_bound_is_its_definition() {
    let (device, step) = (Device::flex(), Step::new());
    let (noisy, prediction) = noisy_and_prediction(&step);
    let variance = wave(5.0);
    let output = tensor(&joined(&prediction, &variance), [3, 1, 2, 4], &device);
    let found = variational_bound(output, tensor(&noisy, SHAPE, &device), tensor(&clean(), SHAPE, &device), &step.terms(&device));
    let expected: Vec<f32> = expected_bound(&step, &variance).iter().map(|row| *row as f32).collect();
    check_close("bound", found, expected, 1e-3);
}

#[test]
fn a_perfect_prediction_with_the_lower_variance_has_no_divergence() {
    let (device, step) = (Device::flex(), Step::new());
    let (noisy, _) = noisy_and_prediction(&step);
    let output = tensor(&joined(&wave(0.3), &[-1.0; COUNT]), [3, 1, 2, 4], &device);
    let found: Vec<f32> =
        variational_bound(output, tensor(&noisy, SHAPE, &device), tensor(&clean(), SHAPE, &device), &step.terms(&device)).into_data().iter::<f32>().collect();
    assert!(found[1].abs() < 1e-4 && found[2].abs() < 1e-4, "{found:?}");
}

#[test]
fn the_hybrid_is_the_sum_and_its_bound_teaches_only_the_variance() {
    let (device, step) = (Device::flex().autodiff(), Step::new());
    let (noisy, prediction) = noisy_and_prediction(&step);
    let output = tensor(&joined(&prediction, &wave(5.0)), [3, 1, 2, 4], &device).require_grad();
    let (noisy, clean, target) = (tensor(&noisy, SHAPE, &device), tensor(&clean(), SHAPE, &device), tensor(&wave(0.3), SHAPE, &device));
    let (weights, bound_weights, terms) = (row([1.0, 0.5, 2.0], &device), row([1.0; 3], &device), step.terms(&device));
    let loss = hybrid(output.clone(), target.clone(), noisy.clone(), clean.clone(), weights.clone(), bound_weights.clone(), &terms);
    let (mean_part, _) = prediction_and_variance(output.clone());
    let simple = weighted_squared_error(mean_part.clone(), target.clone(), weights);
    let bound = variational_bound(output.clone(), noisy, clean, &terms).mean();
    check_close("sum", &loss, (simple.clone() + bound).into_data(), 1e-6);
    let of_hybrid = output.grad(&loss.backward()).unwrap();
    let of_simple = output.grad(&simple.backward()).unwrap();
    check_close("gradient of the prediction", of_hybrid.clone().narrow(3, 0, 2), of_simple.narrow(3, 0, 2).into_data(), 1e-6);
    let variance: f32 = of_hybrid.narrow(3, 2, 2).abs().sum().into_scalar();
    assert!(variance > 1e-3, "the bound must teach the variance");
}

#[test]
fn gradients_of_the_bound_agree_with_finite_differences() {
    let (device, step) = (Device::flex().autodiff(), Step::new());
    let (noisy, prediction) = noisy_and_prediction(&step);
    let variance: Vec<f32> = wave(5.0).iter().map(|value| *value as f32).collect();
    gradient_check("bound", &[("variance", variance.into())], &device, 1e-2, |parameters| {
        let variance = parameters.get::<1>("variance").reshape(SHAPE);
        let output = Tensor::cat(vec![tensor(&prediction, SHAPE, &device), variance], 3);
        variational_bound(output, tensor(&noisy, SHAPE, &device), tensor(&clean(), SHAPE, &device), &step.terms(&device)).sum()
    });
}
