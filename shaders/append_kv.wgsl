// Copies k and v [n_tokens, n_kv_heads, head_dim] into caches [n_kv_heads, capacity, head_dim] from `position` on.
//
// One invocation per vector of one or four elements of both; head_dim and row_stride are in vectors.
struct Params {
    n_tokens: u32,
    n_kv_heads: u32,
    head_dim: u32,
    row_stride: u32,
    capacity: u32,
    position: u32,
    k_at: u32,
    v_at: u32,
    k_cache_at: u32,
    v_cache_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> k: array<In>; // [n_tokens, row_stride]
@group(0) @binding(1) var<storage, read> v: array<In>; // [n_tokens, row_stride]
@group(0) @binding(2) var<storage, read_write> k_cache: array<In>; // [n_kv_heads, capacity, head_dim]
@group(0) @binding(3) var<storage, read_write> v_cache: array<In>; // [n_kv_heads, capacity, head_dim]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let width = p.n_kv_heads * p.head_dim;
    let i = linear_group(at) * WORKGROUP + at.lane;
    let token = i / width;
    let column = i % width;
    if token >= p.n_tokens {
        return;
    }
    let head = column / p.head_dim;
    let source = token * p.row_stride + column;
    let slot = (head * p.capacity + p.position + token) * p.head_dim + column % p.head_dim;
    k_cache[p.k_cache_at + slot] = k[p.k_at + source];
    v_cache[p.v_cache_at + slot] = v[p.v_at + source];
}
