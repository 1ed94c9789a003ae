//! [`DecoderConfig`]: everything that the forward pass needs to know about a model, read from `config.json` in the form
//! of transformers 5 (`rope_parameters`), in the form of the published checkpoints (`rope_theta`, `rope_scaling`), in
//! ChatGLM's own, or from GGUF metadata.

mod refuse;
mod scaling;

use super::family::{self, Family, Keys, Switch};
use super::fields::Fields;
use super::rope::{RopeConfig, RopeScaling};
use crate::{Error, Result};
use refuse::refuse_what_is_not_built;
pub(super) use scaling::stretch_factor;
use scaling::{rope_from_json, stretched};
use serde_json::{Map, Value};
use std::path::Path;

/// Most tokens of a sequence: kernels count positions in 32 bits.
const MAX_POSITIONS: usize = 1 << 31;

/// A decoder of the Llama kind: pre-norm, RMSNorm, rotary embedding, grouped queries, SiLU-gated MLP.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// The family, for its tensor names.
    pub family: &'static Family,
    /// Layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; query head `h` reads `h / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Elements of a head. Not always `hidden / n_heads`.
    pub head_dim: usize,
    /// Width of the MLP.
    pub ffn: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Added inside the root of every RMSNorm.
    pub norm_eps: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// The output projection of attention has a bias.
    pub o_bias: bool,
    /// Gate, up and down have a bias.
    pub mlp_bias: bool,
    /// RMSNorm over each head of q and k before RoPE.
    pub qk_norm: bool,
    /// Norms after attention and after the MLP.
    pub post_norms: bool,
    /// The output matrix is the embedding.
    pub tied: bool,
    /// Tokens that the model is made for, a stated RoPE stretch included.
    pub max_positions: usize,
    /// Token ids that end an answer.
    pub eos: Vec<u32>,
    /// Dual chunk attention, where the checkpoint asks for it (Qwen2.5-1M).
    pub dual_chunk: Option<DualChunk>,
}

/// How a checkpoint goes beyond the length it was trained on by dual chunk attention (arXiv 2402.17463).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DualChunk {
    /// Tokens of a chunk with its overlap: distances never pass this.
    pub chunk: usize,
    /// Overlap between neighbouring chunks.
    pub local: usize,
    /// Beyond this length scores grow with the sequence, `usize::MAX` where the checkpoint does not name one.
    pub original: usize,
}

impl DualChunk {
    /// Tokens of a chunk without its overlap: a sequence that is no longer than this is plain attention. One of up to
    /// `chunk` tokens comes out the same in two parts.
    pub fn stride(&self) -> usize {
        self.chunk - self.local
    }

    /// What the softmax scale of a sequence is multiplied by (Qwen2.5-1M's report, after YaRN): `(0.1 ln s + 1)^2`, where
    /// the sequence is `s > 1` times as long as `original`.
    pub fn temperature(&self, sequence: usize) -> f64 {
        let stretch = (sequence as f64 / self.original as f64).max(1.0);
        (0.1 * stretch.ln() + 1.0).powi(2)
    }
}

