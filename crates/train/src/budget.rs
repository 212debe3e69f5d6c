//! What the networks of a recipe cost, counted before they are made; what only the data or another bundle knows is asked of that bundle's manifest.

use crate::job::{Job, System};
use crate::recipes::diffusion::settings::DiffusionRecipe;
use smalti_pipeline::BundleFolder;
use smalti_pipeline::budget::{Budget, PartBudget, clip, diffusion, image_tokenizer};
use smalti_pipeline::manifest::{Canvas, ContrastiveModel, GeneratorModel, ImageTokenizerModel, Manifest};
use std::path::Path;

/// What is counted with where the data decides how many classes there are.
const LIKELY_CLASS: &str = "class";

impl Job {
    /// The networks that the recipe trains; an error in words where a bundle that decides their sizes is not there yet.
    pub fn budget(&self) -> Result<Budget, String> {
        let parts = match &self.system {
            System::Vqgan(recipe) => image_tokenizer(&ImageTokenizerModel::Vqgan(recipe.model.clone()), recipe.data.image_size).to_vec(),
            System::AutoencoderKl(recipe) => image_tokenizer(&ImageTokenizerModel::AutoencoderKl(recipe.model.clone()), recipe.data.image_size).to_vec(),
            System::Clip(recipe) => {
                let config = recipe.model.config(recipe.data.image_size, recipe.text_tokenizer.vocabulary_size);
                vec![PartBudget::new("contrastive", "clip", clip(&config), 1)]
            }
            System::DalleBart(recipe) => {
                let manifest = manifest(&recipe.image_tokenizer)?;
                let entry = manifest.image_tokenizer.ok_or_else(|| missing(&recipe.image_tokenizer, "image_tokenizer"))?;
                let code_count = entry.model.code_count().ok_or_else(|| missing(&recipe.image_tokenizer, "codebook"))?;
                let image_tokens = (recipe.data.image_size / entry.model.downsampling_factor()).pow(2);
                let model = GeneratorModel::DalleBart(recipe.model.config(recipe.text_tokenizer.vocabulary_size, code_count, image_tokens));
                let GeneratorModel::DalleBart(config) = &model else { return Ok(Budget::default()) };
                vec![PartBudget::new("generator", model.kind(), config.cost(), 1)]
            }
            System::Diffusion(recipe) => vec![diffusion_network(recipe)?],
            System::NoisyClassifier(_) => return Err("of a noisy classifier, which draws nothing by itself, nothing is counted".to_string()),
        };
        Ok(Budget { parts })
    }
}

fn diffusion_network(recipe: &DiffusionRecipe) -> Result<PartBudget, String> {
    let (mut factor, mut latent_channels) = (1, None);
    if let (Canvas::Latents, Some(path)) = (recipe.canvas(), &recipe.image_tokenizer) {
        let entry = manifest(path)?.image_tokenizer.ok_or_else(|| missing(path, "image_tokenizer"))?;
        (factor, latent_channels) = (entry.model.downsampling_factor(), Some(entry.model.latent_channels()));
    }
    let encoder = recipe.text_encoder.as_ref().or(recipe.stage_below.as_ref()).filter(|_| recipe.conditions.text.is_some());
    let text_channels = encoder.map(|path| text_channels(path)).transpose()?;
    let classes = recipe.conditions.class_field.iter().map(|_| LIKELY_CLASS.to_string()).collect();
    Ok(diffusion("generator", &recipe.config(recipe.canvas_channels(latent_channels), text_channels, classes), factor))
}

/// Channels of the states of a bundle's text encoder, or of the text tower that it lends.
fn text_channels(path: &Path) -> Result<usize, String> {
    let manifest = manifest(path)?;
    let tower = manifest.contrastive.as_ref().map(|entry| {
        let ContrastiveModel::Clip(config) = &entry.model;
        config.text.transformer.channels
    });
    manifest.text_encoder.map(|entry| entry.model.channels()).or(tower).ok_or_else(|| missing(path, "text_encoder"))
}

fn manifest(path: &Path) -> Result<Manifest, String> {
    BundleFolder::open(path).map(|bundle| bundle.manifest().clone()).map_err(|_| format!("known once {} is there", path.display()))
}

fn missing(path: &Path, what: &str) -> String {
    format!("{} has no `{what}`", path.display())
}
