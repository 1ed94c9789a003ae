// Packed weights to activations, for products of so many rows that unpacking them once is less work than in every tile.
//
// One invocation per four elements.
struct Params {
    quads: u32,
    w_at: u32,
    out_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> w: array<Weight>; // [n, k]
@group(0) @binding(1) var<storage, read_write> out: array<vec4<Elem>>; // [n, k]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let i = linear_group(at) * WORKGROUP + at.lane;
    if i < p.quads {
        out[p.out_at + i] = vec4<Elem>(load_w4(4u * i, 4u));
    }
}
