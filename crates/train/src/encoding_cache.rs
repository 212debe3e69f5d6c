//! Image tokens or latents of a whole data set, made once by a frozen image tokenizer and kept on disk.
//!
//! The folder is named by what decides them: weights and config of the image tokenizer, names and sizes of the pictures, how they are cut and resized.
//! It is filled in parts that appear whole or not at all, each with its checksum, so that an interrupted encoding goes on where it stopped and a damaged
//! part is made again.

use crate::TrainError;
use crate::pictures::{Pictures, host, stack};
use sha2::{Digest, Sha256};
use smalti_data::DataError;
use smalti_data::loader::Item;
use smalti_models::image_tokenizer::vqgan::Vqgan;
use smalti_nn::precision;
use smalti_nn::weights::write_atomically;
use smalti_pipeline::ImageTokenizerPart;
use smalti_pipeline::parts::ImageTokenizer;
use std::fs;
use std::path::{Path, PathBuf};

/// Pictures of one part.
const PART_SIZE: usize = 1024;
/// Pictures encoded at once.
const BATCH_SIZE: usize = 32;
/// In place of every word of a picture that could not be read; no token, and as a float not a number.
const BROKEN: u32 = u32::MAX;

/// So many 32-bit words for each picture: image tokens, or the bits of floats.
#[derive(Clone, Debug, PartialEq)]
struct Words {
    count: usize,
    values: Vec<u32>,
}

impl Words {
    fn of(&self, index: usize) -> Option<&[u32]> {
        let words = &self.values[index * self.count..(index + 1) * self.count];
        (words.first() != Some(&BROKEN)).then_some(words)
    }

    fn picture_count(&self) -> usize {
        self.values.len() / self.count
    }
}

/// Image tokens by variant and picture.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageTokens(Vec<Words>);

impl ImageTokens {
    pub fn token_count(&self) -> usize {
        self.0[0].count
    }

    /// The image tokens of a variant of picture `index` of the data set, row after row; `None` where it could not be read.
    pub fn of(&self, index: usize, variant: usize) -> Option<&[u32]> {
        self.0[variant].of(index)
    }

    /// The pictures that could be read, in every variant.
    pub fn readable(&self) -> Vec<usize> {
        readable(&self.0)
    }
}

/// Latents by variant and picture, not scaled: means, and logarithms of variances where the image tokenizer has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Latents {
    variants: Vec<Words>,
    /// Numbers of the latents of one picture.
    value_count: usize,
}

impl Latents {
    /// Means [rows * columns * channels] of a variant of picture `index` and, for a KL autoencoder, as many logarithms of variances.
    pub fn of(&self, index: usize, variant: usize) -> Option<(Vec<f32>, Vec<f32>)> {
        let values: Vec<f32> = self.variants[variant].of(index)?.iter().map(|&bits| f32::from_bits(bits)).collect();
        let (mean, log_variance) = values.split_at(self.value_count);
        Some((mean.to_vec(), log_variance.to_vec()))
    }

    /// The pictures that could be read, in every variant.
    pub fn readable(&self) -> Vec<usize> {
        readable(&self.variants)
    }
}

fn readable(variants: &[Words]) -> Vec<usize> {
    (0..variants[0].picture_count()).filter(|&index| variants.iter().all(|words| words.of(index).is_some())).collect()
}

/// Reads the image tokens of all training pictures from `cache`, and makes those that are not there yet. `tokenizer_checksum` stands for the weights.
pub fn image_tokens(cache: &Path, pictures: &Pictures, tokenizer: &ImageTokenizerPart, tokenizer_checksum: &str) -> Result<ImageTokens, TrainError> {
    let code_count = discrete(tokenizer)?.code_count();
    let token_count = tokenizer.grid().iter().product();
    let variant = |variant| {
        let folder = cache.join(folder_name(pictures, tokenizer, tokenizer_checksum, "tokens", variant));
        cached(&folder, pictures, variant, token_count, |token| (token as usize) < code_count, |items| encode_items(tokenizer, items))
    };
    Ok(ImageTokens((0..pictures.settings().encoded_variants).map(variant).collect::<Result<_, _>>()?))
}

