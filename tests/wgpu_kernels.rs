//! The estimation, index and attention kernels of the wgpu backend against the CPU twins, on every tier that runs here.
//!
//! Inputs are rounded to f16 first, so that both sides read the same numbers.
#![cfg(feature = "wgpu")]

use minference::attention::attend;
use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use minference::backend::params::BLOCK;
use minference::backend::wgpu::{AttentionKernel, Options, Tier, Wgpu};
use minference::estimate::{Chosen, FORCED_COLUMNS, FORCED_OFFSETS, choose, from_sets};
use minference::index::{HostIndex, IndexLayout, SparseIndex};
use minference::ops::{self, AttentionShape};
use minference::pattern::HeadPattern;
use minference::tensor::{Shape, Tensor};
use minference::{DType, Error};

/// A device per tier that runs here; none where no driver is installed, as CI has one everywhere.
fn devices(options: Options) -> Vec<Wgpu> {
    let open = |tier| match Wgpu::new(None, Options { tier, ..options }) {
        Ok(device) => Some(device),
        Err(Error::Unavailable(why)) => {
            eprintln!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    };
    [Tier::Plain, Tier::Subgroup].into_iter().filter_map(open).collect()
}

/// Roughly normal values, rounded to f16.
fn normal(n: usize, seed: u64, amplitude: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n)
        .map(|_| {
            let x: f32 = (0..4).map(|_| uniform()).sum::<f32>() * 1.732 * amplitude;
            half::f16::from_f32(x).to_f32()
        })
        .collect()
}

/// One layer's input: `q` token-major beside other columns, `k` and `v` head-major with room for more keys.
#[derive(Clone)]
struct Case {
    shape: AttentionShape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new(n_heads: usize, n_kv_heads: usize, head_dim: usize, q_len: usize, q_start: usize, seed: u64) -> Self {
        let row = (n_heads + 2 * n_kv_heads) * head_dim;
        let capacity = (q_start + q_len).next_multiple_of(64);
        let shape = AttentionShape {
            n_heads,
            n_kv_heads,
            head_dim,
            q_len,
            kv_len: q_start + q_len,
            q_start,
            scale: 1.0 / (head_dim as f32).sqrt(),
            q_stride: [row, head_dim],
            k_stride: [head_dim, capacity * head_dim],
            v_stride: [head_dim, capacity * head_dim],
            out_stride: [n_heads * head_dim, head_dim],
        };
        let keys = n_kv_heads * capacity * head_dim;
        let (q, mut k, mut v) =
            (normal(q_len * row, seed, 1.5), normal(keys, seed + 1, 1.5), normal(keys, seed + 2, 1.0));
        // What lies past kv_len in a cache was never written: it must not matter.
        for head in 0..n_kv_heads {
            let past = (head * capacity + q_start + q_len) * head_dim..(head + 1) * capacity * head_dim;
            k[past.clone()].fill(f32::NAN);
            v[past].fill(f32::NAN);
        }
        Self { shape, q, k, v }
    }

    /// Keys that grow along the text: maxima keep growing too, up to scores of hundreds, and outputs are rescaled.
    fn steep(mut self) -> Self {
        let (d, len) = (self.shape.head_dim, self.shape.kv_len);
        let capacity = self.shape.k_stride[1] / d;
        for (i, x) in self.k.iter_mut().enumerate() {
            *x = half::f16::from_f32(*x * (1.0 + 40.0 * ((i / d) % capacity) as f32 / len as f32)).to_f32();
        }
        self
    }

    fn on<B: Backend>(&self, b: &B) -> [Tensor<B>; 3] {
        [&self.q, &self.k, &self.v].map(|x| Tensor::activation(b, [x.len()], x).unwrap())
    }

