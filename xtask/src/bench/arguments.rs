//! What was asked for.

use super::plan::{PRECISIONS, Pair, pairs};
use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;

const USAGE: &str = "expected `bench --torch PYTHON --out DIR`, and if wanted `--rows A,C`, `--precision f32`, `--repetitions N` (at least 7), `--threads N`, \
                     `--smalti PROGRAM` (built already) and `--note TEXT` (about the machine's state, for the README)";

pub struct Arguments {
    /// A Python with torch.
    pub torch: PathBuf,
    pub out: PathBuf,
    /// Names or families (`C` of `C_batch_1`); none: all.
    rows: Vec<String>,
    precisions: Vec<String>,
    pub repetitions: usize,
    pub threads: usize,
    pub smalti: Option<PathBuf>,
    pub note: Option<String>,
    /// As typed, for the README.
    pub line: String,
}

impl Arguments {
    pub fn parse(words: &[&str]) -> Result<Self> {
        let (mut torch, mut out, mut smalti, mut note) = (None, None, None, None);
        let (mut rows, mut precisions, mut repetitions) = (Vec::new(), PRECISIONS.map(String::from).to_vec(), 7);
        let limit = std::thread::available_parallelism()?.get();
        let mut threads = limit;
        for pair in words.chunks(2) {
            let &[flag, value] = pair else { bail!("{USAGE}; `{}` has no value", pair[0]) };
            let list = || value.split(',').map(String::from).collect();
            let number = || value.parse::<usize>().with_context(|| format!("{flag}: expected a number, found `{value}`"));
            match flag {
                "--torch" => torch = Some(PathBuf::from(value)),
                "--out" => out = Some(PathBuf::from(value)),
                "--smalti" => smalti = Some(PathBuf::from(value)),
                "--note" => note = Some(value.to_string()),
                "--rows" => rows = list(),
                "--precision" => precisions = list(),
                "--repetitions" => repetitions = number()?,
                "--threads" => threads = number()?,
                _ => bail!("{USAGE}; found `{flag}`"),
            }
        }
        ensure!(repetitions >= 7, "--repetitions: expected at least 7, found {repetitions}");
        ensure!((1..=limit).contains(&threads), "--threads: expected 1 to {limit}, found {threads}");
        if let Some(unknown) = precisions.iter().find(|name| !PRECISIONS.contains(&name.as_str())) {
            bail!("--precision: expected {PRECISIONS:?}, found `{unknown}`");
        }
        // As typed, but for where programs lie on this machine.
        let shown = |(index, word): (usize, &&str)| match index.checked_sub(1).map(|before| words[before]) {
            Some("--torch") => "PYTHON".to_string(),
            Some("--smalti") => "PROGRAM".to_string(),
            _ if word.contains(' ') => format!("\"{word}\""),
            _ => word.to_string(),
        };
        let line = words.iter().enumerate().map(shown).collect::<Vec<_>>().join(" ");
        Ok(Self { torch: torch.context(USAGE)?, out: out.context(USAGE)?, rows, precisions, repetitions, threads, smalti, note, line })
    }

    pub fn wants(&self, pair: &Pair) -> bool {
        // Rows about scaling are no family of A: they take longer than all others together.
        let family = |row: &str| !pair.is_scaling() && pair.row.strip_prefix(row).is_some_and(|rest| rest.starts_with('_'));
        let named = |row: &String| pair.row == row || (family(row) && pairs().iter().all(|other| other.row != row));
        self.precisions.iter().any(|precision| precision == pair.precision) && (self.rows.is_empty() || self.rows.iter().any(named))
    }
}
