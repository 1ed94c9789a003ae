//! The checked front of a [`Backend`]: shapes and element types are validated here, once, and nowhere below.
//!
//! Letters in shapes: `n` tokens, `H` query heads, `KV` key and value heads, `D` head_dim, `R` row blocks, `C` key blocks.

use crate::backend::params::*;
use crate::backend::{Backend, IndexChoice, IndexSlices, IndexSlicesMut};
use crate::index::SparseIndex;
use crate::tensor::{Shape, View, ViewMut};
use crate::{DType, Error, Result};

fn check_shape(op: &'static str, what: &'static str, expected: impl Into<Shape>, got: Shape) -> Result<()> {
    let expected = expected.into();
    if expected == got {
        Ok(())
    } else {
        Err(Error::Shape { op, what, expected: format!("{expected:?}"), got: format!("{got:?}") })
    }
}

fn check_dtype(op: &'static str, what: &'static str, allowed: &[DType], got: DType) -> Result<()> {
    if allowed.contains(&got) {
        return Ok(());
    }
    let expected = allowed.iter().map(|d| d.name()).collect::<Vec<_>>().join(" or ");
    Err(Error::Shape { op, what, expected, got: got.to_string() })
}

fn check(
    op: &'static str,
    what: &'static str,
    ok: bool,
    expected: impl Into<String>,
    got: impl ToString,
) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Shape { op, what, expected: expected.into(), got: got.to_string() }) }
}

/// The dimensions of a view whose rank is known.
fn dims<const N: usize>(op: &'static str, what: &'static str, shape: Shape) -> Result<[usize; N]> {
    shape.dims().try_into().map_err(|_| Error::Shape {
        op,
        what,
        expected: format!("{N} dimensions"),
        got: format!("{shape:?}"),
    })
}

/// `out[i, :] = table[ids[i], :]`: ids u32 `[n]`, table `[vocab, hidden]`, out f32 `[n, hidden]`.
pub fn embed<B: Backend>(b: &B, ids: View<B>, table: View<B>, out: ViewMut<B>) -> Result<()> {
    const OP: &str = "embed";
    let ([n], [vocab, hidden]) = (dims(OP, "ids", ids.shape())?, dims(OP, "table", table.shape())?);
    check_dtype(OP, "ids", &[DType::U32], ids.dtype())?;
    check_dtype(OP, "out", &[DType::F32], out.dtype())?;
    check_shape(OP, "out", [n, hidden], out.shape())?;
    b.embed(
        &EmbedParams { n_tokens: n as u32, hidden: hidden as u32, vocab: vocab as u32 },
        ids.slice(),
        table.slice(),
        out.slice(),
    )
}

/// Root-mean-square norm of each row: x `[rows, cols]`, weight f32 `[cols]`, out `[rows, cols]`.
pub fn rms_norm<B: Backend>(b: &B, x: View<B>, weight: View<B>, eps: f32, out: ViewMut<B>) -> Result<()> {
    const OP: &str = "rms_norm";
    let [rows, cols] = dims(OP, "x", x.shape())?;
    check_shape(OP, "weight", [cols], weight.shape())?;
    check_shape(OP, "out", [rows, cols], out.shape())?;
    check_dtype(OP, "weight", &[DType::F32], weight.dtype())?;
    check_dtype(OP, "x", &[DType::F32, b.activation()], x.dtype())?;
    check_dtype(OP, "out", &[DType::F32, b.activation()], out.dtype())?;
    let p = RmsNormParams {
        rows: rows as u32,
        groups: 1,
        cols: cols as u32,
        x_stride: cols as u32,
        out_stride: cols as u32,
        eps,
    };
    b.rms_norm(&p, x.slice(), weight.slice(), out.slice())
}

