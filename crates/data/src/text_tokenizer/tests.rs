//! Text tokenizers, against the Python tokenizers package and open_clip.

use super::*;

use std::path::PathBuf;

use serde_json::Value;

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(name)
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden_path(name)).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|number| number.as_u64().unwrap() as u32).collect()
}

fn captions() -> Vec<String> {
    golden("byte_level_bpe.json")["captions"].as_array().unwrap().iter().map(|caption| caption.as_str().unwrap().to_owned()).collect()
}

#[test]
fn training_gives_the_tokens_of_the_python_package() {
    let golden = golden("byte_level_bpe.json");
    let tokenizer = TextTokenizer::train(&captions(), 330).unwrap();
    assert_eq!(tokenizer.vocabulary_size() as u64, golden["vocabulary_size"].as_u64().unwrap());
    for case in golden["encoded"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.text_tokens(text).unwrap(), numbers(&case["tokens"]), "{text}");
    }
}

#[test]
fn training_is_deterministic_whatever_the_order() {
    let mut reordered = captions();
    reordered.reverse();
    let first = TextTokenizer::train(&captions(), 400).unwrap();
    for _ in 0..3 {
        assert_eq!(TextTokenizer::train(&captions(), 400).unwrap().json(), first.json());
    }
    assert_eq!(TextTokenizer::train(&reordered, 400).unwrap().sha256(), first.sha256());
}

#[test]
fn clip_merges_give_the_tokens_of_open_clip() {
    let golden = golden("clip_bpe.json");
    let size = golden["vocabulary_size"].as_u64().unwrap() as usize;
    let tokenizer = TextTokenizer::from_clip_merges(&golden_path("clip_merges.txt.gz"), 49408).unwrap();
    assert_eq!(tokenizer.vocabulary_size(), size);
    for case in golden["encoded"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.text_tokens(text).unwrap(), numbers(&case["tokens"]), "{text}");
        assert_eq!(tokenizer.encode(text, 24).unwrap().tokens, numbers(&case["padded"]), "{text}");
    }
    let cut = TextTokenizer::from_clip_merges(&golden_path("clip_merges.txt.gz"), 520).unwrap();
    assert_eq!(cut.vocabulary_size(), 520);
}

/// The two files of `transformers` say what the one of OpenAI says.
#[test]
fn a_vocabulary_with_merges_is_the_same_text_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let of_merges = TextTokenizer::from_clip_merges(&golden_path("clip_merges.txt.gz"), 520).unwrap();
    let json: Value = serde_json::from_str(of_merges.json()).unwrap();
    let [vocabulary, merges] = ["vocab.json", "merges.txt"].map(|name| folder.path().join(name));
    std::fs::write(&vocabulary, json["model"]["vocab"].to_string()).unwrap();
    let pair = |pair: &Value| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let lines: String = json["model"]["merges"].as_array().unwrap().iter().map(pair).collect();
    std::fs::write(&merges, format!("#version: 0.2\n{lines}")).unwrap();
    let of_two = TextTokenizer::from_clip_vocabulary(&vocabulary, &merges).unwrap();
    assert_eq!(of_two.encode("A red fox, Noto style's", 24).unwrap(), of_merges.encode("A red fox, Noto style's", 24).unwrap());
    assert_eq!(of_two.token_id("<|endoftext|>"), Some(519));

    for content in ["", "[]", "{\"a\": -1}", "{\"a\": 0}"] {
        std::fs::write(&vocabulary, content).unwrap();
        let message = TextTokenizer::from_clip_vocabulary(&vocabulary, &merges).unwrap_err().to_string();
        assert!(message.contains("vocab.json"), "{message}");
    }
}

#[test]
fn saved_and_loaded_is_the_same_for_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    for tokenizer in [TextTokenizer::train(&captions(), 300).unwrap(), TextTokenizer::from_clip_merges(&golden_path("clip_merges.txt.gz"), 49408).unwrap()] {
        let path = folder.path().join("text_tokenizer.json");
        tokenizer.save(&path).unwrap();
        let loaded = TextTokenizer::from_file(&path).unwrap();
        assert_eq!(loaded.sha256(), tokenizer.sha256());
        assert_eq!(loaded.special_tokens(), tokenizer.special_tokens());
        assert_eq!(loaded.encode("A red fox, Noto style", 16).unwrap(), tokenizer.encode("A red fox, Noto style", 16).unwrap());
    }
}

#[test]
fn texts_of_any_length_are_framed() {
    let tokenizer = TextTokenizer::train(&captions(), 300).unwrap();
    let SpecialTokens { pad, start, end } = tokenizer.special_tokens();
    let start = start.unwrap();
    let empty = tokenizer.encode("", 5).unwrap();
    assert_eq!(empty, Encoded { tokens: vec![start, end, pad, pad, pad], visible: vec![true, true, false, false, false], end: 1 });
    let long = tokenizer.encode(&"fox ".repeat(10_000), 12).unwrap();
    assert_eq!((long.tokens[0], long.tokens[11], long.end), (start, end, 11));
    assert!(long.visible.iter().all(|visible| *visible) && !long.tokens[1..11].contains(&end));
    assert_eq!(tokenizer.encode("fox", 2).unwrap().tokens, [start, end]);
    assert!(tokenizer.encode("fox", 1).unwrap_err().to_string().contains("at least 2"));
    assert_eq!(tokenizer.decode(&tokenizer.encode("a red fox", 16).unwrap().tokens).unwrap().trim(), "a red fox");
}

