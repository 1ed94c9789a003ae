//! A tiny model of every family against transformers' own class: logits, hidden states, rotated q and k, greedy ids.
//!
//! `../shared/family-golden` holds all of them and says how they were made and how close an engine should come. A clone
//! without it has a subset: `tests/data/family` (the whole prompts, logits of their first 64 positions).

mod common;

use common::for_each_backend;
use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use minference::engine::{Engine, EngineOptions};
use minference::model::{AttentionCall, Chunk, Decoder, DecoderConfig, KvCache, KvPlace, Model, Watch, Workspace};
use minference::ops::{self, HeadBand, Rope};
use minference::pattern::{AttentionMode, HeadPattern};
use minference::sample::{Sampler, argmax};
use minference::tensor::{Tensor, View};
use minference::{DType, Result};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

const DENSE: AttentionMode = AttentionMode::Uniform(HeadPattern::Dense);

/// A family's directory: shared, or committed, or none with a word about it.
fn directory(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = [root.join("../shared/family-golden").join(name), root.join("tests/data/family").join(name)];
    let found = places.into_iter().find(|dir| dir.is_dir());
    if found.is_none() {
        println!("not run: {name} is in ../shared/family-golden only");
    }
    found
}

/// The tensors of a golden file.
struct Golden(Vec<u8>);

impl Golden {
    fn open(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).ok().map(|t| t.data().to_vec())
    }

    fn f32(&self, name: &str) -> Option<Vec<f32>> {
        Some(bytemuck::pod_collect_to_vec(&self.bytes(name)?))
    }

    fn f64(&self, name: &str) -> Option<Vec<f64>> {
        Some(bytemuck::pod_collect_to_vec(&self.bytes(name)?))
    }

    fn i64(&self, name: &str) -> Option<Vec<i64>> {
        Some(bytemuck::pod_collect_to_vec(&self.bytes(name)?))
    }

    fn ids(&self, name: &str) -> Option<Vec<u32>> {
        Some(self.i64(name)?.into_iter().map(|id| id as u32).collect())
    }
}

/// A model from one of a directory's two forms of the config.
fn model(dir: &Path, config: &str) -> Model {
    let text = std::fs::read_to_string(dir.join(config)).unwrap();
    let name = dir.file_name().unwrap().to_string_lossy();
    Model::from_parts(&name, &text, std::fs::read(dir.join("model.safetensors")).unwrap()).unwrap()
}

/// What a forward pass shows.
#[derive(Default)]
struct Seen {
    hidden: Vec<Vec<f32>>,
    /// Of layer 1: q `[n, H, D]` from rows that hold k and v too, k `[KV, n, D]`.
    q: Vec<f32>,
    k: Vec<f32>,
}

impl<B: Backend> Watch<B> for Seen {
    fn hidden(&mut self, b: &B, _layers_done: usize, x: View<B>) -> Result<()> {
        self.hidden.push(x.to_f32(b)?);
        Ok(())
    }

    fn attention(&mut self, b: &B, layer: usize, call: &AttentionCall<B>) -> Result<()> {
        if layer == 1 {
            let s = call.shape;
            let (q, k) = (call.q.to_f32(b)?, call.k.to_f32(b)?);
            let rows = |i: usize| &q[i * s.q_stride[0]..][..s.n_heads * s.head_dim];
            self.q = (0..s.q_len).flat_map(rows).copied().collect();
            let head = |h: usize| &k[h * s.k_stride[1]..][..s.kv_len * s.head_dim];
            self.k = (0..s.n_kv_heads).flat_map(head).copied().collect();
        }
        Ok(())
    }
}

/// One sequence on a decoder.
struct Run<'a, B: Backend> {
    b: &'a B,
    decoder: Decoder<B>,
    cache: KvCache<B>,
    workspace: Workspace<B>,
}

impl<'a, B: Backend> Run<'a, B> {
    fn new(b: &'a B, model: &Model, first_position: usize) -> Self {
        let decoder = Decoder::new(b, model).unwrap();
        let mut cache = KvCache::new(b, &model.config, 256, KvPlace::Device, Default::default()).unwrap();
        cache.restart_at(first_position);
        Self { b, decoder, cache, workspace: Workspace::new(b, &model.config, 256).unwrap() }
    }

    /// Logits of all rows.
    fn forward(&mut self, ids: &[u32], mode: Option<&AttentionMode>, watch: &mut dyn Watch<B>) -> Vec<f32> {
        let sequence = self.cache.first_position() + self.cache.len() + ids.len();
        let chunk = Chunk { ids, mode, sequence, from_row: 0, options: minference::estimate::AttentionOptions::EXACT };
        self.decoder.forward(self.b, chunk, &mut self.cache, &mut self.workspace, watch).unwrap();
        self.decoder.logits(self.b, &mut self.workspace, 0..ids.len()).unwrap().to_f32(self.b).unwrap()
    }
}

