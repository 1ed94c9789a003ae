//! Attention over any index, and decoding.

use crate::common::naive::{self, BLOCK, Sets};
use crate::common::{self, Heads, Rng, assert_close, for_each_backend, rounded, roundoff};
use crate::index::{build, mixed_sets};
use crate::{float_types, poison, stored};
use minference::DType;
use minference::backend::Backend;
use minference::index::{IndexLayout, SparseIndex};
use minference::ops::{self, AttentionShape, HeadBand};
use minference::tensor::Tensor;

/// Lengths and heads of a call: (q_len, kv_len, q_start, heads, kv_heads, head_dim).
pub type Lengths = (usize, usize, usize, usize, usize, usize);

pub const LENGTHS: [Lengths; 10] = [
    (1, 1, 0, 2, 2, 64),
    (33, 33, 0, 2, 1, 64),
    (64, 64, 0, 3, 1, 32),
    (65, 65, 0, 7, 1, 128),
    (200, 200, 0, 6, 2, 96),
    // A chunk behind a cached prefix, aligned and not.
    (65, 193, 128, 4, 4, 64),
    (100, 229, 129, 4, 2, 64),
    // Keys behind the last query.
    (70, 300, 100, 2, 1, 256),
    (1, 180, 90, 3, 3, 128),
    (130, 450, 320, 8, 2, 32),
];

/// How q, k, v and out lie.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
    /// `[heads, len, dim]` each, exactly full.
    HeadMajor,
    /// q in rows of a fused projection, K and V in caches with room, out in rows.
    Engine,
}

/// One call's tensors, and the values they hold head-major.
pub struct Call<B: Backend> {
    pub shape: AttentionShape,
    pub q: Tensor<B>,
    pub k: Tensor<B>,
    pub v: Tensor<B>,
    pub values: Heads,
}

impl<B: Backend> Call<B> {
    pub fn new(b: &B, (q_len, kv_len, q_start, heads, kv_heads, d): Lengths, layout: Layout, seed: u64) -> Self {
        let all = common::heads(heads, kv_heads, kv_len, d, seed);
        let act = b.activation();
        let q: Vec<f32> =
            all.q.chunks_exact(kv_len * d).flat_map(|h| &h[q_start * d..][..q_len * d]).copied().collect();
        let (q, k, v) = (rounded(act, &q), rounded(act, &all.k), rounded(act, &all.v));
        let (capacity, q_row) = match layout {
            Layout::HeadMajor => (kv_len, d),
            Layout::Engine => (kv_len.next_multiple_of(64) + 64, (heads + 2 * kv_heads) * d),
        };
        let cache = |values: &[f32]| {
            let mut cache = vec![f32::NAN; kv_heads * capacity * d];
            for (cache, values) in cache.chunks_exact_mut(capacity * d).zip(values.chunks_exact(kv_len * d)) {
                cache[..kv_len * d].copy_from_slice(values);
            }
            stored(b, act, [kv_heads, capacity, d], &cache).0
        };
        let q_head = if q_row == d { q_len * d } else { d };
        let mut rows = vec![f32::NAN; if q_row == d { heads * q_len * d } else { q_len * q_row }];
        for (h, i) in (0..heads).flat_map(|h| (0..q_len).map(move |i| (h, i))) {
            rows[i * q_row + h * q_head..][..d].copy_from_slice(&q[(h * q_len + i) * d..][..d]);
        }
        let shape = AttentionShape {
            n_heads: heads,
            n_kv_heads: kv_heads,
            head_dim: d,
            q_len,
            kv_len,
            q_start,
            scale: 1.0 / (d as f32).sqrt(),
            q_stride: [q_row, q_head],
            k_stride: [d, capacity * d],
            v_stride: [d, capacity * d],
            out_stride: if q_row == d { [d, q_len * d] } else { [heads * d, d] },
        };
        let (k_cache, v_cache) = (cache(&k), cache(&v));
        let q_tensor = stored(b, act, [rows.len()], &rows).0;
        Self { shape, q: q_tensor, k: k_cache, v: v_cache, values: Heads { len: kv_len, q, k, v, ..all } }
    }

