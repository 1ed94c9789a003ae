//! Every operation on every backend, against the plain f64 statement of it in `common/naive.rs`. Outputs begin as NaN, and
//! K and V go on with NaN behind their last row, so that a value never written or wrongly read shows.

mod attention;
#[path = "../common/mod.rs"]
mod common;
mod estimation;
mod index;
mod mass;
mod methods;
mod rows;
mod xattention;

use minference::DType;
use minference::backend::Backend;
use minference::tensor::{Shape, Tensor, encode_f32};

/// f32 and the backend's activation type, each once.
fn float_types<B: Backend>(b: &B) -> Vec<DType> {
    let mut types = vec![DType::F32, b.activation()];
    types.dedup();
    types
}

/// Values stored in a type, and what they are after that.
fn stored<B: Backend>(b: &B, dtype: DType, shape: impl Into<Shape>, values: &[f32]) -> (Tensor<B>, Vec<f32>) {
    let tensor = Tensor::from_bytes(b, dtype, shape, &encode_f32(dtype, values).unwrap()).unwrap();
    (tensor, common::rounded(dtype, values))
}

fn f32s<B: Backend>(b: &B, shape: impl Into<Shape>, values: &[f32]) -> Tensor<B> {
    Tensor::from_slice(b, DType::F32, shape, values).unwrap()
}

fn u32s<B: Backend>(b: &B, shape: impl Into<Shape>, values: &[u32]) -> Tensor<B> {
    Tensor::from_slice(b, DType::U32, shape, values).unwrap()
}

/// A tensor of NaN, to be written.
fn poison<B: Backend>(b: &B, dtype: DType, shape: impl Into<Shape>) -> Tensor<B> {
    let shape = shape.into();
    stored(b, dtype, shape, &vec![f32::NAN; shape.elements()]).0
}

fn all_nan(values: &[f32]) -> bool {
    values.iter().all(|x| x.is_nan())
}
