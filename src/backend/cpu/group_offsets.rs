//! Offset scores gathered by 64: a diagonal block costs the same for one of its offsets as for all.

use crate::backend::params::{BLOCK, GroupOffsetsParams, HeadBudget};
use rayon::prelude::*;

pub(super) fn group_offsets(p: &GroupOffsetsParams, budget: &[HeadBudget], scores: &mut [f32]) {
    let rows = scores.par_chunks_mut(p.len as usize).zip(budget);
    rows.filter(|(_, budget)| budget.mass > 0.0).for_each(|(row, _)| {
        for group in row.chunks_mut(BLOCK) {
            let half = 0.5 * group.iter().sum::<f32>();
            group.fill(0.0);
            group[0] += half;
            group[group.len() - 1] += half;
        }
    });
}
