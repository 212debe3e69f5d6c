//! One picture: decoded from PNG, JPEG, WebP or SVG bytes, turned into numbers and back, written as PNG with text.
//!
//! Sizes are read from the header and checked against a pixel limit before anything is decoded, so that a "decompression bomb" costs
//! nothing. Transparency is composited on a stated background; EXIF orientation is applied. SVG is drawn by `resvg` without fonts and
//! without outside files: the same bytes give the same picture on every machine, and a picture cannot read its reader's disk.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use serde::{Deserialize, Serialize};

use crate::{DataError, PictureError, atomic_write};

mod svg; // drawn by resvg, hostile drawings refused

/// 8-bit RGB, row by row from the top left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    /// `height * width * 3` values.
    pub rgb: Vec<u8>,
}

/// How bytes become a picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeOptions {
    /// What shows through where the picture is transparent.
    pub background: [u8; 3],
    /// Larger pictures are refused before decoding.
    pub pixel_limit: u64,
    /// SVG only: length in pixels of the shorter side. Without it the size written in the file.
    pub svg_size: Option<u32>,
}

impl Default for DecodeOptions {
    /// White; 64 Mi pixels, which is above every common camera and costs at most half a gigabyte.
    fn default() -> Self {
        Self { background: [255; 3], pixel_limit: 1 << 26, svg_size: None }
    }
}

/// File name endings (lower case) of the pictures this crate reads.
pub const EXTENSIONS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "svg"];

/// Endings of pictures this crate does not read. Files with them are reported, not passed over.
pub const UNSUPPORTED_EXTENSIONS: [&str; 12] = ["gif", "bmp", "tif", "tiff", "avif", "heic", "heif", "jxl", "jp2", "ico", "svgz", "tga"];

impl Picture {
    /// From `height * width * 3` RGB bytes.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self, PictureError> {
        if width == 0 || height == 0 {
            return Err(PictureError::Empty { width: width as u64, height: height as u64 });
        }
        let expected = width.saturating_mul(height).saturating_mul(3);
        if rgb.len() != expected {
            return Err(PictureError::WrongLength { width, height, expected, found: rgb.len() });
        }
        Ok(Self { width, height, rgb })
    }

    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, rgb: colour.repeat(width * height) }
    }

    /// Decodes PNG, JPEG, WebP (first frame) or SVG, told apart by their first bytes.
    pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Self, PictureError> {
        // The decoders are foreign code fed with untrusted bytes: whatever they do is an error of this picture, not the end of the run.
        catch_unwind(AssertUnwindSafe(|| if svg::looks_like_svg(bytes) { svg::decode(bytes, options) } else { decode_raster(bytes, options) }))
            .unwrap_or_else(|_| Err(PictureError::Damaged { format: "unreadable", reason: "the decoder gave up".into() }))
    }

    /// Reads and decodes a file.
    pub fn open(path: &Path, options: &DecodeOptions) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(|error| DataError::io(path, error))?;
        Self::decode(&bytes, options).map_err(|reason| DataError::Picture { key: path.display().to_string(), reason })
    }

    /// [height, width, 3] in [-1, 1]: 0 becomes -1, 255 becomes 1.
    pub fn to_f32(&self) -> Vec<f32> {
        self.rgb.iter().map(|&value| value as f32 / 127.5 - 1.0).collect()
    }

    /// From [height, width, 3] in [-1, 1]; values outside are clamped, rounding is to nearest, not-a-number becomes black.
    pub fn from_f32(width: usize, height: usize, values: &[f32]) -> Result<Self, PictureError> {
        let rgb = values.iter().map(|&value| ((value + 1.0) * 127.5).round() as u8).collect();
        Self::new(width, height, rgb)
    }

    /// PNG bytes with text entries (iTXt, UTF-8). Same picture and text, same bytes.
    pub fn to_png(&self, text: &[(String, String)]) -> Result<Vec<u8>, PictureError> {
        encode_png(self, text)
    }

    /// Writes a PNG with text entries; the file appears whole or not at all.
    pub fn write_png(&self, path: &Path, text: &[(String, String)]) -> Result<(), DataError> {
        let bytes = self.to_png(text).map_err(|reason| DataError::Picture { key: path.display().to_string(), reason })?;
        atomic_write::write(path, &bytes)
    }

    /// Each pixel as a square of `factor` (at least 1) by `factor`: small pictures seen large, without blur.
    pub fn enlarged(&self, factor: usize) -> Self {
        let mut large = Self::filled(self.width * factor, self.height * factor, [0; 3]);
        for (place, pixel) in large.rgb.chunks_exact_mut(3).enumerate() {
            pixel.copy_from_slice(&self.pixel(place % large.width / factor, place / large.width / factor));
        }
        large
    }

    /// The RGB of one pixel. Panics outside the picture.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        assert!(x < self.width && y < self.height, "pixel ({x}, {y}) of a {}x{} picture", self.width, self.height);
        let start = (y * self.width + x) * 3;
        [self.rgb[start], self.rgb[start + 1], self.rgb[start + 2]]
    }
}

