//! BERT's WordPiece (Wu et al. 2016, 1609.08144; Devlin et al. 2018, 1810.04805) from its list of pieces, `vocab.txt`.
//!
//! Text is cleaned of control characters, lower-cased and stripped of accents where the model was, split at spaces and punctuation; each word is then cut
//! greedily into the longest pieces, those within a word marked `##`.

use std::collections::HashSet;
use tokenizers::decoders::wordpiece::WordPiece as Decoder;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer};

/// BERT's own.
const SPECIAL_TOKENS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const WITHIN_A_WORD: &str = "##";

/// What a model was trained with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterCase {
    /// Lower case without accents ("uncased": MiniLM).
    Lower,
    /// As written ("cased").
    Kept,
}

pub(super) fn from_vocabulary(text: &str, letter_case: LetterCase) -> Result<Tokenizer, String> {
    let mut pieces = HashSet::new();
    for (index, piece) in text.lines().enumerate() {
        if piece.trim().is_empty() {
            return Err(format!("line {}: expected a piece, found an empty line", index + 1));
        }
        if !pieces.insert(piece.trim()) {
            return Err(format!("line {}: expected different pieces, found `{piece}` again", index + 1));
        }
    }
    if let Some(missing) = SPECIAL_TOKENS.iter().take(4).find(|token| !pieces.contains(**token)) {
        return Err(format!("expected a line `{missing}`, found none"));
    }
    let special: Vec<AddedToken> = SPECIAL_TOKENS.iter().filter(|token| pieces.contains(**token)).map(|token| AddedToken::from(*token, true)).collect();
    let build = || -> tokenizers::Result<Tokenizer> {
        let vocabulary = WordPiece::read_bytes(text.as_bytes())?;
        let model =
            WordPiece::builder().vocab(vocabulary).unk_token(SPECIAL_TOKENS[1].to_owned()).continuing_subword_prefix(WITHIN_A_WORD.to_owned()).build()?;
        let mut tokenizer = Tokenizer::new(model);
        // Accents go with the case, which is what nothing here means.
        tokenizer.with_normalizer(Some(BertNormalizer::new(true, true, None, letter_case == LetterCase::Lower)))?;
        tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
        tokenizer.with_decoder(Some(Decoder::new(WITHIN_A_WORD.to_owned(), true)));
        tokenizer.add_special_tokens(special)?;
        Ok(tokenizer)
    };
    build().map_err(|error| error.to_string())
}
