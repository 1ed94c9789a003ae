//! [`DecoderConfig`] from the metadata of a GGUF file and the tensors that it has.

use super::config::stretch_factor;
use super::family::{self, Family, GGUF_KEYS};
use super::fields::Fields;
use super::rope::{RopeConfig, RopeScaling, longrope_attention_factor, yarn_attention_factor};
use super::{DecoderConfig, config};
use crate::weights::{Gguf, WeightFile};
use crate::{Error, Result};
use serde_json::{Map, Value};

/// Metadata that is read, after the architecture's name and a dot.
const NUMBERS: &[&str] = &[
    "block_count",
    "embedding_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "feed_forward_length",
    "vocab_size",
    "context_length",
    "expert_count",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scale_linear",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
];

/// The family of a GGUF file, and its config.
pub(super) fn read(file: &WeightFile, gguf: &Gguf) -> Result<DecoderConfig> {
    let path = gguf.path();
    let architecture = gguf.architecture()?;
    let family = family::FAMILIES
        .iter()
        .find(|f| f.gguf == Some(architecture))
        .ok_or_else(|| config::unsupported_architecture(path, architecture))?;
    let object = metadata(file, gguf, architecture)?;
    let prefix = format!("{architecture}.");
    let f = Fields { path, prefix: &prefix, object: &object };
    refuse_what_is_not_built(&f)?;
    let rope = rope(file, gguf, &f, family)?;
    let mut config = DecoderConfig { eos: eos(gguf)?, ..DecoderConfig::read(&f, family, &GGUF_KEYS, rope)? };
    let has = |name: &str| file.info(name).is_some();
    config.tied = !has(family::GGUF_NAMES.lm_head);
    config.qkv_bias = has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias");
    config.o_bias = has("blk.0.attn_output.bias");
    config.mlp_bias = has("blk.0.ffn_down.bias");
    config.validate(path, &GGUF_KEYS)?;
    Ok(config)
}

/// The numbers under this architecture as an object with short keys, so that one reader serves both kinds of file. The
/// vocabulary is the embedding's height: few files state it.
fn metadata(file: &WeightFile, gguf: &Gguf, architecture: &str) -> Result<Map<String, Value>> {
    let mut object = Map::new();
    for key in NUMBERS {
        let full = format!("{architecture}.{key}");
        let Some(number) = gguf.float(&full)? else { continue };
        // JSON has no such numbers: they would read as missing.
        if !number.is_finite() {
            return Err(Error::file(gguf.path(), format!("metadata {full}: expected a finite number, found {number}")));
        }
        object.insert((*key).into(), number.into());
    }
    if let Some(info) = file.info(family::GGUF_NAMES.embed)
        && info.shape.len() == 2
    {
        object.insert(GGUF_KEYS.vocab.into(), info.shape[0].into());
    }
    Ok(object)
}

fn refuse_what_is_not_built(f: &Fields) -> Result<()> {
    let refuse = |what: String| Err(Error::Unsupported(format!("{}: {}{what}", f.path.display(), f.prefix)));
    if let Some(experts) = f.count("expert_count")?.filter(|n| *n > 1) {
        return refuse(format!("expert_count = {experts}; mixtures of experts are not built"));
    }
    let positions = f.count("context_length")?.unwrap_or(usize::MAX);
    if let Some(window) = f.count("attention.sliding_window")?.filter(|n| *n > 0 && *n < positions) {
        let what = format!("attention.sliding_window = {window} in use, below context_length = {positions}");
        return refuse(format!("{what}; only full attention is built"));
    }
    if let (Some(k), Some(v)) = (f.count("attention.key_length")?, f.count("attention.value_length")?)
        && k != v
    {
        return refuse(format!("attention.value_length = {v}; only that of attention.key_length = {k} is built"));
    }
    Ok(())
}

fn rope(file: &WeightFile, gguf: &Gguf, f: &Fields, family: &Family) -> Result<RopeConfig> {
    let head_dim = config::head_dim(f, &GGUF_KEYS)?;
    let rotary_dim = f.count("rope.dimension_count")?.unwrap_or((head_dim as f64 * family.rotary_fraction) as usize);
    let base = f.number("rope.freq_base")?.unwrap_or(10000.0);
    Ok(RopeConfig { rotary_dim, interleaved: family.gguf_interleaved, base, scaling: scaling(file, gguf, f)? })
}

fn scaling(file: &WeightFile, gguf: &Gguf, f: &Fields) -> Result<RopeScaling> {
    let factors = |name: &str| match file.info(name) {
        None => Ok(None),
        Some(_) => Ok::<_, Error>(Some(file.tensor(name)?.to_f32()?.into_iter().map(f64::from).collect::<Vec<_>>())),
    };
    let positions = f.required_count("context_length", 1..=1 << 31)?;
    let original = f.count("rope.scaling.original_context_length")?.unwrap_or(positions).max(2);
    let given = f.number("rope.scaling.attn_factor")?;
    if let (Some(short), Some(long)) = (factors("rope_factors_short.weight")?, factors("rope_factors_long.weight")?) {
        let stretch = positions as f64 / original as f64;
        let attention_factor = given.unwrap_or_else(|| longrope_attention_factor(stretch, original));
        return Ok(RopeScaling::LongRope { short, long, original, attention_factor });
    }
    if let Some(divisors) = factors("rope_freqs.weight")? {
        return Ok(RopeScaling::Divisors(divisors));
    }
    let factor = || stretch_factor(f, "rope.scaling.factor");
    let key = format!("{}rope.scaling.type", f.prefix);
    match gguf.str(&key)? {
        None | Some("none") => match f.number("rope.scale_linear")?.filter(|s| *s > 1.0) {
            Some(factor) => Ok(RopeScaling::Linear { factor }),
            None => Ok(RopeScaling::None),
        },
        Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
        Some("yarn") => {
            // llama.cpp multiplies YaRN's own factor by the file's.
            let factor = factor()?;
            let attention_factor = given.unwrap_or(1.0) * yarn_attention_factor(factor, 1.0);
            let (beta_fast, beta_slow, truncate) = (32.0, 1.0, true);
            Ok(RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor })
        }
        Some(other) => {
            let what = format!("{}: {key} {other:?}; supported are none, linear, yarn", f.path.display());
            Err(Error::Unsupported(what))
        }
    }
}

/// Ids that end an answer: the end of text, and the end of a turn where the file knows one.
fn eos(gguf: &Gguf) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["eos", "eot", "eom"] {
        let id = gguf.uint(&format!("tokenizer.ggml.{key}_token_id"))?;
        ids.extend(id.and_then(|id| u32::try_from(id).ok()));
    }
    ids.dedup();
    Ok(ids)
}
