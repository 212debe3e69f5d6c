//! Where the networks run: `--device` and `--threads`.

use crate::failure::WrongUse;
use burn::tensor::Device;

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Computing")]
pub struct Flags {
    /// Where the networks run
    #[arg(long, value_enum, default_value_t = Kind::Cpu)]
    pub device: Kind,
    /// Threads to use, at most the processors there are [default: all]; no result depends on it
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Cpu,
    Vulkan,
    Cuda,
}

/// The checked flags.
#[derive(Clone, Debug)]
pub struct Compute {
    pub device: Device,
    /// 0: as many as there are processors.
    thread_count: usize,
}

impl Flags {
    pub fn resolve(self) -> anyhow::Result<Compute> {
        if self.threads == Some(0) {
            return Err(WrongUse("--threads: expected at least 1, found 0".into()).into());
        }
        Ok(Compute { device: device(self.device)?, thread_count: self.threads.unwrap_or(0) })
    }
}

impl Compute {
    /// Runs `body` in a pool of so many threads.
    pub fn run<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        smalti_kernels::threads::install(self.thread_count, body)
    }
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
