//! PyTorch checkpoints: files that `torch.save` wrote, and hostile ones that it never would.

use proptest::prelude::*;
use smalti_nn::weights::{WeightsError, pickle};
use smalti_testing::{Array, check_close, golden};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zip::write::{SimpleFileOptions, ZipWriter};

fn saved(name: &str) -> PathBuf {
    Path::new("tests/goldens").join(name)
}

/// Every floating-point tensor of the golden is in the checkpoint below `prefix`, with the same shape and numbers.
fn check_same(checkpoint: &str, prefix: &str, reference: &str) {
    let found = pickle::read(&saved(checkpoint)).unwrap();
    let golden = golden(saved(reference));
    for name in golden.names() {
        let tensor = found.get(&format!("{prefix}{name}")).unwrap_or_else(|| panic!("{checkpoint}: no `{prefix}{name}` among {:?}", found.keys()));
        check_close(name, Array { shape: tensor.shape.clone(), values: tensor.values.clone() }, golden.array(name), 0.0);
    }
    assert_eq!(found.keys().filter(|name| name.starts_with(prefix)).count(), golden.names().count(), "{checkpoint}: tensors below `{prefix}`");
}

#[test]
fn number_formats_strides_and_shared_storages() {
    for checkpoint in ["formats.pt", "formats_older_protocol_2.pt", "formats_older_protocol_4.pt"] {
        check_same(checkpoint, "", "formats.safetensors");
        let listed = pickle::list(&saved(checkpoint)).unwrap();
        let formats: Vec<(&str, &str)> = listed.iter().map(|entry| (entry.name.as_str(), entry.format.as_str())).collect();
        for expected in [("bf16", "bf16"), ("f16", "f16"), ("f64", "f64"), ("i64", "i64"), ("mask", "bool"), ("transposed", "f32")] {
            assert!(formats.contains(&expected), "{checkpoint}: {expected:?} among {formats:?}");
        }
    }
}

#[test]
fn lightning_checkpoints_give_their_tensors_and_run_nothing() {
    for protocol in [2, 4] {
        check_same(&format!("lightning_protocol_{protocol}.ckpt"), "state_dict.", "lightning.safetensors");
    }
    let found = pickle::read(&saved("lightning_protocol_2.ckpt")).unwrap();
    assert!(found.contains_key("optimizer_states.0.state.0.exp_avg"), "{:?}", found.keys());
    let weights = pickle::read_selected(&saved("lightning_protocol_2.ckpt"), |name| name.starts_with("state_dict.")).unwrap();
    assert!(weights.keys().all(|name| name.starts_with("state_dict.")) && weights.len() < found.len());
}

#[test]
fn a_whole_pickled_module_is_looked_through_but_never_made() {
    let golden = golden(saved("lightning.safetensors"));
    for (checkpoint, name) in [("whole_module.pt", "_modules.0._parameters.weight"), ("whole_module_older.pt", "_parameters.weight")] {
        let found = pickle::read(&saved(checkpoint)).unwrap();
        let weight = &found[name];
        check_close("weight", Array { shape: weight.shape.clone(), values: weight.values.clone() }, golden.array("0.weight"), 0.0);
    }
}

