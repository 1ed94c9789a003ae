//! The checked front of a [`Backend`](crate::backend::Backend): shapes and element types are validated here, once, and
//! nowhere below.
//!
//! Letters in shapes: `n` tokens, `H` query heads, `KV` key and value heads, `D` head_dim, `R` row blocks, `C` key blocks.
//!
//! Every operation fails with [`Error::Shape`], which names it, the argument and both values, before anything is enqueued;
//! else with what the backend reports ([`Error::OutOfMemory`], [`Error::Device`]).
//!
//! `rows`: what works token by token. `estimation`: scores, choices and the index. `attention`: over an index, and over a
//! cache.

mod attention;
mod estimation;
mod rows;

pub use attention::*;
pub use estimation::*;
pub use rows::*;

use crate::tensor::Shape;
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

/// The elements of a view, which kernels count in 32 bits.
fn count(op: &'static str, shape: Shape) -> Result<u32> {
    let elements = shape.elements();
    let (expected, got) = (format!("at most {} elements", u32::MAX), elements.to_string());
    u32::try_from(elements).map_err(|_| Error::Shape { op, what: "x", expected, got })
}

/// That rows of heads lie within a view under `[row, head]` strides.
fn check_strided(
    op: &'static str,
    [heads, len, width]: [usize; 3],
    [row_stride, head_stride]: [usize; 2],
    x: Shape,
) -> Result<()> {
    check(op, "x", heads > 0 && len > 0, "at least one row of one head", format!("{len} of {heads}"))?;
    check_extent(op, "x", [heads, len, width], [row_stride, head_stride], x)
}

/// That heads of rows, at least one, end within a tensor under `[row, head]` strides, which kernels take as 32 bits.
fn check_extent(
    op: &'static str,
    what: &'static str,
    [heads, len, width]: [usize; 3],
    [row_stride, head_stride]: [usize; 2],
    x: Shape,
) -> Result<()> {
    for (strides, stride) in [(len - 1, row_stride), (heads - 1, head_stride)] {
        let narrow = strides == 0 || strides.max(stride) <= u32::MAX as usize;
        check(op, what, narrow, "numbers and strides within 32 bits", format!("{strides} strides of {stride}"))?;
    }
    let rows = (heads - 1).saturating_mul(head_stride).saturating_add((len - 1).saturating_mul(row_stride));
    let last = rows.saturating_add(width);
    check(op, what, last <= x.elements(), format!("at least {last} elements under these strides"), x.elements())
}

/// The dimensions of a view whose rank is known. None may be 0: kernels and chunks of no rows are nobody's case.
fn dims<const N: usize>(op: &'static str, what: &'static str, shape: Shape) -> Result<[usize; N]> {
    shape.dims().try_into().ok().filter(|dims: &[usize; N]| !dims.contains(&0)).ok_or_else(|| Error::Shape {
        op,
        what,
        expected: format!("{N} dimensions of at least 1"),
        got: format!("{shape:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::tensor::Tensor;

    #[test]
    fn empty_tensors_are_refused() {
        let b = Cpu::new();
        let tensor = |shape: [usize; 2]| Tensor::<Cpu>::alloc(&b, DType::F32, shape).unwrap();
        let refused = |result: Result<()>| assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}");
        for [m, n, k] in [[0, 8, 8], [8, 0, 8], [8, 8, 0]] {
            let (x, w, mut out) = (tensor([m, k]), tensor([n, k]), tensor([m, n]));
            refused(matmul(&b, x.view(), w.view(), None, out.view_mut(), MatmulInto::default()));
        }
        for [rows, cols] in [[0, 8], [8, 0]] {
            let (x, wide, mut out) = (tensor([rows, cols]), tensor([rows, 2 * cols]), tensor([rows, cols]));
            let weight = Tensor::<Cpu>::alloc(&b, DType::F32, [cols]).unwrap();
            refused(rms_norm(&b, x.view(), weight.view(), 1e-5, out.view_mut()));
            refused(silu_mul(&b, wide.view(), out.view_mut()));
        }
    }

    /// Sums that would wrap to something small must not pass for it, nor scales that turn scores around: kernels trust what was
    /// checked here.
    #[test]
    fn numbers_that_kernels_rely_on_are_checked() {
        let b = Cpu::new();
        let (x, mut out) = (
            Tensor::activation(&b, [8, 16], &[0.5; 128]).unwrap(),
            Tensor::activation(&b, [8, 16], &[0.0; 128]).unwrap(),
        );
        let fits = AttentionShape {
            n_heads: 2,
            n_kv_heads: 2,
            head_dim: 8,
            q_len: 8,
            kv_len: 8,
            q_start: 0,
            scale: 1.0,
            q_stride: [16, 8],
            k_stride: [16, 8],
            v_stride: [16, 8],
            out_stride: [16, 8],
        };
        let mut go = |shape: AttentionShape| decode_attention(&b, &shape, x.view(), x.view(), x.view(), out.view_mut());
        go(fits).unwrap();
        // 2^63 times 2 is 0 in 64 bits; 2^32 + 16 is 16 in the 32 bits of a kernel.
        let big = [1 << 63, 1 << 62, (1 << 32) + 16, usize::MAX];
        for stride in big {
            for shape in [
                AttentionShape { q_stride: [stride, 8], ..fits },
                AttentionShape { k_stride: [16, stride], ..fits },
                AttentionShape { v_stride: [stride, stride], ..fits },
                AttentionShape { out_stride: [16, stride], ..fits },
                AttentionShape { q_start: stride, ..fits },
                AttentionShape { q_start: stride, kv_len: stride, ..fits },
                AttentionShape { kv_len: stride, k_stride: [0, 0], v_stride: [0, 0], ..fits },
                AttentionShape { q_len: stride, kv_len: stride, q_stride: [0, 0], ..fits },
            ] {
                assert!(matches!(go(shape), Err(Error::Shape { .. })), "{shape:?}");
            }
        }
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(go(AttentionShape { scale, ..fits }), Err(Error::Shape { what: "scale", .. })), "{scale}");
        }
        let turns = Tensor::from_slice(&b, DType::U32, [4, 2], &[0u32; 8]).unwrap();
        let turning = Rope { rotary_dim: 8, interleaved: false, attention_factor: 1.0 };
        for band in big.into_iter().flat_map(|n| {
            [HeadBand { column: n, heads: 2, head_dim: 8 }, HeadBand { column: 8, heads: n, head_dim: 8 }]
        }) {
            assert!(
                matches!(rope(&b, turns.view(), out.view_mut(), band, turning, 0), Err(Error::Shape { .. })),
                "{band:?}"
            );
        }
        for shape in [[1 << 32, 1 << 32], [1 << 62, 1], [usize::MAX, 2]] {
            assert!(matches!(Tensor::<Cpu>::alloc(&b, DType::F32, shape), Err(Error::OutOfMemory(_))), "{shape:?}");
            let buffer = Tensor::from_slice(&b, DType::U32, [2], &[0u32; 2]).unwrap().into_buffer();
            assert!(matches!(Tensor::<Cpu>::from_buffer(buffer, DType::F32, shape), Err(Error::Shape { .. })));
        }
    }
}
