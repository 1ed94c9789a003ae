//! What is decided before anything runs: each head's [`HeadPlan`], the sizes of the index, and how many heads go together.

use super::EXACT;
use super::vertical_slash::{FORCED_COLUMNS, FORCED_OFFSETS, effective_counts};
use crate::backend::Backend;
use crate::backend::params::{BLOCK, HeadBudget, HeadPlan};
use crate::index::IndexLayout;
use crate::ops::AttentionShape;
use crate::pattern::HeadPattern;
use crate::{Error, Result};
use std::ops::Range;

/// How large an index may be.
#[derive(Clone, Copy, Debug)]
pub struct IndexLimits {
    /// Bytes of one index.
    pub index_bytes: u64,
    /// Bytes of one of its parts.
    pub part_bytes: u64,
    /// Keys from which on automatic heads are sparse.
    pub sparse_from: usize,
    /// Keys from which on anything is estimated, unless the index has to be exact.
    pub estimate_from: usize,
}

impl IndexLimits {
    /// 448 MiB for an index (that of 32 heads at 128K tokens then stays under 512 MiB whatever is chosen), and for a part
    /// what the backend can bind.
    pub fn of<B: Backend>(b: &B) -> Self {
        let part_bytes = match b.info().max_binding_bytes {
            0 => u64::MAX,
            bytes => bytes,
        };
        Self { index_bytes: 448 << 20, part_bytes, sparse_from: b.sparse_from(), estimate_from: b.estimate_from() }
    }
}

/// So many ranges always find room, 64 MiB: whatever 32 heads can choose up to 32K tokens. Beyond, room is made for what
/// offsets at random leave: at 128K tokens a quarter of what offsets arranged against us could.
const SURE_RANGES: u64 = 8 << 20;

/// The plan of one call: everything that the host knows about its index.
pub(super) struct Plan {
    pub heads: Vec<HeadPlan>,
    /// Of heads that are not decided yet; zeros for the others.
    pub budgets: Vec<HeadBudget>,
    /// Of XAttention heads; 0 for the others.
    pub strides: Vec<usize>,
    pub layout: IndexLayout,
    /// Offsets that each head has room for, at least 1.
    pub offset_capacity: usize,
}

impl Plan {
    /// The one match over [`HeadPattern`]. A head that would compute every causal pair anyway is planned as dense: on short
    /// prompts nothing is estimated. So is one that is bound to compute more than `dense_above` 256ths, and on prompts shorter
    /// than pays any that would be estimated.
    pub fn new(
        patterns: &[HeadPattern],
        shape: &AttentionShape,
        limits: IndexLimits,
        dense_above: u32,
    ) -> Result<Self> {
        if patterns.len() != shape.n_heads {
            return Err(Error::Shape {
                op: "estimate",
                what: "patterns",
                expected: format!("{} heads", shape.n_heads),
                got: patterns.len().to_string(),
            });
        }
        let plan = |&pattern: &HeadPattern| {
            let plan = head_plan(pattern.checked()?.resolved(automatic_keys(shape), limits.sparse_from), shape);
            let dense = HeadPlan { kind: HeadPlan::DENSE, a: 0, b: 0, c: 0 };
            let short = dense_above < EXACT && shape.kv_len < limits.estimate_from;
            Ok(if pays(&plan, shape, dense_above) && !(short && is_estimated(&plan)) { plan } else { dense })
        };
        let heads = patterns.iter().map(plan).collect::<Result<Vec<_>>>()?;
        let mut plan = Self::of_heads(heads, shape, limits, FORCED_OFFSETS);
        for (((budget, stride), head), pattern) in
            plan.budgets.iter_mut().zip(&mut plan.strides).zip(&plan.heads).zip(patterns)
        {
            let pattern = pattern.resolved(automatic_keys(shape), limits.sparse_from);
            if let (HeadPlan::BLOCK_SPARSE, HeadPattern::XAttention { stride: own, .. }) = (head.kind, pattern) {
                *stride = own;
            }
            if let (HeadPlan::FLEX, HeadPattern::Flex { gamma, tau, budget: [least, most] }) = (head.kind, pattern) {
                *budget = HeadBudget { mass: gamma, tau, least: least as u32, most: most as u32 };
            }
            if let (HeadPlan::FIT, HeadPattern::Recall { floor, .. }) = (head.kind, pattern) {
                budget.mass = floor;
            }
        }
        Ok(plan)
    }

