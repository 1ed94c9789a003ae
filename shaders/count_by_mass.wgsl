// counts[r] = the fewest scores of row r, the first `forced` and then the largest, whose sum reaches the budget's part of the
// row's sum, within the budget's least and most. Scores of one bin (mass.wgsl) are taken together. Rows of mass 0 are left alone.
//
// One group a row: a histogram of the row's mass, then a count of what lies in the bins that were taken.
struct Params {
    rows: u32,
    len: u32,
    forced: u32,
    unit: f32,
    // where the slices begin in their bindings, in elements
    budget_at: u32,
    scores_at: u32,
    counts_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> budget: array<u32>; // [rows, 4] mass, tau (f32 bits), least, most
@group(0) @binding(1) var<storage, read> scores: array<f32>; // [rows, len]
@group(0) @binding(2) var<storage, read_write> counts: array<u32>; // [rows]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let row = linear_group(at);
    if row >= p.rows {
        return;
    }
    let mass = bitcast<f32>(budget[p.budget_at + 4u * row]);
    if mass <= 0.0 {
        return;
    }
    let base = p.scores_at + row * p.len;

    // mass by size; the forced ones apart
    clear_mass(at);
    var forced = 0u;
    for (var i = at.lane; i < p.len; i += WORKGROUP) {
        let weight = scores[base + i] * p.unit;
        if i < p.forced {
            forced += u32(weight * ONE + 0.5);
        } else {
            add_mass(weight, ONE);
        }
    }
    let credit = scan_exclusive(at, forced).y;
    let taken = bins_taken(at, mass, credit);

    // count
    var mine = 0u;
    for (var i = at.lane; i < p.len; i += WORKGROUP) {
        mine += u32(i >= p.forced && bin_of(scores[base + i] * p.unit) < taken);
    }
    let among = scan_exclusive(at, mine).y;
    if at.lane == 0u {
        let most = budget[p.budget_at + 4u * row + 3u];
        let count = max(p.forced + among, budget[p.budget_at + 4u * row + 2u]);
        counts[p.counts_at + row] = min(min(count, select(most, p.len, most == 0u)), p.len);
    }
}
