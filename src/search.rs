//! Offline search: which pattern and budget each head of a model needs (paper, section 3.2; the refinement is that of
//! Qwen2.5-1M).
//!
//! For each layer of a calibration prompt, read densely, patterns of every kind are brought to one cost, measured as the
//! pairs that they really compute on these queries and keys times what a pair of that kind takes on this device. Each head
//! takes the best of them by its output's error or by its recall. Heads whose recall stays below the threshold go on with
//! twice the cost, and those that no sparse pattern serves below the cost of dense attention are dense. A pattern that
//! passed is narrowed to the least number that still does: doubling alone leaves up to half of the cost for nothing.
//!
//! [`Search`] watches a pre-fill ([`crate::engine::Engine::prefill_watched`]) and keeps a [`LayerRecord`] of each layer;
//! [`choose`] makes a [`PatternConfig`] of the records of one or more prompts. `minference search` is both.
//!
//! What runs on a device fails with [`Error::OutOfMemory`] and with what the device reports; [`choose`] and [`config`] with
//! [`Error::Invalid`] where a prompt's records do not cover every layer and head.

use crate::attention::{attend, kept_mass};
use crate::backend::Backend;
use crate::backend::params::BLOCK;
use crate::estimate::{IndexLimits, estimate, head_groups};
use crate::model::{AttentionCall, Watch};
use crate::ops::AttentionShape;
use crate::pattern::{HeadPattern, PatternConfig, Score};
use crate::tensor::{Tensor, View};
use crate::{DType, Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;
use std::time::Instant;

/// By what a head's patterns of one cost are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// The relative error of the head's output against dense attention (the paper's text), over at most [`JUDGED_ROWS`]
    /// rows: least is best.
    #[default]
    Output,
    /// Kept attention mass, by the log-sum-exps of sparse and dense rows: most is best. No output is read back, so it is
    /// the one for very long prompts.
    Recall,
}

impl FromStr for Objective {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "output" => Ok(Self::Output),
            "recall" => Ok(Self::Recall),
            other => Err(Error::invalid(format!("--objective: expected output or recall, found {other:?}"))),
        }
    }
}

/// What a search is after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchOptions {
    /// How patterns of one cost are compared.
    pub objective: Objective,
    /// The first cost, as a part of dense attention's.
    pub budget: f64,
    /// The recall that a head must keep; 0 takes the best pattern of the first cost.
    pub recall: f64,
    /// From this part of dense attention's cost on, a head is dense.
    pub dense_from: f64,
}

impl Default for SearchOptions {
    fn default() -> Self {
        Self { objective: Objective::Output, budget: 0.05, recall: 0.95, dense_from: 0.6 }
    }
}

/// One pattern tried on one head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// In the grammar of the command line.
    pub pattern: String,
    /// How often the first cost was doubled.
    pub level: usize,
    /// Computed pairs over causal pairs.
    pub density: f64,
    /// As a part of dense attention's cost, by the measured rates.
    pub cost: f64,
    /// Kept attention mass, the mean over rows.
    pub recall: f64,
    /// Relative L2 error of the output, over at most [`JUDGED_ROWS`] rows; none under [`Objective::Recall`].
    pub error: Option<f64>,
}

impl Tried {
    /// Higher is better.
    fn score(&self, objective: Objective) -> f64 {
        match (objective, self.error) {
            (Objective::Output, Some(error)) => -error,
            _ => self.recall,
        }
    }
}

/// What was tried on one head with one prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeadRecord {
    /// Level after level.
    pub tried: Vec<Tried>,
    /// The level at which the best kept the recall; none where dense is left.
    pub passed: Option<usize>,
    /// That best with a smaller number, the least seen to keep the recall; none where a smaller one was not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub narrowed: Option<Tried>,
    /// The head's attention map, [`MAP_SIDE`] rows of as many cells, a letter each: `a` is nothing, each next one twice as
    /// much up to `p`. Of the first prompt only, and only where asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub map: String,
}

/// What was tried on the heads of one layer with one prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// One a query head.
    pub heads: Vec<HeadRecord>,
}

/// Rows of a head's output that its error is taken over, in blocks of 64 spread evenly. Why not all: at 16,384 rows
/// bringing every candidate's whole output to the host took ten times as long as computing it.
pub const JUDGED_ROWS: usize = 4096;

