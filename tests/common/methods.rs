//! The adaptive methods as their papers state them: one head, f64, plain loops, every step written out. Nothing here is
//! shared with the crate or with [`super::naive`]; where the crate departs from a paper and says so, the step names it.
//!
//! **Ties.** The crate computes in f32, so a choice is compared but for what the statement itself decides by less than
//! [`TIE`]: a rule gives not one set but the entries that must be in and those that may be.

/// What f32 may lose: relative, of a weight or of a part of the mass.
pub const TIE: f64 = 1e-5;

/// Queries and keys of a block.
pub const BLOCK: usize = 64;

/// Queries and keys of one head: q `[n, d]`, k `[m, d]`; query `i` stands at key position `start + i`.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub d: usize,
    pub scale: f64,
    pub start: usize,
}

impl Head<'_> {
    pub fn queries(&self) -> usize {
        self.q.len() / self.d
    }

    pub fn keys(&self) -> usize {
        self.k.len() / self.d
    }

    pub fn row_blocks(&self) -> usize {
        self.queries().div_ceil(BLOCK)
    }

    /// Key positions of the first and the last query of a row block.
    pub fn span(&self, r: usize) -> (usize, usize) {
        (self.start + r * BLOCK, self.start + self.queries().min((r + 1) * BLOCK) - 1)
    }

    fn dot(&self, i: usize, j: usize) -> f64 {
        let mut sum = 0.0;
        for c in 0..self.d {
            sum += f64::from(self.q[i * self.d + c]) * f64::from(self.k[j * self.d + c]);
        }
        sum
    }

    /// Attention of query `i` over the keys `0..=start + i`.
    fn attention(&self, i: usize) -> Vec<f64> {
        softmax((0..=self.start + i).map(|j| self.scale * self.dot(i, j)).collect())
    }
}

fn softmax(mut scores: Vec<f64>) -> Vec<f64> {
    let mut largest = f64::NEG_INFINITY;
    for score in &scores {
        largest = largest.max(*score);
    }
    let mut total = 0.0;
    for score in &mut scores {
        *score = (*score - largest).exp();
        total += *score;
    }
    for score in &mut scores {
        *score /= total;
    }
    scores
}

/// The mean of the rows `from..to` of x `[_, d]`.
fn mean_of_rows(x: &[f32], d: usize, from: usize, to: usize) -> Vec<f64> {
    let mut mean = vec![0.0; d];
    for row in from..to {
        for c in 0..d {
            mean[c] += f64::from(x[row * d + c]) / (to - from) as f64;
        }
    }
    mean
}

/// What the methods that estimate from the last queries and from block means decide by.
#[derive(Clone)]
pub struct Scores {
    start: usize,
    queries: usize,
    keys: usize,
    /// The last queries' attention, of sum 1, by key and by distance.
    by_key: Vec<f64>,
    by_offset: Vec<f64>,
    /// Scaled products of the last queries' mean with the means of the key blocks that they see.
    last: Vec<f64>,
    /// The same of each row block.
    rows: Vec<Vec<f64>>,
}

/// Scaled products of a mean query with the means of the keys of the blocks `0..seen`.
fn pooled_scores(head: &Head, mean_query: &[f64], seen: usize) -> Vec<f64> {
    let mut scores = Vec::new();
    for block in 0..seen {
        let key = mean_of_rows(head.k, head.d, block * BLOCK, head.keys().min((block + 1) * BLOCK));
        let mut score = 0.0;
        for c in 0..head.d {
            score += mean_query[c] * key[c];
        }
        scores.push(head.scale * score);
    }
    scores
}

