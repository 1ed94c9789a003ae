//! Long inputs: chosen sets against f64 scores, the index against the plain rule, sampled output rows against f64.
//!
//! 16,384 tokens as a rule. `MINFERENCE_LONG=131072,1048576` takes these lengths instead, with the official budgets: for a
//! machine with a GPU and 64 GB of memory.

mod common;

use common::naive::{self, BLOCK};
use common::{Heads, Rng, assert_close, for_each_backend, rounded, roundoff};
use minference::DType;
use minference::backend::Backend;
use minference::estimate::{FORCED_COLUMNS, FORCED_OFFSETS, choose, effective_counts};
use minference::index::HostIndex;
use minference::ops::{self, AttentionShape};
use minference::pattern::HeadPattern;
use minference::tensor::Tensor;
use std::collections::BTreeSet;

const HEADS: usize = 3;
const D: usize = 64;
/// Query rows (and row blocks) that are judged, of each head.
const SAMPLES: usize = 64;

/// Lengths, and the patterns of the three heads: vertical-slash, block-sparse, A-shape.
fn cases() -> Vec<(usize, [HeadPattern; HEADS])> {
    let parse = |texts: [&str; HEADS]| texts.map(|text| text.parse().unwrap());
    match std::env::var("MINFERENCE_LONG") {
        Ok(lengths) => {
            let official = parse(["vertical_slash:1000:6096", "block_sparse:100", "a_shape:1024:4096"]);
            lengths.split(',').map(|n| (n.trim().parse().unwrap(), official)).collect()
        }
        Err(_) => vec![(16384, parse(["vertical_slash:100:400", "block_sparse:16", "a_shape:128:1024"]))],
    }
}

for_each_backend!(long_inputs, |b| {
    // The scores of blocks, f32 [H, row blocks, key blocks], lie in one binding: 3 MiB here at least, for the least real limit
    // is 128 MiB, and the suite's small one (640 KiB) is made for its short shapes.
    if b.info().max_binding_bytes < 3 << 20 {
        return;
    }
    for (n, patterns) in cases() {
        // One KV head for three query heads; rounded, so that every backend computes on what f64 is given.
        let mut heads = common::heads(HEADS, 1, n, D, 17);
        for values in [&mut heads.q, &mut heads.k, &mut heads.v] {
            *values = rounded(b.activation(), values);
        }
        // The whole prompt, a chunk at its end, and one in the middle that is aligned to nothing.
        for (q_start, q_len) in [(0, n), (n - 4096, 4096), (n / 2 - 31, 2000)] {
            check(b, &heads, &patterns, q_start, q_len);
        }
    }
});

