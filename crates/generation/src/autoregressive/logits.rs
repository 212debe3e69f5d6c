//! From the logits of one position to the tokens that may follow, with their probabilities.

use std::cmp::Ordering;

/// How the next token is chosen from its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Take the likeliest token each time; the other options and the random stream are not used.
    pub greedy: bool,
    /// Logits are divided by it; above 0. 1 is the network's own distribution, less is safer, more is wilder.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens, at least 1; `None` keeps all.
    pub top_k: Option<usize>,
    /// Of these keep the fewest whose probabilities sum to at least this, in (0, 1]; 1 keeps all (nucleus sampling, Holtzman et al. 2020).
    pub top_p: f32,
}

impl Default for Options {
    /// The network's own distribution, whole.
    fn default() -> Self {
        Self { greedy: false, temperature: 1.0, top_k: None, top_p: 1.0 }
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OptionsError {
    #[error("temperature: expected a number above 0, found {0}; hint: for the likeliest token each time choose greedily")]
    Temperature(f32),
    #[error("top_k: expected at least 1, found 0; hint: leave it out to keep every token")]
    TopK,
    #[error("top_p: expected a number above 0 and at most 1, found {0}")]
    TopP(f32),
}

impl Options {
    pub fn validate(&self) -> Result<(), OptionsError> {
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(OptionsError::Temperature(self.temperature));
        }
        if self.top_k == Some(0) {
            return Err(OptionsError::TopK);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(OptionsError::TopP(self.top_p));
        }
        Ok(())
    }
}

/// A token that may follow, and how likely it is among those kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub token: u32,
    pub probability: f64,
}

/// Super-conditioning: classifier-free guidance on logits, u + w (c - u), in Imagen's convention: w = 1 is the conditional logits and w = 0 the
/// unconditional ones, both bit for bit; above 1 exaggerates what the prompt changes. (Ho and Salimans' own weight is w - 1.)
///
/// Both slices have the same length. It means something only when captions were dropped in training.
pub fn super_condition(conditional: &[f32], unconditional: &[f32], guidance_scale: f32) -> Vec<f32> {
    assert_eq!(conditional.len(), unconditional.len(), "super_condition: {} conditional and {} unconditional logits", conditional.len(), unconditional.len());
    match guidance_scale {
        // Rounding and the sign of zero would make these two only nearly exact.
        1.0 => conditional.to_vec(),
        0.0 => unconditional.to_vec(),
        _ => conditional.iter().zip(unconditional).map(|(c, u)| u + guidance_scale * (c - u)).collect(),
    }
}

/// The token with the highest logit, the first of equals. `logits` must not be empty nor hold NaN.
pub fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// The tokens kept by temperature, then top-k, then top-p, in the order of the vocabulary, with probabilities that sum to 1.
///
/// Of equal logits the token that comes first in the vocabulary counts as likelier, so that exactly k tokens are kept and the same ones every time.
/// `logits` must be finite and not empty, `options` valid. `greedy` is not looked at.
pub fn candidates(logits: &[f32], options: &Options) -> Vec<Candidate> {
    let mut kept: Vec<u32> = (0..logits.len() as u32).collect();
    if let Some(count) = options.top_k {
        keep_top_k(logits, &mut kept, count);
    }
    if options.top_p < 1.0 {
        keep_top_p(logits, &mut kept, options);
    }
    kept.sort_unstable();
    let probabilities = softmax(logits, &kept, options.temperature);
    kept.into_iter().zip(probabilities).map(|(token, probability)| Candidate { token, probability }).collect()
}

/// The `count` likeliest of `kept`, in no particular order.
fn keep_top_k(logits: &[f32], kept: &mut Vec<u32>, count: usize) {
    if count < kept.len() {
        kept.select_nth_unstable_by(count, |a, b| likelier(logits, *a, *b));
        kept.truncate(count);
    }
}

/// The shortest run of the likeliest of `kept` whose probabilities sum to `top_p` or more; at least one token.
fn keep_top_p(logits: &[f32], kept: &mut Vec<u32>, options: &Options) {
    kept.sort_unstable_by(|a, b| likelier(logits, *a, *b));
    let mut mass = 0.0;
    let last = softmax(logits, kept, options.temperature).into_iter().position(|probability| {
        mass += probability;
        mass >= f64::from(options.top_p)
    });
    if let Some(last) = last {
        kept.truncate(last + 1);
    }
}

/// A total order: the higher logit first, of equals the token that comes first in the vocabulary. (0 and -0 are equal.)
fn likelier(logits: &[f32], a: u32, b: u32) -> Ordering {
    (logits[b as usize] + 0.0).total_cmp(&(logits[a as usize] + 0.0)).then(a.cmp(&b))
}

