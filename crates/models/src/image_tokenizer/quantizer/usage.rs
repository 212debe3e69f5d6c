//! How much of a codebook is used.
//!
//! Count over an epoch: the perplexity of one batch grows with the batch and says little about the codebook.

/// Counts codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodebookUsage {
    counts: Vec<u64>,
}

impl CodebookUsage {
    pub fn new(code_count: usize) -> Self {
        Self { counts: vec![0; code_count] }
    }

    /// image_tokens: each below the number of codes (a larger one is a wrong program).
    pub fn add(&mut self, image_tokens: &[u32]) {
        for &token in image_tokens {
            self.counts[token as usize] += 1;
        }
    }

    /// How often each code was counted.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Share of the codes that were counted at least once, in [0, 1].
    pub fn used_share(&self) -> f64 {
        self.counts.iter().filter(|&&count| count > 0).count() as f64 / self.counts.len().max(1) as f64
    }

    /// exp of the entropy of the codes' shares: between 1 (one code takes all) and the number of codes (all equal); 0 before anything was counted.
    pub fn perplexity(&self) -> f64 {
        let total: u64 = self.counts.iter().sum();
        if total == 0 {
            return 0.0;
        }
        let shares = self.counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 / total as f64);
        (-shares.map(|share| share * share.ln()).sum::<f64>()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_is_the_number_of_equally_used_codes() {
        let mut usage = CodebookUsage::new(8);
        assert_eq!((usage.used_share(), usage.perplexity()), (0.0, 0.0));
        usage.add(&[1, 4, 6, 7, 1, 4, 6, 7]);
        assert_eq!(usage.used_share(), 0.5);
        assert!((usage.perplexity() - 4.0).abs() < 1e-12);
        usage.add(&[1; 1_000_000]);
        assert!(usage.perplexity() < 1.001);
        assert_eq!(usage.counts()[1], 1_000_002);
    }
}
