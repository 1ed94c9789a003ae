// Pass 3 of score_last_queries: probabilities of the last queries, summed by key column and by diagonal:
//
//     column_score[j] = sum_a P[a, j],     offset_score[o] = sum_a P[a, position(a) - o]
//
// One group of 128: one head and one span of SPAN_TILES * 64 keys, whose columns it owns, and the diagonals whose key in the
// last query's row lies in the span. A diagonal u (that key) runs through keys u - 63 .. u, so the group begins one tile
// before its span: 1 / SPAN_TILES more work, and sums that no two groups share, in a fixed order.
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
const P_PITCH: u32 = 65u;

var<workgroup> s_p: array<f32, 64u * P_PITCH>;
// The part of the next tile's first 64 diagonals that this tile holds.
var<workgroup> s_carry: array<f32, 64>;
var<private> q_base: u32;
var<private> k_base: u32;
var<private> key0: u32;

// Sum over the tile of diagonal d: the keys key0 + c with c = d - (last_q - 1 - a) for row a.
fn diagonal_sum(d: u32) -> f32 {
    var sum = 0.0;
    let last = p.last_q - 1u;
    // c >= 0: a >= last - d; c <= 63: a <= last - d + 63
    let first_row = last - min(d, last);
    let end_row = min(p.last_q, (last + 64u) - min(d, last + 64u));
    for (var a = first_row; a < end_row; a++) {
        sum += s_p[a * P_PITCH + d + a - last];
    }
    return sum;
}

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
    let last_position = p.first_position + p.last_q - 1u;
    let own_start = span * SPAN_TILES * 64u;
    let own_end = min(own_start + SPAN_TILES * 64u, p.kv_len);
    let out_base = head * p.kv_len;
//@for i 0 ROWS_MINE
    let stats${i} = stats[p.stats_at + head * 64u + tile_row(lane, ${i}u)];
//@end
    if lane < 64u {
        s_carry[lane] = 0.0;
    }

    for (key0 = own_start - min(own_start, 64u); key0 < own_end; key0 += 64u) {
        // probabilities; score_tile's barriers keep them apart from the sums of the tile before
        let tile = score_tile(at);
//@for x 0 VECS_MINE
        let columns${x} = tile_columns(lane, ${x}u);
        let keys${x} = columns${x} + vec4<u32>(key0);
//@end
//@for i 0 ROWS_MINE
        {
            let row = tile_row(lane, ${i}u);
//@for x 0 VECS_MINE
            {
                let seen = keys${x} <= vec4<u32>(p.first_position + row) & vec4<bool>(row < p.last_q);
                let e = select(vec4<f32>(), exp2(tile[${i*VECS_MINE+x}] * scale - stats${i}.x) * stats${i}.y, seen);
//@for j 0 4
                s_p[row * P_PITCH + columns${x}[${j}]] = e[${j}];
//@end
            }
//@end
        }
//@end
        workgroupBarrier();

        // columns
        let key = key0 + lane;
        if lane < 64u && key >= own_start && key < own_end {
            var sum = 0.0;
            for (var a = 0u; a < p.last_q; a++) {
                sum += s_p[a * P_PITCH + lane];
            }
            column_score[p.column_score_at + out_base + key] = sum;
        }

        // diagonals
        var sum = diagonal_sum(lane);
        if lane < 64u {
            sum += s_carry[lane];
            if key >= own_start && key < own_end {
                // No query sees an offset past the last position: those get zero.
                let offset = select(key, last_position - key, key <= last_position);
                offset_score[p.offset_score_at + out_base + offset] = select(0.0, sum, key <= last_position);
            }
        }
        workgroupBarrier();
        if lane >= 64u {
            s_carry[lane - 64u] = sum;
        }
    }
}