    /// Output as f32 and the log-sum-exp under one pattern a head, and the pairs computed.
    fn attend<B: Backend>(&self, b: &B, patterns: &[HeadPattern], out: DType) -> (Vec<f32>, Vec<f32>, Vec<u64>) {
        let s = &self.shape;
        let [q, k, v] = self.on(b);
        let mut out = Tensor::alloc(b, out, [s.q_len, s.n_heads * s.head_dim]).unwrap();
        let mut lse = Tensor::alloc(b, DType::F32, [s.n_heads, s.q_len]).unwrap();
        let computed =
            attend(b, patterns, s, q.view(), k.view(), v.view(), out.view_mut(), Some(lse.view_mut())).unwrap();
        (out.to_f32(b).unwrap(), lse.to_f32(b).unwrap(), computed.head_pairs(b).unwrap())
    }
}

fn patterns(n: usize, texts: &[&str]) -> Vec<HeadPattern> {
    (0..n).map(|i| texts[i % texts.len()].parse().unwrap()).collect()
}

fn relative_l2(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    (error / want.iter().map(|w| square(*w)).sum::<f64>()).sqrt()
}

/// The shapes that the kernels branch on: head dims below, at and between kernel sizes, ragged lengths, offsets.
fn cases() -> Vec<(&'static str, Case)> {
    vec![
        ("one token", Case::new(2, 1, 64, 1, 0, 1)),
        ("short", Case::new(3, 1, 40, 63, 0, 2)),
        ("ragged", Case::new(4, 2, 64, 700, 0, 3)),
        ("dim 96, chunk", Case::new(2, 2, 96, 200, 321, 4)),
        ("dim 128, aligned chunk", Case::new(6, 2, 128, 256, 512, 5)),
        ("dim 256", Case::new(2, 1, 256, 130, 0, 6)),
        ("steep", Case::new(4, 2, 64, 500, 0, 7).steep()),
    ]
}

#[test]
fn attention_matches_the_cpu_for_every_pattern() {
    let cpu = Cpu::new();
    for b in devices(Options::default()) {
        let tier = b.info().tier.clone();
        let tolerance = if b.activation() == DType::F16 { 1e-3 } else { 1e-5 };
        for (name, case) in cases() {
            for texts in [
                &["dense"][..],
                &["a_shape:16:100", "vertical_slash:100:150", "block_sparse:3", "dense"],
                &["vertical_slash:40:60", "a_shape:0:64", "block_sparse:1"],
            ] {
                let patterns = patterns(case.shape.n_heads, texts);
                let (want, want_lse, want_pairs) = case.attend(&cpu, &patterns, DType::F32);
                for out in [DType::F32, b.activation()] {
                    let (got, lse, pairs) = case.attend(&b, &patterns, out);
                    let error = relative_l2(&got, &want);
                    println!("{tier} {name} {texts:?} {out}: {error:.1e}");
                    assert_eq!(pairs, want_pairs, "{tier} {name} {texts:?}");
                    assert!(error < tolerance, "{tier} {name} {texts:?} {out}: relative L2 {error}");
                    let worst = lse.iter().zip(&want_lse).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
                    assert!(worst < 1e-3, "{tier} {name} {texts:?} {out}: log-sum-exp differs by {worst}");
                }
            }
        }
    }
}

/// Column and offset scores with all heads vertical-slash.
fn last_query_scores<B: Backend>(b: &B, case: &Case) -> (Vec<f32>, Vec<f32>) {
    let s = &case.shape;
    let [q, k, _] = case.on(b);
    let plan: Vec<u32> = (0..s.n_heads).flat_map(|_| [2, 30, 50, 0]).collect();
    let plan = Tensor::from_slice(b, DType::U32, [s.n_heads, 4], &plan).unwrap();
    let mut columns = Tensor::alloc(b, DType::F32, [s.n_heads, s.kv_len]).unwrap();
    let mut offsets = Tensor::alloc(b, DType::F32, [s.n_heads, s.kv_len]).unwrap();
    let (q, k) = (q.view(), k.view());
    ops::score_last_queries(b, s, plan.view(), q, k, columns.view_mut(), offsets.view_mut()).unwrap();
    (columns.to_f32(b).unwrap(), offsets.to_f32(b).unwrap())
}

