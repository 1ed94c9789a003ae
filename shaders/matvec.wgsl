// out[r, c] (+)= sum_k x[r, k] * w[c, k] + bias[c] for the few rows of decoding: memory-bound, every weight read once.
//
// One team of lanes for four columns of one row: its lanes stride over k four elements at a time, and meet in one sum.
// Rows are the fastest part of the group's number, so that groups that run together share the weights in the cache.
struct Params {
    m: u32,
    n: u32,
    k: u32,
    x_stride: u32,
    out_stride: u32,
    accumulate: u32,
    x_at: u32,
    w_at: u32,
    bias_at: u32,
    out_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<In>; // [m, x_stride]
@group(0) @binding(1) var<storage, read> w: array<Weight>; // [n, k]
@group(0) @binding(2) var<storage, read> bias: array<f32>; // [n]
@group(0) @binding(3) var<storage, read_write> out: array<Out>; // [m, out_stride]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let group = linear_group(at);
    let row = group % p.m;
    let first = 4u * ((group / p.m) * TEAMS + team(at));
    // columns past the end repeat the last one and are not stored
    let columns = min(vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u));
    let rows = columns * p.k;

    // dot products
    var sums = vec4<f32>();
    for (var k = 4u * team_lane(at); k < p.k; k += 4u * team_size(at)) {
        let valid = p.k - k;
        let values = load_x4(row * p.x_stride + k, valid);
        sums += vec4<f32>(
            dot(values, load_w4(rows.x + k, valid)),
            dot(values, load_w4(rows.y + k, valid)),
            dot(values, load_w4(rows.z + k, valid)),
            dot(values, load_w4(rows.w + k, valid)),
        );
    }
    sums = team_sum(sums, at);

    // store
    if team_lane(at) == 0u && team(at) < TEAMS {
        finish(row, first, sums.x);
        finish(row, first + 1u, sums.y);
        finish(row, first + 2u, sums.z);
        finish(row, first + 3u, sums.w);
    }
}