impl DecoderConfig {
    /// From the text of a `config.json`; `path` stands in errors.
    ///
    /// # Errors
    /// [`Error::File`] that names the field with both values, [`Error::Unsupported`] for architectures and features
    /// that are not built.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let object = object(path, text)?;
        let f = Fields { path, prefix: "", object: &object };
        let model_type = f.text("model_type")?.ok_or_else(|| f.error("model_type", &family::supported(), "nothing"))?;
        let family = family::FAMILIES
            .iter()
            .find(|family| family.model_type == model_type)
            .ok_or_else(|| unsupported_architecture(path, model_type))?;
        refuse_what_is_not_built(&f, family)?;
        let rope = rope_from_json(&f, family)?;
        let config = Self { eos: f.ids("eos_token_id")?, ..Self::read(&f, family, family.keys, rope)? };
        config.validate(path, family.keys)?;
        Ok(config)
    }

    /// The fields that only differ by their key. GGUF metadata comes here too.
    pub(super) fn read(f: &Fields, family: &'static Family, keys: &Keys, rope: RopeConfig) -> Result<Self> {
        let n_heads = f.required_count(keys.n_heads, 1..=4096)?;
        let hidden = f.required_count(keys.hidden, 1..=1 << 20)?;
        let switch = |s: Switch| match s {
            Switch::Always(value) => Ok(value),
            Switch::Key(key, default) => Ok::<_, Error>(f.flag(key)?.unwrap_or(default)),
        };
        // ChatGLM: without multi_query_attention there are as many KV heads as query heads, whatever the group number.
        let n_kv_heads = match f.flag("multi_query_attention")? {
            Some(false) => n_heads,
            _ => f.count(keys.n_kv_heads)?.unwrap_or(n_heads),
        };
        Ok(Self {
            family,
            n_layers: f.required_count(keys.n_layers, 1..=4096)?,
            hidden,
            n_heads,
            n_kv_heads,
            head_dim: head_dim(f, keys)?,
            ffn: f.required_count(keys.ffn, 1..=1 << 22)?,
            vocab: f.required_count(keys.vocab, 1..=1 << 24)?,
            norm_eps: norm_eps(f, keys.norm_eps)?,
            qkv_bias: switch(family.qkv_bias)?,
            o_bias: switch(family.o_bias)?,
            mlp_bias: switch(family.mlp_bias)?,
            qk_norm: family.qk_norm,
            post_norms: family.post_norms,
            tied: f.flag("tie_word_embeddings")?.unwrap_or(family.tied),
            max_positions: stretched(f.required_count(keys.max_positions, 1..=MAX_POSITIONS)?, &rope.scaling),
            rope,
            eos: Vec::new(),
            dual_chunk: dual_chunk(f)?,
        })
    }

    /// Checks between fields.
    pub(super) fn validate(&self, path: &Path, keys: &Keys) -> Result<()> {
        let Self { n_heads, n_kv_heads, head_dim, .. } = self;
        if *n_kv_heads == 0 || n_heads % n_kv_heads != 0 {
            let what = format!("{}: expected a divisor of {} = {n_heads}", keys.n_kv_heads, keys.n_heads);
            return Err(Error::file(path, format!("{what}, found {n_kv_heads}")));
        }
        if *head_dim == 0 || head_dim % 8 != 0 || *head_dim > 256 {
            let what = format!("{}: expected a multiple of 8, at most 256, found {head_dim}", keys.head_dim);
            return Err(Error::file(path, what));
        }
        let rot = self.rope.rotary_dim;
        if rot < 2 || !rot.is_multiple_of(2) || rot > *head_dim {
            let what =
                format!("rotated dimensions: expected an even number from 2 to head_dim {head_dim}, found {rot}");
            return Err(Error::file(path, what));
        }
        let pairs = rot / 2;
        let lists: &[(&str, &Vec<f64>)] = match &self.rope.scaling {
            RopeScaling::LongRope { short, long, .. } => &[("short_factor", short), ("long_factor", long)],
            RopeScaling::Divisors(by) => &[("rope_freqs.weight", by)],
            _ => &[],
        };
        for (name, list) in lists {
            if list.len() != pairs {
                let what = format!("{name}: expected {pairs} factors, one for each pair, found {}", list.len());
                return Err(Error::file(path, what));
            }
        }
        self.check_rope().map_err(|what| Error::file(path, what))
    }

    /// That the rotary embedding gives usable numbers at every length, whatever its parts are called in the file.
    fn check_rope(&self) -> Result<(), String> {
        if self.max_positions > MAX_POSITIONS {
            return Err(format!(
                "{} positions after the stretch: expected at most {MAX_POSITIONS}",
                self.max_positions
            ));
        }
        self.rope.check(self.max_positions)
    }

    /// Width of the rows of q, k and v together.
    pub fn qkv_width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Softmax scale.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Numbers in all weight matrices and norms, tied ones once.
    pub fn parameters(&self) -> u64 {
        let [h, d, ffn] = [self.hidden, self.head_dim, self.ffn].map(|n| n as u64);
        let attention = self.qkv_width() as u64 * h + self.n_heads as u64 * d * h;
        let tables = self.vocab as u64 * h * if self.tied { 1 } else { 2 };
        self.n_layers as u64 * (attention + 3 * ffn * h + 2 * h) + tables + h
    }
}

