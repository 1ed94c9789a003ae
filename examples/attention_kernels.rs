//! Checks and times every form of the attention kernel that a wgpu device can run, and the estimation before it.
//!
//! ```sh
//! cargo run --release --example attention_kernels -- --lengths 8192,32768 --kernels tiles --estimates false
//! ```
//!
//! First, on short inputs, all rows against the CPU; then per length and pattern one line a kernel: milliseconds (median),
//! TFLOP/s over exactly the pairs that the index gives, and the error of sampled rows against f64. Vertical-slash sets are
//! `bands`: half the offsets next to the diagonal, the rest in bands of 32 to 256 at random places.

use clap::{ArgAction, Parser};
use minference::attention::attend;
use minference::backend::cpu::Cpu;
use minference::backend::wgpu::{AttentionKernel, Options, Tier, Wgpu};
use minference::backend::{Backend, params::BLOCK};
use minference::bench::{Inputs, bands, hash};
use minference::estimate::{choose, estimate, from_sets};
use minference::index::SparseIndex;
use minference::ops::{self, AttentionShape};
use minference::pattern::HeadPattern;
use minference::tensor::Tensor;
use minference::{DType, Result};
use rayon::prelude::*;
use std::process::ExitCode;
use std::time::Instant;

/// Checks and times every form of the attention kernel that a wgpu device can run, and the estimation before it.
#[derive(Debug, Parser)]
#[command(name = "attention_kernels")]
struct Arguments {
    /// Which adapter, as `minference devices` numbers them.
    #[arg(long, value_name = "N")]
    device: Option<usize>,
    /// Forces a kernel tier: auto, plain, subgroup, coop8 or coop16.
    #[arg(long, default_value = "auto")]
    tier: Tier,
    /// Tokens.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = [8192, 32768, 131072])]
    lengths: Vec<usize>,
    /// Query heads.
    #[arg(long, value_name = "N", default_value_t = 32)]
    heads: usize,
    /// KV heads.
    #[arg(long, value_name = "N", default_value_t = 8)]
    kv_heads: usize,
    /// Elements of a head.
    #[arg(long, value_name = "N", default_value_t = 128)]
    head_dim: usize,
    /// Patterns, each for all heads.
    #[arg(
        long,
        value_name = "PATTERN,..",
        value_delimiter = ',',
        default_value = "dense,a_shape:1024:4096,vertical_slash:1000:6096,vertical_slash:3500:100,block_sparse:100"
    )]
    patterns: Vec<HeadPattern>,
    /// Only these kernels, as the rows name them; without it all that the device can run.
    #[arg(long, value_name = "KERNEL,..", value_delimiter = ',')]
    kernels: Vec<AttentionKernel>,
    /// Seconds that each is repeated for.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Whether estimation is timed, too.
    #[arg(long, value_name = "true|false", default_value_t = true, action = ArgAction::Set)]
    estimates: bool,
    /// Whether all rows of short inputs are compared with the CPU first.
    #[arg(long, value_name = "true|false", default_value_t = true, action = ArgAction::Set)]
    check: bool,
}

/// A row of the output in f64, from a layer's values.
struct Layer(Inputs);

impl Layer {
    fn new(n_heads: usize, n_kv_heads: usize, head_dim: usize, q_len: usize, q_start: usize) -> Self {
        Self(Inputs::random(n_heads, n_kv_heads, head_dim, q_len, q_start))
    }

    /// One row of the output in f64, over these keys.
    fn row(&self, head: usize, query: usize, keys: &[usize]) -> Vec<f64> {
        let Inputs { shape: s, q, k, v } = &self.0;
        let q = &q[query * s.q_stride[0] + head * s.q_stride[1]..][..s.head_dim];
        let kv_head = head / (s.n_heads / s.n_kv_heads);
        let row = |x: &'_ [half::f16], key: usize| -> Vec<f64> {
            let start = kv_head * s.k_stride[1] + key * s.k_stride[0];
            x[start..start + s.head_dim].iter().map(|x| x.to_f64()).collect()
        };
        let score = |&key: &usize| -> f64 {
            let dot: f64 = q.iter().zip(row(k, key)).map(|(q, k)| q.to_f64() * k).sum();
            dot * f64::from(s.scale)
        };
        let scores: Vec<f64> = keys.par_iter().map(score).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (mut sum, mut out) = (0.0, vec![0.0; s.head_dim]);
        for (key, score) in keys.iter().zip(&scores) {
            let weight = (score - top).exp();
            sum += weight;
            out.iter_mut().zip(row(v, *key)).for_each(|(o, v)| *o += weight * v);
        }
        out.iter().map(|o| o / sum).collect()
    }
}

