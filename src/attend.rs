//! One attention layer on tensors from a file: everything that `minference attend` does.
//!
//! Useful wherever q, k and v of a real layer are at hand: to see what a pattern computes, what it loses against dense
//! attention, and how long it takes on a device.

use crate::attention::{HeadGroup, kept_mass};
use crate::backend::Backend;
use crate::estimate::{AttentionOptions, IndexLimits, choose, choose_with, from_sets, head_groups};
use crate::index::{HostIndex, SparseIndex};
use crate::ops::{self, AttentionShape};
use crate::pattern::{AttentionMode, Extras, HeadPattern};
use crate::tensor::{Tensor, ViewMut, decode_f32, encode_f32};
use crate::tensor_file::{TensorFile, TensorOut, write_tensors};
use crate::{DType, Error, Result};
use safetensors::Dtype;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to do.
#[derive(Clone, Debug)]
pub struct AttendOptions {
    /// safetensors with `q` `[H, N, D]`, `k`, `v` `[Hkv, M, D]` (or `[N, D]`, `[M, D]`) in f16, bf16 or f32, `M >= N`: the
    /// queries are those of the last `N` keys.
    pub input: PathBuf,
    /// The pattern of each head, unless `index_in` gives sets.
    pub mode: AttentionMode,
    /// The layer, for modes that depend on it.
    pub layer: usize,
    /// safetensors with `v_idx` `[H, V]` ascending and `s_idx` `[H, S]` descending, i32, padded with -1: columns and
    /// offsets to take instead of estimating any.
    pub index_in: Option<PathBuf>,
    /// Computes dense attention too, and compares.
    pub compare_dense: bool,
    /// Timed passes, at least 1; their median is reported. From 2 on an untimed pass comes first, so that nothing is
    /// compiled while the clock runs.
    pub repeat: usize,
    /// Where to write `out` f32 `[H, N, D]`.
    pub output: Option<PathBuf>,
    /// Where to write what was computed ([`HostIndex::save`]).
    pub index_out: Option<PathBuf>,
}

/// What came out, as `--json` prints it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AttendReport {
    /// The device's id.
    pub device: String,
    /// The pattern, `config`, or `given` with `index_in`.
    pub pattern: String,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Queries.
    pub tokens: usize,
    /// Keys.
    pub kv_tokens: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Computed pairs over causal pairs, over all heads.
    pub density: f64,
    /// Computed pairs of all heads, clipped to `j <= i < N`.
    pub pairs: u64,
    /// The same of each head.
    pub head_pairs: Vec<u64>,
    /// Scoring and selection, milliseconds; 0 with `index_in`.
    pub estimate_ms: f64,
    /// From the selection (or the given sets) to the index, milliseconds.
    pub index_ms: f64,
    /// Attention over the index, milliseconds.
    pub attention_ms: f64,
    /// `4 * head_dim * pairs` floating-point operations over `attention_ms`, in 10^12 a second.
    pub tflops: f64,
    /// With `compare_dense`.
    #[serde(flatten)]
    pub comparison: Option<Comparison>,
}

/// A sparse output against the dense one.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Comparison {
    /// Euclidean norm of the difference over that of the dense output.
    pub rel_l2: f64,
    /// Largest difference.
    pub max_abs: f64,
    /// Kept attention mass: the mean over heads of `head_recall`.
    pub recall: f64,
    /// Kept attention mass of each head: the mean over its rows of `exp(lse - lse of dense)`.
    pub head_recall: Vec<f64>,
    /// Dense attention on the same device, milliseconds.
    pub dense_ms: f64,
}

/// What the heads compute.
pub(crate) enum Source {
    /// What each head's pattern chooses.
    Patterns(Vec<HeadPattern>),
    /// Columns and offsets of each head.
    Sets(Vec<Vec<u32>>, Vec<Vec<u32>>),
}

/// One pass over the layer.
pub(crate) struct Pass {
    /// Estimation, index, attention.
    pub times_ms: [f64; 3],
    /// Pairs of each head, clipped to `j <= i < N`.
    pub head_pairs: Vec<u64>,
    index: Option<HostIndex>,
}