    /// Vertical-slash heads with these columns and offsets.
    pub fn of_sets(columns: &[Vec<u32>], offsets: &[Vec<u32>], shape: &AttentionShape, limits: IndexLimits) -> Self {
        let heads = columns.iter().zip(offsets).map(|(columns, offsets)| HeadPlan {
            kind: HeadPlan::VERTICAL_SLASH,
            a: columns.len() as u32,
            b: offsets.len() as u32,
            c: 0,
        });
        Self::of_heads(heads.collect(), shape, limits, 0)
    }

    fn of_heads(heads: Vec<HeadPlan>, shape: &AttentionShape, limits: IndexLimits, forced: usize) -> Self {
        let most = |count: fn(&HeadPlan) -> u32| {
            let counts = heads.iter().filter(|h| has_lines(h)).map(count);
            counts.max().unwrap_or(0) as usize
        };
        let mut layout = IndexLayout {
            n_heads: heads.len(),
            q_len: shape.q_len,
            kv_len: shape.kv_len,
            q_start: shape.q_start,
            column_tiles: most(|h| h.a).div_ceil(BLOCK),
            range_budget: 0,
        };
        let bound: u64 = heads.iter().map(|h| range_bound(h, shape, forced)).sum();
        let slots = (heads.len() * layout.row_blocks()) as u64;
        let room =
            limits.index_bytes.saturating_sub(layout.bytes()).min(limits.part_bytes.saturating_sub(8 * slots)) / 8;
        let likely: u64 = heads.iter().map(|h| range_estimate(h, shape)).sum();
        layout.range_budget = bound.min(room).min(likely.max(SURE_RANGES)) as usize;
        let budgets = vec![HeadBudget::default(); heads.len()];
        let strides = vec![0; heads.len()];
        Self { offset_capacity: most(|h| h.b).max(1), heads, budgets, strides, layout }
    }

    /// The heads as a table in which one kind stands for another, and heads of neither are dense.
    pub fn table(&self, kind_of: impl Fn(&HeadPlan) -> Option<u32>) -> Vec<u32> {
        let row = |head: &HeadPlan| match kind_of(head) {
            Some(kind) => [kind, head.a, head.b, head.c],
            None => [HeadPlan::DENSE, 0, 0, 0],
        };
        self.heads.iter().flat_map(row).collect()
    }

    /// Whether any head chooses blocks by weight, or may come to.
    pub fn weighs(&self) -> bool {
        self.uses(HeadPlan::FLEX)
            || self.uses(HeadPlan::FIT)
            || self.heads.iter().any(|h| h.kind == HeadPlan::BLOCK_SPARSE && h.c != HeadPlan::TOP_K)
    }

    /// Whether any head's blocks are judged by the weights of their means.
    pub fn pools(&self) -> bool {
        self.heads.iter().any(pools)
    }

    /// Whether any head is of this kind.
    pub fn uses(&self, kind: u32) -> bool {
        self.heads.iter().any(|head| head.kind == kind)
    }

    /// A count of each vertical-slash head, 0 for the others.
    pub fn counts(&self, count: impl Fn(&HeadPlan) -> u32) -> Vec<u32> {
        let of = |head: &HeadPlan| if head.kind == HeadPlan::VERTICAL_SLASH { count(head) } else { 0 };
        self.heads.iter().map(of).collect()
    }
}

/// Queries below which automatic heads are dense whatever the keys: a question behind a long context. A layer of 12 heads
/// over 16K keys takes an H100 about 50 us for so many, no longer than its estimation.
const FEW_QUERIES: usize = 256;

/// Keys by which an automatic head decides.
fn automatic_keys(shape: &AttentionShape) -> usize {
    if shape.q_len < FEW_QUERIES { 0 } else { shape.kv_len }
}

/// Whether a head has columns and offsets, or may come to.
fn has_lines(head: &HeadPlan) -> bool {
    matches!(head.kind, HeadPlan::VERTICAL_SLASH | HeadPlan::FLEX)
}

/// Whether a head's blocks are judged by the weights of their means, or may come to be.
pub(super) fn pools(head: &HeadPlan) -> bool {
    matches!(head.kind, HeadPlan::FLEX | HeadPlan::FIT)
        || head.kind == HeadPlan::BLOCK_SPARSE && !matches!(head.c, HeadPlan::ROW_MASS | HeadPlan::TOP_K)
}

/// Blocks that a threshold head keeps before each row block, itself included (FlashPrefill's window).
const THRESHOLD_WINDOW: usize = 4;

