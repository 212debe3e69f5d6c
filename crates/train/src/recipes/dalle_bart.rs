//! DALL-E mini's BART (Dayma et al. 2021): captions to image tokens of a frozen image tokenizer, teacher-forced cross-entropy.
//!
//! Nothing flows back into the image tokenizer: pictures are encoded once (`encoding_cache`), and training reads integers.

use crate::captions::{self, TextBatch, TextTokenizerSettings};
use crate::data_record::part_checksum;
use crate::encoding_cache::{self, ImageTokens};
use crate::learner::{Learner, Learns};
use crate::learning_rate::Schedule;
use crate::order::EpochOrder;
use crate::pictures::{PictureSettings, Pictures, scalar, sheet};
use crate::recipe::{Measures, Pass, Recipe, RunFacts};
use crate::recipe_file::{RecipeError, RecipeFile};
use crate::settings::{self, OptimizerSettings, TrainSettings, expect_range};
use crate::train_loop::LoopSettings;
use crate::{TrainError, export};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use smalti_data::Picture;
use smalti_data::dataset::CaptionRule;
use smalti_data::text_tokenizer::TextTokenizer;
use smalti_models::generator::dalle_bart::{self, DalleBart, FeedForwardKind, Norms, StackConfig, Vocabularies, loss};
use smalti_nn::Initializer;
use smalti_pipeline::manifest::ImageTokenSampling;
use smalti_pipeline::parts::Generator;
use smalti_pipeline::text_to_image::{Parts, Request, TextToImage};
use smalti_pipeline::{Bundle, BundleFolder, ContrastivePart, GeneratorPart, ImageTokenizerPart, Part};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A recipe with `system = "dalle_bart"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DalleBartRecipe {
    pub system: String,
    /// The run is `runs/<name>` unless the command line says otherwise.
    pub name: String,
    /// The bundle with the frozen image tokenizer.
    pub image_tokenizer: PathBuf,
    /// A bundle whose contrastive part will rank pictures; it becomes part of the exported bundle.
    pub contrastive: Option<PathBuf>,
    /// A bundle whose contrastive part, trained from another seed, will measure pictures and never rank them.
    pub judge: Option<PathBuf>,
    pub data: PictureSettings,
    pub text_tokenizer: TextTokenizerSettings,
    pub model: ModelSettings,
    pub loss: LossSettings,
    pub samples: SampleSettings,
    pub optimizer: OptimizerSettings,
    pub schedule: Schedule,
    pub train: TrainSettings,
}

/// `[model]`; both vocabularies and the number of image tokens are known from the tokenizers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// The most text tokens of a caption, start and end included.
    pub text_token_count: usize,
    pub channels: usize,
    pub norms: Norms,
    pub feed_forward: FeedForwardKind,
    pub linear_bias: bool,
    pub encoder: StackConfig,
    pub decoder: StackConfig,
}

impl ModelSettings {
    pub(crate) fn config(&self, text_vocabulary: usize, image_vocabulary: usize, image_token_count: usize) -> dalle_bart::Config {
        let Self { text_token_count, channels, norms, feed_forward, linear_bias, encoder, decoder } = self.clone();
        dalle_bart::Config {
            text_vocabulary,
            text_token_count,
            image_vocabulary,
            image_token_count,
            special_token_count: 1,
            start_token: image_vocabulary,
            channels,
            norms,
            feed_forward,
            linear_bias,
            logits_bias: false,
            vocabularies: Vocabularies::Separate,
            position_offset: 0,
            scale_embedding: false,
            encoder,
            decoder,
        }
    }
}

/// `[loss]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossSettings {
    /// Szegedy et al. 2016; 0 is plain cross-entropy.
    pub label_smoothing: f64,
    /// The share of captions that are replaced by the empty one, without which a guidance scale has no meaning (DALL-E mini: 0.1 to 0.2).
    pub caption_drop_rate: f64,
}

/// `[samples]`: what the sheets show, and how the bundle is usually drawn with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleSettings {
    /// Empty: captions of evaluation pictures.
    #[serde(default)]
    pub prompts: Vec<String>,
    /// Pictures of each prompt.
    pub count: usize,
    pub guidance_scale: f64,
    pub temperature: f64,
    #[serde(default)]
    pub top_k: Option<usize>,
}

