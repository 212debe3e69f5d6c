//! The format of PyTorch before 1.6, cut short and hostile. That it is read right: `pickle.rs`.

use proptest::prelude::*;
use smalti_nn::weights::{NamedTensors, WeightsError, pickle};
use std::path::Path;

fn saved(name: &str) -> Vec<u8> {
    std::fs::read(Path::new("tests/goldens").join(name)).unwrap()
}

fn read(bytes: &[u8]) -> Result<NamedTensors, WeightsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("older.pth");
    std::fs::write(&path, bytes).unwrap();
    pickle::read(&path)
}

const MAGIC_NUMBER: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const VERSION: &[u8] = b"\x80\x02M\xe9\x03.";
const MACHINE: &[u8] = b"\x80\x02}U\x0dlittle_endian\x88s.";
const KEYS: &[u8] = b"\x80\x02]U\x011a.";

/// One tensor `a` of four numbers over storage `1`; `part` is what the identity of the storage ends with.
fn object(count: &str, part: &str) -> Vec<u8> {
    let storage = format!("(S'storage'\nctorch\nFloatStorage\nS'1'\nS'cpu'\nI{count}\n{part}tQ");
    format!("(dS'a'\nctorch._utils\n_rebuild_tensor_v2\n({storage}I0\n(I4\nt(I1\ntI00\nNtRs.").into_bytes()
}

/// A storage: the count that it claims and the numbers that are there.
fn storage(count: i64, values: &[f32]) -> Vec<u8> {
    count.to_le_bytes().into_iter().chain(values.iter().flat_map(|value| value.to_le_bytes())).collect()
}

#[test]
fn a_file_by_hand_is_read() {
    let whole = [MAGIC_NUMBER, VERSION, MACHINE, &object("4", "N"), KEYS, &storage(4, &[1.0, 2.0, 3.0, 4.0])].concat();
    assert_eq!(read(&whole).unwrap()["a"].values, [1.0, 2.0, 3.0, 4.0]);
}

/// Before 0.4, tensors could name a part of a storage by (key, offset, count).
#[test]
fn a_part_of_a_storage_begins_at_its_offset() {
    let whole = [MAGIC_NUMBER, VERSION, MACHINE, &object("6", "(S'2'\nI2\nI4\nt"), KEYS, &storage(6, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])].concat();
    assert_eq!(read(&whole).unwrap()["a"].values, [3.0, 4.0, 5.0, 6.0]);
}

