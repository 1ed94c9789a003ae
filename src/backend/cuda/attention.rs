//! One attention layer: gather the columns, order the work, run the kernel for the device; and decoding.

use super::device::{Launch, TensorLayout, TensorMap, arg};
use super::elementwise::require_vectors;
use super::kernels::{self, shared_memory};
use super::{AttentionKernel, Cuda, address, address_mut};
use crate::backend::params::{AttentionParams, MergeAttentionParams, SKIP_NOTHING};
use crate::backend::{IndexSlices, Slice, SliceMut};
use crate::{DType, Error, Result};

/// Largest head_dim whose two row blocks of scores and outputs fit in a thread's registers (`attention_sm80`).
const TWO_ROW_BLOCKS: u32 = 128;
/// Shared memory that the driver keeps for itself in every block, in bytes.
const RESERVED_SHARED: usize = 1024;

pub(super) fn attention(
    b: &Cuda,
    p: &AttentionParams,
    [q, k, v]: [Slice<Cuda>; 3],
    index: IndexSlices<Cuda>,
    out: SliceMut<Cuda>,
    lse: Option<SliceMut<Cuda>>,
) -> Result<()> {
    check("attention", p, [q, k, v], &out)?;
    let (q, k, v) = (address(&q), address(&k), address(&v));
    let (out_type, out, lse) = (out.dtype, address_mut(&out), lse.map_or(0, |s| address_mut(&s)));
    let [row_ranges, ranges, columns, keep, window] =
        [index.row_ranges, index.ranges, index.columns, index.keep, index.window].map(|s| address(&s));

    // columns: each head's, in one piece
    let gathered_rows = 64 * p.column_tiles;
    let gathered_bytes = p.n_heads as usize * gathered_rows as usize * p.head_dim as usize * 2;
    let (k_columns, v_columns) = (b.alloc_buffer(gathered_bytes)?, b.alloc_buffer(gathered_bytes)?);
    let (k_columns, v_columns) = (k_columns.address(), v_columns.address());
    let gather = kernels::GATHER_COLUMNS.with(&[("BF16", &b.bf16())]);
    let launch = Launch::new([p.column_tiles, p.n_heads, 1], 128);
    let args = [arg(p), arg(&k), arg(&v), arg(&columns), arg(&k_columns), arg(&v_columns)];
    b.launch(&gather, "gather_columns", launch, &args)?;

    // order of work, and behind it the counter that a persistent kernel takes items by
    // (which stores 16 bytes at a time)
    let aligned = out % 16 == 0 && (p.out_row_stride | p.out_head_stride).is_multiple_of(8);
    let dims = matches!(p.head_dim, 64 | 96 | 128);
    let hopper = b.limits.hopper && dims && aligned && b.options.attention == AttentionKernel::Auto;
    let row_blocks = if hopper { 2 } else { sm80_row_blocks(b, p.head_dim) };
    let items = p.n_heads * p.row_blocks.div_ceil(row_blocks);
    let order = b.alloc_buffer((items as usize + 1) * 4)?;
    let (order, counter) = (order.address(), order.address() + 4 * items as u64);
    let order_work = kernels::ORDER_WORK.with(&[("BF16", &b.bf16())]);
    let launch = Launch::new([p.n_kv_heads, 1, 1], 1024).shared(4 * p.n_kv_heads as usize);
    let args = [arg(p), arg(&row_blocks), arg(&row_ranges), arg(&ranges), arg(&keep), arg(&order)];
    b.launch(&order_work, "order_work", launch, &args)?;

    let source = if hopper { &kernels::ATTENTION_SM90A } else { &kernels::ATTENTION_SM80 };
    let mut kernel = source.with(&[("HEAD_DIM", &p.head_dim), ("BF16", &b.bf16()), ("OUT", &b.c_type(out_type))]);
    if p.skip_below > SKIP_NOTHING {
        kernel.defines.push(("SKIP_SOFTMAX", "1".to_string()));
    }
    if !hopper {
        let bytes = shared_memory::attention_sm80(p.head_dim as usize, row_blocks as usize);
        kernel.defines.extend([("ROW_BLOCKS", row_blocks.to_string()), ("SMEM_BYTES", bytes.to_string())]);
        let launch = Launch::new([items, 1, 1], 128).shared(bytes);
        #[rustfmt::skip]
        let args = [
            arg(p), arg(&q), arg(&k), arg(&v), arg(&k_columns), arg(&v_columns), arg(&out), arg(&lse), arg(&order),
            arg(&row_ranges), arg(&ranges), arg(&keep), arg(&window),
        ];
        return b.launch(&kernel, "attention_sm80", launch, &args);
    }
    kernel.defines.extend(b.options.attention_defines.iter().map(|(name, value)| (*name, value.to_string())));
    let bf16 = b.options.activation == DType::BF16;
    let map = |address, heads, len, head_stride, row_stride| {
        TensorMap::new(&TensorLayout { address, bf16, heads, len, head_dim: p.head_dim, head_stride, row_stride })
    };
    let q_map = map(q, p.n_heads, p.q_len, p.q_head_stride, p.q_row_stride)?;
    // Rows end at kv_len, not at the cache's capacity: what lies behind reads as zero and cannot reach the output.
    let k_map = map(k, p.n_kv_heads, p.kv_len, p.k_head_stride, p.k_row_stride)?;
    let v_map = map(v, p.n_kv_heads, p.kv_len, p.v_head_stride, p.v_row_stride)?;
    let gathered = |address| map(address, p.n_heads, gathered_rows, gathered_rows * p.head_dim, p.head_dim);
    // Without columns the kernel never follows these two; they must be valid all the same.
    let k_columns_map = if gathered_rows > 0 { gathered(k_columns)? } else { k_map.clone() };
    let v_columns_map = if gathered_rows > 0 { gathered(v_columns)? } else { v_map.clone() };
    let bytes = shared_memory::attention_sm90a(p.head_dim as usize);
    kernel.defines.push(("SMEM_BYTES", bytes.to_string()));
    let launch = Launch::new([b.limits.processors.min(items), 1, 1], 384).shared(bytes);
    #[rustfmt::skip]
    let args = [
        arg(p), arg(&q_map), arg(&k_map), arg(&v_map), arg(&k_columns_map), arg(&v_columns_map), arg(&out), arg(&lse),
        arg(&order), arg(&items), arg(&counter), arg(&row_ranges), arg(&ranges), arg(&keep), arg(&window),
    ];
    b.launch(&kernel, "attention_sm90a", launch, &args)
}

