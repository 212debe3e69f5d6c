//! `smalti train` as people meet it: an own folder through all three stages, killed and resumed, interrupted, a full disk, a run that is there already.

use smalti_data::Picture;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Overrides that make the image tokenizer small enough for a test of the loop.
const TINY: [&str; 9] = [
    "data.image_size=16",
    "data.evaluation_count=4",
    "model.network.base_channels=8",
    "model.network.channel_multipliers=[1, 1, 1, 1]",
    "model.network.group_count=4",
    "model.network.latent_channels=8",
    "model.quantizer.code_count=16",
    "model.quantizer.code_channels=4",
    "codebook_start.picture_count=8",
];

fn recipe(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes").join(name)
}

/// Eight small captioned pictures, each of its own size.
fn eight_pictures(folder: &Path) {
    let colours: [(&str, [u8; 3]); 8] = [
        ("red", [220, 30, 30]),
        ("green", [30, 160, 60]),
        ("blue", [40, 60, 200]),
        ("yellow", [240, 220, 40]),
        ("black", [10, 10, 10]),
        ("white", [250, 250, 250]),
        ("orange", [250, 140, 20]),
        ("purple", [130, 40, 160]),
    ];
    std::fs::create_dir_all(folder).unwrap();
    for (index, (name, colour)) in colours.into_iter().enumerate() {
        let (width, height) = (20 + 3 * index, 30);
        let mut picture = Picture::filled(width, height, [200; 3]);
        for y in height / 4..height / 2 {
            for x in 4..width / 2 + 4 {
                picture.rgb[(y * width + x) * 3..][..3].copy_from_slice(&colour);
            }
        }
        picture.write_png(&folder.join(format!("{name}.png")), &[]).unwrap();
        std::fs::write(folder.join(format!("{name}.txt")), format!("a {name} square\n{name}\n")).unwrap();
    }
}

fn smalti(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smalti"));
    command.current_dir(folder).args(arguments).stdin(Stdio::null());
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    smalti(folder, arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeeds(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn fails(folder: &Path, arguments: &[&str], expected: &[&str]) {
    let output = run(folder, arguments);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    for part in expected {
        assert!(text.contains(part), "{arguments:?}: expected {part:?} in {text}");
    }
    assert!(!text.contains("the program went wrong"), "{text}");
}

/// `train` of a tiny image tokenizer on the eight pictures in `pictures`.
fn tiny<'a>(recipe: &'a str, run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["train", recipe, "--smoke", "--run", run, "--threads", "1", "--set", "data.path=pictures"];
    arguments.extend(TINY.iter().flat_map(|set| ["--set", set]));
    arguments.extend(more);
    arguments
}

fn weights(folder: &Path, run: &str, step: usize) -> Vec<Vec<u8>> {
    let checkpoint = folder.join(run).join(format!("checkpoints/step-{step:08}"));
    ["vqgan.safetensors", "vqgan.average.safetensors", "recipe_state.safetensors"].map(|file| std::fs::read(checkpoint.join(file)).unwrap()).to_vec()
}

#[test]
fn eight_pictures_of_ones_own_go_through_all_three_stages_to_generate() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    eight_pictures(&folder.join("my pictures"));
    for system in ["vqgan", "clip", "dalle_bart"] {
        let recipe = recipe(&format!("{system}/pictograms_sample.toml"));
        let bundle = succeeds(folder, &["train", recipe.to_str().unwrap(), "--smoke", "--set", "data.path=my pictures"]);
        assert_eq!(bundle.trim(), format!("runs/{system}-pictograms-sample-smoke/bundle"));
        let run = folder.join(bundle.trim()).parent().unwrap().to_path_buf();
        for file in ["recipe.toml", "log.jsonl", "report.html", "bundle/bundle.toml", "bundle/MODEL_CARD.md"] {
            assert!(run.join(file).is_file(), "{system}: {file}");
        }
        let log = std::fs::read_to_string(run.join("log.jsonl")).unwrap();
        assert!(log.contains("(training pictures)"), "figures on training pictures say so: {log}");
    }
    let bundle = "runs/dalle_bart-pictograms-sample-smoke/bundle";
    succeeds(folder, &["generate", "a red square", "--bundle", bundle, "--count", "3", "--keep", "2", "--seed", "5", "--out", "out"]);
    let made = std::fs::read_dir(folder.join("out")).unwrap().filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|ending| ending == "png"));
    assert!(made.count() >= 2);
}

