//! The wgpu backend's own side: recording, copies, memory, bands under small limits, vectors and scalars, f16 saturation.
//! Results are compared with plain f64 loops; `conformance.rs` compares all operations with the CPU.
#![cfg(feature = "wgpu")]

use minference::backend::wgpu::{Options, Tier, Wgpu};
use minference::backend::{Backend, DeviceInfo};
use minference::ops::{self, HeadBand, Rope};
use minference::tensor::{Tensor, encode_f32};
use minference::weights::{dequantize, random_blocks};
use minference::{DType, Error};

/// Bytes of a binding small enough that the shapes below need several bands, in `Device::small`.
const SMALL_BINDING: u64 = 16 << 10;

/// The tiers that run here, with the adapter's limits and with small ones; none where no driver is installed.
fn devices() -> Vec<Wgpu> {
    let open =
        |tier, max_binding_bytes| match Wgpu::new(None, Options { tier, max_binding_bytes, ..Options::default() }) {
            Ok(device) => Some(device),
            Err(Error::Unavailable(why)) => {
                eprintln!("not run: {why}");
                None
            }
            Err(error) => panic!("{error}"),
        };
    let tiers = [Tier::Plain, Tier::Subgroup, Tier::Coop8, Tier::Coop16];
    tiers.into_iter().flat_map(|tier| [open(tier, None), open(tier, Some(SMALL_BINDING))]).flatten().collect()
}

/// Values that are the same in f16, in [-2, 2).
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as i32 % 1024
    };
    (0..n).map(|_| (next() * 2 - 1024) as f32 / 512.0).collect()
}

/// The precision of a result stored in this type.
fn epsilon(dtype: DType) -> f64 {
    if dtype == DType::F16 { 1.0 / 2048.0 } else { 1e-6 }
}

#[track_caller]
fn close(what: &str, info: &DeviceInfo, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= tolerance * want.abs().max(1.0), "{what} {}: element {i}: {got}, not {want}", info.tier);
    }
}

#[test]
fn add_accumulates_from_both_types() {
    for b in devices() {
        let n = 10_001;
        let x = values(n, 1);
        for dtype in [DType::F32, b.activation()] {
            let x_device = Tensor::from_bytes(&b, dtype, [n], &encode_f32(dtype, &x).unwrap()).unwrap();
            for skip in [0, 1, 3, 5] {
                let mut out = Tensor::from_slice(&b, DType::F32, [n], &vec![1.0f32; n]).unwrap();
                ops::add(&b, x_device.view().rows(skip..n), out.view_mut().rows(skip..n)).unwrap();
                let want: Vec<f64> =
                    x.iter().enumerate().map(|(i, x)| 1.0 + if i < skip { 0.0 } else { f64::from(*x) }).collect();
                close("add", b.info(), &out.to_f32(&b).unwrap(), &want, 0.0);
            }
        }
    }
}

#[test]
fn cast_reads_every_type_and_saturates_f16() {
    for b in devices() {
        let mut x = values(9_999, 2);
        x[7] = 1e6;
        x[8] = -1e6;
        x[9] = f32::NAN;
        for from in [DType::F32, DType::F16, DType::BF16] {
            let bytes = encode_f32(from, &x).unwrap();
            let stored = minference::tensor::decode_f32(from, &bytes).unwrap();
            let source = Tensor::from_bytes(&b, from, [x.len()], &bytes).unwrap();
            for to in [DType::F32, b.activation()] {
                for skip in [0, 1, 2] {
                    let mut out = Tensor::alloc(&b, to, [x.len() - skip]).unwrap();
                    ops::cast(&b, source.view().rows(skip..x.len()), out.view_mut()).unwrap();
                    let got = out.to_f32(&b).unwrap();
                    for (got, stored) in got.iter().zip(&stored[skip..]) {
                        if stored.is_nan() {
                            assert!(got.is_nan(), "{from} to {to}: {got}");
                            continue;
                        }
                        let limit = if to == DType::F16 { 65504.0 } else { f32::INFINITY };
                        let want = stored.clamp(-limit, limit);
                        let near = *got == want || (got - want).abs() <= want.abs() / 2048.0;
                        assert!(near, "{from} to {to}: {got}, not {want}");
                    }
                }
            }
        }
    }
}

