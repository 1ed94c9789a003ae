// Bits of the key blocks that a block-sparse head's rule keeps in each row block of a band, by softmax weight: HEAD_MASS, the
// heaviest of all row blocks together that hold a part of the head's mass; ROW_MASS, those of this row block (its scores
// are logarithms of weights); OF_MAX, those not much lighter than the heaviest. The first block, those with the row block's
// queries and the nearest (low half of plan.b) are always in, and all of row blocks with one of the last queries (high half).
//
// One group a row block: the softmax, the bins to take, then each invocation writes whole words.
struct Params {
    n_heads: u32,
    row_blocks: u32,
    key_blocks: u32,
    band_start: u32,
    band_len: u32,
    q_start: u32,
    q_len: u32,
    scale: f32,
    // where the slices begin in their bindings, in elements
    plan_at: u32,
    scores_at: u32,
    mass_at: u32,
    block_mask_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [n_heads, 4]
@group(0) @binding(1) var<storage, read> scores: array<f32>; // [n_heads, band_len, key_blocks]
@group(0) @binding(2) var<storage, read> mass: array<u32>; // [n_heads, BINS]
@group(0) @binding(3) var<storage, read_write> block_mask: array<u32>; // [n_heads, row_blocks, ceil(key_blocks / 32)]

const LOWEST: f32 = -3e38;

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let id = linear_group(at);
    let head = id / p.band_len;
    if head >= p.n_heads {
        return;
    }
    let its = p.plan_at + 4u * head;
    let rule = plan[its + 3u];
    if plan[its] != BLOCK_SPARSE || rule == TOP_K {
        return;
    }
    let row = p.band_start + id % p.band_len;
    let last_query = p.q_start + min(64u * row + 63u, p.q_len - 1u);
    let own = (p.q_start + 64u * row) / 64u;
    let seen = min(last_query / 64u + 1u, p.key_blocks);
    let base = p.scores_at + id * p.key_blocks;
    let number = bitcast<f32>(plan[its + 1u]);
    let nearest = plan[its + 2u] & 0xffffu;
    let n_last = plan[its + 2u] >> 16u;
    let whole_row = n_last > 0u && 64u * (row + 1u) + n_last > p.q_len;
    let scale = select(p.scale, 1.0, rule == ROW_MASS);

    // softmax
    var mine = LOWEST;
    for (var c = at.lane; c < seen; c += WORKGROUP) {
        mine = max(mine, scores[base + c]);
    }
    let largest = group_max(at, mine);
    mine = 0.0;
    for (var c = at.lane; c < seen; c += WORKGROUP) {
        mine += exp((scores[base + c] - largest) * scale);
    }
    let inverse = 1.0 / group_sum(at, mine);

    // the bins to take
    var taken = 0u;
    if rule != OF_MAX {
        clear_mass(at);
        if rule == HEAD_MASS {
            for (var b = at.lane; b < BINS; b += WORKGROUP) {
                atomicStore(&s_mass[b], mass[p.mass_at + head * BINS + b]);
            }
        } else {
            for (var c = at.lane; c < seen; c += WORKGROUP) {
                add_mass(exp((scores[base + c] - largest) * scale) * inverse, ONE);
            }
        }
        taken = bins_taken(at, number, 0u);
    }

    // bits
    let words = (p.key_blocks + 31u) / 32u;
    for (var word = at.lane; word < words; word += WORKGROUP) {
        var bits = 0u;
        for (var bit = 0u; bit < 32u; bit++) {
            let c = 32u * word + bit;
            if c < seen {
                let weight = exp((scores[base + c] - largest) * scale);
                let chosen = select(bin_of(weight * inverse) < taken, weight >= number, rule == OF_MAX);
                bits |= u32(chosen || whole_row || c == 0u || c + nearest > own || c >= own) << bit;
            }
        }
        block_mask[p.block_mask_at + (head * p.row_blocks + row) * words + word] = bits;
    }
}
