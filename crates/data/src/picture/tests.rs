//! Pictures: formats, orientation, alpha, bombs, text in PNGs.

use super::*;

use image::{ExtendedColorType, ImageEncoder};
use proptest::prelude::*;

fn options() -> DecodeOptions {
    DecodeOptions::default()
}

fn encoded(format: ImageFormat, width: u32, height: u32, colour: ExtendedColorType, values: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match format {
        ImageFormat::Png => image::codecs::png::PngEncoder::new(&mut bytes).write_image(values, width, height, colour).unwrap(),
        ImageFormat::WebP => image::codecs::webp::WebPEncoder::new_lossless(&mut bytes).write_image(values, width, height, colour).unwrap(),
        ImageFormat::Jpeg => image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 100).write_image(values, width, height, colour).unwrap(),
        other => panic!("no encoder for {other:?}"),
    }
    bytes
}

fn sample_picture() -> Picture {
    Picture::new(5, 3, (0..45).map(|value| (value * 5) as u8).collect()).unwrap()
}

/// A PNG that says it is of this size and holds nothing.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    bytes.extend(&header);
    bytes.extend(crc32fast::hash(&header).to_be_bytes());
    for (kind, data) in [(b"IDAT", &[0u8; 4][..]), (b"IEND", &[])] {
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(kind);
        bytes.extend(data);
        bytes.extend(crc32fast::hash(&[kind, data].concat()).to_be_bytes());
    }
    bytes
}

#[test]
fn lossless_formats_give_back_the_pixels() {
    let picture = sample_picture();
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let bytes = encoded(format, 5, 3, ExtendedColorType::Rgb8, &picture.rgb);
        assert_eq!(Picture::decode(&bytes, &options()).unwrap(), picture, "{format:?}");
    }
    assert_eq!(Picture::decode(&picture.to_png(&[]).unwrap(), &options()).unwrap(), picture);
}

#[test]
fn grey_palette_and_16_bit_become_rgb() {
    let grey = encoded(ImageFormat::Png, 2, 1, ExtendedColorType::L8, &[7, 200]);
    assert_eq!(Picture::decode(&grey, &options()).unwrap().rgb, [7, 7, 7, 200, 200, 200]);
    let deep: Vec<u8> = [0u16, 65535, 257 * 100].iter().flat_map(|value| value.to_ne_bytes()).collect();
    let deep = encoded(ImageFormat::Png, 1, 1, ExtendedColorType::Rgb16, &deep);
    assert_eq!(Picture::decode(&deep, &options()).unwrap().rgb, [0, 255, 100]);
}

#[test]
fn transparency_is_composited_on_the_background() {
    for format in [ImageFormat::Png, ImageFormat::WebP] {
        let bytes = encoded(format, 3, 1, ExtendedColorType::Rgba8, &[200, 0, 0, 255, 200, 0, 0, 0, 200, 0, 0, 128]);
        let over = DecodeOptions { background: [0, 100, 255], ..options() };
        let found = Picture::decode(&bytes, &over).unwrap();
        assert_eq!(found.rgb, [200, 0, 0, 0, 100, 255, 100, 50, 127], "{format:?}");
    }
}

#[test]
fn exif_orientation_is_applied() {
    for orientation in 1..=8 {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("goldens/exif_{orientation}.jpg"));
        let picture = Picture::open(&path, &options()).unwrap();
        assert_eq!((picture.width, picture.height), (24, 16), "orientation {orientation}");
        for ((x, y), expected) in [((3, 3), [255, 0, 0]), ((20, 12), [0, 0, 255]), ((3, 12), [255; 3]), ((20, 3), [255; 3])] {
            let found = picture.pixel(x, y);
            let far = found.iter().zip(expected).any(|(&found, expected): (&u8, u8)| found.abs_diff(expected) > 8);
            assert!(!far, "orientation {orientation}: pixel ({x}, {y}) expected {expected:?}, found {found:?}");
        }
    }
}

#[test]
fn svg_is_drawn_on_the_background_at_the_size_asked_for() {
    let svg = br##"<svg xmlns="http://www.w3.org/2000/svg" width="10" height="20"><rect width="10" height="10" fill="#f00"/></svg>"##;
    let drawn = Picture::decode(svg, &DecodeOptions { background: [1, 2, 3], svg_size: Some(40), ..options() }).unwrap();
    assert_eq!((drawn.width, drawn.height), (40, 80));
    assert_eq!((drawn.pixel(20, 20), drawn.pixel(20, 60)), ([255, 0, 0], [1, 2, 3]));
    let own_size = Picture::decode(svg, &options()).unwrap();
    assert_eq!((own_size.width, own_size.height), (10, 20));
}

