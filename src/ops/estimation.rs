//! From q and k to an index: scores, choices, ranges and columns.

use super::*;
use crate::backend::params::*;
use crate::backend::{Backend, IndexChoice, IndexSlicesMut};
use crate::index::SparseIndex;
use crate::tensor::{Shape, View, ViewMut};
use crate::{DType, Result};

/// Column and offset scores from the last `min(64, q_len)` queries (paper, Algorithm 2): plan u32 `[H, 4]`, q, k act,
/// column_score and offset_score f32 `[H, kv_len]`; only the rows of vertical-slash heads are written.
pub fn score_last_queries<B: Backend>(
    b: &B,
    shape: &AttentionShape,
    plan: View<B>,
    q: View<B>,
    k: View<B>,
    column_score: ViewMut<B>,
    offset_score: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "score_last_queries";
    shape.validate(OP, &q, &k, &k, None)?;
    check_shape(OP, "plan", [shape.n_heads, 4], plan.shape())?;
    check_dtype(OP, "q", &[b.activation()], q.dtype())?;
    check_dtype(OP, "k", &[b.activation()], k.dtype())?;
    for (what, score) in [("column_score", &column_score), ("offset_score", &offset_score)] {
        check_shape(OP, what, [shape.n_heads, shape.kv_len], score.shape())?;
        check_dtype(OP, what, &[DType::F32], score.dtype())?;
    }
    let p = ScoreLastQueriesParams {
        n_heads: shape.n_heads as u32,
        n_kv_heads: shape.n_kv_heads as u32,
        head_dim: shape.head_dim as u32,
        q_len: shape.q_len as u32,
        kv_len: shape.kv_len as u32,
        q_start: shape.q_start as u32,
        last_q: shape.q_len.min(BLOCK) as u32,
        scale: shape.scale,
        q_row_stride: shape.q_stride[0] as u32,
        q_head_stride: shape.q_stride[1] as u32,
        k_row_stride: shape.k_stride[0] as u32,
        k_head_stride: shape.k_stride[1] as u32,
    };
    b.score_last_queries(&p, plan.slice(), q.slice(), k.slice(), column_score.slice(), offset_score.slice())
}

/// The indices of the `counts[r]` largest of each row of scores f32 `[rows, len]`, ascending, into indices u32
/// `[rows, capacity]` padded with `u32::MAX`; the first `forced` come before all others. Ties: the lower index.
pub fn select_top_k<B: Backend>(
    b: &B,
    scores: View<B>,
    counts: View<B>,
    forced: usize,
    indices: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "select_top_k";
    let ([rows, len], [irows, capacity]) = (dims(OP, "scores", scores.shape())?, dims(OP, "indices", indices.shape())?);
    check_shape(OP, "counts", [rows], counts.shape())?;
    check(
        OP,
        "indices",
        irows == rows && capacity > 0,
        format!("[{rows}, at least 1]"),
        format!("[{irows}, {capacity}]"),
    )?;
    check(OP, "scores", len > 0, "at least one score a row", len)?;
    check_dtype(OP, "scores", &[DType::F32], scores.dtype())?;
    check_dtype(OP, "counts", &[DType::U32], counts.dtype())?;
    check_dtype(OP, "indices", &[DType::U32], indices.dtype())?;
    let p = SelectTopKParams { rows: rows as u32, len: len as u32, capacity: capacity as u32, forced: forced as u32 };
    b.select_top_k(&p, scores.slice(), counts.slice(), indices.slice())
}

/// Mean of each block of 64 rows: x act with `[row, head]` strides, out f32 `[heads, ceil(len / 64), D]`. `padded` divides a
/// short last block by 64 all the same.
pub fn pool_blocks<B: Backend>(
    b: &B,
    x: View<B>,
    len: usize,
    [row_stride, head_stride]: [usize; 2],
    padded: bool,
    out: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "pool_blocks";
    let [heads, blocks, d] = dims(OP, "out", out.shape())?;
    check(OP, "out", blocks == len.div_ceil(BLOCK), format!("{} blocks", len.div_ceil(BLOCK)), blocks)?;
    check_strided(OP, [heads, len, d], [row_stride, head_stride], x.shape())?;
    check_dtype(OP, "x", &[b.activation()], x.dtype())?;
    check_dtype(OP, "out", &[DType::F32], out.dtype())?;
    let p = PoolBlocksParams {
        n_heads: heads as u32,
        len: len as u32,
        head_dim: d as u32,
        row_stride: row_stride as u32,
        head_stride: head_stride as u32,
        blocks: blocks as u32,
        padded: u32::from(padded),
    };
    b.pool_blocks(&p, x.slice(), out.slice())
}

