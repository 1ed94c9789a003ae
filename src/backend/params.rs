//! The numbers of each operation: the same bytes are the Rust struct, the WGSL immediate or uniform and the CUDA
//! kernel's argument, so only `u32` and `f32` fields are allowed. Lengths are in elements unless a name says bytes.

use bytemuck::{Pod, Zeroable};

/// Queries per row block and keys per key block: the granularity of a sparse index (paper, section 3; official kernels).
pub const BLOCK: usize = 64;

/// Most keys of a call: a row block's pairs are counted in 32 bits.
pub const MAX_KEYS: usize = u32::MAX as usize / BLOCK;

/// The value of `dense_above` with which an index is exactly what its patterns chose, as in the official code.
///
/// `dense_above` says, in 256ths of the causal pairs, from which density on it pays to compute everything:
/// [`super::Backend::dense_above`] is what a backend's kernels measured. A row block of a vertical-slash or block-sparse head
/// that would compute more becomes one dense range, on the device, and a head that must compute more by its settings is
/// planned as dense, so that nothing is estimated for it. More pairs than chosen are computed then, never fewer.
pub const EXACT: u32 = 256;

/// [`AttentionParams::skip_below`] of attention that skips no tile.
pub const SKIP_NOTHING: f32 = f32::MIN;

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty),* }

        impl $name {
            /// Field names in order, for the test that compares them with the shaders' structs.
            pub const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    )*};
}
#[cfg(feature = "wgpu")]
pub(crate) use params;

