//! A pattern of one's own: fill an index on the host, upload it, attend. No kernel changes.
//!
//! The pattern here is dilated: each block of 64 queries computes its own block, the first block (the attention sink),
//! and every `step`-th block between them. On the noise of this example every skipped block is missed; on a real head's
//! queries and keys a good pattern loses far less.
//!
//! ```sh
//! cargo run --release --example custom_pattern
//! ```

use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use minference::index::HostIndex;
use minference::ops::{self, AttentionShape};
use minference::tensor::Tensor;
use minference::{DType, Result};
use std::process::ExitCode;

const BLOCK: usize = 64;

fn dilated(n_heads: usize, len: usize, step: usize) -> HostIndex {
    let mut index = HostIndex::empty(n_heads, len, len, 0);
    for _head in 0..n_heads {
        for row in 0..len.div_ceil(BLOCK) {
            let blocks = (0..=row).filter(|&block| block == 0 || (row - block).is_multiple_of(step));
            index.ranges.extend(blocks.map(|block| [(block * BLOCK) as i32, ((block + 1) * BLOCK) as i32]));
            index.range_ptr.push(index.ranges.len() as i64);
            index.column_ptr.push(0);
        }
    }
    index
}

fn attend<B: Backend>(b: &B, index: &HostIndex, shape: &AttentionShape, qkv: [&Tensor<B>; 3]) -> Result<Vec<f32>> {
    let mut out = Tensor::alloc(b, DType::F32, [shape.n_heads, shape.q_len, shape.head_dim])?;
    // `upload` validates first: ascending, disjoint, no query without a key.
    let index = index.upload(b)?;
    let [q, k, v] = qkv.map(Tensor::view);
    ops::attention(b, shape, q, k, v, &index, out.view_mut(), None)?;
    out.to_f32(b)
}

fn main() -> ExitCode {
    run().map_or_else(|e| e.report(), |()| ExitCode::SUCCESS)
}

fn run() -> Result<()> {
    let (heads, len, dim) = (4, 4096, 64);
    let b = Cpu::new();
    // Deterministic noise; in an engine these come from the Q, K and V projections, RoPE applied.
    let noise = |seed: u32| -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..heads * len * dim).map(|_| next()).collect()
    };
    let tensor = |seed| Tensor::activation(&b, [heads, len, dim], &noise(seed));
    let (q, k, v) = (tensor(1)?, tensor(2)?, tensor(3)?);
    let stride = [dim, len * dim]; // head-major: between tokens, between heads
    let shape = AttentionShape {
        n_heads: heads,
        n_kv_heads: heads,
        head_dim: dim,
        q_len: len,
        kv_len: len,
        q_start: 0,
        scale: 1.0 / (dim as f32).sqrt(),
        q_stride: stride,
        k_stride: stride,
        v_stride: stride,
        out_stride: stride,
    };

    let dense = attend(&b, &dilated(heads, len, 1), &shape, [&q, &k, &v])?;
    println!("step  density  relative error against dense");
    for step in [1, 2, 4, 8] {
        let index = dilated(heads, len, step);
        let sparse = attend(&b, &index, &shape, [&q, &k, &v])?;
        let distance =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| ((x - y) as f64).powi(2)).sum::<f64>().sqrt();
        let zero = vec![0.0; dense.len()];
        println!("{step:>4}  {:>7.3}  {:.4}", index.density(), distance(&sparse, &dense) / distance(&dense, &zero));
    }
    Ok(())
}
