//! One attention layer: estimate what each head computes, then compute it.

use crate::backend::Backend;
use crate::estimate::{AttentionOptions, IndexLimits, estimate_with, from_sets_or_dense, head_groups};
use crate::ops::{self, AttentionShape};
use crate::pattern::HeadPattern;
use crate::tensor::{Tensor, View, ViewMut};
use crate::{Error, Result};
use std::ops::Range;

/// How much a layer computed. The counts stay on the device until asked for, so that nothing in the layer loop waits.
pub struct Computed<B: Backend> {
    /// u32 `[heads of the group, R]` of each head group: pairs computed by each row block, clipped to `j <= i < N`.
    pub pairs: Vec<Tensor<B>>,
    causal_pairs: u64,
}

impl<B: Backend> Computed<B> {
    /// Counts of an index's head groups, for a call with so many causal pairs a head.
    pub(crate) fn new(pairs: Vec<Tensor<B>>, causal_pairs: u64) -> Self {
        Self { pairs, causal_pairs }
    }

    /// Pairs of each head. Waits for the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn head_pairs(&self, b: &B) -> Result<Vec<u64>> {
        Ok(Self::all_head_pairs(b, &[self])?.concat())
    }

    /// The same for several layers. Waits once.
    ///
    /// # Errors
    /// What the device reports.
    pub fn all_head_pairs(b: &B, layers: &[&Self]) -> Result<Vec<Vec<u64>>> {
        let groups: Vec<&Tensor<B>> = layers.iter().flat_map(|layer| &layer.pairs).collect();
        let mut counts = Tensor::all_to_u32(b, &groups)?.into_iter();
        let of_heads = |group: &Tensor<B>, counts: Vec<u32>| -> Vec<u64> {
            let rows = counts.chunks_exact(group.shape().dims()[1]);
            rows.map(|row| row.iter().copied().map(u64::from).sum()).collect()
        };
        let of_layer = |layer: &&Self| -> Vec<u64> {
            let groups = layer.pairs.iter().zip(&mut counts);
            groups.flat_map(|(group, counts)| of_heads(group, counts)).collect()
        };
        Ok(layers.iter().map(of_layer).collect())
    }

    /// Computed pairs over causal pairs, over all heads. Waits for the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn density(&self, b: &B) -> Result<f64> {
        let pairs = self.head_pairs(b)?;
        Ok(pairs.iter().sum::<u64>() as f64 / (pairs.len() as u64 * self.causal_pairs) as f64)
    }
}

/// Attention of all heads of one layer, each by its pattern: q, k, v act under the shape's strides with RoPE applied, out
/// act or f32, and on request the natural log-sum-exp of each row, f32 `[H, q_len]`. Nothing is read back.
///
/// Heads go in groups where the index of all would be too large (beyond 128K tokens of official budgets), each group's
/// index being dropped before the next one's is made.
///
/// # Errors
/// [`Error::Shape`] where tensors, patterns and shape do not fit together, [`Error::OutOfMemory`], and what the device
/// reports.
pub fn attend<B: Backend>(
    b: &B,
    patterns: &[HeadPattern],
    shape: &AttentionShape,
    q: View<B>,
    k: View<B>,
    v: View<B>,
    out: ViewMut<B>,
    lse: Option<ViewMut<B>>,
) -> Result<Computed<B>> {
    attend_with(b, patterns, shape, [q, k, v], out, lse, AttentionOptions::EXACT)
}

/// [`attend`] under options.
///
/// # Errors
/// As [`attend`].
pub fn attend_with<B: Backend>(
    b: &B,
    patterns: &[HeadPattern],
    shape: &AttentionShape,
    [q, k, v]: [View<B>; 3],
    out: ViewMut<B>,
    lse: Option<ViewMut<B>>,
    options: AttentionOptions,
) -> Result<Computed<B>> {
    if patterns.len() != shape.n_heads {
        let (expected, got) = (format!("{} heads", shape.n_heads), patterns.len().to_string());
        return Err(Error::Shape { op: "attend", what: "patterns", expected, got });
    }
    shape.validate("attend", &q, &k, &v, Some(&out))?;
    let mut computed = Computed { pairs: Vec::new(), causal_pairs: shape.causal_pairs() };
    let (mut out, mut lse) = (out, lse);
    for heads in head_groups(patterns, shape, IndexLimits::of(b)) {
        let part = HeadGroup::new(shape, heads);
        let (q, k, v) = (part.q(q), part.k(k), part.v(v));
        let index = estimate_with(b, &patterns[part.heads.clone()], &part.shape, q, k, options)?;
        let group_lse = lse.as_mut().map(|lse| lse.reborrow().rows(part.heads.clone()));
        let out = part.out(&mut out);
        ops::attention_skipping(b, &part.shape, [q, k, v], &index, out, group_lse, options.extras.skip_softmax)?;
        computed.pairs.push(index.pairs);
    }
    Ok(computed)
}

