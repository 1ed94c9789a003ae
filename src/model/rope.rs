//! Rotary position embedding: the frequencies of every scaling in use, in f64.
//!
//! transformers multiplies an f32 frequency by an f32 position: at position 1,000,000 its cosines are off by up to 0.08.
//! Here a frequency becomes a 64-bit fraction of a turn per position ([`RopeConfig::turns`]), which the kernels multiply by
//! the position in wrapping integers: the error at 1,048,575 is that of the f64 frequency, about 1e-10 of a turn.

use crate::ops::turns_from_frequency;
use std::f64::consts::TAU;

/// What rotates and how fast.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Leading elements of a head that rotate, even.
    pub rotary_dim: usize,
    /// Pairs are (2i, 2i + 1) instead of (i, i + rotary_dim / 2).
    pub interleaved: bool,
    /// Pair `i` turns by `base^(-2i / rotary_dim)` radians a position, before scaling.
    pub base: f64,
    /// How that changes for contexts longer than the model was first trained on.
    pub scaling: RopeScaling,
}

/// Published ways to stretch RoPE over longer contexts, under the names of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All frequencies divided by `factor` (position interpolation).
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// The base grows with the length of the sequence beyond `original` tokens (dynamic NTK).
    Dynamic {
        /// Growth.
        factor: f64,
        /// Tokens up to which nothing changes.
        original: usize,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are long.
        low: f64,
        /// Wavelengths below `original / high` are short.
        high: f64,
        /// Tokens of the first training.
        original: usize,
    },
    /// YaRN: a ramp over the pair's index between kept and divided, and a factor on cosine and sine.
    Yarn {
        /// Divisor.
        factor: f64,
        /// Tokens of the first training.
        original: usize,
        /// Turns over `original` above which a pair keeps its frequency.
        beta_fast: f64,
        /// Turns below which it is divided whole.
        beta_slow: f64,
        /// Whether the ramp's ends are rounded outwards to whole pairs.
        truncate: bool,
        /// Multiplies cosine and sine.
        attention_factor: f64,
    },
    /// LongRoPE (Phi-3): one divisor for each pair, from the short list for sequences up to `original` tokens and from
    /// the long list for all positions of longer ones.
    LongRope {
        /// `[rotary_dim / 2]`.
        short: Vec<f64>,
        /// `[rotary_dim / 2]`.
        long: Vec<f64>,
        /// Tokens up to which the short list holds.
        original: usize,
        /// Multiplies cosine and sine, in both cases.
        attention_factor: f64,
    },
    /// One divisor for each pair at any length (how a GGUF file states Llama 3.1's scaling).
    Divisors(Vec<f64>),
}

impl RopeConfig {
    /// Radians per position of each pair, for a sequence of `length` tokens: `[rotary_dim / 2]`.
    pub fn frequencies(&self, length: usize) -> Vec<f64> {
        let rot = self.rotary_dim as f64;
        let pairs = self.rotary_dim / 2;
        let plain = |base: f64| (0..pairs).map(move |i| base.powf(-2.0 * i as f64 / rot));
        let divided = |by: &[f64]| plain(self.base).zip(by).map(|(f, d)| f / d).collect();
        match &self.scaling {
            RopeScaling::None => plain(self.base).collect(),
            RopeScaling::Linear { factor } => plain(self.base).map(|f| f / factor).collect(),
            RopeScaling::Dynamic { factor, original } => {
                let longer = (length as f64 / *original as f64).max(1.0);
                plain(self.base * (factor * longer - (factor - 1.0)).powf(rot / (rot - 2.0))).collect()
            }
            RopeScaling::Llama3 { factor, low, high, original } => plain(self.base)
                .map(|f| {
                    let turns = *original as f64 * f / TAU;
                    let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    keep * f + (1.0 - keep) * f / factor
                })
                .collect(),
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                // The (fractional) pair that makes `turns` turns over the original length.
                let pair = |turns: f64| rot * (*original as f64 / (turns * TAU)).ln() / (2.0 * self.base.ln());
                let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(rot - 1.0));
                if low == high {
                    high += 0.001;
                }
                let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                plain(self.base).enumerate().map(|(i, f)| f / factor * ramp(i) + f * (1.0 - ramp(i))).collect()
            }
            RopeScaling::LongRope { short, long, original, .. } => {
                divided(if length > *original { long } else { short })
            }
            RopeScaling::Divisors(by) => divided(by),
        }
    }

    /// Refuses what no published model has and what would give NaN or keys that no longer know their places: bases up to
    /// 1 or beyond 1e15, turns outside 1e-20 to 100 radians a position for sequences of up to `longest` tokens, factors on
    /// cosine and sine outside 0.01 to 100. The error says what was found.
    pub fn check(&self, longest: usize) -> Result<(), String> {
        if !(self.base > 1.0 && self.base <= 1e15) {
            return Err(format!("rope_theta: expected a number above 1 and at most 1e15, found {:?}", self.base));
        }
        for length in [1, longest] {
            let turns = self.frequencies(length).into_iter().enumerate();
            if let Some((pair, turn)) = turns.into_iter().find(|(_, turn)| !(1e-20..=100.0).contains(turn)) {
                let expected = "expected 1e-20 to 100: check rope_theta and the scaling";
                return Err(format!("rope: pair {pair} turns by {turn:?} radians a position, {expected}"));
            }
        }
        let factor = self.attention_factor();
        match (0.01..=100.0).contains(&factor) {
            true => Ok(()),
            false => Err(format!("rope scaling: attention factor: expected 0.01 to 100, found {factor:?}")),
        }
    }

    /// The same as 64-bit fractions of a turn, low word first, as the rope kernels take them: `[rotary_dim / 2, 2]`.
    pub fn turns(&self, length: usize) -> Vec<[u32; 2]> {
        let words = |t: u64| [t as u32, (t >> 32) as u32];
        self.frequencies(length).into_iter().map(turns_from_frequency).map(words).collect()
    }

    /// What cosine and sine are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                *attention_factor
            }
            _ => 1.0,
        }
    }

    /// The length that decides the frequencies of a sequence of `length` tokens: two lengths with the same answer have
    /// the same frequencies.
    pub fn deciding_length(&self, length: usize) -> usize {
        match &self.scaling {
            RopeScaling::Dynamic { original, .. } => length.max(*original),
            RopeScaling::LongRope { original, .. } if length > *original => original + 1,
            _ => 0,
        }
    }

    /// Whether keys that were rotated for a sequence of `before` tokens are wrong in one of `after` tokens and have to be
    /// computed anew. transformers does so when LongRoPE passes its original length; with dynamic NTK it keeps the keys.
    pub fn outdated(&self, before: usize, after: usize) -> bool {
        matches!(self.scaling, RopeScaling::LongRope { .. })
            && self.deciding_length(before) != self.deciding_length(after)
    }
}

