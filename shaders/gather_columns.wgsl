// Copies the keys and values of each head's columns into their order, for the attention kernels with columns_compact.wgsl.
//
// One invocation per vec4 of a key or value. Places behind a head's last column repeat the last key; nothing reads them
// but tiles that mask them, and 0 * NaN is not 0.
struct Params {
    // heads of this dispatch; query heads per KV head, and the first head's place among those of its KV head
    heads: u32,
    group_size: u32,
    head_in_group: u32,
    head_dim: u32,
    kv_len: u32,
    // columns of a head, a multiple of 64
    width: u32,
    k_row_stride: u32,
    k_head_stride: u32,
    v_row_stride: u32,
    v_head_stride: u32,
    // where the slices begin in their bindings, in elements, those of vec4s in vec4s
    k_at: u32,
    v_at: u32,
    columns_at: u32,
    compact_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> k: array<vec4<Elem>>; // [kv_heads, kv_len, head_dim] under strides
@group(0) @binding(1) var<storage, read> v: array<vec4<Elem>>; // [kv_heads, kv_len, head_dim] under strides
@group(0) @binding(2) var<storage, read> columns: array<u32>; // [heads, width]
@group(0) @binding(3) var<storage, read_write> compact: array<vec4<Elem>>; // [heads, width, 2, head_dim]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let i = linear_group(at) * WORKGROUP + at.lane;
    let vecs = p.head_dim / 4u;
    let slot = i / (2u * vecs);
    if slot >= p.heads * p.width {
        return;
    }
    let x = i % (2u * vecs);
    let key = min(columns[p.columns_at + slot], p.kv_len - 1u);
    let kv_head = (p.head_in_group + slot / p.width) / p.group_size;
    if x < vecs {
        compact[p.compact_at + i] = k[p.k_at + kv_head * (p.k_head_stride / 4u) + key * (p.k_row_stride / 4u) + x];
    } else {
        compact[p.compact_at + i] = v[p.v_at + kv_head * (p.v_head_stride / 4u) + key * (p.v_row_stride / 4u) + x - vecs];
    }
}
