//! Files of strangers: good ones of each kind, damaged in every way that a program can do quickly, and read, loaded and run.
//!
//! Whatever comes of it, it is an answer or one line of error: no panic, no hang, no allocation for what a file only claims. The
//! suite takes a thin, fixed choice of the damages; `MINFERENCE_MUTATIONS=all` takes all of them (minutes).

mod gguf_writer;

use gguf_writer::{GgufWriter, text};
use minference::attend::{AttendOptions, attend_file};
use minference::backend::cpu::Cpu;
use minference::chat::ChatTemplate;
use minference::engine::{Engine, EngineOptions};
use minference::model::Model;
use minference::pattern::{AttentionMode, HeadPattern, PatternConfig};
use minference::sample::Sampler;
use minference::text::Text;
use minference::tokenizer::Tokenizer;
use minference::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// The slowest case on an idle machine takes a few hundredths of this.
const LIMIT: Duration = Duration::from_secs(5);

const WIDTH: u64 = 32;
const VOCAB: u64 = 40;

/// Counts what came of the cases of one test, and keeps those that were neither an answer nor an error.
struct Judge {
    name: &'static str,
    /// Every so many cases, one is run.
    stride: usize,
    cases: usize,
    answered: usize,
    refusals: BTreeMap<String, usize>,
    faults: Vec<String>,
}

impl Judge {
    /// Of all cases, one in `thin` where not all are asked for.
    fn new(name: &'static str, thin: usize) -> Self {
        let all = std::env::var("MINFERENCE_MUTATIONS").is_ok_and(|v| v == "all");
        let stride = if all { 1 } else { thin };
        Self { name, stride, cases: 0, answered: 0, refusals: BTreeMap::new(), faults: Vec::new() }
    }

    fn case(&mut self, label: impl FnOnce() -> String, run: impl FnOnce() -> Result<()>) {
        self.cases += 1;
        if !self.cases.is_multiple_of(self.stride) {
            return;
        }
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(run));
        let seconds = start.elapsed();
        let fault = match outcome {
            _ if seconds > LIMIT => format!("took {seconds:?}"),
            Err(_) => "panicked".to_owned(),
            Ok(Ok(())) => return self.answered += 1,
            Ok(Err(error)) => {
                let words = error.to_string();
                let kind = words.chars().filter(|c| !c.is_ascii_digit()).take(60).collect();
                *self.refusals.entry(kind).or_default() += 1;
                // The one failure that bad numbers in good form may end in: logits that are NaN.
                let bad_input = error.exit_code() == 2 || matches!(error, Error::Device(_));
                match words.is_empty() || words.len() > 1000 || !bad_input {
                    true => format!("says {words:?}"),
                    false => return,
                }
            }
        };
        self.faults.push(format!("{}: {fault}", label()));
    }

    /// Damage that no reader minds would show nothing.
    fn finish(self) {
        let refused: usize = self.refusals.values().sum();
        println!("{}: {} answered, {refused} refused in {} ways", self.name, self.answered, self.refusals.len());
        assert!(self.faults.is_empty(), "{}: {} faults:\n{}", self.name, self.faults.len(), self.faults.join("\n"));
        assert!(refused > self.answered / 20 && self.refusals.len() > 3, "{}: {refused} refused", self.name);
    }
}

