//! The part of an index that lies within some keys.

use super::attention::Index;
use crate::backend::params::{BLOCK, ClipIndexParams};
use rayon::prelude::*;

/// `row_ranges [n_heads, row_blocks, 2]`, `ranges` as long as the index's, `keep [n_heads, row_blocks, column_tiles, 2]`.
pub(super) fn clip_index(
    p: &ClipIndexParams,
    index: Index,
    row_ranges: &mut [[u32; 2]],
    ranges: &mut [[u32; 2]],
    keep: &mut [[u32; 2]],
) {
    let keys = p.key_start..p.key_end;
    for (out, &[at, n]) in row_ranges.iter_mut().zip(index.row_ranges) {
        let own = at as usize..(at + n) as usize;
        let (mut first, mut count) = (0, 0);
        for (i, (range, &[start, end])) in ranges[own.clone()].iter_mut().zip(&index.ranges[own]).enumerate() {
            let cut = [start.max(keys.start), end.min(keys.end)];
            if cut[0] < cut[1] {
                first = if count == 0 { i as u32 } else { first };
                count += 1;
                *range = cut;
            }
        }
        *out = [at + first, count];
    }
    let (rows, tiles) = (p.row_blocks as usize, p.column_tiles as usize);
    // Without columns there is one mask a row block all the same, which nothing reads.
    let masks = p.n_heads as usize * rows * tiles;
    keep[..masks].par_iter_mut().zip(&index.keep[..masks]).enumerate().for_each(|(i, (out, kept))| {
        let (head, tile) = (i / (rows * tiles), i % tiles);
        let columns = &index.columns[(head * tiles + tile) * BLOCK..][..BLOCK];
        for (word, columns) in columns.chunks_exact(32).enumerate() {
            let inside = columns.iter().enumerate().filter(|(_, column)| keys.contains(column));
            out[word] = kept[word] & inside.fold(0, |bits, (bit, _)| bits | 1 << bit);
        }
    });
}
