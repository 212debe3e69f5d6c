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
fn special_tokens_can_be_named() {
    let tokenizer = TextTokenizer::train(&captions(), 300).unwrap();
    let swapped = SpecialTokens { pad: 2, start: None, end: 1 };
    assert_eq!(tokenizer.clone().with_special_tokens(swapped).unwrap().encode("", 3).unwrap().tokens, [1, 2, 2]);
    assert!(tokenizer.with_special_tokens(SpecialTokens { pad: 9999, ..swapped }).is_err());
}
