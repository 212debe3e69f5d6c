//! Reading a recipe: TOML text, then `[smoke]` and `--set` laid over it, then typed tables.
//!
//! A wrong recipe is answered with the file, the line, the key, what was expected and, for an unknown key, the nearest known one. To name the right line
//! whatever the overrides were, the merged recipe is written out as text, read into types, and the key at which that failed is looked up again in the file.

use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A recipe that cannot be used. Every variant names where.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("recipe {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("recipe {place}: not valid TOML: {reason}")]
    Syntax { place: String, reason: String },
    #[error("recipe {place}: unknown key `{key}`, expected {expected}{hint}")]
    UnknownKey { place: String, key: String, expected: String, hint: String },
    #[error("recipe {place}: {reason}")]
    Value { place: String, reason: String },
    #[error("--set {argument}: expected KEY=VALUE with a key such as train.steps; hint: --set train.steps=1000")]
    Override { argument: String },
}

/// A recipe as text and tables: what the user wrote, with every override applied. [`RecipeFile::read`] makes one, [`RecipeFile::typed`] gives it types.
#[derive(Clone, Debug)]
pub struct RecipeFile {
    path: PathBuf,
    text: String,
    smoke: bool,
    overridden: Vec<String>,
    merged: Table,
}

impl RecipeFile {
    /// Reads `path`; `smoke` lays the recipe's `[smoke]` table over it, then each override `a.b=value` is applied in order.
    pub fn read(path: &Path, overrides: &[String], smoke: bool) -> Result<Self, RecipeError> {
        let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Io { path: path.to_path_buf(), source })?;
        Self::from_text(path, text, overrides, smoke)
    }

    /// The same from text already read; `path` only names it in messages.
    pub fn from_text(path: &Path, text: String, overrides: &[String], smoke: bool) -> Result<Self, RecipeError> {
        let mut merged: Table = toml::from_str(&text).map_err(|error| RecipeError::Syntax {
            place: place(path, error.span().map(|span| line_of(&text, span.start))),
            reason: error.message().to_string(),
        })?;
        let smoke_table = match merged.remove("smoke") {
            None => None,
            Some(Value::Table(table)) => Some(table),
            Some(_) => return Err(RecipeError::Value { place: path.display().to_string(), reason: "`smoke`: expected a table".to_string() }),
        };
        match (smoke, smoke_table) {
            (true, Some(table)) => lay_over(&mut merged, table),
            (true, None) => {
                return Err(RecipeError::Value { place: path.display().to_string(), reason: "--smoke: this recipe has no [smoke] table".to_string() });
            }
            (false, _) => {}
        }
        let mut overridden = Vec::new();
        for argument in overrides {
            overridden.push(apply_override(&mut merged, argument)?);
        }
        Ok(Self { path: path.to_path_buf(), text, smoke, overridden, merged })
    }

    /// The recipe with all overrides applied, as TOML: running this text again does the same.
    pub fn resolved(&self) -> String {
        toml::to_string(&self.merged).expect("a parsed table can be written")
    }

    /// The same with one key, such as `train.steps`, given a text.
    pub fn resolved_with(&self, key: &str, value: &str) -> String {
        let mut merged = self.merged.clone();
        apply_override(&mut merged, &format!("{key}={value}")).expect("the key's tables are tables, which typing has seen");
        toml::to_string(&merged).expect("a parsed table can be written")
    }

    /// The value of a top-level key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.merged.get(key)
    }

    /// The whole recipe as `T`, which must refuse unknown keys (`deny_unknown_fields`).
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, RecipeError> {
        let text = self.resolved();
        toml::from_str(&text).map_err(|error| self.explain(&text, &error))
    }

    /// An error about one key (`train.batch_size`), placed at its line.
    pub fn reject(&self, key: &str, reason: impl Into<String>) -> RecipeError {
        RecipeError::Value { place: self.locate(key), reason: format!("`{key}`: {}", reason.into()) }
    }

    fn explain(&self, text: &str, error: &toml::de::Error) -> RecipeError {
        let message = error.message();
        let key = error.span().map(|span| key_at(text, span.start)).unwrap_or_default();
        if let Some((unknown, known)) = unknown_field(message) {
            let table = if key == unknown { String::new() } else { key.strip_suffix(&format!(".{unknown}")).unwrap_or(&key).to_string() };
            let key = if table.is_empty() { unknown.clone() } else { format!("{table}.{unknown}") };
            let hint = nearest(&unknown, &known).map_or(String::new(), |name| format!("; hint: did you mean `{name}`?"));
            let expected = if known.is_empty() { "no keys here".to_string() } else { format!("one of {}", known.join(", ")) };
            return RecipeError::UnknownKey { place: self.locate(&key), key, expected, hint };
        }
        let reason = if key.is_empty() { message.to_string() } else { format!("`{key}`: {message}") };
        RecipeError::Value { place: self.locate(&key), reason }
    }

    /// Where a key of the merged recipe was given: the file and line, or the override.
    fn locate(&self, key: &str) -> String {
        if let Some(given) = self.overridden.iter().rev().find(|given| *given == key || key.starts_with(&format!("{given}."))) {
            return format!("{} with --set {given}", self.path.display());
        }
        let in_smoke = self.smoke.then(|| line_of_key(&self.text, &format!("smoke.{key}"))).flatten();
        let mut table = key;
        let mut line = in_smoke.or_else(|| line_of_key(&self.text, key));
        while line.is_none() {
            let Some((parent, _)) = table.rsplit_once('.') else { break };
            table = parent;
            line = line_of_key(&self.text, table);
        }
        place(&self.path, line)
    }
}

