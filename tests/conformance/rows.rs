//! Operations on rows and elements, and the product of matrices.

use crate::common::{Rng, assert_close, for_each_backend, rounded, roundoff};
use crate::{all_nan, f32s, float_types, poison, stored, u32s};
use minference::backend::Backend;
use minference::ops::{self, HeadBand, MatmulInto, Rope};
use minference::tensor::Tensor;
use minference::weights::random_blocks;
use minference::{DType, weights};

// Packed rows say what they were to half a step of their block's scale, and unpack to what packing left in the cache.
for_each_backend!(pack_kv, |b| {
    for (kv, capacity, d, position, n) in [(2, 192, 64, 0, 192), (1, 64, 96, 3, 1), (3, 128, 128, 61, 67)] {
        let len = kv * capacity * d;
        let mut input: Vec<f32> = Rng(7).normals(len);
        input[position * d..position * d + 32].fill(0.0);
        input[position * d + 33] = 300.0;
        let (mut cache, values) = stored(b, b.activation(), [kv, capacity, d], &input);
        let mut packed = u32s(b, [kv, capacity, d / 32 * 9], &vec![0; len / 32 * 9]);
        ops::pack_kv(b, cache.view_mut(), packed.view_mut(), position, n).unwrap();
        let mut out = poison(b, b.activation(), [kv, capacity, d]);
        ops::unpack_kv(b, packed.view(), out.view_mut(), position, n).unwrap();
        let (cache, out) = (cache.to_f32(b).unwrap(), out.to_f32(b).unwrap());
        for (i, block) in values.chunks_exact(32).enumerate() {
            let token = i * 32 / d % capacity;
            let (cache, out) = (&cache[32 * i..][..32], &out[32 * i..][..32]);
            if !(position..position + n).contains(&token) {
                assert_eq!(cache, block, "a row that was not packed");
                assert!(all_nan(out));
                continue;
            }
            assert_eq!(cache, out, "block {i}");
            let most = block.iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
            // Half a step, the rounding of the scale to f16, and that of the result.
            let bound = most * (0.5 / 127.0 + 2f64.powi(-11) + roundoff(b.activation())) + 1e-5;
            for (got, want) in out.iter().zip(block) {
                let error = (f64::from(*got) - f64::from(*want)).abs();
                assert!(error <= bound, "block {i}: {want} became {got}, of at most {most}");
            }
            assert!(most == 0.0 || cache != block, "block {i} was not rounded");
        }
    }
});

const WEIGHT_TYPES: [DType; 10] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q8_0,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
];

/// A random weight matrix of a type, and its values. The scales and minima of K-quants differ from sub-block to sub-block.
fn weight<B: Backend>(b: &B, dtype: DType, [n, k]: [usize; 2], seed: u64) -> (Tensor<B>, Vec<f32>) {
    let mut bytes = random_blocks(dtype, n * k, seed, 0.5).unwrap();
    let scales = match dtype {
        DType::Q4K | DType::Q5K => 4..16,
        DType::Q6K => 192..208,
        _ => 0..0,
    };
    let mut rng = Rng(seed);
    let d = if dtype == DType::Q6K { 208 } else { 0 };
    for (i, block) in bytes.chunks_exact_mut(dtype.block_bytes()).enumerate() {
        block[scales.clone()].iter_mut().for_each(|byte| *byte = rng.next() as u8);
        if dtype.is_quantized() && i % 5 == 4 {
            // A scale that is a subnormal f16.
            block[d..d + 2].copy_from_slice(&(1 + rng.below(1000) as u16).to_le_bytes());
        }
    }
    let values = weights::dequantize(dtype, &bytes, n * k).unwrap();
    (Tensor::from_bytes(b, dtype, [n, k], &bytes).unwrap(), values)
}

for_each_backend!(embed, |b| {
    for dtype in WEIGHT_TYPES.into_iter().filter(|&d| b.accepts_weight(d)) {
        for (vocab, hidden, ids) in [(7, 256, vec![6]), (40, 512, vec![0, 39, 3, 3, 17])] {
            let (table, values) = weight(b, dtype, [vocab, hidden], 1);
            let mut out = poison(b, DType::F32, [ids.len(), hidden]);
            ops::embed(b, u32s(b, [ids.len()], &ids).view(), table.view(), out.view_mut()).unwrap();
            let want: Vec<f32> =
                ids.iter().flat_map(|&id| &values[id as usize * hidden..][..hidden]).copied().collect();
            let got = out.to_f32(b).unwrap();
            // A device may fuse the multiplication by a scale with the subtraction of a minimum.
            match dtype {
                DType::Q4K | DType::Q5K => {
                    assert_close(dtype.name(), 0.0, &got, &want.iter().map(|x| f64::from(*x)).collect::<Vec<_>>())
                }
                _ => assert_eq!(got, want, "{dtype}"),
            }
        }
    }
});

