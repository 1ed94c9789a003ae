//! Estimation, whole attention layers, products, row operations and decoding, at the shape of an 8B model.

use crate::attention::{DIM, HEADS, KV_HEADS, Layer};
use crate::open;
use crate::timing::{Rng, gbps, row, tflops, time};
use minference::attention::attend_with;
use minference::backend::Backend;
use minference::backend::cuda::{Cuda, CudaOptions};
use minference::backend::params::HeadPlan;
use minference::engine::{Engine, EngineOptions};
use minference::estimate::AttentionOptions;
use minference::model::{Model, presets};
use minference::ops::{self, HeadBand, MatmulInto, Rope};
use minference::pattern::{AttentionMode, HeadPattern};
use minference::tensor::Tensor;
use minference::weights::random_blocks;
use minference::{DType, Result, estimate};
use std::time::Instant;

const HIDDEN: usize = 4096;
const FFN: usize = 14336;
const QKV: usize = (HEADS + 2 * KV_HEADS) * DIM;

/// Scores and choice, then the index: all heads of a layer.
pub fn estimate() -> Result<()> {
    let b = open(DType::BF16, 0)?;
    for (heads, kv, n) in
        [(HEADS, KV_HEADS, 8192), (HEADS, KV_HEADS, 32768), (HEADS, KV_HEADS, 131072), (4, 1, 1 << 20)]
    {
        let layer = Layer::new(&b, heads, kv, n)?;
        let shape = &layer.shape;
        for pattern in ["vertical_slash:1000:6096", "vertical_slash:3500:100", "block_sparse:100"] {
            let patterns = vec![pattern.parse::<HeadPattern>()?; heads];
            let choose = || estimate::choose(&b, &patterns, shape, layer.q.view(), layer.k.view());
            let t = time(&b, || choose().map(drop))?;
            row(&format!("choose {pattern}, {heads} heads, {n}"), t, String::new());
            let whole = time(&b, || choose()?.build(&b).map(drop))?;
            let density = choose()?.build(&b)?.density(&b)?;
            let index = whole.median - t.median;
            row(
                &format!("choose and index {pattern}, {heads} heads, {n}"),
                whole,
                format!("index {index:.3} ms, density {density:.4}"),
            );
        }
        steps(&b, &layer)?;
        let sets: Vec<_> = (0..heads).map(|h| minference::bench::bands(n, 1000, 6096, h)).collect();
        let (columns, offsets): (Vec<_>, Vec<_>) = sets.into_iter().unzip();
        let density = estimate::from_sets(&b, &columns, &offsets, shape)?.density(&b)?;
        let t = time(&b, || estimate::from_sets(&b, &columns, &offsets, shape).map(drop))?;
        row(&format!("from sets, bands 1000:6096 (with upload), {n}"), t, format!("density {density:.4}"));
    }
    Ok(())
}

/// The steps of a choice by themselves.
fn steps(b: &Cuda, layer: &Layer) -> Result<()> {
    let (shape, heads, keys) = (&layer.shape, layer.shape.n_heads, layer.shape.kv_len);
    let plan: Vec<u32> = (0..heads).flat_map(|_| [HeadPlan::VERTICAL_SLASH, 1000, 6096, 0]).collect();
    let plan = Tensor::from_slice(b, DType::U32, [heads, 4], &plan)?;
    let mut columns = Tensor::alloc(b, DType::F32, [heads, keys])?;
    let mut offsets = Tensor::alloc(b, DType::F32, [heads, keys])?;
    let t = time(b, || {
        let (q, k) = (layer.q.view(), layer.k.view());
        ops::score_last_queries(b, shape, plan.view(), q, k, columns.view_mut(), offsets.view_mut())
    })?;
    let flop = 4.0 * 64.0 * DIM as f64 * (heads * keys) as f64;
    row(&format!("score_last_queries, {heads} heads, {keys}"), t, tflops(flop, t));
    for (count, forced) in [(1000, 30), (6096, 100)] {
        let counts = Tensor::from_slice(b, DType::U32, [heads], &vec![count as u32; heads])?;
        let mut chosen = Tensor::alloc(b, DType::U32, [heads, count])?;
        let scores = if count == 1000 { columns.view() } else { offsets.view() };
        let t = time(b, || ops::select_top_k(b, scores, counts.view(), forced, chosen.view_mut()))?;
        row(&format!("select_top_k {count}, {heads} heads, {keys}"), t, String::new());
    }
    Ok(())
}

