//! Captions in a table: `metadata.jsonl` (one JSON object a line) or `metadata.csv`, naming pictures by `file_name`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use serde_json::Value;

use super::{CaptionRule, CaptionSource, Description, FileEntry, Index, Problem, ProblemKind, Source, walk};
use crate::DataError;

/// The kind `metadata_jsonl`: one table at the top.
pub(super) fn index(root: &Path, rule: CaptionRule) -> Result<Index, DataError> {
    let path = root.join("metadata.jsonl");
    if !path.is_file() {
        let hint = "name the folder that holds metadata.jsonl, or choose another `kind`";
        return Err(DataError::NoPictures { path: root.to_path_buf(), found: "no metadata.jsonl".into(), hint });
    }
    index_tables(root, &walk::files(root)?, &["metadata.jsonl".into()], rule)
}

/// All pictures below `root`, described by the tables (relative paths) named.
pub(super) fn index_tables(root: &Path, files: &[walk::Found], tables: &[String], rule: CaptionRule) -> Result<Index, DataError> {
    let mut problems: Vec<Problem> = walk::unsupported(files).collect();
    let mut described: BTreeMap<String, Description> = BTreeMap::new();
    let pictures: BTreeSet<&str> = files.iter().filter(|file| file.is_picture()).map(|file| file.relative.as_str()).collect();
    for table in tables {
        let folder = table.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        for row in read_table(&root.join(table))? {
            let relative = format!("{folder}{}", row.file_name);
            let place = format!("{table}:{}: {relative}", row.line);
            if !pictures.contains(relative.as_str()) {
                problems.push(Problem { place, kind: ProblemKind::CaptionWithoutPicture });
            } else if let Entry::Vacant(vacant) = described.entry(relative) {
                vacant.insert(row.description);
            } else {
                problems.push(Problem { place, kind: ProblemKind::DuplicateKey });
            }
        }
    }
    let (mut keys, mut picture_sizes, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for file in files.iter().filter(|file| file.is_picture()) {
        let description = described.remove(&file.relative);
        if !seen.insert(file.key()) {
            problems.push(Problem { place: file.relative.clone(), kind: ProblemKind::DuplicateKey });
        } else if rule == CaptionRule::Required && description.as_ref().is_none_or(|description| description.captions.is_empty()) {
            problems.push(Problem { place: file.relative.clone(), kind: ProblemKind::PictureWithoutCaption });
        } else {
            keys.push(file.key());
            picture_sizes.push(file.size);
            entries.push(FileEntry { picture: file.path.clone(), captions: description.map_or(CaptionSource::None, CaptionSource::Known) });
        }
    }
    Ok(Index { keys, picture_sizes, source: Source::Files(entries), problems })
}

/// One row: which picture, and what is said of it.
struct Row {
    line: usize,
    /// Relative to the table's folder, `/` between parts.
    file_name: String,
    description: Description,
}

fn read_table(path: &Path) -> Result<Vec<Row>, DataError> {
    let bytes = std::fs::read(path).map_err(|error| DataError::io(path, error))?;
    let text = String::from_utf8(bytes).map_err(|error| DataError::io(path, format!("expected UTF-8 text, found {error}")))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let rows = if path.extension().is_some_and(|extension| extension == "csv") { csv_rows(text) } else { json_rows(text) };
    rows.map_err(|(line, reason)| DataError::Metadata { path: path.to_path_buf(), line, reason })
}

type Located<T> = Result<T, (usize, String)>;

fn json_rows(text: &str) -> Located<Vec<Row>> {
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let located = |reason: String| (number + 1, reason);
        let mut value: Value = serde_json::from_str(line).map_err(|error| located(format!("expected a JSON object: {error}")))?;
        let file_name = match value.as_object_mut().map(|object| object.remove("file_name")) {
            Some(Some(Value::String(name))) => checked_name(&name).map_err(located)?,
            Some(Some(other)) => return Err(located(format!("`file_name`: expected a string, found {}", super::caption_record::describe(&other)))),
            Some(None) => return Err(located("expected the key `file_name`".into())),
            None => return Err(located(format!("expected a JSON object, found {}", super::caption_record::describe(&value)))),
        };
        let description = Description::from_json(&value).map_err(located)?;
        rows.push(Row { line: number + 1, file_name, description });
    }
    Ok(rows)
}

fn csv_rows(text: &str) -> Located<Vec<Row>> {
    let mut records = csv_records(text)?.into_iter();
    let Some((_, header)) = records.next() else { return Ok(Vec::new()) };
    let Some(name_column) = header.iter().position(|name| name == "file_name") else {
        return Err((1, format!("expected a column `file_name`, found {}", header.join(", "))));
    };
    let mut rows = Vec::new();
    for (line, record) in records {
        if record.len() != header.len() {
            return Err((line, format!("expected {} columns, found {}", header.len(), record.len())));
        }
        let others = header.iter().zip(&record).enumerate().filter(|(column, _)| *column != name_column);
        let description = Description::from_columns(others.map(|(_, (name, value))| (name.as_str(), value.as_str())));
        rows.push(Row { line, file_name: checked_name(&record[name_column]).map_err(|reason| (line, reason))?, description });
    }
    Ok(rows)
}

/// RFC 4180: commas, quoted fields with doubled quotes, quoted line breaks. Each record with the line it starts on; blank lines skipped.
fn csv_records(text: &str) -> Located<Vec<(usize, Vec<String>)>> {
    let mut records = Vec::new();
    let (mut record, mut field) = (Vec::new(), String::new());
    let (mut line, mut start) = (1, 1);
    let (mut quoted, mut was_quoted) = (false, false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        line += usize::from(character == '\n');
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() && !was_quoted => (quoted, was_quoted) = (true, true),
            ',' if !quoted => {
                record.push(std::mem::take(&mut field));
                was_quoted = false;
            }
            '\r' if !quoted && characters.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                if !(record.is_empty() && field.is_empty() && !was_quoted) {
                    record.push(std::mem::take(&mut field));
                    records.push((start, std::mem::take(&mut record)));
                }
                was_quoted = false;
                start = line;
            }
            other => field.push(other),
        }
    }
    if quoted {
        return Err((start, "expected a closing quote, found the end of the file".into()));
    }
    if !(record.is_empty() && field.is_empty() && !was_quoted) {
        record.push(field);
        records.push((start, record));
    }
    Ok(records)
}

/// A relative path that stays inside: a table from elsewhere must not point at other files of this machine.
fn checked_name(name: &str) -> Result<String, String> {
    let path = Path::new(name);
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::CurDir => {}
            _ => return Err(format!("`file_name`: expected a path inside the folder, found `{name}`")),
        }
    }
    if parts.is_empty() {
        return Err("`file_name`: expected a path, found nothing".into());
    }
    Ok(parts.join("/"))
}