params! {
    /// `out[i, :] = table[ids[i], :]`.
    EmbedParams {
        /// Tokens.
        n_tokens: u32,
        /// Columns of the table.
        hidden: u32,
        /// Rows of the table; ids are below it.
        vocab: u32,
    }

    /// `out[r, g, c] = x[r, g, c] / sqrt(mean(x[r, g, :]^2) + eps) * weight[c]`: each group of a row by itself, one group
    /// (the whole row) in the norms between layers, one a head in Qwen3's norms of q and k.
    RmsNormParams {
        /// Rows.
        rows: u32,
        /// Groups of `cols` columns in each row, side by side.
        groups: u32,
        /// Columns of a group.
        cols: u32,
        /// Distance between rows of `x`.
        x_stride: u32,
        /// Distance between rows of `out`.
        out_stride: u32,
        /// Added inside the root.
        eps: f32,
    }

    /// `out[r, c] (+)= sum_k x[r, k] * w[c, k] + bias[c]`.
    MatmulParams {
        /// Rows of `x` and `out`.
        m: u32,
        /// Columns of `out`: rows of `w`.
        n: u32,
        /// Inner length: columns of `x` and `w`.
        k: u32,
        /// Distance between rows of `x`.
        x_stride: u32,
        /// Distance between rows of `out`.
        out_stride: u32,
        /// 1 adds to what `out` holds (the residual), 0 overwrites it.
        accumulate: u32,
    }

    /// Rotary position embedding in place.
    ///
    /// The angle of pair `i` at position `p` is `2 pi * frac(p * turns[i] / 2^64)` turns, where `turns[i]` is the
    /// frequency in turns per position as a 64-bit fraction: exact at any position, in integers, with no table.
    RopeParams {
        /// Tokens.
        n_tokens: u32,
        /// Heads.
        n_heads: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Leading elements of a head that rotate (even).
        rotary_dim: u32,
        /// Distance between tokens of `x`.
        row_stride: u32,
        /// Position of the first token.
        position_start: u32,
        /// 1: pairs are (2i, 2i + 1), 0: (i, i + rotary_dim / 2).
        interleaved: u32,
        /// Multiplies cosine and sine (YaRN, LongRoPE); 1 otherwise.
        attention_factor: f32,
    }

    /// `out[r, c] = silu(gate_up[r, c]) * gate_up[r, ffn + c]`.
    SiluMulParams {
        /// Rows.
        rows: u32,
        /// Columns of `out`; `gate_up` has twice as many.
        ffn: u32,
    }

    /// `out[i] += x[i]`.
    AddParams {
        /// Elements.
        len: u32,
    }

    /// `out[i] = x[i]` in another element type.
    CastParams {
        /// Elements.
        len: u32,
    }

    /// Copies `k`, `v` `[n_tokens, n_kv_heads, head_dim]` into the caches `[n_kv_heads, capacity, head_dim]`.
    AppendKvParams {
        /// Tokens.
        n_tokens: u32,
        /// KV heads.
        n_kv_heads: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Distance between tokens of `k` and of `v`.
        row_stride: u32,
        /// Tokens a cache can hold.
        capacity: u32,
        /// Where the first token goes.
        position: u32,
    }

    /// Rows of a cache `[n_kv_heads, capacity, head_dim]` and the same in blocks `[n_kv_heads, capacity, head_dim / 32, 9]`.
    PackKvParams {
        /// Tokens.
        n_tokens: u32,
        /// KV heads.
        n_kv_heads: u32,
        /// Elements of a head, a multiple of 32.
        head_dim: u32,
        /// Tokens a cache can hold.
        capacity: u32,
        /// The first token.
        position: u32,
    }

    /// Joins attention over some keys with attention over others: the mean of `out` and `part` `[rows, n_heads, head_dim]`
    /// under a row stride, weighted by the `exp` of their log-sum-exps.
    MergeAttentionParams {
        /// Queries.
        rows: u32,
        /// Query heads.
        n_heads: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Distance between queries of both.
        row_stride: u32,
    }

    /// The part of an index that lies within some keys.
    ClipIndexParams {
        /// Query heads.
        n_heads: u32,
        /// Blocks of 64 queries.
        row_blocks: u32,
        /// Tiles of 64 columns per head.
        column_tiles: u32,
        /// First key.
        key_start: u32,
        /// Behind the last key.
        key_end: u32,
    }

    /// Column and offset scores of each head from the last queries (paper, Algorithm 2).
    ScoreLastQueriesParams {
        /// Query heads.
        n_heads: u32,
        /// KV heads; query head `h` reads KV head `h / (n_heads / n_kv_heads)`.
        n_kv_heads: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Queries in `q`.
        q_len: u32,
        /// Keys.
        kv_len: u32,
        /// Key position of the first query.
        q_start: u32,
        /// Queries that score: the last `last_q` of `q`, at most 64.
        last_q: u32,
        /// Softmax scale.
        scale: f32,
        /// Distance between queries.
        q_row_stride: u32,
        /// Distance between query heads.
        q_head_stride: u32,
        /// Distance between keys.
        k_row_stride: u32,
        /// Distance between KV heads.
        k_head_stride: u32,
    }

    /// The indices of the largest scores of each row, ascending.
    SelectTopKParams {
        /// Rows of `scores`, of `counts` and of the outputs.
        rows: u32,
        /// Scores per row.
        len: u32,
        /// Slots per row of the output; every count is at most this.
        capacity: u32,
        /// The first `forced` indices come before all others whatever their score.
        forced: u32,
    }

    /// Mean of each block of 64 rows.
    PoolBlocksParams {
        /// Heads of `x`.
        n_heads: u32,
        /// Rows of `x`.
        len: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Distance between rows of `x`.
        row_stride: u32,
        /// Distance between heads of `x`.
        head_stride: u32,
        /// Blocks: `ceil(len / 64)`.
        blocks: u32,
        /// 1: a short last block is divided by 64 all the same, as if padded with zeros (the official block-sparse
        /// kernel); 0: by its own rows.
        padded: u32,
    }

    /// Scores of pooled query blocks against pooled key blocks, for a band of row blocks, and the choice among them.
    ScoreBlocksParams {
        /// Query heads.
        n_heads: u32,
        /// KV heads.
        n_kv_heads: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Row blocks of the whole call: `ceil(q_len / 64)`.
        row_blocks: u32,
        /// Key blocks.
        key_blocks: u32,
        /// First row block of the band.
        band_start: u32,
        /// Row blocks of the band.
        band_len: u32,
        /// Key position of the first query.
        q_start: u32,
        /// Queries of the whole call: the last row block may be short, and `kv_len` may go past it.
        q_len: u32,
    }

    /// Turns what the patterns chose into ranges, keep masks, windows and pair counts.
    BuildIndexParams {
        /// Query heads.
        n_heads: u32,
        /// Queries.
        q_len: u32,
        /// Keys.
        kv_len: u32,
        /// Key position of the first query.
        q_start: u32,
        /// Row blocks: `ceil(q_len / 64)`.
        row_blocks: u32,
        /// Tiles of 64 columns per head; `columns` holds `64 * column_tiles` a head.
        column_tiles: u32,
        /// Slots per head of `offsets`.
        offset_capacity: u32,
        /// 32-bit words per row block of `block_mask`.
        block_words: u32,
        /// Ranges that all rows may use together; a row that would pass it becomes dense in a slot kept for it.
        range_budget: u32,
        /// A row block of a vertical-slash or block-sparse head that computes more than so many 256ths of its causal pairs
        /// becomes one dense range, in the slot kept for it. From 256 on none does.
        dense_above: u32,
    }

    /// One attention layer over a sparse index, or one decoding step over all keys.
    AttentionParams {
        /// Query heads.
        n_heads: u32,
        /// KV heads; query head `h` reads KV head `h / (n_heads / n_kv_heads)`.
        n_kv_heads: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Queries.
        q_len: u32,
        /// Keys.
        kv_len: u32,
        /// Key position of the first query; query `i` sees keys up to `q_start + i`.
        q_start: u32,
        /// Row blocks of the index.
        row_blocks: u32,
        /// Tiles of 64 columns per head in the index.
        column_tiles: u32,
        /// Softmax scale, 1 / sqrt of the true head_dim unless the model says otherwise.
        scale: f32,
        /// Distance between queries.
        q_row_stride: u32,
        /// Distance between query heads.
        q_head_stride: u32,
        /// Distance between keys.
        k_row_stride: u32,
        /// Distance between KV heads of `k`.
        k_head_stride: u32,
        /// Distance between values.
        v_row_stride: u32,
        /// Distance between KV heads of `v`.
        v_head_stride: u32,
        /// Distance between rows of `out`.
        out_row_stride: u32,
        /// Distance between heads of `out`.
        out_head_stride: u32,
        /// 1: the log-sum-exp of each row is written too.
        write_lse: u32,
        /// Skip-softmax (BLASST, arXiv 2512.12087): a tile whose scores all lie further than this below their rows' running
        /// maxima gives no exponentials and no values. In natural logarithm, at most 0; [`SKIP_NOTHING`] is off.
        skip_below: f32,
    }

    /// How many of each row's largest scores hold a given part of the row's sum.
    CountByMassParams {
        /// Rows of `scores`.
        rows: u32,
        /// Scores per row.
        len: u32,
        /// The first `forced` are counted before all others.
        forced: u32,
        /// Times a row's sum is 1, nearly.
        unit: f32,
    }

    /// Offset scores gathered by 64, for flex heads.
    GroupOffsetsParams {
        /// Rows of `scores`.
        rows: u32,
        /// Scores per row.
        len: u32,
    }

    /// Flex heads made vertical-slash, block-sparse or dense.
    SettleHeadsParams {
        /// Query heads.
        n_heads: u32,
        /// Keys.
        kv_len: u32,
        /// Key blocks: `ceil(kv_len / 64)`.
        key_blocks: u32,
        /// Softmax scale of the block scores.
        scale: f32,
        /// Times a head's column scores sum to 1, nearly.
        unit: f32,
    }

    /// Key blocks by their softmax weight in each row block of a band, for the rules of [`HeadPlan`] but `TOP_K`.
    WeighBlocksParams {
        /// Query heads.
        n_heads: u32,
        /// Row blocks of the whole call.
        row_blocks: u32,
        /// Key blocks.
        key_blocks: u32,
        /// First row block of the band.
        band_start: u32,
        /// Row blocks of the band.
        band_len: u32,
        /// Key position of the first query.
        q_start: u32,
        /// Queries of the whole call.
        q_len: u32,
        /// Softmax scale; scores under `ROW_MASS` are logarithms of weights and take none.
        scale: f32,
    }

    /// Rows gathered by `fold`, each group one long row: `out[h, u, i * head_dim + e] = x[h, u * fold + i, e]`, or row
    /// `u * fold + fold - 1 - i`; zeros behind the last row.
    FoldRowsParams {
        /// Heads of `x`.
        n_heads: u32,
        /// Rows of `x`.
        len: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Distance between rows of `x`.
        row_stride: u32,
        /// Distance between heads of `x`.
        head_stride: u32,
        /// Rows of a group.
        fold: u32,
        /// 1: each group's rows in reverse.
        reverse: u32,
    }

    /// Key blocks by the softmax of antidiagonal sums, for block-sparse heads under `ROW_MASS`.
    WeighAntidiagonalsParams {
        /// Query heads.
        n_heads: u32,
        /// Key blocks.
        key_blocks: u32,
        /// First row block of the band.
        band_start: u32,
        /// Row blocks of the band.
        band_len: u32,
        /// Key position of the first query.
        q_start: u32,
        /// Queries of the whole call.
        q_len: u32,
        /// Queries, and keys, of a group: a power of two from 4 to 64.
        fold: u32,
        /// Groups of keys: `ceil(kv_len / fold)`.
        groups: u32,
        /// What a sum is multiplied by: the softmax scale over `fold`.
        scale: f32,
    }

    /// Scores of the query heads of a KV head made one: their mean.
    ShareScoresParams {
        /// Rows: query heads.
        rows: u32,
        /// Query heads of a KV head: so many neighbouring rows.
        share: u32,
        /// Scores per row.
        len: u32,
    }

    /// What one head computes: the device form of a pattern. `kind` is one of the `HeadPlan::*` constants.
    HeadPlan {
        /// Which pattern.
        kind: u32,
        /// A-shape and tri-shape `n_init`; vertical-slash columns; block-sparse: the rule's number, `top_k` or the bits of an
        /// f32.
        a: u32,
        /// A-shape and tri-shape `n_local`; vertical-slash offsets; block-sparse: the nearest blocks that every row block
        /// keeps, and above 16 bits of these the last queries whose row blocks keep all ([`HeadPlan::nearest_and_last`]).
        b: u32,
        /// Tri-shape `n_last`; block-sparse: one of the rules `TOP_K` and on.
        c: u32,
    }

    /// How much a flex head takes: the part of its plan that vertical-slash and block-sparse heads do not have.
    HeadBudget {
        /// The part of the attention mass to reach, 0 for heads that are not flex.
        mass: f32,
        /// The square root of the Jensen-Shannon divergence below which block means are trusted.
        tau: f32,
        /// Fewest to count; keys of nearest blocks.
        least: u32,
        /// Most to count; 0 is as many as the mass needs.
        most: u32,
    }
}