impl DalleBartRecipe {
    pub fn validate(&self, file: &RecipeFile) -> Result<(), RecipeError> {
        settings::validate(file, &self.optimizer, &self.schedule, &self.train)?;
        self.data.validate(file)?;
        self.text_tokenizer.validate(file)?;
        if self.model.text_token_count < 3 {
            return Err(file.reject("model.text_token_count", format!("expected at least 3, found {}", self.model.text_token_count)));
        }
        self.model
            .config(self.text_tokenizer.vocabulary_size, 2, 1)
            .validate()
            .map_err(|error| file.reject(&format!("model.{}", error.key), format!("expected {}, found {}", error.expected, error.found)))?;
        expect_range(file, "loss.label_smoothing", self.loss.label_smoothing, 0.0, 0.999)?;
        expect_range(file, "loss.caption_drop_rate", self.loss.caption_drop_rate, 0.0, 1.0)?;
        expect_range(file, "samples.guidance_scale", self.samples.guidance_scale, -1000.0, 1000.0)?;
        expect_range(file, "samples.temperature", self.samples.temperature, 1e-3, 100.0)?;
        if self.samples.top_k == Some(0) {
            return Err(file.reject("samples.top_k", "expected at least 1, found 0"));
        }
        if !(1..=64).contains(&self.samples.count) {
            return Err(file.reject("samples.count", format!("expected 1 to 64, found {}", self.samples.count)));
        }
        if let Some(place) = self.samples.prompts.iter().position(|prompt| prompt.trim().is_empty()) {
            return Err(file.reject("samples.prompts", format!("expected prompts, found an empty one at place {}", place + 1)));
        }
        Ok(())
    }

    pub fn loop_settings(&self, recipe: String) -> LoopSettings {
        LoopSettings { train: self.train.clone(), optimizer: self.optimizer.clone(), schedule: self.schedule.clone(), recipe }
    }

    /// What the recipe allows but its author should know.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.loss.caption_drop_rate == 0.0 {
            warnings.push("loss.caption_drop_rate is 0: this generator will not know the empty caption, so use it with a guidance scale of 1 only".to_string());
        }
        if self.data.transform().is_random() && self.data.encoded_variants == 1 {
            let use_them = "data.encoded_variants = 4 keeps three changed versions beside the plain picture";
            warnings.push(format!("[data] has random changes of the pictures: image tokens are made once, without them; {use_them}"));
        }
        warnings
    }
}

/// A DALL-E BART in training.
pub struct DalleBartTraining {
    recipe: DalleBartRecipe,
    pictures: Pictures,
    text_tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizerPart,
    contrastive: Option<ContrastivePart>,
    judge: Option<ContrastivePart>,
    device: Device,
    generator: Learner<DalleBart>,
    examples: Examples,
    /// Of the evaluation pictures, one picture after the other.
    evaluation_tokens: Vec<u32>,
}

/// Image tokens and captions of every training picture that could be read.
struct Examples {
    tokens: ImageTokens,
    captions: Vec<Vec<String>>,
    order: EpochOrder,
}

/// One pass: captions and the image tokens of their pictures.
pub struct TokenBatch {
    captions: Vec<String>,
    image_tokens: Vec<u32>,
}

