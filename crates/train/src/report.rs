//! `report.html`: the curves of a run and its sample sheets in one file that needs nothing else; `losses.svg`: what training and held-out pictures have in
//! common, on the same axes, for whoever writes about the run.

use crate::TrainError;
use crate::log::Entry;
use crate::run_folder::RunFolder;
use base64::Engine;
use smalti_metrics::line_plot::{self, Panel, Point, Series};
use smalti_nn::weights::write_atomically;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// A curve of training is averaged to at most so many points.
const POINT_COUNT: usize = 100;
/// At most this many sample sheets are shown, spread over the run, the first and the last among them.
const SHEET_COUNT: usize = 12;

/// Writes both files of a run from its log and its sample sheets; each whole or not at all.
pub fn write(run: &RunFolder, entries: &[Entry]) -> Result<(), TrainError> {
    let curves = curves(entries);
    let panels = losses(&curves);
    if !panels.is_empty() {
        write_text(&run.losses(), &line_plot::svg(&run.name(), &panels))?;
    }
    write_text(&run.report(), &page(&run.name(), entries, &curves, &sheets(&run.samples())?))
}

fn write_text(path: &Path, text: &str) -> Result<(), TrainError> {
    write_atomically(path, |writer| writer.write_all(text.as_bytes())).map_err(|source| TrainError::io(path, source))
}

fn page(title: &str, entries: &[Entry], curves: &Curves, sheets: &[(String, Vec<u8>)]) -> String {
    let mut page = String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">");
    let title = escape(title);
    let _ = write!(page, "<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>");
    if let Some(last) = entries.last() {
        let _ = write!(page, "<p>{} steps</p>", last.step());
    }
    page.push_str("<section>");
    for (name, points) in curves {
        page.push_str(&curve(name, points));
    }
    page.push_str("</section>");
    for entry in entries {
        if let Entry::Rollback { step, to_step, reason, rate_factor } = entry {
            let _ = write!(page, "<p>step {step}: {}; back to step {to_step} with {rate_factor} of the learning rate</p>", escape(reason));
        }
    }
    for (name, png) in sheets {
        let data = base64::engine::general_purpose::STANDARD.encode(png);
        let _ = write!(page, "<figure><img alt=\"samples {name}\" src=\"data:image/png;base64,{data}\"><figcaption>{name}</figcaption></figure>");
    }
    page + "</html>\n"
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
section{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:1.5rem}svg{width:100%;overflow:visible}\
path{fill:none;stroke:#2563a8;stroke-width:1.5}text{font:10px system-ui;fill:#666}.frame{stroke:#ddd;stroke-width:1;fill:none}\
figure{margin:2rem 0}img{max-width:100%;image-rendering:pixelated}h2{font-size:1rem;margin:0}figcaption{color:#666}";

/// Points (step, value) by the name of the figure.
type Curves = BTreeMap<String, Vec<(f64, f64)>>;

const HELD_OUT: &str = "held out: ";

fn curves(entries: &[Entry]) -> Curves {
    let mut curves = Curves::new();
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
            Entry::Evaluation { step, measures, .. } => measures.iter().for_each(|(name, &value)| add(format!("{HELD_OUT}{name}"), *step, value)),
            Entry::Rollback { .. } => {}
        }
    }
    curves
}

/// A panel for each figure that is known of training and of held-out pictures: both curves, and a third if it was measured without captions or classes as well.
fn losses(curves: &Curves) -> Vec<Panel> {
    let named = |name: String| curves.get(&name).map_or(&[][..], Vec::as_slice);
    let shared = curves.keys().filter(|name| curves.contains_key(&format!("{HELD_OUT}{name}")));
    let panel = |name: &String| {
        let held_out = named(format!("{HELD_OUT}{name}"));
        let without = curves.iter().find(|(other, _)| other.starts_with(&format!("{HELD_OUT}{name} without")));
        // What lies before the first look at held-out pictures is many times higher and would flatten the rest.
        let training: Vec<(f64, f64)> = named(name.clone()).iter().copied().filter(|(step, _)| held_out.len() < 2 || *step >= held_out[0].0).collect();
        let mut series = vec![("training".to_string(), averaged(&training)), ("held out".to_string(), held_out.to_vec())];
        series.extend(without.map(|(other, points)| (format!("held out{}", &other[HELD_OUT.len() + name.len()..]), points.clone())));
        let last = series.iter().flat_map(|(_, points)| points).map(|(step, _)| *step).fold(1.0, f64::max);
        let point = |&(step, value): &(f64, f64)| Point { place: step / last, value, low: value, high: value };
        let ticks = [0.0, 0.25, 0.5, 0.75, 1.0].map(|place| (place, format!("{:.0}", place * last)));
        let series = series.into_iter().map(|(label, points)| Series { label, points: points.iter().map(point).collect() }).collect();
        Panel { title: name.clone(), axis: "step".to_string(), ticks: ticks.to_vec(), series, reference: None }
    };
    shared.map(panel).collect()
}

/// Means over neighbours, so that at most [`POINT_COUNT`] points are left.
fn averaged(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let count = points.len().div_ceil(POINT_COUNT).max(1);
    let mean = |group: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| group.iter().map(of).sum::<f64>() / group.len() as f64;
    points.chunks(count).map(|group| (mean(group, |point| point.0), mean(group, |point| point.1))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn measures(of: &[(&str, f64)]) -> BTreeMap<String, f64> {
        of.iter().map(|(name, value)| (name.to_string(), *value)).collect()
    }

    /// Training logs every step from 1, held-out pictures are looked at every 100.
    fn entries(count: usize) -> Vec<Entry> {
        let training = |step: usize| {
            let losses = measures(&[("loss", 1.0 / step as f64), ("gradient norm", 1.0)]);
            Entry::Training { step, losses, learning_rate: 1e-3, pictures_per_second: 1.0, seconds: 1.0 }
        };
        let evaluation = |step: usize| {
            let measures = measures(&[("loss", 0.5), ("loss without condition", 0.75), ("psnr", 20.0)]);
            Entry::Evaluation { step, measures, seconds: 1.0 }
        };
        (1..=count).flat_map(|step| [Some(training(step)), (step % 100 == 0).then(|| evaluation(step))]).flatten().collect()
    }

    #[test]
    fn losses_of_training_and_of_held_out_pictures_share_a_panel() {
        let panels = losses(&curves(&entries(400)));
        let [panel] = panels.as_slice() else { panic!("{panels:?}") };
        assert_eq!(panel.title, "loss");
        let labels: Vec<&str> = panel.series.iter().map(|series| series.label.as_str()).collect();
        assert_eq!(labels, ["training", "held out", "held out without condition"]);
        assert_eq!(panel.series[1].points.iter().map(|point| (point.place, point.value)).collect::<Vec<_>>(), [0.25, 0.5, 0.75, 1.0].map(|place| (place, 0.5)));
        let training = &panel.series[0].points;
        assert_eq!(training.len(), 76, "301 steps by fours");
        assert_eq!(training[0].place, (100.0 + 101.0 + 102.0 + 103.0) / 4.0 / 400.0);
        assert!((training[0].value - (1.0 / 100.0 + 1.0 / 101.0 + 1.0 / 102.0 + 1.0 / 103.0) / 4.0).abs() < 1e-12);
        assert_eq!(panel.ticks.last().unwrap().1, "400");
    }

    #[test]
    fn one_look_at_held_out_pictures_leaves_all_of_training_and_none_leaves_no_panel() {
        assert_eq!(losses(&curves(&entries(100)))[0].series[0].points.len(), 100);
        assert!(losses(&curves(&entries(99))).is_empty());
    }
}
