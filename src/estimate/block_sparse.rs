//! Block-sparse heads: for each block of 64 queries the best blocks of 64 keys, by block means (paper, Algorithm 3).

use crate::backend::Backend;
use crate::backend::params::BLOCK;
use crate::ops::{self, AttentionShape, BlockBand};
use crate::tensor::{Tensor, View};
use crate::{DType, Result};

/// Most scores at a time: 64 MiB. All of them at 1M tokens would be 1 GiB a head.
const BAND_SCORES: usize = (64 << 20) / size_of::<f32>();

/// The chosen blocks as bits: u32 `[H, R, ceil(C / 32)]`, for `C = ceil(kv_len / 64)`; the rows of other heads are not
/// written. Row blocks go band by band, so that scores stay small.
pub(super) fn choose<B: Backend>(
    b: &B,
    shape: &AttentionShape,
    table: View<B>,
    q: View<B>,
    k: View<B>,
) -> Result<Tensor<B>> {
    let (heads, d) = (shape.n_heads, shape.head_dim);
    let (row_blocks, key_blocks) = (shape.q_len.div_ceil(BLOCK), shape.kv_len.div_ceil(BLOCK));
    let mut pooled_q = Tensor::alloc(b, DType::F32, [heads, row_blocks, d])?;
    let mut pooled_k = Tensor::alloc(b, DType::F32, [shape.n_kv_heads, key_blocks, d])?;
    ops::pool_blocks(b, q, shape.q_len, shape.q_stride, pooled_q.view_mut())?;
    ops::pool_blocks(b, k, shape.kv_len, shape.k_stride, pooled_k.view_mut())?;

    let band_len = (BAND_SCORES / (heads * key_blocks)).clamp(1, row_blocks);
    let mut mask = Tensor::alloc(b, DType::U32, [heads, row_blocks, key_blocks.div_ceil(32)])?;
    let mut scores = Tensor::alloc(b, DType::F32, [heads, band_len, key_blocks])?;
    for start in (0..row_blocks).step_by(band_len) {
        let band = BlockBand { q_len: shape.q_len, start, q_start: shape.q_start };
        let rows = band_len.min(row_blocks - start);
        if rows < band_len {
            scores = Tensor::alloc(b, DType::F32, [heads, rows, key_blocks])?;
        }
        ops::score_blocks(b, band, table, pooled_q.view(), pooled_k.view(), scores.view_mut())?;
        ops::select_blocks(b, band, table, scores.view(), mask.view_mut())?;
    }
    Ok(mask)
}
