//! A sweep: the same pictures drawn in many ways, every way a row of figures. As CSV for programs, as curves for people.

use crate::Mean;
use crate::line_plot::{Panel, Point, Series, svg};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fmt::Write;

/// What half of a 95 % interval of a normal distribution is, in standard deviations.
const INTERVAL: f64 = 1.96;
/// Values of a flag are placed by their logarithm when the largest is so many times the smallest: steps and guidance scales usually double.
const LOGARITHMIC_RATIO: f64 = 8.0;

/// A figure with its 95 % interval, and the same figure of real pictures where that can be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub low: f64,
    pub high: f64,
    pub real: Option<f64>,
}

impl Figure {
    pub fn new(name: &str, value: f64, (low, high): (f64, f64)) -> Self {
        Self { name: name.to_string(), value: rounded(value), low: rounded(low), high: rounded(high), real: None }
    }

    pub fn of_mean(name: &str, mean: Mean) -> Self {
        let half = INTERVAL * mean.standard_error;
        Self::new(name, mean.value, (mean.value - half, mean.value + half))
    }

    /// Of a share, which lies in [0, 1] with its interval (Wilson 1927): nothing found among few says little.
    pub fn of_share(name: &str, share: Mean) -> Self {
        let (p, n, z) = (share.value, share.count as f64, INTERVAL);
        let (middle, half) = (p + z * z / (2.0 * n), z * (p * (1.0 - p) / n + (z / (2.0 * n)).powi(2)).max(0.0).sqrt());
        let end = |end: f64| (end / (1.0 + z * z / n)).clamp(0.0, 1.0);
        Self::new(name, p, (end(middle - half), end(middle + half)))
    }

    /// With the same figure of real pictures.
    pub fn beside(self, real: Mean) -> Self {
        Self { real: Some(rounded(real.value)), ..self }
    }
}

/// To nine digits: more than any figure is worth, and few enough that a row read back from text is the row that was written.
fn rounded(value: f64) -> f64 {
    format!("{value:.8e}").parse().unwrap_or(value)
}

/// A flag and the values it takes, as they were typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    pub flag: String,
    pub values: Vec<String>,
}

/// What was found for one value of every axis on one split of the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub split: String,
    /// One for each axis.
    pub values: Vec<String>,
    pub picture_count: usize,
    pub figures: Vec<Figure>,
}

/// The rows that are finished, in the order of the grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    pub axes: Vec<Axis>,
    pub rows: Vec<Row>,
}

/// Every choice of one value for each axis, the last axis running fastest.
pub fn grid(axes: &[Axis]) -> Vec<Vec<String>> {
    axes.iter().fold(vec![Vec::new()], |chosen, axis| {
        let longer = |chosen: Vec<String>| axis.values.iter().map(move |value| [&chosen[..], std::slice::from_ref(value)].concat()).collect::<Vec<_>>();
        chosen.into_iter().flat_map(longer).collect()
    })
}

