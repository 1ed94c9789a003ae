//! Scores, choices and the index: what runs before attention, with no read-back.

use super::device::{Launch, Slashes, arg};
use super::elementwise::require_vectors;
use super::{Cuda, address, address_mut, kernels};
use crate::Result;
use crate::backend::params::*;
use crate::backend::{IndexChoice, IndexSlices, IndexSlicesMut, Slice, SliceMut};

/// Keys of one block of the score kernels: 16 tiles, so that the load of Q (one tile) is a few percent; of short prompts
/// down to 4, until there are [`SCORE_BLOCKS`] a multiprocessor.
const SPLIT_KEYS: [u32; 2] = [256, 1024];
/// Twice as many as share a multiprocessor.
const SCORE_BLOCKS: u32 = 6;
/// Scores of one block of the top-k kernels (`PART` in select_top_k.cu).
const TOP_K_PART: u32 = 8192;
/// Rows that one block takes by itself (`SHORT` there).
const TOP_K_SHORT: u32 = 32768;
/// Row blocks of one block of `count_ranges` (`COUNTED` in build_index.cu).
const COUNTED_ROWS: u32 = 32;
/// Row blocks of one block of `place_rows` (`PLACE` there).
const PLACED_ROWS: u32 = 1024;

pub(super) fn score_last_queries(
    b: &Cuda,
    p: &ScoreLastQueriesParams,
    plan: Slice<Cuda>,
    [q, k]: [Slice<Cuda>; 2],
    scores: [SliceMut<Cuda>; 2],
) -> Result<()> {
    let (plan, q, k) = (address(&plan), address(&q), address(&k));
    let [columns, offsets] = scores.map(|s| address_mut(&s));
    let strides = [p.head_dim, p.q_row_stride, p.q_head_stride, p.k_row_stride, p.k_head_stride];
    require_vectors("score_last_queries", &[q, k], &strides)?;
    let bytes = kernels::shared_memory::score_last_queries(p.head_dim as usize);
    let kernel =
        kernels::SCORE_LAST_QUERIES.with(&[("BF16", &b.bf16()), ("HEAD_DIM", &p.head_dim), ("SMEM_BYTES", &bytes)]);
    let share = (u64::from(p.n_heads) * u64::from(p.kv_len)).div_ceil(u64::from(SCORE_BLOCKS * b.limits.processors));
    let split_keys = (share as u32).next_multiple_of(64).clamp(SPLIT_KEYS[0], SPLIT_KEYS[1]);
    let splits = p.kv_len.div_ceil(split_keys);
    let partial = b.alloc_buffer(p.n_heads as usize * splits as usize * 64 * 8)?;
    let stats = b.alloc_buffer(p.n_heads as usize * 64 * 8)?;
    let (partial, stats) = (&partial.address(), &stats.address());
    let tiles = Launch::new([splits, p.n_heads, 1], 128).shared(bytes);
    let merge = Launch::new([p.n_heads, 1, 1], 512);
    let (plan, q, k, columns, offsets) = (&plan, &q, &k, &columns, &offsets);
    let stats_args = [arg(p), arg(&split_keys), arg(plan), arg(q), arg(k), arg(partial), arg(offsets)];
    b.launch(&kernel, "last_query_stats", tiles, &stats_args)?;
    b.launch(&kernel, "last_query_merge", merge, &[arg(plan), arg(&splits), arg(partial), arg(stats)])?;
    let score_args = [arg(p), arg(&split_keys), arg(plan), arg(q), arg(k), arg(stats), arg(columns), arg(offsets)];
    b.launch(&kernel, "last_query_scores", tiles, &score_args)
}

pub(super) fn select_top_k(
    b: &Cuda,
    p: &SelectTopKParams,
    scores: Slice<Cuda>,
    counts: Slice<Cuda>,
    indices: SliceMut<Cuda>,
) -> Result<()> {
    let kernel = kernels::SELECT_TOP_K.with(&[("BF16", &b.bf16())]);
    let (scores, counts, indices) = (address(&scores), address(&counts), address_mut(&indices));
    if p.len <= TOP_K_SHORT {
        let args = [arg(p), arg(&scores), arg(&counts), arg(&indices)];
        return b.launch(&kernel, "top_k_row", Launch::new([p.rows, 1, 1], 1024), &args);
    }
    let parts = p.len.div_ceil(TOP_K_PART);
    let bins = b.alloc_buffer(p.rows as usize * 3 * 2048 * 4)?;
    b.device.zero(&bins)?;
    let taken = b.alloc_buffer(p.rows as usize * parts as usize * 8)?;
    let (bins, taken) = (&bins.address(), &taken.address());
    let launch = Launch::new([parts, p.rows, 1], 256);
    for round in 0..3u32 {
        let args = [arg(p), arg(&round), arg(&scores), arg(&counts), arg(bins)];
        b.launch(&kernel, "top_k_histogram", launch, &args)?;
    }
    b.launch(&kernel, "top_k_count", launch, &[arg(p), arg(&scores), arg(&counts), arg(bins), arg(taken)])?;
    let args = [arg(p), arg(&scores), arg(&counts), arg(bins), arg(taken), arg(&indices)];
    b.launch(&kernel, "top_k_write", launch, &args)
}