impl DalleBartTraining {
    pub fn new(recipe: &DalleBartRecipe, device: &Device) -> Result<Self, TrainError> {
        recipe.warnings().iter().for_each(|warning| crate::say!("warning: {warning}"));
        let folder = BundleFolder::open(&recipe.image_tokenizer)?;
        let image_tokenizer = folder.image_tokenizer(device, "encode the training pictures")?;
        let checksum = folder.manifest().image_tokenizer.as_ref().map_or(String::new(), |entry| entry.weights.sha256.clone());
        let ranking = |path: &Option<PathBuf>, purpose| path.as_ref().map(|path| BundleFolder::open(path)?.contrastive(device, purpose)).transpose();
        let contrastive = ranking(&recipe.contrastive, "rank pictures")?;
        let judge = ranking(&recipe.judge, "judge pictures")?;
        if image_tokenizer.image_size != recipe.data.image_size {
            let (expected, found) = (image_tokenizer.image_size, recipe.data.image_size);
            let reason = format!("expected pictures of {expected} pixels, which the image tokenizer was trained on, found data.image_size = {found}");
            return Err(TrainError::Unfit { place: recipe.image_tokenizer.display().to_string(), reason });
        }
        let pictures = Pictures::open(&recipe.data, CaptionRule::Required)?;
        let text_tokenizer = recipe.text_tokenizer.make(pictures.training())?;
        let tokens = encoding_cache::image_tokens(&recipe.data.image_token_cache, &pictures, &image_tokenizer, &checksum)?;
        let examples = Examples::new(tokens, &pictures, recipe.train.seed)?;
        let code_count = image_tokenizer.model.config().code_count().unwrap_or_default();
        let config = recipe.model.config(text_tokenizer.vocabulary_size(), code_count, examples.tokens.token_count());
        config.validate().map_err(|error| TrainError::Unfit { place: "recipe".to_string(), reason: error.to_string() })?;
        let mut initializer = Initializer::new(recipe.train.seed, &device.clone().autodiff());
        let generator = Learner::new("generator", DalleBart::new(&config, &mut initializer), &recipe.optimizer, recipe.train.ema_decay);
        let mut evaluation_tokens = Vec::new();
        for items in pictures.evaluation().chunks(32) {
            evaluation_tokens.extend(encoding_cache::encode_items(&image_tokenizer, items)?);
        }
        let (recipe, device) = (recipe.clone(), device.clone());
        Ok(Self { recipe, pictures, text_tokenizer, image_tokenizer, contrastive, judge, device, generator, examples, evaluation_tokens })
    }

    /// Mean cross-entropy in nats per image token of `network` on a batch, by tensors on `device`.
    fn loss<S: AsRef<str>>(&self, network: &DalleBart, captions: &[S], image_tokens: &[u32], smoothing: f64, device: &Device) -> Result<Tensor<1>, TrainError> {
        let text = TextBatch::new(&self.text_tokenizer, captions, self.recipe.model.text_token_count, device)?;
        let image_tokens: Vec<i64> = image_tokens.iter().map(|&token| token as i64).collect();
        let shape = [captions.len(), self.examples.tokens.token_count()];
        let image_tokens = Tensor::<2, Int>::from_data(TensorData::new(image_tokens, shape), device);
        let memory = network.encode(text.tokens, text.visible.clone());
        let logits = network.logits(memory, text.visible, image_tokens.clone());
        Ok(loss::cross_entropy(logits, image_tokens, smoothing as f32))
    }

    fn part(&self, facts: Option<&RunFacts>) -> GeneratorPart {
        let provenance = facts.map(|facts| facts.provenance(&self.recipe.data.path)).unwrap_or_default();
        let SampleSettings { guidance_scale, temperature, top_k, .. } = self.recipe.samples;
        GeneratorPart {
            model: Generator::DalleBart(self.generator.averaged()),
            text_tokenizer: Some(self.text_tokenizer.clone()),
            sampling: Some(ImageTokenSampling { guidance_scale, temperature, top_k }),
            provenance,
        }
    }

    /// The recipe's prompts, or captions of evaluation pictures.
    fn prompts(&self) -> Vec<String> {
        if !self.recipe.samples.prompts.is_empty() {
            return self.recipe.samples.prompts.clone();
        }
        let items = self.pictures.evaluation();
        let count = items.len().min(8);
        (0..count).filter_map(|place| items[place * items.len() / count].captions.first().cloned()).collect()
    }
}

impl Examples {
    fn new(tokens: ImageTokens, pictures: &Pictures, seed: u64) -> Result<Self, TrainError> {
        let dataset = pictures.training();
        let (captions, readable) = captions::of_readable(dataset, tokens.readable())?;
        Ok(Self { tokens, captions, order: EpochOrder::new(readable, seed) })
    }
}

impl Recipe for DalleBartTraining {
    type Batch = TokenBatch;

    fn learners(&mut self) -> Vec<&mut dyn Learns> {
        vec![&mut self.generator]
    }

    fn pictures(&self) -> Option<&Pictures> {
        Some(&self.pictures)
    }

