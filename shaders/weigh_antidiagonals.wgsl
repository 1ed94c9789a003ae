// Logarithms of the attention that a row block gives each key block, by groups of `fold` queries and keys: the softmax of each of
// its groups over the groups of keys that begin at or before its last query, summed (XAttention). -inf behind the row
// block.
//
// One group a row block of one head under ROW_MASS; an invocation owns whole key blocks.
struct Params {
    n_heads: u32,
    key_blocks: u32,
    band_start: u32,
    band_len: u32,
    q_start: u32,
    q_len: u32,
    fold: u32,
    groups: u32,
    scale: f32,
    // where the slices begin in their bindings, in elements
    plan_at: u32,
    products_at: u32,
    scores_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [n_heads, 4]
@group(0) @binding(1) var<storage, read> products: array<f32>; // [n_heads, band_len * 64 / fold, groups]
@group(0) @binding(2) var<storage, read_write> scores: array<f32>; // [n_heads, band_len, key_blocks]

const LOWEST: f32 = -3e38;
const LEAST: f32 = 1e-37;

// A variable, because WGSL has no infinite constants.
var<private> negative_infinity: u32 = 0xff800000u;

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let id = linear_group(at);
    let head = id / p.band_len;
    if head >= p.n_heads {
        return;
    }
    let its = p.plan_at + 4u * head;
    if plan[its] != BLOCK_SPARSE || plan[its + 3u] != ROW_MASS {
        return;
    }
    let first = 64u * (p.band_start + id % p.band_len);
    let of_block = 64u / p.fold;
    let out = p.scores_at + id * p.key_blocks;
    for (var i = 0u; i < of_block; i++) {
        let query = first + i * p.fold;
        if query < p.q_len {
            let last = p.q_start + min(query + p.fold, p.q_len) - 1u;
            let seen = min(p.groups, last / p.fold + 1u);
            let base = p.products_at + (id * of_block + i) * p.groups;

            // softmax
            var mine = LOWEST;
            for (var w = at.lane; w < seen; w += WORKGROUP) {
                mine = max(mine, products[base + w]);
            }
            let largest = group_max(at, mine);
            mine = 0.0;
            for (var w = at.lane; w < seen; w += WORKGROUP) {
                mine += exp((products[base + w] - largest) * p.scale);
            }
            let inverse = 1.0 / group_sum(at, mine);

            // by block
            for (var c = at.lane; c < p.key_blocks; c += WORKGROUP) {
                var sum = 0.0;
                for (var w = c * of_block; w < min(seen, (c + 1u) * of_block); w++) {
                    sum += exp((products[base + w] - largest) * p.scale);
                }
                scores[out + c] = sum * inverse + select(scores[out + c], 0.0, i == 0u);
            }
        }
    }
    let last = p.q_start + min(first + 64u, p.q_len) - 1u;
    for (var c = at.lane; c < p.key_blocks; c += WORKGROUP) {
        scores[out + c] = select(bitcast<f32>(negative_infinity), log(max(scores[out + c], LEAST)), 64u * c <= last);
    }
}