pub(super) fn pool_blocks(b: &Cuda, p: &PoolBlocksParams, x: Slice<Cuda>, out: SliceMut<Cuda>) -> Result<()> {
    let kernel = kernels::POOL_BLOCKS.with(&[("BF16", &b.bf16())]);
    let (x, out) = (address(&x), address_mut(&out));
    require_vectors("pool_blocks", &[x], &[p.head_dim, p.row_stride, p.head_stride])?;
    b.launch(&kernel, "pool_blocks", Launch::new([p.blocks, p.n_heads, 1], 128), &[arg(p), arg(&x), arg(&out)])
}

pub(super) fn score_blocks(
    b: &Cuda,
    p: &ScoreBlocksParams,
    plan: Slice<Cuda>,
    pooled: [Slice<Cuda>; 2],
    scores: SliceMut<Cuda>,
) -> Result<()> {
    let kernel = kernels::SCORE_BLOCKS.with(&[("BF16", &b.bf16())]);
    let (plan, [q, k], scores) = (address(&plan), pooled.map(|s| address(&s)), address_mut(&scores));
    let launch = Launch::new([p.key_blocks.div_ceil(64), p.band_len.div_ceil(64), p.n_heads], 256);
    b.launch(&kernel, "score_blocks", launch, &[arg(p), arg(&plan), arg(&q), arg(&k), arg(&scores)])
}

pub(super) fn select_blocks(
    b: &Cuda,
    p: &ScoreBlocksParams,
    plan: Slice<Cuda>,
    scores: Slice<Cuda>,
    block_mask: SliceMut<Cuda>,
) -> Result<()> {
    let kernel = kernels::SELECT_BLOCKS.with(&[("BF16", &b.bf16())]);
    let (plan, scores, mask) = (address(&plan), address(&scores), address_mut(&block_mask));
    let launch = Launch::new([p.band_len, p.n_heads, 1], 256);
    b.launch(&kernel, "select_blocks", launch, &[arg(p), arg(&plan), arg(&scores), arg(&mask)])
}

/// Scores of one block of the mass kernels (`PART` in count_by_mass.cu).
const MASS_PART: u32 = 8192;
/// `BINS` in shared/mass.cu. count_by_mass.cu keeps two numbers behind them.
const BINS: usize = 2048;

pub(super) fn count_by_mass(
    b: &Cuda,
    p: &CountByMassParams,
    budget: Slice<Cuda>,
    scores: Slice<Cuda>,
    counts: SliceMut<Cuda>,
) -> Result<()> {
    let kernel = kernels::COUNT_BY_MASS.with(&[("BF16", &b.bf16())]);
    let (budget, scores, counts) = (address(&budget), address(&scores), address_mut(&counts));
    let bins = b.alloc_buffer(p.rows as usize * (BINS + 2) * 4)?;
    b.device.zero(&bins)?;
    let bins = &bins.address();
    let parts = Launch::new([p.len.div_ceil(MASS_PART), p.rows, 1], 256);
    b.launch(&kernel, "mass_histogram", parts, &[arg(p), arg(&budget), arg(&scores), arg(bins)])?;
    b.launch(&kernel, "mass_count", parts, &[arg(p), arg(&budget), arg(&scores), arg(bins)])?;
    let rows = Launch::new([p.rows, 1, 1], 32);
    b.launch(&kernel, "mass_finish", rows, &[arg(p), arg(&budget), arg(bins), arg(&counts)])
}

