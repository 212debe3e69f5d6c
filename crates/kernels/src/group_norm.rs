//! Group normalisation (Wu and He 2018), channels last, with SiLU behind it if asked for.
//!
//! y = activation((x - mean) * deviation^-1 * scale + bias), statistics over the pixels and the channels of a group.
//! Pixels are cut into runs fixed by the picture's size; sums over runs are added in order, so a picture's result knows neither threads nor batch.

use crate::instruction_set::{InstructionSet, Kernel};
use crate::memory::{PAST_CACHES_FROM, Shared};
use crate::threads::each;
use crate::vector::{Vector, load, settle, sigmoid, store};

/// Pixels of a run times channels: about what the second-level cache holds beside the output.
const RUN_SIZE: usize = 64 * 1024;

/// x [batch, pixels, channels] in `group_count` groups of channels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    pub batch: usize,
    pub pixels: usize,
    pub channels: usize,
    pub group_count: usize,
    pub epsilon: f32,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl GroupNorm {
    fn check(&self, name: &str, lengths: [usize; 4]) {
        let Self { batch, pixels, channels, group_count, .. } = *self;
        assert!(group_count > 0 && channels.is_multiple_of(group_count), "{name} {self:?}: the channels do not fall into groups");
        let expected = [batch * pixels * channels, channels, channels, batch * group_count];
        assert!(lengths == expected, "{name} {self:?}: expected lengths of [x and y, scale, bias, statistics] {expected:?}, found {lengths:?}");
    }

    fn run_length(&self) -> usize {
        (RUN_SIZE / self.channels.max(1)).max(1)
    }

    fn run_count(&self) -> usize {
        self.pixels.div_ceil(self.run_length())
    }

    /// Where run `index` of all pictures' runs lies in x, and its picture.
    fn run(&self, index: usize) -> (usize, std::ops::Range<usize>) {
        let (picture, run) = (index / self.run_count(), index % self.run_count());
        let (start, end) = (run * self.run_length(), ((run + 1) * self.run_length()).min(self.pixels));
        (picture, (picture * self.pixels + start) * self.channels..(picture * self.pixels + end) * self.channels)
    }
}

/// Writes y, and for the backward pass mean and 1 / deviation [batch, group_count].
pub fn forward(x: &[f32], scale: &[f32], bias: &[f32], shape: GroupNorm, y: &mut [f32], mean: &mut [f32], inverse_deviation: &mut [f32]) {
    shape.check("group_norm", [x.len(), scale.len(), bias.len(), mean.len()]);
    assert!(y.len() == x.len() && inverse_deviation.len() == mean.len(), "group_norm {shape:?}: y {} and x {} differ", y.len(), x.len());
    let GroupNorm { batch, pixels, channels, group_count, silu, .. } = shape;
    if x.is_empty() {
        mean.fill(0.0);
        inverse_deviation.fill(0.0);
        return;
    }
    let set = InstructionSet::current();
    // Sums are taken of x - shift, the shift being the mean of the picture's first pixel: without it the square of a large mean would swallow the variance.
    let mut shift = vec![0.0; batch * channels];
    for (picture, shift) in shift.chunks_exact_mut(channels).enumerate() {
        let size = channels / group_count;
        for (first, shift) in x[picture * pixels * channels..].chunks_exact(size).zip(shift.chunks_exact_mut(size)) {
            shift.fill(first.iter().sum::<f32>() / size as f32);
        }
    }
    let run_count = shape.run_count();
    let mut sums = vec![0.0; batch * run_count * 2 * channels];
    // Per picture and channel: y = activation(x * factor + term).
    let (mut factor, mut term) = (vec![0.0; batch * channels], vec![0.0; batch * channels]);
    let past_caches = y.len() >= PAST_CACHES_FROM;
    let (sums, factor, term) = (Shared::new(&mut sums), Shared::new(&mut factor), Shared::new(&mut term));
    let (mean, inverse_deviation, out) = (Shared::new(mean), Shared::new(inverse_deviation), Shared::new(y));
    let moments = |index: usize| {
        let (picture, range) = shape.run(index);
        // SAFETY: each run has sums of its own.
        let sums = unsafe { sums.slice(index * 2 * channels, 2 * channels) };
        set.run(Moments { x: &x[range], shift: &shift[picture * channels..][..channels], sums });
    };
    let statistics = |picture: usize| {
        let of_channels = picture * channels;
        // SAFETY: each picture has statistics of its own, and its sums are complete.
        unsafe {
            let sums = sums.slice(picture * run_count * 2 * channels, run_count * 2 * channels);
            Statistics {
                shape: &shape,
                shift: &shift[of_channels..][..channels],
                scale,
                bias,
                mean: mean.slice(picture * group_count, group_count),
                inverse_deviation: inverse_deviation.slice(picture * group_count, group_count),
                factor: factor.slice(of_channels, channels),
                term: term.slice(of_channels, channels),
            }
            .compute(sums);
        }
    };
    let apply = |index: usize| {
        let (picture, range) = shape.run(index);
        // SAFETY: each run writes its own pixels; the factors of its picture are complete.
        unsafe {
            let (factor, term) = (factor.slice(picture * channels, channels), term.slice(picture * channels, channels));
            set.run(Apply { x: &x[range.clone()], factor, term, silu, past_caches, y: out.slice(range.start, range.len()) });
        }
    };
    in_phases(batch, run_count, moments, statistics, apply);
}

