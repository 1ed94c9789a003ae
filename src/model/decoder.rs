//! The forward pass: one chunk of tokens through all layers, layer by layer.
//!
//! Letters in shapes: `n` tokens of the chunk, `m` rows of a slice, `H` query heads, `KV` key and value heads, `D` head_dim,
//! `W` = `(H + 2 KV) * D`. `act` is the backend's activation type; the residual stream `x` is f32.
//!
//! Everything here fails with [`Error::Invalid`] for more rows than the workspace or the cache was made for, with
//! [`Error::OutOfMemory`], and with what the device reports.

use super::dual_chunk::{self, DualBuffers, DualLayer};
use super::kv_cache::{KvCache, LayerKv};
use super::load::{Layer, Linear, Loader};
use super::{DecoderConfig, Model};
use crate::attention::{Computed, attend_sets, attend_with};
use crate::backend::Backend;
use crate::estimate::AttentionOptions;
use crate::ops::{self, AttentionShape, HeadBand, Rope};
use crate::pattern::AttentionMode;
use crate::tensor::{Tensor, View, ViewMut};
use crate::{DType, Error, Result};
use std::ops::Range;

/// Rows of a slice. Norms, projections and the MLP run over the chunk in slices, so that their buffers do not grow with the
/// prompt: Llama-3-8B's gate and up of 4096 rows take 235 MB in f16, of 131,072 rows 7.5 GB. Matrix products lose
/// nothing at this height.
pub const SLICE_ROWS: usize = 4096;

/// A model's weights on a device.
pub struct Decoder<B: Backend> {
    config: DecoderConfig,
    embed: Tensor<B>,           // [vocab, hidden]
    layers: Vec<Layer<B>>,      //
    final_norm: Tensor<B>,      // f32 [hidden]
    lm_head: Option<Tensor<B>>, // [vocab, hidden], none: the embedding
}

/// What one call of [`Decoder::forward`] computes.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    /// Token ids, below the vocabulary's size, at least one.
    pub ids: &'a [u32],
    /// How each head attends, with an index estimated on this chunk; none for a decoding step over all cached keys.
    pub mode: Option<&'a AttentionMode>,
    /// Tokens of the whole sequence, which decide the RoPE frequencies of LongRoPE and dynamic NTK.
    pub sequence: usize,
    /// First row whose last residual stream is wanted: the last layer's output projection and MLP leave out the rows
    /// before it, which nothing reads in a pre-fill. 0 finishes all rows.
    pub from_row: usize,
    /// How its attention may depart from what the patterns say.
    pub options: AttentionOptions,
}

/// The tensors of one attention call, before it runs.
pub struct AttentionCall<'a, B: Backend> {
    /// Heads, lengths and strides.
    pub shape: AttentionShape,
    /// act, rotated.
    pub q: View<'a, B>,
    /// act, rotated: the cache.
    pub k: View<'a, B>,
    /// act: the cache.
    pub v: View<'a, B>,
    /// How this chunk's attention departs from what its patterns say.
    pub options: AttentionOptions,
}

/// Looks at a forward pass, and may stop it with an error. Reading a tensor back waits for the device.
pub trait Watch<B: Backend> {
    /// The residual stream f32 `[n, hidden]` after the embedding (0) and after each layer (1 and on).
    fn hidden(&mut self, _backend: &B, _layers_done: usize, _x: View<B>) -> Result<()> {
        Ok(())
    }

    /// Queries, keys and values of a layer. Not called where dual chunk attention is in use, for which there are no such
    /// queries: they turn anew for each part of the keys.
    fn attention(&mut self, _backend: &B, _layer: usize, _call: &AttentionCall<B>) -> Result<()> {
        Ok(())
    }

    /// Columns and offsets of each head to attend by, instead of what the mode says; none lets the mode decide.
    fn sets(&mut self, _layer: usize) -> Option<[&[Vec<u32>]; 2]> {
        None
    }

    /// How much a layer's attention computed, counted on the device.
    fn computed(&mut self, _backend: &B, _layer: usize, _computed: Computed<B>) -> Result<()> {
        Ok(())
    }
}

/// Watches nothing.
impl<B: Backend> Watch<B> for () {}

