//! [`Engine`]: a prompt in, logits and an answer out.
//!
//! ```no_run
//! use minference::backend::cpu::Cpu;
//! use minference::engine::{Engine, EngineOptions};
//! use minference::model::Model;
//! use minference::pattern::{AttentionMode, HeadPattern};
//! use minference::sample::Sampler;
//!
//! let mut engine = Engine::new(Cpu::new(), Model::open("checkpoint")?, EngineOptions::default())?;
//! let mode = AttentionMode::Uniform(HeadPattern::VerticalSlash { columns: 1000, offsets: 6096 });
//! let prefill = engine.prefill(&[1, 2, 3], &mode, &mut |_| ())?;
//! let answer = engine.generate(&prefill.logits, &mut Sampler::greedy(), 64, &mut |id| println!("{id}"))?;
//! println!("{} tokens, density {:.3}", answer.ids.len(), prefill.density);
//! # Ok::<(), minference::Error>(())
//! ```

mod context;
mod plan;

pub use plan::MemoryPlan;

use crate::attention::Computed;
use crate::backend::Backend;
use crate::backend::params::BLOCK;
use crate::estimate::{AttentionOptions, EXACT};
use crate::model::{
    AttentionCall, Chunk, Decoder, DecoderConfig, KvCache, KvPlace, KvType, Model, Step, Watch, Workspace,
};
use crate::pattern::{AttentionMode, HeadPattern};
use crate::sample::{self, Sampler};
use crate::tensor::View;
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Chunks of at least this many tokens are waited for after each layer, so that progress and an interrupt mean
/// something: the host would otherwise run ahead and then stand still. A layer of this length takes milliseconds on the
/// fastest device we know, the wait some ten microseconds.
const WAIT_ROWS: usize = 8192;

/// How an engine works.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Tokens of a chunk, a multiple of 64; 0 takes a prompt whole. Patterns are estimated anew for each chunk.
    pub chunk: usize,
    /// Where keys and values stay.
    pub kv: KvPlace,
    /// How they are stored.
    pub kv_type: KvType,
    /// Tokens that the KV cache is made for, prompts and answers together; 0 makes it at each first pre-fill, for the
    /// prompt and `answer_room`.
    pub capacity: usize,
    /// Tokens kept free behind a prompt where `capacity` is 0.
    pub answer_room: usize,
    /// Computes exactly what the patterns choose, as the official code does. Without it, rows denser than pays on the
    /// backend ([`Backend::dense_above`]) are computed whole.
    pub exact_index: bool,
    /// Set it to stop a pre-fill or an answer: [`Error::Interrupted`] after the layer at work.
    pub interrupt: Arc<AtomicBool>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            chunk: 0,
            kv: KvPlace::Device,
            kv_type: KvType::F16,
            capacity: 0,
            answer_room: 256,
            exact_index: true,
            interrupt: Arc::default(),
        }
    }
}

impl EngineOptions {
    fn attention<B: Backend>(&self, b: &B, mode: &AttentionMode) -> AttentionOptions {
        let dense_above = if self.exact_index { EXACT } else { b.dense_above() };
        AttentionOptions { dense_above, extras: mode.extras(), more_follows: false }
    }
}

/// How far a pre-fill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Layers done, over all chunks, each chunk's weighted by its tokens: tokens x layers.
    pub done: u64,
    /// What `done` will be at the end.
    pub total: u64,
    /// The layer that was just done, from 1.
    pub layer: usize,
    /// Layers of the model.
    pub n_layers: usize,
    /// Tokens of this pre-fill that have passed all layers.
    pub tokens: usize,
}

/// What one head did in a pre-fill.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadStats {
    /// How it was told to attend.
    pub pattern: HeadPattern,
    /// Computed pairs over causal pairs.
    pub density: f64,
}

/// What a pre-fill gives.
#[derive(Clone, Debug)]
pub struct Prefill {
    /// Logits of the last position: `[vocab]`.
    pub logits: Vec<f32>,
    /// Tokens of this prompt.
    pub tokens: usize,
    /// Seconds from the call to the logits on the host.
    pub seconds: f64,
    /// Computed pairs over causal pairs, mean over layers and heads.
    pub density: f64,
    /// `[layers][heads]`.
    pub heads: Vec<Vec<HeadStats>>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended it.
    EndOfText,
    /// It has as many tokens as were asked for.
    Length,
}