/// Writes the numbers that lengths, counts, offsets, types and sizes break at over every byte of `bytes`, flips its bits, and
/// cuts it there.
fn damage(bytes: &[u8], upto: usize, mut each: impl FnMut(String, Vec<u8>)) {
    let numbers: [&[u8]; 9] = [
        &u64::MAX.to_le_bytes(),
        &(1u64 << 63).to_le_bytes(),
        &(1u64 << 32).to_le_bytes(),
        &0u64.to_le_bytes(),
        &u32::MAX.to_le_bytes(),
        &f32::NAN.to_le_bytes(),
        &f32::INFINITY.to_le_bytes(),
        &(-1f32).to_le_bytes(),
        &1e30f32.to_le_bytes(),
    ];
    for at in 0..upto {
        for flip in [0x01, 0x10, 0x80, 0xff] {
            let mut other = bytes.to_vec();
            other[at] ^= flip;
            each(format!("byte {at} ^ {flip:#x}"), other);
        }
        for number in numbers.iter().filter(|n| at + n.len() <= bytes.len()) {
            let mut other = bytes.to_vec();
            other[at..at + number.len()].copy_from_slice(number);
            each(format!("bytes {at}.. = {number:x?}"), other);
        }
        each(format!("cut at {at}"), bytes[..at].to_vec());
        each(format!("byte {at} left out"), [&bytes[..at], &bytes[at + 1..]].concat());
    }
}

/// Text to tokens, a pre-fill by a sparse pattern, an answer, and back to text.
fn answer(model: Model) -> Result<()> {
    let text = model.text()?.clone();
    let ids = text.tokenizer.encode("the cat", true)?;
    if let Some(chat) = text.chat()? {
        chat.render(&[minference::chat::Message::user("the")], true)?;
    }
    let mut engine = Engine::new(Cpu::new(), model, EngineOptions { answer_room: 4, ..EngineOptions::default() })?;
    let mode = AttentionMode::Uniform(HeadPattern::VerticalSlash { columns: 4, offsets: 4 });
    let prefill = engine.prefill(&ids, &mode, &mut |_| ())?;
    assert!(prefill.logits.iter().all(|l| !l.is_nan()), "NaN in the logits");
    let answer = engine.generate(&prefill.logits, &mut Sampler::greedy(), 2, &mut |_| ())?;
    text.tokenizer.decode(&answer.ids);
    Ok(())
}

fn answer_file(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).unwrap();
    answer(Model::open(path)?)
}

/// Values that no two tensors share.
fn floats(elements: u64, seed: u64) -> Vec<u8> {
    (0..elements).flat_map(|i| (((i * 7 + seed * 13) % 23) as f32 / 64.0 - 0.17).to_le_bytes()).collect()
}

type Metadata = Vec<(String, u32, Vec<u8>)>;

