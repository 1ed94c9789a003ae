//! XAttention heads: blocks by the sums along their antidiagonals.
//!
//! Scores only. The selection by them adds the first block and the diagonal on top of the asked mass.

use super::plan::Plan;
use crate::backend::Backend;
use crate::backend::params::{BLOCK, HeadPlan};
use crate::ops::{self, AttentionShape, BlockBand, MatmulInto};
use crate::tensor::{Shape, Tensor, View, ViewMut};
use crate::{DType, Result};

/// Queries and keys gathered by one stride.
pub(super) struct Antidiagonals<B: Backend> {
    stride: usize,
    /// Heads of this stride.
    heads: Vec<usize>,
    /// u32 `[H, 4]`: the plan of the heads of this stride, the others dense.
    table: Tensor<B>,
    /// act `[H, ceil(q_len / stride), stride * D]`, each group in reverse.
    q: Tensor<B>,
    /// act `[KV, ceil(kv_len / stride), stride * D]`.
    k: Tensor<B>,
}

impl<B: Backend> Antidiagonals<B> {
    /// One for each stride of the plan.
    pub fn of(b: &B, shape: &AttentionShape, plan: &Plan, q: View<B>, k: View<B>) -> Result<Vec<Self>> {
        let mut strides: Vec<usize> = plan.strides.iter().copied().filter(|&stride| stride > 0).collect();
        strides.sort_unstable();
        strides.dedup();
        let of = |stride: usize| {
            let (d, act) = (shape.head_dim, b.activation());
            let [q_groups, k_groups] = [shape.q_len, shape.kv_len].map(|len| len.div_ceil(stride));
            let own = |(head, &its): (&HeadPlan, &usize)| match its == stride {
                true => [head.kind, head.a, head.b, head.c],
                false => [HeadPlan::DENSE, 0, 0, 0],
            };
            let table: Vec<u32> = plan.heads.iter().zip(&plan.strides).flat_map(own).collect();
            let mut folded = Self {
                stride,
                heads: (0..shape.n_heads).filter(|&h| plan.strides[h] == stride).collect(),
                table: Tensor::from_slice(b, DType::U32, [shape.n_heads, 4], &table)?,
                q: Tensor::alloc(b, act, [shape.n_heads, q_groups, stride * d])?,
                k: Tensor::alloc(b, act, [shape.n_kv_heads, k_groups, stride * d])?,
            };
            ops::fold_rows(b, q, shape.q_len, shape.q_stride, stride, true, folded.q.view_mut())?;
            ops::fold_rows(b, k, shape.kv_len, shape.k_stride, stride, false, folded.k.view_mut())?;
            Ok(folded)
        };
        strides.into_iter().map(of).collect()
    }

    /// Products of a row block, for all heads.
    pub fn products_each(&self) -> usize {
        let [heads, _, _] = dims(self.q.shape());
        let [_, groups, _] = dims(self.k.shape());
        heads * groups * (BLOCK / self.stride)
    }

    /// Writes the scores of a band, f32 `[H, band, C]`, for the heads of this stride: logarithms of weights. `share`
    /// neighbouring heads share theirs.
    pub fn score(
        &self,
        b: &B,
        shape: &AttentionShape,
        band: BlockBand,
        share: usize,
        mut scores: ViewMut<B>,
    ) -> Result<()> {
        let ([heads, q_groups, width], [_, k_groups, _]) = (dims(self.q.shape()), dims(self.k.shape()));
        let ([_, band_len, key_blocks], each) = (dims(scores.shape()), BLOCK / self.stride);
        let first = band.start * each;
        let rows = (band_len * each).min(q_groups - first);
        let last_query = shape.q_start + shape.q_len.min((band.start + band_len) * BLOCK) - 1;
        let seen = (last_query / self.stride + 1).min(k_groups);
        let mut products = Tensor::alloc(b, DType::F32, [heads, band_len * each, k_groups])?;
        for &head in &self.heads {
            let kv_head = head / (shape.n_heads / shape.n_kv_heads);
            let q = self.q.view().rows(head..head + 1).reshape([q_groups, width]).rows(first..first + rows);
            let k = self.k.view().rows(kv_head..kv_head + 1).reshape([k_groups, width]).rows(0..seen);
            let out = products.view_mut().rows(head..head + 1).reshape([band_len * each, k_groups]).rows(0..rows);
            ops::matmul(b, q, k, None, out, MatmulInto::default())?;
        }
        let scale = shape.scale / self.stride as f32;
        let (table, products) = (self.table.view(), products.view());
        ops::weigh_antidiagonals(b, band, [self.stride, k_groups], scale, table, products, scores.reborrow())?;
        match share > 1 {
            true => ops::share_scores(b, share, table, scores.reshape([heads, band_len * key_blocks])),
            false => Ok(()),
        }
    }
}

fn dims(shape: Shape) -> [usize; 3] {
    [shape.dims()[0], shape.dims()[1], shape.dims()[2]]
}