/// YaRN's factor on cosine and sine for a stretch of `factor` (its paper, section 3.4).
pub fn yarn_attention_factor(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// LongRoPE's factor on cosine and sine for a stretch of `factor` beyond `original` tokens.
pub fn longrope_attention_factor(factor: f64, original: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> RopeConfig {
        RopeConfig { rotary_dim: 64, interleaved: false, base: 10000.0, scaling }
    }

    /// Linear and dynamic NTK have no golden: their definitions, stated once more from the paper and transformers' text.
    #[test]
    fn linear_and_dynamic_by_definition() {
        let plain = rope(RopeScaling::None).frequencies(9000);
        let linear = rope(RopeScaling::Linear { factor: 8.0 }).frequencies(9000);
        for (l, p) in linear.iter().zip(&plain) {
            assert!((l * 8.0 - p).abs() < 1e-15, "{l} {p}");
        }
        let dynamic = rope(RopeScaling::Dynamic { factor: 4.0, original: 4096 });
        assert_eq!(dynamic.frequencies(4096), plain);
        assert_eq!(dynamic.frequencies(10), plain);
        let base = 10000.0 * ((4.0 * 9000.0 / 4096.0) - 3.0f64).powf(64.0 / 62.0);
        for (i, f) in dynamic.frequencies(9000).iter().enumerate() {
            let want = 1.0 / base.powf(i as f64 / 32.0);
            assert!((f / want - 1.0).abs() < 1e-13, "pair {i}: {f} {want}");
        }
        // The last pair stretches by exactly the ratio that the scheme promises.
        let (last, unscaled) = (dynamic.frequencies(9000)[31], plain[31]);
        assert!((unscaled / last / (4.0 * 9000.0 / 4096.0 - 3.0) - 1.0).abs() < 1e-12, "{last} {unscaled}");
    }

    #[test]
    fn turns_are_fractions_of_a_turn() {
        for [low, high] in rope(RopeScaling::None).turns(1) {
            assert!(high < u32::MAX / 6, "one radian is under a sixth of a turn: {low} {high}");
        }
        let [low, high] = rope(RopeScaling::None).turns(1)[0];
        let got = ((u64::from(high) << 32) | u64::from(low)) as f64 / 2f64.powi(64);
        assert!((got - 1.0 / TAU).abs() < 1e-16);
    }

    #[test]
    fn longrope_picks_by_length() {
        let config = rope(RopeScaling::LongRope {
            short: vec![1.0; 32],
            long: vec![2.0; 32],
            original: 96,
            attention_factor: 1.2,
        });
        assert_eq!(config.frequencies(96)[0], 1.0);
        assert_eq!(config.frequencies(97)[0], 0.5);
        assert!(config.outdated(96, 97) && !config.outdated(97, 98) && !config.outdated(1, 96));
        assert_eq!(config.attention_factor(), 1.2);
    }
}