/// Reads, computes, compares, times and writes as the options say.
///
/// # Errors
/// [`Error::File`] and [`Error::Io`] for the input, [`Error::Invalid`] for a mode that does not fit its heads,
/// [`Error::OutOfMemory`], and what the device reports.
pub fn attend_file<B: Backend>(b: &B, options: &AttendOptions) -> Result<AttendReport> {
    let layer = Layer { extras: options.mode.extras(), ..Layer::read(b, &options.input)? };
    let source = layer.source(options)?;
    let shape = layer.shape;
    let (heads, n, d) = (shape.n_heads, shape.q_len, shape.head_dim);

    let mut out = Tensor::alloc(b, DType::F32, [heads, n, d])?;
    let mut lse = Tensor::alloc(b, DType::F32, [heads, n])?;
    let keep_index = options.index_out.is_some();
    let sparse = layer.passes(b, &source, options.repeat, keep_index, &mut out, &mut lse)?;
    let [estimate_ms, index_ms, attention_ms] = sparse.times_ms;
    let pairs: u64 = sparse.head_pairs.iter().sum();

    if let Some(path) = &options.output {
        let values = out.to_f32(b)?;
        let bytes = bytemuck::cast_slice(&values);
        write_tensors(path, &[], &[TensorOut { name: "out", dtype: Dtype::F32, shape: vec![heads, n, d], bytes }])?;
    }
    if let (Some(path), Some(index)) = (&options.index_out, &sparse.index) {
        index.save(path)?;
    }
    let comparison = match options.compare_dense {
        true => Some(Layer { extras: Extras::NONE, ..layer }.compare(b, options.repeat, &out, &lse)?),
        false => None,
    };
    Ok(AttendReport {
        device: b.info().id.clone(),
        pattern: match &source {
            Source::Patterns(_) => options.mode.name(),
            Source::Sets(..) => "given".to_owned(),
        },
        heads,
        kv_heads: shape.n_kv_heads,
        tokens: n,
        kv_tokens: shape.kv_len,
        head_dim: d,
        density: pairs as f64 / (heads as u64 * shape.causal_pairs()) as f64,
        pairs,
        head_pairs: sparse.head_pairs,
        estimate_ms,
        index_ms,
        attention_ms,
        tflops: (4 * d as u64 * pairs) as f64 / attention_ms / 1e9,
        comparison,
    })
}

/// A head's attention and what a pattern computes of it.
#[derive(Clone, Debug)]
pub struct HeadMap {
    /// `[side][side]`, queries downwards: the attention mass of each cell, the mean over a few rows of it; each row of
    /// cells sums to 1.
    pub attention: Vec<Vec<f64>>,
    /// The head's index.
    pub index: HostIndex,
}

/// The attention of one head of a file, and what `options.mode` computes of it.
///
/// # Errors
/// As [`attend_file`]; [`Error::Invalid`] where the file has no such head.
pub fn head_map<B: Backend>(b: &B, options: &AttendOptions, head: usize, side: usize) -> Result<HeadMap> {
    const ROWS: usize = 4;
    let layer = Layer::read(b, &options.input)?;
    let s = layer.shape;
    if head >= s.n_heads {
        return Err(Error::invalid(format!("head {head}: the file has {} heads", s.n_heads)));
    }
    let Source::Patterns(patterns) = layer.source(options)? else {
        return Err(Error::invalid("a map is drawn of patterns, not of given sets"));
    };
    let part = HeadGroup::new(&s, head..head + 1);
    let (q, k) = (part.q(layer.q.view()), part.k(layer.k.view()));
    let index = choose(b, &patterns[head..head + 1], &part.shape, q, k)?.build(b)?.to_host(b)?;
    let (q, k) = (q.to_f32(b)?, k.to_f32(b)?);
    let mut attention = vec![vec![0.0; side]; side];
    for (r, cells) in attention.iter_mut().enumerate() {
        for sample in 0..ROWS {
            let query = ((2 * (ROWS * r + sample) + 1) * s.q_len / (2 * ROWS * side)).min(s.q_len - 1);
            let row = &q[query * s.q_stride[0]..][..s.head_dim];
            let scores: Vec<f32> = (0..=s.q_start + query)
                .map(|j| {
                    let key = &k[j * s.k_stride[0]..][..s.head_dim];
                    s.scale * row.iter().zip(key).map(|(a, b)| a * b).sum::<f32>()
                })
                .collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = scores.iter().map(|x| f64::from(x - max).exp()).sum();
            for (j, x) in scores.iter().enumerate() {
                cells[j * side / s.kv_len] += f64::from(x - max).exp() / total / ROWS as f64;
            }
        }
    }
    Ok(HeadMap { attention, index })
}

