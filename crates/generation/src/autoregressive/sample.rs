//! The loop: logits of one position, a token of each row, logits of the next position.

use super::logits::{Options, OptionsError, candidates, likeliest};
use crate::random::unit;
use rand_chacha::ChaCha12Rng;
use std::error::Error;

#[derive(Debug, thiserror::Error)]
pub enum SampleError<E: Error + 'static> {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(
        "logits of row {row} at position {position}: token {token} has the logit {value}; hint: the network's weights or a too large guidance scale overflow"
    )]
    NotFinite { row: usize, position: usize, token: usize, value: f32 },
    #[error("logits at position {position}: expected {row_count} rows of the same length above 0, found {found} numbers")]
    Shape { position: usize, row_count: usize, found: usize },
    /// What the function of the caller said.
    #[error(transparent)]
    Network(E),
}

/// Draws `token_count` tokens for each row; the result is [rows][token_count].
///
/// `next_logits(previous, position)` is called once per position. `previous` holds the token each row got at position - 1, and is empty at position 0,
/// where a network reads its own start token. It returns the logits of all rows one after the other, [rows * vocabulary], with guidance already applied
/// (see [`super_condition`](super::super_condition)).
///
/// Rows share nothing but that function: row r looks at its own logits and draws one number per token from `rows[r]` (none when greedy), so that a row
/// is the same whatever stands beside it, as long as its logits are.
pub fn sample<E: Error + 'static>(
    rows: &mut [ChaCha12Rng],
    token_count: usize,
    options: &Options,
    mut next_logits: impl FnMut(&[u32], usize) -> Result<Vec<f32>, E>,
) -> Result<Vec<Vec<u32>>, SampleError<E>> {
    options.validate()?;
    let mut sequences = vec![Vec::with_capacity(token_count); rows.len()];
    if rows.is_empty() {
        return Ok(sequences);
    }
    let mut previous = Vec::new();
    for position in 0..token_count {
        let logits = next_logits(&previous, position).map_err(SampleError::Network)?;
        check(&logits, rows.len(), position)?;
        let vocabulary = logits.len() / rows.len();
        previous = logits.chunks_exact(vocabulary).zip(rows.iter_mut()).map(|(logits, rng)| choose(logits, options, rng)).collect();
        for (sequence, token) in sequences.iter_mut().zip(&previous) {
            sequence.push(*token);
        }
    }
    Ok(sequences)
}

fn check<E: Error + 'static>(logits: &[f32], row_count: usize, position: usize) -> Result<(), SampleError<E>> {
    if logits.is_empty() || !logits.len().is_multiple_of(row_count) {
        return Err(SampleError::Shape { position, row_count, found: logits.len() });
    }
    let vocabulary = logits.len() / row_count;
    match logits.iter().position(|logit| !logit.is_finite()) {
        Some(index) => Err(SampleError::NotFinite { row: index / vocabulary, position, token: index % vocabulary, value: logits[index] }),
        None => Ok(()),
    }
}

