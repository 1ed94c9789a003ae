//! Mean of each block of 64 rows (paper, Algorithm 3). A short last block is divided by its own rows, or by 64 all the same,
//! as if padded with zeros.

use crate::backend::params::{BLOCK, PoolBlocksParams};
use rayon::prelude::*;

pub(super) fn pool_blocks(p: &PoolBlocksParams, x: &[f32], out: &mut [f32]) {
    let (len, d, blocks) = (p.len as usize, p.head_dim as usize, p.blocks as usize);
    out.par_chunks_mut(d).enumerate().for_each(|(i, out)| {
        let (head, block) = (i / blocks, i % blocks);
        out.fill(0.0);
        let rows = block * BLOCK..len.min((block + 1) * BLOCK);
        let divisor = if p.padded == 1 { BLOCK } else { rows.len() };
        for row in rows {
            let x = &x[head * p.head_stride as usize + row * p.row_stride as usize..][..d];
            for (out, x) in out.iter_mut().zip(x) {
                *out += x;
            }
        }
        for out in out {
            *out *= 1.0 / divisor as f32;
        }
    });
}
