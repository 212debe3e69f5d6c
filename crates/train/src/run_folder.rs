//! The folder of a run: `recipe.toml`, `data.json`, `log.jsonl`, `checkpoints/`, `samples/`, `report.html`, `losses.svg`, `bundle/`.

use crate::TrainError;
use crate::data_record::DataRecord;
use smalti_nn::weights::write_atomically;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// Recipe keys that change how a run is watched or how long it is, and nothing that was already computed. A resumed run may differ in them.
const FREE_KEYS: [&str; 10] = [
    "conditions.text_state_cache",
    "data.image_token_cache",
    "data.worker_count",
    "train.steps",
    "train.log_interval",
    "train.sample_interval",
    "train.evaluate_interval",
    "train.checkpoint_interval",
    "train.keep_checkpoints",
    "train.max_rollbacks",
];

/// The section of what is drawn while a run goes on, and of how its bundle is usually drawn with: as free as the keys above.
const FREE_SECTION: &str = "samples.";

fn nothing_readable(file: &Path, error: &toml::de::Error) -> TrainError {
    TrainError::io(
        file,
        std::io::Error::new(std::io::ErrorKind::InvalidData, format!("expected the recipe that the run was started with, found {}", error.message())),
    )
}

/// Keys that runs from before they were recorded did not have, and what they stood for.
const FORMER_DEFAULTS: [(&str, &str); 1] = [("train.precision", "\"f32\"")];

pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// A new run: refuses a folder in which something is. Nothing is written before [`RunFolder::begin`].
    pub fn create(path: &Path) -> Result<Self, TrainError> {
        if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(TrainError::RunExists { path: path.to_path_buf() });
        }
        Ok(Self { path: path.to_path_buf() })
    }

    /// An existing run, which must have been started with the same recipe (but for keys that change nothing already computed).
    pub fn resume(path: &Path, recipe: &str) -> Result<Self, TrainError> {
        let run = Self { path: path.to_path_buf() };
        let nothing = |found| TrainError::NothingToResume { path: path.to_path_buf(), found };
        if !path.exists() {
            return Err(nothing("no such folder"));
        }
        let file = path.join("recipe.toml");
        let started = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(nothing("a folder without recipe.toml")),
            Err(source) => return Err(TrainError::io(&file, source)),
        };
        let table = |text: &str| toml::from_str::<toml::Table>(text).map(|table| flatten("", &table));
        let old = table(&started).map_err(|error| nothing_readable(&file, &error))?;
        let new = table(recipe).unwrap_or_default();
        // Data that only moved is told from other data by what it is, where that is known.
        let knows_data = run.data().is_file();
        let keys = old.iter().chain(&new).map(|(key, _)| key);
        let find = |table: &[(String, String)], key: &String| {
            let former = || FORMER_DEFAULTS.iter().find(|(name, _)| name == key).map_or("nothing", |(_, value)| value).to_string();
            table.iter().find(|(name, _)| name == key).map_or_else(former, |(_, value)| value.clone())
        };
        let free = |key: &String| FREE_KEYS.contains(&key.as_str()) || key.starts_with(FREE_SECTION) || key == "data.path" && knows_data;
        let mut differing: Vec<String> = keys
            .filter(|key| !free(key) && find(&old, key) != find(&new, key))
            .map(|key| format!("`{key}` was {}, is {}", find(&old, key), find(&new, key)))
            .collect();
        differing.dedup();
        if let Some(difference) = differing.first() {
            return Err(TrainError::OtherRecipe { path: path.to_path_buf(), difference: difference.clone() });
        }
        Ok(run)
    }

    /// Refuses to go on with other pictures than the run was started with. A run whose pictures are not known, a new one for one, takes any.
    pub fn check_data(&self, found: &DataRecord) -> Result<(), TrainError> {
        let difference = DataRecord::read(&self.data())?.and_then(|started| started.difference(found));
        difference.map_or(Ok(()), |difference| Err(TrainError::OtherData { path: self.path.clone(), difference }))
    }

    /// Held as long as the run is trained, so that no second training writes into it. Systems that cannot lock a folder do without.
    pub fn lock(&self) -> Result<Option<File>, TrainError> {
        fs::create_dir_all(&self.path).map_err(|source| TrainError::io(&self.path, source))?;
        let Ok(folder) = File::open(&self.path) else { return Ok(None) };
        match folder.try_lock() {
            Ok(()) => Ok(Some(folder)),
            Err(TryLockError::WouldBlock) => Err(TrainError::RunBusy { path: self.path.clone() }),
            Err(TryLockError::Error(_)) => Ok(None),
        }
    }

    /// Makes the folders and writes the recipe, once the recipe's data and networks were found to be in order.
    pub fn begin(&self, recipe: &str) -> Result<(), TrainError> {
        for folder in [self.checkpoints(), self.samples()] {
            fs::create_dir_all(&folder).map_err(|source| TrainError::io(&folder, source))?;
        }
        let path = self.path.join("recipe.toml");
        write_atomically(&path, |writer| writer.write_all(recipe.as_bytes())).map_err(|source| TrainError::io(&path, source))
    }

    /// The last part of the path.
    pub fn name(&self) -> String {
        // `.` and `..` have no last part until it is known where they lead.
        let whole = if self.path.file_name().is_none() { fs::canonicalize(&self.path).ok() } else { None };
        whole.as_ref().unwrap_or(&self.path).file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// What the pictures were when the run was started.
    pub fn data(&self) -> PathBuf {
        self.path.join("data.json")
    }

    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log.jsonl")
    }

    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    pub fn losses(&self) -> PathBuf {
        self.path.join("losses.svg")
    }

    pub fn bundle(&self) -> PathBuf {
        self.path.join("bundle")
    }
}

/// Every value of a table by its full key, as text.
fn flatten(prefix: &str, table: &toml::Table) -> Vec<(String, String)> {
    let full = |key: &str| if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") };
    let mut values = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(table) => values.extend(flatten(&full(key), table)),
            value => values.push((full(key), value.to_string())),
        }
    }
    values
}
