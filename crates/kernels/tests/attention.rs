//! Attention and its gradients against sums in f64.

mod support;

use proptest::prelude::*;
use smalti_kernels::attention::{Attention, Heads, Strides, backward, forward};
use smalti_kernels::threads;
use support::{check_close, check_same, on_each_set, poisoned, values};

/// y and the gradients of query, key and value, tokens first.
fn reference(shape: Attention, inputs: [&[f32]; 3], visible: Option<&[f32]>, dy: &[f32]) -> [Vec<f64>; 4] {
    let Attention { batch, heads, queries, keys, channels, scale, causal } = shape;
    let [query, key, value] = inputs;
    let mut result = [vec![0.0; query.len()], vec![0.0; query.len()], vec![0.0; key.len()], vec![0.0; key.len()]];
    for pair in 0..batch * heads {
        let (b, h) = (pair / heads, pair % heads);
        let at = |tokens: usize, token: usize, c: usize| ((b * tokens + token) * heads + h) * channels + c;
        for i in 0..queries {
            let sees = |j: usize| (!causal || j <= i + keys - queries) && visible.is_none_or(|visible| visible[b * keys + j] != 0.0);
            let dot = |j: usize| (0..channels).map(|c| f64::from(query[at(queries, i, c)]) * f64::from(key[at(keys, j, c)])).sum::<f64>() * f64::from(scale);
            let weights: Vec<f64> = (0..keys).map(|j| if sees(j) { dot(j).exp() } else { 0.0 }).collect();
            let sum: f64 = weights.iter().sum();
            if sum == 0.0 {
                continue;
            }
            let d = |j: usize| (0..channels).map(|c| f64::from(dy[at(queries, i, c)]) * f64::from(value[at(keys, j, c)])).sum::<f64>();
            let along: f64 = (0..keys).map(|j| weights[j] / sum * d(j)).sum();
            for (j, weight) in weights.iter().enumerate() {
                let p = weight / sum;
                let dscore = p * (d(j) - along) * f64::from(scale);
                for c in 0..channels {
                    result[0][at(queries, i, c)] += p * f64::from(value[at(keys, j, c)]);
                    result[1][at(queries, i, c)] += dscore * f64::from(key[at(keys, j, c)]);
                    result[2][at(keys, j, c)] += dscore * f64::from(query[at(queries, i, c)]);
                    result[3][at(keys, j, c)] += p * f64::from(dy[at(queries, i, c)]);
                }
            }
        }
    }
    result
}

fn evaluate(shape: Attention, inputs: [&[f32]; 3], visible: Option<&[f32]>, dy: &[f32]) -> [Vec<f32>; 4] {
    let Attention { batch, heads, queries, keys, channels, .. } = shape;
    let tokens_first = |values, tokens| Heads { values, strides: Strides::tokens_first(heads, tokens, channels) };
    let (query, key, value) = (tokens_first(inputs[0], queries), tokens_first(inputs[1], keys), tokens_first(inputs[2], keys));
    let mut log_sums = poisoned(batch * heads * queries);
    let mut result = [inputs[0], inputs[0], inputs[1], inputs[1]].map(|like| poisoned(like.len()));
    let [y, dquery, dkey, dvalue] = &mut result;
    forward(query, key, value, visible, shape, y, &mut log_sums);
    backward(query, key, value, visible, tokens_first(y, queries), &log_sums, tokens_first(dy, queries), shape, dquery, dkey, dvalue);
    result
}

