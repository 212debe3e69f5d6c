//! What a diffusion network is told beside the noise: captions as states of a frozen text encoder, classes as numbers.

use super::Request;
use crate::manifest::{ClassifierConfig, DiffusionConfig, TextCondition};
use crate::rerank::no_text_tokenizer;
use crate::{Part, PipelineError, TextEncoderPart, Truncation, reading};
use burn::tensor::{Bool, Int, Tensor, TensorData};
use smalti_models::generator::conditions::{Conditions, Text};

/// The states of captions, each [token_count] long, and what of them did not fit.
pub fn text_states<S: AsRef<str>>(encoder: &TextEncoderPart, condition: &TextCondition, captions: &[S]) -> Result<(Text, Vec<Truncation>), PipelineError> {
    states(encoder, condition, reading::Text::Prompt, captions)
}

fn states<S: AsRef<str>>(
    encoder: &TextEncoderPart,
    condition: &TextCondition,
    text: reading::Text,
    captions: &[S],
) -> Result<(Text, Vec<Truncation>), PipelineError> {
    let part = Part::TextEncoder;
    let text_tokenizer = encoder.text_tokenizer.as_ref().ok_or_else(|| no_text_tokenizer(part))?;
    let (mut tokens, mut visible, mut truncated) = (Vec::new(), Vec::new(), Vec::new());
    for caption in captions {
        let (encoded, cut) = reading::read(text_tokenizer, part, text, caption.as_ref(), condition.token_count)?;
        tokens.extend(encoded.tokens.iter().map(|&token| i64::from(token)));
        visible.extend(encoded.visible);
        truncated.extend(cut);
    }
    let (shape, device) = ([captions.len(), condition.token_count], encoder.model.device());
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, shape), &device);
    let visible = Tensor::<2, Bool>::from_data(TensorData::new(visible, shape), &device);
    let states = encoder.model.encode(tokens, visible.clone());
    Ok((Text { states, visible: (!condition.attend_to_padding).then_some(visible) }, truncated))
}

/// The condition of a request: one row for the prompt, one for what guidance leads away from.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    prompt: Row,
    null: Row,
    /// What of the texts did not fit.
    pub truncated: Vec<Truncation>,
}

#[derive(Clone, Debug)]
enum Row {
    Nothing,
    Text(Box<Text>),
    Class(i64),
}

impl Rows {
    /// Of each request; they lead away from the same. Reads prompts as the generator means them: captions, names of classes, or nothing at all.
    pub fn of_all(config: &DiffusionConfig, encoder: Option<&TextEncoderPart>, requests: &[Request]) -> Result<Vec<Self>, PipelineError> {
        let mut null: Option<(Row, Vec<Truncation>)> = None; // read once
        let mut of = |request: &Request| -> Result<Self, PipelineError> {
            let rows = |prompt: Row, null: Row| Self { prompt, null, truncated: Vec::new() };
            Ok(match (Meaning::of(config, request)?, &config.text, encoder) {
                (Meaning::Caption(prompt), Some(condition), Some(encoder)) => {
                    let read = |text: reading::Text, words: &str| -> Result<(Row, Vec<Truncation>), PipelineError> {
                        let (text, truncated) = states(encoder, condition, text, &[words])?;
                        Ok((Row::Text(Box::new(text)), truncated))
                    };
                    let (prompt, mut truncated) = read(reading::Text::Prompt, prompt)?;
                    if null.is_none() {
                        null = Some(read(reading::Text::Negative, request.diffusion.negative.as_deref().unwrap_or(""))?);
                    }
                    let (null, cut) = null.clone().unwrap_or((Row::Nothing, Vec::new()));
                    truncated.extend(cut);
                    Self { prompt, null, truncated }
                }
                (Meaning::Class(number), ..) => rows(Row::Class(number), Row::Class(config.classes.len() as i64)),
                // A caption is only meant where there is a text encoder, which was made sure of when the parts were put together.
                _ => rows(Row::Nothing, Row::Nothing),
            })
        };
        requests.iter().map(&mut of).collect()
    }

    /// Whether guidance can change anything.
    pub fn differ(&self) -> bool {
        !matches!(self.prompt, Row::Nothing)
    }