/// Buffers of a forward pass, made once for chunks up to a length.
pub struct Workspace<B: Backend> {
    rows: usize,
    slice: usize,
    ids: Tensor<B>,            // u32 [rows]
    x: Tensor<B>,              // f32 [rows, hidden]: the residual stream
    qkv: Tensor<B>,            // act [rows, W]
    attended: Tensor<B>,       // act [rows, H * D]
    normed: Tensor<B>,         // act [slice, hidden]
    gate_up: Tensor<B>,        // act [slice, 2 * ffn]
    gated: Tensor<B>,          // act [slice, ffn]
    raw_qk: Option<Tensor<B>>, // act [slice, W]: q and k before their norms
    branch: Option<Branch<B>>,
    dual: Option<DualBuffers<B>>,
    turns: Tensor<B>,          // u32 [rotary_dim / 2, 2]
    turns_for: Option<usize>,  // RopeConfig::deciding_length
    logits: Option<Tensor<B>>, // f32 [1, vocab]: of a decoding step
}

impl<B: Backend> Workspace<B> {
    /// For chunks of up to `rows` tokens.
    pub fn new(b: &B, c: &DecoderConfig, rows: usize) -> Result<Self> {
        let (slice, act) = (rows.min(SLICE_ROWS), b.activation());
        let stream = || Tensor::alloc(b, DType::F32, [slice, c.hidden]);
        Ok(Self {
            rows,
            slice,
            ids: Tensor::alloc(b, DType::U32, [rows])?,
            x: Tensor::alloc(b, DType::F32, [rows, c.hidden])?,
            qkv: Tensor::alloc(b, act, [rows, c.qkv_width()])?,
            attended: Tensor::alloc(b, act, [rows, c.n_heads * c.head_dim])?,
            normed: Tensor::alloc(b, act, [slice, c.hidden])?,
            gate_up: Tensor::alloc(b, act, [slice, 2 * c.ffn])?,
            gated: Tensor::alloc(b, act, [slice, c.ffn])?,
            raw_qk: if c.qk_norm { Some(Tensor::alloc(b, act, [slice, c.qkv_width()])?) } else { None },
            branch: if c.post_norms { Some(Branch { product: stream()?, normed: stream()? }) } else { None },
            dual: None,
            turns: Tensor::alloc(b, DType::U32, [c.rope.rotary_dim / 2, 2])?,
            turns_for: None,
            logits: None,
        })
    }

    /// Tokens of the longest chunk.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// Bytes that [`Workspace::new`] allocates.
pub fn workspace_bytes(c: &DecoderConfig, act: DType, rows: usize) -> u64 {
    let (slice, q) = (rows.min(SLICE_ROWS), c.n_heads * c.head_dim);
    let raw = if c.qk_norm { c.qkv_width() } else { 0 };
    let by_row = 4 + 4 * c.hidden + act.bytes(c.qkv_width() + q);
    let by_slice_row = act.bytes(c.hidden + 3 * c.ffn + raw) + if c.post_norms { 8 * c.hidden } else { 0 };
    (rows * by_row + slice * by_slice_row) as u64
}

impl<B: Backend> Decoder<B> {
    /// Uploads all weights.
    pub fn new(backend: &B, model: &Model) -> Result<Self> {
        let loader = Loader { backend, model };
        Ok(Self {
            config: model.config.clone(),
            embed: loader.embed()?,
            layers: (0..model.config.n_layers).map(|i| loader.layer(i)).collect::<Result<_>>()?,
            final_norm: loader.final_norm()?,
            lm_head: loader.lm_head()?,
        })
    }

    /// The model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Runs a chunk behind the tokens in `cache`, adds its keys and values there, and leaves the residual stream in `ws`
    /// for [`Decoder::logits`]. Nothing is read back, but for keys and values that stay in host memory.
    pub fn forward(
        &self,
        b: &B,
        chunk: Chunk,
        cache: &mut KvCache<B>,
        ws: &mut Workspace<B>,
        watch: &mut dyn Watch<B>,
    ) -> Result<()> {
        self.bring(b, chunk, cache, ws)?;
        self.layers(b, chunk, cache, ws, watch)?;
        cache.advance(chunk.ids.len());
        Ok(())
    }

    /// What a chunk needs from the host, into the workspace: ids, RoPE frequencies, buffers of dual chunks.
    fn bring(&self, b: &B, chunk: Chunk, cache: &KvCache<B>, ws: &mut Workspace<B>) -> Result<()> {
        let (c, n) = (&self.config, chunk.ids.len());
        if n == 0 || n > ws.rows {
            return Err(Error::invalid(format!("a chunk of {n} tokens: the workspace is made for 1 to {}", ws.rows)));
        }
        if let Some(dual) = c.dual_chunk.filter(|dual| cache.len() + n > dual.stride()) {
            if cache.first_position() > 0 {
                return Err(Error::invalid("dual chunk attention: a sequence begins at position 0"));
            }
            let estimates =
                chunk.mode.is_some_and(|mode| (0..c.n_layers).any(|i| dual_chunk::estimates(mode, i, c.n_heads)));
            let (rows, capacity) = (n.min(dual.stride()), cache.capacity());
            if ws.dual.as_ref().is_none_or(|buffers| !buffers.serve(rows, estimates.then_some(capacity))) {
                ws.dual = None;
                ws.dual = Some(DualBuffers::new(b, c, rows, estimates.then_some(capacity))?);
            }
        }
        let length = c.rope.deciding_length(chunk.sequence);
        if ws.turns_for != Some(length) {
            ws.turns.write(b, &c.rope.turns(length))?;
            ws.turns_for = Some(length);
        }
        ws.ids.write(b, chunk.ids)
    }

