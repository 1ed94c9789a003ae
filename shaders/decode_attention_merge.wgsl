// The output of decode_attention from that of its splits: the mean of their values, weighted by their sums under a common
// maximum.
//
// One group of 64 a head and query, a vec4 of the head an invocation.
struct Params {
    heads: u32,
    q_len: u32,
    head_dim: u32,
    splits: u32,
    out_row_stride: u32,
    out_head_stride: u32,
    // 1: the log-sum-exp is written too
    write_lse: u32,
    // where the slices begin in their bindings, in vectors
    sums_at: u32,
    stats_at: u32,
    out_at: u32,
    lse_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> sums: array<vec4<f32>>; // [heads, q_len, splits, head_dim]
@group(0) @binding(1) var<storage, read> stats: array<vec2<f32>>; // [heads, q_len, splits]: maximum (base 2), sum
@group(0) @binding(2) var<storage, read_write> out: array<Out>; // [heads, q_len, head_dim] under strides
@group(0) @binding(3) var<storage, read_write> lse: array<f32>; // [heads, q_len], natural logarithm

const LN_2: f32 = 0.6931471805599453;

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let row = linear_group(at);
    let vecs = p.head_dim / 4u;
    if row >= p.heads * p.q_len || at.lane >= vecs {
        return;
    }
    let first = p.stats_at + row * p.splits;
    var m = stats[first].x;
    for (var i = 1u; i < p.splits; i++) {
        m = max(m, stats[first + i].x);
    }
    // Every query sees key 0, so the total weight is not zero.
    var weight = 0.0;
    var sum = vec4<f32>();
    for (var i = 0u; i < p.splits; i++) {
        let scale = exp2(stats[first + i].x - m);
        weight += stats[first + i].y * scale;
        sum += sums[p.sums_at + (row * p.splits + i) * vecs + at.lane] * scale;
    }
    let place = row / p.q_len * (p.out_head_stride / 4u) + row % p.q_len * (p.out_row_stride / 4u);
    out[p.out_at + place + at.lane] = to_out(sum / weight);
    if p.write_lse == 1u && at.lane == 0u {
        lse[p.lse_at + row] = (m + log2(weight)) * LN_2;
    }
}
