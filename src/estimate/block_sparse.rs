//! Block-sparse heads: for each block of 64 queries the best blocks of 64 keys, by block means (paper, Algorithm 3).

use super::plan::Plan;
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
    /// `padded`: as the official block-sparse kernel has a short last block, see [`ops::pool_blocks`].
    pub fn new(b: &B, shape: &AttentionShape, q: View<B>, k: View<B>, padded: bool) -> Result<Self> {
        let (row_blocks, key_blocks) = (shape.q_len.div_ceil(BLOCK), shape.kv_len.div_ceil(BLOCK));
        let mut means = Self {
            q: Tensor::alloc(b, DType::F32, [shape.n_heads, row_blocks, shape.head_dim])?,
            k: Tensor::alloc(b, DType::F32, [shape.n_kv_heads, key_blocks, shape.head_dim])?,
        };
        ops::pool_blocks(b, q, shape.q_len, shape.q_stride, padded, means.q.view_mut())?;
        ops::pool_blocks(b, k, shape.kv_len, shape.k_stride, padded, means.k.view_mut())?;
        Ok(means)
    }
}

/// The chosen blocks as bits: u32 `[H, R, ceil(C / 32)]`, for `C = ceil(kv_len / 64)`; the rows of other heads are not
/// written. Row blocks go band by band, so that scores stay small. `table` is the plan on the device, flex heads settled;
/// `means` those of heads that go by weight, where there are any.
pub(super) fn choose<B: Backend>(
    b: &B,
    shape: &AttentionShape,
    plan: &Plan,
    table: View<B>,
    q: View<B>,
    k: View<B>,
    means: Option<&Means<B>>,
) -> Result<Tensor<B>> {
    let heads = shape.n_heads;
    let (row_blocks, key_blocks) = (shape.q_len.div_ceil(BLOCK), shape.kv_len.div_ceil(BLOCK));
    let band_len = (BAND_SCORES / (heads * key_blocks)).clamp(1, row_blocks);
    let mut mask = Tensor::alloc(b, DType::U32, [heads, row_blocks, key_blocks.div_ceil(32)])?;
    let mut scores = Tensor::alloc(b, DType::F32, [heads, band_len, key_blocks])?;
    // Heads with a count of blocks, apart from those that go by weight.
    let top_k = |h: &HeadPlan| (h.kind == HeadPlan::BLOCK_SPARSE && h.c == HeadPlan::TOP_K).then_some(h.kind);
    let padded = match plan.heads.iter().any(|h| top_k(h).is_some()) {
        true => Some(Means::new(b, shape, q, k, true)?),
        false => None,
    };
    let top_k = Tensor::from_slice(b, DType::U32, [heads, 4], &plan.table(top_k))?;
    let mut mass = match means.is_some() {
        true => Some(Tensor::from_slice(b, DType::U32, [heads, WEIGHT_BINS], &vec![0u32; heads * WEIGHT_BINS])?),
        false => None,
    };
    let bands: Vec<usize> = (0..row_blocks).step_by(band_len).collect();
    let score = |scores: &mut Tensor<B>, start: usize| {
        let rows = band_len.min(row_blocks - start);
        if rows != scores.shape().dims()[1] {
            *scores = Tensor::alloc(b, DType::F32, [heads, rows, key_blocks])?;
        }
        let band = BlockBand { q_len: shape.q_len, start, q_start: shape.q_start };
        if let Some(means) = means {
            ops::score_blocks(b, band, table, means.q.view(), means.k.view(), scores.view_mut())?;
        }
        if let Some(means) = &padded {
            ops::score_blocks(b, band, top_k.view(), means.q.view(), means.k.view(), scores.view_mut())?;
        }
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
        if padded.is_some() {
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