/// Two where two blocks of threads still share a multiprocessor: one alone cannot hide its own loads.
fn sm80_row_blocks(b: &Cuda, head_dim: u32) -> u32 {
    if let Some((_, forced)) = b.options.attention_defines.iter().find(|(name, _)| *name == "ROW_BLOCKS") {
        return *forced;
    }
    let both = 2 * (shared_memory::attention_sm80(head_dim as usize, 2) + RESERVED_SHARED);
    if head_dim <= TWO_ROW_BLOCKS && both <= b.limits.shared_per_processor { 2 } else { 1 }
}

fn check(op: &'static str, p: &AttentionParams, qkv: [Slice<Cuda>; 3], out: &SliceMut<Cuda>) -> Result<()> {
    #[rustfmt::skip]
    let strides = [
        p.head_dim, p.q_row_stride, p.q_head_stride, p.k_row_stride, p.k_head_stride, p.v_row_stride, p.v_head_stride,
    ];
    require_vectors(op, &qkv.map(|s| address(&s)), &strides)?;
    // Outputs are written in pairs of columns.
    let pairs = (p.out_row_stride | p.out_head_stride).is_multiple_of(2)
        && address_mut(out).is_multiple_of(2 * out.dtype.bytes(1) as u64);
    if !pairs {
        let got = format!("{} and {}", p.out_row_stride, p.out_head_stride);
        return Err(Error::Shape { op, what: "out strides", expected: "even, at an even element".into(), got });
    }
    Ok(())
}

pub(super) fn decode_attention(
    b: &Cuda,
    p: &AttentionParams,
    [q, k, v]: [Slice<Cuda>; 3],
    out: SliceMut<Cuda>,
    lse: Option<SliceMut<Cuda>>,
) -> Result<()> {
    check("decode_attention", p, [q, k, v], &out)?;
    let rows = p.n_heads / p.n_kv_heads * p.q_len;
    let rows_at_once = rows.next_power_of_two().min(8);
    let chunks = rows.div_ceil(rows_at_once);
    // Four blocks a multiprocessor, none of fewer than 256 keys: the partial results are read once more. The same grid
    // for all lengths up to the next power of two, which a replay counts on.
    let most_splits = (4 * b.limits.processors / (p.n_kv_heads * chunks)).max(1);
    let splits = most_splits.min(p.kv_len.next_power_of_two().div_ceil(256));
    let all_rows = (p.n_kv_heads * rows) as usize;
    let partials = all_rows * most_splits as usize;
    let scratch = b.decode_scratch(partials * (p.head_dim as usize + 2) * 4)?;
    let (partial, partial_o) = (scratch.address(), scratch.address() + 8 * partials as u64);
    let (q, k, v) = (address(&q), address(&k), address(&v));
    let kernel = kernels::DECODE_ATTENTION.with(&[
        ("HEAD_DIM", &p.head_dim),
        ("BF16", &b.bf16()),
        ("OUT", &b.c_type(out.dtype)),
        ("ROWS", &rows_at_once),
    ]);
    let launch = Launch::new([splits, p.n_kv_heads, chunks], 128);
    let shift = b.shift_address(Some(p.kv_len));
    let args = [arg(p), arg(&shift), arg(&q), arg(&k), arg(&v), arg(&partial_o), arg(&partial)];
    b.launch(&kernel, "decode_attention", launch, &args)?;
    let (out, lse) = (address_mut(&out), lse.map_or(0, |s| address_mut(&s)));
    let args = [arg(p), arg(&splits), arg(&partial_o), arg(&partial), arg(&out), arg(&lse)];
    b.launch(&kernel, "decode_combine", Launch::new([all_rows as u32, 1, 1], 128), &args)
}

pub(super) fn merge_attention(
    b: &Cuda,
    p: &MergeAttentionParams,
    part: Slice<Cuda>,
    [lse, part_lse]: [Slice<Cuda>; 2],
    out: SliceMut<Cuda>,
    merged_lse: SliceMut<Cuda>,
) -> Result<()> {
    require_vectors("merge_attention", &[address(&part), address_mut(&out)], &[p.head_dim, p.row_stride])?;
    let kernel = kernels::MERGE_ATTENTION.with(&[("BF16", &b.bf16())]);
    let [part, lse, part_lse] = [part, lse, part_lse].map(|s| address(&s));
    let (out, merged_lse) = (address_mut(&out), address_mut(&merged_lse));
    let launch = Launch::new([p.rows, 1, 1], 256);
    let args = [arg(p), arg(&part), arg(&lse), arg(&part_lse), arg(&out), arg(&merged_lse)];
    b.launch(&kernel, "merge_attention", launch, &args)
}
