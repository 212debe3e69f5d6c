//! Keeps a text that spells `</s>` from meaning the end, in unigram models.
//!
//! A unigram model of the `tokenizers` crate finds every entry of its vocabulary in a text, special tokens and bytes among them; SentencePiece never finds
//! those. The text is therefore cut after the first character of each that it spells, so that the model sees none of them whole. A run of unknown characters
//! that such a cut divides is one unknown token again afterwards, as in SentencePiece.

use serde::Deserialize;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{ModelWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

/// Adds the cuts to what already splits the text; other models than unigram stay as they are. Not part of the saved file.
pub(super) fn cut(tokenizer: &mut Tokenizer) -> tokenizers::Result<()> {
    let ModelWrapper::Unigram(model) = tokenizer.get_model() else { return Ok(()) };
    let bytes = model.byte_fallback().then(|| "<(?=0x[0-9A-F]{2}>)".to_owned());
    let specials = tokenizer.get_added_tokens_decoder();
    let specials = specials.values().filter(|token| token.special).filter_map(|token| {
        let first = token.content.chars().next()?;
        let rest = &token.content[first.len_utf8()..];
        (!rest.is_empty()).then(|| format!("{}(?={})", escaped(&first.to_string()), escaped(rest)))
    });
    let mut alternatives: Vec<String> = specials.chain(bytes).collect();
    if alternatives.is_empty() {
        return Ok(());
    }
    alternatives.sort(); // their own order is that of a hash table
    let cuts = Split::new(SplitPattern::Regex(alternatives.join("|")), SplitDelimiterBehavior::MergedWithPrevious, false)?;
    let steps = tokenizer.get_pre_tokenizer().cloned().into_iter().chain([PreTokenizerWrapper::Split(cuts)]);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps.collect())));
    Ok(())
}

/// As a pattern that matches only itself. Other punctuation must stay bare: `\<` is the start of a word.
fn escaped(text: &str) -> String {
    text.chars().flat_map(|character| r"\.+*?()|[]{}^$".contains(character).then_some('\\').into_iter().chain([character])).collect()
}

/// The token for unknown characters of a unigram model, which never follows itself.
pub(super) fn fused_unknown(tokenizer: &Tokenizer, json: &str) -> Result<Option<u32>, String> {
    #[derive(Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        unk_id: Option<u32>,
    }
    if !matches!(tokenizer.get_model(), ModelWrapper::Unigram(_)) {
        return Ok(None);
    }
    serde_json::from_str::<File>(json).map(|file| file.model.unk_id).map_err(|error| error.to_string())
}
