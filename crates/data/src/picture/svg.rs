//! SVG, drawn by `resvg`. It follows nested elements and references by recursion and expands them as often as they are used, so what could exhaust its stack,
//! the memory or anybody's patience is refused before.

use std::collections::HashMap;

use resvg::usvg::roxmltree::{Document, Node, NodeId, ParsingOptions};
use resvg::{tiny_skia, usvg};

use super::{DecodeOptions, Picture, check_pixels};
use crate::PictureError;

// Real drawings stay far below all of these.
const NESTING_LIMIT: usize = 256;
const REFERENCE_DEPTH_LIMIT: usize = 64;
/// References in style sheets, which are counted and not followed.
const STYLED_REFERENCE_LIMIT: usize = 500;
/// Elements once every reference is replaced by what it refers to.
const EXPANDED_LIMIT: usize = 1_000_000;
const NOISE_OCTAVE_LIMIT: f64 = 16.0;
/// Bytes of stack, which the limits above cannot fill.
const STACK_SIZE: usize = 64 << 20;

/// An XML document that mentions `<svg` early enough to be one.
pub(super) fn looks_like_svg(bytes: &[u8]) -> bool {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let start = &text[..text.len().min(4096)];
    start.starts_with(b"<") && start.windows(4).any(|window| window == b"<svg")
}

/// Draws it on the background, in a thread whose stack is large enough.
pub(super) fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Picture, PictureError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_SIZE).spawn_scoped(scope, || draw(bytes, options));
        let thread = thread.map_err(|error| damaged(format!("no thread to draw it: {error}")))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn damaged(reason: String) -> PictureError {
    PictureError::Damaged { format: "SVG", reason }
}

fn draw(bytes: &[u8], options: &DecodeOptions) -> Result<Picture, PictureError> {
    let parsing = usvg::Options {
        // Neither files nor addresses: a data set must not be able to read the disk of whoever trains on it.
        image_href_resolver: usvg::ImageHrefResolver { resolve_data: Box::new(|_, _, _| None), resolve_string: Box::new(|_, _| None) },
        ..usvg::Options::default()
    };
    check_nesting(bytes).map_err(damaged)?;
    let text = std::str::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
    let document = Document::parse_with_options(text, ParsingOptions { allow_dtd: true, ..ParsingOptions::default() });
    let document = document.map_err(|error| damaged(error.to_string()))?;
    check_elements(&document).map_err(damaged)?;
    let tree = usvg::Tree::from_xmltree(&document, &parsing).map_err(|error| damaged(error.to_string()))?;
    let (width, height) = (tree.size().width() as f64, tree.size().height() as f64);
    let scale = options.svg_size.map_or(1.0, |size| size as f64 / width.min(height));
    let extent = |length: f64| (length * scale).round().max(1.0) as u64;
    let (pixels_wide, pixels_high) = (extent(width), extent(height));
    check_pixels(pixels_wide, pixels_high, options.pixel_limit)?;

    let [red, green, blue] = options.background;
    let mut canvas =
        tiny_skia::Pixmap::new(pixels_wide as u32, pixels_high as u32).ok_or_else(|| damaged(format!("cannot draw {pixels_wide}x{pixels_high} pixels")))?;
    canvas.fill(tiny_skia::Color::from_rgba8(red, green, blue, 255));
    let transform = tiny_skia::Transform::from_scale((pixels_wide as f64 / width) as f32, (pixels_high as f64 / height) as f32);
    resvg::render(&tree, transform, &mut canvas.as_mut());
    // The background is opaque, hence every pixel is, and premultiplied equals straight.
    let rgb = canvas.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
    Picture::new(pixels_wide as usize, pixels_high as usize, rgb)
}