/// Every form of the kernel on cooperative matrices, where the device has them (lavapipe from Mesa 26 on: 8 x 8).
#[test]
fn attention_on_matrices_matches_the_cpu() {
    let cpu = Cpu::new();
    let b = match Wgpu::new(None, Options::default()) {
        Ok(b) => b,
        Err(Error::Unavailable(why)) => return eprintln!("skipped: {why}"),
        Err(error) => panic!("{error}"),
    };
    for (name, case) in [
        ("one token", Case::new(2, 1, 32, 1, 0, 1)),
        ("short, dim 24", Case::new(3, 1, 24, 63, 0, 2)),
        ("ragged", Case::new(4, 2, 32, 700, 0, 3)),
        ("chunk", Case::new(4, 2, 32, 200, 321, 4)),
        ("dim 64, aligned chunk", Case::new(6, 2, 64, 256, 512, 5)),
        ("steep", Case::new(4, 2, 32, 500, 0, 6).steep()),
    ] {
        for kernel in b.attention_kernels(case.shape.head_dim) {
            if matches!(kernel, AttentionKernel::Tiles | AttentionKernel::SmallTiles) {
                continue;
            }
            b.use_attention_kernel(Some(kernel));
            for texts in [
                &["dense"][..],
                &["a_shape:16:100", "vertical_slash:100:150", "block_sparse:3", "dense"],
                &["vertical_slash:40:60", "a_shape:0:64", "block_sparse:1"],
            ] {
                let patterns = patterns(case.shape.n_heads, texts);
                let (want, want_lse, want_pairs) = case.attend(&cpu, &patterns, DType::F32);
                let (got, lse, pairs) = case.attend(&b, &patterns, b.activation());
                let error = relative_l2(&got, &want);
                println!("{kernel} {name} {texts:?}: {error:.1e}");
                assert_eq!(pairs, want_pairs, "{kernel} {name} {texts:?}");
                assert!(error < 1e-3, "{kernel} {name} {texts:?}: relative L2 {error}");
                let worst = lse.iter().zip(&want_lse).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-3, "{kernel} {name} {texts:?}: log-sum-exp differs by {worst}");
            }
        }
    }
}

#[test]
fn decoding_matches_the_cpu() {
    let cpu = Cpu::new();
    fn run<B: Backend>(b: &B, case: &Case, out: DType) -> Vec<f32> {
        let s = &case.shape;
        let [q, k, v] = case.on(b);
        let mut out = Tensor::alloc(b, out, [s.q_len, s.n_heads * s.head_dim]).unwrap();
        ops::decode_attention(b, s, q.view(), k.view(), v.view(), out.view_mut()).unwrap();
        out.to_f32(b).unwrap()
    }
    // With the limit, the last case's KV head takes several bindings.
    let limit = Options { max_binding_bytes: Some(2 << 20), ..Options::default() };
    for b in devices(Options::default()).into_iter().chain(devices(limit)) {
        let tolerance = if b.activation() == DType::F16 { 1e-3 } else { 1e-5 };
        for (heads, kv_heads, head_dim, q_len, q_start) in
            [(4, 4, 64, 1, 0), (6, 2, 128, 1, 3000), (7, 1, 96, 3, 700), (4, 1, 256, 8, 250), (2, 1, 40, 1, 40000)]
        {
            let case = Case::new(heads, kv_heads, head_dim, q_len, q_start, 11);
            let want = run(&cpu, &case, DType::F32);
            for out in [DType::F32, b.activation()] {
                let error = relative_l2(&run(&b, &case, out), &want);
                let what = format!("{} {heads}/{kv_heads} x {head_dim}, {q_len} from {q_start}", b.info().tier);
                println!("{what} {out}: {error:.1e}");
                assert!(error < tolerance, "{what} {out}: relative L2 {error}");
            }
        }
    }
}

