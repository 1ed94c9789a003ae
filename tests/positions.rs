//! Ways to reach positions beyond those of the training that no golden covers, whole models against a plain f64 statement.
//! Linear and dynamic NTK scaling: every query and key under the frequencies of the length at which it was computed. Dual
//! chunk attention: every pair of a query and a key under the distance that the method gives it, one softmax over all, no
//! parts to merge.

#[path = "common/mod.rs"]
mod common;

use common::Rng;
use common::naive::{self, BLOCK};
use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use minference::engine::{Engine, EngineOptions};
use minference::model::{KvPlace, Model};
use minference::pattern::AttentionMode;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;

const VOCAB: usize = 61;
const HIDDEN: usize = 48;
const HEADS: usize = 4;
const KV: usize = 2;
const D: usize = 16;
const FFN: usize = 40;
const LAYERS: usize = 2;
const THETA: f64 = 1000.0;

/// The pairs `[n, n]` that a head computes, of its q and k `[n, D]` at their true places and its number.
type Sees<'a> = &'a dyn Fn(&[f32], &[f32], usize) -> Vec<bool>;

/// What the softmax sees of a query and a key: their positions, and both not turned.
type Score<'a> = &'a dyn Fn(usize, usize, &[f64], &[f64]) -> f64;

/// `chunk_size`, `local_size`, `original_max_position_embeddings`.
type Dual = (usize, usize, usize);

/// Chunks of 128, distances up to 160 are true; and one whose chunks begin at no multiple of anything.
const DUALS: [Dual; 3] = [(160, 32, 160), (150, 37, 100), (140, 100, 100_000)];