/// What [`Engine::generate`] gives.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its tokens, without the one that ended it.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
    /// Seconds of decoding.
    pub seconds: f64,
    /// Decoding steps: tokens that went through the model.
    pub steps: usize,
}

/// A model on a device, with the keys and values of one sequence.
pub struct Engine<B: Backend> {
    backend: B,
    model: Model,
    decoder: Decoder<B>,
    options: EngineOptions,
    cache: Option<KvCache<B>>,
    workspace: Option<Workspace<B>>,
    step: Step<B>,
    /// Every token in the cache, and how the last prompt attended: LongRoPE may have to start anew in mid-answer.
    ids: Vec<u32>,
    mode: AttentionMode,
    /// Tokens of the sequence that the cached keys were rotated for.
    rotated_for: usize,
}

impl<B: Backend> Engine<B> {
    /// Uploads the weights, after a check that they and a cache of `capacity` tokens fit.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a chunk that is no multiple of 64 or a capacity beyond what the model is made for,
    /// [`Error::OutOfMemory`] with what is needed and what is there, and for damaged weights what
    /// [`crate::weights::WeightFile`] says.
    pub fn new(backend: B, model: Model, options: EngineOptions) -> Result<Self> {
        if !options.chunk.is_multiple_of(BLOCK) {
            return Err(Error::invalid(format!("chunk: expected a multiple of {BLOCK}, found {}", options.chunk)));
        }
        if options.kv == KvPlace::None && options.chunk != 0 {
            let what = format!("keys and values are not kept, so a prompt cannot come in chunks of {}", options.chunk);
            return Err(Error::invalid(what));
        }
        let c = &model.config;
        if options.capacity > c.max_positions {
            let what = format!("capacity {} tokens: {} is made for {}", options.capacity, model.name, c.max_positions);
            return Err(Error::invalid(what));
        }
        MemoryPlan::new(&backend, &model, &options, options.capacity.max(1), options.capacity.max(BLOCK)).check()?;
        let decoder = Decoder::new(&backend, &model)?;
        let mode = AttentionMode::Uniform(HeadPattern::Dense);
        Ok(Self {
            backend,
            model,
            decoder,
            options,
            cache: None,
            workspace: None,
            step: Step::First,
            ids: Vec::new(),
            mode,
            rotated_for: 0,
        })
    }

    /// The device.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The model: its name, config, tokenizer.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model's config.
    pub fn config(&self) -> &DecoderConfig {
        &self.model.config
    }

    /// How it works.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Whether decoding steps are recorded and replayed as one ([`Backend::record`]).
    pub fn replays(&self) -> bool {
        matches!(self.step, Step::Recorded { .. })
    }

    /// Every token in the cache.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Keys and values, once there are any.
    pub fn cache(&self) -> Option<&KvCache<B>> {
        self.cache.as_ref()
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.truncate(0);
    }