/// [`attend_with`] by given sets instead of patterns: for each head its columns and its offsets, as
/// [`crate::estimate::from_sets`] takes them.
///
/// # Errors
/// As [`crate::estimate::from_sets`] and [`attend`].
pub fn attend_sets<B: Backend>(
    b: &B,
    [columns, offsets]: [&[Vec<u32>]; 2],
    shape: &AttentionShape,
    [q, k, v]: [View<B>; 3],
    mut out: ViewMut<B>,
    options: AttentionOptions,
) -> Result<Computed<B>> {
    let sizes = |(c, o): (&Vec<u32>, &Vec<u32>)| HeadPattern::VerticalSlash { columns: c.len(), offsets: o.len() };
    let patterns: Vec<HeadPattern> = columns.iter().zip(offsets).map(sizes).collect();
    if columns.len() != offsets.len() || patterns.len() != shape.n_heads {
        let (expected, got) = (format!("{} heads", shape.n_heads), format!("{}, {}", columns.len(), offsets.len()));
        return Err(Error::Shape { op: "attend", what: "sets", expected, got });
    }
    shape.validate("attend", &q, &k, &v, Some(&out))?;
    let mut computed = Computed { pairs: Vec::new(), causal_pairs: shape.causal_pairs() };
    for heads in head_groups(&patterns, shape, IndexLimits::of(b)) {
        let part = HeadGroup::new(shape, heads.clone());
        let index = from_sets_or_dense(b, &columns[heads.clone()], &offsets[heads], &part.shape, options.dense_above)?;
        let (qkv, out) = ([part.q(q), part.k(k), part.v(v)], part.out(&mut out));
        ops::attention_skipping(b, &part.shape, qkv, &index, out, None, options.extras.skip_softmax)?;
        computed.pairs.push(index.pairs);
    }
    Ok(computed)
}

/// Some heads of a layer as an attention call of their own: its shape, and its part of each tensor.
pub struct HeadGroup {
    /// Query heads of the layer.
    pub heads: Range<usize>,
    /// The shape of the call.
    pub shape: AttentionShape,
    first_kv_head: usize,
}

impl HeadGroup {
    /// For a range as [`head_groups`] makes them: whole KV heads, or part of one.
    pub fn new(shape: &AttentionShape, heads: Range<usize>) -> Self {
        let share = shape.n_heads / shape.n_kv_heads;
        let n_kv_heads = heads.len().div_ceil(share);
        let shape = AttentionShape { n_heads: heads.len(), n_kv_heads, ..*shape };
        Self { first_kv_head: heads.start / share, heads, shape }
    }

    /// The group's queries. This and the others panic where the layer's tensor ends before the group's part begins, as
    /// slices do; [`attend`] has checked that it does not.
    pub fn q<'a, B: Backend>(&self, q: View<'a, B>) -> View<'a, B> {
        q.from_element(self.heads.start * self.shape.q_stride[1])
    }

    /// The group's keys.
    pub fn k<'a, B: Backend>(&self, k: View<'a, B>) -> View<'a, B> {
        k.from_element(self.first_kv_head * self.shape.k_stride[1])
    }

    /// The group's values.
    pub fn v<'a, B: Backend>(&self, v: View<'a, B>) -> View<'a, B> {
        v.from_element(self.first_kv_head * self.shape.v_stride[1])
    }

    /// The group's part of the output.
    pub fn out<'a, B: Backend>(&self, out: &'a mut ViewMut<'_, B>) -> ViewMut<'a, B> {
        out.reborrow().from_element(self.heads.start * self.shape.out_stride[1])
    }
}

/// Attention mass that a sparse computation keeps of the dense one, the mean over each head's rows:
/// `exp(lse_sparse - lse_dense)`, both `[H, q_len]` in natural logarithm (the recall of Qwen2.5-1M's refinement).
///
/// # Errors
/// [`Error::Shape`] where the two are not `n_heads` rows of one length.
pub fn kept_mass(sparse: &[f32], dense: &[f32], n_heads: usize) -> Result<Vec<f64>> {
    if sparse.len() != dense.len() || n_heads == 0 || !sparse.len().is_multiple_of(n_heads) || sparse.is_empty() {
        let (expected, got) = (format!("{} values in {n_heads} heads", dense.len()), sparse.len().to_string());
        return Err(Error::Shape { op: "kept_mass", what: "sparse", expected, got });
    }
    let rows = sparse.len() / n_heads;
    let mass = |(s, d): (&f32, &f32)| (f64::from(*s) - f64::from(*d)).exp();
    let head = |(s, d): (&[f32], &[f32])| s.iter().zip(d).map(mass).sum::<f64>() / rows as f64;
    Ok(sparse.chunks_exact(rows).zip(dense.chunks_exact(rows)).map(head).collect())
}