/// The rows that are judged of so many.
fn judged_rows(rows: usize) -> Vec<Range<usize>> {
    if rows <= JUDGED_ROWS {
        return std::iter::once(0..rows).collect();
    }
    let (blocks, judged) = (rows.div_ceil(BLOCK), JUDGED_ROWS / BLOCK);
    let block = |i: usize| (i * (blocks - 1) / (judged - 1)) * BLOCK;
    (0..judged).map(|i| block(i)..(block(i) + BLOCK).min(rows)).collect()
}

/// Cells of a side of [`HeadRecord::map`].
pub const MAP_SIDE: usize = 32;

/// The kinds of pattern that are brought to one cost, each with one number left free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    /// Local keys behind some first ones.
    Window,
    /// Diagonals beside a number of columns.
    Diagonals(usize),
    /// Columns beside the nearest diagonals.
    Columns,
    /// Key blocks.
    Blocks,
}

/// Columns of the paper's and the official candidates, and one between.
const FAMILIES: [Family; 8] = [
    Family::Diagonals(30),
    Family::Diagonals(100),
    Family::Diagonals(500),
    Family::Diagonals(1000),
    Family::Diagonals(3500),
    Family::Columns,
    Family::Blocks,
    Family::Window,
];

impl Family {
    /// With its free number, in keys.
    fn pattern(self, keys: usize) -> HeadPattern {
        match self {
            Self::Window => HeadPattern::AShape { n_init: BLOCK, n_local: keys },
            Self::Diagonals(columns) => HeadPattern::VerticalSlash { columns, offsets: keys },
            Self::Columns => HeadPattern::VerticalSlash { columns: keys, offsets: 100 },
            Self::Blocks => HeadPattern::BlockSparse { top_k: keys.div_ceil(BLOCK) },
        }
    }

    /// Of a pattern that [`Self::pattern`] made, with its free number in keys.
    fn of(pattern: &HeadPattern) -> Option<(Self, usize)> {
        match *pattern {
            HeadPattern::AShape { n_local, .. } => Some((Self::Window, n_local)),
            HeadPattern::VerticalSlash { columns, offsets: 100 } => Some((Self::Columns, columns)),
            HeadPattern::VerticalSlash { columns, offsets } => Some((Self::Diagonals(columns), offsets)),
            HeadPattern::BlockSparse { top_k } => Some((Self::Blocks, top_k * BLOCK)),
            _ => None,
        }
    }

    /// Numbers are multiples of this, in keys.
    fn step(self) -> usize {
        match self {
            Self::Blocks | Self::Window => BLOCK,
            _ => 10,
        }
    }
}

/// Steps in which a pattern that passed is narrowed. Four bring the number within a tenth of the least that keeps the
/// recall.
const NARROWINGS: usize = 4;

/// A head's pattern on its way to the least number that keeps the recall, which lies above `low` and not above `high`.
struct Bounds {
    head: usize,
    family: Family,
    low: usize,
    high: usize,
    /// Of the least number so far. Why beside the number: the official conversion covers diagonals by whole blocks, so a few
    /// less can cost a little more.
    cost: f64,
}

impl Bounds {
    /// The number to try next; none where the bounds have met.
    fn middle(&self) -> Option<usize> {
        let middle = ((self.low * self.high) as f64).sqrt() as usize;
        let middle = middle.next_multiple_of(self.family.step());
        (middle > self.low && middle < self.high).then_some(middle)
    }
}

/// What a layer's candidates are compared with.
struct Against {
    /// Of dense attention, `[H, n]`.
    lse: Vec<f32>,
    /// Of dense attention, the judged rows; none under [`Objective::Recall`].
    out: Option<Vec<f32>>,
    rates: Rates,
}

/// What a head that is not looked at computes meanwhile.
const IDLE: HeadPattern = HeadPattern::AShape { n_init: 1, n_local: 1 };

/// Seconds that a pair takes in patterns of each kind, relative to dense: A-shape, vertical-slash, block-sparse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates([f64; 3]);

impl Rates {
    /// Every pair costs the same: costs are densities.
    pub const EVEN: Self = Self([1.0; 3]);

