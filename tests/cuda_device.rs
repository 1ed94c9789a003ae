//! What only a CUDA device has: a caller's stream and memory, recorded decoding steps, memory that runs out, kernels that
//! read tiles past the end of the keys.
//!
//! Each test opens the device through `common::cuda`, which panics where there is none unless `MINFERENCE_ALLOW_NO_CUDA=1`.
#![cfg(feature = "cuda")]

mod common;

use common::{CudaKind, Rng, assert_close, roundoff};
use minference::attention::attend;
use minference::backend::cuda::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use minference::backend::cuda::{Cuda, CudaBuffer, CudaOptions};
use minference::backend::{Backend, traced::Traced};
use minference::engine::{Engine, EngineOptions};
use minference::model::{DecoderConfig, Model};
use minference::ops::AttentionShape;
use minference::pattern::{AttentionMode, HeadPattern};
use minference::tensor::{Tensor, encode_f32};
use minference::{DType, Error};
use std::path::Path;
use std::sync::Arc;

fn parse(patterns: &[&str]) -> Vec<HeadPattern> {
    patterns.iter().map(|p| p.parse().unwrap()).collect()
}

/// Token-major q, k, v side by side: `heads` query heads on half as many KV heads of 64.
fn shape(heads: usize, len: usize) -> AttentionShape {
    let (dim, row) = (64, 2 * heads * 64);
    AttentionShape {
        n_heads: heads,
        n_kv_heads: heads / 2,
        head_dim: dim,
        q_len: len,
        kv_len: len,
        q_start: 0,
        scale: 0.125,
        q_stride: [row, dim],
        k_stride: [row, dim],
        v_stride: [row, dim],
        out_stride: [heads * dim, dim],
    }
}

/// Device memory of the caller's, as a buffer of ours `skip` elements of 16 bits in.
fn borrowed(memory: &CudaSlice<u8>, stream: &CudaStream, skip: usize) -> CudaBuffer {
    let address = memory.device_ptr(stream).0 + 2 * skip as u64;
    // SAFETY: the tests wait for the stream before the memory goes.
    unsafe { CudaBuffer::from_raw(address, memory.len() - 2 * skip) }
}

/// A layer on a caller's stream and memory, against the CPU twin.
fn embedded_on(stream: &Arc<CudaStream>) {
    let b = Cuda::on_stream(stream.clone(), CudaOptions { activation: DType::F16, ..CudaOptions::default() }).unwrap();
    let (heads, len) = (4, 1000);
    let shape = shape(heads, len);
    let patterns = parse(&["vertical_slash:60:90", "block_sparse:5", "a_shape:64:128", "dense"]);
    // Multiples of 1/64: exact in f16, so that both choose from the same numbers.
    let values: Vec<f32> = Rng(5).normals(len * 2 * heads * 64).iter().map(|x| (x * 64.).round() / 64.).collect();
    let qkv = stream.clone_htod(&encode_f32(DType::F16, &values).unwrap()).unwrap();
    let result = stream.alloc_zeros::<u8>(4 * len * heads * 64).unwrap();
    let columns = [0, heads * 64, heads * 64 + heads / 2 * 64];
    let band = |column: usize| {
        Tensor::<Cuda>::from_buffer(borrowed(&qkv, stream, column), DType::F16, [values.len() - column]).unwrap()
    };
    let [q, k, v] = columns.map(band);
    let mut out = Tensor::from_buffer(borrowed(&result, stream, 0), DType::F32, [len, heads * 64]).unwrap();
    attend(&b, &patterns, &shape, q.view(), k.view(), v.view(), out.view_mut(), None).unwrap();
    // The caller's own copy, on its own stream, behind ours.
    let got: Vec<f32> = bytemuck::pod_collect_to_vec(&stream.clone_dtoh(&result).unwrap());

    let twin = common::cpu();
    let band = |column: usize| {
        let part = &values[column..];
        Tensor::activation(twin, [part.len()], part).unwrap()
    };
    let [q, k, v] = columns.map(band);
    let mut out = Tensor::alloc(twin, DType::F32, [len, heads * 64]).unwrap();
    attend(twin, &patterns, &shape, q.view(), k.view(), v.view(), out.view_mut(), None).unwrap();
    let want: Vec<f64> = out.to_f32(twin).unwrap().into_iter().map(f64::from).collect();
    assert_close("embedded", roundoff(DType::F16), &got, &want);
}

