//! Dual chunk attention (arXiv 2402.17463) as Qwen2.5-1M uses it (arXiv 2501.15383): positions beyond those that a model was
//! trained on never reach its rotary embedding.
//!
//! The sequence is cut into chunks of `L = chunk - local` tokens, and a key turns by its place within its chunk. A query
//! at place `p` meets three sets of keys, each under a rotation of its own:
//!
//! ```text
//! keys of its own chunk       query at p                     the true distance
//! keys of the chunk before    query at min(p + L, chunk)     the true distance up to `chunk` places
//! keys of all earlier chunks  query at min(2 L - 1, chunk)   a distance that is only far
//! ```
//!
//! Attention over each set goes through the same kernels, and [`ops::merge_attention`] joins the parts by their
//! log-sum-exps. A sparse index is estimated once over all keys, on their true distances: rotations add up, so a copy of
//! the cached keys that turns on by its chunk's start stands as if there were no chunks. The index is then cut to each set
//! of keys ([`ops::clip_index`]). Queries of each chunk choose for themselves, as the chunks of a long prompt do.

use super::DecoderConfig;
use super::config::DualChunk;
use crate::attention::{Computed, HeadGroup};
use crate::backend::Backend;
use crate::estimate::{AttentionOptions, IndexLimits, estimate_with, head_groups};
use crate::index::SparseIndex;
use crate::ops::{self, AttentionShape, HeadBand, Rope};
use crate::pattern::{AttentionMode, HeadPattern};
use crate::tensor::{Tensor, View, ViewMut};
use crate::{DType, Error, Result};
use std::ops::Range;

/// Rows that turn at a time: those that turn by one place go as one token of many heads, which a kernel binds whole.
const TURN_ROWS: usize = 1024;

/// Buffers of dual chunk attention, for so many queries at a time.
pub(super) struct DualBuffers<B: Backend> {
    rows: usize,
    turned: Tensor<B>,   // act [rows, W]: queries under one rotation; the rest of a row is of no use
    part: Tensor<B>,     // act [rows, H * D]: attention over one set of keys
    lse: [Tensor<B>; 3], // f32 [H * rows] each: of what is joined, of a part, of both
    keys: Option<Tensor<B>>, // act [KV, capacity, D]: keys at their true places, where an index is estimated
}

impl<B: Backend> DualBuffers<B> {
    /// For `rows` queries; with `capacity`, for estimation over a cache of as many tokens.
    pub fn new(b: &B, c: &DecoderConfig, rows: usize, capacity: Option<usize>) -> Result<Self> {
        let act = b.activation();
        let lse = || Tensor::alloc(b, DType::F32, [c.n_heads * rows]);
        Ok(Self {
            rows,
            turned: Tensor::alloc(b, act, [rows, c.qkv_width()])?,
            part: Tensor::alloc(b, act, [rows, c.n_heads * c.head_dim])?,
            lse: [lse()?, lse()?, lse()?],
            keys: capacity.map(|n| Tensor::alloc(b, act, [c.n_kv_heads, n, c.head_dim])).transpose()?,
        })
    }

    /// Whether they are large enough.
    pub fn serve(&self, rows: usize, capacity: Option<usize>) -> bool {
        let keys = |n| self.keys.as_ref().is_some_and(|keys| keys.shape().dims()[1] == n);
        self.rows >= rows && capacity.is_none_or(keys)
    }
}

