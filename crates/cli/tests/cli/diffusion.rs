//! `generate`, `sheet`, `evaluate` and `inspect` with bundles that hold a diffusion network.

use crate::program::Workplace;
use crate::tiny_bundle::tiny_bundle;
use crate::tiny_diffusion::{classifier, latent_bundle, pixel_bundle};
use smalti_data::Picture;
use smalti_data::picture::read_png_text;
use smalti_generation::random::{normal_pictures, picture_rng};
use smalti_nn::weights::safetensors::{self, Storage};
use smalti_nn::weights::{HostTensor, NamedTensors};
use smalti_pipeline::Bundle;
use smalti_pipeline::manifest::Canvas;

/// With the bundles `pixels` (classes red and blue), `free` (no condition), `latents` (captions) and `tiny` (image tokens).
fn workplace() -> Workplace {
    let workplace = Workplace::with_bundle();
    for (name, bundle) in [("pixels", pixel_bundle(&["red", "blue"])), ("free", pixel_bundle(&[])), ("latents", latent_bundle())] {
        bundle.save(&workplace.path(name), Storage::F32).unwrap();
    }
    workplace
}

fn open(workplace: &Workplace, name: &str) -> Picture {
    Picture::open(&workplace.path(name), &Default::default()).unwrap()
}

fn busy_picture(side: usize) -> Picture {
    Picture::new(side, side, (0..side * side * 3).map(|index| (index * 89 % 251) as u8).collect()).unwrap()
}

#[test]
fn one_verb_serves_every_bundle() {
    let workplace = workplace();
    for (bundle, prompt, side) in [("pixels", &["red"][..], 8), ("pixels", &[], 8), ("free", &[], 8), ("latents", &["a red heart"], 16)] {
        let out = format!("{bundle}-{}", prompt.len());
        let generate = |more: &[&str]| workplace.json(&[&["generate"], prompt, &["--bundle", bundle, "--json"], more].concat());
        let json = generate(&["--count", "3", "--out", &out]);
        assert_eq!(json["pictures"].as_array().unwrap().len(), 3);
        assert_eq!((json["settings"]["steps"].as_u64(), json["settings"]["guidance_scale"].as_f64()), (Some(4), Some(2.0)), "the bundle's own: {json}");
        let picture = open(&workplace, json["pictures"][0]["file"].as_str().unwrap());
        assert_eq!((picture.width, picture.height), (side, side));
        // The same bytes, whatever stands beside a picture.
        let again = generate(&["--count", "2", "--batch-size", "1", "--threads", "1", "--out", "again"]);
        let file = |json: &serde_json::Value| std::fs::read(workplace.path(json["pictures"][1]["file"].as_str().unwrap())).unwrap();
        assert_eq!(file(&again), file(&json));
    }
}

/// Programs do not agree on the percentile, so a picture says its own.
#[test]
fn what_decided_a_picture_is_told_in_it_and_in_json() {
    let workplace = workplace();
    let walk = ["--steps", "6", "--sampler", "ddim", "--eta", "0.5", "--threshold", "dynamic", "--guidance-scale", "4", "--guidance-rescale", "0.7"];
    let more = ["--guidance-interval", "0.1:50", "--seed", "3", "--count", "1", "--json"];
    let json = workplace.json(&[&["generate", "red", "--bundle", "pixels"], &walk[..], &more].concat());
    let settings = &json["settings"];
    assert_eq!(
        settings.to_string(),
        r#"{"guidance_interval":"0.1:50","guidance_rescale":0.7,"guidance_scale":4.0,"precision":"f32","sampler":{"ddim":{"eta":0.5}},"steps":6,"threshold":{"dynamic":{"cap":null,"percentile":0.995}}}"#
    );
    let texts = read_png_text(&std::fs::read(workplace.path("out/red-3-0.png")).unwrap()).unwrap();
    let told = texts.into_iter().find(|(key, _)| key == "settings").unwrap().1;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&told).unwrap(), *settings);
    let other = workplace.json(&["generate", "red", "--bundle", "pixels", "--threshold", "dynamic", "--percentile", "0.9", "--count", "1", "--json"]);
    assert_eq!(other["settings"]["threshold"]["dynamic"]["percentile"], 0.9);

    let text = workplace.succeed(&["generate", "a red heart", "--bundle", "latents", "--negative", "a fish", "--sampler", "dpm++2m", "--dry-run"]);
    assert!(text.contains("part      text_encoder clip_text, ") && text.contains("part      generator unet, "), "{text}");
    assert!(text.contains("settings  guidance_scale 2, 4 steps of dpm++2m, threshold none, negative \"a fish\"\n"), "{text}");
    assert!(!workplace.path("out/a-red-heart-0-0.png").exists());
}

