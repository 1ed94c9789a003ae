//! Scores of the last queries, top-k, and scores of blocks.

use crate::attention::{Call, LENGTHS, Layout};
use crate::common::naive::{self, BLOCK};
use crate::common::{Rng, assert_close, for_each_backend, roundoff};
use crate::{all_nan, f32s, poison, u32s};
use minference::DType;
use minference::backend::Backend;
use minference::backend::params::HeadPlan;
use minference::ops::{self, BlockBand};
use minference::tensor::Tensor;

/// A plan table: vertical-slash for `true`, dense for `false`.
fn plan_of<B: Backend>(b: &B, kinds: &[HeadPlan]) -> Tensor<B> {
    u32s(b, [kinds.len(), 4], bytemuck::cast_slice(kinds))
}

for_each_backend!(score_last_queries, |b| {
    for (case, lengths) in LENGTHS.iter().chain(&[(300, 5000, 4700, 3, 1, 64)]).enumerate() {
        let &(_, kv_len, q_start, heads, _, d) = lengths;
        let call = Call::new(b, *lengths, [Layout::HeadMajor, Layout::Engine][case % 2], case as u64 + 500);
        let kind = |h: usize| if h % 3 == 1 { HeadPlan::DENSE } else { HeadPlan::VERTICAL_SLASH };
        let plan: Vec<_> = (0..heads).map(|h| HeadPlan { kind: kind(h), a: 30, b: 100, c: 0 }).collect();
        let mut scores = [(); 2].map(|()| poison(b, DType::F32, [heads, kv_len]));
        let [columns, offsets] = &mut scores;
        let (q, k) = (call.q.view(), call.k.view());
        let plan_table = plan_of(b, &plan);
        ops::score_last_queries(b, &call.shape, plan_table.view(), q, k, columns.view_mut(), offsets.view_mut())
            .unwrap();
        let [columns, offsets] = scores.map(|t| t.to_f32(b).unwrap());
        for (h, plan) in plan.iter().enumerate() {
            let (q, k, _) = call.head(h);
            let part = h * kv_len..(h + 1) * kv_len;
            if plan.kind == HeadPlan::DENSE {
                assert!(all_nan(&columns[part.clone()]) && all_nan(&offsets[part]), "head {h} has no scores");
                continue;
            }
            let want = naive::vertical_slash_scores(q, k, d, f64::from(call.shape.scale), q_start);
            for (what, got, want) in [("column", &columns[part.clone()], want.0), ("offset", &offsets[part], want.1)] {
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= 1e-4 * want + 1e-9, "{lengths:?} head {h} {what} {i}: expected {want}, got {got}");
                }
            }
        }
    }
});

for_each_backend!(select_top_k, |b| {
    let mut rng = Rng(8);
    for (len, capacity) in [(1, 1), (33, 40), (65, 65), (1000, 300), (70_000, 2000)] {
        let smooth = rng.normals(len);
        // Many ties; both zeros; infinities and NaN among them.
        let ties: Vec<f32> = (0..len).map(|_| [0.0, -0.0, 1.0, -1.0][rng.below(4)]).collect();
        let wild: Vec<f32> = (0..len)
            .map(|_| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -2.5, f32::MAX][rng.below(6)])
            .collect();
        let close: Vec<f32> = (0..len).map(|_| 1.0 + rng.below(50) as f32 * f32::EPSILON).collect();
        let rows = [smooth, ties, wild, close, vec![f32::NAN; len], vec![7.0; len]];
        let most = len.min(capacity);
        for (forced, count) in
            [(0, most), (0, 1), (0, most.div_ceil(2)), (30, most), (30, most.min(35)), (100, most.min(50))]
        {
            let mut counts = vec![count as u32; rows.len()];
            counts[5] = 0;
            let mut indices = u32s(b, [rows.len(), capacity], &vec![7; rows.len() * capacity]);
            let (scores, counts) = (f32s(b, [rows.len(), len], &rows.concat()), u32s(b, [rows.len()], &counts));
            ops::select_top_k(b, scores.view(), counts.view(), forced, indices.view_mut()).unwrap();
            let got = indices.to_u32(b).unwrap();
            for (r, (got, row)) in got.chunks_exact(capacity).zip(&rows).enumerate().take(5) {
                let want = naive::top_k(row, forced, count);
                let what = format!("row {r}: {count} of {len}, {forced} forced");
                assert!(got[..count] == want, "{what}");
                assert!(got[count..].iter().all(|&i| i == u32::MAX), "{what}: padding");
            }
        }
    }
});

