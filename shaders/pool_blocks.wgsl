// out[h, b, d] = mean of x[h, 64 b .. 64 b + 64, d]; padded divides a short last block by 64 all the same.
//
// One invocation a vec4 of a block's mean, 256 a group.
struct Params {
    n_heads: u32,
    len: u32,
    head_dim: u32,
    row_stride: u32,
    head_stride: u32,
    blocks: u32,
    padded: u32,
    // where the slices begin in their bindings, x in vec4s
    x_at: u32,
    out_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<vec4<Elem>>; // [n_heads, len, head_dim] under strides
@group(0) @binding(1) var<storage, read_write> out: array<f32>; // [n_heads, blocks, head_dim]

@compute @workgroup_size(256)
fn main(at: Invocation) {
    let i = linear_group(at) * 256u + at.lane;
    let vecs = p.head_dim / 4u;
    let head = i / (vecs * p.blocks);
    if head >= p.n_heads {
        return;
    }
    let block = i / vecs % p.blocks;
    let base = p.x_at + head * (p.head_stride / 4u) + i % vecs;
    var sum = vec4<f32>();
    let first = 64u * block;
    let end = min(first + 64u, p.len);
    for (var row = first; row < end; row++) {
        sum += vec4<f32>(x[base + row * (p.row_stride / 4u)]);
    }
    sum *= 1.0 / f32(select(end - first, 64u, p.padded == 1u));
//@for j 0 4
    out[p.out_at + 4u * i + ${j}u] = sum[${j}];
//@end
}