    fn of(&self, pattern: &HeadPattern) -> f64 {
        match pattern {
            HeadPattern::AShape { .. } => self.0[0],
            HeadPattern::VerticalSlash { .. } => self.0[1],
            HeadPattern::BlockSparse { .. } => self.0[2],
            _ => 1.0,
        }
    }

    /// Measured on a layer's own queries and keys: estimation, index and attention together, the faster of two runs after
    /// one more.
    pub fn measure<B: Backend>(b: &B, layer: &mut OneLayer<B>) -> Result<Self> {
        let keys = layer.shape.kv_len;
        let mut seconds = |pattern: HeadPattern| -> Result<f64> {
            let patterns = vec![pattern; layer.shape.n_heads];
            let mut best = f64::INFINITY;
            let mut pairs = 0;
            for run in 0..3 {
                b.synchronize()?;
                let start = Instant::now();
                let computed = layer.attend(b, &patterns)?;
                b.synchronize()?;
                if run > 0 {
                    best = best.min(start.elapsed().as_secs_f64());
                }
                pairs = computed.iter().sum();
            }
            Ok(best / pairs.max(1) as f64)
        };
        let dense = seconds(HeadPattern::Dense)?;
        let kinds = [Family::Window, Family::Diagonals((keys / 32).max(30)), Family::Blocks];
        let mut rates = [1.0; 3];
        for (rate, family) in rates.iter_mut().zip(kinds) {
            // No pair is cheaper than dense's: what looks so was measured while the machine did something else.
            *rate = (seconds(family.pattern((keys / 8).max(BLOCK)))? / dense).max(1.0);
        }
        Ok(Self(rates))
    }
}

/// A layer's queries, keys and values, and room for what attention gives.
pub struct OneLayer<'a, B: Backend> {
    shape: AttentionShape,
    q: View<'a, B>,
    k: View<'a, B>,
    v: View<'a, B>,
    out: Tensor<B>, // f32 [n, H, D]: a row of all heads lies together
    lse: Tensor<B>, // f32 [H, n]
}

impl<'a, B: Backend> OneLayer<'a, B> {
    /// Of the tensors of an attention call.
    pub fn new(b: &B, call: &AttentionCall<'a, B>) -> Result<Self> {
        let (heads, n, d) = (call.shape.n_heads, call.shape.q_len, call.shape.head_dim);
        Ok(Self {
            shape: AttentionShape { out_stride: [heads * d, d], ..call.shape },
            q: call.q,
            k: call.k,
            v: call.v,
            out: Tensor::alloc(b, DType::F32, [n, heads, d])?,
            lse: Tensor::alloc(b, DType::F32, [heads, n])?,
        })
    }

    /// Attention; the pairs of each head.
    fn attend(&mut self, b: &B, patterns: &[HeadPattern]) -> Result<Vec<u64>> {
        let (out, lse) = (self.out.view_mut(), Some(self.lse.view_mut()));
        attend(b, patterns, &self.shape, self.q, self.k, self.v, out, lse)?.head_pairs(b)
    }

    /// The rows of the output by which errors are judged, `[rows, H, D]`.
    fn judged_out(&self, b: &B) -> Result<Vec<f32>> {
        let parts = judged_rows(self.shape.q_len).into_iter().map(|rows| self.out.view().rows(rows).to_f32(b));
        Ok(parts.collect::<Result<Vec<_>>>()?.concat())
    }

    /// The pairs that each head would compute.
    fn pairs(&self, b: &B, patterns: &[HeadPattern]) -> Result<Vec<u64>> {
        let mut pairs = Vec::new();
        for heads in head_groups(patterns, &self.shape, IndexLimits::of(b)) {
            let part = crate::attention::HeadGroup::new(&self.shape, heads.clone());
            let index = estimate(b, &patterns[heads], &part.shape, part.q(self.q), part.k(self.k))?;
            let rows = index.layout.row_blocks();
            let counts = index.pairs.to_u32(b)?;
            pairs.extend(counts.chunks_exact(rows).map(|row| row.iter().copied().map(u64::from).sum::<u64>()));
        }
        Ok(pairs)
    }

