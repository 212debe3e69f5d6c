//! Numbers written below pictures: figures on a sheet without fonts, hence the same bytes on every machine.

use crate::Picture;
use crate::grid::paste;

/// Pixels of a character, before scaling; one more column lies between two.
const GLYPH_WIDTH: usize = 3;
const GLYPH_HEIGHT: usize = 5;

/// Rows from the top, the highest of three bits on the left.
const GLYPHS: [(char, [u8; GLYPH_HEIGHT]); 12] = [
    ('0', [0b111, 0b101, 0b101, 0b101, 0b111]),
    ('1', [0b010, 0b110, 0b010, 0b010, 0b111]),
    ('2', [0b111, 0b001, 0b111, 0b100, 0b111]),
    ('3', [0b111, 0b001, 0b111, 0b001, 0b111]),
    ('4', [0b101, 0b101, 0b111, 0b001, 0b001]),
    ('5', [0b111, 0b100, 0b111, 0b001, 0b111]),
    ('6', [0b111, 0b100, 0b111, 0b101, 0b111]),
    ('7', [0b111, 0b001, 0b010, 0b010, 0b010]),
    ('8', [0b111, 0b101, 0b111, 0b101, 0b111]),
    ('9', [0b111, 0b101, 0b111, 0b001, 0b111]),
    ('.', [0b000, 0b000, 0b000, 0b000, 0b010]),
    ('-', [0b000, 0b000, 0b111, 0b000, 0b000]),
];

/// The picture with digits, points and hyphens below it in black on white, `scale` pixels a dot; other characters leave a gap. As wide as the wider of both.
pub fn with_number_below(picture: &Picture, number: &str, scale: usize) -> Picture {
    let scale = scale.max(1);
    let text_width = number.chars().count() * (GLYPH_WIDTH + 1) * scale;
    let (width, top) = (picture.width.max(text_width), picture.height + scale);
    let mut whole = Picture::filled(width, top + (GLYPH_HEIGHT + 1) * scale, [255; 3]);
    paste(&mut whole, picture, (width - picture.width) / 2, 0);
    let dot = Picture::filled(scale, scale, [0; 3]);
    for (place, character) in number.chars().enumerate() {
        let Some((_, rows)) = GLYPHS.iter().find(|(glyph, _)| *glyph == character) else { continue };
        let left = (width - text_width) / 2 + place * (GLYPH_WIDTH + 1) * scale;
        for (y, row) in rows.iter().enumerate() {
            for x in (0..GLYPH_WIDTH).filter(|x| row >> (GLYPH_WIDTH - 1 - x) & 1 == 1) {
                paste(&mut whole, &dot, left + x * scale, top + y * scale);
            }
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_below_in_the_middle() {
        let whole = with_number_below(&Picture::filled(10, 4, [9, 8, 7]), "1", 2);
        assert_eq!((whole.width, whole.height, whole.pixel(0, 0)), (10, 4 + 2 + 12, [9, 8, 7]));
        let drawn = |x: usize, y: usize| whole.pixel(1 + 2 * x, 6 + 2 * y) == [0; 3];
        let rows: Vec<String> = (0..5).map(|y| (0..3).map(|x| if drawn(x, y) { '#' } else { ' ' }).collect()).collect();
        assert_eq!(rows, [" # ", "## ", " # ", " # ", "###"]);
    }

    #[test]
    fn long_numbers_widen_the_picture() {
        let whole = with_number_below(&Picture::filled(2, 2, [0; 3]), "12.5x", 1);
        assert_eq!((whole.width, whole.height), (20, 2 + 1 + 6));
        assert!((16..20).all(|x| (2..9).all(|y| whole.pixel(x, y) == [255; 3])), "what is no number leaves a gap");
    }
}