/// Calls `first` for each run of all pictures, then `between` for each picture, then `last` for each run. A picture of a single run goes through all of them at
/// once, while it lies in the cache.
fn in_phases(batch: usize, run_count: usize, first: impl Fn(usize) + Sync, between: impl Fn(usize) + Sync, last: impl Fn(usize) + Sync) {
    if run_count == 1 {
        return each(batch, |picture| {
            first(picture);
            between(picture);
            last(picture);
        });
    }
    each(batch * run_count, &first);
    (0..batch).for_each(&between);
    each(batch * run_count, &last);
}

/// The statistics of one picture, and what its channels are multiplied with and have added.
struct Statistics<'a> {
    shape: &'a GroupNorm,
    shift: &'a [f32],
    scale: &'a [f32],
    bias: &'a [f32],
    /// [group_count]
    mean: &'a mut [f32],
    inverse_deviation: &'a mut [f32],
    /// [channels]
    factor: &'a mut [f32],
    term: &'a mut [f32],
}

impl Statistics<'_> {
    /// From the sums [run_count, 2, channels] of [`Moments`].
    fn compute(self, sums: &[f32]) {
        let GroupNorm { pixels, channels, group_count, epsilon, .. } = *self.shape;
        let size = channels / group_count;
        for group in 0..group_count {
            let members = group * size..(group + 1) * size;
            let (mut sum, mut squares) = (0.0f64, 0.0f64);
            for sums in sums.chunks_exact(2 * channels) {
                for c in members.clone() {
                    sum += f64::from(sums[c]);
                    squares += f64::from(sums[channels + c]);
                }
            }
            let count = (pixels * size) as f64;
            let offset = sum / count;
            let variance = (squares / count - offset * offset).max(0.0);
            let inverse = 1.0 / (variance + f64::from(epsilon)).sqrt();
            let centre = f64::from(self.shift[members.start]) + offset;
            self.mean[group] = centre as f32;
            self.inverse_deviation[group] = inverse as f32;
            for c in members {
                let scale = f64::from(self.scale[c]);
                self.factor[c] = (inverse * scale) as f32;
                self.term[c] = (f64::from(self.bias[c]) - centre * inverse * scale) as f32;
            }
        }
    }
}

