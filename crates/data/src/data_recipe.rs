//! What a data recipe builds, told by its `kind`.

use std::path::Path;

use serde::Deserialize;

use crate::{DataError, dolls, pictograms};

/// A data recipe of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum DataRecipe {
    Pictograms(pictograms::Config),
    Dolls(dolls::Config),
}

#[derive(Deserialize)]
struct Kinded {
    kind: Kind,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Pictograms,
    Dolls,
}

impl DataRecipe {
    /// Reads and validates a recipe. Unknown keys and wrong types are errors that name them.
    pub fn from_file(path: &Path) -> Result<Self, DataError> {
        let text = std::fs::read_to_string(path).map_err(|error| DataError::io(path, error))?;
        let named = |reason: String| DataError::Recipe { path: path.to_path_buf(), reason };
        let unreadable = |error: toml::de::Error| named(error.to_string().trim_end().to_owned());
        match toml::from_str::<Kinded>(&text).map_err(unreadable)?.kind {
            Kind::Pictograms => {
                let config: pictograms::Config = toml::from_str(&text).map_err(unreadable)?;
                config.validate().map_err(|error| named(error.to_string()))?;
                Ok(Self::Pictograms(config))
            }
            Kind::Dolls => {
                let config: dolls::Config = toml::from_str(&text).map_err(unreadable)?;
                config.validate().map_err(|error| named(error.to_string()))?;
                Ok(Self::Dolls(config))
            }
        }
    }

    /// The same data with pictures of another side, in pixels. `build` checks it.
    pub fn with_size(mut self, size: u32) -> Self {
        match &mut self {
            Self::Pictograms(config) => config.size = size,
            Self::Dolls(config) => config.size = size as usize,
        }
        self
    }

    /// Where the sources are, relative to the working folder.
    pub fn source_folder(&self) -> &Path {
        match self {
            Self::Pictograms(config) => &config.source_folder,
            Self::Dolls(config) => &config.source_folder,
        }
    }
}