fn place(path: &Path, line: Option<usize>) -> String {
    match line {
        Some(line) => format!("{}:{line}", path.display()),
        None => path.display().to_string(),
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&byte| byte == b'\n').count() + 1
}

/// Every key of a text written by a person or by `toml::to_string`, with its line: headers as tables, `key = value` lines as keys.
/// Lines inside multi-line arrays or strings may be taken for keys; that can only misplace a line number, never accept a wrong recipe.
fn keys(text: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    let mut table = String::new();
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            table = header.trim_matches(['[', ' ']).to_string();
            return Some((index + 1, table.clone()));
        }
        let (key, _) = line.split_once('=')?;
        let key = key.trim().trim_matches('"');
        if key.is_empty() || key.starts_with('#') || key.contains(char::is_whitespace) {
            return None;
        }
        Some((index + 1, if table.is_empty() { key.to_string() } else { format!("{table}.{key}") }))
    })
}

/// The key on the line that holds byte `offset`; the table of a header line.
fn key_at(text: &str, offset: usize) -> String {
    let line = line_of(text, offset);
    keys(text).take_while(|(at, _)| *at <= line).last().map_or(String::new(), |(_, key)| key)
}

fn line_of_key(text: &str, wanted: &str) -> Option<usize> {
    keys(text).find(|(_, key)| key == wanted).map(|(line, _)| line)
}

/// Takes apart serde's "unknown field `a`, expected one of `b`, `c`" (or "unknown variant").
fn unknown_field(message: &str) -> Option<(String, Vec<String>)> {
    let mut names = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2).map(str::to_string);
    let unknown = names.next()?;
    Some((unknown, names.collect()))
}

/// The known name nearest to `unknown`, when it is near at all (Jaro-Winkler, threshold found to forgive a typing slip but not another word).
fn nearest<'a>(unknown: &str, known: &'a [String]) -> Option<&'a String> {
    let distance = |name: &String| strsim::jaro_winkler(unknown, name);
    known.iter().max_by(|a, b| distance(a).total_cmp(&distance(b))).filter(|name| distance(name) > 0.7)
}

fn lay_over(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => lay_over(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Applies `a.b=value` and returns the key. The value is TOML where it parses as TOML, else a string.
fn apply_override(table: &mut Table, argument: &str) -> Result<String, RecipeError> {
    let wrong = || RecipeError::Override { argument: argument.to_string() };
    let (key, value) = argument.split_once('=').ok_or_else(wrong)?;
    let (key, value) = (key.trim(), value.trim());
    let parts: Vec<&str> = key.split('.').collect();
    let Some((last, tables)) = parts.split_last().filter(|_| parts.iter().all(|part| !part.is_empty())) else { return Err(wrong()) };
    let value = toml::from_str::<Table>(&format!("value = {value}")).ok().and_then(|mut table| table.remove("value"));
    let value = value.unwrap_or_else(|| Value::String(argument.split_once('=').map_or("", |(_, value)| value).to_string()));
    let mut place = table;
    for part in tables {
        let entry = place.entry(part.to_string()).or_insert_with(|| Value::Table(Table::new()));
        place = entry.as_table_mut().ok_or_else(wrong)?;
    }
    place.insert(last.to_string(), value);
    Ok(key.to_string())
}
