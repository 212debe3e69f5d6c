//! Resize, crop, flip and colour jitter.

use super::*;

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
    ] {
        let message = transform.validate().unwrap_err().to_string();
        assert!(message.contains(key), "{message}");
    }
    assert!(toml::from_str::<Transform>("size = 8\nflips = 1").unwrap_err().to_string().contains("flips"));
    assert_eq!(toml::from_str::<Transform>("size = 8").unwrap(), Transform::new(8));
}
