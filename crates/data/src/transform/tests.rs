//! Resize, crop, flip and colour jitter.

use super::*;

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;

fn rng(seed: u64) -> ChaCha12Rng {
    ChaCha12Rng::seed_from_u64(seed)
}

/// Red, green, blue thirds from left to right; 12x4.
fn thirds() -> Picture {
    let row: Vec<u8> = [[255, 0, 0], [0, 255, 0], [0, 0, 255]].iter().flat_map(|colour: &[u8; 3]| colour.repeat(4)).collect();
    Picture::new(12, 4, row.repeat(4)).unwrap()
}

#[test]
fn crops_do_what_they_say() {
    let apply = |crop| Transform { crop, background: [9; 3], ..Transform::new(4) }.apply(&thirds(), &mut rng(0));
    assert_eq!(apply(Crop::Centre), Picture::filled(4, 4, [0, 255, 0]));
    let squashed = Transform { crop: Crop::Squash, filter: Filter::Area, ..Transform::new(3) }.apply(&thirds(), &mut rng(0));
    assert_eq!([0, 1, 2].map(|x| squashed.pixel(x, 1)), [[255, 0, 0], [0, 255, 0], [0, 0, 255]]);
    let padded = Transform { crop: Crop::Pad, filter: Filter::Area, background: [9; 3], ..Transform::new(12) }.apply(&thirds(), &mut rng(0));
    assert_eq!([padded.pixel(0, 3), padded.pixel(0, 4), padded.pixel(11, 7), padded.pixel(11, 8)], [[9; 3], [255, 0, 0], [0, 0, 255], [9; 3]]);
}

#[test]
fn random_crops_reach_both_ends_and_repeat_with_the_seed() {
    let transform = Transform { crop: Crop::Random, ..Transform::new(4) };
    let lefts: Vec<Picture> = (0..40).map(|seed| transform.apply(&thirds(), &mut rng(seed))).collect();
    assert!(lefts.contains(&Picture::filled(4, 4, [255, 0, 0])) && lefts.contains(&Picture::filled(4, 4, [0, 0, 255])));
    assert_eq!(lefts[7], transform.apply(&thirds(), &mut rng(7)));
    assert!(transform.is_random() && !transform.without_randomness().is_random());
}

#[test]
fn flips_mirror_and_happen_as_often_as_asked() {
    let mut picture = Picture::new(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
    mirror(&mut picture);
    assert_eq!(picture.rgb, [4, 5, 6, 1, 2, 3]);
    let flipped = |probability| {
        let transform = Transform { crop: Crop::Squash, flip_probability: probability, ..Transform::new(3) };
        (0..400).filter(|&seed| transform.apply(&thirds(), &mut rng(seed)).pixel(0, 0)[2] > 128).count()
    };
    assert_eq!((flipped(0.0), flipped(1.0)), (0, 400));
    assert!((140..260).contains(&flipped(0.5)));
}

#[test]
fn colour_factors_of_one_change_nothing_and_saturation_zero_is_grey() {
    let mut picture = thirds();
    change_colours(&mut picture, 1.0, 1.0, 1.0);
    assert_eq!(picture, thirds());
    change_colours(&mut picture, 1.0, 1.0, 0.0);
    assert_eq!(picture.pixel(0, 0), [76; 3]);
    let mut dark = Picture::filled(2, 2, [100, 50, 200]);
    change_colours(&mut dark, 0.5, 1.0, 1.0);
    assert_eq!(dark.pixel(1, 1), [50, 25, 100]);
}

#[test]
fn a_jittered_placement_moves_the_whole_square_over_the_background() {
    let dark = Picture::filled(8, 8, [5; 3]);
    let jitter = |shift, shrink| Transform { placement_jitter: Some(PlacementJitter { shift, shrink }), background: [200; 3], ..Transform::new(8) };
    assert_eq!(jitter(0.0, 0.0).apply(&dark, &mut rng(3)), dark);
    let (mut moves, mut sides) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..200 {
        let at = |picture: &Picture, x: usize, y: usize| picture.rgb[(y * 8 + x) * 3];
        let moved = jitter(0.25, 0.0).apply(&dark, &mut rng(seed));
        let covered = |count: usize, value: &dyn Fn(usize) -> u8| (0..count).filter(|&place| value(place) == 5).collect::<Vec<_>>();
        let columns = covered(8, &|x| (0..8).map(|y| at(&moved, x, y)).min().unwrap());
        // A move by n leaves 8 - n columns, at one end.
        moves.insert(if columns[0] == 0 { columns.len() as isize - 8 } else { columns[0] as isize });
        assert_eq!(columns.last().unwrap() - columns[0] + 1, columns.len());
        let shrunk = jitter(0.0, 0.5).apply(&dark, &mut rng(seed));
        let columns = covered(8, &|x| at(&shrunk, x, 4));
        let rows = covered(8, &|y| at(&shrunk, 4, y));
        assert_eq!(columns, rows, "a square stays one, in the middle");
        assert_eq!(columns[0], (8 - columns.len()) / 2);
        sides.insert(columns.len());
    }
    assert_eq!(moves.into_iter().collect::<Vec<_>>(), [-2, -1, 0, 1, 2]);
    assert_eq!(sides.into_iter().collect::<Vec<_>>(), [4, 5, 6, 7, 8]);
}

#[test]
fn extreme_proportions_are_handled() {
    for (width, height) in [(1, 1), (4000, 1), (1, 4000)] {
        for crop in [Crop::Centre, Crop::Random, Crop::Squash, Crop::Pad] {
            let square = Transform { crop, ..Transform::new(8) }.apply(&Picture::filled(width, height, [5; 3]), &mut rng(1));
            assert_eq!((square.width, square.height, square.rgb.len()), (8, 8, 192));
        }
    }
}

#[test]
fn impossible_values_are_named() {
    for (transform, key) in [
        (Transform::new(0), "size"),
        (Transform { flip_probability: 1.5, ..Transform::new(8) }, "flip_probability"),
        (Transform { colour_jitter: Some(ColourJitter { brightness: 0.1, contrast: f32::NAN, saturation: 0.0 }), ..Transform::new(8) }, "contrast"),
        (Transform { placement_jitter: Some(PlacementJitter { shift: 0.7, shrink: 0.0 }), ..Transform::new(8) }, "shift"),
    ] {
        let message = transform.validate().unwrap_err().to_string();
        assert!(message.contains(key), "{message}");
    }
    assert!(toml::from_str::<Transform>("size = 8\nflips = 1").unwrap_err().to_string().contains("flips"));
    assert_eq!(toml::from_str::<Transform>("size = 8").unwrap(), Transform::new(8));
}
