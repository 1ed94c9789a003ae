//! The judge: each method in its plainest form, one head, f64, full matrices, an explicit test for every pair.

/// Keys of a block and queries of a row block.
pub const BLOCK: usize = 64;

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Attention of q `[n, d]` over k, v `[m, d]` at the pairs that `sees(query, key)` allows: out `[n, d]`, log-sum-exp
/// `[n]`. A query that sees nothing gives zeros and -inf.
pub fn attend(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d: usize,
    scale: f64,
    sees: impl Fn(usize, usize) -> bool,
) -> (Vec<f64>, Vec<f64>) {
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for (i, q) in q.chunks_exact(d).enumerate() {
        let keys: Vec<usize> = (0..k.len() / d).filter(|&j| sees(i, j)).collect();
        let scores: Vec<f64> = keys.iter().map(|j| scale * dot(q, &k[j * d..][..d])).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let mut row = vec![0.0; d];
        for (j, s) in keys.iter().zip(&scores) {
            let weight = (s - max).exp() / total;
            row.iter_mut().zip(&v[j * d..]).for_each(|(x, v)| *x += weight * f64::from(*v));
        }
        out.extend(row);
        lse.push(if keys.is_empty() { f64::NEG_INFINITY } else { max + total.ln() });
    }
    (out, lse)
}

/// Column and offset scores from the last `min(64, n)` queries, whose first stands at key position `q_start`.
pub fn vertical_slash_scores(q: &[f32], k: &[f32], d: usize, scale: f64, q_start: usize) -> (Vec<f64>, Vec<f64>) {
    let (n, m) = (q.len() / d, k.len() / d);
    let (mut columns, mut offsets) = (vec![0.0; m], vec![0.0; m]);
    for i in n.saturating_sub(64)..n {
        let position = q_start + i;
        let scores: Vec<f64> = (0..=position).map(|j| scale * dot(&q[i * d..][..d], &k[j * d..][..d])).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        for (j, s) in scores.iter().enumerate() {
            let p = (s - max).exp() / total;
            columns[j] += p;
            offsets[position - j] += p;
        }
    }
    (columns, offsets)
}

/// The `count` best indices, ascending: the first `forced` in order, then higher values, then lower indices; NaN last.
pub fn top_k(scores: &[f32], forced: usize, count: usize) -> Vec<u32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Forced and NaN ranks: forced ones are equal among themselves.
    let rank = |i: usize| match scores[i] {
        _ if i < forced => (2, 0.0),
        x if x.is_nan() => (0, 0.0),
        x => (1, f64::from(x) + 0.0),
    };
    order.sort_by(|&a, &b| rank(b).0.cmp(&rank(a).0).then(rank(b).1.total_cmp(&rank(a).1)).then(a.cmp(&b)));
    let mut best: Vec<u32> = order.iter().take(count).map(|&i| i as u32).collect();
    best.sort_unstable();
    best
}

/// The least weight of the fewest of `weights` that hold `part` of their sum: the `forced` ones, then the heaviest. With
/// nothing but forced ones, infinity.
pub fn least_of_mass(weights: &[f64], forced: impl Fn(usize) -> bool, part: f64) -> f64 {
    let total: f64 = weights.iter().sum();
    let mut sum: f64 = weights.iter().enumerate().filter(|(i, _)| forced(*i)).map(|(_, w)| w).sum();
    let mut rest: Vec<f64> = weights.iter().enumerate().filter(|(i, _)| !forced(*i)).map(|(_, w)| *w).collect();
    rest.sort_by(|a, b| b.total_cmp(a));
    let mut least = f64::INFINITY;
    for weight in rest {
        if sum >= part * total {
            break;
        }
        (sum, least) = (sum + weight, weight);
    }
    least
}

/// Softmax of scores under a scale.
pub fn softmax(scores: &[f64], scale: f64) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| ((s - max) * scale).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// Square root of the Jensen-Shannon divergence of two distributions, in nats.
pub fn js_distance(p: &[f64], q: &[f64]) -> f64 {
    let to_middle = |x: f64, y: f64| if x > 0.0 { x * (2.0 * x / (x + y)).ln() } else { 0.0 };
    let sum: f64 = p.iter().zip(q).map(|(&p, &q)| to_middle(p, q) + to_middle(q, p)).sum();
    (0.5 * sum).max(0.0).sqrt()
}

/// Sums of 64 neighbouring offsets, halved, at the first and the last of them.
pub fn group_offsets(offsets: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; offsets.len()];
    for start in (0..offsets.len()).step_by(BLOCK) {
        let end = offsets.len().min(start + BLOCK);
        let sum: f64 = offsets[start..end].iter().sum();
        out[start] += sum / 2.0;
        out[end - 1] += sum / 2.0;
    }
    out
}

/// What FlexPrefill decides by for one head (algorithms 2 to 4 of its paper, with blocks of 64).
pub struct Flex {
    /// Between the estimated and the real attention of the last queries over key blocks.
    pub distance: f64,
    /// The last queries' attention by key and by distance, each of sum 1.
    pub columns: Vec<f64>,
    pub offsets: Vec<f64>,
    /// For each row block, the softmax of its mean query over the means of the key blocks that it sees.
    pub blocks: Vec<Vec<f64>>,
}

