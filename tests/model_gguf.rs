//! GGUF files of every family: the tiny checkpoints of `family_golden`, written as llama.cpp's converter would (its names,
//! its metadata, its permuted rows of Llama's q and k), give the logits of the checkpoint they came from.

mod gguf_writer;

use gguf_writer::GgufWriter;
use minference::backend::cpu::Cpu;
use minference::engine::{Engine, EngineOptions};
use minference::model::Model;
use minference::model::rope::{RopeConfig, RopeScaling};
use minference::pattern::{AttentionMode, HeadPattern};
use minference::tensor::encode_f32;
use minference::weights::WeightFile;
use minference::{DType, Error, Result};
use std::path::{Path, PathBuf};

const F32: u32 = 0;
const BF16: u32 = 30;

/// Names of a layer's tensors: the checkpoint's, and GGUF's.
const NAMES: &[(&str, &str)] = &[
    ("model.embed_tokens.", "token_embd."),
    ("model.norm.", "output_norm."),
    ("lm_head.", "output."),
    ("transformer.embedding.word_embeddings.", "token_embd."),
    ("transformer.encoder.final_layernorm.", "output_norm."),
    ("transformer.output_layer.", "output."),
    ("transformer.encoder.layers.", "blk."),
    ("model.layers.", "blk."),
    ("post_self_attn_layernorm.", "post_attention_norm."),
    ("post_mlp_layernorm.", "post_ffw_norm."),
    ("post_attention_layernorm.", "ffn_norm."),
    ("input_layernorm.", "attn_norm."),
    ("self_attn.q_proj.", "attn_q."),
    ("self_attn.k_proj.", "attn_k."),
    ("self_attn.v_proj.", "attn_v."),
    ("self_attn.qkv_proj.", "attn_qkv."),
    ("self_attn.o_proj.", "attn_output."),
    ("self_attn.q_norm.", "attn_q_norm."),
    ("self_attn.k_norm.", "attn_k_norm."),
    ("self_attention.query_key_value.", "attn_qkv."),
    ("self_attention.dense.", "attn_output."),
    ("mlp.gate_up_proj.", "ffn_up."),
    ("mlp.dense_h_to_4h.", "ffn_up."),
    ("mlp.dense_4h_to_h.", "ffn_down."),
    ("mlp.gate_proj.", "ffn_gate."),
    ("mlp.up_proj.", "ffn_up."),
    ("mlp.down_proj.", "ffn_down."),
];

fn directory(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = [root.join("../shared/family-golden").join(name), root.join("tests/data/family").join(name)];
    let found = places.into_iter().find(|dir| dir.is_dir());
    if found.is_none() {
        println!("not run: {name} is in ../shared/family-golden only");
    }
    found
}

/// Row `2 i + j` of a head is row `j * D / 2 + i` of the checkpoint's.
fn permuted(bytes: &[u8], heads: usize, d: usize) -> Vec<u8> {
    let row = bytes.len() / heads / d;
    let from = |head: usize, r: usize| (head * d + r % 2 * (d / 2) + r / 2) * row;
    let rows = (0..heads).flat_map(|head| (0..d).map(move |r| (head, r)));
    rows.flat_map(|(head, r)| bytes[from(head, r)..][..row].to_vec()).collect()
}

/// The checkpoint as one GGUF file.
fn convert(dir: &Path, architecture: &str) -> Vec<u8> {
    let model = Model::open(dir).unwrap();
    let (c, file) = (&model.config, WeightFile::open(dir).unwrap());
    let key = |name: &str| format!("{architecture}.{name}");
    let mut out = GgufWriter::default()
        .str("general.architecture", architecture)
        .u32(&key("block_count"), c.n_layers as u32)
        .u32(&key("embedding_length"), c.hidden as u32)
        .u32(&key("feed_forward_length"), c.ffn as u32)
        .u32(&key("attention.head_count"), c.n_heads as u32)
        .u32(&key("attention.head_count_kv"), c.n_kv_heads as u32)
        .u32(&key("attention.key_length"), c.head_dim as u32)
        .u32(&key("attention.value_length"), c.head_dim as u32)
        .f32(&key("attention.layer_norm_rms_epsilon"), c.norm_eps)
        .u32(&key("rope.dimension_count"), c.rope.rotary_dim as u32)
        .f32(&key("rope.freq_base"), c.rope.base as f32)
        .u32("tokenizer.ggml.eos_token_id", 2);
    let mut positions = c.max_positions;
    match &c.rope.scaling {
        RopeScaling::Llama3 { .. } => {
            let plain = RopeConfig { scaling: RopeScaling::None, ..c.rope.clone() };
            let pairs = plain.frequencies(1).into_iter().zip(c.rope.frequencies(1));
            let divisors: Vec<f32> = pairs.map(|(plain, scaled)| (plain / scaled) as f32).collect();
            out = out.tensor(
                "rope_freqs.weight",
                &[divisors.len() as u64],
                F32,
                bytemuck::cast_slice(&divisors).to_vec(),
            );
        }
        RopeScaling::LongRope { short, long, original, attention_factor } => {
            out = out
                .u32(&key("rope.scaling.original_context_length"), *original as u32)
                .f32(&key("rope.scaling.attn_factor"), *attention_factor as f32)
                .u32(&key("attention.sliding_window"), 262_144);
            for (name, list) in [("short", short), ("long", long)] {
                let list: Vec<f32> = list.iter().map(|f| *f as f32).collect();
                let bytes = bytemuck::cast_slice(&list).to_vec();
                out = out.tensor(&format!("rope_factors_{name}.weight"), &[list.len() as u64], F32, bytes);
            }
        }
        RopeScaling::Yarn { factor, original, .. } => {
            positions = *original;
            out = out
                .str(&key("rope.scaling.type"), "yarn")
                .f32(&key("rope.scaling.factor"), *factor as f32)
                .u32(&key("rope.scaling.original_context_length"), *original as u32);
        }
        _ => {}
    }
    out = out.u32(&key("context_length"), positions as u32);
    for name in file.names().map(str::to_owned).collect::<Vec<_>>() {
        let raw = file.tensor(&name).unwrap();
        if name.ends_with("inv_freq") {
            continue;
        }
        let renamed = NAMES.iter().fold(name.clone(), |name, (from, to)| name.replace(from, to));
        let shape: Vec<u64> = raw.shape.iter().map(|d| *d as u64).collect();
        // Converters keep vectors in f32.
        let (mut kind, mut bytes) =
            if raw.dtype == DType::BF16 { (BF16, raw.bytes.to_vec()) } else { (F32, raw.bytes.to_vec()) };
        if raw.shape.len() == 1 {
            (kind, bytes) = (F32, encode_f32(DType::F32, &raw.to_f32().unwrap()).unwrap());
        }
        for (part, heads) in [("attn_q.", c.n_heads), ("attn_k.", c.n_kv_heads)] {
            if architecture == "llama" && renamed.contains(part) {
                bytes = permuted(&bytes, heads, c.head_dim);
            }
        }
        out = out.tensor(&renamed, &shape, kind, bytes);
    }
    out.finish()
}

