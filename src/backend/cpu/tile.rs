//! 64 queries against a tile of keys: scores, online softmax, weighted sum of values.
//!
//! A query is a vector lane. Scores lie `[key][query]`, so the softmax, which runs along keys, never leaves its lane, and
//! both products read K and V as they lie, one broadcast element at a time: keys may stand anywhere, in ranges or alone,
//! at no cost. Scores are in units of ln 2, because 2^x is cheaper than e^x.
//!
//! Loops here are `for` loops throughout: a closure handed to `map` or `from_fn` is compiled without the vector
//! instructions that `pulp` turned on around it, and calls them one by one.

use super::simd::{exp2, select};
use crate::backend::params::{BLOCK, SKIP_NOTHING};
use pulp::{Arch, Simd, WithSimd};

/// Keys of a tile. Its scores and values take 30 + 62 KiB at head_dim 128; smaller tiles rescale the sums more often.
pub(super) const KEYS: usize = 120;

/// Keys, or value elements, that a step of the inner loops handles: 6 rows of 2 vectors (of 4 where there are 32
/// registers) fill the registers with sums and leave room for the operands.
const ROWS: usize = 6;

/// Rows of keys or values of one head.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub(super) fn row(self, i: u32, len: usize) -> &'a [f32] {
        &self.data[i as usize * self.stride..][..len]
    }
}

/// Which lanes see a key: query `first + lane` sees `key` if `key <= first + lane` and either `key < n_init` or
/// `first + lane - key < n_local`.
#[derive(Clone, Copy)]
pub(super) struct Visible {
    pub first: usize,
    pub n_init: usize,
    pub n_local: usize,
}

impl Visible {
    /// Causal only.
    pub(super) fn causal(first: usize) -> Self {
        Self { first, n_init: usize::MAX, n_local: 0 }
    }

    /// First lane that sees `key`, and the first that does no longer.
    #[inline(always)]
    fn lanes(self, key: u32) -> (usize, usize) {
        let key = key as usize;
        let end = if key < self.n_init { BLOCK } else { (key + self.n_local).saturating_sub(self.first).min(BLOCK) };
        (key.saturating_sub(self.first).min(end), end)
    }
}

/// The state of 64 queries while keys pass by.
pub(super) struct Tile {
    arch: Arch,
    head_dim: usize,
    /// Queries of one group of lanes: see [`width`].
    width: usize,
    /// `[groups, head_dim, width]`.
    queries: Vec<f32>,
    /// `[groups, KEYS, width]`.
    scores: Vec<f32>,
    /// `[ceil(head_dim / ROWS), KEYS]`.
    values: Vec<[f32; ROWS]>,
    /// `[groups, ceil(head_dim / ROWS) * ROWS, width]`.
    sums: Vec<f32>,
    /// Largest score so far of each query.
    max: [f32; BLOCK],
    /// Sum of 2^(score - max) so far.
    weight: [f32; BLOCK],
    /// Lanes that hold a query.
    rows: usize,
    /// Keys whose scores all lie further below the maxima of a group of lanes, in units of ln 2, are skipped by it.
    skip_below: f32,
}

impl Tile {
    pub(super) fn new(head_dim: usize) -> Self {
        Self::on(Arch::new(), head_dim)
    }

    fn on(arch: Arch, head_dim: usize) -> Self {
        let blocks = head_dim.div_ceil(ROWS);
        Self {
            arch,
            head_dim,
            width: arch.dispatch(Width),
            queries: vec![0.0; head_dim * BLOCK],
            scores: vec![0.0; KEYS * BLOCK],
            values: vec![[0.0; ROWS]; blocks * KEYS],
            sums: vec![0.0; blocks * ROWS * BLOCK],
            max: [f32::NEG_INFINITY; BLOCK],
            weight: [0.0; BLOCK],
            rows: BLOCK,
            skip_below: SKIP_NOTHING,
        }
    }

    /// Skip-softmax from now on: see [`crate::backend::params::AttentionParams::skip_below`].
    pub(super) fn skip_below(&mut self, skip_below: f32) {
        self.skip_below = if skip_below == SKIP_NOTHING { skip_below } else { skip_below * std::f32::consts::LOG2_E };
    }

    /// Starts over with these queries, scaled by the natural-logarithm `scale`; lanes from `rows` on are zero.
    pub(super) fn load(&mut self, q: Rows, rows: usize, scale: f32) {
        let scale = scale * std::f32::consts::LOG2_E;
        self.queries.fill(0.0);
        self.rows = rows;
        for lane in 0..rows {
            let group = &mut self.queries[lane / self.width * self.width * self.head_dim..];
            for (d, x) in q.row(lane as u32, self.head_dim).iter().enumerate() {
                group[d * self.width + lane % self.width] = x * scale;
            }
        }
        self.restart();
    }

