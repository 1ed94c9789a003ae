//! Embedding, norms, RoPE, SwiGLU, sums, casts and the cache: one launch each.

use super::device::{Launch, arg};
use super::{Cuda, address, address_mut, kernels};
use crate::backend::params::*;
use crate::backend::{Slice, SliceMut};
use crate::{DType, Error, Result};

/// Rows of a grid's y dimension; kernels step by it over more.
const MAX_ROWS: u32 = 65_535;

/// The number of a stored type in `shared/weights.cu`.
pub(super) fn weight_number(dtype: DType) -> Result<u32> {
    Ok(match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
        DType::Q4_0 => 3,
        DType::Q4_1 => 4,
        DType::Q5_0 => 5,
        DType::Q8_0 => 6,
        DType::Q4K => 7,
        DType::Q5K => 8,
        DType::Q6K => 9,
        DType::U32 => return Err(Error::invalid("u32 is no weight type")),
    })
}

pub(super) fn embed(
    b: &Cuda,
    p: &EmbedParams,
    ids: Slice<Cuda>,
    table: Slice<Cuda>,
    out: SliceMut<Cuda>,
) -> Result<()> {
    let kernel = kernels::EMBED.with(&[("BF16", &b.bf16()), ("WEIGHT", &weight_number(table.dtype)?)]);
    let (ids, table, out) = (address(&ids), address(&table), address_mut(&out));
    b.launch(&kernel, "embed", Launch::new([p.n_tokens, 1, 1], 256), &[arg(p), arg(&ids), arg(&table), arg(&out)])
}

pub(super) fn rms_norm(
    b: &Cuda,
    p: &RmsNormParams,
    x: Slice<Cuda>,
    weight: Slice<Cuda>,
    out: SliceMut<Cuda>,
) -> Result<()> {
    let types = [("X", b.c_type(x.dtype)), ("OUT", b.c_type(out.dtype))];
    let (x, weight, out) = (address(&x), address(&weight), address_mut(&out));
    let by_four = (p.cols | p.x_stride | p.out_stride).is_multiple_of(4) && (x | weight | out).is_multiple_of(16);
    let vector: u32 = if by_four { 4 } else { 1 };
    let mut kernel = kernels::RMS_NORM.with(&[("BF16", &b.bf16()), ("VECTOR", &vector)]);
    kernel.defines.extend(types.map(|(name, c_type)| (name, c_type.to_string())));
    // A head of 128 is one load a lane of a warp; a block of 256 would mostly wait for itself.
    let threads = if p.cols <= 256 { 32 } else { 256 };
    let launch = Launch::new([p.rows * p.groups, 1, 1], threads);
    b.launch(&kernel, "rms_norm", launch, &[arg(p), arg(&x), arg(&weight), arg(&out)])
}

pub(super) fn rope(b: &Cuda, p: &RopeParams, turns: Slice<Cuda>, x: SliceMut<Cuda>) -> Result<()> {
    let (turns, x, shift) = (address(&turns), address_mut(&x), b.shift_address(None));
    let by_eight =
        p.rotary_dim.is_multiple_of(16) && (p.head_dim | p.row_stride).is_multiple_of(8) && x.is_multiple_of(16);
    let vector: u32 = if by_eight && p.interleaved == 0 { 8 } else { 1 };
    let kernel = kernels::ROPE.with(&[("BF16", &b.bf16()), ("VECTOR", &vector)]);
    // Sine and cosine are shared by the heads of a block; few tokens need more blocks to fill the device.
    let head_blocks = (4 * b.limits.processors / p.n_tokens.max(1)).clamp(1, p.n_heads.max(1));
    let launch = Launch::new([p.n_tokens, head_blocks, 1], 128);
    b.launch(&kernel, "rope", launch, &[arg(p), arg(&turns), arg(&x), arg(&shift)])
}

pub(super) fn silu_mul(b: &Cuda, p: &SiluMulParams, gate_up: Slice<Cuda>, out: SliceMut<Cuda>) -> Result<()> {
    let (gate_up, out) = (address(&gate_up), address_mut(&out));
    let vector: u32 = if p.ffn.is_multiple_of(8) && (gate_up | out) % 16 == 0 { 8 } else { 1 };
    let kernel = kernels::SILU_MUL.with(&[("BF16", &b.bf16()), ("VECTOR", &vector)]);
    let launch = Launch::new([p.ffn.div_ceil(256 * vector), p.rows.min(MAX_ROWS), 1], 256);
    b.launch(&kernel, "silu_mul", launch, &[arg(p), arg(&gate_up), arg(&out)])
}