/// Python 2 gave an ordered dictionary its entries as a list of pairs; lpips' heads are saved so.
#[test]
fn dictionaries_from_pairs() {
    let pairs = |object: Vec<u8>| {
        let text = String::from_utf8(object).unwrap().replacen("(dS'a'\n", "ccollections\nOrderedDict\n((l(lS'a'\na", 1);
        format!("{}aatR.", text.strip_suffix("s.").unwrap())
    };
    let file = |object: &str| [MAGIC_NUMBER, VERSION, MACHINE, object.as_bytes(), KEYS, &storage(4, &[1.0, 2.0, 3.0, 4.0])].concat();
    assert_eq!(read(&file(&pairs(object("4", "N")))).unwrap()["a"].values, [1.0, 2.0, 3.0, 4.0]);
    let error = read(&file("ccollections\nOrderedDict\n((lI1\natR.")).unwrap_err().to_string();
    assert!(error.contains("expected pairs of key and value"), "{error}");
    // One long list as the entries of many dictionaries.
    let many = format!("(l{}p0\n0ccollections\nOrderedDict\np1\n0{}.", "(NNta".repeat(10_000), "g1\n(g0\ntR0".repeat(10_000) + "N");
    let error = read(&file(&many)).unwrap_err().to_string();
    assert!(error.contains("entries of dictionaries, found more"), "{error}");
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let whole = saved("whole_module_older.pt");
    assert!(read(&whole).is_ok());
    for size in 0..whole.len() {
        let error = read(&whole[..size]).expect_err(&format!("cut to {size} bytes"));
        assert!(matches!(error, WeightsError::Format { .. }) && error.to_string().contains("older.pth"), "cut to {size} bytes: {error}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_its_name() {
    let values = storage(4, &[0.0; 4]);
    let object = object("4", "N");
    let file = |version: &[u8], machine: &[u8], object: &[u8], keys: &[u8], storages: &[u8]| [MAGIC_NUMBER, version, machine, object, keys, storages].concat();
    for (bytes, reason) in [
        (file(b"\x80\x02M\xe8\x03.", MACHINE, &object, KEYS, &values), "expected version 1001"),
        (file(VERSION, b"\x80\x02}U\x0dlittle_endian\x89s.", &object, KEYS, &values), "expected little-endian numbers"),
        (file(VERSION, MACHINE, b"\x80\x02Q.", KEYS, &values), "the object (from byte "),
        (file(VERSION, MACHINE, &object, b"K\x01.", &values), "expected a list of the storages' keys"),
        (file(VERSION, MACHINE, &object, b"]K\x01a.", &values), "expected texts as keys"),
        (file(VERSION, MACHINE, &object, b"].", &values), "storage `1`: expected it in the list of storages"),
        (file(VERSION, MACHINE, &object, b"]U\x011aU\x012a.", &values), "storage `2`: expected it in the object"),
        (file(VERSION, MACHINE, &object, b"]U\x011aU\x011a.", &values), "storage `1` is listed twice"),
        (file(VERSION, MACHINE, &object, KEYS, &storage(i64::MAX, &[0.0; 4])), "truncated: expected 9223372036854775807 numbers"),
        (file(VERSION, MACHINE, &object, KEYS, &storage(5, &[0.0; 4])), "truncated: expected 5 numbers of 4 bytes, found 16 bytes"),
        (file(VERSION, MACHINE, &object, KEYS, &storage(-1, &[0.0; 4])), "expected a count of numbers of at least 0, found -1"),
        // The storage is smaller than the tensor over it, whatever the pickle says of it.
        (file(VERSION, MACHINE, &object, KEYS, &storage(3, &[0.0; 3])), "tensor `a`: offset 0"),
        (file(VERSION, MACHINE, &self::object("4", "(S'2'\nI9223372036854775807\nI4\nt"), KEYS, &values), "reach beyond"),
        (file(VERSION, MACHINE, &self::object("4", "(S'2'\nI-1\nI4\nt"), KEYS, &values), "expected (key, offset, count)"),
    ] {
        let error = read(&bytes).expect_err(reason).to_string();
        assert!(error.contains(reason) && error.contains("older.pth"), "expected {reason}: {error}");
    }
}

/// One storage cannot hold numbers of two sizes: where the next one begins would not be known.
#[test]
fn one_size_of_number_in_a_storage() {
    let half = String::from_utf8(object("4", "N")).unwrap().replace("(dS'a'", "S'b'").replace("FloatStorage", "HalfStorage");
    let two = [&object("4", "N")[..], b""].concat();
    let two = [&two[..two.len() - 1], half.as_bytes()].concat();
    let bytes = [MAGIC_NUMBER, VERSION, MACHINE, &two, KEYS, &storage(4, &[0.0; 4])].concat();
    let error = read(&bytes).unwrap_err().to_string();
    assert!(error.contains("storage `1`: expected one size of number, found two"), "{error}");
}

#[test]
fn calls_become_opaque_values() {
    let marker = tempfile::tempdir().unwrap().path().join("ran");
    let call = format!("(dS'bad'\ncposix\nsystem\n(S'touch {}'\ntRsS'a'\n", marker.display());
    let hostile = String::from_utf8(object("4", "N")).unwrap().replacen("(dS'a'\n", &call, 1);
    let bytes = [MAGIC_NUMBER, VERSION, MACHINE, hostile.as_bytes(), KEYS, &storage(4, &[0.0; 4])].concat();
    assert_eq!(read(&bytes).unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
    assert!(!marker.exists());
}

proptest! {
    #[test]
    fn mutated_checkpoints_never_panic(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
        let mut bytes = saved("formats_older_protocol_2.pt");
        for (place, value) in changes {
            let place = place % bytes.len();
            bytes[place] = value;
        }
        let _ = read(&bytes);
    }
}
