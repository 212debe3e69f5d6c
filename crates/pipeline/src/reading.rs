//! Texts as the tokens that a network reads, and what did not fit.

use crate::{Part, PipelineError};
use serde::{Serialize, Serializer};
use smalti_data::text_tokenizer::{Encoded, TextTokenizer};
use std::fmt;

/// A text was longer than its reader takes: only the start counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Truncation {
    pub text: Text,
    #[serde(serialize_with = "key")]
    pub reader: Part,
    /// Text tokens of the whole.
    pub token_count: usize,
    /// Text tokens that were read, from the start.
    pub kept_count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Text {
    Prompt,
    /// What guidance leads away from.
    Negative,
}

impl fmt::Display for Truncation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { text, reader, token_count, kept_count } = self;
        let text = match text {
            Text::Prompt => "prompt",
            Text::Negative => "negative prompt",
        };
        write!(f, "{text}: expected at most {kept_count} text tokens (`{}`), found {token_count}; only the start was read", reader.key())
    }
}

fn key<S: Serializer>(part: &Part, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(part.key())
}

/// A text as `length` text tokens.
pub(crate) fn read(tokenizer: &TextTokenizer, reader: Part, text: Text, words: &str, length: usize) -> Result<(Encoded, Option<Truncation>), PipelineError> {
    let wrong = |source| PipelineError::TextTokenizer { part: reader, source };
    let encoded = tokenizer.encode(words, length).map_err(wrong)?;
    let token_count = tokenizer.text_tokens(words).map_err(wrong)?.len();
    let kept_count = encoded.end - usize::from(tokenizer.special_tokens().start.is_some());
    Ok((encoded, (kept_count < token_count).then_some(Truncation { text, reader, token_count, kept_count })))
}
