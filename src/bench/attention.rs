//! Attention of one layer, by length and pattern.

use super::{Inputs, Row, Sets, Spread, bands, go_on};
use crate::attend::{Layer, Source};
use crate::backend::cpu::available_memory;
use crate::backend::{Backend, warm_up};
use crate::pattern::{Extras, HeadPattern};
use crate::tensor::Tensor;
use crate::{Error, Result};
use rayon::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Where q, k and v come from.
#[derive(Clone, Debug)]
pub enum AttentionInput {
    /// [`Inputs::structured`] of these lengths, query heads, KV heads and head_dim.
    Made {
        /// Tokens.
        lengths: Vec<usize>,
        /// Query heads.
        heads: usize,
        /// KV heads.
        kv_heads: usize,
        /// Elements of a head.
        head_dim: usize,
    },
    /// A safetensors file as [`crate::attend::AttendOptions::input`], and where it holds `v_idx` and `s_idx` too, a row
    /// `given` for these sets.
    File(PathBuf),
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct AttentionBench {
    /// On what.
    pub input: AttentionInput,
    /// One row each, behind dense.
    pub patterns: Vec<HeadPattern>,
    /// Where the sets of vertical-slash patterns come from.
    pub sets: Sets,
    /// Timed runs.
    pub repeat: usize,
    /// Stops between runs.
    pub interrupt: Arc<AtomicBool>,
}

/// One row for dense and for each pattern, per length.
///
/// # Errors
/// [`Error::Invalid`] for heads that do not divide and the like; what the device reports.
pub fn attention<B: Backend>(b: &B, bench: &AttentionBench, each: &mut dyn FnMut(&Row)) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    match &bench.input {
        AttentionInput::File(path) => {
            let (layer, given) = Layer::read_with_sets(b, path)?;
            rows.extend(one_length(b, bench, &layer, given, each)?);
        }
        AttentionInput::Made { lengths, heads, kv_heads, head_dim } => {
            if *kv_heads == 0 || *heads == 0 || heads % kv_heads != 0 {
                let what = format!("expected query heads a multiple of the KV heads, found {heads} on {kv_heads}");
                return Err(Error::invalid(what));
            }
            if *head_dim == 0 || head_dim % 8 != 0 || *head_dim > 256 {
                return Err(Error::invalid(format!("head_dim: expected a multiple of 8 up to 256, found {head_dim}")));
            }
            for &len in lengths {
                if len == 0 || len > HeadPattern::MAX_ARGUMENT {
                    let most = HeadPattern::MAX_ARGUMENT;
                    return Err(Error::invalid(format!("length: expected 1 to {most} tokens, found {len}")));
                }
                check_memory(*heads, *kv_heads, *head_dim, len)?;
                let inputs = Inputs::structured(*heads, *kv_heads, *head_dim, len);
                let [q, k, v] = inputs.upload(b)?;
                let layer = Layer { shape: inputs.shape, extras: Extras::NONE, q, k, v };
                drop((inputs.q, inputs.k, inputs.v));
                rows.extend(one_length(b, bench, &layer, None, each)?);
            }
        }
    }
    Ok(rows)
}

/// Refuses made inputs, f16 `[len, heads + 2 kv_heads, head_dim]`, that do not fit this machine's memory.
fn check_memory(heads: usize, kv_heads: usize, head_dim: usize, len: usize) -> Result<()> {
    let rows = heads.checked_add(2 * kv_heads).and_then(|heads| heads.checked_mul(head_dim * 2));
    let bytes = rows.and_then(|bytes| bytes.checked_mul(len)).unwrap_or(usize::MAX) as u64;
    match available_memory() {
        Some(free) if bytes > free => {
            let what = format!("q, k and v of {heads} heads on {kv_heads} take {bytes} bytes, {free} are free");
            Err(Error::OutOfMemory(what))
        }
        _ => Ok(()),
    }
}

fn one_length<B: Backend>(
    b: &B,
    bench: &AttentionBench,
    layer: &Layer<B>,
    given: Option<Source>,
    each: &mut dyn FnMut(&Row),
) -> Result<Vec<Row>> {
    let heads = layer.shape.n_heads;
    let dense = ("dense".to_owned(), Source::Patterns(vec![HeadPattern::Dense; heads]));
    let sources = bench.patterns.iter().filter(|p| **p != HeadPattern::Dense).map(|&pattern| {
        let sets = |(columns, offsets)| {
            (0..heads).into_par_iter().map(move |h| bands(layer.shape.kv_len, columns, offsets, h))
        };
        match (pattern, bench.sets) {
            (HeadPattern::VerticalSlash { columns, offsets }, Sets::Bands) => {
                let (columns, offsets) = sets((columns, offsets)).unzip();
                (format!("{pattern} (bands)"), Source::Sets(columns, offsets))
            }
            _ => (pattern.to_string(), Source::Patterns(vec![pattern; heads])),
        }
    });
    let given = given.map(|source| ("given".to_owned(), source));
    let mut rows: Vec<Row> = Vec::new();
    let mut out = Tensor::alloc(b, b.activation(), [layer.shape.q_len, heads * layer.shape.head_dim])?;
    for (name, source) in std::iter::once(dense).chain(sources).chain(given) {
        let row = one_row(b, bench, layer, name, &source, &mut out)?.against(rows.first());
        each(&row);
        rows.push(row);
    }
    Ok(rows)
}

fn one_row<B: Backend>(
    b: &B,
    bench: &AttentionBench,
    layer: &Layer<B>,
    pattern: String,
    source: &Source,
    out: &mut Tensor<B>,
) -> Result<Row> {
    let shape = &layer.shape;
    let warm = warm_up(b.info().is_cpu, || {
        go_on(&bench.interrupt)?;
        layer.pass(b, source, false, out.view_mut(), None)
    })?;
    let mut stages = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..bench.repeat.max(1) {
        go_on(&bench.interrupt)?;
        let pass = layer.pass(b, source, false, out.view_mut(), None)?;
        stages.iter_mut().zip(pass.times_ms).for_each(|(all, ms)| all.push(ms));
    }
    let [estimate, index, attention] = stages.map(Spread::of);
    let pairs: u64 = warm.head_pairs.iter().sum();
    Ok(Row {
        what: "attention",
        device: b.info().id.clone(),
        pattern,
        tokens: shape.q_len,
        heads: shape.n_heads,
        kv_heads: shape.n_kv_heads,
        head_dim: shape.head_dim,
        dtype: b.activation().to_string(),
        ms: Some(attention.median),
        ms_min: Some(attention.min),
        ms_max: Some(attention.max),
        tflops: Some((4 * shape.head_dim as u64 * pairs) as f64 / attention.median / 1e9),
        density: Some(pairs as f64 / (shape.n_heads as u64 * shape.causal_pairs()) as f64),
        estimate_ms: Some(estimate.median),
        index_ms: Some(index.median),
        ..Row::default()
    })
}
