//! Vector quantizer: each latent becomes an entry of a codebook, the nearest one or the one that a linear map of the latent scores highest.
//!
//! Paper: van den Oord, Vinyals and Kavukcuoglu 2017 (1711.00937): equation 2 (nearest code), equation 3 (codebook and commitment loss), appendix A.1
//! (codebook as moving averages). Unit-length codes: Yu et al. 2022 (2110.04627), section 3.2. Scores: Jang, Gu and Poole 2017 (1611.01144), of whose
//! Gumbel-softmax only the choice is here, the highest score; such codebooks are imported (taming's `GumbelVQ`), not trained.
//!
//! Where this differs from the references: taming's `VectorQuantizer2` and diffusers put the commitment coefficient on the codebook term by default
//! ("legacy"); here the commitment loss reaches the latents only and the codebook loss the codes only, both unweighted. The moving state of the codebook
//! is part of the module (saved and resumed with it), and it changes in [`VectorQuantizer::update_codebook`] and nowhere else.

use crate::ConfigError;
use crate::image_tokenizer::convolutional::pointwise;
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Int, Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};
use smalti_nn::layers::Linear;
use smalti_nn::{Initializer, ops};

/// Keeps codes that nothing chose from a division by zero (Laplace smoothing; Razavi, van den Oord and Vinyals 2019, reference code).
const SMOOTHING: f64 = 1e-5;

/// What moves the codes while training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codebook {
    /// The gradient of the codebook loss.
    Learned,
    /// Moving averages of the latents that chose them.
    MovingAverage,
}

/// What chooses the code of a latent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The distance.
    #[default]
    Nearest,
    /// A learned linear map that gives every code a score: the decoder's codes need not lie near the latents.
    HighestScore,
}

impl Choice {
    fn is_nearest(&self) -> bool {
        *self == Self::Nearest
    }
}

/// The codebook's size and how it moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub code_count: usize,
    pub code_channels: usize,
    #[serde(default, skip_serializing_if = "Choice::is_nearest")]
    pub choice: Choice,
    /// Latents and codes are brought to unit length before they are compared: nearest by angle.
    pub unit_length: bool,
    pub codebook: Codebook,
    /// What each update leaves of the moving averages, in [0, 1).
    pub decay: f32,
    /// A code used less than this share of the codes' mean use restarts on a latent of the batch; 0: never. In [0, 1).
    pub restart_below: f32,
}

impl Config {
    /// As taming and latent-diffusion train it: moved by gradients, no restarts.
    pub fn learned(code_count: usize, code_channels: usize) -> Self {
        Self { code_count, code_channels, choice: Choice::Nearest, unit_length: false, codebook: Codebook::Learned, decay: 0.99, restart_below: 0.0 }
    }

    /// As taming's `GumbelVQ` uses it: scored by a linear map.
    pub fn scored(code_count: usize, code_channels: usize) -> Self {
        Self { choice: Choice::HighestScore, ..Self::learned(code_count, code_channels) }
    }

    /// Refuses sizes that no codebook can have.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::check((2..=1 << 20).contains(&self.code_count), "code_count", "2 to 1048576", self.code_count)?;
        ConfigError::check((1..=8192).contains(&self.code_channels), "code_channels", "1 to 8192", self.code_channels)?;
        ConfigError::check((0.0..1.0).contains(&self.decay), "decay", "at least 0 and below 1", self.decay)?;
        ConfigError::check((0.0..1.0).contains(&self.restart_below), "restart_below", "at least 0 and below 1", self.restart_below)?;
        let distances = self.unit_length || self.has_use();
        ConfigError::check(self.choice.is_nearest() || !distances, "choice", "`nearest`, for codes that follow their latents", "`highest_score`")
    }

    fn has_use(&self) -> bool {
        self.codebook == Codebook::MovingAverage || self.restart_below > 0.0
    }
}

/// Latents brought to the codebook.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// [batch, height, width, code_channels]: the codes; the gradient passes straight through to the latents.
    pub latents: Tensor<4>,
    /// [batch, height * width]: which code, row after row.
    pub tokens: Tensor<2, Int>,
    /// [1]: moves the codes to the latents; zero gradient with moving averages.
    pub codebook_loss: Tensor<1>,
    /// [1]: moves the latents to the codes.
    pub commitment_loss: Tensor<1>,
}