/// One token from the logits of one row.
fn choose(logits: &[f32], options: &Options, rng: &mut ChaCha12Rng) -> u32 {
    if options.greedy {
        return likeliest(logits);
    }
    let kept = candidates(logits, options);
    let mut left = unit(rng);
    for candidate in &kept {
        left -= candidate.probability;
        if left < 0.0 {
            return candidate.token;
        }
    }
    // Rounding can leave a crumb of the sum over: it belongs to the last token that can be drawn at all.
    kept.iter().rev().find(|candidate| candidate.probability > 0.0).map_or_else(|| likeliest(logits), |candidate| candidate.token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::picture_rng;
    use std::convert::Infallible;

    fn streams(pictures: std::ops::Range<u64>) -> Vec<ChaCha12Rng> {
        pictures.map(|picture| picture_rng(5, picture)).collect()
    }

    /// Logits that depend on the row's own last token and the position only, as a network's do. Vocabulary 9.
    fn network(previous: &[u32], row_count: usize, position: usize) -> Vec<f32> {
        let last = |row: usize| previous.get(row).map_or(4.0, |token| *token as f32);
        (0..row_count).flat_map(|row| (0..9).map(move |token| ((last(row) + 1.0) * (token as f32 + 0.3) + position as f32).sin() * 2.0)).collect()
    }

    fn draw(pictures: std::ops::Range<u64>, options: &Options) -> Vec<Vec<u32>> {
        let mut rows = streams(pictures);
        let row_count = rows.len();
        sample(&mut rows, 12, options, |previous, position| Ok::<_, Infallible>(network(previous, row_count, position))).unwrap()
    }

    /// The same picture alone, in a batch, and in another place of the batch.
    #[test]
    fn a_batch_of_four_is_four_of_one() {
        for options in
            [Options::default(), Options { temperature: 0.7, top_k: Some(4), top_p: 0.9, greedy: false }, Options { greedy: true, ..Options::default() }]
        {
            let batch = draw(0..4, &options);
            let singles: Vec<_> = (0..4).flat_map(|picture| draw(picture..picture + 1, &options)).collect();
            assert_eq!(batch, singles);
            assert_eq!(batch[2..], draw(2..4, &options));
        }
        let drawn = draw(0..4, &Options::default());
        assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2], "pictures have streams of their own");
    }

    #[test]
    fn options_that_change_nothing_change_nothing() {
        assert_eq!(draw(0..3, &Options::default()), draw(0..3, &Options { top_k: Some(100), ..Options::default() }));
        assert_eq!(draw(0..3, &Options { top_k: Some(1), ..Options::default() }), draw(0..3, &Options { greedy: true, ..Options::default() }));
    }

    /// Pearson's test of 40,000 draws against softmax(logits / temperature): 7 degrees of freedom, 0.1 % of honest samplers exceed 24.3.
    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.3_f32, -1.2, 2.0, 0.0, 0.0, 1.1, -3.0, 0.9];
        let temperature = 1.3;
        let draw_count = 40_000;
        let drawn =
            sample(&mut streams(0..1), draw_count, &Options { temperature, ..Options::default() }, |_, _| Ok::<_, Infallible>(logits.to_vec())).unwrap();
        let weights = logits.map(|logit| (f64::from(logit) / f64::from(temperature)).exp());
        let total: f64 = weights.iter().sum();
        let statistic: f64 = (0..logits.len())
            .map(|token| {
                let expected = weights[token] / total * draw_count as f64;
                let found = drawn[0].iter().filter(|drawn| **drawn == token as u32).count() as f64;
                (found - expected).powi(2) / expected
            })
            .sum();
        assert!(statistic < 24.3, "chi-square {statistic}");
    }

    #[test]
    fn previous_tokens_come_back() {
        let mut seen = Vec::new();
        let rows = sample(&mut streams(0..2), 3, &Options::default(), |previous, position| {
            seen.push((previous.to_vec(), position));
            Ok::<_, Infallible>(network(previous, 2, position))
        })
        .unwrap();
        let column = |position: usize| vec![rows[0][position], rows[1][position]];
        assert_eq!(seen, [(vec![], 0), (column(0), 1), (column(1), 2)]);
    }

    #[test]
    fn no_rows_and_no_tokens_are_no_work() {
        let never = |_: &[u32], _: usize| -> Result<Vec<f32>, Infallible> { panic!("called") };
        assert_eq!(sample(&mut [], 4, &Options::default(), never).unwrap(), Vec::<Vec<u32>>::new());
        assert_eq!(sample(&mut streams(0..2), 0, &Options::default(), never).unwrap(), vec![Vec::<u32>::new(); 2]);
    }

    #[test]
    fn wrong_logits_are_named() {
        let failure = |logits: Vec<f32>, position: usize| {
            let next = |previous: &[u32], at: usize| Ok::<_, std::io::Error>(if at == position { logits.clone() } else { network(previous, 2, at) });
            sample(&mut streams(0..2), 5, &Options::default(), next).unwrap_err().to_string()
        };
        assert!(failure(vec![0.0, 1.0, 0.0, f32::NAN], 3).starts_with("logits of row 1 at position 3: token 1 has the logit NaN"));
        assert!(failure(vec![f32::INFINITY, 1.0, 0.0, 0.0], 0).starts_with("logits of row 0 at position 0: token 0 has the logit inf"));
        assert_eq!(failure(vec![1.0, 2.0, 3.0], 1), "logits at position 1: expected 2 rows of the same length above 0, found 3 numbers");
        assert_eq!(failure(vec![], 1), "logits at position 1: expected 2 rows of the same length above 0, found 0 numbers");
    }

    #[test]
    fn errors_of_the_network_and_of_options_come_through() {
        let broken = |_: &[u32], _: usize| Err::<Vec<f32>, _>(std::io::Error::other("the network is gone"));
        assert_eq!(sample(&mut streams(0..1), 1, &Options::default(), broken).unwrap_err().to_string(), "the network is gone");
        let options = Options { temperature: -1.0, ..Options::default() };
        assert!(sample(&mut streams(0..1), 1, &options, broken).unwrap_err().to_string().starts_with("temperature: "));
    }
}