/// The band of row blocks that one call of [`score_blocks`] and [`select_blocks`] works on, so that scores stay small.
#[derive(Clone, Copy, Debug)]
pub struct BlockBand {
    /// Queries of the whole call.
    pub q_len: usize,
    /// First row block of the band.
    pub start: usize,
    /// Key position of the first query.
    pub q_start: usize,
}

impl BlockBand {
    /// Row blocks of the whole call.
    pub fn row_blocks(&self) -> usize {
        self.q_len.div_ceil(BLOCK)
    }

    fn params(&self, op: &'static str, scores: Shape, n_kv_heads: usize, head_dim: usize) -> Result<ScoreBlocksParams> {
        let [h, band_len, key_blocks] = dims(op, "scores", scores)?;
        check(
            op,
            "band",
            self.start.saturating_add(band_len) <= self.row_blocks(),
            format!("within {} row blocks", self.row_blocks()),
            format!("{} + {band_len}", self.start),
        )?;
        Ok(ScoreBlocksParams {
            n_heads: h as u32,
            n_kv_heads: n_kv_heads as u32,
            head_dim: head_dim as u32,
            row_blocks: self.row_blocks() as u32,
            key_blocks: key_blocks as u32,
            band_start: self.start as u32,
            band_len: band_len as u32,
            q_start: self.q_start as u32,
            q_len: self.q_len as u32,
        })
    }

    fn weigh_params(&self, op: &'static str, scores: Shape, scale: f32) -> Result<WeighBlocksParams> {
        let p = self.params(op, scores, 1, 0)?;
        Ok(WeighBlocksParams {
            n_heads: p.n_heads,
            row_blocks: p.row_blocks,
            key_blocks: p.key_blocks,
            band_start: p.band_start,
            band_len: p.band_len,
            q_start: p.q_start,
            q_len: p.q_len,
            scale,
        })
    }
}

/// Scores of a band (paper, Algorithm 3, without the monotone softmax): pooled_q f32 `[H, R, D]`, pooled_k f32
/// `[KV, C, D]`, scores f32 `[H, band, C]`, -inf where the key block begins after the row block's last query.
pub fn score_blocks<B: Backend>(
    b: &B,
    band: BlockBand,
    plan: View<B>,
    pooled_q: View<B>,
    pooled_k: View<B>,
    scores: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "score_blocks";
    let ([h, r, d], [kv, c, kd]) = (dims(OP, "pooled_q", pooled_q.shape())?, dims(OP, "pooled_k", pooled_k.shape())?);
    let p = band.params(OP, scores.shape(), kv, d)?;
    check(
        OP,
        "pooled_k",
        kd == d && kv > 0 && h % kv == 0,
        format!("[divides {h}, _, {d}]"),
        format!("[{kv}, {c}, {kd}]"),
    )?;
    check(OP, "pooled_q", r == band.row_blocks(), format!("{} row blocks", band.row_blocks()), r)?;
    check(
        OP,
        "scores",
        p.n_heads as usize == h && p.key_blocks as usize == c,
        format!("[{h}, _, {c}]"),
        format!("{:?}", scores.shape()),
    )?;
    check_shape(OP, "plan", [h, 4], plan.shape())?;
    b.score_blocks(&p, plan.slice(), pooled_q.slice(), pooled_k.slice(), scores.slice())
}

/// The best `top_k` key blocks of each row block of a band, as bits: block_mask u32 `[H, R, ceil(C / 32)]`.
pub fn select_blocks<B: Backend>(
    b: &B,
    band: BlockBand,
    plan: View<B>,
    scores: View<B>,
    block_mask: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "select_blocks";
    let [h, _, c] = dims(OP, "scores", scores.shape())?;
    let p = band.params(OP, scores.shape(), 1, 0)?;
    check_shape(OP, "plan", [h, 4], plan.shape())?;
    check_shape(OP, "block_mask", [h, band.row_blocks(), c.div_ceil(32)], block_mask.shape())?;
    b.select_blocks(&p, plan.slice(), scores.slice(), block_mask.slice())
}

