//! Block-sparse estimation (paper, Algorithm 3): pooled queries against pooled keys, and the best key blocks of each row
//! block. The paper's softmax keeps the order of a row's scores, so it is left out.

use super::select_top_k::top_k;
use super::simd;
use crate::backend::params::{BLOCK, HeadPlan, ScoreBlocksParams};
use pulp::Arch;
use rayon::prelude::*;

/// Key blocks that begin at or before the last query of row block `r`.
fn eligible(p: &ScoreBlocksParams, r: usize) -> usize {
    let last = p.q_start as usize + (r * BLOCK + BLOCK - 1).min(p.q_len as usize - 1);
    (last / BLOCK + 1).min(p.key_blocks as usize)
}

pub(super) fn score_blocks(
    p: &ScoreBlocksParams,
    plan: &[HeadPlan],
    pooled_q: &[f32],
    pooled_k: &[f32],
    scores: &mut [f32],
) {
    let (d, band, blocks) = (p.head_dim as usize, p.band_len as usize, p.key_blocks as usize);
    let group = (p.n_heads / p.n_kv_heads) as usize;
    let arch = Arch::new();
    scores.par_chunks_mut(blocks).enumerate().for_each(|(i, scores)| {
        let (h, r) = (i / band, p.band_start as usize + i % band);
        if plan[h].kind != HeadPlan::BLOCK_SPARSE {
            return;
        }
        let q = &pooled_q[(h * p.row_blocks as usize + r) * d..][..d];
        let k = &pooled_k[h / group * blocks * d..][..blocks * d];
        let (seen, future) = scores.split_at_mut(eligible(p, r));
        for (score, k) in seen.iter_mut().zip(k.chunks_exact(d)) {
            *score = arch.dispatch(simd::Dot(q, k));
        }
        future.fill(f32::NEG_INFINITY);
    });
}

pub(super) fn select_blocks(p: &ScoreBlocksParams, plan: &[HeadPlan], scores: &[f32], block_mask: &mut [u32]) {
    let (band, blocks, words) = (p.band_len as usize, p.key_blocks as usize, p.key_blocks.div_ceil(32) as usize);
    let rows = block_mask.par_chunks_mut(words).enumerate();
    rows.for_each_init(
        || (Vec::new(), Vec::new()),
        |(row, ranks), (i, mask)| {
            let (h, r) = (i / p.row_blocks as usize, i % p.row_blocks as usize);
            let in_band = (p.band_start..p.band_start + p.band_len).contains(&(r as u32));
            if plan[h].kind != HeadPlan::BLOCK_SPARSE || !in_band {
                return;
            }
            let scores = &scores[(h * band + r - p.band_start as usize) * blocks..][..eligible(p, r)];
            row.clear();
            row.extend_from_slice(scores);
            if !(p.q_start as usize).is_multiple_of(BLOCK) {
                row[(p.q_start as usize + r * BLOCK) / BLOCK] = f32::INFINITY;
            }
            mask.fill(0);
            top_k(row, plan[h].a as usize, 0, ranks, |c| mask[c / 32] |= 1 << (c % 32));
        },
    );
}