    /// A chunk that [`Decoder::bring`] brought, through all layers. The cache does not count it yet.
    fn layers(
        &self,
        b: &B,
        chunk: Chunk,
        cache: &mut KvCache<B>,
        ws: &mut Workspace<B>,
        watch: &mut dyn Watch<B>,
    ) -> Result<()> {
        let c = &self.config;
        let (n, h, kv, d, w) = (chunk.ids.len(), c.n_heads, c.n_kv_heads, c.head_dim, c.qkv_width());
        let (past, capacity, first_position) = (cache.len(), cache.capacity(), cache.first_position());
        let rope = Rope {
            rotary_dim: c.rope.rotary_dim,
            interleaved: c.rope.interleaved,
            attention_factor: c.rope.attention_factor() as f32,
        };
        let heads = |first: usize, heads: usize| HeadBand { column: first * d, heads, head_dim: d };
        let shape = AttentionShape {
            n_heads: h,
            n_kv_heads: kv,
            head_dim: d,
            q_len: n,
            kv_len: past + n,
            q_start: past,
            scale: c.scale() * c.dual_chunk.map_or(1.0, |dual| dual.temperature(chunk.sequence)) as f32,
            q_stride: [w, d],
            k_stride: [d, capacity * d],
            v_stride: [d, capacity * d],
            out_stride: [h * d, d],
        };
        let slice = ws.slice;
        let slices = |first: usize| (first..n).step_by(slice).map(move |r| r..n.min(r + slice));
        let dual = c.dual_chunk.filter(|dual| past + n > dual.stride());
        ops::embed(b, ws.ids.view().rows(0..n), self.embed.view(), ws.x.view_mut().rows(0..n))?; // x [n, hidden]
        watch.hidden(b, 0, ws.x.view().rows(0..n))?;

        for (i, layer) in self.layers.iter().enumerate() {
            cache.bring(b, i)?;
            let LayerKv { k, v } = cache.at_work(i);

            // q, k, v of all rows
            for rows in slices(0) {
                let m = rows.len();
                let x = ws.x.view().rows(rows.clone());
                ops::rms_norm(b, x, layer.attn_norm.view(), c.norm_eps, ws.normed.view_mut().rows(0..m))?;
                let normed = ws.normed.view().rows(0..m); // [m, hidden]
                let mut qkv = ws.qkv.view_mut().rows(rows.clone()); // [m, W]
                if let (Some([q_norm, k_norm]), Some(raw)) = (&layer.qk_norms, &mut ws.raw_qk) {
                    for part in &layer.qkv.parts {
                        let is_v = part.column >= (h + kv) * d;
                        let into = if is_v { qkv.reborrow() } else { raw.view_mut().rows(0..m) };
                        part.apply(b, normed, into, false)?;
                    }
                    let raw = raw.view().rows(0..m);
                    ops::rms_norm_heads(b, raw, heads(0, h), q_norm.view(), c.norm_eps, qkv.reborrow())?;
                    ops::rms_norm_heads(b, raw, heads(h, kv), k_norm.view(), c.norm_eps, qkv.reborrow())?;
                } else {
                    layer.qkv.apply(b, normed, qkv.reborrow(), false)?;
                }
                match dual {
                    None => {
                        let position = first_position + past + rows.start;
                        ops::rope(b, ws.turns.view(), qkv, heads(0, h + kv), rope, position)?;
                    }
                    // The queries stay as they are until it is known which keys they meet.
                    Some(dual) => {
                        let positions = past + rows.start..past + rows.end;
                        dual_chunk::turn_keys(b, dual, ws.turns.view(), qkv, heads(h, kv), rope, positions)?;
                    }
                }
                let qkv = ws.qkv.view().rows(rows.clone());
                let (k, v) = (k.view_mut(), v.view_mut()); // [KV, capacity, D]
                ops::append_kv(b, qkv, heads(h, kv), heads(h + kv, kv), k, v, past + rows.start)?;
            }

            cache.pack(b, i, n)?;
            let LayerKv { k, v } = cache.at_work(i);

            // attention of all rows
            let q = ws.qkv.view().rows(0..n);
            let call = AttentionCall { shape, q, k: k.view(), v: v.view(), options: chunk.options };
            let out = ws.attended.view_mut().rows(0..n); // [n, H * D]
            if dual.is_none() {
                watch.attention(b, i, &call)?;
            }
            match (chunk.mode, dual.zip(ws.dual.as_mut())) {
                (mode, Some((dual, buffers))) => {
                    let layer =
                        DualLayer { dual, shape, rope, turns: ws.turns.view(), qkv: call.q, k: call.k, v: call.v };
                    match mode {
                        Some(_) if watch.sets(i).is_some() => {
                            let what = "given sets of columns and offsets: not built for dual chunk attention";
                            return Err(Error::Unsupported(what.into()));
                        }
                        Some(mode) => {
                            let patterns = mode.patterns(i, h);
                            for computed in layer.attend(b, &patterns, chunk.options, buffers, out)? {
                                watch.computed(b, i, computed)?;
                            }
                        }
                        None => layer.decode(b, buffers, out)?,
                    }
                }
                (Some(mode), None) => {
                    let qkv = [call.q, call.k, call.v];
                    let computed = match watch.sets(i) {
                        Some(sets) => attend_sets(b, sets, &shape, qkv, out, chunk.options)?,
                        None => {
                            let patterns = mode.patterns(i, h);
                            attend_with(b, &patterns, &shape, qkv, out, None, chunk.options)?
                        }
                    };
                    watch.computed(b, i, computed)?;
                }
                (None, None) => ops::decode_attention(b, &shape, call.q, call.k, call.v, out)?,
            }
            cache.take_away(b, i, n)?;

            // output projection and MLP, added to the residual stream
            let is_last = i + 1 == self.layers.len();
            for rows in slices(if is_last { chunk.from_row } else { 0 }) {
                let m = rows.len();
                let attended = ws.attended.view().rows(rows.clone());
                let x = ws.x.view_mut().rows(rows.clone());
                match (&layer.post_norms, &mut ws.branch) {
                    (Some([norm, _]), Some(branch)) => branch.add(b, &layer.o, attended, norm, c.norm_eps, x)?,
                    _ => layer.o.apply(b, attended, x, true)?,
                }
                let x = ws.x.view().rows(rows.clone());
                ops::rms_norm(b, x, layer.ffn_norm.view(), c.norm_eps, ws.normed.view_mut().rows(0..m))?;
                let normed = ws.normed.view().rows(0..m); // [m, hidden]
                layer.gate_up.apply(b, normed, ws.gate_up.view_mut().rows(0..m), false)?; // [m, 2 * ffn]
                ops::silu_mul(b, ws.gate_up.view().rows(0..m), ws.gated.view_mut().rows(0..m))?; // [m, ffn]
                let gated = ws.gated.view().rows(0..m);
                let x = ws.x.view_mut().rows(rows);
                match (&layer.post_norms, &mut ws.branch) {
                    (Some([_, norm]), Some(branch)) => branch.add(b, &layer.down, gated, norm, c.norm_eps, x)?,
                    _ => layer.down.apply(b, gated, x, true)?,
                }
            }
            watch.hidden(b, i + 1, ws.x.view().rows(0..n))?;
            b.flush()?;
        }
        Ok(())
    }

