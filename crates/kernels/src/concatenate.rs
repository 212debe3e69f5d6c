//! Channels of two feature maps side by side, and apart again.

use crate::memory::Shared;
use crate::threads::{each, part};

/// Elements that one task copies, at least.
const TASK_LEN: usize = 32 * 1024;

/// y [rows, channels of both] = a [rows, channels] and b [rows, channels], row by row.
pub fn forward(a: &[f32], b: &[f32], channels: [usize; 2], y: &mut [f32]) {
    let rows = check("concatenate", [a.len(), b.len()], channels, y.len());
    let [a_width, b_width] = channels;
    let width = a_width + b_width;
    let out = Shared::new(y);
    each_rows(rows, width, |rows| {
        // SAFETY: tasks have rows of their own.
        let y = unsafe { out.slice(rows.start * width, rows.len() * width) };
        for (row, y) in rows.zip(y.chunks_exact_mut(width)) {
            y[..a_width].copy_from_slice(&a[row * a_width..][..a_width]);
            y[a_width..].copy_from_slice(&b[row * b_width..][..b_width]);
        }
    });
}

/// da and db = what dy holds of each.
pub fn backward(dy: &[f32], channels: [usize; 2], da: &mut [f32], db: &mut [f32]) {
    let rows = check("concatenate's gradient", [da.len(), db.len()], channels, dy.len());
    let [a_width, b_width] = channels;
    let width = a_width + b_width;
    let (da_out, db_out) = (Shared::new(da), Shared::new(db));
    each_rows(rows, width, |rows| {
        // SAFETY: tasks have rows of their own.
        let (da, db) = unsafe { (da_out.slice(rows.start * a_width, rows.len() * a_width), db_out.slice(rows.start * b_width, rows.len() * b_width)) };
        for (place, row) in rows.enumerate() {
            let dy = &dy[row * width..][..width];
            da[place * a_width..][..a_width].copy_from_slice(&dy[..a_width]);
            db[place * b_width..][..b_width].copy_from_slice(&dy[a_width..]);
        }
    });
}

/// -> rows
fn check(name: &str, parts: [usize; 2], channels: [usize; 2], whole: usize) -> usize {
    let width = channels[0] + channels[1];
    let rows = whole.checked_div(width).unwrap_or(0);
    let expected = (channels.map(|channels| rows * channels), rows * width);
    assert!((parts, whole) == expected, "{name} of {channels:?} channels: expected lengths {expected:?}, found {:?}", (parts, whole));
    rows
}

fn each_rows(rows: usize, width: usize, task: impl Fn(std::ops::Range<usize>) + Sync + Send) {
    let task_count = (rows * width).div_ceil(TASK_LEN).min(rows);
    each(task_count, |index| task(part(rows, task_count, index)));
}