/// A metadata value of every kind that a small model has.
fn metadata(spm: bool) -> Metadata {
    let list = |of: u32, elements: Vec<Vec<u8>>| {
        [&of.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes(), &elements.concat()].concat()
    };
    let u32s = |n: u32| n.to_le_bytes().to_vec();
    let space = if spm { "\u{2581}" } else { "\u{120}" };
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend(('a'..='z').map(String::from));
    tokens.extend([space.to_owned(), "th".into(), "the".into(), format!("{space}c"), "at".into()]);
    tokens.extend((tokens.len()..VOCAB as usize).map(|i| format!("<{i}>")));
    let kinds = tokens.iter().enumerate().map(|(i, t)| match i {
        0 => 2i32,
        1 | 2 => 3,
        _ if t.starts_with('<') => 4,
        _ => 1,
    });
    let kinds: Vec<Vec<u8>> = kinds.map(|k| k.to_le_bytes().to_vec()).collect();
    let mut out: Metadata = vec![
        ("general.architecture".into(), 8, text("llama")),
        ("general.alignment".into(), 4, u32s(32)),
        ("general.name".into(), 8, text("small")),
        ("llama.block_count".into(), 4, u32s(1)),
        ("llama.embedding_length".into(), 4, u32s(WIDTH as u32)),
        ("llama.feed_forward_length".into(), 4, u32s(WIDTH as u32)),
        ("llama.attention.head_count".into(), 4, u32s(4)),
        ("llama.attention.head_count_kv".into(), 4, u32s(2)),
        ("llama.attention.key_length".into(), 4, u32s(8)),
        ("llama.attention.layer_norm_rms_epsilon".into(), 6, 1e-5f32.to_le_bytes().to_vec()),
        ("llama.context_length".into(), 4, u32s(512)),
        ("llama.rope.dimension_count".into(), 4, u32s(8)),
        ("llama.rope.freq_base".into(), 6, 1e4f32.to_le_bytes().to_vec()),
        ("llama.rope.scaling.type".into(), 8, text("yarn")),
        ("llama.rope.scaling.factor".into(), 6, 4f32.to_le_bytes().to_vec()),
        ("llama.rope.scaling.original_context_length".into(), 4, u32s(128)),
        ("llama.rope.scaling.attn_factor".into(), 6, 1f32.to_le_bytes().to_vec()),
        ("tokenizer.ggml.model".into(), 8, text(if spm { "llama" } else { "gpt2" })),
        ("tokenizer.ggml.tokens".into(), 9, list(8, tokens.iter().map(|t| text(t)).collect())),
        ("tokenizer.ggml.token_type".into(), 9, list(5, kinds)),
        ("tokenizer.ggml.bos_token_id".into(), 4, u32s(1)),
        ("tokenizer.ggml.eos_token_id".into(), 4, u32s(2)),
        ("tokenizer.ggml.add_bos_token".into(), 7, vec![1]),
        ("tokenizer.chat_template".into(), 8, text("{% for m in messages %}{{ m.content }}{% endfor %}")),
    ];
    match spm {
        true => {
            let scores = (0..tokens.len()).map(|i| (-(i as f32)).to_le_bytes().to_vec()).collect();
            out.push(("tokenizer.ggml.scores".into(), 9, list(6, scores)));
        }
        false => {
            let merges = ["t h", "th e", "\u{120} c", "a t"].map(text).into();
            out.push(("tokenizer.ggml.merges".into(), 9, list(8, merges)));
            out.push(("tokenizer.ggml.pre".into(), 8, text("smollm")));
        }
    }
    out
}

/// Name, shape (outermost first), type, bytes.
type Tensors = Vec<(String, Vec<u64>, u32, Vec<u8>)>;

fn tensors() -> Tensors {
    let mut out = Tensors::new();
    let mut add = |name: &str, shape: &[u64]| {
        let elements = shape.iter().product();
        out.push((name.into(), shape.into(), 0, floats(elements, out.len() as u64)));
    };
    add("token_embd.weight", &[VOCAB, WIDTH]);
    add("output_norm.weight", &[WIDTH]);
    for (name, rows) in [("attn_q", WIDTH), ("attn_k", 16), ("attn_v", 16), ("attn_output", WIDTH)] {
        add(&format!("blk.0.{name}.weight"), &[rows, WIDTH]);
    }
    for name in ["ffn_gate", "ffn_up", "ffn_down"] {
        add(&format!("blk.0.{name}.weight"), &[WIDTH, WIDTH]);
    }
    for name in ["attn_norm", "ffn_norm"] {
        add(&format!("blk.0.{name}.weight"), &[WIDTH]);
    }
    out
}

fn gguf(metadata: &Metadata, tensors: &Tensors) -> Vec<u8> {
    let writer = metadata.iter().fold(GgufWriter::default(), |w, (key, kind, bytes)| w.raw(key, *kind, bytes));
    tensors.iter().fold(writer, |w, (name, shape, kind, bytes)| w.tensor(name, shape, *kind, bytes.clone())).finish()
}

