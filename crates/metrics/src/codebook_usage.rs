//! How much of an image tokenizer's codebook is in use.

use crate::MetricsError;
use serde::{Deserialize, Serialize};

/// Counts codes over an epoch. (Over one batch, perplexity is biased by the batch's size: a batch of 64 tokens cannot use 1024 codes.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeCounts {
    counts: Vec<u64>,
}

/// Usage over everything that was counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodebookUsage {
    pub codebook_size: usize,
    /// Share of the codes that occurred at all, in [0, 1].
    pub usage: f64,
    /// exp(-sum p ln p), p the share of each code: 1 when one code does everything, codebook_size when all are equally frequent.
    pub perplexity: f64,
    /// How many image tokens were counted.
    pub image_token_count: u64,
}

impl CodeCounts {
    pub fn new(codebook_size: usize) -> Self {
        Self { counts: vec![0; codebook_size] }
    }

    /// Counts the image tokens of any number of pictures.
    pub fn add(&mut self, image_tokens: &[u32]) -> Result<(), MetricsError> {
        let codebook_size = self.counts.len();
        if let Some(&code) = image_tokens.iter().find(|&&code| code as usize >= codebook_size) {
            return Err(MetricsError::Code { code, codebook_size });
        }
        for &code in image_tokens {
            self.counts[code as usize] += 1;
        }
        Ok(())
    }

    /// An error before anything was counted.
    pub fn usage(&self) -> Result<CodebookUsage, MetricsError> {
        let image_token_count: u64 = self.counts.iter().sum();
        if image_token_count == 0 {
            return Err(MetricsError::TooFew { metric: "codebook usage", things: "image tokens", expected: 1, found: 0 });
        }
        let used = self.counts.iter().filter(|&&count| count > 0);
        let entropy: f64 = used.clone().map(|&count| count as f64 / image_token_count as f64).map(|share| -share * share.ln()).sum();
        let codebook_size = self.counts.len();
        Ok(CodebookUsage { codebook_size, usage: used.count() as f64 / codebook_size as f64, perplexity: entropy.exp(), image_token_count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(codebook_size: usize, batches: &[&[u32]]) -> CodebookUsage {
        let mut counts = CodeCounts::new(codebook_size);
        batches.iter().for_each(|batch| counts.add(batch).unwrap());
        counts.usage().unwrap()
    }

    #[test]
    fn perplexity_is_the_exponential_of_entropy() {
        let even = usage(8, &[&[0, 1, 2, 3], &[4, 5, 6, 7]]);
        assert_eq!(even.usage, 1.0);
        assert!((even.perplexity - 8.0).abs() < 1e-9, "over the epoch all eight, though each batch has four");
        let single = usage(8, &[&[3, 3, 3]]);
        assert_eq!((single.usage, single.perplexity, single.image_token_count), (0.125, 1.0, 3));
        // Shares 1/2, 1/4, 1/4: entropy 1.5 ln 2, perplexity 2^1.5.
        let uneven = usage(4, &[&[0, 0, 1, 2]]);
        assert!((uneven.perplexity - 2f64.powf(1.5)).abs() < 1e-9);
        assert_eq!(uneven.usage, 0.75);
    }

    #[test]
    fn impossible_codes_and_empty_epochs_are_errors() {
        let mut counts = CodeCounts::new(4);
        assert_eq!(counts.add(&[3, 4]).unwrap_err().to_string(), "codebook usage: expected codes below 4, found 4");
        assert!(counts.usage().is_err(), "a refused batch is not counted in part");
    }
}
