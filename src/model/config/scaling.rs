//! Rotary embedding and how it is stretched, as configs state it and `--rope-scaling` replaces it.

use super::super::family::Family;
use super::super::fields::Fields;
use super::super::rope::{RopeConfig, RopeScaling, longrope_attention_factor, yarn_attention_factor};
use super::{DecoderConfig, MAX_POSITIONS, head_dim};
use crate::{Error, Result};
use serde_json::Map;

/// Factors that a model may be stretched by: published ones end at 64.
const STRETCH: std::ops::RangeInclusive<f64> = 1.0..=4096.0;

/// A factor of [`STRETCH`] that must be there.
pub(in super::super) fn stretch_factor(f: &Fields, key: &str) -> Result<f64> {
    let factor = f.required_positive(key)?;
    let expected = || format!("a number from {} to {}", STRETCH.start(), STRETCH.end());
    if STRETCH.contains(&factor) { Ok(factor) } else { Err(f.error(key, &expected(), factor)) }
}

impl DecoderConfig {
    /// Replaces the checkpoint's RoPE scaling: `yarn:FACTOR`, `linear:FACTOR`, `dynamic:FACTOR`, `none`, each from the
    /// positions that the model was trained on.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another kind, and for a factor that no model was stretched by.
    pub fn override_rope_scaling(&mut self, text: &str) -> Result<()> {
        let (kind, factor) = text.split_once(':').unwrap_or((text, "1"));
        let factor: f64 = factor.parse().ok().filter(|f| STRETCH.contains(f)).ok_or_else(|| {
            let (least, most) = (STRETCH.start(), STRETCH.end());
            Error::invalid(format!("rope scaling {text:?}: expected a factor from {least} to {most}, found {factor:?}"))
        })?;
        let original = match &self.rope.scaling {
            RopeScaling::Dynamic { original, .. }
            | RopeScaling::Llama3 { original, .. }
            | RopeScaling::Yarn { original, .. }
            | RopeScaling::LongRope { original, .. } => *original,
            RopeScaling::Linear { factor } => (self.max_positions as f64 / factor) as usize,
            RopeScaling::None | RopeScaling::Divisors(_) => self.max_positions,
        };
        self.rope.scaling = match kind {
            "none" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor },
            "dynamic" => RopeScaling::Dynamic { factor, original },
            "yarn" => yarn(factor, original),
            other => {
                let what = format!("rope scaling {other:?}: expected none, linear, dynamic or yarn");
                return Err(Error::invalid(what));
            }
        };
        self.max_positions = stretched(original, &self.rope.scaling);
        self.check_rope().map_err(|what| Error::invalid(format!("rope scaling {text:?}: {what}")))
    }
}

/// YaRN with the defaults of its paper.
pub(super) fn yarn(factor: f64, original: usize) -> RopeScaling {
    let attention_factor = yarn_attention_factor(factor, 1.0);
    RopeScaling::Yarn { factor, original, beta_fast: 32.0, beta_slow: 1.0, truncate: true, attention_factor }
}

/// Positions after a stretch. transformers asks that `max_position_embeddings` stays as it was trained where linear,
/// dynamic or YaRN scaling is added; Qwen's instructions say the same.
pub(super) fn stretched(max_positions: usize, scaling: &RopeScaling) -> usize {
    match scaling {
        RopeScaling::Linear { factor } => (max_positions as f64 * factor) as usize,
        RopeScaling::Dynamic { factor, original } | RopeScaling::Yarn { factor, original, .. } => {
            max_positions.max((*original as f64 * factor) as usize)
        }
        _ => max_positions,
    }
}