/// A value of every kind, and the ends of each.
fn odd_metadata() -> Vec<(u32, Vec<u8>)> {
    let list = |of: u32, len: u64, bytes: &[u8]| [&of.to_le_bytes()[..], &len.to_le_bytes(), bytes].concat();
    vec![
        (0, vec![0xff]),
        (4, u32::MAX.to_le_bytes().into()),
        (4, 0u32.to_le_bytes().into()),
        (4, 1u32.to_le_bytes().into()),
        (4, 7u32.to_le_bytes().into()),
        (5, (-1i32).to_le_bytes().into()),
        (6, f32::NAN.to_le_bytes().into()),
        (6, f32::INFINITY.to_le_bytes().into()),
        (6, 1e30f32.to_le_bytes().into()),
        (6, 1e-30f32.to_le_bytes().into()),
        (6, (-4f32).to_le_bytes().into()),
        (7, vec![2]),
        (8, text("")),
        (8, text("none")),
        (8, text("{{ messages[0] * 9999999 }}{% for i in range(99999999) %}x{% endfor %}")),
        (9, list(4, 0, &[])),
        (9, list(5, 3, &[0xff; 12])),
        (9, list(8, 2, &[text("a"), text("a")].concat())),
        (9, list(8, VOCAB, &(0..VOCAB).flat_map(|i| text(&format!("x{i}"))).collect::<Vec<_>>())),
        (9, list(8, VOCAB, &(0..VOCAB).flat_map(|_| text("")).collect::<Vec<_>>())),
        (9, list(6, VOCAB, &f32::NAN.to_le_bytes().repeat(VOCAB as usize))),
        (9, list(5, VOCAB, &6i32.to_le_bytes().repeat(VOCAB as usize))),
        (10, u64::MAX.to_le_bytes().into()),
        (11, i64::MIN.to_le_bytes().into()),
        (12, f64::MAX.to_le_bytes().into()),
        (12, f64::MIN_POSITIVE.to_le_bytes().into()),
    ]
}

#[test]
fn gguf_fields() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut judge = Judge::new("gguf fields", 7);
    for spm in [false, true] {
        let (metadata, tensors) = (metadata(spm), tensors());
        answer_file(&path, &gguf(&metadata, &tensors)).unwrap();
        for i in 0..metadata.len() {
            let mut other = metadata.clone();
            let (key, ..) = other.remove(i);
            judge.case(|| format!("without {key}"), || answer_file(&path, &gguf(&other, &tensors)));
            for (kind, bytes) in odd_metadata() {
                let mut other = metadata.clone();
                (other[i].1, other[i].2) = (kind, bytes.clone());
                let label = || format!("{key} of type {kind}: {bytes:x?}");
                judge.case(label, || answer_file(&path, &gguf(&other, &tensors)));
            }
        }
        for i in 0..tensors.len() {
            let mut other = tensors.clone();
            let (name, shape, ..) = other.remove(i);
            judge.case(|| format!("without {name}"), || answer_file(&path, &gguf(&metadata, &other)));
            let shapes: [&[u64]; 9] = [
                &[],
                &[0],
                &[0, 0],
                &[1],
                &[WIDTH, 0],
                &[1, WIDTH],
                &[u64::MAX],
                &[1 << 32, 1 << 32],
                &[1, 1, 1, WIDTH],
            ];
            for new in shapes {
                let mut other = tensors.clone();
                other[i].1 = new.into();
                judge.case(|| format!("{name} {new:?}"), || answer_file(&path, &gguf(&metadata, &other)));
            }
            for kind in (0..40).chain([u32::MAX]) {
                let mut other = tensors.clone();
                other[i].2 = kind;
                judge.case(|| format!("{name} type {kind}"), || answer_file(&path, &gguf(&metadata, &other)));
            }
            for value in [f32::NAN, f32::INFINITY, f32::MAX, 0.0] {
                let mut other = tensors.clone();
                other[i].3 = value.to_le_bytes().repeat(shape.iter().product::<u64>() as usize);
                judge.case(|| format!("{name} all {value}"), || answer_file(&path, &gguf(&metadata, &other)));
            }
        }
    }
    judge.finish();
}

#[test]
fn gguf_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut judge = Judge::new("gguf bytes", 41);
    for spm in [false, true] {
        let bytes = gguf(&metadata(spm), &tensors());
        let header = bytes.len() - tensors().iter().map(|t| t.3.len().next_multiple_of(32)).sum::<usize>();
        damage(&bytes, header, |label, other| judge.case(|| label, || answer_file(&path, &other)));
    }
    judge.finish();
}

