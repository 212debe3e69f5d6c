//! The codebook: who gets which gradient, moving averages, restarts, k-means start.

use super::*;
use burn::tensor::Device;
use rand::SeedableRng;
use smalti_nn::weights;
use smalti_testing::check_close;

/// `count` * `channels` normal numbers, as [1, count, 1, channels].
fn normal(count: usize, channels: usize, seed: u64, device: &Device) -> Tensor<4> {
    Initializer::new(seed, device).normal([1, count, 1, channels], 1.0).val().detach().set_require_grad(false)
}

fn quantizer(codebook: Codebook, restart_below: f32, device: &Device) -> VectorQuantizer {
    let config = Config { codebook, restart_below, decay: 0.9, ..Config::learned(4, 2) };
    config.validate().unwrap();
    VectorQuantizer::new(&config, &mut Initializer::new(1, device))
}

fn rows<const N: usize>(values: [[f32; 2]; N], device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(values.concat(), [1, N, 1, 2]), device)
}

fn with_codes(mut quantizer: VectorQuantizer, codes: [[f32; 2]; 4]) -> VectorQuantizer {
    let data = || TensorData::new(codes.concat(), [4, 2]);
    quantizer.codebook = replaced(quantizer.codebook, data());
    quantizer.recent_sum = quantizer.recent_sum.map(|recent_sum| replaced(recent_sum, data()));
    quantizer
}

const SQUARE: [[f32; 2]; 4] = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]];

fn tokens_of(tokens: Tensor<2, Int>) -> Vec<i64> {
    tokens.into_data().iter::<i64>().collect()
}

fn rng(seed: u64) -> ChaCha12Rng {
    ChaCha12Rng::seed_from_u64(seed)
}

#[test]
fn the_nearest_code_by_brute_force() {
    let device = Device::flex();
    for unit_length in [false, true] {
        let config = Config { unit_length, ..Config::learned(40, 6) };
        let quantizer = VectorQuantizer::new(&config, &mut Initializer::new(3, &device));
        let latents = normal(300, 6, 4, &device) * 0.05;
        let found = quantizer.forward(latents.clone());
        let lengthened = |x: &[f32]| -> Vec<f64> {
            let length = if unit_length { x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() } else { 1.0 };
            x.iter().map(|v| f64::from(*v) / length).collect()
        };
        let codes: Vec<Vec<f64>> = host(quantizer.codebook.val()).chunks(6).map(lengthened).collect();
        let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let expected: Vec<i64> = host(latents.clone())
            .chunks(6)
            .map(lengthened)
            .map(|x| (0..40).min_by(|&i, &j| distance(&x, &codes[i]).total_cmp(&distance(&x, &codes[j]))).unwrap() as i64)
            .collect();
        assert_eq!(tokens_of(found.tokens.clone()), expected);
        assert_eq!(tokens_of(quantizer.tokens(latents)), expected);
        let chosen: Vec<f32> = expected.iter().flat_map(|&token| codes[token as usize].iter().map(|&v| v as f32)).collect();
        check_close("codes", found.latents.reshape([1800]) as Tensor<1>, chosen.clone(), 1e-5);
        check_close("lookup", quantizer.lookup(found.tokens).reshape([1800]) as Tensor<1>, chosen, 1e-5);
    }
}

#[test]
fn the_gradient_passes_straight_through() {
    let device = Device::flex().autodiff();
    let quantizer = with_codes(quantizer(Codebook::Learned, 0.0, &device), SQUARE);
    let latents = rows([[1.0, 2.0], [9.0, 8.0], [3.0, 9.0]], &device).require_grad();
    let quantized = quantizer.forward(latents.clone());
    assert_eq!(tokens_of(quantized.tokens), [0, 3, 2]);
    let downstream = rows([[0.5, -1.0], [2.0, 3.0], [-4.0, 0.1]], &device);
    let gradients = (quantized.latents * downstream.clone()).sum().backward();
    assert_eq!(latents.grad(&gradients).unwrap().into_data(), downstream.into_data());
    assert!(quantizer.codebook.val().grad(&gradients).is_none(), "the straight-through estimate must not move codes");
}

