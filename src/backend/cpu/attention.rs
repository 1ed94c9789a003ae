//! One attention layer over a sparse index: flash attention, a task per head and block of 64 queries.

use super::tile::{KEYS, Rows, Tile, Visible};
use crate::backend::params::{AttentionParams, BLOCK};
use rayon::prelude::*;
use std::sync::Mutex;

/// [`crate::backend::IndexSlices`] on the host.
#[derive(Clone, Copy)]
pub(super) struct Index<'a> {
    pub row_ranges: &'a [[u32; 2]],
    pub ranges: &'a [[u32; 2]],
    pub columns: &'a [u32],
    pub keep: &'a [[u32; 2]],
    pub window: &'a [[u32; 2]],
}

impl Index<'_> {
    /// Calls `flush` with every key below `limit` of head `h`'s row block `r`, at most [`KEYS`] at a time: those in
    /// ranges, then the columns. `keys` is scratch.
    fn for_each_tile(
        &self,
        p: &AttentionParams,
        [h, r]: [usize; 2],
        limit: u32,
        keys: &mut Vec<u32>,
        mut flush: impl FnMut(&[u32]),
    ) {
        keys.clear();
        let row = h * p.row_blocks as usize + r;
        let [first, count] = self.row_ranges[row].map(|x| x as usize);
        for &[mut start, end] in &self.ranges[first..first + count] {
            let end = end.min(limit);
            while start < end {
                let stop = end.min(start + (KEYS - keys.len()) as u32);
                keys.extend(start..stop);
                start = stop;
                if keys.len() == KEYS {
                    flush(keys);
                    keys.clear();
                }
            }
        }
        let tiles = p.column_tiles as usize;
        let columns = self.columns[h * tiles * BLOCK..].chunks(BLOCK);
        for (&[low, high], columns) in self.keep[row * tiles..][..tiles].iter().zip(columns) {
            let mut bits = u64::from(high) << 32 | u64::from(low);
            while bits != 0 {
                keys.push(columns[bits.trailing_zeros() as usize]);
                bits &= bits - 1;
                if keys.len() == KEYS {
                    flush(keys);
                    keys.clear();
                }
            }
        }
        if !keys.is_empty() {
            flush(keys);
        }
    }
}

pub(super) fn attention(
    p: &AttentionParams,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    index: Index,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
) {
    let (heads, d, q_len) = (p.n_heads as usize, p.head_dim as usize, p.q_len as usize);
    let group = heads / p.n_kv_heads as usize;
    // Rows of different heads interleave, so tasks write under a lock: 32 KiB after milliseconds of work.
    let results = Mutex::new((out, lse));
    // The last row blocks have the most keys: they go first, so that no thread ends with a long one alone.
    (0..p.row_blocks as usize * heads).into_par_iter().with_max_len(1).for_each_init(
        || (Tile::new(d), Vec::with_capacity(KEYS), vec![0.0; BLOCK * d]),
        |(tile, keys, rows), task| {
            let (h, r) = (task % heads, p.row_blocks as usize - 1 - task / heads);
            let queries = q_len.min((r + 1) * BLOCK) - r * BLOCK;
            let first = p.q_start as usize + r * BLOCK;

            // queries
            let start = h * p.q_head_stride as usize + r * BLOCK * p.q_row_stride as usize;
            tile.load(Rows { data: &q[start..], stride: p.q_row_stride as usize }, queries, p.scale);
            tile.skip_below(p.skip_below);
            let k = Rows { data: &k[h / group * p.k_head_stride as usize..], stride: p.k_row_stride as usize };
            let v = Rows { data: &v[h / group * p.v_head_stride as usize..], stride: p.v_row_stride as usize };
            let visible = match index.window[h] {
                [u32::MAX, u32::MAX] => Visible::causal(first),
                [n_init, n_local] => Visible { first, n_init: n_init as usize, n_local: n_local as usize },
            };

            // scores, online softmax, accumulate
            let limit = p.kv_len.min((first + queries) as u32);
            index.for_each_tile(p, [h, r], limit, keys, |keys| tile.attend(keys, k, v, visible));

            // output
            for (lane, row) in rows.chunks_exact_mut(d).take(queries).enumerate() {
                tile.output(lane, row);
            }
            let mut results = results.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let (out, lse) = &mut *results;
            for (lane, row) in rows.chunks_exact(d).take(queries).enumerate() {
                let at = (r * BLOCK + lane) * p.out_row_stride as usize + h * p.out_head_stride as usize;
                out[at..at + d].copy_from_slice(row);
            }
            if let Some(lse) = lse {
                for lane in 0..queries {
                    lse[h * q_len + r * BLOCK + lane] = tile.log_sum_exp(lane);
                }
            }
        },
    );
}