#[test]
fn a_prompt_cannot_spell_special_tokens() {
    let tokenizer = TextTokenizer::train(&captions(), 300).unwrap();
    let tokens = tokenizer.text_tokens("a fox <end> <pad> <start>").unwrap();
    assert!(tokens.iter().all(|&token| token > 2), "{tokens:?}");
}

#[test]
fn unusable_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    assert!(TextTokenizer::from_file(&path).is_err());
    for content in [&b""[..], b"{}", b"\xff\xfe", br#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#] {
        std::fs::write(&path, content).unwrap();
        let message = TextTokenizer::from_file(&path).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json"), "{message}");
    }
    for content in [&b""[..], b"header only\n", b"header\na b c\n", b"header\nxx yy\n", b"\x1f\x8b\x08broken"] {
        std::fs::write(&path, content).unwrap();
        assert!(TextTokenizer::from_clip_merges(&path, 49408).is_err(), "{:?}", String::from_utf8_lossy(content));
    }
    assert!(TextTokenizer::train(&["a fox"], 100).unwrap_err().to_string().contains("259"));
    assert!(TextTokenizer::from_clip_merges(&golden_path("clip_merges.txt.gz"), 100).unwrap_err().to_string().contains("514"));
}

#[test]
fn a_search_for_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let tokenizer = TextTokenizer::train(&captions(), 300).unwrap();
    tokenizer.save(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for pattern in [serde_json::json!({ "String": "" }), serde_json::json!({ "Regex": "" })] {
        json["normalizer"] = serde_json::json!({ "type": "Sequence", "normalizers": [{ "type": "Replace", "pattern": pattern, "content": "x" }] });
        std::fs::write(&path, json.to_string()).unwrap();
        let message = TextTokenizer::from_file(&path).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json") && message.contains("Replace: expected a pattern to search for"), "{message}");
    }
}

#[test]
fn special_tokens_can_be_named() {
    let tokenizer = TextTokenizer::train(&captions(), 300).unwrap();
    let swapped = SpecialTokens { pad: 2, start: None, end: 1 };
    assert_eq!(tokenizer.clone().with_special_tokens(swapped).unwrap().encode("", 3).unwrap().tokens, [1, 2, 2]);
    assert!(tokenizer.with_special_tokens(SpecialTokens { pad: 9999, ..swapped }).is_err());
}

#[test]
fn sentence_piece_gives_the_tokens_of_sentence_piece() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["sentence_piece", "sentence_piece_bytes"] {
        let golden = golden(&format!("{name}.json"));
        let tokenizer = TextTokenizer::from_sentence_piece(&golden_path(&format!("{name}.model"))).unwrap();
        assert_eq!(tokenizer.vocabulary_size() as u64, golden["vocabulary_size"].as_u64().unwrap());
        // T5's: no start.
        assert_eq!(tokenizer.special_tokens(), SpecialTokens { pad: 0, start: None, end: 1 });
        let path = folder.path().join("tokenizer.json");
        tokenizer.save(&path).unwrap();
        let loaded = TextTokenizer::from_file(&path).unwrap();
        assert_eq!(loaded.sha256(), tokenizer.sha256());
        for case in golden["encoded"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let expected = numbers(&case["tokens"]);
            assert_eq!(tokenizer.text_tokens(text).unwrap(), expected, "{name}: {text:?}");
            assert_eq!(loaded.text_tokens(text).unwrap(), expected, "{name}: {text:?} from the JSON");
        }
        let encoded = tokenizer.encode("a red fox", 12).unwrap();
        assert_eq!((encoded.tokens[encoded.end], encoded.tokens[11], encoded.visible[encoded.end], encoded.visible[11]), (1, 0, true, false));
        assert_eq!(tokenizer.decode(&encoded.tokens).unwrap(), "a red fox");
    }
}

#[test]
fn word_pieces_give_the_tokens_of_transformers() {
    let golden = golden("word_pieces.json");
    for (key, letter_case) in [("lower", LetterCase::Lower), ("kept", LetterCase::Kept)] {
        let ours = TextTokenizer::from_word_pieces(&golden_path("word_pieces.txt"), letter_case).unwrap();
        let published = TextTokenizer::from_file(&golden_path(&format!("word_pieces_{key}_tokenizer.json"))).unwrap();
        for tokenizer in [ours, published] {
            assert_eq!(tokenizer.vocabulary_size() as u64, golden["vocabulary_size"].as_u64().unwrap());
            assert_eq!(tokenizer.special_tokens(), SpecialTokens { pad: 0, start: Some(2), end: 3 });
            for case in golden[key].as_array().unwrap() {
                let (text, expected) = (case["text"].as_str().unwrap(), numbers(&case["tokens"]));
                let encoded = tokenizer.encode(text, 64).unwrap();
                assert_eq!(encoded.tokens[..=encoded.end], expected, "{key}: {text:?}");
            }
        }
    }
}

