//! Times the products and the small operations of the wgpu backend on this machine's best adapter, and checks the products.
//!
//! `cargo run --release --example wgpu_probe -- products --size 4096 14336 4096`
//!
//! Times are wall-clock over many launches in a row, the best of three batches.

use clap::{Parser, ValueEnum};
use minference::backend::Backend;
use minference::backend::wgpu::{Options, Tier, Wgpu};
use minference::ops::{self, HeadBand, MatmulInto, Rope};
use minference::tensor::{Tensor, encode_f32};
use minference::weights::{dequantize, random_blocks};
use minference::{DType, Error, Result};
use std::process::ExitCode;
use std::time::Instant;

/// Times the products and the small operations of the wgpu backend on this machine's best adapter.
#[derive(Debug, Parser)]
#[command(name = "wgpu_probe")]
struct Arguments {
    /// What to time; all of it without any.
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// Rows, columns and depth of the products.
    #[arg(long, value_names = ["M", "N", "K"], num_args = 3, default_values_t = [4096, 14336, 4096])]
    size: Vec<usize>,
    /// Tokens of the small operations.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    tokens: usize,
    /// Only these tile shapes, as the rows name them.
    #[arg(long, value_name = "TILE,..", value_delimiter = ',')]
    tiles: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Section {
    /// Every tile shape on cooperative matrices; TFLOP/s, and the relative error of sampled elements against f64.
    Products,
    /// The same for tiers `subgroup` and `plain`.
    Tiers,
    /// The tile shapes for packed weights, each type.
    Packed,
    /// One to sixteen rows, as in decoding; GB/s of weights read.
    Rows,
    /// Everything else a layer does, at the sizes of an 8B model; GB/s read and written.
    Small,
}

/// Values in [-1, 1) that f16 holds exactly.
fn values(n: usize, seed: u32) -> Vec<half::f16> {
    let value = |i: usize| {
        let mut x = (i as u32).wrapping_mul(0x9E37_79B9) ^ seed.wrapping_mul(0x85EB_CA6B);
        x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
        x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
        half::f16::from_f32(((x >> 21) as f32 - 1024.0) / 1024.0)
    };
    (0..n).map(value).collect()
}

/// Seconds of one launch: batches of launches until one takes a quarter of a second, the best of three of that size.
fn seconds(b: &Wgpu, mut launch: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut batch = |count: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..count {
            launch()?;
        }
        b.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / count as f64)
    };
    batch(1)?;
    let mut count = 1;
    let mut once = batch(count)?;
    while once * (count as f64) < 0.25 && count < 4096 {
        count *= 4;
        once = batch(count)?;
    }
    Ok(once.min(batch(count)?).min(batch(count)?))
}

/// One product: time, rate, and error against f64 of 97 elements.
fn product(b: &Wgpu, name: &str, size: [usize; 3], out_type: DType) -> Result<()> {
    let bytes = encode_f32(DType::F16, &values(size[1] * size[2], 2).iter().map(|x| x.to_f32()).collect::<Vec<_>>())?;
    product_of(b, name, size, DType::F16, &bytes, out_type)
}

fn product_of(b: &Wgpu, name: &str, [m, n, k]: [usize; 3], dtype: DType, bytes: &[u8], out_type: DType) -> Result<()> {
    let (x, w) = (values(m * k, 1), dequantize(dtype, bytes, n * k)?);
    let as_activation: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
    let x_device = Tensor::activation(b, [m, k], &as_activation)?;
    let w_device = Tensor::from_bytes(b, dtype, [n, k], bytes)?;
    let mut out = Tensor::alloc(b, out_type, [m, n])?;
    let start = Instant::now();
    ops::matmul(b, x_device.view(), w_device.view(), None, out.view_mut(), MatmulInto::default())?;
    let got = out.to_f32(b)?;
    let first = start.elapsed().as_secs_f64();
    let (mut error, mut norm) = (0.0, 0.0);
    for i in 0..97 {
        let (r, c) = (i * 7919 % m, i * 104_729 % n);
        let products = x[r * k..][..k].iter().zip(&w[c * k..][..k]);
        let want: f64 = products.map(|(x, w)| x.to_f64() * f64::from(*w)).sum();
        error += (f64::from(got[r * n + c]) - want).powi(2);
        norm += want.powi(2);
    }
    let time =
        seconds(b, || ops::matmul(b, x_device.view(), w_device.view(), None, out.view_mut(), MatmulInto::default()))?;
    let rate = 2.0 * (m * n * k) as f64 / time / 1e12;
    println!(
        "{name:24} {m} x {n} x {k} to {out_type}: {:9.3} ms {rate:8.2} TFLOP/s  error {:.1e}  first {:.2} s",
        time * 1e3,
        (error / norm).sqrt(),
        first
    );
    Ok(())
}

