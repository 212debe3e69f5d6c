//! From drawings to PNG bytes, on all processors.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::config::Config;
use super::labels::Meaning;
use super::{LeftOut, Pictogram};
use crate::picture::DecodeOptions;
use crate::{DataError, Picture};

/// A finished pictogram.
pub(super) struct Drawn {
    pub source: usize,
    /// `style/name`, spaces as hyphens: unique in the set.
    pub key: String,
    pub meaning: Meaning,
    pub png: Vec<u8>,
}

/// PNG bytes; nothing where the drawing shows nothing.
type Outcome = Result<Option<Vec<u8>>, String>;

/// Draws all, in the order given. A drawing that fails is left out, and above `broken_limit` an error; one that shows nothing (white on
/// white) is left out.
pub(super) fn draw_all(
    config: &Config,
    pictograms: Vec<Pictogram>,
    left_out: &mut Vec<LeftOut>,
    on_progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Drawn>, DataError> {
    let outcomes = outcomes(config, &pictograms, on_progress)?;
    let (mut drawn, mut broken_count) = (Vec::new(), 0);
    for (pictogram, outcome) in pictograms.into_iter().zip(outcomes) {
        let Pictogram { source, name, meaning, .. } = pictogram;
        let key = format!("{}/{name}", config.sources[source].style.replace(' ', "-"));
        match outcome {
            Ok(Some(png)) => drawn.push(Drawn { source, key, meaning, png }),
            Ok(None) => left_out.push(LeftOut { key, reason: "shows nothing on the background".into() }),
            Err(reason) => {
                broken_count += 1;
                if broken_count > config.broken_limit {
                    return Err(DataError::TooManyBroken { count: broken_count, limit: config.broken_limit, key, reason });
                }
                left_out.push(LeftOut { key, reason });
            }
        }
    }
    Ok(drawn)
}

fn outcomes(config: &Config, pictograms: &[Pictogram], on_progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Outcome>, DataError> {
    let options = DecodeOptions { background: config.background, svg_size: Some(config.size), ..DecodeOptions::default() };
    let next = AtomicUsize::new(0);
    let mut outcomes: Vec<Option<Outcome>> = pictograms.iter().map(|_| None).collect();
    let worker_count = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..worker_count {
            let (sender, next, options) = (sender.clone(), &next, &options);
            let work = move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(pictogram) = pictograms.get(index) else { return };
                    if sender.send((index, draw(&pictogram.svg, options))).is_err() {
                        return;
                    }
                }
            };
            // As in the loader: drawing follows nested groups by recursion.
            std::thread::Builder::new().stack_size(8 << 20).spawn_scoped(scope, work)?;
        }
        drop(sender);
        for (done, (index, outcome)) in receiver.into_iter().enumerate() {
            outcomes[index] = Some(outcome);
            if done % 100 == 99 || done + 1 == pictograms.len() {
                on_progress(done + 1, pictograms.len());
            }
        }
        Ok(())
    })
    .map_err(|error: std::io::Error| DataError::Io { path: config.source_folder.clone(), reason: format!("cannot start a drawing thread: {error}") })?;
    Ok(outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err("was not drawn".into()))).collect())
}

fn draw(svg: &str, options: &DecodeOptions) -> Outcome {
    let picture = Picture::decode(svg.as_bytes(), options).map_err(|error| error.to_string())?;
    if picture.rgb.chunks_exact(3).all(|pixel| pixel == options.background) {
        return Ok(None);
    }
    picture.to_png(&[]).map(Some).map_err(|error| error.to_string())
}
