//! What is decided of a head on the device. Flex heads: columns and diagonals, or blocks where the softmax of block means is
//! close to what the last queries really attend to (FlexPrefill, algorithm 2). Recall heads: their threshold.

use super::mass::{BINS, ONE, bin, bins_taken, least_of_bins, whole};
use crate::backend::params::{BLOCK, HeadBudget, HeadPlan, SettleHeadsParams};

pub(super) fn settle_heads(
    p: &SettleHeadsParams,
    budget: &[HeadBudget],
    column_score: &[f32],
    block_score: &[f32],
    plan: &mut [HeadPlan],
    [column_count, offset_count]: [&mut [u32]; 2],
) {
    let undecided = |plan: &HeadPlan| matches!(plan.kind, HeadPlan::FLEX | HeadPlan::FIT);
    for (h, plan) in plan.iter_mut().enumerate().filter(|(_, plan)| undecided(plan)) {
        let columns = &column_score[h * p.kv_len as usize..][..p.kv_len as usize];
        let blocks = &block_score[h * p.key_blocks as usize..][..p.key_blocks as usize];
        let budget = budget[h];
        if plan.kind == HeadPlan::FIT {
            *plan = fit(p, columns, blocks, budget.mass, *plan);
            (column_count[h], offset_count[h]) = (0, 0);
            continue;
        }
        let (vertical, slash) = (column_count[h], offset_count[h]);
        *plan = if distance(p, columns, blocks) < budget.tau {
            let nearest = HeadPlan::nearest_and_last((budget.least as usize).div_ceil(BLOCK), 0);
            HeadPlan { kind: HeadPlan::BLOCK_SPARSE, a: budget.mass.to_bits(), b: nearest, c: HeadPlan::HEAD_MASS }
        } else if vertical > plan.a || slash > plan.b || slash >= p.kv_len {
            HeadPlan { kind: HeadPlan::DENSE, a: 0, b: 0, c: 0 }
        } else {
            HeadPlan { kind: HeadPlan::VERTICAL_SLASH, a: vertical, b: slash, c: 0 }
        };
        let kept = plan.kind == HeadPlan::VERTICAL_SLASH;
        (column_count[h], offset_count[h]) = if kept { (vertical, slash) } else { (0, 0) };
    }
}

/// Bins beyond which a head is dense: blocks of 2^-10 of the heaviest would have to be taken.
const MOST_BINS: usize = 640;

/// A threshold head whose blocks hold `floor` of the last queries' attention, of the threshold `own.a` at most; or dense.
fn fit(p: &SettleHeadsParams, columns: &[f32], blocks: &[f32], floor: f32, own: HeadPlan) -> HeadPlan {
    let max = blocks.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut bins, mut credit) = (vec![0; BINS], 0.0);
    for (c, (score, keys)) in blocks.iter().zip(columns.chunks(BLOCK)).enumerate() {
        let real = keys.iter().sum::<f32>() * p.unit;
        match c == 0 || c + own.nearest() >= blocks.len() {
            true => credit += real,
            false => bins[bin(((score - max) * p.scale).exp())] += whole(real, ONE),
        }
    }
    match bins_taken(&bins, floor, whole(credit, ONE)) {
        MOST_BINS.. => HeadPlan { kind: HeadPlan::DENSE, a: 0, b: 0, c: 0 },
        taken => {
            let alpha = least_of_bins(taken).min(f32::from_bits(own.a));
            HeadPlan { kind: HeadPlan::BLOCK_SPARSE, a: alpha.to_bits(), ..own }
        }
    }
}

/// Square root of the Jensen-Shannon divergence, in nats, between the estimated and the true attention of the last queries
/// over key blocks.
fn distance(p: &SettleHeadsParams, columns: &[f32], blocks: &[f32]) -> f32 {
    // estimated
    let max = blocks.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: f32| ((x - max) * p.scale).exp();
    let total: f32 = blocks.iter().map(|x| weight(*x)).sum();

    // divergence
    let terms = blocks.iter().zip(columns.chunks(BLOCK)).map(|(score, keys)| {
        let estimated = weight(*score) / total;
        let real = keys.iter().sum::<f32>() * p.unit;
        let middle = 0.5 * (estimated + real);
        half_term(estimated, middle) + half_term(real, middle)
    });
    terms.sum::<f32>().max(0.0).sqrt()
}

fn half_term(x: f32, middle: f32) -> f32 {
    if x > 0.0 { 0.5 * x * (x / middle).ln() } else { 0.0 }
}
