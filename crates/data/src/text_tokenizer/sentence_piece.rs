//! SentencePiece unigram models (Kudo 2018, 1804.10959; Kudo and Richardson 2018, 1808.06226) from their own file, `spiece.model`: T5's text tokenizer.
//!
//! The file is one protocol-buffer message: pieces with scores and types, what the trainer was told, how text is normalised. It becomes the same
//! `tokenizers` pipeline that transformers converts it to: character map, trimmed and single spaces, `▁` for each space and before the text, unigram.
//! What that pipeline cannot say (BPE models, user-defined or unused pieces, spaces after words) is refused, not approximated.

use super::character_map;
use super::protobuf::{Fields, Value};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Precompiled, Replace, Sequence};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer};

/// Stands for a space in pieces.
const SPACE: char = '▁';
/// Far above every published model (mT5: 250,112).
const PIECE_LIMIT: usize = 1 << 21;

pub(super) fn from_model(bytes: &[u8]) -> Result<Tokenizer, String> {
    let Model { pieces, trainer, normalizer } = Model::read(bytes)?;
    trainer.check()?;
    let unknown = only_unknown(&pieces)?;
    let has_bytes = pieces.iter().any(|piece| piece.kind == Kind::Byte);
    if has_bytes != trainer.byte_fallback {
        return Err("expected byte pieces exactly where the model falls back to bytes".into());
    }
    let special: Vec<AddedToken> =
        pieces.iter().filter(|piece| matches!(piece.kind, Kind::Control | Kind::Unknown)).map(|piece| AddedToken::from(piece.text.clone(), true)).collect();
    let vocabulary = pieces.into_iter().map(|piece| (piece.text, f64::from(piece.score))).collect();
    let model = Unigram::from(vocabulary, Some(unknown), trainer.byte_fallback).map_err(|error| error.to_string())?;
    assemble(model, &normalizer, &special).map_err(|error| error.to_string())
}

fn assemble(model: Unigram, normalizer: &Normalizer, special: &[AddedToken]) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = Tokenizer::new(model);
    let mut steps = Vec::new();
    if !normalizer.character_map.is_empty() {
        character_map::check(&normalizer.character_map)?;
        let map = Precompiled::from(&normalizer.character_map).map_err(|error| error.to_string())?;
        steps.push(NormalizerWrapper::Precompiled(map));
    }
    if normalizer.remove_extra_spaces {
        // Spaces only: other white space that the map leaves is text.
        for (spaces, instead) in [("^ +| +$", ""), (" {2,}", " ")] {
            steps.push(NormalizerWrapper::Replace(Replace::new(ReplacePattern::Regex(spaces.into()), instead)?));
        }
    }
    tokenizer.with_normalizer((!steps.is_empty()).then(|| Sequence::new(steps)))?;
    let scheme = if normalizer.space_before_text { PrependScheme::Always } else { PrependScheme::Never };
    tokenizer.with_pre_tokenizer(Some(Metaspace::new(SPACE, scheme, true)));
    tokenizer.with_decoder(Some(Metaspace::new(SPACE, scheme, true)));
    tokenizer.add_special_tokens(special.to_vec())?;
    Ok(tokenizer)
}

fn only_unknown(pieces: &[Piece]) -> Result<usize, String> {
    let mut unknown = pieces.iter().enumerate().filter(|(_, piece)| piece.kind == Kind::Unknown).map(|(id, _)| id);
    match (unknown.next(), unknown.next()) {
        (Some(id), None) => Ok(id),
        _ => Err("expected exactly one piece for unknown characters".into()),
    }
}

/// `ModelProto` of sentencepiece_model.proto.
struct Model {
    pieces: Vec<Piece>,
    trainer: Trainer,
    normalizer: Normalizer,
}

