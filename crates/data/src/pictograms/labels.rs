//! What each emoji shows, in English: labels and tags of `emojibase-data`, keywords of `emojilib`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::config::Config;
use super::package;
use crate::DataError;

/// The meaning of one drawing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    /// `waving hand: dark skin tone`.
    pub label: String,
    /// The label without skin tone: `waving hand`.
    pub concept: String,
    pub has_tone: bool,
    /// Further words for the concept, none of them the label.
    pub keywords: Vec<String>,
}

/// All known meanings.
pub(super) struct Labels {
    by_code_points: BTreeMap<String, Meaning>,
    /// Code points by label or Unicode name, letters and digits only.
    by_spelling: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Emoji {
    label: String,
    hexcode: String,
    emoji: String,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    skins: Vec<Skin>,
}

#[derive(Deserialize)]
struct Skin {
    label: String,
    hexcode: String,
}

/// Fitzpatrick modifiers and their names in labels and in file names.
const TONES: [(&str, &str); 5] = [
    ("1F3FB", "light skin tone"),
    ("1F3FC", "medium-light skin tone"),
    ("1F3FD", "medium skin tone"),
    ("1F3FE", "medium-dark skin tone"),
    ("1F3FF", "dark skin tone"),
];

/// Without variation selectors, upper case: one spelling for one emoji.
pub(super) fn normal_code_points(code_points: &str) -> String {
    code_points.to_uppercase().split('-').filter(|part| *part != "FE0F").collect::<Vec<_>>().join("-")
}

/// Whether a code point (hexadecimal) is in a private use area, or no code point at all.
pub(super) fn is_private(code_point: &str) -> bool {
    u32::from_str_radix(code_point, 16).map_or(true, |value| (0xE000..=0xF8FF).contains(&value) || value >= 0xF0000)
}

fn spelling(name: &str) -> String {
    name.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect()
}

impl Labels {
    pub fn read(config: &Config, source_folder: &Path) -> Result<Self, DataError> {
        let pinned = &config.labels;
        let (data, names) = ("en/data.json", "meta/unicode-names.json");
        let mut files = package::read_files(pinned, source_folder, |path| path == data || path == names)?;
        let mut take = |name: &str| {
            let missing =
                || DataError::Source { path: source_folder.to_path_buf(), reason: format!("{}: expected the file {name}, found none", pinned.package) };
            files.remove(name).ok_or_else(missing)
        };
        let emoji: Vec<Emoji> = package::parse(&take(data)?, pinned, data)?;
        let unicode_names: BTreeMap<String, String> = package::parse(&take(names)?, pinned, names)?;
        let keyword_file = "dist/emoji-en-US.json";
        let keywords: BTreeMap<String, Vec<String>> =
            package::parse(&package::read_file(&config.keywords, source_folder, keyword_file)?, &config.keywords, keyword_file)?;

        let mut labels = Self { by_code_points: BTreeMap::new(), by_spelling: BTreeMap::new() };
        for one in &emoji {
            labels.add(one, keywords.get(&one.emoji).map_or(&[], Vec::as_slice));
        }
        for (code_points, name) in unicode_names {
            let code_points = normal_code_points(&code_points);
            if labels.by_code_points.contains_key(&code_points) {
                labels.by_spelling.entry(spelling(&name)).or_insert(code_points);
            }
        }
        Ok(labels)
    }

    fn add(&mut self, emoji: &Emoji, more_keywords: &[String]) {
        let keywords = useful_keywords(&emoji.label, emoji.tags.iter().chain(more_keywords));
        let spellings = std::iter::once((&emoji.label, &emoji.hexcode)).chain(emoji.skins.iter().map(|skin| (&skin.label, &skin.hexcode)));
        for (place, (label, hexcode)) in spellings.enumerate() {
            let code_points = normal_code_points(hexcode);
            self.by_spelling.entry(spelling(label)).or_insert_with(|| code_points.clone());
            let meaning = Meaning { label: label.clone(), concept: emoji.label.clone(), has_tone: place > 0, keywords: keywords.clone() };
            self.by_code_points.insert(code_points, meaning);
        }
    }

    /// By code points; for an emoji newer than the label package, by what can be read off: its base without skin tones, else its name.
    pub fn of_code_points(&self, code_points: &str, name: &str) -> Meaning {
        if let Some(meaning) = self.by_code_points.get(code_points) {
            return meaning.clone();
        }
        let is_tone = |part: &&str| TONES.iter().any(|(tone, _)| tone == part);
        let tones: Vec<&str> = code_points.split('-').filter(is_tone).collect();
        let base = code_points.split('-').filter(|part| !is_tone(part)).collect::<Vec<_>>().join("-");
        let Meaning { concept, keywords, .. } = self.by_code_points.get(&base).cloned().unwrap_or_else(|| {
            let concept = base_name(name).replace('-', " ");
            Meaning { label: concept.clone(), concept, has_tone: false, keywords: Vec::new() }
        });
        let tone_names: Vec<&str> = tones.iter().filter_map(|tone| TONES.iter().find(|(known, _)| known == tone).map(|(_, name)| *name)).collect();
        let label = if tone_names.is_empty() { concept.clone() } else { format!("{concept}: {}", tone_names.join(", ")) };
        Meaning { label, concept, has_tone: !tones.is_empty(), keywords }
    }

    /// By a name that spells the label or the Unicode name, whatever its hyphens and capitals.
    pub fn of_spelling(&self, name: &str) -> Option<Meaning> {
        self.by_spelling.get(&spelling(name)).and_then(|code_points| self.by_code_points.get(code_points)).cloned()
    }
}

/// `leftwards-thumb-sign-medium-dark-skin-tone` -> `leftwards-thumb-sign`.
fn base_name(name: &str) -> &str {
    let endings = ["-medium-light-skin-tone", "-medium-dark-skin-tone", "-medium-skin-tone", "-light-skin-tone", "-dark-skin-tone"];
    endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

/// Lower-case words of letters; no smileys, no abbreviations of two letters, nothing that repeats the label.
fn useful_keywords<'a>(label: &str, words: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut useful: Vec<String> = Vec::new();
    for word in words {
        let word = word.replace('_', " ").trim().to_lowercase();
        let is_words = word.chars().all(|character| character.is_ascii_lowercase() || character == ' ' || character == '-');
        if is_words && word.len() >= 3 && word.len() <= 24 && word != label.to_lowercase() && !useful.contains(&word) {
            useful.push(word);
        }
    }
    useful
}