impl HeadPlan {
    /// Every causal pair.
    pub const DENSE: u32 = 0;
    /// The first `a` keys and the last `b`, element-exact.
    pub const A_SHAPE: u32 = 1;
    /// Columns and offsets, widened to blocks by the official rule.
    pub const VERTICAL_SLASH: u32 = 2;
    /// Chosen 64 x 64 blocks.
    pub const BLOCK_SPARSE: u32 = 3;
    /// The first `a` keys and the last `b`, widened to row blocks; row blocks with any of the last `c` queries are dense.
    pub const TRI_SHAPE: u32 = 4;
    /// Not decided yet: [`crate::backend::Backend::settle_heads`] makes one of the others of it. `a` and `b` are the columns
    /// and offsets that there is room for.
    pub const FLEX: u32 = 5;
    /// Not decided yet either: block-sparse under `OF_MAX`, with the largest threshold of at most `a` (an f32) whose blocks hold
    /// the budget's mass of the last queries' attention, or dense. `b` as there.
    pub const FIT: u32 = 6;

    /// Rule of block-sparse heads: the `a` best blocks of each row block.
    pub const TOP_K: u32 = 0;
    /// The heaviest blocks of all row blocks together that hold the part `a` of the head's mass.
    pub const HEAD_MASS: u32 = 1;
    /// The heaviest blocks of each row block that hold the part `a` of its mass.
    pub const ROW_MASS: u32 = 2;
    /// Blocks that weigh at least `a` times as much as the row block's heaviest.
    pub const OF_MAX: u32 = 3;

    /// `b` of a block-sparse head, both cut to what 16 bits hold: 65,535 blocks are 4M keys.
    pub fn nearest_and_last(nearest: usize, n_last: usize) -> u32 {
        let half = |x: usize| x.min(0xffff) as u32;
        half(nearest) | half(n_last) << 16
    }

    /// The nearest blocks that every row block of a block-sparse head keeps.
    pub fn nearest(&self) -> usize {
        (self.b & 0xffff) as usize
    }

    /// The last queries of a block-sparse head whose row blocks keep every block.
    pub fn n_last(&self) -> usize {
        (self.b >> 16) as usize
    }
}
