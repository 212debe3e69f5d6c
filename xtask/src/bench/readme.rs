//! A run as people read it, and `ratios.json`; both written after every row, from the samples alone.

use super::plan::{self, ARITHMETIC, BATCHES, Pair, SIZES, START_UP, THREADED, TRAFFIC};
use super::ratios::{Ratio, Summary, ratios, target};
use super::samples::{OURS, Samples, TORCH};
use super::{Bench, machine};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::process::Command;

pub fn write(bench: &Bench, samples: &Samples) -> Result<()> {
    let ratios = ratios(samples);
    let save = |name: &str, text: String| {
        let path = bench.arguments.out.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    };
    save("ratios.json", serde_json::to_string_pretty(&ratios)? + "\n")?;
    save("README.md", readme(&header(bench)?, samples, &ratios)?)
}

fn header(bench: &Bench) -> Result<String> {
    let git = |words: &[&str]| machine::said(Command::new("git").args(words).current_dir(bench.root));
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|first| !first.is_empty());
    let commit = git(&["rev-parse", "--short", "HEAD"]).map_or("unknown".into(), |commit| commit + if changed { " and changes" } else { "" });
    let torch = machine::said(Command::new(&bench.arguments.torch).args(["-c", "import torch; print(torch.__version__)"])).unwrap_or("unknown".into());
    let mut text = String::from("# smalti beside PyTorch on one machine\n\n");
    writeln!(text, "- machine: {}; load when this was written: {}", machine::description(), machine::load().map_or("unknown".into(), |load| load.to_string()))?;
    if let Some(note) = &bench.arguments.note {
        writeln!(text, "- **{note}**")?;
    }
    writeln!(text, "- smalti at commit {commit}, PyTorch {torch}, {} threads", bench.arguments.threads)?;
    writeln!(text, "- command: `cargo xtask bench {}`", bench.arguments.line)?;
    Ok(text)
}

fn readme(header: &str, samples: &Samples, ratios: &[Ratio]) -> Result<String> {
    let mut text = header.to_string();
    writeln!(
        text,
        "- both sides are processes of their own, warmed up once, taking turns with a pause between; medians, least - most; every sample is in raw.csv"
    )?;
    writeln!(text, "- memory is the peak of the process (VmHWM), MiB, program and libraries included; C is per token of all rows together")?;
    comparison(&mut text, ratios)?;
    limits(&mut text, samples, ratios)?;
    scaling(&mut text, samples, ratios)?;
    failures(&mut text, samples)?;
    Ok(text)
}

fn comparison(text: &mut String, ratios: &[Ratio]) -> Result<()> {
    for precision in plan::PRECISIONS {
        let rows: Vec<&Ratio> = ratios.iter().filter(|ratio| ratio.precision == precision).collect();
        if rows.is_empty() {
            continue;
        }
        writeln!(text, "\n## {precision}: ours / PyTorch in its best mode\n")?;
        writeln!(
            text,
            "| row | ours ms | PyTorch ms | its mode | ratio | target | of processor time | ours MiB | PyTorch MiB |\n|---|---|---|---|---|---|---|---|---|"
        )?;
        for Ratio { row, ours, torch, ratio, mode, .. } in rows {
            let target = target(row, precision);
            let reached = if *ratio <= target { "" } else { " **above**" };
            let cpu = ours.median_cpu_ms.zip(torch.median_cpu_ms).map_or("-".into(), |(ours, torch)| format!("{:.2}", ours / torch));
            let (ours_mb, torch_mb) = (megabytes(ours.peak_mb), megabytes(torch.peak_mb));
            writeln!(text, "| {row} | {} | {} | {mode} | {ratio:.2} | {target}{reached} | {cpu} | {ours_mb} | {torch_mb} |", times(ours), times(torch))?;
        }
        writeln!(text, "\n\"Of processor time\" is the same ratio of the time that all threads ran: on a busy machine it says more than the clock.")?;
    }
    Ok(())
}

fn times(side: &Summary) -> String {
    format!("{:.2} ({:.2} - {:.2})", side.median_ms, side.least_ms, side.most_ms)
}

fn megabytes(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.0}"))
}

/// What the machine can do, and the share of it that our rows reach.
fn limits(text: &mut String, samples: &Samples, ratios: &[Ratio]) -> Result<()> {
    let alone = |row: &'static str, precision| Summary::of(samples, &Pair { row, precision, mode: None, threads: None }, OURS);
    let [triad, read] = TRAFFIC.map(|row| alone(row, "f32").and_then(|peak| Some(peak.mbyte? / peak.median_ms)));
    let (Some(triad), Some(read)) = (triad, read) else { return Ok(()) };
    let mut tables = String::new();
    let mut measured = Vec::new();
    for precision in plan::PRECISIONS {
        let Some(gflops) = alone(ARITHMETIC, precision).and_then(|peak| Some(peak.gflop? / peak.median_ms * 1e3)) else { continue };
        measured.push(format!("multiply-adds for {precision} {gflops:.0} GFLOP/s"));
        let rows = ratios.iter().filter(|ratio| ratio.precision == precision && ratio.row != START_UP);
        let rows: Vec<(&Ratio, f64, f64)> = rows.filter_map(|ratio| Some((ratio, ratio.ours.gflop?, ratio.ours.mbyte?))).collect();
        if rows.is_empty() {
            continue;
        }
        writeln!(
            tables,
            "\n| {precision} | GFLOP | MB that must move | bound by | ours, share of limit | PyTorch, share of limit |\n|---|---|---|---|---|---|"
        )?;
        for (ratio, gflop, mbyte) in rows {
            let (arithmetic_ms, traffic_ms) = (gflop / gflops * 1e3, mbyte / triad.max(read));
            let bound = if arithmetic_ms > traffic_ms { "arithmetic" } else { "memory" };
            let share = |ms: f64| 100.0 * arithmetic_ms.max(traffic_ms) / ms;
            writeln!(tables, "| {} | {gflop:.2} | {mbyte:.1} | {bound} | {:.0}% | {:.0}% |", ratio.row, share(ratio.ours_ms), share(ratio.torch_ms))?;
        }
    }
    if measured.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n## Shares of the machine's limits\n")?;
    writeln!(text, "Measured: {}; memory {triad:.1} GB/s in a triad, {read:.1} GB/s reading.", measured.join(", "))?;
    text.push_str(&tables);
    writeln!(text, "\nArithmetic is counted as the definition has it, so that an algorithm with fewer multiplications can pass 100%.")?;
    Ok(())
}

