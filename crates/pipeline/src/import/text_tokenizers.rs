//! The text tokenizer beside a checkpoint, and what marks the ends of a text.

use super::Source;
use super::files::{parse, read_text, wrong};
use crate::PipelineError;
use serde_json::{Map, Value};
use smalti_data::text_tokenizer::{LetterCase, SpecialTokens, TextTokenizer};
use std::path::{Path, PathBuf};

/// The named file, or `tokenizer.json` beside the weights.
pub(super) fn text_tokenizer(source: &Source, vocabulary_size: usize) -> Result<Option<TextTokenizer>, PipelineError> {
    let beside = source.folder().join("tokenizer.json");
    let path = match &source.text_tokenizer {
        Some(path) => path,
        None if beside.is_file() => &beside,
        None => return Ok(None),
    };
    from_file(path, vocabulary_size).map(Some)
}

/// T5's: the named file, or `tokenizer.json` or `spiece.model` beside the weights.
pub(super) fn t5_text_tokenizer(source: &Source, vocabulary_size: usize) -> Result<Option<TextTokenizer>, PipelineError> {
    original(source, "spiece.model", vocabulary_size, |path| Ok(TextTokenizer::from_sentence_piece(path)?))
}

/// BERT's: the named file, or `tokenizer.json` or `vocab.txt` beside the weights. Letters are lowered unless `tokenizer_config.json` says `do_lower_case: false`.
pub(super) fn bert_text_tokenizer(source: &Source, vocabulary_size: usize) -> Result<Option<TextTokenizer>, PipelineError> {
    original(source, "vocab.txt", vocabulary_size, |path| {
        let keys = settings(path.parent().unwrap_or(Path::new(".")))?;
        let kept = keys.get("do_lower_case") == Some(&Value::Bool(false));
        Ok(TextTokenizer::from_word_pieces(path, if kept { LetterCase::Kept } else { LetterCase::Lower })?)
    })
}

/// A text tokenizer that may lie there as its author's own file, of the kind of `name`, which `read` reads.
fn original(
    source: &Source,
    name: &str,
    vocabulary_size: usize,
    read: impl Fn(&Path) -> Result<TextTokenizer, PipelineError>,
) -> Result<Option<TextTokenizer>, PipelineError> {
    let beside = ["tokenizer.json", name].map(|name| source.folder().join(name)).into_iter().find(|path| path.is_file());
    let Some(path) = source.text_tokenizer.clone().or(beside) else { return Ok(None) };
    if path.extension() != Path::new(name).extension() {
        return from_file(&path, vocabulary_size).map(Some);
    }
    of_size(&path, read(&path)?, vocabulary_size).map(Some)
}

/// The named file, or what `transformers` writes for CLIP into the first of `folders` that has it: `tokenizer.json`, or `vocab.json` and `merges.txt`. What the
/// files beside it say of start, end and padding counts.
pub(super) fn clip_text_tokenizer(source: &Source, folders: &[PathBuf], vocabulary_size: usize) -> Result<Option<TextTokenizer>, PipelineError> {
    if let Some(path) = &source.text_tokenizer {
        let folder = path.parent().unwrap_or(Path::new("."));
        return with_special_tokens(folder, from_file(path, vocabulary_size)?).map(Some);
    }
    for folder in folders {
        let [whole, entries, merges] = ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| folder.join(name));
        let found = match (whole.is_file(), entries.is_file() && merges.is_file()) {
            (true, _) => TextTokenizer::from_file(&whole)?,
            (_, true) => TextTokenizer::from_clip_vocabulary(&entries, &merges)?,
            _ => continue,
        };
        return with_special_tokens(folder, of_size(folder, found, vocabulary_size)?).map(Some);
    }
    Ok(None)
}

fn from_file(path: &Path, vocabulary_size: usize) -> Result<TextTokenizer, PipelineError> {
    let text_tokenizer = match path.extension().and_then(|extension| extension.to_str()) {
        Some("txt" | "gz") => TextTokenizer::from_clip_merges(path, vocabulary_size)?,
        _ => TextTokenizer::from_file(path)?,
    };
    of_size(path, text_tokenizer, vocabulary_size)
}

fn of_size(path: &Path, text_tokenizer: TextTokenizer, vocabulary_size: usize) -> Result<TextTokenizer, PipelineError> {
    let found = text_tokenizer.vocabulary_size();
    if found > vocabulary_size {
        let reason = format!("expected a text tokenizer of at most {vocabulary_size} entries, as the network has, found {found}");
        return Err(wrong(path, reason));
    }
    Ok(text_tokenizer)
}

/// Special tokens as the files beside a text tokenizer name them. Where both files do, the older one counts, as in `transformers`: Stable Diffusion 2 says
/// `<|endoftext|>` in the one and pads with `!`, as the other says.
fn with_special_tokens(folder: &Path, text_tokenizer: TextTokenizer) -> Result<TextTokenizer, PipelineError> {
    let mut keys = settings(folder)?;
    if !keys.contains_key("added_tokens_decoder") {
        keys.extend(object(&folder.join("special_tokens_map.json"))?);
    }
    let named = |key: &str| {
        let value = keys.get(key)?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    };
    let number = |key: &str, usual: Option<u32>| match named(key) {
        None => Ok(usual),
        Some(entry) => {
            let missing = || wrong(folder, format!("{key}: expected an entry of the vocabulary, found `{entry}`"));
            text_tokenizer.token_id(entry).map(Some).ok_or_else(missing)
        }
    };
    let usual = text_tokenizer.special_tokens();
    let specials = SpecialTokens {
        pad: number("pad_token", Some(usual.pad))?.unwrap_or(usual.pad),
        start: number("bos_token", usual.start)?,
        end: number("eos_token", Some(usual.end))?.unwrap_or(usual.end),
    };
    Ok(text_tokenizer.with_special_tokens(specials)?)
}

/// How many text tokens a caption is padded to, where `tokenizer_config.json` says so.
pub(super) fn token_count(folder: &Path) -> Result<Option<usize>, PipelineError> {
    // Files without a limit hold 1e30.
    Ok(settings(folder)?.get("model_max_length").and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok()))
}

fn settings(folder: &Path) -> Result<Map<String, Value>, PipelineError> {
    object(&folder.join("tokenizer_config.json"))
}

/// Empty where there is no such file.
fn object(path: &Path) -> Result<Map<String, Value>, PipelineError> {
    if path.is_file() { parse(path, "a JSON object", &read_text(path)?) } else { Ok(Map::new()) }
}
