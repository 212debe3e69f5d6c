//! OpenAI CLIP's byte pair encoding (Radford et al. 2021, `simple_tokenizer.py`) from its merges file.
//!
//! Vocabulary in the order CLIP numbers it: 256 bytes, the same with `</w>`, one entry for each merge, `<|startoftext|>`,
//! `<|endoftext|>`. Differs from the original in that broken UTF-8 is not repaired (`ftfy`) and HTML entities are not decoded: captions
//! are cleaned where they are made, not where they are read.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::MultiGzDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PaddingDirection, PaddingParams, PaddingStrategy, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

const END_OF_WORD: &str = "</w>";
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// CLIP's words: English contractions, runs of letters, single digits, runs of anything else but space.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// The published file is 3 MB unpacked.
const MERGES_LIMIT: u64 = 1 << 26;

pub(super) fn from_merges(bytes: &[u8], vocabulary_size: usize) -> Result<Tokenizer, String> {
    let text = unpacked(bytes)?;
    let characters = byte_characters();
    // 512 byte entries and 2 special tokens are not merges.
    let merge_limit = vocabulary_size.checked_sub(2 * characters.len() + 2).ok_or_else(|| {
        format!("`vocabulary_size`: expected at least {} (bytes, bytes that end a word, start and end), found {vocabulary_size}", 2 * characters.len() + 2)
    })?;
    let merges = merges(&text, merge_limit)?;

    let singles = characters.iter().map(char::to_string);
    let ending = characters.iter().map(|character| format!("{character}{END_OF_WORD}"));
    let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let entries: Vec<String> = singles.chain(ending).chain(merged).chain([START.to_owned(), END.to_owned()]).collect();
    // A merge may spell an entry that exists; the later number counts, as in the original's dictionary.
    from_entries(entries.into_iter().zip(0u32..).collect(), merges)
}

/// The pair of files of `transformers`: `vocab.json`, an object of entries and their numbers, and `merges.txt`.
pub(super) fn from_vocabulary(vocabulary: &[u8], merges_file: &[u8]) -> Result<Tokenizer, String> {
    let entries: BTreeMap<String, u32> =
        serde_json::from_slice(vocabulary).map_err(|error| format!("expected an object of entries and their numbers: {error}"))?;
    for special in [START, END] {
        if !entries.contains_key(special) {
            return Err(format!("expected an entry {special}, found none among {}", entries.len()));
        }
    }
    from_entries(entries.into_iter().collect(), merges(&unpacked(merges_file)?, usize::MAX)?)
}

fn from_entries(vocabulary: Vocab, merges: Vec<(String, String)>) -> Result<Tokenizer, String> {
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .end_of_word_suffix(END_OF_WORD.to_owned())
        .unk_token(END.to_owned())
        .build()
        .map_err(|error| format!("expected merges of known entries: {error}"))?;
    assemble(model).map_err(|error| error.to_string())
}

fn assemble(model: BPE) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(model);
    let spaces = Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()), " ")?;
    tokenizer.with_normalizer(Some(Normalizers::new(vec![
        NormalizerWrapper::NFC(NFC),
        NormalizerWrapper::Replace(spaces),
        NormalizerWrapper::Lowercase(Lowercase),
    ])))?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)?;
    tokenizer
        .with_pre_tokenizer(Some(Sequence::new(vec![PreTokenizerWrapper::Split(words), PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false))])));
    tokenizer.with_decoder(Some(tokenizers::decoders::bpe::BPEDecoder::new(END_OF_WORD.to_owned())));
    tokenizer.add_special_tokens([START, END].map(|content| AddedToken::from(content, true)))?;
    // CLIP pads with 0, which is also the entry "!"; only the mask tells them apart.
    tokenizer.with_padding(Some(PaddingParams {
        strategy: PaddingStrategy::BatchLongest,
        direction: PaddingDirection::Right,
        pad_to_multiple_of: None,
        pad_id: 0,
        pad_type_id: 0,
        pad_token: "!".into(),
    }));
    Ok(tokenizer)
}

fn unpacked(bytes: &[u8]) -> Result<String, String> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return String::from_utf8(bytes.to_vec()).map_err(|error| format!("expected UTF-8 text, found {error}"));
    }
    let mut text = String::new();
    let count = MultiGzDecoder::new(bytes).take(MERGES_LIMIT).read_to_string(&mut text).map_err(|error| format!("expected gzip text: {error}"))?;
    if count as u64 >= MERGES_LIMIT {
        return Err(format!("expected less than {MERGES_LIMIT} bytes unpacked"));
    }
    Ok(text)
}

/// Pairs in order of priority. The first line is a header (`"bpe_simple_vocab_16e6.txt#version: 0.2"`), never a merge.
fn merges(text: &str, limit: usize) -> Result<Vec<(String, String)>, String> {
    let mut merges = Vec::new();
    for (number, line) in text.lines().enumerate().skip(1).take(limit) {
        match *line.split_whitespace().collect::<Vec<_>>() {
            [left, right] => merges.push((left.to_owned(), right.to_owned())),
            [] => break,
            ref other => return Err(format!("line {}: expected two entries to merge, found {}", number + 1, other.len())),
        }
    }
    if merges.is_empty() {
        return Err("expected a header line and merges, found none".into());
    }
    Ok(merges)
}

/// The characters that stand for bytes, in CLIP's order: the printable ones first, as themselves; the rest from U+0100 on.
fn byte_characters() -> Vec<char> {
    let printable = ('!'..='~').chain('\u{a1}'..='\u{ac}').chain('\u{ae}'..='\u{ff}');
    let standing_in = (0..256 - printable.clone().count() as u32).filter_map(|place| char::from_u32(256 + place));
    printable.chain(standing_in).collect()
}
