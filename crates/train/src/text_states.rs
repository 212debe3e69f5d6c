//! States of captions, made once by a frozen text encoder and kept on disk.
//!
//! The folder is named by what decides a state beside the caption: weights and config of the text encoder, its text tokenizer, how many tokens are read and
//! whether padding is among them. In it lie parts, which appear whole or not at all, each with its checksum: an interrupted encoding goes on where it stopped,
//! a damaged part is made again. A caption is known by its SHA-256, so that another run, another stage of a cascade or a data set with more captions finds
//! what is there and makes the rest. In memory is only where each caption lies.

use crate::TrainError;
use burn::tensor::{Bool, Device, Tensor, TensorData};
use sha2::{Digest, Sha256};
use smalti_models::generator::conditions::Text;
use smalti_nn::precision;
use smalti_nn::weights::write_atomically;
use smalti_pipeline::TextEncoderPart;
use smalti_pipeline::manifest::TextCondition;
use smalti_pipeline::text_to_image::text_states;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Captions encoded at once.
const BATCH_SIZE: usize = 32;
/// A part is closed when its states are this many bytes.
const PART_BYTES: usize = 32 << 20;
/// Captions of a part, at most.
const PART_CAPTIONS: usize = 1 << 16;
/// The start of a part: how many captions there are.
const COUNT_BYTES: usize = 4;
/// Of each caption then its key, and how many of its tokens are kept.
const ENTRY_BYTES: usize = size_of::<Key>() + 4;
const CHECKSUM_BYTES: usize = 32;

/// The first half of a caption's SHA-256.
type Key = [u8; 16];

/// A frozen text encoder, and the states of captions it has read already.
#[derive(Debug)]
pub struct TextStates {
    encoder: TextEncoderPart,
    condition: TextCondition,
    cache: Option<Cache>,
}

#[derive(Debug)]
struct Cache {
    parts: Vec<PathBuf>,
    places: HashMap<Key, Place>,
}

/// Where the states of a caption lie.
#[derive(Clone, Copy, Debug)]
struct Place {
    part: usize,
    offset: u64,
    kept: usize,
}

impl TextStates {
    /// Keeps nothing: every caption is encoded each time.
    pub fn fresh(encoder: TextEncoderPart, condition: TextCondition) -> Self {
        Self { encoder, condition, cache: None }
    }

    /// Reads the states of `captions` from `folder`, and makes those that are not there yet. `checksum` stands for the weights of the encoder.
    pub fn cached(encoder: TextEncoderPart, checksum: &str, condition: TextCondition, folder: &Path, captions: BTreeSet<String>) -> Result<Self, TrainError> {
        let folder = folder.join(folder_name(&encoder, checksum, &condition));
        let mut states = Self::fresh(encoder, condition);
        fs::create_dir_all(&folder).map_err(|source| TrainError::io(&folder, source))?;
        let wanted: BTreeMap<Key, &str> = captions.iter().map(|caption| (key(caption), caption.as_str())).collect();
        let mut cache = states.read_parts(&folder, &wanted)?;
        let missing: Vec<&str> = wanted.iter().filter(|(key, _)| !cache.places.contains_key(*key)).map(|(_, caption)| *caption).collect();
        let mut done = 0;
        while done < missing.len() {
            crate::say!("encoding captions from {} of {}", done + 1, missing.len());
            let part = states.encode_part(&missing[done..])?;
            let path = folder.join(format!("{}.states", part.name()));
            write_atomically(&path, |writer| writer.write_all(&part.bytes())).map_err(|source| TrainError::io(&path, source))?;
            done += part.entries.len();
            cache.add(path, &part.entries, states.channels());
        }
        states.cache = Some(cache);
        Ok(states)
    }

    pub fn encoder(&self) -> &TextEncoderPart {
        &self.encoder
    }

    fn channels(&self) -> usize {
        self.encoder.model.channels()
    }