for_each_backend!(rms_norm, |b| {
    let mut rng = Rng(2);
    for (rows, cols) in [(1, 32), (3, 200), (65, 576), (2, 4096), (2, 4100), (2, 5002)] {
        for (from, to) in float_types(b).into_iter().flat_map(|f| float_types(b).into_iter().map(move |t| (f, t))) {
            let (x, values) = stored(b, from, [rows, cols], &rng.normals(rows * cols));
            let weight: Vec<f32> = rng.normals(cols);
            let mut out = poison(b, to, [rows, cols]);
            ops::rms_norm(b, x.view(), f32s(b, [cols], &weight).view(), 1e-5, out.view_mut()).unwrap();
            let want: Vec<f64> = values
                .chunks_exact(cols)
                .flat_map(|row| {
                    let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / cols as f64;
                    let scale = 1.0 / (mean + 1e-5).sqrt();
                    row.iter().zip(&weight).map(move |(x, w)| f64::from(*x) * scale * f64::from(*w))
                })
                .collect();
            let what = format!("[{rows}, {cols}] {from} to {to}");
            assert_close(&what, roundoff(to), &out.to_f32(b).unwrap(), &want);
        }
    }
});

for_each_backend!(silu_mul, |b| {
    let mut rng = Rng(3);
    for (rows, ffn) in [(1, 8), (3, 200), (65, 96)] {
        let mut values = rng.normals(rows * 2 * ffn);
        // Far out, exp overflows; silu goes to 0 and to x.
        (values[0], values[1]) = (-200.0, 200.0);
        let (gate_up, values) = stored(b, b.activation(), [rows, 2 * ffn], &values);
        let mut out = poison(b, b.activation(), [rows, ffn]);
        ops::silu_mul(b, gate_up.view(), out.view_mut()).unwrap();
        let row = |row: &[f32]| {
            let product = |c: usize| {
                let (gate, up) = (f64::from(row[c]), f64::from(row[ffn + c]));
                gate / (1.0 + (-gate).exp()) * up
            };
            (0..ffn).map(product).collect::<Vec<_>>()
        };
        let want: Vec<f64> = values.chunks_exact(2 * ffn).flat_map(row).collect();
        assert_close(&format!("[{rows}, {ffn}]"), roundoff(b.activation()), &out.to_f32(b).unwrap(), &want);
    }
});

for_each_backend!(add, |b| {
    let mut rng = Rng(4);
    for (len, dtype) in [1, 33, 70_001].into_iter().flat_map(|len| float_types(b).into_iter().map(move |d| (len, d))) {
        let (x, values) = stored(b, dtype, [len], &rng.normals(len));
        let before = rng.normals(len);
        let mut out = f32s(b, [len], &before);
        ops::add(b, x.view(), out.view_mut()).unwrap();
        let want: Vec<f32> = values.iter().zip(&before).map(|(x, y)| x + y).collect();
        assert_eq!(out.to_f32(b).unwrap(), want, "{len} {dtype}");
    }
});

for_each_backend!(cast, |b| {
    for (len, from) in [(1, DType::F16), (33, DType::BF16), (40_001, DType::F32), (40_001, DType::F16)] {
        for to in float_types(b) {
            let (x, values) = stored(b, from, [len], &Rng(5).normals(len));
            let mut out = poison(b, to, [len]);
            ops::cast(b, x.view(), out.view_mut()).unwrap();
            assert_eq!(out.to_f32(b).unwrap(), rounded(to, &values), "{len} {from} to {to}");
        }
    }
});

for_each_backend!(append_kv, |b| {
    let (heads, kv, d, capacity) = (4, 2, 32, 192);
    for (n, position) in [(1, 0), (65, 3), (130, 62)] {
        let row = (heads + 2 * kv) * d;
        let (x, values) = stored(b, b.activation(), [n, row], &Rng(6).normals(n * row));
        let mut caches = [(); 2].map(|()| poison(b, b.activation(), [kv, capacity, d]));
        let [k_cache, v_cache] = &mut caches;
        let band = |head: usize| HeadBand { column: head * d, heads: kv, head_dim: d };
        let bands = [band(heads), band(heads + kv)];
        ops::append_kv(b, x.view(), bands[0], bands[1], k_cache.view_mut(), v_cache.view_mut(), position).unwrap();
        for (cache, band) in caches.iter().zip(bands) {
            let got = cache.to_f32(b).unwrap();
            for (h, cache) in got.chunks_exact(capacity * d).enumerate() {
                for (t, got) in cache.chunks_exact(d).enumerate() {
                    match t.checked_sub(position).filter(|t| *t < n) {
                        Some(t) => assert_eq!(got, &values[t * row + band.column + h * d..][..d], "token {t} head {h}"),
                        None => assert!(all_nan(got), "row {t} head {h} written"),
                    }
                }
            }
        }
    }
});

