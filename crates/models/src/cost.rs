//! What a network costs, counted from its sizes before it is made: numbers it holds, multiplications it does, features it keeps.
//!
//! Each network has a `cost.rs` beside its config that walks its layers as `forward` does. That the walk misses none is proved by its parameters, which are
//! those of the network when it is made; multiplications follow from the same walk and the places each layer works at.

/// Of one pass for one input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub parameters: u64,
    /// Products that are summed up: of weights with features, and of queries with keys and with values. Norms, activations and sums are left out.
    pub multiply_adds: u64,
    /// Most numbers that must be in memory at once beside the weights: a layer's input and output and what waits for later layers. A lower bound, for
    /// intermediate results of a layer are not counted; scores of attention are not, as the kernel never holds them all.
    pub activations: u64,
}

impl Cost {
    /// One network after the other.
    pub fn then(self, next: Self) -> Self {
        Self {
            parameters: self.parameters + next.parameters,
            multiply_adds: self.multiply_adds + next.multiply_adds,
            activations: self.activations.max(next.activations),
        }
    }
}

/// A feature map or a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    /// Height times width, or tokens.
    pub places: usize,
    pub channels: usize,
}

impl Map {
    pub fn with(self, channels: usize) -> Self {
        Self { channels, ..self }
    }

    /// Half the height and half the width.
    pub fn halved(self) -> Self {
        Self { places: self.places / 4, ..self }
    }

    /// Twice the height and twice the width.
    pub fn doubled(self) -> Self {
        Self { places: 4 * self.places, ..self }
    }

    fn values(self) -> u64 {
        (self.places * self.channels) as u64
    }
}

/// Adds up layers.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    cost: Cost,
    held: u64,
}

impl Tally {
    /// A convolution with a bias.
    pub fn convolution(&mut self, kernel: usize, from: Map, to: Map) {
        self.convolution_without_bias(kernel, from, to);
        self.cost.parameters += to.channels as u64;
    }

    pub fn convolution_without_bias(&mut self, kernel: usize, from: Map, to: Map) {
        let weights = (kernel * kernel * from.channels * to.channels) as u64;
        self.cost.parameters += weights;
        self.cost.multiply_adds += weights * to.places as u64;
        self.reach(from.values() + to.values());
    }

    /// A linear map of every place, with a bias.
    pub fn linear(&mut self, from: Map, channels: usize) {
        self.linear_without_bias(from, channels);
        self.cost.parameters += channels as u64;
    }

    pub fn linear_without_bias(&mut self, from: Map, channels: usize) {
        self.convolution_without_bias(1, from, from.with(channels));
    }

    /// A linear map of a single vector.
    pub fn vector(&mut self, from: usize, to: usize) {
        self.linear(Map { places: 1, channels: from }, to);
    }

    /// A normalisation with factors and shifts.
    pub fn norm(&mut self, channels: usize) {
        self.parameters(2 * channels);
    }

    /// Numbers that are added, looked up or multiplied with.
    pub fn parameters(&mut self, count: usize) {
        self.cost.parameters += count as u64;
    }

    /// Every query with every key and every value, over all heads together.
    pub fn attention(&mut self, queries: usize, keys: usize, channels: usize) {
        self.cost.multiply_adds += 2 * (queries * keys * channels) as u64;
        self.reach(2 * ((queries + keys) * channels) as u64);
    }

    /// From here on the features wait in memory.
    pub fn hold(&mut self, map: Map) {
        self.held += map.values();
    }

    pub fn release(&mut self, map: Map) {
        self.held -= map.values();
    }

    fn reach(&mut self, values: u64) {
        self.cost.activations = self.cost.activations.max(self.held + values);
    }

    pub fn finish(self) -> Cost {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 3x3 convolution of 4 to 8 channels at 10 places: 288 weights and 8 biases, 2880 products, 40 + 80 features beside the 7 that wait.
    #[test]
    fn layers_by_hand() {
        let mut tally = Tally::default();
        let map = Map { places: 10, channels: 4 };
        tally.hold(Map { places: 1, channels: 7 });
        tally.convolution(3, map, map.with(8));
        assert_eq!(tally.cost, Cost { parameters: 296, multiply_adds: 2880, activations: 127 });
        tally.release(Map { places: 1, channels: 7 });
        tally.linear(map, 2);
        tally.norm(4);
        tally.attention(10, 3, 4);
        assert_eq!(tally.finish(), Cost { parameters: 296 + 10 + 8, multiply_adds: 2880 + 80 + 240, activations: 127 });
    }
}
