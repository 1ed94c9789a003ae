//! Parameters of kernels that do part of an operation: one of several passes, or a band of heads and rows. Where a whole
//! operation is one kernel, its parameters are those of [`crate::backend::params`].

use crate::backend::params::params;
use bytemuck::{Pod, Zeroable};

params! {
    /// Packed weights to activations.
    ExpandParams {
        /// Elements over four.
        quads: u32,
    }

    /// Columns moved into some keys.
    ClampColumns {
        /// Columns of all heads, padding included.
        count: u32,
        /// First key.
        key_start: u32,
        /// Behind the last key.
        key_end: u32,
    }

    /// `attention` for some heads and rows.
    AttentionBand {
        /// Heads of this dispatch.
        heads: u32,
        /// Query heads per KV head.
        group_size: u32,
        /// The first head's place among those of its KV head.
        head_in_group: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Queries of the whole call.
        q_len: u32,
        /// Keys.
        kv_len: u32,
        /// Key position of the call's first query.
        q_start: u32,
        /// First query of this dispatch.
        row_first: u32,
        /// Tiles of queries of this dispatch.
        row_tiles: u32,
        /// Row blocks of the index.
        row_blocks: u32,
        /// Tiles of 64 columns per head.
        column_tiles: u32,
        /// Softmax scale.
        scale: f32,
        /// 1: the log-sum-exp is written too.
        write_lse: u32,
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
        /// See [`crate::backend::params::AttentionParams::skip_below`].
        skip_below: f32,
    }

    /// The passes of `score_last_queries` that multiply, for some heads.
    LastQueriesBand {
        /// Heads of this dispatch.
        heads: u32,
        /// Query heads per KV head.
        group_size: u32,
        /// The first head's place among those of its KV head.
        head_in_group: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Keys.
        kv_len: u32,
        /// Queries that score, at most 64.
        last_q: u32,
        /// Key position of the first of them.
        first_position: u32,
        /// Spans of keys, one workgroup each.
        spans: u32,
        /// First span of this dispatch.
        span_first: u32,
        /// Spans of this dispatch.
        span_count: u32,
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

    /// The pass of `score_last_queries` that merges spans.
    LastQueriesMerge {
        /// Heads of this dispatch.
        heads: u32,
        /// Spans of keys.
        spans: u32,
    }

    /// The splits of `decode_attention`, for some KV heads.
    DecodeBand {
        /// KV heads of this dispatch.
        kv_heads: u32,
        /// Query heads of each.
        group_size: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Queries.
        q_len: u32,
        /// Key position of the first query.
        q_start: u32,
        /// Splits of the keys.
        splits: u32,
        /// Keys of a split.
        split_keys: u32,
        /// First split of this dispatch.
        split_first: u32,
        /// Splits of this dispatch.
        split_count: u32,
        /// Softmax scale.
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
    }

    /// The merge of `decode_attention`.
    DecodeMerge {
        /// Query heads of this dispatch.
        heads: u32,
        /// Queries.
        q_len: u32,
        /// Elements of a head.
        head_dim: u32,
        /// Splits of the keys.
        splits: u32,
        /// Distance between rows of `out`.
        out_row_stride: u32,
        /// Distance between heads of `out`.
        out_head_stride: u32,
        /// 1: the log-sum-exp is written too.
        write_lse: u32,
    }

    /// `merge_attention` for some rows.
    MergeBand {
        /// Queries of this dispatch.
        rows: u32,
        /// The first of them among all.
        row_first: u32,
        /// All queries.
        all_rows: u32,
        /// Query heads.
        n_heads: u32,
        /// Vectors of a head.
        head_dim: u32,
        /// Vectors between heads.
        head_stride: u32,
        /// Vectors between queries.
        row_stride: u32,
    }
}
