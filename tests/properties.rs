//! What must hold whatever the input is, on every backend: drawn at random from fixed seeds.

mod common;

use common::naive::{self, Sets};
use common::{Rng, for_each_backend};
use minference::DType;
use minference::attention::{HeadGroup, attend, kept_mass};
use minference::backend::Backend;
use minference::estimate::{estimate, from_sets};
use minference::index::{HostIndex, SparseIndex};
use minference::ops::{self, AttentionShape};
use minference::pattern::HeadPattern;
use minference::tensor::Tensor;

const BLOCK: usize = 64;

/// One layer on a device, head-major, whose queries are those of the last `q_len` keys.
struct Layer<B: Backend> {
    shape: AttentionShape,
    q: Tensor<B>,
    k: Tensor<B>,
    v: Tensor<B>,
}

impl<B: Backend> Layer<B> {
    /// The last `q_len` queries of a drawn layer; all keys.
    fn new(b: &B, heads: &common::Heads, q_len: usize) -> Self {
        let (n, d) = (heads.len, heads.dim);
        let q: Vec<f32> = heads.q.chunks(n * d).flat_map(|head| head[(n - q_len) * d..].to_vec()).collect();
        let shape = AttentionShape {
            n_heads: heads.heads,
            n_kv_heads: heads.kv_heads,
            head_dim: d,
            q_len,
            kv_len: n,
            q_start: n - q_len,
            scale: 1. / (d as f32).sqrt(),
            q_stride: [d, q_len * d],
            k_stride: [d, n * d],
            v_stride: [d, n * d],
            out_stride: [d, q_len * d],
        };
        let q = Tensor::activation(b, [heads.heads, q_len, d], &q).unwrap();
        let [k, v] = [&heads.k, &heads.v].map(|x| Tensor::activation(b, [heads.kv_heads, n, d], x).unwrap());
        Self { shape, q, k, v }
    }

    fn estimate(&self, b: &B, patterns: &[HeadPattern]) -> SparseIndex<B> {
        estimate(b, patterns, &self.shape, self.q.view(), self.k.view()).unwrap()
    }

    /// Output and log-sum-exp over an index.
    fn attend(&self, b: &B, index: &SparseIndex<B>) -> (Vec<f32>, Vec<f32>) {
        let s = &self.shape;
        let mut out = Tensor::alloc(b, DType::F32, [s.n_heads, s.q_len, s.head_dim]).unwrap();
        let mut lse = Tensor::alloc(b, DType::F32, [s.n_heads, s.q_len]).unwrap();
        let (q, k, v) = (self.q.view(), self.k.view(), self.v.view());
        ops::attention(b, s, q, k, v, index, out.view_mut(), Some(lse.view_mut())).unwrap();
        (out.to_f32(b).unwrap(), lse.to_f32(b).unwrap())
    }
}

/// Patterns of every kind, for any length.
fn draw_pattern(rng: &mut Rng, n: usize) -> HeadPattern {
    match rng.below(4) {
        0 => HeadPattern::Dense,
        1 => HeadPattern::AShape { n_init: rng.below(n), n_local: 1 + rng.below(n) },
        2 => HeadPattern::VerticalSlash { columns: 1 + rng.below(n), offsets: 1 + rng.below(n) },
        _ => HeadPattern::BlockSparse { top_k: 1 + rng.below(n.div_ceil(BLOCK)) },
    }
}

/// A valid index drawn at random. The last range of a row block ends with its last query, so that no window is empty.
fn draw_index(rng: &mut Rng, heads: usize, q_len: usize, q_start: usize) -> HostIndex {
    let mut index = HostIndex::empty(heads, q_len, q_start + q_len, q_start);
    for head in 0..heads {
        if rng.below(3) == 0 {
            index.window[head] = [rng.below(40) as i32, 1 + rng.below(100) as i32];
        }
        for block in 0..q_len.div_ceil(BLOCK) {
            let first = q_start + block * BLOCK;
            let mut key = 0;
            loop {
                let start = key + rng.below((first - key + 1).min(90));
                index.columns.extend((key..start).filter(|_| rng.below(4) == 0).map(|c| c as i32));
                let end = start + 1 + rng.below(120);
                if end >= first {
                    index.ranges.push([start as i32, (q_start + q_len.min((block + 1) * BLOCK)) as i32]);
                    break;
                }
                index.ranges.push([start as i32, end as i32]);
                key = end;
            }
            index.range_ptr.push(index.ranges.len() as i64);
            index.column_ptr.push(index.columns.len() as i64);
        }
    }
    index
}

