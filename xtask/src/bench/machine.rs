//! What the machine is and how busy, for the README of a run.

use std::fs;
use std::process::Command;

/// `AMD EPYC, 2 processors, 24105 MiB` and the like; what cannot be found out is left out.
pub fn description() -> String {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.lines().find(|line| line.starts_with(name))?.split_once(':')?.1.trim().to_string())
    };
    let processor = field("/proc/cpuinfo", "model name").map(|name| name.trim_end_matches(" Processor").to_string());
    let flags = field("/proc/cpuinfo", "flags").unwrap_or_default();
    let wide = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"].into_iter().filter(|flag| flags.split(' ').any(|found| found == *flag)).collect::<Vec<_>>();
    let count = std::thread::available_parallelism().map(|count| format!("{count} processors")).ok();
    let memory = field("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok()).map(|kib| format!("{} MiB", kib / 1024));
    let instructions = (!wide.is_empty()).then(|| wide.join(" "));
    [processor, count, instructions, memory].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Processes that wanted to run, on average over the last minute, this benchmark among them.
pub fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// The first line that a command prints.
pub fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_string())
}
