//! From what the patterns chose to ranges, keep masks, windows and pair counts (paper, Algorithm 4; the official
//! conversion, behaviour-exact, with a query offset).
//!
//! A row block of the call covers queries `[a, b)`, `a = q_start + 64 r`, `b = a + 64`, whether or not the last one is
//! full: the official rule sees padded rows too.

use crate::backend::params::EXACT;
use crate::backend::params::{BLOCK, BuildIndexParams, HeadPlan};
use rayon::prelude::*;

/// [`crate::backend::IndexChoice`] on the host.
#[derive(Clone, Copy)]
pub(super) struct Choice<'a> {
    pub plan: &'a [HeadPlan],
    pub columns: &'a [u32],
    pub offsets: &'a [u32],
    pub offset_count: &'a [u32],
    pub block_mask: &'a [u32],
}

/// [`crate::backend::IndexSlicesMut`] on the host.
pub(super) struct IndexMut<'a> {
    pub row_ranges: &'a mut [[u32; 2]],
    pub ranges: &'a mut [[u32; 2]],
    pub keep: &'a mut [[u32; 2]],
    pub window: &'a mut [[u32; 2]],
    pub pairs: &'a mut [u32],
}

const NO_WINDOW: [u32; 2] = [u32::MAX; 2];

pub(super) fn build_index(p: &BuildIndexParams, choice: Choice, out: IndexMut) {
    let (rows, tiles, budget) = (p.row_blocks as usize, p.column_tiles as usize, p.range_budget as usize);
    for (window, plan) in out.window.iter_mut().zip(choice.plan) {
        *window = if plan.kind == HeadPlan::A_SHAPE { [plan.a, plan.b] } else { NO_WINDOW };
    }
    let keep_row = tiles.max(1);
    let tasks = out.keep.par_chunks_mut(keep_row).zip(out.pairs.par_iter_mut()).enumerate();
    let chosen: Vec<Vec<[u32; 2]>> = tasks
        .map(|(row, (keep, pairs))| {
            let (h, r) = (row / rows, row % rows);
            keep.fill([0; 2]);
            let ranges = row_ranges(p, choice, h, r, keep);
            let columns: u32 = keep.iter().flatten().map(|word| word.count_ones()).sum();
            *pairs = count_pairs(p, r, &ranges, columns, out.window[h]);
            ranges
        })
        .collect();

    // Placement: one row after another; a row that would pass the budget becomes dense in the slot kept for it.
    let mut used = 0;
    for (row, ranges) in chosen.iter().enumerate() {
        let (h, r) = (row / rows, row % rows);
        if used + ranges.len() <= budget {
            out.row_ranges[row] = [used as u32, ranges.len() as u32];
            out.ranges[used..used + ranges.len()].copy_from_slice(ranges);
            used += ranges.len();
        } else {
            let dense = [[0, end_of(p, r)]];
            out.row_ranges[row] = [(budget + row) as u32, 1];
            out.ranges[budget + row] = dense[0];
            out.keep[row * keep_row..][..keep_row].fill([0; 2]);
            out.pairs[row] = count_pairs(p, r, &dense, 0, out.window[h]);
        }
        // A row that is cheaper as one range; its place among the ranges stays empty.
        let sparse = matches!(choice.plan[h].kind, HeadPlan::VERTICAL_SLASH | HeadPlan::BLOCK_SPARSE);
        let causal = causal_pairs(p, r);
        if sparse && p.dense_above < EXACT && out.pairs[row] > causal / EXACT * p.dense_above {
            out.row_ranges[row] = [(budget + row) as u32, 1];
            out.ranges[budget + row] = [0, end_of(p, r)];
            out.keep[row * keep_row..][..keep_row].fill([0; 2]);
            out.pairs[row] = causal;
        }
    }
}

/// Pairs of a dense row block.
fn causal_pairs(p: &BuildIndexParams, r: usize) -> u32 {
    let first = p.q_start + (r * BLOCK) as u32;
    let rows = p.q_len.min(((r + 1) * BLOCK) as u32) - (r * BLOCK) as u32;
    rows * first + rows * (rows + 1) / 2
}

/// `b`: the padded end of row block `r`.
fn end_of(p: &BuildIndexParams, r: usize) -> u32 {
    p.q_start + ((r + 1) * BLOCK) as u32
}

/// The ranges of one row block; a vertical-slash head sets the bits of the columns it keeps.
fn row_ranges(p: &BuildIndexParams, choice: Choice, h: usize, r: usize, keep: &mut [[u32; 2]]) -> Vec<[u32; 2]> {
    let (plan, b) = (choice.plan[h], end_of(p, r));
    match plan.kind {
        HeadPlan::A_SHAPE => a_shape(plan.a, plan.b, b),
        HeadPlan::TRI_SHAPE => {
            let last = p.q_len.min(((r + 1) * BLOCK) as u32) - 1;
            if last + plan.c >= p.q_len { vec![[0, b]] } else { a_shape(plan.a, plan.b, b) }
        }
        HeadPlan::VERTICAL_SLASH => {
            let offsets = &choice.offsets[h * p.offset_capacity as usize..][..choice.offset_count[h] as usize];
            let mut runs = slash_runs(offsets, b);
            let columns = &choice.columns[h * p.column_tiles as usize * BLOCK..][..p.column_tiles as usize * BLOCK];
            keep_columns(columns, &runs, b - BLOCK as u32, keep);
            drop_past(&mut runs, p.kv_len);
            runs
        }
        HeadPlan::BLOCK_SPARSE => {
            let words = p.block_words as usize;
            let mask = &choice.block_mask[(h * p.row_blocks as usize + r) * words..][..words];
            let blocks = block_runs(mask);
            // Never empty: a mask without a bit means the block of the first query.
            let a = b - BLOCK as u32;
            if blocks.is_empty() { vec![[a - a % BLOCK as u32, a - a % BLOCK as u32 + BLOCK as u32]] } else { blocks }
        }
        _ => vec![[0, b]],
    }
}

