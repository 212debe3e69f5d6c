//! The losses of diffusion networks, on tensors. Schedules and their coefficients are the caller's: they come in as one number a row, [batch].
//!
//! Sources: Ho, Jain and Abbeel 2020 (2006.11239), equation 14; Nichol and Dhariwal 2021 (2102.09672), equations 14 to 16; min-SNR weights: Hang et al. 2023
//! (2303.09556).

use burn::tensor::Tensor;

/// The weight of the variational bound in the hybrid loss (Nichol and Dhariwal 2021, equation 16), for the bound summed over all steps: the bound of one
/// random step estimates it when multiplied by the number of steps.
pub const VARIATIONAL_WEIGHT: f32 = 1e-3;

/// The probability below which the first step's likelihood is cut off, so that its logarithm is finite (OpenAI's `improved-diffusion`, `losses.py`).
const LEAST_PROBABILITY: f32 = 1e-12;

/// Half the distance of two neighbouring 8-bit values in [-1, 1].
const HALF_STEP: f32 = 1.0 / 255.0;

/// Mean squared difference of each row, [batch]. Both [batch, height, width, channels].
pub fn squared_error(prediction: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    assert!(prediction.dims() == target.dims(), "squared_error: prediction {:?} does not fit target {:?}", prediction.dims(), target.dims());
    row_means((prediction - target).powi_scalar(2))
}

/// Mean over the rows of weight times squared error, [1]. L_simple where the weights are 1 and the target is the noise; min-SNR and the losses of velocity
/// and clean-picture prediction by their weights [batch] and targets.
pub fn weighted_squared_error(prediction: Tensor<4>, target: Tensor<4>, weights: Tensor<1>) -> Tensor<1> {
    let [batch, _, _, _] = prediction.dims();
    assert!(weights.dims() == [batch], "weighted_squared_error: weights {:?} do not fit a batch of {batch}", weights.dims());
    (squared_error(prediction, target) * weights).mean()
}

/// What the schedule says of each row's step t, each [batch].
#[derive(Clone, Debug)]
pub struct StepTerms {
    /// The clean picture is `clean_of_noisy` x_t + `clean_of_prediction` prediction: for noise prediction 1 / sqrt(abar_t) and -sqrt(1 / abar_t - 1).
    pub clean_of_noisy: Tensor<1>,
    pub clean_of_prediction: Tensor<1>,
    /// The mean of q(x_(t-1) | x_t, x_0) is `mean_of_clean` x_0 + `mean_of_noisy` x_t (Ho, Jain and Abbeel 2020, equation 7).
    pub mean_of_clean: Tensor<1>,
    pub mean_of_noisy: Tensor<1>,
    /// Its log variance, the lower bound of the learned one; at the first step, where it is minus infinity, that of the second.
    pub log_posterior_variance: Tensor<1>,
    /// log beta_t, the upper bound.
    pub log_beta: Tensor<1>,
    /// 1 where t is the first step, whose term is the likelihood of the 8-bit picture; else 0.
    pub first: Tensor<1>,
}

