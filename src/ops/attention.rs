//! Attention over an index, over a cache, and what joins its parts.

use super::*;
use crate::backend::params::*;
use crate::backend::{Backend, IndexSlices};
use crate::index::SparseIndex;
use crate::tensor::{View, ViewMut};
use crate::{DType, Result};

/// Where the queries, keys and values of one attention call lie: heads, lengths and the distances between them.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub n_heads: usize,
    /// KV heads; query head `h` reads KV head `h / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Queries.
    pub q_len: usize,
    /// Keys.
    pub kv_len: usize,
    /// Key position of the first query.
    pub q_start: usize,
    /// Softmax scale.
    pub scale: f32,
    /// Between queries, and between query heads, in elements.
    pub q_stride: [usize; 2],
    /// Between keys, and between KV heads.
    pub k_stride: [usize; 2],
    /// Between values, and between KV heads.
    pub v_stride: [usize; 2],
    /// Between rows of the output, and between its heads.
    pub out_stride: [usize; 2],
}

impl AttentionShape {
    /// Pairs of a query and a key that causal attention of one head computes.
    pub fn causal_pairs(&self) -> u64 {
        crate::index::causal_pairs(self.q_len, self.q_start)
    }

    pub(crate) fn validate<B: Backend>(
        &self,
        op: &'static str,
        q: &View<B>,
        k: &View<B>,
        v: &View<B>,
        out: Option<&ViewMut<B>>,
    ) -> Result<()> {
        let Self { n_heads: h, n_kv_heads: kv, head_dim: d, q_len, kv_len, .. } = *self;
        check(
            op,
            "heads",
            kv > 0 && h > 0 && h % kv == 0,
            "query heads a multiple of KV heads",
            format!("{h} on {kv}"),
        )?;
        check(op, "head_dim", d > 0 && d % 8 == 0 && d <= 256, "a multiple of 8, at most 256", d)?;
        check(op, "q_len", q_len > 0, "at least one query", q_len)?;
        let seen = self.q_start.saturating_add(q_len);
        let expected = || format!("at least q_start + q_len = {seen} and at most {MAX_KEYS}");
        check(op, "kv_len", seen <= kv_len && kv_len <= MAX_KEYS, expected(), kv_len)?;
        // Kernels take maxima before they scale, and mask with finite numbers far below every score.
        let keeps_order = self.scale.is_finite() && self.scale > 0.0;
        check(op, "scale", keeps_order, "a finite softmax scale above zero", self.scale)?;
        check_extent(op, "q", [h, q_len, d], self.q_stride, q.shape())?;
        check_extent(op, "k", [kv, kv_len, d], self.k_stride, k.shape())?;
        check_extent(op, "v", [kv, kv_len, d], self.v_stride, v.shape())?;
        if let Some(out) = out {
            check_extent(op, "out", [h, q_len, d], self.out_stride, out.shape())?;
        }
        Ok(())
    }

    fn params(&self, row_blocks: usize, column_tiles: usize, write_lse: bool) -> AttentionParams {
        AttentionParams {
            n_heads: self.n_heads as u32,
            n_kv_heads: self.n_kv_heads as u32,
            head_dim: self.head_dim as u32,
            q_len: self.q_len as u32,
            kv_len: self.kv_len as u32,
            q_start: self.q_start as u32,
            row_blocks: row_blocks as u32,
            column_tiles: column_tiles as u32,
            scale: self.scale,
            q_row_stride: self.q_stride[0] as u32,
            q_head_stride: self.q_stride[1] as u32,
            k_row_stride: self.k_stride[0] as u32,
            k_head_stride: self.k_stride[1] as u32,
            v_row_stride: self.v_stride[0] as u32,
            v_head_stride: self.v_stride[1] as u32,
            out_row_stride: self.out_stride[0] as u32,
            out_head_stride: self.out_stride[1] as u32,
            write_lse: write_lse as u32,
            skip_below: SKIP_NOTHING,
        }
    }
}

