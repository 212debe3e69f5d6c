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
    fn unit_is_uniform() {
        let mut rng = picture_rng(1, 2);
        let draws: Vec<f64> = (0..10_000).map(|_| unit(&mut rng)).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!((mean - 0.5).abs() < 4.0 / (12.0_f64 * 10_000.0).sqrt(), "mean {mean}"); // four standard errors
    }
}
