//! From chosen columns, offsets and blocks to an index.

use crate::attention::{LENGTHS, Lengths};
use crate::common::naive::{BLOCK, Sets};
use crate::common::{Rng, for_each_backend};
use crate::u32s;
use minference::backend::Backend;
use minference::backend::params::HeadPlan;
use minference::estimate::EXACT;
use minference::index::{IndexLayout, SparseIndex};
use minference::ops;
use minference::tensor::Tensor;

/// Sets of every kind, in turn, for the heads of a call.
pub fn mixed_sets(&(q_len, kv_len, q_start, heads, ..): &Lengths, rng: &mut Rng) -> Vec<Sets> {
    let head = |h: usize| match h % 5 {
        0 => {
            let columns = rng.choose(kv_len, 1 + rng_below(h, kv_len.min(70)));
            let mut offsets = rng.choose(kv_len, 1 + kv_len / 40);
            offsets.insert(0, 0);
            offsets.dedup();
            Sets::VerticalSlash { columns, offsets }
        }
        1 => Sets::AShape { n_init: [4, 0, 70][h / 4 % 3], n_local: [20, 64, 130][h / 4 % 3] },
        2 => {
            let row = |r: usize| {
                let a = q_start + r * BLOCK;
                let seen = (q_start + q_len.min((r + 1) * BLOCK) - 1) / BLOCK + 1;
                let mut blocks = rng.choose(seen, 1 + (r + h) % seen);
                // Without the block of the first query a row could be empty where q_start is not aligned.
                blocks.push((a / BLOCK) as u32);
                blocks.sort_unstable();
                blocks.dedup();
                blocks
            };
            Sets::Blocks((0..q_len.div_ceil(BLOCK)).map(row).collect())
        }
        3 => Sets::TriShape { n_init: 4, n_local: [100, 20][h / 5 % 2], n_last: [70, 3][h / 5 % 2] },
        _ => Sets::Dense,
    };
    (0..heads).map(head).collect()
}

/// A number below `n` that differs from head to head.
fn rng_below(h: usize, n: usize) -> usize {
    (h * 37 + 11) % n
}

/// Builds the index of given sets on the device.
pub fn build<B: Backend>(b: &B, sets: &[Sets], lengths: &Lengths, range_budget: usize) -> SparseIndex<B> {
    build_or_dense(b, sets, lengths, range_budget, EXACT)
}

/// The same, dense above a threshold.
fn build_or_dense<B: Backend>(
    b: &B,
    sets: &[Sets],
    lengths: &Lengths,
    range_budget: usize,
    dense_above: u32,
) -> SparseIndex<B> {
    let &(q_len, kv_len, q_start, ..) = lengths;
    let lists = |pick: fn(&Sets) -> &[u32]| sets.iter().map(pick).collect::<Vec<_>>();
    let columns = lists(|s| if let Sets::VerticalSlash { columns, .. } = s { columns } else { &[] });
    let offsets = lists(|s| if let Sets::VerticalSlash { offsets, .. } = s { offsets } else { &[] });
    let longest = |lists: &[&[u32]]| lists.iter().map(|l| l.len()).max().unwrap_or(0);
    let padded = |lists: &[&[u32]], capacity: usize| {
        let pad = |list: &&[u32]| [list.to_vec(), vec![u32::MAX; capacity - list.len()]].concat();
        lists.iter().flat_map(pad).collect::<Vec<_>>()
    };
    let (rows, words) = (q_len.div_ceil(BLOCK), kv_len.div_ceil(BLOCK).div_ceil(32));
    let mut mask = vec![0u32; sets.len() * rows * words];
    let mut plan = Vec::new();
    for (h, set) in sets.iter().enumerate() {
        plan.extend(match set {
            Sets::Dense => [HeadPlan::DENSE, 0, 0, 0],
            Sets::AShape { n_init, n_local } => [HeadPlan::A_SHAPE, *n_init as u32, *n_local as u32, 0],
            Sets::TriShape { n_init, n_local, n_last } => {
                [HeadPlan::TRI_SHAPE, *n_init as u32, *n_local as u32, *n_last as u32]
            }
            Sets::VerticalSlash { columns, offsets } => {
                [HeadPlan::VERTICAL_SLASH, columns.len() as u32, offsets.len() as u32, 0]
            }
            Sets::Blocks(_) => [HeadPlan::BLOCK_SPARSE, 1, 0, 0],
        });
        if let Sets::Blocks(blocks) = set {
            for (r, &c) in blocks.iter().enumerate().flat_map(|(r, row)| row.iter().map(move |c| (r, c))) {
                mask[(h * rows + r) * words + c as usize / 32] |= 1 << (c % 32);
            }
        }
    }
    let column_tiles = longest(&columns).div_ceil(BLOCK);
    let layout = IndexLayout { n_heads: sets.len(), q_len, kv_len, q_start, column_tiles, range_budget };
    let mut index = SparseIndex::alloc(b, layout).unwrap();
    index.columns.write(b, &padded(&columns, BLOCK * column_tiles.max(1))).unwrap();
    let capacity = longest(&offsets).max(1);
    let counts: Vec<u32> = offsets.iter().map(|l| l.len() as u32).collect();
    let plan = u32s(b, [sets.len(), 4], &plan);
    let offsets = u32s(b, [sets.len(), capacity], &padded(&offsets, capacity));
    let offset_count = u32s(b, [sets.len()], &counts);
    let block_mask = u32s(b, [sets.len(), rows, words], &mask);
    let choice = ops::Choice {
        plan: plan.view(),
        offsets: offsets.view(),
        offset_count: offset_count.view(),
        block_mask: block_mask.view(),
        dense_above,
    };
    ops::build_index(b, choice, &mut index).unwrap();
    index
}