    /// Searches all heads. `map` draws their attention too.
    pub fn search(&mut self, b: &B, options: &SearchOptions, rates: Rates, map: bool) -> Result<LayerRecord> {
        let heads = self.shape.n_heads;
        self.attend(b, &vec![HeadPattern::Dense; heads])?;
        let out = match options.objective {
            Objective::Output => Some(self.judged_out(b)?),
            Objective::Recall => None,
        };
        let against = Against { lse: self.lse.to_f32(b)?, out, rates };
        let mut records = vec![HeadRecord::default(); heads];
        if map {
            let maps = self.maps(b, &against.lse)?;
            records.iter_mut().zip(maps).for_each(|(record, map)| record.map = map);
        }
        let mut open: Vec<usize> = (0..heads).collect();
        let mut budget = options.budget;
        for level in 0.. {
            if open.is_empty() || budget > options.dense_from {
                break;
            }
            for family in FAMILIES {
                let Some(pattern) = self.align(b, family, budget, &open, rates)? else { continue };
                let mut patterns = vec![IDLE; heads];
                open.iter().for_each(|&h| patterns[h] = pattern);
                let tried = self.compare(b, &patterns, &open, level, &against)?;
                open.iter().zip(tried).for_each(|(&h, tried)| records[h].tried.push(tried));
            }
            let passes = |h: &usize| {
                let best = best_of(&records[*h].tried, level, options.objective);
                best.is_some_and(|best| best.recall >= options.recall && best.cost < 1.0)
            };
            let (passed, failed) = open.iter().partition::<Vec<usize>, _>(|h| passes(h));
            passed.iter().for_each(|&h| records[h].passed = Some(level));
            if options.recall > 0.0 {
                self.narrow(b, options, level, &passed, &mut records, &against)?;
            }
            open = failed;
            // The last step is a short one: heads that need half of dense attention would otherwise be dense.
            budget =
                if budget < 0.8 * options.dense_from { (2.0 * budget).min(options.dense_from) } else { f64::INFINITY };
        }
        Ok(LayerRecord { heads: records })
    }

    /// What patterns do on some heads, one for each of these.
    fn compare(
        &mut self,
        b: &B,
        patterns: &[HeadPattern],
        heads: &[usize],
        level: usize,
        against: &Against,
    ) -> Result<Vec<Tried>> {
        let causal = self.shape.causal_pairs() as f64;
        let pairs = self.attend(b, patterns)?;
        let recall = kept_mass(&self.lse.to_f32(b)?, &against.lse, self.shape.n_heads)?;
        let errors = match &against.out {
            Some(dense) => Some(head_errors(&self.judged_out(b)?, dense, self.shape.n_heads, self.shape.head_dim)),
            None => None,
        };
        let one = |&h: &usize| Tried {
            pattern: patterns[h].to_string(),
            level,
            density: pairs[h] as f64 / causal,
            cost: pairs[h] as f64 / causal * against.rates.of(&patterns[h]),
            recall: recall[h],
            error: errors.as_ref().map(|errors| errors[h]),
        };
        Ok(heads.iter().map(one).collect())
    }

    /// Narrows what passed at a level, all heads at once. The number is looked for down to a quarter, since half of the cost
    /// was not enough; at the first level down to the least.
    fn narrow(
        &mut self,
        b: &B,
        options: &SearchOptions,
        level: usize,
        heads: &[usize],
        records: &mut [HeadRecord],
        against: &Against,
    ) -> Result<()> {
        let bounds = |&head: &usize| {
            let best = best_of(&records[head].tried, level, options.objective)?;
            let (family, high) = Family::of(&best.pattern.parse().ok()?)?;
            let low = if level == 0 { BLOCK } else { (high / 4).max(BLOCK) };
            Some(Bounds { head, family, low, high, cost: best.cost })
        };
        let mut bounds: Vec<Bounds> = heads.iter().filter_map(bounds).collect();
        for _ in 0..NARROWINGS {
            bounds.retain(|bounds| bounds.middle().is_some());
            if bounds.is_empty() {
                break;
            }
            let mut patterns = vec![IDLE; self.shape.n_heads];
            bounds.iter().for_each(|at| patterns[at.head] = at.family.pattern(at.middle().unwrap_or(at.high)));
            let heads: Vec<usize> = bounds.iter().map(|at| at.head).collect();
            for (at, tried) in bounds.iter_mut().zip(self.compare(b, &patterns, &heads, level, against)?) {
                let middle = at.middle().unwrap_or(at.high);
                if tried.recall >= options.recall {
                    at.high = middle;
                    if tried.cost < at.cost {
                        at.cost = tried.cost;
                        records[at.head].narrowed = Some(tried);
                    }
                } else {
                    at.low = middle;
                }
            }
        }
        Ok(())
    }