/// One attention layer with its estimation, against the dense one.
pub fn layer(lengths: &[usize]) -> Result<()> {
    let b = open(DType::BF16, 0)?;
    for &n in lengths {
        let layer = Layer::new(&b, HEADS, KV_HEADS, n)?;
        let mut out = Tensor::alloc(&b, DType::BF16, [n, HEADS * DIM])?;
        for pattern in
            ["dense", "vertical_slash:1000:6096", "vertical_slash:500:700", "a_shape:1024:4096", "block_sparse:100"]
        {
            let patterns = vec![pattern.parse::<HeadPattern>()?; HEADS];
            let mut once = || {
                let (q, k, v) = (layer.q.view(), layer.k.view(), layer.v.view());
                let options = AttentionOptions { dense_above: b.dense_above(), ..AttentionOptions::EXACT };
                attend_with(&b, &patterns, &layer.shape, [q, k, v], out.view_mut(), None, options)
            };
            let t = time(&b, || once().map(drop))?;
            let density = once()?.density(&b)?;
            row(&format!("layer {pattern}, {n}"), t, format!("density {density:.4}"));
        }
    }
    println!("peak {:.2} GiB", b.memory().peak as f64 / (1u64 << 30) as f64);
    Ok(())
}

fn normals(b: &Cuda, dtype: DType, dims: [usize; 2], seed: u64) -> Result<Tensor<Cuda>> {
    let table = Rng(seed).normals(1 << 20);
    let values: Vec<f32> = (0..dims[0] * dims[1]).map(|i| table[i % table.len()] * 0.1).collect();
    Tensor::from_bytes(b, dtype, dims, &minference::tensor::encode_f32(dtype, &values)?)
}

fn weight(b: &Cuda, dtype: DType, n: usize, k: usize) -> Result<Tensor<Cuda>> {
    if !dtype.is_quantized() {
        return normals(b, dtype, [n, k], 3);
    }
    // One block of rows, repeated: making hundreds of MB on the host would take longer than the measurement.
    let rows = 64;
    let bytes = random_blocks(dtype, rows * k, 3, 0.02)?;
    Tensor::from_bytes(b, dtype, [n, k], &bytes.repeat(n / rows))
}

/// The products of a layer at 8192 rows, and of one row.
pub fn products() -> Result<()> {
    let b = open(DType::BF16, 0)?;
    let shapes = [
        ("qkv", QKV, HIDDEN, false),
        ("o", HIDDEN, HIDDEN, true),
        ("gate_up", 2 * FFN, HIDDEN, false),
        ("down", HIDDEN, FFN, true),
    ];
    for m in [8192, 512, 1] {
        for (name, n, k, accumulate) in shapes {
            let x = normals(&b, DType::BF16, [m, k], 1)?;
            let out_type = if accumulate { DType::F32 } else { DType::BF16 };
            let mut out = normals(&b, out_type, [m, n], 2)?;
            let types: &[DType] = match m {
                512 => &[DType::BF16],
                _ => &[DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4K, DType::Q6K],
            };
            for &dtype in types {
                let w = weight(&b, dtype, n, k)?;
                let into = MatmulInto { column: 0, accumulate };
                let t = time(&b, || ops::matmul(&b, x.view(), w.view(), None, out.view_mut(), into))?;
                let rate = tflops(2.0 * (m * n * k) as f64, t);
                row(
                    &format!("{name} {dtype} [{m}, {k}] x [{n}, {k}]^T"),
                    t,
                    format!("{rate}, weights {}", gbps(dtype.bytes(n * k) as f64, t)),
                );
            }
        }
    }
    let (x, w) = (normals(&b, DType::BF16, [8192, HIDDEN], 1)?, weight(&b, DType::BF16, QKV, HIDDEN)?);
    let bias = normals(&b, DType::F32, [1, QKV], 5)?;
    let mut out = normals(&b, DType::BF16, [8192, QKV], 2)?;
    let t = time(&b, || {
        ops::matmul(&b, x.view(), w.view(), Some(bias.view().reshape([QKV])), out.view_mut(), MatmulInto::default())
    })?;
    row("qkv bf16 with bias", t, tflops(2.0 * (8192 * QKV * HIDDEN) as f64, t));
    Ok(())
}