#[derive(Module, Debug)]
pub struct VectorQuantizer {
    /// [code_count, code_channels]
    codebook: Param<Tensor<2>>,
    /// [code_count]: moving average of how many latents of a batch chose each code. Present with moving averages or restarts.
    recent_use: Option<Param<Tensor<1>>>,
    /// [code_count, code_channels]: moving average of the sum of the latents that chose each code. Present with moving averages.
    recent_sum: Option<Param<Tensor<2>>>,
    /// code_channels -> code_count. Present where the highest score chooses.
    scores: Option<Linear>,
    #[module(skip)]
    unit_length: bool,
    #[module(skip)]
    decay: f32,
    #[module(skip)]
    restart_below: f32,
}

impl VectorQuantizer {
    /// `config` must be valid. Codes start uniform within 1 / code_count, as published; see [`VectorQuantizer::start_codebook`] for a start on data.
    pub fn new(config: &Config, initializer: &mut Initializer) -> Self {
        let &Config { code_count, code_channels, choice, unit_length, decay, restart_below, .. } = config;
        // Unit-length codes are drawn normal: uniform in the cube would favour its corners.
        let codebook = match unit_length {
            true => initializer.normal([code_count, code_channels], 1.0),
            false => initializer.uniform([code_count, code_channels], 1.0 / code_count as f32),
        };
        let moving = config.codebook == Codebook::MovingAverage;
        let codebook = codebook.set_require_grad(!moving);
        // With a use of one each, sum and code are the same.
        let recent_sum = moving.then(|| Param::initialized(ParamId::new(), codebook.val().set_require_grad(false)));
        let recent_use = config.has_use().then(|| initializer.constant([code_count], 1.0).set_require_grad(false));
        let scores = (choice == Choice::HighestScore).then(|| pointwise(code_channels, code_count, initializer));
        Self { codebook, recent_use, recent_sum, scores, unit_length, decay, restart_below }
    }

    /// latents [batch, height, width, code_channels] -> codes, tokens and losses.
    pub fn forward(&self, latents: Tensor<4>) -> Quantized {
        let [batch, height, width, channels] = latents.dims();
        let latents = self.comparable(latents.reshape([batch * height * width, channels]));
        let codebook = self.codes();
        let tokens = self.chosen(latents.clone().detach());
        let codes = codebook.select(0, tokens.clone()); // [batch * height * width, channels]
        let codebook_loss = codebook_loss(latents.clone(), codes.clone());
        let commitment_loss = commitment_loss(latents.clone(), codes.clone());
        let straight_through = latents.clone() + (codes - latents).detach();
        Quantized {
            latents: straight_through.reshape([batch, height, width, channels]),
            tokens: tokens.reshape([batch, height * width]),
            codebook_loss,
            commitment_loss,
        }
    }

    /// latents [batch, height, width, code_channels] -> [batch, height * width].
    pub fn tokens(&self, latents: Tensor<4>) -> Tensor<2, Int> {
        let [batch, height, width, channels] = latents.dims();
        let latents = self.comparable(latents.reshape([batch * height * width, channels]));
        self.chosen(latents.detach()).reshape([batch, height * width])
    }

    /// latents [n, code_channels] -> tokens [n].
    fn chosen(&self, latents: Tensor<2>) -> Tensor<1, Int> {
        match &self.scores {
            None => ops::nearest_code(latents, self.codes().detach()),
            Some(scores) => scores.forward(latents).argmax(1).squeeze_dim(1),
        }
    }

