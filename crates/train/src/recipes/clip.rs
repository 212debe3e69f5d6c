//! CLIP (Radford et al. 2021) on captioned pictures: symmetric InfoNCE between all pictures and all captions of a step.
//!
//! Accumulation is exact although the loss ties the whole step together: the embeddings of all passes are taken first, the loss gives each its gradient, and
//! every pass is run again to carry its gradients back (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size", 2101.06983).

use crate::captions::{TextBatch, TextTokenizerSettings};
use crate::learner::{Learner, Learns};
use crate::learning_rate::Schedule;
use crate::pictures::{PictureSettings, Pictures, host, scalar, stack, to_tensor};
use crate::recipe::{Measures, Pass, Recipe, RunFacts};
use crate::recipe_file::{RecipeError, RecipeFile};
use crate::settings::{self, OptimizerSettings, TrainSettings};
use crate::train_loop::LoopSettings;
use crate::{TrainError, export};
use burn::module::Module;
use burn::tensor::{Device, Gradients, Tensor};
use serde::{Deserialize, Serialize};
use smalti_data::dataset::CaptionRule;
use smalti_data::loader::Batch;
use smalti_data::text_tokenizer::TextTokenizer;
use smalti_models::contrastive::clip::config::{ImageTowerConfig, TextTowerConfig, TransformerConfig};
use smalti_models::contrastive::clip::{self, Clip, loss};
use smalti_nn::Initializer;
use smalti_pipeline::{Bundle, ContrastivePart};
use std::collections::BTreeMap;
use std::path::Path;

/// A recipe with `system = "clip"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipRecipe {
    pub system: String,
    /// The run is `runs/<name>` unless the command line says otherwise.
    pub name: String,
    pub data: PictureSettings,
    pub text_tokenizer: TextTokenizerSettings,
    pub model: ModelSettings,
    pub optimizer: OptimizerSettings,
    pub schedule: Schedule,
    pub train: TrainSettings,
}

/// `[model]`; the size of the pictures and of the vocabulary are known from elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// Channels of the space that both towers project into.
    pub embedding_channels: usize,
    /// Divides the side of the pictures.
    pub patch_size: usize,
    /// Of the pictures, for values in [0, 1].
    pub pixel_mean: [f32; 3],
    pub pixel_standard_deviation: [f32; 3],
    /// The most text tokens of a caption, start and end included.
    pub context_length: usize,
    pub image: TransformerConfig,
    pub text: TransformerConfig,
}

impl ModelSettings {
    pub(crate) fn config(&self, image_size: usize, vocabulary_size: usize) -> clip::Config {
        let Self { embedding_channels, patch_size, pixel_mean, pixel_standard_deviation, context_length, image, text } = self.clone();
        clip::Config {
            embedding_channels,
            image: ImageTowerConfig { image_size, patch_size, pixel_mean, pixel_standard_deviation, transformer: image },
            text: TextTowerConfig { vocabulary_size, context_length, transformer: text },
        }
    }
}

impl ClipRecipe {
    pub fn validate(&self, file: &RecipeFile) -> Result<(), RecipeError> {
        settings::validate(file, &self.optimizer, &self.schedule, &self.train)?;
        self.data.validate(file)?;
        self.text_tokenizer.validate(file)?;
        if self.train.batch_size * self.train.accumulation < 2 {
            return Err(file.reject("train.batch_size", "expected at least 2 pictures a step: a caption is learned against those of other pictures"));
        }
        if self.model.context_length < 3 {
            return Err(file.reject("model.context_length", format!("expected at least 3 text tokens, found {}", self.model.context_length)));
        }
        self.model.config(self.data.image_size, self.text_tokenizer.vocabulary_size).validate().map_err(|error| {
            let key = error.key.replace("image.transformer", "image").replace("text.transformer", "text");
            let key = key.replace("image.patch_size", "patch_size").replace("image.pixel", "pixel").replace("text.context_length", "context_length");
            file.reject(&format!("model.{key}"), format!("expected {}, found {}", error.expected, error.found))
        })
    }

    pub fn loop_settings(&self, recipe: String) -> LoopSettings {
        LoopSettings { train: self.train.clone(), optimizer: self.optimizer.clone(), schedule: self.schedule.clone(), recipe }
    }
}