for_each_backend!(pool_blocks, |b| {
    for (case, lengths) in LENGTHS.iter().enumerate() {
        let call = Call::new(b, *lengths, [Layout::Engine, Layout::HeadMajor][case % 2], case as u64 + 600);
        let s = &call.shape;
        let queries = (&call.q, s.q_stride, s.n_heads, s.q_len, &call.values.q);
        let keys = (&call.k, s.k_stride, s.n_kv_heads, s.kv_len, &call.values.k);
        for (x, stride, heads, len, values) in [queries, keys] {
            for padded in [true, false] {
                let mut out = poison(b, DType::F32, [heads, len.div_ceil(BLOCK), s.head_dim]);
                ops::pool_blocks(b, x.view(), len, stride, padded, out.view_mut()).unwrap();
                let heads = values.chunks_exact(len * s.head_dim);
                let want: Vec<f64> = heads.flat_map(|head| naive::pool(head, s.head_dim, padded)).collect();
                let what = format!("{lengths:?} padded {padded}");
                assert_close(&what, roundoff(DType::F32), &out.to_f32(b).unwrap(), &want);
            }
        }
    }
});

for_each_backend!(score_and_select_blocks, |b| {
    let mut rng = Rng(9);
    // (q_len, kv_len, q_start, heads, kv heads, dim, top_k)
    for (q_len, kv_len, q_start, heads, kv, d, top_k) in [
        (1usize, 1usize, 0, 2, 2, 64, 1),
        (200, 200, 0, 3, 1, 32, 2),
        (700, 2900, 2200, 4, 2, 96, 9),
        (300, 429, 129, 2, 1, 128, 1),
        (70, 300, 100, 2, 1, 256, 3),
        (64, 4096, 4032, 2, 2, 64, 100),
    ] {
        let (rows, blocks, group) = (q_len.div_ceil(BLOCK), kv_len.div_ceil(BLOCK), heads / kv);
        let words = blocks.div_ceil(32);
        let (pooled_q, pooled_k) = (rng.normals(heads * rows * d), rng.normals(kv * blocks * d));
        let kind = |h: usize| if h == 1 { HeadPlan::DENSE } else { HeadPlan::BLOCK_SPARSE };
        let plan: Vec<_> = (0..heads).map(|h| HeadPlan { kind: kind(h), a: top_k, b: 0, c: 0 }).collect();
        let plan_table = plan_of(b, &plan);
        let (q, k) = (f32s(b, [heads, rows, d], &pooled_q), f32s(b, [kv, blocks, d], &pooled_k));
        let mut mask = u32s(b, [heads, rows, words], &vec![0xaaaa_aaaa; heads * rows * words]);
        let seen = |r: usize| (q_start + q_len.min((r + 1) * BLOCK) - 1) / BLOCK + 1;
        let mut all = vec![vec![]; heads * rows];
        // Two bands, the second short.
        let band_len = rows.div_ceil(2) + usize::from(rows > 2);
        for start in (0..rows).step_by(band_len) {
            let len = band_len.min(rows - start);
            let band = BlockBand { q_len, start, q_start };
            let mut scores = poison(b, DType::F32, [heads, len, blocks]);
            ops::score_blocks(b, band, plan_table.view(), q.view(), k.view(), scores.view_mut()).unwrap();
            ops::select_blocks(b, band, plan_table.view(), scores.view(), mask.view_mut()).unwrap();
            let got = scores.to_f32(b).unwrap();
            for (i, got) in got.chunks_exact(blocks).enumerate() {
                let (h, r) = (i / len, start + i % len);
                if plan[h].kind == HeadPlan::DENSE {
                    assert!(all_nan(got), "head {h} has no block scores");
                    continue;
                }
                let q = &pooled_q[(h * rows + r) * d..][..d];
                let dot = |c: usize| {
                    let k = &pooled_k[(h / group * blocks + c) * d..][..d];
                    q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
                };
                let want: Vec<f64> =
                    (0..blocks).map(|c| if c < seen(r) { dot(c) } else { f64::NEG_INFINITY }).collect();
                assert_close(&format!("head {h} row block {r}"), roundoff(DType::F32), got, &want);
                all[h * rows + r] = got.to_vec();
            }
        }
        for (i, (got, scores)) in mask.to_u32(b).unwrap().chunks_exact(words).zip(&all).enumerate() {
            let (h, r) = (i / rows, i % rows);
            if plan[h].kind == HeadPlan::DENSE {
                continue;
            }
            let mut scores = scores[..seen(r)].to_vec();
            if q_start % BLOCK != 0 {
                scores[(q_start + r * BLOCK) / BLOCK] = f32::INFINITY;
            }
            let want = naive::top_k(&scores, 0, (top_k as usize).min(seen(r)));
            let got: Vec<u32> = (0..32 * words as u32).filter(|c| got[*c as usize / 32] >> (c % 32) & 1 == 1).collect();
            assert_eq!(got, want, "{q_len} of {kv_len} from {q_start}: head {h} row block {r}");
        }
    }
});
