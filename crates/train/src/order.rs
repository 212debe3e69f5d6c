//! The order in which examples that lie ready in memory are seen: epoch after epoch, each a permutation of its own.

use crate::recipe::{Purpose, stream};
use rand::RngExt;

/// Every epoch is a permutation drawn from (seed, epoch): what example comes when does not depend on where a run was stopped.
#[derive(Clone, Debug)]
pub struct EpochOrder {
    /// Places in the data set; never empty.
    places: Vec<usize>,
    seed: u64,
    /// The permutation of the epoch that was asked for last.
    epoch: (u64, Vec<usize>),
}

impl EpochOrder {
    pub fn new(places: Vec<usize>, seed: u64) -> Self {
        Self { places, seed, epoch: (u64::MAX, Vec::new()) }
    }

    /// The place in the data set of example `position` of all epochs laid end to end.
    pub fn place(&mut self, position: u64) -> usize {
        let epoch = position / self.places.len() as u64;
        if self.epoch.0 != epoch {
            let mut order = self.places.clone();
            let mut rng = stream(self.seed, Purpose::Epoch, epoch);
            for last in (1..order.len()).rev() {
                order.swap(last, rng.random_range(0..=last as u64) as usize);
            }
            self.epoch = (epoch, order);
        }
        self.epoch.1[(position % self.places.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_sees_every_place_once_in_its_own_order() {
        let mut order = EpochOrder::new(vec![2, 3, 5, 7, 11, 13], 4);
        let mut epoch = |number: u64| (0..6).map(|position| order.place(number * 6 + position)).collect::<Vec<_>>();
        let (first, second) = (epoch(0), epoch(1));
        for seen in [&first, &second] {
            let mut sorted = seen.clone();
            sorted.sort();
            assert_eq!(sorted, [2, 3, 5, 7, 11, 13]);
        }
        assert_ne!(first, second);
        assert_eq!(epoch(0), first, "whatever was asked before");
    }
}