/// Every way to cut a model short, and many ways to damage one, end in an error or in a tokenizer that works.
#[test]
fn damaged_sentence_piece_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spiece.model");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        TextTokenizer::from_sentence_piece(&path)
    };
    let whole = std::fs::read(golden_path("sentence_piece_bytes.model")).unwrap();
    assert!(read(&whole).is_ok());
    for length in (0..whole.len()).step_by(41).chain(whole.len() - 3..whole.len()) {
        if let Ok(tokenizer) = read(&whole[..length]) {
            // The last field is the normalizer's; only what follows its last needed byte may be missing.
            assert_eq!(
                tokenizer.text_tokens("a red fox").unwrap(),
                TextTokenizer::from_sentence_piece(&golden_path("sentence_piece_bytes.model")).unwrap().text_tokens("a red fox").unwrap()
            );
        }
    }
    for place in (0..whole.len()).step_by(37) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0xa5;
        if let Ok(tokenizer) = read(&damaged) {
            tokenizer.encode("a red fox \u{1f98a} </s> <0x41>", 20).unwrap();
        }
    }
    let message = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    assert!(message(b"").contains("expected pieces, found none"));
    assert!(message(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f").contains("more bytes"));
    assert!(message(&[0x0a; 3]).contains("more bytes"));
    assert!(message(&[0xff; 12]).contains("longer one"));
    let piece = |kind: u8, text: &[u8]| [&[0x0a, text.len() as u8 + 4, 0x0a, text.len() as u8], text, &[0x18, kind]].concat();
    let ends = [0x12, 0, 0x1a, 0]; // empty trainer and normalizer specs
    let model = |pieces: &[Vec<u8>], ends: &[u8]| [pieces.concat().as_slice(), ends].concat();
    let least = [piece(2, b"<unk>"), piece(3, b"</s>"), piece(1, b"a")];
    assert!(read(&model(&least, &ends)).is_ok());
    assert!(message(&model(&least, &ends[..2])).contains("cut short"));
    assert!(message(&model(&least[1..], &ends)).contains("exactly one piece"));
    assert!(message(&model(&[least[0].clone(), least[2].clone()], &ends)).contains("end of a text"));
    assert!(message(&model(&[least.concat(), least[2].clone()], &ends)).contains("`a` again"));
    assert!(message(&model(&[least.concat(), piece(4, b"b")], &ends)).contains("user-defined"));
    assert!(message(&model(&[least.concat(), piece(6, b"<0x00>")], &ends)).contains("byte pieces"));
    assert!(message(&model(&[least.concat(), piece(1, b"\xff")], &ends)).contains("UTF-8"));
    assert!(message(&model(&least, &[0x12, 2, 0x18, 2, 0x1a, 0])).contains("expected unigram, found BPE"));
    // A character map whose trie claims more than there is, and one that leads out of itself.
    assert!(message(&model(&least, &[0x12, 0, 0x1a, 6, 0x12, 4, 0xff, 0, 0, 0])).contains("character map"));
    assert!(message(&model(&least, &[0x12, 0, 0x1a, 10, 0x12, 8, 4, 0, 0, 0, 0, 0xff, 0xff, 0])).contains("out of the trie"));
}

#[test]
fn damaged_character_maps_are_refused_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spiece.model");
    let whole = std::fs::read(golden_path("sentence_piece.model")).unwrap();
    let (mut refused, mut read) = (0, 0);
    for place in (3000..whole.len()).step_by(7919) {
        for change in [0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[place] ^= change;
            std::fs::write(&path, &damaged).unwrap();
            match TextTokenizer::from_sentence_piece(&path) {
                Err(_) => refused += 1,
                Ok(tokenizer) => {
                    read += 1;
                    tokenizer.encode("ＡＢＣ ½ ﬁ ™ e\u{301} かﾞ 日本の旗 \u{1f98a} a red fox\tnoto", 40).unwrap();
                }
            }
        }
    }
    assert!(refused > 0 && read > 0, "{refused} refused, {read} read");
}

#[test]
fn damaged_word_pieces_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocab.txt");
    let whole = std::fs::read_to_string(golden_path("word_pieces.txt")).unwrap();
    for (text, expected) in [
        (String::new(), "`[PAD]`"),
        (whole.replace("[SEP]\n", ""), "`[SEP]`"),
        (format!("{whole}\n"), "empty line"),
        (format!("{whole}[CLS]\n"), "`[CLS]` again"),
    ] {
        std::fs::write(&path, text).unwrap();
        let message = TextTokenizer::from_word_pieces(&path, LetterCase::Lower).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("vocab.txt"), "{message}");
    }
}
