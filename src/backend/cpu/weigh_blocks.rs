//! Key blocks by their softmax weight within each row block: how much mass weights of each size hold, and which blocks a
//! rule keeps.

use super::mass::{BINS, ONE, bin, bins_taken, whole};
use crate::backend::params::{BLOCK, HeadPlan, WeighBlocksParams};
use rayon::prelude::*;

/// Key blocks that hold a query of row block `r`: the first and one past the last.
fn own_blocks(p: &WeighBlocksParams, r: usize) -> (usize, usize) {
    let first = p.q_start as usize + r * BLOCK;
    let last = p.q_start as usize + (r * BLOCK + BLOCK - 1).min(p.q_len as usize - 1);
    (first / BLOCK, (last / BLOCK + 1).min(p.key_blocks as usize))
}

/// Softmax weights of scores, and the largest.
fn weights(scores: &[f32], scale: f32, out: &mut Vec<f32>) -> f32 {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    out.clear();
    out.extend(scores.iter().map(|x| ((x - max) * scale).exp()));
    let inverse = 1.0 / out.iter().sum::<f32>();
    out.iter_mut().for_each(|x| *x *= inverse);
    inverse
}

pub(super) fn weigh_blocks(p: &WeighBlocksParams, plan: &[HeadPlan], scores: &[f32], mass: &mut [u32]) {
    let (band, blocks) = (p.band_len as usize, p.key_blocks as usize);
    let heads = mass.par_chunks_mut(BINS).zip(plan).zip(scores.par_chunks(band * blocks));
    heads.for_each_init(Vec::new, |row, ((mass, plan), scores)| {
        if plan.kind != HeadPlan::BLOCK_SPARSE || plan.c != HeadPlan::HEAD_MASS {
            return;
        }
        for (i, scores) in scores.chunks_exact(blocks).enumerate() {
            let (_, seen) = own_blocks(p, p.band_start as usize + i);
            weights(&scores[..seen], p.scale, row);
            for &x in row.iter() {
                mass[bin(x)] += whole(x, ONE / p.row_blocks as f32);
            }
        }
    });
}

pub(super) fn select_weighed_blocks(
    p: &WeighBlocksParams,
    plan: &[HeadPlan],
    scores: &[f32],
    mass: &[u32],
    block_mask: &mut [u32],
) {
    let (band, blocks, words) = (p.band_len as usize, p.key_blocks as usize, p.key_blocks.div_ceil(32) as usize);
    let rows = block_mask.par_chunks_mut(words).enumerate();
    rows.for_each_init(Vec::new, |row, (i, mask)| {
        let (h, r) = (i / p.row_blocks as usize, i % p.row_blocks as usize);
        let in_band = (p.band_start..p.band_start + p.band_len).contains(&(r as u32));
        let plan = plan[h];
        if plan.kind != HeadPlan::BLOCK_SPARSE || plan.c == HeadPlan::TOP_K || !in_band {
            return;
        }
        let (own, seen) = own_blocks(p, r);
        let scores = &scores[(h * band + r - p.band_start as usize) * blocks..][..seen];
        let number = f32::from_bits(plan.a);
        let largest = weights(scores, if plan.c == HeadPlan::ROW_MASS { 1.0 } else { p.scale }, row);
        let taken = match plan.c {
            HeadPlan::HEAD_MASS => bins_taken(&mass[h * BINS..][..BINS], number, 0),
            HeadPlan::ROW_MASS => {
                let mut bins = vec![0; BINS];
                row.iter().for_each(|&x| bins[bin(x)] += whole(x, ONE));
                bins_taken(&bins, number, 0)
            }
            _ => 0,
        };
        mask.fill(0);
        let whole_row = plan.n_last() > 0 && (r + 1) * BLOCK + plan.n_last() > p.q_len as usize;
        for (c, &x) in row.iter().enumerate() {
            let chosen = if plan.c == HeadPlan::OF_MAX { x >= number * largest } else { bin(x) < taken };
            if whole_row || chosen || c == 0 || c + plan.nearest() > own || c >= own {
                mask[c / 32] |= 1 << (c % 32);
            }
        }
    });
}
