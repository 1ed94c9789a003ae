//! The supported families as data: what the keys of their configuration files and the names of their tensors are, and
//! the few switches by which they differ from a plain Llama decoder.

/// Where a yes or no comes from.
#[derive(Clone, Copy, Debug)]
pub enum Switch {
    /// The same for every model of the family.
    Always(bool),
    /// A key of the configuration file; the family's own class takes the second value where the key is missing.
    Key(&'static str, bool),
}

/// When a `sliding_window` in the configuration is in use.
#[derive(Clone, Copy, Debug)]
pub enum Window {
    /// Whenever it is set and shorter than the model's positions.
    WhenSet,
    /// Only where `use_sliding_window` is true.
    WhenSwitched,
}

/// Keys of a configuration file, and of the metadata of a GGUF file (there without their `ARCHITECTURE.`).
#[derive(Debug)]
#[allow(missing_docs, reason = "named as the fields of DecoderConfig that they fill")]
pub struct Keys {
    pub n_layers: &'static str,
    pub hidden: &'static str,
    pub n_heads: &'static str,
    pub n_kv_heads: &'static str,
    pub head_dim: &'static str,
    pub ffn: &'static str,
    pub vocab: &'static str,
    pub norm_eps: &'static str,
    pub max_positions: &'static str,
}

/// Keys of a `config.json` as transformers writes it.
pub static CONFIG_KEYS: Keys = Keys {
    n_layers: "num_hidden_layers",
    hidden: "hidden_size",
    n_heads: "num_attention_heads",
    n_kv_heads: "num_key_value_heads",
    head_dim: "head_dim",
    ffn: "intermediate_size",
    vocab: "vocab_size",
    norm_eps: "rms_norm_eps",
    max_positions: "max_position_embeddings",
};

/// Keys of the `config.json` of the original ChatGLM and GLM-4 checkpoints.
pub static CHATGLM_KEYS: Keys = Keys {
    n_layers: "num_layers",
    hidden: "hidden_size",
    n_heads: "num_attention_heads",
    n_kv_heads: "multi_query_group_num",
    head_dim: "kv_channels",
    ffn: "ffn_hidden_size",
    vocab: "padded_vocab_size",
    norm_eps: "layernorm_epsilon",
    max_positions: "seq_length",
};

/// Keys of GGUF metadata, after the architecture's name and a dot.
pub static GGUF_KEYS: Keys = Keys {
    n_layers: "block_count",
    hidden: "embedding_length",
    n_heads: "attention.head_count",
    n_kv_heads: "attention.head_count_kv",
    head_dim: "attention.key_length",
    ffn: "feed_forward_length",
    vocab: "vocab_size",
    norm_eps: "attention.layer_norm_rms_epsilon",
    max_positions: "context_length",
};

/// What a model's tensors are called. The names of a layer follow `layer` with the number in place of `{}`; those of
/// matrices are without `.weight` and `.bias`.
#[derive(Debug)]
pub struct Names {
    /// `[vocab, hidden]`.
    pub embed: &'static str,
    /// `[hidden]`.
    pub final_norm: &'static str,
    /// `[vocab, hidden]`, missing where it is tied to `embed`.
    pub lm_head: &'static str,
    /// What the names of a layer begin with.
    pub layer: &'static str,
    /// `[hidden]`, before attention.
    pub attn_norm: &'static str,
    /// Rows q, k, v in one matrix or in three; the first of these forms that the file has is read.
    pub qkv: &'static [&'static [&'static str]],
    /// `[hidden, heads * head_dim]`.
    pub o: &'static str,
    /// `[hidden]`, before the MLP.
    pub ffn_norm: &'static str,
    /// Rows gate, up in one matrix or in two; the first of these forms that the file has is read.
    pub gate_up: &'static [&'static [&'static str]],
    /// `[hidden, ffn]`.
    pub down: &'static str,
    /// `[head_dim]`, q and k (Qwen3).
    pub qk_norms: [&'static str; 2],
    /// `[hidden]`, after attention and after the MLP (GLM-4-0414).
    pub post_norms: [&'static str; 2],
}

/// Names in a transformers checkpoint.
pub static CHECKPOINT_NAMES: Names = Names {
    embed: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    lm_head: "lm_head.weight",
    layer: "model.layers.{}.",
    attn_norm: "input_layernorm.weight",
    qkv: &[&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], &["self_attn.qkv_proj"]],
    o: "self_attn.o_proj",
    ffn_norm: "post_attention_layernorm.weight",
    gate_up: &[&["mlp.gate_proj", "mlp.up_proj"], &["mlp.gate_up_proj"]],
    down: "mlp.down_proj",
    qk_norms: ["self_attn.q_norm.weight", "self_attn.k_norm.weight"],
    post_norms: ["post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"],
};

/// Names in the original ChatGLM and GLM-4 checkpoints. Their `transformer.rotary_pos_emb.inv_freq` is a buffer of base
/// 10000 without the model's `rope_ratio`, and is not read.
pub static CHATGLM_NAMES: Names = Names {
    embed: "transformer.embedding.word_embeddings.weight",
    final_norm: "transformer.encoder.final_layernorm.weight",
    lm_head: "transformer.output_layer.weight",
    layer: "transformer.encoder.layers.{}.",
    attn_norm: "input_layernorm.weight",
    qkv: &[&["self_attention.query_key_value"]],
    o: "self_attention.dense",
    ffn_norm: "post_attention_layernorm.weight",
    gate_up: &[&["mlp.dense_h_to_4h"]],
    down: "mlp.dense_4h_to_h",
    qk_norms: [""; 2],
    post_norms: [""; 2],
};

/// Names in a GGUF file. A fused gate and up is called `ffn_up` there, so the pair is looked for first.
pub static GGUF_NAMES: Names = Names {
    embed: "token_embd.weight",
    final_norm: "output_norm.weight",
    lm_head: "output.weight",
    layer: "blk.{}.",
    attn_norm: "attn_norm.weight",
    qkv: &[&["attn_q", "attn_k", "attn_v"], &["attn_qkv"]],
    o: "attn_output",
    ffn_norm: "ffn_norm.weight",
    gate_up: &[&["ffn_gate", "ffn_up"], &["ffn_up"]],
    down: "ffn_down",
    qk_norms: ["attn_q_norm.weight", "attn_k_norm.weight"],
    post_norms: ["post_attention_norm.weight", "post_ffw_norm.weight"],
};

/// One family.
#[derive(Debug)]
pub struct Family {
    /// `model_type` of its `config.json`.
    pub model_type: &'static str,
    /// `general.architecture` of its GGUF files, if there are any.
    pub gguf: Option<&'static str>,
    /// Models that users know it by, for the list in an error.
    pub models: &'static str,
    /// Keys of its `config.json`.
    pub keys: &'static Keys,
    /// Names of its tensors in a checkpoint directory.
    pub names: &'static Names,
    /// Whether q, k and v have a bias.
    pub qkv_bias: Switch,
    /// Whether the output projection of attention has one.
    pub o_bias: Switch,
    /// Whether gate, up and down have one.
    pub mlp_bias: Switch,
    /// RMSNorm over each head of q and k before RoPE.
    pub qk_norm: bool,
    /// A norm after attention and after the MLP, before the residual.
    pub post_norms: bool,
    /// RoPE pairs are (2i, 2i + 1).
    pub interleaved: bool,
    /// The same in its GGUF files: converters permute the rows of Llama's q and k so that pairs lie side by side. Scores
    /// do not change under a permutation of both, so the permuted rows are used as they are.
    pub gguf_interleaved: bool,
    /// Share of a head that rotates, where the configuration does not say.
    pub rotary_fraction: f64,
    /// When a sliding window counts.
    pub window: Window,
    /// Whether the output matrix is the embedding, where the configuration does not say.
    pub tied: bool,
}

const LLAMA: Family = Family {
    model_type: "llama",
    gguf: Some("llama"),
    models: "Llama 2, 3, 3.1 and their 262k to 4M versions, Yi, SmolLM2",
    keys: &CONFIG_KEYS,
    names: &CHECKPOINT_NAMES,
    qkv_bias: Switch::Key("attention_bias", false),
    o_bias: Switch::Key("attention_bias", false),
    mlp_bias: Switch::Key("mlp_bias", false),
    qk_norm: false,
    post_norms: false,
    interleaved: false,
    gguf_interleaved: true,
    rotary_fraction: 1.0,
    window: Window::WhenSet,
    tied: false,
};

/// Every supported family. Mistral's GGUF files call themselves `llama`.
pub static FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        model_type: "mistral",
        gguf: None,
        models: "Mistral 7B v0.2 and later",
        qkv_bias: Switch::Always(false),
        o_bias: Switch::Always(false),
        mlp_bias: Switch::Always(false),
        ..LLAMA
    },
    Family {
        model_type: "qwen2",
        gguf: Some("qwen2"),
        models: "Qwen2, Qwen2.5",
        qkv_bias: Switch::Always(true),
        o_bias: Switch::Always(false),
        mlp_bias: Switch::Always(false),
        gguf_interleaved: false,
        window: Window::WhenSwitched,
        ..LLAMA
    },
    Family {
        model_type: "qwen3",
        gguf: Some("qwen3"),
        models: "Qwen3 (not MoE)",
        mlp_bias: Switch::Always(false),
        qk_norm: true,
        gguf_interleaved: false,
        window: Window::WhenSwitched,
        ..LLAMA
    },
    Family {
        model_type: "phi3",
        gguf: Some("phi3"),
        models: "Phi-3 mini and medium, Phi-4",
        qkv_bias: Switch::Always(false),
        o_bias: Switch::Always(false),
        mlp_bias: Switch::Always(false),
        gguf_interleaved: false,
        ..LLAMA
    },
    Family {
        model_type: "glm",
        gguf: None,
        models: "GLM-4-9B in transformers' layout",
        o_bias: Switch::Always(false),
        mlp_bias: Switch::Always(false),
        interleaved: true,
        rotary_fraction: 0.5,
        ..LLAMA
    },
    Family {
        model_type: "glm4",
        gguf: Some("glm4"),
        models: "GLM-4-0414",
        o_bias: Switch::Always(false),
        mlp_bias: Switch::Always(false),
        post_norms: true,
        interleaved: true,
        rotary_fraction: 0.5,
        ..LLAMA
    },
    Family {
        model_type: "chatglm",
        gguf: Some("chatglm"),
        models: "ChatGLM3, GLM-4-9B-chat and -1M as published",
        keys: &CHATGLM_KEYS,
        names: &CHATGLM_NAMES,
        qkv_bias: Switch::Key("add_qkv_bias", false),
        o_bias: Switch::Key("add_bias_linear", false),
        mlp_bias: Switch::Key("add_bias_linear", false),
        interleaved: true,
        rotary_fraction: 0.5,
        ..LLAMA
    },
];

/// The families as an error lists them.
pub fn supported() -> String {
    FAMILIES.iter().map(|f| format!("{} ({})", f.model_type, f.models)).collect::<Vec<_>>().join(", ")
}
