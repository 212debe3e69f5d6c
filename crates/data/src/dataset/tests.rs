//! Readers: every layout people have, broken and hostile input, random bytes.

use super::*;

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tempfile::TempDir;

use crate::Picture;

pub(crate) fn png(colour: u8) -> Vec<u8> {
    Picture::filled(4, 4, [colour, 0, 255 - colour]).to_png(&[]).unwrap()
}

fn folder_with(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    folder
}

pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn keys(dataset: &Dataset) -> Vec<&str> {
    (0..dataset.len()).map(|index| dataset.key(index)).collect()
}

fn message(config: &DatasetConfig) -> String {
    open(config).map(|dataset| dataset.len()).unwrap_err().to_string()
}

#[test]
fn folder_with_texts() {
    let folder =
        folder_with(&[("b/owl.PNG", &png(2)), ("a fox.png", &png(1)), ("a fox.txt", b"a red fox\n\n the fox \n"), ("b/owl.txt", "\u{feff}ein Uhu".as_bytes())]);
    let dataset = open(&DatasetConfig::new(folder.path())).unwrap();
    assert_eq!((dataset.kind(), keys(&dataset)), (DatasetKind::Folder, vec!["a fox", "b/owl"]));
    let fox = dataset.sample(0).unwrap();
    assert_eq!((fox.captions, fox.picture), (vec!["a red fox".to_owned(), "the fox".to_owned()], png(1)));
    assert_eq!(dataset.captions().unwrap(), ["a red fox", "the fox", "ein Uhu"]);
}

