//! `--help` of every verb, as people see it.

use crate::program::Workplace;
use std::path::Path;

/// Compares with a file beside this one, or rewrites it when asked to.
#[track_caller]
pub fn check_snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(name);
    if std::env::var_os("SMALTI_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{name} differs; if that is meant, SMALTI_UPDATE_SNAPSHOTS=1 rewrites it. Now:\n{text}");
}

#[test]
fn help_is_as_reviewed() {
    let workplace = Workplace::new();
    let verbs = ["", "generate", "train", "reconstruct", "evaluate", "nearest", "rerank", "sheet", "import", "inspect", "data", "data build", "bench"];
    for verb in verbs {
        let mut arguments: Vec<&str> = verb.split_whitespace().collect();
        arguments.push("--help");
        let help = workplace.succeed(&arguments);
        let name = if verb.is_empty() { "smalti".to_string() } else { verb.replace(' ', "-") };
        check_snapshot(&format!("help/{name}.txt"), &help);
    }
}

#[test]
fn version_is_the_package_version() {
    assert_eq!(Workplace::new().succeed(&["--version"]).trim(), concat!("smalti ", env!("CARGO_PKG_VERSION")));
}