/// Parts of several buffers in one wait, from odd places too.
#[test]
fn several_parts_are_read_at_once() {
    for b in devices() {
        let bytes: Vec<u8> = (0..200).map(|i| i as u8).collect();
        let buffers = [b.upload(&bytes).unwrap(), b.upload(&bytes[7..80]).unwrap()];
        let parts = [(&buffers[0], 3..50), (&buffers[1], 0..73), (&buffers[0], 196..200), (&buffers[1], 5..6)];
        let got = pollster::block_on(b.download_all(&parts)).unwrap();
        assert_eq!(got, [&bytes[3..50], &bytes[7..80], &bytes[196..], &bytes[12..13]]);
        let empty = pollster::block_on(b.download_all(&[(&buffers[0], 4..4), (&buffers[1], 0..2)])).unwrap();
        assert_eq!(empty, [&[][..], &bytes[7..9]]);
        assert!(pollster::block_on(b.download_all(&[(&buffers[0], 0..4), (&buffers[1], 70..99)])).is_err());
    }
}

#[test]
fn embed_takes_rows() {
    for b in devices() {
        for (vocab, hidden) in [(300, 64), (77, 50), (130, 33)] {
            let table = values(vocab * hidden, 3);
            let ids: Vec<u32> = (0..201).map(|i| (i * 31 + 7) % vocab as u32).collect();
            let ids_device = Tensor::from_slice(&b, DType::U32, [ids.len()], &ids).unwrap();
            for dtype in [DType::F32, DType::F16] {
                assert!(b.accepts_weight(dtype));
                let bytes = encode_f32(dtype, &table).unwrap();
                let table_device = Tensor::from_bytes(&b, dtype, [vocab, hidden], &bytes).unwrap();
                let mut out = Tensor::alloc(&b, DType::F32, [ids.len(), hidden]).unwrap();
                ops::embed(&b, ids_device.view(), table_device.view(), out.view_mut()).unwrap();
                let want: Vec<f64> = ids
                    .iter()
                    .flat_map(|id| &table[*id as usize * hidden..][..hidden])
                    .map(|x| f64::from(*x))
                    .collect();
                close("embed", b.info(), &out.to_f32(&b).unwrap(), &want, 0.0);
            }
        }
    }
}

#[test]
fn rms_norm_of_rows() {
    for b in devices() {
        for (rows, cols) in [(37, 256), (5, 1001), (1, 64), (3, 2048)] {
            let (x, weight) = (values(rows * cols, 4), values(cols, 5));
            let mean = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / cols as f64;
            let want: Vec<f64> = x
                .chunks(cols)
                .flat_map(|row| {
                    let scale = 1.0 / (mean(row) + 1e-5).sqrt();
                    row.iter().zip(&weight).map(move |(x, w)| f64::from(*x) * scale * f64::from(*w))
                })
                .collect();
            let weight = Tensor::from_slice(&b, DType::F32, [cols], &weight).unwrap();
            for from in [DType::F32, b.activation()] {
                let x = Tensor::from_bytes(&b, from, [rows, cols], &encode_f32(from, &x).unwrap()).unwrap();
                for to in [DType::F32, b.activation()] {
                    let mut out = Tensor::alloc(&b, to, [rows, cols]).unwrap();
                    ops::rms_norm(&b, x.view(), weight.view(), 1e-5, out.view_mut()).unwrap();
                    close("rms_norm", b.info(), &out.to_f32(&b).unwrap(), &want, epsilon(to));
                }
            }
        }
    }
}

