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
fn an_image_tokenizer_alone_is_measured_by_its_reconstructions() {
    let workplace = Workplace::with_bundle();
    write_pictures(&workplace, "mine", 6);
    let whole = workplace.json(&["evaluate", "--bundle", "tiny", "--data", "mine", "--json", "--count", "5"]);
    std::fs::remove_file(workplace.path("mine/3.txt")).unwrap(); // nobody reads captions here
    let manifest: toml::Table = std::fs::read_to_string(workplace.path("tiny/bundle.toml")).unwrap().parse().unwrap();
    let alone: toml::Table = manifest.into_iter().filter(|(key, value)| !value.is_table() || key == "image_tokenizer").collect();
    workplace.write("alone/bundle.toml", toml::to_string(&alone).unwrap());
    std::fs::copy(workplace.path("tiny/image_tokenizer.safetensors"), workplace.path("alone/image_tokenizer.safetensors")).unwrap();
    let arguments = ["evaluate", "--bundle", "alone", "--data", "mine", "--judge", "tiny", "--count", "5", "--out", "kept"];
    let report = workplace.json(&[&arguments[..], &["--json"]].concat());
    assert_eq!(report["pictures"], "reconstructed", "{report}");
    let split = &report["splits"][0];
    assert!(split["generation"]["r_precision"].is_null() && split["generation"]["frechet"]["distance"].as_f64().unwrap() > 0.0, "{split}");
    assert_eq!((&split["reconstruction"], &split["codebook"]), (&whole["splits"][0]["reconstruction"], &whole["splits"][0]["codebook"]));
    assert_eq!(workplace.files("kept"), ["evaluation.json", "mine-real.png", "mine-reconstructed.png"]);
    let table = workplace.run(&arguments);
    assert!(table.stdout.contains("reconstructed") && !table.stdout.contains("generated"), "{table:?}");
    let nothing = workplace.run(&["evaluate", "--bundle", "alone", "--data", "mine"]);
    assert!(nothing.status != 0 && nothing.stderr.contains("expected a `judge`"), "{nothing:?}");
    let wilder = workplace.run(&[&arguments[..], &["--temperature", "2"]].concat());
    assert!(wilder.status != 0 && wilder.stderr.contains("expected no flags about drawing"), "{wilder:?}");
    let swept = workplace.run(&[&arguments[..], &["--sweep", "temperature=1,2"]].concat());
    assert!(swept.status != 0 && swept.stderr.contains("no `generator`"), "{swept:?}");
}

#[test]
fn a_sweep_is_a_row_for_each_way_and_never_draws_one_twice() {
    let workplace = Workplace::with_bundle();
    write_pictures(&workplace, "mine", 6);
    let sweep = |more: &[&str]| workplace.run(&[&["evaluate", "--bundle", "tiny", "--data", "mine", "--count", "5", "--out", "swept"], more].concat());
    let first = sweep(&["--sweep", "temperature=0.5,2", "--sweep", "top-k=3,default", "--json"]);
    assert_eq!(first.status, 0, "{first:?}");
    let json: serde_json::Value = serde_json::from_str(&first.stdout).unwrap();
    let names: Vec<&str> = json["rows"][0]["figures"].as_array().unwrap().iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["r_precision", "clip_score", "frechet_distance", "precision", "recall", "diversity", "seconds_per_picture"]);
    let text = |name: &str| std::fs::read_to_string(workplace.path(&format!("swept/{name}"))).unwrap();
    let csv = text("sweep.csv");
    let starts: Vec<String> = csv.lines().map(|line| line.split(',').take(4).collect::<Vec<_>>().join(",")).collect();
    assert_eq!(starts, ["split,temperature,top-k,pictures", "mine,0.5,3,5", "mine,0.5,default,5", "mine,2,3,5", "mine,2,default,5"]);
    assert!(text("sweep.svg").contains("top-k default") && text("sweep.svg").matches("class=\"panel\"").count() == 7);
    assert_eq!(workplace.files("swept/sheets").len(), 4);
    let sheet = Picture::open(&workplace.path("swept/sheet.png"), &Default::default()).unwrap();
    assert_eq!((sheet.width, sheet.height), (5 * 18 + 2, 4 * 20));

    // Wider, and as if it had been stopped before the last row: what is there is not drawn again, and stays as it was.
    let mut kept: serde_json::Value = serde_json::from_str(&text("sweep.json")).unwrap();
    kept["rows"].as_array_mut().unwrap().pop();
    workplace.write("swept/sweep.json", kept.to_string());
    let second = sweep(&["--sweep", "temperature=0.5,1,2", "--sweep", "top-k=3,default"]);
    assert_eq!((second.status, second.stderr.matches("mine: drawing with").count()), (0, 3), "{second:?}");
    assert!(second.stderr.contains("mine: drawing with temperature 2, top-k default: 5 in "), "{second:?}");
    let again = text("sweep.csv");
    assert_eq!((again.lines().count(), again.lines().nth(1)), (7, csv.lines().nth(1)));
    // Drawn again, the last row has the figures it had; only its seconds differ.
    let figures = |csv: &str| csv.lines().last().unwrap().split(',').take(28).map(str::to_string).collect::<Vec<_>>();
    assert_eq!(figures(&again), figures(&csv));

    for (more, status, expected) in [
        (&["--sweep", "temperature=1", "--seed", "4"][..], 1, "swept/sweep.json: --seed: expected 4, found 0; hint: "),
        (&["--sweep", "steps=1,2"], 2, "steps: expected nothing: this bundle draws image tokens"),
        (&["--sweep", "temperature=cold"], 2, "--sweep: invalid value 'cold' for '--temperature <T>'"),
        (&["--sweep", "warmth=1"], 2, "--sweep: expected candidates, guidance-scale,"),
        (&["--sweep", "temperature=1", "--sweep", "temperature=2"], 2, "--sweep: expected every flag once, found temperature twice"),
        (&["--sweep", "candidates=some"], 2, "--sweep candidates: expected whole numbers, found some"),
    ] {
        let finished = sweep(more);
        assert!(finished.status == status && finished.stderr.contains(expected), "{more:?}: {finished:?}");
    }
    assert_eq!(text("sweep.csv"), again, "what fails changes nothing");
    let homeless = workplace.run(&["evaluate", "--bundle", "tiny", "--data", "mine", "--sweep", "temperature=1"]);
    assert!(homeless.status == 2 && homeless.stderr.contains("--out <DIR>"), "{homeless:?}");
}