#[test]
fn estimates_match_the_cpu() {
    let cpu = Cpu::new();
    for b in devices(Options::default()) {
        let tier = b.info().tier.clone();
        for (name, case) in cases() {
            let s = &case.shape;
            let patterns = patterns(s.n_heads, &["vertical_slash:100:150", "vertical_slash:33:101", "block_sparse:3"]);
            let (columns, offsets) = last_query_scores(&b, &case);
            let (want_columns, want_offsets) = last_query_scores(&cpu, &case);
            for (what, got, want) in [("columns", &columns, &want_columns), ("offsets", &offsets, &want_offsets)] {
                for (i, (g, w)) in got.iter().zip(want).enumerate() {
                    assert!((g - w).abs() <= 1e-4 * w.abs() + 1e-7, "{tier} {name}: {what}[{i}]: {g} for {w}");
                }
            }

            let [q, k, _] = case.on(&b);
            let chosen = choose(&b, &patterns, s, q.view(), k.view()).unwrap();
            let [cq, ck, _] = case.on(&cpu);
            let want = choose(&cpu, &patterns, s, cq.view(), ck.view()).unwrap();
            let (got_sets, want_sets) = (sets_of(&b, &chosen), sets_of(&cpu, &want));
            for (h, (got, want)) in got_sets.iter().zip(&want_sets).enumerate() {
                let scores = |all: &[f32]| all[h * s.kv_len..(h + 1) * s.kv_len].to_vec();
                let what = format!("{tier} {name}: head {h}");
                same_but_for_ties(
                    &format!("{what}: columns"),
                    &got[0],
                    &want[0],
                    &scores(&want_columns),
                    FORCED_COLUMNS,
                );
                same_but_for_ties(
                    &format!("{what}: offsets"),
                    &got[1],
                    &want[1],
                    &scores(&want_offsets),
                    FORCED_OFFSETS,
                );
            }

            // Heads that chose the same have the same index; where a tie fell otherwise, the index is that of its choice.
            let columns: Vec<_> = got_sets.iter().map(|sets| sets[0].clone()).collect();
            let offsets: Vec<_> =
                got_sets.iter().map(|[_, o]| if o.is_empty() { vec![0] } else { o.clone() }).collect();
            let of_choice = from_sets(&cpu, &columns, &offsets, s).unwrap();
            let (got, want) = (chosen.build(&b).unwrap(), want.build(&cpu).unwrap());
            let indexes = [got.to_host(&b).unwrap(), want.to_host(&cpu).unwrap(), of_choice.to_host(&cpu).unwrap()];
            let pairs = [
                got.pairs.to_u32(&b).unwrap(),
                want.pairs.to_u32(&cpu).unwrap(),
                of_choice.pairs.to_u32(&cpu).unwrap(),
            ];
            for h in 0..s.n_heads {
                let expected = if got_sets[h] == want_sets[h] { 1 } else { 2 };
                assert_eq!(rows_of(&indexes[0], h), rows_of(&indexes[expected], h), "{tier} {name}: index of head {h}");
                let per_head = |p: &[u32]| p[p.len() / s.n_heads * h..p.len() / s.n_heads * (h + 1)].to_vec();
                assert_eq!(per_head(&pairs[0]), per_head(&pairs[expected]), "{tier} {name}: pairs of head {h}");
            }
        }
    }
}

/// Columns and offsets that each head chose.
fn sets_of<B: Backend>(b: &B, chosen: &Chosen<B>) -> Vec<[Vec<u32>; 2]> {
    let (columns, offsets) = (chosen.columns(b).unwrap(), chosen.offsets(b).unwrap());
    columns.into_iter().zip(offsets).map(|(columns, offsets)| [columns, offsets]).collect()
}

/// Equal sets, but for keys whose score lies within 1e-4 of the least that the CPU chose: scores agree no better.
fn same_but_for_ties(what: &str, got: &[u32], want: &[u32], scores: &[f32], forced: usize) {
    assert_eq!(got.len(), want.len(), "{what}");
    assert!(got.windows(2).all(|pair| pair[0] < pair[1]), "{what}: ascending");
    let score = |&key: &u32| scores[key as usize];
    let cut = want.iter().filter(|key| **key as usize >= forced).map(score).fold(f32::INFINITY, f32::min);
    let differ = |a: &[u32], b: &[u32]| a.iter().copied().filter(|key| !b.contains(key)).collect::<Vec<_>>();
    for key in differ(got, want).into_iter().chain(differ(want, got)) {
        let distance = (score(&key) - cut).abs();
        assert!(
            key as usize >= forced && distance <= 2e-4 * cut + 1e-7,
            "{what}: {key} is {distance} from the cut {cut}"
        );
    }
}

