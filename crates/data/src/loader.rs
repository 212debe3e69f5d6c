//! Batches, for ever, in an order that is exact: the batch of step k is a function of (data set, options, k) alone.
//!
//! All epochs are laid end to end; epoch e is a permutation drawn from (seed, e). Position p of that line is picture p mod n of epoch
//! p / n. Step k of `world_size` ranks takes the `world_size * batch_size` positions from `k * world_size * batch_size` on, rank r the r-th
//! `batch_size` of them. So ranks never share a position, together they cover every epoch, and N ranks of batch b see what one rank of
//! batch N*b sees. A data set smaller than a batch is gone through several times in it.
//!
//! Everything random about position p (caption, crop, flip) is drawn from (seed, p). Threads therefore change nothing, and a run resumed
//! at step k reads what the uninterrupted one would have read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use serde::{Deserialize, Serialize};

use crate::dataset::{Dataset, Sample};
use crate::picture::DecodeOptions;
use crate::transform::Transform;
use crate::{DataError, Picture};

/// How batches are made. `batch_size`, `seed`, `rank`, `world_size`, `transform` and `decode` decide what is in them; the rest does not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderOptions {
    /// Pictures in a batch of this rank.
    pub batch_size: usize,
    pub seed: u64,
    /// Number of this process among `world_size`.
    pub rank: usize,
    pub world_size: usize,
    pub transform: Transform,
    #[serde(default)]
    pub decode: DecodeOptions,
    /// Threads that decode ahead. At least 1.
    pub worker_count: usize,
    /// Finished batches that may wait for the consumer. Bounds the memory to about (prefetch + 2 * worker_count) batches.
    pub prefetch: usize,
    /// How many different broken pictures are replaced by others before it is an error.
    pub broken_limit: usize,
}

impl LoaderOptions {
    /// One rank, one worker, two batches ahead, no broken picture tolerated.
    pub fn new(batch_size: usize, seed: u64, transform: Transform) -> Self {
        let decode = DecodeOptions::default();
        Self { batch_size, seed, rank: 0, world_size: 1, transform, decode, worker_count: 1, prefetch: 2, broken_limit: 0 }
    }

    /// Names the first impossible value.
    pub fn validate(&self) -> Result<(), DataError> {
        let wrong = |key, expected: &str, found: usize| Err(DataError::Config { key, expected: expected.into(), found: found.to_string() });
        if !(1..=1 << 20).contains(&self.batch_size) {
            return wrong("batch_size", "1 to 1048576", self.batch_size);
        }
        if !(1..=1 << 20).contains(&self.world_size) {
            return wrong("world_size", "1 to 1048576", self.world_size);
        }
        if self.rank >= self.world_size {
            return wrong("rank", &format!("less than `world_size` = {}", self.world_size), self.rank);
        }
        if !(1..=1024).contains(&self.worker_count) {
            return wrong("worker_count", "1 to 1024 threads", self.worker_count);
        }
        if self.prefetch > 1024 {
            return wrong("prefetch", "at most 1024 batches", self.prefetch);
        }
        self.transform.validate()
    }
}

/// What one step trains on.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// The step this batch belongs to, counted from 0 of the whole run.
    pub step: u64,
    /// [batch, size, size, 3] in [-1, 1].
    pub pictures: Vec<f32>,
    /// Side of the pictures in pixels.
    pub size: usize,
    /// One for each picture, drawn among its captions; empty where it has none.
    pub captions: Vec<String>,
    pub keys: Vec<String>,
    /// Places in the data set.
    pub indices: Vec<usize>,
}

/// A broken picture that was replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub key: String,
    pub reason: String,
}

/// An endless iterator of [`Batch`]es, decoded ahead in threads. After an error it ends.
pub struct Loader {
    receivers: Vec<Receiver<Result<Decoded, DataError>>>,
    workers: Vec<JoinHandle<()>>,
    next_worker: usize,
    broken: BTreeMap<usize, Broken>,
    broken_limit: usize,
    failed: bool,
}

/// A batch and the broken pictures met on the way.
struct Decoded {
    batch: Batch,
    broken: Vec<(usize, Broken)>,
}

