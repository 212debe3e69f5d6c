//! Products in f32, bf16 and with narrow weights, side by side: `cargo run --release -p smalti-kernels --example precisions [repetitions]`.

use half::{bf16, f16};
use smalti_kernels::convolution::{self, Added, Convolution};
use smalti_kernels::product::{self, Sizes};
use smalti_kernels::{InstructionSet, bf16 as rounded, small_weights, threads};
use std::time::Instant;

fn main() {
    let repetitions = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(9);
    println!("{}, {} threads, medians of {repetitions}", InstructionSet::current().name(), threads::limit());
    threads::install(0, || {
        decoding(repetitions);
        many_rows(repetitions);
        convolutions(repetitions);
    });
}

fn median(repetitions: usize, mut body: impl FnMut()) -> f64 {
    body();
    let mut times: Vec<f64> = (0..repetitions)
        .map(|_| {
            let start = Instant::now();
            body();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect()
}

/// One token through twelve blocks' feed-forward networks: more weights than any cache holds.
fn decoding(repetitions: usize) {
    const LAYERS: usize = 12;
    let (depth, columns) = (768, 3072);
    for rows in [1, 2, 8] {
        let sizes = Sizes { rows, depth, columns };
        let (a, mut y) = (values(rows * depth), vec![0.0; rows * columns]);
        let wide: Vec<Vec<f32>> = (0..LAYERS).map(|_| values(depth * columns)).collect();
        let halves: Vec<Vec<f16>> = wide.iter().map(|weights| weights.iter().map(|value| f16::from_f32(*value)).collect()).collect();
        let bf16s: Vec<Vec<bf16>> = wide.iter().map(|weights| weights.iter().map(|value| bf16::from_f32(*value)).collect()).collect();
        let bytes: Vec<(Vec<i8>, Vec<f32>)> = wide.iter().map(|weights| small_weights::quantize(weights, columns)).collect();
        let times = [
            median(repetitions, || wide.iter().for_each(|b| product::multiply(&a, b, false, None, sizes, &mut y))),
            median(repetitions, || halves.iter().for_each(|b| small_weights::multiply(&a, b, false, None, sizes, &mut y))),
            median(repetitions, || bf16s.iter().for_each(|b| rounded::product::multiply(&a, b, false, None, sizes, &mut y))),
            median(repetitions, || bytes.iter().for_each(|(q, scales)| small_weights::multiply_scaled(&a, q, scales, None, sizes, &mut y))),
        ];
        let gigabytes = (LAYERS * depth * columns * 4) as f64 / 1e6;
        println!(
            "{LAYERS} x {rows}x{depth}x{columns}: f32 {:.2} ms ({:.1} GB/s), f16 weights {:.2}, bf16 {:.2}, 8 bits {:.2}",
            times[0],
            gigabytes / times[0],
            times[1],
            times[2],
            times[3]
        );
    }
}

fn many_rows(repetitions: usize) {
    for (rows, depth, columns) in [(4096, 512, 2048), (1024, 256, 768)] {
        let sizes = Sizes { rows, depth, columns };
        let (a, b, mut y) = (values(rows * depth), values(depth * columns), vec![0.0; rows * columns]);
        let plain = median(repetitions, || product::multiply(&a, &b, false, None, sizes, &mut y));
        let bf16 = median(repetitions, || rounded::product::multiply(&a, &b, false, None, sizes, &mut y));
        println!("product {rows}x{depth}x{columns}: f32 {plain:.2} ms, bf16 {bf16:.2}");
    }
}

fn convolutions(repetitions: usize) {
    for (batch, size, channels) in [(1, 128, 128), (16, 32, 64), (1, 32, 512), (16, 8, 256)] {
        let shape = Convolution {
            batch,
            height: size,
            width: size,
            input_channels: channels,
            output_channels: channels,
            kernel_size: 3,
            stride: 1,
            before: 1,
            after: 1,
        };
        let (x, weight) = (values(batch * size * size * channels), values(9 * channels * channels));
        let (mut y, mut dx, mut dweight) = (x.clone(), x.clone(), weight.clone());
        let plain = [
            median(repetitions, || convolution::forward(&x, &weight, Added::NOTHING, shape, &mut y)),
            median(repetitions, || convolution::input_gradient(&weight, &x, shape, &mut dx)),
            median(repetitions, || convolution::weight_gradient(&x, &x, shape, &mut dweight, None)),
        ];
        let bf16 = [
            median(repetitions, || rounded::convolution::forward(&x, &weight, Added::NOTHING, shape, &mut y)),
            median(repetitions, || rounded::convolution::input_gradient(&weight, &x, shape, &mut dx)),
            median(repetitions, || rounded::convolution::weight_gradient(&x, &x, shape, &mut dweight, None)),
        ];
        println!("convolution 3x3 [{batch},{size},{size},{channels}] -> {channels}, forward, dx, dweight: f32 {plain:.1?} ms, bf16 {bf16:.1?}");
    }
}
