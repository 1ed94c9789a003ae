//! Operations on rows: one token, or one head of it, at a time.

use super::*;
use crate::backend::Backend;
use crate::backend::params::*;
use crate::tensor::{Shape, View, ViewMut};
use crate::{DType, Result};

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
    let end = band.end();
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
    b.rms_norm(&p, x.slice().skip(band.column), weight.slice(), out.slice().skip(band.column))
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
    let end = into.column.saturating_add(n);
    check(OP, "out", om == m && end <= out_stride, format!("[{m}, >= {end}]"), format!("[{om}, {out_stride}]"))?;
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
    b.matmul(&p, x.slice(), w.slice(), bias.map(|v| v.slice()), out.slice().skip(into.column))
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

impl HeadBand {
    /// Where the band ends within a row.
    pub(super) fn end(&self) -> usize {
        self.heads.saturating_mul(self.head_dim).saturating_add(self.column)
    }
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
    let end = band.end();
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
    b.rope(&p, turns.slice(), x.slice().skip(band.column))
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
    b.add(&AddParams { len: count(OP, x.shape())? }, x.slice(), out.slice())
}

/// Converts element types: f32, f16, bf16 to f32 or act, same shape.
pub fn cast<B: Backend>(b: &B, x: View<B>, out: ViewMut<B>) -> Result<()> {
    const OP: &str = "cast";
    check_shape(OP, "x", out.shape(), x.shape())?;
    check_dtype(OP, "x", &[DType::F32, DType::F16, DType::BF16], x.dtype())?;
    check_dtype(OP, "out", &[DType::F32, b.activation()], out.dtype())?;
    b.cast(&CastParams { len: count(OP, x.shape())? }, x.slice(), out.slice())
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
            band.heads == kv && band.head_dim == d && band.end() <= row,
            format!("{kv} heads of {d} in rows of {row}"),
            format!("{band:?}"),
        )?;
    }
    let end = position.saturating_add(n);
    check(OP, "k_cache", end <= capacity, format!("room for {end} tokens"), capacity)?;
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
    let part = |band: HeadBand| x.slice().skip(band.column);
    b.append_kv(&p, part(k), part(v), k_cache.slice(), v_cache.slice())
}

/// Words of a block of 32 packed elements.
pub const PACKED_KV_WORDS: usize = 9;

fn pack_params(op: &'static str, cache: Shape, packed: Shape, position: usize, tokens: usize) -> Result<PackKvParams> {
    let [kv, capacity, d] = dims(op, "cache", cache)?;
    check(op, "cache", d % 32 == 0, "a head_dim that is a multiple of 32", d)?;
    check_shape(op, "packed", [kv, capacity, d / 32 * PACKED_KV_WORDS], packed)?;
    let end = position.saturating_add(tokens);
    check(op, "cache", end <= capacity, format!("room for {end} tokens"), capacity)?;
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
