//! `smalti generate`: what it writes and prints, and that it is the same every time.

use crate::program::Workplace;
use smalti_data::Picture;
use smalti_data::picture::read_png_text;
use std::collections::BTreeMap;

fn texts(png: &[u8]) -> BTreeMap<String, String> {
    read_png_text(png).unwrap().into_iter().collect()
}

#[test]
fn pictures_with_their_story_and_a_contact_sheet() {
    let workplace = Workplace::with_bundle();
    let finished = workplace.run(&["generate", "A red heart!", "--bundle", "tiny", "--count", "3", "--seed", "7"]);
    assert_eq!(finished.status, 0, "{finished:?}");
    let files = ["a-red-heart-7-0.png", "a-red-heart-7-1.png", "a-red-heart-7-2.png", "a-red-heart-7-sheet.png"];
    assert_eq!(workplace.files("out"), files);
    assert_eq!(finished.stdout.lines().count(), 4);
    assert!(finished.stdout.starts_with("out/a-red-heart-7-0.png  score "), "{}", finished.stdout);
    assert!(!finished.stdout.contains('\x1b') && !finished.stderr.contains('\x1b'), "no colours where no terminal is");
    assert!(finished.stderr.contains("drawing image tokens: 48 in "), "{}", finished.stderr);

    let png = std::fs::read(workplace.path("out/a-red-heart-7-1.png")).unwrap();
    let picture = Picture::decode(&png, &Default::default()).unwrap();
    assert_eq!((picture.width, picture.height), (16, 16));
    let texts = texts(&png);
    assert_eq!(texts["prompt"], "A red heart!");
    assert_eq!((texts["seed"].as_str(), texts["picture"].as_str()), ("7", "1"));
    assert_eq!(texts["settings"], r#"{"guidance_scale":3.0,"temperature":1.0,"top_k":null,"top_p":1.0,"greedy":false,"precision":"f32"}"#);
    assert!(texts["bundle"].starts_with("tiny-") && texts["score"].parse::<f32>().is_ok(), "{texts:?}");
}

#[test]
fn the_contact_sheet_shows_small_pictures_large_and_files_hold_what_was_drawn() {
    let workplace = Workplace::with_bundle();
    let generate = |out: &str, more: &[&str]| {
        workplace.succeed(&[&["generate", "a red heart", "--bundle", "tiny", "--count", "4", "--out", out], more].concat());
        ["0", "sheet"].map(|name| Picture::open(&workplace.path(&format!("{out}/a-red-heart-0-{name}.png")), &Default::default()).unwrap())
    };
    let ([small, sheet], [picture, large]) = (generate("small", &[]), generate("large", &["--enlarge", "3"]));
    assert_eq!(picture, small);
    assert_eq!(large, sheet.enlarged(3));
}

#[test]
fn json_is_one_object_with_everything() {
    let workplace = Workplace::with_bundle();
    let json = workplace.json(&["generate", "a fish", "--bundle", "tiny", "--count", "5", "--keep", "2", "--seed", "3", "--json", "--greedy", "--out", "x/y"]);
    let pictures = json["pictures"].as_array().unwrap();
    assert_eq!((json["prompt"].as_str(), json["seed"].as_u64(), pictures.len()), (Some("a fish"), Some(3), 2));
    for picture in pictures {
        let file = picture["file"].as_str().unwrap();
        assert!(workplace.path(file).is_file() && picture["seed"] == 3, "{picture}");
        assert_eq!(picture["image_tokens"].as_array().unwrap().len(), 16);
        assert_eq!(texts(&std::fs::read(workplace.path(file)).unwrap())["score"], picture["score"].to_string());
    }
    assert!(pictures[0]["score"].as_f64() >= pictures[1]["score"].as_f64(), "the best first");
    assert_eq!(pictures[0]["image_tokens"], pictures[1]["image_tokens"], "greedy pictures are all the same");
    assert_eq!(workplace.files("x").len(), 3, "what is not kept is not written");
}

#[test]
fn same_seed_same_bytes() {
    let workplace = Workplace::with_bundle();
    let generate = |out: &str, more: &[&str]| {
        workplace.succeed(&[&["generate", "a red heart", "--bundle", "tiny", "--seed", "7", "--out", out], more].concat());
        (0..2).map(|index| std::fs::read(workplace.path(&format!("{out}/a-red-heart-7-{index}.png"))).ok()).collect::<Vec<_>>()
    };
    let eight = generate("eight", &["--count", "8"]);
    assert!(eight.iter().all(Option::is_some) && eight[0] != eight[1]);
    assert_eq!(generate("again", &["--count", "8"]), eight);
    assert_eq!(generate("batches", &["--count", "8", "--batch-size", "3"]), eight);
    assert_eq!(generate("threads", &["--count", "8", "--threads", "1"]), eight);
    assert_eq!(generate("two-threads", &["--count", "2", "--threads", "2"]), eight);
    assert_eq!(generate("one", &["--count", "1"])[0], eight[0]);
    assert_ne!(generate("guided", &["--count", "2", "--guidance-scale", "9"]), eight);
}

#[test]
fn the_shipped_bundle_is_found_from_below() {
    let workplace = Workplace::with_bundle();
    std::fs::create_dir_all(workplace.path("bundles")).unwrap();
    std::fs::rename(workplace.path("tiny"), workplace.path("bundles/pictograms")).unwrap();
    std::fs::create_dir_all(workplace.path("deep/er")).unwrap();
    let finished = crate::program::finish(workplace.command().current_dir(workplace.path("deep/er")).args(["generate", "a fish", "--count", "1"]));
    assert_eq!(finished.status, 0, "{finished:?}");
    assert_eq!(workplace.files("deep/er/out").len(), 2);
}

#[test]
fn previews_are_shown_on_stderr_when_asked_for() {
    let workplace = Workplace::with_bundle();
    let finished = workplace.run(&["generate", "a fish", "--bundle", "tiny", "--count", "1", "--preview", "--json"]);
    assert!(finished.stderr.contains("\x1b[38;2;") && finished.stderr.contains('\u{2580}'), "{finished:?}");
    assert!(!finished.stdout.contains('\x1b'));
}

/// As Ctrl-C does it: the best of what was drawn is written, and a shell's loop ends too.
#[cfg(unix)]
#[test]
fn an_interrupt_keeps_what_was_drawn() {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    let workplace = Workplace::with_bundle();
    let mut command = workplace.command();
    command.args(["generate", "a fish", "--bundle", "tiny", "--count", "10000", "--batch-size", "1", "--keep", "1"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.signal(), Some(2), "{stderr}");
    assert!(stderr.contains("stopping after the batch in hand") && stderr.contains(" of 10000 pictures; the same command draws them again"), "{stderr}");
    assert_eq!(stdout.lines().count(), 2, "{stdout}");
    let files = workplace.files("out");
    assert!(files.len() == 2 && files.contains(&"a-fish-0-sheet.png".to_string()), "{files:?}");
}

#[test]
fn prompts_of_ten_thousand_words_and_of_strange_letters() {
    let workplace = Workplace::with_bundle();
    let long = "a red heart and a blue fish ".repeat(10_000 / 7);
    let finished = workplace.run(&["generate", &long, "--bundle", "tiny", "--count", "1", "--out", "long"]);
    assert_eq!(finished.status, 0, "{finished:?}");
    assert!(finished.stderr.contains("warning: prompt: expected at most 10 text tokens (`generator`), found"), "{}", finished.stderr);
    let png = std::fs::read(workplace.path("long").join(&workplace.files("long")[0])).unwrap();
    assert_eq!(texts(&png)["prompt"], long);
    for (prompt, out) in [("キツネ 🦊\u{202e}\n\t", "fox"), ("<pad><end>../..", "special"), ("-", "hyphen")] {
        workplace.succeed(&["generate", "--bundle", "tiny", "--count", "1", "--out", out, "--", prompt]);
        assert_eq!(workplace.files(out).len(), 2, "{prompt}");
    }
}

#[test]
fn a_dry_run_says_what_would_be_made_and_makes_nothing() {
    let workplace = Workplace::with_bundle();
    // Weights that cannot be read: they are not looked at.
    workplace.write("tiny/generator.safetensors", "damaged");
    let arguments = ["generate", "a fish", "--bundle", "tiny", "--count", "3", "--keep", "1", "--seed", "7", "--top-k", "9", "--dry-run"];
    let text = workplace.succeed(&arguments);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].starts_with("bundle    tiny-") && lines[2].starts_with("part      image_tokenizer vqgan, "), "{text}");
    assert!(lines[3].starts_with("part      generator dalle_bart, ") && lines[4].starts_with("part      contrastive clip, "), "{text}");
    let settings = ["settings  guidance_scale 3, temperature 1, top_k 9, top_p 1", "precision f32", "pictures  3, of which 1 are kept"];
    assert_eq!(lines[6..9], settings);
    assert_eq!(lines[9..], ["0", "1", "2", "sheet"].map(|name| format!("file      out/a-fish-7-{name}.png")));
    let json = workplace.json(&[&arguments[..], &["--json"]].concat());
    assert_eq!((json["keep"].as_u64(), json["files"][2].as_str(), json["settings"]["top_k"].as_u64()), (Some(1), Some("out/a-fish-7-2.png"), Some(9)));
    assert!(workplace.files("out").is_empty());
    // What would be refused is refused.
    workplace.copy("models/src/image_tokenizer/vqgan/goldens/diffusers_config.json", "vq/config.json");
    workplace.copy("models/src/image_tokenizer/vqgan/goldens/diffusers_weights.safetensors", "vq/weights.safetensors");
    workplace.succeed(&["import", "vq", "--as", "diffusers-vqgan", "--image-size", "64", "--out", "half"]);
    let finished = workplace.run(&["generate", "a fish", "--bundle", "half", "--dry-run"]);
    assert!(finished.status == 1 && finished.stderr.contains("this bundle has no `generator`"), "{finished:?}");
}

