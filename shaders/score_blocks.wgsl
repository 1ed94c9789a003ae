// scores[h, r, c] = pooled_q[h, band_start + r] . pooled_k[kv, c], -inf where key block c begins after the row block's last
// query (paper, Algorithm 3, without the softmax, which keeps the order).
//
// One group of 128: a tile of 64 row blocks x 64 key blocks of one block-sparse head.
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
    pooled_q_at: u32,
    pooled_k_at: u32,
    scores_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [n_heads, 4]
@group(0) @binding(1) var<storage, read> pooled_q: array<f32>; // [n_heads, row_blocks, head_dim]
@group(0) @binding(2) var<storage, read> pooled_k: array<f32>; // [n_kv_heads, key_blocks, head_dim]
@group(0) @binding(3) var<storage, read_write> scores: array<f32>; // [n_heads, band_len, key_blocks]

// A variable, because WGSL has no infinite constants.
var<private> negative_infinity: u32 = 0xff800000u;
var<private> q_base: u32;
var<private> k_base: u32;
var<private> row0: u32;
var<private> column0: u32;

fn load_a(row: u32, d: u32) -> vec4<f32> {
    if row0 + row >= p.band_len || d >= p.head_dim / 4u {
        return vec4<f32>();
    }
    let at = q_base + row * p.head_dim + 4u * d;
    return vec4<f32>(pooled_q[at], pooled_q[at + 1u], pooled_q[at + 2u], pooled_q[at + 3u]);
}

fn load_b(column: u32, d: u32) -> vec4<f32> {
    if column0 + column >= p.key_blocks || d >= p.head_dim / 4u {
        return vec4<f32>();
    }
    let at = k_base + column * p.head_dim + 4u * d;
    return vec4<f32>(pooled_k[at], pooled_k[at + 1u], pooled_k[at + 2u], pooled_k[at + 3u]);
}

@compute @workgroup_size(128)
fn main(at: Invocation) {
    let tiles_across = (p.key_blocks + 63u) / 64u;
    let tiles_down = (p.band_len + 63u) / 64u;
    let id = linear_group(at);
    let head = id / (tiles_across * tiles_down);
    if head >= p.n_heads || plan[p.plan_at + 4u * head] != BLOCK_SPARSE {
        return;
    }
    row0 = id / tiles_across % tiles_down * 64u;
    column0 = id % tiles_across * 64u;
    // Where no row block of the tile sees a key block there is nothing to multiply.
    let last_row = p.band_start + min(row0 + 63u, p.band_len - 1u);
    let seen = column0 * 64u <= p.q_start + min(64u * last_row + 63u, p.q_len - 1u);
    q_base = p.pooled_q_at + (head * p.row_blocks + p.band_start + row0) * p.head_dim;
    k_base = p.pooled_k_at + (head / (p.n_heads / p.n_kv_heads) * p.key_blocks + column0) * p.head_dim;
    var tile: array<vec4<f32>, 8>;
    if seen {
        tile = dot_tile(at.lane);
    }

    let tx = at.lane % 16u;
    let ty = at.lane / 16u;
//@for i 0 8
    {
        let row = row0 + 8u * ty + ${i}u;
        let last_query = p.q_start + min(64u * (p.band_start + row) + 63u, p.q_len - 1u);
        let base = p.scores_at + (head * p.band_len + row) * p.key_blocks;
//@for j 0 4
        {
            let column = column0 + 4u * tx + ${j}u;
            if row < p.band_len && column < p.key_blocks {
                scores[base + column] = select(bitcast<f32>(negative_infinity), tile[${i}][${j}], 64u * column <= last_query);
            }
        }
//@end
    }
//@end
}