    /// The states of captions as numbers on `device`, which may track gradients. Kept or made anew they are the same, but that kept ones are 0 where the
    /// network does not look.
    pub fn of(&self, captions: &[String], device: &Device) -> Result<Text, TrainError> {
        let places = |cache: &Cache| captions.iter().map(|caption| cache.places.get(&key(caption)).copied()).collect::<Option<Vec<Place>>>();
        match self.cache.as_ref().and_then(|cache| Some((cache, places(cache)?))) {
            Some((cache, places)) => self.read(cache, &places, device),
            // A caption that nobody foresaw.
            None => {
                let (Text { states, visible }, _) = text_states(&self.encoder, &self.condition, captions)?;
                Ok(Text { states: if device.is_autodiff() { Tensor::from_inner(states) } else { states }, visible })
            }
        }
    }

    fn read(&self, cache: &Cache, places: &[Place], device: &Device) -> Result<Text, TrainError> {
        let (tokens, channels) = (self.condition.token_count, self.channels());
        let mut values = vec![0.0_f32; places.len() * tokens * channels];
        let mut visible = Vec::with_capacity(places.len() * tokens);
        for (row, place) in values.chunks_exact_mut(tokens * channels).zip(places) {
            let path = &cache.parts[place.part];
            let bytes = read_at(path, place.offset, place.kept * channels * 4).map_err(|source| TrainError::io(path, source))?;
            row.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
            visible.extend((0..tokens).map(|token| token < place.kept));
        }
        let visible = Tensor::<2, Bool>::from_data(TensorData::new(visible, [places.len(), tokens]), &self.encoder.model.device());
        let states = Tensor::from_data(TensorData::new(values, [places.len(), tokens, channels]), device);
        Ok(Text { states, visible: (!self.condition.attend_to_padding).then_some(visible) })
    }

    /// As many of the captions, from the first, as a part holds.
    fn encode_part(&self, captions: &[&str]) -> Result<Part, TrainError> {
        let mut part = Part::default();
        let (tokens, channels) = (self.condition.token_count, self.channels());
        for captions in captions[..captions.len().min(PART_CAPTIONS)].chunks(BATCH_SIZE) {
            let (Text { states, visible }, _) = text_states(&self.encoder, &self.condition, captions)?;
            let states = crate::pictures::host(states);
            // What is visible stands in front; padding is kept only where the network looks at it.
            let visible: Option<Vec<bool>> = visible.map(|visible| visible.into_data().iter::<bool>().collect());
            for (row, caption) in captions.iter().enumerate() {
                let kept = visible.as_ref().map_or(tokens, |visible| visible[row * tokens..][..tokens].iter().filter(|visible| **visible).count());
                part.entries.push((key(caption), kept));
                part.states.extend(states[row * tokens * channels..][..kept * channels].iter().flat_map(|value| value.to_le_bytes()));
            }
            if part.states.len() >= PART_BYTES {
                break;
            }
        }
        Ok(part)
    }

    /// What lies in a folder of the wanted captions; parts that cannot be believed are removed.
    fn read_parts(&self, folder: &Path, wanted: &BTreeMap<Key, &str>) -> Result<Cache, TrainError> {
        let failed = |source| TrainError::io(folder, source);
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "states") {
                paths.push(path);
            }
        }
        paths.sort();
        let mut cache = Cache { parts: Vec::new(), places: HashMap::new() };
        for path in paths {
            let entries = read_entries(&path, self.channels(), self.condition.token_count).ok();
            let needed = |entries: &Vec<(Key, usize)>| entries.iter().any(|(key, _)| wanted.contains_key(key));
            match entries {
                Some(entries) if !needed(&entries) => {}
                Some(entries) if checksum_holds(&path).unwrap_or(false) => cache.add(path, &entries, self.channels()),
                _ => {
                    crate::say!("warning: {}: damaged; made again", path.display());
                    fs::remove_file(&path).map_err(|source| TrainError::io(&path, source))?;
                }
            }
        }
        Ok(cache)
    }
}

impl Cache {
    fn add(&mut self, path: PathBuf, entries: &[(Key, usize)], channels: usize) {
        let mut offset = (COUNT_BYTES + entries.len() * ENTRY_BYTES) as u64;
        for &(key, kept) in entries {
            self.places.insert(key, Place { part: self.parts.len(), offset, kept });
            offset += (kept * channels * 4) as u64;
        }
        self.parts.push(path);
    }
}