    fn inputs(&self) -> Result<BTreeMap<String, String>, TrainError> {
        let image_tokenizer = part_checksum(&self.recipe.image_tokenizer, Part::ImageTokenizer)?;
        Ok(BTreeMap::from([("image_tokenizer".to_string(), image_tokenizer), ("text_tokenizer".to_string(), self.text_tokenizer.sha256())]))
    }

    fn batch(&mut self, pass: Pass) -> Result<TokenBatch, TrainError> {
        let mut batch = TokenBatch { captions: Vec::new(), image_tokens: Vec::new() };
        for row in 0..pass.batch_size {
            let index = self.examples.order.place(pass.first_example() + row as u64);
            let mut rng = pass.rng(row);
            // All are drawn whatever comes of them, so that one setting does not shift the other's draws.
            let (choice, dropped) = (rng.random::<f64>(), rng.random::<f64>() < self.recipe.loss.caption_drop_rate);
            let variant = rng.random_range(0..self.recipe.data.encoded_variants as u64) as usize;
            let captions = &self.examples.captions[index];
            let caption = if dropped { None } else { captions.get((choice * captions.len() as f64) as usize) };
            batch.captions.push(caption.cloned().unwrap_or_default());
            batch.image_tokens.extend(self.examples.tokens.of(index, variant).unwrap_or_default());
        }
        Ok(batch)
    }

    fn step(&mut self, batch: TokenBatch, pass: Pass) -> Result<Measures, TrainError> {
        let autodiff = self.device.clone().autodiff();
        let smoothing = self.recipe.loss.label_smoothing;
        let cross_entropy = self.loss(self.generator.network(), &batch.captions, &batch.image_tokens, smoothing, &autodiff)?;
        let figure = scalar(&cross_entropy);
        self.generator.gather(&mut cross_entropy.backward(), pass.share());
        Ok(Measures::from([("cross-entropy".to_string(), figure)]))
    }

    /// Nats per image token of evaluation pictures, given their first caption and given none: the difference is what the captions tell.
    fn evaluate(&mut self) -> Result<Measures, TrainError> {
        let network = self.generator.averaged();
        let token_count = self.examples.tokens.token_count();
        let items = self.pictures.evaluation();
        let (mut given, mut without) = (0.0, 0.0);
        for (items, tokens) in items.chunks(self.recipe.train.batch_size).zip(self.evaluation_tokens.chunks(self.recipe.train.batch_size * token_count)) {
            let captions: Vec<&str> = items.iter().map(|item| item.captions.first().map_or("", String::as_str)).collect();
            given += scalar(&self.loss(&network, &captions, tokens, 0.0, &self.device)?) * items.len() as f64;
            without += scalar(&self.loss(&network, &vec![""; items.len()], tokens, 0.0, &self.device)?) * items.len() as f64;
        }
        let count = items.len() as f64;
        let figures = [("cross-entropy", given / count), ("cross-entropy without caption", without / count)];
        Ok(figures.map(|(name, value)| (self.pictures.measure(name), value)).into())
    }

    /// A row for each prompt.
    fn sample(&mut self) -> Result<Option<Picture>, TrainError> {
        let prompts = self.prompts();
        if prompts.is_empty() {
            return Ok(None);
        }
        let maker = TextToImage::new(Parts {
            image_tokenizer: Some(self.image_tokenizer.clone()),
            text_encoder: None,
            generator: self.part(None),
            super_resolution: Vec::new(),
            classifier: None,
            contrastive: None,
        })?;
        let count = self.recipe.samples.count;
        let mut rows = Vec::new();
        for prompt in prompts {
            let request = Request { count, seed: self.recipe.train.seed, ..Request::new(prompt) };
            rows.push(maker.generate(&request, &mut |_| {})?.pictures.into_iter().map(|made| made.picture).collect());
        }
        Ok(Some(sheet(&rows)?))
    }

    fn export(&mut self, folder: &Path, facts: &RunFacts) -> Result<(), TrainError> {
        let bundle = Bundle {
            name: facts.name.clone(),
            image_tokenizer: Some(self.image_tokenizer.clone()),
            generator: Some(self.part(Some(facts))),
            contrastive: self.contrastive.clone(),
            judge: self.judge.clone(),
            ..Bundle::default()
        };
        export::save(&bundle, folder)?;
        Ok(())
    }
}