    /// Values of query head `h` and of the KV head it reads.
    pub fn head(&self, h: usize) -> (&[f32], &[f32], &[f32]) {
        let (s, x) = (&self.shape, &self.values);
        let kv = h / (s.n_heads / s.n_kv_heads) * s.kv_len * s.head_dim;
        let kv = kv..kv + s.kv_len * s.head_dim;
        (&x.q[h * s.q_len * s.head_dim..][..s.q_len * s.head_dim], &x.k[kv.clone()], &x.v[kv])
    }

    /// Runs attention and compares each head with the judge under these masks.
    fn check(&self, b: &B, index: &SparseIndex<B>, masks: &[Vec<bool>], what: &str) {
        let s = &self.shape;
        for out_type in float_types(b) {
            let mut out = poison(b, out_type, [s.q_len * s.n_heads * s.head_dim]);
            let mut lse = poison(b, DType::F32, [s.n_heads, s.q_len]);
            let (q, k, v) = (self.q.view(), self.k.view(), self.v.view());
            ops::attention(b, s, q, k, v, index, out.view_mut(), Some(lse.view_mut())).unwrap();
            let got = out.to_f32(b).unwrap();
            self.compare(b, &got, Some(&lse.to_f32(b).unwrap()), masks, what);
            let mut again = poison(b, out_type, [s.q_len * s.n_heads * s.head_dim]);
            ops::attention(b, s, q, k, v, index, again.view_mut(), None).unwrap();
            assert!(got == again.to_f32(b).unwrap(), "{what}: not the same without log-sum-exp");
        }
    }

    fn compare(&self, b: &B, out: &[f32], lse: Option<&[f32]>, masks: &[Vec<bool>], what: &str) {
        self.compare_at(roundoff(b.activation()), out, lse, masks, what);
    }

    /// The same for results that were stored at roundoff `u`.
    fn compare_at(&self, u: f64, out: &[f32], lse: Option<&[f32]>, masks: &[Vec<bool>], what: &str) {
        let s = &self.shape;
        for (h, mask) in masks.iter().enumerate() {
            let (q, k, v) = self.head(h);
            let sees = |i: usize, j: usize| mask[i * s.kv_len + j];
            let (want, want_lse) = naive::attend(q, k, v, s.head_dim, f64::from(s.scale), sees);
            let row = |i: usize| &out[i * s.out_stride[0] + h * s.out_stride[1]..][..s.head_dim];
            let got: Vec<f32> = (0..s.q_len).flat_map(row).copied().collect();
            let what = format!("{what} head {h}");
            assert_close(&what, u, &got, &want);
            if let Some(lse) = lse {
                assert_close(&format!("{what} lse"), roundoff(DType::F32), &lse[h * s.q_len..][..s.q_len], &want_lse);
            }
        }
    }
}

for_each_backend!(attention, |b| {
    for (case, lengths) in LENGTHS.iter().enumerate() {
        let &(q_len, kv_len, q_start, ..) = lengths;
        let layout = [Layout::HeadMajor, Layout::Engine][case % 2];
        let call = Call::new(b, *lengths, layout, case as u64);
        let sets = mixed_sets(lengths, &mut Rng(case as u64 + 50));
        let masks: Vec<_> = sets.iter().map(|s| s.mask(q_len, kv_len, q_start)).collect();
        call.check(b, &build(b, &sets, lengths, 2048), &masks, &format!("{lengths:?} {layout:?}"));
    }
});

for_each_backend!(attention_dense, |b| {
    for (case, lengths) in LENGTHS.iter().enumerate() {
        let &(q_len, kv_len, q_start, heads, ..) = lengths;
        let layout = [Layout::Engine, Layout::HeadMajor][case % 2];
        let call = Call::new(b, *lengths, layout, case as u64 + 100);
        let sets = vec![Sets::Dense; heads];
        let masks = vec![Sets::Dense.mask(q_len, kv_len, q_start); heads];
        call.check(b, &build(b, &sets, lengths, 64), &masks, &format!("{lengths:?} {layout:?}"));
    }
});

