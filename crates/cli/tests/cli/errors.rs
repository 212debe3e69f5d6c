//! Everything that can be wrong on the command line: exit status, one readable message, nothing half-written.

use crate::help::check_snapshot;
use crate::program::{Finished, Workplace, finish};
use smalti_data::Picture;

#[test]
fn messages_are_as_reviewed() {
    let workplace = Workplace::with_bundle();
    workplace.write("broken.png", &Picture::filled(64, 64, [1, 2, 3]).to_png(&[]).unwrap()[..60]);
    workplace.write("text.png", "not a picture");
    workplace.write("file", "x");
    workplace.write("old/bundle.toml", "version = 99\n");
    workplace.write("typo/bundle.toml", "version = 1\nname = \"x\"\ngenerater = 3\n");
    let generate = ["generate", "a fish", "--bundle", "tiny"];
    let with = |more: &[&'static str]| [&generate, more].concat();
    let cases: Vec<Vec<&str>> = vec![
        vec![],
        vec!["paint"],
        vec!["generate", "--bundle", "tiny"],
        vec!["generate", "", "--bundle", "tiny"],
        vec!["generate", "   ", "--bundle", "tiny"],
        with(&["--keep", "5", "--count", "4"]),
        with(&["--count", "0"]),
        with(&["--count", "many"]),
        with(&["--seed", "-1"]),
        with(&["--temperature", "0"]),
        with(&["--top-p", "2"]),
        with(&["--top-k", "0"]),
        with(&["--guidance-scale", "NaN"]),
        with(&["--threads", "0"]),
        with(&["--precision", "fp8"]),
        with(&["--device", "cuda"]),
        with(&["--device", "tpu"]),
        with(&["--out", "file"]),
        with(&["--out", "file/below"]),
        vec!["generate", "a fish", "--bundle", "absent"],
        vec!["generate", "a fish", "--bundle", "file"],
        vec!["generate", "a fish", "--bundle", "old"],
        vec!["generate", "a fish", "--bundle", "typo"],
        vec!["reconstruct", "--bundle", "tiny"],
        vec!["reconstruct", "absent.png", "--bundle", "tiny"],
        vec!["reconstruct", "broken.png", "--bundle", "tiny"],
        vec!["reconstruct", "text.png", "--bundle", "tiny"],
        vec!["reconstruct", "broken.png", "--bundle", "tiny", "--size", "0"],
        vec!["rerank", "", "text.png", "--bundle", "tiny"],
        vec!["rerank", "a fish", "text.png", "--bundle", "tiny"],
        vec!["inspect", "absent"],
        vec!["inspect", "file"],
        vec!["import", "file", "--as", "caffe", "--out", "x"],
        vec!["import", "file", "--as", "taming-vqgan", "--out", "x"],
        vec!["train", "absent.toml"],
        vec!["data", "build", "absent.toml", "--out", "x"],
        vec!["bench", "--rows", "A,Z"],
        vec!["bench", "--repetitions", "0"],
        vec!["bench", "--precision", "fp8"],
    ];
    let mut text = String::new();
    for arguments in cases {
        let Finished { status, stdout, stderr } = workplace.run(&arguments);
        assert!(status == 1 || status == 2, "{arguments:?}: {status}");
        assert!(stdout.is_empty(), "{arguments:?}: {stdout}");
        let shown: Vec<String> =
            arguments.iter().map(|word| if word.is_empty() || word.contains(' ') { format!("{word:?}") } else { word.to_string() }).collect();
        text += &format!("$ smalti {}\n{stderr}[{status}]\n\n", shown.join(" "));
    }
    assert!(workplace.files("out").is_empty() && workplace.files("x").is_empty(), "nothing is written by what fails");
    check_snapshot("errors.txt", &text);
}

/// A size limit on files stands for a full disk: both fail in the middle of a write.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let workplace = Workplace::with_bundle();
    let program = env!("CARGO_BIN_EXE_smalti");
    workplace.copy("models/src/image_tokenizer/vqgan/goldens/diffusers_config.json", "vq/config.json");
    workplace.copy("models/src/image_tokenizer/vqgan/goldens/diffusers_weights.safetensors", "vq/weights.safetensors");
    let import = format!("trap '' XFSZ; ulimit -f 32; exec {program} import vq --as diffusers-vqgan --image-size 64 --out bundle");
    let finished = finish(std::process::Command::new("bash").current_dir(workplace.path("")).args(["-c", &import]));
    assert_eq!(finished.status, 1, "{finished:?}");
    assert!(finished.stderr.contains("image_tokenizer.safetensors") && finished.stderr.contains("File too large"), "{finished:?}");
    assert_eq!(workplace.files("bundle"), Vec::<String>::new());
    let left: Vec<String> = workplace.files("").into_iter().filter(|name| name.contains(".tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let workplace = Workplace::with_bundle();
    let script = format!("set -o pipefail; {} inspect tiny/generator.safetensors | true", env!("CARGO_BIN_EXE_smalti"));
    let finished = finish(std::process::Command::new("bash").current_dir(workplace.path("")).args(["-c", &script]));
    assert_eq!((finished.status, finished.stderr.as_str()), (0, ""));
}

#[cfg(unix)]
#[test]
fn a_folder_without_permission_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let workplace = Workplace::with_bundle();
    let folder = workplace.path("closed");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o555)).unwrap();
    if std::fs::write(folder.join("probe"), "x").is_ok() {
        return; // the superuser may write everywhere
    }
    let finished = workplace.run(&["generate", "a fish", "--bundle", "tiny", "--out", "closed"]);
    assert!(finished.status == 1 && finished.stderr.contains("closed: cannot write there: "), "{finished:?}");
}

/// A program that lies neither in nor below a repository, as one that was installed.
#[test]
fn without_any_bundle_the_error_says_so() {
    let workplace = Workplace::new();
    let program = workplace.path("installed");
    std::fs::copy(env!("CARGO_BIN_EXE_smalti"), &program).unwrap();
    let output = std::process::Command::new(&program).args(["generate", "a fish"]).current_dir(workplace.path(".")).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("no bundle: expected bundles/pictograms in this folder or one above it, found none; hint: name one with --bundle DIR"),
        "{message}"
    );
    assert!(!workplace.path("out").exists());
}
