//! What a recipe must say to be trained. The loop (`train_loop.rs`) owns time: steps, schedule, accumulation, clipping, averages, logs, checkpoints.
//! A recipe owns meaning: what a batch is, which losses and which networks, how to judge, show and export them.

use crate::TrainError;
use crate::learner::Learns;
use crate::pictures::Pictures;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use smalti_data::picture::Picture;
use smalti_nn::weights::NamedTensors;
use smalti_pipeline::Provenance;
use std::collections::BTreeMap;
use std::path::Path;

/// Named figures, in a stable order: losses of a pass, measures of an evaluation.
pub type Measures = BTreeMap<String, f64>;

/// What has a body here need not be said by a recipe that has nothing to say.
pub trait Recipe {
    /// The pictures (or tokens) of one pass, on the host or on the device.
    type Batch;

    /// The networks that learn, in a fixed order; a GAN has two.
    fn learners(&mut self) -> Vec<&mut dyn Learns>;
    /// First values that come from data (k-means of a codebook); called once in the life of a run.
    fn prepare(&mut self) -> Result<(), TrainError> {
        Ok(())
    }
    /// The pictures that are trained on; a resumed run must find them unchanged. `None` where they are not on a disk.
    fn pictures(&self) -> Option<&Pictures> {
        None
    }
    /// Checksums of the frozen things that training reads besides pictures, by the keys of the recipe that name them; a resumed run must find them unchanged.
    fn inputs(&self) -> Result<BTreeMap<String, String>, TrainError> {
        Ok(BTreeMap::new())
    }
    /// The pictures of one pass; the same for the same `pass`, whatever was asked before.
    fn batch(&mut self, pass: Pass) -> Result<Self::Batch, TrainError>;
    /// Forward and backward: gathers `pass.share()` of the gradients in the learners and returns the losses.
    fn step(&mut self, batch: Self::Batch, pass: Pass) -> Result<Measures, TrainError>;
    /// After the optimisers have stepped: codebook upkeep, figures that need an epoch. What it returns is logged.
    fn updated(&mut self, _pass: Pass) -> Result<Measures, TrainError> {
        Ok(Measures::new())
    }
    /// Figures on held-out data, with the averaged weights.
    fn evaluate(&mut self) -> Result<Measures, TrainError>;
    /// A sheet of samples to look at, with the averaged weights; `None` where there is nothing to see.
    fn sample(&mut self) -> Result<Option<Picture>, TrainError> {
        Ok(None)
    }
    /// Writes a bundle with the averaged weights; `folder` appears whole or not at all and may hold an earlier one.
    fn export(&mut self, folder: &Path, facts: &RunFacts) -> Result<(), TrainError>;
    /// What must survive a stop besides the learners, and its way back.
    fn state(&self) -> NamedTensors {
        NamedTensors::new()
    }
    fn restore(&mut self, _state: NamedTensors) -> Result<(), TrainError> {
        Ok(())
    }
}

/// One forward and backward pass: pass `index` of the `accumulation` passes of step `step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    pub seed: u64,
    pub step: usize,
    pub index: usize,
    pub accumulation: usize,
    pub batch_size: usize,
}

impl Pass {
    /// What this pass adds of its mean gradients to the step.
    pub fn share(self) -> f64 {
        1.0 / self.accumulation as f64
    }

    /// The place of the pass's first example in the endless sequence of examples of the run. k passes of b see what one pass of k * b sees.
    pub fn first_example(self) -> u64 {
        (self.step * self.accumulation + self.index) as u64 * self.batch_size as u64
    }

    /// The random stream of one example of this pass, the same however the step is cut into passes.
    pub fn rng(self, row: usize) -> ChaCha12Rng {
        stream(self.seed, Purpose::Example, self.first_example() + row as u64)
    }

    /// The random stream of the step as a whole, for what happens once in it.
    pub fn step_rng(self) -> ChaCha12Rng {
        stream(self.seed, Purpose::Step, self.step as u64)
    }
}

/// What a random stream is for; streams of different purposes never meet. (1 to 15 are the purposes of `smalti_data`'s loader, which makes its streams alike.)
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    Example = 17,
    Step = 18,
    Prepare = 19,
    Sample = 20,
    Epoch = 21,
    Variant = 22,
}

/// Stream `number` of a purpose of a run.
pub fn stream(seed: u64, purpose: Purpose, number: u64) -> ChaCha12Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = purpose as u8;
    let mut rng = ChaCha12Rng::from_seed(key);
    rng.set_stream(number);
    rng
}

/// What a bundle says about its training.
#[derive(Clone, Debug)]
pub struct RunFacts {
    /// Of the run.
    pub name: String,
    /// The recipe with every override, as TOML.
    pub recipe: String,
    pub steps: usize,
    pub seconds: f64,
    /// The last evaluation.
    pub measures: Measures,
}

impl RunFacts {
    /// For the part that was trained; `data` as the recipe names it.
    pub fn provenance(&self, data: &Path) -> Provenance {
        Provenance {
            source: None,
            data: Some(data.display().to_string()),
            steps: Some(self.steps),
            seconds: Some(self.seconds.round()),
            recipe: Some(self.recipe.clone()),
            results: self.measures.clone(),
        }
    }
}
