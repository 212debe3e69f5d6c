//! Runs the program in a folder of its own.

use crate::tiny_bundle::tiny_bundle;
use smalti_nn::weights::safetensors::Storage;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder to work in, removed afterwards.
pub struct Workplace {
    folder: tempfile::TempDir,
}

/// How a run went.
#[derive(Debug)]
pub struct Finished {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Workplace {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// With a bundle of tiny untrained networks in `tiny`.
    pub fn with_bundle() -> Self {
        let workplace = Self::new();
        tiny_bundle().save(&workplace.path("tiny"), Storage::F32).unwrap();
        workplace
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// A file of this repository, copied.
    pub fn copy(&self, from: &str, name: &str) -> PathBuf {
        self.write(name, std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(from)).unwrap())
    }

    pub fn run(&self, arguments: &[&str]) -> Finished {
        finish(self.command().args(arguments))
    }

    /// Runs and expects success; gives stdout.
    #[track_caller]
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let finished = self.run(arguments);
        assert_eq!(finished.status, 0, "{arguments:?}: {finished:?}");
        finished.stdout
    }

    /// Runs, expects success and one JSON object on stdout.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let stdout = self.succeed(arguments);
        assert_eq!(stdout.trim_end().lines().count(), 1, "{stdout}");
        serde_json::from_str(&stdout).unwrap()
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smalti"));
        // Help is wrapped to the width of the terminal, which may be set here.
        command.current_dir(self.folder.path()).env_remove("COLUMNS").env_remove("LINES");
        command
    }

    /// Every file below a folder, relative and sorted; empty where there is no such folder.
    pub fn files(&self, name: &str) -> Vec<String> {
        let mut waiting = vec![self.path(name)];
        let mut files = Vec::new();
        while let Some(folder) = waiting.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    waiting.push(path);
                } else {
                    files.push(path.strip_prefix(self.path(name)).unwrap().display().to_string());
                }
            }
        }
        files.sort();
        files
    }
}

pub fn finish(command: &mut Command) -> Finished {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Finished { status: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
}
