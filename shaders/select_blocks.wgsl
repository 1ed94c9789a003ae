// Bits of the plan.a best key blocks of each row block of the band, of block-sparse heads. Ties go to the lower block.
// Where q_start is no multiple of 64, the block that holds the row block's first query is always in.
//
// One group a row block: a radix select finds the smallest chosen score, then each invocation writes whole words, in
// order, so that prefix sums over words tell which of the equal scores are in.
struct Params {
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
    row_blocks: u32,
    key_blocks: u32,
    band_start: u32,
    band_len: u32,
    q_start: u32,
    q_len: u32,
    // where the slices begin in their bindings, in elements
    plan_at: u32,
    scores_at: u32,
    block_mask_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [n_heads, 4]
@group(0) @binding(1) var<storage, read> scores: array<f32>; // [n_heads, band_len, key_blocks]
@group(0) @binding(2) var<storage, read_write> block_mask: array<u32>; // [n_heads, row_blocks, ceil(key_blocks / 32)]

var<private> row_base: u32;
var<private> forced: u32;

fn key_at(i: u32) -> u32 {
    if i == forced {
        return 0xffffffffu;
    }
    return sortable(scores[row_base + i]);
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let id = linear_group(at);
    let head = id / p.band_len;
    if head >= p.n_heads || plan[p.plan_at + 4u * head] != BLOCK_SPARSE {
        return;
    }
    let row = p.band_start + id % p.band_len;
    let last_query = p.q_start + min(64u * row + 63u, p.q_len - 1u);
    let seen = min(last_query / 64u + 1u, p.key_blocks);
    let top_k = plan[p.plan_at + 4u * head + 1u];
    forced = select(0xffffffffu, (p.q_start + 64u * row) / 64u, p.q_start % 64u != 0u);
    row_base = p.scores_at + id * p.key_blocks;

    // All are in, none, or those from the threshold on.
    var threshold = Threshold(select(0xffffffffu, 0u, top_k >= seen), 0u);
    if top_k > 0u && top_k < seen {
        threshold = select_threshold(at, seen, top_k);
    }

    let words = (p.key_blocks + 31u) / 32u;
    let out_base = p.block_mask_at + (head * p.row_blocks + row) * words;
    let lane = scan_lane(at);
    var equal_before = 0u;
    for (var block = 0u; block < words; block += WORKGROUP) {
        let word = block + lane;
        var above = 0u;
        var equal = 0u;
        for (var bit = 0u; bit < 32u; bit++) {
            let i = 32u * word + bit;
            if i < seen {
                let key = key_at(i);
                above |= u32(key > threshold.key) << bit;
                equal |= u32(key == threshold.key) << bit;
            }
        }
        let sums = scan_exclusive(at, countOneBits(equal));
        var left = threshold.equal - min(threshold.equal, equal_before + sums.x);
        // The lowest `left` of the equal ones.
        while equal != 0u && left > 0u {
            let lowest = equal & (~equal + 1u);
            above |= lowest;
            equal ^= lowest;
            left -= 1u;
        }
        if word < words {
            block_mask[out_base + word] = above;
        }
        equal_before += sums.y;
    }
}