#[test]
fn files_of_other_kinds_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(saved("formats.pt")).unwrap();
    let mut damaged = whole.clone();
    let place = damaged.windows(5).position(|window| window == b"FB\x00\x00\x00").map_or(damaged.len() / 3, |place| place);
    damaged[place] ^= 0xff;
    let cases: [(&str, Vec<u8>); 6] = [
        ("empty", vec![]),
        ("text", b"version https://git-lfs.github.com/spec/v1".to_vec()),
        ("cut", whole[..whole.len() - 40].to_vec()),
        ("half", whole[..whole.len() / 2].to_vec()),
        ("zip without pickle", archive(&[("archive/readme", b"hello")])),
        ("damaged", damaged),
    ];
    for (name, bytes) in cases {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        match pickle::read(&path) {
            Err(error @ WeightsError::Format { .. }) => assert!(error.to_string().contains(name), "{error}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(matches!(pickle::read(&folder.path().join("absent")), Err(WeightsError::Io { .. })));
    assert!(pickle::read(folder.path()).is_err());
}

/// A stored (uncompressed) zip archive.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored)).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Reads a checkpoint of this pickle and one storage `0` of 16 bytes.
fn read_pickle(bytes: &[u8]) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.pt");
    std::fs::write(&path, archive(&[("archive/data.pkl", bytes), ("archive/data/0", &[0; 16])])).unwrap();
    pickle::read(&path).map(|tensors| tensors.into_keys().collect()).map_err(|error| error.to_string())
}

/// Protocol 2 code that pushes a tensor over storage `0`.
fn tensor(count: &str, offset: &str, shape: &str, strides: &str) -> String {
    format!("ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{count}\ntQI{offset}\n({shape}t({strides}tI00\nNtR")
}

#[test]
fn a_honest_pickle_in_text_is_read() {
    assert_eq!(read_pickle(format!("(dS'a'\n{}s.", tensor("4", "0", "I2\nI2\n", "I2\nI1\n")).as_bytes()), Ok(vec!["a".to_string()]));
}

#[test]
fn calls_become_opaque_values() {
    let marker = tempfile::tempdir().unwrap().path().join("ran");
    let command = format!("cposix\nsystem\n(S'touch {}'\ntR", marker.display());
    let evaluate = "c__builtin__\neval\n(S'1/0'\ntR".to_string();
    let instance = "(iposix\nsystem\n".to_string();
    let object = "(cos\nsystem\nS'touch x'\no".to_string();
    for call in [command, evaluate, instance, object] {
        let pickle = format!("(dS'bad'\n{call}sS'weight'\n{}s.", tensor("4", "0", "I4\n", "I1\n"));
        assert_eq!(read_pickle(pickle.as_bytes()), Ok(vec!["weight".to_string()]), "{call}");
    }
    assert!(!marker.exists());
}

#[test]
fn absurd_tensors_are_refused() {
    for (count, offset, shape, strides, reason) in [
        ("4", "0", "I5\n", "I1\n", "reach beyond its storage of 4 numbers"),
        ("4", "1", "I4\n", "I1\n", "reach beyond"),
        ("9000000000000", "0", "I1000000000000\n", "I0\n", "claims far more numbers"),
        ("4", "0", "I4294967296\nI4294967296\nI4294967296\n", "I0\nI0\nI0\n", "claims far more numbers"),
        ("4", "0", "I2\nI2\n", "I9223372036854775807\nI9223372036854775807\n", "reach beyond"),
        ("4", "-1", "I1\n", "I1\n", "offset of at least 0"),
        ("4", "0", "I-1\n", "I1\n", "whole numbers"),
        ("4", "0", "I2\n", "I1\nI1\n", "as many strides as sizes"),
        ("4", "0", "L99999999999999999999999\n", "I1\n", "whole numbers"),
        ("4", "0", &"I1\n".repeat(30), &"I1\n".repeat(30), "at most 16 axes"),
    ] {
        let error = read_pickle(format!("(dS'a'\n{}s.", tensor(count, offset, shape, strides)).as_bytes()).unwrap_err();
        assert!(error.contains(reason), "{shape}: {error}");
    }
}

#[test]
fn broken_programs_are_refused_with_their_place() {
    let missing_storage = format!("(dS'a'\n{}s.", tensor("4", "0", "I1\n", "I1\n")).replace("S'0'", "S'7'");
    let unknown_storage = format!("(dS'a'\n{}s.", tensor("4", "0", "I1\n", "I1\n")).replace("FloatStorage", "QInt8Storage");
    let sparse = b"ctorch._utils\n_rebuild_sparse_tensor\n(tR.".to_vec();
    for (pickle, reason) in [
        (b"".to_vec(), "truncated"),
        (b".".to_vec(), "expected a value on the stack"),
        (b"(((((0000000.".to_vec(), "expected a value on the stack"),
        (b"t.".to_vec(), "expected a mark"),
        (b"\x85.".to_vec(), "more values on the stack"),
        (b"(N\x85(\x85.".to_vec(), "more values on the stack"),
        (b"X\xff\xff\xff\xffabc".to_vec(), "truncated: expected 4294967295"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc".to_vec(), "truncated"),
        (b"\x8b\xff\xff\xff\x7f".to_vec(), "truncated"),
        (b"g5\n.".to_vec(), "memo entry 5"),
        (b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.".to_vec(), "memo entry 4294967294"),
        (b"Np-1\n.".to_vec(), "memo index"),
        (b"\x80\x09.".to_vec(), "protocol"),
        (b"\xfe.".to_vec(), "expected an opcode"),
        (b"\x82\x01.".to_vec(), "outside the file"),
        (b"(dNs.".to_vec(), "expected a"),
        (b"(NNNd.".to_vec(), "a value for every key"),
        (b"S'a'\nS'b'\na.".to_vec(), "expected a list to append to, found text"),
        (b"NQ.".to_vec(), "identity of a storage"),
        (missing_storage.into_bytes(), "data/7"),
        (unknown_storage.into_bytes(), "a storage: expected numbers as"),
        (sparse, "expected a plain one"),
    ] {
        let shown = String::from_utf8_lossy(&pickle).into_owned();
        match read_pickle(&pickle) {
            Err(error) => assert!(error.contains(reason), "{shown:?}: {error}"),
            Ok(found) => panic!("{shown:?}: read {found:?}"),
        }
    }
}

/// Bounded time stands for bounded memory, too: both grow with operations.
#[test]
fn deep_cyclic_and_exploding_pickles_end_soon() {
    let start = Instant::now();
    let tensor = tensor("4", "0", "I1\n", "I1\n");
    let deep = format!("{}{tensor}{}.", "]".repeat(100_000), "a".repeat(100_000));
    assert!(read_pickle(deep.as_bytes()).unwrap_err().contains("nested containers"));
    assert_eq!(read_pickle(format!("{}.", "(".repeat(1_000_000) + "N").as_bytes()), Ok(vec![]));
    assert!(read_pickle("]".repeat(5_000_000).as_bytes()).unwrap_err().contains("operations"));

    // A dictionary that holds itself, beside a tensor; an object that is its own state.
    assert_eq!(read_pickle(format!("(dp0\nS'self'\ng0\nsS'a'\n{tensor}s.").as_bytes()), Ok(vec!["a".to_string()]));
    assert_eq!(read_pickle(format!("(dS'o'\n(ix\ny\np0\ng0\nb(dS'a'\n{tensor}sbs.").as_bytes()), Ok(vec!["o.a".to_string()]));

    // "Billion laughs": each dictionary holds the one before it twice.
    let mut laughs = format!("(dS'a'\n{tensor}sp0\n");
    for level in 1..60 {
        laughs += &format!("0(dS'a'\ng{}\nsS'b'\ng{}\nsp{level}\n", level - 1, level - 1);
    }
    assert!(read_pickle((laughs + ".").as_bytes()).unwrap_err().contains("expected at most"));

    // One dictionary of many entries as the state of many objects.
    let mut states = format!("(dp0\n(S'a'\n{tensor}");
    states.extend((0..20_000).map(|index| format!("I{index}\nN")));
    states += "u0(l";
    states += &"(ix\ny\ng0\nba".repeat(20_000);
    assert!(read_pickle((states + ".").as_bytes()).unwrap_err().contains("expected at most"));
    assert!(start.elapsed() < Duration::from_secs(120), "{:?}", start.elapsed());
}

#[test]
fn compressed_entries_are_refused_before_they_unfold() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.pt");
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("archive/data.pkl", SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated)).unwrap();
    writer.write_all(&vec![b'N'; 10 << 20]).unwrap();
    std::fs::write(&path, writer.finish().unwrap().into_inner()).unwrap();
    let message = pickle::read(&path).unwrap_err().to_string();
    assert!(message.contains("uncompressed") && message.contains("bomb.pt"), "{message}");

    // A stored entry that claims to be larger than the file.
    let mut lying = archive(&[("archive/data.pkl", b"N.")]);
    while let Some(place) = lying.windows(8).position(|window| window == [2, 0, 0, 0, 2, 0, 0, 0]) {
        lying[place..place + 8].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f]);
    }
    std::fs::write(&path, lying).unwrap();
    assert!(matches!(pickle::read(&path), Err(WeightsError::Format { .. })));
}

proptest! {
    #[test]
    fn random_programs_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_pickle(&bytes);
    }

    /// Programs of real opcodes get further than random bytes.
    #[test]
    fn random_opcodes_never_panic(opcodes in proptest::collection::vec(proptest::sample::select(b"()]}NK\x01012tluasedbRQoq\x00h\x00\x85\x86\x87\x88\x94\x81\x90.".to_vec()), 0..200)) {
        let prefix = b"ctorch._utils\n_rebuild_tensor_v2\nq\x00ctorch\nFloatStorage\nq\x01X\x07\x00\x00\x00storage";
        let _ = read_pickle(&[&prefix[..], &opcodes].concat());
    }

    #[test]
    fn mutated_checkpoints_never_panic(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8), cut in any::<usize>()) {
        let mut bytes = std::fs::read(saved("lightning_protocol_2.ckpt")).unwrap();
        for (place, value) in changes {
            let place = place % bytes.len();
            bytes[place] = value;
        }
        if cut % 4 == 0 {
            bytes.truncate(cut % bytes.len());
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mutated.ckpt");
        std::fs::write(&path, bytes).unwrap();
        let _ = pickle::read(&path);
    }
}
