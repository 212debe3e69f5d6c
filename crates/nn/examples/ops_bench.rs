//! Times of the operations as networks call them, forward and forward + backward:
//! `cargo run --release -p smalti-nn --example ops_bench [repetitions] [threads]`.

use burn::tensor::{Device, Tensor, TensorData};
use smalti_kernels::{InstructionSet, threads};
use smalti_nn::ops::{self, Activation, Mask, Padding};
use std::time::Instant;

fn main() {
    let mut arguments = std::env::args().skip(1).map_while(|text| text.parse().ok());
    let (repetitions, thread_count) = (arguments.next().unwrap_or(9), arguments.next().unwrap_or(0));
    threads::install(thread_count, || {
        println!("{}, {} threads, medians of {repetitions}", InstructionSet::current().name(), threads::count());
        products(repetitions);
        convolutions(repetitions);
        norms(repetitions);
        attentions(repetitions);
    });
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
    println!("{name:60} {:9.3} ms {:8.1} GFLOP/s (best {:.3} ms)", median * 1e3, operations as f64 / median / 1e9, times[0] * 1e3);
}

fn tensor<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i * 7919 % 1000) as f32 / 500.0 - 1.0).collect();
    let tensor = Tensor::from_data(TensorData::new(values, shape), device);
    if device.is_autodiff() { tensor.require_grad() } else { tensor }
}

fn products(repetitions: usize) {
    let device = Device::flex();
    for (rows, depth, columns) in [(1024, 1024, 1024), (4096, 512, 2048)] {
        let (x, weight) = (tensor([rows, depth], &device), tensor([depth, columns], &device));
        time(&format!("linear {rows}x{depth}x{columns}"), repetitions, 2 * rows * depth * columns, || {
            ops::linear(x.clone(), weight.clone(), None);
        });
    }
}

fn convolutions(repetitions: usize) {
    for (batch, channels, size) in [(1, 128, 128), (16, 64, 32), (1, 512, 32), (16, 16, 64)] {
        let operations = 2 * batch * channels * channels * 9 * size * size;
        let name = format!("conv2d 3x3 [{batch},{size}x{size},{channels}] -> {channels}");
        let run = |device: &Device| {
            let x: Tensor<4> = tensor([batch, size, size, channels], device);
            let weight: Tensor<4> = tensor([3, 3, channels, channels], device);
            let bias: Tensor<1> = tensor([channels], device);
            move || ops::conv2d(x.clone(), weight.clone(), Some(bias.clone()), 1, Padding::both(1))
        };
        let forward = run(&Device::flex());
        time(&format!("{name}, forward"), repetitions, operations, || {
            forward();
        });
        let both = run(&Device::flex().autodiff());
        time(&format!("{name}, forward + backward"), repetitions, 3 * operations, || {
            both().sum().backward();
        });
    }
}

fn norms(repetitions: usize) {
    let run = |device: &Device| {
        let x: Tensor<4> = tensor([1, 256, 256, 128], device);
        let (scale, bias): (Tensor<1>, Tensor<1>) = (tensor([128], device), tensor([128], device));
        move || ops::group_norm(x.clone(), scale.clone(), bias.clone(), 32, 1e-5, Activation::Silu)
    };
    let operations = 8 * 256 * 256 * 128;
    let forward = run(&Device::flex());
    time("group_norm 32 + SiLU [1,256x256,128], forward", repetitions, operations, || {
        forward();
    });
    let both = run(&Device::flex().autodiff());
    time("group_norm 32 + SiLU [1,256x256,128], forward + backward", repetitions, 3 * operations, || {
        both().sum().backward();
    });
}

fn attentions(repetitions: usize) {
    for (batch, heads, tokens, channels) in [(1, 8, 1024, 64), (1, 8, 4096, 64), (32, 6, 64, 64)] {
        let operations = 4 * batch * heads * tokens * tokens * channels;
        let name = format!("attention [{batch}, {heads} heads, {tokens} tokens, {channels}]");
        let run = |device: &Device| {
            let [query, key, value]: [Tensor<4>; 3] = [(); 3].map(|()| tensor([batch, heads, tokens, channels], device));
            move || ops::attention(query.clone(), key.clone(), value.clone(), Mask::None)
        };
        let forward = run(&Device::flex());
        time(&format!("{name}, forward"), repetitions, operations, || {
            forward();
        });
        let both = run(&Device::flex().autodiff());
        time(&format!("{name}, forward + backward"), repetitions, 3 * operations + operations / 2, || {
            both().sum().backward();
        });
    }
}