/// Before the text is parsed, which recurses as well.
fn check_nesting(bytes: &[u8]) -> Result<(), String> {
    let mut depth = 0usize;
    for (position, &byte) in bytes.iter().enumerate() {
        match (byte, bytes.get(position + 1)) {
            (b'<', Some(b'/')) => depth = depth.saturating_sub(1),
            (b'<', Some(next)) if next.is_ascii_alphabetic() || *next == b'_' => depth += 1,
            (b'/', Some(b'>')) => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_LIMIT {
            return Err(format!("expected elements nested at most {NESTING_LIMIT} deep"));
        }
    }
    Ok(())
}

/// Refuses what would be left out, and what would take for ever.
fn check_elements(document: &Document) -> Result<(), String> {
    let mut styled = 0;
    for node in document.descendants().filter(Node::is_element) {
        let left_out = |hint| Err(format!("expected paths only, found a `<{}>` element, which would be left out; hint: {hint}", node.tag_name().name()));
        match node.tag_name().name() {
            "text" => return left_out("turn its text into paths"),
            "image" | "feImage" => return left_out("embed no pictures"),
            "style" => {
                styled += node.descendants().filter(Node::is_text).filter_map(|inner| inner.text()).map(|text| text.matches("url(").count()).sum::<usize>()
            }
            "feTurbulence" => {
                let octaves = node.attribute("numOctaves").and_then(|value| value.trim().parse::<f64>().ok());
                if let Some(octaves) = octaves.filter(|octaves| *octaves > NOISE_OCTAVE_LIMIT) {
                    return Err(format!("expected feTurbulence of at most {NOISE_OCTAVE_LIMIT} octaves, found {octaves}"));
                }
            }
            _ => {}
        }
    }
    if styled > STYLED_REFERENCE_LIMIT {
        return Err(format!("expected at most {STYLED_REFERENCE_LIMIT} references in style sheets, found {styled}"));
    }
    let by_id = document.descendants().filter_map(|node| Some((node.attribute("id")?, node))).collect();
    References { by_id, known: HashMap::new() }.follow(document.root(), 0).map(drop)
}

/// What elements refer to, by `url(#id)` and `href`.
struct References<'a, 'input> {
    by_id: HashMap<&'a str, Node<'a, 'input>>,
    /// Of elements that were followed.
    known: HashMap<NodeId, Extent>,
}

#[derive(Clone, Copy)]
struct Extent {
    /// Longest chain of references.
    depth: usize,
    /// Elements, those referred to among them.
    count: usize,
}

impl<'a, 'input> References<'a, 'input> {
    fn follow(&mut self, node: Node<'a, 'input>, depth: usize) -> Result<Extent, String> {
        if let Some(extent) = self.known.get(&node.id()) {
            return Ok(*extent);
        }
        let too_deep = || format!("expected references at most {REFERENCE_DEPTH_LIMIT} deep, and none in a circle");
        if depth > REFERENCE_DEPTH_LIMIT {
            return Err(too_deep());
        }
        let mut extent = Extent { depth: 0, count: 0 };
        for inner in node.descendants() {
            extent.count += 1;
            for id in inner.attributes().flat_map(|attribute| referred(attribute.name(), attribute.value())) {
                let Some(target) = self.by_id.get(id).copied() else { continue };
                let target = self.follow(target, depth + 1)?;
                extent = Extent { depth: extent.depth.max(target.depth + 1), count: extent.count.saturating_add(target.count) };
            }
        }
        if extent.depth > REFERENCE_DEPTH_LIMIT {
            return Err(too_deep());
        }
        if extent.count > EXPANDED_LIMIT {
            return Err(format!("expected at most {EXPANDED_LIMIT} elements once references are followed"));
        }
        self.known.insert(node.id(), extent);
        Ok(extent)
    }
}

/// The ids that an attribute refers to.
fn referred<'a>(name: &str, value: &'a str) -> Vec<&'a str> {
    if name == "href" {
        return value.trim().strip_prefix('#').into_iter().collect();
    }
    let clean = |rest: &'a str| rest.trim_start_matches(['\'', '"', ' ']).strip_prefix('#').map(|id| id.split(['\'', '"', ')', ' ']).next().unwrap_or(id));
    value.split("url(").skip(1).filter_map(clean).collect()
}