/// Writes dx, dscale and dbias [channels] from dy and the statistics that `forward` wrote.
pub fn backward(
    x: &[f32],
    scale: &[f32],
    bias: &[f32],
    mean: &[f32],
    inverse_deviation: &[f32],
    dy: &[f32],
    shape: GroupNorm,
    dx: &mut [f32],
    dscale: &mut [f32],
    dbias: &mut [f32],
) {
    shape.check("group_norm's gradient", [x.len(), scale.len(), bias.len(), mean.len()]);
    shape.check("group_norm's gradient", [dy.len(), dscale.len(), dbias.len(), inverse_deviation.len()]);
    assert!(dx.len() == x.len(), "group_norm's gradient {shape:?}: expected dx of {}, found {}", x.len(), dx.len());
    let GroupNorm { batch, pixels, channels, group_count, silu, .. } = shape;
    if x.is_empty() {
        dscale.fill(0.0);
        dbias.fill(0.0);
        return;
    }
    let set = InstructionSet::current();
    let size = channels / group_count;
    // The normalised value is x * inverse + offset, per picture and channel.
    let spread = |groups: &mut dyn Iterator<Item = f32>| -> Vec<f32> { groups.flat_map(|value| std::iter::repeat_n(value, size)).collect() };
    let inverse = spread(&mut inverse_deviation.iter().copied());
    let offset = spread(&mut mean.iter().zip(inverse_deviation).map(|(mean, inverse)| -mean * inverse));
    let run_count = shape.run_count();
    let mut sums = vec![0.0; batch * run_count * 2 * channels];
    // dx = inverse * (g - mean(g) - normalised * mean(g * normalised)) with g = scale * d; as d * own + x * slope + term.
    let (mut own, mut slope, mut term) = (vec![0.0; batch * channels], vec![0.0; batch * channels], vec![0.0; batch * channels]);
    // Of each picture: sum of d * normalised, sum of d.
    let mut totals = vec![0.0f64; batch * 2 * channels];
    let (shared_totals, sums, dx) = (Shared::new(&mut totals), Shared::new(&mut sums), Shared::new(dx));
    let (own, slope, term) = (Shared::new(&mut own), Shared::new(&mut slope), Shared::new(&mut term));
    let add_up = |index: usize| {
        let (picture, range) = shape.run(index);
        // SAFETY: each run has sums of its own, and writes its own pixels.
        let (sums, dx) = unsafe { (sums.slice(index * 2 * channels, 2 * channels), dx.slice(range.start, range.len())) };
        let (inverse, offset) = (&inverse[picture * channels..][..channels], &offset[picture * channels..][..channels]);
        set.run(BackwardSums { x: &x[range.clone()], dy: &dy[range], scale, bias, inverse, offset, silu, dx, sums });
    };
    let coefficients = |picture: usize| {
        // SAFETY: each picture has totals and coefficients of its own, and its sums are complete.
        let (totals, sums, own, slope, term) = unsafe {
            let first = picture * channels;
            let sums = sums.slice(picture * run_count * 2 * channels, run_count * 2 * channels);
            (
                shared_totals.slice(picture * 2 * channels, 2 * channels),
                sums,
                own.slice(first, channels),
                slope.slice(first, channels),
                term.slice(first, channels),
            )
        };
        for sums in sums.chunks_exact(2 * channels) {
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += f64::from(*sum));
        }
        for group in 0..group_count {
            let members = group * size..(group + 1) * size;
            let count = (pixels * size) as f64;
            let along = members.clone().map(|c| f64::from(scale[c]) * totals[c]).sum::<f64>() / count;
            let level = members.clone().map(|c| f64::from(scale[c]) * totals[channels + c]).sum::<f64>() / count;
            for c in members {
                let (inverse, offset) = (f64::from(inverse[picture * channels + c]), f64::from(offset[picture * channels + c]));
                own[c] = (inverse * f64::from(scale[c])) as f32;
                slope[c] = (-inverse * inverse * along) as f32;
                term[c] = (-inverse * (level + offset * along)) as f32;
            }
        }
    };
    let apply = |index: usize| {
        let (picture, range) = shape.run(index);
        // SAFETY: each run writes its own pixels; the coefficients of its picture are complete.
        let (dx, [own, slope, term]) =
            unsafe { (dx.slice(range.start, range.len()), [&own, &slope, &term].map(|values| values.slice(picture * channels, channels))) };
        set.run(BackwardApply { x: &x[range], channels, own: own.as_ptr(), slope: slope.as_ptr(), term: term.as_ptr(), dx });
    };
    in_phases(batch, run_count, add_up, coefficients, apply);
    for c in 0..channels {
        dscale[c] = (0..batch).map(|picture| totals[picture * 2 * channels + c]).sum::<f64>() as f32;
        dbias[c] = (0..batch).map(|picture| totals[(picture * 2 + 1) * channels + c]).sum::<f64>() as f32;
    }
}