/// FIELD T1: the commitment loss moves latents only, the codebook loss codes only, both with weight one.
#[test]
fn each_loss_moves_one_side() {
    let device = Device::flex().autodiff();
    let quantizer = with_codes(quantizer(Codebook::Learned, 0.0, &device), SQUARE);
    let latents = rows([[1.0, 2.0], [9.0, 8.0]], &device).require_grad();
    let quantized = quantizer.forward(latents.clone());
    let value = (1.0 + 4.0 + 1.0 + 4.0) / 4.0;
    check_close("losses", Tensor::cat(vec![quantized.codebook_loss.clone(), quantized.commitment_loss.clone()], 0), [value, value], 1e-6);
    let gradients = quantized.commitment_loss.backward();
    let expected = rows([[0.5, 1.0], [-0.5, -1.0]], &device); // 2 (latent - code) / 4
    check_close("commitment", latents.grad(&gradients).unwrap(), &expected, 1e-6);
    assert!(quantizer.codebook.val().grad(&gradients).is_none());
    let quantized = quantizer.forward(latents.clone());
    let gradients = quantized.codebook_loss.backward();
    assert!(latents.grad(&gradients).is_none());
    let codes = quantizer.codebook.val().grad(&gradients).unwrap();
    check_close("codebook", codes.reshape([8]) as Tensor<1>, [-0.5f32, -1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0], 1e-6);
}

#[test]
fn unit_length_gradients_agree_with_finite_differences() {
    let device = Device::flex().autodiff();
    let config = Config { unit_length: true, ..Config::learned(4, 3) };
    let quantizer = VectorQuantizer::new(&config, &mut Initializer::new(9, &device));
    let latents: Vec<f32> = quantizer.codebook.val().into_data().iter::<f32>().map(|value| 2.0 * value + 0.3).collect();
    let latents = smalti_testing::Array { shape: vec![1, 4, 1, 3], values: latents };
    let commitment = |p: &smalti_testing::Parameters| quantizer.forward(p.get("latents")).commitment_loss * 10.0;
    smalti_testing::gradient_check("commitment", &[("latents", latents.clone())], &device, 1e-2, commitment);
    let fixed: Tensor<4> = Tensor::from_data(TensorData::new(latents.values.clone(), [1, 4, 1, 3]), &device);
    smalti_testing::module_gradient_check("codebook", &quantizer, 1e-2, |quantizer| quantizer.forward(fixed.clone()).codebook_loss * 10.0);
    // A latent of zero has a direction no more than a gradient, but no NaN either.
    let zero = Tensor::<4>::zeros([1, 1, 1, 3], &device).require_grad();
    let gradients = quantizer.forward(zero.clone()).commitment_loss.backward();
    assert!(zero.grad(&gradients).unwrap().into_data().iter::<f32>().all(f32::is_finite));
}

#[test]
fn moving_averages_by_hand() {
    let device = Device::flex();
    let quantizer = with_codes(quantizer(Codebook::MovingAverage, 0.0, &device), SQUARE);
    let latents = rows([[1.0, 0.0], [3.0, 2.0], [9.0, 10.0]], &device);
    let tokens = quantizer.tokens(latents.clone());
    assert_eq!(tokens_of(tokens.clone()), [0, 0, 3]);
    let quantizer = quantizer.update_codebook(latents, tokens, &mut rng(1));
    // N = 0.9 * 1 + 0.1 * n; m = 0.9 * code + 0.1 * sum; code = m / N, up to the smoothing.
    let recent_use = [1.1f32, 0.9, 0.9, 1.0];
    let recent_sum = [0.4f32, 0.2, 9.0, 0.0, 0.0, 9.0, 9.9, 10.0];
    let codes: Vec<f32> = recent_sum.iter().enumerate().map(|(place, sum)| sum / recent_use[place / 2]).collect();
    check_close("recent use", quantizer.recent_use.as_ref().unwrap().val(), recent_use, 1e-5);
    check_close("recent sum", quantizer.recent_sum.as_ref().unwrap().val().reshape([8]) as Tensor<1>, recent_sum, 1e-5);
    check_close("codes", quantizer.codebook.val().reshape([8]) as Tensor<1>, codes, 1e-4);
}