/// How many of each row's largest scores hold its budget's part of the row's sum: budget u32 `[rows, 4]`, scores f32
/// `[rows, len]` of which `unit` times the sum is 1, counts u32 `[rows]`. The first `forced` count before all others.
pub fn count_by_mass<B: Backend>(
    b: &B,
    budget: View<B>,
    scores: View<B>,
    forced: usize,
    unit: f32,
    counts: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "count_by_mass";
    let [rows, len] = dims(OP, "scores", scores.shape())?;
    check_shape(OP, "budget", [rows, 4], budget.shape())?;
    check_shape(OP, "counts", [rows], counts.shape())?;
    check_dtype(OP, "scores", &[DType::F32], scores.dtype())?;
    let p = CountByMassParams { rows: rows as u32, len: len as u32, forced: forced.min(len) as u32, unit };
    b.count_by_mass(&p, budget.slice(), scores.slice(), counts.slice())
}

/// Gathers offset scores f32 `[rows, len]` by 64, in place, in the rows whose budget u32 `[rows, 4]` has mass.
pub fn group_offsets<B: Backend>(b: &B, budget: View<B>, scores: ViewMut<B>) -> Result<()> {
    const OP: &str = "group_offsets";
    let [rows, len] = dims(OP, "scores", scores.shape())?;
    check_shape(OP, "budget", [rows, 4], budget.shape())?;
    check_dtype(OP, "scores", &[DType::F32], scores.dtype())?;
    b.group_offsets(&GroupOffsetsParams { rows: rows as u32, len: len as u32 }, budget.slice(), scores.slice())
}

/// What [`settle_heads`] decides by and writes.
pub struct Undecided<'a, B: Backend> {
    /// u32 `[H, 4]`: one [`HeadBudget`] a head.
    pub budget: View<'a, B>,
    /// f32 `[H, kv_len]`, of which `unit` times the sum is 1.
    pub column_score: View<'a, B>,
    /// f32 `[H, 1, C]`.
    pub block_score: View<'a, B>,
    /// See `column_score`.
    pub unit: f32,
    /// Softmax scale of the block scores.
    pub scale: f32,
    /// u32 `[H, 4]`.
    pub plan: ViewMut<'a, B>,
    /// u32 `[H]`.
    pub column_count: ViewMut<'a, B>,
    /// u32 `[H]`.
    pub offset_count: ViewMut<'a, B>,
}

/// Makes every flex head of a plan vertical-slash, block-sparse or dense, and every recall head block-sparse or dense.
pub fn settle_heads<B: Backend>(b: &B, heads: Undecided<B>) -> Result<()> {
    const OP: &str = "settle_heads";
    let [h, kv_len] = dims(OP, "column_score", heads.column_score.shape())?;
    let blocks = kv_len.div_ceil(BLOCK);
    check_shape(OP, "block_score", [h, 1, blocks], heads.block_score.shape())?;
    check_shape(OP, "budget", [h, 4], heads.budget.shape())?;
    check_shape(OP, "plan", [h, 4], heads.plan.shape())?;
    check_shape(OP, "column_count", [h], heads.column_count.shape())?;
    check_shape(OP, "offset_count", [h], heads.offset_count.shape())?;
    let p = SettleHeadsParams {
        n_heads: h as u32,
        kv_len: kv_len as u32,
        key_blocks: blocks as u32,
        scale: heads.scale,
        unit: heads.unit,
    };
    let (columns, blocks) = (heads.column_score.slice(), heads.block_score.slice());
    let (plan, vertical, slash) = (heads.plan.slice(), heads.column_count.slice(), heads.offset_count.slice());
    b.settle_heads(&p, heads.budget.slice(), columns, blocks, plan, vertical, slash)
}

/// Bins of a head in [`weigh_blocks`].
pub const WEIGHT_BINS: usize = 2048;

