//! Attention at length: 32 heads on 8, head_dim 128, bf16; dense, A-shape, vertical-slash on the `bands` sets and
//! block-sparse. Milliseconds include the gather of columns and the order of work; TFLOP/s are over the index's own pairs.

use crate::timing::{Rng, row, tflops, time};
use crate::{VARIANTS, open};
use minference::backend::Backend;
use minference::backend::cuda::Cuda;
use minference::backend::params::{BLOCK, HeadPlan};
use minference::bench::bands;
use minference::estimate;
use minference::index::{HostIndex, IndexLayout, SparseIndex};
use minference::ops::{self, AttentionShape};
use minference::pattern::HeadPattern;
use minference::tensor::Tensor;
use minference::{DType, Result};

pub const HEADS: usize = 32;
pub const KV_HEADS: usize = 8;
pub const DIM: usize = 128;

/// Random values that repeat: enough of them not to fit in L2 by repeating, few enough to be made on the host.
const TABLE: usize = (4 << 20) + 8 * 1021;

/// Q, K and V of one layer as the decoder has them: q in rows of qkv, K and V head-major.
pub struct Layer {
    pub shape: AttentionShape,
    pub q: Tensor<Cuda>,
    pub k: Tensor<Cuda>,
    pub v: Tensor<Cuda>,
    table: Vec<f32>,
}

/// A device tensor of random values, and where in the table it begins.
fn random(b: &Cuda, table: &Tensor<Cuda>, elements: usize, shift: usize) -> Result<Tensor<Cuda>> {
    let mut out = Tensor::alloc(b, b.activation(), [elements])?;
    let (mut at, mut from) = (0, shift);
    while at < elements {
        let n = (elements - at).min(TABLE - from);
        ops::cast(b, table.view().rows(from..from + n), out.view_mut().rows(at..at + n))?;
        (at, from) = (at + n, 0);
    }
    Ok(out)
}

impl Layer {
    pub fn new(b: &Cuda, heads: usize, kv_heads: usize, n: usize) -> Result<Self> {
        let table = minference::tensor::decode_f32(
            b.activation(),
            &minference::tensor::encode_f32(b.activation(), &Rng(1).normals(TABLE))?,
        )?;
        let device = Tensor::activation(b, [TABLE], &table)?;
        let width = (heads + 2 * kv_heads) * DIM;
        let shape = AttentionShape {
            n_heads: heads,
            n_kv_heads: kv_heads,
            head_dim: DIM,
            q_len: n,
            kv_len: n,
            q_start: 0,
            scale: 1.0 / (DIM as f32).sqrt(),
            q_stride: [width, DIM],
            k_stride: [DIM, n * DIM],
            v_stride: [DIM, n * DIM],
            out_stride: [heads * DIM, DIM],
        };
        Ok(Self {
            q: random(b, &device, n * width, 0)?,
            k: random(b, &device, kv_heads * n * DIM, 8)?,
            v: random(b, &device, kv_heads * n * DIM, 1_000_008)?,
            shape,
            table,
        })
    }

    fn value(&self, shift: usize, at: usize) -> f64 {
        f64::from(self.table[(shift + at) % TABLE])
    }

    /// One output row in f64, from the values themselves.
    fn reference(&self, head: usize, query: usize, keys: &[std::ops::Range<usize>]) -> Vec<f64> {
        let s = &self.shape;
        let kv = head / (s.n_heads / s.n_kv_heads);
        let q: Vec<f64> =
            (0..DIM).map(|d| self.value(0, query * s.q_stride[0] + head * DIM + d) * f64::from(s.scale)).collect();
        let row = |shift: usize, key: usize, d: usize| self.value(shift, kv * s.k_stride[1] + key * DIM + d);
        let keys: Vec<usize> = keys.iter().cloned().flatten().collect();
        let scores: Vec<f64> = keys.iter().map(|&j| (0..DIM).map(|d| q[d] * row(8, j, d)).sum()).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
        let mut out = vec![0.0; DIM];
        for (&j, score) in keys.iter().zip(&scores) {
            let weight = (score - top).exp() / sum;
            (0..DIM).for_each(|d| out[d] += weight * row(1_000_008, j, d));
        }
        out
    }