    /// A family's pattern whose mean cost over some heads comes closest to a budget; none where its least is above.
    fn align(&self, b: &B, family: Family, budget: f64, heads: &[usize], rates: Rates) -> Result<Option<HeadPattern>> {
        let (keys, causal) = (self.shape.kv_len, self.shape.causal_pairs() as f64);
        if matches!(family, Family::Diagonals(columns) if 4 * columns > keys && columns > 30) {
            return Ok(None);
        }
        let mean = |number: usize| -> Result<f64> {
            let pattern = family.pattern(number);
            let mut patterns = vec![IDLE; self.shape.n_heads];
            heads.iter().for_each(|&h| patterns[h] = pattern);
            let pairs = self.pairs(b, &patterns)?;
            let pairs = heads.iter().map(|&h| pairs[h] as f64).sum::<f64>() / heads.len() as f64;
            Ok(pairs / causal * rates.of(&pattern))
        };
        // Within a factor: the cost is not quite linear in the number, and rises with it.
        let (mut low, mut high) = (BLOCK, keys);
        if mean(low)? > 1.25 * budget {
            return Ok(None);
        }
        for _ in 0..9 {
            let middle = ((low * high) as f64).sqrt() as usize;
            if middle <= low || middle >= high {
                break;
            }
            let reached = mean(middle)?;
            if (reached / budget - 1.0).abs() < 0.03 {
                (low, high) = (middle, middle);
                break;
            }
            if reached < budget { low = middle } else { high = middle }
        }
        let number = ((low * high) as f64).sqrt() as usize;
        let (below, above) = (number / family.step() * family.step(), number.next_multiple_of(family.step()));
        let (below, above) = (below.max(BLOCK), above.max(BLOCK));
        let nearer = below == above || (mean(below)? - budget).abs() < (mean(above)? - budget).abs();
        Ok(Some(family.pattern(if nearer { below } else { above })))
    }

    /// Each head's attention as [`HeadRecord::map`] has it, from one row in each row of cells.
    fn maps(&self, b: &B, lse: &[f32]) -> Result<Vec<String>> {
        let s = &self.shape;
        let (q, k) = (self.q.to_f32(b)?, self.k.to_f32(b)?);
        let group = s.n_heads / s.n_kv_heads;
        let one = |h: usize| {
            let mut text = String::new();
            for r in 0..MAP_SIDE {
                let query = ((2 * r + 1) * s.q_len / (2 * MAP_SIDE)).min(s.q_len - 1);
                let q = &q[h * s.q_stride[1] + query * s.q_stride[0]..][..s.head_dim];
                let seen = s.q_start + query + 1;
                let mut cells = [0.0; MAP_SIDE];
                for j in 0..seen {
                    let k = &k[h / group * s.k_stride[1] + j * s.k_stride[0]..][..s.head_dim];
                    let dot: f32 = q.iter().zip(k).map(|(a, b)| a * b).sum();
                    cells[j * MAP_SIDE / s.kv_len] += f64::from(dot * s.scale - lse[h * s.q_len + query]).exp();
                }
                text.extend(cells.map(|mass| {
                    // 2^-14 and less is nothing.
                    let step = if mass > 0.0 { (15.0 + mass.log2()).clamp(0.0, 15.0) } else { 0.0 };
                    char::from(b'a' + step.round() as u8)
                }));
            }
            text
        };
        Ok((0..s.n_heads).into_par_iter().map(one).collect())
    }
}

/// The best that was tried at one level.
fn best_of(tried: &[Tried], level: usize, objective: Objective) -> Option<&Tried> {
    let at_level = tried.iter().filter(|t| t.level == level);
    at_level.max_by(|a, b| a.score(objective).total_cmp(&b.score(objective)))
}