/// Queries `[q_start, q_start + q_len)` over all keys up to the last of them.
fn check<B: Backend>(b: &B, heads: &Heads, patterns: &[HeadPattern; HEADS], q_start: usize, q_len: usize) {
    let (n, kv_len) = (heads.len, q_start + q_len);
    let q: Vec<f32> = heads.q.chunks(n * D).flat_map(|head| &head[q_start * D..kv_len * D]).copied().collect();
    let (k, v) = (&heads.k[..kv_len * D], &heads.v[..kv_len * D]);
    let shape = AttentionShape {
        n_heads: HEADS,
        n_kv_heads: 1,
        head_dim: D,
        q_len,
        kv_len,
        q_start,
        scale: 0.125,
        q_stride: [D, q_len * D],
        k_stride: [D, kv_len * D],
        v_stride: [D, kv_len * D],
        out_stride: [D, q_len * D],
    };
    let upload =
        |heads: usize, values: &[f32]| Tensor::activation(b, [heads, values.len() / heads / D, D], values).unwrap();
    let (q_device, k_device, v_device) = (upload(HEADS, &q), upload(1, k), upload(1, v));

    let chosen = choose(b, patterns, &shape, q_device.view(), k_device.view()).unwrap();
    let (columns, offsets) = (chosen.columns(b).unwrap(), chosen.offsets(b).unwrap());
    check_sets(patterns[0], &q[..q_len * D], k, &shape, &columns[0], &offsets[0]);

    let index = chosen.build(b).unwrap();
    let host = index.to_host(b).unwrap();
    host.validate().unwrap();
    assert_eq!(host.density(), index.density(b).unwrap());
    let mut rng = Rng(q_start as u64);
    check_slash_rows(&host, &columns[0], &offsets[0], &mut rng);
    check_block_rows(patterns[1], &host, &q[q_len * D..2 * q_len * D], k, &mut rng);
    check_window_rows(patterns[2], &host, &mut rng);

    let mut out = Tensor::alloc(b, DType::F32, [HEADS, q_len, D]).unwrap();
    let mut lse = Tensor::alloc(b, DType::F32, [HEADS, q_len]).unwrap();
    let inputs = (q_device.view(), k_device.view(), v_device.view());
    ops::attention(b, &shape, inputs.0, inputs.1, inputs.2, &index, out.view_mut(), Some(lse.view_mut())).unwrap();
    let (out, lse) = (out.to_f32(b).unwrap(), lse.to_f32(b).unwrap());
    for (head, pattern) in patterns.iter().enumerate() {
        let (mut got, mut want, mut got_lse, mut want_lse) = (vec![], vec![], vec![], vec![]);
        for i in samples(&mut rng, q_len) {
            let at = head * q_len + i;
            let keys = host.row(head, i / BLOCK).keys(q_start + i);
            let (row, row_lse) = attend_row(&q[at * D..][..D], k, v, keys.into_iter().flatten());
            got.extend_from_slice(&out[at * D..][..D]);
            got_lse.push(lse[at]);
            want.extend(row);
            want_lse.push(row_lse);
        }
        let what = format!("{q_len} of {kv_len}, head {head}: {pattern}");
        assert_close(&what, roundoff(b.activation()), &got, &want);
        assert_close(&format!("{what}: log-sum-exp"), roundoff(b.activation()), &got_lse, &want_lse);
    }
    println!("{q_len} queries of {kv_len}: density {:.4}", host.density());
}

/// Numbers below `n`, the first and the last among them.
fn samples(rng: &mut Rng, n: usize) -> BTreeSet<usize> {
    (0..SAMPLES - 2).map(|_| rng.below(n)).chain([0, n - 1]).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// One row of attention in f64: output and log-sum-exp.
fn attend_row(q: &[f32], k: &[f32], v: &[f32], keys: impl Iterator<Item = usize>) -> (Vec<f64>, f64) {
    let scores: Vec<(usize, f64)> = keys.map(|j| (j, 0.125 * dot(q, &k[j * D..][..D]))).collect();
    let max = scores.iter().fold(f64::NEG_INFINITY, |max, s| max.max(s.1));
    let total: f64 = scores.iter().map(|s| (s.1 - max).exp()).sum();
    let mut out = vec![0.; D];
    for (j, score) in scores {
        let weight = (score - max).exp() / total;
        out.iter_mut().zip(&v[j * D..]).for_each(|(x, v)| *x += weight * f64::from(*v));
    }
    (out, max + total.ln())
}

/// That a chosen set is the best by f64 scores, up to members within `slack` of the last one taken.
fn assert_best(what: &str, got: &[u32], scores: &[f64], forced: usize, count: usize, slack: impl Fn(f64) -> f64) {
    let got: BTreeSet<usize> = got.iter().map(|&i| i as usize).collect();
    assert_eq!(got.len(), count, "{what}: count");
    let rank = |i: &usize| if *i < forced { f64::INFINITY } else { scores[*i] };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| rank(b).total_cmp(&rank(a)).then(a.cmp(b)));
    let best: BTreeSet<usize> = order[..count].iter().copied().collect();
    let cut = rank(&order[count - 1]);
    for i in got.symmetric_difference(&best) {
        let distance = (rank(i) - cut).abs();
        assert!(distance <= slack(cut), "{what}: {i} scores {:e}, the cut is {cut:e}", rank(i));
    }
}