#[test]
fn folder_problems_are_named_and_counted() {
    let folder =
        folder_with(&[("fox.png", &png(1)), ("fox.jpg", &png(1)), ("owl.txt", b"an owl"), ("cat.gif", b"GIF89a"), ("bear.png", &png(3)), ("bear.txt", b"")]);
    let strict = DatasetConfig { captions: CaptionRule::Required, ..DatasetConfig::new(folder.path()) };
    let found = message(&strict);
    assert!(found.contains("5 problems found, limit is 0"), "{found}");
    let lenient = DatasetConfig::new(folder.path());
    let dataset = open(&DatasetConfig { problem_limit: 3, ..lenient.clone() }).unwrap();
    assert_eq!(keys(&dataset), ["bear", "fox"]);
    let problems: Vec<String> = dataset.problems().iter().map(Problem::to_string).collect();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems.contains(&"`owl.txt`: caption without picture".to_owned()), "{problems:?}");
    assert!(problems.contains(&"`fox.png`: key used more than once".to_owned()), "{problems:?}");
    assert!(message(&DatasetConfig { problem_limit: 2, ..lenient }).contains("3 problems found, limit is 2"));
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_named_and_left_out() {
    use std::os::unix::ffi::OsStrExt;
    let folder = folder_with(&[("a.png", &png(1)), ("a.txt", b"a fish")]);
    std::os::unix::fs::symlink(folder.path().join("gone.png"), folder.path().join("dangling.png")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket.png")).unwrap();
    std::fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9.png")), png(1)).unwrap();
    let config = DatasetConfig { problem_limit: 3, ..DatasetConfig::new(folder.path()) };
    let dataset = open(&config).unwrap();
    assert_eq!(keys(&dataset), ["a"]);
    let problems = dataset.problems().iter().map(|problem| problem.to_string()).collect::<Vec<_>>().join("\n");
    for expected in ["`dangling.png`: No such file", "`socket.png`: expected a file or a folder", ".png`: expected a name in UTF-8"] {
        assert!(problems.contains(expected), "{expected}: {problems}");
    }
    assert!(message(&DatasetConfig { problem_limit: 2, ..config }).contains("3 problems found, limit is 2"));
}

#[test]
fn blank_and_unreadable_captions_count_when_they_are_read() {
    let folder = folder_with(&[
        ("fox.png", &png(1)),
        ("fox.txt", b" \n \n"),
        ("owl.png", &png(2)),
        ("owl.txt", b"\xff\xfe"),
        ("cat.png", &png(3)),
        ("cat.txt", b"a cat"),
    ]);
    let config = DatasetConfig { captions: CaptionRule::Required, ..DatasetConfig::new(folder.path()) };
    let strict = open(&config).unwrap();
    assert!(strict.sample(1).unwrap_err().to_string().contains("`fox`: expected a caption"));
    assert!(strict.captions().unwrap_err().to_string().contains("limit is 0"));
    assert_eq!(open(&DatasetConfig { problem_limit: 2, ..config }).unwrap().captions().unwrap(), ["a cat"]);
    assert!(open(&DatasetConfig::new(folder.path())).unwrap().sample(1).unwrap().captions.is_empty());
}

#[test]
fn missing_and_empty_places_are_errors() {
    assert!(message(&DatasetConfig::new("/nonexistent-folder")).contains("/nonexistent-folder"));
    let empty = tempfile::tempdir().unwrap();
    for kind in [None, Some(DatasetKind::Folder), Some(DatasetKind::MetadataJsonl), Some(DatasetKind::ImageFolder), Some(DatasetKind::WebDataset)] {
        let found = message(&DatasetConfig { kind, ..DatasetConfig::new(empty.path()) });
        assert!(found.contains("found no"), "{kind:?}: {found}");
    }
    let file = empty.path().join("fox.png");
    std::fs::write(&file, png(1)).unwrap();
    assert!(message(&DatasetConfig::new(&file)).contains("found a file"));
}

#[test]
fn metadata_lines() {
    let lines = concat!(
        r#"{"file_name": "a/fox.png", "text": ["a fox", " a red fox "], "style": "noto", "size": 4, "nested": {"x": 1}}"#,
        "\n\n",
        r#"{"file_name": "./owl.png", "text": "an owl"}"#,
        "\n"
    );
    let folder = folder_with(&[("metadata.jsonl", lines.as_bytes()), ("a/fox.png", &png(1)), ("owl.png", &png(2))]);
    let dataset = open(&DatasetConfig { captions: CaptionRule::Required, ..DatasetConfig::new(folder.path()) }).unwrap();
    assert_eq!((dataset.kind(), keys(&dataset)), (DatasetKind::MetadataJsonl, vec!["a/fox", "owl"]));
    let fox = dataset.description(0).unwrap();
    assert_eq!(fox.captions, ["a fox", "a red fox"]);
    assert_eq!(fox.fields.into_iter().collect::<Vec<_>>(), [("size".to_owned(), "4".to_owned()), ("style".to_owned(), "noto".to_owned())]);
}

#[test]
fn metadata_errors_name_the_line() {
    for (lines, expected) in [
        ("{\"file_name\": \"fox.png\"}\n{broken\n", "metadata.jsonl:2: expected a JSON object"),
        ("[1]\n", "metadata.jsonl:1: expected a JSON object, found a list"),
        ("{\"text\": \"a\"}\n", "metadata.jsonl:1: expected the key `file_name`"),
        ("{\"file_name\": 3}\n", "expected a string, found a number"),
        ("{\"file_name\": \"../../etc/passwd.png\"}\n", "expected a path inside the folder"),
        ("{\"file_name\": \"/etc/passwd.png\"}\n", "expected a path inside the folder"),
        ("{\"file_name\": \"fox.png\", \"text\": [1]}\n", "`text`: expected a string or a list of strings, found a number"),
        ("{\"file_name\": \"owl.png\", \"text\": \"x\"}\n", "metadata.jsonl:1: owl.png`: caption without picture"),
        ("{\"file_name\": \"fox.png\"}\n{\"file_name\": \"fox.png\"}\n", "metadata.jsonl:2: fox.png`: key used more than once"),
    ] {
        let folder = folder_with(&[("metadata.jsonl", lines.as_bytes()), ("fox.png", &png(1))]);
        let found = message(&DatasetConfig::new(folder.path()));
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn image_folder_by_class_and_by_table() {
    let classes = folder_with(&[("red_fox/1.png", &png(1)), ("red_fox/2.png", &png(2)), ("owl/1.png", &png(3))]);
    let dataset = open(&DatasetConfig::new(classes.path())).unwrap();
    assert_eq!((dataset.kind(), keys(&dataset)), (DatasetKind::ImageFolder, vec!["owl/1", "red_fox/1", "red_fox/2"]));
    let fox = dataset.description(1).unwrap();
    assert_eq!((fox.captions, fox.fields["class"].as_str()), (vec!["red fox".to_owned()], "red_fox"));

    let csv = "file_name,text,style\r\nfox.png,\"a \"\"red\"\" fox,\nsitting\",noto\r\n\r\n\"owl.png\",an owl,\"\"\r\n";
    let table = folder_with(&[("train/metadata.csv", csv.as_bytes()), ("train/fox.png", &png(1)), ("train/owl.png", &png(2))]);
    let dataset = open(&DatasetConfig { captions: CaptionRule::Required, ..DatasetConfig::new(table.path()) }).unwrap();
    assert_eq!((dataset.kind(), keys(&dataset)), (DatasetKind::ImageFolder, vec!["train/fox", "train/owl"]));
    assert_eq!(dataset.description(0).unwrap().captions, ["a \"red\" fox,\nsitting"]);
    assert_eq!(dataset.description(1).unwrap().fields["style"], "");

    let parquet = folder_with(&[("train/metadata.parquet", b"PAR1"), ("train/fox.png", &png(1))]);
    assert!(message(&DatasetConfig::new(parquet.path())).contains("`train/metadata.parquet`: expected metadata.jsonl"));

    let splits = folder_with(&[("train/fox/1.png", &png(1)), ("test/fox/1.png", &png(2))]);
    assert!(message(&DatasetConfig::new(splits.path())).contains("found the splits test, train"));
    for (csv, expected) in
        [("a,b\n1,2\n", "column `file_name`"), ("file_name,text\nfox.png\n", "csv:2: expected 2 columns, found 1"), ("file_name\n\"fox", "closing quote")]
    {
        let folder = folder_with(&[("metadata.csv", csv.as_bytes()), ("fox.png", &png(1))]);
        let found = message(&DatasetConfig::new(folder.path()));
        assert!(found.contains(expected), "{found}");
    }
}

fn shard() -> Vec<u8> {
    let json = br#"{"captions": ["a fox", "a red fox"], "style": "noto"}"#;
    tar_of(&[
        ("noto/fox.png", &png(1)),
        ("noto/fox.json", json),
        ("./owl.jpg", &png(2)),
        ("./owl.txt", b"an owl"),
        ("./owl.cls", b"7"),
        ("README", b"hello"),
        (&format!("{}.png", "long-name-".repeat(20)), &png(3)),
    ])
}

#[test]
fn shards_plain_and_compressed_read_the_same() {
    for (name, bytes) in [("data-0000.tar", shard()), ("data-0000.tar.gz", gzip(&shard())), ("data-0000.tgz", gzip(&shard()))] {
        let folder = folder_with(&[(name, &bytes)]);
        for place in [folder.path().to_path_buf(), folder.path().join(name)] {
            let dataset = open(&DatasetConfig::new(place)).unwrap();
            assert_eq!(dataset.kind(), DatasetKind::WebDataset);
            assert_eq!(dataset.len(), 3);
            assert_eq!(&keys(&dataset)[..2], ["data-0000/noto/fox", "data-0000/owl"]);
            let fox = dataset.sample(0).unwrap();
            assert_eq!((fox.picture, fox.captions.len(), fox.fields["style"].as_str()), (png(1), 2, "noto"));
            assert_eq!(dataset.sample(1).unwrap().captions, ["an owl"]);
            assert_eq!(dataset.sample(2).unwrap().picture, png(3));
            assert_eq!(dataset.blocks(), std::iter::once(0..3).collect::<Vec<_>>());
        }
    }
}

#[test]
fn pictures_beside_a_shard_are_an_error_that_counts_them() {
    let folder = folder_with(&[("fox.png", &png(1)), ("owl.png", &png(2)), ("backup.tar", &shard())]);
    let error = open(&DatasetConfig::new(folder.path())).unwrap_err().to_string();
    assert!(error.contains("found 2 pictures beside the shard backup.tar"), "{error}");
}

#[test]
fn shard_problems_are_named() {
    let bytes = tar_of(&[
        ("fox.png", &png(1)),
        ("fox.txt", b"a fox"),
        ("owl.txt", b"an owl"),
        ("cat.png", &png(2)),
        ("bear.png", &png(3)),
        ("bear.json", b"{broken"),
        ("fox.png", &png(4)),
        ("ant.gif", b"GIF89a"),
    ]);
    let folder = folder_with(&[("x.tar", &bytes)]);
    let dataset = open(&DatasetConfig { captions: CaptionRule::Required, problem_limit: 9, ..DatasetConfig::new(folder.path()) }).unwrap();
    assert_eq!(keys(&dataset), ["x/fox"]);
    let problems: Vec<String> = dataset.problems().iter().map(Problem::to_string).collect();
    assert_eq!(problems.len(), 5, "{problems:?}");
    assert_eq!(&problems[..2], ["`x/owl`: caption without picture", "`x/cat`: picture without caption"]);
    assert!(problems[2].contains("x/bear") && problems[3].contains("more than once") && problems[4].contains("convert"), "{problems:?}");
    // Where captions are optional an unreadable one shows when it is read.
    let optional = open(&DatasetConfig { problem_limit: 9, ..DatasetConfig::new(folder.path()) }).unwrap();
    assert_eq!(keys(&optional), ["x/fox", "x/cat", "x/bear"]);
    assert!(optional.sample(2).is_err() && optional.sample(1).is_ok());
}

#[test]
fn every_cut_of_a_shard_is_an_error() {
    let whole = shard();
    // The end-of-archive mark is two blocks; one is enough to know that nothing is missing.
    let content_end = whole.len() - 1024;
    for length in (0..content_end + 512).step_by(256) {
        let folder = folder_with(&[("x.tar", &whole[..length])]);
        let found = message(&DatasetConfig { problem_limit: 99, ..DatasetConfig::new(folder.path()) });
        assert!(found.contains("x.tar"), "{length} bytes: {found}");
    }
    let compressed = gzip(&whole);
    for length in (0..compressed.len() - 1).step_by(97) {
        let folder = folder_with(&[("x.tar.gz", &compressed[..length])]);
        let found = message(&DatasetConfig { problem_limit: 99, ..DatasetConfig::new(folder.path()) });
        assert!(found.contains("x.tar.gz"), "{length} bytes: {found}");
    }
    let cut_inside = gzip(&whole[..content_end]);
    let folder = folder_with(&[("x.tgz", &cut_inside)]);
    assert!(message(&DatasetConfig::new(folder.path())).contains("end-of-archive mark"));
}

#[test]
fn many_compressed_shards_stay_readable_in_any_order() {
    let shards: Vec<(String, Vec<u8>)> =
        (0..5).map(|number| (format!("{number}.tar.gz"), gzip(&tar_of(&[("a.png", &png(number)), ("b.png", &png(number + 100))])))).collect();
    let files: Vec<(&str, &[u8])> = shards
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .chain([("5.tar", &*Box::leak(tar_of(&[("a.png", &png(5))]).into_boxed_slice()))])
        .collect();
    let folder = folder_with(&files);
    let dataset = open(&DatasetConfig::new(folder.path())).unwrap();
    assert_eq!(dataset.blocks().len(), 6);
    for index in [0, 8, 3, 10, 1, 9, 0, 5] {
        let expected = if index == 10 { 5 } else { index as u8 / 2 + 100 * (index as u8 % 2) };
        assert_eq!(dataset.sample(index).unwrap().picture, png(expected));
    }
}

#[test]
fn the_fingerprint_follows_the_pictures() {
    let one = folder_with(&[("fox.png", &png(1)), ("owl.png", &png(2))]);
    let same = folder_with(&[("fox.png", &png(1)), ("owl.png", &png(2)), ("owl.txt", b"an owl")]);
    let other = folder_with(&[("fox.png", &png(1)), ("bear.png", &png(2))]);
    let fingerprint = |folder: &TempDir| open(&DatasetConfig::new(folder.path())).unwrap().fingerprint();
    assert_eq!(fingerprint(&one), fingerprint(&same));
    assert_ne!(fingerprint(&one), fingerprint(&other));
}

#[test]
fn unknown_keys_of_the_recipe_are_errors() {
    let found = toml::from_str::<DatasetConfig>("path = 'x'\nlimit = 3").unwrap_err().to_string();
    assert!(found.contains("limit"), "{found}");
    assert!(toml::from_str::<DatasetConfig>("path = 'x'\nkind = 'web_dataset'\ncaptions = 'required'").is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_shards_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), compressed in any::<bool>(), required in any::<bool>()) {
        let mut bytes = shard();
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let (name, bytes) = if compressed { ("x.tar.gz", gzip(&bytes)) } else { ("x.tar", bytes) };
        let folder = folder_with(&[(name, &bytes)]);
        let captions = if required { CaptionRule::Required } else { CaptionRule::Optional };
        if let Ok(dataset) = open(&DatasetConfig { problem_limit: 99, captions, ..DatasetConfig::new(folder.path()) }) {
            for index in 0..dataset.len() {
                let _ = dataset.sample(index);
            }
        }
    }

    #[test]
    fn random_shards_and_tables_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), name in 0usize..5) {
        let name = ["x.tar", "x.tar.gz", "metadata.jsonl", "sub/metadata.csv", "x.txt"][name];
        let folder = folder_with(&[(name, &bytes), ("x.png", &bytes)]);
        if let Ok(dataset) = open(&DatasetConfig { problem_limit: 99, ..DatasetConfig::new(folder.path()) }) {
            let _ = dataset.captions();
        }
    }

    #[test]
    fn any_csv_text_parses_or_is_an_error(text in "[a,\"\n\r ]{0,60}") {
        let folder = folder_with(&[("metadata.csv", format!("file_name,text\n{text}").as_bytes()), ("a.png", b"")]);
        let _ = open(&DatasetConfig { problem_limit: 99, ..DatasetConfig::new(folder.path()) });
    }
}
