//! Vertical-slash heads: columns and diagonals by the attention of the last 64 queries (paper, Algorithm 2).

use super::Chosen;
use super::plan::Plan;
use crate::backend::Backend;
use crate::backend::params::HeadPlan;
use crate::ops::{self, AttentionShape};
use crate::tensor::{Tensor, View};
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

/// The attention of the last queries by key and by distance.
pub(super) struct Scores<B: Backend> {
    /// f32 `[H, keys]`.
    pub columns: Tensor<B>,
    /// f32 `[H, keys]`.
    pub offsets: Tensor<B>,
}

impl<B: Backend> Scores<B> {
    /// Of vertical-slash heads and of those that may become it; the rows of others are not written.
    /// `share` neighbouring heads share theirs.
    pub fn new(b: &B, shape: &AttentionShape, plan: &Plan, share: usize, q: View<B>, k: View<B>) -> Result<Self> {
        let (heads, keys) = (shape.n_heads, shape.kv_len);
        let scored = |head: &HeadPlan| {
            matches!(head.kind, HeadPlan::VERTICAL_SLASH | HeadPlan::FLEX | HeadPlan::FIT)
                .then_some(HeadPlan::VERTICAL_SLASH)
        };
        let table = Tensor::from_slice(b, DType::U32, [heads, 4], &plan.table(scored))?;
        let mut scores = Self {
            columns: Tensor::alloc(b, DType::F32, [heads, keys])?,
            offsets: Tensor::alloc(b, DType::F32, [heads, keys])?,
        };
        let (columns, offsets) = (scores.columns.view_mut(), scores.offsets.view_mut());
        ops::score_last_queries(b, shape, table.view(), q, k, columns, offsets)?;
        if share > 1 {
            ops::share_scores(b, share, table.view(), scores.columns.view_mut())?;
            ops::share_scores(b, share, table.view(), scores.offsets.view_mut())?;
        }
        Ok(scores)
    }
}

/// Fills columns u32 `[H, 64 * column_tiles]` and offsets u32 `[H, capacity]`, ascending, padded with `u32::MAX`, as many as
/// the counts say; rows of count 0 mean nothing.
pub(super) fn choose<B: Backend>(
    b: &B,
    shape: &AttentionShape,
    scores: &Scores<B>,
    chosen: &mut Chosen<B>,
) -> Result<()> {
    let keys = shape.kv_len;
    let Chosen { columns, offsets, column_count, offset_count, .. } = chosen;
    let (vertical, slash) = (column_count.view(), offset_count.view());
    ops::select_top_k(b, scores.columns.view(), vertical, FORCED_COLUMNS.min(keys), columns.view_mut())?;
    ops::select_top_k(b, scores.offsets.view(), slash, FORCED_OFFSETS.min(keys), offsets.view_mut())
}