/// Row operations over 8192 tokens.
pub fn rows() -> Result<()> {
    let b = open(DType::BF16, 0)?;
    let n = 8192;
    let (residual, norm) = (normals(&b, DType::F32, [n, HIDDEN], 1)?, normals(&b, DType::F32, [1, HIDDEN], 2)?);
    let mut x = normals(&b, DType::BF16, [n, HIDDEN], 1)?;
    let t = time(&b, || ops::rms_norm(&b, residual.view(), norm.view().reshape([HIDDEN]), 1e-5, x.view_mut()))?;
    row("rms_norm", t, gbps((n * HIDDEN * 6) as f64, t));
    let gate_up = normals(&b, DType::BF16, [n, 2 * FFN], 1)?;
    let mut ffn = normals(&b, DType::BF16, [n, FFN], 1)?;
    let t = time(&b, || ops::silu_mul(&b, gate_up.view(), ffn.view_mut()))?;
    row("silu_mul", t, gbps((n * FFN * 6) as f64, t));
    let mut qkv = normals(&b, DType::BF16, [n, QKV], 1)?;
    let turns: Vec<u32> = (0..DIM / 2)
        .map(|i| ops::turns_from_frequency(500000f64.powf(-(i as f64) / 64.0)))
        .flat_map(|t| [t as u32, (t >> 32) as u32])
        .collect();
    let turns = Tensor::from_slice(&b, DType::U32, [DIM / 2, 2], &turns)?;
    let band = HeadBand { column: 0, heads: HEADS + KV_HEADS, head_dim: DIM };
    let how = Rope { rotary_dim: DIM, interleaved: false, attention_factor: 1.0 };
    let t = time(&b, || ops::rope(&b, turns.view(), qkv.view_mut(), band, how, 1000))?;
    row("rope of q and k", t, gbps((n * band.heads * DIM * 4) as f64, t));
    let mut caches =
        [normals(&b, DType::BF16, [KV_HEADS * n, DIM], 1)?, normals(&b, DType::BF16, [KV_HEADS * n, DIM], 1)?];
    let [k, v] = &mut caches;
    let bands = [HEADS, HEADS + KV_HEADS].map(|h| HeadBand { column: h * DIM, heads: KV_HEADS, head_dim: DIM });
    let t = time(&b, || {
        let (k, v) = (k.view_mut().reshape([KV_HEADS, n, DIM]), v.view_mut().reshape([KV_HEADS, n, DIM]));
        ops::append_kv(&b, qkv.view(), bands[0], bands[1], k, v, 0)
    })?;
    row("append_kv", t, gbps((n * KV_HEADS * DIM * 8) as f64, t));
    Ok(())
}

/// One query over a long cache.
pub fn decode() -> Result<()> {
    let b = open(DType::BF16, 0)?;
    for n in [8192, 131072] {
        let layer = Layer::new(&b, HEADS, KV_HEADS, n)?;
        let shape = ops::AttentionShape { q_len: 1, q_start: n - 1, ..layer.shape };
        let mut out = Tensor::alloc(&b, DType::BF16, [1, HEADS * DIM])?;
        let t = time(&b, || {
            ops::decode_attention(&b, &shape, layer.q.view(), layer.k.view(), layer.v.view(), out.view_mut())
        })?;
        row(&format!("decode_attention, {n}"), t, gbps((2 * KV_HEADS * n * DIM * 2) as f64, t));
    }
    Ok(())
}

/// Tokens a second of decoding, eight layers of an 8B model behind 4096 tokens: by launches, and by a recorded graph.
pub fn tokens() -> Result<()> {
    const STEPS: u32 = 64;
    for dtype in [DType::BF16, DType::Q4K] {
        for (how, graphs) in [("launches", false), ("a graph", true)] {
            let mut config = presets::config("llama-3-8b-262k")?;
            config.n_layers = 8;
            let b = Cuda::new(0, CudaOptions { graphs, ..CudaOptions::default() })?;
            let mut engine = Engine::new(b, Model::random("8b", config, dtype, 1), EngineOptions::default())?;
            engine.prefill(&[1; 4096], &AttentionMode::Uniform(HeadPattern::Dense), &mut |_| ())?;
            (0..8).try_for_each(|id| engine.decode(id).map(drop))?;
            let start = Instant::now();
            (0..STEPS).try_for_each(|id| engine.decode(id).map(drop))?;
            let rate = f64::from(STEPS) / start.elapsed().as_secs_f64();
            println!("decode, 8 layers of 8B in {dtype}, by {how}: {rate:.1} tokens/s");
        }
    }
    Ok(())
}
