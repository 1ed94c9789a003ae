// out[i] += x[i].
//
// One invocation per vector of one or four elements, 256 a group, groups folded into y.
struct Params {
    len: u32, // in vectors
    // where the slices begin in their bindings, in vectors
    x_at: u32,
    out_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<In>; // [len]
@group(0) @binding(1) var<storage, read_write> out: array<Wide>; // [len]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let i = linear_group(at) * WORKGROUP + at.lane;
    if i < p.len {
        out[p.out_at + i] += Wide(x[p.x_at + i]);
    }
}