for_each_backend!(rope, |b| {
    let d = 64;
    let cases = [
        // (tokens, heads, rotary_dim, interleaved, first position)
        (1, 1, 64, false, 0),
        (65, 3, 64, false, 1_048_575 - 64),
        (7, 2, 32, true, 131_000),
        (3, 2, 48, false, 4_095),
    ];
    for (n, heads, rotary_dim, interleaved, start) in cases {
        let (row, half) = (5 * d, rotary_dim / 2);
        let frequency = |i: usize| 10000f64.powf(-(i as f64) / half as f64);
        let words = |t: u64| [t as u32, (t >> 32) as u32];
        let turns: Vec<u32> = (0..half).flat_map(|i| words(ops::turns_from_frequency(frequency(i)))).collect();
        let (mut x, before) = stored(b, b.activation(), [n, row], &Rng(7).normals(n * row));
        let band = HeadBand { column: d, heads, head_dim: d };
        let how = Rope { rotary_dim, interleaved, attention_factor: 1.19 };
        ops::rope(b, u32s(b, [half, 2], &turns).view(), x.view_mut(), band, how, start).unwrap();

        let mut want: Vec<f64> = before.iter().map(|x| f64::from(*x)).collect();
        for (t, head, i) in (0..n).flat_map(|t| (0..heads).flat_map(move |h| (0..half).map(move |i| (t, h, i)))) {
            let at = t * row + (1 + head) * d;
            let (i0, i1) = if interleaved { (at + 2 * i, at + 2 * i + 1) } else { (at + i, at + half + i) };
            let (s, c) = ((start + t) as f64 * frequency(i)).sin_cos();
            let (x, y) = (want[i0], want[i1]);
            (want[i0], want[i1]) = (1.19f32 as f64 * (x * c - y * s), 1.19f32 as f64 * (y * c + x * s));
        }
        let what = format!("{n} tokens from {start}, rotary {rotary_dim}");
        let got = x.to_f32(b).unwrap();
        assert_close(&what, roundoff(b.activation()), &got, &want);
        for (i, (got, before)) in got.iter().zip(&before).enumerate() {
            let (head, element) = ((i % row) / d, i % d);
            if !(1..1 + heads).contains(&head) || element >= rotary_dim {
                assert_eq!(got, before, "{what}: element {i} is not to rotate");
            }
        }
    }
});

/// `x w^T + bias` into a band, and what it should be.
fn check_matmul<B: Backend>(b: &B, dtype: DType, [m, n, k]: [usize; 3], bias: bool, accumulate: bool, to: DType) {
    let mut rng = Rng((m * 31 + n * 7 + k) as u64);
    let scale = 1.0 / (k as f32).sqrt();
    let values: Vec<f32> = rng.normals(m * k).iter().map(|x| x * scale).collect();
    let (x, x_values) = stored(b, b.activation(), [m, k], &values);
    let (w, w_values) = weight(b, dtype, [n, k], 9);
    let bias: Option<Vec<f32>> = bias.then(|| rng.normals(n));
    let (column, width) = (8, n + 24);
    let before = if accumulate { rng.normals(m * width) } else { vec![f32::NAN; m * width] };
    let (mut out, _) = stored(b, to, [m, width], &before);
    let bias_tensor = bias.as_ref().map(|v| f32s(b, [n], v));
    let into = MatmulInto { column, accumulate };
    ops::matmul(b, x.view(), w.view(), bias_tensor.as_ref().map(|t| t.view()), out.view_mut(), into).unwrap();

    let got = out.to_f32(b).unwrap();
    let what = format!("{dtype} [{m}, {k}] x [{n}, {k}]^T to {to}");
    let (mut band, mut want) = (vec![], vec![]);
    for (r, row) in got.chunks_exact(width).enumerate() {
        for (c, &got) in row.iter().enumerate() {
            if (column..column + n).contains(&c) {
                let (x, w) = (&x_values[r * k..][..k], &w_values[(c - column) * k..][..k]);
                let product: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let start = if accumulate { f64::from(before[r * width + c]) } else { 0.0 };
                want.push(product + start + bias.as_ref().map_or(0.0, |v| f64::from(v[c - column])));
                band.push(got);
            } else {
                assert_eq!(got.to_bits(), rounded(to, &before)[r * width + c].to_bits(), "{what}: ({r}, {c}) touched");
            }
        }
    }
    // Weights are rounded to the activation type where the product is computed in it.
    assert_close(&what, roundoff(b.activation()), &band, &want);
}

for_each_backend!(matmul_shapes, |b| {
    let act = b.activation();
    for (i, m) in [1, 2, 4, 5, 33, 65, 200].into_iter().enumerate() {
        for (j, (n, k)) in [(33, 32), (64, 200), (200, 96)].into_iter().enumerate() {
            check_matmul(b, DType::F32, [m, n, k], (i + j) % 2 == 0, false, act);
            check_matmul(b, DType::F32, [m, n, k], (i + j) % 2 == 1, true, DType::F32);
        }
    }
});

for_each_backend!(matmul_types, |b| {
    for dtype in WEIGHT_TYPES.into_iter().filter(|&d| b.accepts_weight(d)) {
        for m in [1, 3, 260] {
            check_matmul(b, dtype, [m, 48, 512], m == 3, m == 260, DType::F32);
        }
        // Rows that begin in the middle of a word.
        let k = dtype.block_len().max(32);
        check_matmul(b, dtype, [2, 37, k], false, false, DType::F32);
        check_matmul(b, dtype, [70, 37, k], true, false, DType::F32);
    }
});
