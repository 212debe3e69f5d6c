//! Safetensors files: round trips, foreign number formats, and files that are broken in every way.

use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView, serialize};
use smalti_nn::weights::safetensors::{Storage, list, read, read_metadata, write, write_with_metadata};
use smalti_nn::weights::{HostTensor, NamedTensors, WeightsError, write_atomically};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::path::Path;

fn sample() -> NamedTensors {
    BTreeMap::from([
        ("decoder.weight".to_string(), HostTensor::new([2, 3], vec![0.0, -1.5, 2.0, 3.25, 1e-3, -65504.0])),
        ("empty".to_string(), HostTensor::new([0, 4], vec![])),
        ("scalar".to_string(), HostTensor::new([], vec![0.5])),
    ])
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read_in_every_storage() {
    let folder = tempfile::tempdir().unwrap();
    for (storage, tolerance) in [(Storage::F32, 0.0), (Storage::F16, 1e-3), (Storage::Bf16, 8e-3)] {
        let path = folder.path().join(storage.name());
        write(&path, &sample(), storage).unwrap();
        let found = read(&path).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), sample().keys().collect::<Vec<_>>());
        for (name, expected) in sample() {
            assert_eq!(found[&name].shape, expected.shape);
            for (found, expected) in found[&name].values.iter().zip(&expected.values) {
                assert!((found - expected).abs() <= tolerance * expected.abs(), "{name} as {storage:?}: expected {expected}, found {found}");
            }
        }
        assert!(list(&path).unwrap().iter().all(|entry| entry.format == storage.name()));
    }
    assert_eq!(names(folder.path()), ["bf16", "f16", "f32"], "nothing but the files is left");
}

#[test]
fn the_same_tensors_give_the_same_bytes_and_carry_their_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let metadata: BTreeMap<String, String> = (0..20).map(|index| (format!("key {index}"), format!("{{\"value\": {index}}}"))).collect();
    let [first, second] = ["first", "second"].map(|name| {
        let path = folder.path().join(name);
        write_with_metadata(&path, &sample(), Storage::F32, &metadata).unwrap();
        assert_eq!(read_metadata(&path).unwrap(), metadata);
        std::fs::read(path).unwrap()
    });
    assert_eq!(first, second);
    safetensors::SafeTensors::deserialize(&first).expect("the format's own reader agrees");
}

#[test]
fn foreign_number_formats_are_understood_and_integers_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("foreign.safetensors");
    let view = |dtype, bytes| TensorView::new(dtype, vec![2], bytes).unwrap();
    let doubles: Vec<u8> = [0.5f64, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let halves: Vec<u8> = [0.5f32, -2.0].iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
    let brains: Vec<u8> = [0.5f32, -2.0].iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect();
    let integers: Vec<u8> = [3i64, 4].iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensors = [
        ("double", view(Dtype::F64, &doubles)),
        ("half", view(Dtype::F16, &halves)),
        ("brain", view(Dtype::BF16, &brains)),
        ("position_ids", view(Dtype::I64, &integers)),
    ];
    std::fs::write(&path, serialize(tensors, None).unwrap()).unwrap();
    let found = read(&path).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["brain", "double", "half"]);
    assert!(found.values().all(|tensor| tensor.values == [0.5, -2.0]));
    let listed = list(&path).unwrap();
    assert_eq!(
        listed.iter().map(|entry| (entry.name.as_str(), entry.format.as_str())).collect::<Vec<_>>(),
        [("brain", "bf16"), ("double", "f64"), ("half", "f16"), ("position_ids", "i64")]
    );
}

#[test]
fn weights_that_a_format_cannot_hold_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    let tensors = BTreeMap::from([("scale".to_string(), HostTensor::new([1], vec![70000.0]))]);
    let error = write(&path, &tensors, Storage::F16).unwrap_err();
    assert!(matches!(&error, WeightsError::Range { tensor, .. } if tensor == "scale"), "{error}");
    assert!(names(folder.path()).is_empty());
    write(&path, &tensors, Storage::Bf16).unwrap();
}

#[test]
fn broken_files_are_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.safetensors");
    write(&whole, &sample(), Storage::F32).unwrap();
    let whole = std::fs::read(whole).unwrap();
    let mut misplaced = whole.clone();
    let place = misplaced.windows(13).position(|window| window == b"data_offsets\"").unwrap();
    misplaced[place..place + 12].copy_from_slice(b"data_offxxxx");
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("empty", vec![], "found a file of 0 bytes"),
        ("short", vec![1, 2, 3], "found a file of 3 bytes"),
        ("header cut", whole[..20].to_vec(), "truncated"),
        ("data cut", whole[..whole.len() - 1].to_vec(), "truncated: expected"),
        ("trailing", [whole.clone(), vec![0]].concat(), "expected"),
        ("huge header", [u64::MAX.to_le_bytes().to_vec(), vec![b' '; 64]].concat(), "not a safetensors file"),
        ("not json", [8u64.to_le_bytes().to_vec(), b"********".to_vec()].concat(), "header"),
        ("wrong keys", misplaced, "header"),
    ];
    for (name, bytes, reason) in cases {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(reason), "{name}: {message}");
    }
    let message = read(&folder.path().join("absent")).unwrap_err().to_string();
    assert!(message.contains("absent"), "{message}");
    assert!(read(folder.path()).is_err(), "a folder is not a file");
}

#[test]
fn headers_that_lie_about_sizes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.safetensors");
    let claims = [
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000000000]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
        r#"{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}"#,
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#,
    ];
    for claim in claims {
        std::fs::write(&path, [&(claim.len() as u64).to_le_bytes()[..], claim.as_bytes(), &[0; 8]].concat()).unwrap();
        assert!(matches!(read(&path), Err(WeightsError::Format { .. })), "{claim}");
    }
    let deep = "[".repeat(100_000);
    std::fs::write(&path, [&(deep.len() as u64).to_le_bytes()[..], deep.as_bytes()].concat()).unwrap();
    assert!(matches!(read(&path), Err(WeightsError::Format { .. })));
}

#[test]
fn a_failed_write_leaves_the_old_file_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    std::fs::write(&path, "old").unwrap();
    let error = write_atomically(&path, |writer| {
        writer.write_all(&[0; 1 << 21])?;
        Err(Error::from(ErrorKind::StorageFull))
    })
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["weights.safetensors"]);
    assert!(matches!(write(&folder.path().join("absent/weights.safetensors"), &sample(), Storage::F32), Err(WeightsError::Io { .. })));
}

proptest! {
    #[test]
    fn random_and_mutated_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, &bytes).unwrap();
        let _ = read(&path);
        write(&path, &sample(), Storage::F16).unwrap();
        let mut mutated = std::fs::read(&path).unwrap();
        for (place, value) in changes {
            let place = place % mutated.len();
            mutated[place] = value;
        }
        std::fs::write(&path, &mutated).unwrap();
        let _ = read(&path);
    }
}
