//! Where and how the networks run: `--device`, `--threads` and `--precision`.

use crate::failure::WrongUse;
use burn::tensor::Device;
use smalti_nn::{Precision, PrecisionChoice, precision};

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Computing")]
pub struct Flags {
    /// Where the networks run
    #[arg(long, value_enum, default_value_t = Kind::Cpu)]
    pub device: Kind,
    /// Threads to use, at most the processors there are [default: all]; no result depends on it
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// What products and convolutions compute in [default: f32; train: as the recipe says]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub precision: Option<PrecisionName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PrecisionName {
    F32,
    /// Both sides rounded to bf16, sums in f32
    Bf16,
    /// bf16 where the processor has fast units for it (AMX; AVX512_BF16, but on Intel), else f32
    Auto,
}

impl PrecisionName {
    /// As recipes and flags write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Auto => "auto",
        }
    }

    fn choice(self) -> PrecisionChoice {
        match self {
            Self::F32 => PrecisionChoice::F32,
            Self::Bf16 => PrecisionChoice::Bf16,
            Self::Auto => PrecisionChoice::Auto,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Cpu,
    Vulkan,
    Cuda,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Vulkan => "vulkan",
            Self::Cuda => "cuda",
        }
    }
}

/// The checked flags.
#[derive(Clone, Debug)]
pub struct Compute {
    pub device: Device,
    /// 0: as many as there are processors.
    thread_count: usize,
    pub precision: Precision,
}

impl Flags {
    pub fn resolve(self) -> anyhow::Result<Compute> {
        if self.threads == Some(0) {
            return Err(WrongUse("--threads: expected at least 1, found 0".into()).into());
        }
        smalti_kernels::InstructionSet::from_environment().map_err(WrongUse)?;
        let precision = match (self.device, self.precision) {
            (_, None) => Precision::F32,
            (Kind::Cpu, Some(name)) => name.choice().resolve(),
            (_, Some(PrecisionName::Bf16)) => return Err(other_than_cpu().into()),
            (_, Some(_)) => Precision::F32,
        };
        Ok(Compute { device: device(self.device)?, thread_count: self.threads.unwrap_or(0), precision })
    }
}

impl Compute {
    /// Runs `body` in a pool of so many threads, with this precision.
    pub fn run<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        precision::within(self.precision, || smalti_kernels::threads::install(self.thread_count, body))
    }
}

/// What a wish for bf16 elsewhere is answered with.
pub fn other_than_cpu() -> WrongUse {
    WrongUse("--precision bf16: expected --device cpu, which alone has such products, found another device".into())
}

fn device(kind: Kind) -> anyhow::Result<Device> {
    match kind {
        Kind::Cpu => Ok(Device::flex()),
        #[cfg(feature = "vulkan")]
        Kind::Vulkan => Ok(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        Kind::Cuda => Ok(Device::cuda(0)),
        #[cfg(not(all(feature = "vulkan", feature = "cuda")))]
        other => {
            let name = format!("{other:?}").to_lowercase();
            Err(WrongUse(format!("--device {name}: this smalti was built without it; hint: cargo install --path crates/cli --features {name}")).into())
        }
    }
}