#[test]
fn codes_of_moving_averages_are_not_the_optimisers() {
    let device = Device::flex().autodiff();
    let quantizer = quantizer(Codebook::MovingAverage, 0.1, &device);
    for quantizer in [quantizer.clone(), quantizer.update_codebook(rows(SQUARE, &device), Tensor::from_ints([[0, 1, 2, 3]], &device), &mut rng(2))] {
        let trained = [quantizer.codebook.is_require_grad(), quantizer.recent_use.unwrap().is_require_grad(), quantizer.recent_sum.unwrap().is_require_grad()];
        assert_eq!(trained, [false; 3]);
    }
    let learned = self::quantizer(Codebook::Learned, 0.1, &device);
    let learned = learned.update_codebook(rows(SQUARE, &device), Tensor::from_ints([[0, 1, 2, 3]], &device), &mut rng(2));
    assert!(learned.codebook.is_require_grad() && !learned.recent_use.unwrap().is_require_grad() && learned.recent_sum.is_none());
}

/// FIELD T8: after a restart the moving averages are those of the new code, so that the next update does not pull it back.
#[test]
fn a_dead_code_restarts_with_its_moving_averages() {
    let device = Device::flex();
    for codebook in [Codebook::MovingAverage, Codebook::Learned] {
        let mut codes = SQUARE;
        codes[2] = [-500.0, 700.0];
        let mut quantizer = with_codes(quantizer(codebook, 0.3, &device), codes);
        let latents = rows([[0.1, 0.0], [0.0, 0.1], [9.9, 0.1], [10.0, 9.8], [10.0, 10.2], [10.0, 0.2]], &device);
        let (mut rng, mut restarted) = (rng(3), None);
        for step in 0..30 {
            let tokens = quantizer.tokens(latents.clone());
            quantizer = quantizer.update_codebook(latents.clone(), tokens, &mut rng);
            let code: Vec<f32> = host(quantizer.codebook.val())[4..6].to_vec();
            if restarted.is_none() && code != [-500.0, 700.0] && (code[0] + 500.0).abs() > 1.0 {
                assert!(host(latents.clone()).chunks(2).any(|latent| latent == code), "{code:?} is a latent of the batch");
                let recent_use = host(quantizer.recent_use.as_ref().unwrap().val());
                assert!((recent_use[2] - recent_use.iter().sum::<f32>() / 4.0).abs() < 0.5, "{recent_use:?}: the mean use, a grace period");
                if let Some(recent_sum) = &quantizer.recent_sum {
                    let agreed: Vec<f32> = code.iter().map(|value| value * recent_use[2]).collect();
                    check_close("moving sum", host(recent_sum.val())[4..6].to_vec(), agreed, 1e-6);
                }
                restarted = Some(step);
            }
        }
        assert!(restarted.is_some_and(|step| (5..25).contains(&step)), "{codebook:?} restarted at {restarted:?}");
        // Still among the latents many updates later, and in use.
        let code: Vec<f32> = host(quantizer.codebook.val())[4..6].to_vec();
        assert!(code.iter().all(|value| (-1.0..11.0).contains(value)), "{codebook:?}: pulled back to {code:?}");
        assert!(tokens_of(quantizer.tokens(latents)).contains(&2));
    }
}

