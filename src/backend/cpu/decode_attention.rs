//! Few queries over all their causal keys. Memory decides here: each key and value is read once for all query heads of
//! its group, and the keys are split among the threads.

use super::simd::{add_scaled, dot, exp2_sum};
use super::tile::Rows;
use crate::backend::params::AttentionParams;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Keys of one task.
const SPLIT: usize = 1024;

/// Keys that stay in the inner cache while the queries of a group pass over them.
const TILE: usize = 64;

pub(super) fn decode_attention(
    p: &AttentionParams,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    mut lse: Option<&mut [f32]>,
) {
    let (d, group) = (p.head_dim as usize, (p.n_heads / p.n_kv_heads) as usize);
    let (q_len, seen) = (p.q_len as usize, (p.q_start + p.q_len) as usize);
    let (splits, arch) = (seen.div_ceil(SPLIT), Arch::new());
    let parts: Vec<Vec<Part>> = (0..p.n_kv_heads as usize * splits)
        .into_par_iter()
        .map(|task| {
            let (kv_head, split) = (task / splits, task % splits);
            let queries = (0..q_len * group).map(|i| {
                let (row, h) = (i / group, kv_head * group + i % group);
                let start = row * p.q_row_stride as usize + h * p.q_head_stride as usize;
                (&q[start..start + d], p.q_start as usize + row)
            });
            let k = Rows { data: &k[kv_head * p.k_head_stride as usize..], stride: p.k_row_stride as usize };
            let v = Rows { data: &v[kv_head * p.v_head_stride as usize..], stride: p.v_row_stride as usize };
            let (start, end) = (split * SPLIT, seen.min((split + 1) * SPLIT));
            let mut parts: Vec<Part> = queries.map(|(q, last)| Part::new(q, last, p.scale)).collect();
            arch.dispatch(Attend { parts: &mut parts, k, v, start, end });
            parts
        })
        .collect();

    for kv_head in 0..p.n_kv_heads as usize {
        for i in 0..q_len * group {
            let parts = parts[kv_head * splits..][..splits].iter().map(|parts| &parts[i]);
            let (row, h) = (i / group, kv_head * group + i % group);
            let start = row * p.out_row_stride as usize + h * p.out_head_stride as usize;
            let total = merge(parts, &mut out[start..start + d]);
            if let Some(lse) = &mut lse {
                lse[h * q_len + row] = total;
            }
        }
    }
}

/// The state of one query over some of its keys; scores are in units of ln 2.
struct Part {
    query: Vec<f32>,
    /// Position of the last key that the query sees.
    last: usize,
    max: f32,
    weight: f32,
    sum: Vec<f32>,
}

impl Part {
    fn new(query: &[f32], last: usize, scale: f32) -> Self {
        let scale = scale * std::f32::consts::LOG2_E;
        let query: Vec<f32> = query.iter().map(|x| x * scale).collect();
        Self { sum: vec![0.0; query.len()], query, last, max: f32::NEG_INFINITY, weight: 0.0 }
    }
}

/// The weighted mean over all parts, and the log-sum-exp; every query sees key 0, so the total weight is not zero.
fn merge<'a>(parts: impl Iterator<Item = &'a Part> + Clone, out: &mut [f32]) -> f32 {
    let max = parts.clone().map(|p| p.max).fold(f32::NEG_INFINITY, f32::max);
    let weight: f32 = parts.clone().map(|p| p.weight * (p.max - max).exp2()).sum();
    out.fill(0.0);
    for part in parts {
        let scale = (part.max - max).exp2() / weight;
        for (out, x) in out.iter_mut().zip(&part.sum) {
            *out += x * scale;
        }
    }
    (max + weight.log2()) * std::f32::consts::LN_2
}

struct Attend<'a> {
    parts: &'a mut [Part],
    k: Rows<'a>,
    v: Rows<'a>,
    start: usize,
    end: usize,
}

impl WithSimd for Attend<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut scores = [0.0; TILE];
        for start in (self.start..self.end).step_by(TILE) {
            for part in self.parts.iter_mut() {
                let end = self.end.min(start + TILE).min(part.last + 1);
                if start >= end {
                    continue;
                }
                let (d, scores) = (part.query.len(), &mut scores[..end - start]);

                // scores
                let mut max = part.max;
                for (score, key) in scores.iter_mut().zip(start as u32..) {
                    *score = dot(simd, &part.query, self.k.row(key, d));
                    max = max.max(*score);
                }

                // online softmax
                let rescale = (part.max - max).exp2();
                part.weight = part.weight * rescale + exp2_sum(simd, max, scores);
                part.max = max;

                // accumulate
                part.sum.iter_mut().for_each(|x| *x *= rescale);
                for (&weight, key) in scores.iter().zip(start as u32..) {
                    add_scaled(simd, weight, self.v.row(key, d), &mut part.sum);
                }
            }
        }
    }
}