fn products(b: &Wgpu, size: [usize; 3], tiles: &[String]) -> Result<()> {
    let chosen = |tile: &&str| tiles.is_empty() || tiles.iter().any(|name| name == tile);
    for tile in b.matmul_tiles().into_iter().filter(chosen) {
        b.use_matmul_tile(Some(tile));
        product(b, tile, size, DType::F32)?;
    }
    b.use_matmul_tile(None);
    if !tiles.is_empty() {
        return Ok(());
    }
    let [m, n, k] = size;
    for (name, size, out) in [
        ("default, f16 out", size, DType::F16),
        ("default, down", [m, k, n], DType::F32),
        ("default, 512 rows", [512.min(m), n, k], DType::F32),
        ("default, 64 rows", [64.min(m), n, k], DType::F32),
    ] {
        if b.activation() == out || out == DType::F32 {
            product(b, name, size, out)?;
        }
    }
    Ok(())
}

/// Products in the tiers without matrices.
fn tiers([m, n, k]: [usize; 3]) -> Result<()> {
    for tier in [Tier::Subgroup, Tier::Plain] {
        match Wgpu::new(None, Options { tier, ..Options::default() }) {
            Ok(b) => {
                product(&b, tier.name(), [m, n, k], DType::F32)?;
                product(&b, &format!("{}, 64 rows", tier.name()), [64.min(m), n, k], DType::F32)?;
            }
            Err(error) => println!("{}: not run: {error}", tier.name()),
        }
    }
    Ok(())
}

fn packed(b: &Wgpu, [m, n, k]: [usize; 3], tiles: &[String]) -> Result<()> {
    let chosen = |tile: &&str| tiles.is_empty() || tiles.iter().any(|name| name == tile);
    product(b, "f16", [m, n, k], DType::F32)?;
    for dtype in PACKED {
        let bytes = random_blocks(dtype, n * k, 2, 1.0 / (k as f32).sqrt())?;
        for tile in b.packed_matmul_tiles().into_iter().filter(chosen) {
            b.use_matmul_tile(Some(tile));
            product_of(b, &format!("{dtype} {tile}"), [m, n, k], dtype, &bytes, DType::F32)?;
        }
        b.use_matmul_tile(None);
        product_of(b, &format!("{dtype} default, f16 out"), [m, n, k], dtype, &bytes, b.activation())?;
        product_of(b, &format!("{dtype} 512 rows"), [512, n, k], dtype, &bytes, DType::F32)?;
        for tier in [Tier::Subgroup, Tier::Plain] {
            if let Ok(b) = Wgpu::new(None, Options { tier, ..Options::default() }) {
                product_of(&b, &format!("{dtype} {}", tier.name()), [m, n, k], dtype, &bytes, DType::F32)?;
            }
        }
    }
    Ok(())
}

/// Types that stay packed.
const PACKED: [DType; 4] = [DType::Q4_0, DType::Q8_0, DType::Q4K, DType::Q6K];

fn rows(b: &Wgpu, [_, n, k]: [usize; 3]) -> Result<()> {
    for (m, n, k) in [(1, n, k), (1, k, n), (2, n, k), (4, n, k), (5, n, k), (16, n, k)] {
        let x = Tensor::activation(b, [m, k], &vec![0.5; m * k])?;
        for dtype in [DType::F16].into_iter().chain(PACKED) {
            let bytes = random_blocks(dtype, n * k, 3, 1.0)?;
            let w = Tensor::from_bytes(b, dtype, [n, k], &bytes)?;
            let mut out = Tensor::alloc(b, DType::F32, [m, n])?;
            let time = seconds(b, || ops::matmul(b, x.view(), w.view(), None, out.view_mut(), MatmulInto::default()))?;
            let rate = bytes.len() as f64 / 1e9 / time;
            println!("matmul of {m} rows, {n} x {k} {dtype:5}: {:8.1} us {rate:8.1} GB/s", time * 1e6);
        }
    }
    Ok(())
}

