//! What `minference bench` measures, and the inputs that the benches in `benches/` and the examples measure on too.
//!
//! Times are medians over runs that each begin and end with the device idle, after some to warm up. Dense attention is
//! a row of every table, so that a speed-up is read and not computed.

mod attention;
mod inputs;
mod prefill;

pub use attention::{AttentionBench, AttentionInput, attention};
pub use inputs::{Inputs, bands, hash, normals};
pub use prefill::{PrefillBench, prefill};

use crate::attention::attend;
use crate::backend::{Backend, warm_up};
use crate::pattern::HeadPattern;
use crate::tensor::Tensor;
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Milliseconds of repeated runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The shortest.
    pub min: f64,
    /// The longest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (middle, last) = (values.len() / 2, values.len() - 1);
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2. };
        Self { median, min: values[0], max: values[last] }
    }
}

/// Where sets of columns and offsets come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sets {
    /// The estimation chooses them from q and k.
    #[default]
    Est,
    /// [`bands`], by the pattern's budgets: the same on every machine, and nothing is estimated.
    Bands,
    /// Of a pre-fill: chosen once on [`Inputs::structured`], and given to each layer, which estimates on its own q and k all
    /// the same and pays for it. The heads of random weights have no slashes, so their own sets lie scattered over all
    /// blocks and are denser than those of any real model.
    Structured,
}

impl std::str::FromStr for Sets {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "est" => Ok(Self::Est),
            "bands" => Ok(Self::Bands),
            "structured" => Ok(Self::Structured),
            other => Err(Error::invalid(format!("--index: expected est, bands or structured, found {other:?}"))),
        }
    }
}

/// One line of a table, as `--format json` prints it. A device that is absent has a row with no numbers and the reason in
/// `note`.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Row {
    /// `attention` or `prefill`.
    pub what: &'static str,
    /// The device's id.
    pub device: String,
    /// The pattern, `config` or `given`; with ` (bands)` where the sets are not estimated.
    pub pattern: String,
    /// Queries.
    pub tokens: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// How activations are stored; of a pre-fill, how matrices are.
    pub dtype: String,
    /// Attention over the index, or the whole pre-fill.
    pub ms: Option<f64>,
    /// The shortest run.
    pub ms_min: Option<f64>,
    /// The longest run.
    pub ms_max: Option<f64>,
    /// Floating-point operations of exactly the pairs (and matrices) computed, in 10^12 a second of `ms`.
    pub tflops: Option<f64>,
    /// Computed pairs over causal pairs.
    pub density: Option<f64>,
    /// The dense row's time over this one's, estimation and index included.
    pub speedup_vs_dense: Option<f64>,
    /// Of attention: scoring and selection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate_ms: Option<f64>,
    /// Of attention: from the selection, or the given sets, to the index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index_ms: Option<f64>,
    /// Of a pre-fill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
    /// Of a pre-fill: tokens that were cached before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Of a pre-fill: the most bytes that were allocated on the device at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_device_bytes: Option<u64>,
    /// Why there are no numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Row {
    /// The time that a speed-up compares.
    fn total_ms(&self) -> Option<f64> {
        self.ms.map(|ms| ms + self.estimate_ms.unwrap_or(0.) + self.index_ms.unwrap_or(0.))
    }

    /// Fills `speedup_vs_dense`.
    fn against(mut self, dense: Option<&Row>) -> Self {
        let dense = dense.map_or_else(|| self.total_ms(), Row::total_ms);
        self.speedup_vs_dense = dense.zip(self.total_ms()).map(|(dense, own)| dense / own);
        self
    }
}

/// Milliseconds of a call, from an idle device to an idle device.
pub fn time_ms<B: Backend>(b: &B, call: impl FnOnce() -> Result<()>) -> Result<f64> {
    b.synchronize()?;
    let start = Instant::now();
    call()?;
    b.synchronize()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Heavy work for an idle GPU, so that light work is not timed at its idle clock: dense attention.
fn wake<B: Backend>(b: &B) -> Result<()> {
    if b.info().is_cpu {
        return Ok(());
    }
    let inputs = Inputs::random(8, 2, 128, 8192, 0);
    let [q, k, v] = inputs.upload(b)?;
    let mut out = Tensor::alloc(b, b.activation(), [8192, 8 * 128])?;
    warm_up(false, || {
        for _ in 0..16 {
            attend(b, &[HeadPattern::Dense; 8], &inputs.shape, q.view(), k.view(), v.view(), out.view_mut(), None)?;
        }
        b.synchronize()
    })
}

/// [`Error::Interrupted`] once the flag is set.
fn go_on(interrupt: &Arc<AtomicBool>) -> Result<()> {
    match interrupt.load(Ordering::Relaxed) {
        true => Err(Error::Interrupted),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_of_runs() {
        assert_eq!(Spread::of(vec![3., 1., 2.]), Spread { median: 2., min: 1., max: 3. });
        assert_eq!(Spread::of(vec![4., 1., 2., 9.]).median, 3.);
    }

    #[test]
    fn a_speedup_counts_estimation() {
        let dense = Row { ms: Some(10.), ..Row::default() };
        let sparse = Row { ms: Some(3.), estimate_ms: Some(1.), index_ms: Some(1.), ..Row::default() };
        assert_eq!(sparse.against(Some(&dense)).speedup_vs_dense, Some(2.));
        assert_eq!(dense.against(None).speedup_vs_dense, Some(1.));
    }
}
