//! A config that no network can have.

use std::fmt::Display;

/// Names the key, what it may be and what it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: expected {expected}, found {found}")]
pub struct ConfigError {
    pub key: String,
    pub expected: String,
    pub found: String,
}

impl ConfigError {
    pub fn new(key: impl Into<String>, expected: impl Into<String>, found: impl Display) -> Self {
        Self { key: key.into(), expected: expected.into(), found: found.to_string() }
    }

    /// An error unless `holds`.
    pub fn check(holds: bool, key: impl Into<String>, expected: impl Into<String>, found: impl Display) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self::new(key, expected, found)) }
    }
}
