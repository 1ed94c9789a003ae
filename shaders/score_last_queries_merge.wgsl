// Pass 2 of score_last_queries: the maximum and the inverse sum of each of the last queries from those of all spans.
//
// One group of 256: one head; 64 rows x 4 shares of the spans.
struct Params {
    heads: u32,
    spans: u32,
    // where the slices begin in their bindings, in elements, those of vectors in vectors
    plan_at: u32,
    part_at: u32,
    stats_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [heads, 4]
@group(0) @binding(1) var<storage, read> part: array<vec2<f32>>; // [heads, spans, 64] maximum, sum; base 2
@group(0) @binding(2) var<storage, read_write> stats: array<vec2<f32>>; // [heads, 64] maximum, 1 / sum

var<workgroup> s_merge: array<vec2<f32>, 256>;

fn merge(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let m = max(a.x, b.x);
    return vec2<f32>(m, a.y * exp2(a.x - m) + b.y * exp2(b.x - m));
}

@compute @workgroup_size(256)
fn main(at: Invocation) {
    let head = linear_group(at);
    if head >= p.heads || plan[p.plan_at + 4u * head] != VERTICAL_SLASH {
        return;
    }
    let row = at.lane % 64u;
    var total = vec2<f32>(-1e30, 0.0);
    for (var span = at.lane / 64u; span < p.spans; span += 4u) {
        total = merge(total, part[p.part_at + (head * p.spans + span) * 64u + row]);
    }
    s_merge[at.lane] = total;
    workgroupBarrier();
    if at.lane < 64u {
        let all = merge(merge(total, s_merge[at.lane + 64u]), merge(s_merge[at.lane + 128u], s_merge[at.lane + 192u]));
        stats[p.stats_at + head * 64u + row] = vec2<f32>(all.x, 1.0 / all.y);
    }
}
