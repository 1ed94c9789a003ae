// Offset scores gathered by 64, in place: half the sum of 64 neighbours goes to the first and to the last of them, the others
// become 0. Rows of mass 0 are left alone.
//
// One invocation a group of 64 offsets, 64 a workgroup.
struct Params {
    rows: u32,
    len: u32,
    // where the slices begin in their bindings, in elements
    budget_at: u32,
    scores_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> budget: array<u32>; // [rows, 4] mass, tau (f32 bits), least, most
@group(0) @binding(1) var<storage, read_write> scores: array<f32>; // [rows, len]

@compute @workgroup_size(64)
fn main(at: Invocation) {
    let groups = (p.len + 63u) / 64u;
    let id = linear_group(at) * 64u + at.lane;
    let row = id / groups;
    if row >= p.rows || bitcast<f32>(budget[p.budget_at + 4u * row]) <= 0.0 {
        return;
    }
    let first = 64u * (id % groups);
    let end = min(first + 64u, p.len);
    let base = p.scores_at + row * p.len;
    var sum = 0.0;
    for (var i = first; i < end; i++) {
        sum += scores[base + i];
        scores[base + i] = 0.0;
    }
    scores[base + first] += 0.5 * sum;
    scores[base + end - 1u] += 0.5 * sum;
}
