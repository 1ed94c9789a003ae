//! [`SparseIndex`]: which keys each block of 64 queries computes. The one value between patterns and kernels.
//!
//! [`HostIndex`] is the same in main memory, for tests, pictures, files and indices of one's own:
//!
//! ```
//! use minference::index::HostIndex;
//!
//! // One head, 128 queries: the first row block computes keys 0..64, the second keys 64..128 and the single key 5.
//! let index = HostIndex {
//!     n_heads: 1,
//!     q_len: 128,
//!     kv_len: 128,
//!     q_start: 0,
//!     range_ptr: vec![0, 1, 2],
//!     ranges: vec![[0, 64], [64, 128]],
//!     column_ptr: vec![0, 0, 1],
//!     columns: vec![5],
//!     window: vec![[-1, -1]],
//! };
//! index.validate()?;
//! assert_eq!(index.pairs(), 2 * (64 * 65 / 2) + 64);
//! assert_eq!(index.density(), index.pairs() as f64 / (128. * 129. / 2.));
//! # Ok::<(), minference::Error>(())
//! ```

mod host;

pub use host::{HostIndex, IndexRow};

use crate::backend::params::BLOCK;
use crate::backend::{Backend, IndexSlices};
use crate::tensor::Tensor;
use crate::{DType, Error, Result};

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

    /// Pairs of a query and a key that causal attention of one head computes.
    pub fn causal_pairs(&self) -> u64 {
        causal_pairs(self.q_len, self.q_start)
    }

    /// Bytes of device memory of the index.
    pub fn bytes(&self) -> u64 {
        let (h, r, t) = (self.n_heads as u64, self.row_blocks() as u64, self.column_tiles.max(1) as u64);
        let ranges = self.range_budget as u64 + h * r;
        8 * (h * r + ranges + h * r * t + h) + 4 * (h * BLOCK as u64 * t + h * r)
    }
}

/// Pairs of one causal head: query `i` sees `q_start + i + 1` keys.
pub(crate) fn causal_pairs(q_len: usize, q_start: usize) -> u64 {
    let (n, start) = (q_len as u64, q_start as u64);
    n * start + n * (n + 1) / 2
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
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn alloc(backend: &B, layout: IndexLayout) -> Result<Self> {
        let columns = Tensor::alloc(backend, DType::U32, [layout.n_heads, BLOCK * layout.column_tiles.max(1)])?;
        Self::with_columns(backend, layout, columns)
    }

    /// Room for an index whose columns are already chosen: u32 `[n_heads, 64 * max(column_tiles, 1)]`.
    pub(crate) fn with_columns(backend: &B, layout: IndexLayout, columns: Tensor<B>) -> Result<Self> {
        let (h, r, t) = (layout.n_heads, layout.row_blocks(), layout.column_tiles);
        Ok(Self {
            row_ranges: Tensor::alloc(backend, DType::U32, [h, r, 2])?,
            ranges: Tensor::alloc(backend, DType::U32, [layout.range_budget + h * r, 2])?,
            columns,
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

    /// Computed pairs over causal pairs, over all heads. Waits for the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn density(&self, backend: &B) -> Result<f64> {
        let pairs: u64 = self.pairs.to_u32(backend)?.into_iter().map(u64::from).sum();
        Ok(pairs as f64 / (self.layout.n_heads as u64 * self.layout.causal_pairs()) as f64)
    }

    /// Brings the index to main memory. Waits for the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn to_host(&self, backend: &B) -> Result<HostIndex> {
        let l = self.layout;
        let (rows, tiles) = (l.n_heads * l.row_blocks(), l.column_tiles);
        let row_ranges: Vec<[u32; 2]> = pairs_of(self.row_ranges.to_u32(backend)?);
        let ranges: Vec<[u32; 2]> = pairs_of(self.ranges.to_u32(backend)?);
        let (columns, keep) = (self.columns.to_u32(backend)?, self.keep.to_u32(backend)?);
        let mut host = HostIndex::empty(l.n_heads, l.q_len, l.kv_len, l.q_start);
        for (row, &[first, count]) in row_ranges.iter().enumerate() {
            let found = ranges.get(first as usize..first as usize + count as usize).ok_or_else(|| {
                Error::Device(format!("index: row {row}: ranges {first} + {count} of {}", ranges.len()))
            })?;
            host.ranges.extend(found.iter().map(|r| r.map(|key| key as i32)));
            host.range_ptr.push(host.ranges.len() as i64);
            let head = row / l.row_blocks();
            for tile in 0..tiles {
                for lane in 0..BLOCK {
                    if keep[(row * tiles + tile) * 2 + lane / 32] >> (lane % 32) & 1 == 1 {
                        host.columns.push(columns[(head * tiles + tile) * BLOCK + lane] as i32);
                    }
                }
            }
            host.column_ptr.push(host.columns.len() as i64);
        }
        debug_assert_eq!(host.range_ptr.len(), rows + 1);
        // `u32::MAX` where there is no window is -1.
        host.window = self.window.to_u32(backend)?.chunks_exact(2).map(|w| [w[0] as i32, w[1] as i32]).collect();
        Ok(host)
    }
}

/// Values two by two.
fn pairs_of(values: Vec<u32>) -> Vec<[u32; 2]> {
    values.chunks_exact(2).map(|v| [v[0], v[1]]).collect()
}