#[test]
fn rms_norm_of_heads_leaves_the_rest() {
    for b in devices() {
        let (rows, row, band) = (9, 5 * 32, HeadBand { column: 32, heads: 3, head_dim: 32 });
        let (x, weight) = (values(rows * row, 6), values(32, 7));
        let mut want = vec![1.0; rows * row];
        for r in 0..rows {
            for h in 0..3 {
                let first = r * row + 32 + h * 32;
                let head = &x[first..first + 32];
                let mean = head.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 32.0;
                for c in 0..32 {
                    want[first + c] = f64::from(head[c]) / (mean + 1e-6).sqrt() * f64::from(weight[c]);
                }
            }
        }
        let x = Tensor::activation(&b, [rows, row], &x).unwrap();
        let weight = Tensor::from_slice(&b, DType::F32, [32], &weight).unwrap();
        let mut out = Tensor::activation(&b, [rows, row], &vec![1.0; rows * row]).unwrap();
        ops::rms_norm_heads(&b, x.view(), band, weight.view(), 1e-6, out.view_mut()).unwrap();
        close("rms_norm_heads", b.info(), &out.to_f32(&b).unwrap(), &want, epsilon(b.activation()));
    }
}

#[test]
fn silu_mul_is_stable_at_both_ends() {
    for b in devices() {
        for (rows, ffn) in [(33, 128), (7, 333)] {
            let mut x = values(rows * 2 * ffn, 8);
            x[..4].copy_from_slice(&[-1000.0, 1000.0, -60000.0, 0.0]);
            x[ffn..ffn + 4].fill(1.0);
            let want: Vec<f64> = x
                .chunks(2 * ffn)
                .flat_map(|row| (0..ffn).map(|c| (f64::from(row[c]), f64::from(row[ffn + c]))))
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                .collect();
            let gate_up = Tensor::activation(&b, [rows, 2 * ffn], &x).unwrap();
            let mut out = Tensor::alloc(&b, b.activation(), [rows, ffn]).unwrap();
            ops::silu_mul(&b, gate_up.view(), out.view_mut()).unwrap();
            close("silu_mul", b.info(), &out.to_f32(&b).unwrap(), &want, 2.0 * epsilon(b.activation()));
        }
    }
}

/// At the last position of a million, an angle in f32 would be off by 0.06; here it is exact to the stored type.
#[test]
fn rope_is_exact_at_a_million() {
    for b in devices() {
        for (interleaved, rotary_dim, position) in [(false, 64, 1_048_560), (true, 64, 0), (false, 32, 12_345)] {
            let (n, row, head_dim) = (16, 4 * 64 + 7, 64);
            let band = HeadBand { column: 65, heads: 2, head_dim };
            let x = values(n * row, 9);
            let frequencies: Vec<f64> =
                (0..rotary_dim / 2).map(|i| 500_000f64.powf(-2.0 * i as f64 / rotary_dim as f64)).collect();
            let turns: Vec<u32> = frequencies
                .iter()
                .map(|f| (f / std::f64::consts::TAU * 2f64.powi(64)) as u64)
                .flat_map(|t| [t as u32, (t >> 32) as u32])
                .collect();
            let mut want: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            for t in 0..n {
                for h in 0..2 {
                    for (i, turns) in turns.chunks(2).enumerate() {
                        let turns = u64::from(turns[0]) | u64::from(turns[1]) << 32;
                        let turned = turns.wrapping_mul((position + t) as u64);
                        let (sin, cos) = (turned as f64 / 2f64.powi(64) * std::f64::consts::TAU).sin_cos();
                        let first = t * row + band.column + h * head_dim;
                        let (i, j) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + rotary_dim / 2) };
                        let (a, b) = (f64::from(x[first + i]), f64::from(x[first + j]));
                        want[first + i] = (a * cos - b * sin) * 1.25;
                        want[first + j] = (a * sin + b * cos) * 1.25;
                    }
                }
            }
            let turns = Tensor::from_slice(&b, DType::U32, [rotary_dim / 2, 2], &turns).unwrap();
            let mut x = Tensor::activation(&b, [n, row], &x).unwrap();
            let rope = Rope { rotary_dim, interleaved, attention_factor: 1.25 };
            ops::rope(&b, turns.view(), x.view_mut(), band, rope, position).unwrap();
            close("rope", b.info(), &x.to_f32(&b).unwrap(), &want, epsilon(b.activation()));
        }
    }
}