#[test]
fn guidance_by_projection_and_by_a_classifier_is_told_in_pictures() {
    let workplace = workplace();
    let alone = Bundle { name: "shapes".into(), classifier: Some(classifier(Canvas::Pixels, &["round", "square"])), ..Bundle::default() };
    let id = alone.save(&workplace.path("shapes"), Storage::F32).unwrap().id();
    let drawn = |bundle: &str, prompt: &[&str], more: &[&str]| {
        let usual = ["--bundle", bundle, "--count", "1", "--json", "--out", "out"];
        workplace.json(&[&["generate"], prompt, &usual[..], more].concat())["settings"].clone()
    };
    let projected = ["--projection-parallel", "0", "--projection-momentum", "-0.5", "--projection-norm", "7.5"];
    let settings = drawn("pixels", &["red"], &projected);
    assert_eq!(settings["projection"].to_string(), r#"{"momentum":-0.5,"norm":7.5,"parallel":0.0}"#);
    assert_eq!(drawn("pixels", &["red"], &projected[..2])["projection"].to_string(), r#"{"momentum":0.0,"parallel":0.0}"#);
    let led = ["--classifier", "shapes", "--classifier-scale", "20"];
    let settings = drawn("free", &["square"], &led);
    assert_eq!(settings["classifier"].to_string(), format!(r#"{{"bundle":"{id}","class":"square","scale":20.0}}"#));
    let texts = read_png_text(&std::fs::read(workplace.path("out/square-0-0.png")).unwrap()).unwrap();
    let told = texts.into_iter().find(|(key, _)| key == "settings").unwrap().1;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&told).unwrap(), settings);
    assert_ne!(open(&workplace, "out/square-0-0.png"), {
        drawn("free", &[], &[]);
        open(&workplace, "out/picture-0-0.png")
    });
    drawn("pixels", &["red"], &[&led[..], &["--classifier-class", "round"]].concat());

    let text = workplace.succeed(&[&["generate", "round", "--bundle", "free", "--dry-run"], &led[..]].concat());
    assert!(text.contains("part      classifier noisy, ") && text.contains(&format!(", classifier {id} (class \"round\", scale 20)\n")), "{text}");
    let text = workplace.succeed(&["inspect", "shapes"]);
    for line in [
        "\nclassifier  noisy, ",
        "  classifies noisy pixels of pictures of 8x8\n",
        "  process: 1000 trained steps, cosine schedule\n",
        "  classes: round, square",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let json = workplace.json(&["inspect", "shapes", "--json"]);
    assert_eq!(json["parts"][0]["classifier"]["classes"], serde_json::json!(["round", "square"]));

    workplace.write("prompts.txt", "round\nsquare\n");
    workplace.succeed(&[&["sheet", "prompts.txt", "--bundle", "free", "--steps", "2"], &led[..]].concat());
    let texts = read_png_text(&std::fs::read(workplace.path("sheet.png")).unwrap()).unwrap();
    assert!(texts.iter().any(|(key, text)| key == "settings" && text.contains(&format!("\"classifier\":{{\"bundle\":\"{id}\""))), "{texts:?}");

    for (bundle, prompt, more, status, expected) in [
        ("free", "oval", &led[..], 2, "prompt: expected one of the classifier's classes round, square, found \"oval\""),
        ("free", "round", &["--classifier-scale", "2"], 2, "classifier_scale: expected a bundle with a `classifier` part, found none; hint: --classifier DIR"),
        ("free", "round", &["--classifier", "shapes"], 2, "--classifier-scale <W>"),
        ("free", "round", &["--classifier", "pixels", "--classifier-scale", "2"], 1, "pixels: this bundle has no `classifier`"),
        ("free", "round", &["--classifier", "absent", "--classifier-scale", "2"], 1, "absent: expected a bundle"),
        ("latents", "a fish", &led, 1, "--classifier shapes: `classifier`: `canvas`: expected latents, as the generator draws, found pixels"),
        ("tiny", "a fish", &led, 1, "`classifier`: `model`: expected none: the generator draws image tokens"),
        ("tiny", "a fish", &projected, 2, "projection: expected nothing: this bundle draws image tokens"),
        ("pixels", "red", &["--projection-parallel", "2"], 2, "projection.parallel: expected a number from 0 to 1, found 2"),
        ("free", "", &["--projection-norm", "2"], 2, "projection: expected nothing: this bundle's generator takes no condition"),
    ] {
        let finished = workplace.run(&[&["generate", prompt, "--bundle", bundle], more].concat());
        assert!(finished.status == status && finished.stderr.contains(expected), "{more:?}: expected {expected:?}: {finished:?}");
    }
}

#[test]
fn every_sampler_has_a_name() {
    let workplace = workplace();
    for sampler in ["ddpm", "ddim", "euler", "euler-ancestral", "heun", "dpm++2m", "unipc", "lcm"] {
        workplace.succeed(&["generate", "--bundle", "free", "--sampler", sampler, "--count", "1", "--out", sampler]);
    }
}

#[test]
fn pictures_masks_and_film_strips() {
    let workplace = workplace();
    workplace.write("start.png", busy_picture(8).to_png(&[]).unwrap());
    let mut mask = Picture::filled(8, 8, [0; 3]);
    mask.rgb[..8 * 4 * 3].fill(255);
    workplace.write("mask.png", mask.to_png(&[]).unwrap());
    let from = |out: &str, more: &[&str]| {
        let json =
            workplace.json(&[&["generate", "red", "--bundle", "pixels", "--init-image", "start.png", "--count", "1", "--json", "--out", out], more].concat());
        (open(&workplace, &format!("{out}/red-0-0.png")), json)
    };
    assert_eq!(from("same", &["--strength", "0"]).0, busy_picture(8));
    let (usual, json) = from("usual", &[]);
    assert_eq!((json["settings"]["strength"].as_f64(), json["settings"]["init_image"].as_str()), (Some(0.8), Some("start.png")));
    assert_ne!(usual, busy_picture(8));
    let (masked, json) = from("masked", &["--mask", "mask.png", "--film-strip", "3"]);
    assert_eq!((json["settings"]["strength"].as_f64(), json["settings"]["mask"].as_str()), (Some(1.0), Some("mask.png")));
    assert!(masked.rgb[8 * 4 * 3..] == busy_picture(8).rgb[8 * 4 * 3..] && masked != busy_picture(8), "black is kept, white painted anew");
    assert_eq!(json["pictures"][0]["film_strip"], "masked/red-0-0-steps.png");
    let strip = open(&workplace, "masked/red-0-0-steps.png");
    assert_eq!((strip.width, strip.height), (3 * 8 + 4 * 2, 8 + 2 * 2), "three in a row, and the gaps between");
    assert_eq!(workplace.files("masked"), ["red-0-0-steps.png", "red-0-0.png", "red-0-sheet.png"]);
}

#[test]
fn noise_comes_from_a_file_with_channels_first() {
    let workplace = workplace();
    let noise = normal_pictures(&mut [picture_rng(5, 0), picture_rng(5, 1)], 8 * 8 * 3);
    let write = |name: &str, tensors: &[(&str, HostTensor)]| {
        let tensors: NamedTensors = tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
        safetensors::write(&workplace.path(name), &tensors, Storage::F32).unwrap();
    };
    let channels_last = HostTensor::new([2, 8, 8, 3], noise);
    let channels_first = channels_last.permute(&[0, 3, 1, 2]);
    write("noise.safetensors", &[("noise", channels_first.clone())]);
    write("last.safetensors", &[("noise", channels_last.clone())]);
    write("flat.safetensors", &[("noise", channels_last.reshape([2, 8 * 8 * 3]))]);
    write("two.safetensors", &[("a", channels_first.clone()), ("b", channels_first.clone())]);
    let file = std::fs::read(workplace.path("noise.safetensors")).unwrap();
    let numbers = file.len() - 2 * 8 * 8 * 3 * 4;
    workplace.write("nan.safetensors", [&file[..numbers], &f32::NAN.to_le_bytes(), &file[numbers + 4..]].concat());
    let integers = String::from_utf8_lossy(&file[8..numbers]).replace("\"F32\"", "\"I32\"");
    workplace.write("integers.safetensors", [&file[..8], integers.as_bytes(), &file[numbers..]].concat());
    workplace.write("text.safetensors", "noise");

    let generate = |more: &[&str]| workplace.run(&[&["generate", "red", "--bundle", "pixels", "--count", "2"], more].concat());
    assert_eq!(generate(&["--seed", "5", "--out", "seeded"]).status, 0);
    assert_eq!(generate(&["--noise", "noise.safetensors", "--out", "given"]).status, 0);
    for index in 0..2 {
        assert_eq!(open(&workplace, &format!("given/red-0-{index}.png")), open(&workplace, &format!("seeded/red-5-{index}.png")));
    }
    for (file, status, expected) in [
        ("last.safetensors", 2, "noise: expected [2, 3, 8, 8] (count, channels, height, width), found [2, 8, 8, 3]"),
        ("flat.safetensors", 2, "--noise flat.safetensors: tensor `noise`: expected [count, channels, height, width], found [2, 192]"),
        ("two.safetensors", 2, "--noise two.safetensors: expected one tensor, found 2"),
        ("nan.safetensors", 2, "--noise nan.safetensors: tensor `noise`: expected finite numbers, found NaN"),
        ("integers.safetensors", 2, "--noise integers.safetensors: tensor `noise`: expected floating-point numbers, found i32"),
        ("text.safetensors", 1, "text.safetensors"),
        ("absent.safetensors", 1, "absent.safetensors"),
    ] {
        let finished = generate(&["--noise", file]);
        assert!(finished.status == status && finished.stderr.contains(expected), "{file}: {finished:?}");
    }
    let finished = workplace.run(&["generate", "red", "--bundle", "pixels", "--count", "3", "--noise", "noise.safetensors"]);
    assert!(finished.status == 2 && finished.stderr.contains("expected [3, 3, 8, 8]") && finished.stderr.contains("hint: --count"), "{finished:?}");
    assert!(workplace.files("out").is_empty());
}

#[test]
fn wrong_use_is_said_and_nothing_written() {
    let workplace = workplace();
    workplace.write("start.png", busy_picture(8).to_png(&[]).unwrap());
    workplace.write("mask.png", busy_picture(9).to_png(&[]).unwrap());
    let start = ["--init-image", "start.png"];
    for (bundle, prompt, more, expected) in [
        ("pixels", "red", &["--steps", "0"][..], "steps: expected at least 1, found 0"),
        ("pixels", "red", &["--steps", "1001"], "steps: expected at most the 1000 trained steps, found 1001"),
        ("pixels", "red", &["--sampler", "best"], "invalid value 'best' for '--sampler <NAME>'"),
        ("pixels", "red", &["--sampler", "heun", "--eta", "1"], "--eta: expected --sampler ddim beside it"),
        ("pixels", "red", &["--sampler", "ddim", "--eta", "-1"], "eta: expected a number of at least 0, found -1"),
        ("pixels", "red", &["--threshold", "static", "--percentile", "0.9"], "--percentile: expected --threshold dynamic beside it"),
        ("pixels", "red", &["--threshold", "dynamic", "--percentile", "99.5"], "threshold.percentile: expected a number above 0 and at most 1, found 99.5"),
        ("pixels", "red", &["--guidance-interval", "5:1"], "invalid value '5:1' for '--guidance-interval <LOW:HIGH>'"),
        ("pixels", "red", &["--strength", "0.5"], "--init-image <FILE>"),
        ("pixels", "red", &["--mask", "mask.png"], "--init-image <FILE>"),
        ("pixels", "red", &[&start[..], &["--strength", "1.5"]].concat(), "strength: expected 0 to 1, found 1.5"),
        ("pixels", "red", &[&start[..], &["--mask", "mask.png"]].concat(), "mask: expected 8x8, the size of the initial picture, found 9x9"),
        ("pixels", "green", &[], "prompt: expected one of the classes red, blue, found \"green\""),
        ("pixels", "red", &["--negative", "ugly"], "negative: expected nothing"),
        ("pixels", "red", &["--augmentation", "0.3"], "augmentation: expected nothing"),
        ("pixels", "red", &["--temperature", "0.5"], "this bundle's generator is a diffusion network"),
        ("pixels", "red", &["--keep", "1"], "keep: expected a bundle with a `contrastive` part to rank by"),
        ("free", "red", &[], "prompt: expected nothing"),
        ("latents", "", &[], "prompt: expected some words"),
        ("latents", "a fish", &["--threshold", "static"], "threshold: expected none: latents have no range"),
        ("tiny", "a fish", &["--steps", "5"], "steps: expected nothing: this bundle draws image tokens one after the other"),
        ("tiny", "a fish", &start, "init_image: expected nothing: this bundle draws image tokens"),
    ] {
        let finished = workplace.run(&[&["generate", prompt, "--bundle", bundle], more].concat());
        assert!(finished.status == 2 && finished.stderr.contains(expected), "{more:?}: expected {expected:?}: {finished:?}");
        assert!(finished.stdout.is_empty());
    }
    let finished = workplace.run(&["generate", "red", "--bundle", "pixels", "--init-image", "absent.png"]);
    assert!(finished.status == 1 && finished.stderr.contains("absent.png"), "{finished:?}");
    assert!(workplace.files("out").is_empty() && !workplace.path("out").exists());
}

#[test]
fn sheets_and_descriptions() {
    let workplace = workplace();
    workplace.write("prompts.txt", "red\nblue\n");
    workplace.succeed(&["sheet", "prompts.txt", "--bundle", "pixels", "--steps", "3"]);
    let texts = read_png_text(&std::fs::read(workplace.path("sheet.png")).unwrap()).unwrap();
    assert!(texts.iter().any(|(key, text)| key == "settings" && text.contains("\"steps\":3")), "{texts:?}");

    let text = workplace.succeed(&["inspect", "pixels"]);
    for line in [
        "\ngenerator  unet, ",
        "  draws pixels of pictures of 8x8\n",
        "  network: levels of [8, 16] channels, 1 blocks each, attention at levels [1]\n",
        "  process: 1000 trained steps, cosine schedule, predicts velocity\n",
        "  classes: red, blue\n",
        "  usually drawn in 4 steps of ddim (eta 0), guidance scale 2, threshold static\n",
    ] {
        assert!(text.contains(line.trim_end()), "{line}: {text}");
    }
    let text = workplace.succeed(&["inspect", "latents"]);
    assert!(
        text.contains("  pictures of 16x16, latent scale 0.5\n")
            && text.contains("text_encoder  clip_text, ")
            && text.contains("  text: 12 tokens, padding too\n"),
        "{text}"
    );
    assert!(workplace.succeed(&["inspect", "free"]).contains("  takes no prompt\n"));
    let json = workplace.json(&["inspect", "latents", "--json"]);
    assert_eq!((&json["parts"][2]["diffusion"]["sampling"]["steps"], &json["parts"][0]["latent_scale"]), (&4.into(), &0.5.into()), "{json}");
}

#[test]
fn bundles_without_a_codebook_and_without_an_image_tokenizer_are_measured() {
    let workplace = workplace();
    for (name, bundle) in [("pixels", pixel_bundle(&["red", "blue"])), ("free", pixel_bundle(&[])), ("latents", latent_bundle())] {
        Bundle { judge: tiny_bundle().judge, ..bundle }.save(&workplace.path(name), Storage::F32).unwrap();
    }
    for index in 0..6_u8 {
        let picture = Picture::filled(16 + usize::from(index), 20, [index * 20, 255 - index * 20, 90]);
        workplace.write(&format!("data/{index}.png"), picture.to_png(&[]).unwrap());
        workplace.write(&format!("data/{index}.txt"), format!("a {} heart number {index}", ["Red", "green"][usize::from(index) % 2]));
    }
    for (bundle, reconstructs) in [("pixels", false), ("free", false), ("latents", true)] {
        let report = workplace.json(&["evaluate", "--bundle", bundle, "--data", "data", "--json", "--steps", "2"]);
        let split = &report["splits"][0];
        let generation = &split["generation"];
        assert!(generation["frechet"].is_object() && generation["precision_recall"].is_object() && split["codebook"].is_null(), "{bundle}: {report}");
        let has = ["r_precision", "class_accuracy"].map(|figure| generation[figure].is_object());
        assert_eq!(has, [bundle == "latents", bundle == "pixels"], "{bundle}: {report}");
        assert_eq!(split["reconstruction"].is_object(), reconstructs, "{bundle}: {report}");
    }
    // A caption that holds the name of a class is led to it, by whichever generator.
    let alone = Bundle { name: "colours".into(), classifier: Some(classifier(Canvas::Pixels, &["red", "blue"])), ..Bundle::default() };
    alone.save(&workplace.path("colours"), Storage::F32).unwrap();
    for bundle in ["free", "pixels"] {
        let evaluate = |more: &[&str]| workplace.json(&[&["evaluate", "--bundle", bundle, "--data", "data", "--json", "--steps", "2"], more].concat());
        let led = evaluate(&["--classifier", "colours", "--classifier-scale", "50"]);
        assert_ne!(led["splits"][0]["generation"], evaluate(&[])["splits"][0]["generation"], "{bundle}");
    }
    let finished = workplace.run(&["evaluate", "--bundle", "free", "--data", "data", "--classifier-scale", "2"]);
    assert!(finished.status == 2 && finished.stderr.contains("classifier_scale: expected a bundle with a `classifier` part"), "{finished:?}");
    // Without captions, with another bundle's judge.
    for index in 0..5_u8 {
        workplace.write(&format!("bare/{index}.png"), busy_picture(8 + usize::from(index)).to_png(&[]).unwrap());
    }
    pixel_bundle(&[]).save(&workplace.path("alone"), Storage::F32).unwrap();
    let alone = ["evaluate", "--bundle", "alone", "--data", "bare", "--steps", "2"];
    let finished = workplace.run(&alone);
    assert!(finished.status == 1 && finished.stderr.contains("alone: expected a `judge`") && finished.stderr.contains("--judge DIR"), "{finished:?}");
    let text = workplace.succeed(&[&alone[..], &["--judge", "tiny"]].concat());
    assert!(text.contains("judge:  judge of tiny-") && text.contains("recall, halves") && !text.contains("CLIP score"), "{text}");
    let swept =
        workplace.json(&[&alone[..], &["--judge", "tiny", "--sweep", "sampler=ddim,heun", "--sweep", "steps=1,2", "--out", "swept", "--json"]].concat());
    assert_eq!(swept["rows"].as_array().unwrap().len(), 4, "{swept}");

    let finished = workplace.run(&["evaluate", "--bundle", "free", "--data", "data", "--candidates", "2"]);
    assert!(finished.status == 2 && finished.stderr.contains("keep: expected"), "{finished:?}");
    workplace.write("red.png", busy_picture(16).to_png(&[]).unwrap());
    let json = workplace.json(&["reconstruct", "red.png", "--bundle", "latents", "--json"]);
    assert_eq!(json["pictures"][0]["image_tokens"], serde_json::json!([]));
    let finished = workplace.run(&["reconstruct", "red.png", "--bundle", "pixels"]);
    assert!(finished.status == 1 && finished.stderr.contains("this bundle has no `image_tokenizer`"), "{finished:?}");
}