    /// Forgets the keys seen so far, not the queries.
    pub(super) fn restart(&mut self) {
        self.sums.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.weight.fill(0.0);
    }

    /// Takes at most [`KEYS`] keys into the softmax.
    pub(super) fn attend(&mut self, keys: &[u32], k: Rows, v: Rows, visible: Visible) {
        self.arch.dispatch(Attend { tile: self, keys, k, v: Some(v), visible });
    }

    /// The same without values: only [`Self::max`] and [`Self::weight`] advance.
    pub(super) fn weigh(&mut self, keys: &[u32], k: Rows, visible: Visible) {
        self.arch.dispatch(Attend { tile: self, keys, k, v: None, visible });
    }

    /// 2^(score - max) / weight of at most [`KEYS`] keys under given maxima and weights, a slice of 64 lanes a key.
    pub(super) fn probabilities(
        &mut self,
        keys: &[u32],
        k: Rows,
        visible: Visible,
        stats: &Stats,
        out: &mut [[f32; BLOCK]],
    ) {
        self.arch.dispatch(Probabilities { tile: self, keys, k, visible, stats, out });
    }

    /// Maxima and weights so far.
    pub(super) fn stats(&self) -> Stats {
        Stats { max: self.max, weight: self.weight }
    }

    /// The softmax-weighted mean of the values for query `lane`; zeros where no key was seen.
    pub(super) fn output(&self, lane: usize, out: &mut [f32]) {
        let weight = self.weight[lane];
        let scale = if weight == 0.0 { 0.0 } else { 1.0 / weight };
        let padded = self.head_dim.div_ceil(ROWS) * ROWS;
        let group = &self.sums[lane / self.width * self.width * padded..];
        for (d, out) in out.iter_mut().enumerate() {
            *out = group[d * self.width + lane % self.width] * scale;
        }
    }

    /// Natural logarithm of the sum of exponentials for query `lane`; -inf where no key was seen.
    pub(super) fn log_sum_exp(&self, lane: usize) -> f32 {
        self.stats().log_sum_exp2(lane) * std::f32::consts::LN_2
    }
}

/// A softmax's largest score and sum of each query, in units of ln 2.
#[derive(Clone, Copy)]
pub(super) struct Stats {
    pub max: [f32; BLOCK],
    pub weight: [f32; BLOCK],
}

impl Stats {
    fn log_sum_exp2(&self, lane: usize) -> f32 {
        if self.weight[lane] == 0.0 { f32::NEG_INFINITY } else { self.max[lane] + self.weight[lane].log2() }
    }

    /// Of both sets of keys together.
    pub(super) fn merge(mut self, other: &Self) -> Self {
        for lane in 0..BLOCK {
            let max = self.max[lane].max(other.max[lane]);
            if max > f32::NEG_INFINITY {
                self.weight[lane] = self.weight[lane] * (self.max[lane] - max).exp2()
                    + other.weight[lane] * (other.max[lane] - max).exp2();
            }
            self.max[lane] = max;
        }
        self
    }
}

/// Vectors of a group: as many as leave registers for [`ROWS`] sums of each.
const fn vectors<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 4 } else { 2 }
}

struct Width;

impl WithSimd for Width {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        vectors::<S>() * S::F32_LANES
    }
}

struct Attend<'a> {
    tile: &'a mut Tile,
    keys: &'a [u32],
    k: Rows<'a>,
    v: Option<Rows<'a>>,
    visible: Visible,
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if const { vectors::<S>() == 4 } { self.run::<S, 4>(simd) } else { self.run::<S, 2>(simd) }
    }
}

impl Attend<'_> {
    #[inline(always)]
    fn run<S: Simd, const N: usize>(self, simd: S) {
        let Self { tile, keys, k, v, visible } = self;
        let d = tile.head_dim;
        if let Some(v) = v {
            pack_values(keys, v, d, &mut tile.values);
        }
        let width = N * S::F32_LANES;
        let max = bytemuck::cast_slice_mut::<f32, [S::f32s; N]>(&mut tile.max);
        let weight = bytemuck::cast_slice_mut::<f32, [S::f32s; N]>(&mut tile.weight);
        let queries = tile.queries.chunks_exact(d * width);
        let scores = tile.scores.chunks_exact_mut(KEYS * width);
        let sums = tile.sums.chunks_exact_mut(d.div_ceil(ROWS) * ROWS * width);
        for (g, (((queries, scores), sums), (max, weight))) in
            queries.zip(scores).zip(sums).zip(max.iter_mut().zip(weight)).enumerate()
        {
            score_group::<S, N>(simd, bytemuck::cast_slice(queries), keys, k, bytemuck::cast_slice_mut(scores));
            mask_group(scores, width, g, keys, visible);
            let scores: &mut [[S::f32s; N]] = &mut bytemuck::cast_slice_mut(scores)[..keys.len()];
            let lanes = tile.rows.saturating_sub(g * width).min(width);
            if tile.skip_below > SKIP_NOTHING && skips::<S, N>(simd, scores, max, tile.skip_below, lanes) {
                continue;
            }
            let rescale = softmax_group::<S, N>(simd, scores, max, weight);
            if v.is_some() {
                let sums = bytemuck::cast_slice_mut(sums);
                sum_group::<S, N>(simd, scores, &tile.values, rescale, sums);
            }
        }
    }
}

