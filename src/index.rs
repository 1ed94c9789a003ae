//! [`SparseIndex`]: which keys each block of 64 queries computes. The one value between patterns and kernels.

use crate::backend::params::BLOCK;
use crate::backend::{Backend, IndexSlices};
use crate::tensor::Tensor;
use crate::{DType, Result};

/// The sizes of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexLayout {
    /// Query heads.
    pub n_heads: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Key position of the first query.
    pub q_start: usize,
    /// Tiles of 64 columns per head.
    pub column_tiles: usize,
    /// Ranges that all rows may use together, besides one kept for each row.
    pub range_budget: usize,
}

impl IndexLayout {
    /// Blocks of 64 queries, the last one possibly short.
    pub fn row_blocks(&self) -> usize {
        self.q_len.div_ceil(BLOCK)
    }
}

/// The index of all heads of one layer, in device memory.
///
/// For each head and block of 64 queries: key **ranges** `[start, end)`, ascending and disjoint, any integers (an end may
/// pass the row block and `kv_len`: kernels mask causality and length), and single **columns**, which lie before the row
/// block's first query and in no range, so that they need no causal test and no key counts twice. A-shape heads carry an
/// element-exact **window** besides. No row block is empty.
pub struct SparseIndex<B: Backend> {
    /// The sizes.
    pub layout: IndexLayout,
    /// u32 `[n_heads, row_blocks, 2]`: first range and number of ranges.
    pub row_ranges: Tensor<B>,
    /// u32 `[range_budget + n_heads * row_blocks, 2]`: start and end.
    pub ranges: Tensor<B>,
    /// u32 `[n_heads, 64 * column_tiles]`: ascending, padded with `u32::MAX`.
    pub columns: Tensor<B>,
    /// u32 `[n_heads, row_blocks, column_tiles, 2]`: which columns each row block computes, low word first.
    pub keep: Tensor<B>,
    /// u32 `[n_heads, 2]`: `n_init`, `n_local`, or `u32::MAX` twice.
    pub window: Tensor<B>,
    /// u32 `[n_heads, row_blocks]`: pairs computed, clipped to `j <= i < N`.
    pub pairs: Tensor<B>,
}

impl<B: Backend> SparseIndex<B> {
    /// Room for an index, not filled.
    pub fn alloc(backend: &B, layout: IndexLayout) -> Result<Self> {
        let (h, r, t) = (layout.n_heads, layout.row_blocks(), layout.column_tiles);
        Ok(Self {
            row_ranges: Tensor::alloc(backend, DType::U32, [h, r, 2])?,
            ranges: Tensor::alloc(backend, DType::U32, [layout.range_budget + h * r, 2])?,
            columns: Tensor::alloc(backend, DType::U32, [h, BLOCK * t.max(1)])?,
            keep: Tensor::alloc(backend, DType::U32, [h, r, t.max(1), 2])?,
            window: Tensor::alloc(backend, DType::U32, [h, 2])?,
            pairs: Tensor::alloc(backend, DType::U32, [h, r])?,
            layout,
        })
    }

    /// What the attention kernel reads.
    pub fn slices(&self) -> IndexSlices<'_, B> {
        IndexSlices {
            row_ranges: self.row_ranges.view().slice(),
            ranges: self.ranges.view().slice(),
            columns: self.columns.view().slice(),
            keep: self.keep.view().slice(),
            window: self.window.view().slice(),
        }
    }
}
