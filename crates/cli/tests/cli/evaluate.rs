//! `smalti evaluate` on a folder of captioned pictures and on splits.

use crate::program::Workplace;
use smalti_data::Picture;

/// Captioned pictures in the manner of `NAME.png`, `NAME.txt`.
fn write_pictures(workplace: &Workplace, folder: &str, count: u8) {
    for index in 0..count {
        let picture = Picture::filled(16 + usize::from(index), 20, [index * 20, 255 - index * 20, 90]);
        workplace.write(&format!("{folder}/{index}.png"), picture.to_png(&[]).unwrap());
        workplace.write(&format!("{folder}/{index}.txt"), format!("a red heart number {index}"));
    }
}

#[test]
fn every_split_gets_its_figures_beside_the_real_ones() {
    let workplace = Workplace::with_bundle();
    write_pictures(&workplace, "data/pairs", 8);
    write_pictures(&workplace, "data/concepts", 6);
    let report = workplace.json(&["evaluate", "--bundle", "tiny", "--data", "data", "--json", "--out", "kept", "--candidates", "2"]);
    assert!(report["bundle"].as_str().unwrap().starts_with("tiny-"), "{report}");
    let splits: Vec<&str> = report["splits"].as_array().unwrap().iter().map(|split| split["split"].as_str().unwrap()).collect();
    assert_eq!(splits, ["pairs", "concepts"]);
    let pairs = &report["splits"][0];
    assert!(pairs["generation"]["r_precision"]["real"]["precision"]["value"].is_number(), "{pairs}");
    assert!(pairs["reconstruction"]["ssim"]["value"].is_number() && pairs["codebook"]["codebook_size"] == 32, "{pairs}");
    assert_eq!(workplace.files("kept"), ["concepts-generated.png", "concepts-real.png", "evaluation.json", "pairs-generated.png", "pairs-real.png"]);
    // The same again gives the same figures.
    assert_eq!(report, workplace.json(&["evaluate", "--bundle", "tiny", "--data", "data", "--json", "--candidates", "2", "--threads", "1"]));
}

#[test]
fn a_plain_folder_is_one_split() {
    let workplace = Workplace::with_bundle();
    write_pictures(&workplace, "mine", 9);
    let finished = workplace.run(&["evaluate", "--bundle", "tiny", "--data", "mine", "--count", "5"]);
    assert_eq!(finished.status, 0, "{finished:?}");
    assert!(
        finished.stdout.contains("mine") && finished.stdout.contains("R-precision@1 of 5") && finished.stdout.contains("reference: 5 real pictures of mine"),
        "{finished:?}"
    );
    assert!(finished.stderr.contains("warning: mine: R-precision among 5 different captions"), "{finished:?}");
}

#[test]
fn what_cannot_be_measured_is_an_error() {
    let workplace = Workplace::with_bundle();
    write_pictures(&workplace, "mine", 5);
    workplace.write("bare/x.png", Picture::filled(16, 16, [0; 3]).to_png(&[]).unwrap());
    std::fs::create_dir(workplace.path("empty")).unwrap();
    for (data, more, status, expected) in [
        ("absent", &[][..], 1, "absent"),
        ("empty", &[], 1, "empty"),
        ("bare", &[], 1, "picture without caption"),
        ("mine", &["--count", "3"], 2, "--count: expected at least 4"),
        ("mine", &["--candidates", "0"], 2, "count: expected 1 to"),
        ("mine", &["--inception", "absent.safetensors"], 1, "absent.safetensors"),
        ("mine", &["--lpips", "tiny/judge.safetensors"], 1, "tensor `heads.0`: missing"),
    ] {
        let finished = workplace.run(&[&["evaluate", "--bundle", "tiny", "--data", data], more].concat());
        assert_eq!(finished.status, status, "{data} {more:?}: {finished:?}");
        assert!(finished.stderr.contains(expected), "{data} {more:?}: {}", finished.stderr);
    }
}
