//! Decoders of the Llama kind on any backend. Families are data ([`family`]): a config, a table of tensor names, and the
//! one forward pass of [`decoder`].

pub mod config;
pub mod family;
mod fields;
pub mod rope;

pub use config::{DecoderConfig, DualChunk};
