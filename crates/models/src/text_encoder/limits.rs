//! Far above every published text encoder and below what would exhaust memory before a user sees an error.

use crate::ConfigError;

pub(super) const CHANNELS: usize = 1 << 17;
pub(super) const LAYERS: usize = 1 << 10;
pub(super) const VOCABULARY: usize = 1 << 21;
pub(super) const TOKENS: usize = 1 << 16;

/// An error unless the value is within 1 and the limit.
pub(super) fn within(key: &str, value: usize, limit: usize) -> Result<(), ConfigError> {
    ConfigError::check((1..=limit).contains(&value), key, format!("1 to {limit}"), value)
}

pub(super) fn positive(key: &str, value: f32) -> Result<(), ConfigError> {
    ConfigError::check(value > 0.0 && value.is_finite(), key, "a positive number", value)
}