/// q, k and v of one layer on a device, under the shape's strides.
pub(crate) struct Layer<B: Backend> {
    pub shape: AttentionShape,
    /// What the mode adds to its patterns.
    pub extras: Extras,
    pub q: Tensor<B>,
    pub k: Tensor<B>,
    pub v: Tensor<B>,
}

impl<B: Backend> Layer<B> {
    fn read(b: &B, path: &Path) -> Result<Self> {
        let mut file = TensorFile::open(path)?;
        let [q, k, v] = [heads_of(&file, "q")?, heads_of(&file, "k")?, heads_of(&file, "v")?];
        let [[heads, n, d], [kv_heads, m, _]] = [q, k];
        if k[2] != d {
            return Err(file.error("k", format!("expected head_dim {d} as q has, found {}", k[2])));
        }
        if v != k {
            return Err(file.error("v", format!("expected {k:?} as k has, found {v:?}")));
        }
        if heads % kv_heads != 0 {
            return Err(file.error("k", format!("{kv_heads} KV heads do not divide q's {heads} query heads")));
        }
        if m < n {
            return Err(file.error("k", format!("expected at least q's {n} tokens, found {m}")));
        }
        let shape = AttentionShape {
            n_heads: heads,
            n_kv_heads: kv_heads,
            head_dim: d,
            q_len: n,
            kv_len: m,
            q_start: m - n,
            scale: 1. / (d as f32).sqrt(),
            q_stride: [d, n * d],
            k_stride: [d, m * d],
            v_stride: [d, m * d],
            out_stride: [d, n * d],
        };
        Ok(Self {
            shape,
            extras: Extras::NONE,
            q: upload(b, &mut file, "q", q)?,
            k: upload(b, &mut file, "k", k)?,
            v: upload(b, &mut file, "v", v)?,
        })
    }

    /// A file's layer and, where it holds them too, its sets. The output is token-major.
    pub fn read_with_sets(b: &B, path: &Path) -> Result<(Self, Option<Source>)> {
        let mut layer = Self::read(b, path)?;
        let (heads, d) = (layer.shape.n_heads, layer.shape.head_dim);
        layer.shape.out_stride = [heads * d, d];
        let mut file = TensorFile::open(path)?;
        let sets = match ["v_idx", "s_idx"].iter().any(|name| file.info(name).is_ok()) {
            true => Some(Source::read_sets(&mut file, heads)?),
            false => None,
        };
        Ok((layer, sets))
    }

    /// What the heads compute, by the options.
    fn source(&self, options: &AttendOptions) -> Result<Source> {
        if let Some(path) = &options.index_in {
            return Source::read_sets(&mut TensorFile::open(path)?, self.shape.n_heads);
        }
        if let AttentionMode::Config(config) = options.mode.plain() {
            let layers = config.n_layers();
            config.check_model(layers, self.shape.n_heads)?;
            if options.layer >= layers {
                let layer = options.layer;
                return Err(Error::invalid(format!("layer {layer}: the pattern file has {layers} layers")));
            }
        }
        Ok(Source::Patterns(options.mode.patterns(options.layer, self.shape.n_heads)))
    }

    /// As many passes as asked for; the times are medians.
    fn passes(
        &self,
        b: &B,
        source: &Source,
        repeat: usize,
        keep_index: bool,
        out: &mut Tensor<B>,
        lse: &mut Tensor<B>,
    ) -> Result<Pass> {
        let mut pass = |keep_index| self.pass(b, source, keep_index, out.view_mut(), Some(lse.view_mut()));
        let mut first = pass(keep_index)?;
        if repeat > 1 {
            let times = (0..repeat).map(|_| Ok(pass(false)?.times_ms));
            let times = times.collect::<Result<Vec<_>>>()?;
            first.times_ms = [0, 1, 2].map(|stage| median(times.iter().map(|pass| pass[stage]).collect()));
        }
        Ok(first)
    }