for_each_backend!(attention_of_any_index, |b| {
    // Written by hand: unaligned ranges of any length, one past the keys, a row block with columns only in effect (its
    // range lies in the future), and one with nothing at all.
    let lengths = (200, 230, 30, 1, 1, 64);
    let call = Call::new(b, lengths, Layout::Engine, 200);
    let layout = IndexLayout { n_heads: 1, q_len: 200, kv_len: 230, q_start: 30, column_tiles: 2, range_budget: 16 };
    let mut index = SparseIndex::alloc(b, layout).unwrap();
    let mut columns = vec![u32::MAX; 128];
    columns[..70].iter_mut().zip(0..).for_each(|(column, i)| *column = 2 * i);
    let ranges = [[0u32, 3], [5, 94], [200, 210], [0, 0], [1, 2], [9, 140], [151, 700]];
    let row_ranges = [[0u32, 2], [2, 1], [3, 0], [4, 3]];
    let keep = [[[0u32, 0], [0, 0]], [[0xffff_ffff, 0x0000_5555], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]];
    let mut all_ranges = vec![0u32; 2 * (16 + 4)];
    all_ranges[..14].copy_from_slice(ranges.as_flattened());
    index.columns.write(b, &columns).unwrap();
    index.ranges.write(b, &all_ranges).unwrap();
    index.row_ranges.write(b, row_ranges.as_flattened()).unwrap();
    index.keep.write(b, keep.as_flattened().as_flattened()).unwrap();
    index.window.write(b, &[u32::MAX; 2]).unwrap();
    let mut mask = vec![false; 200 * 230];
    for (i, row) in mask.chunks_exact_mut(230).enumerate() {
        let r = i / BLOCK;
        for (j, cell) in row.iter_mut().enumerate().take(30 + i + 1) {
            let in_range = |[first, count]: [u32; 2]| {
                ranges[first as usize..(first + count) as usize].iter().any(|r| (r[0]..r[1]).contains(&(j as u32)))
            };
            let bit = j / 2;
            let kept = j % 2 == 0 && bit < 64 && keep[r][bit / 64][bit / 32 % 2] >> (bit % 32) & 1 == 1;
            *cell = in_range(row_ranges[r]) || kept;
        }
    }
    call.check(b, &index, &[mask], "by hand");
});

for_each_backend!(attention_with_large_scores, |b| {
    // Real heads reach 140,000 before scaling; f16 scores would overflow.
    let lengths = (65, 65, 0, 1, 1, 64);
    let mut call = Call::new(b, lengths, Layout::HeadMajor, 300);
    let scaled: Vec<f32> = call.values.q.iter().map(|x| x * 200.0).collect();
    (call.q, call.values.q) = stored(b, b.activation(), [scaled.len()], &scaled);
    let index = build(b, &[Sets::Dense], &lengths, 16);
    let (q, k, v) = (call.q.view(), call.k.view(), call.v.view());
    let mut out = poison(b, DType::F32, [65 * 64]);
    ops::attention(b, &call.shape, q, k, v, &index, out.view_mut(), None).unwrap();
    let (q, k, v) = call.head(0);
    let (want, _) = naive::attend(q, k, v, 64, 0.125, |i, j| j <= i);
    // Scores near 1e4 are exact to 1e-3 in f32, so weights are to 1e-3.
    let error = out.to_f32(b).unwrap().iter().zip(&want).fold(0.0f64, |m, (g, w)| m.max((f64::from(*g) - w).abs()));
    assert!(error < 1e-2, "largest error {error}");
});