#[test]
fn bombs_are_refused_before_decoding() {
    let limited = DecodeOptions { pixel_limit: 1_000_000, ..options() };
    let refused = |bytes: &[u8], what: &str| match Picture::decode(bytes, &limited) {
        Err(PictureError::TooManyPixels { .. }) => {}
        other => panic!("{what}: {:?}", other.map(|picture| (picture.width, picture.height))),
    };
    refused(&png_header(100_000, 100_000), "PNG");
    refused(&encoded(ImageFormat::WebP, 2000, 600, ExtendedColorType::Rgb8, &vec![0; 2000 * 600 * 3]), "WebP");
    refused(&encoded(ImageFormat::Jpeg, 2000, 600, ExtendedColorType::Rgb8, &vec![0; 2000 * 600 * 3]), "JPEG");
    refused(br#"<svg xmlns="http://www.w3.org/2000/svg" width="100000" height="100000"/>"#, "SVG");
    refused(br#"<svg xmlns="http://www.w3.org/2000/svg" width="1e30" height="1e30"/>"#, "endless SVG");
}

/// Also with a thumbnail, which is a whole JPEG in itself, in front.
#[test]
fn jpegs_that_are_cut_short_are_damaged() {
    let values: Vec<u8> = (0..64 * 48 * 3).map(|value| (value * 7 % 251) as u8).collect();
    let plain = encoded(ImageFormat::Jpeg, 64, 48, ExtendedColorType::Rgb8, &values);
    let thumbnail = encoded(ImageFormat::Jpeg, 8, 8, ExtendedColorType::Rgb8, &values[..8 * 8 * 3]);
    let length = u16::try_from(thumbnail.len() + 2).unwrap().to_be_bytes();
    let with_thumbnail = [&plain[..2], &[0xff, 0xe5], &length[..], &thumbnail[..], &plain[2..]].concat();
    for whole in [plain, with_thumbnail] {
        assert_eq!(Picture::decode(&whole, &options()).unwrap().width, 64);
        assert_eq!(Picture::decode(&[&whole[..], b"more behind it"].concat(), &options()).unwrap().width, 64);
        for part in [whole.len() / 2, whole.len() * 9 / 10, whole.len() - 1] {
            assert!(matches!(Picture::decode(&whole[..part], &options()), Err(PictureError::Damaged { format: "JPEG", .. })), "{part} of {}", whole.len());
        }
    }
}

#[test]
fn hostile_svg_is_an_error() {
    let deep = format!(r#"<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{}{}</svg>"#, "<g>".repeat(100_000), "</g>".repeat(100_000));
    assert!(matches!(Picture::decode(deep.as_bytes(), &options()), Err(PictureError::Damaged { format: "SVG", .. })));
    let mut entities = String::from("<?xml version=\"1.0\"?><!DOCTYPE svg [<!ENTITY a0 \"xxxxxxxxxx\">");
    for level in 1..12 {
        entities.push_str(&format!("<!ENTITY a{level} \"{}\">", format!("&a{};", level - 1).repeat(10)));
    }
    entities.push_str("]><svg xmlns=\"http://www.w3.org/2000/svg\" width=\"9\" height=\"9\"><desc>&a11;</desc></svg>");
    assert!(matches!(Picture::decode(entities.as_bytes(), &options()), Err(PictureError::Damaged { format: "SVG", .. })));
}

/// Chains and circles of references, and references whose expansion doubles with each.
#[test]
fn svg_whose_references_have_no_end_is_an_error() {
    let svg = |content: &str| format!(r#"<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{content}</svg>"#);
    let message = |content: &str| Picture::decode(svg(content).as_bytes(), &options()).unwrap_err().to_string();
    let chain = |link: &dyn Fn(usize) -> String, count: usize| {
        (0..count).map(link).collect::<String>() + r#"<rect width="9" height="9" fill="url(#n0)" clip-path="url(#n0)"/>"#
    };
    let pattern = |n: usize| format!(r#"<pattern id="n{n}" width="3" height="3"><rect width="3" height="3" style="fill: url( '#n{}' )"/></pattern>"#, n + 1);
    let clip = |n: usize| format!(r#"<clipPath id="n{n}" clip-path="url(#n{})"><rect width="9" height="9"/></clipPath>"#, n + 1);
    let twice = |n: usize| format!("<g id=\"n{n}\"><use href=\"#n{0}\"/><use href=\"#n{0}\"/></g>", n + 1);
    for link in [&pattern as &dyn Fn(usize) -> String, &clip] {
        assert!(message(&chain(link, 1000)).contains("references at most 64 deep"), "{}", message(&chain(link, 1000)));
    }
    assert!(message(&chain(&twice, 40)).contains("elements once references are followed"));
    assert!(message(r##"<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g>"##).contains("none in a circle"));
    assert!(
        message(r#"<filter id="f"><feTurbulence numOctaves="2000000000"/></filter><rect width="9" height="9" filter="url(#f)"/>"#)
            .contains("at most 16 octaves")
    );
    assert!(message(&format!("<style>{}</style>", ".a { fill: url(#p) }".repeat(600))).contains("found 600"));
    // As real drawings have them.
    let shaded = r##"<defs><linearGradient id="a"><stop stop-color="#f00"/></linearGradient><linearGradient id="b" href="#a"/></defs><rect width="9" height="9" fill="url(#b)"/>"##;
    assert_eq!(Picture::decode(svg(shaded).as_bytes(), &options()).unwrap().pixel(4, 4), [255, 0, 0]);
    assert!(Picture::decode(svg(&chain(&pattern, 30)).as_bytes(), &options()).is_ok());
}

#[test]
fn svg_that_would_be_drawn_incompletely_is_an_error() {
    for element in [r#"<image href="/etc/hostname" width="5" height="5"/>"#, "<text>fox</text>"] {
        let svg = format!(r#"<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{element}</svg>"#);
        let message = Picture::decode(svg.as_bytes(), &options()).unwrap_err().to_string();
        assert!(message.contains("would be left out"), "{message}");
    }
}

#[test]
fn every_truncation_is_an_error_or_a_picture_but_no_panic() {
    let picture = Picture::filled(9, 9, [10, 20, 30]);
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Jpeg] {
        let bytes = encoded(format, 9, 9, ExtendedColorType::Rgb8, &picture.rgb);
        for length in 0..bytes.len() {
            let _ = Picture::decode(&bytes[..length], &options());
        }
        assert!(Picture::decode(&bytes[..bytes.len() / 2], &options()).is_err(), "{format:?}");
    }
    let png = picture.to_png(&[]).unwrap();
    for length in 0..png.len() - 12 {
        assert!(Picture::decode(&png[..length], &options()).is_err(), "PNG of {length} bytes");
    }
}

#[test]
fn unknown_formats_are_named() {
    for (bytes, expected) in [(&b""[..], "an empty file"), (b"GIF89a.....", "GIF"), (b"\x1f\x8b\x08", "gzip"), (b"hello", "5 bytes")] {
        let message = Picture::decode(bytes, &options()).unwrap_err().to_string();
        assert!(message.to_lowercase().contains(&expected.to_lowercase()), "{message}");
    }
}

#[test]
fn numbers_round_trip_and_out_of_range_is_clamped() {
    let all = Picture::new(256, 1, (0..=255).flat_map(|value| [value; 3]).collect()).unwrap();
    let numbers = all.to_f32();
    assert_eq!((numbers[0], numbers[767]), (-1.0, 1.0));
    assert_eq!(Picture::from_f32(256, 1, &numbers).unwrap(), all);
    assert_eq!(Picture::from_f32(1, 1, &[-7.0, f32::NAN, f32::INFINITY]).unwrap().rgb, [0, 0, 255]);
    assert!(matches!(Picture::from_f32(2, 2, &[0.0; 3]), Err(PictureError::WrongLength { expected: 12, found: 3, .. })));
}

#[test]
fn text_comes_back_and_impossible_keys_are_refused() {
    let text = vec![("prompt".to_owned(), "a red fox, 日本 🦊\nsecond line".to_owned()), ("seed".to_owned(), "7".to_owned())];
    let bytes = sample_picture().to_png(&text).unwrap();
    assert_eq!(read_png_text(&bytes).unwrap(), text);
    assert_eq!(bytes, sample_picture().to_png(&text).unwrap());
    for key in ["", &"k".repeat(80), "日本"] {
        assert!(matches!(sample_picture().to_png(&[(key.into(), "x".into())]), Err(PictureError::Text { .. })));
    }
    assert!(sample_picture().to_png(&[("key".into(), "a\0b".into())]).is_err());
    assert!(read_png_text(b"no png").is_err());
}

#[test]
fn unwritable_output_is_an_error_with_its_path() {
    let message = sample_picture().write_png(Path::new("/nonexistent-folder/x.png"), &[]).unwrap_err().to_string();
    assert!(message.contains("/nonexistent-folder/x.png"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_bytes_never_panic(start in 0usize..6, tail in prop::collection::vec(any::<u8>(), 0..400)) {
        let starts: [&[u8]; 6] = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x90\x01\0\0WEBPVP8 ", b"<svg ", b"RIFF\x90\x01\0\0WEBPVP8X"];
        let bytes = [starts[start], &tail].concat();
        let _ = Picture::decode(&bytes, &DecodeOptions { pixel_limit: 1 << 16, ..DecodeOptions::default() });
        let _ = read_png_text(&bytes);
    }

    #[test]
    fn damaged_pictures_never_panic(place in 0usize..2000, value in any::<u8>(), kind in 0usize..3) {
        let format = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP][kind];
        let values: Vec<u8> = (0..16 * 16 * 3).map(|value| (value % 251) as u8).collect();
        let mut bytes = encoded(format, 16, 16, ExtendedColorType::Rgb8, &values);
        let place = place % bytes.len();
        bytes[place] = value;
        let _ = Picture::decode(&bytes, &DecodeOptions { pixel_limit: 1 << 16, ..DecodeOptions::default() });
    }
}
