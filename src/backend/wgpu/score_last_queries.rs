//! Column and offset scores of vertical-slash heads from the last queries, in three passes that store no probabilities.

use super::attention::{HEAD_DIMS, by_head, eighths, kernel_head_dim, strided, strided_extent, vectors};
use super::attention_rows::may_have_rows;
use super::bands::parts;
use super::buffer::Binding;
use super::launch::{LastQueriesBand, LastQueriesMerge};
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::{HeadPlan, ScoreLastQueriesParams};
use crate::backend::{Slice, SliceMut};
use crate::{DType, Result};

/// Tiles of 64 keys that one workgroup goes through. Pass 3 does one tile more than its span.
const SPAN_TILES: u32 = 16;

/// Rows that scratch keeps for each head: the most queries that score.
const ROWS: u64 = 64;

/// How scores are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// In f32, everywhere.
    Dot,
    /// On cooperative matrices of known layout, where rows lie at multiples of 16 bytes: 0.41 + 1.00 ms instead of 0.73 +
    /// 1.57 with keys through workgroup memory (32 heads of 128 on 8, 131,072 keys, an H100).
    Keys,
}

impl Form {
    /// Passes 1 and 3.
    fn kernels(self) -> [&'static str; 2] {
        match self {
            Self::Dot => ["score_last_queries_rows", "score_last_queries_sums"],
            Self::Keys => ["score_last_queries_rows_coop", "score_last_queries_sums_coop"],
        }
    }

    fn specialisation(self, traits: &Traits, kernel: &'static str, head_dim: u32) -> Specialisation {
        let kernel = Specialisation::new(kernel, traits)
            .constant("HEAD_DIM", head_dim)
            .constant("SPAN_TILES", SPAN_TILES)
            .constant("VERTICAL_SLASH", HeadPlan::VERTICAL_SLASH);
        match self {
            Self::Dot => kernel
                .constant("ROWS_MINE", 8)
                .constant("VECS_MINE", 1)
                .with("invocation")
                .with("dot_tile")
                .with("last_tile_dot"),
            Self::Keys => kernel.cooperative().with("invocation_subgroup").with("last_tile_keys").by_rows().by_words(),
        }
    }
}

/// The longest head whose queries fit beside the probabilities.
const MAX_KEYS_HEAD_DIM: u32 = 128;

fn merge(traits: &Traits) -> Specialisation {
    Specialisation::new("score_last_queries_merge", traits)
        .constant("VERTICAL_SLASH", HeadPlan::VERTICAL_SLASH)
        .with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    for head_dim in HEAD_DIMS {
        for form in [Form::Dot, Form::Keys] {
            if form == Form::Dot || may_have_rows(traits) && head_dim <= MAX_KEYS_HEAD_DIM {
                list.extend(form.kernels().map(|kernel| form.specialisation(traits, kernel, head_dim)));
            }
        }
    }
    list.push(merge(traits));
}

