//! Cutting an operation over heads and rows into dispatches whose bindings the device can hold.

use super::Wgpu;
use super::buffer::Binding;
use crate::{Error, Result};
use std::ops::Range;

/// How one binding grows with the heads and rows of a dispatch, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Between heads (KV heads where `per_kv_head`).
    pub(super) head: u64,
    /// Between rows; 0 where all rows are bound whatever the band.
    pub(super) row: u64,
    /// What one head and one row take.
    pub(super) one: u64,
    /// Whether it has a head per KV head.
    pub(super) per_kv_head: bool,
}

impl Extent {
    fn bytes(&self, heads: u64, group: u64, rows: u64) -> u64 {
        let heads = if self.per_kv_head { heads.div_ceil(group) } else { heads };
        (heads - 1) * self.head + (rows - 1) * self.row + self.one
    }
}

/// Heads and rows of one dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Band {
    pub(super) heads: Range<u32>,
    pub(super) rows: Range<u32>,
}

impl Band {
    /// KV heads that the heads read.
    pub(super) fn kv_heads(&self, group: u32) -> Range<u32> {
        self.heads.start / group..(self.heads.end - 1) / group + 1
    }
}

/// Some of the equally long parts that a contiguous slice consists of.
pub(super) fn parts<'a>(binding: Binding<'a>, which: &Range<u32>, bytes_each: u64) -> Binding<'a> {
    binding.part(u64::from(which.start) * bytes_each, u64::from(which.end - which.start) * bytes_each)
}

impl Wgpu {
    /// Bands that cover `n_heads` x `n_rows`, rows cut at multiples of `step`, heads either in whole groups that share a KV
    /// head or one at a time. An error where a single head, or `step` rows of it, pass the limit.
    pub(super) fn bands(
        &self,
        op: &'static str,
        n_heads: u32,
        group: u32,
        [n_rows, step]: [u32; 2],
        extents: &[Extent],
    ) -> Result<Vec<Band>> {
        cut(self.band_bytes(), n_heads, group, [n_rows, step], extents).ok_or_else(|| {
            Error::Unsupported(format!(
                "{op}: one head of {n_rows} rows needs a binding above the {} bytes of {}",
                self.band_bytes(),
                self.context.info.name
            ))
        })
    }
}

impl Wgpu {
    /// The most keys of one KV head, a multiple of `step`, that can be bound at a time, but at least `step`.
    pub(super) fn keys_bound(&self, tensors: &[(Binding, u32)], head_dim: u32, step: u32) -> u32 {
        let keys = |(x, row_stride): &(Binding, u32)| {
            let [row, one] = [*row_stride, head_dim].map(|elements| u64::from(elements) * x.element_bytes());
            self.band_bytes().saturating_sub(one) / row.max(1) + 1
        };
        let most = tensors.iter().map(keys).min().unwrap_or(u64::MAX).min(u64::from(u32::MAX / 2)) as u32;
        (most / step * step).max(step)
    }
}

fn cut(limit: u64, n_heads: u32, group: u32, [n_rows, step]: [u32; 2], extents: &[Extent]) -> Option<Vec<Band>> {
    let (mut heads, mut rows) = (n_heads, n_rows);
    // The extent that is too long is halved where it grows faster, until all fit.
    while let Some(long) = extents.iter().find(|e| e.bytes(u64::from(heads), u64::from(group), u64::from(rows)) > limit)
    {
        let heads_grow = u64::from(heads - 1) * long.head >= u64::from(rows - 1) * long.row;
        if heads > 1 && (heads_grow || rows <= step || long.row == 0) {
            heads = match heads / 2 {
                half if half >= group => half - half % group,
                _ => 1,
            };
        } else if rows > step && long.row > 0 {
            rows = (rows / 2).next_multiple_of(step);
        } else {
            return None;
        }
    }
    let mut bands = Vec::new();
    for head in (0..n_heads).step_by(heads as usize) {
        for row in (0..n_rows).step_by(rows as usize) {
            bands.push(Band { heads: head..n_heads.min(head + heads), rows: row..n_rows.min(row + rows) });
        }
    }
    Some(bands)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn q(head: u64, row: u64) -> Extent {
        Extent { head, row, one: 256, per_kv_head: false }
    }

    #[test]
    fn what_fits_is_one_band() {
        assert_eq!(cut(1 << 20, 8, 4, [100, 64], &[q(256, 2048)]).unwrap(), [Band { heads: 0..8, rows: 0..100 }]);
    }

    #[test]
    fn token_major_queries_are_cut_by_rows_and_head_major_ones_by_heads() {
        let bands = cut(1 << 20, 8, 4, [1000, 64], &[q(256, 2048)]).unwrap();
        assert_eq!(bands, [Band { heads: 0..8, rows: 0..512 }, Band { heads: 0..8, rows: 512..1000 }]);
        let bands = cut(1 << 20, 8, 4, [1000, 64], &[q(256 * 1000, 256)]).unwrap();
        assert_eq!(bands, [Band { heads: 0..4, rows: 0..1000 }, Band { heads: 4..8, rows: 0..1000 }]);
    }

    #[test]
    fn keys_are_cut_by_kv_heads_and_a_group_is_whole_or_single() {
        let k = Extent { head: 400_000, row: 0, one: 400_000, per_kv_head: true };
        let bands = cut(1 << 20, 12, 3, [64, 64], &[k]).unwrap();
        assert_eq!(bands.iter().map(|b| b.heads.clone()).collect::<Vec<_>>(), [0..6, 6..12]);
        assert_eq!(bands[1].kv_heads(3), 2..4);
        let wide = q(300_000, 0);
        let bands = cut(1 << 20, 8, 4, [64, 64], &[wide]).unwrap();
        assert_eq!(bands[1].heads, 4..8, "4 heads of 300 KB fill the limit");
        let bands = cut(1 << 19, 8, 4, [64, 64], &[wide]).unwrap();
        assert_eq!((bands.len(), bands[5].kv_heads(4)), (8, 1..2));
    }

    #[test]
    fn one_head_that_does_not_fit_is_refused() {
        assert_eq!(
            cut(1 << 20, 4, 2, [64, 64], &[Extent { head: 2 << 20, row: 0, one: 2 << 20, per_kv_head: true }]),
            None
        );
    }
}