/// RoPE of a `config.json`: `rope_parameters` (transformers 5), or `rope_theta` with `rope_scaling`, or `rope_ratio`.
pub(super) fn rope_from_json(f: &Fields, family: &Family) -> Result<RopeConfig> {
    let head_dim = head_dim(f, family.keys)?;
    let empty = Map::new();
    let (new, old) = (f.object("rope_parameters")?, f.object("rope_scaling")?);
    let (prefix, object) = match (new, old) {
        (Some(new), _) => ("rope_parameters.", new),
        (None, Some(old)) => ("rope_scaling.", old),
        (None, None) => ("", &empty),
    };
    let s = Fields { prefix, object, ..*f };
    let fraction = match s.number("partial_rotary_factor")? {
        Some(fraction) => fraction,
        None => f.number("partial_rotary_factor")?.unwrap_or(family.rotary_fraction),
    };
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(f.error("partial_rotary_factor", "a number above 0 and at most 1", fraction));
    }
    let theta = match s.number("rope_theta")? {
        Some(theta) => theta,
        None => f.number("rope_theta")?.unwrap_or(10000.0),
    };
    // Only ChatGLM has it; its base is 10000 times the ratio.
    let ratio = f.number("rope_ratio")?.unwrap_or(1.0);
    Ok(RopeConfig {
        rotary_dim: (head_dim as f64 * fraction) as usize,
        interleaved: family.interleaved,
        base: theta * ratio,
        scaling: scaling_from_json(f, &s, family)?,
    })
}

fn scaling_from_json(f: &Fields, s: &Fields, family: &Family) -> Result<RopeScaling> {
    let kind = match s.text("rope_type")? {
        Some(kind) => kind,
        None => s.text("type")?.unwrap_or("default"),
    };
    let max_positions = f.required_count(family.keys.max_positions, 1..=MAX_POSITIONS)?;
    let stated = match s.count("original_max_position_embeddings")? {
        Some(n) => Some(n),
        None => f.count("original_max_position_embeddings")?,
    };
    if let Some(n) = stated.filter(|n| !(2..=MAX_POSITIONS).contains(n)) {
        return Err(s.error("original_max_position_embeddings", &format!("2 to {MAX_POSITIONS}"), n));
    }
    let original = stated.unwrap_or(max_positions);
    let factor = || stretch_factor(s, "factor");
    Ok(match kind {
        "default" | "none" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor()? },
        "dynamic" => RopeScaling::Dynamic { factor: factor()?, original: max_positions },
        "llama3" => {
            let (low, high) = (s.required_positive("low_freq_factor")?, s.required_positive("high_freq_factor")?);
            if low >= high {
                return Err(s.error("high_freq_factor", &format!("above low_freq_factor = {low}"), high));
            }
            RopeScaling::Llama3 { factor: factor()?, low, high, original }
        }
        "yarn" => yarn_from_json(s, factor()?, original)?,
        // `su` is what the first upload of Phi-3-mini-128k called it.
        "longrope" | "su" => {
            let stretch = match stated {
                Some(original) => max_positions as f64 / original as f64,
                None => factor()?,
            };
            longrope_from_json(s, stretch, original)?
        }
        other => {
            let what = format!("{}rope_type {other:?}", s.prefix);
            let known = "default, linear, dynamic, llama3, yarn, longrope";
            return Err(Error::Unsupported(format!("{}: {what}; supported are {known}", f.path.display())));
        }
    })
}

fn yarn_from_json(s: &Fields, factor: f64, original: usize) -> Result<RopeScaling> {
    let attention_factor = match (s.number("attention_factor")?, s.number("mscale")?, s.number("mscale_all_dim")?) {
        (Some(given), _, _) => given,
        (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
            yarn_attention_factor(factor, m) / yarn_attention_factor(factor, all)
        }
        _ => yarn_attention_factor(factor, 1.0),
    };
    let (beta_fast, beta_slow) = (s.number("beta_fast")?.unwrap_or(32.0), s.number("beta_slow")?.unwrap_or(1.0));
    if !(beta_slow > 0.0 && beta_fast >= beta_slow) {
        let expected = format!("a number above 0 and at most beta_fast = {beta_fast}");
        return Err(s.error("beta_slow", &expected, beta_slow));
    }
    let truncate = s.flag("truncate")?.unwrap_or(true);
    Ok(RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor })
}

fn longrope_from_json(s: &Fields, stretch: f64, original: usize) -> Result<RopeScaling> {
    let list = |key| s.positives(key)?.ok_or_else(|| s.error(key, "a list of positive numbers", "nothing"));
    let attention_factor =
        s.number("attention_factor")?.unwrap_or_else(|| longrope_attention_factor(stretch, original));
    Ok(RopeScaling::LongRope { short: list("short_factor")?, long: list("long_factor")?, original, attention_factor })
}