fn read(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// A config in the older form with every field that is read somewhere, and what its tensors must be.
fn config() -> Value {
    json!({
        "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 32, "vocab_size": 40, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
        "hidden_act": "silu", "tie_word_embeddings": true, "rope_theta": 1e4, "attention_bias": false, "mlp_bias": false,
        "partial_rotary_factor": 1.0, "rope_ratio": 1.0, "sliding_window": null, "use_sliding_window": false,
        "max_window_layers": 1, "layer_types": ["full_attention"], "eos_token_id": [2], "num_experts": 0, "pre_seq_len": 0,
        "multi_query_attention": true, "original_max_position_embeddings": 128, "_name_or_path": "small",
        "rope_scaling": null, "dual_chunk_attention_config": null,
    })
}

fn scalings() -> Vec<Value> {
    vec![
        Value::Null,
        json!({"type": "linear", "factor": 2.0}),
        json!({"type": "dynamic", "factor": 2.0}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128}),
        json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": true, "mscale": 1.0,
            "mscale_all_dim": 1.0, "attention_factor": 1.2, "original_max_position_embeddings": 128}),
        json!({"rope_type": "longrope", "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 2.0, 3.0, 4.0],
            "factor": 4.0, "attention_factor": 1.1, "original_max_position_embeddings": 4}),
    ]
}

/// What a JSON value may be instead.
fn odd_values() -> Vec<Value> {
    let mut out = vec![Value::Null];
    let numbers = [
        "0",
        "-1",
        "1",
        "2",
        "3",
        "1.5",
        "1e300",
        "-1e300",
        "1e-300",
        "4294967296",
        "18446744073709551615",
        "9007199254740993",
    ];
    out.extend(numbers.map(|n| serde_json::from_str(n).unwrap()));
    out.extend(["", "NaN", "Infinity", "yarn", "\u{0}", "0"].map(Value::from));
    out.extend([json!(true), json!([]), json!({}), json!([[[]]]), json!([0, -1, 1e300]), json!({"a": [null]})]);
    out
}

/// The value with each value within it in turn missing or another; lists are gone into as far as their fourth element.
fn json_damage(value: &Value, each: &mut dyn FnMut(String, Value)) {
    let mut places: Vec<String> = Vec::new();
    fn walk(value: &Value, at: String, places: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                map.iter().take(40).for_each(|(key, v)| walk(v, format!("{at}/{}", key.replace('/', "~1")), places))
            }
            Value::Array(list) => {
                list.iter().take(4).enumerate().for_each(|(i, v)| walk(v, format!("{at}/{i}"), places))
            }
            _ => {}
        }
        places.push(at);
    }
    walk(value, String::new(), &mut places);
    for place in places {
        for odd in odd_values() {
            let mut other = value.clone();
            let label = format!("{place} = {odd}");
            *other.pointer_mut(&place).unwrap() = odd;
            each(label, other);
        }
        if let Some((parent, key)) = place.rsplit_once('/') {
            let mut other = value.clone();
            match other.pointer_mut(parent).unwrap() {
                Value::Object(map) => drop(map.remove(&key.replace("~1", "/"))),
                Value::Array(list) => drop(list.remove(key.parse().unwrap())),
                _ => {}
            }
            each(format!("without {place}"), other);
        }
    }
}