/// Attention of all heads of one layer over an index: q, k, v act under the shape's strides, out act or f32, and on
/// request the natural log-sum-exp of each row, f32 `[H, q_len]`.
pub fn attention<B: Backend>(
    b: &B,
    shape: &AttentionShape,
    q: View<B>,
    k: View<B>,
    v: View<B>,
    index: &SparseIndex<B>,
    out: ViewMut<B>,
    lse: Option<ViewMut<B>>,
) -> Result<()> {
    attention_skipping(b, shape, [q, k, v], index, out, lse, 0.0)
}

/// [`attention`] with skip-softmax (BLASST, arXiv 2512.12087): a tile of scores that all lie below their rows' running maxima
/// by more than `-ln(skip_softmax / kv_len)` is dropped after the first product: no exponentials, no values, nothing in
/// the log-sum-exp. What a tile is (16 to 128 queries, 16 to 128 keys), the backend's kernel decides, and where it keeps a
/// maximum that lags behind, fewer tiles are dropped. `skip_softmax` 0 is off.
pub fn attention_skipping<B: Backend>(
    b: &B,
    shape: &AttentionShape,
    [q, k, v]: [View<B>; 3],
    index: &SparseIndex<B>,
    out: ViewMut<B>,
    lse: Option<ViewMut<B>>,
    skip_softmax: f32,
) -> Result<()> {
    const OP: &str = "attention";
    let fits = skip_softmax >= 0.0 && skip_softmax.is_finite();
    check(OP, "skip_softmax", fits, "a finite factor from 0 on", skip_softmax)?;
    shape.validate(OP, &q, &k, &v, Some(&out))?;
    for (what, dtype) in [("q", q.dtype()), ("k", k.dtype()), ("v", v.dtype())] {
        check_dtype(OP, what, &[b.activation()], dtype)?;
    }
    check_dtype(OP, "out", &[DType::F32, b.activation()], out.dtype())?;
    let l = index.layout;
    let (want, got) =
        ((shape.n_heads, shape.q_len, shape.kv_len, shape.q_start), (l.n_heads, l.q_len, l.kv_len, l.q_start));
    check(OP, "index", want == got, format!("(heads, q_len, kv_len, q_start) = {want:?}"), format!("{got:?}"))?;
    if let Some(lse) = &lse {
        check_shape(OP, "lse", [shape.n_heads, shape.q_len], lse.shape())?;
        check_dtype(OP, "lse", &[DType::F32], lse.dtype())?;
    }
    let mut p = shape.params(l.row_blocks(), l.column_tiles, lse.is_some());
    if skip_softmax > 0.0 {
        p.skip_below = (skip_softmax / shape.kv_len as f32).ln().min(0.0);
    }
    b.attention(&p, q.slice(), k.slice(), v.slice(), index.slices(), out.slice(), lse.map(|v| v.slice()))
}

/// Few queries over all their causal keys: q, k, v act under the shape's strides, out act or f32.
pub fn decode_attention<B: Backend>(
    b: &B,
    shape: &AttentionShape,
    q: View<B>,
    k: View<B>,
    v: View<B>,
    out: ViewMut<B>,
) -> Result<()> {
    decode_attention_with_lse(b, shape, q, k, v, out, None)
}

/// [`decode_attention`], and on request the natural log-sum-exp of each row, f32 `[H, q_len]`.
pub fn decode_attention_with_lse<B: Backend>(
    b: &B,
    shape: &AttentionShape,
    q: View<B>,
    k: View<B>,
    v: View<B>,
    out: ViewMut<B>,
    lse: Option<ViewMut<B>>,
) -> Result<()> {
    const OP: &str = "decode_attention";
    shape.validate(OP, &q, &k, &v, Some(&out))?;
    for (what, dtype) in [("q", q.dtype()), ("k", k.dtype()), ("v", v.dtype())] {
        check_dtype(OP, what, &[b.activation()], dtype)?;
    }
    check_dtype(OP, "out", &[DType::F32, b.activation()], out.dtype())?;
    if let Some(lse) = &lse {
        check_shape(OP, "lse", [shape.n_heads, shape.q_len], lse.shape())?;
        check_dtype(OP, "lse", &[DType::F32], lse.dtype())?;
    }
    let p = shape.params(0, 0, lse.is_some());
    b.decode_attention(&p, q.slice(), k.slice(), v.slice(), out.slice(), lse.map(|v| v.slice()))
}

