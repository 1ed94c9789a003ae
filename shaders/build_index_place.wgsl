// Where each row block's ranges go: one row block after another; one whose ranges would pass the budget gets the slot kept
// for it and one dense range.
//
// One group for all row blocks, PER_LANE * WORKGROUP at a time: prefix sums where all of them fit, one by one where not,
// because a row block that found no room leaves it to the next.
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
    row_ranges_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> row_ranges: array<u32>; // [n_heads, row_blocks, 2]: first, count

const PER_LANE: u32 = 4u;
const BATCH: u32 = PER_LANE * WORKGROUP;

// First and count of the batch's row blocks.
var<workgroup> s_first: array<u32, BATCH>;
var<workgroup> s_count: array<u32, BATCH>;
var<workgroup> s_used: u32;

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let lane = scan_lane(at);
    let rows = p.n_heads * p.row_blocks;
    var used = 0u;
    for (var batch = 0u; batch < rows; batch += BATCH) {
        var mine = 0u;
        for (var j = 0u; j < PER_LANE; j++) {
            let i = PER_LANE * lane + j;
            s_first[i] = mine;
            s_count[i] = 0u;
            if batch + i < rows {
                s_count[i] = row_ranges[p.row_ranges_at + 2u * (batch + i) + 1u];
            }
            mine += s_count[i];
        }
        let sums = scan_exclusive(at, mine);
        if used + sums.y <= p.range_budget {
            for (var j = 0u; j < PER_LANE; j++) {
                s_first[PER_LANE * lane + j] += used + sums.x;
            }
            used += sums.y;
        } else {
            workgroupBarrier();
            if lane == 0u {
                for (var i = 0u; i < min(BATCH, rows - batch); i++) {
                    if used + s_count[i] <= p.range_budget {
                        s_first[i] = used;
                        used += s_count[i];
                    } else {
                        s_first[i] = p.range_budget + batch + i;
                        s_count[i] = 1u;
                    }
                }
                s_used = used;
            }
            used = workgroupUniformLoad(&s_used);
        }
        for (var j = 0u; j < PER_LANE; j++) {
            let i = PER_LANE * lane + j;
            if batch + i < rows {
                row_ranges[p.row_ranges_at + 2u * (batch + i)] = s_first[i];
                row_ranges[p.row_ranges_at + 2u * (batch + i) + 1u] = s_count[i];
            }
        }
        workgroupBarrier();
    }
}