/// A tiny Qwen2 with a bias on q, k and v.
struct Tiny {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Tiny {
    fn new() -> Self {
        let mut rng = Rng(7);
        let mut tensors = BTreeMap::new();
        // Values that f16 and bf16 hold exactly.
        let mut add = |name: String, shape: &[usize], scale: f64| {
            let n = shape.iter().product();
            let round = |x: f64| half::bf16::from_f64(x * scale).to_f32();
            tensors.insert(name, (shape.to_vec(), (0..n).map(|_| round(rng.normal())).collect()));
        };
        add("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN], 1.0);
        add("lm_head.weight".into(), &[VOCAB, HIDDEN], 0.3);
        for i in 0..LAYERS {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            for (part, rows) in [("q_proj", HEADS * D), ("k_proj", KV * D), ("v_proj", KV * D)] {
                // Large scores, so that wrong distances show.
                add(name(&format!("self_attn.{part}.weight")), &[rows, HIDDEN], 0.25);
                add(name(&format!("self_attn.{part}.bias")), &[rows], 0.5);
            }
            add(name("self_attn.o_proj.weight"), &[HIDDEN, HEADS * D], 0.25);
            add(name("mlp.gate_proj.weight"), &[FFN, HIDDEN], 0.15);
            add(name("mlp.up_proj.weight"), &[FFN, HIDDEN], 0.15);
            add(name("mlp.down_proj.weight"), &[HIDDEN, FFN], 0.15);
        }
        let norms = (0..LAYERS).flat_map(|i| {
            ["input_layernorm", "post_attention_layernorm"].map(|part| format!("model.layers.{i}.{part}.weight"))
        });
        for name in norms.chain(["model.norm.weight".to_string()]) {
            tensors.insert(name, (vec![HIDDEN], vec![1.0; HIDDEN]));
        }
        Self { tensors }
    }

    fn config(dual: Option<Dual>) -> Value {
        let mut config = json!({
            "model_type": "qwen2", "num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": HEADS,
            "num_key_value_heads": KV, "head_dim": D, "intermediate_size": FFN, "vocab_size": VOCAB,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "rope_theta": THETA, "tie_word_embeddings": false,
        });
        if let Some((chunk, local, original)) = dual {
            config["dual_chunk_attention_config"] =
                json!({"chunk_size": chunk, "local_size": local, "original_max_position_embeddings": original});
        }
        config
    }

    fn engine<B: Backend>(&self, backend: B, dual: Option<Dual>, options: EngineOptions) -> Engine<B> {
        self.engine_of(backend, Self::config(dual), options)
    }

    fn engine_of<B: Backend>(&self, backend: B, config: Value, options: EngineOptions) -> Engine<B> {
        let views = self.tensors.iter().map(|(name, (shape, values))| {
            let bytes = bytemuck::cast_slice(values);
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        let model = Model::from_parts("tiny", &config.to_string(), bytes).unwrap();
        Engine::new(backend, model, options).unwrap()
    }

    fn product(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (shape, w) = &self.tensors[&format!("{name}.weight")];
        let bias = self.tensors.get(&format!("{name}.bias"));
        let row = |(i, w): (usize, &[f32])| {
            let sum: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
            sum + bias.map_or(0.0, |(_, b)| f64::from(b[i]))
        };
        w.chunks_exact(shape[1]).enumerate().map(row).collect()
    }

    /// Logits of the last position.
    fn logits(&self, ids: &[u32], dual: Dual, sees: Sees) -> Vec<f64> {
        self.logits_after(ids.len(), ids, dual, sees)
    }

    /// The same where the tokens after the first `prompt` came one by one, each under the temperature of its own length.
    fn logits_after(&self, prompt: usize, ids: &[u32], dual: Dual, sees: Sees) -> Vec<f64> {
        let score = |p: usize, j: usize, q: &[f64], k: &[f64]| {
            let scale = temperature(prompt.max(p + 1), dual) / (D as f64).sqrt();
            scale * dot(&turned(q, distance(p, j, dual)), k)
        };
        self.forward(ids, sees, &score)
    }

    /// Logits of the last position, where `score(p, j, q, k)` is what the softmax sees of a query at `p` and a key at `j`,
    /// neither of them turned.
    fn forward(&self, ids: &[u32], sees: Sees, score: Score) -> Vec<f64> {
        let n = ids.len();
        let (_, embed) = &self.tensors["model.embed_tokens.weight"];
        let row = |id: u32| embed[id as usize * HIDDEN..][..HIDDEN].iter().map(|x| f64::from(*x)).collect();
        let mut x: Vec<Vec<f64>> = ids.iter().map(|id| row(*id)).collect();
        for i in 0..LAYERS {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let normed: Vec<_> = x.iter().map(|x| norm(x)).collect();
            let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|part| -> Vec<Vec<f64>> {
                normed.iter().map(|x| self.product(&name(&format!("self_attn.{part}")), x)).collect()
            });
            let mut attended = vec![Vec::new(); n];
            for h in 0..HEADS {
                let (q, k, v) = (column(&q, h), column(&k, h / (HEADS / KV)), column(&v, h / (HEADS / KV)));
                let f32s = |x: &[Vec<f64>]| -> Vec<f32> {
                    x.iter().enumerate().flat_map(|(p, x)| turned(x, p)).map(|x| x as f32).collect()
                };
                let mask = sees(&f32s(&q), &f32s(&k), h);
                for (p, out) in attended.iter_mut().enumerate() {
                    let scores: Vec<f64> = (0..=p)
                        .map(|j| match mask[p * n + j] {
                            true => score(p, j, &q[p], &k[j]),
                            false => f64::NEG_INFINITY,
                        })
                        .collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let mean = |d: usize| weights.iter().zip(&v).map(|(w, v)| w * v[d]).sum::<f64>() / total;
                    out.extend((0..D).map(mean));
                }
            }
            for (x, attended) in x.iter_mut().zip(&attended) {
                let o = self.product(&name("self_attn.o_proj"), attended);
                x.iter_mut().zip(o).for_each(|(x, o)| *x += o);
                let normed = norm(x);
                let (gate, up) =
                    (self.product(&name("mlp.gate_proj"), &normed), self.product(&name("mlp.up_proj"), &normed));
                let gated: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                let down = self.product(&name("mlp.down_proj"), &gated);
                x.iter_mut().zip(down).for_each(|(x, d)| *x += d);
            }
        }
        self.product("lm_head", &norm(&x[n - 1]))
    }
}

fn norm(x: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().map(|x| x / (mean + 1e-6).sqrt()).collect()
}

fn column(x: &[Vec<f64>], head: usize) -> Vec<Vec<f64>> {
    x.iter().map(|x| x[head * D..][..D].to_vec()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Sine and cosine of each pair after so many positions.
static ANGLES: LazyLock<Vec<[(f64, f64); D / 2]>> = LazyLock::new(|| {
    let angle = |by: usize, i: usize| (by as f64 * THETA.powf(-2.0 * i as f64 / D as f64)).sin_cos();
    (0..1024).map(|by| std::array::from_fn(|i| angle(by, i))).collect()
});

/// A head turned by this many positions: only distances count, so a query may turn by the distance and the key not.
fn turned(x: &[f64], by: usize) -> Vec<f64> {
    let half = D / 2;
    let angle = |i: usize| ANGLES[by][i];
    let first = (0..half).map(|i| x[i] * angle(i).1 - x[half + i] * angle(i).0);
    first.chain((0..half).map(|i| x[half + i] * angle(i).1 + x[i] * angle(i).0)).collect()
}

/// How far key `j` stands from query `p`, as the model sees it.
fn distance(p: usize, j: usize, (chunk, local, _): Dual) -> usize {
    let stride = chunk - local;
    let place = match p / stride - j / stride {
        0 => p % stride,
        1 => (p % stride + stride).min(chunk),
        _ => (2 * stride - 1).min(chunk),
    };
    // Places of a chunk are below its stride, and a later chunk's query stands at least there.
    place - j % stride
}

fn temperature(n: usize, (_, _, original): Dual) -> f64 {
    let stretch = n as f64 / original as f64;
    if stretch > 1.0 { (0.1 * stretch.ln() + 1.0).powi(2) } else { 1.0 }
}

fn dense(n: usize) -> impl Fn(&[f32], &[f32], usize) -> Vec<bool> {
    move |_, _, _| (0..n * n).map(|i| i % n <= i / n).collect()
}

fn prompt(n: usize) -> Vec<u32> {
    let mut rng = Rng(n as u64);
    (0..n).map(|_| rng.below(VOCAB) as u32).collect()
}

fn mode(text: &str) -> AttentionMode {
    AttentionMode::Uniform(text.parse().unwrap())
}

#[track_caller]
fn assert_near(what: &str, tolerance: f64, got: &[f32], want: &[f64]) {
    let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt();
    let error = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum::<f64>().sqrt();
    println!("{what}: relative error {:.1e}", error / norm);
    assert!(error <= tolerance * norm, "{what}: relative error {:.2e} exceeds {tolerance:.0e}", error / norm);
}

/// Activations of f32, and of f16 or bf16: two layers of them.
fn tolerance<B: Backend>(b: &B) -> f64 {
    if b.activation() == minference::DType::F32 { 1e-5 } else { 24.0 * common::roundoff(b.activation()) }
}

/// Stamps a test for each backend from a function that takes one.
macro_rules! everywhere {
    ($($name:ident)*) => {$(mod $name {
        #[test]
        fn cpu() {
            super::$name(super::Cpu::new);
        }

        #[cfg(feature = "wgpu")]
        #[test]
        fn wgpu() {
            wgpu_at(minference::backend::wgpu::Tier::Auto);
        }

        #[cfg(feature = "wgpu")]
        #[test]
        fn wgpu_plain() {
            wgpu_at(minference::backend::wgpu::Tier::Plain);
        }

        #[cfg(feature = "wgpu")]
        fn wgpu_at(tier: minference::backend::wgpu::Tier) {
            use minference::backend::wgpu::{Options, Wgpu};
            if super::common::wgpu(tier).is_some() {
                super::$name(|| Wgpu::new(None, Options { tier, ..Options::default() }).unwrap());
            }
        }

        #[cfg(feature = "cuda")]
        #[test]
        fn cuda() {
            use minference::backend::cuda::{Cuda, CudaOptions};
            if super::common::cuda(super::common::CudaKind::Bf16).is_some() {
                super::$name(|| Cuda::new(0, CudaOptions::default()).unwrap());
            }
        }
    })*};
}

everywhere! { linear_and_dynamic_scaling dense_over_chunks windows_over_chunks within_the_native_length }

/// transformers' definitions: linear scaling divides positions; dynamic NTK takes its base from the length of the sequence,
/// and with a cache leaves the keys that it has as they are.
fn linear_and_dynamic_scaling<B: Backend>(backend: impl Fn() -> B) {
    let tiny = Tiny::new();
    let (original, n, steps) = (64, 150, 4);
    let ids = prompt(n + steps);
    let turn = |x: &[f64], position: usize, frequency: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let angle = |i: usize| (position as f64 * frequency(i)).sin_cos();
        let half = D / 2;
        let first = (0..half).map(|i| x[i] * angle(i).1 - x[half + i] * angle(i).0);
        first.chain((0..half).map(|i| x[half + i] * angle(i).1 + x[i] * angle(i).0)).collect()
    };
    let linear = |factor: f64| move |_: usize, i: usize| THETA.powf(-2.0 * i as f64 / D as f64) / factor;
    let dynamic = |factor: f64| {
        move |length: usize, i: usize| {
            let stretch = factor * length.max(original) as f64 / original as f64 - (factor - 1.0);
            let base = THETA * stretch.powf(D as f64 / (D as f64 - 2.0));
            base.powf(-2.0 * i as f64 / D as f64)
        }
    };
    /// Frequency of a pair in a sequence of a length.
    type Frequency = Box<dyn Fn(usize, usize) -> f64>;
    let cases: [(Value, Frequency); 4] = [
        (json!({"type": "linear", "factor": 4.0}), Box::new(linear(4.0))),
        (json!({"rope_type": "linear", "factor": 2.5}), Box::new(linear(2.5))),
        (json!({"type": "dynamic", "factor": 4.0}), Box::new(dynamic(4.0))),
        (json!({"rope_type": "dynamic", "factor": 2.5}), Box::new(dynamic(2.5))),
    ];
    for (scaling, frequency) in cases {
        let mut config = Tiny::config(None);
        config["max_position_embeddings"] = json!(original);
        config["rope_scaling"] = scaling.clone();
        let want = |prompt: usize, m: usize| {
            // Tokens of the sequence when position `p` was computed.
            let length = |p: usize| prompt.max(p + 1);
            let score = |p: usize, j: usize, q: &[f64], k: &[f64]| {
                let (q, k) = (turn(q, p, &|i| frequency(length(p), i)), turn(k, j, &|i| frequency(length(j), i)));
                dot(&q, &k) / (D as f64).sqrt()
            };
            tiny.forward(&ids[..m], &dense(m), &score)
        };
        // Short of the first training's length, and far beyond it.
        for m in [50, n] {
            let options = EngineOptions { chunk: if m == n { 64 } else { 0 }, ..Default::default() };
            let mut engine = tiny.engine_of(backend(), config.clone(), options);
            let tolerance = tolerance(engine.backend());
            let prefill = engine.prefill(&ids[..m], &mode("dense"), &mut |_| ()).unwrap();
            assert_near(&format!("{scaling} {m} tokens"), tolerance, &prefill.logits, &want(m, m));
            if m == n {
                for (token, id) in ids.iter().enumerate().skip(n) {
                    let logits = engine.decode(*id).unwrap();
                    assert_near(&format!("{scaling} token {token}"), tolerance, &logits, &want(n, token + 1));
                }
            }
        }
    }
}

/// The whole prompt at once, in pieces, with keys and values in host memory, and token by token.
fn dense_over_chunks<B: Backend>(backend: impl Fn() -> B) {
    let tiny = Tiny::new();
    for dual in DUALS {
        let n = 2 * (dual.0 - dual.1) + dual.0 + 40;
        let ids = prompt(n);
        let want = tiny.logits(&ids, dual, &dense(n));
        let wrong = tiny.logits(&ids, (100_000, 1, dual.2), &dense(n));
        let apart = dot(&want, &want).sqrt();
        let far: Vec<f64> = want.iter().zip(&wrong).map(|(a, b)| a - b).collect();
        assert!(dot(&far, &far).sqrt() > 0.1 * apart, "the method must show: {:.3}", dot(&far, &far).sqrt() / apart);
        for (chunk, kv) in [(0, KvPlace::Device), (64, KvPlace::Device), (192, KvPlace::Host)] {
            let mut engine = tiny.engine(backend(), Some(dual), EngineOptions { chunk, kv, ..Default::default() });
            let tolerance = tolerance(engine.backend());
            let prefill = engine.prefill(&ids, &mode("dense"), &mut |_| ()).unwrap();
            assert_near(&format!("{dual:?} chunk {chunk} {kv:?}"), tolerance, &prefill.logits, &want);
            assert_eq!(prefill.density, 1.0);
            assert!(prefill.heads.iter().flatten().all(|head| head.density == 1.0));
        }
        // Decoding, over the boundary of a chunk.
        let before = 3 * (dual.0 - dual.1) - 3;
        let mut engine = tiny.engine(backend(), Some(dual), EngineOptions::default());
        let tolerance = tolerance(engine.backend());
        engine.prefill(&ids[..before], &mode("dense"), &mut |_| ()).unwrap();
        for m in before..before + 6 {
            let logits = engine.decode(ids[m]).unwrap();
            if m % 2 == 0 {
                let want = tiny.logits_after(before, &ids[..m + 1], dual, &dense(m + 1));
                assert_near(&format!("{dual:?} decoding token {m}"), tolerance, &logits, &want);
            }
        }
    }
}

/// A window counts true distances, whatever the rotary embedding is told.
fn windows_over_chunks<B: Backend>(backend: impl Fn() -> B) {
    let tiny = Tiny::new();
    for dual in DUALS {
        let n = 2 * (dual.0 - dual.1) + 100;
        let ids = prompt(n);
        let sees = |_: &[f32], _: &[f32], _: usize| -> Vec<bool> {
            let pair = |i: usize| (i / n, i % n);
            (0..n * n).map(pair).map(|(p, j)| j <= p && (j < 20 || p - j < 90)).collect()
        };
        let want = tiny.logits(&ids, dual, &sees);
        let mut engine = tiny.engine(backend(), Some(dual), EngineOptions::default());
        let tolerance = tolerance(engine.backend());
        let prefill = engine.prefill(&ids, &mode("a_shape:20:90"), &mut |_| ()).unwrap();
        assert_near(&format!("{dual:?}"), tolerance, &prefill.logits, &want);
        let pairs = sees(&[], &[], 0).iter().filter(|&&seen| seen).count();
        assert!((prefill.density - pairs as f64 / (n * (n + 1) / 2) as f64).abs() < 1e-12, "{}", prefill.density);
    }
}

/// Up to `chunk_size` tokens all distances are true: the same as without dual chunks, sparse or not. Pieces of the prompt
/// end where chunks do, so that both choose for the same queries.
fn within_the_native_length<B: Backend>(backend: impl Fn() -> B) {
    let tiny = Tiny::new();
    let dual = (384, 64, 384);
    for (n, pattern) in [(320, "dense"), (384, "dense"), (384, "vertical_slash:30:110"), (384, "block_sparse:3")] {
        let ids = prompt(n);
        let options = || EngineOptions { chunk: 64, ..Default::default() };
        let mut plain = tiny.engine(backend(), None, options());
        let want = plain.prefill(&ids, &mode(pattern), &mut |_| ()).unwrap();
        let mut engine = tiny.engine(backend(), Some(dual), options());
        let got = engine.prefill(&ids, &mode(pattern), &mut |_| ()).unwrap();
        let logits: Vec<f64> = want.logits.iter().map(|x| f64::from(*x)).collect();
        // Keys that are turned twice are rounded twice: in 16 bits some choice may fall otherwise.
        let exact = pattern == "dense" || engine.backend().activation() == minference::DType::F32;
        let tolerance = if exact { tolerance(engine.backend()) } else { 0.1 };
        assert_near(&format!("{n} tokens {pattern}"), tolerance, &got.logits, &logits);
        if n == 320 {
            assert_eq!(got.logits, want.logits, "one chunk is plain attention");
        }
    }
}

/// The index is chosen by true distances, chunk by chunk of the method, and cut to each set of keys.
#[test]
fn vertical_slash_over_chunks_cpu() {
    let tiny = Tiny::new();
    for dual in &DUALS[..2] {
        let dual = *dual;
        let stride = dual.0 - dual.1;
        let n = 3 * stride + 70;
        let ids = prompt(n);
        let scale = temperature(n, dual) / (D as f64).sqrt();
        let sees = |q: &[f32], k: &[f32], _: usize| -> Vec<bool> {
            let mut mask = vec![false; n * n];
            for start in (0..n).step_by(stride) {
                let end = n.min(start + stride);
                let (q, k) = (&q[start * D..end * D], &k[..end * D]);
                let (columns, offsets) = naive::vertical_slash_scores(q, k, D, scale, start);
                let best = |scores: &[f64], forced: usize, count: usize| {
                    let scores: Vec<f32> = scores.iter().map(|x| *x as f32).collect();
                    naive::top_k(&scores, forced.min(end), count.min(end))
                };
                let (columns, offsets) = (best(&columns, 30, 45), best(&offsets, 100, 104));
                for row in (start..end).step_by(BLOCK) {
                    let (blocks, columns) = naive::convert(&columns, &offsets, row + BLOCK, end);
                    let keys = blocks.iter().flat_map(|b| *b..b + BLOCK).chain(columns);
                    let keys: Vec<usize> = keys.collect();
                    for p in row..end.min(row + BLOCK) {
                        keys.iter().filter(|j| **j <= p).for_each(|j| mask[p * n + j] = true);
                    }
                }
            }
            mask
        };
        let want = tiny.logits(&ids, dual, &sees);
        let mut engine = tiny.engine(Cpu::new(), Some(dual), EngineOptions::default());
        let prefill = engine.prefill(&ids, &mode("vertical_slash:45:104"), &mut |_| ()).unwrap();
        assert!(prefill.density < 0.95, "{}", prefill.density);
        assert_near(&format!("{dual:?}"), 1e-5, &prefill.logits, &want);
        let all = tiny.logits(&ids, dual, &dense(n));
        let far: Vec<f64> = want.iter().zip(&all).map(|(a, b)| a - b).collect();
        assert!(dot(&far, &far) > 1e-6 * dot(&want, &want), "what is left out must show");
    }
}