/// The same for latents.
pub fn latents(cache: &Path, pictures: &Pictures, tokenizer: &ImageTokenizerPart, tokenizer_checksum: &str) -> Result<Latents, TrainError> {
    let value_count = tokenizer.grid().iter().product::<usize>() * tokenizer.model.config().latent_channels();
    let moments = if matches!(tokenizer.model, ImageTokenizer::AutoencoderKl(_)) { 2 } else { 1 };
    let finite = |bits| f32::from_bits(bits).is_finite();
    let variant = |variant| {
        let folder = cache.join(folder_name(pictures, tokenizer, tokenizer_checksum, "latents", variant));
        cached(&folder, pictures, variant, value_count * moments, finite, |items| {
            Ok(encode_latents(tokenizer, items).into_iter().flatten().map(f32::to_bits).collect())
        })
    };
    let variants = (0..pictures.settings().encoded_variants).map(variant).collect::<Result<_, _>>()?;
    Ok(Latents { variants, value_count })
}

/// The words of a variant of all training pictures: parts that are there and whole are read, the others made by `encode`.
fn cached(
    folder: &Path,
    pictures: &Pictures,
    variant: usize,
    count: usize,
    valid: impl Fn(u32) -> bool,
    encode: impl Fn(&[Item]) -> Result<Vec<u32>, TrainError>,
) -> Result<Words, TrainError> {
    let dataset = pictures.training();
    fs::create_dir_all(folder).map_err(|source| TrainError::io(folder, source))?;
    let mut values = Vec::with_capacity(dataset.len() * count);
    let mut broken_left = pictures.settings().broken_limit;
    for start in (0..dataset.len()).step_by(PART_SIZE) {
        let range = start..dataset.len().min(start + PART_SIZE);
        let path = folder.join(format!("part-{:05}.words", start / PART_SIZE));
        let part = match read_part(&path, range.len() * count, &valid) {
            Some(part) => {
                let mut broken = part.chunks_exact(count).enumerate().filter(|(_, words)| words[0] == BROKEN).map(|(place, _)| start + place).peekable();
                if let Some(&first) = broken.peek() {
                    let (found, limit) = (broken.count(), pictures.settings().broken_limit);
                    let reason = "it could not be read when the data set was encoded".to_string();
                    let too_many = DataError::TooManyBroken { count: limit - broken_left + found, limit, key: dataset.key(first).to_string(), reason };
                    broken_left = broken_left.checked_sub(found).ok_or(too_many)?;
                }
                part
            }
            None => {
                let which = if variant == 0 { String::new() } else { format!(", variant {}", variant + 1) };
                crate::say!("encoding pictures {} to {} of {}{which}", range.start + 1, range.end, dataset.len());
                let part = encode_part(pictures, variant, range, count, &mut broken_left, &encode)?;
                write_part(&path, &part).map_err(|source| TrainError::io(&path, source))?;
                part
            }
        };
        values.extend(part);
    }
    Ok(Words { count, values })
}

