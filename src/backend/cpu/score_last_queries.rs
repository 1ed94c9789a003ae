//! Vertical-slash estimation (paper, Algorithm 2): how much attention the last queries pay to each key, and to each
//! distance between query and key. Two passes over the keys, so that the probabilities are never stored: the first
//! finds each query's softmax maximum and sum, the second adds the probabilities up.

use super::tile::{KEYS, Rows, Stats, Tile, Visible};
use crate::backend::params::{BLOCK, HeadPlan, ScoreLastQueriesParams};
use rayon::prelude::*;

/// Keys of one task: a multiple of the tile.
const CHUNK: usize = 32 * KEYS;

/// `column_score[j] = sum_i P[i, j]`, `offset_score[o] = sum_i P[i, i - o]`, rows `[n_heads, kv_len]`; keys and offsets
/// that no query sees score 0.
pub(super) fn score_last_queries(
    p: &ScoreLastQueriesParams,
    plan: &[HeadPlan],
    q: &[f32],
    k: &[f32],
    column_score: &mut [f32],
    offset_score: &mut [f32],
) {
    let (kv_len, group) = (p.kv_len as usize, (p.n_heads / p.n_kv_heads) as usize);
    let rows = column_score.par_chunks_mut(kv_len).zip(offset_score.par_chunks_mut(kv_len)).zip(plan);
    rows.enumerate().for_each(|(h, ((columns, offsets), plan))| {
        if plan.kind == HeadPlan::VERTICAL_SLASH {
            let q = Rows { data: &q[h * p.q_head_stride as usize..], stride: p.q_row_stride as usize };
            let k = Rows { data: &k[h / group * p.k_head_stride as usize..], stride: p.k_row_stride as usize };
            score_head(p, q, k, columns, offsets);
        }
    });
}

fn score_head(p: &ScoreLastQueriesParams, q: Rows, k: Rows, columns: &mut [f32], offsets: &mut [f32]) {
    let (d, last_q) = (p.head_dim as usize, p.last_q as usize);
    let skipped = p.q_len as usize - last_q;
    let queries = Rows { data: &q.data[skipped * q.stride..], ..q };
    let (first, seen) = (p.q_start as usize + skipped, (p.q_start + p.q_len) as usize);
    let visible = Visible::causal(first);
    let tile = || {
        let mut tile = Tile::new(d);
        tile.load(queries, last_q, p.scale);
        (tile, Vec::with_capacity(KEYS))
    };

    // softmax maxima and sums
    let chunks = (0..seen as u32).into_par_iter().step_by(CHUNK);
    let parts: Vec<Stats> = chunks
        .map_init(tile, |(tile, keys), start| {
            tile.restart();
            for start in (start..(start + CHUNK as u32).min(seen as u32)).step_by(KEYS) {
                keys.clear();
                keys.extend(start..(start + KEYS as u32).min(seen as u32));
                tile.weigh(keys, k, visible);
            }
            tile.stats()
        })
        .collect();
    let mut stats = parts.iter().skip(1).fold(parts[0], |all, part| all.merge(part));
    // Lanes without a query weigh nothing.
    stats.weight[last_q..].fill(f32::INFINITY);

    // column and offset sums
    columns[seen..].fill(0.0);
    let sums: Vec<Vec<f32>> = columns[..seen]
        .par_chunks_mut(CHUNK)
        .enumerate()
        .map_init(tile, |(tile, keys), (chunk, columns)| {
            // Offset of lane l at key j: first + l - j. It lies at `len - 1 - (j - start) + l`, hence never below 0.
            let len = columns.len();
            let mut offsets = vec![0.0; len + BLOCK - 1];
            let mut probabilities = [[0.0; BLOCK]; KEYS];
            for (i, columns) in columns.chunks_mut(KEYS).enumerate() {
                let start = chunk * CHUNK + i * KEYS;
                keys.clear();
                keys.extend(start as u32..(start + columns.len()) as u32);
                tile.probabilities(keys, k, visible, &stats, &mut probabilities);
                for ((j, column), row) in (i * KEYS..).zip(columns).zip(&probabilities) {
                    *column = row.iter().sum();
                    for (offset, x) in offsets[len - 1 - j..][..BLOCK].iter_mut().zip(row) {
                        *offset += x;
                    }
                }
            }
            offsets
        })
        .collect();
    offsets.fill(0.0);
    for (chunk, sums) in sums.iter().enumerate() {
        let end = (chunk * CHUNK + CHUNK).min(seen);
        // Element 0 is lane 0 at the chunk's last key. Negative offsets are masked and hold 0.
        let lowest = first as isize - (end as isize - 1);
        for (i, x) in sums.iter().enumerate() {
            if let Ok(offset) = usize::try_from(lowest + i as isize)
                && offset < offsets.len()
            {
                offsets[offset] += x;
            }
        }
    }
}