pub(super) fn score_last_queries(
    b: &Wgpu,
    p: &ScoreLastQueriesParams,
    [plan, q, k]: [Slice<Wgpu>; 3],
    [column_score, offset_score]: [SliceMut<Wgpu>; 2],
) -> Result<()> {
    const OP: &str = "score_last_queries";
    let plan = Binding::from(plan);
    let (column_score, offset_score) = (Binding::from(column_score), Binding::from(offset_score));
    let (q_stride, k_stride) = ([p.q_row_stride, p.q_head_stride], [p.k_row_stride, p.k_head_stride]);
    let (q, k) = (vectors(OP, "q", q, q_stride)?, vectors(OP, "k", k, k_stride)?);

    let spans = p.kv_len.div_ceil(64 * SPAN_TILES);
    let group = p.n_heads / p.n_kv_heads;
    let queries = p.q_len - p.last_q..p.q_len;
    let (partial_head, stats_head) = (u64::from(spans) * ROWS * 8, ROWS * 8);
    let score_head = 4 * u64::from(p.kv_len);
    let mut q_extent = strided_extent(q, q_stride, p.head_dim, None);
    // All the last queries in every band.
    q_extent.one += u64::from(p.last_q - 1) * q_extent.row;
    q_extent.row = 0;
    // Where a KV head is longer than a binding, its spans go in several dispatches. Each needs one tile of keys before its own.
    let span_keys = 64 * SPAN_TILES;
    let most_keys = b.keys_bound(&[(k, k_stride[0])], p.head_dim, 64).saturating_sub(64) / span_keys * span_keys;
    let at_once = if b.keys_bound(&[(k, k_stride[0])], p.head_dim, 64) >= p.kv_len {
        spans
    } else {
        (most_keys / span_keys).max(1)
    };
    let bound = p.kv_len.min(at_once * span_keys + 64);
    let extents =
        [q_extent, strided_extent(k, k_stride, p.head_dim, Some(bound)), by_head(partial_head), by_head(score_head)];
    let head_dim = kernel_head_dim(p.head_dim);
    let by_keys = head_dim <= MAX_KEYS_HEAD_DIM && eighths(&[q, k], &[q_stride, k_stride]) && b.has_rows();
    let form = if by_keys { Form::Keys } else { Form::Dot };
    let [rows, sums] = form.kernels();
    for band in b.bands(OP, p.n_heads, group, [1, 1], &extents)? {
        let heads = band.heads.clone();
        let n = heads.end - heads.start;
        let scratch = |bytes: u64| b.create_buffer((u64::from(n) * bytes) as usize, false);
        let (partial, stats) = (scratch(partial_head)?, scratch(stats_head)?);
        let pairs = |buffer| Binding { buffer, byte_offset: 0, byte_len: buffer.len, dtype: DType::F32, lanes: 2 };
        let plan = parts(plan, &heads, size_of::<HeadPlan>() as u64);
        let q = strided(q, q_stride, heads.clone(), queries.clone(), p.head_dim);
        let part = LastQueriesBand {
            heads: n,
            group_size: group,
            head_in_group: heads.start % group,
            head_dim: p.head_dim,
            kv_len: p.kv_len,
            last_q: p.last_q,
            first_position: p.q_start + queries.start,
            spans,
            span_first: 0,
            span_count: spans,
            scale: p.scale,
            q_row_stride: p.q_row_stride,
            q_head_stride: p.q_head_stride,
            k_row_stride: p.k_row_stride,
            k_head_stride: p.k_head_stride,
        };
        let traits = &b.context.traits;
        // A pass over all spans, as many at a time as can be bound.
        let pass = |kernel, behind_k: &[Binding]| -> Result<()> {
            let specialisation = form.specialisation(traits, kernel, head_dim);
            for first in (0..spans).step_by(at_once as usize) {
                let count = at_once.min(spans - first);
                let start = (first * span_keys).saturating_sub(64);
                let keys = start..p.kv_len.min((first + count) * span_keys);
                let part = LastQueriesBand { span_first: first, span_count: count, ..part };
                let k = strided(k, k_stride, band.kv_heads(group), keys, p.head_dim);
                let bindings: Vec<_> = [plan, q, k].into_iter().chain(behind_k.iter().copied()).collect();
                let before = u64::from(start) * u64::from(p.k_row_stride) * k.element_bytes();
                let groups = fold(u64::from(n) * u64::from(count));
                b.dispatch_behind(&specialisation, &part, &bindings, &[(2, before)], groups)?;
            }
            Ok(())
        };
        pass(rows, &[pairs(&partial)])?;
        let merged = [plan, pairs(&partial), pairs(&stats)];
        b.dispatch(&merge(traits), &LastQueriesMerge { heads: n, spans }, &merged, fold(u64::from(n)))?;
        let scores = [parts(column_score, &heads, score_head), parts(offset_score, &heads, score_head)];
        pass(sums, &[pairs(&stats), scores[0], scores[1]])?;
    }
    Ok(())
}
