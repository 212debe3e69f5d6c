//! Captions to text tokens: byte-level BPE trained here, any published `tokenizer.json`, or the original files of CLIP, T5 and BERT.
//!
//! Text tokenizer = Sennrich, Haddow and Birch 2016 (arXiv:1508.07909) over bytes (Radford et al. 2019). Data flow:
//! text -> normalised (NFC, lower case) -> words -> byte pairs merged -> `[start] tokens [end] [pad]*` of a fixed length.
//! Every kind is held and saved as a Hugging Face `tokenizers` JSON, so a bundle needs only that one file. Verified against the
//! `tokenizers` and `sentencepiece` Python packages, transformers' BERT tokenizer and open_clip's `SimpleTokenizer` (`goldens/`).

mod character_map;
mod clip_bpe;
mod protobuf;
mod sentence_piece;
mod spelled_specials;
mod train;
mod word_piece;

pub use word_piece::LetterCase;

use std::path::Path;

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use crate::{DataError, atomic_write};

/// A text tokenizer with its special tokens. Encoding is `&self` and may happen on many threads.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    /// The file, byte for byte.
    json: String,
    specials: SpecialTokens,
    /// Of unigram models: several in a row are one.
    fused_unknown: Option<u32>,
}

/// Ids of the tokens around a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    pub pad: u32,
    /// Absent in families that mark only the end (T5).
    pub start: Option<u32>,
    pub end: u32,
}

/// A text of fixed length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// `[start] text [end] [pad]*`, of the length asked for.
    pub tokens: Vec<u32>,
    /// True up to and with the end token, false on padding.
    pub visible: Vec<bool>,
    /// Position of the end token.
    pub end: usize,
}

/// Names under which published tokenizers keep their special tokens, tried in this order. `<pad>`, `<start>`, `<end>` are ours.
const PAD_NAMES: [&str; 5] = ["<pad>", "[PAD]", "<|pad|>", "<|endoftext|>", "</s>"];
const START_NAMES: [&str; 7] = ["<start>", "<|startoftext|>", "<|start_of_text|>", "<s>", "<bos>", "[CLS]", "<|bos|>"];
const END_NAMES: [&str; 7] = ["<end>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]", "<|eos|>"];

impl TextTokenizer {
    /// Byte-level BPE with at most `vocabulary_size` entries (259 = 3 special tokens and 256 bytes, is the least). Lower-cases. The same
    /// captions give the same file, in any order of equal counts.
    pub fn train<S: AsRef<str> + Sync>(captions: &[S], vocabulary_size: usize) -> Result<Self, DataError> {
        Self::from_tokenizer(train::byte_level_bpe(captions, vocabulary_size).map_err(nameless)?).map_err(nameless)
    }