    /// tokens [batch, n], each below code_count -> their codes [batch, n, code_channels].
    pub fn lookup(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, count] = tokens.dims();
        let codes = self.codes().select(0, tokens.reshape([batch * count]));
        let channels = codes.dims()[1];
        codes.reshape([batch, count, channels])
    }

    pub fn code_count(&self) -> usize {
        self.codebook.val().dims()[0]
    }

    /// [code_count, code_channels]: the codes as the decoder gets them.
    pub fn codes(&self) -> Tensor<2> {
        self.comparable(self.codebook.val())
    }

    /// One step of the codebook's own state, after the step of the optimiser: moving averages, and a restart of codes that are hardly used.
    ///
    /// latents [batch, height, width, code_channels] and tokens [batch, height * width] of the whole step's batch, as [`VectorQuantizer::forward`] had
    /// them (accumulating gradients, put the parts together and call once). Restarted codes are drawn with `rng`. All sums run on the host in a fixed
    /// order, so the same call gives the same bytes.
    pub fn update_codebook(self, latents: Tensor<4>, tokens: Tensor<2, Int>, rng: &mut ChaCha12Rng) -> Self {
        if self.recent_use.is_none() {
            return self;
        }
        let mut state = State::of(&self);
        let latents = self.host_latents(latents);
        let tokens: Vec<usize> = tokens.into_data().iter::<i64>().map(|token| token as usize).collect();
        state.average(&latents, &tokens, self.decay);
        state.restart(&latents, self.restart_below, rng);
        self.with(state)
    }

    /// Puts the codes on data by k-means (Lloyd 1982), `round_count` rounds from a seeded start: once, before the first step.
    ///
    /// latents [batch, height, width, code_channels]: several per code are needed for a useful start. With fewer latents than codes some codes start equal.
    pub fn start_codebook(self, latents: Tensor<4>, round_count: usize, rng: &mut ChaCha12Rng) -> Self {
        let [batch, height, width, channels] = latents.dims();
        let count = batch * height * width;
        if count == 0 {
            return self;
        }
        let data = self.comparable(latents.reshape([count, channels])).detach();
        let latents = self.host_latents(data.clone().reshape([1, 1, count, channels]));
        let device = data.device();
        let mut state = State::of(&self);
        state.place(&latents, rng);
        for _ in 0..round_count {
            let codes = Tensor::from_data(TensorData::new(state.codes.clone(), [state.count(), channels]), &device);
            let tokens: Vec<usize> = ops::nearest_code(data.clone(), self.comparable(codes)).into_data().iter::<i64>().map(|token| token as usize).collect();
            state.means(&latents, &tokens, rng);
        }
        self.with(state)
    }

    /// Unit length where the codebook asks for it. x [n, code_channels].
    fn comparable(&self, x: Tensor<2>) -> Tensor<2> {
        // The constant keeps the gradient of a zero vector finite and is lost in the rounding of every other.
        if self.unit_length { x.clone() * (x.powi_scalar(2).sum_dim(1) + 1e-12).sqrt().recip() } else { x }
    }

    fn host_latents(&self, latents: Tensor<4>) -> Vec<f32> {
        let [batch, height, width, channels] = latents.dims();
        host(self.comparable(latents.reshape([batch * height * width, channels])))
    }

    fn with(mut self, state: State) -> Self {
        let (count, channels) = (state.count(), state.channels);
        self.codebook = replaced(self.codebook, TensorData::new(state.codes, [count, channels]));
        self.recent_use = self.recent_use.map(|recent_use| replaced(recent_use, TensorData::new(state.recent_use, [count])));
        self.recent_sum = self.recent_sum.map(|recent_sum| replaced(recent_sum, TensorData::new(state.recent_sum, [count, channels])));
        self
    }
}

/// Codebook loss, second term of equation 3 of 1711.00937: mean of (sg[latents] - codes)^2. latents and codes [n, channels] -> [1].
pub fn codebook_loss(latents: Tensor<2>, codes: Tensor<2>) -> Tensor<1> {
    (codes - latents.detach()).powi_scalar(2).mean()
}

/// Commitment loss, third term of equation 3 of 1711.00937 without its coefficient: mean of (latents - sg[codes])^2. latents and codes [n, channels] -> [1].
pub fn commitment_loss(latents: Tensor<2>, codes: Tensor<2>) -> Tensor<1> {
    (latents - codes.detach()).powi_scalar(2).mean()
}

/// The codebook and its moving averages on the host; `recent_sum` is empty without moving averages.
struct State {
    channels: usize,
    codes: Vec<f32>,
    recent_use: Vec<f32>,
    recent_sum: Vec<f32>,
}

impl State {
    fn of(quantizer: &VectorQuantizer) -> Self {
        let codebook = quantizer.codebook.val();
        let [count, channels] = codebook.dims();
        Self {
            channels,
            codes: host(codebook),
            recent_use: quantizer.recent_use.as_ref().map_or_else(|| vec![1.0; count], |recent_use| host(recent_use.val())),
            recent_sum: quantizer.recent_sum.as_ref().map_or_else(Vec::new, |recent_sum| host(recent_sum.val())),
        }
    }

    fn count(&self) -> usize {
        self.recent_use.len()
    }

    fn row(&self, index: usize) -> std::ops::Range<usize> {
        index * self.channels..(index + 1) * self.channels
    }

