//! Sparse pre-fill for long prompts on any GPU: MInference 1.0 in Rust.
//!
//! `unsafe` is denied but in these files: `backend/cpu/gemm.rs` (the `gemm` crate's one function, behind asserted bounds),
//! `backend/cuda/{compile,device,gemm}.rs` (NVRTC, the driver with its launches and tensor maps, cuBLASLt),
//! `backend/wgpu/context.rs` (trusted shaders, experimental features, the pipeline cache) and `weights/mmap.rs`.

#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod attend;
pub mod attention;
pub mod backend;
pub mod chat;
#[cfg(feature = "cli")]
pub mod cli;
mod dtype;
#[cfg(feature = "cli")]
pub mod embedded;
pub mod engine;
mod error;
pub mod estimate;
pub mod eval;
pub(crate) mod files;
pub mod index;
pub mod model;
pub mod ops;
pub mod pattern;
#[cfg(feature = "cli")]
pub mod plot;
pub mod sample;
pub mod tensor;
mod tensor_file;
pub mod text;
pub mod tokenizer;
pub mod weights;

pub use dtype::DType;
pub use error::{Error, Result};