mod embedded {
    use super::*;

    #[test]
    fn cuda() {
        if common::cuda(CudaKind::F16).is_none() {
            return;
        }
        let context = CudaContext::new(0).unwrap();
        embedded_on(&context.new_stream().unwrap());
        embedded_on(&context.default_stream());
    }
}

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 1024, "vocab_size": 1024, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "max_position_embeddings": 131072, "tie_word_embeddings": true}"#;

fn model() -> Model {
    Model::random("test", DecoderConfig::from_json(Path::new("test"), CONFIG).unwrap(), DType::BF16, 3)
}

/// Logits of every step behind prompts of several lengths, and tokens a second of the last run of steps.
fn decoded<B: Backend>(b: B, recorded: bool) -> (Vec<Vec<f32>>, f64) {
    let options = EngineOptions { capacity: 2048, ..EngineOptions::default() };
    let mut engine = Engine::new(b, model(), options).unwrap();
    let ids: Vec<u32> = (0..1500u32).map(|i| i * 7919 % 1024).collect();
    let dense = AttentionMode::Uniform(HeadPattern::Dense);
    let mut all = vec![engine.prefill(&ids[..500], &dense, &mut |_| ()).unwrap().logits];
    // Over the border of 512 keys, behind which the grid is another one.
    all.extend((0..24).map(|i| engine.decode(i).unwrap()));
    assert_eq!(engine.replays(), recorded);
    // Back to a shorter sequence, then on behind a longer one: the recording moves both ways.
    engine.truncate(400);
    all.extend((0..8).map(|i| engine.decode(i).unwrap()));
    engine.prefill(&ids[..1200], &dense, &mut |_| ()).unwrap();
    let start = std::time::Instant::now();
    all.extend((0..256).map(|i| engine.decode(i).unwrap()));
    (all, 256. / start.elapsed().as_secs_f64())
}

mod recorded_steps_are_the_single_ones {
    use super::*;

    #[test]
    fn cuda() {
        if common::cuda(CudaKind::Bf16).is_none() {
            return;
        }
        let open = |graphs| Cuda::new(0, CudaOptions { graphs, ..CudaOptions::default() }).unwrap();
        let (single, before) = decoded(open(false), false);
        let (recorded, after) = decoded(open(true), true);
        for (i, (single, recorded)) in single.iter().zip(&recorded).enumerate() {
            assert!(single == recorded, "step {i}");
        }
        println!("decode of a small model: {before:.0} tokens/s by launches, {after:.0} by graph");
        // Timed by operation, nothing is recorded.
        let (traced, _) = decoded(Traced::new(open(true)), false);
        assert!(traced == single);
    }

    /// A caller's default stream cannot be captured: steps run by themselves, with the same logits.
    #[test]
    fn on_a_default_stream_cuda() {
        if common::cuda(CudaKind::Bf16).is_none() {
            return;
        }
        let stream = CudaContext::new(0).unwrap().default_stream();
        let own = Cuda::new(0, CudaOptions::default()).unwrap();
        let on_default = Cuda::on_stream(stream, CudaOptions::default()).unwrap();
        assert!(decoded(own, true).0 == decoded(on_default, false).0);
    }
}

mod out_of_memory {
    use super::*;

    #[test]
    fn cuda() {
        if common::cuda(CudaKind::Bf16).is_none() {
            return;
        }
        let b = Cuda::new(0, CudaOptions::default()).unwrap();
        b.reset_peak();
        let before = b.memory();
        let total = b.info().memory_bytes as usize;
        let small = b.upload(&[7; 4096]).unwrap();
        // Half of the device and then all of it: the second cannot be.
        let half = b.alloc(total / 2).unwrap();
        let error = b.alloc(total).err().expect("more than the device has");
        let Error::OutOfMemory(text) = &error else { panic!("{error}") };
        let gib = |bytes: usize| format!("{:.3} GiB", bytes as f64 / (1u64 << 30) as f64);
        assert!(text.contains(&format!("asked the device for {}", gib(total))), "{text}");
        for part in ["are free", "this backend holds", "--chunk", "--kv host"] {
            assert!(text.contains(part), "{text}");
        }
        println!("{error}");
        // The device goes on, and the peak tells of what was there.
        assert_eq!(b.memory().peak - before.current, (total / 2 + 4096) as u64);
        drop(half);
        assert_eq!(b.memory().current - before.current, 4096);
        let again = b.alloc(total / 2).unwrap();
        assert_eq!(pollster::block_on(b.download(&small, 0..4096)).unwrap(), [7; 4096]);
        drop(again);
    }