fn check_sets(pattern: HeadPattern, q: &[f32], k: &[f32], shape: &AttentionShape, columns: &[u32], offsets: &[u32]) {
    let HeadPattern::VerticalSlash { columns: a, offsets: s } = pattern else { panic!("{pattern}") };
    let (a, s) = effective_counts(shape.kv_len, a, s);
    let (column_score, offset_score) = naive::vertical_slash_scores(q, k, D, 0.125, shape.q_start);
    let what = format!("{} of {}", shape.q_len, shape.kv_len);
    assert_best(&format!("{what}: columns"), columns, &column_score, FORCED_COLUMNS, a, |cut| 1e-4 * cut);
    assert_best(&format!("{what}: offsets"), offsets, &offset_score, FORCED_OFFSETS, s, |cut| 1e-4 * cut);
}

/// Row blocks of head 0 against the plain conversion of its sets.
fn check_slash_rows(host: &HostIndex, columns: &[u32], offsets: &[u32], rng: &mut Rng) {
    for block in samples(rng, host.row_blocks()) {
        let row = host.row(0, block);
        let blocks = row.ranges.iter().flat_map(|r| (r[0] as usize..r[1] as usize).step_by(BLOCK));
        let got = (blocks.collect::<Vec<_>>(), row.columns.iter().map(|&c| c as usize).collect::<Vec<_>>());
        let end = host.q_start + (block + 1) * BLOCK;
        assert!(got == naive::convert(columns, offsets, end, host.kv_len), "row block {block} of {}", host.kv_len);
    }
}

/// Row blocks of head 1: the best key blocks by f64 means, with the block of the first query always in where queries are
/// not aligned to blocks.
fn check_block_rows(pattern: HeadPattern, host: &HostIndex, q: &[f32], k: &[f32], rng: &mut Rng) {
    let HeadPattern::BlockSparse { top_k } = pattern else { panic!("{pattern}") };
    let (pooled_q, pooled_k) = (naive::pool(q, D, true), naive::pool(k, D, true));
    for block in samples(rng, host.row_blocks()) {
        let row = host.row(1, block);
        let seen = (row.queries.end - 1) / BLOCK + 1;
        let means = &pooled_q[block * D..][..D];
        let score = |c: usize| means.iter().zip(&pooled_k[c * D..][..D]).map(|(a, b)| a * b).sum::<f64>();
        let mut scores: Vec<f64> = (0..seen).map(score).collect();
        let largest = scores.iter().fold(0f64, |most, s| most.max(s.abs()));
        if !host.q_start.is_multiple_of(BLOCK) {
            scores[row.queries.start / BLOCK] = f64::INFINITY;
        }
        let got: Vec<u32> = row.ranges.iter().flat_map(|r| r[0] as u32 / 64..r[1] as u32 / 64).collect();
        let what = format!("blocks of row block {block} of {}", host.kv_len);
        assert_best(&what, &got, &scores, 0, top_k.min(seen), |_| 1e-4 * largest);
    }
}

/// Queries of head 2: the first keys and the last ones, exactly.
fn check_window_rows(pattern: HeadPattern, host: &HostIndex, rng: &mut Rng) {
    let HeadPattern::AShape { n_init, n_local } = pattern else { panic!("{pattern}") };
    for i in samples(rng, host.q_len) {
        let query = host.q_start + i;
        let got: Vec<usize> = host.row(2, i / BLOCK).keys(query).into_iter().flatten().collect();
        let local = (query + 1).saturating_sub(n_local);
        let want: Vec<usize> = (0..n_init.min(local)).chain(local..query + 1).collect();
        assert!(got == want, "query {query}");
    }
}
