//! Curves with their intervals as SVG: one file that every browser shows and that needs nothing else.

use std::fmt::Write;

/// One set of axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    pub title: String,
    /// What runs to the right.
    pub axis: String,
    /// Places in [0, 1] along the axis, and what stands there.
    pub ticks: Vec<(f64, String)>,
    pub series: Vec<Series>,
    /// A level to compare with.
    pub reference: Option<f64>,
}

/// One curve. Every panel of a figure has the same ones, in the same order.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub label: String,
    pub points: Vec<Point>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Along the axis, in [0, 1].
    pub place: f64,
    pub value: f64,
    /// The ends of the interval.
    pub low: f64,
    pub high: f64,
}

/// Told apart by those who see no red or no green, too (Okabe and Ito 2008), without the yellow, which fades on white.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"];
const PANEL_WIDTH: f64 = 360.0;
const PANEL_HEIGHT: f64 = 260.0;
/// Around the curves, within a panel.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 44.0;
const COLUMN_COUNT: usize = 3;
/// Between the places 0 and 1 and the frame.
const INSET: f64 = 14.0;
/// A curve of more points has no marks on them.
const MARKED_COUNT: usize = 40;

/// All panels, row by row, below the title and one legend.
pub fn svg(title: &str, panels: &[Panel]) -> String {
    let columns = panels.len().clamp(1, COLUMN_COUNT);
    let width = columns as f64 * PANEL_WIDTH;
    let labels: Vec<&str> = panels.first().map_or(Vec::new(), |panel| panel.series.iter().map(|series| series.label.as_str()).collect());
    let has_reference = panels.iter().any(|panel| panel.reference.is_some());
    let (legend, legend_bottom) = legend(&labels, has_reference, width);
    let height = legend_bottom + panels.len().div_ceil(columns) as f64 * PANEL_HEIGHT + 8.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\" font-weight=\"bold\" fill=\"#222222\">{}</text>\n{legend}",
        escape(title)
    );
    for (index, panel) in panels.iter().enumerate() {
        let (x, y) = ((index % columns) as f64 * PANEL_WIDTH, legend_bottom + (index / columns) as f64 * PANEL_HEIGHT);
        let _ = writeln!(text, "<g class=\"panel\" transform=\"translate({x} {y})\">{}</g>", curves(panel));
    }
    text + "</svg>\n"
}

/// The legend's elements and where it ends; a single unnamed curve needs none.
fn legend(labels: &[&str], has_reference: bool, width: f64) -> (String, f64) {
    const LINE: f64 = 18.0;
    let (mut text, mut x, mut y) = (String::new(), 12.0, 44.0);
    let named = labels.iter().any(|label| !label.is_empty());
    let mut entry = |label: &str, mark: &dyn Fn(f64, f64) -> String| {
        // Letters of this size are about 6.6 wide.
        let extent = 40.0 + 6.6 * label.chars().count() as f64;
        if x > 12.0 && x + extent > width {
            (x, y) = (12.0, y + LINE);
        }
        let _ = writeln!(text, "{}<text x=\"{}\" y=\"{y}\" fill=\"#222222\">{}</text>", mark(x, y - 4.0), x + 26.0, escape(label));
        x += extent;
    };
    for (index, label) in labels.iter().enumerate().filter(|_| named) {
        let line = |x: f64, y: f64| format!("<path d=\"M{x} {y}h20\" {}/>{}", stroke(index), marker(index, x + 10.0, y));
        entry(label, &line);
    }
    if has_reference {
        entry("real pictures", &|x, y| format!("<path d=\"M{x} {y}h20\" {REFERENCE}/>"));
    }
    let ends = if text.is_empty() { 34.0 } else { y + 8.0 };
    (text, ends)
}

const REFERENCE: &str = "stroke=\"#888888\" stroke-width=\"1.2\" stroke-dasharray=\"5 4\" fill=\"none\"";

