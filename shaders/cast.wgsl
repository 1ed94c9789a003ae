// out[i] = x[i] in another element type.
//
// One invocation per four elements. `w` is read by the weight fragments, which know every storage type.
struct Params {
    len: u32,
    w_at: u32,
    out_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> w: array<Weight>; // [len]
@group(0) @binding(1) var<storage, read_write> out: array<Out>; // [len]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let first = 4u * (linear_group(at) * WORKGROUP + at.lane);
    if first >= p.len {
        return;
    }
    let values = load_w4(first, p.len - first);
    for (var j = 0u; j < min(4u, p.len - first); j++) {
        out[p.out_at + first + j] = to_out(values[j]);
    }
}