/// Bytes that [`DualBuffers::new`] allocates for chunks of `rows` tokens and a cache of `capacity`, 0 where the sequence
/// stays within one chunk; and at most those of the second index that parts are cut to.
pub(crate) fn bytes(c: &DecoderConfig, act: DType, rows: usize, capacity: usize, index: u64) -> u64 {
    let Some(dual) = c.dual_chunk.filter(|dual| capacity > dual.stride()) else { return 0 };
    let (q, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
    let row = act.bytes(c.qkv_width() + q) + 3 * 4 * c.n_heads;
    (row * rows.min(dual.stride()) + act.bytes(kv) * capacity) as u64 + index
}

/// Whether a layer's patterns read queries and keys to choose what they compute.
pub(super) fn estimates(mode: &AttentionMode, layer: usize, n_heads: usize) -> bool {
    mode.patterns(layer, n_heads).iter().any(reads_keys)
}

fn reads_keys(pattern: &HeadPattern) -> bool {
    !matches!(pattern, HeadPattern::Dense | HeadPattern::AShape { .. })
}

/// Turns the keys of a band of x act `[positions, row]` by their places within their chunks.
pub(super) fn turn_keys<B: Backend>(
    b: &B,
    dual: DualChunk,
    turns: View<B>,
    mut x: ViewMut<B>,
    band: HeadBand,
    rope: Rope,
    positions: Range<usize>,
) -> Result<()> {
    for part in chunks(positions.clone(), dual.stride()) {
        let rows = part.start - positions.start..part.end - positions.start;
        ops::rope(b, turns, x.reborrow().rows(rows), band, rope, part.start % dual.stride())?;
    }
    Ok(())
}

/// A range cut at the multiples of `stride`.
fn chunks(range: Range<usize>, stride: usize) -> impl Iterator<Item = Range<usize>> {
    let ends = (range.start / stride..).map(move |chunk| (chunk + 1) * stride);
    let cut = move |end: usize| range.start.max(end - stride)..range.end.min(end);
    ends.map(cut).take_while(|part| !part.is_empty())
}

/// One layer's queries over the keys and values in its cache.
pub(super) struct DualLayer<'a, B: Backend> {
    /// Chunks.
    pub dual: DualChunk,
    /// Of the whole call, its scale with the temperature of the sequence.
    pub shape: AttentionShape,
    /// How q turns.
    pub rope: Rope,
    /// u32 `[rotary_dim / 2, 2]`.
    pub turns: View<'a, B>,
    /// act `[n, W]`: q not turned.
    pub qkv: View<'a, B>,
    /// act, each key turned by its place within its chunk: the cache.
    pub k: View<'a, B>,
    /// act: the cache.
    pub v: View<'a, B>,
}

/// What the queries of a chunk turn by.
#[derive(Clone, Copy)]
enum Turn {
    /// Their places, counted from this many tokens before the chunk, at most `most`.
    Places { ahead: usize, most: usize },
    /// One place for all.
    Fixed(usize),
}