/// The index in which every head computes every pair, cut into ranges and columns at random.
fn everything(rng: &mut Rng, heads: usize, q_len: usize, q_start: usize) -> HostIndex {
    let mut index = HostIndex::empty(heads, q_len, q_start + q_len, q_start);
    for _ in 0..heads {
        for block in 0..q_len.div_ceil(BLOCK) {
            let first = q_start + block * BLOCK;
            let mut key = 0;
            while key < first {
                if rng.below(3) == 0 {
                    index.columns.push(key as i32);
                    key += 1;
                } else {
                    let end = (key + 1 + rng.below(150)).min(first);
                    index.ranges.push([key as i32, end as i32]);
                    key = end;
                }
            }
            index.ranges.push([first as i32, (first + BLOCK) as i32]);
            index.range_ptr.push(index.ranges.len() as i64);
            index.column_ptr.push(index.columns.len() as i64);
        }
    }
    index
}

fn rows_close<B: Backend>(b: &B, what: &str, got: &[f32], want: &[f32]) {
    let want: Vec<f64> = want.iter().map(|&x| f64::from(x)).collect();
    common::assert_close(what, common::roundoff(b.activation()), got, &want);
}

for_each_backend!(an_index_with_everything_equals_dense, |b| {
    let mut rng = Rng(1);
    for (case, (n, q_len, heads, kv_heads, d)) in
        [(64, 64, 2, 1, 64), (200, 200, 2, 2, 32), (333, 100, 4, 2, 128), (150, 1, 1, 1, 96)].into_iter().enumerate()
    {
        let layer = Layer::new(b, &common::heads(heads, kv_heads, n, d, case as u64), q_len);
        let host = everything(&mut rng, heads, q_len, n - q_len);
        host.validate().unwrap();
        assert_eq!(host.density(), 1.);
        let (out, lse) = layer.attend(b, &host.upload(b).unwrap());
        let (dense_out, dense_lse) = layer.attend(b, &layer.estimate(b, &vec![HeadPattern::Dense; heads]));
        rows_close(b, &format!("case {case}: output"), &out, &dense_out);
        rows_close(b, &format!("case {case}: log-sum-exp"), &lse, &dense_lse);
        let recall = kept_mass(&lse, &dense_lse, heads).unwrap();
        assert!(recall.iter().all(|r| (r - 1.).abs() < 1e-4), "{recall:?}");
    }
});

for_each_backend!(adding_a_block_never_lowers_recall, |b| {
    let mut rng = Rng(2);
    let (n, heads) = (320, 2);
    let layer = Layer::new(b, &common::heads(heads, 1, n, 64, 7), n);
    let (_, dense) = layer.attend(b, &layer.estimate(b, &vec![HeadPattern::Dense; heads]));
    // Blocks of each row, beginning with the diagonal one; then one more at a time until all are there.
    let blocks = n.div_ceil(BLOCK);
    let mut chosen: Vec<Vec<bool>> =
        (0..heads * blocks).map(|row| (0..blocks).map(|c| c == row % blocks).collect()).collect();
    let (mut before, mut steps) = (vec![0f64; heads], 0);
    loop {
        let mut host = HostIndex::empty(heads, n, n, 0);
        for row in &chosen {
            let keys = row.iter().enumerate().filter(|(_, chosen)| **chosen).map(|(c, _)| (c * BLOCK) as i32);
            host.ranges.extend(keys.map(|key| [key, key + BLOCK as i32]));
            host.range_ptr.push(host.ranges.len() as i64);
            host.column_ptr.push(0);
        }
        let (_, lse) = layer.attend(b, &host.upload(b).unwrap());
        let recall = kept_mass(&lse, &dense, heads).unwrap();
        for head in 0..heads {
            assert!(recall[head] >= before[head] - 1e-6, "head {head}: {} after {}", recall[head], before[head]);
        }
        before = recall;
        steps += 1;
        let missing: Vec<(usize, usize)> = (0..heads * blocks)
            .flat_map(|row| (0..row % blocks).map(move |c| (row, c)))
            .filter(|&(row, c)| !chosen[row][c])
            .collect();
        if missing.is_empty() {
            break;
        }
        let (row, c) = missing[rng.below(missing.len())];
        chosen[row][c] = true;
    }
    assert_eq!(steps, 1 + heads * blocks * (blocks - 1) / 2);
    assert!(before.iter().all(|r| (r - 1.).abs() < 1e-4), "{before:?}");
});