/// Calls `body(start, count)` for vectors over the channels; `count` is below LANES only at the end.
macro_rules! over_channels {
    ($vector:ty, $channels:expr, |$start:ident, $count:ident| $body:block) => {
        let mut $start = 0;
        while $start < $channels {
            let $count = <$vector>::LANES.min($channels - $start);
            $body
            $start += <$vector>::LANES;
        }
    };
}

/// Calls `self.method::<V, 4>(start, LANES)` for four vectors of channels at a time, `self.method::<V, 1>(start, count)` for what is left.
macro_rules! over_channels_in_fours {
    ($vector:ty, $channels:expr, |start, count| $self:ident.$method:ident(start, count)) => {
        let (channels, mut start) = ($channels, 0);
        while start + 4 * <$vector>::LANES <= channels {
            $self.$method::<$vector, 4>(start, <$vector>::LANES);
            start += 4 * <$vector>::LANES;
        }
        while start < channels {
            $self.$method::<$vector, 1>(start, channels - start);
            start += <$vector>::LANES;
        }
    };
}

/// sums[c] = sum of x - shift, sums[channels + c] = sum of (x - shift)^2, over the pixels of a run.
struct Moments<'a> {
    x: &'a [f32],
    shift: &'a [f32],
    sums: &'a mut [f32],
}

impl Kernel for Moments<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        // SAFETY: every pixel, the shift and each sum has these channels.
        unsafe {
            over_channels_in_fours!(V, self.shift.len(), |start, count| self.of_vectors(start, count));
        }
    }
}

impl Moments<'_> {
    /// N vectors of channels side by side, so that memory is read in runs; of a single one `count` are left.
    /// # Safety
    /// These channels exist.
    #[inline(always)]
    unsafe fn of_vectors<V: Vector, const N: usize>(&mut self, start: usize, count: usize) {
        let channels = self.shift.len();
        let pixels = self.x.len() / channels;
        // SAFETY: the caller's promise.
        unsafe {
            let mut shift = [V::zero(); N];
            for (n, shift) in shift.iter_mut().enumerate() {
                *shift = load::<V>(self.shift.as_ptr().add(start + n * V::LANES), count);
            }
            // Two chains, even and odd pixels, hide the latency of the additions.
            let (mut sum, mut squares) = ([[V::zero(); N]; 2], [[V::zero(); N]; 2]);
            let mut pixel = 0;
            while pixel < pixels {
                for chain in 0..2.min(pixels - pixel) {
                    let from = self.x.as_ptr().add((pixel + chain) * channels + start);
                    for n in 0..N {
                        let centred = load::<V>(from.add(n * V::LANES), count).sub(shift[n]);
                        sum[chain][n] = sum[chain][n].add(centred);
                        squares[chain][n] = centred.mul_add(centred, squares[chain][n]);
                    }
                }
                pixel += 2;
            }
            for n in 0..N {
                let at = start + n * V::LANES;
                store(sum[0][n].add(sum[1][n]), self.sums.as_mut_ptr().add(at), count);
                store(squares[0][n].add(squares[1][n]), self.sums.as_mut_ptr().add(channels + at), count);
            }
        }
    }
}

/// y = activation(x * factor + term)
struct Apply<'a> {
    x: &'a [f32],
    factor: &'a [f32],
    term: &'a [f32],
    silu: bool,
    /// Whether y is part of an output so long that it need not pass through the caches.
    past_caches: bool,
    y: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        // Every vector then begins at a multiple of its size.
        let aligned = (self.y.as_ptr() as usize).is_multiple_of(V::LANES * size_of::<f32>()) && self.factor.len().is_multiple_of(V::LANES);
        if self.past_caches && aligned {
            self.pixels::<V, true>();
            settle();
        } else {
            self.pixels::<V, false>();
        }
    }
}

