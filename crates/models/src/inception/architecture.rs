//! Which convolutions stand where (Szegedy et al. 2016, table 1 and figures 5 to 7, with torchvision's channels).

/// One convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LayerPlan {
    pub channels: usize,
    /// Height and width.
    pub kernel_size: [usize; 2],
    pub stride: usize,
    pub padding: [usize; 2],
}

/// What happens before the convolutions of a branch, always in windows of 3 x 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    None,
    /// Size kept; padding does not count.
    Mean,
    /// Size kept.
    Maximum,
    /// Stride 2.
    MaximumHalving,
}

#[derive(Clone, Debug)]
pub(super) struct BranchPlan {
    pub pool: Pool,
    pub layers: Vec<LayerPlan>,
    pub fork: Vec<LayerPlan>,
}

#[derive(Clone, Debug)]
pub(super) struct BlockPlan {
    pub branches: Vec<BranchPlan>,
}

impl BlockPlan {
    pub fn output_channels(&self, input: usize) -> usize {
        let of_branch = |branch: &BranchPlan| match (branch.fork.as_slice(), branch.layers.last()) {
            ([], Some(last)) => last.channels,
            ([], None) => input,
            (fork, _) => fork.iter().map(|layer| layer.channels).sum(),
        };
        self.branches.iter().map(of_branch).sum()
    }
}

/// The whole network, input to output.
pub(super) fn blocks() -> Vec<BlockPlan> {
    let stem = vec![
        block(vec![branch(Pool::None, vec![halving(32), LayerPlan { padding: [0, 0], ..square(32, 3) }, square(64, 3)])]),
        block(vec![branch(Pool::MaximumHalving, vec![square(80, 1), LayerPlan { padding: [0, 0], ..square(192, 3) }])]),
        block(vec![branch(Pool::MaximumHalving, vec![])]),
    ];
    let fine = [32, 64, 64].map(fine_block);
    let middle = [128, 160, 160, 192].map(middle_block);
    let coarse = [coarse_block(Pool::Mean), coarse_block(Pool::Maximum)];
    stem.into_iter().chain(fine).chain([to_middle()]).chain(middle).chain([to_coarse()]).chain(coarse).collect()
}

/// 35 x 35.
fn fine_block(pool_channels: usize) -> BlockPlan {
    block(vec![
        branch(Pool::None, vec![square(64, 1)]),
        branch(Pool::None, vec![square(48, 1), square(64, 5)]),
        branch(Pool::None, vec![square(64, 1), square(96, 3), square(96, 3)]),
        branch(Pool::Mean, vec![square(pool_channels, 1)]),
    ])
}

/// 35 x 35 -> 17 x 17.
fn to_middle() -> BlockPlan {
    block(vec![
        branch(Pool::None, vec![halving(384)]),
        branch(Pool::None, vec![square(64, 1), square(96, 3), halving(96)]),
        branch(Pool::MaximumHalving, vec![]),
    ])
}

/// 17 x 17; a square of 7 x 7 is a row of 7 and a column of 7.
fn middle_block(channels: usize) -> BlockPlan {
    block(vec![
        branch(Pool::None, vec![square(192, 1)]),
        branch(Pool::None, vec![square(channels, 1), row(channels, 7), column(192, 7)]),
        branch(Pool::None, vec![square(channels, 1), column(channels, 7), row(channels, 7), column(channels, 7), row(192, 7)]),
        branch(Pool::Mean, vec![square(192, 1)]),
    ])
}

/// 17 x 17 -> 8 x 8.
fn to_coarse() -> BlockPlan {
    block(vec![
        branch(Pool::None, vec![square(192, 1), halving(320)]),
        branch(Pool::None, vec![square(192, 1), row(192, 7), column(192, 7), halving(192)]),
        branch(Pool::MaximumHalving, vec![]),
    ])
}

/// 8 x 8; rows and columns side by side.
fn coarse_block(pool: Pool) -> BlockPlan {
    let fork = || vec![row(384, 3), column(384, 3)];
    block(vec![
        branch(Pool::None, vec![square(320, 1)]),
        BranchPlan { pool: Pool::None, layers: vec![square(384, 1)], fork: fork() },
        BranchPlan { pool: Pool::None, layers: vec![square(448, 1), square(384, 3)], fork: fork() },
        branch(pool, vec![square(192, 1)]),
    ])
}

fn block(branches: Vec<BranchPlan>) -> BlockPlan {
    BlockPlan { branches }
}

fn branch(pool: Pool, layers: Vec<LayerPlan>) -> BranchPlan {
    BranchPlan { pool, layers, fork: Vec::new() }
}

/// Size kept.
fn square(channels: usize, size: usize) -> LayerPlan {
    LayerPlan { channels, kernel_size: [size; 2], stride: 1, padding: [size / 2; 2] }
}

/// 3 x 3 with stride 2, no padding.
fn halving(channels: usize) -> LayerPlan {
    LayerPlan { channels, kernel_size: [3; 2], stride: 2, padding: [0; 2] }
}

fn row(channels: usize, length: usize) -> LayerPlan {
    LayerPlan { channels, kernel_size: [1, length], stride: 1, padding: [0, length / 2] }
}

fn column(channels: usize, length: usize) -> LayerPlan {
    LayerPlan { channels, kernel_size: [length, 1], stride: 1, padding: [length / 2, 0] }
}