/// f32 by the largest difference, where values are of size `scale`; f16 by relative L2.
#[track_caller]
fn close<B: Backend>(b: &B, what: &str, got: &[f32], want: &[f32], scale: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let max = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    let square = |v: f32| f64::from(v) * f64::from(v);
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    let l2 = (error / want.iter().map(|w| square(*w)).sum::<f64>()).sqrt();
    println!("{} {what}: largest difference {max:.2e}, relative L2 {l2:.2e}", b.info().id);
    assert!(got.iter().all(|g| g.is_finite()), "{what}: not finite");
    match b.activation() {
        DType::F32 => assert!(max <= 1e-3 * scale.max(1.0), "{what}: {max}"),
        DType::F16 => assert!(l2 <= 0.01, "{what}: {l2}"),
        _ => assert!(l2 <= 0.06, "{what}: {l2}"),
    }
}

fn check_golden<B: Backend>(b: &B, dir: &Path, golden_dir: &Path, config: &str, file: &str) {
    let golden = Golden::open(&golden_dir.join(file));
    let model = model(dir, config);
    let what = |part: &str| format!("{} {config} {file} {part}", model.name);
    let ids = golden.ids("input_ids").unwrap();
    let first = golden.i64("position_ids").map_or(0, |p| p[0] as usize);
    // Far from 0 only exact angles are a reference: transformers' own are off by 0.06 to 0.65 in the logits there.
    let exact = if first > 0 { "_exact" } else { "" };

    let mut seen = Seen::default();
    let mut run = Run::new(b, &model, first);
    let logits = run.forward(&ids, Some(&DENSE), &mut seen);
    let want = golden.f32(&format!("logits{exact}")).unwrap();
    close(b, &what("logits"), &logits[..want.len()], &want, 1.0);

    if let (0, Some(want)) = (first, golden.f32("hidden_states")) {
        let last = run.decoder.final_hidden(b, &run.workspace, 0..ids.len()).unwrap().to_f32(b).unwrap();
        let layers = model.config.n_layers;
        // The last entry is after the final norm, whose weight is about 22 in qwen3.
        let states = seen.hidden[..layers].iter().chain([&last]);
        for (i, (got, want)) in states.zip(want.chunks_exact(ids.len() * model.config.hidden)).enumerate() {
            let size = (want.iter().map(|v| v * v).sum::<f32>() / want.len() as f32).sqrt();
            close(b, &what(&format!("hidden state {i}")), got, want, size);
        }
    }
    if let Some(rows) = golden.i64("rope_rows") {
        let (h, kv, d) = (model.config.n_heads, model.config.n_kv_heads, model.config.head_dim);
        let pick = |at: &dyn Fn(usize, usize) -> usize, heads: usize, from: &[f32]| -> Vec<f32> {
            let cells = (0..heads).flat_map(|head| rows.iter().map(move |row| (head, *row as usize)));
            cells.flat_map(|(head, row)| from[at(head, row) * d..][..d].to_vec()).collect()
        };
        let q = pick(&|head, row| row * h + head, h, &seen.q);
        let k = pick(&|head, row| head * ids.len() + row, kv, &seen.k);
        close(b, &what("q"), &q, &golden.f32(&format!("q_rope{exact}")).unwrap(), 1.0);
        close(b, &what("k"), &k, &golden.f32(&format!("k_rope{exact}")).unwrap(), 1.0);
    }
    if let (DType::F32, Some(want)) = (b.activation(), golden.ids("greedy_ids")) {
        let vocab = model.config.vocab;
        let mut next = argmax(&logits[logits.len() - vocab..]);
        let mut got = vec![next];
        // Decoding beyond LongRoPE's original length is the engine's affair: see `longrope_crosses_in_mid_answer`.
        if file != "golden-cross.safetensors" {
            while got.len() < want.len() {
                next = argmax(&run.forward(&[next], None, &mut ()));
                got.push(next);
            }
        }
        assert_eq!(got, want[..got.len()], "{}", what("greedy ids"));
    }
}

