//! Randomness is an argument: every picture owns a stream.
//!
//! ChaCha is counter-based: a seed names 2^64 streams that share nothing. Picture i of seed S draws from stream i of S and from nothing else, so it is
//! the same whatever the count, the batch, its place in the batch and the number of threads.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

/// The stream of picture `picture_index` of `seed`.
pub fn picture_rng(seed: u64, picture_index: u64) -> ChaCha12Rng {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream(picture_index);
    rng
}

/// Uniform in [0, 1), a multiple of 2^-53; takes 64 bits of the stream.
pub fn unit(rng: &mut ChaCha12Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Fills `values` with standard normal numbers; takes 64 bits of the stream for each of them, rounded up to an even count.
///
/// Box and Muller (1958): the radius and the angle of a point of the plane whose two coordinates are independent and normal. Written out here, and not taken
/// from a library, because another method would change every picture of every seed.
pub fn fill_normal(rng: &mut ChaCha12Rng, values: &mut [f32]) {
    for pair in values.chunks_mut(2) {
        let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt(); // 1 - unit lies in (0, 1]
        let angle = std::f64::consts::TAU * unit(rng);
        pair[0] = (radius * angle.cos()) as f32;
        if let Some(second) = pair.get_mut(1) {
            *second = (radius * angle.sin()) as f32;
        }
    }
}

/// `value_count` standard normal numbers for each picture, one picture after the other, each from its own stream.
pub fn normal_pictures(rngs: &mut [ChaCha12Rng], value_count: usize) -> Vec<f32> {
    let mut values = vec![0.0; rngs.len() * value_count];
    for (rng, picture) in rngs.iter_mut().zip(values.chunks_mut(value_count.max(1))) {
        fill_normal(rng, picture);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first draws of three streams, written down once: a change of generator would change every picture of every seed.
    #[test]
    fn streams_are_pinned() {
        let first = |seed, picture_index| picture_rng(seed, picture_index).next_u64();
        let streams = [first(7, 0), first(7, 1), first(8, 0)];
        assert_eq!(streams, [559256596868823998, 2412890669106560871, 6539018866842427570]);
    }

    #[test]
    fn normal_numbers_are_pinned() {
        let mut values = [0.0; 3];
        fill_normal(&mut picture_rng(7, 1), &mut values);
        assert_eq!(values, [-0.34807295, 0.3990192, -2.045135]);
    }

    #[test]
    fn unit_is_uniform() {
        let mut rng = picture_rng(1, 2);
        let draws: Vec<f64> = (0..10_000).map(|_| unit(&mut rng)).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.5).abs() < 4.0 / (12.0_f64 * 10_000.0).sqrt(), "mean {mean}"); // four standard errors
    }

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_distribution() {
        let mut values = vec![0.0; 100_001];
        fill_normal(&mut picture_rng(3, 1), &mut values);
        let moment = |power: i32| values.iter().map(|value| f64::from(*value).powi(power)).sum::<f64>() / values.len() as f64;
        // Expected moments, and the standard error of their estimates from 100,001 draws: sqrt((E x^2p - (E x^p)^2) / n); four of them are allowed.
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let allowed = 4.0 * f64::sqrt(variance / 100_001.0);
            assert!((moment(power) - expected).abs() < allowed, "moment {power}: {}", moment(power));
        }
        let correlation = values.as_chunks::<2>().0.iter().map(|[a, b]| f64::from(a * b)).sum::<f64>() / 50_000.0;
        assert!(correlation.abs() < 4.0 / 50_000.0_f64.sqrt(), "the two of a pair: {correlation}");
    }

    #[test]
    fn pictures_draw_from_their_own_streams() {
        let mut rngs = [picture_rng(3, 0), picture_rng(3, 1)];
        let both = normal_pictures(&mut rngs, 3);
        let mut second = [0.0; 3];
        fill_normal(&mut picture_rng(3, 1), &mut second);
        assert_eq!(both[3..], second);
        assert_eq!(rngs[1].next_u64(), {
            let mut rng = picture_rng(3, 1);
            (0..4).for_each(|_| _ = unit(&mut rng)); // three numbers take two pairs
            rng.next_u64()
        });
    }
}