impl Scores {
    pub fn of(head: &Head) -> Self {
        let (n, m) = (head.queries(), head.keys());
        let last = n.min(BLOCK);
        let (mut by_key, mut by_offset) = (vec![0.0; m], vec![0.0; m]);
        for i in n - last..n {
            for (j, p) in head.attention(i).into_iter().enumerate() {
                by_key[j] += p / last as f64;
                by_offset[head.start + i - j] += p / last as f64;
            }
        }
        let seen = |position: usize| m.div_ceil(BLOCK).min(position / BLOCK + 1);
        let last = pooled_scores(head, &mean_of_rows(head.q, head.d, n - last, n), seen(head.start + n - 1));
        let mut rows = Vec::new();
        for r in 0..head.row_blocks() {
            let mean = mean_of_rows(head.q, head.d, r * BLOCK, n.min((r + 1) * BLOCK));
            rows.push(pooled_scores(head, &mean, seen(head.span(r).1)));
        }
        Self { start: head.start, queries: n, keys: m, by_key, by_offset, last, rows }
    }

    /// Key position of a row block's first query.
    fn first(&self, r: usize) -> usize {
        self.start + r * BLOCK
    }

    /// The mean of some heads' scores: what heads that share keys decide by under `share_groups`.
    pub fn mean(heads: &[Self]) -> Self {
        fn add(sum: &mut [f64], x: &[f64], part: f64) {
            for i in 0..sum.len() {
                sum[i] += x[i] * part;
            }
        }
        let part = 1.0 / heads.len() as f64;
        let mut mean = heads[0].clone();
        let all = |scores: &mut Self, other: &Self, part: f64| {
            add(&mut scores.by_key, &other.by_key, part);
            add(&mut scores.by_offset, &other.by_offset, part);
            add(&mut scores.last, &other.last, part);
            for r in 0..scores.rows.len() {
                add(&mut scores.rows[r], &other.rows[r], part);
            }
        };
        // From nothing.
        let own = mean.clone();
        all(&mut mean, &own, -1.0);
        for head in heads {
            all(&mut mean, head, part);
        }
        mean
    }
}

/// What a rule decides about one entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    In,
    Out,
    /// Decided by less than what f32 resolves.
    Tied,
}

impl Verdict {
    fn of(must: bool, may: bool) -> Self {
        match (must, may) {
            (true, _) => Self::In,
            (_, true) => Self::Tied,
            _ => Self::Out,
        }
    }

    pub fn allows(self, taken: bool) -> bool {
        self == Self::Tied || taken == (self == Self::In)
    }
}

/// A choice by mass: a verdict for each entry, and how many there must be.
#[derive(Debug)]
pub struct Fewest {
    pub verdicts: Vec<Verdict>,
    pub count: usize,
}

/// The fewest entries that hold `part` of all weight, and at least `least` of them: those given, then the heaviest.
/// Entries within `coarse` (relative) of the lightest one taken may be taken with it.
pub fn fewest_of_mass(weights: &[f64], given: &[bool], part: f64, least: usize, coarse: f64) -> Fewest {
    let mut total = 0.0;
    for weight in weights {
        total += weight;
    }
    // How many, and the lightest that was not given.
    let taken = |part: f64| {
        let (mut sum, mut count, mut lightest) = (0.0, 0, f64::INFINITY);
        let mut rest = Vec::new();
        for i in 0..weights.len() {
            if given[i] {
                sum += weights[i];
                count += 1;
            } else {
                rest.push(weights[i]);
            }
        }
        rest.sort_by(|a, b| b.total_cmp(a));
        for weight in rest {
            if sum >= part * total && count >= least {
                break;
            }
            sum += weight;
            count += 1;
            lightest = weight;
        }
        (count, lightest)
    };
    let (count, must) = taken(part - TIE);
    let (must, may) = (must * (1.0 + TIE), taken(part + TIE).1 * (1.0 - TIE) / (1.0 + coarse));
    let verdict = |i: usize| Verdict::of(given[i] || weights[i] >= must, given[i] || weights[i] >= may);
    Fewest { verdicts: (0..weights.len()).map(verdict).collect(), count }
}

/// FlexPrefill's choice for one head (arXiv 2502.20766). Departures of the crate, as `minference::estimate` states them:
/// blocks of 64; the last 64 queries stand for all; single columns; diagonals by 64, which their first and their last stand
/// for; the first 30 columns and 100 diagonals always in; weights within 1/64 of each other taken together.
pub struct Flex {
    /// Square root of the Jensen-Shannon divergence (algorithm 2), to be compared with tau.
    pub distance: f64,
    /// Algorithm 3, over keys.
    pub columns: Fewest,
    /// Algorithm 3, over offsets.
    pub diagonals: Fewest,
    /// Algorithm 4, for each row block a verdict for each key block that it sees.
    pub blocks: Vec<Vec<Verdict>>,
}