/// Both forms of the config, every golden file of the family.
fn check_family<B: Backend>(b: &B, name: &str, goldens_of: &str) {
    let (Some(dir), Some(mut golden_dir)) = (directory(name), directory(goldens_of).or_else(|| directory(name))) else {
        return;
    };
    if !golden_dir.join("golden.safetensors").is_file() {
        golden_dir = dir.clone();
    }
    let forms = ["config.json", "config.hub.json"].into_iter().filter(|c| dir.join(c).is_file());
    for config in forms {
        for file in ["golden", "golden-offset", "golden-long", "golden-cross"] {
            let file = format!("{file}.safetensors");
            if golden_dir.join(&file).is_file() {
                check_golden(b, &dir, &golden_dir, config, &file);
            }
        }
    }
}

for_each_backend!(llama3, |b| { check_family(b, "llama3", "llama3") });
for_each_backend!(llama31, |b| { check_family(b, "llama3.1", "llama3.1") });
for_each_backend!(yi, |b| { check_family(b, "yi", "yi") });
for_each_backend!(mistral, |b| { check_family(b, "mistral", "mistral") });
for_each_backend!(qwen2, |b| { check_family(b, "qwen2", "qwen2") });
for_each_backend!(qwen2_yarn, |b| { check_family(b, "qwen2-yarn", "qwen2-yarn") });
for_each_backend!(qwen3, |b| { check_family(b, "qwen3", "qwen3") });
for_each_backend!(phi3, |b| { check_family(b, "phi3", "phi3") });
for_each_backend!(glm, |b| { check_family(b, "glm", "glm") });
for_each_backend!(glm4, |b| { check_family(b, "glm4", "glm4") });
for_each_backend!(chatglm, |b| { check_family(b, "chatglm", "glm") });

/// The original layout of GLM-4 holds the same weights under other names: the same numbers come out, bit for bit.
#[test]
fn both_glm_layouts_are_equal() {
    let (Some(new), Some(old)) = (directory("glm"), directory("chatglm")) else { return };
    let ids: Vec<u32> = (0..100).map(|i| (i * 37 + 11) % 256).collect();
    let [new, old] = [new, old]
        .map(|dir| Run::new(common::cpu(), &model(&dir, "config.json"), 0).forward(&ids, Some(&DENSE), &mut ()));
    assert_eq!(new, old);
}

/// When an answer passes LongRoPE's original length, keys are computed anew with the long factors, as transformers'
/// `generate` does: keeping the old ones gives other ids from the sixth on.
#[test]
fn longrope_crosses_in_mid_answer() {
    let Some(dir) = directory("phi3") else { return };
    let golden = Golden::open(&dir.join("golden-cross.safetensors"));
    let mut engine = Engine::new(Cpu::new(), model(&dir, "config.json"), EngineOptions::default()).unwrap();
    let prefill = engine.prefill(&golden.ids("input_ids").unwrap(), &DENSE, &mut |_| ()).unwrap();
    let answer = engine.generate(&prefill.logits, &mut Sampler::greedy(), 8, &mut |_| ()).unwrap();
    assert_eq!(answer.ids, golden.ids("greedy_ids").unwrap());
    assert_eq!(engine.ids().len(), 92 + 7);
}

/// A document cut back under LongRoPE's original length: its keys were rotated by the long factors, and are computed anew.
#[test]
fn longrope_returns_to_the_short_factors() {
    let Some(dir) = directory("phi3") else { return };
    let ids: Vec<u32> = (0..120).map(|i| (i * 53 + 7) % 256).collect();
    let engine = || Engine::new(Cpu::new(), model(&dir, "config.json"), EngineOptions::default()).unwrap();
    let mut cut = engine();
    cut.prefill(&ids, &DENSE, &mut |_| ()).unwrap();
    cut.truncate(60);
    let got = cut.prefill(&ids[60..90], &DENSE, &mut |_| ()).unwrap().logits;
    let want = engine().prefill(&ids[..90], &DENSE, &mut |_| ()).unwrap().logits;
    close(common::cpu(), "90 of 120 tokens", &got, &want, 0.1);
    cut.truncate(60);
    let mut logits = Vec::new();
    for id in &ids[60..90] {
        logits = cut.decode(*id).unwrap();
    }
    close(common::cpu(), "30 tokens one by one", &logits, &want, 0.1);
}

/// Chunks of a dense pre-fill change nothing, with any RoPE: LongRoPE takes its factors by the whole prompt.
#[test]
fn chunks_do_not_change_dense_logits() {
    for name in ["phi3", "qwen2-yarn", "chatglm", "qwen3"] {
        let Some(dir) = directory(name) else { continue };
        let ids: Vec<u32> = (0..200).map(|i| (i * 53 + 7) % 256).collect();
        let logits = |chunk| {
            let options = EngineOptions { chunk, ..EngineOptions::default() };
            let mut engine = Engine::new(Cpu::new(), model(&dir, "config.json"), options).unwrap();
            engine.prefill(&ids, &DENSE, &mut |_| ()).unwrap().logits
        };
        close(common::cpu(), &format!("{name} in chunks of 64"), &logits(64), &logits(0), 0.1);
    }
}

