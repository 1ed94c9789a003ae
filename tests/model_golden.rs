//! Real models against transformers: SmolLM2-135M and Qwen2.5-Coder-1.5B from GGUF files, dense, f32.
//!
//! `MINFERENCE_MODELS` is the directory that `../shared/tools/make_model_golden.py fetch DIR` filled; without it and the
//! goldens in `../shared/model-golden` nothing runs, and each test says so.

mod common;

use minference::DType;
use minference::Error;
use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use minference::engine::{Engine, EngineOptions};
use minference::model::{Model, Watch};
use minference::pattern::{AttentionMode, HeadPattern};
use minference::sample::argmax;
use minference::tensor::View;
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

const DENSE: AttentionMode = AttentionMode::Uniform(HeadPattern::Dense);

/// The golden JSON and the model file, where both are there.
fn find(name: &str) -> Option<(Value, PathBuf)> {
    let Some(models) = std::env::var_os("MINFERENCE_MODELS") else {
        println!("not run: {name}: MINFERENCE_MODELS does not say where the model files are");
        return None;
    };
    let path = golden_path(&format!("{name}.json"));
    let Ok(text) = std::fs::read(&path) else {
        println!("not run: {name}: no {}", path.display());
        return None;
    };
    let golden: Value = serde_json::from_slice(&text).unwrap();
    let file = Path::new(&models).join(golden["gguf"].as_str().unwrap());
    assert!(file.is_file(), "MINFERENCE_MODELS is set, but {} is not there", file.display());
    Some((golden, file))
}

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/model-golden").join(name)
}

fn ids(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(json: &Value) -> Vec<f32> {
    json.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// The last row of the residual stream after the embedding and after each layer.
struct LastRows(Vec<Vec<f32>>);

impl<B: Backend> Watch<B> for LastRows {
    fn hidden(&mut self, b: &B, _layers_done: usize, x: View<B>) -> minference::Result<()> {
        let n = x.shape().dims()[0];
        self.0.push(x.rows(n - 1..n).to_f32(b)?);
        Ok(())
    }
}

/// Bounds of the goldens' README: largest difference of a logit, and the least margin of a greedy step that must agree.
fn bounds(activation: DType) -> (f32, f32) {
    if activation == DType::F32 { (1e-3, 0.05) } else { (0.1, 0.5) }
}

fn check<B: Backend>(b: B, name: &str, longest: usize) {
    let Some((golden, file)) = find(name) else { return };
    let hidden = std::fs::read(golden_path(&format!("{name}.safetensors"))).unwrap();
    let hidden = SafeTensors::deserialize(&hidden).unwrap();
    let (tolerance, margin_bound) = bounds(b.activation());
    let mut engine = Engine::new(b, Model::open(&file).unwrap(), EngineOptions::default()).unwrap();
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap() {
        let (label, prompt) = (case["case"].as_str().unwrap(), ids(&case["prompt_ids"]));
        if prompt.len() > longest {
            println!("not run: {name} {label}: {} tokens", prompt.len());
            continue;
        }
        engine.reset();
        let mut seen = LastRows(Vec::new());
        let prefill = engine.prefill_watched(&prompt, &DENSE, &mut |_| (), &mut seen).unwrap();
        let got: Vec<f32> = ids(&case["top5_ids"]).iter().map(|id| prefill.logits[*id as usize]).collect();
        let differences = got.iter().zip(floats(&case["top5_logits"])).map(|(g, w)| (g - w).abs());
        let worst = differences.fold(0.0, f32::max);
        let tokens_per_second = prompt.len() as f64 / prefill.seconds;
        println!("{name} {label}: {} tokens at {tokens_per_second:.1}/s, top-5 within {worst:.2e}", prompt.len());
        assert!(worst <= tolerance, "{name} {label}: {worst}");

        if let Ok(want) = hidden.tensor(&format!("{label}.hidden_last")) {
            let want: Vec<f32> = bytemuck::pod_collect_to_vec(want.data());
            // The golden's last row is after the final norm; the rows before it are the residual stream.
            let width = engine.config().hidden;
            for (layer, (got, want)) in seen.0.iter().zip(want.chunks_exact(width)).enumerate().take(seen.0.len() - 1) {
                let size = (want.iter().map(|w| w * w).sum::<f32>() / width as f32).sqrt().max(1.0);
                let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
                assert!(worst <= tolerance * size, "{name} {label}: after layer {layer}: {worst} of {size}");
            }
        }

        // Close calls may go either way; after one the texts differ.
        let mut logits = prefill.logits;
        for (step, (want, margin)) in ids(&case["greedy_ids"]).iter().zip(floats(&case["greedy_margin"])).enumerate() {
            if margin < margin_bound || engine.model().eos.contains(want) {
                break;
            }
            let got = argmax(&logits);
            assert_eq!(got, *want, "{name} {label}: greedy step {step}, margin {margin}");
            compared += 1;
            logits = engine.decode(got).unwrap();
        }
    }
    println!("{name}: {compared} greedy ids equal");
    assert!(compared > 0, "{name}: no greedy step was compared");
}

#[test]
fn smollm2_cpu() {
    check(Cpu::new(), "smollm2-135m", usize::MAX);
}

/// On a software adapter the short cases only.
#[cfg(feature = "wgpu")]
fn check_on_wgpu(name: &str, longest_on_cpu: usize) {
    use minference::backend::wgpu::{Options, Wgpu};
    if find(name).is_none() {
        return;
    }
    let b = match Wgpu::new(None, Options::default()) {
        Ok(b) => b,
        Err(error) if std::env::var_os("MINFERENCE_ALLOW_NO_ADAPTER").is_some_and(|v| v == "1") => {
            println!("not run: {name}: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let longest = if b.info().is_cpu { longest_on_cpu } else { usize::MAX };
    if longest == 0 {
        println!("not run: {name}: {} is a software adapter", b.info().name);
        return;
    }
    check(b, name, longest);
}

#[cfg(feature = "wgpu")]
#[test]
fn smollm2_wgpu() {
    check_on_wgpu("smollm2-135m", 64);
}

#[cfg(feature = "wgpu")]
#[test]
fn qwen_coder_wgpu() {
    check_on_wgpu("qwen2.5-coder-1.5b", 0);
}

#[test]
fn qwen_coder_cpu() {
    check(Cpu::new(), "qwen2.5-coder-1.5b", usize::MAX);
}

/// In f16: the goldens' bounds for half precision are f16's.
#[cfg(feature = "cuda")]
fn check_on_cuda(name: &str) {
    use minference::backend::cuda::{Cuda, CudaOptions};
    if find(name).is_none() {
        return;
    }
    match Cuda::new(0, CudaOptions { activation: DType::F16, ..CudaOptions::default() }) {
        Ok(b) => check(b, name, usize::MAX),
        Err(error) if std::env::var_os("MINFERENCE_ALLOW_NO_CUDA").is_some_and(|v| v == "1") => {
            println!("not run: {name}: {error}");
        }
        Err(error) => panic!("{error}"),
    }
}

#[cfg(feature = "cuda")]
#[test]
fn smollm2_cuda() {
    check_on_cuda("smollm2-135m");
}

#[cfg(feature = "cuda")]
#[test]
fn qwen_coder_cuda() {
    check_on_cuda("qwen2.5-coder-1.5b");
}

/// Another architecture is refused by its name, with the list of those that are read.
#[test]
fn gemma_is_refused() {
    let Some((_, file)) = find("gemma3-270m") else { return };
    let error = Model::open(&file).err().unwrap();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("\"gemma3\"") && text.contains("qwen2") && text.contains("chatglm"), "{text}");
}
