//! The pictogram set: captions, splits, deterministic bytes, the shipped sample.

use super::*;

use std::collections::{BTreeMap, BTreeSet};

use std::fs;
use std::path::PathBuf;

use crate::Picture;
use crate::data_recipe::DataRecipe;
use crate::dataset::{self, CaptionRule, Dataset, DatasetConfig};
use crate::picture::DecodeOptions;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Packages as npm unpacks them, with a handful of drawings: eight squares in two styles, one with skin tones, a flag of other proportions.
fn packages(folder: &Path) {
    let write = |path: &str, content: String| {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    let package = |name: &str| format!(r#"{{"name": "{name}", "version": "1.0.0"}}"#);
    let name = |number: usize| format!("thing {}", (b'a' + number as u8) as char);
    let code = |number: usize| format!("{:X}", 0x1F600 + number);
    let emoji: Vec<String> = (0..8)
        .map(|number| {
            let skins =
                if number == 0 { format!(r#", "skins": [{{"label": "{}: dark skin tone", "hexcode": "{}-1F3FF"}}]"#, name(0), code(0)) } else { String::new() };
            format!(r#"{{"label": "{}", "hexcode": "{}", "emoji": "{number}", "tags": ["word", "other", ":)"]{skins}}}"#, name(number), code(number))
        })
        .collect();
    write("node_modules/labels/package.json", package("labels"));
    write("node_modules/labels/en/data.json", format!("[{}]", emoji.join(",")));
    write("node_modules/labels/meta/unicode-names.json", r#"{"1F601": "ANOTHER NAME"}"#.into());
    write("node_modules/keywords/package.json", package("keywords"));
    write("node_modules/keywords/dist/emoji-en-US.json", r#"{"1": ["thing_b", "third_word", "ok"]}"#.into());
    for (style, spelled) in [("first", false), ("second", true)] {
        let icon_name = |number: usize| if spelled { name(number).replace(' ', "") } else { name(number).replace(' ', "-") };
        let mut icons: Vec<String> = (0..8)
            .map(|number| {
                let fill = format!("#{:02x}{}", 20 * number + 10, if spelled { "0080" } else { "8000" });
                format!(r#""{}": {{"body": "<path fill='{fill}' d='M0 0h20v10h-20z'/>", "height": 10}}"#, icon_name(number))
            })
            .collect();
        let mut characters: Vec<String> =
            if spelled { Vec::new() } else { (0..8).map(|number| format!(r#""{}": "{}""#, code(number).to_lowercase(), icon_name(number))).collect() };
        if !spelled {
            icons.push(r#""thing-a-dark": {"body": "<path d='M0 0h9v9h-9z'/>"}"#.into());
            icons.push(r#""old": {"body": "", "hidden": true}"#.into());
            icons.push(r#""brand-new": {"body": "<path fill='red' d='M0 0h5v5h-5z'/>"}"#.into());
            icons.push(r#""white": {"body": "<path fill='white' d='M0 0h5v5h-5z'/>"}"#.into());
            characters.push(r#""1f600-1f3ff": "thing-a-dark", "1fafa": "brand-new", "1fafb": "white""#.into());
        } else {
            icons.push(r#""anothername": {"body": "<path d='M0 0h9v9h-9z'/>"}, "mystery": {"body": "<path d='M0 0h9v9h-9z'/>"}"#.into());
        }
        write(&format!("node_modules/{style}/package.json"), package(style));
        write(&format!("node_modules/{style}/icons.json"), format!(r#"{{"width": 20, "height": 20, "icons": {{{}}}}}"#, icons.join(",")));
        write(&format!("node_modules/{style}/chars.json"), format!("{{{}}}", characters.join(",")));
    }
}

fn small_config() -> Config {
    let text = r#"
        kind = "pictograms"
        name = "small"
        source_folder = "unused"
        size = 16
        background = [255, 255, 255]
        tones = "all"
        shard_size = 3
        compress = false
        broken_limit = 0
        captions = ["{a_label}, {style} style", "{keywords}, {style} style"]
        splits = { seed = "s", concepts = 0.2, pairs = 0.3 }
        labels = { package = "labels", version = "1.0.0", sha256 = "" }
        keywords = { package = "keywords", version = "1.0.0", sha256 = "" }
        [[sources]]
        package = "first"
        version = "1.0.0"
        sha256 = ""
        layout = "iconify"
        style = "style one"
        licence = "MIT"
        attribution = "A"
        [[sources]]
        package = "second"
        version = "1.0.0"
        sha256 = ""
        layout = "iconify"
        style = "two"
        licence = "MIT"
        attribution = "B"
    "#;
    toml::from_str(text).unwrap()
}

fn build_quietly(config: &Config, sources: &Path, out: &Path) -> Result<Summary, DataError> {
    build(config, sources, out, &mut |_, _| {})
}

fn opened(path: &Path) -> Dataset {
    dataset::open(&DatasetConfig { captions: CaptionRule::Required, ..DatasetConfig::new(path) }).unwrap()
}

/// Every file below a folder with its content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path).into_iter().map(|(inner, bytes)| (Path::new(path.file_name().unwrap()).join(inner), bytes)));
        } else {
            found.insert(path.file_name().unwrap().into(), fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_small_set_is_built_whole_and_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    packages(folder.path());
    let out = folder.path().join("out");
    let summary = build_quietly(&small_config(), folder.path(), &out).unwrap();
    let total: usize = Split::ALL.iter().map(|split| summary.picture_count(*split)).sum();
    // 8 + dark + brand-new of the first style, 8 of the second ("another name" is a second drawing of thing b).
    assert_eq!(total, 18);
    let reasons: BTreeSet<&str> = summary.left_out.iter().map(|one| one.reason.as_str()).collect();
    assert_eq!(reasons, BTreeSet::from(["meaning unknown", "second drawing of the same", "shows nothing on the background"]));

    let again = folder.path().join("again");
    build_quietly(&small_config(), folder.path(), &again).unwrap();
    assert_eq!(contents(&out), contents(&again));
    for name in ["README.md", "ATTRIBUTION.md", "LEFT_OUT.txt", "recipe.toml"] {
        assert!(out.join(name).is_file(), "{name}");
    }

    let train = opened(&out.join("train"));
    let place = (0..train.len()).find(|&index| train.key(index).ends_with("style-one/brand-new"));
    let all: Vec<_> = (0..train.len()).map(|index| train.sample(index).unwrap()).collect();
    assert!(all.iter().all(|sample| sample.fields["split"] == "train" && sample.fields.contains_key("licence")));
    let picture = Picture::decode(&all[0].picture, &DecodeOptions::default()).unwrap();
    assert_eq!((picture.width, picture.height), (16, 16));
    if let Some(place) = place {
        assert_eq!(all[place].captions, ["a brand new, style one style"]);
    }
    let flag = all.iter().find(|sample| sample.fields["label"] != "brand new" && sample.fields["label"].len() == 7).unwrap();
    let picture = Picture::decode(&flag.picture, &DecodeOptions::default()).unwrap();
    assert_eq!((picture.pixel(8, 1), picture.pixel(8, 14)), ([255; 3], [255; 3]), "{}: a wide drawing is centred", flag.key);
    assert_ne!(picture.pixel(8, 8), [255; 3]);
}

#[test]
fn a_failed_build_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    packages(folder.path());
    let out = folder.path().join("out");
    let missing = build_quietly(&small_config(), Path::new("/nonexistent-folder"), &out).unwrap_err().to_string();
    assert!(missing.contains("tools/fetch_pictograms.sh"), "{missing}");
    let mut other_version = small_config();
    other_version.sources[0].version = "2.0.0".into();
    assert!(build_quietly(&other_version, folder.path(), &out).unwrap_err().to_string().contains("expected version 2.0.0, found 1.0.0"));
    fs::write(folder.path().join("first-1.0.0.tgz"), b"not the package").unwrap();
    assert!(build_quietly(&small_config(), folder.path(), &out).unwrap_err().to_string().contains("expected SHA-256"));
    fs::remove_file(folder.path().join("first-1.0.0.tgz")).unwrap();
    assert!(!out.exists());

    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine.txt"), b"precious").unwrap();
    assert!(build_quietly(&small_config(), folder.path(), &out).unwrap_err().to_string().contains("new or empty folder"));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    assert!(fs::read_dir(folder.path()).unwrap().all(|entry| !entry.unwrap().file_name().to_string_lossy().ends_with(".tmp")));
}

#[test]
fn wrong_recipes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.toml");
    let good = toml::to_string(&small_config()).unwrap();
    for (from, to, expected) in [
        ("size = 16", "size = 0", "`size`"),
        ("size = 16", "size = \"large\"", "size"),
        ("size = 16", "size = 16\ncolour = 1", "unknown field `colour`"),
        ("{a_label}", "{title}", "`{title}`"),
        ("style = \"two\"", "style = \"style one\"", "a different word"),
        ("concepts = 0.2", "concepts = 1.5", "splits.concepts"),
        ("name = \"small\"", "name = \"a/b\"", "`name`"),
    ] {
        assert!(good.contains(from), "{from} in {good}");
        fs::write(&path, good.replace(from, to)).unwrap();
        let message = DataRecipe::from_file(&path).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("recipe.toml"), "{message}");
    }
    fs::write(&path, good).unwrap();
    assert_eq!(DataRecipe::from_file(&path).unwrap(), DataRecipe::Pictograms(small_config()));
}

#[test]
fn another_size_draws_the_same_pictures_larger_or_says_what_it_may_be() {
    let folder = tempfile::tempdir().unwrap();
    packages(folder.path());
    let build_at = |size: u32| {
        let DataRecipe::Pictograms(config) = DataRecipe::Pictograms(small_config()).with_size(size) else { unreachable!() };
        let out = folder.path().join(size.to_string());
        build_quietly(&config, folder.path(), &out).map(|_| out)
    };
    let (small, large) = (opened(&build_at(16).unwrap().join("train")), opened(&build_at(40).unwrap().join("train")));
    assert_eq!(small.len(), large.len());
    for index in 0..large.len() {
        let picture = Picture::decode(&large.sample(index).unwrap().picture, &DecodeOptions::default()).unwrap();
        assert_eq!((large.key(index), picture.width, picture.height), (small.key(index), 40, 40));
    }
    let message = build_at(3).unwrap_err().to_string();
    assert!(message.contains("`size`") && message.contains("found 3"), "{message}");
    assert!(!folder.path().join("3").exists());
}

#[test]
fn committed_recipes_are_valid() {
    for name in ["pictograms", "pictograms_sample", "openmoji", "dolls"] {
        DataRecipe::from_file(&repository().join(format!("recipes/data/{name}.toml"))).unwrap();
    }
}

#[test]
fn the_shipped_sample_is_whole_and_its_splits_are_disjoint() {
    let sample = repository().join("assets/pictograms-sample");
    let mut concepts: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut pairs: BTreeMap<&str, BTreeSet<(String, String)>> = BTreeMap::new();
    let mut styles: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut pictures: BTreeMap<&str, BTreeSet<Vec<u8>>> = BTreeMap::new();
    let mut count = 0;
    for split in ["train", "pairs", "concepts"] {
        let dataset = opened(&sample.join(split));
        for index in 0..dataset.len() {
            let one = dataset.sample(index).unwrap();
            let picture = Picture::decode(&one.picture, &DecodeOptions::default()).unwrap();
            assert_eq!((picture.width, picture.height), (64, 64), "{}", one.key);
            let field = |name: &str| one.fields[name].clone();
            assert_eq!(field("split"), split);
            assert!(["MIT", "Apache-2.0", "CC-BY-4.0"].contains(&field("licence").as_str()), "{}", one.key);
            assert!(one.captions.len() >= 3 && one.captions[0].ends_with(&format!("{} style", field("style"))), "{:?}", one.captions);
            concepts.entry(split).or_default().insert(field("concept"));
            styles.entry(split).or_default().insert(field("style"));
            assert!(pairs.entry(split).or_default().insert((field("concept"), field("style"))), "{}: twice", one.key);
            pictures.entry(split).or_default().insert(one.picture);
            count += 1;
        }
    }
    assert!(count >= 300, "{count} pairs");
    assert!(concepts["train"].is_disjoint(&concepts["concepts"]));
    assert!(concepts["pairs"].is_subset(&concepts["train"]));
    assert!(styles["pairs"].is_subset(&styles["train"]));
    assert!(pairs["train"].is_disjoint(&pairs["pairs"]));
    assert!(pictures["train"].is_disjoint(&pictures["pairs"]) && pictures["train"].is_disjoint(&pictures["concepts"]));
    let size: u64 = contents(&sample).values().map(|bytes| bytes.len() as u64).sum();
    assert!(size <= 3 << 20, "{size} bytes");
    assert!(sample.join("ATTRIBUTION.md").is_file());
}