    /// Any `tokenizer.json` of the `tokenizers` format. Special tokens are found by their usual names; padding stated in the file counts
    /// before that.
    pub fn from_file(path: &Path) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(|error| DataError::io(path, error))?;
        Self::from_json_bytes(&bytes).map_err(|reason| DataError::TextTokenizer { path: Some(path.to_path_buf()), reason })
    }

    /// OpenAI CLIP's BPE from its merges file (`bpe_simple_vocab_16e6.txt`, plain or `.gz`): lower-cased, `</w>` ends a word,
    /// `<|startoftext|>` and `<|endoftext|>` around, padded with 0 as CLIP does. At most `vocabulary_size` entries (49408 in CLIP).
    pub fn from_clip_merges(path: &Path, vocabulary_size: usize) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(|error| DataError::io(path, error))?;
        let named = |reason: String| DataError::TextTokenizer { path: Some(path.to_path_buf()), reason };
        Self::from_tokenizer(clip_bpe::from_merges(&bytes, vocabulary_size).map_err(named)?).map_err(named)
    }

    /// A SentencePiece unigram model (`spiece.model`, T5's and its kin): only an end token `</s>`, padded with `<pad>`. Models of other kinds (BPE), or with
    /// pieces that no text can spell out exactly as SentencePiece would, are errors.
    pub fn from_sentence_piece(path: &Path) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(|error| DataError::io(path, error))?;
        let named = |reason: String| DataError::TextTokenizer { path: Some(path.to_path_buf()), reason };
        Self::from_tokenizer(sentence_piece::from_model(&bytes).map_err(named)?).map_err(named)
    }

    /// BERT's WordPiece from its list of pieces (`vocab.txt`, one a line): `[CLS]` before, `[SEP]` after, padded with `[PAD]`.
    pub fn from_word_pieces(path: &Path, letter_case: LetterCase) -> Result<Self, DataError> {
        let text = std::fs::read_to_string(path).map_err(|error| DataError::io(path, error))?;
        let named = |reason: String| DataError::TextTokenizer { path: Some(path.to_path_buf()), reason };
        Self::from_tokenizer(word_piece::from_vocabulary(&text, letter_case).map_err(named)?).map_err(named)
    }

    /// CLIP's BPE as `transformers` publishes it, beside Stable Diffusion for one: `vocab.json` and `merges.txt`. Padded with 0 unless told otherwise, which the
    /// files beside these two do.
    pub fn from_clip_vocabulary(vocabulary: &Path, merges: &Path) -> Result<Self, DataError> {
        let [entries, pairs] = [vocabulary, merges].map(|path| std::fs::read(path).map_err(|error| DataError::io(path, error)));
        let named = |reason: String| DataError::TextTokenizer { path: Some(vocabulary.to_path_buf()), reason };
        Self::from_tokenizer(clip_bpe::from_vocabulary(&entries?, &pairs?).map_err(named)?).map_err(named)
    }

    /// With special tokens named by whoever knows them better than the usual names.
    pub fn with_special_tokens(mut self, specials: SpecialTokens) -> Result<Self, DataError> {
        for id in [Some(specials.pad), specials.start, Some(specials.end)].into_iter().flatten() {
            if self.tokenizer.id_to_token(id).is_none() {
                return Err(nameless(format!("expected a special token in the vocabulary, found id {id} of {}", self.vocabulary_size())));
            }
        }
        self.specials = specials;
        Ok(self)
    }

    fn from_tokenizer(tokenizer: Tokenizer) -> Result<Self, String> {
        let json = tokenizer.to_string(true).map_err(|error| error.to_string())?;
        Self::from_json_bytes(json.as_bytes())
    }

    fn from_json_bytes(bytes: &[u8]) -> Result<Self, String> {
        let json = std::str::from_utf8(bytes).map_err(|error| format!("expected UTF-8 text, found {error}"))?.to_owned();
        if let Ok(value) = serde_json::from_str(&json) {
            refuse_empty_patterns(&value)?;
        }
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| format!("expected a `tokenizers` JSON file: {error}"))?;
        let stated_pad = tokenizer.get_padding().map(|padding| padding.pad_id);
        let find = |names: &[&str]| names.iter().find_map(|name| tokenizer.token_to_id(name));
        let expected_one_of = |what: &str, names: &[&str]| format!("expected a token for the {what} of a text, one of {}", names.join(" "));
        let end = find(&END_NAMES).ok_or_else(|| expected_one_of("end", &END_NAMES))?;
        let pad = stated_pad.or_else(|| find(&PAD_NAMES)).unwrap_or(end);
        let specials = SpecialTokens { pad, start: find(&START_NAMES), end };
        // Length is decided by `encode`; a prompt that spells a special token means its letters.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
        tokenizer.set_encode_special_tokens(true);
        spelled_specials::cut(&mut tokenizer).map_err(|error| error.to_string())?;
        let fused_unknown = spelled_specials::fused_unknown(&tokenizer, &json)?;
        Ok(Self { tokenizer, json, specials, fused_unknown })
    }

    /// `length` tokens: start, text, end, padding. A text that is too long loses its last tokens and keeps the end token.
    ///
    /// Errors: `length` too short for start and end.
    pub fn encode(&self, text: &str, length: usize) -> Result<Encoded, DataError> {
        let SpecialTokens { pad, start, end } = self.specials;
        let around = 1 + usize::from(start.is_some());
        if length < around {
            return Err(DataError::Config { key: "text length", expected: format!("at least {around} tokens"), found: length.to_string() });
        }
        let mut tokens = Vec::with_capacity(length);
        tokens.extend(start);
        tokens.extend(self.text_tokens(text)?.into_iter().take(length - around));
        let end_position = tokens.len();
        tokens.push(end);
        tokens.resize(length, pad);
        let visible = (0..length).map(|position| position <= end_position).collect();
        Ok(Encoded { tokens, visible, end: end_position })
    }

    /// The bare tokens of a text, without start, end or padding.
    pub fn text_tokens(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.tokenizer.encode(text, false).map_err(|error| nameless(error.to_string()))?;
        let mut tokens = encoding.get_ids().to_vec();
        tokens.dedup_by(|token, before| token == before && Some(*token) == self.fused_unknown);
        Ok(tokens)
    }

    /// The text of tokens, special tokens left out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, DataError> {
        self.tokenizer.decode(tokens, true).map_err(|error| nameless(error.to_string()))
    }

    /// The number of an entry, special tokens included.
    pub fn token_id(&self, entry: &str) -> Option<u32> {
        self.tokenizer.token_to_id(entry)
    }

    /// How many entries an embedding table needs: one more than the largest id.
    pub fn vocabulary_size(&self) -> usize {
        self.tokenizer.get_vocab(true).values().max().map_or(0, |&largest| largest as usize + 1)
    }

    pub fn special_tokens(&self) -> SpecialTokens {
        self.specials
    }

    /// Writes the JSON file; it appears whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        atomic_write::write(path, self.json.as_bytes())
    }

    /// The JSON as it is saved.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// SHA-256 of the saved file, in hexadecimal.
    pub fn sha256(&self) -> String {
        Sha256::digest(self.json.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The library panics over them when it reads a text.
fn refuse_empty_patterns(value: &serde_json::Value) -> Result<(), String> {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let is_empty = |pattern: &Value| ["String", "Regex"].iter().any(|kind| pattern.get(kind).and_then(Value::as_str) == Some(""));
            match (fields.get("type").and_then(Value::as_str), fields.get("pattern")) {
                (Some(kind @ ("Replace" | "Split")), Some(pattern)) if is_empty(pattern) => {
                    Err(format!("{kind}: expected a pattern to search for, found an empty one"))
                }
                _ => fields.values().try_for_each(refuse_empty_patterns),
            }
        }
        Value::Array(values) => values.iter().try_for_each(refuse_empty_patterns),
        _ => Ok(()),
    }
}

fn nameless(reason: String) -> DataError {
    DataError::TextTokenizer { path: None, reason }
}

#[cfg(test)]
mod tests;