    /// One decoding step: the logits after the token, f32 `[vocab]`, read back. Where the backend can, the step is recorded
    /// once and replayed from then on.
    pub fn step(
        &self,
        b: &B,
        chunk: Chunk,
        cache: &mut KvCache<B>,
        ws: &mut Workspace<B>,
        step: &mut Step<B>,
    ) -> Result<Vec<f32>> {
        self.bring(b, chunk, cache, ws)?;
        if ws.logits.is_none() {
            ws.logits = Some(Tensor::alloc(b, DType::F32, [1, self.config.vocab])?);
        }
        let mut enqueue = |cache: &mut KvCache<B>| -> Result<()> {
            self.layers(b, chunk, cache, ws, &mut ())?;
            self.logits_into(b, ws, 0..1)
        };
        // Dual chunk attention turns its queries by more than their position, and scales them by it.
        let moves_on = self.config.dual_chunk.is_none() && cache.stays_on_device();
        let replayed = match step {
            Step::Recorded { recording, past } if moves_on => b.replay(recording, cache.len() as i64 - *past as i64)?,
            _ => false,
        };
        if !replayed {
            // The first step runs by itself: it compiles, loads and allocates what a recording must not.
            *step = match step {
                Step::First => Step::Next,
                Step::Next | Step::Recorded { .. } if moves_on => {
                    let past = cache.len();
                    let recorded = b.record(&mut || enqueue(cache))?;
                    recorded.map_or(Step::Alone, |recording| Step::Recorded { recording, past })
                }
                Step::Next | Step::Recorded { .. } | Step::Alone => Step::Alone,
            };
            let ran = match step {
                Step::Recorded { recording, .. } => b.replay(recording, 0)?,
                _ => false,
            };
            if !ran {
                enqueue(cache)?;
            }
        }
        cache.advance(chunk.ids.len());
        match &ws.logits {
            Some(logits) => logits.to_f32(b),
            None => Ok(Vec::new()),
        }
    }