fn safetensors(tensors: &[(String, Vec<u64>, Vec<u8>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// The tensors of [`config`] under the names of a checkpoint.
fn checkpoint() -> Vec<u8> {
    let names = [
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("blk.0.", "model.layers.0."),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
    ];
    let renamed = tensors().into_iter().map(|(name, shape, _, bytes)| {
        (names.iter().fold(name, |name, (from, to)| name.replace(from, to)), shape, bytes)
    });
    safetensors(&renamed.collect::<Vec<_>>())
}

/// A byte-level tokenizer of 40 tokens.
fn tokenizer() -> Value {
    let letters = ('a'..='z').map(String::from);
    let tokens = ["<unk>", "<s>", "</s>"].map(String::from).into_iter().chain(letters);
    let tokens = tokens.chain(["\u{120}", "th", "the", "\u{120}c", "at"].map(String::from));
    let vocab: serde_json::Map<String, Value> = tokens.zip(0..).map(|(t, id)| (t, Value::from(id))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": " "},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{N}"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
            "merges": [["t", "h"], ["th", "e"], ["\u{120}", "c"], ["a", "t"]]},
    })
}

fn tokenizer_config() -> Value {
    json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true, "add_eos_token": false,
        "added_tokens_decoder": {"1": {"content": "<s>", "special": true}},
        "chat_template": "{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}"})
}

fn parts(config: &str, weights: &[u8], tokenizer: &[u8], tokenizer_config: &[u8]) -> Result<()> {
    let (path, config_path) = (Path::new("small/tokenizer.json"), Path::new("small/tokenizer_config.json"));
    let text = Tokenizer::from_bytes(path, tokenizer, Some(tokenizer_config)).map(Text::new);
    let json = std::str::from_utf8(tokenizer_config).unwrap_or("{}");
    if let Some(chat) = ChatTemplate::from_tokenizer_config(config_path, json)? {
        chat.render(&[minference::chat::Message::user("the")], true)?;
    }
    answer(Model::from_parts("small", config, weights.to_vec())?.with_text(text))
}

#[test]
fn configs() {
    let (weights, tokenizer, about) =
        (checkpoint(), tokenizer().to_string().into_bytes(), tokenizer_config().to_string().into_bytes());
    let mut judge = Judge::new("configs", 11);
    let dual = json!({"chunk_size": 64, "local_size": 32, "original_max_position_embeddings": 64});
    for scaling in scalings() {
        for (dual, key) in [(&Value::Null, "rope_scaling"), (&dual, "rope_parameters")] {
            let mut config = config();
            config[key] = scaling.clone();
            config["dual_chunk_attention_config"] = dual.clone();
            parts(&config.to_string(), &weights, &tokenizer, &about).unwrap();
            json_damage(&config, &mut |label, other| {
                judge.case(|| format!("{scaling} {label}"), || parts(&other.to_string(), &weights, &tokenizer, &about));
            });
        }
    }
    judge.finish();
}

#[test]
fn weights_and_inputs() {
    let (config, tokenizer, about) =
        (config().to_string(), tokenizer().to_string().into_bytes(), tokenizer_config().to_string().into_bytes());
    let mut judge = Judge::new("safetensors", 31);
    let weights = checkpoint();
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    damage(&weights, header, |label, other| judge.case(|| label, || parts(&config, &other, &tokenizer, &about)));
    json_damage(&serde_json::from_slice(&weights[8..header]).unwrap(), &mut |label, other| {
        let text = other.to_string();
        let bytes = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &weights[header..]].concat();
        judge.case(|| label, || parts(&config, &bytes, &tokenizer, &about));
    });
    judge.finish();
}

#[test]
fn tokenizers() {
    let (config, weights, good) = (config().to_string(), checkpoint(), tokenizer());
    let about = tokenizer_config();
    let mut judge = Judge::new("tokenizers", 11);
    let mut case = |label: String, tokenizer: &[u8], about: &[u8]| {
        judge.case(|| label, || parts(&config, &weights, tokenizer, about));
    };
    let (tokenizer_bytes, about_bytes) = (good.to_string().into_bytes(), about.to_string().into_bytes());
    json_damage(&good, &mut |label, other| case(label, other.to_string().as_bytes(), &about_bytes));
    json_damage(&about, &mut |label, other| case(label, &tokenizer_bytes, other.to_string().as_bytes()));
    judge.finish();
    let mut judge = Judge::new("tokenizer bytes", 59);
    damage(&tokenizer_bytes, tokenizer_bytes.len(), |label, other| {
        judge.case(|| label, || parts(&config, &weights, &other, &about_bytes));
    });
    judge.finish();
}