#[test]
fn append_kv_fills_head_major_caches() {
    for b in devices() {
        for (d, column) in [(32, 4), (33, 1)] {
            let (n, kv, capacity, position) = (70, 3, 128, 50);
            let row = 2 * kv * d + 4 * d;
            let x = values(n * row, 10);
            let (k, v) = (
                HeadBand { column, heads: kv, head_dim: d },
                HeadBand { column: column + kv * d, heads: kv, head_dim: d },
            );
            let x_device = Tensor::activation(&b, [n, row], &x).unwrap();
            let empty = vec![0.5; kv * capacity * d];
            let mut k_cache = Tensor::activation(&b, [kv, capacity, d], &empty).unwrap();
            let mut v_cache = Tensor::activation(&b, [kv, capacity, d], &empty).unwrap();
            ops::append_kv(&b, x_device.view(), k, v, k_cache.view_mut(), v_cache.view_mut(), position).unwrap();
            for (band, cache) in [(k, k_cache), (v, v_cache)] {
                let mut want = vec![0.5; kv * capacity * d];
                for (t, h, c) in (0..n).flat_map(|t| (0..kv).flat_map(move |h| (0..d).map(move |c| (t, h, c)))) {
                    want[(h * capacity + position + t) * d + c] = f64::from(x[t * row + band.column + h * d + c]);
                }
                close("append_kv", b.info(), &cache.to_f32(&b).unwrap(), &want, 0.0);
            }
        }
    }
}

/// Every tile shape on cooperative matrices, where the device has them: ragged rows and columns, bias, residual.
#[test]
fn matmul_in_every_tile_shape() {
    for b in devices().into_iter().filter(|b| b.info().max_binding_bytes != SMALL_BINDING) {
        let (m, n, k) = (150, 91, 128);
        let (x, w, bias) = (values(m * k, 11), values(n * k, 12), values(n, 13));
        let x_device = Tensor::activation(&b, [m, k], &x).unwrap();
        let w_device = Tensor::from_bytes(&b, DType::F16, [n, k], &encode_f32(DType::F16, &w).unwrap()).unwrap();
        let bias_device = Tensor::from_slice(&b, DType::F32, [n], &bias).unwrap();
        let want: Vec<f64> = (0..m * n)
            .map(|i| {
                let products = x[i / n * k..][..k].iter().zip(&w[i % n * k..][..k]);
                0.25 + f64::from(bias[i % n]) + products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
            })
            .collect();
        // All are launched before one is read, so that they compile together.
        let launched: Vec<_> = b
            .matmul_tiles()
            .into_iter()
            .map(|tile| {
                b.use_matmul_tile(Some(tile));
                let mut out = Tensor::from_slice(&b, DType::F32, [m, n], &vec![0.25f32; m * n]).unwrap();
                let into = ops::MatmulInto { column: 0, accumulate: true };
                let bias = Some(bias_device.view());
                ops::matmul(&b, x_device.view(), w_device.view(), bias, out.view_mut(), into).unwrap();
                (tile, out)
            })
            .collect();
        for (tile, out) in launched {
            close(tile, b.info(), &out.to_f32(&b).unwrap(), &want, 1e-5);
        }
    }
}

