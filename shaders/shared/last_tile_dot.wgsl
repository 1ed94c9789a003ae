// Scores of 64 queries against 64 keys for score_last_queries, in f32: an invocation has 8 rows x 4 neighbouring keys.
@group(0) @binding(1) var<storage, read> q: array<vec4<Elem>>; // [heads, last_q, head_dim] under strides
@group(0) @binding(2) var<storage, read> k: array<vec4<Elem>>; // [kv_heads, kv_len, head_dim] under strides

// Lanes that share a row.
const LANES_ROW: u32 = 16u;

fn load_a(row: u32, d: u32) -> vec4<f32> {
    if row >= p.last_q || d >= p.head_dim / 4u {
        return vec4<f32>();
    }
    return vec4<f32>(q[q_base + row * (p.q_row_stride / 4u) + d]);
}

fn load_b(column: u32, d: u32) -> vec4<f32> {
    if key0 + column >= p.kv_len || d >= p.head_dim / 4u {
        return vec4<f32>();
    }
    return vec4<f32>(k[k_base + (key0 + column) * (p.k_row_stride / 4u) + d]);
}

fn tile_lane(at: Invocation) -> u32 {
    return at.lane;
}

fn start_tiles(at: Invocation) {
}

// The row of the i-th result, the columns of its x-th vector, and the lane's place among those of a row.
fn tile_row(lane: u32, i: u32) -> u32 {
    return 8u * (lane / 16u) + i;
}

fn tile_columns(lane: u32, x: u32) -> vec4<u32> {
    return vec4<u32>(4u * (lane % 16u)) + vec4<u32>(0u, 1u, 2u, 3u);
}

fn tile_share(lane: u32) -> u32 {
    return lane % 16u;
}

// Keys from key0 on; one vector a row.
fn score_tile(at: Invocation) -> array<vec4<f32>, 8> {
    return dot_tile(at.lane);
}