for_each_backend!(decode_attention, |b| {
    let cases: [Lengths; 6] = [
        (1, 1, 0, 2, 1, 64),
        (1, 65, 64, 7, 1, 128),
        (1, 3000, 2999, 6, 2, 96),
        (3, 1100, 1097, 4, 4, 32),
        (2, 1500, 1100, 2, 1, 256),
        (5, 40, 20, 3, 1, 64),
    ];
    for (case, lengths) in cases.iter().enumerate() {
        let &(q_len, kv_len, q_start, heads, ..) = lengths;
        for layout in [Layout::HeadMajor, Layout::Engine] {
            let call = Call::new(b, *lengths, layout, case as u64 + 400);
            let s = &call.shape;
            let mut out = poison(b, b.activation(), [q_len * heads * s.head_dim]);
            let mut lse = poison(b, DType::F32, [heads, q_len]);
            let (q, k, v) = (call.q.view(), call.k.view(), call.v.view());
            ops::decode_attention_with_lse(b, s, q, k, v, out.view_mut(), Some(lse.view_mut())).unwrap();
            let masks = vec![Sets::Dense.mask(q_len, kv_len, q_start); heads];
            let got = out.to_f32(b).unwrap();
            let what = format!("{lengths:?} {layout:?}");
            call.compare(b, &got, Some(&lse.to_f32(b).unwrap()), &masks, &what);
            let mut again = poison(b, b.activation(), [q_len * heads * s.head_dim]);
            ops::decode_attention(b, s, q, k, v, again.view_mut()).unwrap();
            assert!(got == again.to_f32(b).unwrap(), "{what}: not the same without log-sum-exp");
        }
    }
});

for_each_backend!(clip_index, |b| {
    for (case, lengths) in LENGTHS.iter().enumerate() {
        let &(_, kv_len, ..) = lengths;
        let mut rng = Rng(case as u64 + 500);
        let mut index = build(b, &mixed_sets(lengths, &mut rng), lengths, 2048);
        let host = index.to_host(b).unwrap();
        let whole = poisoned_rows(b, &mut index);
        let mut cuts = [0, rng.below(kv_len), rng.below(kv_len), kv_len, kv_len];
        cuts.sort_unstable();
        for keys in cuts.windows(2).map(|w| w[0]..w[1]).chain(std::iter::once(0..kv_len)) {
            ops::clip_index(b, whole.each_ref().map(Tensor::view), keys.clone(), &mut index).unwrap();
            let clipped = index.to_host(b).unwrap();
            let what = format!("{lengths:?} {keys:?}");
            assert_eq!(clipped.window, host.window, "{what}");
            for (head, row) in (0..host.n_heads).flat_map(|h| (0..host.row_blocks()).map(move |r| (h, r))) {
                let (got, all) = (clipped.row(head, row), host.row(head, row));
                let [lo, hi] = [keys.start as i32, keys.end as i32];
                let cut = all.ranges.iter().map(|r| [r[0].max(lo), r[1].min(hi)]);
                let want: Vec<_> = cut.filter(|r| r[0] < r[1]).collect();
                assert_eq!(got.ranges, want, "{what} head {head} row block {row}");
                let want: Vec<_> = all.columns.iter().copied().filter(|c| (lo..hi).contains(c)).collect();
                assert_eq!(got.columns, want, "{what} head {head} row block {row}");
            }
        }
    }
});

/// An index's row_ranges, ranges and keep, with new ones full of nonsense in their place.
fn poisoned_rows<B: Backend>(b: &B, index: &mut SparseIndex<B>) -> [Tensor<B>; 3] {
    [&mut index.row_ranges, &mut index.ranges, &mut index.keep].map(|rows| {
        let shape = rows.shape();
        let nonsense = Tensor::from_slice(b, DType::U32, shape, &vec![0xdead_beef_u32; shape.elements()]).unwrap();
        std::mem::replace(rows, nonsense)
    })
}