impl<B: Backend> DualLayer<'_, B> {
    /// The sets of keys that the queries of the chunk from `base` on meet, up to key `end`, and how they turn for each.
    fn parts(&self, base: usize, end: usize) -> Vec<(Range<usize>, Turn)> {
        let (stride, chunk) = (self.dual.stride(), self.dual.chunk);
        let mut parts = vec![(base..end, Turn::Places { ahead: 0, most: usize::MAX })];
        if base >= stride {
            parts.push((base - stride..base, Turn::Places { ahead: stride, most: chunk }));
        }
        if base > stride {
            parts.push((0..base - stride, Turn::Fixed((2 * stride - 1).min(chunk))));
        }
        parts
    }

    /// `turned` = the queries at these key positions, all in one chunk, under a rotation.
    fn turn(&self, b: &B, turned: &mut Tensor<B>, positions: Range<usize>, turn: Turn) -> Result<()> {
        let (first, m) = (positions.start - self.shape.q_start, positions.len());
        let rows = first..first + m;
        ops::cast(b, self.qkv.rows(rows), turned.view_mut().rows(0..m))?;
        let (d, place) = (self.shape.head_dim, positions.start % self.dual.stride());
        let band = HeadBand { column: 0, heads: self.shape.n_heads, head_dim: d };
        // Rows from here on turn by one place.
        let fixed_from = match turn {
            Turn::Places { ahead, most } if place + ahead <= most => (most - ahead - place).saturating_add(1).min(m),
            _ => 0,
        };
        for start in (0..fixed_from).step_by(TURN_ROWS) {
            let Turn::Places { ahead, .. } = turn else { break };
            let rows = start..fixed_from.min(start + TURN_ROWS);
            let x = turned.view_mut().rows(rows);
            ops::rope(b, self.turns, x, band, self.rope, place + ahead + start)?;
        }
        let (Turn::Places { most: fixed, .. } | Turn::Fixed(fixed)) = turn;
        for start in (fixed_from..m).step_by(TURN_ROWS) {
            let rows = start..m.min(start + TURN_ROWS);
            turn_all(b, self.turns, turned.view_mut().rows(rows), d, self.rope, fixed)?;
        }
        Ok(())
    }

    /// Copies the keys before `end` and turns them on by the starts of their chunks: to their true places.
    fn true_places(&self, b: &B, keys: &mut Tensor<B>, end: usize) -> Result<()> {
        let AttentionShape { n_kv_heads, head_dim: d, .. } = self.shape;
        ops::cast(b, self.k, keys.view_mut())?;
        let capacity = keys.shape().dims()[1];
        let again = Rope { attention_factor: 1.0, ..self.rope };
        for part in chunks(0..end, self.dual.stride()).skip(1) {
            for (head, start) in (0..n_kv_heads).flat_map(|h| part.clone().step_by(TURN_ROWS).map(move |s| (h, s))) {
                let rows = start..part.end.min(start + TURN_ROWS);
                let x = keys.view_mut().rows(head..head + 1).reshape([capacity, d]).rows(rows);
                turn_all(b, self.turns, x, d, again, part.start)?;
            }
        }
        Ok(())
    }

    /// Attention of all queries, each head by its pattern: out act `[n, H * D]`. What was computed is told chunk by chunk.
    pub fn attend(
        &self,
        b: &B,
        patterns: &[HeadPattern],
        options: AttentionOptions,
        buffers: &mut DualBuffers<B>,
        mut out: ViewMut<B>,
    ) -> Result<Vec<Computed<B>>> {
        let AttentionShape { q_start, q_len, .. } = self.shape;
        let DualBuffers { turned, part, lse, keys, .. } = buffers;
        let reads = patterns.iter().any(reads_keys);
        if let Some(keys) = keys.as_mut().filter(|_| reads) {
            self.true_places(b, keys, q_start + q_len)?;
        }
        let true_keys = keys.as_ref().filter(|_| reads).map_or(self.k, Tensor::view);
        let mut computed = Vec::new();
        for positions in chunks(q_start..q_start + q_len, self.dual.stride()) {
            let (m, base) = (positions.len(), positions.start - positions.start % self.dual.stride());
            let shape = AttentionShape { q_len: m, kv_len: positions.end, q_start: positions.start, ..self.shape };
            let mut pairs = Vec::new();
            for heads in head_groups(patterns, &shape, IndexLimits::of(b)) {
                let group = HeadGroup::new(&shape, heads.clone());
                let (k, v) = (group.k(self.k), group.v(self.v));
                if reads {
                    self.turn(b, turned, positions.clone(), Turn::Places { ahead: base, most: usize::MAX })?;
                }
                let (q, true_keys) = (group.q(turned.view()), group.k(true_keys));
                let mut index = estimate_with(b, &patterns[heads.clone()], &group.shape, q, true_keys, options)?;
                let whole = fresh_rows(b, &mut index)?;

                let shape_of_lse = [heads.len(), m];
                let mut rows = out.reborrow().rows(positions.start - q_start..positions.end - q_start);
                for (i, (span, turn)) in self.parts(base, positions.end).into_iter().enumerate() {
                    ops::clip_index(b, whole.each_ref().map(Tensor::view), span, &mut index)?;
                    self.turn(b, turned, positions.clone(), turn)?;
                    let q = group.q(turned.view());
                    let mut part_rows = part.view_mut().rows(0..m);
                    let (into, into_lse) = match i {
                        0 => (group.out(&mut rows), lse_view(&mut lse[0], shape_of_lse)),
                        _ => (group.out(&mut part_rows), lse_view(&mut lse[1], shape_of_lse)),
                    };
                    let qkv = [q, k, v];
                    ops::attention_skipping(
                        b,
                        &group.shape,
                        qkv,
                        &index,
                        into,
                        Some(into_lse),
                        options.extras.skip_softmax,
                    )?;
                    if i > 0 {
                        let band = self.band(&heads);
                        merge(b, band, part.view().rows(0..m), rows.reborrow(), lse, shape_of_lse)?;
                    }
                }
                pairs.push(index.pairs);
            }
            computed.push(Computed::new(pairs, shape.causal_pairs()));
        }
        Ok(computed)
    }

    /// Attention of one query over all keys: out act `[1, H * D]`.
    pub fn decode(&self, b: &B, buffers: &mut DualBuffers<B>, mut out: ViewMut<B>) -> Result<()> {
        let AttentionShape { q_start: position, q_len, n_heads, head_dim: d, .. } = self.shape;
        if q_len != 1 {
            return Err(Error::invalid(format!("dual chunk attention decodes one token at a time, got {q_len}")));
        }
        let DualBuffers { turned, part, lse, .. } = buffers;
        let base = position - position % self.dual.stride();
        for (i, (span, turn)) in self.parts(base, position + 1).into_iter().enumerate() {
            self.turn(b, turned, position..position + 1, turn)?;
            // The last key of the span stands where the query does, so that all of them are seen.
            let shape = AttentionShape { q_start: span.len() - 1, kv_len: span.len(), ..self.shape };
            let q = turned.view().rows(0..1);
            let (k, v) = (self.k.from_element(span.start * d), self.v.from_element(span.start * d));
            let (into, into_lse) = match i {
                0 => (out.reborrow(), lse_view(&mut lse[0], [n_heads, 1])),
                _ => (part.view_mut().rows(0..1), lse_view(&mut lse[1], [n_heads, 1])),
            };
            ops::decode_attention_with_lse(b, &shape, q, k, v, into, Some(into_lse))?;
            if i > 0 {
                let band = self.band(&(0..n_heads));
                merge(b, band, part.view().rows(0..1), out.reborrow(), lse, [n_heads, 1])?;
            }
        }
        Ok(())
    }

    /// Heads in rows of the output.
    fn band(&self, heads: &Range<usize>) -> HeadBand {
        let d = self.shape.head_dim;
        HeadBand { column: heads.start * d, heads: heads.len(), head_dim: d }
    }
}