/// The same with packed weights, against what the CPU unpacks: blocks whose scales differ, tiny ones among them.
#[test]
fn matmul_of_packed_weights_in_every_tile_shape() {
    for b in devices().into_iter().filter(|b| b.info().max_binding_bytes != SMALL_BINDING) {
        let (m, n, k) = (150, 91, 512);
        let x = values(m * k, 11);
        let x_device = Tensor::activation(&b, [m, k], &x).unwrap();
        for dtype in [DType::Q4_0, DType::Q8_0, DType::Q4K, DType::Q6K] {
            let mut bytes = random_blocks(dtype, n * k, 12, 0.25).unwrap();
            let (scale, minima) = match dtype {
                DType::Q4K => (0, 4..16),
                DType::Q6K => (208, 192..208),
                _ => (0, 0..0),
            };
            for (i, block) in bytes.chunks_exact_mut(dtype.block_bytes()).enumerate() {
                minima.clone().for_each(|at| block[at] = (i * 151 + at * 29) as u8);
                if i % 7 == 0 {
                    // 2^-24 d: a subnormal f16
                    block[scale..scale + 2].copy_from_slice(&(5 + i as u16 % 900).to_le_bytes());
                }
            }
            let w = dequantize(dtype, &bytes, n * k).unwrap();
            let w_device = Tensor::from_bytes(&b, dtype, [n, k], &bytes).unwrap();
            let want: Vec<f64> = (0..m * n)
                .map(|i| {
                    let products = x[i / n * k..][..k].iter().zip(&w[i % n * k..][..k]);
                    0.25 + products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
                })
                .collect();
            let launch = |tile: Option<&'static str>| {
                b.use_matmul_tile(tile);
                let mut out = Tensor::from_slice(&b, DType::F32, [m, n], &vec![0.25f32; m * n]).unwrap();
                let into = ops::MatmulInto { column: 0, accumulate: true };
                ops::matmul(&b, x_device.view(), w_device.view(), None, out.view_mut(), into).unwrap();
                (tile, out)
            };
            let launched: Vec<_> = b.packed_matmul_tiles().into_iter().map(Some).chain([None]).map(launch).collect();
            for (tile, out) in launched {
                let got = out.to_f32(&b).unwrap();
                let (error, norm) = got.iter().zip(&want).fold((0.0, 0.0), |(error, norm), (got, want)| {
                    (error + (f64::from(*got) - want).powi(2), norm + want * want)
                });
                let relative = (error / norm).sqrt();
                // Weights in a tile of f16 are rounded once.
                assert!(relative < 5e-4, "{dtype} {tile:?} on {:?}: {relative:.1e}", b.info());
            }
        }
    }
}

#[test]
fn products_of_many_rows_unpack_weights_first() {
    for b in devices() {
        let (m, n, k) = (1030, 37, 256);
        let x = values(m * k, 11);
        let x_device = Tensor::activation(&b, [m, k], &x).unwrap();
        let bias: Vec<f32> = values(n, 13);
        let bias_device = Tensor::from_slice(&b, DType::F32, [n], &bias).unwrap();
        for dtype in [DType::Q4_0, DType::Q8_0, DType::Q4K, DType::Q6K] {
            let bytes = random_blocks(dtype, n * k, 12, 0.25).unwrap();
            let w = dequantize(dtype, &bytes, n * k).unwrap();
            let w_device = Tensor::from_bytes(&b, dtype, [n, k], &bytes).unwrap();
            let mut out = Tensor::from_slice(&b, DType::F32, [m, n + 3], &vec![0.25f32; m * (n + 3)]).unwrap();
            let into = ops::MatmulInto { column: 2, accumulate: true };
            ops::matmul(&b, x_device.view(), w_device.view(), Some(bias_device.view()), out.view_mut(), into).unwrap();
            let got = out.to_f32(&b).unwrap();
            let (mut error, mut norm) = (0.0, 0.0);
            for (i, got) in got.iter().enumerate() {
                let (r, c) = (i / (n + 3), i % (n + 3));
                if !(2..n + 2).contains(&c) {
                    assert_eq!(*got, 0.25);
                    continue;
                }
                let products = x[r * k..][..k].iter().zip(&w[(c - 2) * k..][..k]);
                let sum: f64 = products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let want = 0.25 + f64::from(bias[c - 2]) + sum;
                (error, norm) = (error + (f64::from(*got) - want).powi(2), norm + want * want);
            }
            let relative = (error / norm).sqrt();
            assert!(relative < 5e-4, "{dtype} on {:?}: {relative:.1e}", b.info());
        }
    }
}

