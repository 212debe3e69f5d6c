//! `smalti reconstruct`, `smalti rerank` and `smalti sheet`.

use crate::program::Workplace;
use smalti_data::Picture;

fn workplace() -> Workplace {
    let workplace = Workplace::with_bundle();
    for (name, picture) in [("a.png", Picture::filled(40, 20, [200, 30, 60])), ("b.png", Picture::filled(16, 16, [10, 160, 90]))] {
        workplace.write(name, picture.to_png(&[]).unwrap());
    }
    workplace
}

#[test]
fn reconstructions_are_written_and_measured() {
    let workplace = workplace();
    let json = workplace.json(&["reconstruct", "a.png", "b.png", "--bundle", "tiny", "--json"]);
    let pictures = json["pictures"].as_array().unwrap();
    assert_eq!(workplace.files("out"), ["a-reconstructed.png", "b-reconstructed.png"]);
    assert!(pictures.iter().all(|made| made["image_tokens"].as_array().unwrap().len() == 16 && made["psnr"].is_number() && made["ssim"].is_number()), "{json}");
    let text = workplace.succeed(&["reconstruct", "a.png", "--bundle", "tiny", "--size", "32"]);
    assert!(text.starts_with("out/a-reconstructed.png  PSNR ") && text.contains(" dB  SSIM "), "{text}");
    let picture = Picture::open(&workplace.path("out/a-reconstructed.png"), &Default::default()).unwrap();
    assert_eq!((picture.width, picture.height), (32, 32));
}

#[test]
fn ranking_lists_every_picture_once_the_best_first() {
    let workplace = workplace();
    let json = workplace.json(&["rerank", "a red heart", "a.png", "b.png", "a.png", "--bundle", "tiny", "--json"]);
    let scores: Vec<f64> = json["pictures"].as_array().unwrap().iter().map(|ranked| ranked["score"].as_f64().unwrap()).collect();
    assert!(scores.len() == 3 && scores.is_sorted_by(|left, right| left >= right), "{json}");
    let text = workplace.succeed(&["rerank", "a red heart", "a.png", "b.png", "--bundle", "tiny"]);
    assert_eq!(text.lines().count(), 2);
    assert!(text.contains("  a.png") && text.contains("  b.png"), "{text}");
}

#[test]
fn a_generated_picture_gets_its_score_again() {
    let workplace = Workplace::with_bundle();
    let made = workplace.json(&["generate", "a red heart", "--bundle", "tiny", "--count", "1", "--json"]);
    let file = made["pictures"][0]["file"].as_str().unwrap();
    let ranked = workplace.json(&["rerank", "a red heart", file, "--bundle", "tiny", "--json"]);
    assert_eq!(ranked["pictures"][0]["score"], made["pictures"][0]["score"]);
}

#[test]
fn a_sheet_has_a_picture_for_each_line() {
    let workplace = Workplace::with_bundle();
    workplace.write("prompts.txt", "a red heart\n\n  a blue fish \na tree\n");
    let json = workplace.json(&["sheet", "prompts.txt", "--bundle", "tiny", "--candidates", "2", "--seed", "6", "--out", "all.png", "--json"]);
    let prompts: Vec<&str> = json["pictures"].as_array().unwrap().iter().map(|made| made["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts, ["a red heart", "a blue fish", "a tree"]);
    let alone = workplace.json(&["generate", "a blue fish", "--bundle", "tiny", "--count", "2", "--keep", "1", "--seed", "7", "--json"]);
    assert_eq!(json["pictures"][1]["seed"], 7, "each prompt its own seed: diffusion draws much alike from one start");
    assert_eq!(json["pictures"][1]["image_tokens"], alone["pictures"][0]["image_tokens"], "the sheet shows what generate makes");
    let open = |name: &str| Picture::open(&workplace.path(name), &Default::default()).unwrap();
    let (small, pixel) = (open("all.png"), |picture: &Picture, x: usize, y: usize| picture.pixel(x, y));
    workplace.succeed(&["sheet", "prompts.txt", "--bundle", "tiny", "--candidates", "2", "--seed", "6", "--enlarge", "3", "--out", "large.png"]);
    let large = open("large.png");
    let frame = 2; // around and between the pictures of a sheet, however large they are
    let same = |at: usize| pixel(&large, frame + at, frame + 47 - at) == pixel(&small, frame + at / 3, frame + (47 - at) / 3);
    assert!((0..48).all(same), "the first picture, each pixel three by three");
}

#[test]
fn prompts_that_are_cut_are_told_of() {
    let workplace = workplace();
    let long = "a red heart ".repeat(40);
    workplace.write("prompts.txt", format!("a fish\n{long}\n"));
    let finished = workplace.run(&["sheet", "prompts.txt", "--bundle", "tiny"]);
    let warnings: Vec<&str> = finished.stderr.lines().filter(|line| line.contains("only the start was read")).collect();
    assert!(warnings.iter().all(|line| line.starts_with("warning: line 2: prompt: expected at most ")) && warnings.len() == 2, "{finished:?}");
    let finished = workplace.run(&["rerank", &long, "a.png", "--bundle", "tiny"]);
    assert!(finished.stderr.contains("warning: prompt: expected at most ") && finished.stderr.contains("(`contrastive`), found"), "{finished:?}");
    assert!(!workplace.run(&["rerank", "a fish", "a.png", "--bundle", "tiny"]).stderr.contains("warning"));
}

#[test]
fn a_file_without_prompts_is_an_error() {
    let workplace = Workplace::with_bundle();
    workplace.write("prompts.txt", "\n  \n");
    let finished = workplace.run(&["sheet", "prompts.txt", "--bundle", "tiny"]);
    assert!(finished.stderr.contains("prompts.txt: expected a prompt in each line, found none"), "{}", finished.stderr);
    assert!(!workplace.path("sheet.png").exists());
}
