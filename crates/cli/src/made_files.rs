//! The PNGs that are written: their names, the texts inside them, and the folder they go to.

use anyhow::{Context, anyhow};
use sha2::{Digest, Sha256};
use smalti_data::Picture;
use smalti_data::grid::{GridOptions, assemble};
use smalti_nn::weights::write_atomically;
use std::fs;
use std::path::Path;

/// The start of the file names of a prompt's pictures: its [`slug`], and, where that leaves words out or has none, some digits that tell it from other prompts.
pub fn file_stem(prompt: &str) -> String {
    let slug = slug(prompt);
    let characters = |text: &str| text.chars().filter(|character| character.is_alphanumeric()).count();
    if prompt.is_empty() || characters(&slug) == characters(&prompt.to_lowercase()) {
        return slug;
    }
    let digest = Sha256::digest(prompt.as_bytes());
    format!("{slug}-{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2])
}

/// Letters and digits of a prompt, in lower case, joined by hyphens.
pub fn slug(prompt: &str) -> String {
    const LENGTH_LIMIT: usize = 40;
    let mut slug = String::new();
    for character in prompt.chars().flat_map(char::to_lowercase) {
        if character.is_alphanumeric() {
            slug.push(character);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.chars().count() >= LENGTH_LIMIT {
            break;
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "picture".to_string() } else { slug.to_string() }
}

/// Makes the folder and makes sure that files can be written there, before hours of work are put into them.
pub fn prepare_folder(folder: &Path) -> anyhow::Result<()> {
    let probe = folder.join(format!(".smalti-{}.tmp", std::process::id()));
    let tried = fs::create_dir_all(folder).and_then(|()| fs::write(&probe, b"x")).and_then(|()| fs::remove_file(&probe));
    tried.map_err(|error| anyhow!("{}: cannot write there: {error}; hint: choose another folder with --out DIR", folder.display()))
}

/// Writes a PNG with texts, whole or not at all.
pub fn write_png(picture: &Picture, path: &Path, texts: &[(&str, String)]) -> anyhow::Result<()> {
    // A PNG's text ends at a zero character; nobody sees one in a prompt.
    let texts: Vec<(String, String)> = texts.iter().map(|(key, text)| (key.to_string(), text.replace('\0', " "))).collect();
    let bytes = picture.to_png(&texts).with_context(|| path.display().to_string())?;
    write_atomically(path, |writer| writer.write_all(&bytes)).with_context(|| path.display().to_string())
}

/// All pictures on one sheet, as square as possible.
pub fn contact_sheet(pictures: &[Picture]) -> anyhow::Result<Picture> {
    assemble(pictures, &GridOptions::square(pictures.len())).context("contact sheet")
}

/// All pictures side by side.
pub fn film_strip(pictures: &[Picture]) -> anyhow::Result<Picture> {
    assemble(pictures, &GridOptions { column_count: pictures.len(), ..GridOptions::square(pictures.len()) }).context("film strip")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_become_names() {
        assert_eq!(slug("A red fox, noto style!"), "a-red-fox-noto-style");
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("... "), "picture");
        assert_eq!(slug("Ein grüner Käfer"), "ein-grüner-käfer");
        assert!(slug(&"word ".repeat(10_000)).chars().count() <= 40);
    }

    #[test]
    fn prompts_that_begin_alike_have_files_of_their_own() {
        let long = |last: &str| file_stem(&format!("a small red fox in the snow under a large old {last}"));
        assert_ne!(long("tree"), long("oak"));
        assert!(long("oak").starts_with("a-small-red-fox-in-the-snow-under-a-larg-"), "{}", long("oak"));
        assert_eq!(file_stem("A red fox, noto style!"), "a-red-fox-noto-style");
        assert_ne!(file_stem("🦊"), file_stem("🐻"));
        assert_eq!(file_stem(""), "picture");
    }
}
