//! `smalti nearest`: drawn and held-out pictures beside the nearest training pictures.

use crate::program::Workplace;
use crate::tiny_diffusion::pixel_bundle;
use smalti_data::Picture;
use smalti_nn::weights::safetensors::Storage;

fn busy_picture(side: usize, seed: usize) -> Picture {
    Picture::new(side, side, (0..side * side * 3).map(|index| (index * (89 + seed) % 251) as u8).collect()).unwrap()
}

/// Forty training pictures, of which held-out picture 1 is a copy.
fn workplace() -> Workplace {
    let workplace = Workplace::with_bundle();
    for index in 0..40 {
        workplace.write(&format!("train/{index:02}.png"), busy_picture(16, index).to_png(&[]).unwrap());
    }
    for (name, seed) in [("0", 100), ("1", 37), ("2", 103)] {
        workplace.write(&format!("held/{name}.png"), busy_picture(16, seed).to_png(&[]).unwrap());
        workplace.write(&format!("held/{name}.txt"), format!("a red heart, {name}"));
    }
    workplace
}

#[test]
fn copies_are_found_and_shown() {
    let workplace = workplace();
    let arguments = ["nearest", "--bundle", "tiny", "--training", "train", "--data", "held", "--count", "3", "--out", "near"];
    let report = workplace.json(&[&arguments[..], &["--json"]].concat());
    assert_eq!((report["training_count"].as_u64(), report["drawn"].as_array().unwrap().len()), (Some(40), 3), "{report}");
    let copy = &report["held_out"][1];
    for comparison in 0..2 {
        let found = &copy["nearest"][comparison];
        assert_eq!((found["training_picture"].as_str(), found["distance"].as_f64()), (Some("37"), Some(0.0)), "{copy}");
        assert_eq!(report["comparisons"][comparison]["held_out"]["least"], 0.0);
        assert!(report["comparisons"][comparison]["drawn"]["least"].as_f64().unwrap() > 0.0);
    }
    let distances: Vec<f64> = report["drawn"].as_array().unwrap().iter().map(|entry| entry["nearest"][1]["distance"].as_f64().unwrap()).collect();
    assert!(distances.is_sorted(), "the most suspicious first: {distances:?}");
    assert_eq!(workplace.files("near"), ["nearest.csv", "nearest.json", "nearest.png"]);
    let csv = std::fs::read_to_string(workplace.path("near/nearest.csv")).unwrap();
    assert!(csv.starts_with("kind,picture,caption,pixels_distance,pixels_training_picture,features_distance,features_training_picture\ndrawn,"), "{csv}");
    assert!(csv.lines().count() == 7 && csv.contains("held_out,\"1\",\"a red heart, 1\",0,\"37\",0,\"37\""), "{csv}");
    // Three groups of three pictures of 64 pixels in one row, each with its number below.
    let sheet = Picture::open(&workplace.path("near/nearest.png"), &Default::default()).unwrap();
    assert_eq!((sheet.width, sheet.height), (3 * (3 * 65 + 1) + 4 * 6, 64 + 2 + 12 + 2 + 2 * 6));
    let text = workplace.succeed(&arguments);
    assert!(text.contains("pixels: root mean square difference of 8-bit values at 16 x 16") && text.ends_with("near/nearest.png\n"), "{text}");
}

#[test]
fn without_captions_and_without_a_judge() {
    let workplace = workplace();
    pixel_bundle(&[]).save(&workplace.path("free"), Storage::F32).unwrap();
    let arguments = ["nearest", "--bundle", "free", "--training", "train", "--data", "train", "--count", "2", "--steps", "2"];
    let finished = workplace.run(&arguments);
    assert!(finished.status == 0 && finished.stderr.contains("hint: name a bundle with a judge with --judge DIR"), "{finished:?}");
    assert!(finished.stdout.contains("pixels    ") && !finished.stdout.contains("features"), "{finished:?}");
    let finished = workplace.run(&["nearest", "--bundle", "tiny", "--training", "train", "--data", "held", "--training-captions"]);
    assert!(finished.status == 1 && finished.stderr.contains("picture without caption"), "{finished:?}");
    let finished = workplace.run(&["nearest", "--bundle", "tiny", "--training", "absent", "--data", "held"]);
    assert!(finished.status == 1 && finished.stderr.contains("absent"), "{finished:?}");
}
