//! Resampling, against Pillow's.

use super::*;

use std::path::Path;

use crate::picture::DecodeOptions;

fn golden(name: &str) -> Picture {
    Picture::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(name), &DecodeOptions::default()).unwrap()
}

#[test]
fn agrees_with_pillow_to_one_level() {
    let source = golden("resize_source.png");
    for (filter, name) in [(Filter::Lanczos, "lanczos"), (Filter::Bicubic, "bicubic"), (Filter::Bilinear, "bilinear"), (Filter::Area, "area")] {
        for (width, height) in [(8, 5), (40, 31)] {
            let expected = golden(&format!("resize_{name}_{width}x{height}.png"));
            let found = resize(&source, width, height, filter);
            // Pillow rounds to 8 bits between the two passes, which the second carries to at most one level.
            let worst = found.rgb.iter().zip(&expected.rgb).map(|(found, expected)| found.abs_diff(*expected)).max().unwrap();
            assert!(worst <= 1, "{name} {width}x{height}: off by {worst} levels");
        }
    }
}

#[test]
fn one_colour_stays_that_colour() {
    let plain = Picture::filled(13, 7, [3, 128, 254]);
    for filter in [Filter::Lanczos, Filter::Bicubic, Filter::Bilinear, Filter::Area] {
        for (width, height) in [(1, 1), (5, 5), (40, 2), (13, 7)] {
            assert_eq!(resize(&plain, width, height, filter), Picture::filled(width, height, [3, 128, 254]), "{filter:?}");
        }
    }
}

#[test]
fn area_is_the_exact_mean() {
    let source = Picture::new(4, 2, [0, 10, 100, 200, 20, 30, 40, 60].iter().flat_map(|&value| [value; 3]).collect()).unwrap();
    assert_eq!(resize(&source, 2, 1, Filter::Area).rgb, [15, 15, 15, 100, 100, 100]);
}