/// The `eos_token_id` of a `generation_config.json`.
pub(super) fn eos_of(path: &Path, text: &str) -> Result<Vec<u32>> {
    let object = object(path, text)?;
    Fields { path, prefix: "", object: &object }.ids("eos_token_id")
}

/// What a `config.json` says beside the model's shape.
#[derive(Default)]
pub(super) struct Remarks {
    /// `_name_or_path`: where the checkpoint was made from, in many files its published name.
    pub name: Option<String>,
    /// Head patterns within `dual_chunk_attention_config`, as JSON.
    pub sparse_attention: Option<String>,
}

impl Remarks {
    /// Of the text of a `config.json`.
    pub fn read(path: &Path, text: &str) -> Result<Self> {
        let object = object(path, text)?;
        let f = Fields { path, prefix: "", object: &object };
        let dual = f.object("dual_chunk_attention_config")?;
        let sparse = dual.and_then(|d| d.get("sparse_attention_config")).filter(|v| !v.is_null());
        let name = object.get("_name_or_path").and_then(Value::as_str).filter(|name| !name.is_empty());
        Ok(Self { name: name.map(str::to_owned), sparse_attention: sparse.map(Value::to_string) })
    }
}

fn norm_eps(f: &Fields, key: &str) -> Result<f32> {
    let eps = f.required_positive(key)? as f32;
    if eps > 0.0 && eps < 1.0 { Ok(eps) } else { Err(f.error(key, "a number above 0 and below 1", eps)) }
}

fn object(path: &Path, text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::file(path, "expected a JSON object, found another value")),
        Err(e) => Err(Error::file(path, format!("expected a JSON object: {e}"))),
    }
}

pub(super) fn head_dim(f: &Fields, keys: &Keys) -> Result<usize> {
    if let Some(d) = f.count(keys.head_dim)? {
        return Ok(d);
    }
    let (hidden, heads) = (f.required_count(keys.hidden, 1..=1 << 20)?, f.required_count(keys.n_heads, 1..=4096)?);
    if hidden % heads != 0 {
        let expected = format!("it, or a multiple of {} = {heads} in {}", keys.n_heads, keys.hidden);
        return Err(f.error(keys.head_dim, &expected, format!("{} = {hidden}", keys.hidden)));
    }
    Ok(hidden / heads)
}

pub(super) fn unsupported_architecture(path: &Path, name: &str) -> Error {
    let list = family::supported();
    Error::Unsupported(format!("{}: architecture {name:?}; supported are: {list}", path.display()))
}

fn dual_chunk(f: &Fields) -> Result<Option<DualChunk>> {
    let Some(object) = f.object("dual_chunk_attention_config")? else { return Ok(None) };
    let d = Fields { prefix: "dual_chunk_attention_config.", object, ..*f };
    let chunk = d.required_count("chunk_size", 2..=1 << 31)?;
    let local = d.required_count("local_size", 1..=chunk - 1)?;
    let original = d.count("original_max_position_embeddings")?.unwrap_or(usize::MAX);
    Ok(Some(DualChunk { chunk, local, original }))
}

#[cfg(test)]
mod tests {
    use super::scaling::yarn;
    use super::*;
    use serde_json::json;

    /// A small valid config of a family with these fields changed; `null` takes a field away.
    fn with(model_type: &str, changes: Value) -> Result<DecoderConfig> {
        let mut config = json!({
            "model_type": model_type, "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 640, "vocab_size": 1000, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "num_layers": 4, "ffn_hidden_size": 640, "padded_vocab_size": 1000,
            "layernorm_epsilon": 1e-5, "seq_length": 4096, "multi_query_group_num": 2,
        });
        let object = config.as_object_mut().unwrap();
        object.extend(changes.as_object().unwrap().clone());
        object.retain(|_, v| !v.is_null());
        DecoderConfig::from_json(Path::new("config.json"), &config.to_string())
    }