    /// A pre-fill that cannot fit is refused before it starts, and says what would.
    #[test]
    fn of_a_prefill_cuda() {
        if common::cuda(CudaKind::Bf16).is_none() {
            return;
        }
        let config =
            CONFIG.replace("131072", "1000000000").replace("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 64");
        let config = DecoderConfig::from_json(Path::new("test"), &config).unwrap();
        let model = Model::random("test", config, DType::BF16, 3);
        let mut engine =
            Engine::new(Cuda::new(0, CudaOptions::default()).unwrap(), model, EngineOptions::default()).unwrap();
        let dense = AttentionMode::Uniform(HeadPattern::Dense);
        let error = engine.prefill(&vec![1; 40_000_000], &dense, &mut |_| ()).expect_err("too long");
        assert!(matches!(&error, Error::OutOfMemory(text) if text.contains("tokens fit")), "{error}");
        println!("{error}");
        engine.prefill(&[1, 2, 3], &dense, &mut |_| ()).unwrap();
    }
}

/// Keys and values of a cache whose rest is NaN: no kernel may let what lies past the last key into a row, and repeats are
/// equal bit by bit.
fn poisoned(kind: CudaKind) {
    let Some(b) = common::cuda(kind) else { return };
    let (heads, dim, capacity) = (4, 128, 1088);
    let patterns = parse(&["vertical_slash:100:130", "block_sparse:4", "a_shape:64:128", "dense"]);
    for (q_len, kv_len) in [(1000, 1000), (65, 1023), (1, 961), (64, 1024)] {
        let shape = AttentionShape {
            n_heads: heads,
            n_kv_heads: 2,
            head_dim: dim,
            q_len,
            kv_len,
            q_start: kv_len - q_len,
            scale: 0.09,
            q_stride: [heads * dim, dim],
            k_stride: [dim, capacity * dim],
            v_stride: [dim, capacity * dim],
            out_stride: [heads * dim, dim],
        };
        let mut rng = Rng(q_len as u64);
        let q = Tensor::activation(b, [q_len, heads * dim], &rng.normals(q_len * heads * dim)).unwrap();
        let full: [Vec<f32>; 2] = std::array::from_fn(|_| rng.normals(2 * capacity * dim));
        let run = |past_the_end: f32| {
            let mut tensors = full.clone();
            for head in tensors.iter_mut().flat_map(|t| t.chunks_mut(capacity * dim)) {
                head[kv_len * dim..].fill(past_the_end);
            }
            let [k, v] = tensors.map(|t| Tensor::activation(b, [2, capacity, dim], &t).unwrap());
            let mut out = Tensor::activation(b, [q_len, heads * dim], &vec![f32::NAN; q_len * heads * dim]).unwrap();
            attend(b, &patterns, &shape, q.view(), k.view(), v.view(), out.view_mut(), None).unwrap();
            let mut all = out.to_f32(b).unwrap();
            minference::ops::decode_attention(b, &shape, q.view(), k.view(), v.view(), out.view_mut()).unwrap();
            all.extend(out.to_f32(b).unwrap());
            all
        };
        let clean = run(0.0);
        assert!(clean.iter().all(|x| x.is_finite()), "{q_len} of {kv_len}");
        for round in 0..3 {
            assert!(run(f32::NAN) == clean, "{q_len} of {kv_len}, round {round}");
        }
    }
}

mod poison_past_the_end_and_equal_repeats {
    use super::*;

    #[test]
    fn cuda() {
        poisoned(CudaKind::Bf16);
    }

    #[test]
    fn cuda_f16() {
        poisoned(CudaKind::F16);
    }

    #[test]
    fn cuda_sm80() {
        poisoned(CudaKind::Sm80);
    }
}
