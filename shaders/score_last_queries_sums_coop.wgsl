// Pass 3 of score_last_queries on cooperative matrices of known layout: probabilities of the last queries, summed by key
// column and by diagonal:
//
//     column_score[j] = sum_a P[a, j],     offset_score[o] = sum_a P[a, position(a) - o]
//
// One group of 128: one head and one span of SPAN_TILES * 64 keys, whose columns it owns, and the diagonals whose key in the
// last query's row lies in the span. A diagonal u (that key) runs through keys u - 63 .. u, so the group begins one tile
// before its span: 1 / SPAN_TILES more work, and sums that no two groups share, in a fixed order.
//
// A tile of 64 keys has 127 diagonals. Each of 64 invocations sums the two whose places in a row lie 64 apart: exactly one
// of them has an element in each row. The second goes on in the next tile, as the first of the same invocation.
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
    stats_at: u32,
    column_score_at: u32,
    offset_score_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [heads, 4]
@group(0) @binding(3) var<storage, read> stats: array<vec2<f32>>; // [heads, 64] maximum, 1 / sum
@group(0) @binding(4) var<storage, read_write> column_score: array<f32>; // [heads, kv_len]
@group(0) @binding(5) var<storage, read_write> offset_score: array<f32>; // [heads, kv_len]

const LOG2_E: f32 = 1.4426950408889634;
// Four neighbouring queries of a key lie 8 banks apart.
const P_PITCH: u32 = 68u;

var<workgroup> s_p: array<f32, 64u * P_PITCH>; // [queries, keys]

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
    let own_start = span * SPAN_TILES * 64u;
    let own_end = min(own_start + SPAN_TILES * 64u, p.kv_len);
    let out_base = head * p.kv_len;
    let last = p.last_q - 1u;
    let last_position = p.first_position + last;
    let key_start = own_start - min(own_start, 64u);
    fetch_keys(lane, k_base, key_start + 16u * at.subgroup, own_end);
    stage_queries(thread, q_base);

    // of this lane's queries the position, the maximum, and 1 / sum: zero for those past the last
//@for b 0 4
    let position${b} = vec4<u32>(p.first_position + ${16*b}u) + query_of(lane);
    var m${b}: vec4<f32>;
    var inverse${b}: vec4<f32>;
//@for j 0 4
    if query_of(lane)[${j}] + ${16*b}u < p.last_q {
        let one = stats[p.stats_at + head * 64u + query_of(lane)[${j}] + ${16*b}u];
        m${b}[${j}] = one.x;
        inverse${b}[${j}] = one.y;
    }
//@end
//@end
    workgroupBarrier();

    var carry = 0.0;
    for (var key0 = key_start; key0 < own_end; key0 += 64u) {
        let first = key0 + 16u * at.subgroup;
        var scores = score_keys(lane);
        fetch_keys(lane, k_base, first + 64u, own_end);
        let masked = first + 15u > p.first_position;
        let key = first + lane / 4u;
        let place = 16u * at.subgroup + lane / 4u;
        var columns = vec2<f32>();
//@for b 0 4
        {
            var low = exp2(scores[${2*b}] * scale - m${b}) * inverse${b};
            var high = exp2(scores[${2*b+1}] * scale - m${b}) * inverse${b};
            if masked {
                low = select(vec4<f32>(), low, vec4<u32>(key) <= position${b});
                high = select(vec4<f32>(), high, vec4<u32>(key + 8u) <= position${b});
            }
            columns += vec2<f32>(dot(low, vec4<f32>(1.0)), dot(high, vec4<f32>(1.0)));
            scores[${2*b}] = low;
            scores[${2*b+1}] = high;
        }
//@end
        columns += subgroupShuffleXor(columns, 1u);
        columns += subgroupShuffleXor(columns, 2u);
        if lane % 4u == 0u && key0 >= own_start {
            if key < own_end {
                column_score[p.column_score_at + out_base + key] = columns.x;
            }
            if key + 8u < own_end {
                column_score[p.column_score_at + out_base + key + 8u] = columns.y;
            }
        }
        // The diagonals of the tile before are summed.
        workgroupBarrier();
//@for b 0 4
        {
            let row = (vec4<u32>(${16*b}u) + query_of(lane)) * P_PITCH + place;
//@for j 0 4
            s_p[row[${j}]] = scores[${2*b}][${j}];
            s_p[row[${j}] + 8u] = scores[${2*b+1}][${j}];
//@end
        }
//@end
        workgroupBarrier();
        if thread < 64u {
            // Row a has of this invocation's diagonals place thread + a - last, of the first where that is not negative. Rows
            // past the last are zero.
            var one = vec2<f32>(carry, 0.0);
            var two = vec2<f32>();
//@for a 0 32
            {
                let x = s_p[${2*a}u * P_PITCH + (thread + ${2*a}u - last) % 64u];
                let y = s_p[${2*a+1}u * P_PITCH + (thread + ${2*a+1}u - last) % 64u];
                one += select(vec2<f32>(0.0, x), vec2<f32>(x, 0.0), thread + ${2*a}u >= last);
                two += select(vec2<f32>(0.0, y), vec2<f32>(y, 0.0), thread + ${2*a+1}u >= last);
            }
//@end
            carry = one.y + two.y;
            let key = key0 + thread;
            if key >= own_start && key < own_end {
                // No query sees an offset past the last position: those get zero.
                let offset = select(key, last_position - key, key <= last_position);
                offset_score[p.offset_score_at + out_base + offset] = select(0.0, one.x + two.x, key <= last_position);
            }
        }
    }
}
