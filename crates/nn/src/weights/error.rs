//! What can be wrong with a file of weights.

use std::fmt;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: not a readable weights file: {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    #[error("{}: tensor `{tensor}`: expected finite values that {storage} can hold, found {value}; hint: store this part as f32 or bf16", path.display())]
    Range { path: PathBuf, tensor: String, value: f32, storage: &'static str },
    #[error("{0}")]
    Mismatch(Mismatch),
}

impl WeightsError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    pub(super) fn format(path: &Path, reason: impl Into<String>) -> Self {
        Self::Format { path: path.to_path_buf(), reason: reason.into() }
    }
}

/// How the tensors of a file differ from the parameters of a network.
#[derive(Debug, Default)]
pub struct Mismatch {
    /// How many tensors fitted.
    pub applied: usize,
    pub missing: Vec<String>,
    pub unused: Vec<String>,
    /// name, expected shape, found shape
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "weights do not fit the network: {} applied", self.applied)?;
        for (name, expected, found) in &self.misshapen {
            write!(f, "\n  tensor `{name}`: expected {expected:?}, found {found:?}")?;
        }
        for name in &self.missing {
            write!(f, "\n  tensor `{name}`: missing")?;
        }
        for name in &self.unused {
            write!(f, "\n  tensor `{name}`: not part of this network")?;
        }
        Ok(())
    }
}
