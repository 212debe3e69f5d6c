//! The loader: exact under resume and sharding, one order whatever the workers, broken pictures counted.

use super::*;

use std::collections::BTreeSet;

use proptest::prelude::*;
use tempfile::TempDir;

use crate::dataset::{self, DatasetConfig};
use crate::transform::{ColourJitter, Crop};

/// `count` pictures of different colours with two captions each, the `broken` ones cut short.
fn dataset_of(count: usize, broken: &[usize]) -> (TempDir, Arc<Dataset>) {
    let folder = tempfile::tempdir().unwrap();
    for index in 0..count {
        let png = Picture::filled(6, 5, [index as u8, 10, 200]).to_png(&[]).unwrap();
        let length = if broken.contains(&index) { 20 } else { png.len() };
        std::fs::write(folder.path().join(format!("{index:03}.png")), &png[..length]).unwrap();
        std::fs::write(folder.path().join(format!("{index:03}.txt")), format!("one {index}\ntwo {index}")).unwrap();
    }
    let dataset = dataset::open(&DatasetConfig::new(folder.path())).unwrap();
    (folder, Arc::new(dataset))
}

fn options(batch_size: usize) -> LoaderOptions {
    let jitter = Some(ColourJitter { brightness: 0.2, contrast: 0.2, saturation: 0.2 });
    LoaderOptions::new(batch_size, 5, Transform { crop: Crop::Random, flip_probability: 0.5, colour_jitter: jitter, ..Transform::new(4) })
}

fn batches(dataset: &Arc<Dataset>, options: LoaderOptions, start: u64, count: usize) -> Vec<Batch> {
    Loader::new(Arc::clone(dataset), options, start).unwrap().take(count).map(Result::unwrap).collect()
}

#[test]
fn a_batch_is_a_function_of_its_step() {
    let (_folder, dataset) = dataset_of(11, &[]);
    let whole = batches(&dataset, options(4), 0, 12);
    assert_eq!(whole[3].step, 3);
    assert_eq!((whole[0].pictures.len(), whole[0].size), (4 * 4 * 4 * 3, 4));
    for (worker_count, prefetch, start) in [(1, 0, 5), (3, 2, 5), (2, 7, 0), (4, 0, 11)] {
        let resumed = batches(&dataset, LoaderOptions { worker_count, prefetch, ..options(4) }, start as u64, 12 - start);
        assert_eq!(resumed, whole[start..], "{worker_count} workers, prefetch {prefetch}, from {start}");
    }
    let other_seed = batches(&dataset, LoaderOptions { seed: 6, ..options(4) }, 0, 1);
    assert_ne!(other_seed[0].indices, whole[0].indices);
}

#[test]
fn every_epoch_holds_every_picture_once() {
    let (_folder, dataset) = dataset_of(10, &[]);
    let line: Vec<usize> = batches(&dataset, options(4), 0, 10).into_iter().flat_map(|batch| batch.indices).collect();
    for epoch in line.chunks(10) {
        assert_eq!(epoch.iter().copied().collect::<BTreeSet<_>>().len(), 10);
    }
    assert_ne!(line[..10], line[10..20]);
}

#[test]
fn ranks_share_no_position_and_equal_one_large_batch() {
    let (_folder, dataset) = dataset_of(13, &[]);
    let whole = batches(&dataset, options(6), 0, 8);
    let ranks: Vec<Vec<Batch>> = (0..3).map(|rank| batches(&dataset, LoaderOptions { rank, world_size: 3, ..options(2) }, 0, 8)).collect();
    for (step, whole) in whole.iter().enumerate() {
        let joined: Vec<usize> = ranks.iter().flat_map(|batches| batches[step].indices.clone()).collect();
        let pictures: Vec<f32> = ranks.iter().flat_map(|batches| batches[step].pictures.clone()).collect();
        assert_eq!((joined, pictures), (whole.indices.clone(), whole.pictures.clone()));
    }
}