/// Columns that a flex head of `keys` keys has room for. One that needs more would gain little: it becomes dense.
pub(super) fn flex_columns(keys: usize) -> usize {
    (keys / 8).clamp(4096, 16384).min(keys)
}

/// The device form of a pattern.
fn head_plan(pattern: HeadPattern, shape: &AttentionShape) -> HeadPlan {
    let keys = shape.kv_len;
    let plan = |kind, a: usize, b: usize| HeadPlan { kind, a: a as u32, b: b as u32, c: 0 };
    match pattern {
        HeadPattern::AShape { n_init, n_local } | HeadPattern::TriShape { n_init, n_local, .. }
            if n_init.saturating_add(n_local) >= keys =>
        {
            plan(HeadPlan::DENSE, 0, 0)
        }
        // Automatic heads are resolved before.
        HeadPattern::Dense | HeadPattern::Auto => plan(HeadPlan::DENSE, 0, 0),
        HeadPattern::AShape { n_init, n_local } => plan(HeadPlan::A_SHAPE, n_init, n_local),
        HeadPattern::TriShape { n_last, .. } if n_last >= shape.q_len => plan(HeadPlan::DENSE, 0, 0),
        HeadPattern::TriShape { n_init, n_local, n_last } => {
            HeadPlan { c: n_last as u32, ..plan(HeadPlan::TRI_SHAPE, n_init, n_local) }
        }
        HeadPattern::VerticalSlash { columns, offsets } => match effective_counts(keys, columns, offsets) {
            // Every offset: every pair.
            (_, offsets) if offsets == keys => plan(HeadPlan::DENSE, 0, 0),
            (columns, offsets) => plan(HeadPlan::VERTICAL_SLASH, columns, offsets),
        },
        HeadPattern::BlockSparse { top_k } if top_k >= keys.div_ceil(BLOCK) => plan(HeadPlan::DENSE, 0, 0),
        HeadPattern::BlockSparse { top_k } => plan(HeadPlan::BLOCK_SPARSE, top_k, 0),
        HeadPattern::Flex { gamma, budget: [least, _], .. } if gamma >= 1.0 || least.max(FORCED_OFFSETS) >= keys => {
            plan(HeadPlan::DENSE, 0, 0)
        }
        HeadPattern::Flex { budget: [_, most], .. } => {
            let room = if most > 0 { flex_columns(keys).min(most.max(FORCED_COLUMNS)) } else { flex_columns(keys) };
            plan(HeadPlan::FLEX, room, keys)
        }
        HeadPattern::Threshold { n_last, .. } | HeadPattern::Recall { n_last, .. } if n_last >= shape.q_len => {
            plan(HeadPlan::DENSE, 0, 0)
        }
        HeadPattern::Threshold { alpha, n_last } => {
            let b = HeadPlan::nearest_and_last(THRESHOLD_WINDOW, n_last);
            HeadPlan { kind: HeadPlan::BLOCK_SPARSE, a: alpha.to_bits(), b, c: HeadPlan::OF_MAX }
        }
        // The first block and the nearest are all there are.
        HeadPattern::Recall { floor, .. } if floor >= 1.0 || keys <= (THRESHOLD_WINDOW + 1) * BLOCK => {
            plan(HeadPlan::DENSE, 0, 0)
        }
        HeadPattern::Recall { alpha, n_last, .. } => {
            let b = HeadPlan::nearest_and_last(THRESHOLD_WINDOW, n_last);
            HeadPlan { kind: HeadPlan::FIT, a: alpha.to_bits(), b, c: HeadPlan::OF_MAX }
        }
        HeadPattern::XAttention { threshold, .. } if threshold >= 1.0 => plan(HeadPlan::DENSE, 0, 0),
        HeadPattern::XAttention { threshold, .. } => {
            HeadPlan { kind: HeadPlan::BLOCK_SPARSE, a: threshold.to_bits(), b: 1, c: HeadPlan::ROW_MASS }
        }
    }
}

/// Whether a head's sets depend on queries and keys.
fn is_estimated(head: &HeadPlan) -> bool {
    !matches!(head.kind, HeadPlan::DENSE | HeadPlan::A_SHAPE | HeadPlan::TRI_SHAPE)
}

