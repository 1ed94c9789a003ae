//! Heads that are decided on the device: flex heads (FlexPrefill), how many columns and diagonals they need, and whether blocks
//! serve them better; recall heads, their threshold.

use super::Chosen;
use super::block_sparse::Means;
use super::plan::Plan;
use super::vertical_slash::{FORCED_COLUMNS, FORCED_OFFSETS, Scores};
use crate::backend::Backend;
use crate::backend::params::{BLOCK, HeadBudget, HeadPlan};
use crate::ops::{self, AttentionShape, BlockBand, Undecided};
use crate::tensor::{Tensor, View};
use crate::{DType, Result};

/// Writes plan and counts of every flex and recall head.
pub(super) fn settle<B: Backend>(
    b: &B,
    shape: &AttentionShape,
    plan: &Plan,
    share: usize,
    scores: &mut Scores<B>,
    means: &Means<B>,
    q: View<B>,
    chosen: &mut Chosen<B>,
) -> Result<()> {
    let (heads, last) = (shape.n_heads, shape.q_len.min(BLOCK));
    let budget = upload(b, &plan.budgets)?;
    let unit = 1.0 / last as f32;
    if plan.uses(HeadPlan::FLEX) {
        count_lines(b, plan, scores, unit, &budget, chosen)?;
    }

    // the last queries' mean against the means of all key blocks
    let mut mean = Tensor::alloc(b, DType::F32, [heads, 1, shape.head_dim])?;
    let q = q.from_element((shape.q_len - last) * shape.q_stride[0]);
    ops::pool_blocks(b, q, last, shape.q_stride, false, mean.view_mut())?;
    let flex = |head: &HeadPlan| matches!(head.kind, HeadPlan::FLEX | HeadPlan::FIT).then_some(HeadPlan::BLOCK_SPARSE);
    let flex = Tensor::from_slice(b, DType::U32, [heads, 4], &plan.table(flex))?;
    if share > 1 {
        ops::share_scores(b, share, flex.view(), mean.view_mut().reshape([heads, shape.head_dim]))?;
    }
    let band = BlockBand { q_len: last, start: 0, q_start: shape.q_start + shape.q_len - last };
    let mut block_score = Tensor::alloc(b, DType::F32, [heads, 1, means.k.shape().dims()[1]])?;
    ops::score_blocks(b, band, flex.view(), mean.view(), means.k.view(), block_score.view_mut())?;

    let Chosen { plan: table, column_count, offset_count, .. } = chosen;
    ops::settle_heads(
        b,
        Undecided {
            budget: budget.view(),
            column_score: scores.columns.view(),
            block_score: block_score.view(),
            unit,
            scale: shape.scale,
            plan: table.view_mut(),
            column_count: column_count.view_mut(),
            offset_count: offset_count.view_mut(),
        },
    )
}

/// How many columns and diagonals flex heads need.
fn count_lines<B: Backend>(
    b: &B,
    plan: &Plan,
    scores: &mut Scores<B>,
    unit: f32,
    budget: &Tensor<B>,
    chosen: &mut Chosen<B>,
) -> Result<()> {
    // Diagonals are counted by two for each 64 of them, behind the nearest.
    let slashes = |keys: u32| FORCED_OFFSETS as u32 + 2 * keys.div_ceil(BLOCK as u32);
    let of_offsets = |own: &HeadBudget| HeadBudget {
        least: slashes(own.least),
        most: if own.most > 0 { slashes(own.most) } else { 0 },
        ..*own
    };
    let offset_budget = upload(b, &plan.budgets.iter().map(of_offsets).collect::<Vec<_>>())?;
    let Chosen { column_count, offset_count, .. } = chosen;
    ops::count_by_mass(b, budget.view(), scores.columns.view(), FORCED_COLUMNS, unit, column_count.view_mut())?;
    ops::group_offsets(b, offset_budget.view(), scores.offsets.view_mut())?;
    ops::count_by_mass(b, offset_budget.view(), scores.offsets.view(), FORCED_OFFSETS, unit, offset_count.view_mut())
}

/// u32 `[H, 4]`.
fn upload<B: Backend>(b: &B, budgets: &[HeadBudget]) -> Result<Tensor<B>> {
    Tensor::from_slice::<u32>(b, DType::U32, [budgets.len(), 4], bytemuck::cast_slice(budgets))
}