/// A CLIP in training.
pub struct ClipTraining {
    recipe: ClipRecipe,
    pictures: Pictures,
    text_tokenizer: TextTokenizer,
    device: Device,
    clip: Learner<Clip>,
    /// The batches of the step so far, when it has several passes.
    pending: Vec<Batch>,
}

impl ClipTraining {
    pub fn new(recipe: &ClipRecipe, device: &Device) -> Result<Self, TrainError> {
        let pictures = Pictures::open(&recipe.data, CaptionRule::Required)?;
        let text_tokenizer = recipe.text_tokenizer.make(pictures.training())?;
        let config = recipe.model.config(recipe.data.image_size, text_tokenizer.vocabulary_size());
        let unfit = |error: smalti_models::ConfigError| TrainError::Unfit { place: "recipe".to_string(), reason: error.to_string() };
        let mut initializer = Initializer::new(recipe.train.seed, &device.clone().autodiff());
        let clip = Learner::new("clip", Clip::new(&config, &mut initializer).map_err(unfit)?, &recipe.optimizer, recipe.train.ema_decay);
        Ok(Self { recipe: recipe.clone(), pictures, text_tokenizer, device: device.clone(), clip, pending: Vec::new() })
    }

    /// Unit vectors of the pictures and of the captions of a batch, both [batch, embedding_channels], by `network` on `device`.
    fn embed(&self, network: &Clip, batch: &Batch, device: &Device) -> Result<[Tensor<2>; 2], TrainError> {
        let text = TextBatch::new(&self.text_tokenizer, &batch.captions, self.recipe.model.context_length, device)?;
        let pictures = network.encode_image(to_tensor(batch.pictures.clone(), batch.size, device));
        Ok([pictures, network.encode_text(text.tokens, &text.ends)])
    }

    /// One pass: loss and gradients at once.
    fn step_whole(&mut self, batch: &Batch) -> Result<Measures, TrainError> {
        let network = self.clip.network();
        let [pictures, captions] = self.embed(network, batch, &self.device.clone().autodiff())?;
        let contrastive = loss::contrastive(pictures, captions, network.logit_scale());
        let figures = self.figures(&contrastive);
        self.clip.gather(&mut contrastive.backward(), 1.0);
        Ok(figures)
    }

    /// Several passes: embeddings of all, then the loss, then every pass again with the gradients of its embeddings.
    fn step_in_parts(&mut self, batches: &[Batch]) -> Result<Measures, TrainError> {
        let autodiff = self.device.clone().autodiff();
        let frozen = self.clip.network().valid();
        let mut leaves = Vec::new();
        for batch in batches {
            leaves.push(self.embed(&frozen, batch, &self.device)?.map(|embeddings| Tensor::from_inner(embeddings).require_grad()));
        }
        let side = |side: usize| Tensor::cat(leaves.iter().map(|leaves| leaves[side].clone()).collect(), 0);
        let contrastive = loss::contrastive(side(0), side(1), self.clip.network().logit_scale());
        let figures = self.figures(&contrastive);
        let mut gradients = contrastive.backward();
        self.clip.gather(&mut gradients, 1.0); // of the temperature
        for (batch, leaves) in batches.iter().zip(&leaves) {
            let embeddings = self.embed(self.clip.network(), batch, &autodiff)?;
            let passed_on = |side: usize| (embeddings[side].clone() * gradient_of(&leaves[side], &gradients)).sum();
            let total = passed_on(0) + passed_on(1);
            self.clip.gather(&mut total.backward(), 1.0);
        }
        Ok(figures)
    }

    fn figures(&self, contrastive: &Tensor<1>) -> Measures {
        let scale = scalar(&self.clip.network().logit_scale());
        Measures::from([("contrastive".to_string(), scalar(contrastive)), ("logit scale".to_string(), scale)])
    }
}

impl Recipe for ClipTraining {
    type Batch = Batch;

    fn learners(&mut self) -> Vec<&mut dyn Learns> {
        vec![&mut self.clip]
    }

    fn pictures(&self) -> Option<&Pictures> {
        Some(&self.pictures)
    }

