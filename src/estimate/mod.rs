//! From patterns to a [`SparseIndex`]: which columns, diagonals and blocks each head computes for this prompt.
//!
//! All heads of a layer at once, whatever their patterns, in a few launches and without reading anything back: sizes are
//! bounded on the host beforehand (see [`head_groups`]), counts stay on the device. The one `match` over [`HeadPattern`]
//! is in `plan.rs`; a new pattern adds an arm there and, where no kind of [`HeadPlan`] fits, a way to choose.
//!
//! ```text
//! HeadPattern --plan--> HeadPlan --choose--> columns, offsets, block mask --build--> SparseIndex
//! ```
//!
//! Methods whose budget is found with the choice use the same parts. **Flex** is FlexPrefill (arXiv 2502.20766, algorithms
//! 1 to 4): the last queries' attention over key blocks against the softmax of block means, by the square root of their
//! Jensen-Shannon divergence; below `tau` the heaviest blocks of the whole map that hold `gamma` of it, else the fewest
//! columns and the fewest diagonals that hold `gamma` of the last queries' attention. Apart from the paper, blocks are of
//! 64 and not 128, the last 64 queries stand for all, columns are single keys, diagonals are weighed and taken by 64 (a
//! block of them costs what one does) and become blocks by the official MInference rule, [`FORCED_COLUMNS`] and
//! [`FORCED_OFFSETS`] are always in, weights within 1/64 of each other are taken together (so that an even map is taken
//! whole), and a head that needs more than an eighth of all columns (4096 to 16384) becomes dense. The budgets count keys:
//! fewest and most columns, and diagonals beside the nearest [`FORCED_OFFSETS`]; a head of blocks keeps so many nearest keys
//! (the published code gives it the fewest columns and diagonals instead) and its first block.
//!
//! **Threshold** is FlashPrefill's selection (arXiv 2603.06199) without its scoring: key blocks that weigh at least `alpha`
//! times the heaviest of their row, by the softmax of block means, and always the first block and four up to the row
//! block's own; row blocks that hold one of the `n_last` last queries of a prompt are dense. It is what automatic heads are
//! on long prompts ([`HeadPattern::AUTO`]). **Tri-shape** is TriangleMix's mask (arXiv 2507.21526) by row blocks. Of a prompt
//! in chunks only the last chunk has last queries ([`AttentionOptions::more_follows`]).
//!
//! **Recall**: FlashPrefill's selection (arXiv 2603.06199), key blocks whose mean
//! weighs at least a threshold times the heaviest's, with a threshold fitted to each head on each prompt: the largest whose
//! blocks hold the floor of what the last 64 queries really attend to. So heads that block means describe well and that
//! are sparse compute little, and the others what the floor asks, up to everything.
//!
//! **XAttention** (arXiv 2503.16428): blocks by the sums along their antidiagonals, `stride` keys apart, as one product of
//! queries in reverse with keys, both gathered by the stride; a softmax over the groups of keys; and for each block of
//! queries the heaviest key blocks that hold the threshold's part. The first block and the diagonal are always in, on top of
//! that part: what they weigh does not make it smaller, so a row keeps at least what is asked. Apart from the paper, blocks are of 64 and not 128, weights within 1/64 of each other are taken together, and thresholds are one for
//! all heads (the paper also tunes them head by head).
//!
//! **Sharing**: under [`crate::pattern::Extras::share_groups`] the query heads of a KV head take the mean of their scores
//! (last queries' attention, means of blocks; of XAttention's weights the logarithms), so that patterns of one budget
//! choose the same. Each head keeps its own budget. The proxies of ProxyAttn are heads found alike; here they are the
//! heads that share keys.

mod antidiagonals;
mod block_sparse;
mod flex;
mod plan;
mod vertical_slash;

pub use crate::backend::params::EXACT;
pub use plan::{IndexLimits, head_groups};
pub use vertical_slash::{FORCED_COLUMNS, FORCED_OFFSETS, MIN_COLUMNS, MIN_OFFSETS, effective_counts};

use crate::backend::Backend;
use crate::backend::params::{BLOCK, HeadPlan};
use crate::index::{IndexLayout, SparseIndex};
use crate::ops::{self, AttentionShape};
use crate::pattern::{Extras, HeadPattern};
use crate::tensor::{Tensor, View};
use crate::{DType, Error, Result};
use antidiagonals::Antidiagonals;
use block_sparse::Means;
use plan::Plan;
use vertical_slash::Scores;

/// The index of a layer's heads: [`choose`], then [`Chosen::build`]. q, k act under the shape's strides, RoPE applied.
///
/// For as many heads at a time as [`head_groups`] says: with more, the ranges of very scattered diagonals may not find
/// room, and the row blocks concerned become dense.
///
/// # Errors
/// [`Error::Shape`] where tensors, patterns and shape do not fit together, [`Error::OutOfMemory`], and what the device
/// reports.
pub fn estimate<B: Backend>(
    b: &B,
    patterns: &[HeadPattern],
    shape: &AttentionShape,
    q: View<B>,
    k: View<B>,
) -> Result<SparseIndex<B>> {
    estimate_with(b, patterns, shape, q, k, AttentionOptions::EXACT)
}

