//! What drawing costs: counted parameters, multiplications and memory, and from a short measurement seconds.

use crate::output::size;
use burn::tensor::Device;
use serde::Serialize;
use smalti_pipeline::budget::{Budget, PartBudget, Published, PublishedPart, measured_multiply_adds_per_second};
use std::time::Duration;

/// Long enough that the clock and the first pass do not count.
const MEASURED_FOR: Duration = Duration::from_millis(300);

/// A budget with what this machine makes of it.
#[derive(Serialize)]
pub(super) struct Costs {
    parts: Vec<PartBudget>,
    parameters: u64,
    /// Of one picture.
    multiply_adds: u64,
    /// Weights in 32 bits and the most features at once; a lower bound.
    memory_bytes: u64,
    /// Measured in a short convolution.
    multiply_adds_per_second: f64,
    /// An estimate.
    seconds_per_picture: f64,
}

impl Costs {
    pub fn of(budget: Budget) -> Self {
        let rate = measured_multiply_adds_per_second(&Device::flex(), MEASURED_FOR);
        Self {
            parameters: budget.parameters(),
            multiply_adds: budget.multiply_adds(),
            memory_bytes: budget.memory_bytes(),
            multiply_adds_per_second: rate,
            seconds_per_picture: budget.multiply_adds() as f64 / rate,
            parts: budget.parts,
        }
    }

    /// The measured line last: all others are the same on every machine.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("\n{}", header("passes"))];
        lines.extend(self.parts.iter().map(|part| row(part, &part.passes.to_string())));
        lines.push(format!("one picture: {} products, at least {} of memory with weights in 32 bits", short(self.multiply_adds), size(self.memory_bytes)));
        let gigaflops = 2.0 * self.multiply_adds_per_second / 1e9;
        // One token after the other reads every weight for a single vector: memory is what that waits for, not arithmetic.
        let bound = if self.parts.iter().any(|part| part.network == "dalle_bart") { ", several times that for image tokens drawn one by one" } else { "" };
        let time = seconds(self.seconds_per_picture);
        lines.push(format!("estimate: {time} s a picture on this machine, at {gigaflops:.0} GFLOP/s as just measured{bound}"));
        lines
    }
}

/// A system by its published sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Name {
    Imagen,
    #[value(name = "stable-diffusion-1")]
    StableDiffusion1,
    DalleMini,
    Ddpm,
}

#[derive(Serialize)]
pub(super) struct PublishedCosts {
    system: String,
    parts: Vec<PublishedPart>,
    /// Of each diffusion network.
    steps: Option<u64>,
    /// Of one picture, all passes of all parts.
    multiply_adds: u64,
    /// All weights in 32 bits and the most features at once; a lower bound.
    memory_bytes: u64,
    /// Measured in a short convolution.
    multiply_adds_per_second: f64,
    /// An estimate.
    seconds_per_picture: f64,
}

impl PublishedCosts {
    pub fn of(name: Name) -> Self {
        let (system, published) = match name {
            Name::Imagen => ("Imagen (Saharia et al. 2022)", Published::Imagen),
            Name::StableDiffusion1 => ("Stable Diffusion 1.x (Rombach et al. 2022)", Published::StableDiffusion1),
            Name::DalleMini => ("DALL-E mini (Dayma et al. 2021)", Published::DalleMini),
            Name::Ddpm => ("DDPM on CIFAR-10 (Ho, Jain and Abbeel 2020)", Published::Ddpm),
        };
        let multiply_adds_per_second = measured_multiply_adds_per_second(&Device::flex(), MEASURED_FOR);
        let budget = published.budget();
        Self {
            system: system.to_string(),
            parts: published.parts(),
            steps: published.steps(),
            multiply_adds: budget.multiply_adds(),
            memory_bytes: budget.memory_bytes(),
            seconds_per_picture: budget.multiply_adds() as f64 / multiply_adds_per_second,
            multiply_adds_per_second,
        }
    }
}

impl super::Described for PublishedCosts {
    fn text(&self) -> String {
        let mut lines = vec![self.system.clone(), header("published")];
        lines.extend(self.parts.iter().map(|part| row(&part.budget, &part.claimed_parameters.map_or("-".to_string(), short))));
        lines.push("one pass for one picture, and all of a picture's; estimates:".to_string());
        for PublishedPart { budget, side, .. } in &self.parts {
            let side = side.map(|side| format!(" at {side}x{side}")).unwrap_or_default();
            let pass = budget.multiply_adds as f64 / self.multiply_adds_per_second;
            let passes = budget.passes;
            lines.push(format!("  {}{side}: {} s, {passes} of them {} s", budget.part, seconds(pass), seconds(passes as f64 * pass)));
        }
        let steps = self.steps.map(|steps| format!("{steps} steps of each diffusion network")).unwrap_or_else(|| "token by token".to_string());
        lines.push(format!(
            "one picture, {steps}: {} products, at least {} of memory with weights in 32 bits",
            short(self.multiply_adds),
            size(self.memory_bytes)
        ));
        let gigaflops = 2.0 * self.multiply_adds_per_second / 1e9;
        lines.push(format!("estimate: {} s a picture on this machine, at {gigaflops:.0} GFLOP/s as just measured", seconds(self.seconds_per_picture)));
        lines.join("\n")
    }
}

fn header(last: &str) -> String {
    format!("{:<20}{:<17}{:>10}{:>11}{:>12}{:>12}{:>14}", "costs", "network", "parameters", last, "products", "weights", "features").trim_end().to_string()
}

fn row(part: &PartBudget, last: &str) -> String {
    let PartBudget { part: name, network, parameters, multiply_adds, .. } = part;
    let (products, weights, features) = (short(*multiply_adds), size(part.weight_bytes()), size(part.activation_bytes));
    format!("{name:<20}{network:<17}{:>10}{last:>11}{products:>12}{weights:>12}{features:>14}", short(*parameters))
}

/// Three digits and a thousand, million, billion (G) or trillion.
fn short(number: u64) -> String {
    let number = number as f64;
    match number {
        0.0..1e3 => format!("{number}"),
        1e3..1e6 => format!("{:.3}", number / 1e3)[..4].trim_end_matches('.').to_string() + "k",
        1e6..1e9 => format!("{:.3}", number / 1e6)[..4].trim_end_matches('.').to_string() + "M",
        1e9..1e12 => format!("{:.3}", number / 1e9)[..4].trim_end_matches('.').to_string() + "G",
        _ => format!("{:.2}T", number / 1e12),
    }
}

fn seconds(seconds: f64) -> String {
    match seconds {
        0.0..0.0995 => format!("{seconds:.3}"),
        0.0..9.95 => format!("{seconds:.1}"),
        _ => format!("{seconds:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        assert_eq!([0, 999, 1_000, 12_345, 472_000_000, 1_960_000_000, 2_500_000_000_000].map(short), ["0", "999", "1.00k", "12.3k", "472M", "1.96G", "2.50T"]);
        assert_eq!([0.0123, 1.26, 12.6].map(seconds), ["0.012", "1.3", "13"]);
    }
}