fn check(shape: Attention, masked: bool, seed: u64) {
    let Attention { batch, heads, queries, keys, channels, .. } = shape;
    let (query_len, key_len) = (batch * heads * queries * channels, batch * heads * keys * channels);
    let (query, key, value, dy) = (values(query_len, seed), values(key_len, seed + 1), values(key_len, seed + 2), values(query_len, seed + 3));
    let visible: Option<Vec<f32>> = masked.then(|| values(batch * keys, seed + 4).iter().map(|value| if *value > -0.5 { 1.0 } else { 0.0 }).collect());
    let inputs = [query.as_slice(), &key, &value];
    let expected = reference(shape, inputs, visible.as_deref(), &dy);
    on_each_set(|set| {
        let found = evaluate(shape, inputs, visible.as_deref(), &dy);
        for (what, (found, expected)) in ["y", "dquery", "dkey", "dvalue"].iter().zip(found.iter().zip(&expected)) {
            check_close(&format!("{} {what} masked {masked} {shape:?}", set.name()), found, expected, 1e-5);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn random_shapes(
        (batch, heads, queries, more, channels) in (0usize..3, 1usize..4, 1usize..40, 0usize..30, 1usize..40),
        causal in any::<bool>(),
        masked in any::<bool>(),
        seed in 0u64..1000,
    ) {
        check(Attention { batch, heads, queries, keys: queries + more, channels, scale: 0.3, causal }, masked, seed);
    }
}

#[test]
fn several_blocks_of_queries() {
    check(Attention { batch: 1, heads: 1, queries: 530, keys: 600, channels: 9, scale: 0.5, causal: true }, true, 1);
}

/// All scores are 0: the logarithms of the sums of exponentials are those of the numbers of keys.
#[test]
fn heads_without_channels() {
    for queries in [3, 6] {
        let shape = Attention { batch: 1, heads: 2, queries, keys: 8, channels: 0, scale: 1.0, causal: true };
        let nothing = Heads { values: &[], strides: Strides::tokens_first(2, 8, 0) };
        on_each_set(|set| {
            let mut log_sums = poisoned(2 * queries);
            forward(nothing, nothing, nothing, None, shape, &mut [], &mut log_sums);
            let expected: Vec<f64> = (0..2 * queries).map(|i| ((i % queries + 1 + 8 - queries) as f64).ln()).collect();
            check_close(set.name(), &log_sums, &expected, 1e-6);
        });
    }
}

#[test]
fn several_chunks_of_keys_and_wide_heads() {
    check(Attention { batch: 1, heads: 2, queries: 110, keys: 300, channels: 80, scale: 0.2, causal: false }, true, 3);
    check(Attention { batch: 2, heads: 2, queries: 3, keys: 300, channels: 80, scale: 0.2, causal: true }, true, 4);
}

#[test]
fn large_scores_neither_overflow_nor_lose_their_order() {
    check(Attention { batch: 1, heads: 1, queries: 30, keys: 290, channels: 8, scale: 30.0, causal: false }, false, 5);
}

#[test]
fn a_query_alone_gets_the_bits_it_gets_among_others() {
    // As with a key-value cache: query i alone, then the last two and four together, see the first keys only.
    let (heads, tokens, channels) = (2, 140, 40);
    let shape = Attention { batch: 1, heads, queries: tokens, keys: tokens, channels, scale: 0.4, causal: true };
    let row = heads * channels;
    let [query, key, value] = [1, 2, 3].map(|seed| values(tokens * row, seed));
    let attend = |shape: Attention, first: usize| {
        let (queries, keys) = (shape.queries, shape.keys);
        let part = |values, tokens| Heads { values, strides: Strides::tokens_first(heads, tokens, channels) };
        let (mut y, mut log_sums) = (poisoned(queries * row), poisoned(heads * queries));
        let [query, key, value] = [part(&query[first * row..][..queries * row], queries), part(&key[..keys * row], keys), part(&value[..keys * row], keys)];
        forward(query, key, value, None, shape, &mut y, &mut log_sums);
        (y, log_sums)
    };
    on_each_set(|set| {
        let (all, log_sums) = attend(shape, 0);
        for (queries, end) in [(1, 1), (1, 2), (1, 127), (1, 128), (1, 129), (2, 129), (4, 130), (5, 131), (9, 133), (33, 140)] {
            let first = end - queries;
            let (alone, log_sums_alone) = attend(Attention { queries, keys: end, ..shape }, first);
            check_same(&format!("{} {queries} queries of {end}", set.name()), &alone, &all[first * row..][..queries * row]);
            for head in 0..heads {
                let expected = &log_sums[head * tokens + first..][..queries];
                check_same(&format!("{} logarithms, {queries} queries of {end}", set.name()), &log_sums_alone[head * queries..][..queries], expected);
            }
        }
    });
}

#[test]
fn a_row_that_sees_nothing_is_zero() {
    let shape = Attention { batch: 1, heads: 1, queries: 3, keys: 4, channels: 5, scale: 1.0, causal: false };
    let (query, key) = (values(15, 1), values(20, 2));
    on_each_set(|set| {
        for part in evaluate(shape, [&query, &key, &key], Some(&[0.0; 4]), &query) {
            check_same(set.name(), &part, &vec![0.0; part.len()]);
        }
    });
}

#[test]
fn threads_and_batch_change_no_bit() {
    let shape = Attention { batch: 3, heads: 2, queries: 90, keys: 110, channels: 24, scale: 0.2, causal: true };
    let (query, key, value, dy) = (values(3 * 2 * 90 * 24, 1), values(3 * 2 * 110 * 24, 2), values(3 * 2 * 110 * 24, 3), values(3 * 2 * 90 * 24, 4));
    on_each_set(|set| {
        let run = |thread_count: usize| threads::install(thread_count, || evaluate(shape, [&query, &key, &value], None, &dy));
        let (one, all) = (run(1), run(0));
        one.iter().zip(&all).for_each(|(one, all)| check_same(set.name(), one, all));
        let second = |values: &[f32]| values[values.len() / 3..values.len() / 3 * 2].to_vec();
        let alone = evaluate(Attention { batch: 1, ..shape }, [&second(&query), &second(&key), &second(&value)], None, &second(&dy));
        alone.iter().zip(&one).for_each(|(alone, one)| check_same(set.name(), alone, &second(one)));
    });
}