/// The term of the variational bound of each row's step, in bits per dimension, [batch].
///
/// output [batch, height, width, 2 * channels]: prediction, then the place v of the log variance between its bounds, as (v + 1) / 2 (equation 15, whose v is
/// in [0, 1]); noisy x_t and clean x_0 [batch, height, width, channels]. The prediction is detached: the bound teaches the variance only. For the first step,
/// clean holds 8-bit pictures in [-1, 1] (Ho, Jain and Abbeel 2020, equation 13).
pub fn variational_bound(output: Tensor<4>, noisy: Tensor<4>, clean: Tensor<4>, terms: &StepTerms) -> Tensor<1> {
    let (prediction, place) = prediction_and_variance(output);
    assert!(
        noisy.dims() == prediction.dims() && clean.dims() == prediction.dims(),
        "variational_bound: noisy {:?} and clean {:?} do not fit a prediction of {:?}",
        noisy.dims(),
        clean.dims(),
        prediction.dims()
    );
    let per_row = |term: &Tensor<1>| -> Tensor<4> { term.clone().reshape([-1, 1, 1, 1]) };
    let mean = |of_clean: Tensor<4>| of_clean * per_row(&terms.mean_of_clean) + noisy.clone() * per_row(&terms.mean_of_noisy);
    let predicted_clean = noisy.clone() * per_row(&terms.clean_of_noisy) + prediction.detach() * per_row(&terms.clean_of_prediction);
    let (true_mean, predicted_mean) = (mean(clean.clone()), mean(predicted_clean));
    let (lower, upper) = (per_row(&terms.log_posterior_variance), per_row(&terms.log_beta));
    let log_variance = lower.clone() + (place + 1.0) * 0.5 * (upper - lower.clone());
    let divergence = row_means(gaussian_divergence(true_mean, lower, predicted_mean.clone(), log_variance.clone()));
    let likelihood = row_means(log_likelihood(clean, predicted_mean, log_variance));
    let first = terms.first.clone();
    (divergence * (first.clone() * -1.0 + 1.0) - likelihood * first) / std::f32::consts::LN_2
}

/// L_hybrid (equation 16): [`weighted_squared_error`] of the prediction plus the mean over the rows of `bound_weights` times [`variational_bound`], [1].
///
/// `bound_weights` [batch]: [`VARIATIONAL_WEIGHT`] times the number of steps, where steps are drawn uniformly.
pub fn hybrid(
    output: Tensor<4>,
    target: Tensor<4>,
    noisy: Tensor<4>,
    clean: Tensor<4>,
    weights: Tensor<1>,
    bound_weights: Tensor<1>,
    terms: &StepTerms,
) -> Tensor<1> {
    let (prediction, _) = prediction_and_variance(output.clone());
    weighted_squared_error(prediction, target, weights) + (variational_bound(output, noisy, clean, terms) * bound_weights).mean()
}

/// The two halves of the channels of a network with learned variance.
pub fn prediction_and_variance(output: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
    let [_, _, _, channels] = output.dims();
    assert!(channels.is_multiple_of(2), "prediction_and_variance: output {:?} has an odd number of channels", output.dims());
    (output.clone().narrow(3, 0, channels / 2), output.narrow(3, channels / 2, channels / 2))
}

/// KL(N(mean_1, e^log_variance_1) || N(mean_2, e^log_variance_2)) of each element, in nats.
fn gaussian_divergence(mean_1: Tensor<4>, log_variance_1: Tensor<4>, mean_2: Tensor<4>, log_variance_2: Tensor<4>) -> Tensor<4> {
    let difference = log_variance_2.clone() - log_variance_1;
    ((-difference.clone()).exp() + (mean_1 - mean_2).powi_scalar(2) * (-log_variance_2).exp() + difference - 1.0) * 0.5
}

/// The logarithm of the probability that a Gaussian gives to the 8-bit value x, in nats: its mass in [x - 1/255, x + 1/255], open-ended at -1 and 1.
fn log_likelihood(x: Tensor<4>, mean: Tensor<4>, log_variance: Tensor<4>) -> Tensor<4> {
    let inverse_deviation = (log_variance * -0.5).exp();
    let centred = x.clone() - mean;
    let below = |x: Tensor<4>| ((x * inverse_deviation.clone() * std::f32::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
    let (up_to_upper, up_to_lower) = (below(centred.clone() + HALF_STEP), below(centred - HALF_STEP));
    // At the ends the whole tail belongs to the value; 0.999 lies between the last two of 256 values.
    let up_to_upper = up_to_upper.mask_fill(x.clone().greater_elem(0.999), 1.0);
    let up_to_lower = up_to_lower.mask_fill(x.lower_elem(-0.999), 0.0);
    (up_to_upper - up_to_lower).clamp_min(LEAST_PROBABILITY).log()
}

/// [batch, height, width, channels] -> [batch].
fn row_means(x: Tensor<4>) -> Tensor<1> {
    let [batch, height, width, channels] = x.dims();
    x.reshape([batch, height * width * channels]).mean_dim(1).squeeze_dim::<1>(1)
}