pub(super) fn group_offsets(
    b: &Cuda,
    p: &GroupOffsetsParams,
    budget: Slice<Cuda>,
    scores: SliceMut<Cuda>,
) -> Result<()> {
    let kernel = kernels::GROUP_OFFSETS.with(&[("BF16", &b.bf16())]);
    let (budget, scores) = (address(&budget), address_mut(&scores));
    let launch = Launch::new([p.len.div_ceil(512), p.rows, 1], 256);
    b.launch(&kernel, "group_offsets", launch, &[arg(p), arg(&budget), arg(&scores)])
}

pub(super) fn settle_heads(
    b: &Cuda,
    p: &SettleHeadsParams,
    inputs: [Slice<Cuda>; 3],
    results: [SliceMut<Cuda>; 3],
) -> Result<()> {
    let kernel = kernels::SETTLE_HEADS.with(&[("BF16", &b.bf16())]);
    let [budget, columns, blocks] = &inputs.map(|s| address(&s));
    let [plan, column_count, offset_count] = &results.map(|s| address_mut(&s));
    let real = b.alloc_buffer(p.n_heads as usize * p.key_blocks as usize * 4)?;
    let real = &real.address();
    let warps = Launch::new([p.key_blocks.div_ceil(8), p.n_heads, 1], 256);
    b.launch(&kernel, "block_mass", warps, &[arg(p), arg(plan), arg(columns), arg(real)])?;
    #[rustfmt::skip]
    let args = [
        arg(p), arg(budget), arg(real), arg(blocks), arg(plan), arg(column_count), arg(offset_count),
    ];
    b.launch(&kernel, "settle_heads", Launch::new([p.n_heads, 1, 1], 256), &args)
}

pub(super) fn fold_rows(b: &Cuda, p: &FoldRowsParams, x: Slice<Cuda>, out: SliceMut<Cuda>) -> Result<()> {
    let kernel = kernels::FOLD_ROWS.with(&[("BF16", &b.bf16())]);
    let (x, out) = (address(&x), address_mut(&out));
    require_vectors("fold_rows", &[x, out], &[p.head_dim, p.row_stride, p.head_stride])?;
    let chunks = p.len.div_ceil(p.fold) * p.fold * (p.head_dim / 8);
    let launch = Launch::new([chunks.div_ceil(256), p.n_heads, 1], 256);
    b.launch(&kernel, "fold_rows", launch, &[arg(p), arg(&x), arg(&out)])
}

pub(super) fn weigh_antidiagonals(
    b: &Cuda,
    p: &WeighAntidiagonalsParams,
    plan: Slice<Cuda>,
    products: Slice<Cuda>,
    scores: SliceMut<Cuda>,
) -> Result<()> {
    let kernel = kernels::WEIGH_ANTIDIAGONALS.with(&[("BF16", &b.bf16())]);
    let (plan, products, scores) = (address(&plan), address(&products), address_mut(&scores));
    let launch = Launch::new([p.band_len, p.n_heads, 1], 256);
    b.launch(&kernel, "weigh_antidiagonals", launch, &[arg(p), arg(&plan), arg(&products), arg(&scores)])
}

pub(super) fn share_scores(b: &Cuda, p: &ShareScoresParams, plan: Slice<Cuda>, scores: SliceMut<Cuda>) -> Result<()> {
    let kernel = kernels::SHARE_SCORES.with(&[("BF16", &b.bf16())]);
    let (plan, scores) = (address(&plan), address_mut(&scores));
    let launch = Launch::new([p.len.div_ceil(256), p.rows / p.share, 1], 256);
    b.launch(&kernel, "share_scores", launch, &[arg(p), arg(&plan), arg(&scores)])
}

pub(super) fn weigh_blocks(
    b: &Cuda,
    p: &WeighBlocksParams,
    plan: Slice<Cuda>,
    scores: Slice<Cuda>,
    mass: SliceMut<Cuda>,
) -> Result<()> {
    let kernel = kernels::WEIGH_BLOCKS.with(&[("BF16", &b.bf16())]);
    let (plan, scores, mass) = (address(&plan), address(&scores), address_mut(&mass));
    let launch = Launch::new([p.band_len, p.n_heads, 1], 256);
    b.launch(&kernel, "weigh_blocks", launch, &[arg(p), arg(&plan), arg(&scores), arg(&mass)])
}

pub(super) fn select_weighed_blocks(
    b: &Cuda,
    p: &WeighBlocksParams,
    inputs: [Slice<Cuda>; 3],
    block_mask: SliceMut<Cuda>,
) -> Result<()> {
    let kernel = kernels::SELECT_WEIGHED_BLOCKS.with(&[("BF16", &b.bf16())]);
    let ([plan, scores, mass], mask) = (&inputs.map(|s| address(&s)), address_mut(&block_mask));
    let launch = Launch::new([p.band_len, p.n_heads, 1], 256);
    let args = [arg(p), arg(plan), arg(scores), arg(mass), arg(&mask)];
    b.launch(&kernel, "select_weighed_blocks", launch, &args)
}

