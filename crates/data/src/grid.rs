//! Several pictures on one sheet.

use crate::{Picture, PictureError};

/// How a sheet is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GridOptions {
    pub column_count: usize,
    /// Pixels between neighbours and around the whole.
    pub gap: usize,
    pub background: [u8; 3],
}

impl GridOptions {
    /// As square as possible, 2 pixels apart on white.
    pub fn square(picture_count: usize) -> Self {
        Self { column_count: (picture_count as f64).sqrt().ceil().max(1.0) as usize, gap: 2, background: [255; 3] }
    }
}

/// Lays the pictures row by row from the top left. Cells are as large as the largest picture; smaller ones are centred.
/// An error when there is none, or no column.
pub fn assemble(pictures: &[Picture], options: &GridOptions) -> Result<Picture, PictureError> {
    let column_count = options.column_count.min(pictures.len());
    if column_count == 0 {
        return Err(PictureError::Empty { width: 0, height: 0 });
    }
    let row_count = pictures.len().div_ceil(column_count);
    let cell_width = pictures.iter().map(|picture| picture.width).max().unwrap_or(1);
    let cell_height = pictures.iter().map(|picture| picture.height).max().unwrap_or(1);
    let extent = |cell: usize, count: usize| count * (cell + options.gap) + options.gap;
    let mut sheet = Picture::filled(extent(cell_width, column_count), extent(cell_height, row_count), options.background);
    for (index, picture) in pictures.iter().enumerate() {
        let left = options.gap + (index % column_count) * (cell_width + options.gap) + (cell_width - picture.width) / 2;
        let top = options.gap + (index / column_count) * (cell_height + options.gap) + (cell_height - picture.height) / 2;
        paste(&mut sheet, picture, left, top);
    }
    Ok(sheet)
}

/// Copies `picture` into `sheet` with its top left corner at (`left`, `top`). It must fit.
pub(crate) fn paste(sheet: &mut Picture, picture: &Picture, left: usize, top: usize) {
    for (row, line) in picture.rgb.chunks_exact(picture.width * 3).enumerate() {
        let start = ((top + row) * sheet.width + left) * 3;
        sheet.rgb[start..start + line.len()].copy_from_slice(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_equal_and_small_pictures_centred() {
        let pictures = [Picture::filled(4, 4, [255, 0, 0]), Picture::filled(2, 2, [0, 255, 0]), Picture::filled(4, 2, [0, 0, 255])];
        let sheet = assemble(&pictures, &GridOptions { column_count: 2, gap: 1, background: [9; 3] }).unwrap();
        assert_eq!((sheet.width, sheet.height), (11, 11));
        assert_eq!(sheet.pixel(0, 0), [9; 3]);
        assert_eq!(sheet.pixel(1, 1), [255, 0, 0]);
        assert_eq!(sheet.pixel(6, 1), [9; 3]);
        assert_eq!(sheet.pixel(7, 2), [0, 255, 0]);
        assert_eq!(sheet.pixel(1, 7), [0, 0, 255]);
    }

    #[test]
    fn no_picture_is_an_error() {
        assert!(assemble(&[], &GridOptions::square(0)).is_err());
    }
}