impl Loader {
    /// Starts at `start_step`: 0 for a new run, the number of finished steps for a resumed one.
    pub fn new(dataset: Arc<Dataset>, options: LoaderOptions, start_step: u64) -> Result<Self, DataError> {
        options.validate()?;
        let (worker_count, broken_limit) = (options.worker_count, options.broken_limit);
        // Worker w makes the batches start + w, start + w + worker_count, ...: the consumer asks in turn and the order needs no sorting.
        let waiting_each = options.prefetch.div_ceil(worker_count);
        let order = Arc::new(Order::new(&dataset, options.seed));
        let options = Arc::new(options);
        let (mut receivers, mut workers) = (Vec::new(), Vec::new());
        for worker in 0..worker_count {
            let (sender, receiver) = sync_channel(waiting_each);
            let maker = BatchMaker { dataset: Arc::clone(&dataset), options: Arc::clone(&options), order: Arc::clone(&order) };
            let work = move || maker.run(start_step + worker as u64, worker_count as u64, &sender);
            // SVG drawing follows nested groups by recursion; the usual 2 MiB are little for it.
            let thread = std::thread::Builder::new().name(format!("loader-{worker}")).stack_size(8 << 20);
            let reason = |error: std::io::Error| DataError::Io { path: dataset.path().to_path_buf(), reason: format!("cannot start a loader thread: {error}") };
            workers.push(thread.spawn(work).map_err(reason)?);
            receivers.push(receiver);
        }
        Ok(Self { receivers, workers, next_worker: 0, broken: BTreeMap::new(), broken_limit, failed: false })
    }

    /// The batch of the next step. Errors: more broken pictures than `broken_limit`, or none that can be read.
    pub fn next_batch(&mut self) -> Result<Batch, DataError> {
        let received = self.receivers[self.next_worker].recv().unwrap_or(Err(DataError::WorkerLost));
        self.next_worker = (self.next_worker + 1) % self.receivers.len();
        let checked = received.and_then(|decoded| {
            // Counted here and in order of steps, so that the step at which a run stops does not depend on how far ahead workers are.
            for (index, broken) in decoded.broken {
                self.broken.insert(index, broken.clone());
                if self.broken.len() > self.broken_limit {
                    let Broken { key, reason } = broken;
                    return Err(DataError::TooManyBroken { count: self.broken.len(), limit: self.broken_limit, key, reason });
                }
            }
            Ok(decoded.batch)
        });
        self.failed |= checked.is_err();
        checked
    }

