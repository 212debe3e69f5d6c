//! Times of the product and convolution kernels: `cargo run --release -p smalti-kernels --example products [repetitions]`.

use smalti_kernels::convolution::{Added, Convolution, forward, input_gradient, weight_gradient};
use smalti_kernels::group_norm::{self, GroupNorm};
use smalti_kernels::product::{Sizes, multiply};
use smalti_kernels::{InstructionSet, threads};
use std::time::Instant;

fn main() {
    let repetitions = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(9);
    println!("{}, {} threads", InstructionSet::current().name(), threads::limit());
    threads::install(0, || run(repetitions));
}

fn time(name: &str, repetitions: usize, operations: usize, mut body: impl FnMut()) {
    body();
    let mut times: Vec<f64> = (0..repetitions)
        .map(|_| {
            let start = Instant::now();
            body();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!("{name:56} {:9.3} ms {:8.1} GFLOP/s (best {:.3} ms)", median * 1e3, operations as f64 / median / 1e9, times[0] * 1e3);
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect()
}

fn run(repetitions: usize) {
    for (rows, depth, columns) in [
        (4096, 512, 2048),
        (1024, 1024, 1024),
        (1024, 256, 768),
        (1024, 256, 2048),
        (1, 768, 3072),
        (2, 768, 3072),
        (8, 768, 3072),
        (16, 768, 3072),
        (32, 768, 3072),
        (1, 768, 768),
        (8, 768, 768),
        (8, 768, 16384),
    ] {
        let (a, b) = (values(rows * depth), values(depth * columns));
        let mut y = vec![0.0; rows * columns];
        let sizes = Sizes { rows, depth, columns };
        time(&format!("product {rows}x{depth}x{columns}"), repetitions, 2 * rows * depth * columns, || multiply(&a, &b, false, None, sizes, &mut y));
    }
    let cases = [
        (1, 128, 128, 128),
        (16, 32, 64, 64),
        (1, 32, 512, 512),
        (16, 64, 32, 32),
        (16, 64, 64, 64),
        (16, 64, 128, 128),
        (16, 64, 128, 3),
        (16, 64, 3, 64),
        (16, 8, 256, 256),
    ];
    for (batch, size, input_channels, output_channels) in cases {
        let shape = Convolution { batch, height: size, width: size, input_channels, output_channels, kernel_size: 3, stride: 1, before: 1, after: 1 };
        let (x, weight, dy) =
            (values(batch * size * size * input_channels), values(9 * input_channels * output_channels), values(batch * size * size * output_channels));
        let (mut y, mut dx, mut dweight, mut dbias) = (dy.clone(), x.clone(), weight.clone(), vec![0.0; output_channels]);
        let operations = 2 * batch * size * size * 9 * input_channels * output_channels;
        let name = format!("convolution 3x3 [{batch},{size},{size},{input_channels}] -> {output_channels}");
        time(&format!("{name} forward"), repetitions, operations, || forward(&x, &weight, Added::NOTHING, shape, &mut y));
        time(&format!("{name} dx"), repetitions, operations, || input_gradient(&weight, &dy, shape, &mut dx));
        time(&format!("{name} dweight"), repetitions, operations, || weight_gradient(&x, &dy, shape, &mut dweight, Some(&mut dbias)));
    }
    for (batch, pixels, channels) in [(1, 65536, 128), (16, 4096, 64)] {
        let x = values(batch * pixels * channels);
        let (scale, bias) = (values(channels), values(channels));
        let shape = GroupNorm { batch, pixels, channels, group_count: 32, epsilon: 1e-5, silu: true };
        let (mut y, mut mean, mut inverse) = (x.clone(), vec![0.0; batch * 32], vec![0.0; batch * 32]);
        let (mut dx, mut dscale, mut dbias) = (x.clone(), scale.clone(), bias.clone());
        time(&format!("group norm + SiLU [{batch},{pixels},{channels}] forward"), repetitions, 8 * x.len(), || {
            group_norm::forward(&x, &scale, &bias, shape, &mut y, &mut mean, &mut inverse);
        });
        time(&format!("group norm + SiLU [{batch},{pixels},{channels}] backward"), repetitions, 16 * x.len(), || {
            group_norm::backward(&x, &scale, &bias, &mean, &inverse, &y, shape, &mut dx, &mut dscale, &mut dbias);
        });
    }
}