/// Root-mean-square norm of each head of a band by itself (Qwen3's norms of q and k): x act `[n, row]`, weight f32 `[D]`,
/// out act `[n, out_row]`, written at the same columns.
pub fn rms_norm_heads<B: Backend>(
    b: &B,
    x: View<B>,
    band: HeadBand,
    weight: View<B>,
    eps: f32,
    out: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "rms_norm_heads";
    let ([n, row], [out_n, out_row]) = (dims(OP, "x", x.shape())?, dims(OP, "out", out.shape())?);
    let end = band.column + band.heads * band.head_dim;
    check(OP, "x", end <= row, format!("rows of at least {end}"), row)?;
    check(OP, "out", out_n == n && end <= out_row, format!("[{n}, >= {end}]"), format!("[{out_n}, {out_row}]"))?;
    check_shape(OP, "weight", [band.head_dim], weight.shape())?;
    check_dtype(OP, "weight", &[DType::F32], weight.dtype())?;
    check_dtype(OP, "x", &[b.activation()], x.dtype())?;
    check_dtype(OP, "out", &[b.activation()], out.dtype())?;
    let p = RmsNormParams {
        rows: n as u32,
        groups: band.heads as u32,
        cols: band.head_dim as u32,
        x_stride: row as u32,
        out_stride: out_row as u32,
        eps,
    };
    let (mut x, mut out) = (x.slice(), out.slice());
    let (x_skip, out_skip) = (x.dtype.bytes(band.column), out.dtype.bytes(band.column));
    x.byte_offset += x_skip;
    x.byte_len -= x_skip;
    out.byte_offset += out_skip;
    out.byte_len -= out_skip;
    b.rms_norm(&p, x, weight.slice(), out)
}

/// How [`matmul`] writes its result.
#[derive(Clone, Copy, Debug, Default)]
pub struct MatmulInto {
    /// First column of `out` that is written.
    pub column: usize,
    /// Add to what `out` holds instead of overwriting it; `out` is then f32.
    pub accumulate: bool,
}

/// `out[:, column..column + n] (+)= x w^T + bias`: x act `[m, k]`, w `[n, k]`, bias f32 `[n]`, out act or f32 `[m, >= n]`.
pub fn matmul<B: Backend>(
    b: &B,
    x: View<B>,
    w: View<B>,
    bias: Option<View<B>>,
    out: ViewMut<B>,
    into: MatmulInto,
) -> Result<()> {
    const OP: &str = "matmul";
    let ([m, k], [n, wk], [om, out_stride]) =
        (dims(OP, "x", x.shape())?, dims(OP, "w", w.shape())?, dims(OP, "out", out.shape())?);
    check(OP, "w", wk == k, format!("[_, {k}]"), format!("[{n}, {wk}]"))?;
    check(
        OP,
        "out",
        om == m && into.column + n <= out_stride,
        format!("[{m}, >= {}]", into.column + n),
        format!("[{om}, {out_stride}]"),
    )?;
    check_dtype(OP, "x", &[b.activation()], x.dtype())?;
    check(OP, "w", b.accepts_weight(w.dtype()), "a weight type of the backend", w.dtype())?;
    let out_types: &[DType] = if into.accumulate { &[DType::F32] } else { &[DType::F32, b.activation()] };
    check_dtype(OP, "out", out_types, out.dtype())?;
    if let Some(bias) = &bias {
        check_shape(OP, "bias", [n], bias.shape())?;
        check_dtype(OP, "bias", &[DType::F32], bias.dtype())?;
    }
    let p = MatmulParams {
        m: m as u32,
        n: n as u32,
        k: k as u32,
        x_stride: k as u32,
        out_stride: out_stride as u32,
        accumulate: into.accumulate as u32,
    };
    let mut out = out.slice();
    let skip = out.dtype.bytes(into.column);
    out.byte_offset += skip;
    out.byte_len -= skip;
    b.matmul(&p, x.slice(), w.slice(), bias.map(|v| v.slice()), out)
}

/// What rotates: see [`RopeParams`].
#[derive(Clone, Copy, Debug)]
pub struct Rope {
    /// Leading elements of a head that rotate.
    pub rotary_dim: usize,
    /// Pairs are (2i, 2i + 1) instead of (i, i + rotary_dim / 2).
    pub interleaved: bool,
    /// Multiplies cosine and sine.
    pub attention_factor: f32,
}

/// A rotary frequency, in radians per position, as the 64-bit fraction of a turn that [`RopeParams`] counts in.
///
/// Whole turns drop out. The fraction keeps the 53 bits of the f64, so at position 1,048,575 the angle is right to
/// 1e-9 radians. As a tensor, `turns` holds the low word first: `[t as u32, (t >> 32) as u32]`.
pub fn turns_from_frequency(radians_per_position: f64) -> u64 {
    let turns = (radians_per_position / std::f64::consts::TAU).rem_euclid(1.0);
    // The product is below 2^64 and exact (a power of two); `as` would saturate, not wrap, if it were not.
    (turns * 2f64.powi(64)) as u64
}