/// Ranges and columns of each row block of a head.
fn rows_of(index: &HostIndex, head: usize) -> Vec<(Vec<[i32; 2]>, Vec<i32>)> {
    let rows = (index.range_ptr.len() - 1) / index.n_heads;
    let part = |ptr: &[i64], row: usize| ptr[row] as usize..ptr[row + 1] as usize;
    let row = |row| {
        (index.ranges[part(&index.range_ptr, row)].to_vec(), index.columns[part(&index.column_ptr, row)].to_vec())
    };
    (head * rows..(head + 1) * rows).map(row).collect()
}

/// An index of given choices: a vertical-slash, a block-sparse, an A-shape and a dense head.
fn given_index<B: Backend>(b: &B, layout: IndexLayout, dense_above: u32) -> SparseIndex<B> {
    let (rows, words) = (layout.row_blocks(), layout.kv_len.div_ceil(BLOCK).div_ceil(32));
    let plan = [[2u32, 90, 40, 0], [3, 4, 0, 0], [1, 10, 100, 0], [0, 0, 0, 0]];
    let columns: Vec<u32> = (0..90).map(|i| i * 11 + i % 3).chain([u32::MAX; 38]).collect();
    let offsets: Vec<u32> = (0..40).map(|i| i * 40 + i % 4 * 9).collect();
    // Row block 5 chose nothing.
    let mask = |row: usize| {
        (0..words).map(move |w| if row == 5 { 0 } else { 0x9249_6c1d_u32.rotate_left((row * 3 + w) as u32) })
    };
    let mask: Vec<u32> = (0..4 * rows).flat_map(|i| mask(i % rows)).collect();
    let u32s = |shape: &[usize], values: &[u32]| {
        Tensor::from_slice(b, DType::U32, Shape::try_from(shape).unwrap(), values).unwrap()
    };
    let mut index = SparseIndex::alloc(b, layout).unwrap();
    index.columns = u32s(&[4, 128], &[columns.clone(), columns.clone(), columns.clone(), columns].concat());
    let [plan, offsets, counts, mask] = [
        u32s(&[4, 4], plan.as_flattened()),
        u32s(&[4, 40], &[offsets.clone(), offsets.clone(), offsets.clone(), offsets].concat()),
        u32s(&[4], &[40, 0, 0, 0]),
        u32s(&[4, rows, words], &mask),
    ];
    let choice = ops::Choice {
        plan: plan.view(),
        offsets: offsets.view(),
        offset_count: counts.view(),
        block_mask: mask.view(),
        dense_above,
    };
    ops::build_index(b, choice, &mut index).unwrap();
    index
}

#[test]
fn given_choices_and_rows_without_room_convert_as_on_the_cpu() {
    let cpu = Cpu::new();
    for b in devices(Options::default()) {
        for (q_len, q_start) in [(1500, 0), (1500, 100), (70, 1000), (5000, 64)] {
            for (range_budget, dense_above) in
                [(10000, 256), (0, 256), (1, 256), (40, 256), (90, 256), (300, 256), (10000, 100), (90, 30)]
            {
                let kv_len = q_start + q_len;
                let layout = IndexLayout { n_heads: 4, q_len, kv_len, q_start, column_tiles: 2, range_budget };
                let (got, want) = (given_index(&b, layout, dense_above), given_index(&cpu, layout, dense_above));
                let what = format!(
                    "{}, {q_len} queries from {q_start}, budget {range_budget}, dense above {dense_above}",
                    b.info().tier
                );
                assert_eq!(got.to_host(&b).unwrap(), want.to_host(&cpu).unwrap(), "{what}");
                for [got, want] in [
                    [got.row_ranges.to_u32(&b), want.row_ranges.to_u32(&cpu)],
                    [got.pairs.to_u32(&b), want.pairs.to_u32(&cpu)],
                ] {
                    assert_eq!(got.unwrap(), want.unwrap(), "{what}");
                }
            }
        }
    }
}

