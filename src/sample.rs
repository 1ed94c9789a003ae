//! Choosing the next token from logits.

use crate::splitmix::SplitMix64;
use crate::{Error, Result};

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; 0 takes the largest (greedy).
    pub temperature: f32,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the largest; 0 keeps all.
    pub top_k: usize,
    /// Starts the random numbers: the same seed and logits give the same tokens.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 }
    }
}

/// Draws tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    rng: SplitMix64,
}

impl Sampler {
    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a temperature below 0, and for a `top_p` that is not above 0 and at most 1.
    pub fn new(options: SamplerOptions) -> Result<Self> {
        let SamplerOptions { temperature, top_p, .. } = options;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(Error::invalid(format!("temperature: expected a number of at least 0, found {temperature}")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::invalid(format!("top_p: expected a number above 0 and at most 1, found {top_p}")));
        }
        Ok(Self { options, rng: SplitMix64::new(options.seed) })
    }

    /// Always the largest logit.
    pub fn greedy() -> Self {
        Self { options: SamplerOptions::default(), rng: SplitMix64::new(0) }
    }

    /// The next token for logits f32 `[vocab]`.
    ///
    /// # Errors
    /// [`Error::Device`] where no logit is finite, or one is NaN: the model's numbers overflowed.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        check(logits)?;
        if self.options.temperature == 0.0 {
            return Ok(argmax(logits));
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let keep = if self.options.top_k == 0 { order.len() } else { self.options.top_k.min(order.len()) };
        if keep < order.len() {
            order.select_nth_unstable_by(keep - 1, by_logit);
            order.truncate(keep);
        }
        order.sort_unstable_by(by_logit);
        let best = logits[order[0] as usize];
        let weight = |id: &u32| f64::from((logits[*id as usize] - best) / self.options.temperature).exp();
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        // The fewest that reach top_p, the one that passes it included.
        let mut kept = 0.0;
        let within = |w: &&f64| {
            let before = kept;
            kept += **w;
            before < f64::from(self.options.top_p) * total
        };
        let weights: Vec<f64> = weights.iter().take_while(within).copied().collect();
        let mut left = self.rng.uniform() * weights.iter().sum::<f64>();
        for (id, w) in order.iter().zip(&weights) {
            left -= w;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding can leave a trace of the sum: it belongs to the last one kept.
        Ok(order[weights.len() - 1])
    }
}

/// The largest logit's token; the lowest id among equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// The `k` largest logits with their tokens, largest first.
pub fn top(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
    order.into_iter().take(k).map(|id| (id, logits[id as usize])).collect()
}

/// Refuses logits that say nothing.
pub(crate) fn check(logits: &[f32]) -> Result<()> {
    if let Some(id) = logits.iter().position(|l| l.is_nan()) {
        return Err(Error::Device(format!(
            "logits: NaN at token {id} of {}; the model's numbers overflowed",
            logits.len()
        )));
    }
    if !logits.iter().any(|l| l.is_finite()) {
        return Err(Error::Device(format!("logits: none of {} is finite", logits.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_p: f32, top_k: usize, seed: u64) -> Sampler {
        Sampler::new(SamplerOptions { temperature, top_p, top_k, seed }).unwrap()
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(Sampler::greedy().sample(&[1.0, 3.0, 3.0, -1.0]).unwrap(), 1);
        assert_eq!(top(&[1.0, 3.0, 3.0, -1.0], 3), [(1, 3.0), (2, 3.0), (0, 1.0)]);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, f32::NEG_INFINITY];
        let mut sampler = sampler(0.7, 1.0, 0, 7);
        let mut counts = [0; 4];
        for _ in 0..20_000 {
            counts[sampler.sample(&logits).unwrap() as usize] += 1;
        }
        let weights: Vec<f64> = [0.0, 1.0, 2.0].iter().map(|l: &f64| (l / 0.7).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(&weights) {
            let expected = 20_000.0 * weight / total;
            // Five standard deviations of a binomial count.
            assert!((f64::from(*count) - expected).abs() < 5.0 * expected.sqrt(), "{counts:?}, expected {expected}");
        }
        assert_eq!(counts[3], 0);
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [0.1, 2.0, 1.9, -3.0, 1.8];
        let drawn =
            |mut s: Sampler| (0..500).map(|_| s.sample(&logits).unwrap()).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(drawn(sampler(1.0, 1.0, 2, 1)), [1, 2].into());
        assert_eq!(drawn(sampler(1.0, 1e-6, 0, 1)), [1].into());
        // The first two hold 0.37 + 0.34 of the mass, the third 0.30 of the rest.
        assert_eq!(drawn(sampler(1.0, 0.6, 0, 1)), [1, 2].into());
        assert_eq!(drawn(sampler(1.0, 1.0, 0, 1)).len(), 5);
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
        let draw = |seed| {
            let mut s = sampler(1.0, 1.0, 0, seed);
            (0..20).map(|_| s.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn bad_numbers_are_refused() {
        assert!(Sampler::greedy().sample(&[0.0, f32::NAN]).is_err());
        assert!(Sampler::greedy().sample(&[f32::NEG_INFINITY; 3]).is_err());
        for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.5)] {
            assert!(Sampler::new(SamplerOptions { temperature, top_p, ..Default::default() }).is_err());
        }
    }
}