    fn refused(model_type: &str, changes: Value) -> String {
        let error = with(model_type, changes.clone()).expect_err(&changes.to_string());
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn defaults_are_those_of_the_family() {
        let llama = with("llama", json!({})).unwrap();
        assert_eq!((llama.head_dim, llama.rope.rotary_dim, llama.rope.base), (64, 64, 10000.0));
        assert!(!llama.qkv_bias && !llama.o_bias && !llama.tied && !llama.rope.interleaved);
        let llama = with("llama", json!({"attention_bias": true, "num_key_value_heads": null})).unwrap();
        assert!(llama.qkv_bias && llama.o_bias && llama.n_kv_heads == 4);
        let qwen = with("qwen2", json!({})).unwrap();
        assert!(qwen.qkv_bias && !qwen.o_bias);
        let glm = with("glm", json!({"attention_bias": true, "head_dim": 128})).unwrap();
        assert!(glm.qkv_bias && !glm.o_bias && glm.rope.interleaved);
        assert_eq!((glm.head_dim, glm.rope.rotary_dim), (128, 64));
        let chat = with("chatglm", json!({"rope_ratio": 500, "multi_query_attention": false})).unwrap();
        assert_eq!((chat.n_kv_heads, chat.rope.base, chat.rope.rotary_dim), (4, 5e6, 32));
    }

    #[test]
    fn eos_is_one_id_or_a_list() {
        assert_eq!(with("llama", json!({"eos_token_id": 2})).unwrap().eos, [2]);
        assert_eq!(with("llama", json!({"eos_token_id": [5, 7]})).unwrap().eos, [5, 7]);
        assert!(refused("llama", json!({"eos_token_id": "</s>"})).contains("eos_token_id"));
    }

    #[test]
    fn every_scaling_is_read_in_both_forms() {
        let scaling = |value: Value| with("llama", json!({"rope_scaling": value})).unwrap().rope.scaling;
        assert_eq!(scaling(json!({"type": "linear", "factor": 4.0})), RopeScaling::Linear { factor: 4.0 });
        let dynamic = RopeScaling::Dynamic { factor: 2.0, original: 4096 };
        assert_eq!(scaling(json!({"rope_type": "dynamic", "factor": 2.0})), dynamic);
        assert_eq!(scaling(json!({"rope_type": "default"})), RopeScaling::None);
        let yarn = scaling(json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}));
        let attention_factor = 0.1 * 4f64.ln() + 1.0;
        let want = |attention_factor, truncate| RopeScaling::Yarn {
            factor: 4.0,
            original: 2048,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate,
            attention_factor,
        };
        assert_eq!(yarn, want(attention_factor, true));
        let yarn = |extra: Value| {
            let mut new = json!({"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                "original_max_position_embeddings": 2048});
            new.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let config = with("llama", json!({"rope_parameters": new})).unwrap();
            assert_eq!(config.rope.base, 1e6);
            config.rope.scaling
        };
        assert_eq!(yarn(json!({"attention_factor": 1.5, "truncate": false})), want(1.5, false));
        // DeepSeek's form: the quotient of two factors.
        let quotient = (0.1 * 0.7 * 4f64.ln() + 1.0) / attention_factor;
        assert_eq!(yarn(json!({"mscale": 0.7, "mscale_all_dim": 1.0})), want(quotient, true));
        // Both generations of Phi-3: `su` is the older name.
        for kind in ["su", "longrope"] {
            let lists = json!({"type": kind, "short_factor": vec![1.0; 32], "long_factor": vec![2.0; 32]});
            let changes = json!({"rope_scaling": lists, "original_max_position_embeddings": 1024});
            match with("phi3", changes).unwrap().rope.scaling {
                RopeScaling::LongRope { original: 1024, attention_factor, .. } => {
                    assert!((attention_factor - (1.0 + 4f64.ln() / 1024f64.ln()).sqrt()).abs() < 1e-15);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_stretch_widens_the_positions() {
        let positions = |value: Value| with("qwen2", json!({"rope_scaling": value})).unwrap().max_positions;
        assert_eq!(positions(Value::Null), 4096);
        let yarn = |original| json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": original});
        assert_eq!(positions(yarn(4096)), 16384);
        assert_eq!(positions(yarn(512)), 4096);
        assert_eq!(positions(json!({"type": "dynamic", "factor": 2.0})), 8192);
        let mut config = with("qwen2", json!({})).unwrap();
        config.override_rope_scaling("yarn:4").unwrap();
        assert_eq!((config.max_positions, &config.rope.scaling), (16384, &yarn_scaling()));
        // From the first training's length again, not on top of the last stretch.
        config.override_rope_scaling("linear:2").unwrap();
        assert_eq!(config.max_positions, 8192);
        config.override_rope_scaling("none").unwrap();
        assert_eq!(config.max_positions, 4096);
        for bad in ["ntk:2", "yarn:0.5", "yarn:x", "yarn:1e300", "linear:inf", "dynamic:NaN"] {
            assert!(config.override_rope_scaling(bad).is_err(), "{bad}");
        }
    }

    fn yarn_scaling() -> RopeScaling {
        yarn(4.0, 4096)
    }

    /// What the customers' checkpoints carry without using it is accepted, what is in use is refused.
    #[test]
    fn sliding_windows() {
        for inert in [
            json!({"sliding_window": null}),
            json!({"sliding_window": 4096}),
            json!({"sliding_window": 262_144}),
            json!({"sliding_window": 128, "layer_types": ["full_attention", "full_attention"]}),
            json!({"sliding_window": 128, "use_sliding_window": false}),
        ] {
            assert!(with("mistral", inert.clone()).is_ok(), "{inert}");
        }
        assert!(with("qwen2", json!({"sliding_window": 128, "max_window_layers": 2})).is_ok());
        let all_full = json!({"sliding_window": 128, "use_sliding_window": true, "max_window_layers": 4});
        assert!(with("qwen2", all_full).is_ok());
        // Mistral 7B v0.1.
        assert!(refused("mistral", json!({"sliding_window": 1024})).contains("sliding_window = 1024"));
        let some = json!({"sliding_window": 128, "use_sliding_window": true, "max_window_layers": 2});
        assert!(refused("qwen2", some).contains("sliding_window = 128"));
        let mixed = json!({"sliding_window": 128, "use_sliding_window": true,
            "layer_types": ["full_attention", "sliding_attention"]});
        assert!(refused("qwen3", mixed).contains("sliding_window = 128"));
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for name in ["gemma3", "mixtral", "qwen3_moe", "deepseek_v3"] {
            let text = refused(name, json!({}));
            assert!(text.contains(&format!("{name:?}")), "{text}");
            for family in ["llama", "mistral", "qwen2", "qwen3", "phi3", "glm", "glm4", "chatglm"] {
                assert!(text.contains(&format!("{family} (")), "{text}");
            }
        }
        for (changes, named) in [
            (json!({"hidden_act": "gelu"}), "\"gelu\""),
            (json!({"num_local_experts": 8}), "num_local_experts = 8"),
            (json!({"rmsnorm": false}), "rmsnorm = false"),
            (json!({"rope_scaling": {"type": "mrope"}}), "rope_type \"mrope\""),
        ] {
            let text = refused("llama", changes);
            assert!(text.starts_with("not supported: config.json: ") && text.contains(named), "{text}");
        }
    }

    #[test]
    fn wrong_fields_are_named_with_both_values() {
        for (changes, text) in [
            (json!({"num_hidden_layers": 0}), "num_hidden_layers: expected a whole number from 1 to 4096, found 0"),
            (json!({"vocab_size": null}), "vocab_size: expected a whole number from 1 to 16777216, found nothing"),
            (
                json!({"hidden_size": 1e12}),
                "hidden_size: expected a whole number from 1 to 1048576, found 1000000000000",
            ),
            (json!({"hidden_size": -1}), "hidden_size: expected a whole number of at least 0, found -1"),
            (
                json!({"num_attention_heads": "4"}),
                "num_attention_heads: expected a whole number of at least 0, found \"4\"",
            ),
            (
                json!({"num_key_value_heads": 3}),
                "num_key_value_heads: expected a divisor of num_attention_heads = 4, found 3",
            ),
            (
                json!({"num_key_value_heads": 0}),
                "num_key_value_heads: expected a divisor of num_attention_heads = 4, found 0",
            ),
            (json!({"head_dim": 33}), "head_dim: expected a multiple of 8, at most 256, found 33"),
            (json!({"head_dim": 512}), "head_dim: expected a multiple of 8, at most 256, found 512"),
            (
                json!({"hidden_size": 255}),
                "head_dim: expected it, or a multiple of num_attention_heads = 4 in hidden_size, found hidden_size = 255",
            ),
            (json!({"rms_norm_eps": 0}), "rms_norm_eps: expected a positive number, found 0"),
            (json!({"rms_norm_eps": 1e300}), "rms_norm_eps: expected a number above 0 and below 1, found inf"),
            (json!({"rope_theta": 1e300}), "rope_theta: expected a number above 1 and at most 1e15, found 1e300"),
            (json!({"rope_theta": 0.5}), "rope_theta: expected a number above 1 and at most 1e15, found 0.5"),
            (
                json!({"partial_rotary_factor": 0.0}),
                "partial_rotary_factor: expected a number above 0 and at most 1, found 0",
            ),
            (
                json!({"partial_rotary_factor": 0.01}),
                "rotated dimensions: expected an even number from 2 to head_dim 64, found 0",
            ),
            (
                json!({"rope_scaling": {"type": "linear"}}),
                "rope_scaling.factor: expected a positive number, found nothing",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 0.5}}),
                "rope_scaling.factor: expected a number from 1 to 4096, found 0.5",
            ),
            (
                json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": -1}}),
                "rope scaling: attention factor: expected 0.01 to 100, found -1.0",
            ),
            (
                json!({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_slow": -1}}),
                "rope_scaling.beta_slow: expected a number above 0 and at most beta_fast = 32, found -1",
            ),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 4096}, "max_position_embeddings": 1u64 << 31}),
                "8796093022208 positions after the stretch: expected at most 2147483648",
            ),
            (json!({"rope_scaling": "linear"}), "rope_scaling: expected an object, found \"linear\""),
            (json!({"tie_word_embeddings": "no"}), "tie_word_embeddings: expected true or false, found \"no\""),
        ] {
            assert_eq!(refused("llama", changes), format!("config.json: {text}"));
        }
        let short = json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": vec![1.0; 32]}, "original_max_position_embeddings": 512});
        let text = refused("phi3", short);
        assert_eq!(text, "config.json: short_factor: expected 32 factors, one for each pair, found 1");
        let mut lists = json!({"type": "longrope", "short_factor": vec![1.0; 32], "long_factor": vec![1.0; 32]});
        lists["long_factor"][5] = json!(1e300);
        let text = refused("phi3", json!({"rope_scaling": lists, "original_max_position_embeddings": 512}));
        assert!(text.contains("rope: pair 5 turns by 2.371"), "{text}");
        for text in ["", "[1]", "{", "{\"model_type\": 5}"] {
            assert!(DecoderConfig::from_json(Path::new("config.json"), text).is_err(), "{text}");
        }
    }

    #[test]
    fn dual_chunk_attention_is_read() {
        let dca = json!({"dual_chunk_attention_config": {"chunk_size": 262_144, "local_size": 8192,
            "original_max_position_embeddings": 262_144}});
        let config = with("qwen2", dca).unwrap();
        assert_eq!(config.dual_chunk, Some(DualChunk { chunk: 262_144, local: 8192, original: 262_144 }));
        let bad = json!({"dual_chunk_attention_config": {"chunk_size": 4096, "local_size": 4096}});
        assert!(refused("qwen2", bad).contains("dual_chunk_attention_config.local_size"));
    }
}
