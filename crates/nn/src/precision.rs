//! What products and convolutions compute in: f32, or bf16 (both sides rounded to bf16, sums in f32; some processors take finer integers for 3x3
//! convolutions, docs/concepts/precision.md).
//!
//! It is a property of the run, as the instruction set is: set once around the work, read by the operations (`linear`, `conv2d`) and their gradients, so that
//! no model knows of it. Weights, optimiser, normalisation, attention and everything between the products stay f32.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};
use serde::{Deserialize, Serialize};
use smalti_kernels::InstructionSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// What products compute in. Only the CPU's operations know bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    #[default]
    F32,
    Bf16,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    #[default]
    F32,
    Bf16,
    /// bf16 where this processor has fast units for it (AMX; AVX512_BF16, but on Intel), else f32.
    Auto,
}

impl Precision {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl PrecisionChoice {
    pub fn resolve(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::Bf16 => Precision::Bf16,
            Self::Auto if InstructionSet::current().has_bf16_units() => Precision::Bf16,
            Self::Auto => Precision::F32,
        }
    }
}

static BF16: AtomicBool = AtomicBool::new(false);

/// What products compute in now.
pub fn current() -> Precision {
    if BF16.load(Ordering::Relaxed) { Precision::Bf16 } else { Precision::F32 }
}

/// Runs `body` with another precision, in the whole process: two pieces of work that differ in it take turns.
pub fn within<R>(precision: Precision, body: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            BF16.store(self.0, Ordering::Relaxed);
        }
    }
    let _restore = Restore(BF16.swap(precision == Precision::Bf16, Ordering::Relaxed));
    body()
}

/// Stores the weights of all linear maps and convolutions of a network in 16 bits, for inference: half the memory, and half the bytes to read for each token.
/// f16 loses nothing where the weights came from an f16 file. Other parameters stay f32, and so does every result.
pub fn store_weights<M: Module>(module: M, format: HalfFormat) -> M {
    module.map(&mut Storer { format, wanted: Vec::new() })
}

/// A number format of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfFormat {
    F16,
    Bf16,
}

struct Storer {
    format: HalfFormat,
    /// For each module that was entered, whether it is the weight of a layer whose operation takes narrow weights.
    wanted: Vec<bool>,
}

impl ModuleMapper for Storer {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.wanted.push(name == "weight" && ["Struct:Linear", "Struct:Conv2d"].contains(&container));
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.wanted.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.wanted.last() != Some(&true) {
            return param;
        }
        let format = match self.format {
            HalfFormat::F16 => FloatDType::F16,
            HalfFormat::Bf16 => FloatDType::BF16,
        };
        Param::initialized(param.id, param.val().detach().cast(format))
    }
}