    /// Largest relative L2 error over sampled rows of `out`.
    fn worst(&self, b: &Cuda, out: &Tensor<Cuda>, index: &HostIndex) -> Result<f64> {
        let (n, mut rng, mut worst) = (self.shape.q_len, Rng(5), 0f64);
        for i in 0..8 {
            let head = [0, 1, self.shape.n_heads - 1][i % 3];
            let query = if i == 0 { n - 1 } else { (rng.next() % n as u64) as usize };
            let position = self.shape.q_start + query;
            let keys = index.row(head, query / BLOCK).keys(position);
            let want = self.reference(head, query, &keys);
            let got = out.view().rows(query..query + 1).to_f32(b)?;
            let got = &got[head * DIM..(head + 1) * DIM];
            let error: f64 = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
            let norm: f64 = want.iter().map(|w| w * w).sum();
            worst = worst.max(if error.is_finite() { (error / norm).sqrt() } else { f64::INFINITY });
        }
        Ok(worst)
    }
}

/// A block-sparse index of `top_k` random blocks a row block; with `alike`, rows 2m and 2m + 1 share their picks.
fn random_blocks(b: &Cuda, shape: &AttentionShape, top_k: usize, alike: bool) -> Result<SparseIndex<Cuda>> {
    let (rows, blocks) = (shape.q_len.div_ceil(BLOCK), shape.kv_len.div_ceil(BLOCK));
    let words = blocks.div_ceil(32);
    let mut mask = vec![0u32; shape.n_heads * rows * words];
    let mut rng = Rng(7);
    for head in 0..shape.n_heads {
        for r in 0..rows {
            let (before, now) = mask.split_at_mut((head * rows + r) * words);
            let now = &mut now[..words];
            let mut left = top_k.min(r + 1);
            if alike && r % 2 == 1 {
                now.copy_from_slice(&before[before.len() - words..]);
                left -= now.iter().map(|w| w.count_ones() as usize).sum::<usize>().min(left);
            }
            while left > 0 {
                let block = (rng.next() % (r as u64 + 1)) as usize;
                if now[block / 32] >> (block % 32) & 1 == 0 {
                    now[block / 32] |= 1 << (block % 32);
                    left -= 1;
                }
            }
        }
    }
    let layout = IndexLayout {
        n_heads: shape.n_heads,
        q_len: shape.q_len,
        kv_len: shape.kv_len,
        q_start: 0,
        column_tiles: 0,
        range_budget: shape.n_heads * rows * top_k.min(blocks),
    };
    let plan: Vec<u32> = (0..shape.n_heads).flat_map(|_| [HeadPlan::BLOCK_SPARSE, top_k as u32, 0, 0]).collect();
    let u32s = |shape: &[usize], values: &[u32]| {
        Tensor::from_slice(b, DType::U32, minference::tensor::Shape::try_from(shape)?, values)
    };
    let mut index = SparseIndex::alloc(b, layout)?;
    let (plan, offsets, counts) = (
        u32s(&[shape.n_heads, 4], &plan)?,
        u32s(&[shape.n_heads, 1], &[0; 512][..shape.n_heads])?,
        u32s(&[shape.n_heads], &[0; 512][..shape.n_heads])?,
    );
    let mask = u32s(&[shape.n_heads, rows, words], &mask)?;
    let choice = ops::Choice {
        plan: plan.view(),
        offsets: offsets.view(),
        offset_count: counts.view(),
        block_mask: mask.view(),
        dense_above: minference::estimate::EXACT,
    };
    ops::build_index(b, choice, &mut index)?;
    Ok(index)
}

/// The index of one row of the table.
fn index(b: &Cuda, what: &str, layer: &Layer) -> Result<SparseIndex<Cuda>> {
    let (shape, n) = (&layer.shape, layer.shape.q_len);
    let sets = |columns, offsets| {
        let sets: Vec<_> = (0..shape.n_heads).map(|h| bands(n, columns, offsets, h)).collect();
        let (columns, offsets): (Vec<_>, Vec<_>) = sets.into_iter().unzip();
        estimate::from_sets(b, &columns, &offsets, shape)
    };
    match what {
        "vs 1000:6096 bands" => sets(1000, 6096),
        "vs 500:700 bands" => sets(500, 700),
        "vs 3500:100 bands" => sets(3500, 100),
        "bs top100 alike in pairs" => random_blocks(b, shape, 100, true),
        "bs top100 unrelated" => random_blocks(b, shape, 100, false),
        pattern => {
            let pattern: HeadPattern = pattern.parse()?;
            estimate::estimate(b, &vec![pattern; shape.n_heads], shape, layer.q.view(), layer.k.view())
        }
    }
}

