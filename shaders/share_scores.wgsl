// Each of `share` neighbouring rows of scores becomes their mean, without those whose plan is dense, which stay as they are.
// One invocation a column of the rows that share.
struct Params {
    rows: u32,
    share: u32,
    len: u32,
    // where the slices begin in their bindings, in elements
    plan_at: u32,
    scores_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [rows, 4]
@group(0) @binding(1) var<storage, read_write> scores: array<f32>; // [rows, len]

@compute @workgroup_size(256)
fn main(at: Invocation) {
    let id = linear_group(at) * 256u + at.lane;
    let first = id / p.len * p.share;
    if first >= p.rows {
        return;
    }
    var sum = 0.0;
    var members = 0u;
    for (var row = first; row < first + p.share; row++) {
        if plan[p.plan_at + 4u * row] != DENSE {
            sum += scores[p.scores_at + row * p.len + id % p.len];
            members++;
        }
    }
    let mean = sum / f32(max(members, 1u));
    for (var row = first; row < first + p.share; row++) {
        if plan[p.plan_at + 4u * row] != DENSE {
            scores[p.scores_at + row * p.len + id % p.len] = mean;
        }
    }
}