#[test]
fn top_k_takes_ties_by_index_and_any_float() {
    let cpu = Cpu::new();
    let (rows, len, capacity) = (6, 5000, 3000);
    let mut scores = normal(rows * len, 8, 1.0);
    for (i, x) in scores.iter_mut().enumerate() {
        let row = i / len;
        match row {
            // Few values, so that the threshold is a tie; zeros of both signs; infinities and NaN.
            1 => *x = (*x * 4.0).round(),
            2 => *x = if i % 3 == 0 { 0.0 } else { -0.0 },
            3 if i % 7 == 0 => *x = f32::NEG_INFINITY,
            3 if i % 11 == 0 => *x = f32::INFINITY,
            4 if i % 5 == 0 => *x = f32::NAN,
            5 => *x = x.abs() * 1e-38,
            _ => {}
        }
    }
    let counts = [3000u32, 1234, 100, 2999, 2500, 1];
    fn run<B: Backend>(b: &B, scores: &[f32], counts: &[u32], forced: usize, dims: [usize; 3]) -> Vec<u32> {
        let [rows, len, capacity] = dims;
        let scores = Tensor::from_slice(b, DType::F32, [rows, len], scores).unwrap();
        let counts = Tensor::from_slice(b, DType::U32, [rows], counts).unwrap();
        let mut indices = Tensor::alloc(b, DType::U32, [rows, capacity]).unwrap();
        ops::select_top_k(b, scores.view(), counts.view(), forced, indices.view_mut()).unwrap();
        indices.to_u32(b).unwrap()
    }
    for b in devices(Options::default()) {
        for (forced, counts) in [(0, counts), (30, counts), (100, [0, 50, 100, 101, 5, 3000])] {
            let dims = [rows, len, capacity];
            let got = run(&b, &scores, &counts, forced, dims);
            let want = run(&cpu, &scores, &counts, forced, dims);
            for row in 0..rows {
                let part = row * capacity..(row + 1) * capacity;
                assert_eq!(got[part.clone()], want[part], "{} row {row}, forced {forced}", b.info().tier);
            }
        }
    }
}

#[test]
fn small_limits_give_the_same_results() {
    let cpu = Cpu::new();
    // Queries go in bands of rows, and with f32 keys one KV head at a time.
    let options =
        Options { max_binding_bytes: Some(144 << 10), max_workgroup_bytes: Some(16 << 10), ..Options::default() };
    let case = Case::new(4, 2, 64, 400, 30, 9);
    let patterns = patterns(4, &["dense", "vertical_slash:64:130", "block_sparse:2", "a_shape:8:70"]);
    let (want, want_lse, want_pairs) = case.attend(&cpu, &patterns, DType::F32);
    for b in devices(options) {
        let tolerance = if b.activation() == DType::F16 { 1e-3 } else { 1e-5 };
        let (got, lse, pairs) = case.attend(&b, &patterns, b.activation());
        assert_eq!(pairs, want_pairs);
        assert!(relative_l2(&got, &want) < tolerance);
        assert!(relative_l2(&lse, &want_lse) < 1e-4);
    }
}