/// `least`: fewest columns; fewest diagonals beside the 100; nearest keys that are always in where blocks are taken.
pub fn flex(scores: &Scores, gamma: f64, least: usize) -> Flex {
    let m = scores.keys;
    let key_blocks = m.div_ceil(BLOCK);

    // Algorithm 2: the real attention of the last queries, and what block means make of it.
    let mut by_block = vec![0.0; key_blocks];
    for j in 0..m {
        by_block[j / BLOCK] += scores.by_key[j];
    }
    let mut estimated = softmax(scores.last.clone());
    estimated.resize(key_blocks, 0.0);
    let mut divergence = 0.0;
    for c in 0..key_blocks {
        let (p, q) = (estimated[c], by_block[c]);
        let middle = (p + q) / 2.0;
        if p > 0.0 {
            divergence += 0.5 * p * (p / middle).ln();
        }
        if q > 0.0 {
            divergence += 0.5 * q * (q / middle).ln();
        }
    }

    // Algorithm 3: the fewest columns and the fewest diagonals.
    let given: Vec<bool> = (0..m).map(|j| j < 30).collect();
    let columns = fewest_of_mass(&scores.by_key, &given, gamma, least, 1.0 / 64.0);
    let mut by_group = vec![0.0; m];
    for from in (0..m).step_by(BLOCK) {
        let to = m.min(from + BLOCK);
        for mass in &scores.by_offset[from..to] {
            by_group[from] += mass / 2.0;
            by_group[to - 1] += mass / 2.0;
        }
    }
    let given: Vec<bool> = (0..m).map(|offset| offset < 100).collect();
    let diagonals = fewest_of_mass(&by_group, &given, gamma, 100 + 2 * least.div_ceil(BLOCK), 1.0 / 64.0);

    // Algorithm 4: the heaviest blocks of the whole map, each row block weighing the same.
    let mut map = Vec::new();
    for row in &scores.rows {
        map.extend(softmax(row.clone()));
    }
    let mut verdicts = fewest_of_mass(&map, &vec![false; map.len()], gamma, 0, 1.0 / 64.0).verdicts.into_iter();
    let mut blocks = Vec::new();
    for (r, row) in scores.rows.iter().enumerate() {
        let own = scores.first(r) / BLOCK;
        let mut chosen = Vec::new();
        for c in 0..row.len() {
            let verdict = verdicts.next().unwrap();
            // The first block, the row block's own, and the nearest `least` keys.
            let always = c == 0 || c >= own || own - c < least.div_ceil(BLOCK);
            chosen.push(if always { Verdict::In } else { verdict });
        }
        blocks.push(chosen);
    }
    Flex { distance: divergence.max(0.0).sqrt(), columns, diagonals, blocks }
}

/// FlashPrefill's selection (arXiv 2603.06199): key blocks that weigh at least `alpha` times the heaviest of their row. The
/// crate's scoring is the softmax of block means. The first block, the row block's own and `window - 1` before it are
/// always in.
/// Row blocks with one of the `last` queries take all (FlashPrefill V2's dense last blocks).
pub fn threshold(scores: &Scores, alpha: f64, window: usize, last: usize) -> Vec<Vec<Verdict>> {
    above(scores, [alpha * (1.0 + TIE), alpha * (1.0 - TIE)], window, last)
}