#[test]
fn killed_at_any_moment_and_resumed_it_ends_with_the_bytes_of_the_run_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    eight_pictures(&folder.join("pictures"));
    let recipe = recipe("vqgan/pictograms_sample.toml");
    let recipe = recipe.to_str().unwrap();
    let steps = ["--set", "train.steps=24", "--set", "train.checkpoint_interval=2"];
    succeeds(folder, &tiny(recipe, "whole", &steps));
    let resumed = [&steps[..], &["--resume"]].concat();
    let mut kills = 0;
    // Every life is killed a few milliseconds after it has begun a new checkpoint: while it writes, renames, removes an old one, or in the steps after.
    for life in 0.. {
        assert!(life < 60, "the run never ended");
        let started = folder.join("killed/recipe.toml").exists();
        let mut child =
            smalti(folder, &tiny(recipe, "killed", if started { &resumed } else { &steps })).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let seen = checkpoints(&folder.join("killed/checkpoints"));
        let begun = |ended: bool| ended || checkpoints(&folder.join("killed/checkpoints")).iter().any(|name| !seen.contains(name));
        let ended = loop {
            let ended = child.try_wait().unwrap().is_some();
            if begun(ended) {
                break ended;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        if !ended {
            std::thread::sleep(Duration::from_millis(5 * (life % 5)));
        }
        if ended || child.try_wait().unwrap().is_some() {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "life {life}: {}", text(&output));
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 0);
    assert_eq!(weights(folder, "killed", 24), weights(folder, "whole", 24), "after {kills} kills");
}

/// What lies among the checkpoints, half-written ones included.
fn checkpoints(folder: &Path) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(folder).map_or(Vec::new(), |entries| entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect())
}

#[cfg(unix)]
#[test]
fn an_interrupt_saves_says_how_to_go_on_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    eight_pictures(&folder.join("pictures"));
    let recipe = recipe("vqgan/pictograms_sample.toml");
    let recipe = recipe.to_str().unwrap();
    let sets = ["steps", "checkpoint_interval", "evaluate_interval", "sample_interval"].map(|key| format!("train.{key}=100000"));
    let mut long: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    // The number of steps will change on the way; under a constant rate nothing that was computed depends on it.
    long.extend(["--set", "schedule.decay=constant"]);
    let stopped_by = |signal: &str, run: &str| {
        let child = smalti(folder, &tiny(recipe, run, &long)).stderr(Stdio::piped()).spawn().unwrap();
        let log = folder.join(run).join("log.jsonl");
        let start = Instant::now();
        while std::fs::read_to_string(&log).map_or(0, |log| log.lines().count()) < 2 {
            assert!(start.elapsed() < Duration::from_secs(120), "no step was logged");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        child.wait_with_output().unwrap()
    };
    // The end of the terminal, but where it is nothing to these tests themselves (nohup), nor then to what they start.
    let ignored = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored.lines().find_map(|line| line.strip_prefix("SigIgn:").map(|bits| u64::from_str_radix(bits.trim(), 16).unwrap()));
    if ignored.is_some_and(|bits| bits & 1 == 0) {
        let output = stopped_by("-HUP", "left");
        assert!(output.status.success() && text(&output).contains("stopped after step "), "{}", text(&output));
    }
    let output = stopped_by("-INT", "run");
    let message = text(&output);
    assert!(output.status.success() && message.contains("to go on: smalti train") && message.contains("--resume"), "{message}");
    let step: usize = message.split("stopped after step ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert!(step >= 4);
    let other = run(folder, &tiny(recipe, "run", &[&long[..], &["--set", "train.seed=9", "--resume"]].concat()));
    assert!(text(&other).contains("`train.seed` was 1, is 9"), "{}", text(&other));
    let end = format!("train.steps={}", step + 3);
    let shorter = [&long[..], &["--set", &end]].concat();
    succeeds(folder, &tiny(recipe, "run", &[&shorter[..], &["--resume"]].concat()));
    succeeds(folder, &tiny(recipe, "whole", &shorter));
    assert_eq!(weights(folder, "run", step + 3), weights(folder, "whole", step + 3));
}

#[cfg(unix)]
#[test]
fn a_full_disk_ends_the_run_with_an_error_and_leaves_whole_checkpoints_only() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    eight_pictures(&folder.join("pictures"));
    let recipe = recipe("vqgan/pictograms_sample.toml");
    let recipe = recipe.to_str().unwrap();
    // No file may grow beyond 32 KiB, which a write answers with an error as a full disk does.
    let limited = |arguments: &[&str]| {
        let script = "ulimit -f 32; trap '' XFSZ; exec \"$0\" \"$@\"";
        Command::new("bash").arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_smalti")).args(arguments).current_dir(folder).output().unwrap()
    };
    let output = limited(&tiny(recipe, "run", &[]));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    for part in ["checkpoint", "could not be written", "hint: earlier checkpoints are untouched"] {
        assert!(text(&output).contains(part), "expected {part:?} in {}", text(&output));
    }
    let left: Vec<_> = std::fs::read_dir(folder.join("run/checkpoints")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    succeeds(folder, &tiny(recipe, "run", &["--resume"]));
}

/// A log file on a full disk, a reader that went away: messages are lost, not the work.
#[cfg(target_os = "linux")]
#[test]
fn messages_that_cannot_be_written_do_not_end_a_training() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    eight_pictures(&folder.join("pictures"));
    let recipe = recipe("vqgan/pictograms_sample.toml");
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = smalti(folder, &tiny(recipe.to_str().unwrap(), "run", &[])).stderr(full).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(folder.join("run/bundle/bundle.toml").is_file());
}