impl Model {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let (mut pieces, mut trainer, mut normalizer) = (Vec::new(), None, None);
        let mut names = std::collections::HashSet::new();
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => {
                    let piece = Piece::read(value.bytes("piece")?).map_err(|reason| format!("piece {}: {reason}", pieces.len()))?;
                    if !names.insert(piece.text.clone()) {
                        return Err(format!("piece {}: expected different pieces, found `{}` again", pieces.len(), piece.text));
                    }
                    pieces.push(piece);
                    if pieces.len() > PIECE_LIMIT {
                        return Err(format!("expected at most {PIECE_LIMIT} pieces, found more"));
                    }
                }
                2 => trainer = Some(Trainer::read(value.bytes("trainer_spec")?).map_err(|reason| format!("trainer_spec: {reason}"))?),
                3 => normalizer = Some(Normalizer::read(value.bytes("normalizer_spec")?).map_err(|reason| format!("normalizer_spec: {reason}"))?),
                _ => {}
            }
        }
        // A file cut short between two fields is a message too: what stands last in it must be there.
        match (pieces.is_empty(), trainer, normalizer) {
            (false, Some(trainer), Some(normalizer)) => Ok(Self { pieces, trainer, normalizer }),
            (true, ..) => Err("expected pieces, found none".into()),
            (_, None, _) => Err("expected a trainer_spec after the pieces, found none; is the file cut short?".into()),
            (_, _, None) => Err("expected a normalizer_spec after the pieces, found none; is the file cut short?".into()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    Byte,
}

/// `SentencePiece`.
struct Piece {
    text: String,
    /// Natural logarithm of its probability.
    score: f32,
    kind: Kind,
}

impl Piece {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let (mut text, mut score, mut kind) = (String::new(), 0.0f32, Kind::Normal);
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => text = value.text("text")?,
                2 => score = value.float("score")?,
                3 => {
                    kind = match value.number("type")? {
                        1 => Kind::Normal,
                        2 => Kind::Unknown,
                        3 => Kind::Control,
                        6 => Kind::Byte,
                        4 => return Err("user-defined pieces are not supported".into()),
                        5 => return Err("unused pieces are not supported".into()),
                        other => return Err(format!("type: expected 1 to 6, found {other}")),
                    }
                }
                _ => {}
            }
        }
        if text.is_empty() {
            return Err("expected a text, found none".into());
        }
        if !score.is_finite() {
            return Err(format!("score of `{text}`: expected a number, found {score}"));
        }
        Ok(Self { text, score, kind })
    }
}

/// Of `TrainerSpec`, what decides about the meaning of pieces; with its defaults.
struct Trainer {
    model_type: u64,
    byte_fallback: bool,
    spaces_after_words: bool,
}

impl Trainer {
    const UNIGRAM: u64 = 1;

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut trainer = Self { model_type: Self::UNIGRAM, byte_fallback: false, spaces_after_words: false };
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                3 => trainer.model_type = value.number("model_type")?,
                24 => trainer.spaces_after_words = value.number("treat_whitespace_as_suffix")? != 0,
                35 => trainer.byte_fallback = value.number("byte_fallback")? != 0,
                _ => {}
            }
        }
        Ok(trainer)
    }

    fn check(&self) -> Result<(), String> {
        if self.model_type != Self::UNIGRAM {
            let found = ["unigram", "BPE", "words", "characters"].get((self.model_type as usize).wrapping_sub(1)).copied().unwrap_or("something else");
            return Err(format!("model_type: expected unigram, found {found}; hint: the `tokenizer.json` beside it may be readable"));
        }
        if self.spaces_after_words {
            return Err("treat_whitespace_as_suffix: expected spaces before words".into());
        }
        Ok(())
    }
}

/// `NormalizerSpec`, with its defaults.
struct Normalizer {
    character_map: Vec<u8>,
    space_before_text: bool,
    remove_extra_spaces: bool,
}

impl Normalizer {
    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut normalizer = Self { character_map: Vec::new(), space_before_text: true, remove_extra_spaces: true };
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                2 => normalizer.character_map = value.bytes("precompiled_charsmap")?.to_vec(),
                3 => normalizer.space_before_text = value.number("add_dummy_prefix")? != 0,
                4 => normalizer.remove_extra_spaces = value.number("remove_extra_whitespaces")? != 0,
                5 if value.number("escape_whitespaces")? == 0 => return Err("escape_whitespaces: expected spaces written as `▁`".into()),
                _ => {}
            }
        }
        Ok(normalizer)
    }
}

impl Value<'_> {
    fn text(&self, key: &str) -> Result<String, String> {
        let bytes = self.bytes(key)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|error| format!("{key}: expected UTF-8 text, found {error}"))
    }
}