/// Blocks of a loop over `len` elements by 256 threads each.
fn blocks(b: &Cuda, len: u32) -> u32 {
    len.div_ceil(256).min(32 * b.limits.processors)
}

pub(super) fn add(b: &Cuda, p: &AddParams, x: Slice<Cuda>, out: SliceMut<Cuda>) -> Result<()> {
    let kernel = kernels::ADD.with(&[("BF16", &b.bf16()), ("X", &b.c_type(x.dtype))]);
    let (x, out) = (address(&x), address_mut(&out));
    b.launch(&kernel, "add", Launch::new([blocks(b, p.len), 1, 1], 256), &[arg(p), arg(&x), arg(&out)])
}

pub(super) fn cast(b: &Cuda, p: &CastParams, x: Slice<Cuda>, out: SliceMut<Cuda>) -> Result<()> {
    let from = weight_number(x.dtype)?;
    let kernel = kernels::CAST.with(&[("BF16", &b.bf16()), ("FROM", &from), ("OUT", &b.c_type(out.dtype))]);
    let (x, out) = (address(&x), address_mut(&out));
    b.launch(&kernel, "cast", Launch::new([blocks(b, p.len), 1, 1], 256), &[arg(p), arg(&x), arg(&out)])
}

pub(super) fn append_kv(b: &Cuda, p: &AppendKvParams, from: [Slice<Cuda>; 2], to: [SliceMut<Cuda>; 2]) -> Result<()> {
    let kernel = kernels::APPEND_KV.with(&[("BF16", &b.bf16())]);
    let ([k, v], [k_cache, v_cache]) = (from.map(|s| address(&s)), to.map(|s| address_mut(&s)));
    require_vectors("append_kv", &[k, v, k_cache, v_cache], &[p.head_dim, p.row_stride])?;
    let (launch, shift) = (Launch::new([p.n_tokens, 1, 1], 256), b.shift_address(None));
    b.launch(&kernel, "append_kv", launch, &[arg(p), arg(&k), arg(&v), arg(&k_cache), arg(&v_cache), arg(&shift)])
}

pub(super) fn pack_kv(b: &Cuda, p: &PackKvParams, x: SliceMut<Cuda>, packed: SliceMut<Cuda>) -> Result<()> {
    let kernel = kernels::PACK_KV.with(&[("BF16", &b.bf16())]);
    let (x, packed) = (address_mut(&x), address_mut(&packed));
    let launch = Launch::new([(p.n_tokens * p.n_kv_heads * (p.head_dim / 32)).div_ceil(8), 1, 1], 256);
    b.launch(&kernel, "pack_kv", launch, &[arg(p), arg(&x), arg(&packed)])
}

pub(super) fn unpack_kv(b: &Cuda, p: &PackKvParams, packed: Slice<Cuda>, out: SliceMut<Cuda>) -> Result<()> {
    let kernel = kernels::PACK_KV.with(&[("BF16", &b.bf16())]);
    let (packed, out) = (address(&packed), address_mut(&out));
    let launch = Launch::new([(p.n_tokens * p.n_kv_heads * (p.head_dim / 4)).div_ceil(256), 1, 1], 256);
    b.launch(&kernel, "unpack_kv", launch, &[arg(p), arg(&packed), arg(&out)])
}

/// 16-byte accesses: addresses must be multiples of 16, lengths and strides multiples of 8 elements.
pub(super) fn require_vectors(op: &'static str, addresses: &[u64], elements: &[u32]) -> Result<()> {
    let aligned = addresses.iter().all(|a| a % 16 == 0);
    if aligned && elements.iter().all(|n| n % 8 == 0) {
        return Ok(());
    }
    let what = if aligned { "strides" } else { "address" };
    let expected = "multiples of 8 elements (16 bytes)".to_string();
    Err(Error::Shape {
        op,
        what,
        expected,
        got: if aligned { format!("{elements:?}") } else { format!("{addresses:x?}") },
    })
}
