// Rows gathered by `fold`, each group one long row: out[h, u, i] = x[h, u * fold + i], or row u * fold + fold - 1 - i; zeros
// behind the last row. One invocation a vec4.
struct Params {
    n_heads: u32,
    len: u32,
    head_dim: u32,
    row_stride: u32,
    head_stride: u32,
    fold: u32,
    reverse: u32,
    // where the slices begin in their bindings, in vec4s
    x_at: u32,
    out_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<Elem>>; // [n_heads, len, head_dim] under strides
@group(0) @binding(1) var<storage, read_write> out: array<vec4<Elem>>; // [n_heads, ceil(len / fold), fold, head_dim]

@compute @workgroup_size(256)
fn main(at: Invocation) {
    let id = linear_group(at) * 256u + at.lane;
    let width = p.head_dim / 4u;
    let groups = (p.len + p.fold - 1u) / p.fold;
    let head = id / (groups * p.fold * width);
    if head >= p.n_heads {
        return;
    }
    let place = id / width % p.fold;
    let group = id / (width * p.fold) % groups;
    let row = group * p.fold + select(place, p.fold - 1u - place, p.reverse != 0u);
    var value = vec4<Elem>();
    if row < p.len {
        value = x[p.x_at + head * (p.head_stride / 4u) + row * (p.row_stride / 4u) + id % width];
    }
    out[p.out_at + id] = value;
}
