//! What a pre-fill's heads computed and kept: the numbers of `run --report` and `run --verify`.

use crate::attention::attend_with;
use crate::backend::Backend;
use crate::backend::params::BLOCK;
use crate::estimate::AttentionOptions;
use crate::model::{AttentionCall, Watch};
use crate::ops::AttentionShape;
use crate::pattern::{AttentionMode, HeadPattern};
use crate::tensor::Tensor;
use crate::{DType, Result};

/// Row blocks of a call that are compared with dense attention, the last one among them.
const SAMPLES: usize = 8;

/// One layer's heads, over all chunks.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct LayerInsight {
    /// Kept attention mass of each head: the mean over the sampled rows.
    pub recall: Vec<f64>,
    /// Relative L2 error of each head's output over the sampled rows, against dense attention on the same queries, keys and
    /// values.
    pub error: Vec<f64>,
    /// Relative L2 error of the last row block's output against dense attention on the same queries, keys and values.
    pub last_rows_error: f64,
    rows: usize,
    /// Of each head: the squared difference and the squared norm of dense so far.
    #[serde(skip)]
    squares: Vec<[f64; 2]>,
}

/// Watches a pre-fill, computes each layer's attention once more and compares samples of it with dense attention.
pub struct Insight<'a> {
    mode: &'a AttentionMode,
    /// One a layer.
    pub layers: Vec<LayerInsight>,
}

impl<'a> Insight<'a> {
    /// For a pre-fill under this mode.
    pub fn new(mode: &'a AttentionMode) -> Self {
        Self { mode, layers: Vec::new() }
    }
}

/// The squared norms of a difference and of what it is from.
fn squares(got: &[f32], want: &[f32]) -> [f64; 2] {
    let square = |x: f32| f64::from(x) * f64::from(x);
    [got.iter().zip(want).map(|(g, w)| square(g - w)).sum(), want.iter().copied().map(square).sum()]
}

fn relative([difference, norm]: [f64; 2]) -> f64 {
    if norm > 0.0 { (difference / norm).sqrt() } else { difference.sqrt() }
}

impl<B: Backend> Watch<B> for Insight<'_> {
    fn attention(&mut self, b: &B, layer: usize, call: &AttentionCall<B>) -> Result<()> {
        let s = call.shape;
        let (heads, n, d) = (s.n_heads, s.q_len, s.head_dim);
        let mut out = Tensor::alloc(b, DType::F32, [n, heads * d])?;
        let mut lse = Tensor::alloc(b, DType::F32, [heads, n])?;
        let shape = AttentionShape { out_stride: [heads * d, d], ..s };
        let (patterns, qkv) = (self.mode.patterns(layer, heads), [call.q, call.k, call.v]);
        let results = (out.view_mut(), Some(lse.view_mut()));
        attend_with(b, &patterns, &shape, qkv, results.0, results.1, call.options)?;
        let lse = lse.to_f32(b)?;

        let blocks = n.div_ceil(BLOCK);
        let mut sampled: Vec<usize> = (1..=SAMPLES).map(|i| (i * blocks).div_ceil(SAMPLES) - 1).collect();
        sampled.dedup();
        if self.layers.len() <= layer {
            self.layers.resize_with(layer + 1, LayerInsight::default);
        }
        let insight = &mut self.layers[layer];
        insight.recall.resize(heads, 0.0);
        insight.squares.resize(heads, [0.0; 2]);
        let mut sums: Vec<f64> = insight.recall.iter().map(|mean| mean * insight.rows as f64).collect();
        for block in sampled {
            let (first, m) = (block * BLOCK, BLOCK.min(n - block * BLOCK));
            let part = AttentionShape { q_len: m, q_start: s.q_start + first, ..shape };
            let mut dense_out = Tensor::alloc(b, DType::F32, [m, heads * d])?;
            let mut dense_lse = Tensor::alloc(b, DType::F32, [heads, m])?;
            let dense = vec![HeadPattern::Dense; heads];
            let qkv = [call.q.from_element(first * s.q_stride[0]), call.k, call.v];
            let results = (dense_out.view_mut(), Some(dense_lse.view_mut()));
            attend_with(b, &dense, &part, qkv, results.0, results.1, AttentionOptions::EXACT)?;
            let dense_lse = dense_lse.to_f32(b)?;
            for h in 0..heads {
                let pairs = lse[h * n + first..][..m].iter().zip(&dense_lse[h * m..][..m]);
                sums[h] += pairs.map(|(sparse, dense)| (f64::from(*sparse) - f64::from(*dense)).exp()).sum::<f64>();
            }
            insight.rows += m;
            let (got, want) = (out.view().rows(first..first + m).to_f32(b)?, dense_out.to_f32(b)?);
            let mut all = [0.0; 2];
            for (at, (got, want)) in got.chunks_exact(d).zip(want.chunks_exact(d)).enumerate() {
                let own = squares(got, want);
                for i in 0..2 {
                    all[i] += own[i];
                    insight.squares[at % heads][i] += own[i];
                }
            }
            if block + 1 == blocks {
                insight.last_rows_error = relative(all);
            }
        }
        insight.error = insight.squares.iter().copied().map(relative).collect();
        insight.recall = sums.into_iter().map(|sum| sum / insight.rows as f64).collect();
        Ok(())
    }
}
