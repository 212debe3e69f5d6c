//! Decisions by hash: the same words fall the same way in every build, whatever else is added or removed.

use sha2::{Digest, Sha256};

/// A number in [0, 1) that depends on the words alone.
pub(crate) fn fraction(words: &[&str]) -> f64 {
    let digest = Sha256::digest(words.join("\n"));
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    // 53 bits: what an f64 holds exactly.
    (u64::from_be_bytes(first) >> 11) as f64 / (1u64 << 53) as f64
}