impl Sweep {
    /// Names of all figures, in the order in which they first occur.
    fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for figure in self.rows.iter().flat_map(|row| &row.figures) {
            if !names.contains(&figure.name.as_str()) {
                names.push(figure.name.as_str());
            }
        }
        names
    }

    /// A header and a line for each row (RFC 4180); what a row lacks is empty.
    pub fn csv(&self) -> String {
        let names = self.names();
        let mut header: Vec<String> = vec!["split".into()];
        header.extend(self.axes.iter().map(|axis| axis.flag.clone()));
        header.push("pictures".into());
        header.extend(names.iter().flat_map(|name| [name.to_string(), format!("{name}_low"), format!("{name}_high"), format!("{name}_real")]));
        let mut text = csv_line(&header);
        for row in &self.rows {
            let mut line = vec![row.split.clone()];
            line.extend(row.values.iter().cloned());
            line.push(row.picture_count.to_string());
            for name in &names {
                let figure = row.figures.iter().find(|figure| figure.name == *name);
                let number = |of: fn(&Figure) -> Option<f64>| figure.and_then(of).map_or_else(String::new, |value| value.to_string());
                line.extend([number(|one| Some(one.value)), number(|one| Some(one.low)), number(|one| Some(one.high)), number(|one| one.real)]);
            }
            text += &csv_line(&line);
        }
        text
    }

    /// One panel for each figure of each split: the first axis to the right, a curve for each choice of the others, a dashed line for real pictures.
    pub fn svg(&self, title: &str) -> String {
        let Some((first, others)) = self.axes.split_first() else { return svg(title, &[]) };
        let places = places(&first.values);
        let choices = grid(others);
        let mut splits: Vec<&str> = Vec::new();
        self.rows.iter().for_each(|row| {
            if !splits.contains(&row.split.as_str()) {
                splits.push(&row.split)
            }
        });
        let mut panels = Vec::new();
        for split in &splits {
            for name in self.names() {
                let rows: Vec<(&Row, &Figure)> = self
                    .rows
                    .iter()
                    .filter(|row| row.split == *split)
                    .filter_map(|row| Some((row, row.figures.iter().find(|figure| figure.name == name)?)))
                    .collect();
                let series = |choice: &Vec<String>| Series {
                    label: others.iter().zip(choice).map(|(axis, value)| format!("{} {value}", axis.flag)).collect::<Vec<_>>().join(", "),
                    points: rows
                        .iter()
                        .filter(|(row, _)| row.values[1..] == choice[..])
                        .filter_map(|(row, figure)| {
                            let place = first.values.iter().position(|value| *value == row.values[0])?;
                            Some(Point { place: places[place], value: figure.value, low: figure.low, high: figure.high })
                        })
                        .collect(),
                };
                panels.push(Panel {
                    title: if splits.len() > 1 { format!("{split}: {}", label(name)) } else { label(name) },
                    axis: first.flag.clone(),
                    ticks: places.iter().copied().zip(first.values.iter().cloned()).collect(),
                    series: choices.iter().map(series).collect(),
                    reference: rows.iter().find_map(|(_, figure)| figure.real),
                });
            }
        }
        svg(title, &panels)
    }
}

/// A figure's name for people, and which way is better.
fn label(name: &str) -> String {
    match name {
        "r_precision" => "R-precision@1, higher is better",
        "clip_score" => "CLIP score, higher is better",
        "class_accuracy" => "class accuracy, higher is better",
        "frechet_distance" => "Frechet distance, lower is better",
        "precision" => "precision, higher is better",
        "recall" => "recall, higher is better",
        "diversity" => "mean distance of two pictures",
        "seconds_per_picture" => "seconds per picture",
        other => other,
    }
    .to_string()
}

/// Where the values of an axis stand, in [0, 1]: by their size where all are numbers, else side by side.
fn places(values: &[String]) -> Vec<f64> {
    let even = || (0..values.len()).map(|place| if values.len() > 1 { place as f64 / (values.len() - 1) as f64 } else { 0.5 }).collect();
    let numbers: Option<Vec<f64>> = values.iter().map(|value| value.parse().ok().filter(|number: &f64| number.is_finite())).collect();
    let Some(mut numbers) = numbers else { return even() };
    let ends = |numbers: &[f64]| numbers.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &number| (low.min(number), high.max(number)));
    let (low, high) = ends(&numbers);
    if low > 0.0 && high >= LOGARITHMIC_RATIO * low {
        numbers.iter_mut().for_each(|number| *number = number.ln());
    }
    let (low, high) = ends(&numbers);
    if high > low { numbers.iter().map(|number| (number - low) / (high - low)).collect() } else { even() }
}

fn csv_line(fields: &[String]) -> String {
    let quoted = |field: &String| if field.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.clone() };
    fields.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

