//! How far the work is: library functions call back, whoever shows it decides how.

/// One report: `done` of `total` units of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    pub done: usize,
    pub total: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Image tokens drawn, over all pictures.
    ImageTokens,
    /// Steps from noise to picture, over all pictures.
    Steps,
    /// Pictures decoded.
    Pictures,
    /// Pictures compared with the prompt.
    Scores,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Self::ImageTokens => "drawing image tokens",
            Self::Steps => "taking noise away",
            Self::Pictures => "decoding pictures",
            Self::Scores => "ranking pictures",
        }
    }
}
