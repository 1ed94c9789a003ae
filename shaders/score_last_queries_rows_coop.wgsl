// Pass 1 of score_last_queries on cooperative matrices of known layout: the largest score of each of the last queries, and
// the sum of exponentials under it, over one span of SPAN_TILES * 64 keys. The scores are computed again in pass 3: storing
// them would take 64 * 4 bytes a key.
//
// One group of 128: one head and one span, of which each subgroup has every fourth run of 16 keys. A lane keeps the maximum
// and the sum of its 16 queries over its own keys; they are merged at the end.
struct Params {
    // heads of this dispatch; query heads per KV head, and the first head's place among those of its KV head
    heads: u32,
    group_size: u32,
    head_in_group: u32,
    head_dim: u32,
    kv_len: u32,
    // how many the last queries are, at most 64, and the key position of the first
    last_q: u32,
    first_position: u32,
    spans: u32,
    // the spans of this dispatch, whose keys alone are bound
    span_first: u32,
    span_count: u32,
    scale: f32,
    q_row_stride: u32,
    q_head_stride: u32,
    k_row_stride: u32,
    k_head_stride: u32,
    // where the slices begin in their bindings, in elements, those of vectors in vectors
    plan_at: u32,
    q_at: u32,
    k_at: u32,
    part_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [heads, 4]
@group(0) @binding(3) var<storage, read_write> part: array<vec2<f32>>; // [heads, spans, 64] maximum, sum; base 2

const LOG2_E: f32 = 1.4426950408889634;
const MASKED: f32 = -3e38;
const LOWEST: f32 = -1e30;

var<workgroup> s_merge: array<vec2<f32>, 256>;

fn merge(m: vec4<f32>, l: vec4<f32>, other_m: vec4<f32>, other_l: vec4<f32>) -> array<vec4<f32>, 2> {
    let top = max(m, other_m);
    return array<vec4<f32>, 2>(top, l * exp2(m - top) + other_l * exp2(other_m - top));
}

@compute @workgroup_size(128)
fn main(at: Invocation) {
    let id = linear_group(at);
    let head = id / p.span_count;
    let span = p.span_first + id % p.span_count;
    if head >= p.heads || plan[p.plan_at + 4u * head] != VERTICAL_SLASH {
        return;
    }
    let lane = at.subgroup_lane;
    let thread = at.subgroup * 32u + lane;
    let q_base = p.q_at / 2u + head * (p.q_head_stride / 8u);
    // Where only some keys are bound it may lie before them, as a negative number.
    let k_base = bitcast<u32>(bitcast<i32>(p.k_at) >> 1u) + (p.head_in_group + head) / p.group_size * (p.k_head_stride / 8u);
    let scale = p.scale * LOG2_E;
    let key_end = min((span + 1u) * SPAN_TILES * 64u, p.kv_len);
    let key_start = span * SPAN_TILES * 64u + 16u * at.subgroup;
    fetch_keys(lane, k_base, key_start, key_end);
    stage_queries(thread, q_base);
    workgroupBarrier();

//@for b 0 4
    let position${b} = vec4<u32>(p.first_position + ${16*b}u) + query_of(lane);
    var m${b} = vec4<f32>(LOWEST);
    var l${b} = vec4<f32>();
//@end
    for (var key0 = key_start; key0 < key_end; key0 += 64u) {
        var scores = score_keys(lane);
        fetch_keys(lane, k_base, key0 + 64u, key_end);
        // Causal; that bounds keys too, because positions are below kv_len.
        let masked = key0 + 15u > p.first_position;
        let key = key0 + lane / 4u;
//@for b 0 4
        {
            var low = scores[${2*b}] * scale;
            var high = scores[${2*b+1}] * scale;
            if masked {
                low = select(vec4<f32>(MASKED), low, vec4<u32>(key) <= position${b});
                high = select(vec4<f32>(MASKED), high, vec4<u32>(key + 8u) <= position${b});
            }
            let m = max(m${b}, max(low, high));
            l${b} = l${b} * exp2(m${b} - m) + exp2(low - m) + exp2(high - m);
            m${b} = m;
        }
//@end
    }

    // merge the lanes that have the same queries, then the subgroups
//@for b 0 4
    {
        for (var x = 4u; x < 32u; x *= 2u) {
            let both = merge(m${b}, l${b}, subgroupShuffleXor(m${b}, x), subgroupShuffleXor(l${b}, x));
            m${b} = both[0];
            l${b} = both[1];
        }
        if lane < 4u {
            let place = vec4<u32>(at.subgroup * 64u + ${16*b}u) + query_of(lane);
//@for j 0 4
            s_merge[place[${j}]] = vec2<f32>(m${b}[${j}], l${b}[${j}]);
//@end
        }
    }
//@end
    workgroupBarrier();
    if thread < 64u {
        var m = LOWEST;
        var l = 0.0;
        for (var x = 0u; x < 4u; x++) {
            let one = s_merge[64u * x + thread];
            let top = max(m, one.x);
            l = l * exp2(m - top) + one.y * exp2(one.x - top);
            m = top;
        }
        part[p.part_at + (head * p.spans + span) * 64u + thread] = vec2<f32>(m, l);
    }
}