/// Keys that the index gives one query.
fn keys_of(b: &Wgpu, index: &SparseIndex<Wgpu>, head: usize, query: usize) -> Result<Vec<usize>> {
    let l = index.layout;
    let row = head * l.row_blocks() + query / BLOCK;
    let part = |t: &Tensor<Wgpu>, first: usize, n: usize| -> Result<Vec<u32>> {
        let buffer = t.view().slice().buffer;
        let bytes = pollster::block_on(b.download(buffer, 4 * first..4 * (first + n)))?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    };
    let place = part(&index.row_ranges, 2 * row, 2)?;
    let window = part(&index.window, 2 * head, 2)?;
    let ranges = part(&index.ranges, 2 * place[0] as usize, 2 * place[1] as usize)?;
    let position = l.q_start + query;
    let inside = |key: &usize| *key <= position && (position - key < window[1] as usize || *key < window[0] as usize);
    let mut keys: Vec<usize> = ranges.chunks(2).flat_map(|r| r[0] as usize..r[1] as usize).filter(inside).collect();
    if l.column_tiles > 0 {
        let columns = part(&index.columns, head * l.column_tiles * BLOCK, l.column_tiles * BLOCK)?;
        let keep = part(&index.keep, row * l.column_tiles * 2, l.column_tiles * 2)?;
        let kept = |i: &usize| keep[i / 32] >> (i % 32) & 1 == 1;
        keys.extend((0..columns.len()).filter(kept).map(|i| columns[i] as usize));
    }
    Ok(keys)
}

fn relative_l2(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (error, norm) = pairs.fold((0.0, 0.0), |(e, n), (got, want)| (e + (got - want).powi(2), n + want * want));
    (error / norm).sqrt()
}

/// Median seconds of a call, after one to warm up, repeated for about `budget` seconds.
fn time(b: &Wgpu, budget: f64, call: impl FnMut() -> Result<()>) -> Result<f64> {
    times(b, budget, call).map(|times| times[times.len() / 2])
}

