//! The needle model built into the program against transformers (`tests/data/make_needle_golden.py`), and what an engine
//! does at its edges: chunks, cached prefixes, another question, bad prompts, memory, an interrupt, random weights.

mod common;

use common::for_each_backend;
use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use minference::engine::{Engine, EngineOptions, Progress, StopReason, row_losses};
use minference::model::{Chunk, Decoder, DecoderConfig, KvCache, KvPlace, Model, Workspace};
use minference::pattern::{AttentionMode, HeadPattern};
use minference::sample::{Sampler, SamplerOptions, argmax, top};
use minference::{DType, Error};
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::Ordering;

const DENSE: AttentionMode = AttentionMode::Uniform(HeadPattern::Dense);

fn read(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn config_json() -> String {
    String::from_utf8(read("examples/needle/model/config.json")).unwrap()
}

fn model() -> Model {
    Model::from_parts("needle", &config_json(), read("examples/needle/model/model.safetensors")).unwrap()
}

fn engine_with(options: EngineOptions) -> Engine<Cpu> {
    Engine::new(Cpu::new(), model(), options).unwrap()
}

fn engine() -> Engine<Cpu> {
    engine_with(EngineOptions::default())
}

fn cases() -> Vec<Value> {
    let golden: Value = serde_json::from_slice(&read("tests/data/needle/golden.json")).unwrap();
    golden["cases"].as_array().unwrap().clone()
}

fn ids(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(json: &Value) -> Vec<f32> {
    json.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_and_greedy_ids_are_those_of_transformers() {
    for case in cases() {
        let name = case["case"].as_str().unwrap();
        let mut engine = engine();
        let prompt = ids(&case["ids"]);
        let prefill = engine.prefill(&prompt, &DENSE, &mut |_| ()).unwrap();
        assert_eq!((prefill.tokens, prefill.density), (prompt.len(), 1.0));
        let best = top(&prefill.logits, 16);
        let got: Vec<f32> = ids(&case["top_ids"]).iter().map(|id| prefill.logits[*id as usize]).collect();
        let worst = largest_difference(&got, &floats(&case["top_logits"]));
        let sparse: Vec<f32> = prefill.logits.iter().copied().step_by(64).collect();
        let everywhere = largest_difference(&sparse, &floats(&case["every_64th_logit"]));
        println!("{name}: largest difference {worst:.2e} of the top 16, {everywhere:.2e} of every 64th");
        assert!(worst < 1e-3 && everywhere < 1e-3, "{name}: {worst} {everywhere}");
        assert_eq!(best[0].0, ids(&case["top_ids"])[0]);

        // No step's margin is under 0.17.
        let answer = engine.generate(&prefill.logits, &mut Sampler::greedy(), 8, &mut |_| ()).unwrap();
        assert_eq!(answer.ids, ids(&case["greedy_ids"]), "{name}");
        assert_eq!((answer.stop, answer.steps), (StopReason::Length, 7));

        let losses = engine.token_losses(&prompt, &DENSE, &mut |_| ()).unwrap();
        let mean = losses.iter().map(|l| f64::from(*l)).sum::<f64>() / losses.len() as f64;
        assert_eq!(losses.len(), prompt.len() - 1);
        assert!((mean - case["loss_mean"].as_f64().unwrap()).abs() < 1e-4, "{name}: {mean}");

        // Some rows of it: the same logits, in parts of at most 256 rows, and nothing left behind.
        let (last, vocab) = (prompt.len() - 1, engine.config().vocab);
        let mut parts = Vec::new();
        let rows = [0..2.min(last), last / 2..last, last..last + 1];
        let mut worst = 0.0f32;
        let scored = engine.row_logits(&prompt, &DENSE, &rows, &mut |_| (), &mut |part, logits| {
            let targets: Vec<u32> = part.clone().filter_map(|row| prompt.get(row + 1).copied()).collect();
            if targets.len() == part.len() {
                let again = row_losses(logits, &targets);
                worst = worst.max(largest_difference(&again, &losses[part.clone()]));
            } else {
                worst = worst.max(largest_difference(&logits[logits.len() - vocab..], &prefill.logits));
            }
            assert_eq!(logits.len(), part.len() * vocab);
            parts.push(part);
            Ok(())
        });
        assert_eq!((scored.unwrap().density, engine.ids().len()), (1.0, 0));
        assert!(worst < 1e-3, "{name}: {worst}");
        let shown: usize = parts.iter().map(|part| part.len()).sum();
        assert_eq!(shown, rows.iter().map(|rows| rows.len()).sum::<usize>());
        assert!(parts.iter().all(|part| part.len() <= 256));
        let past = [0..2, last..last + 2];
        assert!(engine.row_logits(&prompt, &DENSE, &past, &mut |_| (), &mut |_, _| Ok(())).is_err());
    }
}

// The same logits on every backend, and the needle's first digit with a sparse pattern: f32 within 1e-3, f16 within 1 %.
for_each_backend!(needle_logits, |b| {
    let model = model();
    let decoder = Decoder::new(b, &model).unwrap();
    let mut cache = KvCache::new(b, &model.config, 2048, KvPlace::Device, Default::default()).unwrap();
    let mut workspace = Workspace::new(b, &model.config, 2048).unwrap();
    let mut logits = |ids: &[u32], mode: &AttentionMode| {
        cache.restart_at(0);
        let chunk = Chunk {
            ids,
            mode: Some(mode),
            sequence: ids.len(),
            from_row: ids.len() - 1,
            options: minference::estimate::AttentionOptions::EXACT,
        };
        decoder.forward(b, chunk, &mut cache, &mut workspace, &mut ()).unwrap();
        let last = decoder.logits(b, &mut workspace, ids.len() - 1..ids.len()).unwrap();
        last.to_f32(b).unwrap()
    };
    for case in cases() {
        let (name, prompt) = (case["case"].as_str().unwrap(), ids(&case["ids"]));
        let dense = logits(&prompt, &DENSE);
        let (got, want): (Vec<f32>, _) =
            (dense.iter().copied().step_by(64).collect(), floats(&case["every_64th_logit"]));
        let worst = largest_difference(&got, &want);
        let size = (want.iter().map(|l| l * l).sum::<f32>() / want.len() as f32).sqrt();
        println!("{} {name}: largest difference {worst:.2e}, logits of size {size:.2}", b.info().id);
        let bound = match b.activation() {
            DType::F32 => 1e-3,
            DType::F16 => 0.02 * size,
            _ => 0.12 * size,
        };
        assert!(worst <= bound, "{name}: {worst}");
        assert_eq!(argmax(&dense), ids(&case["greedy_ids"])[0], "{name}");
    }
    let case = &cases()[1];
    let pattern = HeadPattern::VerticalSlash { columns: 100, offsets: 200 };
    let sparse = logits(&ids(&case["ids"]), &AttentionMode::Uniform(pattern));
    assert_eq!(argmax(&sparse), ids(&case["greedy_ids"])[0]);
});

/// Peak memory is a straight line in the tokens: a fixed part, and bytes for each token.
#[test]
fn memory_is_a_line_in_the_tokens() {
    let prompt: Vec<u32> = (0..16384u32).map(|i| 3 + i * 31 % 4000).collect();
    for pattern in ["a_shape:64:256", "vertical_slash:30:100"].map(|p| p.parse::<HeadPattern>().unwrap()) {
        let peak = |n: usize| {
            let mut engine = engine_with(EngineOptions { answer_room: 0, ..EngineOptions::default() });
            engine.prefill(&prompt[..n], &AttentionMode::Uniform(pattern), &mut |_| ()).unwrap();
            engine.backend().memory().peak as f64
        };
        // Beyond SLICE_ROWS, where the buffers of a slice have their full height.
        let [one, two, four] = [4096, 8192, 16384].map(peak);
        let per_token = (two - one) / 4096.0;
        println!("{pattern}: {:.2} MB and {per_token:.0} bytes a token", (one - 4096.0 * per_token) / 1e6);
        let error = (one + 3.0 * 4096.0 * per_token - four).abs() / four;
        assert!(error < 0.02, "{pattern}: {one} {two} {four}: off by {error}");
    }
}

/// The needle survives the patterns of the paper, and the density is what they say.
#[test]
fn a_sparse_prefill_finds_the_needle() {
    let case = &cases()[1];
    let prompt = ids(&case["ids"]);
    let mut engine = engine();
    let pattern = HeadPattern::VerticalSlash { columns: 100, offsets: 200 };
    let prefill = engine.prefill(&prompt, &AttentionMode::Uniform(pattern), &mut |_| ()).unwrap();
    assert_eq!(argmax(&prefill.logits), ids(&case["greedy_ids"])[0]);
    assert!(prefill.density < 0.9, "{}", prefill.density);
    assert_eq!((prefill.heads.len(), prefill.heads[0].len()), (4, 4));
    let cells: Vec<f64> = prefill.heads.iter().flatten().map(|h| h.density).collect();
    assert!(cells.iter().all(|d| *d > 0.05 && *d < 1.0), "{cells:?}");
    assert!((cells.iter().sum::<f64>() / 16.0 - prefill.density).abs() < 1e-12);
    assert!(prefill.heads.iter().flatten().all(|h| h.pattern == pattern));

    // A-shape's pairs can be counted by hand: the first 64 keys and the last 128.
    engine.reset();
    let a_shape = AttentionMode::Uniform(HeadPattern::AShape { n_init: 64, n_local: 128 });
    let prefill = engine.prefill(&prompt, &a_shape, &mut |_| ()).unwrap();
    let n = prompt.len();
    let pairs: usize = (0..n).map(|i| (i + 1).min(64 + 128)).sum();
    assert!((prefill.density - pairs as f64 / (n * (n + 1) / 2) as f64).abs() < 1e-12, "{}", prefill.density);
}

/// In chunks, behind a cached prefix, token by token: the same logits.
#[test]
fn a_prompt_in_pieces_gives_the_same_logits() {
    let prompt = &ids(&cases()[1]["ids"])[..700];
    let whole = engine().prefill(prompt, &DENSE, &mut |_| ()).unwrap().logits;
    for chunk in [64, 192, 640] {
        let mut engine = engine_with(EngineOptions { chunk, ..EngineOptions::default() });
        let prefill = engine.prefill(prompt, &DENSE, &mut |_| ()).unwrap();
        assert!(largest_difference(&prefill.logits, &whole) < 1e-4, "chunk {chunk}");
        assert_eq!(prefill.density, 1.0);
    }
    let mut engine = engine_with(EngineOptions { capacity: 1024, ..EngineOptions::default() });
    engine.prefill(&prompt[..333], &DENSE, &mut |_| ()).unwrap();
    let rest = engine.prefill(&prompt[333..695], &DENSE, &mut |_| ()).unwrap();
    assert_eq!(rest.density, 1.0);
    let mut logits = Vec::new();
    for id in &prompt[695..] {
        logits = engine.decode(*id).unwrap();
    }
    assert!(largest_difference(&logits, &whole) < 1e-4);
    assert_eq!(engine.ids(), prompt);

    // Another question on the same document: forget the tail, and go on.
    engine.truncate(500);
    let again = engine.prefill(&prompt[500..], &DENSE, &mut |_| ()).unwrap();
    assert!(largest_difference(&again.logits, &whole) < 1e-4);
}

/// Keys and values in host memory, whole and in chunks and in decoding: the same numbers, on a device that holds one
/// layer's.
#[test]
fn keys_in_host_memory_change_nothing() {
    let prompt = &ids(&cases()[1]["ids"])[..500];
    let run = |kv, chunk| {
        let mut engine = engine_with(EngineOptions { kv, chunk, capacity: 640, ..EngineOptions::default() });
        let prefill = engine.prefill(prompt, &DENSE, &mut |_| ()).unwrap();
        let answer = engine.generate(&prefill.logits, &mut Sampler::greedy(), 6, &mut |_| ()).unwrap();
        (prefill.logits, answer.ids, engine.backend().memory().peak)
    };
    for chunk in [0, 192] {
        let ((want, ids, device), (got, host_ids, host)) = (run(KvPlace::Device, chunk), run(KvPlace::Host, chunk));
        assert_eq!((want, ids), (got, host_ids), "chunk {chunk}");
        // Three of four layers' keys and values: 2 heads of 64 in f32, twice, 640 tokens.
        assert_eq!(device - host, 3 * 640 * 2 * 64 * 4 * 2, "chunk {chunk}");
    }
}

/// Each chunk counts its own pairs: the sum is over all causal pairs of the prompt.
#[test]
fn density_of_chunks_adds_up() {
    let prompt = &ids(&cases()[1]["ids"])[..500];
    let a_shape = AttentionMode::Uniform(HeadPattern::AShape { n_init: 64, n_local: 64 });
    for chunk in [0, 64, 128] {
        let mut engine = engine_with(EngineOptions { chunk, ..EngineOptions::default() });
        let density = engine.prefill(prompt, &a_shape, &mut |_| ()).unwrap().density;
        let pairs: usize = (0..500).map(|i| (i + 1).min(128)).sum();
        assert!((density - pairs as f64 / (500.0 * 501.0 / 2.0)).abs() < 1e-12, "chunk {chunk}: {density}");
    }
}

#[test]
fn without_kept_keys_only_a_whole_prefill_runs() {
    let prompt = &ids(&cases()[1]["ids"])[..300];
    let options = EngineOptions { kv: KvPlace::None, ..EngineOptions::default() };
    let mut engine = engine_with(options.clone());
    let whole = engine_with(EngineOptions::default()).prefill(prompt, &DENSE, &mut |_| ()).unwrap().logits;
    let prefill = engine.prefill(prompt, &DENSE, &mut |_| ()).unwrap();
    assert_eq!(prefill.logits, whole);
    assert!(engine.decode(5).unwrap_err().to_string().contains("not kept"));
    assert!(engine.prefill(prompt, &DENSE, &mut |_| ()).unwrap_err().to_string().contains("not kept"));
    engine.reset();
    assert!(engine.prefill(prompt, &DENSE, &mut |_| ()).is_ok());
    let chunked = Engine::new(Cpu::new(), model(), EngineOptions { chunk: 64, ..options });
    assert!(chunked.err().unwrap().to_string().contains("chunks of 64"));
    assert!("disk".parse::<KvPlace>().unwrap_err().to_string().contains("disk"));
}

#[test]
fn progress_counts_every_layer_of_every_chunk() {
    let prompt = &ids(&cases()[1]["ids"])[..200];
    let mut engine = engine_with(EngineOptions { chunk: 64, ..EngineOptions::default() });
    let mut seen: Vec<Progress> = Vec::new();
    engine.prefill(prompt, &DENSE, &mut |p| seen.push(p)).unwrap();
    assert_eq!(seen.len(), 4 * 4);
    assert!(seen.windows(2).all(|w| w[0].done < w[1].done));
    let last = seen.last().unwrap();
    assert_eq!((last.done, last.total, last.layer, last.tokens), (800, 800, 4, 200));
    assert_eq!((seen[3].done, seen[3].tokens, seen[4].tokens), (256, 64, 64));
}

#[test]
fn an_interrupt_stops_and_leaves_the_engine_usable() {
    let prompt = &ids(&cases()[1]["ids"])[..200];
    let options = EngineOptions::default();
    let flag = options.interrupt.clone();
    let mut engine = engine_with(options);
    let mut layers = 0;
    let stopped = engine.prefill(prompt, &DENSE, &mut |p| {
        layers = p.layer;
        flag.store(p.layer == 2, Ordering::Relaxed);
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!((layers, engine.ids().len()), (2, 0));
    flag.store(false, Ordering::Relaxed);
    let whole = engine_with(EngineOptions::default()).prefill(prompt, &DENSE, &mut |_| ()).unwrap().logits;
    assert_eq!(engine.prefill(prompt, &DENSE, &mut |_| ()).unwrap().logits, whole);
    let logits = engine.prefill(&[22], &DENSE, &mut |_| ()).unwrap().logits;
    let mut told = 0;
    let stopped = engine.generate(&logits, &mut Sampler::greedy(), 10, &mut |_| {
        told += 1;
        flag.store(told == 3, Ordering::Relaxed);
    });
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(told, 3);
}

#[test]
fn an_answer_ends_at_the_end_token_and_repeats_with_its_seed() {
    let prompt = ids(&cases()[0]["ids"]);
    let mut engine = engine();
    let mut logits = vec![0.0; 4096];
    logits[1] = 9.0; // </s>
    engine.prefill(&prompt, &DENSE, &mut |_| ()).unwrap();
    let answer = engine.generate(&logits, &mut Sampler::greedy(), 5, &mut |_| panic!("no token")).unwrap();
    assert_eq!((answer.ids.len(), answer.stop, answer.steps), (0, StopReason::EndOfText, 0));

    let mut draw = |seed| {
        engine.reset();
        let logits = engine.prefill(&prompt, &DENSE, &mut |_| ()).unwrap().logits;
        let mut sampler = Sampler::new(SamplerOptions { temperature: 1.0, top_p: 0.95, top_k: 50, seed }).unwrap();
        engine.generate(&logits, &mut sampler, 12, &mut |_| ()).unwrap().ids
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn bad_prompts_are_refused_by_value() {
    let mut engine = engine();
    let mut refused = |ids: &[u32], mode: &AttentionMode| {
        let error = engine.prefill(ids, mode, &mut |_| ()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    assert_eq!(refused(&[], &DENSE), "the prompt is empty: expected at least one token");
    assert_eq!(refused(&[5, 4096], &DENSE), "token 1: expected an id below the vocabulary's 4096, found 4096");
    let long = vec![5; 1_048_577];
    assert_eq!(refused(&long, &DENSE), "1048577 tokens: needle is made for at most 1048576");
    let mut patterns = minference::pattern::PatternConfig::new(5);
    patterns.set(4, 3, HeadPattern::Dense, minference::pattern::Score::Float(1.0)).unwrap();
    let text = refused(&[5], &AttentionMode::Config(patterns));
    assert!(text.contains('5') && text.contains('4'), "{text}");
    assert!(engine.decode(5).unwrap_err().to_string().contains("no prompt"));
    engine.prefill(&[5, 6], &DENSE, &mut |_| ()).unwrap();
    assert!(engine.decode(5000).unwrap_err().to_string().contains("5000"));

    let options = EngineOptions { chunk: 100, ..EngineOptions::default() };
    let error = Engine::new(Cpu::new(), model(), options).err().unwrap().to_string();
    assert_eq!(error, "chunk: expected a multiple of 64, found 100");
    let mut small = engine_with(EngineOptions { capacity: 64, ..EngineOptions::default() });
    let error = small.prefill(&[5; 65], &DENSE, &mut |_| ()).unwrap_err().to_string();
    assert_eq!(error, "the KV cache is made for 64 tokens, 65 are asked for");
    small.prefill(&[5; 64], &DENSE, &mut |_| ()).unwrap();
    let error = small.decode(5).unwrap_err().to_string();
    assert_eq!(error, "the KV cache is made for 64 tokens, 65 are asked for");
}

/// Within its native length a model with dual chunk attention runs as any other; beyond it is another model, which
/// `tests/positions.rs` judges.
#[test]
fn dual_chunk_attention_changes_nothing_within_the_native_length() {
    let mut config: Value = serde_json::from_str(&config_json()).unwrap();
    config["dual_chunk_attention_config"] =
        serde_json::json!({"chunk_size": 128, "local_size": 32, "original_max_position_embeddings": 128});
    let weights = read("examples/needle/model/model.safetensors");
    let model = Model::from_parts("dual", &config.to_string(), weights).unwrap();
    let mut dual = Engine::new(Cpu::new(), model, EngineOptions::default()).unwrap();
    let prompt = &ids(&cases()[1]["ids"])[..130];
    let plain = |n: usize| engine().prefill(&prompt[..n], &DENSE, &mut |_| ()).unwrap().logits;
    assert_eq!(dual.prefill(&prompt[..96], &DENSE, &mut |_| ()).unwrap().logits, plain(96));
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    // Two parts and a sum of them, in place of one sum.
    for (n, id) in (96..128).map(|n| (n + 1, prompt[n])) {
        let logits = dual.decode(id).unwrap();
        if n % 8 == 0 {
            assert!(apart(&logits, &plain(n)) < 1e-3, "{n} tokens: {}", apart(&logits, &plain(n)));
        }
    }
    dual.decode(prompt[128]).unwrap();
    let beyond = dual.decode(prompt[129]).unwrap();
    assert!(apart(&beyond, &plain(130)) > 1e-3, "{}", apart(&beyond, &plain(130)));
}

/// A device too small says so before it starts, and what would fit: that much then runs, and a little more does not.
#[test]
fn too_little_memory_is_told_before_it_starts() {
    let limit = 40 << 20;
    let engine = |chunk| {
        let options = EngineOptions { chunk, answer_room: 0, ..EngineOptions::default() };
        Engine::new(Cpu::with_memory_limit(limit), model(), options).unwrap()
    };
    let prompt = vec![7; 65536];
    let error = engine(0).prefill(&prompt, &DENSE, &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
    println!("{error}");
    let longest = engine(0).plan(65536).longest(0);
    assert!(error.to_string().contains(&format!("{longest} tokens fit")), "{error}");
    assert!((1024..65536).contains(&longest), "{longest}");
    engine(0).prefill(&prompt[..longest], &DENSE, &mut |_| ()).unwrap();
    assert!(engine(0).prefill(&prompt[..longest + 128], &DENSE, &mut |_| ()).is_err());
    // Smaller chunks leave more for keys and values.
    assert!(engine(0).plan(65536).longest(512) > longest);
    let tiny = Engine::new(Cpu::with_memory_limit(1 << 20), model(), EngineOptions::default());
    assert!(matches!(tiny.err(), Some(Error::OutOfMemory(_))));
}

/// Random weights of a seed are the same each time, in every type, and give finite logits.
#[test]
fn random_weights_run() {
    let config = || DecoderConfig::from_json(Path::new("config.json"), &config_json()).unwrap();
    let logits = |dtype, seed| {
        let model = Model::random("random", config(), dtype, seed);
        let mut engine = Engine::new(Cpu::new(), model, EngineOptions::default()).unwrap();
        engine.prefill(&[1, 2, 3, 4, 5], &DENSE, &mut |_| ()).unwrap().logits
    };
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K] {
        let got = logits(dtype, 7);
        let mean = got.iter().sum::<f32>() / got.len() as f32;
        let deviation = (got.iter().map(|l| (l - mean).powi(2)).sum::<f32>() / got.len() as f32).sqrt();
        assert!(deviation > 0.05 && deviation < 20.0, "{dtype}: {deviation}");
        assert_eq!(got, logits(dtype, 7), "{dtype}");
    }
    assert_ne!(logits(DType::F16, 7), logits(DType::F16, 8));
}

/// Weights that overflow give NaN logits: an error, not an answer.
#[test]
fn nan_logits_are_an_error() {
    let mut bytes = read("examples/needle/model/model.safetensors");
    // The last two bytes are an f16 weight.
    let at = bytes.len() - 2;
    bytes[at..].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let model = Model::from_parts("broken", &config_json(), bytes).unwrap();
    let mut engine = Engine::new(Cpu::new(), model, EngineOptions::default()).unwrap();
    let error = engine.prefill(&[5, 6, 7], &DENSE, &mut |_| ()).unwrap_err();
    assert!(error.to_string().starts_with("device: logits: NaN"), "{error}");
    assert!(engine.ids().is_empty());
}