/// A band of heads in token-major rows: `heads` heads of `head_dim` beginning at element `column` of each row.
#[derive(Clone, Copy, Debug)]
pub struct HeadBand {
    /// First element within a row.
    pub column: usize,
    /// Heads.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

/// Rotates the heads of a band of x act `[n, row]` in place; turns u32 `[rotary_dim / 2, 2]`.
pub fn rope<B: Backend>(
    b: &B,
    turns: View<B>,
    x: ViewMut<B>,
    band: HeadBand,
    rope: Rope,
    position_start: usize,
) -> Result<()> {
    const OP: &str = "rope";
    let [n, row] = dims(OP, "x", x.shape())?;
    check_shape(OP, "turns", [rope.rotary_dim / 2, 2], turns.shape())?;
    check_dtype(OP, "turns", &[DType::U32], turns.dtype())?;
    check_dtype(OP, "x", &[b.activation()], x.dtype())?;
    check(
        OP,
        "rotary_dim",
        rope.rotary_dim <= band.head_dim && rope.rotary_dim.is_multiple_of(2),
        "even, at most head_dim",
        rope.rotary_dim,
    )?;
    let end = band.column + band.heads * band.head_dim;
    check(OP, "x", end <= row, format!("rows of at least {end}"), row)?;
    let p = RopeParams {
        n_tokens: n as u32,
        n_heads: band.heads as u32,
        head_dim: band.head_dim as u32,
        rotary_dim: rope.rotary_dim as u32,
        row_stride: row as u32,
        position_start: position_start as u32,
        interleaved: rope.interleaved as u32,
        attention_factor: rope.attention_factor,
    };
    let mut x = x.slice();
    let skip = x.dtype.bytes(band.column);
    x.byte_offset += skip;
    x.byte_len -= skip;
    b.rope(&p, turns.slice(), x)
}

/// gate_up act `[rows, 2 ffn]` (gate, then up), out act `[rows, ffn]`.
pub fn silu_mul<B: Backend>(b: &B, gate_up: View<B>, out: ViewMut<B>) -> Result<()> {
    const OP: &str = "silu_mul";
    let [rows, ffn] = dims(OP, "out", out.shape())?;
    check_shape(OP, "gate_up", [rows, 2 * ffn], gate_up.shape())?;
    check_dtype(OP, "gate_up", &[b.activation()], gate_up.dtype())?;
    check_dtype(OP, "out", &[b.activation()], out.dtype())?;
    b.silu_mul(&SiluMulParams { rows: rows as u32, ffn: ffn as u32 }, gate_up.slice(), out.slice())
}

/// `out += x`: x f32 or act, out f32, same shape.
pub fn add<B: Backend>(b: &B, x: View<B>, out: ViewMut<B>) -> Result<()> {
    const OP: &str = "add";
    check_shape(OP, "x", out.shape(), x.shape())?;
    check_dtype(OP, "x", &[DType::F32, b.activation()], x.dtype())?;
    check_dtype(OP, "out", &[DType::F32], out.dtype())?;
    b.add(&AddParams { len: x.shape().elements() as u32 }, x.slice(), out.slice())
}

/// Converts element types: f32, f16, bf16 to f32 or act, same shape.
pub fn cast<B: Backend>(b: &B, x: View<B>, out: ViewMut<B>) -> Result<()> {
    const OP: &str = "cast";
    check_shape(OP, "x", out.shape(), x.shape())?;
    check_dtype(OP, "x", &[DType::F32, DType::F16, DType::BF16], x.dtype())?;
    check_dtype(OP, "out", &[DType::F32, b.activation()], out.dtype())?;
    b.cast(&CastParams { len: x.shape().elements() as u32 }, x.slice(), out.slice())
}

/// Copies the K and V bands of rows x act `[n, row]` into the caches act `[KV, capacity, D]` from `position` on.
pub fn append_kv<B: Backend>(
    b: &B,
    x: View<B>,
    k: HeadBand,
    v: HeadBand,
    k_cache: ViewMut<B>,
    v_cache: ViewMut<B>,
    position: usize,
) -> Result<()> {
    const OP: &str = "append_kv";
    let ([n, row], [kv, capacity, d]) = (dims(OP, "x", x.shape())?, dims(OP, "k_cache", k_cache.shape())?);
    check_shape(OP, "v_cache", [kv, capacity, d], v_cache.shape())?;
    for band in [k, v] {
        check(
            OP,
            "band",
            band.heads == kv && band.head_dim == d && band.column + kv * d <= row,
            format!("{kv} heads of {d} in rows of {row}"),
            format!("{band:?}"),
        )?;
    }
    check(OP, "k_cache", position + n <= capacity, format!("room for {} tokens", position + n), capacity)?;
    check_dtype(OP, "x", &[b.activation()], x.dtype())?;
    check_dtype(OP, "k_cache", &[b.activation()], k_cache.dtype())?;
    check_dtype(OP, "v_cache", &[b.activation()], v_cache.dtype())?;
    let p = AppendKvParams {
        n_tokens: n as u32,
        n_kv_heads: kv as u32,
        head_dim: d as u32,
        row_stride: row as u32,
        capacity: capacity as u32,
        position: position as u32,
    };
    let part = |band: HeadBand| {
        let (mut s, skip) = (x.slice(), x.dtype().bytes(band.column));
        s.byte_offset += skip;
        s.byte_len -= skip;
        s
    };
    b.append_kv(&p, part(k), part(v), k_cache.slice(), v_cache.slice())
}

/// Words of a block of 32 packed elements.
pub const PACKED_KV_WORDS: usize = 9;

fn pack_params(op: &'static str, cache: Shape, packed: Shape, position: usize, tokens: usize) -> Result<PackKvParams> {
    let [kv, capacity, d] = dims(op, "cache", cache)?;
    check(op, "cache", d % 32 == 0, "a head_dim that is a multiple of 32", d)?;
    check_shape(op, "packed", [kv, capacity, d / 32 * PACKED_KV_WORDS], packed)?;
    check(op, "cache", position + tokens <= capacity, format!("room for {} tokens", position + tokens), capacity)?;
    Ok(PackKvParams {
        n_tokens: tokens as u32,
        n_kv_heads: kv as u32,
        head_dim: d as u32,
        capacity: capacity as u32,
        position: position as u32,
    })
}

/// Packs `tokens` rows from `position` on of a cache act `[KV, capacity, D]` into u32 `[KV, capacity, D / 32 * 9]`: blocks of
/// 32 elements as signed bytes under an f16 scale. The cache's rows become what the blocks say.
pub fn pack_kv<B: Backend>(b: &B, cache: ViewMut<B>, packed: ViewMut<B>, position: usize, tokens: usize) -> Result<()> {
    const OP: &str = "pack_kv";
    let p = pack_params(OP, cache.shape(), packed.shape(), position, tokens)?;
    check_dtype(OP, "cache", &[b.activation()], cache.dtype())?;
    check_dtype(OP, "packed", &[DType::U32], packed.dtype())?;
    if tokens == 0 { Ok(()) } else { b.pack_kv(&p, cache.slice(), packed.slice()) }
}

/// Unpacks what [`pack_kv`] packed: `tokens` rows from `position` on.
pub fn unpack_kv<B: Backend>(b: &B, packed: View<B>, cache: ViewMut<B>, position: usize, tokens: usize) -> Result<()> {
    const OP: &str = "unpack_kv";
    let p = pack_params(OP, cache.shape(), packed.shape(), position, tokens)?;
    check_dtype(OP, "cache", &[b.activation()], cache.dtype())?;
    check_dtype(OP, "packed", &[DType::U32], packed.dtype())?;
    if tokens == 0 { Ok(()) } else { b.unpack_kv(&p, packed.slice(), cache.slice()) }
}

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
        check(
            op,
            "kv_len",
            self.q_start + q_len <= kv_len,
            format!("at least q_start + q_len = {}", self.q_start + q_len),
            kv_len,
        )?;
        check(op, "scale", self.scale.is_finite(), "a finite softmax scale", self.scale)?;
        let fits = |what, [row, head]: [usize; 2], heads: usize, len: usize, shape: Shape| {
            let last = (heads - 1) * head + (len - 1) * row + d;
            check(
                op,
                what,
                last <= shape.elements(),
                format!("at least {last} elements under these strides"),
                shape.elements(),
            )
        };
        fits("q", self.q_stride, h, q_len, q.shape())?;
        fits("k", self.k_stride, kv, kv_len, k.shape())?;
        fits("v", self.v_stride, kv, kv_len, v.shape())?;
        if let Some(out) = out {
            fits("out", self.out_stride, h, q_len, out.shape())?;
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
        }
    }
}

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
    check_shape(OP, "column_score", [shape.n_heads, shape.kv_len], column_score.shape())?;
    check_shape(OP, "offset_score", [shape.n_heads, shape.kv_len], offset_score.shape())?;
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
    check(OP, "indices", irows == rows, format!("{rows} rows"), irows)?;
    check_dtype(OP, "scores", &[DType::F32], scores.dtype())?;
    let p = SelectTopKParams { rows: rows as u32, len: len as u32, capacity: capacity as u32, forced: forced as u32 };
    b.select_top_k(&p, scores.slice(), counts.slice(), indices.slice())
}

