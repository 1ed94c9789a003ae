// The ranges of each row block, from what the patterns chose (paper, Algorithm 4; the official conversion, behaviour-exact,
// with a query offset). Linked twice: WRITE = 0 counts them into row_ranges, WRITE = 1 writes them where
// build_index_place put them, with windows and the pairs that ranges compute.
//
// One invocation a row block, 64 a group: a walk over the offsets below the row block's end, where neighbours read nearly
// the same ones. Row block r covers queries [a, b), b = a + 64, whether or not the last one is full.
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
    offsets_at: u32,
    offset_count_at: u32,
    block_mask_at: u32,
    row_ranges_at: u32,
    ranges_at: u32,
    window_at: u32,
    pairs_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [n_heads, 4]
@group(0) @binding(1) var<storage, read> offsets: array<u32>; // [n_heads, offset_capacity], ascending
@group(0) @binding(2) var<storage, read> offset_count: array<u32>; // [n_heads]
@group(0) @binding(3) var<storage, read> block_mask: array<u32>; // [n_heads, row_blocks, block_words]
@group(0) @binding(4) var<storage, read_write> row_ranges: array<u32>; // [n_heads, row_blocks, 2]
@group(0) @binding(5) var<storage, read_write> ranges: array<u32>; // [range_budget + n_heads * row_blocks, 2]
@group(0) @binding(6) var<storage, read_write> window: array<u32>; // [n_heads, 2]
@group(0) @binding(7) var<storage, read_write> pairs: array<u32>; // [n_heads, row_blocks]

const NONE: u32 = 0xffffffffu;

// The row block at hand: its first query's position, its queries, its head's window.
var<private> first_query: u32;
var<private> queries: u32;
var<private> n_init: u32;
var<private> n_local: u32;
// Where its ranges go, how many there are so far, and the pairs they compute.
var<private> place: u32;
var<private> count: u32;
var<private> computed: u32;

// Pairs of a range: keys up to each query and within the window.
fn pairs_of(start: u32, end: u32) -> u32 {
    let windowed = n_init != NONE || n_local != NONE;
    if end <= first_query + 1u && !windowed {
        return (end - start) * queries;
    }
    var sum = 0u;
    for (var i = first_query; i < first_query + queries; i++) {
        let seen = min(end, i + 1u);
        if !windowed {
            sum += seen - min(seen, start);
        } else {
            // Those within n_local, and of the first n_init those before them.
            let local = max(i + 1u - min(i + 1u, n_local), start);
            let sink = min(min(n_init, seen), local);
            sum += seen - min(seen, local) + sink - min(sink, start);
        }
    }
    return sum;
}

fn emit(start: u32, end: u32) {
    if WRITE != 0u {
        ranges[p.ranges_at + 2u * (place + count)] = start;
        ranges[p.ranges_at + 2u * (place + count) + 1u] = end;
        computed += pairs_of(start, end);
    }
    count++;
}

// The first n_init keys and those that any query has within n_local; the window makes it exact.
fn a_shape(init: u32, local_keys: u32, b: u32) {
    let local = b - 63u - min(b - 63u, local_keys);
    if init >= local {
        emit(0u, b);
        return;
    }
    if init > 0u {
        emit(0u, init);
    }
    emit(local, b);
}

// A run of whole blocks, without the blocks that begin at or past kv_len. No run begins there: it begins at or before the
// row block's first query.
fn emit_run(start: u32, end: u32) {
    emit(start, select(end, start + (p.kv_len - start + 63u) / 64u * 64u, end > p.kv_len));
}

// An offset below b asks for the 64 keys before e = max(b - offset, 64). The first opens a run; e past the run's end by more
// than 64 opens another, by less lengthens it by a whole 64 (so that it may pass e, and b).
fn slash_runs(head: u32, b: u32) {
    let base = p.offsets_at + head * p.offset_capacity;
    var low = 0u;
    var high = offset_count[p.offset_count_at + head];
    while low < high {
        let middle = (low + high) / 2u;
        if offsets[base + middle] < b {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    // Without any offset the official kernel reads past its list; the row block's own keys stand in.
    var run_end = b;
    if low > 0u {
        low--;
        run_end = max(b - offsets[base + low], 64u);
    }
    var run_start = run_end - 64u;
    while low > 0u {
        low--;
        let e = max(b - offsets[base + low], 64u);
        if e > run_end + 64u {
            emit_run(run_start, run_end);
            run_start = e - 64u;
            run_end = e;
        } else if e > run_end {
            run_end += 64u;
        }
    }
    emit_run(run_start, run_end);
}

// Runs of set bits as ranges of keys; never empty: a mask without a bit means the block of the first query.
fn block_runs(row: u32, a: u32) {
    let base = p.block_mask_at + row * p.block_words;
    var run_start = 0u;
    var run_end = 0u;
    for (var w = 0u; w < p.block_words; w++) {
        var bits = block_mask[base + w];
        while bits != 0u {
            let start = 64u * (32u * w + firstTrailingBit(bits));
            bits &= bits - 1u;
            if start != run_end || run_end == 0u {
                if run_end > 0u {
                    emit(run_start, run_end);
                }
                run_start = start;
            }
            run_end = start + 64u;
        }
    }
    if run_end == 0u {
        run_start = a - a % 64u;
        run_end = run_start + 64u;
    }
    emit(run_start, run_end);
}

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let row = linear_group(at) * 64u + at.lane;
    if row >= p.n_heads * p.row_blocks {
        return;
    }
    let head = row / p.row_blocks;
    let r = row % p.row_blocks;
    let kind = plan[p.plan_at + 4u * head];
    let a = p.q_start + 64u * r;
    let b = a + 64u;
    first_query = a;
    queries = min(64u, p.q_len - 64u * r);
    n_init = NONE;
    n_local = NONE;
    if kind == A_SHAPE {
        n_init = plan[p.plan_at + 4u * head + 1u];
        n_local = plan[p.plan_at + 4u * head + 2u];
    }
    place = row_ranges[p.row_ranges_at + 2u * row];

    if WRITE != 0u && place >= p.range_budget {
        // No room: dense, in the slot kept for it.
        emit(0u, b);
    } else if kind == A_SHAPE {
        a_shape(n_init, n_local, b);
    } else if kind == TRI_SHAPE {
        let its = p.plan_at + 4u * head;
        // With any of the last queries: dense.
        if min(64u * r + 63u, p.q_len - 1u) + plan[its + 3u] >= p.q_len {
            emit(0u, b);
        } else {
            a_shape(plan[its + 1u], plan[its + 2u], b);
        }
    } else if kind == VERTICAL_SLASH {
        slash_runs(head, b);
    } else if kind == BLOCK_SPARSE {
        block_runs(row, a);
    } else {
        emit(0u, b);
    }

    if WRITE == 0u {
        row_ranges[p.row_ranges_at + 2u * row + 1u] = count;
        return;
    }
    pairs[p.pairs_at + row] = computed;
    if r == 0u {
        window[p.window_at + 2u * head] = n_init;
        window[p.window_at + 2u * head + 1u] = n_local;
    }
}
