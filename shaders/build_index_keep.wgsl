// Which of its head's columns each row block computes: those before its last range that lie in none.
//
// One invocation a row block and tile of 64 columns, 64 a group. Pairs get each kept column times the row block's queries.
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
    columns_at: u32,
    row_ranges_at: u32,
    ranges_at: u32,
    keep_at: u32,
    pairs_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [n_heads, 4]
@group(0) @binding(1) var<storage, read> columns: array<u32>; // [n_heads, 64 * column_tiles], ascending
@group(0) @binding(2) var<storage, read> row_ranges: array<u32>; // [n_heads, row_blocks, 2]
@group(0) @binding(3) var<storage, read> ranges: array<u32>; // [range_budget + n_heads * row_blocks, 2]
@group(0) @binding(4) var<storage, read_write> keep: array<u32>; // [n_heads, row_blocks, max(column_tiles, 1), 2]
@group(0) @binding(5) var<storage, read_write> pairs: array<atomic<u32>>; // [n_heads, row_blocks]

fn range_start(i: u32) -> u32 {
    return ranges[p.ranges_at + 2u * i];
}

fn range_end(i: u32) -> u32 {
    return ranges[p.ranges_at + 2u * i + 1u];
}

// Bits of 64 columns from `base` on, for a row block with ranges [first, last].
fn kept(base: u32, first: u32, last: u32) -> vec2<u32> {
    // Columns from the last range on are future ones, or dropped by the official rule.
    let limit = range_start(last);
    let lowest = columns[base];
    if lowest >= limit {
        return vec2<u32>();
    }
    // the first range that ends after the lowest column
    var low = first;
    var high = last;
    while low < high {
        let middle = (low + high) / 2u;
        if range_end(middle) <= lowest {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    var start = range_start(low);
    var end = range_end(low);
    let highest = columns[base + 63u];
    if highest < start {
        return vec2<u32>(0xffffffffu);
    }
    if lowest >= start && highest < end {
        return vec2<u32>();
    }
    var bits = vec2<u32>();
    for (var i = 0u; i < 64u; i++) {
        let column = columns[base + i];
        if column >= limit {
            break;
        }
        while end <= column {
            low++;
            start = range_start(low);
            end = range_end(low);
        }
        bits[i / 32u] |= u32(column < start) << (i % 32u);
    }
    return bits;
}

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let tiles = max(p.column_tiles, 1u);
    let id = linear_group(at) * 64u + at.lane;
    let row = id / tiles;
    if row >= p.n_heads * p.row_blocks {
        return;
    }
    let head = row / p.row_blocks;
    let first = row_ranges[p.row_ranges_at + 2u * row];
    let count = row_ranges[p.row_ranges_at + 2u * row + 1u];
    var bits = vec2<u32>();
    // A row block that found no room for its ranges is dense.
    if plan[p.plan_at + 4u * head] == VERTICAL_SLASH && first < p.range_budget && p.column_tiles > 0u {
        bits = kept(p.columns_at + 64u * (head * tiles + id % tiles), first, first + count - 1u);
    }
    keep[p.keep_at + 2u * id] = bits.x;
    keep[p.keep_at + 2u * id + 1u] = bits.y;
    let columns_kept = countOneBits(bits.x) + countOneBits(bits.y);
    if columns_kept > 0u {
        atomicAdd(&pairs[p.pairs_at + row], columns_kept * min(64u, p.q_len - 64u * (row % p.row_blocks)));
    }
}