    fn inputs(&self) -> Result<BTreeMap<String, String>, TrainError> {
        Ok(BTreeMap::from([("text_tokenizer".to_string(), self.text_tokenizer.sha256())]))
    }

    fn batch(&mut self, pass: Pass) -> Result<Batch, TrainError> {
        self.pictures.batch(pass)
    }

    fn step(&mut self, batch: Batch, pass: Pass) -> Result<Measures, TrainError> {
        if pass.accumulation == 1 {
            return self.step_whole(&batch);
        }
        if pass.index == 0 {
            // What a step that was given up has left.
            self.pending.clear();
        }
        self.pending.push(batch);
        if pass.index + 1 < pass.accumulation {
            return Ok(Measures::new());
        }
        let batches = std::mem::take(&mut self.pending);
        // The loop takes means over passes; this pass speaks for all of them.
        Ok(self.step_in_parts(&batches)?.into_iter().map(|(name, value)| (name, value / pass.share())).collect())
    }

    fn updated(&mut self, _pass: Pass) -> Result<Measures, TrainError> {
        self.clip.rewrite_network(Clip::clip_logit_scale);
        Ok(Measures::new())
    }

    /// Retrieval among the held-out pictures: how often the best caption of a picture is its own, and the other way round. Equal captions count as one.
    fn evaluate(&mut self) -> Result<Measures, TrainError> {
        let network = self.clip.averaged();
        let (mut pictures, mut texts, mut captions) = (Vec::new(), Vec::new(), Vec::new());
        for items in self.pictures.evaluation().chunks(self.recipe.train.batch_size) {
            let batch_captions: Vec<&str> = items.iter().map(|item| item.captions.first().map_or("", String::as_str)).collect();
            let text = TextBatch::new(&self.text_tokenizer, &batch_captions, self.recipe.model.context_length, &self.device)?;
            texts.push(network.encode_text(text.tokens, &text.ends));
            pictures.push(network.encode_image(stack(items, self.recipe.data.image_size, &self.device)));
            captions.extend(batch_captions);
        }
        let (pictures, texts) = (Tensor::cat(pictures, 0), Tensor::cat(texts, 0));
        let contrastive = scalar(&loss::contrastive(pictures.clone(), texts.clone(), network.logit_scale()));
        let likeness = pictures.matmul(texts.transpose()); // [pictures, captions]
        let share = |likeness: Tensor<2>| retrieval(&host(likeness), &captions);
        let figures = [
            ("contrastive".to_string(), contrastive),
            (format!("caption found among {}", captions.len()), share(likeness.clone())),
            (format!("picture found among {}", captions.len()), share(likeness.transpose())),
        ];
        Ok(figures.into_iter().map(|(name, value)| (self.pictures.measure(&name), value)).collect())
    }

    fn export(&mut self, folder: &Path, facts: &RunFacts) -> Result<(), TrainError> {
        let provenance = facts.provenance(&self.recipe.data.path);
        let part = ContrastivePart { model: self.clip.averaged(), text_tokenizer: Some(self.text_tokenizer.clone()), provenance };
        export::save(&Bundle { name: facts.name.clone(), contrastive: Some(part), ..Bundle::default() }, folder)?;
        Ok(())
    }
}

/// The share of rows of a square matrix whose greatest entry stands under an equal caption.
fn retrieval(likeness: &[f32], captions: &[&str]) -> f64 {
    let best = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(column, _)| column);
    let found = likeness.chunks_exact(captions.len()).zip(captions).filter(|(row, caption)| captions[best(row)] == **caption);
    found.count() as f64 / captions.len() as f64
}

fn gradient_of(leaf: &Tensor<2>, gradients: &Gradients) -> Tensor<2> {
    Tensor::from_inner(leaf.grad(gradients).unwrap_or_else(|| leaf.clone().inner().zeros_like()))
}

#[cfg(test)]
mod tests {
    use super::retrieval;

    #[test]
    fn retrieval_counts_rows_and_forgives_equal_captions() {
        let likeness = [0.9, 0.1, 0.0, 0.2, 0.1, 0.3, 0.0, 0.8, 0.1];
        assert_eq!(retrieval(&likeness, &["a", "b", "c"]), 1.0 / 3.0);
        assert_eq!(retrieval(&likeness, &["a", "b", "b"]), 1.0);
    }
}
