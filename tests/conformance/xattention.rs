//! XAttention's scores and choices, scores that heads share, and skip-softmax.

use crate::attention::{Call, LENGTHS, Layout, Lengths};
use crate::common::naive::{self, BLOCK};
use crate::common::{Rng, assert_close, for_each_backend, roundoff};
use crate::{all_nan, f32s, poison, stored, u32s};
use minference::DType;
use minference::backend::Backend;
use minference::backend::params::HeadPlan;
use minference::estimate::{AttentionOptions, choose_with, estimate};
use minference::ops::{self, BlockBand, MatmulInto};
use minference::pattern::{Extras, HeadPattern};
use minference::tensor::Tensor;

/// Attention of each row block by key block, by antidiagonals: `[row blocks][key blocks]` of one head, summed over the row
/// block's groups of queries.
fn antidiagonal_mass(q: &[f32], k: &[f32], d: usize, scale: f64, q_start: usize, stride: usize) -> Vec<Vec<f64>> {
    let (q_len, kv_len) = (q.len() / d, k.len() / d);
    let dot = |i: usize, j: usize| -> f64 {
        if i >= q_len || j >= kv_len {
            return 0.0;
        }
        q[i * d..][..d].iter().zip(&k[j * d..][..d]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let mut mass = vec![vec![0.0; kv_len.div_ceil(BLOCK)]; q_len.div_ceil(BLOCK)];
    for u in 0..q_len.div_ceil(stride) {
        let last = q_start + ((u + 1) * stride).min(q_len) - 1;
        let sum = |w: usize| (0..stride).map(|i| dot((u + 1) * stride - 1 - i, w * stride + i)).sum::<f64>();
        let sums: Vec<f64> = (0..=last / stride).map(sum).collect();
        for (w, weight) in naive::softmax(&sums, scale / stride as f64).into_iter().enumerate() {
            mass[u * stride / BLOCK][w * stride / BLOCK] += weight;
        }
    }
    mass
}

const CASES: [(Lengths, usize); 5] = [
    ((200, 200, 0, 2, 1, 64), 8),
    ((130, 450, 320, 4, 2, 32), 16),
    ((100, 229, 129, 2, 2, 64), 4),
    ((70, 300, 100, 2, 1, 128), 64),
    ((1, 180, 90, 2, 1, 64), 8),
];

for_each_backend!(antidiagonal_scores, |b| {
    for (case, (lengths, stride)) in CASES.iter().enumerate() {
        let call = Call::new(b, *lengths, [Layout::Engine, Layout::HeadMajor][case % 2], case as u64 + 700);
        let (s, stride) = (&call.shape, *stride);
        let [q_groups, k_groups] = [s.q_len, s.kv_len].map(|len| len.div_ceil(stride));
        let (rows, blocks, width) = (s.q_len.div_ceil(BLOCK), s.kv_len.div_ceil(BLOCK), stride * s.head_dim);
        let mut q = poison(b, b.activation(), [s.n_heads, q_groups, width]);
        let mut k = poison(b, b.activation(), [s.n_kv_heads, k_groups, width]);
        ops::fold_rows(b, call.q.view(), s.q_len, s.q_stride, stride, true, q.view_mut()).unwrap();
        ops::fold_rows(b, call.k.view(), s.kv_len, s.k_stride, stride, false, k.view_mut()).unwrap();
        for (folded, values, len, reverse) in
            [(&q, &call.values.q, s.q_len, true), (&k, &call.values.k, s.kv_len, false)]
        {
            let got = folded.to_f32(b).unwrap();
            let heads = values.len() / (len * s.head_dim);
            let places = (0..heads).flat_map(|h| (0..len.div_ceil(stride) * stride).map(move |row| (h, row)));
            for ((h, row), got) in places.zip(got.chunks_exact(s.head_dim)) {
                let row = if reverse { row - row % stride + stride - 1 - row % stride } else { row };
                match row < len {
                    true => assert_eq!(got, &values[(h * len + row) * s.head_dim..][..s.head_dim], "{lengths:?}"),
                    false => assert!(got.iter().all(|x| *x == 0.0), "{lengths:?}: rows that are not there"),
                }
            }
        }
        let plan: Vec<_> = (0..s.n_heads)
            .map(|h| HeadPlan {
                kind: if h == 1 { HeadPlan::DENSE } else { HeadPlan::BLOCK_SPARSE },
                a: 0,
                b: 0,
                c: HeadPlan::ROW_MASS,
            })
            .collect();
        let plan = u32s(b, [s.n_heads, 4], bytemuck::cast_slice(&plan));
        // Two bands, the second short.
        let band_len = rows.div_ceil(2) + usize::from(rows > 2);
        for start in (0..rows).step_by(band_len) {
            let len = band_len.min(rows - start);
            let each = BLOCK / stride;
            let mut products = poison(b, DType::F32, [s.n_heads, len * each, k_groups]);
            let groups = (len * each).min(q_groups - start * each);
            for h in 0..s.n_heads {
                let kv = h / (s.n_heads / s.n_kv_heads);
                let q = q.view().rows(h..h + 1).reshape([q_groups, width]).rows(start * each..start * each + groups);
                let k = k.view().rows(kv..kv + 1).reshape([k_groups, width]);
                let out = products.view_mut().rows(h..h + 1).reshape([len * each, k_groups]).rows(0..groups);
                ops::matmul(b, q, k, None, out, MatmulInto::default()).unwrap();
            }
            let mut scores = poison(b, DType::F32, [s.n_heads, len, blocks]);
            let band = BlockBand { q_len: s.q_len, start, q_start: s.q_start };
            let scale = s.scale / stride as f32;
            let fold = [stride, k_groups];
            ops::weigh_antidiagonals(b, band, fold, scale, plan.view(), products.view(), scores.view_mut()).unwrap();
            let got = scores.to_f32(b).unwrap();
            for h in 0..s.n_heads {
                let (q, k, _) = call.head(h);
                let want = antidiagonal_mass(q, k, s.head_dim, f64::from(s.scale), s.q_start, stride);
                for r in 0..len {
                    let got = &got[(h * len + r) * blocks..][..blocks];
                    if h == 1 {
                        assert!(all_nan(got), "a head that has no antidiagonals");
                        continue;
                    }
                    let last = s.q_start + s.q_len.min((start + r + 1) * BLOCK) - 1;
                    for (c, (got, want)) in got.iter().zip(&want[start + r]).enumerate() {
                        let what = format!("{lengths:?} head {h} row block {} block {c}", start + r);
                        match c * BLOCK <= last {
                            true => assert!(
                                (f64::from(got.exp()) - want).abs() < 2e-4 * each as f64,
                                "{what}: {} for {want}",
                                got.exp()
                            ),
                            false => assert_eq!(*got, f32::NEG_INFINITY, "{what}"),
                        }
                    }
                }
            }
        }
    }
});

for_each_backend!(xattention_heads, |b| {
    let (mut taken_blocks, mut left_blocks) = (0, 0);
    for (case, (lengths, stride)) in
        [((1100, 1100, 0, 2, 1, 64), 8), ((500, 1629, 1129, 4, 2, 32), 16)].into_iter().enumerate()
    {
        let call = Call::new(b, lengths, [Layout::HeadMajor, Layout::Engine][case], case as u64 + 950);
        let s = &call.shape;
        let threshold = [0.8f32, 0.6][case];
        let mut patterns = vec![HeadPattern::XAttention { stride, threshold }; s.n_heads];
        // Other strides and other rules beside.
        patterns[1] =
            [HeadPattern::XAttention { stride: 32, threshold }, HeadPattern::Threshold { alpha: 0.1, n_last: 90 }]
                [case];
        let index = estimate(b, &patterns, s, call.q.view(), call.k.view()).unwrap().to_host(b).unwrap();
        index.validate().unwrap();
        for (h, pattern) in patterns.iter().enumerate() {
            let HeadPattern::XAttention { stride, .. } = *pattern else { continue };
            let (q, k, _) = call.head(h);
            let mass = antidiagonal_mass(q, k, s.head_dim, f64::from(s.scale), s.q_start, stride);
            for (r, mass) in mass.iter().enumerate() {
                let last = s.q_start + s.q_len.min((r + 1) * BLOCK) - 1;
                let total: f64 = mass.iter().sum();
                let weights: Vec<f64> = mass[..=last / BLOCK].iter().map(|x| x / total).collect();
                let least = |part: f64| naive::least_of_mass(&weights, |_| false, part);
                let (must, may) =
                    (least(f64::from(threshold) - 4e-3) * 1.01, least(f64::from(threshold) + 4e-3) / 1.05);
                let keys = index.row(h, r).keys(last);
                let own = (s.q_start + r * BLOCK) / BLOCK;
                for (c, &weight) in weights.iter().enumerate() {
                    let taken = keys.iter().any(|range| range.contains(&(c * BLOCK)));
                    let always = c == 0 || c >= own;
                    let what = format!("case {case} head {h} row block {r}: block {c} of {weight}");
                    assert!(taken || (weight < must && !always), "{what} is out, {must} must be in");
                    assert!(!taken || always || weight >= may, "{what} is in, at least {may} may be");
                    if taken { taken_blocks += 1 } else { left_blocks += 1 }
                }
            }
        }
    }
    assert!(taken_blocks > 50 && left_blocks > 50, "{taken_blocks} taken, {left_blocks} left");
});

for_each_backend!(share_scores, |b| {
    let mut rng = Rng(61);
    for (rows, share, len) in [(6usize, 3usize, 700usize), (4, 1, 65), (7, 7, 1)] {
        let values = rng.normals(rows * len);
        let kind = |h: usize| if h == 1 { HeadPlan::DENSE } else { HeadPlan::VERTICAL_SLASH };
        let plan: Vec<_> = (0..rows).map(|h| HeadPlan { kind: kind(h), a: 0, b: 0, c: 0 }).collect();
        let plan = u32s(b, [rows, 4], bytemuck::cast_slice(&plan));
        let mut scores = f32s(b, [rows, len], &values);
        ops::share_scores(b, share, plan.view(), scores.view_mut()).unwrap();
        let got = scores.to_f32(b).unwrap();
        for h in 0..rows {
            let got = &got[h * len..][..len];
            if h == 1 {
                assert_eq!(got, &values[len..2 * len], "a row that does not share");
                continue;
            }
            let first = h / share * share;
            let members: Vec<usize> = (first..first + share).filter(|&m| m != 1).collect();
            let mean =
                |i: usize| members.iter().map(|m| f64::from(values[m * len + i])).sum::<f64>() / members.len() as f64;
            let want: Vec<f64> = (0..len).map(mean).collect();
            assert_close(&format!("{rows} rows by {share}: row {h}"), roundoff(DType::F32), got, &want);
        }
    }
});

for_each_backend!(heads_that_share_choose_alike, |b| {
    let call = Call::new(b, (700, 1900, 1200, 6, 2, 64), Layout::Engine, 990);
    let patterns: Vec<HeadPattern> =
        ["vertical_slash:100:300", "vertical_slash:40:300", "flex:0.9", "flex:0.8:0", "flex:0.8:0", "flex:0.8:0"]
            .map(|text| text.parse().unwrap())
            .to_vec();
    let chosen = |share_groups: bool| {
        let options = AttentionOptions { extras: Extras { share_groups, ..Extras::NONE }, ..AttentionOptions::EXACT };
        let chosen = choose_with(b, &patterns, &call.shape, call.q.view(), call.k.view(), options).unwrap();
        (chosen.columns(b).unwrap(), chosen.offsets(b).unwrap())
    };
    let ((alone, _), (columns, offsets)) = (chosen(false), chosen(true));
    // The smaller budget's choice is within the larger one's, of the same order.
    assert!(columns[1].iter().all(|c| columns[0].binary_search(c).is_ok()), "a smaller budget of the same scores");
    assert_eq!(offsets[0], offsets[1]);
    assert!(!columns[3].is_empty() && columns[3] == columns[4] && columns[4] == columns[5] && offsets[3] == offsets[5]);
    assert_ne!(columns[0], columns[3], "heads of another KV head");
    assert!(alone[3] != alone[4] || alone[4] != alone[5], "without sharing each head chooses for itself");
    // By the f64 statement: the sum of both heads' scores.
    let scores = |h: usize| {
        let (q, k, _) = call.head(h);
        let s = &call.shape;
        naive::vertical_slash_scores(q, k, s.head_dim, f64::from(s.scale), s.q_start).0
    };
    let group: Vec<Vec<f64>> = (0..3).map(scores).collect();
    let sum: Vec<f32> = (0..1900).map(|i| group.iter().map(|g| g[i]).sum::<f64>() as f32).collect();
    let want = naive::top_k(&sum, 30, 100);
    let differ = want.iter().filter(|c| columns[0].binary_search(c).is_err()).count();
    assert!(differ <= 2, "{differ} of 100 columns are not the group's");
});

/// Scores of three kinds of keys: 128 loud ones, 128 that no one hears, and quiet ones whose values are large.
fn loud_and_quiet<B: Backend>(b: &B, q_len: usize, kv_len: usize, d: usize) -> Call<B> {
    let mut call = Call::new(b, (q_len, kv_len, kv_len - q_len, 4, 2, d), Layout::HeadMajor, 1000);
    let level = |j: usize| {
        if j < 128 {
            0.0
        } else if j < 256 {
            -60.0
        } else {
            -6.0
        }
    };
    let act = b.activation();
    let row = |first: f32| (0..d).map(move |i| if i == 0 { first } else { 0.0 });
    let q: Vec<f32> = (0..4 * q_len).flat_map(|_| row(8.0)).collect();
    let k: Vec<f32> = (0..2 * kv_len).flat_map(|j| row(level(j % kv_len))).collect();
    let v: Vec<f32> =
        (0..2 * kv_len * d).map(|i| if i / d % kv_len < 256 { call.values.v[i] } else { 100.0 }).collect();
    call.shape.scale = 0.125;
    (call.q, call.values.q) = stored(b, act, [q.len()], &q);
    (call.k, call.values.k) = stored(b, act, [k.len()], &k);
    (call.v, call.values.v) = stored(b, act, [v.len()], &v);
    call
}

for_each_backend!(skip_softmax, |b| {
    for (q_len, kv_len, d, pattern) in
        [(640, 640, 64, "dense"), (256, 768, 128, "dense"), (384, 640, 96, "a_shape:256:200"), (640, 640, 32, "dense")]
    {
        let call = loud_and_quiet(b, q_len, kv_len, d);
        let (s, heads) = (&call.shape, call.shape.n_heads);
        let pattern: HeadPattern = pattern.parse().unwrap();
        let index = estimate(b, &vec![pattern; heads], s, call.q.view(), call.k.view()).unwrap();
        let sees = |i: usize, j: usize| match pattern {
            HeadPattern::AShape { n_init, n_local } => j < n_init || s.q_start + i - j < n_local,
            _ => true,
        };
        let run = |skip: f32| {
            let mut out = poison(b, b.activation(), [heads, q_len, d]);
            let mut lse = poison(b, DType::F32, [heads, q_len]);
            let (qkv, into) = ([call.q.view(), call.k.view(), call.v.view()], out.view_mut());
            ops::attention_skipping(b, s, qkv, &index, into, Some(lse.view_mut()), skip).unwrap();
            (out.to_f32(b).unwrap(), lse.to_f32(b).unwrap())
        };
        // Quiet keys are e^-6 of the loud ones: skipped below e^-4, heard below e^-8.
        for (below, heard) in [(-4f32, 256), (-8.0, kv_len)] {
            let (out, lse) = run(below.exp() * kv_len as f32);
            for h in 0..heads {
                let (q, k, v) = call.head(h);
                let visible = |i: usize, j: usize| j <= s.q_start + i && sees(i, j) && j < heard;
                let (want, want_lse) = naive::attend(q, k, v, d, f64::from(s.scale), visible);
                let what = format!("{q_len} of {kv_len}, {pattern}, below {below}: head {h}");
                assert_close(&what, roundoff(b.activation()), &out[h * q_len * d..][..q_len * d], &want);
                assert_close(&format!("{what}: lse"), roundoff(DType::F32), &lse[h * q_len..][..q_len], &want_lse);
            }
        }
        let (skipping, off) = (run((-4f32).exp() * kv_len as f32).0, run(0.0).0);
        let most = skipping.iter().zip(&off).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(most > 0.2, "the quiet keys make no difference: {most}");
    }
    // On ordinary scores nothing lies so far below as a factor of nearly nothing says.
    let call = Call::new(b, LENGTHS[5], Layout::Engine, 1001);
    let (s, heads) = (&call.shape, call.shape.n_heads);
    let index = estimate(b, &vec![HeadPattern::Dense; heads], s, call.q.view(), call.k.view()).unwrap();
    let run = |skip: f32| {
        let mut out: Tensor<_> = poison(b, DType::F32, [s.q_len, heads * s.head_dim]);
        let qkv = [call.q.view(), call.k.view(), call.v.view()];
        ops::attention_skipping(b, s, qkv, &index, out.view_mut(), None, skip).unwrap();
        out.to_f32(b).unwrap()
    };
    assert_eq!(run(1e-30), run(0.0));
});