/// Key blocks that weigh at least a part of the heaviest of their row: from the first part on they must be in, from the
/// second on they may.
fn above(scores: &Scores, [must, may]: [f64; 2], window: usize, last: usize) -> Vec<Vec<Verdict>> {
    let mut blocks = Vec::new();
    for (r, row) in scores.rows.iter().enumerate() {
        let weights = softmax(row.clone());
        let mut heaviest: f64 = 0.0;
        for weight in &weights {
            heaviest = heaviest.max(*weight);
        }
        let own = scores.first(r) / BLOCK;
        let mut whole = false;
        for query in r * BLOCK..scores.queries.min((r + 1) * BLOCK) {
            whole |= query + last >= scores.queries;
        }
        let mut chosen = Vec::new();
        for (c, weight) in weights.iter().enumerate() {
            let always = whole || c == 0 || c + window > own;
            chosen.push(Verdict::of(always || *weight >= must * heaviest, always || *weight >= may * heaviest));
        }
        blocks.push(chosen);
    }
    blocks
}

/// The crate's own `recall:FLOOR:ALPHA`: [`threshold`] with the largest threshold of at most `alpha` whose blocks hold `floor`
/// of the last queries' attention. Thresholds are tried by steps of 1/64. None where not even a threshold of 2^-10
/// serves: such a head is dense.
pub fn recall(scores: &Scores, floor: f64, alpha: f64, window: usize, last: usize) -> Option<Vec<Vec<Verdict>>> {
    let own = (scores.start + scores.queries - 1) / BLOCK;
    let weights = softmax(scores.last.clone());
    let mut heaviest: f64 = 0.0;
    for weight in &weights {
        heaviest = heaviest.max(*weight);
    }
    // The blocks by weight, and what the heaviest ones hold together.
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
    let mut held = 0.0;
    let mut mass = vec![0.0; weights.len()];
    for j in 0..scores.keys {
        mass[j / BLOCK] += scores.by_key[j];
    }
    let always = |c: usize| c == 0 || c + window > own;
    for (c, mass) in mass.iter().enumerate() {
        if always(c) {
            held += mass;
        }
    }
    let largest = |floor: f64| {
        let (mut held, mut fitted) = (held, alpha);
        for c in order.iter().copied().filter(|c| !always(*c)) {
            if held >= floor {
                break;
            }
            held += mass[c];
            fitted = alpha.min(weights[c] / heaviest);
        }
        if held >= floor { fitted } else { 0.0 }
    };
    let (must, may) = (largest(floor - TIE), largest(floor + TIE));
    if must < 2f64.powi(-10) {
        return None;
    }
    Some(above(scores, [must * (1.0 + TIE), may * (1.0 - TIE) / (1.0 + 1.0 / 32.0)], window, last))
}

/// XAttention's choice (arXiv 2503.16428, algorithm 1): queries and keys in groups of `stride`; the sum along a group's
/// antidiagonal, over `stride`, stands for the whole; a softmax over the groups of keys that begin at or before a group's
/// last query; summed over the groups of each block; the fewest, heaviest blocks that hold `part` of each row. Departures of
/// the crate: blocks of 64; the first block and the row block's own always in, beside those that the part asks for;
/// weights within 1/64 of each other taken together.
pub fn xattention(heads: &[Head], stride: usize, part: f64) -> Vec<Vec<Verdict>> {
    let head = heads[0];
    let (n, m) = (head.queries(), head.keys());
    let mut blocks = Vec::new();
    for r in 0..head.row_blocks() {
        let (first, last) = head.span(r);
        let seen = m.div_ceil(BLOCK).min(last / BLOCK + 1);
        // Heads that share keys take the mean of their logarithms.
        let mut logarithms = vec![0.0; seen];
        for head in heads {
            for (c, weight) in antidiagonal_weights(head, r, stride, seen).into_iter().enumerate() {
                logarithms[c] += weight.ln() / heads.len() as f64;
            }
        }
        let weights = softmax(logarithms);
        let chosen = fewest_of_mass(&weights, &vec![false; seen], part, 0, 1.0 / 64.0).verdicts;
        let always = |c: usize| c == 0 || c >= first / BLOCK;
        blocks.push((0..seen).map(|c| if always(c) { Verdict::In } else { chosen[c] }).collect());
    }
    assert!(n > 0);
    blocks
}