/// Relative L2 error of each head's output, `[rows, H, D]`.
fn head_errors(got: &[f32], want: &[f32], heads: usize, d: usize) -> Vec<f64> {
    let one = |head: usize| {
        let (mut difference, mut norm) = (0.0, 0.0);
        for (got, want) in got.chunks_exact(heads * d).zip(want.chunks_exact(heads * d)) {
            for (got, want) in got[head * d..][..d].iter().zip(&want[head * d..][..d]) {
                let delta = f64::from(got - want);
                difference += delta * delta;
                norm += f64::from(*want) * f64::from(*want);
            }
        }
        if norm > 0.0 { (difference / norm).sqrt() } else { difference.sqrt() }
    };
    (0..heads).into_par_iter().map(one).collect()
}

/// Sees the layer that was just searched, and all records so far.
pub type LayerDone<'a> = dyn FnMut(usize, &BTreeMap<usize, LayerRecord>) -> Result<()> + 'a;

/// Watches a dense pre-fill and searches each layer. Layers that have a record already are left alone.
pub struct Search<'a> {
    /// What it is after.
    pub options: SearchOptions,
    /// Whether maps are drawn.
    pub map: bool,
    /// Of this device; measured on the first layer searched where there are none.
    pub rates: Option<Rates>,
    /// One a layer, as far as the search is.
    pub records: &'a mut BTreeMap<usize, LayerRecord>,
    /// Called after each layer that was searched.
    pub done: &'a mut LayerDone<'a>,
}

impl<B: Backend> Watch<B> for Search<'_> {
    fn attention(&mut self, b: &B, layer: usize, call: &AttentionCall<B>) -> Result<()> {
        if self.records.contains_key(&layer) {
            return Ok(());
        }
        let mut one = OneLayer::new(b, call)?;
        let rates = match self.rates {
            Some(rates) => rates,
            None => *self.rates.insert(Rates::measure(b, &mut one)?),
        };
        let record = one.search(b, &self.options, rates, self.map)?;
        self.records.insert(layer, record);
        (self.done)(layer, self.records)
    }
}

/// What a head does, and by what.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// In the grammar of the command line.
    pub pattern: String,
    /// Means over the prompts that needed the choice's level; those of dense where it is dense.
    pub recall: f64,
    /// See `recall`.
    pub density: f64,
    /// See `recall`.
    pub cost: f64,
    /// See `recall`.
    pub error: Option<f64>,
}

/// Each head's choice from the records of one or more prompts: the least level at which its recall passed on every prompt,
/// and there the pattern that is best in the mean over the prompts that came so far. `[layers][heads]`.
pub fn choose(prompts: &[BTreeMap<usize, LayerRecord>], options: &SearchOptions) -> Result<Vec<Vec<Choice>>> {
    let Some(first) = prompts.first() else { return Err(Error::invalid("search: expected a prompt, found none")) };
    let dense = Choice { pattern: "dense".into(), recall: 1.0, density: 1.0, cost: 1.0, error: Some(0.0) };
    let head = |layer: usize, head: usize| -> Result<Choice> {
        let records: Vec<&HeadRecord> = prompts
            .iter()
            .map(|layers| layers.get(&layer).and_then(|l| l.heads.get(head)))
            .collect::<Option<_>>()
            .ok_or_else(|| {
                Error::invalid(format!("search: layer {layer}, head {head}: not every prompt was searched"))
            })?;
        let passed: Option<Vec<usize>> = records.iter().map(|r| r.passed).collect();
        let Some(level) = passed.and_then(|levels| levels.into_iter().max()) else { return Ok(dense.clone()) };
        // Budgets are aligned anew on each prompt, so that a pattern's numbers differ a little: families are compared, and
        // the first prompt that came to this level gives the numbers.
        let family = |tried: &Tried| tried.pattern.parse().ok().and_then(|p| Family::of(&p)).map(|(family, _)| family);
        let mut families: BTreeMap<Option<Family>, Vec<&Tried>> = BTreeMap::new();
        for tried in records.iter().flat_map(|r| &r.tried).filter(|t| t.level == level) {
            families.entry(family(tried)).or_default().push(tried);
        }
        let mean = |tried: &[&Tried], of: &dyn Fn(&Tried) -> f64| {
            tried.iter().map(|t| of(t)).sum::<f64>() / tried.len() as f64
        };
        let score = |tried: &[&Tried]| mean(tried, &|t| t.score(options.objective));
        let Some((best, aligned)) = families.into_iter().max_by(|a, b| score(&a.1).total_cmp(&score(&b.1))) else {
            return Ok(dense.clone());
        };
        // Narrowed, it is what the most demanding prompt of this level needs; all of them must have narrowed this family.
        let needing: Vec<&HeadRecord> = records.iter().copied().filter(|r| r.passed == Some(level)).collect();
        let mut tried: Vec<&Tried> = needing.iter().filter_map(|r| r.narrowed.as_ref()).collect();
        tried.retain(|tried| family(tried) == best);
        if tried.len() == needing.len() {
            tried.sort_by(|a, b| b.cost.total_cmp(&a.cost));
        } else {
            tried = aligned;
        }
        Ok(Choice {
            pattern: tried[0].pattern.clone(),
            recall: mean(&tried, &|t| t.recall),
            density: mean(&tried, &|t| t.density),
            cost: mean(&tried, &|t| t.cost),
            error: tried[0].error.map(|_| mean(&tried, &|t| t.error.unwrap_or(0.0))),
        })
    };
    first.iter().map(|(&layer, record)| (0..record.heads.len()).map(|h| head(layer, h)).collect()).collect()
}