    /// A row of the prompt for each canvas of a batch, then, with `guided`, as many of what guidance leads away from. The canvases may be of different prompts
    /// to the same generator.
    pub fn conditions(canvases: &[&Self], guided: bool, device: &burn::tensor::Device) -> Conditions {
        let nulls = canvases.iter().filter(|_| guided).map(|rows| &rows.null);
        let (mut numbers, mut texts): (Vec<i64>, Vec<&Text>) = (Vec::new(), Vec::new());
        for row in canvases.iter().map(|rows| &rows.prompt).chain(nulls) {
            match row {
                Row::Nothing => {}
                Row::Class(number) => numbers.push(*number),
                Row::Text(text) => texts.push(text),
            }
        }
        if !numbers.is_empty() {
            return Conditions::class(Tensor::<1, Int>::from_data(numbers.as_slice(), device));
        }
        if texts.is_empty() {
            return Conditions::default();
        }
        let states = texts.iter().map(|text| text.states.clone()).collect();
        let visible: Option<Vec<_>> = texts.iter().map(|text| text.visible.clone()).collect();
        Conditions::text(Tensor::cat(states, 0), visible.map(|visible| Tensor::cat(visible, 0)))
    }
}

/// What a prompt is to a generator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Meaning<'a> {
    Caption(&'a str),
    /// The number of a class, of "no class" where there is no prompt.
    Class(i64),
    Nothing,
}

impl<'a> Meaning<'a> {
    /// Refuses what a generator cannot be told; looks at no weights.
    pub fn of(config: &DiffusionConfig, request: &'a Request) -> Result<Self, PipelineError> {
        let prompt = request.prompt.trim();
        if config.text.is_some() {
            return if prompt.is_empty() { Err(PipelineError::EmptyPrompt) } else { Ok(Self::Caption(prompt)) };
        }
        if request.diffusion.negative.is_some() {
            let (expected, found) = ("nothing: this bundle's generator reads no text".to_string(), "a caption".to_string());
            return Err(PipelineError::Request { key: "negative", expected, found, hint: None });
        }
        if !config.classes.is_empty() {
            return Ok(Self::Class(if prompt.is_empty() { config.classes.len() as i64 } else { class_number(&config.classes, prompt)? }));
        }
        // Beside a network that takes no condition, the prompt is the classifier's.
        if prompt.is_empty() || request.diffusion.classifier.as_ref().is_some_and(|guidance| guidance.class.is_none()) {
            return Ok(Self::Nothing);
        }
        let (expected, found) = ("nothing: this bundle's generator takes no condition".to_string(), format!("\"{prompt}\""));
        Err(PipelineError::Request { key: "prompt", expected, found, hint: Some("leave the prompt out") })
    }
}

/// The number of the class that a request asks a classifier to lead to, among the classifier's; `None` where it asks for no classifier. Looks at no weights.
pub(super) fn wanted_class(config: &DiffusionConfig, classifier: Option<&ClassifierConfig>, request: &Request) -> Result<Option<usize>, PipelineError> {
    let Some(guidance) = &request.diffusion.classifier else { return Ok(None) };
    let wrong = |key, expected: String, found: String, hint| Err(PipelineError::Request { key, expected, found, hint });
    let Some(classifier) = classifier else {
        let hint = Some("--classifier DIR lends that of another bundle");
        return wrong("classifier_scale", "a bundle with a `classifier` part".to_string(), "none".to_string(), hint);
    };
    // A caption is no name of a class.
    let (key, name) = match &guidance.class {
        Some(class) => ("classifier_class", class.trim()),
        None if config.text.is_some() => ("classifier_class", ""),
        None => ("prompt", request.prompt.trim()),
    };
    match classifier.class_number(name) {
        Some(number) => Ok(Some(number)),
        None => {
            let found = if name.is_empty() { "none".to_string() } else { format!("\"{name}\"") };
            wrong(key, format!("one of the classifier's classes {}", classifier.classes.join(", ")), found, Some("--classifier-class names another class"))
        }
    }
}

fn class_number(classes: &[String], prompt: &str) -> Result<i64, PipelineError> {
    let number = classes.iter().position(|class| class.eq_ignore_ascii_case(prompt));
    number.map(|number| number as i64).ok_or_else(|| PipelineError::Request {
        key: "prompt",
        expected: format!("one of the classes {}", classes.join(", ")),
        found: format!("\"{prompt}\""),
        hint: Some("no prompt at all draws any class"),
    })
}
