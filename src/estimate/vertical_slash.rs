//! Vertical-slash heads: columns and diagonals by the attention of the last 64 queries (paper, Algorithm 2).

use super::plan::Plan;
use crate::backend::Backend;
use crate::ops::{self, AttentionShape};
use crate::tensor::{Tensor, View, ViewMut};
use crate::{DType, Result};

/// The first columns that every head computes. Not in the paper; in every release of the official code.
pub const FORCED_COLUMNS: usize = 30;

/// The first offsets (the local band) that every head computes. Not in the paper either.
pub const FORCED_OFFSETS: usize = 100;

/// The official code takes at least so many columns.
pub const MIN_COLUMNS: usize = 30;

/// The official code takes at least so many offsets: with fewer than [`FORCED_OFFSETS`], its choice among the forced ones
/// is arbitrary; here the lowest come first.
pub const MIN_OFFSETS: usize = 50;

/// How many columns and offsets a head with these settings takes of `kv_len` keys.
pub fn effective_counts(kv_len: usize, columns: usize, offsets: usize) -> (usize, usize) {
    (kv_len.min(columns.max(MIN_COLUMNS)), kv_len.min(offsets.max(MIN_OFFSETS)))
}

/// Fills columns u32 `[H, 64 * column_tiles]` and offsets u32 `[H, capacity]`, ascending, padded with `u32::MAX`; the rows
/// of other heads are not written.
#[allow(clippy::too_many_arguments, reason = "three inputs and two outputs beside what every operation takes")]
pub(super) fn choose<B: Backend>(
    b: &B,
    shape: &AttentionShape,
    plan: &Plan,
    table: View<B>,
    q: View<B>,
    k: View<B>,
    columns: ViewMut<B>,
    offsets: ViewMut<B>,
) -> Result<()> {
    let (heads, keys) = (shape.n_heads, shape.kv_len);
    let mut column_score = Tensor::alloc(b, DType::F32, [heads, keys])?;
    let mut offset_score = Tensor::alloc(b, DType::F32, [heads, keys])?;
    ops::score_last_queries(b, shape, table, q, k, column_score.view_mut(), offset_score.view_mut())?;

    let counts = Tensor::from_slice(b, DType::U32, [heads], &plan.counts(|head| head.a))?;
    ops::select_top_k(b, column_score.view(), counts.view(), FORCED_COLUMNS.min(keys), columns)?;
    let counts = Tensor::from_slice(b, DType::U32, [heads], &plan.counts(|head| head.b))?;
    ops::select_top_k(b, offset_score.view(), counts.view(), FORCED_OFFSETS.min(keys), offsets)
}