    /// The broken pictures met so far, each once, in the order of the data set.
    pub fn broken(&self) -> impl ExactSizeIterator<Item = &Broken> {
        self.broken.values()
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed { None } else { Some(self.next_batch()) }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // Without receivers every send fails and every worker ends.
        self.receivers.clear();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

struct BatchMaker {
    dataset: Arc<Dataset>,
    options: Arc<LoaderOptions>,
    order: Arc<Order>,
}

impl BatchMaker {
    fn run(&self, first_step: u64, stride: u64, sender: &SyncSender<Result<Decoded, DataError>>) {
        let mut step = first_step;
        loop {
            let decoded = self.batch(step);
            let failed = decoded.is_err();
            if sender.send(decoded).is_err() || failed {
                return;
            }
            step += stride;
        }
    }

    fn batch(&self, step: u64) -> Result<Decoded, DataError> {
        let LoaderOptions { batch_size, rank, world_size, transform, .. } = &*self.options;
        let size = transform.size;
        let mut batch = Batch {
            step,
            pictures: Vec::with_capacity(batch_size * size * size * 3),
            size,
            captions: Vec::with_capacity(*batch_size),
            keys: Vec::with_capacity(*batch_size),
            indices: Vec::with_capacity(*batch_size),
        };
        let mut broken = Vec::new();
        let first = (step * *world_size as u64 + *rank as u64) * *batch_size as u64;
        for position in first..first + *batch_size as u64 {
            let mut rng = rng_of(self.options.seed, Purpose::Sample, position);
            let (index, sample, picture) = self.readable(position, &mut broken)?;
            let caption = match sample.captions.len() {
                0 => String::new(),
                count => sample.captions[rng.random_range(0..count as u64) as usize].clone(),
            };
            batch.pictures.extend(transform.apply(&picture, &mut rng).to_f32());
            batch.captions.push(caption);
            batch.keys.push(sample.key);
            batch.indices.push(index);
        }
        Ok(Decoded { batch, broken })
    }

    /// The picture of a position; where it is broken, another drawn from (seed, position), until one can be read.
    fn readable(&self, position: u64, broken: &mut Vec<(usize, Broken)>) -> Result<(usize, Sample, Picture), DataError> {
        let count = self.dataset.len();
        let mut index = self.order.index(position);
        let mut replacement_rng = rng_of(self.options.seed, Purpose::Replacement, position);
        for attempt in 0.. {
            let failure = match decode(&self.dataset, index, &self.options.decode) {
                Ok((sample, picture)) => return Ok((index, sample, picture)),
                Err(failure) => failure,
            };
            if !broken.iter().any(|(known, _)| *known == index) {
                broken.push((index, failure.clone()));
            }
            let met = broken.len();
            if met >= count {
                return Err(DataError::AllBroken { count, key: failure.key, reason: failure.reason });
            }
            if met > self.options.broken_limit {
                return Err(DataError::TooManyBroken { count: met, limit: self.options.broken_limit, key: failure.key, reason: failure.reason });
            }
            // Random draws first, which keep the distribution even; then one after the other, so that the search ends.
            index = if attempt < 64 { replacement_rng.random_range(0..count as u64) as usize } else { (index + 1) % count };
        }
        unreachable!("the loop above only ends by returning")
    }
}

/// Reads and decodes one picture; the failure in words, under its key.
fn decode(dataset: &Dataset, index: usize, options: &DecodeOptions) -> Result<(Sample, Picture), Broken> {
    let broken = |reason: String| Broken { key: dataset.key(index).to_owned(), reason };
    let sample = dataset.sample(index).map_err(|error| broken(error.to_string()))?;
    let picture = Picture::decode(&sample.picture, options).map_err(|error| broken(error.to_string()))?;
    Ok((sample, picture))
}

/// The line of all epochs.
struct Order {
    blocks: Vec<Range<usize>>,
    len: u64,
    seed: u64,
    /// Permutations of the epochs in use. Small: workers are at most a few batches apart.
    epochs: Mutex<BTreeMap<u64, Arc<Vec<u32>>>>,
}

impl Order {
    const KEPT_EPOCH_COUNT: usize = 4;

    fn new(dataset: &Dataset, seed: u64) -> Self {
        Self { blocks: dataset.blocks(), len: dataset.len() as u64, seed, epochs: Mutex::new(BTreeMap::new()) }
    }

    fn index(&self, position: u64) -> usize {
        self.epoch(position / self.len)[(position % self.len) as usize] as usize
    }

    fn epoch(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(permutation) = epochs.get(&epoch) {
            return Arc::clone(permutation);
        }
        let permutation = Arc::new(permutation(&self.blocks, &mut rng_of(self.seed, Purpose::Epoch, epoch)));
        if epochs.len() >= Self::KEPT_EPOCH_COUNT {
            epochs.pop_first();
        }
        epochs.insert(epoch, Arc::clone(&permutation));
        permutation
    }
}

/// Blocks in random order, each shuffled within (Fisher and Yates). One block: a plain uniform permutation.
fn permutation(blocks: &[Range<usize>], rng: &mut impl Rng) -> Vec<u32> {
    let mut block_order: Vec<u32> = (0..blocks.len() as u32).collect();
    shuffle(&mut block_order, rng);
    let mut indices = Vec::new();
    for block in block_order {
        let start = indices.len();
        indices.extend(blocks[block as usize].clone().map(|index| index as u32));
        shuffle(&mut indices[start..], rng);
    }
    indices
}

/// Written out, so that an update of a library cannot change the order of a data set.
fn shuffle(values: &mut [u32], rng: &mut impl Rng) {
    for last in (1..values.len() as u64).rev() {
        let chosen = rng.random_range(0..=last);
        values.swap(last as usize, chosen as usize);
    }
}

/// What a random stream is for; streams of different purposes never meet, nor those of trainings, whose purposes begin at 17.
#[derive(Clone, Copy)]
enum Purpose {
    Epoch = 1,
    Sample = 2,
    Replacement = 3,
}

fn rng_of(seed: u64, purpose: Purpose, number: u64) -> ChaCha12Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = purpose as u8;
    let mut rng = ChaCha12Rng::from_seed(key);
    rng.set_stream(number);
    rng
}

/// One picture of [`sequential`].
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub index: usize,
    pub key: String,
    /// `transform.size` squared, RGB.
    pub picture: Picture,
    pub captions: Vec<String>,
    pub fields: BTreeMap<String, String>,
}

/// Every picture once, in the order of the data set, without anything random: for evaluation and encoding. A broken picture comes as
/// an error with its key; whoever iterates decides how many to bear.
pub fn sequential<'a>(dataset: &'a Dataset, transform: &Transform, options: &'a DecodeOptions) -> impl Iterator<Item = Result<Item, DataError>> + 'a {
    let transform = transform.without_randomness();
    (0..dataset.len()).map(move |index| {
        let sample = dataset.sample(index)?;
        let picture = Picture::decode(&sample.picture, options).map_err(|reason| DataError::Picture { key: sample.key.clone(), reason })?;
        // Nothing is drawn from it: `without_randomness` left nothing random.
        let mut unused = rng_of(0, Purpose::Sample, index as u64);
        let picture = transform.apply(&picture, &mut unused);
        Ok(Item { index, key: sample.key, picture, captions: sample.captions, fields: sample.fields })
    })
}

#[cfg(test)]
mod tests;
