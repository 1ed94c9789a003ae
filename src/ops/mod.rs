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
    let last = (heads - 1) * head_stride + (len - 1) * row_stride + width;
    check(op, "x", last <= x.elements(), format!("at least {last} elements"), x.elements())
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