struct Probabilities<'a> {
    tile: &'a mut Tile,
    keys: &'a [u32],
    k: Rows<'a>,
    visible: Visible,
    stats: &'a Stats,
    out: &'a mut [[f32; BLOCK]],
}

impl WithSimd for Probabilities<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if const { vectors::<S>() == 4 } { self.run::<S, 4>(simd) } else { self.run::<S, 2>(simd) }
    }
}

impl Probabilities<'_> {
    #[inline(always)]
    fn run<S: Simd, const N: usize>(self, simd: S) {
        let Self { tile, keys, k, visible, stats, out } = self;
        let width = N * S::F32_LANES;
        let queries = tile.queries.chunks_exact(tile.head_dim * width);
        for (g, (queries, scores)) in queries.zip(tile.scores.chunks_exact_mut(KEYS * width)).enumerate() {
            score_group::<S, N>(simd, bytemuck::cast_slice(queries), keys, k, bytemuck::cast_slice_mut(scores));
            mask_group(scores, width, g, keys, visible);
            let lanes = g * width..(g + 1) * width;
            let (max, _) = S::as_simd_f32s(&stats.max[lanes.clone()]);
            let (weight, _) = S::as_simd_f32s(&stats.weight[lanes.clone()]);
            for (out, scores) in out.iter_mut().zip(scores.chunks_exact(width)).take(keys.len()) {
                let (scores, _) = S::as_simd_f32s(scores);
                let (out, _) = S::as_mut_simd_f32s(&mut out[lanes.clone()]);
                for (((out, &s), &max), &weight) in out.iter_mut().zip(scores).zip(max).zip(weight) {
                    *out = simd.div_f32s(exp2(simd, simd.sub_f32s(s, max)), weight);
                }
            }
        }
    }
}

/// scores: `[key][lane] = sum_d queries[d][lane] * k[key][d]`.
#[inline(always)]
fn score_group<S: Simd, const N: usize>(
    simd: S,
    queries: &[[S::f32s; N]],
    keys: &[u32],
    k: Rows,
    scores: &mut [[S::f32s; N]],
) {
    let d = queries.len();
    for (keys, scores) in keys.chunks(ROWS).zip(scores.as_chunks_mut::<ROWS>().0) {
        // A short last step repeats its last key; nobody reads the scores past the end.
        let mut rows = [&k.data[..0]; ROWS];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = k.row(keys[r.min(keys.len() - 1)], d);
        }
        let mut sums = [[simd.splat_f32s(0.0); N]; ROWS];
        for (i, q) in queries.iter().enumerate() {
            for (sums, row) in sums.iter_mut().zip(rows) {
                let x = simd.splat_f32s(row[i]);
                for (sum, &q) in sums.iter_mut().zip(q) {
                    *sum = simd.mul_add_e_f32s(q, x, *sum);
                }
            }
        }
        *scores = sums;
    }
}

