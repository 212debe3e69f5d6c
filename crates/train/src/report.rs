//! `report.html`: the curves of a run and its sample sheets in one file that needs nothing else.

use crate::TrainError;
use crate::log::Entry;
use base64::Engine;
use smalti_nn::weights::write_atomically;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// At most this many sample sheets are shown, spread over the run, the first and the last among them.
const SHEET_COUNT: usize = 12;

/// Writes the report of a run from its log and the PNG files in `samples`; whole or not at all.
pub fn write(path: &Path, title: &str, entries: &[Entry], samples: &Path) -> Result<(), TrainError> {
    let mut page = String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">");
    let title = escape(title);
    let _ = write!(page, "<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>");
    if let Some(last) = entries.last() {
        let _ = write!(page, "<p>{} steps</p>", last.step());
    }
    page.push_str("<section>");
    for (name, points) in curves(entries) {
        page.push_str(&curve(&name, &points));
    }
    page.push_str("</section>");
    for entry in entries {
        if let Entry::Rollback { step, to_step, reason, rate_factor } = entry {
            let _ = write!(page, "<p>step {step}: {}; back to step {to_step} with {rate_factor} of the learning rate</p>", escape(reason));
        }
    }
    for (name, png) in sheets(samples)? {
        let data = base64::engine::general_purpose::STANDARD.encode(png);
        let _ = write!(page, "<figure><img alt=\"samples {name}\" src=\"data:image/png;base64,{data}\"><figcaption>{name}</figcaption></figure>");
    }
    page.push_str("</html>\n");
    write_atomically(path, |writer| writer.write_all(page.as_bytes())).map_err(|source| TrainError::io(path, source))
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
section{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:1.5rem}svg{width:100%;overflow:visible}\
path{fill:none;stroke:#2563a8;stroke-width:1.5}text{font:10px system-ui;fill:#666}.frame{stroke:#ddd;stroke-width:1;fill:none}\
figure{margin:2rem 0}img{max-width:100%;image-rendering:pixelated}h2{font-size:1rem;margin:0}figcaption{color:#666}";

/// Every figure of the log as (step, value), by name.
fn curves(entries: &[Entry]) -> BTreeMap<String, Vec<(f64, f64)>> {
    let mut curves: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let mut add = |name: String, step: usize, value: f64| {
        if value.is_finite() {
            curves.entry(name).or_default().push((step as f64, value));
        }
    };
    for entry in entries {
        match entry {
            Entry::Training { step, losses, learning_rate, .. } => {
                losses.iter().for_each(|(name, &value)| add(name.clone(), *step, value));
                add("learning rate".to_string(), *step, *learning_rate);
            }
            Entry::Evaluation { step, measures, .. } => measures.iter().for_each(|(name, &value)| add(format!("held out: {name}"), *step, value)),
            Entry::Rollback { .. } => {}
        }
    }
    curves
}

/// A curve as inline SVG. Steps run to the right; the axis of values spans what was measured.
fn curve(name: &str, points: &[(f64, f64)]) -> String {
    const WIDTH: f64 = 320.0;
    const HEIGHT: f64 = 140.0;
    let range = |values: &mut dyn Iterator<Item = f64>| values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let (first, last) = range(&mut points.iter().map(|point| point.0));
    let (low, high) = range(&mut points.iter().map(|point| point.1));
    let place = |value: f64, low: f64, high: f64| if high > low { (value - low) / (high - low) } else { 0.5 };
    let mut line = String::new();
    for (index, (step, value)) in points.iter().enumerate() {
        let (x, y) = (place(*step, first, last) * WIDTH, HEIGHT - place(*value, low, high) * HEIGHT);
        let _ = write!(line, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
    }
    let dot = if points.len() == 1 { format!("<circle cx=\"{}\" cy=\"{}\" r=\"2\" fill=\"#2563a8\"/>", WIDTH / 2.0, HEIGHT / 2.0) } else { String::new() };
    let now = points.last().map_or(f64::NAN, |point| point.1);
    format!(
        "<div><h2>{}: {now:.4}</h2><svg viewBox=\"-2 -12 {} {}\"><rect class=\"frame\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/><path d=\"{line}\"/>{dot}\
         <text y=\"-3\">{high:.4}</text><text y=\"{}\">{low:.4}</text><text x=\"{WIDTH}\" y=\"{}\" text-anchor=\"end\">step {last}</text></svg></div>",
        escape(name),
        WIDTH + 4.0,
        HEIGHT + 26.0,
        HEIGHT + 11.0,
        HEIGHT + 11.0,
    )
}

/// Name and bytes of the sheets to show.
fn sheets(samples: &Path) -> Result<Vec<(String, Vec<u8>)>, TrainError> {
    if !samples.exists() {
        return Ok(Vec::new());
    }
    let failed = |source| TrainError::io(samples, source);
    let mut paths = Vec::new();
    for entry in fs::read_dir(samples).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "png") {
            paths.push(path);
        }
    }
    paths.sort();
    let count = paths.len().min(SHEET_COUNT);
    let shown = (0..count).map(|index| &paths[if count == 1 { 0 } else { index * (paths.len() - 1) / (count - 1) }]);
    shown
        .map(|path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            Ok((escape(&name), fs::read(path).map_err(|source| TrainError::io(path, source))?))
        })
        .collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