    /// Forgets all tokens after the first `len`: another question on the same document.
    pub fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        if let Some(cache) = &mut self.cache {
            cache.truncate(len);
        }
    }

    /// What a pre-fill of `tokens` would take on this device.
    pub fn plan(&self, tokens: usize) -> MemoryPlan {
        let capacity = self.capacity_for(self.ids.len() + tokens);
        MemoryPlan::new(&self.backend, &self.model, &self.options, tokens, capacity)
    }

    /// Puts a prompt behind what is in the cache and gives the logits of its last position. `progress` is called after
    /// every layer.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty prompt, an id outside the vocabulary, more tokens than the model or the cache is
    /// made for, a pattern file of another model; [`Error::OutOfMemory`] before it starts where the device is too small;
    /// [`Error::Interrupted`]; [`Error::Device`] where the logits are NaN.
    pub fn prefill(
        &mut self,
        ids: &[u32],
        mode: &AttentionMode,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Prefill> {
        self.prefill_rows(ids, mode, progress, &mut (), false)
    }

    /// [`Engine::prefill`] with a look at every layer's tensors. It computes the rows of the last layer that a pre-fill
    /// leaves out, because nothing reads them.
    ///
    /// # Errors
    /// As [`Engine::prefill`], and what `watch` gives.
    pub fn prefill_watched(
        &mut self,
        ids: &[u32],
        mode: &AttentionMode,
        progress: &mut dyn FnMut(Progress),
        watch: &mut dyn Watch<B>,
    ) -> Result<Prefill> {
        self.prefill_rows(ids, mode, progress, watch, true)
    }

    /// [`Engine::prefill`] by the sets that `watch` gives ([`Watch::sets`]) wherever it gives some; `mode` decides elsewhere.
    ///
    /// # Errors
    /// As [`Engine::prefill`], and what `watch` gives.
    pub fn prefill_with_sets(
        &mut self,
        ids: &[u32],
        mode: &AttentionMode,
        progress: &mut dyn FnMut(Progress),
        watch: &mut dyn Watch<B>,
    ) -> Result<Prefill> {
        self.prefill_rows(ids, mode, progress, watch, false)
    }

    fn prefill_rows(
        &mut self,
        ids: &[u32],
        mode: &AttentionMode,
        progress: &mut dyn FnMut(Progress),
        watch: &mut dyn Watch<B>,
        all_rows: bool,
    ) -> Result<Prefill> {
        let start = Instant::now();
        self.check_prompt(ids, mode)?;
        let sequence = self.ids.len() + ids.len();
        // Keys that were rotated for a shorter sequence are computed anew, together with the prompt.
        let anew = !self.ids.is_empty() && self.config().rope.outdated(self.rotated_for, sequence);
        let all: Vec<u32> = if anew { [&self.ids[..], ids].concat() } else { ids.to_vec() };
        if anew {
            self.reset();
        }
        self.prepare(all.len())?;
        let before = self.ids.len();
        let mut logits = Vec::new();
        let run = Run { ids: &all, mode, sequence, all_rows };
        let heads = self.run(run, progress, watch, &mut |b, decoder, workspace, chunk| {
            if chunk.end == all.len() {
                logits = decoder.logits(b, workspace, chunk.len() - 1..chunk.len())?.to_f32(b)?;
                sample::check(&logits)?;
            }
            Ok(())
        });
        // After an error the cache holds a part of the prompt: none of it counts.
        let heads = heads.inspect_err(|_| self.truncate(before))?;
        self.ids.extend_from_slice(&all);
        (self.mode, self.rotated_for) = (mode.clone(), sequence);
        let density = self.mean_density(&heads);
        Ok(Prefill { logits, tokens: ids.len(), seconds: start.elapsed().as_secs_f64(), density, heads })
    }

    /// Puts one token behind what is in the cache and gives the logits after it.
    ///
    /// # Errors
    /// [`Error::Invalid`] before any pre-fill, where keys and values are not kept, for an id outside the vocabulary and
    /// beyond what the model or the cache is made for; [`Error::Device`] where the logits are NaN.
    pub fn decode(&mut self, id: u32) -> Result<Vec<f32>> {
        let sequence = self.ids.len() + 1;
        if self.ids.is_empty() {
            return Err(Error::invalid("decode: no prompt has been pre-filled"));
        }
        if self.options.kv == KvPlace::None {
            return Err(Error::invalid("decode: keys and values were not kept"));
        }
        self.check_ids(&[id])?;
        self.check_length(sequence)?;
        if self.config().rope.outdated(self.rotated_for, sequence) {
            let mode = self.mode.clone();
            return Ok(self.prefill(&[id], &mode, &mut |_| ())?.logits);
        }
        let (Some(cache), Some(workspace)) = (&mut self.cache, &mut self.workspace) else {
            return Err(Error::invalid("decode: no prompt has been pre-filled"));
        };
        if sequence > cache.capacity() {
            let what = format!("the KV cache is made for {} tokens, {sequence} are asked for", cache.capacity());
            return Err(Error::invalid(what));
        }
        let chunk = Chunk { ids: &[id], mode: None, sequence, from_row: 0, options: AttentionOptions::EXACT };
        let logits = self.decoder.step(&self.backend, chunk, cache, workspace, &mut self.step)?;
        self.ids.push(id);
        self.rotated_for = sequence;
        sample::check(&logits)?;
        Ok(logits)
    }

    /// Draws an answer of at most `max_new` tokens, beginning with `logits` of the position before it. `on_token` is
    /// called with each token as it is drawn; one that ends the text is not.
    ///
    /// # Errors
    /// As [`Sampler::sample`] and [`Engine::decode`]; [`Error::Interrupted`].
    pub fn generate(
        &mut self,
        logits: &[f32],
        sampler: &mut Sampler,
        max_new: usize,
        on_token: &mut dyn FnMut(u32),
    ) -> Result<Answer> {
        let start = Instant::now();
        let mut answer = Answer { ids: Vec::new(), stop: StopReason::Length, seconds: 0.0, steps: 0 };
        let mut logits = std::borrow::Cow::Borrowed(logits);
        while answer.ids.len() < max_new {
            let id = sampler.sample(&logits)?;
            if self.model.eos.contains(&id) {
                answer.stop = StopReason::EndOfText;
                break;
            }
            answer.ids.push(id);
            on_token(id);
            if self.options.interrupt.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if self.ids.len() >= self.config().max_positions {
                break;
            }
            // The last token's own logits would be thrown away.
            if answer.ids.len() < max_new {
                logits = self.decode(id)?.into();
                answer.steps += 1;
            }
        }
        answer.seconds = start.elapsed().as_secs_f64();
        Ok(answer)
    }

    /// Negative log-likelihood in nats of every token of `ids` but the first, from a pre-fill of them behind nothing:
    /// `[ids.len() - 1]`. The logits are made some rows at a time.
    ///
    /// # Errors
    /// As [`Engine::row_logits`].
    pub fn token_losses(
        &mut self,
        ids: &[u32],
        mode: &AttentionMode,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<f32>> {
        let mut losses = Vec::with_capacity(ids.len());
        // Nothing is said about what follows the last token.
        let rows = 0..ids.len().saturating_sub(1);
        self.row_logits(ids, mode, &[rows], progress, &mut |rows, logits| {
            losses.extend(row_losses(logits, &ids[rows.start + 1..rows.end + 1]));
            Ok(())
        })?;
        Ok(losses)
    }

    /// A pre-fill of `ids` behind nothing that shows the logits of some rows: `each` is given a part of one of the
    /// ascending ranges `rows` and f32 `[part, vocab]`, at most 256 rows at a time. All of them at once would not fit: of
    /// 128K rows of 152K ids they are 80 GB. The engine is empty afterwards; [`Prefill::logits`] is, too.
    ///
    /// # Errors
    /// As [`Engine::prefill`], and what `each` gives.
    pub fn row_logits(
        &mut self,
        ids: &[u32],
        mode: &AttentionMode,
        rows: &[Range<usize>],
        progress: &mut dyn FnMut(Progress),
        each: &mut EachRows,
    ) -> Result<Prefill> {
        let start = Instant::now();
        if let Some(past) = rows.iter().find(|rows| rows.end > ids.len()) {
            return Err(Error::invalid(format!("rows {past:?}: the prompt has {} tokens", ids.len())));
        }
        self.reset();
        self.check_prompt(ids, mode)?;
        self.prepare(ids.len())?;
        let interrupt = self.options.interrupt.clone();
        let run = Run { ids, mode, sequence: ids.len(), all_rows: true };
        let heads = self.run(run, progress, &mut (), &mut |b, decoder, workspace, chunk| {
            for rows in rows {
                let (first, end) = (rows.start.max(chunk.start), rows.end.min(chunk.end));
                for from in (first..end).step_by(LOGIT_ROWS) {
                    if interrupt.load(Ordering::Relaxed) {
                        return Err(Error::Interrupted);
                    }
                    let part = from..end.min(from + LOGIT_ROWS);
                    let local = part.start - chunk.start..part.end - chunk.start;
                    each(part, &decoder.logits(b, workspace, local)?.to_f32(b)?)?;
                }
            }
            Ok(())
        });
        self.reset();
        let heads = heads?;
        let density = self.mean_density(&heads);
        let seconds = start.elapsed().as_secs_f64();
        Ok(Prefill { logits: Vec::new(), tokens: ids.len(), seconds, density, heads })
    }

    fn mean_density(&self, heads: &[Vec<HeadStats>]) -> f64 {
        heads.iter().flatten().map(|h| h.density).sum::<f64>() / (heads.len() * self.config().n_heads) as f64
    }

    /// All chunks of a prompt through all layers; `after` sees each chunk's residual stream in the workspace. Gives what
    /// each head did.
    fn run(
        &mut self,
        run: Run,
        progress: &mut dyn FnMut(Progress),
        watch: &mut dyn Watch<B>,
        after: &mut AfterChunk<B>,
    ) -> Result<Vec<Vec<HeadStats>>> {
        let Run { ids, mode, sequence, all_rows } = run;
        let Self { backend: b, decoder, options, cache: Some(cache), workspace: Some(workspace), .. } = self else {
            return Err(Error::invalid("no buffers for a pre-fill"));
        };
        let (n_layers, n_heads) = (decoder.config().n_layers, decoder.config().n_heads);
        let chunk_len = if options.chunk == 0 { ids.len() } else { options.chunk };
        let mut recorder = Recorder {
            watch,
            progress,
            interrupt: &options.interrupt,
            prompt: ids.len(),
            n_layers,
            start: 0,
            chunk: 0,
            computed: (0..n_layers).map(|_| Vec::new()).collect(),
        };
        let past = cache.len();
        for (i, chunk) in ids.chunks(chunk_len).enumerate() {
            let start = i * chunk_len;
            (recorder.start, recorder.chunk) = (start, chunk.len());
            let end = start + chunk.len();
            let from_row = match all_rows {
                true => 0,
                false => chunk.len() - usize::from(end == ids.len()),
            };
            let options = AttentionOptions { more_follows: end < ids.len(), ..options.attention(b, mode) };
            let chunk = Chunk { ids: chunk, mode: Some(mode), sequence, from_row, options };
            decoder.forward(b, chunk, cache, workspace, &mut recorder)?;
            after(b, decoder, workspace, start..end)?;
        }

        // The counts are read once, now that everything has run.
        let causal = ids.len() as f64 * past as f64 + ids.len() as f64 * (ids.len() as f64 + 1.0) / 2.0;
        let all: Vec<&Computed<B>> = recorder.computed.iter().flatten().collect();
        let mut counts = Computed::all_head_pairs(b, &all)?.into_iter();
        let mut stats = Vec::with_capacity(n_layers);
        for (layer, chunks) in recorder.computed.iter().enumerate() {
            let mut pairs = vec![0u64; n_heads];
            for new in counts.by_ref().take(chunks.len()) {
                pairs.iter_mut().zip(new).for_each(|(sum, new)| *sum += new);
            }
            let cells = mode.patterns(layer, n_heads).into_iter().zip(pairs);
            stats.push(cells.map(|(pattern, p)| HeadStats { pattern, density: p as f64 / causal }).collect());
        }
        Ok(stats)
    }

    fn check_prompt(&self, ids: &[u32], mode: &AttentionMode) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::invalid("the prompt is empty: expected at least one token"));
        }
        mode.check_model(self.config().n_layers, self.config().n_heads)?;
        self.check_ids(ids)?;
        if !self.ids.is_empty() && self.options.kv == KvPlace::None {
            return Err(Error::invalid("keys and values of the last prompt were not kept: reset before another"));
        }
        self.check_length(self.ids.len() + ids.len())
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.config().vocab;
        match ids.iter().position(|id| *id as usize >= vocab) {
            None => Ok(()),
            Some(at) => {
                let what = format!("token {at}: expected an id below the vocabulary's {vocab}, found {}", ids[at]);
                Err(Error::invalid(what))
            }
        }
    }

    fn check_length(&self, tokens: usize) -> Result<()> {
        let (name, max) = (&self.model.name, self.config().max_positions);
        if tokens > max {
            return Err(Error::invalid(format!("{tokens} tokens: {name} is made for at most {max}")));
        }
        Ok(())
    }

    /// Tokens of a cache that is to hold `tokens`.
    fn capacity_for(&self, tokens: usize) -> usize {
        let made = self.cache.as_ref().map_or(0, KvCache::capacity);
        match self.options.capacity {
            _ if made >= tokens => made,
            0 if self.options.kv == KvPlace::None => tokens,
            0 => tokens.saturating_add(self.options.answer_room).min(self.config().max_positions.max(tokens)),
            capacity => capacity,
        }
    }

    /// Makes the cache and the buffers that a prompt of `tokens` needs, where those of the last one are too small.
    fn prepare(&mut self, tokens: usize) -> Result<()> {
        let (past, plan) = (self.ids.len(), self.plan(tokens));
        if plan.capacity < past + tokens {
            let what = format!("the KV cache is made for {} tokens, {} are asked for", plan.capacity, past + tokens);
            return Err(Error::invalid(what));
        }
        let made = self.cache.as_ref().map_or(0, KvCache::capacity);
        if plan.capacity > made && past > 0 {
            let what = format!("the KV cache is made for {made} tokens, {} are asked for", past + tokens);
            return Err(Error::invalid(format!("{what}: set the capacity when the engine is made")));
        }
        plan.check()?;
        if plan.capacity > made {
            (self.step, self.cache) = (Step::First, None);
            self.cache = Some(KvCache::new(
                &self.backend,
                &self.model.config,
                plan.capacity,
                self.options.kv,
                self.options.kv_type,
            )?);
        }
        let rows = if self.options.chunk == 0 { tokens } else { tokens.min(self.options.chunk) };
        if self.workspace.as_ref().is_none_or(|w| w.rows() < rows) {
            (self.step, self.workspace) = (Step::First, None);
            self.workspace = Some(Workspace::new(&self.backend, &self.model.config, rows)?);
        }
        Ok(())
    }
}

