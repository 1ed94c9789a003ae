//! Whole pre-fills, by length and attention.

use super::{Inputs, Row, Sets, Spread, bands, go_on, wake};
use crate::backend::{Backend, warm_up};
use crate::engine::{Engine, EngineOptions};
use crate::estimate::choose;
use crate::model::{AttentionCall, DecoderConfig, Model, Watch};
use crate::pattern::{AttentionMode, HeadPattern};
use crate::{Error, Result};
use rayon::prelude::*;
use std::sync::Arc;

/// What to measure.
#[derive(Clone, Debug)]
pub struct PrefillBench {
    /// Tokens of the prompts.
    pub lengths: Vec<usize>,
    /// Tokens cached before the prompt, by a dense pre-fill that is not timed.
    pub depth: usize,
    /// One row each, behind dense.
    pub modes: Vec<AttentionMode>,
    /// Where the sets of vertical-slash heads come from.
    pub sets: Sets,
    /// Timed runs.
    pub repeat: usize,
    /// How matrices are stored, for the table.
    pub weight_type: String,
    /// How the engine works; its capacity is set here.
    pub options: EngineOptions,
}

/// One row for dense and for each mode, per length. The prompt is made of ids without meaning.
///
/// # Errors
/// As [`Engine::prefill`].
pub fn prefill<B: Backend>(b: B, model: Model, bench: &PrefillBench, each: &mut dyn FnMut(&Row)) -> Result<Vec<Row>> {
    let Some(longest) = bench.lengths.iter().max() else { return Ok(Vec::new()) };
    let vocab = model.config.vocab;
    let most = bench.depth.checked_add(*longest).filter(|&n| n <= model.config.max_positions);
    let Some(capacity) = most else {
        let (max, depth) = (model.config.max_positions, bench.depth);
        return Err(Error::invalid(format!("{longest} tokens behind {depth}: {} is made for {max}", model.name)));
    };
    let options = EngineOptions { capacity, ..bench.options.clone() };
    let interrupt = Arc::clone(&options.interrupt);
    let mut engine = Engine::new(b, model, options)?;
    let dense = AttentionMode::Uniform(HeadPattern::Dense);
    let ids = |n: usize, from: usize| (from..from + n).map(|i| (i * 7919 % vocab) as u32).collect::<Vec<u32>>();
    if bench.depth > 0 {
        engine.prefill(&ids(bench.depth, 0), &dense, &mut |_| ())?;
    }
    match wake(engine.backend()) {
        Ok(()) | Err(Error::OutOfMemory(_)) => {} // what little it needs may be what a model leaves
        Err(error) => return Err(error),
    }
    let mut rows = Vec::new();
    for &tokens in &bench.lengths {
        let prompt = ids(tokens, bench.depth);
        let mut dense_row: Option<Row> = None;
        for mode in std::iter::once(&dense).chain(bench.modes.iter().filter(|mode| **mode != dense)) {
            let keys = bench.depth + tokens;
            let (mut given, origin) = match bench.sets {
                _ if *mode == dense => (Given::default(), ""),
                Sets::Est => (Given::default(), ""),
                Sets::Bands => (bands_of(mode, engine.config(), keys)?, " (bands)"),
                Sets::Structured => (chosen(engine.backend(), mode, engine.config(), keys)?, " (structured)"),
            };
            let mut run = |engine: &mut Engine<B>| {
                go_on(&interrupt)?;
                engine.truncate(bench.depth);
                engine.prefill_with_sets(&prompt, mode, &mut |_| (), &mut given)
            };
            let is_cpu = engine.backend().info().is_cpu;
            let density = warm_up(is_cpu, || run(&mut engine))?.density;
            engine.backend().reset_peak();
            let seconds = (0..bench.repeat.max(1)).map(|_| Ok(run(&mut engine)?.seconds * 1e3));
            let spread = Spread::of(seconds.collect::<Result<_>>()?);
            let row = row(&engine, bench, tokens, &spread, density);
            let row = Row { pattern: mode.name() + origin, ..row }.against(dense_row.as_ref());
            dense_row.get_or_insert_with(|| row.clone());
            each(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

/// What was measured, but for the pattern's name.
fn row<B: Backend>(engine: &Engine<B>, bench: &PrefillBench, tokens: usize, spread: &Spread, density: f64) -> Row {
    let (b, c) = (engine.backend(), engine.config());
    Row {
        what: "prefill",
        device: b.info().id.clone(),
        tokens,
        heads: c.n_heads,
        kv_heads: c.n_kv_heads,
        head_dim: c.head_dim,
        dtype: bench.weight_type.clone(),
        ms: Some(spread.median),
        ms_min: Some(spread.min),
        ms_max: Some(spread.max),
        tflops: Some(operations(c, tokens, bench.depth, density) / spread.median / 1e9),
        density: Some(density),
        tokens_per_s: Some(tokens as f64 / spread.median * 1e3),
        depth: Some(bench.depth),
        peak_device_bytes: Some(b.memory().peak),
        ..Row::default()
    }
}

/// Columns and offsets of each head of each layer; nothing where the mode decides.
#[derive(Default)]
struct Given {
    layers: Vec<[Vec<Vec<u32>>; 2]>,
    /// What each layer estimates for the sake of the time that it takes.
    estimated: Vec<Vec<HeadPattern>>,
}

impl<B: Backend> Watch<B> for Given {
    fn attention(&mut self, b: &B, layer: usize, call: &AttentionCall<B>) -> Result<()> {
        match self.estimated.get(layer) {
            Some(patterns) => choose(b, patterns, &call.shape, call.q, call.k).map(drop),
            None => Ok(()),
        }
    }

    fn sets(&mut self, layer: usize) -> Option<[&[Vec<u32>]; 2]> {
        self.layers.get(layer).map(|sets| sets.each_ref().map(Vec::as_slice))
    }
}

/// The sets of a mode whose heads are all vertical-slash, as the estimation chooses them on structured q and k.
fn chosen<B: Backend>(b: &B, mode: &AttentionMode, c: &DecoderConfig, keys: usize) -> Result<Given> {
    let inputs = Inputs::structured(c.n_heads, c.n_kv_heads, c.head_dim, keys);
    let [q, k, _] = inputs.upload(b)?;
    let estimated: Vec<_> = (0..c.n_layers).map(|layer| mode.patterns(layer, c.n_heads)).collect();
    let layer = |patterns: &Vec<HeadPattern>| {
        if let Some(other) = patterns.iter().find(|p| !matches!(p, HeadPattern::VerticalSlash { .. })) {
            return Err(Error::invalid(format!("structured: expected vertical-slash heads only, found {other}")));
        }
        let choice = choose(b, patterns, &inputs.shape, q.view(), k.view())?;
        Ok([choice.columns(b)?, choice.offsets(b)?])
    };
    Ok(Given { layers: estimated.iter().map(layer).collect::<Result<_>>()?, estimated })
}

/// The `bands` sets of a mode whose heads are all vertical-slash.
fn bands_of(mode: &AttentionMode, c: &DecoderConfig, keys: usize) -> Result<Given> {
    let layer = |layer: usize| {
        let head = |(head, pattern): (usize, HeadPattern)| match pattern {
            HeadPattern::VerticalSlash { columns, offsets } => Ok(bands(keys, columns, offsets, head)),
            other => Err(Error::invalid(format!("bands: expected vertical-slash heads only, found {other}"))),
        };
        let heads: Vec<_> = mode.patterns(layer, c.n_heads).into_iter().enumerate().collect();
        let sets: Vec<_> = heads.into_par_iter().map(head).collect::<Result<_>>()?;
        let (columns, offsets) = sets.into_iter().unzip();
        Ok([columns, offsets])
    };
    Ok(Given { layers: (0..c.n_layers).map(layer).collect::<Result<_>>()?, estimated: Vec::new() })
}

/// Floating-point operations of a pre-fill: the products and the computed pairs. The last layer's output projection and
/// MLP, and the output matrix, see one row.
fn operations(c: &DecoderConfig, tokens: usize, depth: usize, density: f64) -> f64 {
    let [n, past, layers] = [tokens, depth, c.n_layers].map(|x| x as f64);
    let [h, q, qkv, ffn] = [c.hidden, c.n_heads * c.head_dim, c.qkv_width(), c.ffn].map(|x| x as f64);
    let pairs = (n * past + n * (n + 1.) / 2.) * density * layers;
    let rows_behind_attention = n * (layers - 1.) + 1.;
    2. * (n * layers * h * qkv + rows_behind_attention * (q * h + 3. * h * ffn) + h * c.vocab as f64) + 4. * q * pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::presets;

    /// 2 operations a weight and token, and 4 D a pair: Llama-3-8B at 8192 tokens.
    #[test]
    fn operations_of_a_known_model() {
        let c = presets::config("llama-3-8b-262k").unwrap();
        let (layer, n) = (2. * 8192. * (4096. * 6144. + 4096. * 4096. + 3. * 4096. * 14336.), 8192f64);
        let pairs = 32. * 4. * 4096. * n * (n + 1.) / 2.;
        let want = 32. * layer + pairs;
        let got = operations(&c, 8192, 0, 1.);
        assert!((got / want - 1.).abs() < 0.03 && got < want, "{got} {want}");
        assert!(operations(&c, 64, 8192, 1.) > operations(&c, 64, 0, 1.));
    }
}