/// How attention may depart from what its patterns say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionOptions {
    /// From so many 256ths of the causal pairs on, everything is computed: see [`EXACT`].
    pub dense_above: u32,
    /// What the mode adds to all its patterns.
    pub extras: Extras,
    /// Whether more of the same prompt follows: no row block is dense for holding one of the last queries then, since these
    /// are not the prompt's.
    pub more_follows: bool,
}

impl AttentionOptions {
    /// Exactly what the patterns say.
    pub const EXACT: Self = Self { dense_above: EXACT, extras: Extras::NONE, more_follows: false };
}

impl Default for AttentionOptions {
    fn default() -> Self {
        Self::EXACT
    }
}

/// [`estimate`] under options.
///
/// # Errors
/// As [`estimate`].
pub fn estimate_with<B: Backend>(
    b: &B,
    patterns: &[HeadPattern],
    shape: &AttentionShape,
    q: View<B>,
    k: View<B>,
    options: AttentionOptions,
) -> Result<SparseIndex<B>> {
    choose_with(b, patterns, shape, q, k, options)?.build(b)
}

/// What the patterns of a layer's heads chose, on the device.
pub struct Chosen<B: Backend> {
    layout: IndexLayout,
    /// u32 `[H, 4]`: one [`HeadPlan`] a head.
    plan: Tensor<B>,
    /// u32 `[H, 64 * max(column_tiles, 1)]`.
    columns: Tensor<B>,
    /// u32 `[H, capacity]`.
    offsets: Tensor<B>,
    /// u32 `[H]`: 0 for heads that are not vertical-slash.
    column_count: Tensor<B>,
    /// u32 `[H]`, likewise.
    offset_count: Tensor<B>,
    /// u32 `[H, R, ceil(C / 32)]`, or one element where no head can be block-sparse.
    block_mask: Tensor<B>,
    dense_above: u32,
}

/// Scores and selects: the part of [`estimate`] that reads q and k.
///
/// # Errors
/// As [`estimate`].
pub fn choose<B: Backend>(
    b: &B,
    patterns: &[HeadPattern],
    shape: &AttentionShape,
    q: View<B>,
    k: View<B>,
) -> Result<Chosen<B>> {
    choose_with(b, patterns, shape, q, k, AttentionOptions::EXACT)
}

/// The part of [`estimate_with`] that reads q and k.
///
/// # Errors
/// As [`estimate`].
pub fn choose_with<B: Backend>(
    b: &B,
    patterns: &[HeadPattern],
    shape: &AttentionShape,
    q: View<B>,
    k: View<B>,
    options: AttentionOptions,
) -> Result<Chosen<B>> {
    let AttentionOptions { dense_above, extras, .. } = options;
    let plan = Plan::new(patterns, shape, IndexLimits::of(b), options)?;
    let share = if extras.share_groups { shape.n_heads / shape.n_kv_heads } else { 1 };
    let mut chosen = Chosen { dense_above, ..Chosen::alloc(b, &plan)? };
    let flex = plan.uses(HeadPlan::FLEX);
    let means = match plan.pools() {
        true => Some(Means::new(b, shape, [q, k], false, share, &plan, plan::pools)?),
        false => None,
    };
    let fit = plan.uses(HeadPlan::FIT);
    if flex || fit || plan.uses(HeadPlan::VERTICAL_SLASH) {
        let mut scores = Scores::new(b, shape, &plan, share, q, k)?;
        if let (true, Some(means)) = (flex || fit, &means) {
            flex::settle(b, shape, &plan, share, &mut scores, means, q, &mut chosen)?;
        }
        if flex || plan.uses(HeadPlan::VERTICAL_SLASH) {
            vertical_slash::choose(b, shape, &scores, &mut chosen)?;
        }
    }
    if flex || fit || plan.uses(HeadPlan::BLOCK_SPARSE) {
        let folds = Antidiagonals::of(b, shape, &plan, q, k)?;
        let by = block_sparse::By { means: means.as_ref(), folds: &folds, share };
        chosen.block_mask = block_sparse::choose(b, shape, &plan, chosen.plan.view(), q, k, by)?;
    }
    Ok(chosen)
}

/// The index of given sets instead of estimated ones, by the official conversion: for each head its key columns and its
/// offsets (query - key), in any order. Each head needs an offset below `q_start + 64`, or its first row block would be
/// empty; offset 0 may be absent.
///
/// # Errors
/// [`Error::Invalid`] for another number of lists than heads, a value outside the keys or given twice, and a head whose
/// first row block would be empty; as [`estimate`].
pub fn from_sets<B: Backend>(
    b: &B,
    columns: &[Vec<u32>],
    offsets: &[Vec<u32>],
    shape: &AttentionShape,
) -> Result<SparseIndex<B>> {
    from_sets_or_dense(b, columns, offsets, shape, EXACT)
}

