//! Block-sparse heads: for each block of 64 queries the best blocks of 64 keys, by block means (paper, Algorithm 3).

use super::antidiagonals::Antidiagonals;
use super::plan::{IndexLimits, Plan};
use crate::backend::Backend;
use crate::backend::params::{BLOCK, HeadPlan};
use crate::ops::{self, AttentionShape, BlockBand, WEIGHT_BINS};
use crate::tensor::{Tensor, View};
use crate::{DType, Result};

/// Most scores at a time: 64 MiB. All of them at 1M tokens would be 1 GiB a head.
const BAND_SCORES: usize = (64 << 20) / size_of::<f32>();

/// Means of blocks of 64 queries, f32 `[H, R, D]`, and of 64 keys, f32 `[KV, C, D]`.
pub(super) struct Means<B: Backend> {
    q: Tensor<B>,
    pub k: Tensor<B>,
}

impl<B: Backend> Means<B> {
    /// `padded`: as the official block-sparse kernel has a short last block, see [`ops::pool_blocks`]. `share` neighbouring
    /// heads share those of their queries, of the heads of the plan that `go` by them.
    pub fn new(
        b: &B,
        shape: &AttentionShape,
        [q, k]: [View<B>; 2],
        padded: bool,
        share: usize,
        plan: &Plan,
        go: fn(&HeadPlan) -> bool,
    ) -> Result<Self> {
        let (row_blocks, key_blocks) = (shape.q_len.div_ceil(BLOCK), shape.kv_len.div_ceil(BLOCK));
        let mut means = Self {
            q: Tensor::alloc(b, DType::F32, [shape.n_heads, row_blocks, shape.head_dim])?,
            k: Tensor::alloc(b, DType::F32, [shape.n_kv_heads, key_blocks, shape.head_dim])?,
        };
        ops::pool_blocks(b, q, shape.q_len, shape.q_stride, padded, means.q.view_mut())?;
        ops::pool_blocks(b, k, shape.kv_len, shape.k_stride, padded, means.k.view_mut())?;
        if share > 1 {
            let table = plan.table(|head| go(head).then_some(HeadPlan::BLOCK_SPARSE));
            let table = Tensor::from_slice(b, DType::U32, [shape.n_heads, 4], &table)?;
            let q = means.q.view_mut().reshape([shape.n_heads, row_blocks * shape.head_dim]);
            ops::share_scores(b, share, table.view(), q)?;
        }
        Ok(means)
    }
}

/// What blocks are judged by.
pub(super) struct By<'a, B: Backend> {
    /// Where the plan has heads that go by them.
    pub means: Option<&'a Means<B>>,
    /// One for each stride of the plan.
    pub folds: &'a [Antidiagonals<B>],
    /// So many neighbouring heads share their scores.
    pub share: usize,
}

/// The chosen blocks as bits: u32 `[H, R, ceil(C / 32)]`, for `C = ceil(kv_len / 64)`; the rows of other heads are not
/// written. Row blocks go band by band, so that scores stay small. `table` is the plan on the device, flex heads settled;
/// `by` what heads that go by weight are judged by.
pub(super) fn choose<B: Backend>(
    b: &B,
    shape: &AttentionShape,
    plan: &Plan,
    table: View<B>,
    q: View<B>,
    k: View<B>,
    by: By<B>,
) -> Result<Tensor<B>> {
    let heads = shape.n_heads;
    let (row_blocks, key_blocks) = (shape.q_len.div_ceil(BLOCK), shape.kv_len.div_ceil(BLOCK));
    let products = by.folds.iter().map(Antidiagonals::products_each).max().unwrap_or(0);
    let most = (4 * BAND_SCORES).min(IndexLimits::of(b).part_bytes as usize / size_of::<f32>());
    let band_len = (BAND_SCORES / (heads * key_blocks)).min(most / products.max(1)).clamp(1, row_blocks);
    let mut mask = Tensor::alloc(b, DType::U32, [heads, row_blocks, key_blocks.div_ceil(32)])?;
    let mut scores = Tensor::alloc(b, DType::F32, [heads, band_len, key_blocks])?;
    // Heads with a count of blocks, apart from those that go by weight.
    let top_k = |h: &HeadPlan| (h.kind == HeadPlan::BLOCK_SPARSE && h.c == HeadPlan::TOP_K).then_some(h.kind);
    let padded = match plan.heads.iter().any(|h| top_k(h).is_some()) {
        true => {
            let means = Means::new(b, shape, [q, k], true, by.share, plan, |h| h.c == HeadPlan::TOP_K)?;
            Some((means, Tensor::from_slice(b, DType::U32, [heads, 4], &plan.table(top_k))?))
        }
        false => None,
    };
    let mut mass = match plan.weighs() {
        true if plan.uses(HeadPlan::FLEX) => {
            Some(Tensor::from_slice(b, DType::U32, [heads, WEIGHT_BINS], &vec![0u32; heads * WEIGHT_BINS])?)
        }
        // Nothing is added up, and nothing read.
        true => Some(Tensor::alloc(b, DType::U32, [heads, WEIGHT_BINS])?),
        false => None,
    };
    let bands: Vec<usize> = (0..row_blocks).step_by(band_len).collect();
    let score = |scores: &mut Tensor<B>, start: usize| {
        let rows = band_len.min(row_blocks - start);
        if rows != scores.shape().dims()[1] {
            *scores = Tensor::alloc(b, DType::F32, [heads, rows, key_blocks])?;
        }
        let band = BlockBand { q_len: shape.q_len, start, q_start: shape.q_start };
        if let Some(means) = by.means {
            ops::score_blocks(b, band, table, means.q.view(), means.k.view(), scores.view_mut())?;
        }
        if let Some((means, top_k)) = &padded {
            ops::score_blocks(b, band, top_k.view(), means.q.view(), means.k.view(), scores.view_mut())?;
        }
        by.folds.iter().try_for_each(|folded| folded.score(b, shape, band, by.share, scores.view_mut()))?;
        Ok(band)
    };
    // Flex heads choose among all their blocks together: the mass of all bands comes first.
    let flex = plan.uses(HeadPlan::FLEX);
    if flex && bands.len() > 1 {
        for &start in &bands {
            let band = score(&mut scores, start)?;
            if let Some(mass) = &mut mass {
                ops::weigh_blocks(b, band, shape.scale, table, scores.view(), mass.view_mut())?;
            }
        }
    }
    for &start in &bands {
        let band = score(&mut scores, start)?;
        if let Some((_, top_k)) = &padded {
            ops::select_blocks(b, band, top_k.view(), scores.view(), mask.view_mut())?;
        }
        if let Some(mass) = &mut mass {
            if flex && bands.len() == 1 {
                ops::weigh_blocks(b, band, shape.scale, table, scores.view(), mass.view_mut())?;
            }
            ops::select_weighed_blocks(b, band, shape.scale, table, scores.view(), mass.view(), mask.view_mut())?;
        }
    }
    Ok(mask)
}