fn folder_name(pictures: &Pictures, tokenizer: &ImageTokenizerPart, checksum: &str, kind: &str, variant: usize) -> PathBuf {
    let settings = pictures.settings();
    let transform = settings.transform();
    let transform = if variant == 0 { format!("{:?}", transform.without_randomness()) } else { format!("variant {variant} of {transform:?}") };
    let mut hasher = Sha256::new();
    for text in [
        kind.to_string(),
        checksum.to_string(),
        format!("{:?}", tokenizer.model.config()),
        pictures.training().fingerprint(),
        transform,
        format!("{:?}", settings.decode()),
        precision::current().name().to_string(),
        format!("{:?}", tokenizer.device()),
    ] {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    PathBuf::from(crate::checkpoint::hex(&hasher.finalize()[..16]))
}

fn encode_part(
    pictures: &Pictures,
    variant: usize,
    range: std::ops::Range<usize>,
    count: usize,
    broken_left: &mut usize,
    encode: impl Fn(&[Item]) -> Result<Vec<u32>, TrainError>,
) -> Result<Vec<u32>, TrainError> {
    let mut words = vec![BROKEN; range.len() * count];
    let mut readable = Vec::new();
    for index in range.clone() {
        match pictures.item(index, variant) {
            Ok(item) => readable.push(item),
            Err(error) if *broken_left > 0 => {
                crate::say!("warning: {error}; left out");
                *broken_left -= 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    for items in readable.chunks(BATCH_SIZE) {
        for (item, encoded) in items.iter().zip(encode(items)?.chunks_exact(count)) {
            let place = (item.index - range.start) * count;
            words[place..place + count].copy_from_slice(encoded);
        }
    }
    Ok(words)
}

/// The latents of decoded pictures: for each the means, then the logarithms of variances where there are any.
pub fn encode_latents(tokenizer: &ImageTokenizerPart, items: &[Item]) -> Vec<Vec<f32>> {
    let x = stack(items, tokenizer.image_size, &tokenizer.device());
    let moments = match &tokenizer.model {
        ImageTokenizer::AutoencoderKl(model) => {
            let moments = model.encode(x);
            vec![moments.mean, moments.log_variance]
        }
        model => vec![model.encode(x)],
    };
    let moments: Vec<Vec<f32>> = moments.into_iter().map(host).collect();
    let count = moments[0].len() / items.len();
    (0..items.len()).map(|row| moments.iter().flat_map(|values| &values[row * count..(row + 1) * count]).copied().collect()).collect()
}

/// The image tokens of decoded pictures, one picture after the other.
pub fn encode_items(tokenizer: &ImageTokenizerPart, items: &[Item]) -> Result<Vec<u32>, TrainError> {
    let x = stack(items, tokenizer.image_size, &tokenizer.device());
    Ok(discrete(tokenizer)?.tokens(x).into_data().iter::<i64>().map(|token| token as u32).collect())
}

fn discrete(tokenizer: &ImageTokenizerPart) -> Result<&Vqgan, TrainError> {
    tokenizer.model.discrete().ok_or_else(|| TrainError::Unfit {
        place: "image tokenizer".to_string(),
        reason: format!("expected one with a codebook, whose image tokens are learned, found `{}`", tokenizer.model.config().kind()),
    })
}

/// Little-endian numbers, then their SHA-256.
fn write_part(path: &Path, words: &[u32]) -> std::io::Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    write_atomically(path, |writer| {
        writer.write_all(&bytes)?;
        writer.write_all(&Sha256::digest(&bytes))
    })
}

/// `None` unless the part is there, whole, and of words that can be.
fn read_part(path: &Path, count: usize, valid: impl Fn(u32) -> bool) -> Option<Vec<u32>> {
    let bytes = fs::read(path).ok()?;
    let (numbers, checksum) = bytes.split_at_checked(count * 4)?;
    if Sha256::digest(numbers)[..] != *checksum {
        return None;
    }
    let words: Vec<u32> = numbers.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
    words.iter().all(|&word| word == BROKEN || valid(word)).then_some(words)
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
        assert_eq!(read_part(&path, 6, |token| token < 10).as_deref(), Some(&tokens[..]));
        assert_eq!(read_part(&path, 5, |token| token < 10), None, "another size");
        assert_eq!(read_part(&path, 6, |token| token < 9), None, "a token that the codebook lacks");
        let mut bytes = fs::read(&path).unwrap();
        bytes[2] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(read_part(&path, 6, |token| token < 1 << 30), None, "flipped");
        fs::write(&path, &bytes[..20]).unwrap();
        assert_eq!(read_part(&path, 6, |token| token < 10), None, "cut short");
        assert_eq!(read_part(&folder.path().join("none"), 6, |_| true), None);
    }
}
