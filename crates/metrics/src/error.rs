//! What can be wrong with the numbers that are to be compared.

/// Every metric refuses what it cannot measure instead of answering NaN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetricsError {
    #[error("{metric}: expected {expected}, found {found}")]
    Shape { metric: &'static str, expected: String, found: String },
    #[error("{metric}: expected at least {expected} {things}, found {found}")]
    TooFew { metric: &'static str, things: &'static str, expected: usize, found: usize },
    #[error("{metric}: {things} {index} holds a number that is not finite")]
    NotFinite { metric: &'static str, things: &'static str, index: usize },
    #[error("codebook usage: expected codes below {codebook_size}, found {code}")]
    Code { code: u32, codebook_size: usize },
}

impl MetricsError {
    pub(crate) fn shape(metric: &'static str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Shape { metric, expected: expected.into(), found: found.into() }
    }
}
