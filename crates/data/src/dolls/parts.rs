//! The parts a doll is put together from, and the putting together.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::Path;

use image::{ImageFormat, ImageReader, Limits};
use serde::{Deserialize, Serialize};

use super::config::Config;
use crate::{DataError, Picture, atomic_write, shard_writer};

/// The value of each attribute of [`Parts`], in order; `None` where the doll has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Doll(pub Vec<Option<usize>>);

/// All parts of a data set of dolls.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// Side of the pictures in pixels.
    size: usize,
    background: [u8; 3],
    /// Side of the parts in pixels, which divides `size`.
    side: usize,
    /// From the back of the picture to its front.
    pub attributes: Vec<Attribute>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    pub name: String,
    pub may_be_absent: bool,
    pub values: Vec<Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// In captions and in the fields of the shards.
    pub words: String,
    /// PNG bytes as they came.
    png: Vec<u8>,
    /// [side, side, 4], alpha not multiplied in.
    rgba: Vec<u8>,
}

/// `parts.json` of the archive.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    size: usize,
    background: [u8; 3],
    attributes: Vec<IndexedAttribute>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IndexedAttribute {
    name: String,
    may_be_absent: bool,
    /// Words and the PNG's name in the archive.
    values: Vec<(String, String)>,
}

/// Name, whether it may be absent, words and PNG bytes of each value.
pub type Encoded = (String, bool, Vec<(String, Vec<u8>)>);

const INDEX: &str = "parts.json";
/// No archive of parts is larger.
const BYTE_LIMIT: u64 = 1 << 28;

impl Parts {
    /// The parts that the recipe names, from its folders of PNGs.
    pub(super) fn read_folders(config: &Config, source_folder: &Path) -> Result<Self, DataError> {
        let mut attributes = Vec::new();
        for attribute in &config.attributes {
            let mut values = Vec::new();
            for (file, words) in &attribute.values {
                let path = source_folder.join(&attribute.folder).join(format!("{file}.png"));
                let png = std::fs::read(&path).map_err(|error| DataError::io(&path, error))?;
                values.push((words.clone(), png));
            }
            attributes.push((attribute.name.clone(), attribute.absent > 0.0, values));
        }
        Self::new(config.size, config.background, attributes).map_err(|reason| DataError::Source { path: source_folder.to_path_buf(), reason })
    }

