//! Evaluations: what a model still answers when its pre-fill is sparse.

pub mod needle;
