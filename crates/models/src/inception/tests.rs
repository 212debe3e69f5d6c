//! Inception against `pytorch_fid` with weights from a formula.

use super::{FEATURE_CHANNELS, Inception, import};
use burn::tensor::{Device, Tensor, TensorData};
use smalti_nn::Initializer;
use smalti_nn::weights::{self, HostTensor, NamedTensors, WeightsError};
use smalti_testing::{check_close, golden};

/// Numbers in [-0.5, 0.5): a hash of place and stream, the same as in `goldens/make.py`.
fn pseudo_random(count: usize, stream: u32) -> Vec<f32> {
    let hash = |place: u32| {
        let x = place.wrapping_mul(2_654_435_761).wrapping_add(stream.wrapping_mul(40_503)).wrapping_add(12_345);
        let x = (x ^ (x >> 16)).wrapping_mul(2_246_822_519);
        let x = (x ^ (x >> 13)).wrapping_mul(3_266_489_917);
        x ^ (x >> 16)
    };
    (0..count as u32).map(|place| (hash(place) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
}

/// The state dictionary of `pytorch_fid`, by `goldens/state.txt`.
fn foreign() -> NamedTensors {
    let state = std::fs::read_to_string("src/inception/goldens/state.txt").unwrap();
    let tensors = state.lines().enumerate().filter_map(|(stream, line)| {
        let (name, shape) = line.split_once(' ')?;
        let shape: Vec<usize> = shape.split(' ').map(|size| size.parse().unwrap()).collect();
        let (factor, shift) = if name.ends_with("conv.weight") {
            ((24.0 / shape[1..].iter().product::<usize>() as f64).sqrt() as f32, 0.0)
        } else if name.ends_with("running_var") || name.ends_with("bn.weight") {
            (0.5, 1.0)
        } else {
            (0.2, 0.0)
        };
        let values = pseudo_random(shape.iter().product(), stream as u32).into_iter().map(|value| value * factor + shift).collect();
        Some((name.to_string(), HostTensor::new(shape, values)))
    });
    tensors.collect()
}

#[test]
fn features_agree_with_pytorch_fid() {
    let device = Device::flex();
    let network = weights::apply(Inception::new(&mut Initializer::new(1, &device)), import::pytorch_fid(foreign()), &device).unwrap();
    // pytorch_fid takes [0, 1] and doubles it minus one; ours takes [-1, 1].
    let pixels: Vec<f32> = pseudo_random(2 * 91 * 75 * 3, 9999).into_iter().map(|value| value * 2.0).collect();
    let features = network.features(Tensor::from_data(TensorData::new(pixels, [2, 91, 75, 3]), &device));
    assert_eq!(features.dims(), [2, FEATURE_CHANNELS]);
    check_close("features", features, golden("src/inception/goldens/features.safetensors").array("features"), 1e-4);
}

#[test]
fn missing_and_misshapen_parts_are_reported() {
    let device = Device::flex();
    let mut tensors = foreign();
    tensors.remove("Mixed_6a.branch3x3.bn.bias");
    tensors.insert("Mixed_7c.branch_pool.conv.weight".into(), HostTensor::new([1], vec![0.0]));
    tensors.insert("AuxLogits.fc.weight".into(), HostTensor::new([1], vec![0.0]));
    let network = Inception::new(&mut Initializer::new(1, &device));
    let Err(WeightsError::Mismatch(mismatch)) = weights::apply(network, import::pytorch_fid(tensors), &device) else { panic!("expected a mismatch") };
    let unit = |name: &str| [format!("{name}.bias"), format!("{name}.weight")];
    let mut missing = mismatch.missing.clone();
    missing.sort();
    assert_eq!(missing, [unit("blocks.13.branches.3.layers.0"), unit("blocks.6.branches.0.layers.0")].concat());
    for name in ["Mixed_6a.branch3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "AuxLogits.fc.weight"] {
        assert!(mismatch.unused.iter().any(|unused| unused == name), "{name}");
    }
}
