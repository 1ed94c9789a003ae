//! Sparse pre-fill for long prompts on any GPU: MInference 1.0 in Rust.
//!
//! While a decoder reads a long prompt, each attention head computes only the parts of its attention map that matter,
//! found anew for each prompt at a small cost ([paper](https://arxiv.org/abs/2407.02490)). Weights stay as they are and
//! decoding stays dense.
//!
//! ```no_run
//! use minference::backend::cpu::Cpu;
//! use minference::engine::{Engine, EngineOptions};
//! use minference::model::Model;
//! use minference::pattern::AttentionMode;
//! use minference::sample::Sampler;
//!
//! let model = Model::open("checkpoint")?;
//! let text = model.text()?.clone();
//! let mut engine = Engine::new(Cpu::new(), model, EngineOptions::default())?;
//! let mode = AttentionMode::Uniform("vertical_slash:1000:6096".parse()?);
//! let prefill = engine.prefill(&text.encode("A long prompt ...")?, &mode, &mut |_| ())?;
//! let answer = engine.generate(&prefill.logits, &mut Sampler::greedy(), 64, &mut |_| ())?;
//! println!("{}", text.tokenizer.decode(&answer.ids));
//! # Ok::<(), minference::Error>(())
//! ```
//!
//! # How it flows
//!
//! ```text
//! HeadPattern --estimate--> SparseIndex --attention--> output
//! (config, JSON)            (key ranges and columns:    (one kernel, all heads of a layer in one launch,
//!                            the narrow waist)           any mix of patterns)
//! ```
//!
//! Patterns never touch kernels and kernels never know patterns: a pattern is a way to fill a [`index::SparseIndex`].
//! [`model`] runs layers on a [`backend::Backend`], [`engine`] feeds it prompts in chunks, and the program
//! (`cli`) and the evaluations ([`eval`]) use the engine only. Modules use only what stands lower; `tests/layers.rs`
//! keeps it so.
//!
//! # Concepts
//!
//! | paper | official Python | here |
//! | --- | --- | --- |
//! | sparse pattern of a head (3.1) | `"vertical_and_slash"`, `"stream_llm"`, `"block_sparse"` | [`pattern::HeadPattern`] |
//! | kernel-aware search result (algorithm 1) | `best_pattern` JSON | [`pattern::PatternConfig`] |
//! | approximation from the last queries (algorithm 2) | `vertical_and_slash_kernel` | [`estimate`], `Backend::score_last_queries`, `select_top_k` |
//! | mean-pooled block scores (algorithm 3) | `block_sparse_kernel` | [`estimate`], `Backend::pool_blocks`, `score_blocks` |
//! | sparse index | `convert_vertical_slash_indexes` | [`index::SparseIndex`], `Backend::build_index` |
//! | sparse FlashAttention | one Triton or CUDA kernel per pattern | [`ops::attention`], one kernel for all |
//! | needle in a haystack, RULER, InfiniteBench, PG-19, latency (4.2) | `experiments/` | [`eval`] |
//!
//! # Where do I add ...
//!
//! - **a pattern:** an arm of [`pattern::HeadPattern`] and of the one `match` in `estimate/plan.rs`; where none of the
//!   existing ways to choose fits, a file beside `estimate/vertical_slash.rs`. Without touching the crate: fill a
//!   [`index::HostIndex`] (`examples/custom_pattern.rs`).
//! - **a model family:** a row of [`model::family::FAMILIES`]: config keys, tensor names, switches. No new forward pass.
//! - **an operation:** one stem everywhere: `Backend::rope`, [`ops::rope`], `backend/cpu/rope.rs`, `shaders/rope.wgsl`,
//!   `shaders/cuda/rope.cu`, a params struct in [`backend::params`], a conformance test.
//! - **a backend:** an implementation of [`backend::Backend`] that passes `tests/conformance`, and an arm of the match in
//!   `cli/device.rs`.
//! - **a command:** a file in `cli/` and an arm in `cli/mod.rs`.
//!
//! Features: `wgpu` and `cli` by default, `cuda`. Errors are one type, [`Error`], which separates bad input from failure.
//!
//! `unsafe` is denied but in these files: `backend/cpu/gemm.rs` (the `gemm` crate's one function, behind asserted bounds),
//! `backend/cuda/{compile,device,gemm}.rs` (NVRTC, the driver with its launches and tensor maps, cuBLASLt),
//! `backend/wgpu/context.rs` (trusted shaders, experimental features, the pipeline cache) and `weights/mmap.rs`.

#![deny(missing_docs)]
#![deny(unsafe_code)]
// Bad input ends in an `Error`: outside tests nothing may give up.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable, clippy::todo)
)]

pub mod attend;
pub mod attention;
pub mod backend;
pub mod bench;
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
pub(crate) mod fnv;
pub mod index;
pub mod insight;
pub mod model;
pub mod ops;
pub mod pattern;
#[cfg(feature = "cli")]
pub mod plot;
pub mod sample;
pub mod search;
pub(crate) mod splitmix;
pub mod tensor;
mod tensor_file;
pub mod text;
pub mod tokenizer;
pub mod weights;

pub use dtype::DType;
pub use error::{Error, Result};