/// Sees logits of some rows of a prompt: which, and f32 `[rows, vocab]`.
pub type EachRows<'a> = dyn FnMut(Range<usize>, &[f32]) -> Result<()> + 'a;

/// What [`Engine::run`] computes.
struct Run<'a> {
    ids: &'a [u32],
    mode: &'a AttentionMode,
    /// Tokens of the whole sequence.
    sequence: usize,
    /// Whether every row of the last layer is wanted, not only the prompt's last.
    all_rows: bool,
}

/// Sees the residual stream of each chunk in the workspace; the range is the chunk's tokens within the prompt.
type AfterChunk<'a, B> = dyn FnMut(&B, &Decoder<B>, &mut Workspace<B>, Range<usize>) -> Result<()> + 'a;

/// Rows of logits at a time: 152,064 ids of 256 rows are 156 MB.
const LOGIT_ROWS: usize = 256;

/// Negative log-likelihood in nats of a target for each row of logits, f32 `[targets, vocab]`.
pub fn row_losses(logits: &[f32], targets: &[u32]) -> Vec<f32> {
    let vocab = logits.len() / targets.len().max(1);
    logits.par_chunks_exact(vocab.max(1)).zip(targets).map(|(row, &target)| loss(row, target)).collect()
}

/// Negative log-likelihood of a token under its logits.
fn loss(logits: &[f32], target: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    (sum.ln() + f64::from(max - logits[target as usize])) as f32
}