/// Seconds of each repetition, ascending.
fn times(b: &Wgpu, budget: f64, mut call: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut once = || -> Result<f64> {
        let start = Instant::now();
        call()?;
        b.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    };
    once()?;
    let mut times = vec![once()?];
    while times.iter().sum::<f64>() < budget && times.len() < 50 {
        times.push(once()?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Every row of short inputs against the CPU, for every kernel; says which are right.
fn check(b: &Wgpu, kernels: &[AttentionKernel], heads: usize, kv_heads: usize, head_dim: usize) -> Result<()> {
    let cpu = Cpu::new();
    let mix = ["dense", "a_shape:30:200", "vertical_slash:100:300", "block_sparse:4"];
    let patterns: Vec<HeadPattern> = (0..heads).map(|i| mix[i % 4].parse()).collect::<Result<_>>()?;
    for (q_len, q_start) in [(1000, 0), (1024, 0), (333, 1000), (1, 0)] {
        let layer = Layer::new(heads, kv_heads, head_dim, q_len, q_start);
        fn run<B: Backend>(b: &B, layer: &Layer, patterns: &[HeadPattern]) -> Result<Vec<f32>> {
            let [q, k, v] = layer.0.upload(b)?;
            let s = &layer.0.shape;
            let mut out = Tensor::alloc(b, DType::F32, [s.q_len, s.n_heads * s.head_dim])?;
            attend(b, patterns, s, q.view(), k.view(), v.view(), out.view_mut(), None)?;
            out.to_f32(b)
        }
        let want = run(&cpu, &layer, &patterns)?;
        for kernel in kernels {
            b.use_attention_kernel(Some(*kernel));
            let got = match run(b, &layer, &patterns) {
                Ok(got) => got,
                Err(error) => {
                    println!("check {q_len:5} from {q_start:5}  {kernel:16} failed: {error}");
                    continue;
                }
            };
            let error = relative_l2(got.iter().zip(&want).map(|(g, w)| (f64::from(*g), f64::from(*w))));
            let verdict = if error < 1e-3 { "right" } else { "WRONG" };
            println!("check {q_len:5} from {q_start:5}  {kernel:16} {verdict} (rel. L2 {error:.1e})");
        }
    }
    Ok(())
}

/// The index of a pattern: given sets for vertical-slash heads, else the estimate.
fn index(
    b: &Wgpu,
    layer: &Layer,
    pattern: HeadPattern,
    q: &Tensor<Wgpu>,
    k: &Tensor<Wgpu>,
) -> Result<SparseIndex<Wgpu>> {
    let s = &layer.0.shape;
    match pattern {
        HeadPattern::VerticalSlash { columns, offsets } => {
            let sets = (0..s.n_heads).into_par_iter().map(|h| bands(s.kv_len, columns, offsets, h));
            let (columns, offsets): (Vec<_>, Vec<_>) = sets.unzip();
            from_sets(b, &columns, &offsets, s)
        }
        _ => estimate(b, &vec![pattern; s.n_heads], s, q.view(), k.view()),
    }
}

/// Prints what the steps of a vertical-slash estimate take.
fn time_steps(b: &Wgpu, a: &Arguments, s: &AttentionShape, q: &Tensor<Wgpu>, k: &Tensor<Wgpu>) -> Result<()> {
    let heads = s.n_heads;
    let plan: Vec<u32> = (0..heads).flat_map(|_| [2, 1000, 6096, 0]).collect();
    let plan = Tensor::from_slice(b, DType::U32, [heads, 4], &plan)?;
    let mut columns = Tensor::alloc(b, DType::F32, [heads, s.kv_len])?;
    let mut offsets = Tensor::alloc(b, DType::F32, [heads, s.kv_len])?;
    let scoring = time(b, a.seconds, || {
        ops::score_last_queries(b, s, plan.view(), q.view(), k.view(), columns.view_mut(), offsets.view_mut())
    })?;
    print!("score_last_queries {:.3} ms", scoring * 1e3);
    for (count, forced, scores) in [(1000, 30, &columns), (6096, 100, &offsets)] {
        let count = count.min(s.kv_len);
        let counts = Tensor::from_slice(b, DType::U32, [heads], &vec![count as u32; heads])?;
        let mut indices = Tensor::alloc(b, DType::U32, [heads, count])?;
        let select =
            time(b, a.seconds, || ops::select_top_k(b, scores.view(), counts.view(), forced, indices.view_mut()))?;
        print!(", select_top_k {count} {:.3} ms", select * 1e3);
    }
    println!();
    Ok(())
}

/// Prints what each kernel of an estimate takes on the device.
fn time_kernels(b: &Wgpu, mut call: impl FnMut() -> Result<()>) -> Result<()> {
    call()?;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(b.time_launches(&mut call)?);
    }
    let mut total = 0.0;
    for i in 0..runs[0].len() {
        let mut times: Vec<f64> = runs.iter().filter_map(|run| run.get(i).map(|t| t.1)).collect();
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        total += median;
        print!("{} {:.3}, ", runs[0][i].0.split('-').next().unwrap_or_default(), median * 1e3);
    }
    println!("together {:.3} ms", total * 1e3);
    Ok(())
}

/// Prints what one decoding step takes, over all keys.
fn time_decoding(b: &Wgpu, a: &Arguments, layer: &Layer, q: &Tensor<Wgpu>, [k, v]: [&Tensor<Wgpu>; 2]) -> Result<()> {
    let s = &layer.0.shape;
    let one = AttentionShape { q_len: 1, q_start: s.kv_len - 1, ..*s };
    let mut out = Tensor::alloc(b, b.activation(), [s.n_heads * s.head_dim])?;
    let seconds = time(b, a.seconds, || ops::decode_attention(b, &one, q.view(), k.view(), v.view(), out.view_mut()))?;
    let bytes = 2 * s.n_kv_heads * s.kv_len * s.head_dim * b.activation().bytes(1);
    println!("decode_attention {:.3} ms, {:.0} GB/s", seconds * 1e3, bytes as f64 / seconds / 1e9);
    Ok(())
}

fn main() -> ExitCode {
    run(&Arguments::parse()).map_or_else(|e| e.report(), |()| ExitCode::SUCCESS)
}

fn run(a: &Arguments) -> Result<()> {
    let b = Wgpu::new(a.device, Options { tier: a.tier, ..Options::default() })?;
    println!("{:?}\n{:?}", b.info(), b.traits());
    let all = b.attention_kernels(a.head_dim);
    let kernels: Vec<_> = all.iter().copied().filter(|k| a.kernels.is_empty() || a.kernels.contains(k)).collect();
    if a.check {
        check(&b, &kernels, 8, 2, a.head_dim)?;
    }
    for &n in &a.lengths {
        let layer = Layer::new(a.heads, a.kv_heads, a.head_dim, n, 0);
        let s = &layer.0.shape;
        let qkv = layer.0.upload(&b)?;
        println!("\n{n} tokens, {} heads on {}, head dim {}", s.n_heads, s.n_kv_heads, s.head_dim);
        if a.estimates {
            time_steps(&b, a, s, &qkv[0], &qkv[1])?;
            time_decoding(&b, a, &layer, &qkv[0], [&qkv[1], &qkv[2]])?;
        }
        for &pattern in &a.patterns {
            time_pattern(&b, a, &layer, &qkv, pattern, &kernels)?;
        }
    }
    Ok(())
}

/// A pattern's estimate, and its attention in each kernel.
fn time_pattern(
    b: &Wgpu,
    a: &Arguments,
    layer: &Layer,
    qkv: &[Tensor<Wgpu>; 3],
    pattern: HeadPattern,
    kernels: &[AttentionKernel],
) -> Result<()> {
    let (s, [q, k, _]) = (&layer.0.shape, qkv);
    let patterns = vec![pattern; s.n_heads];
    let index = index(b, layer, pattern, q, k)?;
    let pairs: f64 = index.pairs.to_u32(b)?.iter().map(|&p| f64::from(p)).sum();
    println!("{pattern}: density {:.4}", pairs / (s.n_heads as f64 * s.causal_pairs() as f64));
    if a.estimates {
        let choosing = time(b, a.seconds, || choose(b, &patterns, s, q.view(), k.view()).map(drop))?;
        let both = time(b, a.seconds, || estimate(b, &patterns, s, q.view(), k.view()).map(drop))?;
        print!("  estimate {:.2} ms, of which index {:.2} ms: ", both * 1e3, (both - choosing) * 1e3);
        time_kernels(b, || estimate(b, &patterns, s, q.view(), k.view()).map(drop))?;
    }
    let n = s.q_len;
    let place = |i: u64| (hash(7, i) as usize % s.n_heads, if i == 0 { n - 1 } else { hash(8, i) as usize % n });
    let row = |(head, query)| Ok((head, query, layer.row(head, query, &keys_of(b, &index, head, query)?)));
    let want = (0..6).map(place).map(row).collect::<Result<Vec<_>>>()?;
    for kernel in kernels {
        b.use_attention_kernel(Some(*kernel));
        if let Err(error) = time_attention(b, a, s, qkv, &index, pairs, &want, kernel) {
            println!("  {kernel:16} failed: {error}");
        }
    }
    Ok(())
}

/// A sampled row: head, query and what is right.
type Row = (usize, usize, Vec<f64>);

/// One line: a kernel's times, its rate, and the error of sampled rows.
fn time_attention(
    b: &Wgpu,
    a: &Arguments,
    s: &AttentionShape,
    [q, k, v]: &[Tensor<Wgpu>; 3],
    index: &SparseIndex<Wgpu>,
    pairs: f64,
    want: &[Row],
    kernel: &AttentionKernel,
) -> Result<()> {
    let mut out = Tensor::alloc(b, b.activation(), [s.q_len, s.n_heads * s.head_dim])?;
    let mut call = || ops::attention(b, s, q.view(), k.view(), v.view(), index, out.view_mut(), None);
    let compiled = Instant::now();
    call()?;
    b.synchronize()?;
    let first = compiled.elapsed().as_secs_f64();
    let times = times(b, a.seconds, &mut call)?;
    let mut error = 0f64;
    for (head, query, want) in want {
        let got = out.view().rows(*query..query + 1).to_f32(b)?;
        let got = &got[head * s.head_dim..][..s.head_dim];
        error = error.max(relative_l2(got.iter().zip(want).map(|(g, w)| (f64::from(*g), *w))));
    }
    let seconds = times[times.len() / 2];
    let tflops = 4.0 * s.head_dim as f64 * pairs / seconds / 1e12;
    let verdict = if error < 2e-3 { "" } else { " WRONG" };
    println!(
        "  {kernel:16} {:10.3} ms {tflops:8.2} TFLOP/s  rel. L2 {error:.1e}{verdict}  ({:.3} to {:.3} ms, first call {:.0} ms)",
        seconds * 1e3,
        times[0] * 1e3,
        times[times.len() - 1] * 1e3,
        first * 1e3
    );
    Ok(())
}