/// Rounding changes pixels, not the picture; the file says which it was.
#[test]
fn precision_is_as_asked_and_told() {
    let workplace = Workplace::with_bundle();
    let generate = |precision: &str, out: &str| {
        workplace.json(&["generate", "a fish", "--bundle", "tiny", "--count", "1", "--greedy", "--json", "--precision", precision, "--out", out])
    };
    assert_eq!(generate("f32", "f32")["settings"]["precision"], "f32");
    assert_eq!(generate("bf16", "bf16")["settings"]["precision"], "bf16");
    assert_eq!(generate("bf16", "again")["pictures"][0]["image_tokens"], generate("bf16", "bf16")["pictures"][0]["image_tokens"]);
    let read = |out: &str| std::fs::read(workplace.path(&format!("{out}/a-fish-0-0.png"))).unwrap();
    assert_eq!(read("bf16"), read("again"));
    let units = smalti_kernels::InstructionSet::current().has_bf16_units();
    assert_eq!(generate("auto", "auto")["settings"]["precision"], if units { "bf16" } else { "f32" });
    let texts = smalti_data::picture::read_png_text(&read("bf16")).unwrap();
    assert!(texts.iter().any(|(key, text)| key == "settings" && text.contains(r#""precision":"bf16""#)), "{texts:?}");
}
