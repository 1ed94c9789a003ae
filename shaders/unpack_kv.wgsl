// Rows of a cache [n_kv_heads, capacity, head_dim] from `position` on, from the blocks that `pack_kv` made.
//
// One invocation per four elements.
struct Params {
    n_tokens: u32,
    n_kv_heads: u32,
    head_dim: u32,
    capacity: u32,
    position: u32,
    packed_at: u32,
    out_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> packed: array<u32>; // [n_kv_heads, capacity, head_dim / 32, 9]
@group(0) @binding(1) var<storage, read_write> out: array<Elem>; // [n_kv_heads, capacity, head_dim]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let quads = p.head_dim / 4u;
    let i = linear_group(at) * WORKGROUP + at.lane;
    let row = i / quads;
    if row >= p.n_tokens * p.n_kv_heads {
        return;
    }
    let quad = (row / p.n_tokens * p.capacity + p.position + row % p.n_tokens) * quads + i % quads;
    let words = p.packed_at + quad / 8u * 9u;
    let values = half_of(packed[words]) * signed_bytes_of(packed[words + 1u + quad % 8u]);
    let first = p.out_at + 4u * quad;
    out[first + 0u] = Elem(values.x);
    out[first + 1u] = Elem(values.y);
    out[first + 2u] = Elem(values.z);
    out[first + 3u] = Elem(values.w);
}
