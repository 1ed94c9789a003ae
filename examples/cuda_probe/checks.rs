//! Each attention variant on small layers of mixed heads against the CPU twin, on the same index.

use crate::timing::Rng;
use crate::{VARIANTS, open};
use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use minference::index::HostIndex;
use minference::ops::{self, AttentionShape};
use minference::pattern::HeadPattern;
use minference::tensor::{Tensor, decode_f32, encode_f32};
use minference::{DType, Error, Result, estimate};

struct Inputs {
    shape: AttentionShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Random q in rows of 3 widths, K and V head-major with NaN behind the last key, all exact in the activation type.
fn inputs(dtype: DType, dim: usize, [heads, kv]: [usize; 2], [q_len, q_start, spare]: [usize; 3]) -> Result<Inputs> {
    let mut rng = Rng((dim * 131 + q_len) as u64);
    let mut exact = |n: usize, scale: f32| -> Result<Vec<f32>> {
        let values: Vec<f32> = rng.normals(n).iter().map(|x| x * scale).collect();
        decode_f32(dtype, &encode_f32(dtype, &values)?)
    };
    let (kv_len, row) = (q_start + q_len, (heads + 2 * kv) * dim);
    let capacity = kv_len + spare;
    let (q, mut k, mut v) =
        (exact(q_len * row, 2.0)?, exact(kv * capacity * dim, 1.0)?, exact(kv * capacity * dim, 1.0)?);
    for cache in [&mut k, &mut v] {
        for head in cache.chunks_exact_mut(capacity * dim) {
            head[kv_len * dim..].fill(f32::NAN);
        }
    }
    let shape = AttentionShape {
        n_heads: heads,
        n_kv_heads: kv,
        head_dim: dim,
        q_len,
        kv_len,
        q_start,
        scale: 1.0 / (dim as f32).sqrt(),
        q_stride: [row, dim],
        k_stride: [dim, capacity * dim],
        v_stride: [dim, capacity * dim],
        out_stride: [heads * dim, dim],
    };
    Ok(Inputs { shape, q, k, v })
}

/// Output and log-sum-exp of a backend over a given index.
fn attend<B: Backend>(b: &B, x: &Inputs, index: &HostIndex, out_type: DType) -> Result<(Vec<f32>, Vec<f32>)> {
    let s = &x.shape;
    let index = index.upload(b)?;
    let tensor = |values: &[f32]| Tensor::activation(b, [values.len()], values);
    let (q, k, v) = (tensor(&x.q)?, tensor(&x.k)?, tensor(&x.v)?);
    let poison = encode_f32(out_type, &vec![f32::NAN; s.q_len * s.n_heads * s.head_dim])?;
    let mut out = Tensor::from_bytes(b, out_type, [s.q_len, s.n_heads * s.head_dim], &poison)?;
    let mut lse = Tensor::alloc(b, DType::F32, [s.n_heads, s.q_len])?;
    ops::attention(b, s, q.view(), k.view(), v.view(), &index, out.view_mut(), Some(lse.view_mut()))?;
    Ok((out.to_f32(b)?, lse.to_f32(b)?))
}

/// Relative L2 distance; infinite where anything is NaN.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let (mut error, mut norm) = (0f64, 0f64);
    for (&g, &w) in got.iter().zip(want) {
        if g == w {
            norm += f64::from(w).powi(2).min(1e30);
            continue;
        }
        let e = f64::from(g) - f64::from(w);
        (error, norm) = (error + e * e, norm + f64::from(w).powi(2));
    }
    let distance = (error / norm.max(1e-30)).sqrt();
    if distance.is_nan() { f64::INFINITY } else { distance }
}

/// Prints one line a case; an error where any is wrong.
pub fn attention(variant: usize) -> Result<()> {
    let cpu = Cpu::new();
    let mut wrong = 0;
    for dtype in [DType::BF16, DType::F16] {
        let b = open(dtype, variant)?;
        let mma = VARIANTS[variant].0.starts_with("sm80");
        let dims: &[usize] = if mma { &[64, 96, 128, 32, 40, 80, 112, 256] } else { &[64, 96, 128] };
        for &dim in dims {
            for (heads, lengths) in
                [([4, 2], [1000, 0, 24]), ([8, 1], [333, 700, 64]), ([4, 4], [65, 13, 1]), ([4, 1], [1, 900, 3])]
            {
                let x = inputs(dtype, dim, heads, lengths)?;
                let all = ["dense", "a_shape:32:200", "vertical_slash:60:150", "block_sparse:4"];
                let patterns = (0..heads[0]).map(|h| all[h % 4].parse()).collect::<Result<Vec<HeadPattern>>>()?;
                let (q, k) =
                    (Tensor::activation(&cpu, [x.q.len()], &x.q)?, Tensor::activation(&cpu, [x.k.len()], &x.k)?);
                let index = estimate::estimate(&cpu, &patterns, &x.shape, q.view(), k.view())?.to_host(&cpu)?;
                for out in [b.activation(), DType::F32] {
                    let (want, want_lse) = attend(&cpu, &x, &index, DType::F32)?;
                    let (got, got_lse) = attend(&b, &x, &index, out)?;
                    let (again, _) = attend(&b, &x, &index, out)?;
                    let (e, lse) = (distance(&got, &want), distance(&got_lse, &want_lse));
                    let limit = if dtype == DType::BF16 { 8e-3 } else { 1e-3 };
                    let same = got.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits());
                    let ok = e < limit && lse < 1e-4 && same;
                    wrong += usize::from(!ok);
                    println!(
                        "{} {dtype} D {dim} heads {heads:?} [queries, start, spare] {lengths:?} out {out}: error {e:.1e}, lse {lse:.1e}, repeats {}",
                        if ok { "PASS" } else { "FAIL" },
                        if same { "equal" } else { "DIFFER" }
                    );
                }
            }
        }
    }
    if wrong == 0 { Ok(()) } else { Err(Error::Device(format!("{wrong} attention cases are wrong"))) }
}