impl Apply<'_> {
    #[inline(always)]
    fn pixels<V: Vector, const PAST_CACHES: bool>(self) {
        let channels = self.factor.len();
        for (x, y) in self.x.chunks_exact(channels).zip(self.y.chunks_exact_mut(channels)) {
            over_channels!(V, channels, |start, count| {
                // SAFETY: `count` channels from `start` on exist in all four.
                unsafe {
                    let factor = load::<V>(self.factor.as_ptr().add(start), count);
                    let value = load::<V>(x.as_ptr().add(start), count).mul_add(factor, load(self.term.as_ptr().add(start), count));
                    let value = if self.silu { value.mul(sigmoid(value)) } else { value };
                    let to = y.as_mut_ptr().add(start);
                    if PAST_CACHES { value.store_past_caches(to) } else { store(value, to, count) }
                }
            });
        }
    }
}

/// dx = d = dy through the activation; sums[c] = sum of d * normalised, sums[channels + c] = sum of d, over the pixels of a run.
struct BackwardSums<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    scale: &'a [f32],
    bias: &'a [f32],
    inverse: &'a [f32],
    offset: &'a [f32],
    silu: bool,
    dx: &'a mut [f32],
    sums: &'a mut [f32],
}

impl Kernel for BackwardSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(mut self) {
        // SAFETY: every pixel, parameter and sum has these channels.
        unsafe {
            over_channels_in_fours!(V, self.scale.len(), |start, count| self.of_vectors(start, count));
        }
    }
}

impl BackwardSums<'_> {
    /// N vectors of channels side by side, so that memory is read in runs; of a single one `count` are left.
    /// # Safety
    /// These channels exist.
    #[inline(always)]
    unsafe fn of_vectors<V: Vector, const N: usize>(&mut self, start: usize, count: usize) {
        let channels = self.scale.len();
        let pixels = self.x.len() / channels;
        let one = V::splat(1.0);
        // SAFETY: the caller's promise.
        unsafe {
            let (mut inverse, mut offset, mut scale, mut bias) = ([V::zero(); N], [V::zero(); N], [V::zero(); N], [V::zero(); N]);
            for n in 0..N {
                let at = start + n * V::LANES;
                inverse[n] = load(self.inverse.as_ptr().add(at), count);
                offset[n] = load(self.offset.as_ptr().add(at), count);
                scale[n] = load(self.scale.as_ptr().add(at), count);
                bias[n] = load(self.bias.as_ptr().add(at), count);
            }
            let (mut along, mut level) = ([V::zero(); N], [V::zero(); N]);
            for pixel in 0..pixels {
                for n in 0..N {
                    let at = pixel * channels + start + n * V::LANES;
                    let normalised = load::<V>(self.x.as_ptr().add(at), count).mul_add(inverse[n], offset[n]);
                    let mut d = load::<V>(self.dy.as_ptr().add(at), count);
                    if self.silu {
                        let value = normalised.mul_add(scale[n], bias[n]);
                        let s = sigmoid(value);
                        // silu'(v) = s (1 + v (1 - s))
                        d = d.mul(s.mul(value.mul_add(one.sub(s), one)));
                    }
                    along[n] = d.mul_add(normalised, along[n]);
                    level[n] = level[n].add(d);
                    store(d, self.dx.as_mut_ptr().add(at), count);
                }
            }
            for n in 0..N {
                let at = start + n * V::LANES;
                store(along[n], self.sums.as_mut_ptr().add(at), count);
                store(level[n], self.sums.as_mut_ptr().add(channels + at), count);
            }
        }
    }
}

/// dx = dx * own + x * slope + term
struct BackwardApply<'a> {
    x: &'a [f32],
    channels: usize,
    own: *const f32,
    slope: *const f32,
    term: *const f32,
    dx: &'a mut [f32],
}

impl Kernel for BackwardApply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: Vector>(self) {
        for (x, dx) in self.x.chunks_exact(self.channels).zip(self.dx.chunks_exact_mut(self.channels)) {
            over_channels!(V, self.channels, |start, count| {
                // SAFETY: `count` channels from `start` on exist in all five.
                unsafe {
                    let to = dx.as_mut_ptr().add(start);
                    let rest = load::<V>(x.as_ptr().add(start), count).mul_add(load(self.slope.add(start), count), load(self.term.add(start), count));
                    store(load::<V>(to, count).mul_add(load(self.own.add(start), count), rest), to, count);
                }
            });
        }
    }
}
