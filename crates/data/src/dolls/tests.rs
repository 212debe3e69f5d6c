//! Dolls of four tiny parts: exact pixels, held-out combinations, deterministic bytes, wrong sources.

use super::*;

use std::collections::BTreeMap;
use std::fs;

use image::{ImageFormat, Rgba, RgbaImage};

use crate::dataset::{self, CaptionRule, Dataset, DatasetConfig};
use crate::{Picture, picture::DecodeOptions};

/// A 4x4 part with some pixels of one colour.
fn part(colour: [u8; 4], pixels: &[(u32, u32)]) -> Vec<u8> {
    let mut picture = RgbaImage::new(4, 4);
    pixels.iter().for_each(|&(x, y)| picture.put_pixel(x, y, Rgba(colour)));
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

const RED: [u8; 4] = [200, 0, 0, 255];
const GREEN: [u8; 4] = [0, 200, 0, 255];
/// Half of it shines through.
const GLASS: [u8; 4] = [0, 0, 255, 128];

fn sources(folder: &Path) {
    let write = |name: &str, bytes: Vec<u8>| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for row in 0..4 {
        write(&format!("body/{row}.png"), part(RED, &[(0, row), (1, row)]));
        write(&format!("hat/{row}.png"), part(GREEN, &[(1, row), (2, row)]));
        write(&format!("veil/{row}.png"), part(GLASS, &[(2, row), (3, row)]));
    }
}

fn config() -> Config {
    let attribute = |name: &str, absent: f64| {
        let values = (0..4).map(|row| (row.to_string(), format!("{name} {row}"))).collect();
        config::AttributeConfig { name: name.into(), folder: name.into(), absent, values }
    };
    Config {
        kind: config::Kind::Dolls,
        name: "tiny".into(),
        source_folder: "unused".into(),
        size: 8,
        background: [255; 3],
        seed: "seed".into(),
        train_count: 40,
        held_out_count: 10,
        held_out_combinations: 0.1,
        shard_size: 16,
        compress: false,
        captions: vec!["{subject} with {others}".into(), "{others} on {subject}".into()],
        subject: "body".into(),
        source: "made".into(),
        licence: "CC0-1.0".into(),
        attribution: "nobody".into(),
        attributes: vec![attribute("body", 0.0), attribute("hat", 0.0), attribute("veil", 0.5)],
    }
}

fn built(config: &Config) -> (tempfile::TempDir, Summary) {
    let folder = tempfile::tempdir().unwrap();
    sources(&folder.path().join("sources"));
    let summary = build(config, &folder.path().join("sources"), &folder.path().join("out"), &mut |_, _| {}).unwrap();
    (folder, summary)
}

fn opened(path: &Path) -> Dataset {
    dataset::open(&DatasetConfig { captions: CaptionRule::Required, ..DatasetConfig::new(path.to_path_buf()) }).unwrap()
}

#[test]
fn parts_lie_over_each_other_and_grow_by_whole_pixels() {
    let folder = tempfile::tempdir().unwrap();
    sources(folder.path());
    let parts = Parts::read_folders(&config(), folder.path()).unwrap();
    let doll = parts.compose(&Doll(vec![Some(1), Some(1), Some(1)]));
    assert_eq!((doll.width, doll.height), (8, 8));
    // The hat covers the body, the veil lets half of the hat through: (0 * 128 + 200 * 127) / 255 = 99.6 in green.
    let row: Vec<[u8; 3]> = (0..8).map(|x| doll.pixel(x, 3)).collect();
    let [body, hat, veiled, veil] = [[200, 0, 0], [0, 200, 0], [0, 100, 128], [127, 127, 255]];
    assert_eq!(row, [body, body, hat, hat, veiled, veiled, veil, veil]);
    assert!((0..8).all(|x| doll.pixel(x, 0) == [255; 3] && doll.pixel(x, 2) == doll.pixel(x, 3)));
    assert_eq!(parts.compose(&Doll(vec![Some(1), Some(1), None])).pixel(7, 3), [255; 3]);
}

#[test]
fn training_never_shows_a_held_out_combination_and_every_held_out_doll_has_one() {
    let (folder, summary) = built(&config());
    let out = folder.path().join("out");
    let parts = Parts::read(&out.join(PARTS_FILE)).unwrap();
    assert_eq!((summary.train_count, summary.held_out_count, summary.combination_count), (40, 10, 3 * 16));
    let combinations_of = |split: &str| {
        let dataset = opened(&out.join(split));
        let mut found = Vec::new();
        for index in 0..dataset.len() {
            let sample = dataset.sample(index).unwrap();
            let doll = parts.doll(&sample.fields).unwrap();
            // The picture is what the fields say, and the canonical caption says the same.
            assert_eq!(Picture::decode(&sample.picture, &DecodeOptions::default()).unwrap(), parts.compose(&doll));
            let words: Vec<&str> = parts.attributes.iter().zip(&doll.0).filter_map(|(one, value)| Some(one.values[(*value)?].words.as_str())).collect();
            assert_eq!(sample.captions[0], format!("{} with {}", words[0], words[1..].join(" and ")));
            assert!(words.iter().all(|words| sample.captions[1].contains(words)));
            let worn: Vec<(usize, usize)> = doll.0.iter().enumerate().filter_map(|(place, value)| Some((place, (*value)?))).collect();
            let pairs = |place: usize| worn[..place].iter().copied();
            found.push(worn.iter().enumerate().flat_map(|(place, &other)| pairs(place).map(move |one| [one, other])).collect::<BTreeSet<_>>());
        }
        found
    };
    let (train, pairs) = (combinations_of("train"), combinations_of("pairs"));
    assert_eq!((train.len(), pairs.len()), (40, 10));
    let trained: BTreeSet<Combination> = train.into_iter().flatten().collect();
    assert!(pairs.iter().all(|doll| !doll.is_subset(&trained)), "each has a combination that training never shows");
    let values = |combinations: &BTreeSet<Combination>| combinations.iter().flatten().copied().collect::<BTreeSet<_>>();
    assert!(pairs.iter().all(|doll| values(doll).is_subset(&values(&trained))), "but no part that training never shows");
}

#[test]
fn the_same_recipe_gives_the_same_bytes_and_another_seed_others() {
    let bytes = |config: &Config| {
        let (folder, _) = built(config);
        fs::read(folder.path().join("out/train/tiny-train-0000.tar")).unwrap()
    };
    assert_eq!(bytes(&config()), bytes(&config()));
    assert_ne!(bytes(&config()), bytes(&Config { seed: "other".into(), ..config() }));
}

#[test]
fn wrong_sources_recipes_and_fields_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("sources"), folder.path().join("out"));
    sources(&source);
    let message = |config: &Config| build(config, &source, &out, &mut |_, _| {}).unwrap_err().to_string();
    let with = |change: &dyn Fn(&mut Config)| {
        let mut config = config();
        change(&mut config);
        config
    };
    for (change, expected) in [
        (&(|config: &mut Config| config.size = 10) as &dyn Fn(&mut Config), "multiple of the parts' 4 pixels"),
        (&|config| config.subject = "veil".into(), "an attribute that every doll has"),
        (&|config| config.attributes[1].absent = 0.5, "every caption has something to tell"),
        (&|config| config.captions[1] = "{subject}".into(), "{others}"),
        (&|config| config.train_count = 5000, "different dolls"),
        (&|config| _ = config.attributes[2].values.insert("9".into(), "veil 9".into()), "9.png"),
        (&|config| _ = config.attributes[2].values.insert("2".into(), "hat 2".into()), "`hat 2`"),
    ] {
        let message = message(&with(change));
        assert!(message.contains(expected), "{message}");
        assert!(!out.exists());
    }
    fs::write(source.join("veil/3.png"), b"no picture").unwrap();
    assert!(message(&config()).contains("veil 3"));
    let parts = {
        sources(&source);
        Parts::read_folders(&config(), &source).unwrap()
    };
    let fields = |value: &str| BTreeMap::from([("body".to_string(), "body 0".to_string()), ("hat".to_string(), value.to_string())]);
    assert_eq!(parts.doll(&fields("hat 3")), Ok(Doll(vec![Some(0), Some(3), None])));
    assert!(parts.doll(&fields("hat 7")).unwrap_err().contains("`hat 7`"));
    let cut = folder.path().join("parts.tar");
    fs::write(&cut, b"short").unwrap();
    assert!(Parts::read(&cut).unwrap_err().to_string().contains("parts.tar"));
}