/// Joins attention of a band of heads over some keys, out act `[n, row]` with lse f32 `[heads, n]`, with attention of the
/// same queries over other keys, part act `[n, row]` with part_lse f32 `[heads, n]`: the band of out becomes attention over
/// both, with merged_lse f32 `[heads, n]`. A row that saw no key (zeros and -inf) is taken from the other part.
pub fn merge_attention<B: Backend>(
    b: &B,
    band: HeadBand,
    part: View<B>,
    part_lse: View<B>,
    out: ViewMut<B>,
    lse: View<B>,
    merged_lse: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "merge_attention";
    let ([n, row], HeadBand { column, heads, head_dim: d }) = (dims(OP, "out", out.shape())?, band);
    let vectors = heads > 0 && [column, d, row].iter().all(|x| x.is_multiple_of(8)) && band.end() <= row;
    check(OP, "band", vectors, format!("multiples of 8 within rows of {row}"), format!("{band:?}"))?;
    check_shape(OP, "part", out.shape(), part.shape())?;
    check_shape(OP, "lse", [heads, n], lse.shape())?;
    check_shape(OP, "part_lse", [heads, n], part_lse.shape())?;
    check_shape(OP, "merged_lse", [heads, n], merged_lse.shape())?;
    check_dtype(OP, "out", &[b.activation()], out.dtype())?;
    check_dtype(OP, "part", &[b.activation()], part.dtype())?;
    for (what, dtype) in [("lse", lse.dtype()), ("part_lse", part_lse.dtype()), ("merged_lse", merged_lse.dtype())] {
        check_dtype(OP, what, &[DType::F32], dtype)?;
    }
    let p = MergeAttentionParams { rows: n as u32, n_heads: heads as u32, head_dim: d as u32, row_stride: row as u32 };
    let (part, out) = (part.slice().skip(column), out.slice().skip(column));
    b.merge_attention(&p, part, [lse.slice(), part_lse.slice()], out, merged_lse.slice())
}

/// Makes `index` the part of an index that lies within some keys: `whole` is that index's row_ranges, ranges and keep, and
/// `index` has its layout, columns and windows; its own row_ranges, ranges and keep are written. Row blocks may come out
/// empty.
pub fn clip_index<B: Backend>(
    b: &B,
    whole: [View<B>; 3],
    keys: std::ops::Range<usize>,
    index: &mut SparseIndex<B>,
) -> Result<()> {
    const OP: &str = "clip_index";
    let layout = index.layout;
    let SparseIndex { row_ranges, ranges, columns, keep, window, .. } = index;
    for (what, of_index, of_whole) in [
        ("row_ranges", row_ranges.shape(), whole[0].shape()),
        ("ranges", ranges.shape(), whole[1].shape()),
        ("keep", keep.shape(), whole[2].shape()),
    ] {
        check_shape(OP, what, of_index, of_whole)?;
    }
    let inside = keys.start <= keys.end && keys.end <= layout.kv_len;
    check(OP, "keys", inside, format!("within 0..{}", layout.kv_len), format!("{keys:?}"))?;
    let p = ClipIndexParams {
        n_heads: layout.n_heads as u32,
        row_blocks: layout.row_blocks() as u32,
        column_tiles: layout.column_tiles as u32,
        key_start: keys.start as u32,
        key_end: keys.end as u32,
    };
    let read = IndexSlices {
        row_ranges: whole[0].slice(),
        ranges: whole[1].slice(),
        columns: columns.view().slice(),
        keep: whole[2].slice(),
        window: window.view().slice(),
    };
    let (row_ranges, ranges, keep) = (row_ranges.view_mut(), ranges.view_mut(), keep.view_mut());
    b.clip_index(&p, read, row_ranges.slice(), ranges.slice(), keep.slice())
}
