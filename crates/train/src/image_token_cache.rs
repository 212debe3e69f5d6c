//! Image tokens of a whole data set, made once by a frozen image tokenizer and kept on disk.
//!
//! The folder is named by what decides the tokens: weights and config of the image tokenizer, names and sizes of the pictures, how they are cut and resized.
//! It is filled in parts that appear whole or not at all, each with its checksum, so that an interrupted encoding goes on where it stopped and a damaged
//! part is made again.

use crate::TrainError;
use crate::pictures::Pictures;
use sha2::{Digest, Sha256};
use smalti_models::image_tokenizer::vqgan::Vqgan;
use smalti_nn::weights::write_atomically;
use smalti_pipeline::ImageTokenizerPart;
use std::fs;
use std::path::{Path, PathBuf};

/// Pictures of one part.
const PART_SIZE: usize = 1024;
/// Pictures encoded at once.
const BATCH_SIZE: usize = 32;
/// In place of every token of a picture that could not be read.
const BROKEN: u32 = u32::MAX;

/// Image tokens by picture.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageTokens {
    pub token_count: usize,
    values: Vec<u32>,
}

impl ImageTokens {
    /// The image tokens of picture `index` of the data set, row after row; `None` where it could not be read.
    pub fn of(&self, index: usize) -> Option<&[u32]> {
        let tokens = &self.values[index * self.token_count..(index + 1) * self.token_count];
        (tokens.first() != Some(&BROKEN)).then_some(tokens)
    }

    pub fn picture_count(&self) -> usize {
        self.values.len() / self.token_count
    }
}

/// Reads the image tokens of all training pictures from `cache`, and makes those that are not there yet. `tokenizer_checksum` stands for the weights.
pub fn image_tokens(cache: &Path, pictures: &Pictures, tokenizer: &ImageTokenizerPart, tokenizer_checksum: &str) -> Result<ImageTokens, TrainError> {
    let dataset = pictures.training();
    let [rows, columns] = tokenizer.grid();
    let token_count = rows * columns;
    let code_count = discrete(tokenizer)?.code_count();
    let folder = cache.join(folder_name(pictures, tokenizer, tokenizer_checksum));
    fs::create_dir_all(&folder).map_err(|source| TrainError::io(&folder, source))?;
    let mut values = Vec::with_capacity(dataset.len() * token_count);
    let mut broken_left = pictures.settings().broken_limit;
    for start in (0..dataset.len()).step_by(PART_SIZE) {
        let range = start..dataset.len().min(start + PART_SIZE);
        let path = folder.join(format!("part-{:05}.tokens", start / PART_SIZE));
        let part = match read_part(&path, range.len() * token_count, code_count) {
            Some(part) => part,
            None => {
                eprintln!("encoding pictures {} to {} of {}", range.start + 1, range.end, dataset.len());
                let part = encode(pictures, tokenizer, range, token_count, &mut broken_left)?;
                write_part(&path, &part).map_err(|source| TrainError::io(&path, source))?;
                part
            }
        };
        values.extend(part);
    }
    Ok(ImageTokens { token_count, values })
}

fn folder_name(pictures: &Pictures, tokenizer: &ImageTokenizerPart, checksum: &str) -> PathBuf {
    let settings = pictures.settings();
    let mut hasher = Sha256::new();
    for text in [
        checksum.to_string(),
        format!("{:?}", tokenizer.model.config()),
        pictures.training().fingerprint(),
        format!("{:?}", settings.transform().without_randomness()),
        format!("{:?}", settings.decode()),
    ] {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    PathBuf::from(crate::checkpoint::hex(&hasher.finalize()[..16]))
}

fn encode(
    pictures: &Pictures,
    tokenizer: &ImageTokenizerPart,
    range: std::ops::Range<usize>,
    token_count: usize,
    broken_left: &mut usize,
) -> Result<Vec<u32>, TrainError> {
    let mut tokens = vec![BROKEN; range.len() * token_count];
    let mut readable = Vec::new();
    for index in range.clone() {
        match pictures.item(index) {
            Ok(item) => readable.push(item),
            Err(error) if *broken_left > 0 => {
                eprintln!("warning: {error}; left out");
                *broken_left -= 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    for items in readable.chunks(BATCH_SIZE) {
        let encoded = encode_items(tokenizer, items)?;
        for (item, encoded) in items.iter().zip(encoded.chunks_exact(token_count)) {
            let place = (item.index - range.start) * token_count;
            tokens[place..place + token_count].copy_from_slice(encoded);
        }
    }
    Ok(tokens)
}

/// The image tokens of decoded pictures, one picture after the other.
pub fn encode_items(tokenizer: &ImageTokenizerPart, items: &[smalti_data::loader::Item]) -> Result<Vec<u32>, TrainError> {
    let x = crate::pictures::stack(items, tokenizer.image_size, &tokenizer.device());
    Ok(discrete(tokenizer)?.tokens(x).into_data().iter::<i64>().map(|token| token as u32).collect())
}

fn discrete(tokenizer: &ImageTokenizerPart) -> Result<&Vqgan, TrainError> {
    tokenizer.model.discrete().ok_or_else(|| TrainError::Unfit {
        place: "image tokenizer".to_string(),
        reason: format!("expected one with a codebook, whose image tokens are learned, found `{}`", tokenizer.model.config().kind()),
    })
}

/// Little-endian numbers, then their SHA-256.
fn write_part(path: &Path, tokens: &[u32]) -> std::io::Result<()> {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    write_atomically(path, |writer| {
        writer.write_all(&bytes)?;
        writer.write_all(&Sha256::digest(&bytes))
    })
}

/// `None` unless the part is there, whole, and of tokens that exist.
fn read_part(path: &Path, count: usize, code_count: usize) -> Option<Vec<u32>> {
    let bytes = fs::read(path).ok()?;
    let (numbers, checksum) = bytes.split_at_checked(count * 4)?;
    if Sha256::digest(numbers)[..] != *checksum {
        return None;
    }
    let tokens: Vec<u32> = numbers.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
    tokens.iter().all(|&token| token == BROKEN || (token as usize) < code_count).then_some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_parts_are_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part");
        let tokens = [3, 1, 4, BROKEN, 5, 9];
        write_part(&path, &tokens).unwrap();
        assert_eq!(read_part(&path, 6, 10).as_deref(), Some(&tokens[..]));
        assert_eq!(read_part(&path, 5, 10), None, "another size");
        assert_eq!(read_part(&path, 6, 9), None, "a token that the codebook lacks");
        let mut bytes = fs::read(&path).unwrap();
        bytes[2] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(read_part(&path, 6, 1 << 30), None, "flipped");
        fs::write(&path, &bytes[..20]).unwrap();
        assert_eq!(read_part(&path, 6, 10), None, "cut short");
        assert_eq!(read_part(&folder.path().join("none"), 6, 10), None);
    }
}
