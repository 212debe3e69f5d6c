//! `pytorch-fid`'s weights (`pt_inception-2015-12-05-6726825d.pth`, or the same tensors as safetensors), torchvision's names.

use smalti_nn::weights::{HostTensor, NamedTensors};

/// Added to the variance (torchvision `BasicConv2d`).
const BATCH_NORM_EPSILON: f32 = 1e-3;

/// The classifier, which no feature needs, and counters of training steps.
const SKIPPED: [&str; 2] = ["fc.weight", "fc.bias"];
const SKIPPED_SUFFIX: &str = ".bn.num_batches_tracked";

/// Foreign units in the order of our branches; a semicolon parts branches, a bar stands before a fork.
const FINE: &str = "branch1x1; branch5x5_1 branch5x5_2; branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3; branch_pool";
const TO_MIDDLE: &str = "branch3x3; branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3";
const MIDDLE: &str = "branch1x1; branch7x7_1 branch7x7_2 branch7x7_3; \
    branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5; branch_pool";
const TO_COARSE: &str = "branch3x3_1 branch3x3_2; branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4";
const COARSE: &str = "branch1x1; branch3x3_1 | branch3x3_2a branch3x3_2b; \
    branch3x3dbl_1 branch3x3dbl_2 | branch3x3dbl_3a branch3x3dbl_3b; branch_pool";
/// Prefix and units of each of our blocks that has convolutions, by its number.
const BLOCKS: [(usize, &str, &str); 13] = [
    (0, "", "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3"),
    (1, "", "Conv2d_3b_1x1 Conv2d_4a_3x3"),
    (3, "Mixed_5b.", FINE),
    (4, "Mixed_5c.", FINE),
    (5, "Mixed_5d.", FINE),
    (6, "Mixed_6a.", TO_MIDDLE),
    (7, "Mixed_6b.", MIDDLE),
    (8, "Mixed_6c.", MIDDLE),
    (9, "Mixed_6d.", MIDDLE),
    (10, "Mixed_6e.", MIDDLE),
    (11, "Mixed_7a.", TO_COARSE),
    (12, "Mixed_7b.", COARSE),
    (13, "Mixed_7c.", COARSE),
];

/// Convolutions with their batch normalisation folded in, under our names. A unit with a part missing or misshapen keeps its names, and so does every
/// tensor that is not the network's: strict loading reports them.
pub fn pytorch_fid(mut tensors: NamedTensors) -> NamedTensors {
    let mut ours = NamedTensors::new();
    for (foreign, name) in units() {
        let parts = ["conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"].map(|part| format!("{foreign}.{part}"));
        let [Some(kernel), Some(scale), Some(shift), Some(mean), Some(variance)] = parts.each_ref().map(|part| tensors.get(part)) else { continue };
        let Some((weight, bias)) = folded(kernel, [scale, shift, mean, variance]) else { continue };
        ours.insert(format!("{name}.weight"), weight);
        ours.insert(format!("{name}.bias"), bias);
        parts.iter().for_each(|part| drop(tensors.remove(part)));
    }
    tensors.retain(|name, _| !SKIPPED.contains(&name.as_str()) && !name.ends_with(SKIPPED_SUFFIX));
    ours.extend(tensors);
    ours
}

/// Foreign name and our name of every convolution.
fn units() -> Vec<(String, String)> {
    let mut units = Vec::new();
    for (block, prefix, branches) in BLOCKS {
        for (branch, names) in branches.split(';').enumerate() {
            for (role, names) in ["layers", "fork"].into_iter().zip(names.split('|')) {
                let named = names.split_whitespace().enumerate();
                units.extend(named.map(|(place, name)| (format!("{prefix}{name}"), format!("blocks.{block}.branches.{branch}.{role}.{place}"))));
            }
        }
    }
    units
}

/// y = scale * (k * x - mean) / sqrt(variance + epsilon) + shift as one convolution. kernel [output, input, height, width] -> [height, width, input, output].
/// None when the shapes do not fit each other.
fn folded(kernel: &HostTensor, statistics: [&HostTensor; 4]) -> Option<(HostTensor, HostTensor)> {
    let [output, ..] = *kernel.shape.as_slice() else { return None };
    if kernel.shape.len() != 4 || statistics.iter().any(|tensor| tensor.shape != [output]) {
        return None;
    }
    let [scale, shift, mean, variance] = statistics.map(|tensor| &tensor.values);
    let factors: Vec<f32> = scale.iter().zip(variance).map(|(scale, variance)| scale / (variance + BATCH_NORM_EPSILON).sqrt()).collect();
    let bias: Vec<f32> = (0..output).map(|channel| shift[channel] - mean[channel] * factors[channel]).collect();
    let mut weight = kernel.permute(&[2, 3, 1, 0]);
    weight.values.iter_mut().zip(factors.iter().cycle()).for_each(|(value, factor)| *value *= factor);
    Some((weight, HostTensor::new([output], bias)))
}