/// Whether a head has a chance to compute no more than `dense_above` 256ths of its causal pairs: a vertical-slash head
/// computes at least about as many as its offsets do when they are the nearest ones, a block-sparse head exactly `top_k`
/// blocks a row where there are so many.
fn pays(head: &HeadPlan, shape: &AttentionShape, dense_above: u32) -> bool {
    let width = match head.kind {
        HeadPlan::VERTICAL_SLASH => u64::from(head.b),
        HeadPlan::BLOCK_SPARSE if head.c == HeadPlan::TOP_K => u64::from(head.a) * BLOCK as u64,
        _ => return true,
    };
    let (first, rows) = (shape.q_start as u64 + 1, shape.q_len as u64);
    // The sum over queries of min(first + i, width).
    let rising = width.saturating_sub(first).min(rows);
    let pairs = rising * first + rising * rising.saturating_sub(1) / 2 + (rows - rising) * width;
    let pairs = pairs.min(shape.causal_pairs());
    dense_above >= EXACT || pairs <= shape.causal_pairs() / u64::from(EXACT) * u64::from(dense_above)
}

/// Ranges that a head can have at most, over all its row blocks.
///
/// Slash runs of a row block begin more than 64 keys apart, at or before its first query, and each takes an offset of its
/// own (the first `forced` offsets, being contiguous, share one).
fn range_bound(head: &HeadPlan, shape: &AttentionShape, forced: usize) -> u64 {
    let rows = shape.q_len.div_ceil(BLOCK) as u64;
    // Block `r` of the call ends `r` blocks after the first one does; `first + r` bounds what fits before its end.
    let first = (shape.q_start / BLOCK) as u64 + 2;
    match head.kind {
        HeadPlan::A_SHAPE | HeadPlan::TRI_SHAPE => 2 * rows,
        HeadPlan::VERTICAL_SLASH => capped_sum(first, rows, (head.b as u64).saturating_sub(forced as u64) + 1),
        // Chosen blocks that touch are one range; with an unaligned start one block is added.
        HeadPlan::BLOCK_SPARSE if head.c == HeadPlan::TOP_K => capped_sum(first, rows, head.a as u64 + 1),
        // Every other block, or an offset in 65, at worst.
        HeadPlan::BLOCK_SPARSE | HeadPlan::FLEX | HeadPlan::FIT => capped_sum(first, rows, u64::MAX),
        _ => rows,
    }
}

/// Sum over `r < rows` of `min(first + r, cap)`.
fn capped_sum(first: u64, rows: u64, cap: u64) -> u64 {
    let rising = cap.saturating_sub(first).min(rows);
    rising * first + rising * rising.saturating_sub(1) / 2 + (rows - rising) * cap
}

/// Ranges that a head has at most unless its offsets are arranged against us: those of offsets drawn at random, which
/// leave the most gaps, and a quarter more. Real heads cluster theirs and have a tenth of it.
fn range_estimate(head: &HeadPlan, shape: &AttentionShape) -> u64 {
    let bound = range_bound(head, shape, FORCED_OFFSETS);
    if matches!(head.kind, HeadPlan::FLEX | HeadPlan::FIT)
        || (head.kind == HeadPlan::BLOCK_SPARSE && head.c != HeadPlan::TOP_K)
    {
        return bound / 4;
    }
    if head.kind != HeadPlan::VERTICAL_SLASH {
        return bound;
    }
    let (rows, keys, offsets) = (shape.q_len.div_ceil(BLOCK) as f64, shape.kv_len as f64, head.b as f64);
    // An offset opens a run where the 64 before it are all absent; only offsets up to the row's position count.
    let runs = offsets * (-(BLOCK as f64) * offsets / keys).exp();
    let reached = (shape.q_start as f64 + shape.q_len as f64 / 2.) / keys;
    bound.min((rows * (1.25 * runs * reached + 8.)) as u64)
}