/// q `[n, d]`, k `[m, d]`.
pub fn flex(q: &[f32], k: &[f32], d: usize, scale: f64, q_start: usize) -> Flex {
    let (n, m) = (q.len() / d, k.len() / d);
    let last = n.min(BLOCK);
    let (columns, offsets) = vertical_slash_scores(q, k, d, scale, q_start);
    let unit = |x: Vec<f64>| x.into_iter().map(|x| x / last as f64).collect::<Vec<_>>();
    let (columns, offsets) = (unit(columns), unit(offsets));
    let means = |x: &[f32]| pool(x, d, false).chunks_exact(d).map(<[f64]>::to_vec).collect::<Vec<_>>();
    let (row_means, key_means) = (means(q), means(k));
    let over_blocks = |mean: &[f64], last_query: usize| {
        let seen = m.div_ceil(BLOCK).min(last_query / BLOCK + 1);
        let score = |key: &Vec<f64>| mean.iter().zip(key).map(|(a, b)| a * b).sum::<f64>();
        softmax(&key_means[..seen].iter().map(score).collect::<Vec<_>>(), scale)
    };
    let mut estimated = over_blocks(&means(&q[(n - last) * d..])[0], q_start + n - 1);
    estimated.resize(m.div_ceil(BLOCK), 0.0);
    let real: Vec<f64> = columns.chunks(BLOCK).map(|keys| keys.iter().sum()).collect();
    let row = |(r, mean): (usize, &Vec<f64>)| over_blocks(mean, q_start + n.min((r + 1) * BLOCK) - 1);
    let blocks = row_means.iter().enumerate().map(row).collect();
    Flex { distance: js_distance(&estimated, &real), columns, offsets, blocks }
}

/// The official conversion of one row block that ends at `b` (padded): starts of 64-wide key blocks, and columns.
/// `columns` and `offsets` ascending, some offset below `b`. Blocks that begin at or past `kv_len` are left out.
pub fn convert(columns: &[u32], offsets: &[u32], b: usize, kv_len: usize) -> (Vec<usize>, Vec<usize>) {
    let near = offsets.iter().rev().map(|&s| s as usize).filter(|&s| s < b);
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for end in near.map(|s| (b - s).max(BLOCK)) {
        match runs.last_mut() {
            Some((_, hi)) if end <= *hi => {}
            Some((_, hi)) if end <= *hi + BLOCK => *hi += BLOCK,
            _ => runs.push((end - BLOCK, end)),
        }
    }
    let last = runs.last().expect("an offset below b").0;
    let inside = |c: usize| runs.iter().any(|&(lo, hi)| lo <= c && c < hi);
    // A column at or past the first query can only be kept without offset 0; it would need a causal test, and is dropped.
    let columns = columns.iter().map(|&c| c as usize).filter(|&c| c < last && c < b - BLOCK && !inside(c)).collect();
    let blocks = runs.iter().flat_map(|&(lo, hi)| (lo..hi).step_by(BLOCK)).filter(|&start| start < kv_len).collect();
    (blocks, columns)
}

/// Means of blocks of 64 rows of x `[n, d]`; `padded` divides a short last block by 64 all the same.
pub fn pool(x: &[f32], d: usize, padded: bool) -> Vec<f64> {
    let rows = x.len() / d;
    let mut out = vec![0.0; rows.div_ceil(BLOCK) * d];
    for (i, row) in x.chunks_exact(d).enumerate() {
        let of_block = BLOCK.min(rows - i / BLOCK * BLOCK);
        let divisor = if padded { BLOCK } else { of_block };
        for (c, x) in row.iter().enumerate() {
            out[i / BLOCK * d + c] += f64::from(*x) / divisor as f64;
        }
    }
    out
}

/// What one head computes.
#[derive(Clone, Debug)]
pub enum Sets {
    Dense,
    AShape {
        n_init: usize,
        n_local: usize,
    },
    /// By whole row blocks: the window of their first to their last query, dense where they hold one of the last queries.
    TriShape {
        n_init: usize,
        n_local: usize,
        n_last: usize,
    },
    /// Columns and offsets, ascending.
    VerticalSlash {
        columns: Vec<u32>,
        offsets: Vec<u32>,
    },
    /// Key blocks of each row block.
    Blocks(Vec<Vec<u32>>),
}

impl Sets {
    /// `[q_len, kv_len]`: whether query `i`, at key position `q_start + i`, computes key `j`.
    pub fn mask(&self, q_len: usize, kv_len: usize, q_start: usize) -> Vec<bool> {
        let mut mask = vec![false; q_len * kv_len];
        for r in 0..q_len.div_ceil(BLOCK) {
            let rows = r * BLOCK..q_len.min((r + 1) * BLOCK);
            let converted = match self {
                Self::VerticalSlash { columns, offsets } => {
                    let (blocks, columns) = convert(columns, offsets, q_start + (r + 1) * BLOCK, kv_len);
                    Some(blocks.into_iter().flat_map(|b| b..b + BLOCK).chain(columns).collect::<Vec<_>>())
                }
                _ => None,
            };
            for i in rows {
                let position = q_start + i;
                for (j, cell) in mask[i * kv_len..][..kv_len].iter_mut().enumerate().take(position + 1) {
                    *cell = match self {
                        Self::Dense => true,
                        Self::AShape { n_init, n_local } => j < *n_init || position - j < *n_local,
                        Self::TriShape { n_init, n_local, n_last } => {
                            let first = q_start + r * BLOCK;
                            let holds_last = q_len.min((r + 1) * BLOCK) + n_last > q_len;
                            holds_last || j < *n_init || j + n_local > first
                        }
                        Self::Blocks(blocks) => blocks[r].contains(&((j / BLOCK) as u32)),
                        Self::VerticalSlash { .. } => false,
                    };
                }
                for &j in converted.iter().flatten() {
                    if j <= position && j < kv_len {
                        assert!(!mask[i * kv_len + j], "key {j} twice in row block {r}");
                        mask[i * kv_len + j] = true;
                    }
                }
            }
        }
        mask
    }
}
