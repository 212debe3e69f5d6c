//! Outputs so long that they are written past the caches: the same bits as where they begin at no multiple of a vector and go the usual way.

mod support;

use smalti_kernels::convolution::{self, Added, Convolution};
use smalti_kernels::group_norm::{self, GroupNorm};
use smalti_kernels::product::Sizes;
use smalti_kernels::{bf16, threads};
use support::{check_same, on_each_set, poisoned, values};

/// Calls `write` with an output of `len` floats that begins on a cache line, then with one that does not, and compares.
fn check(name: &str, len: usize, write: impl Fn(&mut [f32]) + Sync) {
    let mut room = [poisoned(len + 32), poisoned(len + 32)];
    let [aligned, unaligned] = &mut room;
    let to_line = |values: &[f32]| (64 - values.as_ptr() as usize % 64) % 64 / size_of::<f32>();
    let (aligned_start, unaligned_start) = (to_line(aligned), to_line(unaligned) + 1);
    let (aligned, unaligned) = (&mut aligned[aligned_start..][..len], &mut unaligned[unaligned_start..][..len]);
    threads::install(0, || {
        write(aligned);
        write(unaligned);
    });
    check_same(name, aligned, unaligned);
    assert!(aligned.iter().all(|value| value.is_finite()), "{name}: not all was written");
}

#[test]
fn long_outputs_have_the_same_bits() {
    const PIXELS: usize = 260 * 256;
    let shape = Convolution { batch: 1, height: 260, width: 256, input_channels: 8, output_channels: 64, kernel_size: 3, stride: 1, before: 1, after: 1 };
    let (x, weight, bias) = (values(PIXELS * 8, 1), values(9 * 8 * 64, 2), values(64, 3));
    let norm = GroupNorm { batch: 1, pixels: PIXELS, channels: 64, group_count: 32, epsilon: 1e-5, silu: true };
    let wide = values(PIXELS * 64, 4);
    let added = Added { residual: Some(&wide), ..Added::bias(&bias) };
    let sizes = Sizes { rows: 2100, depth: 10, columns: 2048 };
    let (a, b) = (values(2100 * 10, 5), values(10 * 2048, 6));
    on_each_set(|set| {
        let name = |what: &str| format!("{} {what}", set.name());
        check(&name("convolution"), PIXELS * 64, |y| convolution::forward(&x, &weight, added, shape, y));
        check(&name("convolution in bf16"), PIXELS * 64, |y| bf16::convolution::forward(&x, &weight, added, shape, y));
        check(&name("group norm"), PIXELS * 64, |y| group_norm::forward(&wide, &bias, &bias, norm, y, &mut [0.0; 32], &mut [0.0; 32]));
        check(&name("product in bf16"), 2100 * 2048, |y| bf16::product::multiply(&a, &b, false, None, sizes, y));
    });
}
