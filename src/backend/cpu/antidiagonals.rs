//! Key blocks by antidiagonal sums (XAttention): rows gathered by the stride, and what their products say of each block.

use crate::backend::params::{BLOCK, FoldRowsParams, HeadPlan, WeighAntidiagonalsParams};
use rayon::prelude::*;

/// The least attention whose logarithm is taken.
const LEAST: f32 = 1e-37;

pub(super) fn fold_rows(p: &FoldRowsParams, x: &[f32], out: &mut [f32]) {
    let [len, d, row_stride, head_stride] = [p.len, p.head_dim, p.row_stride, p.head_stride].map(|x| x as usize);
    let (fold, groups) = (p.fold as usize, p.len.div_ceil(p.fold) as usize);
    out.par_chunks_exact_mut(fold * d).enumerate().for_each(|(id, out)| {
        let (head, group) = (id / groups, id % groups);
        for (i, out) in out.chunks_exact_mut(d).enumerate() {
            let row = group * fold + if p.reverse != 0 { fold - 1 - i } else { i };
            match row < len {
                true => out.copy_from_slice(&x[head * head_stride + row * row_stride..][..d]),
                false => out.fill(0.0),
            }
        }
    });
}

pub(super) fn weigh_antidiagonals(
    p: &WeighAntidiagonalsParams,
    plan: &[HeadPlan],
    products: &[f32],
    scores: &mut [f32],
) {
    let [fold, groups, band, blocks] = [p.fold, p.groups, p.band_len, p.key_blocks].map(|x| x as usize);
    let (q_start, q_len, of_block) = (p.q_start as usize, p.q_len as usize, BLOCK / fold);
    let rows = scores.par_chunks_exact_mut(blocks).enumerate();
    rows.for_each(|(id, out)| {
        let plan = plan[id / band];
        if plan.kind != HeadPlan::BLOCK_SPARSE || plan.c != HeadPlan::ROW_MASS {
            return;
        }
        out.fill(0.0);
        let first = (p.band_start as usize + id % band) * BLOCK;
        for (i, products) in products[id * of_block * groups..].chunks_exact(groups).take(of_block).enumerate() {
            let query = first + i * fold;
            if query >= q_len {
                break;
            }
            let last = q_start + (query + fold).min(q_len) - 1;
            let products = &products[..groups.min(last / fold + 1)];
            let max = products.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weight = |x: &f32| ((x - max) * p.scale).exp();
            let inverse = 1.0 / products.iter().map(weight).sum::<f32>();
            for (out, products) in out.iter_mut().zip(products.chunks(of_block)) {
                *out += products.iter().map(weight).sum::<f32>() * inverse;
            }
        }
        let last = q_start + q_len.min(first + BLOCK) - 1;
        for (c, out) in out.iter_mut().enumerate() {
            *out = if c * BLOCK <= last { out.max(LEAST).ln() } else { f32::NEG_INFINITY };
        }
    });
}
