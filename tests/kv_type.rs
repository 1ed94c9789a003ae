//! Keys and values kept in q8_0: nearly the same logits in about half the memory, wherever and in whatever pieces they are
//! kept.
#![cfg(feature = "cli")]

use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use minference::embedded::{NOVEL, needle};
use minference::engine::{Engine, EngineOptions};
use minference::model::{KvPlace, KvType, kv_cache};
use minference::pattern::{AttentionMode, HeadPattern};

/// Logits of the prompt's end and of one decoding step behind it, and the most bytes in use.
fn logits<B: Backend>(b: B, kv_type: KvType, kv: KvPlace, chunk: usize) -> (Vec<f32>, u64) {
    let model = needle().unwrap();
    let ids = model.text().unwrap().tokenizer.encode(&NOVEL[..6000], true).unwrap()[..1000].to_vec();
    let options = EngineOptions { kv_type, kv, chunk, ..EngineOptions::default() };
    let mut engine = Engine::new(b, model, options).unwrap();
    engine.backend().reset_peak();
    let before = engine.backend().memory().current;
    let mode = AttentionMode::Uniform(HeadPattern::Dense);
    let mut logits = engine.prefill(&ids, &mode, &mut |_| ()).unwrap().logits;
    logits.extend(engine.decode(5).unwrap());
    (logits, engine.backend().memory().peak - before)
}

fn relative(got: &[f32], want: &[f32]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum();
    (error / want.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>()).sqrt()
}

fn check<B: Backend>(open: impl Fn() -> B) {
    let (plain, plain_peak) = logits(open(), KvType::F16, KvPlace::Device, 0);
    let (packed, packed_peak) = logits(open(), KvType::Q8_0, KvPlace::Device, 0);
    let error = relative(&packed, &plain);
    // 127 steps to the largest of 32 elements: 0.4 % of an element, of which logits see a part.
    assert!(error > 0.0 && error < 0.02, "relative L2 error {error:.1e}");
    // The same keys and values, so the same logits, in chunks and from host memory.
    for (kv, chunk) in [(KvPlace::Device, 320), (KvPlace::Host, 320), (KvPlace::Host, 0)] {
        let error = relative(&logits(open(), KvType::Q8_0, kv, chunk).0, &packed);
        assert!(error < 5e-3, "{kv:?} in chunks of {chunk}: {error:.1e}");
    }
    // What the plan says, against what was allocated.
    let config = needle().unwrap().config;
    let act = open().activation();
    let bytes = |kv_type| kv_cache::bytes(&config, act, 1256, KvPlace::Device, kv_type);
    assert_eq!(plain_peak - packed_peak, bytes(KvType::F16) - bytes(KvType::Q8_0));
    assert!(packed_peak < plain_peak);
}

#[test]
fn packed_keys_and_values_cpu() {
    check(Cpu::new);
}

#[cfg(feature = "wgpu")]
#[test]
fn packed_keys_and_values_wgpu() {
    use minference::backend::wgpu::{Options, Wgpu};
    match Wgpu::new(None, Options::default()) {
        Ok(_) => check(|| Wgpu::new(None, Options::default()).unwrap()),
        Err(error) => println!("not run: {error}"),
    }
}

/// A binding too small for a layer's cache: head by head.
#[cfg(feature = "wgpu")]
#[test]
fn packed_keys_and_values_under_a_small_binding_limit_wgpu() {
    use minference::backend::wgpu::{Options, Tier, Wgpu};
    let options = Options { tier: Tier::Plain, max_binding_bytes: Some(1 << 20), ..Options::default() };
    let open = |options| logits(Wgpu::new(None, options).unwrap(), KvType::Q8_0, KvPlace::Device, 0).0;
    match Wgpu::new(None, options) {
        Ok(_) => {
            let error = relative(&open(options), &open(Options { max_binding_bytes: None, ..options }));
            assert!(error < 1e-4, "{error:.1e}");
        }
        Err(error) => println!("not run: {error}"),
    }
}

#[cfg(feature = "cuda")]
#[test]
fn packed_keys_and_values_cuda() {
    use minference::backend::cuda::{Cuda, CudaOptions};
    match Cuda::new(0, CudaOptions::default()) {
        Ok(_) => check(|| Cuda::new(0, CudaOptions::default()).unwrap()),
        Err(error) => println!("not run: {error}"),
    }
}
