// Row blocks of vertical-slash and block-sparse heads that compute more than dense_above 256ths of their causal pairs become
// one dense range, in the slot kept for each row block; their place among the ranges stays empty.
//
// One group of 64 a row block.
struct Params {
    n_heads: u32,
    q_len: u32,
    kv_len: u32,
    q_start: u32,
    row_blocks: u32,
    column_tiles: u32,
    offset_capacity: u32,
    block_words: u32,
    range_budget: u32,
    dense_above: u32,
    // where the slices begin in their bindings, in elements
    plan_at: u32,
    row_ranges_at: u32,
    ranges_at: u32,
    keep_at: u32,
    pairs_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [n_heads, 4]
@group(0) @binding(1) var<storage, read_write> row_ranges: array<u32>; // [n_heads, row_blocks, 2]
@group(0) @binding(2) var<storage, read_write> ranges: array<u32>; // [range_budget + n_heads * row_blocks, 2]
@group(0) @binding(3) var<storage, read_write> keep: array<u32>; // [n_heads, row_blocks, max(column_tiles, 1), 2]
@group(0) @binding(4) var<storage, read_write> pairs: array<u32>; // [n_heads, row_blocks]

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let row = linear_group(at);
    if row >= p.n_heads * p.row_blocks {
        return;
    }
    let kind = plan[p.plan_at + 4u * (row / p.row_blocks)];
    if kind != VERTICAL_SLASH && kind != BLOCK_SPARSE {
        return;
    }
    let r = row % p.row_blocks;
    let first = p.q_start + 64u * r;
    let queries = min(64u, p.q_len - 64u * r);
    let causal = queries * first + queries * (queries + 1u) / 2u;
    let computed = pairs[p.pairs_at + row];
    // All read it before one writes it.
    workgroupBarrier();
    if computed <= causal / 256u * p.dense_above {
        return;
    }
    if at.lane == 0u {
        let slot = p.range_budget + row;
        row_ranges[p.row_ranges_at + 2u * row] = slot;
        row_ranges[p.row_ranges_at + 2u * row + 1u] = 1u;
        ranges[p.ranges_at + 2u * slot] = 0u;
        ranges[p.ranges_at + 2u * slot + 1u] = first + 64u;
        pairs[p.pairs_at + row] = causal;
    }
    let words = 2u * max(p.column_tiles, 1u);
    for (var i = at.lane; i < words; i += 64u) {
        keep[p.keep_at + row * words + i] = 0u;
    }
}