/// Dolls of two attributes, 4x4 parts grown to `size`, built by the program from a recipe of its own.
fn build_dolls(workplace: &Workplace, out: &str, size: usize) {
    for (attribute, colour, column) in [("body", [200, 0, 0], 0), ("hat", [0, 200, 0], 2)] {
        for row in 0..4 {
            let mut rgba = image::RgbaImage::new(4, 4);
            (0..2).for_each(|x| rgba.put_pixel(column + x, row, image::Rgba([colour[0], colour[1], colour[2], 255])));
            let mut bytes = std::io::Cursor::new(Vec::new());
            rgba.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            workplace.write(&format!("sources/{attribute}/{row}.png"), bytes.into_inner());
        }
    }
    let attribute = |name: &str| {
        let values: Vec<String> = (0..4).map(|row| format!("{row} = \"a {name} of row {row}\"\n")).collect();
        format!("[[attributes]]\nname = \"{name}\"\nfolder = \"{name}\"\n[attributes.values]\n{}", values.concat())
    };
    let recipe = format!(
        "kind = \"dolls\"\nname = \"tiny\"\nsource_folder = \"sources\"\nsize = {size}\nbackground = [255, 255, 255]\nseed = \"seed\"\ntrain_count = 6\n\
         held_out_count = 5\nheld_out_combinations = 0.4\nshard_size = 16\ncompress = false\ncaptions = [\"{{subject}} with {{others}}\"]\nsubject = \"body\"\n\
         source = \"made\"\nlicence = \"CC0-1.0\"\nattribution = \"nobody\"\n{}{}",
        attribute("body"),
        attribute("hat")
    );
    workplace.write("dolls.toml", recipe);
    workplace.succeed(&["data", "build", "dolls.toml", "--out", out]);
}

#[test]
fn dolls_are_measured_part_by_part() {
    let workplace = Workplace::with_bundle();
    build_dolls(&workplace, "dolls", 16);
    let evaluate = |more: &[&str]| workplace.run(&[&["evaluate", "--bundle", "tiny"], more].concat());
    for (data, split) in [("dolls", "pairs"), ("dolls/train", "train")] {
        let report = workplace.json(&["evaluate", "--bundle", "tiny", "--data", data, "--json"]);
        let measured = &report["splits"][0];
        assert_eq!(measured["split"], split, "{report}");
        let attributes = measured["composition"]["attributes"].as_array().unwrap_or_else(|| panic!("{report}"));
        let names: Vec<&str> = attributes.iter().map(|attribute| attribute["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["body", "hat"]);
        for attribute in attributes {
            let right = attribute["right"]["value"].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&right) && attribute["chance"] == 0.25, "{report}");
        }
    }
    let text = evaluate(&["--data", "dolls"]).stdout;
    assert!(text.contains("body") && text.contains("hat"), "{text}");
    // Dolls of another size than the bundle draws: everything else is measured, and it is said what is not.
    build_dolls(&workplace, "large", 32);
    let large = evaluate(&["--data", "large", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&large.stdout).unwrap_or_else(|error| panic!("{error}: {large:?}"));
    assert!(report["splits"][0]["composition"].is_null() && report["splits"][0]["generation"].is_object(), "{report}");
    assert!(large.stderr.contains("composition is not measured: expected pictures of 32 pixels as the dolls', found a bundle that draws 16"), "{large:?}");
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
