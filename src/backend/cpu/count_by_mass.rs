//! How many of a row's largest scores hold a given part of its sum.

use super::mass::{BINS, ONE, bin, bins_taken, whole};
use crate::backend::params::{CountByMassParams, HeadBudget};
use rayon::prelude::*;

pub(super) fn count_by_mass(p: &CountByMassParams, budget: &[HeadBudget], scores: &[f32], counts: &mut [u32]) {
    let rows = scores.par_chunks(p.len as usize).zip(counts).zip(budget);
    rows.filter(|(_, budget)| budget.mass > 0.0).for_each(|((scores, count), budget)| {
        let (forced, rest) = scores.split_at(scores.len().min(p.forced as usize));
        let credit = forced.iter().map(|x| whole(x * p.unit, ONE)).sum();
        let mut bins = vec![0; BINS];
        for x in rest.iter().map(|x| x * p.unit) {
            bins[bin(x)] += whole(x, ONE);
        }
        let taken = bins_taken(&bins, budget.mass, credit);
        let among = rest.iter().filter(|&&x| bin(x * p.unit) < taken).count();
        let most = if budget.most > 0 { budget.most } else { p.len };
        *count = ((forced.len() + among) as u32).max(budget.least).min(most).min(p.len);
    });
}