/// Adds up a band's block weights by their size: scores f32 `[H, band, C]` as of [`score_blocks`], mass u32 `[H, 2048]`.
pub fn weigh_blocks<B: Backend>(
    b: &B,
    band: BlockBand,
    scale: f32,
    plan: View<B>,
    scores: View<B>,
    mass: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "weigh_blocks";
    let p = band.weigh_params(OP, scores.shape(), scale)?;
    check_shape(OP, "plan", [p.n_heads as usize, 4], plan.shape())?;
    check_shape(OP, "mass", [p.n_heads as usize, WEIGHT_BINS], mass.shape())?;
    check_dtype(OP, "scores", &[DType::F32], scores.dtype())?;
    check_dtype(OP, "mass", &[DType::U32], mass.dtype())?;
    b.weigh_blocks(&p, plan.slice(), scores.slice(), mass.slice())
}

/// The blocks that the rules of block-sparse heads keep, but for `TOP_K` heads: as bits into block_mask u32 `[H, R,
/// ceil(C / 32)]`; mass as of [`weigh_blocks`], all bands.
pub fn select_weighed_blocks<B: Backend>(
    b: &B,
    band: BlockBand,
    scale: f32,
    plan: View<B>,
    scores: View<B>,
    mass: View<B>,
    block_mask: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "select_weighed_blocks";
    let p = band.weigh_params(OP, scores.shape(), scale)?;
    let h = p.n_heads as usize;
    check_shape(OP, "plan", [h, 4], plan.shape())?;
    check_shape(OP, "mass", [h, WEIGHT_BINS], mass.shape())?;
    check_shape(OP, "block_mask", [h, band.row_blocks(), p.key_blocks.div_ceil(32) as usize], block_mask.shape())?;
    b.select_weighed_blocks(&p, plan.slice(), scores.slice(), mass.slice(), block_mask.slice())
}

/// Rows of x act `[heads, len, D]` under `[row, head]` strides, gathered by `fold`: out act `[heads, ceil(len / fold), fold *
/// D]`, each group's rows one behind the other, or in reverse; zeros behind the last row.
pub fn fold_rows<B: Backend>(
    b: &B,
    x: View<B>,
    len: usize,
    [row_stride, head_stride]: [usize; 2],
    fold: usize,
    reverse: bool,
    out: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "fold_rows";
    let [heads, groups, width] = dims(OP, "out", out.shape())?;
    check(OP, "fold", matches!(fold, 4 | 8 | 16 | 32 | 64), "a power of two from 4 to 64", fold)?;
    check(OP, "out", groups == len.div_ceil(fold), format!("{} groups", len.div_ceil(fold)), groups)?;
    let d = width / fold;
    check(OP, "out", d * fold == width && d.is_multiple_of(8), format!("rows of {fold} times a multiple of 8"), width)?;
    check_strided(OP, [heads, len, d], [row_stride, head_stride], x.shape())?;
    check_dtype(OP, "x", &[b.activation()], x.dtype())?;
    check_dtype(OP, "out", &[b.activation()], out.dtype())?;
    let p = FoldRowsParams {
        n_heads: heads as u32,
        len: len as u32,
        head_dim: d as u32,
        row_stride: row_stride as u32,
        head_stride: head_stride as u32,
        fold: fold as u32,
        reverse: u32::from(reverse),
    };
    b.fold_rows(&p, x.slice(), out.slice())
}

/// Logarithms of the attention of a band's row blocks by key block, from the products of groups of `fold` queries, in reverse,
/// and keys: products f32 `[H, band * 64 / fold, groups]`, scores f32 `[H, band, C]`. Heads of the rule `ROW_MASS` only.
pub fn weigh_antidiagonals<B: Backend>(
    b: &B,
    band: BlockBand,
    [fold, groups]: [usize; 2],
    scale: f32,
    plan: View<B>,
    products: View<B>,
    scores: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "weigh_antidiagonals";
    let of = band.params(OP, scores.shape(), 1, 0)?;
    check(OP, "fold", matches!(fold, 4 | 8 | 16 | 32 | 64), "a power of two from 4 to 64", fold)?;
    let (heads, rows) = (of.n_heads as usize, of.band_len as usize * (BLOCK / fold));
    check_shape(OP, "plan", [heads, 4], plan.shape())?;
    check_shape(OP, "products", [heads, rows, groups], products.shape())?;
    check_dtype(OP, "products", &[DType::F32], products.dtype())?;
    check_dtype(OP, "scores", &[DType::F32], scores.dtype())?;
    let p = WeighAntidiagonalsParams {
        n_heads: of.n_heads,
        key_blocks: of.key_blocks,
        band_start: of.band_start,
        band_len: of.band_len,
        q_start: of.q_start,
        q_len: of.q_len,
        fold: fold as u32,
        groups: groups as u32,
        scale,
    };
    b.weigh_antidiagonals(&p, plan.slice(), products.slice(), scores.slice())
}