fn small(b: &Wgpu, tokens: usize) -> Result<()> {
    let act = b.activation();
    let (hidden, ffn, heads, kv, d) = (4096, 14336, 32, 8, 128);
    let row = (heads + 2 * kv) * d;
    let report = |name: &str, bytes: usize, time: f64| {
        println!("{name:24} {:9.1} us {:8.1} GB/s", time * 1e6, bytes as f64 / time / 1e9);
    };
    let wide = act.bytes(1);
    let mut residual = Tensor::from_slice(b, DType::F32, [tokens, hidden], &vec![0.5f32; tokens * hidden])?;
    let mut x = Tensor::alloc(b, act, [tokens, hidden])?;
    let weight = Tensor::from_slice(b, DType::F32, [hidden], &vec![1.0f32; hidden])?;
    let time = seconds(b, || ops::rms_norm(b, residual.view(), weight.view(), 1e-5, x.view_mut()))?;
    report("rms_norm", tokens * hidden * (4 + wide), time);
    let time =
        seconds(b, || ops::rms_norm(b, residual.view().rows(0..1), weight.view(), 1e-5, x.view_mut().rows(0..1)))?;
    report("rms_norm, one row", hidden * (4 + wide), time);
    let time = seconds(b, || ops::add(b, x.view(), residual.view_mut()))?;
    report("add", tokens * hidden * (8 + wide), time);
    let time = seconds(b, || ops::cast(b, residual.view(), x.view_mut()))?;
    report("cast", tokens * hidden * (4 + wide), time);

    let gate_up = Tensor::activation(b, [tokens, 2 * ffn], &vec![0.5; tokens * 2 * ffn])?;
    let mut product = Tensor::alloc(b, act, [tokens, ffn])?;
    let time = seconds(b, || ops::silu_mul(b, gate_up.view(), product.view_mut()))?;
    report("silu_mul", tokens * ffn * 3 * wide, time);
    drop((gate_up, product));

    let mut qkv = Tensor::activation(b, [tokens, row], &vec![0.5; tokens * row])?;
    let turns: Vec<u32> = (0..d as u32).map(|i| i * 0x0123_4567).collect();
    let turns = Tensor::from_slice(b, DType::U32, [d / 2, 2], &turns)?;
    let rope = Rope { rotary_dim: d, interleaved: false, attention_factor: 1.0 };
    let band = HeadBand { column: 0, heads: heads + kv, head_dim: d };
    let time = seconds(b, || ops::rope(b, turns.view(), qkv.view_mut(), band, rope, 0))?;
    report("rope", 2 * tokens * band.heads * d * wide, time);

    let mut caches = [Tensor::alloc(b, act, [kv, tokens, d])?, Tensor::alloc(b, act, [kv, tokens, d])?];
    let [k_cache, v_cache] = &mut caches;
    let bands = [heads, heads + kv].map(|head| HeadBand { column: head * d, heads: kv, head_dim: d });
    let time =
        seconds(b, || ops::append_kv(b, qkv.view(), bands[0], bands[1], k_cache.view_mut(), v_cache.view_mut(), 0))?;
    report("append_kv", 4 * tokens * kv * d * wide, time);

    let vocab = 32000;
    let table = Tensor::from_bytes(b, DType::F16, [vocab, hidden], bytemuck::cast_slice(&values(vocab * hidden, 4)))?;
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 7919 % vocab as u32).collect();
    let ids = Tensor::from_slice(b, DType::U32, [tokens], &ids)?;
    let time = seconds(b, || ops::embed(b, ids.view(), table.view(), residual.view_mut()))?;
    report("embed", tokens * hidden * 6, time);
    Ok(())
}

fn main() -> ExitCode {
    run(Arguments::parse()).map_or_else(|e| e.report(), |()| ExitCode::SUCCESS)
}

fn run(Arguments { sections, size, tokens, tiles }: Arguments) -> Result<()> {
    let size: [usize; 3] =
        size.try_into().map_err(|size| Error::invalid(format!("--size: expected three numbers, found {size:?}")))?;
    let start = Instant::now();
    let b = Wgpu::new(None, Options::default())?;
    let info = b.info();
    let opened = start.elapsed().as_secs_f64();
    println!("{} through {}, tier {}, opened in {opened:.2} s", info.name, info.api, info.tier);
    println!("{:?}", b.traits());
    for section in if sections.is_empty() { Section::value_variants() } else { &sections } {
        println!("-- {section:?}");
        match section {
            Section::Products => products(&b, size, &tiles)?,
            Section::Tiers => tiers(size)?,
            Section::Packed => packed(&b, size, &tiles)?,
            Section::Rows => rows(&b, size)?,
            Section::Small => small(&b, tokens)?,
        }
    }
    Ok(())
}