// Attention over disjoint parts of the keys, some of them empty for some rows, is attention over all of them.
for_each_backend!(merge_attention, |b| {
    for (case, lengths) in LENGTHS.iter().enumerate() {
        let &(q_len, kv_len, q_start, heads, _, d) = lengths;
        let call = Call::new(b, *lengths, Layout::Engine, case as u64 + 600);
        let mut rng = Rng(case as u64 + 650);
        let sets = mixed_sets(lengths, &mut rng);
        let masks: Vec<_> = sets.iter().map(|s| s.mask(q_len, kv_len, q_start)).collect();
        let mut index = build(b, &sets, lengths, 2048);
        let whole = poisoned_rows(b, &mut index);
        let mut cuts = [0, rng.below(kv_len), rng.below(kv_len), kv_len];
        cuts.sort_unstable();
        let (act, rows) = (b.activation(), [q_len, heads * d]);
        let mut outs: [Tensor<B>; 2] = std::array::from_fn(|_| poison(b, act, rows));
        let mut lses: [Tensor<B>; 3] = std::array::from_fn(|_| poison(b, DType::F32, [heads, q_len]));
        for (part, keys) in cuts.windows(2).map(|w| w[0]..w[1]).enumerate() {
            ops::clip_index(b, whole.each_ref().map(Tensor::view), keys, &mut index).unwrap();
            let into = usize::from(part > 0);
            let (q, k, v) = (call.q.view(), call.k.view(), call.v.view());
            let lse = Some(lses[into].view_mut());
            ops::attention(b, &call.shape, q, k, v, &index, outs[into].view_mut(), lse).unwrap();
            if part > 0 {
                let [out, other] = &mut outs;
                let [lse, part_lse, merged] = &mut lses;
                // Bands of heads, as a layer's head groups go.
                for band in [0..heads / 2, heads / 2..heads].into_iter().filter(|band| !band.is_empty()) {
                    let (lse, part_lse) = (lse.view().rows(band.clone()), part_lse.view().rows(band.clone()));
                    let (out, merged) = (out.view_mut(), merged.view_mut().rows(band.clone()));
                    let of = HeadBand { column: band.start * d, heads: band.len(), head_dim: d };
                    ops::merge_attention(b, of, other.view(), part_lse, out, lse, merged).unwrap();
                }
                std::mem::swap(lse, merged);
            }
        }
        let (out, lse) = (outs[0].to_f32(b).unwrap(), lses[0].to_f32(b).unwrap());
        // Rounded once more for each part.
        call.compare_at(3.0 * roundoff(act), &out, Some(&lse), &masks, &format!("{lengths:?} cut at {cuts:?}"));
    }
});

// Rows that one part or both saw nothing of, and weights far apart.
for_each_backend!(merge_attention_of_empty_rows, |b| {
    let (act, none, d) = (b.activation(), f32::NEG_INFINITY, 8);
    let lse = [[0.5, none, 3.0, none], [-700.0, 2.0, none, 1e4]];
    let part_lse = [[0.5, 1.0, none, none], [700.0, 2.0f32 + 3f32.ln(), -5.0, 0.0]];
    let (out, part): (Vec<f32>, Vec<f32>) = ([1.0; 64].into(), [-1.0; 64].into());
    let seen = |lse: f32, x: f32| if lse == none { 0.0 } else { x };
    let lay = |values: &[f32], lse: &[[f32; 4]; 2]| -> Vec<f32> {
        (0..64).map(|i| seen(lse[i / d % 2][i / d / 2], values[i])).collect()
    };
    let (mut out, _) = stored(b, act, [4, 2 * d], &lay(&out, &lse));
    let (part, _) = stored(b, act, [4, 2 * d], &lay(&part, &part_lse));
    let mut merged = poison(b, DType::F32, [2, 4]);
    let [lse_in, part_lse_in] = [lse, part_lse].map(|x| crate::f32s(b, [2, 4], x.as_flattened()));
    let band = HeadBand { column: 0, heads: 2, head_dim: d };
    let (lse_in, part_lse_in) = (lse_in.view(), part_lse_in.view());
    ops::merge_attention(b, band, part.view(), part_lse_in, out.view_mut(), lse_in, merged.view_mut()).unwrap();
    let (got, got_lse) = (out.to_f32(b).unwrap(), merged.to_f32(b).unwrap());
    for (head, row) in (0..2).flat_map(|h| (0..4).map(move |r| (h, r))) {
        let [a, b] = [lse, part_lse].map(|l| f64::from(l[head][row]));
        let top = a.max(b);
        let (mut want, mut want_lse) = (0.0, f64::NEG_INFINITY);
        if top.is_finite() {
            let sum = (a - top).exp() + (b - top).exp();
            (want, want_lse) = (((a - top).exp() - (b - top).exp()) / sum, top + sum.ln());
        }
        let what = format!("head {head} row {row}");
        assert_close(&what, roundoff(act), &got[row * 2 * d + head * d..][..d], &[want; 8]);
        assert_close(&what, roundoff(DType::F32), &got_lse[head * 4 + row..][..1], &[want_lse]);
    }
});