#[test]
fn writes_are_ordered_and_reads_may_begin_anywhere() {
    for b in devices() {
        let mut out = Tensor::from_slice(&b, DType::F32, [5], &[0f32; 5]).unwrap();
        let one = Tensor::from_slice(&b, DType::F32, [5], &[1f32; 5]).unwrap();
        ops::add(&b, one.view(), out.view_mut()).unwrap();
        out.write(&b, &[10f32, 11.0, 12.0]).unwrap();
        ops::add(&b, one.view(), out.view_mut()).unwrap();
        assert_eq!(out.to_f32(&b).unwrap(), [11.0, 12.0, 13.0, 2.0, 2.0]);

        let mut bytes = b.upload(&(0u8..11).collect::<Vec<_>>()).unwrap();
        let read = |buffer: &_, range| pollster::block_on(b.download(buffer, range)).unwrap();
        assert_eq!(read(&bytes, 0..11), (0u8..11).collect::<Vec<_>>());
        assert_eq!(read(&bytes, 3..9), [3, 4, 5, 6, 7, 8]);
        assert_eq!(read(&bytes, 5..5), [0u8; 0]);
        b.write(&mut bytes, 8, &[80, 90, 100]).unwrap();
        assert_eq!(read(&bytes, 7..11), [7, 80, 90, 100]);
        assert!(matches!(b.write(&mut bytes, 8, &[0; 4]), Err(Error::Invalid(_))), "past the end");
        assert!(matches!(b.write(&mut bytes, 1, &[0; 4]), Err(Error::Invalid(_))), "not at a word");
        assert!(pollster::block_on(b.download(&bytes, 4..12)).is_err(), "past the end");
    }
}

#[test]
fn memory_is_counted_and_given_back() {
    for b in devices() {
        assert_eq!(b.memory().current, 0);
        let first = b.alloc(1000).unwrap();
        let second = b.upload(&[1; 4096]).unwrap();
        assert_eq!(b.memory().current, 1008 + 4096, "sizes are rounded up to 16");
        drop(second);
        assert_eq!((b.memory().current, b.memory().peak), (1008, 1008 + 4096));
        b.reset_peak();
        assert_eq!(b.memory().peak, 1008);
        drop(first);
        assert_eq!(b.memory().current, 0);
        assert!(matches!(b.alloc(usize::MAX / 4), Err(Error::OutOfMemory(_))));
        b.synchronize().unwrap();
    }
}

#[test]
fn a_missing_adapter_is_unavailable() {
    let error = Wgpu::new(Some(99), Options::default()).err().expect("no machine has 100 adapters");
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
}

/// Vectors and tiles of both sizes, inner lengths with and without tails, bands of columns, bias, residual.
#[test]
fn matmul_in_all_forms() {
    // m, n, k, first column, columns of out
    let shapes = [
        (1, 97, 256, 0, 97),
        (3, 40, 65, 5, 50),
        (17, 130, 48, 0, 130),
        (64, 128, 72, 3, 140),
        (133, 257, 100, 0, 257),
        (130, 64, 33, 64, 128),
        (150, 140, 96, 4, 148),
        (65, 90, 64, 1, 91),
    ];
    for b in devices() {
        for (case, (m, n, k, column, out_cols)) in shapes.into_iter().enumerate() {
            let (x, w, bias) = (values(m * k, 11), values(n * k, 12), values(n, 13));
            let x_device = Tensor::activation(&b, [m, k], &x).unwrap();
            let bias_device = Tensor::from_slice(&b, DType::F32, [n], &bias).unwrap();
            for weight in [DType::F32, DType::F16] {
                let w_device = Tensor::from_bytes(&b, weight, [n, k], &encode_f32(weight, &w).unwrap()).unwrap();
                for (to, accumulate) in [(DType::F32, false), (DType::F32, true), (b.activation(), false)] {
                    let with_bias = (case + usize::from(accumulate)) % 2 == 0;
                    let mut want = vec![0.25; m * out_cols];
                    for (r, c) in (0..m).flat_map(|r| (0..n).map(move |c| (r, c))) {
                        let products = x[r * k..][..k].iter().zip(&w[c * k..][..k]);
                        let sum: f64 = products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                        let slot = &mut want[r * out_cols + column + c];
                        *slot = sum
                            + if with_bias { f64::from(bias[c]) } else { 0.0 }
                            + if accumulate { 0.25 } else { 0.0 };
                    }
                    let before = encode_f32(to, &vec![0.25; m * out_cols]).unwrap();
                    let mut out = Tensor::from_bytes(&b, to, [m, out_cols], &before).unwrap();
                    let into = ops::MatmulInto { column, accumulate };
                    let bias = with_bias.then(|| bias_device.view());
                    ops::matmul(&b, x_device.view(), w_device.view(), bias, out.view_mut(), into).unwrap();
                    let what = format!("matmul {m}x{n}x{k} {weight} to {to}");
                    close(&what, b.info(), &out.to_f32(&b).unwrap(), &want, 2.0 * epsilon(to) + 1e-6 * k as f64);
                }
            }
        }
    }
}