pub(super) fn build_index(
    b: &Cuda,
    p: &BuildIndexParams,
    choice: IndexChoice<Cuda>,
    out: IndexSlicesMut<Cuda>,
) -> Result<()> {
    let kernel = kernels::BUILD_INDEX.with(&[("BF16", &b.bf16())]);
    let [plan, columns, offsets, offset_count, block_mask] =
        &[choice.plan, choice.columns, choice.offsets, choice.offset_count, choice.block_mask].map(|s| address(&s));
    let [row_ranges, ranges, keep, window, pairs] =
        &[out.row_ranges, out.ranges, out.keep, out.window, out.pairs].map(|s| address_mut(&s));

    // one run an offset, and the chains that they make
    let slots = (p.n_heads * p.offset_capacity) as usize;
    let cover_words = (p.kv_len + 64) / 32 + 1;
    let parts = [8, 16, 8, 4, 4].map(|bytes| slots * bytes);
    let (room, cover) = (b.alloc_buffer(parts.iter().sum())?, (p.n_heads * cover_words) as usize * 4);
    let cover = b.alloc_buffer(cover)?;
    let mut next = room.address();
    let [runs, links, chain, depth, gaps] = parts.map(|bytes| {
        next += bytes as u64;
        next - bytes as u64
    });
    let slashes = &Slashes { addresses: [runs, links, depth, chain, cover.address(), gaps], cover_words, padding: 0 };
    let args = [arg(p), arg(plan), arg(offsets), arg(offset_count), arg(slashes)];
    let launch = Launch::new([p.offset_capacity.div_ceil(256), p.n_heads, 1], 256);
    b.launch(&kernel, "slash_gaps", Launch::new([p.n_heads, 1, 1], 1024), &args)?;
    b.launch(&kernel, "slash_runs", launch, &args)?;
    b.launch(&kernel, "link_runs", Launch::new([p.n_heads, 1, 1], 1024), &args)?;

    // how many ranges each row block has, where they go, and all the rest
    let counted = p.row_blocks.div_ceil(COUNTED_ROWS);
    let totals = b.alloc_buffer((counted * p.n_heads) as usize * 4)?;
    let totals = &totals.address();
    let rows = Launch::new([counted, p.n_heads, 1], 32 * COUNTED_ROWS);
    #[rustfmt::skip]
    let args = [
        arg(p), arg(plan), arg(offsets), arg(offset_count), arg(block_mask), arg(slashes), arg(row_ranges), arg(totals),
    ];
    b.launch(&kernel, "count_ranges", rows, &args)?;
    let place = Launch::new([(p.n_heads * p.row_blocks).div_ceil(PLACED_ROWS), 1, 1], PLACED_ROWS);
    b.launch(&kernel, "place_rows", place, &[arg(p), arg(totals), arg(row_ranges)])?;
    let warps = Launch::new([p.row_blocks.div_ceil(8), p.n_heads, 1], 256);
    #[rustfmt::skip]
    let args = [
        arg(p), arg(plan), arg(columns), arg(offsets), arg(offset_count), arg(block_mask), arg(slashes), arg(row_ranges),
        arg(ranges), arg(keep), arg(window), arg(pairs),
    ];
    b.launch(&kernel, "fill_rows", warps, &args)
}

pub(super) fn clip_index(
    b: &Cuda,
    p: &ClipIndexParams,
    index: IndexSlices<Cuda>,
    out: [SliceMut<Cuda>; 3],
) -> Result<()> {
    let kernel = kernels::CLIP_INDEX.with(&[("BF16", &b.bf16())]);
    let [whole_rows, whole_ranges, columns, whole_keep] =
        &[index.row_ranges, index.ranges, index.columns, index.keep].map(|s| address(&s));
    let [row_ranges, ranges, keep] = &out.map(|s| address_mut(&s));
    let warps = Launch::new([p.row_blocks.div_ceil(4), p.n_heads, 1], 128);
    #[rustfmt::skip]
    let args = [
        arg(p), arg(whole_rows), arg(whole_ranges), arg(columns), arg(whole_keep), arg(row_ranges), arg(ranges), arg(keep),
    ];
    b.launch(&kernel, "clip_index", warps, &args)
}
