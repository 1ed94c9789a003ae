//! One row of scores for the query heads of a KV head.

use crate::backend::params::{HeadPlan, ShareScoresParams};
use rayon::prelude::*;

pub(super) fn share_scores(p: &ShareScoresParams, plan: &[HeadPlan], scores: &mut [f32]) {
    let (share, len) = (p.share as usize, p.len as usize);
    scores.par_chunks_exact_mut(share * len).zip(plan.par_chunks_exact(share)).for_each(|(scores, plan)| {
        let members: Vec<usize> = (0..share).filter(|&h| plan[h].kind != HeadPlan::DENSE).collect();
        let part = 1.0 / members.len() as f32;
        for i in 0..len {
            let mean = members.iter().map(|h| scores[h * len + i]).sum::<f32>() * part;
            members.iter().for_each(|h| scores[h * len + i] = mean);
        }
    });
}