/// [`from_sets`], but with one dense range in row blocks whose sets cover more than `dense_above` 256ths of the pairs.
///
/// # Errors
/// As [`from_sets`].
pub fn from_sets_or_dense<B: Backend>(
    b: &B,
    columns: &[Vec<u32>],
    offsets: &[Vec<u32>],
    shape: &AttentionShape,
    dense_above: u32,
) -> Result<SparseIndex<B>> {
    let (columns, offsets) = (sorted("column", columns, shape)?, sorted("offset", offsets, shape)?);
    let reach = shape.q_start + BLOCK;
    for (head, offsets) in offsets.iter().enumerate() {
        if offsets.first().is_none_or(|&least| least as usize >= reach) {
            let least = offsets.first().map_or("none".to_owned(), u32::to_string);
            return Err(Error::invalid(format!(
                "head {head}: expected an offset below {reach}, got {least} as the least"
            )));
        }
    }
    let plan = Plan::of_sets(&columns, &offsets, shape, IndexLimits::of(b));
    let mut chosen = Chosen { dense_above, ..Chosen::alloc(b, &plan)? };
    chosen.columns.write(b, &padded(&columns, chosen.columns.shape().dims()[1]))?;
    chosen.offsets.write(b, &padded(&offsets, plan.offset_capacity))?;
    chosen.build(b)
}

impl<B: Backend> Chosen<B> {
    /// The plan, its counts, and room for the rest.
    fn alloc(b: &B, plan: &Plan) -> Result<Self> {
        let heads = plan.heads.len();
        let counts = |count: fn(&HeadPlan) -> u32| Tensor::from_slice(b, DType::U32, [heads], &plan.counts(count));
        Ok(Self {
            layout: plan.layout,
            plan: Tensor::from_bytes(b, DType::U32, [heads, 4], bytemuck::cast_slice(&plan.heads))?,
            columns: Tensor::alloc(b, DType::U32, [heads, BLOCK * plan.layout.column_tiles.max(1)])?,
            offsets: Tensor::alloc(b, DType::U32, [heads, plan.offset_capacity])?,
            column_count: counts(|head| head.a)?,
            offset_count: counts(|head| head.b)?,
            block_mask: Tensor::alloc(b, DType::U32, [1, 1, 1])?,
            dense_above: EXACT,
        })
    }

    /// Ranges, keep masks, windows and pair counts.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], and what the device reports.
    pub fn build(self, b: &B) -> Result<SparseIndex<B>> {
        let mut index = SparseIndex::with_columns(b, self.layout, self.columns)?;
        let choice = ops::Choice {
            plan: self.plan.view(),
            offsets: self.offsets.view(),
            offset_count: self.offset_count.view(),
            block_mask: self.block_mask.view(),
            dense_above: self.dense_above,
        };
        ops::build_index(b, choice, &mut index)?;
        Ok(index)
    }

    /// Chosen key columns of each vertical-slash head, ascending; empty for the others. Waits for the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn columns(&self, b: &B) -> Result<Vec<Vec<u32>>> {
        self.lists(b, &self.columns, |head| head.a)
    }

    /// Chosen offsets of each vertical-slash head, ascending; empty for the others. Waits for the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn offsets(&self, b: &B) -> Result<Vec<Vec<u32>>> {
        self.lists(b, &self.offsets, |head| head.b)
    }

    fn lists(&self, b: &B, values: &Tensor<B>, count: impl Fn(&HeadPlan) -> u32) -> Result<Vec<Vec<u32>>> {
        let plan: Vec<HeadPlan> = bytemuck::pod_collect_to_vec(&self.plan.to_u32(b)?);
        let (values, capacity) = (values.to_u32(b)?, values.shape().dims()[1]);
        let list = |(head, values): (&HeadPlan, &[u32])| match head.kind {
            HeadPlan::VERTICAL_SLASH => values[..count(head) as usize].to_vec(),
            _ => Vec::new(),
        };
        Ok(plan.iter().zip(values.chunks_exact(capacity)).map(list).collect())
    }
}

/// The lists in ascending order, each value within the keys and given once.
fn sorted(what: &str, lists: &[Vec<u32>], shape: &AttentionShape) -> Result<Vec<Vec<u32>>> {
    if lists.len() != shape.n_heads {
        return Err(Error::invalid(format!("{what}s: expected {} heads, got {}", shape.n_heads, lists.len())));
    }
    let mut lists = lists.to_vec();
    for (head, list) in lists.iter_mut().enumerate() {
        list.sort_unstable();
        if let Some(twice) = list.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid(format!("head {head}: {what} {} is given twice", twice[0])));
        }
        if let Some(&last) = list.last().filter(|&&last| last as usize >= shape.kv_len) {
            let kv_len = shape.kv_len;
            return Err(Error::invalid(format!("head {head}: {what}: expected below {kv_len}, got {last}")));
        }
    }
    Ok(lists)
}

/// The lists as rows of `capacity` values, padded with `u32::MAX`.
fn padded(lists: &[Vec<u32>], capacity: usize) -> Vec<u32> {
    let mut rows = vec![u32::MAX; lists.len() * capacity];
    rows.chunks_exact_mut(capacity).zip(lists).for_each(|(row, list)| row[..list.len()].copy_from_slice(list));
    rows
}