/// How the heads of a layer are split so that each group's index stays within the limits: ascending, covering all heads,
/// each group either whole KV heads or part of one, so that it is a call of its own. One group up to 128K tokens of
/// (1000, 6096) heads; at 1M a few heads at a time.
pub fn head_groups(patterns: &[HeadPattern], shape: &AttentionShape, limits: IndexLimits) -> Vec<Range<usize>> {
    let plans: Vec<HeadPlan> =
        patterns.iter().map(|p| head_plan(p.resolved(automatic_keys(shape), limits.sparse_from), shape)).collect();
    let rows = shape.q_len.div_ceil(BLOCK) as u64;
    let mask_words = shape.kv_len.div_ceil(BLOCK).div_ceil(32) as u64;
    let fits = |group: Range<usize>| {
        let plans = &plans[group];
        let n = plans.len() as u64;
        let has_blocks = |h: &HeadPlan| matches!(h.kind, HeadPlan::BLOCK_SPARSE | HeadPlan::FLEX | HeadPlan::FIT);
        let lines = plans.iter().filter(|h| has_lines(h));
        let tiles = lines.map(|h| (h.a as u64).div_ceil(BLOCK as u64)).max().unwrap_or(0);
        let ranges = 8 * (n * rows + plans.iter().map(|h| range_estimate(h, shape)).sum::<u64>());
        let keep = 8 * n * rows * tiles.max(1);
        let scores = 4 * n * shape.kv_len as u64 * u64::from(tiles > 0);
        let mask = 4 * n * rows * mask_words * u64::from(plans.iter().any(has_blocks));
        [ranges, keep, scores, mask].iter().all(|&part| part <= limits.part_bytes)
            && ranges + keep + mask <= limits.index_bytes
    };
    let (heads, share) = (patterns.len(), (shape.n_heads / shape.n_kv_heads.max(1)).max(1));
    let (mut groups, mut start) = (Vec::new(), 0);
    while start < heads {
        let kv_end = ((start / share + 1) * share).min(heads);
        let whole = start % share == 0 && fits(start..kv_end);
        let (step, last) = if whole { (share, heads) } else { (1, kv_end) };
        let mut end = (start + step).min(last);
        while end < last && fits(start..(end + step).min(last)) {
            end = (end + step).min(last);
        }
        groups.push(start..end);
        start = end;
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(n_heads: usize, n_kv_heads: usize, q_len: usize, q_start: usize) -> AttentionShape {
        AttentionShape {
            n_heads,
            n_kv_heads,
            head_dim: 128,
            q_len,
            kv_len: q_start + q_len,
            q_start,
            scale: 1.,
            q_stride: [128, 128],
            k_stride: [128, 128],
            v_stride: [128, 128],
            out_stride: [128, 128],
        }
    }

    const LIMITS: IndexLimits =
        IndexLimits { index_bytes: 448 << 20, part_bytes: u64::MAX, sparse_from: 4096, estimate_from: 0 };

    #[test]
    fn capped_sums() {
        for (first, rows, cap) in [(2, 10, 5), (2, 10, 1), (7, 3, 5), (0, 4, 100), (3, 0, 5)] {
            assert_eq!(capped_sum(first, rows, cap), (0..rows).map(|r| (first + r).min(cap)).sum::<u64>());
        }
    }

    #[test]
    fn heads_that_compute_everything_are_dense() {
        let shape = shape(1, 1, 1000, 0);
        for (text, kind) in [
            ("vertical_slash:30:1000", HeadPlan::DENSE),
            ("vertical_slash:1000:999", HeadPlan::VERTICAL_SLASH),
            ("block_sparse:16", HeadPlan::DENSE),
            ("block_sparse:15", HeadPlan::BLOCK_SPARSE),
            ("a_shape:1:999", HeadPlan::DENSE),
            ("a_shape:1:998", HeadPlan::A_SHAPE),
            ("tri_shape:1:999:5", HeadPlan::DENSE),
            ("tri_shape:1:500:1000", HeadPlan::DENSE),
            ("tri_shape:1:500:999", HeadPlan::TRI_SHAPE),
            ("flex:1", HeadPlan::DENSE),
            ("flex:0.9", HeadPlan::FLEX),
        ] {
            assert_eq!(head_plan(text.parse().unwrap(), &shape).kind, kind, "{text}");
        }
    }

    #[test]
    fn on_short_prompts_nothing_is_estimated() {
        let limits = IndexLimits { estimate_from: 4096, ..LIMITS };
        let kind = |text: &str, len, dense_above| {
            Plan::new(&[text.parse().unwrap()], &shape(1, 1, len, 0), limits, dense_above).unwrap().heads[0].kind
        };
        for (text, sparse) in
            [("vertical_slash:10:100", HeadPlan::VERTICAL_SLASH), ("block_sparse:3", HeadPlan::BLOCK_SPARSE)]
        {
            assert_eq!(kind(text, 4095, 200), HeadPlan::DENSE, "{text}");
            assert_eq!(kind(text, 4096, 200), sparse, "{text}");
            assert_eq!(kind(text, 4095, EXACT), sparse, "{text}");
        }
        assert_eq!(kind("a_shape:10:100", 2000, 200), HeadPlan::A_SHAPE);
    }

    #[test]
    fn heads_bound_to_be_denser_than_pays_are_dense() {
        let shape = shape(1, 1, 10000, 0);
        let kind = |text: &str, dense_above| {
            Plan::new(&[text.parse().unwrap()], &shape, LIMITS, dense_above).unwrap().heads[0].kind
        };
        // x = 0.6 of the keys is 2 x - x^2 = 0.84 of the pairs.
        for (text, sparse) in
            [("vertical_slash:9000:6000", HeadPlan::VERTICAL_SLASH), ("block_sparse:94", HeadPlan::BLOCK_SPARSE)]
        {
            assert_eq!(kind(text, EXACT), sparse);
            assert_eq!(kind(text, 218), sparse, "0.85");
            assert_eq!(kind(text, 213), HeadPlan::DENSE, "0.83");
        }
        assert_eq!(kind("a_shape:1:9000", 128), HeadPlan::A_SHAPE);
    }

    #[test]
    fn an_index_of_32_heads_at_128k_is_one_group_under_512_mib() {
        for text in [
            "vertical_slash:1000:6096",
            "vertical_slash:22032:24528",
            "vertical_slash:500:2048",
            "block_sparse:100",
            "flex:0.95",
            "threshold:0.1",
            "recall:0.95",
            "xattention:16:0.9",
        ] {
            let patterns = vec![text.parse().unwrap(); 32];
            let shape = shape(32, 8, 131072, 0);
            assert_eq!(head_groups(&patterns, &shape, LIMITS).len(), 1, "{text}");
            let bytes = Plan::new(&patterns, &shape, LIMITS, EXACT).unwrap().layout.bytes();
            assert!(bytes <= 512 << 20, "{text}: {bytes}");
        }
    }

    #[test]
    fn one_million_tokens_go_in_groups_within_the_limits() {
        let small = IndexLimits { part_bytes: 128 << 20, ..LIMITS };
        for limits in [LIMITS, small] {
            for (text, heads, kv_heads) in [
                ("vertical_slash:1000:6096", 32, 8),
                ("vertical_slash:30:800", 28, 4),
                ("block_sparse:100", 32, 32),
                ("a_shape:1024:4096", 32, 2),
                ("flex:0.95", 32, 8),
                ("recall:0.95", 32, 8),
            ] {
                let patterns = vec![text.parse().unwrap(); heads];
                let shape = shape(heads, kv_heads, 1 << 20, 0);
                let groups = head_groups(&patterns, &shape, limits);
                let mut next = 0;
                for group in &groups {
                    assert!(group.start == next && group.end > next, "{text}: {groups:?}");
                    next = group.end;
                    let share = heads / kv_heads;
                    let whole = group.start % share == 0 && group.end % share == 0;
                    assert!(whole || group.start / share == (group.end - 1) / share, "{text}: {groups:?}");
                    let part = AttentionShape { n_heads: group.len(), ..shape };
                    let layout = Plan::new(&patterns[group.clone()], &part, limits, EXACT).unwrap().layout;
                    assert!(layout.bytes() <= limits.index_bytes, "{text}: {layout:?}");
                    assert!(8 * layout.range_budget as u64 <= limits.part_bytes, "{text}: {layout:?}");
                }
                assert_eq!(next, heads);
            }
        }
        let patterns = vec!["a_shape:1024:4096".parse().unwrap(); 32];
        assert_eq!(head_groups(&patterns, &shape(32, 8, 1 << 20, 0), LIMITS).len(), 1);
    }

    #[test]
    fn range_bound_holds_for_the_worst_offsets() {
        // Offsets 65 apart make a run each: the bound must not be below what the conversion then counts.
        for (q_len, q_start) in [(4096, 0), (1000, 4096), (700, 1000)] {
            let shape = shape(1, 1, q_len, q_start);
            let offsets: Vec<usize> = (0..shape.kv_len).step_by(65).collect();
            let mut ranges = 0;
            for row in 0..q_len.div_ceil(BLOCK) {
                let end = q_start + BLOCK * (row + 1);
                let mut last = None;
                for offset in offsets.iter().rev().filter(|&&offset| offset < end) {
                    let e = (end - offset).max(BLOCK);
                    if last.is_none_or(|hi| e > hi + BLOCK) {
                        ranges += 1;
                        last = Some(e);
                    }
                }
            }
            let head = HeadPlan { kind: HeadPlan::VERTICAL_SLASH, a: 0, b: offsets.len() as u32, c: 0 };
            let bound = range_bound(&head, &shape, 0);
            assert!(ranges <= bound && bound < ranges + ranges / 10 + 200, "{ranges} {bound}");
        }
    }
}