    /// [`Decoder::logits`] of one row into the workspace.
    fn logits_into(&self, b: &B, ws: &mut Workspace<B>, rows: Range<usize>) -> Result<()> {
        let Some(mut logits) = ws.logits.take() else { return Err(Error::invalid("logits: no buffer")) };
        let written = self.write_logits(b, ws, rows, logits.view_mut());
        ws.logits = Some(logits);
        written
    }

    /// Final norm and output matrix over some rows of the chunk that [`Decoder::forward`] ran last: f32 `[m, vocab]`, at
    /// most [`SLICE_ROWS`] rows at a time.
    pub fn logits(&self, b: &B, ws: &mut Workspace<B>, rows: Range<usize>) -> Result<Tensor<B>> {
        let m = rows.len();
        if m > ws.slice || rows.end > ws.rows {
            let what = format!("logits of rows {rows:?}: at most {} at a time, of {}", ws.slice, ws.rows);
            return Err(Error::invalid(what));
        }
        let mut logits = Tensor::alloc(b, DType::F32, [m, self.config.vocab])?;
        self.write_logits(b, ws, rows, logits.view_mut())?;
        Ok(logits)
    }

    fn write_logits(&self, b: &B, ws: &mut Workspace<B>, rows: Range<usize>, logits: ViewMut<B>) -> Result<()> {
        let m = rows.len();
        let normed = ws.normed.view_mut().rows(0..m);
        ops::rms_norm(b, ws.x.view().rows(rows), self.final_norm.view(), self.config.norm_eps, normed)?;
        let w = self.lm_head.as_ref().unwrap_or(&self.embed).view();
        ops::matmul(b, ws.normed.view().rows(0..m), w, None, logits, ops::MatmulInto::default())
    }

    /// The last hidden state of a chunk's rows as transformers reports it, after the final norm: f32 `[m, hidden]`.
    pub fn final_hidden(&self, b: &B, ws: &Workspace<B>, rows: Range<usize>) -> Result<Tensor<B>> {
        let mut out = Tensor::alloc(b, DType::F32, [rows.len(), self.config.hidden])?;
        ops::rms_norm(b, ws.x.view().rows(rows), self.final_norm.view(), self.config.norm_eps, out.view_mut())?;
        Ok(out)
    }
}

/// How decoding steps run: see [`Decoder::step`]. Begin anew ([`Step::First`]) whenever the cache or the workspace is made
/// anew, for a recording points into both.
pub enum Step<B: Backend> {
    /// None has run.
    First,
    /// One has run by itself.
    Next,
    /// One was recorded, behind `past` tokens.
    Recorded {
        /// The step.
        recording: B::Recording,
        /// Tokens in the cache when it was recorded.
        past: usize,
    },
    /// Each runs by itself.
    Alone,
}

/// A branch that is normed before it joins the residual stream (GLM-4-0414): the product, and its norm, f32 `[slice, hidden]`.
struct Branch<B: Backend> {
    product: Tensor<B>,
    normed: Tensor<B>,
}

impl<B: Backend> Branch<B> {
    /// `x += norm(input w^T)`: input act `[m, _]`, x f32 `[m, hidden]`.
    fn add(
        &mut self,
        b: &B,
        linear: &Linear<B>,
        input: View<B>,
        norm: &Tensor<B>,
        eps: f32,
        x: ViewMut<B>,
    ) -> Result<()> {
        let m = x.shape().dims()[0];
        linear.apply(b, input, self.product.view_mut().rows(0..m), false)?;
        ops::rms_norm(b, self.product.view().rows(0..m), norm.view(), eps, self.normed.view_mut().rows(0..m))?;
        ops::add(b, self.normed.view().rows(0..m), x)
    }
}
