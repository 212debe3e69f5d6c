//! Convolution and its gradients against sums in f64.

mod support;

use proptest::prelude::*;
use smalti_kernels::convolution::{Added, Convolution, forward, input_gradient, shift_gradient, weight_gradient};
use smalti_kernels::threads;
use support::{OfPicture, Unaligned, check_close, check_same, on_each_set, poisoned, products, values};

fn check(shape: Convolution, seed: u64) {
    let Convolution { batch, height, width, input_channels, output_channels, kernel_size, .. } = shape;
    let outputs = batch * shape.output_height() * shape.output_width();
    let x = Unaligned::new(&values(batch * height * width * input_channels, seed));
    let weight = Unaligned::new(&values(kernel_size * kernel_size * input_channels * output_channels, seed + 1));
    let dy = Unaligned::new(&values(outputs * output_channels, seed + 2));
    let (x, weight, dy, bias) = (x.as_slice(), weight.as_slice(), dy.as_slice(), values(output_channels, seed + 3));
    let mut y: Vec<f64> = (0..dy.len()).map(|i| f64::from(bias[i % output_channels])).collect();
    let (mut dx, mut dweight, mut dbias) = (vec![0.0f64; x.len()], vec![0.0f64; weight.len()], vec![0.0f64; output_channels]);
    products(shape, |i, j, k| {
        y[k] += f64::from(x[i]) * f64::from(weight[j]);
        dx[i] += f64::from(weight[j]) * f64::from(dy[k]);
        dweight[j] += f64::from(x[i]) * f64::from(dy[k]);
    });
    dy.iter().enumerate().for_each(|(i, value)| dbias[i % output_channels] += f64::from(*value));
    let of_picture = OfPicture::new(&shape, &bias, &y, dy, seed + 4);
    on_each_set(|set| {
        let name = |what: &str| format!("{} {what} {shape:?}", set.name());
        let mut found = Unaligned::new(&poisoned(y.len()));
        forward(x, weight, Added::bias(&bias), shape, found.as_mut_slice());
        check_close(&name("y"), found.as_slice(), &y, 1e-5);
        let mut found = poisoned(x.len());
        input_gradient(weight, dy, shape, &mut found);
        check_close(&name("dx"), &found, &dx, 1e-5);
        let (mut found, mut found_bias) = (poisoned(weight.len()), poisoned(output_channels));
        weight_gradient(x, dy, shape, &mut found, Some(&mut found_bias));
        check_close(&name("dweight"), &found, &dweight, 1e-5);
        check_close(&name("dbias"), &found_bias, &dbias, 1e-5);
        let mut found = Unaligned::new(&poisoned(y.len()));
        forward(x, weight, of_picture.added(), shape, found.as_mut_slice());
        check_close(&name("y with each picture's bias and a residual"), found.as_slice(), &of_picture.y, 1e-5);
        let mut found = poisoned(batch * output_channels);
        shift_gradient(dy, shape, &mut found);
        check_close(&name("each picture's dbias"), &found, &of_picture.dbias, 1e-5);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_shapes(
        (batch, height, width) in (0usize..4, 1usize..12, 1usize..12),
        (input_channels, output_channels) in (1usize..40, 1usize..40),
        (kernel_size, stride, before, after) in (1usize..5, 1usize..4, 0usize..3, 0usize..3),
        seed in 0u64..1000,
    ) {
        let shape = Convolution { batch, height, width, input_channels, output_channels, kernel_size, stride, before, after };
        prop_assume!(height.min(width) + before + after >= kernel_size);
        check(shape, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Pictures so large that fewer multiplications are used: the bound on the error is the same.
    #[test]
    fn large_pictures(
        (batch, height, width) in (0usize..3, 14usize..24, 15usize..22),
        (input_channels, output_channels) in (1usize..40, 1usize..40),
        (before, after) in (0usize..4, 0usize..4),
        seed in 0u64..1000,
    ) {
        check(Convolution { batch, height, width, input_channels, output_channels, kernel_size: 3, stride: 1, before, after }, seed);
    }
}

#[test]
fn long_sums_keep_their_accuracy() {
    let shape = Convolution { batch: 1, height: 16, width: 16, input_channels: 512, output_channels: 17, kernel_size: 3, stride: 1, before: 1, after: 1 };
    check(shape, 8);
    check(Convolution { input_channels: 17, output_channels: 512, ..shape }, 9);
    // So many weights that panels are transformed one by one.
    check(Convolution { height: 17, width: 15, input_channels: 520, output_channels: 516, ..shape }, 10);
}

/// A picture without rows whose padding alone holds a kernel: the turned convolution of the gradient for the input would not.
#[test]
fn pictures_of_nothing_but_padding() {
    let shape = Convolution { batch: 1, height: 0, width: 64, input_channels: 9, output_channels: 8, kernel_size: 3, stride: 1, before: 2, after: 1 };
    check(shape, 13);
    check(Convolution { height: 64, width: 0, ..shape }, 14);
}

/// More tiles than a block of the weights' gradient holds, and more output channels than a group.
#[test]
fn large_batches_and_wide_layers_keep_their_accuracy() {
    let shape = Convolution { batch: 5, height: 45, width: 33, input_channels: 9, output_channels: 10, kernel_size: 3, stride: 1, before: 1, after: 1 };
    check(shape, 10);
    check(Convolution { batch: 2, height: 16, width: 16, input_channels: 500, output_channels: 131, ..shape }, 11);
    check(Convolution { batch: 9, height: 8, width: 8, input_channels: 40, output_channels: 48, ..shape }, 12);
}

#[test]
fn the_shapes_networks_use() {
    let shape = Convolution { batch: 2, height: 16, width: 16, input_channels: 32, output_channels: 32, kernel_size: 3, stride: 1, before: 1, after: 1 };
    for (kernel_size, stride, before, after) in [(3, 1, 1, 1), (3, 2, 0, 1), (3, 2, 1, 1), (4, 2, 1, 1), (4, 1, 1, 1), (1, 1, 0, 0), (1, 2, 0, 0)] {
        check(Convolution { kernel_size, stride, before, after, ..shape }, 3);
    }
    check(Convolution { input_channels: 300, output_channels: 20, height: 3, width: 4, ..shape }, 4);
    // Few rows and many channels: weights are copied piece by piece.
    let deep = Convolution { batch: 3, height: 7, width: 8, input_channels: 300, output_channels: 140, ..shape };
    check(deep, 8);
    check(Convolution { stride: 2, ..deep }, 9);
    check(Convolution { kernel_size: 1, before: 0, after: 0, ..deep }, 10);
    check(Convolution { input_channels: 3, ..shape }, 5);
    check(Convolution { output_channels: 3, ..shape }, 6);
    check(Convolution { batch: 1, height: 1, width: 1, input_channels: 1, output_channels: 1, ..shape }, 7);
}

#[test]
fn threads_and_batch_change_no_bit_without_winograd_either() {
    // 504 rows, for which weights are copied piece by piece: two slices of each of nine taps, three panels and more, the last not full.
    let (channels_x, channels_y) = (300, 140);
    let shape =
        Convolution { batch: 9, height: 7, width: 8, input_channels: channels_x, output_channels: channels_y, kernel_size: 3, stride: 1, before: 1, after: 1 };
    let (x, weight, shifts) = (values(10 * 56 * channels_x, 1), values(9 * channels_x * channels_y, 2), values(10 * channels_y, 3));
    on_each_set(|set| {
        let run = |thread_count: usize, pictures: std::ops::Range<usize>| {
            let mut y = poisoned(pictures.len() * 56 * channels_y);
            let x = &x[pictures.start * 56 * channels_x..pictures.end * 56 * channels_x];
            let added = Added { shifts: Some(&shifts[pictures.start * channels_y..pictures.end * channels_y]), ..Added::NOTHING };
            threads::install(thread_count, || forward(x, &weight, added, Convolution { batch: pictures.len(), ..shape }, &mut y));
            y
        };
        let one = run(1, 0..9);
        check_same(set.name(), &one, &run(0, 0..9));
        check_same(set.name(), &run(0, 5..6), &one[5 * 56 * channels_y..][..56 * channels_y]);
        // 560 rows share one copy of all weights.
        check_same(set.name(), &one, &run(0, 0..10)[..9 * 56 * channels_y]);
    });
}

#[test]
fn threads_and_batch_change_no_bit() {
    let shape = Convolution { batch: 5, height: 20, width: 20, input_channels: 40, output_channels: 48, kernel_size: 3, stride: 1, before: 1, after: 1 };
    let (x, weight, dy, bias) = (values(5 * 400 * 40, 1), values(9 * 40 * 48, 2), values(5 * 400 * 48, 3), values(5 * 48, 4));
    let added = Added { shifts: Some(&bias), residual: Some(&dy), ..Added::NOTHING };
    on_each_set(|set| {
        let run = |thread_count: usize| {
            threads::install(thread_count, || {
                let mut all = [poisoned(dy.len()), poisoned(x.len()), poisoned(weight.len()), poisoned(48), poisoned(5 * 48)];
                let [y, dx, dweight, dbias, dshifts] = &mut all;
                forward(&x, &weight, added, shape, y);
                input_gradient(&weight, &dy, shape, dx);
                weight_gradient(&x, &dy, shape, dweight, Some(dbias));
                shift_gradient(&dy, shape, dshifts);
                all
            })
        };
        let (one, all) = (run(1), run(0));
        one.iter().zip(&all).for_each(|(one, all)| check_same(set.name(), one, all));
        let (alone, place) = (Convolution { batch: 1, ..shape }, 3);
        let (mut y, mut dx, mut dshifts) = (poisoned(400 * 48), poisoned(400 * 40), poisoned(48));
        forward(
            &x[place * 400 * 40..][..400 * 40],
            &weight,
            Added { shifts: Some(&bias[place * 48..][..48]), residual: Some(&dy[place * 400 * 48..][..400 * 48]), ..Added::NOTHING },
            alone,
            &mut y,
        );
        input_gradient(&weight, &dy[place * 400 * 48..][..400 * 48], alone, &mut dx);
        check_same(set.name(), &y, &one[0][place * 400 * 48..][..400 * 48]);
        shift_gradient(&dy[place * 400 * 48..][..400 * 48], alone, &mut dshifts);
        check_same(set.name(), &dx, &one[1][place * 400 * 40..][..400 * 40]);
        check_same(set.name(), &dshifts, &one[4][place * 48..][..48]);
    });
}

#[test]
#[should_panic(expected = "expected lengths of [x, weight, y] [27, 9, 3], found [Some(26), Some(9), Some(3)]")]
fn misuse_names_both() {
    let shape = Convolution { batch: 3, height: 3, width: 3, input_channels: 1, output_channels: 1, kernel_size: 3, stride: 1, before: 0, after: 0 };
    forward(&[0.0; 26], &[0.0; 9], Added::NOTHING, shape, &mut [0.0; 3]);
}

#[test]
#[should_panic(expected = "expected 1 biases, found 2")]
fn misuse_names_the_biases() {
    let shape = Convolution { batch: 3, height: 3, width: 3, input_channels: 1, output_channels: 1, kernel_size: 3, stride: 1, before: 0, after: 0 };
    forward(&[0.0; 27], &[0.0; 9], Added::bias(&[0.0; 2]), shape, &mut [0.0; 3]);
}

#[test]
#[should_panic(expected = "expected a residual of 3, found 4")]
fn misuse_names_the_residual() {
    let shape = Convolution { batch: 3, height: 3, width: 3, input_channels: 1, output_channels: 1, kernel_size: 3, stride: 1, before: 0, after: 0 };
    forward(&[0.0; 27], &[0.0; 9], Added { residual: Some(&[0.0; 4]), ..Added::NOTHING }, shape, &mut [0.0; 3]);
}

#[test]
#[should_panic(expected = "expected 3 shifts, found 1")]
fn misuse_names_the_shifts() {
    let shape = Convolution { batch: 3, height: 3, width: 3, input_channels: 1, output_channels: 1, kernel_size: 3, stride: 1, before: 0, after: 0 };
    shift_gradient(&[0.0; 3], shape, &mut [0.0; 1]);
}
