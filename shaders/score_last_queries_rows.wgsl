// Pass 1 of score_last_queries: the largest score of each of the last queries, and the sum of exponentials under it, over
// one span of SPAN_TILES * 64 keys. The scores are computed again in pass 3: storing them would take 64 * 4 bytes a key.
//
// One group of 128: one head and one span. An invocation keeps its own maximum and sum of each of its rows, and those that
// share a row merge them at the end.
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

var<workgroup> s_merge: array<vec2<f32>, 64u * (LANES_ROW + 1u)>;
var<private> q_base: u32;
var<private> k_base: u32;
var<private> key0: u32;

@compute @workgroup_size(128)
fn main(at: Invocation) {
    let id = linear_group(at);
    let head = id / p.span_count;
    let span = p.span_first + id % p.span_count;
    if head >= p.heads || plan[p.plan_at + 4u * head] != VERTICAL_SLASH {
        return;
    }
    let lane = tile_lane(at);
    q_base = p.q_at + head * (p.q_head_stride / 4u);
    k_base = p.k_at + (p.head_in_group + head) / p.group_size * (p.k_head_stride / 4u);
    let scale = p.scale * LOG2_E;
    start_tiles(at);
    let key_end = min((span + 1u) * SPAN_TILES * 64u, p.kv_len);

//@for i 0 ROWS_MINE
    var m${i} = LOWEST;
    var l${i} = 0.0;
//@end
    for (key0 = span * SPAN_TILES * 64u; key0 < key_end; key0 += 64u) {
        let tile = score_tile(at);
//@for x 0 VECS_MINE
        let columns${x} = tile_columns(lane, ${x}u);
        let keys${x} = columns${x} + vec4<u32>(key0);
//@end
//@for i 0 ROWS_MINE
        {
            // Causal; that bounds keys too, because positions are below kv_len.
            let last = vec4<u32>(p.first_position + tile_row(lane, ${i}u));
            var top = vec4<f32>(MASKED);
//@for x 0 VECS_MINE
            let s${x} = select(vec4<f32>(MASKED), tile[${i*VECS_MINE+x}] * scale, keys${x} <= last);
            top = max(top, s${x});
//@end
            let m = max(m${i}, max(max(top.x, top.y), max(top.z, top.w)));
            var sum = vec4<f32>();
//@for x 0 VECS_MINE
            sum += exp2(s${x} - m);
//@end
            l${i} = l${i} * exp2(m${i} - m) + dot(sum, vec4<f32>(1.0));
            m${i} = m;
        }
//@end
    }

    // merge those of a row
//@for i 0 ROWS_MINE
    s_merge[tile_row(lane, ${i}u) * (LANES_ROW + 1u) + tile_share(lane)] = vec2<f32>(m${i}, l${i});
//@end
    workgroupBarrier();
    if lane < 64u {
        var m = LOWEST;
        for (var x = 0u; x < LANES_ROW; x++) {
            m = max(m, s_merge[lane * (LANES_ROW + 1u) + x].x);
        }
        var l = 0.0;
        for (var x = 0u; x < LANES_ROW; x++) {
            let one = s_merge[lane * (LANES_ROW + 1u) + x];
            l += one.y * exp2(one.x - m);
        }
        part[p.part_at + (head * p.spans + span) * 64u + lane] = vec2<f32>(m, l);
    }
}
