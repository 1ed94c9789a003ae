//! The largest scores of each row, by selection of the last one taken and not by sorting.

use crate::backend::params::SelectTopKParams;
use rayon::prelude::*;

pub(super) fn select_top_k(p: &SelectTopKParams, scores: &[f32], counts: &[u32], indices: &mut [u32]) {
    let (len, forced) = (p.len as usize, p.forced as usize);
    let rows = indices.par_chunks_mut(p.capacity as usize).zip(scores.par_chunks(len)).zip(counts);
    rows.for_each_init(Vec::new, |ranks, ((indices, scores), &count)| {
        let mut taken = 0;
        top_k(scores, count as usize, forced, ranks, |i| {
            indices[taken] = i as u32;
            taken += 1;
        });
        indices[taken..].fill(u32::MAX);
    });
}

/// Calls `take` with the indices of the `count` largest scores, ascending: the first `forced` of them whatever their
/// score, then higher values, then lower indices. `ranks` is scratch.
pub(super) fn top_k(scores: &[f32], count: usize, forced: usize, ranks: &mut Vec<u32>, mut take: impl FnMut(usize)) {
    let forced = forced.min(scores.len()).min(count);
    (0..forced).for_each(&mut take);
    let (rest, count) = (&scores[forced..], (count - forced).min(scores.len() - forced));
    if count == 0 {
        return;
    }
    // The count-th largest rank, and how many of those equal to it still fit.
    ranks.clear();
    ranks.extend(rest.iter().map(|&x| rank(x)));
    let (_, &mut last, above) = ranks.select_nth_unstable(rest.len() - count);
    let mut equal = count - above.iter().filter(|&&r| r > last).count();
    for (i, &x) in rest.iter().enumerate() {
        let r = rank(x);
        if r > last || (r == last && equal > 0) {
            equal -= usize::from(r == last);
            take(forced + i);
        }
    }
}

/// Integers in the order of the values: NaN below -inf, both zeros equal.
fn rank(x: f32) -> u32 {
    let bits = (x + 0.0).to_bits();
    if x.is_nan() {
        0
    } else if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_values() {
        let ascending = [f32::NAN, f32::NEG_INFINITY, f32::MIN, -1.0, -1e-45, 0.0, 1e-45, 1.0, f32::MAX, f32::INFINITY];
        assert!(ascending.windows(2).all(|w| rank(w[0]) < rank(w[1])));
        assert_eq!(rank(-0.0), rank(0.0));
        assert_eq!(rank(-f32::NAN), rank(f32::NAN));
    }
}