/// Turns every head in x act `[rows, row]` by one place: a row of many heads is a token.
fn turn_all<B: Backend>(b: &B, turns: View<B>, x: ViewMut<B>, d: usize, rope: Rope, place: usize) -> Result<()> {
    let elements = x.shape().elements();
    let band = HeadBand { column: 0, heads: elements / d, head_dim: d };
    ops::rope(b, turns, x.reshape([1, elements]), band, rope, place)
}

/// An index's row_ranges, ranges and keep, with new ones in their place.
fn fresh_rows<B: Backend>(b: &B, index: &mut SparseIndex<B>) -> Result<[Tensor<B>; 3]> {
    let take = |rows: &mut Tensor<B>| {
        let fresh = Tensor::alloc(b, DType::U32, rows.shape())?;
        Ok::<_, Error>(std::mem::replace(rows, fresh))
    };
    Ok([take(&mut index.row_ranges)?, take(&mut index.ranges)?, take(&mut index.keep)?])
}

fn lse_view<B: Backend>(lse: &mut Tensor<B>, shape: [usize; 2]) -> ViewMut<'_, B> {
    lse.view_mut().rows(0..shape[0] * shape[1]).reshape(shape)
}

/// Joins a part into `out`, whose log-sum-exp is then the first of `lse` again.
fn merge<B: Backend>(
    b: &B,
    band: HeadBand,
    part: View<B>,
    out: ViewMut<B>,
    lse: &mut [Tensor<B>; 3],
    shape: [usize; 2],
) -> Result<()> {
    let [joined, of_part, both] = lse;
    let n = 0..shape[0] * shape[1];
    let (joined_view, part_view) =
        (joined.view().rows(n.clone()).reshape(shape), of_part.view().rows(n).reshape(shape));
    ops::merge_attention(b, band, part, part_view, out, joined_view, lse_view(both, shape))?;
    std::mem::swap(joined, both);
    Ok(())
}