/// A config of the RoPE tables with whatever else a config must have.
fn rope_config(settings: &serde_json::Value) -> DecoderConfig {
    let mut config = serde_json::json!({
        "num_hidden_layers": 1, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 4,
        "intermediate_size": 64, "vocab_size": 64, "rms_norm_eps": 1e-5, "max_position_embeddings": 1_048_576,
        "num_layers": 1, "ffn_hidden_size": 64, "padded_vocab_size": 64, "layernorm_epsilon": 1e-5,
        "seq_length": 1_048_576, "multi_query_group_num": 4,
    });
    config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    DecoderConfig::from_json(Path::new("config.json"), &config.to_string()).unwrap()
}

/// Frequencies against the exact ones of the real checkpoints' settings, and the angles that the kernel makes of them at
/// positions up to 1,048,575 against f64.
#[test]
fn rope_tables_are_exact() {
    let Some(dir) = directory("rope") else { return };
    let golden = Golden::open(&dir.join("rope.safetensors"));
    let text = std::fs::read_to_string(dir.join("configs.json")).unwrap();
    let configs: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    let positions = golden.i64("rope_positions").unwrap();
    assert!(positions.contains(&1_048_575));
    for (name, settings) in &configs {
        let rope = rope_config(settings).rope;
        // LongRoPE has two tables.
        let cases = match name.as_str() {
            "phi-3-mini-128k" => vec![(format!("{name}-short"), 4096), (format!("{name}-long"), 4097)],
            _ => vec![(name.clone(), 1_048_576)],
        };
        for (case, length) in cases {
            let frequencies = rope.frequencies(length);
            let exact = golden.f64(&format!("{case}.inv_freq")).unwrap();
            assert_eq!(frequencies.len(), exact.len(), "{case}");
            for (got, want) in frequencies.iter().zip(&exact) {
                assert!((got / want - 1.0).abs() < 1e-14, "{case}: {got} {want}");
            }
            let factor = golden.f64(&format!("{case}.attention_factor")).unwrap()[0];
            assert!((rope.attention_factor() - factor).abs() < 1e-12, "{case}: {} {factor}", rope.attention_factor());
            let tables = golden.f64(&format!("{case}.cos")).zip(golden.f64(&format!("{case}.sin")));
            let mut worst = 0f64;
            for (i, &position) in positions.iter().enumerate() {
                let (cos, sin) = rotated_by_cpu(&rope, length, position as usize);
                for pair in 0..exact.len() {
                    let angle = position as f64 * exact[pair];
                    let want = match &tables {
                        Some((cos, sin)) => (cos[i * exact.len() + pair], sin[i * exact.len() + pair]),
                        None => (factor * angle.cos(), factor * angle.sin()),
                    };
                    let error = (cos[pair] - want.0).abs().max((sin[pair] - want.1).abs());
                    worst = worst.max(error);
                    assert!(error < 1e-6, "{case} at {position}, pair {pair}: {error:.2e}");
                }
            }
            println!("{case}: largest error {worst:.2e}");
        }
    }
}

/// Cosine and sine of every pair at a position, from the CPU's kernel: what it makes of the vector (1, 0) in each pair.
fn rotated_by_cpu(rope: &minference::model::rope::RopeConfig, length: usize, position: usize) -> (Vec<f64>, Vec<f64>) {
    let (b, rot) = (common::cpu(), rope.rotary_dim);
    let at = |pair: usize, second: usize| if rope.interleaved { 2 * pair + second } else { pair + second * rot / 2 };
    let mut x = vec![0f32; rot];
    (0..rot / 2).for_each(|pair| x[at(pair, 0)] = 1.0);
    let mut x = Tensor::activation(b, [1, rot], &x).unwrap();
    let turns = Tensor::from_slice(b, DType::U32, [rot / 2, 2], &rope.turns(length)).unwrap();
    let attention_factor = rope.attention_factor() as f32;
    let what = Rope { rotary_dim: rot, interleaved: rope.interleaved, attention_factor };
    let band = HeadBand { column: 0, heads: 1, head_dim: rot };
    ops::rope(b, turns.view(), x.view_mut(), band, what, position).unwrap();
    let x = x.to_f32(b).unwrap();
    let pick = |second| (0..rot / 2).map(|pair| f64::from(x[at(pair, second)])).collect();
    (pick(0), pick(1))
}