for_each_backend!(estimated_rows_are_sound, |b| {
    let mut rng = Rng(3);
    for case in 0..12 {
        let n = 1 + rng.below(if case < 4 { 130 } else { 700 });
        let q_len = if case % 3 == 0 { n } else { 1 + rng.below(n) };
        let kv_heads = 1 + rng.below(2);
        let heads = kv_heads * (1 + rng.below(3));
        let layer = Layer::new(b, &common::heads(heads, kv_heads, n, 32, case), q_len);
        let patterns: Vec<HeadPattern> = (0..heads).map(|_| draw_pattern(&mut rng, n)).collect();
        let what = format!("case {case}: {patterns:?}, {q_len} of {n}");

        let index = layer.estimate(b, &patterns);
        let host = index.to_host(b).unwrap();
        host.validate().unwrap_or_else(|e| panic!("{what}: {e}"));
        let counted: usize = (0..heads).map(|h| host.to_mask(h).iter().filter(|m| **m).count()).sum();
        assert_eq!(host.pairs(), counted as u64, "{what}: pairs and mask");
        assert_eq!(host.density(), index.density(b).unwrap(), "{what}: density on host and device");
        assert!(host.density() <= 1. && host.density() > 0.);
        for (head, pattern) in patterns.iter().enumerate() {
            if let HeadPattern::AShape { n_init, n_local } = *pattern {
                let want = Sets::AShape { n_init, n_local }.mask(q_len, n, n - q_len);
                assert!(host.to_mask(head) == want, "{what}: head {head}");
            }
        }
    }
});

for_each_backend!(indices_survive_upload_and_download, |b| {
    let mut rng = Rng(4);
    for case in 0..8 {
        let (heads, q_len, q_start) = (1 + rng.below(3), 1 + rng.below(400), rng.below(300) * (case % 2));
        let host = draw_index(&mut rng, heads, q_len, q_start);
        let index = host.upload(b).unwrap_or_else(|e| panic!("case {case}: {e}"));
        assert!(index.to_host(b).unwrap() == host, "case {case}");
        assert_eq!(index.density(b).unwrap(), host.density(), "case {case}");
    }
});

for_each_backend!(given_sets_follow_the_official_rule, |b| {
    let mut rng = Rng(5);
    for case in 0..12 {
        let q_len = 1 + rng.below(500);
        let q_start = if case % 2 == 0 { 0 } else { rng.below(500) };
        let n = q_start + q_len;
        let heads = 1 + rng.below(3);
        let shape =
            AttentionShape { q_len, kv_len: n, q_start, ..Layer::new(b, &common::heads(heads, 1, 1, 8, 0), 1).shape };
        let columns: Vec<Vec<u32>> = (0..heads)
            .map(|_| {
                let c = rng.below(n + 1);
                rng.choose(n, c)
            })
            .collect();
        let offsets: Vec<Vec<u32>> = (0..heads)
            .map(|_| {
                let count = 1 + rng.below(n.div_ceil(1 + 20 * (case as usize % 4)));
                let mut offsets = rng.choose(n, count);
                // Some offset must reach the first row block; 0 need not be there.
                offsets[0] = offsets[0].min(rng.below(BLOCK) as u32);
                offsets
            })
            .collect();
        let index = from_sets(b, &columns, &offsets, &shape).unwrap();
        let host = index.to_host(b).unwrap();
        host.validate().unwrap();
        assert_eq!(host.density(), index.density(b).unwrap(), "case {case}");
        for head in 0..heads {
            for block in 0..host.row_blocks() {
                let row = host.row(head, block);
                let (want_blocks, want_columns) =
                    naive::convert(&columns[head], &offsets[head], q_start + (block + 1) * BLOCK, n);
                let blocks: Vec<usize> =
                    row.ranges.iter().flat_map(|r| (r[0] as usize..r[1] as usize).step_by(BLOCK)).collect();
                let columns: Vec<usize> = row.columns.iter().map(|&c| c as usize).collect();
                assert_eq!(
                    (blocks, columns),
                    (want_blocks, want_columns),
                    "case {case}, head {head}, row block {block}"
                );
            }
        }
    }
});

