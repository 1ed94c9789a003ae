//! Sums of weights by their size: how the largest weights that hold a given part of a sum are found without sorting.
//!
//! A weight of at most 1 falls into one of 2048 bins, 64 to a factor of two, down to 2^-32. Bins sum the weights as whole
//! numbers of 2^-30, so that the order of addition does not matter and every device finds the same bins.

pub(super) const BINS: usize = 2048;

/// What a weight of 1 counts.
pub(super) const ONE: f32 = (1u32 << 30) as f32;

/// Larger weights have lower bins; those of a bin are within 1/64 of each other.
pub(super) fn bin(weight: f32) -> usize {
    const TOP: i32 = (1f32.to_bits() >> 17) as i32;
    (TOP - (weight.to_bits() >> 17) as i32).clamp(0, BINS as i32 - 1) as usize
}

/// The least weight of the first `taken` bins; 1 of none.
pub(super) fn least_of_bins(taken: usize) -> f32 {
    f32::from_bits((1f32.to_bits() >> 17).saturating_sub((taken as u32).saturating_sub(1)) << 17)
}

/// A weight in whole numbers.
pub(super) fn whole(weight: f32, one: f32) -> u32 {
    (weight * one + 0.5) as u32
}

/// How many bins, from the largest weights on, hold `mass` times the sum of `credit` and all bins, `credit` counted first.
pub(super) fn bins_taken(bins: &[u32], mass: f32, credit: u32) -> usize {
    let total = bins.iter().fold(credit, |sum, bin| sum.wrapping_add(*bin));
    let need = ((total as f32 * mass) as u32).saturating_sub(credit);
    let mut sum = 0;
    let reached = |bin: &u32| {
        sum += bin;
        sum >= need
    };
    if need == 0 { 0 } else { bins.iter().position(reached).map_or(BINS, |last| last + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_follow_weights() {
        assert_eq!(bin(1.0), 0);
        assert_eq!(bin(1.0001), 0);
        assert_eq!(bin(0.5), 64);
        assert_eq!(bin(0.0), BINS - 1);
        assert_eq!([0, 1, 65].map(least_of_bins), [1.0, 1.0, 0.5]);
        assert!((1..700).all(|taken| bin(least_of_bins(taken)) == taken - 1));
        let mut weight = 1.0f32;
        while weight > 1e-9 {
            let smaller = weight * 0.98;
            assert!(bin(smaller) > bin(weight), "{weight}");
            weight = smaller;
        }
    }

    #[test]
    fn the_fewest_bins_that_reach_the_mass() {
        let mut bins = vec![0; BINS];
        (bins[3], bins[10], bins[20]) = (60, 30, 10);
        assert_eq!(bins_taken(&bins, 0.6, 0), 4);
        assert_eq!(bins_taken(&bins, 0.61, 0), 11);
        assert_eq!(bins_taken(&bins, 1.0, 0), 21);
        assert_eq!(bins_taken(&bins, 0.5, 100), 0, "half of 200 is there");
        assert_eq!(bins_taken(&bins, 0.9, 100), 11, "80 more of 180");
    }
}