/// A device that the caller made, as an engine that embeds the operations has one.
fn callers_device() -> Option<(wgpu::Device, wgpu::Queue)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).ok()?;
    let wanted = wgpu::Features::IMMEDIATES | wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP;
    let device = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: adapter.features() & (wanted | wgpu::Features::SUBGROUP_BARRIER),
        required_limits: adapter.limits(),
        ..wgpu::DeviceDescriptor::default()
    }));
    Some(device.unwrap())
}

#[test]
fn works_on_a_callers_device_and_buffer() {
    let Some((device, queue)) = callers_device() else { return eprintln!("not run: no adapter") };
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let buffer = |usage| {
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size: 64, usage, mapped_at_creation: false })
    };
    let b = Wgpu::from_device(device.clone(), queue.clone(), Options::default()).unwrap();
    let theirs = buffer(usage);
    queue.write_buffer(&theirs, 0, bytemuck::cast_slice(&[1f32; 16]));
    queue.submit([]);
    let part = minference::backend::wgpu::Buffer::wrap(theirs.clone(), 20, 12).unwrap();
    let mut out = Tensor::from_buffer(part, DType::F32, [3]).unwrap();
    let x = Tensor::from_slice(&b, DType::F32, [3], &[10f32, 20.0, 30.0]).unwrap();
    ops::add(&b, x.view(), out.view_mut()).unwrap();
    assert_eq!(out.to_f32(&b).unwrap(), [11.0, 21.0, 31.0]);
    let whole = minference::backend::wgpu::Buffer::wrap(theirs.clone(), 0, 64).unwrap();
    let whole = Tensor::<Wgpu>::from_buffer(whole, DType::F32, [16]).unwrap().to_f32(&b).unwrap();
    assert_eq!(whole.iter().sum::<f32>(), 16.0 + 60.0, "the rest is as it was");
    assert_eq!(b.memory().current, 16, "only what the backend made is on its account");

    let wrap = |raw, offset, len| minference::backend::wgpu::Buffer::wrap(raw, offset, len).err();
    assert!(matches!(wrap(buffer(wgpu::BufferUsages::STORAGE), 0, 64), Some(Error::Invalid(_))), "usage");
    assert!(matches!(wrap(theirs.clone(), 2, 8), Some(Error::Invalid(_))), "not at a word");
    assert!(matches!(wrap(theirs, 60, 8), Some(Error::Invalid(_))), "past the end");
}

#[test]
fn a_lost_device_is_an_error() {
    let Some((device, queue)) = callers_device() else { return eprintln!("not run: no adapter") };
    let b = Wgpu::from_device(device.clone(), queue, Options::default()).unwrap();
    let x = Tensor::from_slice(&b, DType::F32, [3], &[10f32, 20.0, 30.0]).unwrap();
    let mut out = Tensor::from_slice(&b, DType::F32, [3], &[0f32; 3]).unwrap();
    device.destroy();
    let launched = ops::add(&b, x.view(), out.view_mut());
    let read = out.to_f32(&b);
    assert!(launched.is_err() || read.is_err(), "{read:?}");
    // Whatever is still called neither panics nor gives values.
    let _ = (b.alloc(16), b.flush(), b.synchronize());
    assert!(out.to_f32(&b).is_err());
}