fn open(bytes: &[u8]) -> Result<Model> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Model::open(&path)
}

fn logits(model: Model, ids: &[u32]) -> Vec<f32> {
    let mut engine = Engine::new(Cpu::new(), model, EngineOptions::default()).unwrap();
    engine.prefill(ids, &AttentionMode::Uniform(HeadPattern::Dense), &mut |_| ()).unwrap().logits
}

fn check(name: &str, architecture: &str) {
    let Some(dir) = directory(name) else { return };
    let gguf = open(&convert(&dir, architecture)).unwrap();
    let checkpoint = Model::open(&dir).unwrap();
    let (c, g) = (&checkpoint.config, &gguf.config);
    assert_eq!((c.tied, c.qkv_bias, c.qk_norm, c.post_norms), (g.tied, g.qkv_bias, g.qk_norm, g.post_norms), "{name}");
    assert_eq!((c.max_positions, c.vocab), (g.max_positions, g.vocab), "{name}");
    // Past phi3's original 96 tokens, so that both lists of factors are read.
    for tokens in [80, 120] {
        let ids: Vec<u32> = (0..tokens).map(|i| (i * 41 + 3) % 256).collect();
        let (want, got) =
            (logits(Model::open(&dir).unwrap(), &ids), logits(open(&convert(&dir, architecture)).unwrap(), &ids));
        let worst = want.iter().zip(&got).map(|(w, g)| (w - g).abs()).fold(0.0, f32::max);
        println!("{name} as {architecture}: {worst:.2e}");
        assert!(worst < 1e-3, "{name} as {architecture}, {tokens} tokens: {worst}");
    }
}

#[test]
fn llama_with_permuted_rows() {
    check("llama3", "llama");
    check("llama3.1", "llama");
    check("mistral", "llama");
}

#[test]
fn qwen() {
    check("qwen2", "qwen2");
    check("qwen2-yarn", "qwen2");
    check("qwen3", "qwen3");
}

#[test]
fn phi3_with_fused_matrices() {
    check("phi3", "phi3");
}

#[test]
fn glm() {
    check("chatglm", "chatglm");
    check("glm4", "glm4");
}

/// What would be computed wrongly is refused, and what is missing is named.
#[test]
fn files_that_cannot_be_run_are_refused() {
    let refused = |writer: GgufWriter| open(&writer.finish()).err().unwrap();
    let text = refused(GgufWriter::default().str("general.architecture", "gemma3")).to_string();
    assert!(text.contains("\"gemma3\"") && text.contains("supported are: llama"), "{text}");

    let llama = || {
        GgufWriter::default()
            .str("general.architecture", "llama")
            .u32("llama.block_count", 2)
            .u32("llama.embedding_length", 64)
            .u32("llama.feed_forward_length", 64)
            .u32("llama.attention.head_count", 8)
            .u32("llama.context_length", 4096)
            .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
            .tensor("token_embd.weight", &[16, 64], F32, vec![0; 4096])
    };
    assert!(open(&llama().finish()).is_ok());
    let experts = refused(llama().u32("llama.expert_count", 8));
    assert!(matches!(&experts, Error::Unsupported(text) if text.contains("expert_count = 8")), "{experts}");
    let window = refused(llama().u32("llama.attention.sliding_window", 1024));
    assert!(matches!(&window, Error::Unsupported(text) if text.contains("1024")), "{window}");
    let scaling = refused(llama().str("llama.rope.scaling.type", "new"));
    assert!(matches!(&scaling, Error::Unsupported(text) if text.contains("\"new\"")), "{scaling}");
    let heads = refused(llama().u32("llama.attention.head_count_kv", 3)).to_string();
    assert!(
        heads.ends_with("attention.head_count_kv: expected a divisor of attention.head_count = 8, found 3"),
        "{heads}"
    );
    let none = refused(GgufWriter::default().str("general.architecture", "llama")).to_string();
    assert!(none.contains("llama.") && none.contains("found nothing"), "{none}");

    // A model without its tensors opens, and says so when it is loaded.
    let model = open(&llama().finish()).unwrap();
    let error = Engine::new(Cpu::new(), model, EngineOptions::default()).err().unwrap().to_string();
    assert!(error.contains("tensor blk.0.attn_norm.weight: not in the file"), "{error}");
}