/// What the groups of a row block give each key block.
fn antidiagonal_weights(head: &Head, r: usize, stride: usize, seen: usize) -> Vec<f64> {
    let (n, m) = (head.queries(), head.keys());
    let mut weights = vec![0.0; seen];
    for group in r * BLOCK / stride..((r + 1) * BLOCK / stride).min(n.div_ceil(stride)) {
        let last = head.start + n.min((group + 1) * stride) - 1;
        let mut sums = Vec::new();
        for keys in 0..=last / stride {
            let mut sum = 0.0;
            for t in 0..stride {
                let (i, j) = (group * stride + stride - 1 - t, keys * stride + t);
                // What is not there counts as zeros.
                if i < n && j < m {
                    sum += head.dot(i, j);
                }
            }
            sums.push(head.scale * sum / stride as f64);
        }
        for (keys, weight) in softmax(sums).into_iter().enumerate() {
            weights[keys * stride / BLOCK] += weight;
        }
    }
    weights
}

/// Log-sum-exp of each query under skip-softmax (BLASST, arXiv 2512.12087) by the finest tile, one query and one key: a key
/// whose score lies below the maximum so far by more than `-ln(factor / m)` gives nothing. Any larger tile drops fewer.
pub fn skip_softmax_lse(head: &Head, factor: f64) -> Vec<f64> {
    let below = (factor / head.keys() as f64).ln().min(0.0);
    let mut all = Vec::new();
    for i in 0..head.queries() {
        let (mut largest, mut kept) = (f64::NEG_INFINITY, Vec::new());
        for j in 0..=head.start + i {
            let score = head.scale * head.dot(i, j);
            if score - largest >= below {
                kept.push(score);
                largest = largest.max(score);
            }
        }
        let mut total = 0.0;
        for score in kept {
            total += (score - largest).exp();
        }
        all.push(largest + total.ln());
    }
    all
}

/// Tri-shape (TriangleMix, arXiv 2507.21526): first keys, nearest keys, and everything for the last queries. Query
/// `i` of `n`, the last one at key position `start + n - 1`.
pub fn tri_shape([n_init, n_local, n_last]: [usize; 3], n: usize, start: usize, i: usize, j: usize) -> bool {
    let position = start + i;
    j <= position && (j < n_init || position - j < n_local || i + n_last >= n)
}

/// The same by row blocks, as the crate computes it: whether any query of row block `r` takes a key. Those that the key does
/// not follow all take it then.
pub fn tri_shape_of_row_block(sizes: [usize; 3], n: usize, start: usize, r: usize, j: usize) -> bool {
    let mut taken = false;
    for i in r * BLOCK..n.min((r + 1) * BLOCK) {
        taken |= tri_shape(sizes, n, start, i, j);
    }
    taken
}

/// Kept attention mass of a head under a mask `[n, m]`, by log-sum-exp: the mean over queries of
/// `exp(lse(kept) - lse(all))`. And the relative L2 error of its output over `v` `[m, d]`.
pub fn recall_and_error(head: &Head, v: &[f32], mask: &[bool]) -> (f64, f64) {
    let (n, m) = (head.queries(), head.keys());
    let (mut recall, mut difference, mut norm) = (0.0, 0.0, 0.0);
    for i in 0..n {
        let (mut all, mut kept) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        let add = |lse: f64, score: f64| {
            let largest = lse.max(score);
            largest + ((lse - largest).exp() + (score - largest).exp()).ln()
        };
        let mut scores = Vec::new();
        for j in 0..=head.start + i {
            let score = head.scale * head.dot(i, j);
            all = add(all, score);
            if mask[i * m + j] {
                kept = add(kept, score);
            }
            scores.push(score);
        }
        recall += (kept - all).exp() / n as f64;
        for c in 0..head.d {
            let (mut dense, mut sparse) = (0.0, 0.0);
            for (j, score) in scores.iter().enumerate() {
                let value = f64::from(v[j * head.d + c]);
                dense += (score - all).exp() * value;
                if mask[i * m + j] {
                    sparse += (score - kept).exp() * value;
                }
            }
            difference += (sparse - dense) * (sparse - dense);
            norm += dense * dense;
        }
    }
    (recall, (difference / norm).sqrt())
}