    /// One pass, head group by head group, each stage waited for and timed.
    pub fn pass(
        &self,
        b: &B,
        source: &Source,
        keep_index: bool,
        mut out: ViewMut<B>,
        mut lse: Option<ViewMut<B>>,
    ) -> Result<Pass> {
        let s = &self.shape;
        let mut host = HostIndex::empty(0, s.q_len, s.kv_len, s.q_start);
        let mut pass = Pass { times_ms: [0.; 3], head_pairs: Vec::new(), index: None };
        for heads in head_groups(&source.patterns(), s, IndexLimits::of(b)) {
            let part = HeadGroup::new(s, heads.clone());
            let (q, k, v) = (part.q(self.q.view()), part.k(self.k.view()), part.v(self.v.view()));

            let clock = Clock::start(b)?;
            let index: SparseIndex<B> = match source {
                Source::Patterns(patterns) => {
                    let options = AttentionOptions { extras: self.extras, ..AttentionOptions::EXACT };
                    let chosen = choose_with(b, &patterns[heads.clone()], &part.shape, q, k, options)?;
                    clock.lap(b, &mut pass.times_ms[0])?;
                    let clock = Clock::start(b)?;
                    let index = chosen.build(b)?;
                    clock.lap(b, &mut pass.times_ms[1])?;
                    index
                }
                Source::Sets(columns, offsets) => {
                    let index = from_sets(b, &columns[heads.clone()], &offsets[heads.clone()], &part.shape)?;
                    clock.lap(b, &mut pass.times_ms[1])?;
                    index
                }
            };
            let clock = Clock::start(b)?;
            let lse = lse.as_mut().map(|lse| lse.reborrow().rows(heads));
            let (qkv, into) = ([q, k, v], part.out(&mut out));
            ops::attention_skipping(b, &part.shape, qkv, &index, into, lse, self.extras.skip_softmax)?;
            clock.lap(b, &mut pass.times_ms[2])?;

            let pairs = index.pairs.to_u32(b)?;
            let per_head = pairs.chunks_exact(index.layout.row_blocks());
            pass.head_pairs.extend(per_head.map(|rows| rows.iter().copied().map(u64::from).sum::<u64>()));
            if keep_index {
                host.append_heads(&index.to_host(b)?);
            }
        }
        pass.index = keep_index.then_some(host);
        Ok(pass)
    }

    /// Dense attention, and what `out` and `lse` lack of it.
    fn compare(&self, b: &B, repeat: usize, out: &Tensor<B>, lse: &Tensor<B>) -> Result<Comparison> {
        let (heads, n, d) = (self.shape.n_heads, self.shape.q_len, self.shape.head_dim);
        let mut dense_out = Tensor::alloc(b, DType::F32, [heads, n, d])?;
        let mut dense_lse = Tensor::alloc(b, DType::F32, [heads, n])?;
        let source = Source::Patterns(vec![HeadPattern::Dense; heads]);
        let dense = self.passes(b, &source, repeat, false, &mut dense_out, &mut dense_lse)?;
        let (got, want) = (out.to_f32(b)?, dense_out.to_f32(b)?);
        let head_recall = kept_mass(&lse.to_f32(b)?, &dense_lse.to_f32(b)?, heads)?;
        let (mut difference, mut norm, mut max_abs) = (0., 0., 0f64);
        for (got, want) in got.iter().zip(&want) {
            let (delta, want) = (f64::from(*got) - f64::from(*want), f64::from(*want));
            difference += delta * delta;
            norm += want * want;
            max_abs = max_abs.max(delta.abs());
        }
        Ok(Comparison {
            // All-zero values make an all-zero output, which nothing differs from.
            rel_l2: if norm > 0. { (difference / norm).sqrt() } else { difference.sqrt() },
            max_abs,
            recall: head_recall.iter().sum::<f64>() / heads as f64,
            head_recall,
            dense_ms: dense.times_ms[2],
        })
    }
}

impl Source {
    fn read_sets(file: &mut TensorFile, heads: usize) -> Result<Self> {
        let columns = read_sets(file, "v_idx", heads, |a, b| a < b, "ascending")?;
        let offsets = read_sets(file, "s_idx", heads, |a, b| a > b, "descending")?;
        Ok(Self::Sets(columns, offsets))
    }

    /// By which heads are grouped: sets count as vertical-slash heads of their sizes.
    fn patterns(&self) -> Vec<HeadPattern> {
        match self {
            Self::Patterns(patterns) => patterns.clone(),
            Self::Sets(columns, offsets) => columns
                .iter()
                .zip(offsets)
                .map(|(c, o)| HeadPattern::VerticalSlash { columns: c.len(), offsets: o.len() })
                .collect(),
        }
    }
}

