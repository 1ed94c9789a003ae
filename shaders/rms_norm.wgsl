// out[r, c] = x[r, c] / sqrt(mean(x[r, :]^2) + eps) * weight[c], for each group of `cols` columns of each row.
//
// One workgroup a group: its lanes stride over the columns twice, and meet in one sum.
struct Params {
    rows: u32,
    groups: u32,
    cols: u32,
    x_stride: u32,
    out_stride: u32,
    eps: f32,
    x_at: u32,
    weight_at: u32,
    out_at: u32,
}
var<immediate> p: Params;

// cols and strides in vectors of LANES elements
@group(0) @binding(0) var<storage, read> x: array<In>; // [rows, x_stride]
@group(0) @binding(1) var<storage, read> weight: array<Wide>; // [cols]
@group(0) @binding(2) var<storage, read_write> out: array<Out>; // [rows, out_stride]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let group = linear_group(at);
    // the same for the whole workgroup
    if group >= p.rows * p.groups {
        return;
    }
    let row = group / p.groups;
    let first = (group % p.groups) * p.cols;
    let source = p.x_at + row * p.x_stride + first;
    let slot = p.out_at + row * p.out_stride + first;

    // mean square
    var squares = 0.0;
    for (var c = at.lane; c < p.cols; c += WORKGROUP) {
        let value = Wide(x[source + c]);
        squares += square(value);
    }
    let mean = reduce_sum(squares, at) / f32(p.cols * LANES);

    // scale
    let scale = 1.0 / sqrt(mean + p.eps);
    for (var c = at.lane; c < p.cols; c += WORKGROUP) {
        out[slot + c] = to_out(Wide(x[source + c]) * scale * weight[p.weight_at + c]);
    }
}