/// A table, best read at a fixed width.
impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let names = self.names();
        let mut lines: Vec<Vec<String>> = vec![vec!["split".to_string()]];
        lines[0].extend(self.axes.iter().map(|axis| axis.flag.clone()));
        lines[0].extend(names.iter().map(ToString::to_string));
        for row in &self.rows {
            let mut line = vec![row.split.clone()];
            line.extend(row.values.iter().cloned());
            for name in &names {
                let figure = row.figures.iter().find(|figure| figure.name == *name);
                line.push(figure.map_or("-".to_string(), |figure| format!("{:.4} [{:.4}, {:.4}]", figure.value, figure.low, figure.high)));
            }
            lines.push(line);
        }
        let widths: Vec<usize> = (0..lines[0].len()).map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)).collect();
        for (index, line) in lines.iter().enumerate() {
            let mut text = String::new();
            for (field, width) in line.iter().zip(&widths) {
                let _ = write!(text, "{field:<width$}  ");
            }
            write!(f, "{}{}", if index > 0 { "\n" } else { "" }, text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes() -> Vec<Axis> {
        [("steps", &["1", "2", "8"][..]), ("negative", &["a \"blurry\", grey one", "none"])]
            .map(|(flag, values)| Axis { flag: flag.into(), values: values.iter().map(ToString::to_string).collect() })
            .to_vec()
    }

    fn sweep() -> Sweep {
        let mean = |value: f64| Mean { value, standard_error: 0.1, count: 4 };
        let rows = grid(&axes()).into_iter().enumerate().map(|(index, values)| Row {
            split: "pairs".into(),
            values,
            picture_count: 4,
            figures: vec![Figure::of_mean("frechet_distance", mean(index as f64)), Figure::of_mean("clip_score", mean(0.5)).beside(mean(0.75))],
        });
        Sweep { axes: axes(), rows: rows.collect() }
    }

    /// Brown, Cai and DasGupta 2001's formula by hand: 1 of 4 is 0.25 in [0.0456, 0.6994], 0 of 4 is in [0, 0.4899].
    #[test]
    fn shares_stay_shares() {
        let share = |value: f64| Figure::of_share("x", Mean { value, standard_error: 0.0, count: 4 });
        let close = |found: f64, expected: f64| (found - expected).abs() < 1e-4;
        assert!(close(share(0.25).low, 0.0456) && close(share(0.25).high, 0.6994), "{:?}", share(0.25));
        assert!(share(0.0).low == 0.0 && close(share(0.0).high, 0.4899) && close(share(1.0).low, 0.5101) && share(1.0).high == 1.0);
    }

    #[test]
    fn figures_have_nine_digits() {
        let figure = Figure::new("x", 1.0 / 3.0, (-1e-9 / 3.0, f64::NAN));
        assert_eq!((figure.value, figure.low, figure.high.is_nan()), (0.333333333, -3.33333333e-10, true));
    }

    #[test]
    fn the_last_axis_runs_fastest() {
        let chosen = grid(&axes());
        assert_eq!((chosen.len(), chosen[1][0].as_str(), chosen[1][1].as_str(), chosen[2][0].as_str()), (6, "1", "none", "2"));
        assert_eq!(grid(&[]), [Vec::<String>::new()]);
    }

    #[test]
    fn a_line_for_each_row() {
        let csv = sweep().csv();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(
            lines[0],
            "split,steps,negative,pictures,frechet_distance,frechet_distance_low,frechet_distance_high,frechet_distance_real,\
             clip_score,clip_score_low,clip_score_high,clip_score_real"
        );
        assert_eq!(lines[1], "pairs,1,\"a \"\"blurry\"\", grey one\",4,0,-0.196,0.196,,0.5,0.304,0.696,0.75");
        assert_eq!(lines.len(), 7);
        let table = sweep().to_string();
        let row = table.lines().nth(2).unwrap();
        assert!(row.starts_with("pairs  1      none  ") && row.ends_with("  1.0000 [0.8040, 1.1960]   0.5000 [0.3040, 0.6960]"), "{table}");
    }

    #[test]
    fn a_panel_for_each_figure_and_a_curve_for_each_choice() {
        let svg = sweep().svg("tiny");
        assert_eq!(svg.matches("class=\"panel\"").count(), 2);
        assert_eq!(svg.matches("class=\"curve\"").count(), 4);
        assert_eq!(svg.matches("class=\"reference\"").count(), 1, "only where real pictures have the figure");
        assert!(svg.contains("negative a &quot;blurry&quot;, grey one") && svg.contains("Frechet distance, lower is better"), "{svg}");
    }

    #[test]
    fn values_stand_where_their_size_puts_them() {
        let of = |values: &[&str]| places(&values.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of(&["1", "2", "4", "16"]), [0.0, 0.25, 0.5, 1.0]);
        assert_eq!(of(&["0", "1", "4"]), [0.0, 0.25, 1.0]);
        assert_eq!(of(&["ddim", "heun", "euler"]), [0.0, 0.5, 1.0]);
        assert_eq!(of(&["default", "8"]), [0.0, 1.0]);
        assert_eq!((of(&["3"]), of(&["3", "3"])), (vec![0.5], vec![0.0, 1.0]));
    }
}