/// The text entries of a PNG (iTXt, tEXt, zTXt), in file order.
pub fn read_png_text(bytes: &[u8]) -> Result<Vec<(String, String)>, PictureError> {
    let damaged = |error: png::DecodingError| PictureError::Damaged { format: "PNG", reason: error.to_string() };
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_limits(png::Limits { bytes: 1 << 26 });
    let mut reader = decoder.read_info().map_err(damaged)?;
    // Text may also stand after the picture itself.
    reader.finish().map_err(damaged)?;
    let info = reader.info();
    let mut text = Vec::new();
    for chunk in &info.uncompressed_latin1_text {
        text.push((chunk.keyword.clone(), chunk.text.clone()));
    }
    for chunk in &info.compressed_latin1_text {
        text.push((chunk.keyword.clone(), chunk.get_text().map_err(damaged)?));
    }
    for chunk in &info.utf8_text {
        text.push((chunk.keyword.clone(), chunk.get_text().map_err(damaged)?));
    }
    Ok(text)
}

fn encode_png(picture: &Picture, text: &[(String, String)]) -> Result<Vec<u8>, PictureError> {
    let damaged = |error: png::EncodingError| PictureError::Damaged { format: "PNG", reason: error.to_string() };
    let too_large = |_| PictureError::TooManyPixels { width: picture.width as u64, height: picture.height as u64, limit: u32::MAX as u64 };
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width.try_into().map_err(too_large)?, picture.height.try_into().map_err(too_large)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Balanced);
    for (key, value) in text {
        let latin1 = key.chars().all(|character| matches!(character, ' '..='~' | '\u{a1}'..='\u{ff}'));
        if key.is_empty() || key.chars().count() > 79 || !latin1 {
            let reason = "expected 1 to 79 printable Latin-1 characters, as PNG demands".into();
            return Err(PictureError::Text { key: key.clone(), reason });
        }
        if value.contains('\0') {
            return Err(PictureError::Text { key: key.clone(), reason: "expected text without a zero character".into() });
        }
        encoder.add_itxt_chunk(key.clone(), value.clone()).map_err(damaged)?;
    }
    let mut writer = encoder.write_header().map_err(damaged)?;
    writer.write_image_data(&picture.rgb).map_err(damaged)?;
    writer.finish().map_err(damaged)?;
    Ok(bytes)
}

fn check_pixels(width: u64, height: u64, limit: u64) -> Result<(), PictureError> {
    if width == 0 || height == 0 {
        return Err(PictureError::Empty { width, height });
    }
    if width.saturating_mul(height) > limit {
        return Err(PictureError::TooManyPixels { width, height, limit });
    }
    Ok(())
}

fn decode_raster(bytes: &[u8], options: &DecodeOptions) -> Result<Picture, PictureError> {
    let format = image::guess_format(bytes).map_err(|_| PictureError::UnknownFormat { found: describe_start(bytes) })?;
    let name = match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::WebP => "WebP",
        other => return Err(PictureError::UnknownFormat { found: format!("{other:?}") }),
    };
    let damaged = |error: image::ImageError| PictureError::Damaged { format: name, reason: error.to_string() };

    if format == ImageFormat::Jpeg && !reaches_end_of_jpeg(bytes) {
        return Err(PictureError::Damaged { format: name, reason: "it stops before its end marker".to_string() });
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    // 8 bytes a pixel is the widest layout (16-bit RGBA); as much again for the decoder's own rows and tables.
    limits.max_alloc = Some(options.pixel_limit.saturating_mul(16).saturating_add(1 << 24));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    check_pixels(width as u64, height as u64, options.pixel_limit)?;
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    decoded.apply_orientation(orientation);
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    let rgb = if decoded.color().has_alpha() { composite(decoded.into_rgba8().as_raw(), options.background) } else { decoded.into_rgb8().into_raw() };
    Picture::new(width, height, rgb)
}

/// Whether a JPEG goes on to the marker that ends it. Decoders fill in what is missing, so that a file cut short would pass for a picture that is half grey.
fn reaches_end_of_jpeg(bytes: &[u8]) -> bool {
    let mut at = 2; // behind the marker that begins the picture
    while let Some(&[first, marker]) = bytes.get(at..at + 2).and_then(|pair| pair.first_chunk()) {
        at += match (first, marker) {
            (0xff, 0xd9) => return true,
            // Restart markers, an escaped 0xff and the one marker without a length stand alone.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd7) => 2,
            // Fill bytes, and the coded picture between markers.
            (0xff, 0xff) | (0..0xff, _) => 1,
            (0xff, _) => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
        };
    }
    false
}

/// Straight (not premultiplied) RGBA over a background, rounded to nearest.
fn composite(rgba: &[u8], background: [u8; 3]) -> Vec<u8> {
    let blend = |colour: u8, alpha: u32, behind: u8| ((colour as u32 * alpha + behind as u32 * (255 - alpha) + 127) / 255) as u8;
    rgba.chunks_exact(4)
        .flat_map(|pixel| {
            let alpha = pixel[3] as u32;
            [0, 1, 2].map(|channel| blend(pixel[channel], alpha, background[channel]))
        })
        .collect()
}

/// The first bytes in words, for the message about an unknown format.
fn describe_start(bytes: &[u8]) -> String {
    match bytes {
        [] => "an empty file".into(),
        [0x1f, 0x8b, ..] => "gzip data (a compressed SVG must be unpacked first)".into(),
        [b'G', b'I', b'F', ..] => "a GIF".into(),
        _ => format!("{} bytes starting with {:02x?}", bytes.len(), &bytes[..bytes.len().min(8)]),
    }
}

#[cfg(test)]
mod tests;