/// What each head of an index computes, as masks, after checking every promise that `SparseIndex` makes; and whether each
/// row fell back to dense for want of room.
fn masks_of<B: Backend>(b: &B, index: &SparseIndex<B>) -> (Vec<Vec<bool>>, Vec<bool>) {
    let l = index.layout;
    let rows = l.row_blocks();
    let read = |t: &Tensor<B>| t.to_u32(b).unwrap();
    let (row_ranges, ranges, columns) = (read(&index.row_ranges), read(&index.ranges), read(&index.columns));
    let (keep, window, pairs) = (read(&index.keep), read(&index.window), read(&index.pairs));
    let tiles = l.column_tiles.max(1);
    let (mut masks, mut dense) = (vec![vec![false; l.q_len * l.kv_len]; l.n_heads], vec![]);
    for (h, mask) in masks.iter_mut().enumerate() {
        for r in 0..rows {
            let (row, first_query) = (h * rows + r, l.q_start + r * BLOCK);
            let (first, count) = (row_ranges[2 * row] as usize, row_ranges[2 * row + 1] as usize);
            assert!(count > 0, "head {h} row block {r} is empty");
            dense.push(first == l.range_budget + row);
            assert!(
                dense[row] || first + count <= l.range_budget,
                "ranges {first}..{} outside the budget",
                first + count
            );
            let mut keys = vec![];
            let mut end_before = 0;
            for range in ranges[2 * first..2 * (first + count)].chunks_exact(2) {
                let (start, end) = (range[0] as usize, range[1] as usize);
                assert!(start < end && (start >= end_before), "range {start}..{end} after {end_before}");
                assert!(start < l.kv_len, "range {start}..{end} beyond the keys");
                keys.extend(start..end);
                end_before = end;
            }
            for bit in 0..tiles * BLOCK {
                if keep[(row * tiles + bit / BLOCK) * 2 + bit / 32 % 2] >> (bit % 32) & 1 == 1 {
                    let column = columns[h * tiles * BLOCK + bit] as usize;
                    assert!(column < first_query, "column {column} needs a causal test in row block {r}");
                    keys.push(column);
                }
            }
            let mut computed = 0;
            for i in r * BLOCK..l.q_len.min((r + 1) * BLOCK) {
                let position = l.q_start + i;
                for &j in keys.iter().filter(|&&j| j <= position) {
                    let [n_init, n_local] = [window[2 * h], window[2 * h + 1]];
                    let windowed = [n_init, n_local] != [u32::MAX; 2];
                    if !windowed || j < n_init as usize || position - j < n_local as usize {
                        let cell = &mut mask[i * l.kv_len + j];
                        assert!(!*cell, "head {h}: key {j} counts twice for query {i}");
                        *cell = true;
                        computed += 1;
                    }
                }
            }
            assert_eq!(pairs[row], computed, "pairs of head {h} row block {r}");
        }
    }
    (masks, dense)
}

