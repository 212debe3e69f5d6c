//! The probability of an 8-bit number under a normal distribution: the decoder of DDPM (2006.11239, equation 13).

use std::f64::consts::{PI, SQRT_2};

/// Half the distance of two of the 256 numbers from -1 to 1.
const HALF_BIN: f64 = 1.0 / 255.0;

/// ln of the probability of the bin around `value`, one of the 256 numbers from -1 to 1; the bins of -1 and 1 reach to infinity. At least -708.4, where double
/// precision ends.
pub fn log_probability(value: f64, mean: f64, log_variance: f64) -> f64 {
    let standard = |edge: f64| (edge - mean) * (-0.5 * log_variance).exp();
    // Between the last bin and the last but one: pictures are rounded.
    let low = if value < HALF_BIN - 1.0 { f64::NEG_INFINITY } else { standard(value - HALF_BIN) };
    let high = if value > 1.0 - HALF_BIN { f64::INFINITY } else { standard(value + HALF_BIN) };
    probability_between(low, high).max(f64::MIN_POSITIVE).ln()
}

/// The probability that a unit normal number lies between; taken from the tail it lies in, where nothing cancels.
fn probability_between(low: f64, high: f64) -> f64 {
    if low + high > 0.0 { tail(low) - tail(high) } else { tail(-high) - tail(-low) }
}

/// The probability that a unit normal number is above `bound`.
fn tail(bound: f64) -> f64 {
    0.5 * complementary_error(bound / SQRT_2)
}

/// erfc(x) = 1 - erf(x), to about 1e-13 of its value for x above -2.5, of 1 below.
fn complementary_error(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - complementary_error(-x);
    }
    let scale = (-x * x).exp() / PI.sqrt();
    if x == f64::INFINITY {
        0.0
    } else if x < 2.5 {
        // erf(x) = 2 / sqrt(pi) e^(-x^2) sum of 2^n x^(2n+1) / (2n+1)!! (Abramowitz and Stegun 7.1.6)
        let mut term = x;
        let mut sum = 0.0;
        for n in 0..80 {
            sum += term;
            term *= 2.0 * x * x / f64::from(2 * n + 3);
        }
        1.0 - 2.0 * scale * sum
    } else {
        // e^(-x^2) / sqrt(pi) / (x + (1/2) / (x + (2/2) / (x + (3/2) / ...))) (Abramowitz and Stegun 7.1.14)
        scale / (1..=120).rev().fold(x, |fraction, n| x + f64::from(n) / 2.0 / fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `scipy.special.erfc`.
    #[test]
    fn the_complementary_error_function() {
        let known = [
            (-1.0, 1.842700792949715),
            (0.0, 1.0),
            (0.5, 0.4795001221869535),
            (2.0, 0.004677734981047266),
            (2.5, 0.00040695201744495886),
            (3.0, 2.2090496998585445e-5),
            (10.0, 2.088487583762545e-45),
        ];
        for (x, expected) in known {
            let found = complementary_error(x);
            assert!((found / expected - 1.0).abs() < 1e-11, "erfc({x}): {found}, expected {expected}");
        }
    }

    #[test]
    fn the_256_probabilities_sum_to_one() {
        for (mean, deviation) in [(0.1, 0.3_f64), (-0.99, 0.01), (2.0, 0.5), (0.0, 0.0001)] {
            let probability = |byte: i32| log_probability(f64::from(byte) / 127.5 - 1.0, mean, 2.0 * deviation.ln()).exp();
            let total: f64 = (0..256).map(probability).sum();
            assert!((total - 1.0).abs() < 1e-9, "mean {mean}, deviation {deviation}: {total}");
        }
    }

    #[test]
    fn far_away_is_finite() {
        assert!((log_probability(0.0, 0.9, -20.0) + 708.4).abs() < 0.1);
    }
}
