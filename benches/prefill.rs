//! Whole pre-fills of a small model of random weights (4 layers, hidden 512, 8 heads on 2), by attention; dense as a row of
//! each group. On a GPU the same of Llama-3-8B's shape is `minference bench prefill --model llama-3-8b-262k --layers 4`.

mod common;

use common::{Bench, Group, run};
use criterion::{Criterion, criterion_group, criterion_main};
use minference::DType;
use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use minference::engine::{Engine, EngineOptions};
use minference::model::{DecoderConfig, Model};
use minference::pattern::AttentionMode;
use std::path::Path;

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "intermediate_size": 1792, "vocab_size": 1024, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "max_position_embeddings": 131072, "tie_word_embeddings": true}"#;

struct Prefill;

impl Prefill {
    fn on<B: Backend>(&self, group: &mut Group, b: B, len: usize) {
        let backend = b.info().backend;
        let config = DecoderConfig::from_json(Path::new("bench"), CONFIG).unwrap();
        let model = Model::random("bench", config, DType::F16, 1);
        let mut engine = Engine::new(b, model, EngineOptions::default()).unwrap();
        let ids: Vec<u32> = (0..len as u32).map(|i| i * 7919 % 1024).collect();
        for pattern in ["dense", "a_shape:128:1024", "vertical_slash:100:800", "block_sparse:16"] {
            let mode = AttentionMode::Uniform(pattern.parse().unwrap());
            group.bench_function(format!("{pattern}/{backend}"), |bencher| {
                bencher.iter(|| {
                    engine.reset();
                    engine.prefill(&ids, &mode, &mut |_| ()).unwrap()
                });
            });
        }
    }
}

impl Bench for Prefill {
    fn rows<B: Backend>(&self, group: &mut Group, b: &B, len: usize) {
        // An engine owns its device: each is opened anew.
        match b.info().backend {
            "cpu" => self.on(group, Cpu::new(), len),
            #[cfg(feature = "wgpu")]
            "wgpu" => self.on(group, minference::backend::wgpu::Wgpu::new(None, Default::default()).unwrap(), len),
            #[cfg(feature = "cuda")]
            "cuda" => self.on(group, minference::backend::cuda::Cuda::new(0, Default::default()).unwrap(), len),
            other => println!("prefill/{other}: not run: no such device"),
        }
    }
}

fn prefill(c: &mut Criterion) {
    run(c, "prefill", &[2048], &[8192, 32768, 131072], &Prefill);
}

criterion_group!(benches, prefill);
criterion_main!(benches);