/// A stretch of time on a device, from an idle device to an idle device.
struct Clock(Instant);

impl Clock {
    fn start<B: Backend>(b: &B) -> Result<Self> {
        b.synchronize()?;
        Ok(Self(Instant::now()))
    }

    /// Waits for the device and adds the milliseconds since the start.
    fn lap<B: Backend>(self, b: &B, sum: &mut f64) -> Result<()> {
        b.synchronize()?;
        *sum += self.0.elapsed().as_secs_f64() * 1e3;
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2. }
}

/// The shape of a tensor as `[heads, tokens, head_dim]`; two dimensions are one head.
fn heads_of(file: &TensorFile, name: &str) -> Result<[usize; 3]> {
    let (_, shape) = file.info(name)?;
    let shape = match *shape {
        [n, d] => [1, n, d],
        [h, n, d] => [h, n, d],
        _ => {
            return Err(
                file.error(name, format!("expected [heads, tokens, head_dim] or [tokens, head_dim], found {shape:?}"))
            );
        }
    };
    if shape.contains(&0) || shape.iter().any(|&n| n > HeadPattern::MAX_ARGUMENT) {
        let most = HeadPattern::MAX_ARGUMENT;
        return Err(file.error(name, format!("expected dimensions of 1 to {most}, found {shape:?}")));
    }
    Ok(shape)
}

/// A tensor of the file on the device, as activations. Values that are not finite, or not any more in the backend's
/// activation type, are refused: they would spread to whole rows of the output.
fn upload<B: Backend>(b: &B, file: &mut TensorFile, name: &str, [heads, n, d]: [usize; 3]) -> Result<Tensor<B>> {
    let dtype = match file.info(name)?.0 {
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        other => return Err(file.error(name, format!("expected F16, BF16 or F32, found {other}"))),
    };
    let (act, bytes) = (b.activation(), file.bytes(name)?);
    let mut converted = Vec::with_capacity(act.bytes(heads * n * d));
    for (head, part) in bytes.chunks_exact(dtype.bytes(n * d)).enumerate() {
        let values = decode_f32(dtype, part)?;
        let place = |at: usize| format!("head {head}, row {}, element {}", at / d, at % d);
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(file.error(name, format!("{}: expected a finite value, found {}", place(at), values[at])));
        }
        let start = converted.len();
        converted.extend_from_slice(&encode_f32(act, &values)?);
        if dtype != act
            && let Some(at) = decode_f32(act, &converted[start..])?.iter().position(|v| !v.is_finite())
        {
            let device = &b.info().id;
            return Err(file.error(name, format!("{}: {} is beyond {act} of {device}", place(at), values[at])));
        }
    }
    Tensor::from_bytes(b, act, [heads, n, d], &converted)
}

/// Given sets, one list a head: i32 `[H, max]` (or `[max]` for one head), in order, padded with -1.
fn read_sets(
    file: &mut TensorFile,
    name: &str,
    heads: usize,
    in_order: fn(i32, i32) -> bool,
    order: &str,
) -> Result<Vec<Vec<u32>>> {
    let (shape, values) = file.i32s(name)?;
    let width = match shape[..] {
        [width] if heads == 1 && width > 0 => width,
        [h, width] if h == heads && width > 0 => width,
        _ => return Err(file.error(name, format!("expected [{heads}, _], found {shape:?}"))),
    };
    let list = |(head, row): (usize, &[i32])| {
        let len = row.iter().position(|&v| v == -1).unwrap_or(width);
        let fault = |what: String| Err(file.error(name, format!("head {head}: {what}")));
        if let Some(&value) = row[..len].iter().find(|&&v| v < 0).or(row[len..].iter().find(|&&v| v != -1)) {
            return fault(format!("expected values from 0 on, then padding with -1, found {value}"));
        }
        if let Some(pair) = row[..len].windows(2).find(|pair| !in_order(pair[0], pair[1])) {
            return fault(format!("expected {order} values, found {} before {}", pair[0], pair[1]));
        }
        Ok(row[..len].iter().map(|&v| v as u32).collect())
    };
    values.chunks_exact(width).enumerate().map(list).collect()
}