/// Makes each of `share` neighbouring rows of scores f32 `[rows, len]` their mean, but for those whose kind in plan u32 `[rows,
/// 4]` is dense.
pub fn share_scores<B: Backend>(b: &B, share: usize, plan: View<B>, scores: ViewMut<B>) -> Result<()> {
    const OP: &str = "share_scores";
    let [rows, len] = dims(OP, "scores", scores.shape())?;
    check(OP, "scores", share > 0 && rows % share == 0, format!("a multiple of {share} rows"), rows)?;
    check_shape(OP, "plan", [rows, 4], plan.shape())?;
    check_dtype(OP, "scores", &[DType::F32], scores.dtype())?;
    let p = ShareScoresParams { rows: rows as u32, share: share as u32, len: len as u32 };
    b.share_scores(&p, plan.slice(), scores.slice())
}

/// What [`build_index`] reads besides the index's own columns. A part that no head uses may be a `[.., 1]` placeholder.
pub struct Choice<'a, B: Backend> {
    /// u32 `[H, 4]`: one [`HeadPlan`] a head.
    pub plan: View<'a, B>,
    /// u32 `[H, capacity]` ascending, padded with `u32::MAX`.
    pub offsets: View<'a, B>,
    /// u32 `[H]`.
    pub offset_count: View<'a, B>,
    /// u32 `[H, R, words]`.
    pub block_mask: View<'a, B>,
    /// See [`crate::estimate::EXACT`].
    pub dense_above: u32,
}

/// Fills ranges, keep masks, windows and pair counts of `index`, whose columns are already chosen.
pub fn build_index<B: Backend>(b: &B, choice: Choice<B>, index: &mut SparseIndex<B>) -> Result<()> {
    const OP: &str = "build_index";
    let layout = index.layout;
    let (h, r) = (layout.n_heads, layout.row_blocks());
    let ([_, offset_capacity], [_, _, block_words]) =
        (dims(OP, "offsets", choice.offsets.shape())?, dims(OP, "block_mask", choice.block_mask.shape())?);
    check_shape(OP, "plan", [h, 4], choice.plan.shape())?;
    check_shape(OP, "offsets", [h, offset_capacity], choice.offsets.shape())?;
    check_shape(OP, "offset_count", [h], choice.offset_count.shape())?;
    let p = BuildIndexParams {
        n_heads: h as u32,
        q_len: layout.q_len as u32,
        kv_len: layout.kv_len as u32,
        q_start: layout.q_start as u32,
        row_blocks: r as u32,
        column_tiles: layout.column_tiles as u32,
        offset_capacity: offset_capacity as u32,
        block_words: block_words as u32,
        range_budget: layout.range_budget as u32,
        dense_above: choice.dense_above,
    };
    // Field by field: the columns are read while the rest of the index is written.
    let SparseIndex { columns, row_ranges, ranges, keep, window, pairs, .. } = index;
    let read = IndexChoice {
        plan: choice.plan.slice(),
        columns: columns.view().slice(),
        offsets: choice.offsets.slice(),
        offset_count: choice.offset_count.slice(),
        block_mask: choice.block_mask.slice(),
    };
    let write = IndexSlicesMut {
        row_ranges: row_ranges.view_mut().slice(),
        ranges: ranges.view_mut().slice(),
        keep: keep.view_mut().slice(),
        window: window.view_mut().slice(),
        pairs: pairs.view_mut().slice(),
    };
    b.build_index(&p, read, write)
}