/// Columns and offsets of a head at random, with the local ones that every estimate takes.
fn scattered(n: usize, columns: usize, offsets: usize, head: usize) -> (Vec<u32>, Vec<u32>) {
    let mut rng = Rng(100 + head as u64);
    let mut pick = |count: usize, forced: usize| {
        let mut chosen: std::collections::BTreeSet<u32> = (0..forced.min(count) as u32).collect();
        while chosen.len() < count.min(n) {
            chosen.insert((rng.next() % n as u64) as u32);
        }
        chosen.into_iter().collect()
    };
    (pick(columns, estimate::FORCED_COLUMNS), pick(offsets, estimate::FORCED_OFFSETS))
}

/// From which density on a dense layer is faster: indices of rising density that leave no row dense, against dense.
pub fn crossover(variant: usize, lengths: &[usize]) -> Result<()> {
    let b = open(DType::BF16, variant)?;
    for &n in lengths.iter().filter(|&&n| n <= 32768) {
        let layer = Layer::new(&b, HEADS, KV_HEADS, n)?;
        let shape = &layer.shape;
        let mut out = Tensor::alloc(&b, DType::BF16, [n, HEADS * DIM])?;
        let mut attend = |index: &SparseIndex<Cuda>| {
            time(&b, || {
                let (q, k, v) = (layer.q.view(), layer.k.view(), layer.v.view());
                ops::attention(&b, shape, q, k, v, index, out.view_mut(), None)
            })
        };
        let dense = attend(&index(&b, "dense", &layer)?)?;
        row(&format!("dense, {n}"), dense, String::new());
        let mut against = |what: String, index: SparseIndex<Cuda>| {
            let (t, density) = (attend(&index)?, index.density(&b)?);
            let ratio = t.median / dense.median;
            row(&what, t, format!("density {density:.3}  of dense {ratio:.3}  a pair {:.3}", ratio / density));
            Ok(())
        };
        for columns in [30, 1000, 2000] {
            for part in [2, 4, 6, 8, 10, 13] {
                let offsets = n * part / (6 * BLOCK);
                let sets: Vec<_> = (0..HEADS).map(|h| scattered(n, columns, offsets, h)).collect();
                let (columns_of, offsets_of): (Vec<_>, Vec<_>) = sets.into_iter().unzip();
                let index = estimate::from_sets(&b, &columns_of, &offsets_of, shape)?;
                against(format!("scattered {columns}:{offsets}, {n}"), index)?;
            }
        }
        for alike in [true, false] {
            for eighths in [2, 3, 4, 5, 6] {
                let top_k = n / BLOCK * eighths / 8;
                let what = format!("blocks {top_k}{}, {n}", if alike { " alike in pairs" } else { "" });
                against(what, random_blocks(&b, shape, top_k, alike)?)?;
            }
        }
    }
    Ok(())
}

/// All rows of a variant whose name has `only`.
pub fn section(variant: usize, lengths: &[usize], only: &str) -> Result<()> {
    let b = open(DType::BF16, variant)?;
    let mma = VARIANTS[variant].0.starts_with("sm80");
    let short = VARIANTS[variant].0 != "default";
    for &n in lengths {
        if mma && n > 32768 {
            continue; // the proxy for an A100 is judged at 32K
        }
        let layer = Layer::new(&b, HEADS, KV_HEADS, n)?;
        let mut out = Tensor::alloc(&b, DType::BF16, [n, HEADS * DIM])?;
        let all = [
            "dense",
            "a_shape:1024:4096",
            "vs 1000:6096 bands",
            "vs 500:700 bands",
            "vs 3500:100 bands",
            "bs top100 alike in pairs",
            "bs top100 unrelated",
        ];
        for what in all {
            if (short && what.contains("500:700")) || !what.contains(only) {
                continue;
            }
            let index = index(&b, what, &layer)?;
            let mut attend = || {
                let (q, k, v) = (layer.q.view(), layer.k.view(), layer.v.view());
                ops::attention(&b, &layer.shape, q, k, v, &index, out.view_mut(), None)
            };
            let t = time(&b, &mut attend)?;
            let pairs: u64 = index.pairs.to_u32(&b)?.iter().map(|&p| u64::from(p)).sum();
            let density = pairs as f64 / (HEADS as u64 * layer.shape.causal_pairs()) as f64;
            let rate = tflops(4.0 * DIM as f64 * pairs as f64, t);
            // The index of 128K on the host takes seconds; the other variants were judged at 32K.
            let verdict = match !short || n <= 32768 {
                true => layer
                    .worst(&b, &out, &index.to_host(&b)?)
                    .map(|e| format!("error {e:.1e} {}", if e < 1.5e-2 { "ok" } else { "WRONG" }))?,
                false => String::new(),
            };
            row(&format!("{what}, {n}"), t, format!("{rate}  density {density:.4}  {verdict}"));
        }
    }
    Ok(())
}