    /// The archive beside the shards of a data set of dolls.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let damaged = |reason: String| DataError::Source { path: path.to_path_buf(), reason };
        let file = std::fs::File::open(path).map_err(|error| DataError::io(path, error))?;
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(file.take(BYTE_LIMIT)).entries().map_err(|error| damaged(error.to_string()))? {
            let mut entry = entry.map_err(|error| damaged(error.to_string()))?;
            let name = entry.path().map_err(|error| damaged(error.to_string()))?.to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(|error| damaged(error.to_string()))?;
            files.insert(name, bytes);
        }
        let index = files.get(INDEX).ok_or_else(|| damaged(format!("expected `{INDEX}` in the archive, found none")))?;
        let index: Index = serde_json::from_slice(index).map_err(|error| damaged(format!("{INDEX}: {error}")))?;
        let mut attributes = Vec::new();
        for attribute in index.attributes {
            let part = |(words, file): (String, String)| match files.get(&file) {
                Some(png) => Ok((words, png.clone())),
                None => Err(damaged(format!("expected `{file}` in the archive, found none"))),
            };
            attributes.push((attribute.name, attribute.may_be_absent, attribute.values.into_iter().map(part).collect::<Result<_, _>>()?));
        }
        Self::new(index.size, index.background, attributes).map_err(damaged)
    }

    /// Writes what [`Parts::read`] reads; the file appears whole or not at all.
    pub(super) fn write(&self, path: &Path) -> Result<(), DataError> {
        let name = |attribute: usize, value: usize| format!("{attribute:02}/{value:03}.png");
        let indexed = self.attributes.iter().enumerate().map(|(number, attribute)| IndexedAttribute {
            name: attribute.name.clone(),
            may_be_absent: attribute.may_be_absent,
            values: attribute.values.iter().enumerate().map(|(value, part)| (part.words.clone(), name(number, value))).collect(),
        });
        let index = Index { size: self.size, background: self.background, attributes: indexed.collect() };
        let index = serde_json::to_vec_pretty(&index).map_err(|error| DataError::io(path, error))?;
        let pngs = self.attributes.iter().enumerate().flat_map(|(number, attribute)| {
            let parts = attribute.values.iter().enumerate();
            parts.map(move |(value, part)| (name(number, value), part.png.as_slice()))
        });
        let files = std::iter::once((INDEX.to_owned(), index.as_slice())).chain(pngs);
        let bytes = shard_writer::tar(files, false).map_err(|error| DataError::io(path, error))?;
        atomic_write::write(path, &bytes)
    }

    /// Pictures of `size` pixels, a multiple of the parts' own, all of one size; attributes from the back of the picture to its front.
    pub fn new(size: usize, background: [u8; 3], attributes: Vec<Encoded>) -> Result<Self, String> {
        let mut side = None;
        let mut decoded = Vec::new();
        for (name, may_be_absent, parts) in attributes {
            let mut values = Vec::new();
            for (words, png) in parts {
                let rgba = decode_part(&png).map_err(|reason| format!("{name} `{words}`: {reason}"))?;
                let expected = *side.get_or_insert(rgba.width());
                if (rgba.width(), rgba.height()) != (expected, expected) {
                    let (width, height) = (rgba.width(), rgba.height());
                    return Err(format!("{name} `{words}`: expected {expected}x{expected} pixels as the other parts, found {width}x{height}"));
                }
                values.push(Value { words, png, rgba: rgba.into_raw() });
            }
            decoded.push(Attribute { name, may_be_absent, values });
        }
        let side = side.map_or(0, |side| side as usize);
        if side == 0 || size == 0 || !size.is_multiple_of(side) {
            return Err(format!("expected `size` to be a multiple of the parts' {side} pixels, found {size}"));
        }
        Ok(Self { size, background, side, attributes: decoded })
    }

    /// Side of the pictures in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The doll whose fields these are (name of the attribute -> words). A value this set does not have is an error that names it.
    pub fn doll(&self, fields: &BTreeMap<String, String>) -> Result<Doll, String> {
        let value = |attribute: &Attribute| match fields.get(&attribute.name) {
            None if attribute.may_be_absent => Ok(None),
            None => Err(format!("expected a field `{}`, found none", attribute.name)),
            Some(words) => match attribute.values.iter().position(|value| value.words == *words) {
                Some(place) => Ok(Some(place)),
                None => Err(format!("{}: expected words of a part, found `{words}`", attribute.name)),
            },
        };
        self.attributes.iter().map(value).collect::<Result<_, _>>().map(Doll)
    }

    /// The doll on the background, each pixel of the parts a square of pixels.
    pub fn compose(&self, doll: &Doll) -> Picture {
        let mut small = Picture::filled(self.side, self.side, self.background);
        for (attribute, &value) in self.attributes.iter().zip(&doll.0) {
            let Some(value) = value else { continue };
            for (pixel, part) in small.rgb.chunks_exact_mut(3).zip(attribute.values[value].rgba.chunks_exact(4)) {
                let alpha = part[3] as u32;
                for (under, &over) in pixel.iter_mut().zip(part) {
                    *under = ((over as u32 * alpha + *under as u32 * (255 - alpha) + 127) / 255) as u8;
                }
            }
        }
        let factor = self.size / self.side;
        let place = |at: usize| (at / self.size / factor) * self.side + at % self.size / factor;
        let rgb = (0..self.size * self.size).flat_map(|at| small.rgb[place(at) * 3..place(at) * 3 + 3].iter().copied()).collect();
        Picture { width: self.size, height: self.size, rgb }
    }
}

fn decode_part(png: &[u8]) -> Result<image::RgbaImage, String> {
    let mut reader = ImageReader::with_format(Cursor::new(png), ImageFormat::Png);
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(4096), Some(4096));
    reader.limits(limits);
    reader.decode().map(|picture| picture.to_rgba8()).map_err(|error| error.to_string())
}
