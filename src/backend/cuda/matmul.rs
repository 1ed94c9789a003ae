//! `Backend::matmul`: cuBLASLt for many rows, a kernel of our own for one, packed weights unpacked by the slice.

use super::device::{CudaBuffer, Launch, arg};
use super::elementwise::weight_number;
use super::gemm::Operands;
use super::{Cuda, address, address_mut, kernels};
use crate::backend::params::MatmulParams;
use crate::backend::{Slice, SliceMut};
use crate::{DType, Result};

/// Unpacked weights that exist at a time: all of an 8B model's largest square matrix (4096 rows of 14336), small beside
/// the weights themselves.
const SLICE_BYTES: usize = 128 << 20;
/// Slices are equal multiples of so many rows: cuBLASLt has its fast kernels for whole tiles only (2340 rows of 14336, as
/// many as fill 64 MiB, took 2.5 times as long as 2048).
const SLICE_ROWS: u32 = 256;

pub(super) fn matmul(
    b: &Cuda,
    p: &MatmulParams,
    x: Slice<Cuda>,
    w: Slice<Cuda>,
    bias: Option<Slice<Cuda>>,
    out: SliceMut<Cuda>,
) -> Result<()> {
    let at = Operands { x: address(&x), w: address(&w), bias: bias.map(|s| address(&s)), out: address_mut(&out) };
    if p.m == 1 && p.k.is_multiple_of(8) && at.x.is_multiple_of(16) && at.w.is_multiple_of(16) {
        return matvec(b, p, w.dtype, out.dtype, at);
    }
    if w.dtype == b.options.activation {
        return product(b, p, out.dtype, at);
    }
    unpacked(b, p, w.dtype, out.dtype, at)
}

fn matvec(b: &Cuda, p: &MatmulParams, weight: DType, out: DType, at: Operands) -> Result<()> {
    let defines: [(&str, &dyn ToString); 3] =
        [("BF16", &b.bf16()), ("WEIGHT", &weight_number(weight)?), ("OUT", &b.c_type(out))];
    let bias = at.bias.unwrap_or(0);
    let launch = Launch::new([p.n.div_ceil(8), 1, 1], 128);
    let args = [arg(p), arg(&at.x), arg(&at.w), arg(&bias), arg(&at.out)];
    b.launch(&kernels::MATVEC.with(&defines), "matvec", launch, &args)
}

/// Weights of the activations' type.
fn product(b: &Cuda, p: &MatmulParams, out: DType, at: Operands) -> Result<()> {
    let bias_left = b.gemm.run(p, b.options.activation == DType::BF16, out == DType::F32, at)?;
    let (Some(bias), true) = (at.bias, bias_left) else { return Ok(()) };
    let kernel = kernels::ADD_BIAS.with(&[("BF16", &b.bf16()), ("OUT", &b.c_type(out))]);
    let launch = Launch::new([p.n.div_ceil(256), p.m.min(65_535), 1], 256);
    b.launch(&kernel, "add_bias", launch, &[arg(p), arg(&bias), arg(&at.out)])
}

/// Weights of another type: some rows at a time become activations, and make a band of columns of `out`.
fn unpacked(b: &Cuda, p: &MatmulParams, weight: DType, out: DType, at: Operands) -> Result<()> {
    let kernel = kernels::DEQUANTIZE.with(&[("BF16", &b.bf16()), ("WEIGHT", &weight_number(weight)?)]);
    let most = ((SLICE_BYTES / 2 / p.k as usize) as u32 / SLICE_ROWS).max(1) * SLICE_ROWS;
    let rows = p.n.div_ceil(p.n.div_ceil(most)).next_multiple_of(SLICE_ROWS).min(p.n);
    let slice: CudaBuffer = b.alloc_buffer(rows as usize * p.k as usize * 2)?;
    let slice_address = slice.address();
    for first in (0..p.n).step_by(rows as usize) {
        let n = rows.min(p.n - first);
        let from = at.w + weight.bytes(first as usize * p.k as usize) as u64;
        let launch = Launch::new([p.k.div_ceil(2048), n.min(65_535), 1], 256);
        b.launch(&kernel, "dequantize", launch, &[arg(&n), arg(&p.k), arg(&from), arg(&slice_address)])?;
        let part = Operands {
            w: slice_address,
            bias: at.bias.map(|bias| bias + 4 * first as u64),
            out: at.out + out.bytes(first as usize) as u64,
            ..at
        };
        product(b, &MatmulParams { n, ..*p }, out, part)?;
    }
    Ok(())
}
