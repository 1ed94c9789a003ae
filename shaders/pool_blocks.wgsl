// out[h, b, d] = mean of x[h, 64 b .. 64 b + 64, d]; a short last block is divided by 64 all the same.
//
// One invocation a vec4 of a block's mean, 256 a group.
struct Params {
    n_heads: u32,
    len: u32,
    head_dim: u32,
    row_stride: u32,
    head_stride: u32,
    blocks: u32,
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
    for (var row = 64u * block; row < min(64u * block + 64u, p.len); row++) {
        sum += vec4<f32>(x[base + row * (p.row_stride / 4u)]);
    }
    sum *= 1.0 / 64.0;
//@for j 0 4
    out[p.out_at + 4u * i + ${j}u] = sum[${j}];
//@end
}