/// Captions and their states, not yet written.
#[derive(Default)]
struct Part {
    /// Keys, and how many tokens are kept of each.
    entries: Vec<(Key, usize)>,
    /// One caption after the other, little-endian.
    states: Vec<u8>,
}

impl Part {
    /// The same captions have the same name.
    fn name(&self) -> String {
        let mut hasher = Sha256::new();
        self.entries.iter().for_each(|(key, _)| hasher.update(key));
        crate::checkpoint::hex(&hasher.finalize()[..16])
    }

    /// The file: count, entries, states, and the SHA-256 of all that.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(COUNT_BYTES + self.entries.len() * ENTRY_BYTES + self.states.len() + CHECKSUM_BYTES);
        bytes.extend((self.entries.len() as u32).to_le_bytes());
        for (key, kept) in &self.entries {
            bytes.extend(key);
            bytes.extend((*kept as u32).to_le_bytes());
        }
        bytes.extend(&self.states);
        let checksum = Sha256::digest(&bytes);
        bytes.extend(checksum);
        bytes
    }
}

fn key(caption: &str) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&Sha256::digest(caption)[..size_of::<Key>()]);
    key
}

fn folder_name(encoder: &TextEncoderPart, checksum: &str, condition: &TextCondition) -> PathBuf {
    let mut hasher = Sha256::new();
    let special_tokens = encoder.text_tokenizer.as_ref().map(|text_tokenizer| format!("{:?}", text_tokenizer.special_tokens()));
    for text in [
        "text states".to_string(),
        checksum.to_string(),
        format!("{:?}", encoder.model.config()),
        encoder.text_tokenizer.as_ref().map_or(String::new(), |text_tokenizer| text_tokenizer.sha256()),
        special_tokens.unwrap_or_default(),
        format!("{condition:?}"),
        precision::current().name().to_string(),
        format!("{:?}", encoder.model.device()),
    ] {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    PathBuf::from(crate::checkpoint::hex(&hasher.finalize()[..16]))
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The captions of a part whose size is what they say; its numbers are not looked at.
fn read_entries(path: &Path, channels: usize, token_count: usize) -> io::Result<Vec<(Key, usize)>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let mut count = [0; COUNT_BYTES];
    reader.read_exact(&mut count)?;
    let count = u32::from_le_bytes(count) as usize;
    if count > PART_CAPTIONS + BATCH_SIZE {
        return Err(damaged("more captions than a part holds"));
    }
    let mut entries = Vec::with_capacity(count);
    let mut entry = [0; ENTRY_BYTES];
    for _ in 0..count {
        reader.read_exact(&mut entry)?;
        let (caption, kept) = entry.split_at(size_of::<Key>());
        let (mut key, mut kept_bytes) = (Key::default(), [0; 4]);
        key.copy_from_slice(caption);
        kept_bytes.copy_from_slice(kept);
        let kept = u32::from_le_bytes(kept_bytes) as usize;
        if kept > token_count {
            return Err(damaged("more tokens than a caption has"));
        }
        entries.push((key, kept));
    }
    let states: usize = entries.iter().map(|(_, kept)| kept * channels * 4).sum();
    let expected = COUNT_BYTES + count * ENTRY_BYTES + states + CHECKSUM_BYTES;
    if length == expected as u64 { Ok(entries) } else { Err(damaged("another size than its captions have")) }
}

/// Reads a part through without holding it.
fn checksum_holds(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let mut left = file.metadata()?.len().saturating_sub(CHECKSUM_BYTES as u64);
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    while left > 0 {
        let count = left.min(buffer.len() as u64) as usize;
        reader.read_exact(&mut buffer[..count])?;
        hasher.update(&buffer[..count]);
        left -= count as u64;
    }
    let mut checksum = [0; CHECKSUM_BYTES];
    reader.read_exact(&mut checksum)?;
    Ok(hasher.finalize()[..] == checksum)
}

fn read_at(path: &Path, offset: u64, count: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; count];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