#[test]
fn no_more_codes_restart_than_there_are_latents() {
    let device = Device::flex();
    let mut quantizer = with_codes(quantizer(Codebook::MovingAverage, 0.5, &device), SQUARE);
    let recent_use = TensorData::new(vec![4.0f32, 0.0, 0.1, 0.2], [4]);
    quantizer.recent_use = quantizer.recent_use.map(|param| replaced(param, recent_use));
    let latents = rows([[0.0, 0.0], [0.25, 0.0]], &device);
    let tokens = quantizer.tokens(latents.clone());
    let quantizer = quantizer.update_codebook(latents, tokens, &mut rng(4));
    let codes = host(quantizer.codebook.val());
    let mut restarted = [codes[2], codes[4]]; // the two least used
    restarted.sort_by(f32::total_cmp);
    assert_eq!(restarted, [0.0, 0.25], "each on a latent of its own");
    assert_eq!(codes[6..8].iter().map(|value| value.round()).collect::<Vec<_>>(), [50.0, 50.0], "the third waits");
}

#[test]
fn the_same_updates_give_the_same_bytes() {
    let device = Device::flex();
    let config = Config { codebook: Codebook::MovingAverage, restart_below: 0.5, ..Config::learned(64, 8) };
    let trained = |interrupted: bool| {
        let mut quantizer = VectorQuantizer::new(&config, &mut Initializer::new(5, &device));
        quantizer = quantizer.start_codebook(normal(200, 8, 6, &device), 3, &mut rng(7));
        for step in 0..6 {
            let latents = normal(100, 8, 100 + step, &device);
            let tokens = quantizer.tokens(latents.clone());
            quantizer = quantizer.update_codebook(latents, tokens, &mut rng(step));
            if interrupted && step == 2 {
                let fresh = VectorQuantizer::new(&config, &mut Initializer::new(99, &device));
                quantizer = weights::apply(fresh, weights::collect(&quantizer), &device).unwrap();
            }
        }
        weights::collect(&quantizer)
    };
    let whole = trained(false);
    assert_eq!(whole, trained(false));
    assert_eq!(whole, trained(true), "saved and resumed in the middle");
}

#[test]
fn k_means_finds_the_heaps() {
    let device = Device::flex();
    let heaps = Tensor::<2>::from_data(TensorData::new(SQUARE.concat(), [4, 2]), &device);
    let latents = heaps.unsqueeze_dim::<3>(0).expand([50, 4, 2]).reshape([1, 200, 1, 2]) + normal(200, 2, 8, &device) * 0.2;
    for codebook in [Codebook::MovingAverage, Codebook::Learned] {
        // Lloyd's rounds end in the nearest rest, not always the best; of these seeds most find all four heaps.
        let found = (0..8).filter(|&seed| {
            let quantizer = quantizer(codebook, 0.0, &device).start_codebook(latents.clone(), 10, &mut rng(seed));
            let loss: f32 = quantizer.forward(latents.clone()).commitment_loss.into_scalar();
            loss < 0.06
        });
        assert!(found.count() >= 2);
        let placed: f32 =
            quantizer(codebook, 0.0, &device).start_codebook(latents.clone(), 0, &mut rng(1)).forward(latents.clone()).commitment_loss.into_scalar();
        let moved: f32 =
            quantizer(codebook, 0.0, &device).start_codebook(latents.clone(), 5, &mut rng(1)).forward(latents.clone()).commitment_loss.into_scalar();
        assert!(moved <= placed, "{moved} after {placed}");
    }
    // Fewer latents than codes: every latent becomes a code.
    let few = rows([[3.0, 1.0], [-2.0, 5.0]], &device);
    let loss: f32 = quantizer(Codebook::MovingAverage, 0.0, &device).start_codebook(few.clone(), 0, &mut rng(1)).forward(few).commitment_loss.into_scalar();
    assert!(loss < 1e-12);
}