/// Between the forward pass and who watches it: counts, tells, and stops.
struct Recorder<'a, B: Backend> {
    watch: &'a mut dyn Watch<B>,
    progress: &'a mut dyn FnMut(Progress),
    interrupt: &'a AtomicBool,
    prompt: usize,
    n_layers: usize,
    /// First token of the chunk at work, and its tokens.
    start: usize,
    chunk: usize,
    /// Each layer's counts, chunk after chunk.
    computed: Vec<Vec<Computed<B>>>,
}

impl<B: Backend> Watch<B> for Recorder<'_, B> {
    fn hidden(&mut self, backend: &B, layers_done: usize, x: View<B>) -> Result<()> {
        if self.chunk >= WAIT_ROWS {
            backend.synchronize()?;
        }
        if self.interrupt.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        if layers_done > 0 {
            let all = layers_done == self.n_layers;
            (self.progress)(Progress {
                done: (self.start * self.n_layers + self.chunk * layers_done) as u64,
                total: (self.prompt * self.n_layers) as u64,
                layer: layers_done,
                n_layers: self.n_layers,
                tokens: self.start + if all { self.chunk } else { 0 },
            });
        }
        self.watch.hidden(backend, layers_done, x)
    }

    fn attention(&mut self, backend: &B, layer: usize, call: &AttentionCall<B>) -> Result<()> {
        self.watch.attention(backend, layer, call)
    }

    fn sets(&mut self, layer: usize) -> Option<[&[Vec<u32>]; 2]> {
        self.watch.sets(layer)
    }

    fn computed(&mut self, _backend: &B, layer: usize, computed: Computed<B>) -> Result<()> {
        self.computed[layer].push(computed);
        Ok(())
    }
}