/// The choices as a pattern file. `official` rewrites them as the official tool does, for its loader, which knows
/// vertical-slash heads only: A-shape numbers become columns and diagonals, block-sparse (1000, 6096), and dense every
/// diagonal.
pub fn config(choices: &[Vec<Choice>], official: bool) -> Result<PatternConfig> {
    let mut config = PatternConfig::new(choices.len());
    for (layer, heads) in choices.iter().enumerate() {
        for (head, choice) in heads.iter().enumerate() {
            let pattern = match (official, choice.pattern.parse()?) {
                (true, HeadPattern::AShape { n_init, n_local }) => {
                    HeadPattern::VerticalSlash { columns: n_init.max(1), offsets: n_local }
                }
                (true, HeadPattern::BlockSparse { .. }) => HeadPattern::FALLBACK,
                (true, HeadPattern::Dense) => {
                    HeadPattern::VerticalSlash { columns: 1, offsets: HeadPattern::MAX_ARGUMENT }
                }
                (_, pattern) => pattern,
            };
            config.set(layer, head, pattern, Score::Float(choice.recall))?;
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(pattern: &str, level: usize, recall: f64, error: f64) -> Tried {
        Tried { pattern: pattern.into(), level, density: 0.1, cost: 0.1, recall, error: Some(error) }
    }

    fn records(heads: Vec<HeadRecord>) -> BTreeMap<usize, LayerRecord> {
        BTreeMap::from([(0, LayerRecord { heads })])
    }

    fn head(passed: Option<usize>, tried: Vec<Tried>) -> HeadRecord {
        HeadRecord { tried, passed, narrowed: None, map: String::new() }
    }

    #[test]
    fn the_best_of_the_level_that_all_prompts_pass() {
        let options = SearchOptions::default();
        let one = records(vec![head(
            Some(1),
            vec![
                tried("vertical_slash:30:900", 0, 0.9, 0.01),
                tried("vertical_slash:30:1800", 1, 0.96, 0.2),
                tried("block_sparse:9", 1, 0.95, 0.1),
            ],
        )]);
        let choice = |prompts: &[_], options: &SearchOptions| choose(prompts, options).unwrap()[0][0].clone();
        assert_eq!(choice(std::slice::from_ref(&one), &options).pattern, "block_sparse:9");
        let by_recall = SearchOptions { objective: Objective::Recall, ..options };
        assert_eq!(choice(std::slice::from_ref(&one), &by_recall).pattern, "vertical_slash:30:1800");
        // A second prompt that passed at once does not count at level 1; one that does changes the mean.
        let easy = records(vec![head(Some(0), vec![tried("a_shape:64:640", 0, 0.99, 0.0)])]);
        assert_eq!(choice(&[one.clone(), easy], &options).pattern, "block_sparse:9");
        let other = records(vec![head(
            Some(1),
            vec![tried("vertical_slash:30:1790", 1, 0.97, 0.01), tried("block_sparse:10", 1, 0.97, 0.3)],
        )]);
        let both = choice(&[one.clone(), other], &options);
        assert_eq!((both.pattern.as_str(), both.recall), ("vertical_slash:30:1800", 0.965));
        // One that never passed makes it dense.
        let hard = records(vec![head(None, vec![tried("block_sparse:9", 0, 0.3, 0.7)])]);
        assert_eq!(choice(&[one, hard], &options).pattern, "dense");
    }

    #[test]
    fn a_narrowed_pattern_is_what_the_most_demanding_prompt_needs() {
        let options = SearchOptions::default();
        let narrowed = |pattern: &str, cost: f64| {
            let record = head(
                Some(1),
                vec![tried("vertical_slash:30:1800", 1, 0.99, 0.1), tried("block_sparse:9", 1, 0.97, 0.3)],
            );
            records(vec![HeadRecord { narrowed: Some(Tried { cost, ..tried(pattern, 1, 0.955, 0.15) }), ..record }])
        };
        let one = narrowed("vertical_slash:30:1200", 0.06);
        let pattern = |prompts: &[_]| choose(prompts, &options).unwrap()[0][0].pattern.clone();
        assert_eq!(pattern(std::slice::from_ref(&one)), "vertical_slash:30:1200");
        assert_eq!(pattern(&[one.clone(), narrowed("vertical_slash:30:1500", 0.07)]), "vertical_slash:30:1500");
        // A prompt that narrowed another family, or could not, keeps the number of the level.
        assert_eq!(pattern(&[one.clone(), narrowed("block_sparse:5", 0.05)]), "vertical_slash:30:1800");
        // One that passed with less asks for nothing.
        let easy = records(vec![head(Some(0), vec![tried("a_shape:64:640", 0, 0.99, 0.0)])]);
        assert_eq!(pattern(&[one, easy]), "vertical_slash:30:1200");
    }

    #[test]
    fn bounds_meet_on_whole_steps() {
        let mut at = Bounds { head: 0, family: Family::Blocks, low: 64, high: 640, cost: 0.2 };
        assert_eq!(at.middle(), Some(256));
        at.low = 576;
        assert_eq!(at.middle(), None);
        let at = Bounds { head: 0, family: Family::Diagonals(30), low: 64, high: 70, cost: 0.2 };
        assert_eq!(at.middle(), None);
    }

    #[test]
    fn judged_rows_reach_from_the_first_to_the_last() {
        assert_eq!(judged_rows(100), std::slice::from_ref(&(0..100)));
        for rows in [JUDGED_ROWS + 1, 16384, 30001] {
            let judged = judged_rows(rows);
            assert_eq!((judged.len(), judged[0].start, judged[judged.len() - 1].end), (JUDGED_ROWS / BLOCK, 0, rows));
            assert!(judged.windows(2).all(|pair| pair[0].end <= pair[1].start), "{rows}: {judged:?}");
        }
    }

    #[test]
    fn errors_are_of_one_head_each() {
        let want = [3.0, 4.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]; // two rows of two heads of two
        let got = [3.0, 4.0, 1.0, 1.0, 0.0, 5.0, 1.0, 0.0];
        let [first, second] = head_errors(&got, &want, 2, 2)[..] else { panic!("two heads") };
        assert!((first - 1.0).abs() < 1e-12 && (second - 0.5f64.sqrt()).abs() < 1e-12, "{first} {second}");
    }

    #[test]
    fn official_names_are_vertical_slash_alone() {
        let choice =
            |pattern: &str| Choice { pattern: pattern.into(), recall: 0.9, density: 0.1, cost: 0.1, error: None };
        let choices = vec![["a_shape:64:640", "block_sparse:9", "dense", "vertical_slash:30:900"].map(choice).to_vec()];
        let patterns = |official| {
            let config = config(&choices, official).unwrap();
            (0..4).map(|h| config.pattern(0, h).to_string()).collect::<Vec<_>>()
        };
        assert_eq!(patterns(false), ["a_shape:64:640", "block_sparse:9", "dense", "vertical_slash:30:900"]);
        assert_eq!(
            patterns(true),
            ["vertical_slash:64:640", "vertical_slash:1000:6096", "vertical_slash:1:16777216", "vertical_slash:30:900"]
        );
    }
}