#[test]
fn a_data_set_smaller_than_a_batch_is_repeated_within_it() {
    let (_folder, dataset) = dataset_of(3, &[]);
    let batch = &batches(&dataset, options(8), 2, 1)[0];
    assert_eq!(batch.keys.len(), 8);
    assert_eq!(batch.indices.iter().collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn captions_are_drawn_evenly() {
    let (_folder, dataset) = dataset_of(10, &[]);
    let captions: Vec<String> = batches(&dataset, options(10), 0, 20).into_iter().flat_map(|batch| batch.captions).collect();
    let first = captions.iter().filter(|caption| caption.starts_with("one")).count();
    assert!((70..130).contains(&first), "{first} of 200");
}

#[test]
fn broken_pictures_are_replaced_counted_and_named() {
    let (_folder, dataset) = dataset_of(12, &[3, 7]);
    let tolerant = LoaderOptions { broken_limit: 2, ..options(6) };
    let mut loader = Loader::new(Arc::clone(&dataset), tolerant.clone(), 0).unwrap();
    let met: Vec<Batch> = (0..8).map(|_| loader.next_batch().unwrap()).collect();
    assert!(met.iter().all(|batch| batch.indices.len() == 6 && !batch.indices.contains(&3) && !batch.indices.contains(&7)));
    assert_eq!(loader.broken().map(|broken| broken.key.as_str()).collect::<Vec<_>>(), ["003", "007"]);
    drop(loader);
    assert_eq!(batches(&dataset, LoaderOptions { worker_count: 3, ..tolerant }, 4, 4), met[4..]);

    let mut strict = Loader::new(dataset, LoaderOptions { broken_limit: 1, worker_count: 2, ..options(6) }, 0).unwrap();
    let error = strict.by_ref().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("2 broken pictures, `broken_limit` is 1") && error.contains("PNG"), "{error}");
    assert!(strict.next().is_none());
}

#[test]
fn nothing_but_broken_pictures_is_an_error() {
    let (_folder, dataset) = dataset_of(3, &[0, 1, 2]);
    let mut loader = Loader::new(dataset, LoaderOptions { broken_limit: 9, ..options(2) }, 0).unwrap();
    let error = loader.next_batch().unwrap_err().to_string();
    assert!(error.contains("every one of the 3 pictures is broken"), "{error}");
}

#[test]
fn a_loader_can_be_dropped_at_any_time() {
    let (_folder, dataset) = dataset_of(5, &[]);
    for taken in 0..4 {
        let mut loader = Loader::new(Arc::clone(&dataset), LoaderOptions { worker_count: 3, prefetch: 1, ..options(2) }, 0).unwrap();
        for _ in 0..taken {
            loader.next_batch().unwrap();
        }
    }
}

#[test]
fn sequential_is_in_order_without_randomness() {
    let (_folder, dataset) = dataset_of(6, &[4]);
    let decode = DecodeOptions::default();
    let transform = options(1).transform;
    let items: Vec<_> = sequential(&dataset, &transform, &decode).collect();
    assert_eq!(items.len(), 6);
    assert!(items[4].as_ref().unwrap_err().to_string().contains("004"));
    let item = items[2].as_ref().unwrap();
    assert_eq!((item.index, item.key.as_str(), item.captions.len()), (2, "002", 2));
    assert_eq!(item.picture, Picture::filled(4, 4, [2, 10, 200]));
}

#[test]
fn impossible_options_are_named() {
    let (_folder, dataset) = dataset_of(1, &[]);
    for (wrong, key) in [
        (options(0), "batch_size"),
        (LoaderOptions { rank: 1, ..options(1) }, "rank"),
        (LoaderOptions { world_size: 0, ..options(1) }, "world_size"),
        (LoaderOptions { worker_count: 0, ..options(1) }, "worker_count"),
        (LoaderOptions { transform: Transform::new(0), ..options(1) }, "size"),
    ] {
        let message = Loader::new(Arc::clone(&dataset), wrong, 0).err().unwrap().to_string();
        assert!(message.contains(key), "{message}");
    }
}

proptest! {
    #[test]
    fn permutations_hold_everything_once_and_keep_blocks_together(sizes in prop::collection::vec(1usize..9, 1..6), seed in any::<u64>()) {
        let mut blocks = Vec::new();
        let mut start = 0;
        for size in sizes {
            blocks.push(start..start + size);
            start += size;
        }
        let order = permutation(&blocks, &mut rng_of(seed, Purpose::Epoch, 0));
        prop_assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), (0..start as u32).collect());
        prop_assert_eq!(order.len(), start);
        let block_of = |index: u32| blocks.iter().position(|block| block.contains(&(index as usize)));
        let changes = order.windows(2).filter(|pair| block_of(pair[0]) != block_of(pair[1])).count();
        prop_assert_eq!(changes, blocks.len() - 1);
    }
}