/// mask: -inf where a lane does not see a key.
#[inline(always)]
fn mask_group(scores: &mut [f32], width: usize, group: usize, keys: &[u32], visible: Visible) {
    for (&key, scores) in keys.iter().zip(scores.chunks_exact_mut(width)) {
        let (start, end) = visible.lanes(key);
        if start > 0 || end < BLOCK {
            for (lane, score) in (group * width..).zip(scores) {
                if lane < start || lane >= end {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Whether the scores of the first `lanes` lanes all lie further than `skip_below` below their lane's maximum.
#[inline(always)]
fn skips<S: Simd, const N: usize>(
    simd: S,
    scores: &[[S::f32s; N]],
    max: &[S::f32s; N],
    skip_below: f32,
    lanes: usize,
) -> bool {
    let mut tops = [simd.splat_f32s(f32::NEG_INFINITY); N];
    for row in scores {
        for (top, &s) in tops.iter_mut().zip(row) {
            *top = simd.max_f32s(*top, s);
        }
    }
    let (tops, max): (&[f32], &[f32]) = (bytemuck::cast_slice(&tops), bytemuck::cast_slice(max));
    tops.iter().zip(max).take(lanes).all(|(top, max)| *top < max + skip_below)
}

/// online softmax: scores become weights; what the sums so far must be multiplied by comes back.
#[inline(always)]
fn softmax_group<S: Simd, const N: usize>(
    simd: S,
    scores: &mut [[S::f32s; N]],
    max: &mut [S::f32s; N],
    weight: &mut [S::f32s; N],
) -> [S::f32s; N] {
    let (zero, none) = (simd.splat_f32s(0.0), simd.splat_f32s(f32::NEG_INFINITY));
    let before = *max;
    for row in scores.iter() {
        for (max, &s) in max.iter_mut().zip(row) {
            *max = simd.max_f32s(*max, s);
        }
    }
    // Where nothing was seen yet the maximum is -inf, and -inf - -inf would be NaN.
    let mut shift = *max;
    for shift in &mut shift {
        *shift = select(simd, simd.equal_f32s(*shift, none), zero, *shift);
    }
    let mut total = [zero; N];
    for row in scores {
        for ((s, &shift), total) in row.iter_mut().zip(&shift).zip(&mut total) {
            *s = exp2(simd, simd.sub_f32s(*s, shift));
            *total = simd.add_f32s(*total, *s);
        }
    }
    let mut rescale = before;
    for (((rescale, &shift), weight), &total) in rescale.iter_mut().zip(&shift).zip(weight).zip(&total) {
        *rescale = exp2(simd, simd.sub_f32s(*rescale, shift));
        *weight = simd.mul_add_e_f32s(*weight, *rescale, total);
    }
    rescale
}

/// values: `[element block][key][element]`, so that the next loop reads them in order.
#[inline(always)]
fn pack_values(keys: &[u32], v: Rows, d: usize, values: &mut [[f32; ROWS]]) {
    for (i, &key) in keys.iter().enumerate() {
        // Whole blocks by themselves: a copy of unknown length is a call, and 22 calls a key took a fifth of the time.
        let (whole, rest) = v.row(key, d).as_chunks::<ROWS>();
        let mut blocks = values.iter_mut().skip(i).step_by(KEYS);
        for (row, block) in whole.iter().zip(blocks.by_ref()) {
            *block = *row;
        }
        if let Some(block) = blocks.next() {
            for (x, &v) in block.iter_mut().zip(rest) {
                *x = v;
            }
        }
    }
}

/// accumulate: `sums[d][lane] = sums[d][lane] * rescale[lane] + sum_key weights[key][lane] * v[key][d]`.
#[inline(always)]
fn sum_group<S: Simd, const N: usize>(
    simd: S,
    weights: &[[S::f32s; N]],
    values: &[[f32; ROWS]],
    rescale: [S::f32s; N],
    sums: &mut [[S::f32s; N]],
) {
    for (sums, values) in sums.as_chunks_mut::<ROWS>().0.iter_mut().zip(values.chunks_exact(KEYS)) {
        let mut acc = *sums;
        for acc in &mut acc {
            for (acc, &rescale) in acc.iter_mut().zip(&rescale) {
                *acc = simd.mul_f32s(*acc, rescale);
            }
        }
        for (weights, v) in weights.iter().zip(values) {
            for (acc, &v) in acc.iter_mut().zip(v) {
                let v = simd.splat_f32s(v);
                for (acc, &w) in acc.iter_mut().zip(weights) {
                    *acc = simd.mul_add_e_f32s(w, v, *acc);
                }
            }
        }
        *sums = acc;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups of 2 lanes and of 8 times as many are the same softmax; the suites see one kind of machine at a time.
    #[test]
    fn every_width_computes_the_same() {
        let (d, n) = (40, 500);
        let values: Vec<f32> = (0..n * d).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let (q, k) = (Rows { data: &values[7 * d..], stride: d }, Rows { data: &values, stride: d });
        let visible = Visible { first: 300, n_init: 3, n_local: 90 };
        let run = |arch| {
            let mut tile = Tile::on(arch, d);
            tile.load(q, 50, 0.2);
            for start in [0u32, 200, 310] {
                let keys: Vec<u32> = (start..start + KEYS as u32 - 7).collect();
                tile.attend(&keys, k, k, visible);
            }
            let mut out = vec![0.0; 50 * d];
            for (lane, row) in out.chunks_exact_mut(d).enumerate() {
                tile.output(lane, row);
            }
            (out, (0..50).map(|lane| tile.log_sum_exp(lane)).collect::<Vec<_>>())
        };
        let ((scalar, scalar_lse), (vector, vector_lse)) = (run(Arch::Scalar), run(Arch::new()));
        for (a, b) in scalar.iter().zip(&vector).chain(scalar_lse.iter().zip(&vector_lse)) {
            assert!((a - b).abs() < 1e-5, "{a} by scalars, {b} by vectors");
        }
    }
}