#[test]
fn tokenizer_model_files() {
    let dir = tempfile::tempdir().unwrap();
    for (name, thin) in [("sp_bpe", 89), ("sp_unigram", 89)] {
        let good = read(&format!("tests/data/tokenizers/{name}/tokenizer.model"));
        let mut judge = Judge::new("tokenizer.model", thin);
        // The pieces at the front and the settings at the end; the middle is more of the front.
        let parts = [0..300, good.len() - 300..good.len()];
        for part in parts {
            let (from, upto) = (part.start, part.len());
            damage(&good[from..], upto, |label, other| {
                judge.case(
                    || format!("{from} + {label}"),
                    || {
                        std::fs::write(dir.path().join("tokenizer.model"), [&good[..from], &other].concat()).unwrap();
                        let tokenizer = Tokenizer::from_dir(dir.path())?;
                        tokenizer.decode(&tokenizer.encode("the cat, 12 \u{e9}\u{1f600}", true)?);
                        Ok(())
                    },
                );
            });
        }
        judge.finish();
    }
}

/// The file of `attend`: q, k, v, and given sets.
#[test]
fn layers_in_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qkv.safetensors");
    let tensor = |name: &str, heads: u64, seed| (name.to_owned(), vec![heads, 9, 8], floats(heads * 72, seed));
    let good = safetensors(&[tensor("q", 2, 1), tensor("k", 1, 2), tensor("v", 1, 3)]);
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let attend = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let options = AttendOptions {
            input: path.clone(),
            mode: AttentionMode::Uniform("vertical_slash:2:2".parse()?),
            layer: 0,
            index_in: None,
            compare_dense: true,
            repeat: 1,
            output: None,
            index_out: None,
        };
        attend_file(&Cpu::new(), &options).map(drop)
    };
    attend(&good).unwrap();
    let mut judge = Judge::new("attend", 13);
    damage(&good, header, |label, other| judge.case(|| label, || attend(&other)));
    json_damage(&serde_json::from_slice(&good[8..header]).unwrap(), &mut |label, other| {
        let text = other.to_string();
        judge.case(
            || label,
            || attend(&[&(text.len() as u64).to_le_bytes(), text.as_bytes(), &good[header..]].concat()),
        );
    });
    judge.finish();
}

#[test]
fn contexts_and_pattern_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.kv");
    let model = || Model::from_parts("small", &config().to_string(), checkpoint()).unwrap();
    let mode = AttentionMode::Uniform(HeadPattern::Dense);
    let mut engine = Engine::new(Cpu::new(), model(), EngineOptions::default()).unwrap();
    engine.prefill(&[1, 5, 7, 9], &mode, &mut |_| ()).unwrap();
    engine.save_context(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut judge = Judge::new("contexts", 29);
    damage(&good, header + 16, |label, other| {
        judge.case(
            || label,
            || {
                std::fs::write(&path, &other).unwrap();
                engine.load_context(&path, 8)?;
                engine.prefill(&[3], &mode, &mut |_| ()).map(drop)
            },
        );
    });
    judge.finish();

    let good = json!([{"0": ["vertical_and_slash", 30, 800, 1], "3": ["stream_llm", 100, 800, 0.5]},
        {"1": ["block_sparse", 100, 1, 1.0]}]);
    let mut judge = Judge::new("patterns", 7);
    json_damage(&good, &mut |label, other| {
        judge.case(|| label, || PatternConfig::from_json(&other.to_string())?.check_model(2, 4));
    });
    judge.finish();
}
