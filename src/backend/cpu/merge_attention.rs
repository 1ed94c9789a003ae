//! Attention over some keys and attention over others as attention over both.

use crate::backend::params::MergeAttentionParams;
use rayon::prelude::*;

/// part, out `[rows, n_heads, head_dim]` under a row stride; lse of out and of part, and merged, `[n_heads, rows]`.
pub(super) fn merge_attention(
    p: &MergeAttentionParams,
    part: &[f32],
    [lse, part_lse]: [&[f32]; 2],
    out: &mut [f32],
    merged: &mut [f32],
) {
    let (rows, heads, d) = (p.rows as usize, p.n_heads as usize, p.head_dim as usize);
    let weights = |i: usize| {
        let (a, b) = (lse[i], part_lse[i]);
        let max = a.max(b);
        match max == f32::NEG_INFINITY {
            true => [1.0, 0.0, max],
            false => {
                let (a, b) = ((a - max).exp(), (b - max).exp());
                [a / (a + b), b / (a + b), max + (a + b).ln()]
            }
        }
    };
    let stride = p.row_stride as usize;
    out.par_chunks_mut(stride).zip(part.par_chunks(stride)).take(rows).enumerate().for_each(|(row, (out, part))| {
        let both = out.chunks_exact_mut(d).zip(part.chunks_exact(d)).take(heads);
        for (head, (out, part)) in both.enumerate() {
            let [a, b, _] = weights(head * rows + row);
            out.iter_mut().zip(part).for_each(|(x, y)| *x = *x * a + y * b);
        }
    });
    merged.par_iter_mut().take(heads * rows).enumerate().for_each(|(i, merged)| *merged = weights(i)[2]);
}