for_each_backend!(build_index, |b| {
    for (case, lengths) in LENGTHS.iter().enumerate() {
        let &(q_len, kv_len, q_start, heads, ..) = lengths;
        // All kinds at every length, whatever the number of heads.
        let lengths = &(q_len, kv_len, q_start, heads.max(5) + case % 3, 1, 8);
        let sets = mixed_sets(lengths, &mut Rng(case as u64));
        let index = build(b, &sets, lengths, 4096);
        let (masks, dense) = masks_of(b, &index);
        for (h, (set, mask)) in sets.iter().zip(&masks).enumerate() {
            assert!(*mask == set.mask(q_len, kv_len, q_start), "case {case} head {h}: {set:?}");
        }
        assert!(!dense.contains(&true), "case {case}: a row overflowed");
    }
});

for_each_backend!(build_index_without_offset_0, |b| {
    // Far offsets only: columns between them and the queries; and a first row block without any offset.
    let lengths = (200, 330, 130, 2, 1, 8);
    let columns = vec![0, 3, 100, 140, 180, 190, 250, 300];
    let sets = [
        Sets::VerticalSlash { columns: columns.clone(), offsets: vec![31, 33, 170] },
        Sets::VerticalSlash { columns, offsets: vec![150] },
    ];
    let (masks, _) = masks_of(b, &build(b, &sets, &lengths, 64));
    for (h, (set, mask)) in sets.iter().zip(&masks).enumerate() {
        assert!(*mask == set.mask(200, 330, 130), "head {h}");
    }
    let none = [Sets::VerticalSlash { columns: vec![5], offsets: vec![300] }];
    let index = build(b, &none, &(64, 64, 0, 1, 1, 8), 64);
    let (masks, _) = masks_of(b, &index);
    assert!(masks[0] == Sets::Dense.mask(64, 64, 0), "no offset reaches: the row block's own keys");
});

for_each_backend!(build_index_over_budget, |b| {
    let lengths = (300, 428, 128, 6, 1, 8);
    let sets = mixed_sets(&lengths, &mut Rng(3));
    for budget in [0, 7, 40] {
        let (masks, dense) = masks_of(b, &build(b, &sets, &lengths, budget));
        assert!(dense.contains(&true), "budget {budget} is enough");
        for (h, (set, mask)) in sets.iter().zip(&masks).enumerate() {
            let (exact, every) = (set.mask(300, 428, 128), Sets::Dense.mask(300, 428, 128));
            for i in 0..300 {
                // A window is exact whatever the ranges are.
                let full = dense[h * 5 + i / BLOCK] && !matches!(set, Sets::AShape { .. });
                let want = if full { &every } else { &exact };
                assert!(mask[i * 428..][..428] == want[i * 428..][..428], "budget {budget} head {h} query {i}");
            }
        }
    }
});

for_each_backend!(build_index_dense_above, |b| {
    let lengths = (300, 428, 128, 6, 1, 8);
    let sets = mixed_sets(&lengths, &mut Rng(3));
    let every = Sets::Dense.mask(300, 428, 128);
    for dense_above in [0, 60, 128, 200, 255] {
        let (masks, dense) = masks_of(b, &build_or_dense(b, &sets, &lengths, 4096, dense_above));
        let mut filled = [0, 0];
        for (h, (set, mask)) in sets.iter().zip(&masks).enumerate() {
            let exact = set.mask(300, 428, 128);
            for r in 0..5 {
                let rows = r * BLOCK * 428..300.min((r + 1) * BLOCK) * 428;
                let pairs = |mask: &[bool]| mask[rows.clone()].iter().filter(|&&computed| computed).count() as u32;
                let (chosen, all) = (pairs(&exact), pairs(&every));
                let may = matches!(set, Sets::VerticalSlash { .. } | Sets::Blocks(_));
                let full = may && chosen > all / 256 * dense_above;
                assert_eq!(dense[h * 5 + r], full, "above {dense_above}, head {h}, row block {r}: {chosen} of {all}");
                let want = if full { &every } else { &exact };
                assert!(mask[rows.clone()] == want[rows.clone()], "above {dense_above}, head {h}, row block {r}");
                filled[usize::from(full)] += 1;
            }
        }
        assert!(filled[0] > 0 && (filled[1] > 0 || dense_above > 200), "above {dense_above}: {filled:?}");
    }
});
