//! Inpainting: at each step the pixels that are known are put back, noised to the level of the step (RePaint, 2201.09865, equation 8, without resampling).

use super::Level;

/// What is known of the pictures being made. All slices are as long as the sample.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The pictures.
    pub clean: &'a [f32],
    /// The noise they are drowned in, unit normal; the same at every step, so that they move along the road that a sampler without fresh noise would take.
    /// Best the noise the walk starts from.
    pub noise: &'a [f32],
    /// 1 where a value is known and kept, 0 where it is painted anew; between the two it is mixed.
    pub keep: &'a [f32],
}

impl Known<'_> {
    /// Puts back what is known at this level. On the clean level a kept value is the picture's own, bit for bit.
    pub fn put_back(&self, level: &Level, sample: &mut [f32]) {
        let known = level.noised(self.clean, self.noise);
        for ((value, known), keep) in sample.iter_mut().zip(known).zip(self.keep) {
            *value = match *keep {
                1.0 => known,
                0.0 => *value,
                keep => keep * known + (1.0 - keep) * *value,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_pixels_come_back_at_their_level() {
        let known = Known { clean: &[0.1, 0.2, 0.3], noise: &[1.0, 2.0, -1.0], keep: &[1.0, 0.0, 0.5] };
        let mut sample = [9.0, 9.0, 9.0];
        known.put_back(&Level { timestep: -1.0, alpha: 1.0, sigma: 0.0 }, &mut sample);
        assert_eq!(sample, [0.1, 9.0, 4.65]);
        known.put_back(&Level { timestep: 0.0, alpha: 0.5, sigma: 2.0 }, &mut sample);
        assert_eq!(sample[..2], [2.05, 9.0]);
    }
}