/// Mean of each block of 64 rows: x act with `[row, head]` strides, out f32 `[heads, ceil(len / 64), D]`.
pub fn pool_blocks<B: Backend>(
    b: &B,
    x: View<B>,
    len: usize,
    [row_stride, head_stride]: [usize; 2],
    out: ViewMut<B>,
) -> Result<()> {
    const OP: &str = "pool_blocks";
    let [heads, blocks, d] = dims(OP, "out", out.shape())?;
    check(OP, "out", blocks == len.div_ceil(BLOCK), format!("{} blocks", len.div_ceil(BLOCK)), blocks)?;
    let last = (heads - 1) * head_stride + (len - 1) * row_stride + d;
    check(OP, "x", last <= x.shape().elements(), format!("at least {last} elements"), x.shape().elements())?;
    let p = PoolBlocksParams {
        n_heads: heads as u32,
        len: len as u32,
        head_dim: d as u32,
        row_stride: row_stride as u32,
        head_stride: head_stride as u32,
        blocks: blocks as u32,
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
            self.start + band_len <= self.row_blocks(),
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
}

impl BlockBand {
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
    check(OP, "pooled_k", kd == d && h % kv == 0, format!("[divides {h}, _, {d}]"), format!("[{kv}, {c}, {kd}]"))?;
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

/// Makes every flex head of a plan vertical-slash, block-sparse or dense.
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
    const OP: &str = "attention";
    shape.validate(OP, &q, &k, &v, Some(&out))?;
    check_dtype(OP, "q", &[b.activation()], q.dtype())?;
    check_dtype(OP, "k", &[b.activation()], k.dtype())?;
    check_dtype(OP, "v", &[b.activation()], v.dtype())?;
    check_dtype(OP, "out", &[DType::F32, b.activation()], out.dtype())?;
    let l = index.layout;
    let (want, got) =
        ((shape.n_heads, shape.q_len, shape.kv_len, shape.q_start), (l.n_heads, l.q_len, l.kv_len, l.q_start));
    check(OP, "index", want == got, format!("(heads, q_len, kv_len, q_start) = {want:?}"), format!("{got:?}"))?;
    if let Some(lse) = &lse {
        check_shape(OP, "lse", [shape.n_heads, shape.q_len], lse.shape())?;
        check_dtype(OP, "lse", &[DType::F32], lse.dtype())?;
    }
    let p = shape.params(l.row_blocks(), l.column_tiles, lse.is_some());
    b.attention(&p, q.slice(), k.slice(), v.slice(), index.slices(), out.slice(), lse.map(|v| v.slice()))
}

/// Few queries over all their causal keys.
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
    check_dtype(OP, "q", &[b.activation()], q.dtype())?;
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
    let vectors = heads > 0 && [column, d, row].iter().all(|x| x.is_multiple_of(8)) && column + heads * d <= row;
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
    let (mut part, mut out, skip) = (part.slice(), out.slice(), b.activation().bytes(column));
    part.byte_offset += skip;
    part.byte_len -= skip;
    out.byte_offset += skip;
    out.byte_len -= skip;
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