fn stroke(index: usize) -> String {
    let dashes = if index >= COLOURS.len() { " stroke-dasharray=\"2 2\"" } else { "" };
    format!("stroke=\"{}\" stroke-width=\"1.8\" fill=\"none\"{dashes}", COLOURS[index % COLOURS.len()])
}

/// Shapes as well as colours tell curves apart.
fn marker(index: usize, x: f64, y: f64) -> String {
    let colour = COLOURS[index % COLOURS.len()];
    match index % 4 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.4\" fill=\"{colour}\"/>"),
        1 => format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"6.4\" height=\"6.4\" fill=\"{colour}\"/>", x - 3.2, y - 3.2),
        2 => format!("<path d=\"M{x:.1} {:.1}l4 7h-8z\" fill=\"{colour}\"/>", y - 4.4),
        _ => format!("<path d=\"M{x:.1} {:.1}l4.4 4.4l-4.4 4.4l-4.4 -4.4z\" fill=\"{colour}\"/>", y - 4.4),
    }
}

/// Frame, ticks and curves of one panel, with its top left corner at (0, 0).
fn curves(panel: &Panel) -> String {
    let (inner_width, inner_height) = (PANEL_WIDTH - LEFT - RIGHT, PANEL_HEIGHT - TOP - BOTTOM);
    let (bottom, right) = (TOP + inner_height, LEFT + inner_width);
    let (low, high, step) = value_range(panel);
    let x = |place: f64| LEFT + INSET + place * (inner_width - 2.0 * INSET);
    let y = |value: f64| bottom - (value.clamp(low, high) - low) / (high - low) * inner_height;
    let mut text = format!(
        "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\" fill=\"#222222\">{}</text>\
         <rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{inner_width}\" height=\"{inner_height}\" fill=\"none\" stroke=\"#cccccc\"/>",
        TOP - 9.0,
        escape(&panel.title)
    );
    let digits = if step >= 1.0 { 0 } else { (-step.log10()).ceil() as usize };
    let mut tick = low;
    while tick <= high + step / 1e6 {
        let at = y(tick);
        // Rounding may leave a zero with a sign.
        let shown = if tick.abs() < step / 1e6 { 0.0 } else { tick };
        let _ = write!(
            text,
            "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#eeeeee\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555555\">{shown:.digits$}</text>",
            LEFT - 6.0,
            at + 4.0
        );
        tick += step;
    }
    for (place, label) in &panel.ticks {
        let at = x(*place);
        let _ = write!(
            text,
            "<path d=\"M{at:.1} {bottom}v4\" stroke=\"#888888\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{}</text>",
            bottom + 17.0,
            escape(label)
        );
    }
    let _ = write!(text, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#222222\">{}</text>", (LEFT + right) / 2.0, bottom + 35.0, escape(&panel.axis));
    if let Some(value) = panel.reference {
        let _ = write!(text, "<path class=\"reference\" d=\"M{LEFT} {:.1}H{right}\" {REFERENCE}/>", y(value));
    }
    for (index, series) in panel.series.iter().enumerate() {
        text += &curve(index, &series.points, x, y);
    }
    text
}

fn curve(index: usize, points: &[Point], x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut points: Vec<&Point> = points.iter().filter(|point| point.value.is_finite()).collect();
    points.sort_by(|one, other| one.place.total_cmp(&other.place));
    let mut line = String::new();
    let mut marks = String::new();
    for (number, point) in points.iter().enumerate() {
        let (at, level) = (x(point.place), y(point.value));
        let _ = write!(line, "{}{at:.1} {level:.1}", if number == 0 { "M" } else { "L" });
        if point.high > point.low {
            let (from, to, colour) = (y(point.low), y(point.high), COLOURS[index % COLOURS.len()]);
            let _ = write!(marks, "<path d=\"M{at:.1} {from:.1}V{to:.1}\" stroke=\"{colour}\" stroke-opacity=\"0.45\" stroke-width=\"1.4\"/>");
        }
        if points.len() <= MARKED_COUNT {
            marks += &marker(index, at, level);
        }
    }
    format!("<path class=\"curve\" d=\"{line}\" {}/>{marks}", stroke(index))
}

/// Lowest and highest value of the axis, both multiples of the step between ticks, which is 1, 2 or 5 times a power of ten. Intervals count, but an extreme one
/// may leave the panel rather than flatten every curve.
fn value_range(panel: &Panel) -> (f64, f64, f64) {
    let points = || panel.series.iter().flat_map(|series| &series.points).filter(|point| point.value.is_finite());
    let values: Vec<f64> = points().map(|point| point.value).chain(panel.reference).collect();
    let ends = |values: &mut dyn Iterator<Item = f64>| values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let (mut low, mut high) = ends(&mut values.iter().copied());
    if values.is_empty() {
        return (0.0, 1.0, 0.2);
    }
    let margin = (high - low).max(high.abs() * 0.02).max(1e-9);
    let (lowest, highest) = ends(&mut points().flat_map(|point| [point.low, point.high]).filter(|value| value.is_finite()));
    (low, high) = (lowest.clamp(low - margin, low), highest.clamp(high, high + margin));
    if high <= low {
        (low, high) = (low - margin, high + margin);
    }
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough).unwrap_or(10.0 * power);
    ((low / step).floor() * step, (high / step).ceil() * step, step)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(values: &[f64]) -> Panel {
        let points = values.iter().enumerate().map(|(index, &value)| Point { place: index as f64, value, low: value, high: value }).collect();
        let ticks = vec![(0.0, "1".into()), (1.0, "<2>".into())];
        Panel { title: "a & b".into(), axis: "steps".into(), ticks, series: vec![Series { label: String::new(), points }], reference: None }
    }

    #[test]
    fn axes_end_on_round_numbers_around_everything() {
        for (values, expected) in [
            (&[0.03, 0.97][..], (0.0, 1.0, 0.2)),
            (&[-3.0, 12.0], (-5.0, 15.0, 5.0)),
            (&[101.0, 104.0], (101.0, 104.0, 1.0)),
            (&[0.012, 0.018], (0.012, 0.018, 0.002)),
        ] {
            let (low, high, step) = value_range(&panel(values));
            let close = |one: f64, other: f64| (one - other).abs() < 1e-9;
            assert!(close(low, expected.0) && close(high, expected.1) && close(step, expected.2), "{values:?}: {low} {high} {step}");
        }
        let (low, high, _) = value_range(&panel(&[7.0, 7.0]));
        assert!(low < 7.0 && high > 7.0);
        assert_eq!(value_range(&panel(&[])), (0.0, 1.0, 0.2));
    }

    #[test]
    fn an_interval_without_end_does_not_flatten_the_curve() {
        let mut wild = panel(&[1.0, 2.0]);
        wild.series[0].points[1].high = 1e9;
        assert!(value_range(&wild).1 < 4.0);
        wild.reference = Some(5.0);
        assert!(value_range(&wild).1 >= 5.0, "what is compared with is always seen");
    }

    /// The upper left corner of the frame is (58, 30), the lower right one (342, 216); places 0 and 1 are 14 inside.
    #[test]
    fn curves_go_where_their_values_are() {
        let text = svg("x", &[panel(&[0.0, 1.0])]);
        assert!(text.contains("d=\"M72.0 216.0L328.0 30.0\""), "{text}");
        assert!(text.contains("a &amp; b") && text.contains("&lt;2&gt;") && !text.contains("NaN"), "{text}");
        assert!(text.contains("<circle") && !svg("x", &[panel(&[0.5; 41])]).contains("<circle"), "many points are a line");
        assert!(!svg("x", &[panel(&[f64::NAN])]).contains("NaN"));
        assert!(svg("nothing", &[]).ends_with("</svg>\n"));
    }
}