#[test]
fn what_cannot_be_trained_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    eight_pictures(&folder.join("pictures"));
    std::fs::create_dir(folder.join("empty")).unwrap();
    let [vqgan, clip, dalle_bart] = ["vqgan", "clip", "dalle_bart"].map(|system| recipe(&format!("{system}/pictograms_sample.toml")).display().to_string());
    fails(folder, &["train", "none.toml"], &["none.toml"]);
    fails(folder, &tiny(&vqgan, "run", &["--set", "data.path=nowhere"]), &["nowhere"]);
    fails(folder, &tiny(&vqgan, "run", &["--set", "data.path=empty"]), &["empty", "no picture"]);
    fails(folder, &tiny(&vqgan, "run", &["--resume"]), &["run run", "hint: start it without --resume"]);
    fails(folder, &["train", &dalle_bart, "--smoke", "--set", "data.path=pictures"], &["vqgan-pictograms-sample-smoke/bundle", "smalti train"]);
    assert!(!folder.join("run").exists() && !folder.join("runs/dalle_bart-pictograms-sample-smoke").exists(), "nothing is begun that cannot go on");

    std::fs::write(folder.join("pictures/broken.png"), b"\x89PNG\r\n\x1a\n but no more").unwrap();
    fails(folder, &tiny(&vqgan, "run", &[]), &["broken"]);
    succeeds(folder, &tiny(&vqgan, "run", &["--set", "data.broken_limit=1"]));
    fails(folder, &tiny(&vqgan, "run", &["--set", "data.broken_limit=1"]), &["run run: already exists", "--resume continues it"]);
    fails(folder, &["train", &clip, "--smoke", "--set", "data.path=pictures"], &["picture without caption"]);
}

#[test]
fn a_dry_run_prints_the_recipe_with_every_change_and_trains_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe("vqgan/pictograms_sample.toml");
    let printed = succeeds(folder.path(), &["train", recipe.to_str().unwrap(), "--dry-run", "--smoke", "--set", "train.steps=77"]);
    assert!(printed.starts_with("# run: runs/vqgan-pictograms-sample-smoke\n") && printed.contains("steps = 77") && !printed.contains("[smoke]"), "{printed}");
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn a_run_keeps_its_precision_and_its_recipe_says_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    eight_pictures(&folder.join("pictures"));
    let recipe = recipe("vqgan/pictograms_sample.toml");
    let recipe = recipe.to_str().unwrap();
    let with = |steps: &'static str, more: &[&'static str]| [&tiny(recipe, "run", &["--set", steps])[..], more].concat();
    succeeds(folder, &with("train.steps=1", &["--precision", "bf16"]));
    let recorded = std::fs::read_to_string(folder.join("run/recipe.toml")).unwrap();
    assert!(recorded.contains("precision = \"bf16\""), "{recorded}");
    let card = std::fs::read_to_string(folder.join("run/bundle/MODEL_CARD.md")).unwrap();
    assert!(card.contains("precision = \"bf16\""), "{card}");
    fails(folder, &with("train.steps=2", &["--resume"]), &["`train.precision` was \"bf16\", is \"f32\""]);
    succeeds(folder, &with("train.steps=2", &["--resume", "--set", "train.precision=bf16"]));
    fails(folder, &tiny(recipe, "other", &["--set", "train.precision=fp8"]), &["`train.precision`", "`fp8`", "`f32`, `bf16`, `auto`"]);

    // Runs from before precision was recorded were f32.
    succeeds(folder, &tiny(recipe, "old", &["--set", "train.steps=1"]));
    let path = folder.join("old/recipe.toml");
    let recorded = std::fs::read_to_string(&path).unwrap();
    assert!(recorded.contains("precision = \"f32\"\n"), "{recorded}");
    std::fs::write(&path, recorded.replace("precision = \"f32\"\n", "")).unwrap();
    succeeds(folder, &tiny(recipe, "old", &["--resume", "--set", "train.steps=2"]));
}

#[test]
fn a_run_goes_on_with_its_own_pictures_only_wherever_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    eight_pictures(&folder.join("pictures"));
    let recipe = recipe("vqgan/pictograms_sample.toml");
    let recipe = recipe.to_str().unwrap();
    succeeds(folder, &tiny(recipe, "run", &["--set", "train.steps=1"]));

    std::fs::rename(folder.join("pictures"), folder.join("moved")).unwrap();
    let moved = |steps| tiny(recipe, "run", &["--resume", "--set", "data.path=moved", "--set", steps]);
    succeeds(folder, &moved("train.steps=2"));

    std::fs::copy(folder.join("moved/red.png"), folder.join("moved/stranger.png")).unwrap();
    std::fs::write(folder.join("moved/stranger.txt"), "a stranger").unwrap();
    let expected = "what it learns from has changed: `stranger` is new; hint: put it back, or start another run with --run DIR";
    fails(folder, &moved("train.steps=3"), &["run run: ", expected]);

    std::fs::remove_file(folder.join("moved/stranger.png")).unwrap();
    std::fs::remove_file(folder.join("moved/stranger.txt")).unwrap();
    succeeds(folder, &moved("train.steps=3"));
}
