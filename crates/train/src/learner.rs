//! A network that learns: its weights, its optimiser, its moving average, the gradients of the step in progress.

use crate::settings::OptimizerSettings;
use crate::{TrainError, ema, gradients};
use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Bytes, Device, Gradients, Tensor};
use sha2::{Digest, Sha256};
use smalti_nn::optimizer::FusedAdamW;
use smalti_nn::weights::{self, safetensors};
use std::path::Path;

/// What the loop does with every network of a recipe, whatever its type.
pub trait Learns {
    /// The name of its files in a checkpoint.
    fn name(&self) -> &'static str;
    /// One step of the optimiser with the gathered gradients; returns their global norm before clipping, `None` where there were none.
    fn update(&mut self, step: usize, rate_fraction: f64, clip_norm: Option<f64>) -> Result<Option<f64>, TrainError>;
    /// Forgets the gradients of a step that was given up.
    fn discard_gradients(&mut self);
    /// Writes weights, average and optimiser state into `folder`.
    fn save(&self, folder: &Path) -> Result<(), TrainError>;
    /// Reads them back; what follows is bit for bit what would have followed had the program never stopped.
    fn restore(&mut self, folder: &Path) -> Result<(), TrainError>;
}

pub struct Learner<M: Module> {
    name: &'static str,
    /// `None` only inside `update` and `restore`, which need it by value so that the optimiser can work in place.
    network: Option<M>,
    average: Option<M>,
    ema_decay: f64,
    optimizer: ModuleOptimizer,
    settings: OptimizerSettings,
    gradients: GradientsParams,
}

impl<M: Module> Learner<M> {
    /// `network` lives on a device with gradients; `ema_decay` `None` keeps no average.
    pub fn new(name: &'static str, network: M, settings: &OptimizerSettings, ema_decay: Option<f64>) -> Self {
        let network = network.map(&mut IdFromPath { path: Vec::new() });
        let average = ema_decay.map(|_| network.valid());
        Self {
            name,
            network: Some(network),
            average,
            ema_decay: ema_decay.unwrap_or(0.0),
            optimizer: optimizer(settings),
            settings: settings.clone(),
            gradients: GradientsParams::new(),
        }
    }

    /// The network that learns, with gradients.
    pub fn network(&self) -> &M {
        self.network.as_ref().expect("a learner holds its network")
    }

    /// The network to judge, sample from and export, without gradients: the average where there is one.
    pub fn averaged(&self) -> M {
        self.average.clone().unwrap_or_else(|| self.network().valid())
    }

    /// Changes weights outside the optimiser (a codebook started on data), in the network and in its average alike.
    pub fn rewrite(&mut self, change: impl Fn(M) -> M) {
        self.network = self.network.take().map(&change);
        self.average = self.average.take().map(&change);
    }

    /// The same in the network alone; the average follows with its own pace.
    pub fn rewrite_network(&mut self, change: impl FnOnce(M) -> M) {
        self.network = self.network.take().map(change);
    }

    /// Takes this network's gradients out of `gradients` and adds `share` of them to the step in progress.
    pub fn gather(&mut self, gradients: &mut Gradients, share: f64) {
        let network = self.network.as_ref().expect("a learner holds its network");
        let gradients = GradientsParams::from_module(gradients, network);
        let sums = std::mem::take(&mut self.gradients);
        self.gradients = gradients::accumulate(network, sums, gradients, share);
    }
}

impl<M: Module> Learns for Learner<M> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn update(&mut self, step: usize, rate_fraction: f64, clip_norm: Option<f64>) -> Result<Option<f64>, TrainError> {
        if self.gradients.is_empty() {
            return Ok(None);
        }
        let network = self.network.take().expect("a learner holds its network");
        let mut gradients = gradients::all_reduce(std::mem::take(&mut self.gradients));
        let norm = gradients::global_norm(&network, &gradients);
        if !norm.is_finite() {
            self.network = Some(network);
            return Err(TrainError::NotFinite { step, what: format!("the norm of the gradients of `{}`", self.name), value: norm as f32 });
        }
        if let Some(limit) = clip_norm.filter(|&limit| norm > limit) {
            gradients = gradients::scale(&network, gradients, limit / norm);
        }
        let network = self.optimizer.step(self.settings.learning_rate * rate_fraction, network, gradients);
        self.average = self.average.take().map(|average| ema::update(average, &network, ema::decay_at(self.ema_decay, step)));
        self.network = Some(network);
        Ok(Some(norm))
    }

    fn discard_gradients(&mut self) {
        self.gradients = GradientsParams::new();
    }

    fn save(&self, folder: &Path) -> Result<(), TrainError> {
        let [network, average, optimizer] = files(folder, self.name);
        safetensors::write(&network, &weights::collect(self.network()), safetensors::Storage::F32)?;
        if let Some(module) = &self.average {
            safetensors::write(&average, &weights::collect(module), safetensors::Storage::F32)?;
        }
        let bytes = self.optimizer.into_bytes().map_err(|error| unreadable(&optimizer, error))?;
        weights::write_atomically(&optimizer, |writer| writer.write_all(&bytes)).map_err(|source| TrainError::io(&optimizer, source))
    }

    fn restore(&mut self, folder: &Path) -> Result<(), TrainError> {
        let [network_path, average_path, optimizer_path] = files(folder, self.name);
        let network = self.network().clone();
        let device = device_of(&network);
        self.network = Some(weights::apply(network, safetensors::read(&network_path)?, &device)?);
        if let Some(average) = self.average.take() {
            self.average = Some(weights::apply(average, safetensors::read(&average_path)?, &device.inner())?);
        }
        let bytes = std::fs::read(&optimizer_path).map_err(|source| TrainError::io(&optimizer_path, source))?;
        // The states are found again because parameter ids are made from parameter paths.
        self.optimizer = optimizer(&self.settings).from_bytes(Bytes::from_bytes_vec(bytes)).map_err(|error| unreadable(&optimizer_path, error))?;
        self.discard_gradients();
        Ok(())
    }
}

/// The one place that chooses the optimiser.
fn optimizer(settings: &OptimizerSettings) -> ModuleOptimizer {
    let OptimizerSettings { beta_1, beta_2, epsilon, weight_decay, .. } = *settings;
    FusedAdamW { beta_1, beta_2, epsilon, weight_decay }.init()
}

fn files(folder: &Path, name: &str) -> [std::path::PathBuf; 3] {
    [folder.join(format!("{name}.safetensors")), folder.join(format!("{name}.average.safetensors")), folder.join(format!("{name}.optimizer.bpk"))]
}

fn unreadable(path: &Path, error: impl std::fmt::Debug) -> TrainError {
    TrainError::Checkpoint { path: path.to_path_buf(), reason: format!("optimiser state: {error:?}") }
}

fn device_of<M: Module>(network: &M) -> Device {
    network.devices().into_iter().next().unwrap_or_default()
}

/// burn keys optimiser states by parameter id, and ids are random. Made from the path of the parameter, they are the same in every process.
struct IdFromPath {
    path: Vec<String>,
}

impl ModuleMapper for IdFromPath {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let digest = Sha256::digest(self.path.join("."));
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        let (_, tensor, mapper) = param.consume();
        Param::from_mapped_value(ParamId::from(u64::from_le_bytes(id)), tensor, mapper)
    }
}
