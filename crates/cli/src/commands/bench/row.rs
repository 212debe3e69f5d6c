//! The rows: what is measured, by name.

use super::latent_diffusion;
use super::networks::{self, Decoding};
use super::operations;

/// Work that can be repeated.
pub struct Prepared {
    pub body: Box<dyn FnMut()>,
    /// Times are divided by this: tokens of a decoding, pictures of a batch.
    pub units: usize,
    /// Floating-point operations of one run, a multiply-add as two.
    pub flops: f64,
    /// Bytes of one run that must come from or go to memory: inputs, outputs and weights once.
    pub bytes: f64,
}

pub struct Row {
    pub name: &'static str,
    /// What one unit is.
    pub unit: &'static str,
    /// Measured unless rows are named.
    pub usual: bool,
    workload: Workload,
}

#[derive(Clone, Copy)]
enum Workload {
    MultiplyAdds,
    Triad,
    Read,
    Product {
        rows: usize,
        depth: usize,
        columns: usize,
    },
    Convolution {
        batch: usize,
        size: usize,
        channels: usize,
        backward: bool,
    },
    GroupNorm,
    Attention {
        tokens: usize,
    },
    /// The VQGAN decoder of taming-transformers, factor 16.
    Decoder {
        batch: usize,
        picture_size: usize,
    },
    UnetStep,
    Decoding(Decoding),
    LatentDiffusion,
}

impl Row {
    /// Builds what the row measures; nothing is run yet.
    pub fn prepare(&self) -> Prepared {
        match self.workload {
            Workload::MultiplyAdds => operations::multiply_adds(),
            Workload::Triad => operations::triad(),
            Workload::Read => operations::read(),
            Workload::Product { rows, depth, columns } => operations::product(rows, depth, columns),
            Workload::Convolution { batch, size, channels, backward } => operations::convolution(batch, size, channels, backward),
            Workload::GroupNorm => operations::group_norm(),
            Workload::Attention { tokens } => operations::attention(tokens),
            Workload::Decoder { batch, picture_size } => networks::decoder(batch, picture_size),
            Workload::UnetStep => networks::unet_step(),
            Workload::Decoding(decoding) => networks::decoding(decoding),
            Workload::LatentDiffusion => latent_diffusion::picture(),
        }
    }
}

const fn operation(name: &'static str, workload: Workload) -> Row {
    Row { name, unit: "call", usual: true, workload }
}

const fn convolution(name: &'static str, batch: usize, size: usize, channels: usize, backward: bool) -> Row {
    operation(name, Workload::Convolution { batch, size, channels, backward })
}

/// Beside the usual rows: how the decoder scales.
const fn decoder(name: &'static str, batch: usize, picture_size: usize) -> Row {
    Row { name, unit: "picture", usual: false, workload: Workload::Decoder { batch, picture_size } }
}

/// What `asked` names: one row, or its family (`C`: `C_batch_1` and `C_batch_8`; the rows about scaling belong to none).
pub fn named(asked: &str) -> Vec<&'static Row> {
    let family = |row: &&Row| row.usual && row.name.strip_prefix(asked).is_some_and(|rest| rest.starts_with('_'));
    match ROWS.iter().find(|row| row.name == asked) {
        Some(row) => vec![row],
        None => ROWS.iter().filter(family).collect(),
    }
}

/// The limits that other rows are compared with, measured before them.
pub const PEAK_MULTIPLY_ADD: &str = "peak_multiply_add";
pub const PEAK_TRAFFIC: [&str; 2] = ["peak_triad", "peak_read"];

pub const ROWS: &[Row] = &[
    operation(PEAK_MULTIPLY_ADD, Workload::MultiplyAdds),
    operation(PEAK_TRAFFIC[0], Workload::Triad),
    operation(PEAK_TRAFFIC[1], Workload::Read),
    operation("matmul_4096x512x2048", Workload::Product { rows: 4096, depth: 512, columns: 2048 }),
    convolution("conv_1x128x128x128_forward", 1, 128, 128, false),
    convolution("conv_16x32x32x64_forward", 16, 32, 64, false),
    convolution("conv_1x32x32x512_forward", 1, 32, 512, false),
    convolution("conv_1x128x128x128_forward_backward", 1, 128, 128, true),
    convolution("conv_16x32x32x64_forward_backward", 16, 32, 64, true),
    convolution("conv_1x32x32x512_forward_backward", 1, 32, 512, true),
    operation("group_norm_silu_1x256x256x128", Workload::GroupNorm),
    operation("attention_1024", Workload::Attention { tokens: 1024 }),
    operation("attention_4096", Workload::Attention { tokens: 4096 }),
    Row { name: "A", unit: "picture", usual: true, workload: Workload::Decoder { batch: 1, picture_size: 256 } },
    Row { name: "B", unit: "step", usual: true, workload: Workload::UnetStep },
    Row { name: "C_batch_1", unit: "token", usual: true, workload: Workload::Decoding(Decoding { batch: 1 }) },
    Row { name: "C_batch_8", unit: "token", usual: true, workload: Workload::Decoding(Decoding { batch: 8 }) },
    Row { name: "D", unit: "picture", usual: true, workload: Workload::LatentDiffusion },
    decoder("A_batch_2", 2, 256),
    decoder("A_batch_4", 4, 256),
    decoder("A_batch_8", 8, 256),
    decoder("A_batch_16", 16, 256),
    decoder("A_size_64", 1, 64),
    decoder("A_size_128", 1, 128),
    decoder("A_size_512", 1, 512),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_families_are_found() {
        let names = |asked: &str| named(asked).iter().map(|row| row.name).collect::<Vec<_>>();
        assert!(ROWS.iter().all(|row| names(row.name) == [row.name]), "a name is in the way of another");
        assert_eq!(names("A"), ["A"], "how A scales is measured only when it is named");
        assert_eq!(names("C"), ["C_batch_1", "C_batch_8"]);
        assert_eq!(names("A_batch_2"), ["A_batch_2"]);
        assert_eq!(names("conv").len(), 6);
        assert!(names("E").is_empty());
    }
}