fn scaling(text: &mut String, samples: &Samples, ratios: &[Ratio]) -> Result<()> {
    for precision in plan::PRECISIONS {
        let measured = |row: &'static str, threads: Option<usize>| {
            // What was measured beside torch is quoted as in the comparison.
            let beside = ratios.iter().find(|ratio| threads.is_none() && ratio.row == row && ratio.precision == precision).map(|ratio| ratio.ours.clone());
            let fits = |pair: &Pair| pair.row == row && pair.precision == precision && pair.threads == threads;
            beside.or_else(|| plan::pairs().into_iter().filter(fits).find_map(|pair| Summary::of(samples, &pair, OURS)))
        };
        let mut lines = String::new();
        for row in THREADED {
            if let (Some(one), Some(all)) = (measured(row, Some(1)), measured(row, None)) {
                writeln!(lines, "- {row}: one thread {}, all {}: {:.2} times as fast", times(&one), times(&all), one.median_ms / all.median_ms)?;
            }
        }
        for row in BATCHES {
            if let Some(batch) = measured(row, None) {
                writeln!(lines, "- {row}: {} a picture, {} MiB", times(&batch), megabytes(batch.peak_mb))?;
            }
        }
        for row in SIZES.iter().filter(|row| **row != "A") {
            if let Some(size) = measured(row, None) {
                writeln!(lines, "- {row}: {}, {} MiB", times(&size), megabytes(size.peak_mb))?;
            }
        }
        if !lines.is_empty() {
            write!(text, "\n## {precision}: scaling, ours alone, ms\n\n{lines}")?;
        }
    }
    Ok(())
}

fn failures(text: &mut String, samples: &Samples) -> Result<()> {
    let mut lines = String::new();
    for pair in plan::pairs().iter().filter(|pair| samples.count(pair, OURS) == 0 || (pair.mode.is_some() && samples.count(pair, TORCH) == 0)) {
        if let Some(failure) = samples.failure(pair) {
            writeln!(lines, "- {pair}: {failure}")?;
        }
    }
    if !lines.is_empty() {
        write!(text, "\n## Failed\n\n{lines}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sample;
    use super::*;

    #[test]
    fn a_row_that_fails_is_reported_beside_the_others() {
        let good = Pair { row: "A", precision: "f32", mode: Some("f32-nhwc"), threads: None };
        let bad = Pair { row: "B", ..good };
        let side = |side: &str, ms: f64| Sample { ms: Some(ms), cpu_ms: Some(ms), gflop: Some(10.0), mbyte: Some(1.0), ..Sample::of(&good, side) };
        let peak = |row: &'static str, precision: &'static str, gflop: f64| {
            let pair = Pair { row, precision, mode: None, threads: None };
            Sample { ms: Some(10.0), gflop: Some(gflop), mbyte: Some(100.0), ..Sample::of(&pair, OURS) }
        };
        let halved = Pair { precision: "bf16", mode: Some("bf16-nhwc"), ..good };
        let half = |side: &str, ms: f64| Sample { ms: Some(ms), gflop: Some(10.0), mbyte: Some(0.5), ..Sample::of(&halved, side) };
        let mut lines = vec![side(OURS, 90.0), side(TORCH, 100.0), Sample::failed(&bad, "out of memory")];
        lines.extend([half(OURS, 50.0), half(TORCH, 40.0)]);
        lines.extend([peak(ARITHMETIC, "f32", 2.0), peak(ARITHMETIC, "bf16", 4.0)]); // 200 and 400 GFLOP/s
        lines.extend(TRAFFIC.map(|row| peak(row, "f32", 0.0))); // 10 GB/s
        let samples = Samples::of(lines);
        let text = readme("", &samples, &ratios(&samples)).unwrap();
        assert!(text.contains("| A | 90.00 (90.00 - 90.00) | 100.00 (100.00 - 100.00) | f32-nhwc | 0.90 | 0.8 **above** | 0.90 |"), "{text}");
        assert!(text.contains("multiply-adds for f32 200 GFLOP/s, multiply-adds for bf16 400 GFLOP/s; memory 10.0 GB/s"), "{text}");
        assert!(text.contains("| A | 10.00 | 1.0 | arithmetic | 56% | 50% |"), "{text}");
        assert!(text.contains("| A | 10.00 | 0.5 | arithmetic | 50% | 62% |"), "{text}");
        assert!(text.contains("- B f32, against torch f32-nhwc: out of memory"), "{text}");
    }
}
