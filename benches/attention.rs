//! Attention of one layer by pattern and length, dense as a row of each group: a speed-up is read, not computed.
//!
//! ```sh
//! cargo bench --bench attention
//! cargo bench --bench attention -- wgpu
//! ```
//!
//! Names say operation, backend, length and shape, then pattern. The time holds everything that a pattern needs:
//! estimation, index, attention. Each iteration ends with the device idle. Throughput is in tokens.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use minference::DType;
use minference::attention::attend;
use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use minference::ops::AttentionShape;
use minference::pattern::HeadPattern;
use minference::tensor::Tensor;
use std::time::Duration;

const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const DIM: usize = 128;
const PATTERNS: [&str; 5] =
    ["dense", "a_shape:128:1024", "vertical_slash:100:800", "vertical_slash:1000:6096", "block_sparse:32"];

/// Noise with a sink at the first key and a preference for near keys, so that estimation has something to find.
fn values(seed: u32, heads: usize, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut out: Vec<f32> = (0..heads * len * DIM).map(|_| noise()).collect();
    for head in out.chunks_exact_mut(len * DIM) {
        for (token, row) in head.chunks_exact_mut(DIM).enumerate() {
            let (sin, cos) = (token as f32 / 200.0).sin_cos();
            (row[0], row[1]) = (6.0 * cos, 6.0 * sin);
            row[2] = if seed == 1 || token == 0 { 6.0 } else { 0.0 };
        }
    }
    out
}

fn group<B: Backend>(c: &mut Criterion, b: &B, lengths: &[usize]) {
    for &len in lengths {
        let tensor = |seed, heads| Tensor::activation(b, [heads, len, DIM], &values(seed, heads, len));
        let stride = [DIM, len * DIM];
        let shape = AttentionShape {
            n_heads: HEADS,
            n_kv_heads: KV_HEADS,
            head_dim: DIM,
            q_len: len,
            kv_len: len,
            q_start: 0,
            scale: 1.0 / (DIM as f32).sqrt(),
            q_stride: stride,
            k_stride: stride,
            v_stride: stride,
            out_stride: stride,
        };
        let (q, k, v) = (tensor(1, HEADS).unwrap(), tensor(2, KV_HEADS).unwrap(), tensor(3, KV_HEADS).unwrap());
        let mut out = Tensor::alloc(b, DType::F32, [HEADS, len, DIM]).unwrap();
        let mut group = c.benchmark_group(format!("attention/{}/{len}_h{HEADS}kv{KV_HEADS}_d{DIM}", b.info().backend));
        group.sample_size(10).warm_up_time(Duration::from_millis(500)).throughput(Throughput::Elements(len as u64));
        for pattern in PATTERNS {
            let patterns = vec![pattern.parse::<HeadPattern>().unwrap(); HEADS];
            group.bench_with_input(BenchmarkId::from_parameter(pattern), &patterns, |bencher, patterns| {
                bencher.iter(|| {
                    attend(b, patterns, &shape, q.view(), k.view(), v.view(), out.view_mut(), None).unwrap();
                    b.synchronize().unwrap();
                });
            });
        }
        group.finish();
    }
}

fn cpu(c: &mut Criterion) {
    group(c, &Cpu::new(), &[4096, 16384]);
}

#[cfg(feature = "wgpu")]
fn wgpu(c: &mut Criterion) {
    use minference::backend::wgpu::{Options, Wgpu, devices};
    // A software adapter would take minutes to say what the row above says better.
    match devices().iter().any(|d| !d.is_cpu) {
        true => group(c, &Wgpu::new(None, Options::default()).unwrap(), &[4096, 16384, 32768]),
        false => println!("attention/wgpu: not run, no GPU here"),
    }
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_: &mut Criterion) {
    println!("attention/wgpu: not run, built without it");
}

criterion_group!(benches, cpu, wgpu);
criterion_main!(benches);