/// Every kernel that is not on matrices.
#[test]
fn smaller_tiles_match_the_cpu() {
    let cpu = Cpu::new();
    let case = Case::new(4, 2, 64, 300, 421, 12);
    let patterns = patterns(4, &["a_shape:0:100", "dense", "a_shape:70:60", "a_shape:16:100"]);
    let (want, want_lse, _) = case.attend(&cpu, &patterns, DType::F32);
    for b in devices(Options::default()) {
        let tolerance = if b.activation() == DType::F16 { 1e-3 } else { 1e-5 };
        let kernels = b.attention_kernels(64);
        assert!(kernels.contains(&AttentionKernel::SmallTiles), "{}: {kernels:?}", b.info().tier);
        b.use_attention_kernel(Some(AttentionKernel::SmallTiles));
        let (got, lse, _) = case.attend(&b, &patterns, DType::F32);
        let (error, lse_error) = (relative_l2(&got, &want), relative_l2(&lse, &want_lse));
        assert!(error < tolerance && lse_error < 1e-4, "{}: {error} {lse_error}", b.info().tier);
    }
}

/// One KV head longer than a binding: attention in windows of keys, decoding and scoring in several dispatches.
#[test]
fn a_kv_head_above_the_binding_limit_gives_the_same_results() {
    let cpu = Cpu::new();
    // 5000 keys of 64 elements: 640 KB in f16, 1280 KB in f32.
    let limit = Options { max_binding_bytes: Some(300 << 10), ..Options::default() };
    // Nothing is estimated: near ties may fall either way.
    let patterns = patterns(4, &["dense", "a_shape:80:70"]);
    let columns: Vec<Vec<u32>> = (0..4).map(|h| (0..64).map(|i| i * 71 + h).collect()).collect();
    let offsets: Vec<Vec<u32>> = (0..4).map(|h| (0..130).chain((0..40).map(|i| 200 + i * 97 + h)).collect()).collect();
    fn given<B: Backend>(b: &B, case: &Case, sets: [&[Vec<u32>]; 2], out: DType) -> (Vec<f32>, Vec<f32>) {
        let s = &case.shape;
        let [q, k, v] = case.on(b);
        let index = from_sets(b, sets[0], sets[1], s).unwrap();
        let mut out = Tensor::alloc(b, out, [s.q_len, s.n_heads * s.head_dim]).unwrap();
        let mut lse = Tensor::alloc(b, DType::F32, [s.n_heads, s.q_len]).unwrap();
        ops::attention(b, s, q.view(), k.view(), v.view(), &index, out.view_mut(), Some(lse.view_mut())).unwrap();
        (out.to_f32(b).unwrap(), lse.to_f32(b).unwrap())
    }
    for (q_len, q_start) in [(200, 4800), (130, 4870)] {
        let case = Case::new(4, 2, 64, q_len, q_start, 13).steep();
        let (want, want_lse, _) = case.attend(&cpu, &patterns, DType::F32);
        let (want_given, want_given_lse) = given(&cpu, &case, [&columns, &offsets], DType::F32);
        let (want_columns, want_offsets) = last_query_scores(&cpu, &case);
        for b in devices(limit) {
            let tolerance = if b.activation() == DType::F16 { 1e-3 } else { 1e-5 };
            for out in [DType::F32, b.activation()] {
                for kernel in b.attention_kernels(64) {
                    b.use_attention_kernel(Some(kernel));
                    let (got, lse, _) = case.attend(&b, &patterns, out);
                    let (got_given, lse_given) = given(&b, &case, [&columns, &offsets], out);
                    let what = format!("{} {kernel} {out}, from {q_start}", b.info().tier);
                    for (got, want) in [(got, &want), (got_given, &want_given)] {
                        let error = relative_l2(&got, want);
                        println!("{what}: {error:.1e}");
                        assert!(error < tolerance, "{what}: relative L2 {error}");
                    }
                    for (lse, want) in [(lse, &want_lse), (lse_given, &want_given_lse)] {
                        let error = relative_l2(&lse, want);
                        assert!(error < 1e-4, "{what}: log-sum-exp {error}");
                    }
                }
            }
            let (columns, offsets) = last_query_scores(&b, &case);
            for (what, got, want) in [("columns", columns, &want_columns), ("offsets", offsets, &want_offsets)] {
                let error = relative_l2(&got, want);
                assert!(error < 1e-4, "{} {what}: {error}", b.info().tier);
            }
        }
    }
}

#[test]
fn block_len_is_what_kernels_assume() {
    assert_eq!(BLOCK, 64);
}