    /// N_i = decay * N_i + (1 - decay) * n_i, m_i likewise with the sums, e_i = m_i / N_i (appendix A.1), N_i smoothed.
    fn average(&mut self, latents: &[f32], tokens: &[usize], decay: f32) {
        let (uses, sums) = self.totals(latents, tokens);
        let blend = |old: &mut f32, new: f64| *old = (f64::from(*old) * f64::from(decay) + new * (1.0 - f64::from(decay))) as f32;
        self.recent_use.iter_mut().zip(&uses).for_each(|(old, &new)| blend(old, new));
        if self.recent_sum.is_empty() {
            return;
        }
        self.recent_sum.iter_mut().zip(&sums).for_each(|(old, &new)| blend(old, new));
        let total: f64 = self.recent_use.iter().map(|&recent_use| f64::from(recent_use)).sum();
        let smoothing = total / (total + self.count() as f64 * SMOOTHING);
        for index in 0..self.count() {
            let smoothed = (f64::from(self.recent_use[index]) + SMOOTHING) * smoothing;
            for place in self.row(index) {
                self.codes[place] = (f64::from(self.recent_sum[place]) / smoothed) as f32;
            }
        }
    }

    /// Codes used less than `restart_below` times the mean use are put on latents of the batch, no latent twice; the least used first where latents are few.
    fn restart(&mut self, latents: &[f32], restart_below: f32, rng: &mut ChaCha12Rng) {
        let mean = (self.recent_use.iter().map(|&recent_use| f64::from(recent_use)).sum::<f64>() / self.count() as f64) as f32;
        let mut dead: Vec<usize> = (0..self.count()).filter(|&index| self.recent_use[index] < restart_below * mean).collect();
        dead.sort_by(|&a, &b| self.recent_use[a].total_cmp(&self.recent_use[b]).then(a.cmp(&b)));
        let latent_count = latents.len() / self.channels;
        dead.truncate(latent_count);
        for (index, latent) in dead.iter().copied().zip(distinct(latent_count, dead.len(), rng)) {
            self.put(index, &latents[latent * self.channels..(latent + 1) * self.channels], mean);
        }
    }

    /// A code anew: the moving averages agree with it, or the next update would pull it back to where it died.
    fn put(&mut self, index: usize, code: &[f32], recent_use: f32) {
        let row = self.row(index);
        self.codes[row.clone()].copy_from_slice(code);
        self.recent_use[index] = recent_use;
        if !self.recent_sum.is_empty() {
            self.recent_sum[row].iter_mut().zip(code).for_each(|(sum, value)| *sum = value * recent_use);
        }
    }

    /// Every code on a latent, different ones as far as they suffice.
    fn place(&mut self, latents: &[f32], rng: &mut ChaCha12Rng) {
        let latent_count = latents.len() / self.channels;
        let mut chosen = distinct(latent_count, self.count().min(latent_count), rng);
        while chosen.len() < self.count() {
            chosen.push(rng.random_range(0..latent_count));
        }
        for (index, latent) in chosen.into_iter().enumerate() {
            self.put(index, &latents[latent * self.channels..(latent + 1) * self.channels], 1.0);
        }
    }

    /// Every code to the mean of its latents; a code without latents to a random one.
    fn means(&mut self, latents: &[f32], tokens: &[usize], rng: &mut ChaCha12Rng) {
        let (uses, sums) = self.totals(latents, tokens);
        let latent_count = latents.len() / self.channels;
        for (index, &count) in uses.iter().enumerate() {
            let code: Vec<f32> = if count > 0.0 {
                sums[self.row(index)].iter().map(|sum| (sum / count) as f32).collect()
            } else {
                let latent = rng.random_range(0..latent_count);
                latents[latent * self.channels..(latent + 1) * self.channels].to_vec()
            };
            self.put(index, &code, count.max(1.0) as f32);
        }
    }

    /// How many latents chose each code, and their sums.
    fn totals(&self, latents: &[f32], tokens: &[usize]) -> (Vec<f64>, Vec<f64>) {
        let (mut uses, mut sums) = (vec![0.0; self.count()], vec![0.0; self.count() * self.channels]);
        for (latent, &token) in latents.chunks_exact(self.channels).zip(tokens) {
            uses[token] += 1.0;
            sums[self.row(token)].iter_mut().zip(latent).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        (uses, sums)
    }
}

/// `count` different numbers below `limit`, in random order (Fisher and Yates, stopped early).
fn distinct(limit: usize, count: usize, rng: &mut ChaCha12Rng) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..limit).collect();
    for index in 0..count {
        numbers.swap(index, rng.random_range(index..limit));
    }
    numbers.truncate(count);
    numbers
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// The same parameter with new values, trained or not as before.
fn replaced<const D: usize>(param: Param<Tensor<D>>, data: TensorData) -> Param<Tensor<D>> {
    param.map(|old| Tensor::from_data(data, &old.device()).set_require_grad(old.is_require_grad()))
}

#[cfg(test)]
mod tests;
