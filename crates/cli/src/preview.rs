//! Pictures as coloured blocks in a terminal: each character shows two pixels, one over the other (24-bit colours, U+2580).

use crate::made_files::film_strip;
use smalti_data::Picture;
use smalti_data::resize::{Filter, resize};
use std::fmt::Write;
use std::io::IsTerminal;

/// Wider than this a preview is not easier to see.
const WIDTH_LIMIT: usize = 120;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum When {
    /// When stderr is a terminal
    Auto,
    Always,
    Never,
}

/// Shows a picture on stderr, so that stdout keeps the results alone.
pub fn show(picture: &Picture, when: When) {
    let terminal = std::io::stderr().is_terminal();
    if when == When::Always || (when == When::Auto && terminal) {
        let columns = terminal_size::terminal_size_of(std::io::stderr()).map_or(80, |(width, _)| usize::from(width.0));
        let _ = std::io::Write::write_all(&mut std::io::stderr(), blocks(picture, columns.min(WIDTH_LIMIT)).as_bytes()); // no work is lost with it
    }
}

/// Pictures side by side in lines of at most `columns` characters and `rows` lines; on a terminal, while they are still being drawn.
pub fn small(pictures: &[Picture], columns: usize, rows: usize) -> Option<String> {
    let sheet = film_strip(pictures).ok()?;
    // A character is two pixels high.
    let fitting = (2 * rows * sheet.width / sheet.height.max(1)).max(1);
    Some(blocks(&sheet, columns.min(fitting)))
}

/// Lines of at most `columns` characters.
fn blocks(picture: &Picture, columns: usize) -> String {
    let width = picture.width.min(columns.max(1));
    let height = (picture.height * width).div_ceil(picture.width).max(1);
    let small = if width == picture.width { picture.clone() } else { resize(picture, width, height, Filter::Area) };
    let mut text = String::new();
    for y in (0..small.height).step_by(2) {
        // A colour holds until another is set, so even areas cost little.
        let (mut upper, mut lower) = (None, None);
        for x in 0..small.width {
            let [red, green, blue] = small.pixel(x, y);
            if upper.replace([red, green, blue]) != Some([red, green, blue]) {
                let _ = write!(text, "\x1b[38;2;{red};{green};{blue}m");
            }
            if y + 1 < small.height {
                let [red, green, blue] = small.pixel(x, y + 1);
                if lower.replace([red, green, blue]) != Some([red, green, blue]) {
                    let _ = write!(text, "\x1b[48;2;{red};{green};{blue}m");
                }
            }
            text.push('\u{2580}');
        }
        text += "\x1b[0m\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pixels_a_character() {
        let picture = Picture::new(1, 3, vec![1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
        assert_eq!(blocks(&picture, 80), "\x1b[38;2;1;2;3m\x1b[48;2;4;5;6m\u{2580}\x1b[0m\n\x1b[38;2;7;8;9m\u{2580}\x1b[0m\n");
        assert_eq!(blocks(&Picture::filled(3, 2, [7; 3]), 80), "\x1b[38;2;7;7;7m\x1b[48;2;7;7;7m\u{2580}\u{2580}\u{2580}\x1b[0m\n");
        let row = small(&vec![Picture::filled(32, 32, [9; 3]); 3], 60, 10).unwrap();
        assert!(row.lines().count() <= 10 && row.lines().all(|line| line.matches('\u{2580}').count() <= 60), "{row}");
        let wide = blocks(&Picture::filled(300, 200, [9; 3]), 60);
        assert_eq!((wide.lines().count(), wide.lines().next().unwrap().matches('\u{2580}').count()), (20, 60));
    }
}