for_each_backend!(chunks_do_not_change_a_static_pattern, |b| {
    let (n, heads, d) = (500, 3, 64);
    let drawn = common::heads(heads, 1, n, d, 11);
    let patterns = [
        HeadPattern::Dense,
        HeadPattern::AShape { n_init: 10, n_local: 100 },
        HeadPattern::AShape { n_init: 100, n_local: 33 },
    ];
    let whole = Layer::new(b, &drawn, n);
    let (out, lse) = whole.attend(b, &whole.estimate(b, &patterns));
    for chunk in [64, 100, 333] {
        for start in (0..n).step_by(chunk) {
            let end = n.min(start + chunk);
            let cut = |x: &[f32]| x.chunks(n * d).flat_map(|head| head[..end * d].to_vec()).collect();
            let prefix = common::Heads { len: end, q: cut(&drawn.q), k: cut(&drawn.k), v: cut(&drawn.v), ..drawn };
            let part = Layer::new(b, &prefix, end - start);
            let (part_out, part_lse) = part.attend(b, &part.estimate(b, &patterns));
            for head in 0..heads {
                let rows = |width: usize| (head * n + start) * width..(head * n + end) * width;
                let part_rows = |width: usize| head * (end - start) * width..(head + 1) * (end - start) * width;
                let what = format!("chunk {chunk} at {start}, head {head}");
                rows_close(b, &what, &part_out[part_rows(d)], &out[rows(d)]);
                rows_close(b, &what, &part_lse[part_rows(1)], &lse[rows(1)]);
            }
        }
    }
});

for_each_backend!(head_groups_equal_the_whole_layer, |b| {
    // Token-major rows of q, k and v heads together, as a model's projection leaves them.
    let (n, heads, kv_heads, d) = (300, 6, 2, 32);
    let drawn = common::heads(heads, kv_heads, n, d, 13);
    let row = (heads + 2 * kv_heads) * d;
    let mut qkv = vec![0f32; n * row];
    for (first, tensor) in [(0, &drawn.q), (heads, &drawn.k), (heads + kv_heads, &drawn.v)] {
        for (at, values) in tensor.chunks(d).enumerate() {
            qkv[at % n * row + (first + at / n) * d..][..d].copy_from_slice(values);
        }
    }
    let qkv = Tensor::activation(b, [n, row], &qkv).unwrap();
    let elements = n * row;
    let part = |column: usize| qkv.view().reshape([elements]).rows(column * d..elements);
    let (q, k, v) = (part(0), part(heads), part(heads + kv_heads));
    let stride = [row, d];
    let shape = AttentionShape {
        q_stride: stride,
        k_stride: stride,
        v_stride: stride,
        out_stride: [heads * d, d],
        ..Layer::new(b, &drawn, n).shape
    };
    let patterns =
        ["vertical_slash:40:120", "dense", "block_sparse:2", "a_shape:8:70", "vertical_slash:60:100", "block_sparse:3"];
    let patterns = patterns.map(|p| p.parse().unwrap());

    let mut whole = Tensor::alloc(b, DType::F32, [n, heads * d]).unwrap();
    let mut whole_lse = Tensor::alloc(b, DType::F32, [heads, n]).unwrap();
    let computed = attend(b, &patterns, &shape, q, k, v, whole.view_mut(), Some(whole_lse.view_mut())).unwrap();
    let pairs = computed.head_pairs(b).unwrap();

    let mut grouped = Tensor::alloc(b, DType::F32, [n, heads * d]).unwrap();
    let mut grouped_lse = Tensor::alloc(b, DType::F32, [heads, n]).unwrap();
    let mut out = grouped.view_mut();
    for heads in [0..3, 3..4, 4..6] {
        let group = HeadGroup::new(&shape, heads.clone());
        let index = estimate(b, &patterns[heads.clone()], &group.shape, group.q(q), group.k(k)).unwrap();
        let host = index.to_host(b).unwrap();
        for head in heads.clone() {
            let counted: u64 = (0..host.row_blocks()).map(|block| host.row(head - heads.start, block).pairs()).sum();
            assert_eq!(counted, pairs[head], "head {head}");
        }
        let lse = grouped_lse.view_mut().rows(heads);
        ops::attention(b, &group.shape, group.q(q), group.k(k), group.v(v), &index, group.out(&mut out), Some(lse))
            .unwrap();
    }
    assert!(grouped.to_f32(b).unwrap() == whole.to_f32(b).unwrap(), "output");
    assert!(grouped_lse.to_f32(b).unwrap() == whole_lse.to_f32(b).unwrap(), "log-sum-exp");
    let total = pairs.iter().sum::<u64>() as f64 / (6. * shape.causal_pairs() as f64);
    assert_eq!(computed.density(b).unwrap(), total);
});
