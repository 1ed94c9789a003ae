//! `out[r, c] (+)= sum_k x[r, k] w[c, k] + bias[c]`, w in any weight type.

use super::gemm::matmul_transposed;
use super::simd;
use crate::backend::params::MatmulParams;
use crate::weights::dequantize_into;
use crate::{DType, Error, Result};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// While x is at most this large (512 KiB, half of a common second-level cache), each weight row becomes f32 once and
/// meets all rows of x: decoding reads every weight once, so memory decides, and a product of 8 rows of 4096 runs at 42
/// GFLOP/s this way and at 11 by blocks, which are copied before use. Beyond it the blocked product wins.
const SMALL_X: usize = 1 << 17;

/// Elements of the panel of weight rows that becomes f32 at a time: 4 MiB, which stays in the outer caches.
const PANEL: usize = 1 << 20;

pub(super) fn matmul(
    p: &MatmulParams,
    x: &[f32],
    dtype: DType,
    w: &[u8],
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    let [m, n, k] = [p.m as usize, p.n as usize, p.k as usize];
    let row = row_bytes("matmul", dtype, k)?;
    if m == 1 || m * k <= SMALL_X {
        return small_x(p, x, dtype, w, bias, out);
    }
    let (x, out_stride) = ((x, p.x_stride as usize), p.out_stride as usize);
    let mut accumulate = p.accumulate == 1;
    if let Some(bias) = bias {
        out.par_chunks_mut(out_stride).take(m).for_each(|out| {
            for (out, b) in out[..n].iter_mut().zip(bias) {
                *out = if accumulate { *out + b } else { *b };
            }
        });
        accumulate = true;
    }
    if dtype == DType::F32 && (w.as_ptr() as usize).is_multiple_of(align_of::<f32>()) {
        matmul_transposed([m, n, k], x, bytemuck::cast_slice(w), (out, out_stride), accumulate);
        return Ok(());
    }
    let panel_rows = (PANEL / k).max(1);
    let mut panel = vec![0.0; panel_rows.min(n) * k];
    for (i, w) in w.chunks(panel_rows * row).enumerate() {
        let rows = w.len() / row;
        let parts = panel.par_chunks_mut(k).zip(w.par_chunks(row)).with_min_len(8);
        parts.try_for_each(|(panel, w)| dequantize_into(dtype, w, panel))?;
        let out = (&mut out[i * panel_rows..], out_stride);
        matmul_transposed([m, rows, k], x, &panel, out, accumulate);
    }
    Ok(())
}

/// One pass over the weights, in their own order.
fn small_x(p: &MatmulParams, x: &[f32], dtype: DType, w: &[u8], bias: Option<&[f32]>, out: &mut [f32]) -> Result<()> {
    let [m, n, k] = [p.m as usize, p.n as usize, p.k as usize];
    let (row, arch) = (dtype.bytes(k), Arch::new());
    let mut products = vec![0.0; n * m];
    // 16 rows a step: long enough to be worth handing out, short enough to balance.
    products.par_chunks_mut(16 * m).zip(w.par_chunks(16 * row)).try_for_each_init(
        || vec![0.0; k],
        |buffer, (products, w)| {
            for (products, w) in products.chunks_exact_mut(m).zip(w.chunks_exact(row)) {
                let w = match bytemuck::try_cast_slice(w) {
                    Ok(w) if dtype == DType::F32 => w,
                    _ => {
                        dequantize_into(dtype, w, buffer)?;
                        &*buffer
                    }
                };
                arch.dispatch(RowDots { x, x_stride: p.x_stride as usize, w, products });
            }
            Ok::<_, Error>(())
        },
    )?;
    for (r, out) in out.chunks_mut(p.out_stride as usize).take(m).enumerate() {
        for (c, out) in out[..n].iter_mut().enumerate() {
            let start = if p.accumulate == 1 { *out } else { 0.0 };
            *out = start + products[c * m + r] + bias.map_or(0.0, |b| b[c]);
        }
    }
    Ok(())
}

/// One weight row against each row of x.
struct RowDots<'a> {
    x: &'a [f32],
    x_stride: usize,
    w: &'a [f32],
    products: &'a mut [f32],
}

impl WithSimd for RowDots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (r, product) in self.products.iter_mut().enumerate() {
            *product = simd::dot(simd, &self.x[r * self.x_stride..][..self.w.len()], self.w);
        }
    }
}

/// Bytes of a row of `k` weights; packed types cannot break a block between rows.
pub(super) fn row_bytes(op: &'static str, dtype: DType, k: usize) -> Result<usize> {
    if k.is_multiple_of(dtype.block_len()) && k > 0 {
        return Ok(dtype.bytes(k));
    }
    Err(Error::Shape {
        op,
        what: "row length",
        expected: format!("a multiple of {dtype}'s block of {}", dtype.block_len()),
        got: k.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{dequantize, random_blocks};

    /// More weights than a panel, more x than [`SMALL_X`]: unpacked at once or by panels, the product is the same.
    #[test]
    fn panels_join() {
        let [m, n, k] = [140, 1501, 1024];
        let p = MatmulParams { m: 140, n: 1501, k: 1024, x_stride: 1024, out_stride: 1501, accumulate: 0 };
        let bytes = random_blocks(DType::Q8_0, n * k, 1, 0.1).unwrap();
        let values = dequantize(DType::Q8_0, &bytes, n * k).unwrap();
        let x: Vec<f32> = (0..m * k).map(|i| (i as f32).sin()).collect();
        let mut outs = [vec![f32::NAN; m * n], vec![f32::NAN; m * n]];
        matmul(&p, &x, DType::Q8_0, &bytes, None, &mut outs[0]).unwrap();
        matmul(&p, &x, DType::F32, bytemuck::cast_slice(&values), None, &mut outs[1]).unwrap();
        for (i, (a, b)) in outs[0].iter().zip(&outs[1]).enumerate() {
            assert!((a - b).abs() < 1e-3, "element {i}: {a} by panels, {b} at once");
        }
    }

    #[test]
    fn rows_that_break_a_block_are_refused() {
        let error = row_bytes("matmul", DType::Q4K, 128).unwrap_err().to_string();
        assert_eq!(error, "matmul: row length: expected a multiple of q4_k's block of 256, got 128");
    }
}