/// Probabilities of `tokens` among themselves, in double precision: softmax(logits / temperature).
fn softmax(logits: &[f32], tokens: &[u32], temperature: f32) -> Vec<f64> {
    let logit = |token: u32| f64::from(logits[token as usize]);
    let highest = tokens.iter().fold(f64::NEG_INFINITY, |highest, token| highest.max(logit(*token)));
    let weights: Vec<f64> = tokens.iter().map(|token| ((logit(*token) - highest) / f64::from(temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(candidates: &[Candidate]) -> Vec<u32> {
        candidates.iter().map(|candidate| candidate.token).collect()
    }

    /// The two papers' weights differ by one; ours is Imagen's.
    #[test]
    fn super_conditioning_is_exact_at_one_and_zero() {
        let conditional = [1.1_f32, -0.0, 3.0e38, 0.3, -7.7];
        let unconditional = [0.7_f32, 0.1, -3.0e38, -0.0, 1.0e-30];
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&super_condition(&conditional, &unconditional, 1.0)), bits(&conditional));
        assert_eq!(bits(&super_condition(&conditional, &unconditional, 0.0)), bits(&unconditional));
        assert_eq!(super_condition(&[1.0, 2.0], &[3.0, 0.0], 10.0), [-17.0, 20.0]); // u + 10 (c - u)
    }

    #[test]
    fn equal_logits_are_kept_in_the_order_of_the_vocabulary() {
        let logits = [0.0, 1.0, -0.0, 1.0, 0.0, 1.0];
        let kept = |top_k| tokens(&candidates(&logits, &Options { top_k: Some(top_k), ..Options::default() }));
        assert_eq!(kept(2), [1, 3]);
        assert_eq!(kept(4), [0, 1, 3, 5]);
        assert_eq!(kept(5), [0, 1, 2, 3, 5]);
        assert_eq!(likeliest(&logits), 1);
    }

    #[test]
    fn wrong_options_are_named() {
        let check = |options: Options, expected: &str| {
            let message = options.validate().unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        };
        let default = Options::default();
        assert_eq!(default.validate(), Ok(()));
        check(Options { temperature: 0.0, ..default }, "temperature: expected a number above 0, found 0");
        check(Options { temperature: f32::NAN, ..default }, "temperature: expected a number above 0, found NaN");
        check(Options { temperature: f32::INFINITY, ..default }, "temperature: ");
        check(Options { top_k: Some(0), ..default }, "top_k: expected at least 1, found 0");
        check(Options { top_p: 0.0, ..default }, "top_p: expected a number above 0 and at most 1, found 0");
        check(Options { top_p: 1.5, ..default }, "top_p: ");
        check(Options { top_p: f32::NAN, ..default }, "top_p: ");
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(prop_oneof![-20.0_f32..20.0, Just(0.5), Just(-1.0e30)], 1..60)
    }

    proptest! {
        #[test]
        fn top_k_keeps_exactly_k_and_the_likeliest(logits in logits(), top_k in 1_usize..70, temperature in 0.05_f32..5.0) {
            let kept = candidates(&logits, &Options { temperature, top_k: Some(top_k), ..Options::default() });
            prop_assert_eq!(kept.len(), top_k.min(logits.len()));
            let lowest = kept.iter().map(|candidate| logits[candidate.token as usize]).fold(f32::INFINITY, f32::min);
            let kept = tokens(&kept);
            for (token, logit) in logits.iter().enumerate() {
                prop_assert!(kept.contains(&(token as u32)) || *logit <= lowest);
            }
        }

        #[test]
        fn top_p_keeps_the_fewest_with_the_mass(logits in logits(), top_p in 0.01_f32..0.99, temperature in 0.05_f32..5.0) {
            let kept = tokens(&candidates(&logits, &Options { temperature, top_p, ..Options::default() }));
            let all = candidates(&logits, &Options { temperature, ..Options::default() });
            let mut probabilities: Vec<f64> = kept.iter().map(|token| all[*token as usize].probability).collect();
            let mass: f64 = probabilities.iter().sum();
            prop_assert!(mass >= f64::from(top_p) - 1e-9, "mass {} of {}", mass, top_p);
            probabilities.sort_by(f64::total_cmp);
            prop_assert!(mass - probabilities[0] < f64::from(top_p) + 1e-9, "one token too many");
        }

        #[test]
        fn probabilities_sum_to_one(logits in logits(), temperature in 0.05_f32..5.0, top_k in 1_usize..70, top_p in 0.01_f32..=1.0) {
            let kept = candidates(&logits, &Options { greedy: false, temperature, top_k: Some(top_k), top_p });
            prop_assert!((kept.iter().map(|candidate| candidate.probability).sum::<f64>() - 1.0).abs() < 1e-12);
            prop_assert!(tokens(&kept).contains(&likeliest(&logits)));
            prop_assert!(kept.is_sorted_by(|a, b| a.token < b.token));
        }

        #[test]
        fn a_cold_temperature_is_greedy(logits in logits()) {
            let kept = candidates(&logits, &Options { temperature: 1.0e-6, top_p: 1.0e-6, ..Options::default() });
            prop_assert_eq!(tokens(&kept), [likeliest(&logits)]);
        }
    }
}