/// The first `n_init` keys and those that any query of the row block has within `n_local`; the window makes it exact.
fn a_shape(n_init: u32, n_local: u32, b: u32) -> Vec<[u32; 2]> {
    let local = (b - BLOCK as u32 + 1).saturating_sub(n_local);
    if n_init >= local {
        vec![[0, b]]
    } else if n_init == 0 {
        vec![[local, b]]
    } else {
        vec![[0, n_init], [local, b]]
    }
}

/// The official merge of offsets, ascending here, into runs of whole blocks. An offset below `b` asks for the 64 keys
/// before `e = max(b - offset, 64)`; the first opens a run, `e` past the run's end by more than 64 opens another, by less
/// lengthens it by a whole 64 (so a run may pass `e`, and `b`).
fn slash_runs(offsets: &[u32], b: u32) -> Vec<[u32; 2]> {
    const B: u32 = BLOCK as u32;
    let offsets = &offsets[..offsets.partition_point(|&o| o < b)];
    let mut ends = offsets.iter().rev().map(|o| (b - o).max(B));
    // Without any offset the official kernel reads past its list; the row block's own keys stand in.
    let first = ends.next().unwrap_or(b);
    let mut runs = Vec::new();
    let mut run = [first - B, first];
    for e in ends {
        if e > run[1] + B {
            runs.push(run);
            run = [e - B, e];
        } else if e > run[1] {
            run[1] += B;
        }
    }
    runs.push(run);
    runs
}

/// Keeps the columns before the last run and before the first query that lie in no run.
fn keep_columns(columns: &[u32], runs: &[[u32; 2]], first_query: u32, keep: &mut [[u32; 2]]) {
    let limit = runs[runs.len() - 1][0].min(first_query);
    let mut run = 0;
    for (i, &column) in columns.iter().enumerate().take_while(|&(_, &c)| c < limit) {
        while runs[run][1] <= column {
            run += 1;
        }
        if column < runs[run][0] {
            keep[i / BLOCK][i / 32 % 2] |= 1 << (i % 32);
        }
    }
}

/// Drops the blocks that begin at or past `kv_len`. The first run begins at or before the first query, so it stays.
fn drop_past(runs: &mut Vec<[u32; 2]>, kv_len: u32) {
    runs.retain(|run| run[0] < kv_len);
    if let Some([lo, hi]) = runs.last_mut()
        && *hi > kv_len
    {
        *hi = *lo + (kv_len - *lo).next_multiple_of(BLOCK as u32);
    }
}

/// Runs of set bits as ranges of keys.
fn block_runs(mask: &[u32]) -> Vec<[u32; 2]> {
    let mut runs: Vec<[u32; 2]> = Vec::new();
    for (i, &word) in mask.iter().enumerate() {
        let mut bits = word;
        while bits != 0 {
            let start = (i * 32 + bits.trailing_zeros() as usize) as u32 * BLOCK as u32;
            bits &= bits - 1;
            match runs.last_mut() {
                Some(run) if run[1] == start => run[1] += BLOCK as u32,
                _ => runs.push([start, start + BLOCK as u32]),
            }
        }
    }
    runs
}

/// Pairs that attention computes: keys of the ranges up to each query and within the window, and every kept column.
fn count_pairs(p: &BuildIndexParams, r: usize, ranges: &[[u32; 2]], columns: u32, [n_init, n_local]: [u32; 2]) -> u32 {
    let first = p.q_start + (r * BLOCK) as u32;
    let rows = p.q_len.min(((r + 1) * BLOCK) as u32) - (r * BLOCK) as u32;
    let windowed = [n_init, n_local] != NO_WINDOW;
    let in_ranges = ranges.iter().map(|&[start, end]| {
        if end <= first + 1 && !windowed {
            return (end - start) * rows;
        }
        let per_query = (first..first + rows).map(|i| {
            let end = end.min(i + 1);
            let local = if windowed { (i + 1).saturating_sub(n_local).max(start) } else { start };
            let sink = if windowed { n_init.min(end).min(local).saturating_sub(start) } else { 0 };
            end.saturating_sub(local) + sink
        });
        per_query.sum()
    });
    in_ranges.sum::<u32>() + columns * rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row block 3 of the reference's first worked example (256 tokens): blocks 92, 191, 255.
    #[test]
    fn runs_of_the_worked_example() {
        assert_eq!(slash_runs(&[0, 1, 100], 256), [[92, 156], [191, 319]]);
        let mut runs = vec![[92, 156], [191, 319]];
        drop_past(&mut runs, 255);
        assert_eq!(runs, [[92, 156], [191, 255]]);
        let mut keep = [[0; 2]];
        keep_columns(&[0, 5, 70, 130, 170, u32::MAX], &[[92, 156], [191, 319]], 192, &mut keep);
        assert_eq!(keep, [[0b10111, 0]]);
    }

    #[test]
    fn a_shape_merges_where_it_touches() {
        assert_eq!(a_shape(16, 64, 320), [[0, 16], [193, 320]]);
        assert_eq!(a_shape(193, 64, 320), [[0, 320]]);
        assert_eq!(a_shape(0, 64, 320), [[193, 320]]);
        assert_eq!(a_shape(4, 320, 320), [[0, 320]]);
    }
}
