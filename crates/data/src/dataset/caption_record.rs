//! Captions and fields of one picture, from a text file, a JSON object or a row of a table.

use std::collections::BTreeMap;

use serde_json::Value;

/// What is known about a picture besides the picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Description {
    /// Trimmed, none empty.
    pub captions: Vec<String>,
    /// Everything else that is text, a number or a truth value.
    pub fields: BTreeMap<String, String>,
}

/// Keys under which captions are looked for, in this order; the first present one counts.
const CAPTION_KEYS: [&str; 3] = ["captions", "text", "caption"];

impl Description {
    /// Each line that is not blank is a caption. An error unless it is UTF-8.
    pub fn from_text(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| format!("expected UTF-8 text, found {error}"))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let captions = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        Ok(Self { captions, fields: BTreeMap::new() })
    }

    /// From the bytes of a JSON object.
    pub fn from_json_bytes(bytes: &[u8]) -> Result<Self, String> {
        Self::from_json(&serde_json::from_slice(bytes).map_err(|error| format!("expected a JSON object: {error}"))?)
    }

    /// `captions`, `text` or `caption` (a string or a list of strings) become captions; other plain values become fields; null and nested
    /// values are ignored.
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let Value::Object(object) = value else { return Err(format!("expected a JSON object, found {}", describe(value))) };
        let caption_key = CAPTION_KEYS.into_iter().find(|&key| object.get(key).is_some_and(|value| !value.is_null()));
        let mut description = Self::default();
        for (key, value) in object {
            if Some(key.as_str()) == caption_key {
                description.captions = captions_of(key, value)?;
            } else if let Some(text) = plain_text(value) {
                description.fields.insert(key.clone(), text);
            }
        }
        Ok(description)
    }

    /// From the columns of one table row.
    pub fn from_columns<'a>(columns: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Self {
        let caption_key = CAPTION_KEYS.into_iter().find(|&wanted| columns.clone().any(|(name, _)| name == wanted));
        let mut description = Self::default();
        for (name, value) in columns {
            if Some(name) == caption_key {
                description.captions.extend(Some(value.trim()).filter(|caption| !caption.is_empty()).map(str::to_owned));
            } else {
                description.fields.insert(name.to_owned(), value.to_owned());
            }
        }
        description
    }
}

fn captions_of(key: &str, value: &Value) -> Result<Vec<String>, String> {
    let list = match value {
        Value::Array(list) => list.as_slice(),
        single => std::slice::from_ref(single),
    };
    let mut captions = Vec::new();
    for item in list {
        let Value::String(caption) = item else {
            return Err(format!("`{key}`: expected a string or a list of strings, found {}", describe(item)));
        };
        captions.extend(Some(caption.trim()).filter(|caption| !caption.is_empty()).map(str::to_owned));
    }
    Ok(captions)
}

fn plain_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

pub(super) fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
