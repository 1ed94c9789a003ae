// Adds the softmax weights of each row block's key blocks to its head's mass, by their size (mass.wgsl), for block-sparse heads
// of the rule HEAD_MASS.
//
// One group a row block: the softmax, a histogram of the row's own, then its bins into the head's.
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
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [n_heads, 4]
@group(0) @binding(1) var<storage, read> scores: array<f32>; // [n_heads, band_len, key_blocks]
@group(0) @binding(2) var<storage, read_write> mass: array<atomic<u32>>; // [n_heads, BINS]

const LOWEST: f32 = -3e38;

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let id = linear_group(at);
    let head = id / p.band_len;
    if head >= p.n_heads || plan[p.plan_at + 4u * head] != BLOCK_SPARSE || plan[p.plan_at + 4u * head + 3u] != HEAD_MASS {
        return;
    }
    let row = p.band_start + id % p.band_len;
    let last_query = p.q_start + min(64u * row + 63u, p.q_len - 1u);
    let seen = min(last_query / 64u + 1u, p.key_blocks);
    let base = p.scores_at + id * p.key_blocks;

    // softmax
    var mine = LOWEST;
    for (var c = at.lane; c < seen; c += WORKGROUP) {
        mine = max(mine, scores[base + c]);
    }
    let largest = group_max(at, mine);
    mine = 0.0;
    for (var c = at.lane; c < seen; c += WORKGROUP) {
        mine += exp((scores[base + c] - largest) * p.scale);
    }
    let inverse = 1.0 / group_sum(at, mine);

    // mass by size
    clear_mass(at);
    for (var c = at.lane; c < seen; c += WORKGROUP) {
        add_mass(exp((scores[base + c] - largest) * p.scale) * inverse, ONE / f32(p.row_blocks));
    }
    workgroupBarrier();
    for (var b = at.lane; b < BINS; b += WORKGROUP) {
        let here = atomicLoad(&s_mass[b]);
        if here > 0u {
            atomicAdd(&mass[p.mass_at + head * BINS + b], here);
        }
    }
}
