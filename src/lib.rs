//! Sparse pre-fill for long prompts on any GPU: MInference 1.0 in Rust.

#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod backend;
mod dtype;
mod error;
pub mod estimate;
pub mod index;
pub mod ops;
pub mod pattern;
pub mod tensor;

pub use dtype::DType;
pub use error::{Error, Result};
