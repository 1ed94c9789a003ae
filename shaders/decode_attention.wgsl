// Few queries over all their causal keys, split along the keys: for one split, the maximum, the sum and the weighted values
// of each query, which decode_attention_merge puts together.
//
// One group of 128: one KV head, one split, and ROWS of the queries of the heads that share it, so that a key is read once
// for all of them. It goes through the split in spans: scores of SPAN keys from tiles of K in workgroup memory, one
// softmax step, then values straight from storage, a vec4 of the head an invocation. Memory bandwidth decides.
struct Params {
    kv_heads: u32,
    // query heads of each KV head
    group_size: u32,
    head_dim: u32,
    q_len: u32,
    // key position of the first query
    q_start: u32,
    splits: u32,
    // keys of a split, a multiple of SPAN
    split_keys: u32,
    // the splits of this dispatch, whose keys alone are bound
    split_first: u32,
    split_count: u32,
    scale: f32,
    q_row_stride: u32,
    q_head_stride: u32,
    k_row_stride: u32,
    k_head_stride: u32,
    v_row_stride: u32,
    v_head_stride: u32,
    // where the slices begin in their bindings, in vectors
    q_at: u32,
    k_at: u32,
    v_at: u32,
    sums_at: u32,
    stats_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<vec4<Elem>>; // [heads, q_len, head_dim] under strides
@group(0) @binding(1) var<storage, read> k: array<vec4<Elem>>; // [kv_heads, keys, head_dim] under strides
@group(0) @binding(2) var<storage, read> v: array<vec4<Elem>>; // [kv_heads, keys, head_dim] under strides
@group(0) @binding(3) var<storage, read_write> sums: array<vec4<f32>>; // [heads, q_len, splits, head_dim]
@group(0) @binding(4) var<storage, read_write> stats: array<vec2<f32>>; // [heads, q_len, splits]: maximum (base 2), sum

const THREADS: u32 = 128u;
const COLUMNS: u32 = HEAD_DIM / 4u;
const PITCH: u32 = COLUMNS + 1u;
// Shares of the rows in the scores, and of the keys in the values.
const ROW_SHARES: u32 = THREADS / TILE;
const KEY_SHARES: u32 = THREADS / COLUMNS;

const LOG2_E: f32 = 1.4426950408889634;
const MASKED: f32 = -3e38;
const LOWEST: f32 = -1e30;

var<workgroup> s_q: array<vec4<f32>, ROWS * COLUMNS>;
var<workgroup> s_k: array<vec4<Elem>, TILE * PITCH>;
var<workgroup> s_score: array<f32, ROWS * SPAN>;
var<workgroup> s_max: array<f32, ROWS * 16u>;
var<workgroup> s_shrink: array<f32, ROWS>;
var<workgroup> s_sum: array<vec4<f32>, THREADS>;

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let id = linear_group(at);
    let rows = p.group_size * p.q_len;
    let row_groups = (rows + ROWS - 1u) / ROWS;
    let kv_head = id / (p.split_count * row_groups);
    if kv_head >= p.kv_heads {
        return;
    }
    let split = p.split_first + id / row_groups % p.split_count;
    let row0 = id % row_groups * ROWS;
    let lane = at.lane;
    let vecs = p.head_dim / 4u;
    let k_base = p.k_at + kv_head * (p.k_head_stride / 4u);
    let v_base = p.v_at + kv_head * (p.v_head_stride / 4u);
    let key_end = min((split + 1u) * p.split_keys, p.q_start + p.q_len);

    // queries, scaled; row m is query m / group_size of head m % group_size
    for (var x = lane; x < ROWS * COLUMNS; x += THREADS) {
        let m = min(row0 + x / COLUMNS, rows - 1u);
        let d = x % COLUMNS;
        var value = vec4<f32>();
        if d < vecs {
            let head = kv_head * p.group_size + m % p.group_size;
            value = vec4<f32>(q[p.q_at + head * (p.q_head_stride / 4u) + m / p.group_size * (p.q_row_stride / 4u) + d]);
        }
        s_q[x] = value * (p.scale * LOG2_E);
    }

    // In the softmax, 16 invocations a row; in the values, one a vec4 and share of the keys.
    let my_row = lane / 16u;
    let position = p.q_start + min(row0 + my_row, rows - 1u) / p.group_size;
    let column = lane % COLUMNS;
    let share = lane / COLUMNS;
    var m = LOWEST;
    var l = 0.0;
//@for r 0 ROWS
    var o${r} = vec4<f32>();
//@end

    for (var span0 = split * p.split_keys; span0 < key_end; span0 += SPAN) {
        // scores
        for (var tile = 0u; tile < SPAN; tile += TILE) {
            workgroupBarrier();
            for (var x = lane; x < TILE * COLUMNS; x += THREADS) {
                let d = x % COLUMNS;
                var value = vec4<Elem>();
                if d < vecs {
                    value = k[k_base + min(span0 + tile + x / COLUMNS, key_end - 1u) * (p.k_row_stride / 4u) + d];
                }
                s_k[x / COLUMNS * PITCH + d] = value;
            }
            workgroupBarrier();
            let key = lane % TILE;
            for (var r = lane / TILE; r < ROWS; r += ROW_SHARES) {
                var score = 0.0;
                for (var d = 0u; d < COLUMNS; d++) {
                    score += dot(s_q[r * COLUMNS + d], vec4<f32>(s_k[key * PITCH + d]));
                }
                s_score[r * SPAN + tile + key] = score;
            }
        }
        workgroupBarrier();

        // online softmax
        if my_row < ROWS {
            var top = LOWEST;
            for (var i = lane % 16u; i < SPAN; i += 16u) {
                let score = select(MASKED, s_score[my_row * SPAN + i], span0 + i < key_end && span0 + i <= position);
                s_score[my_row * SPAN + i] = score;
                top = max(top, score);
            }
            s_max[lane] = top;
        }
        workgroupBarrier();
        if my_row < ROWS {
            var top = m;
            for (var i = 0u; i < 16u; i++) {
                top = max(top, s_max[my_row * 16u + i]);
            }
            let shrink = exp2(m - top);
            m = top;
            l *= shrink;
            for (var i = lane % 16u; i < SPAN; i += 16u) {
                let e = exp2(s_score[my_row * SPAN + i] - top);
                s_score[my_row * SPAN + i] = e;
                l += e;
            }
            if lane % 16u == 0u {
                s_shrink[my_row] = shrink;
            }
        }
        workgroupBarrier();

        // accumulate
        if share < KEY_SHARES && column < vecs {
//@for r 0 ROWS
            o${r} *= s_shrink[${r}];
//@end
            for (var i = share; i < min(SPAN, key_end - span0); i += KEY_SHARES) {
                let value = vec4<f32>(v[v_base + (span0 + i) * (p.v_row_stride / 4u) + column]);
//@for r 0 ROWS
                o${r} += s_score[${r}u * SPAN + i] * value;
//@end
            }
        }
    }

    // shares of the keys
//@for r 0 ROWS
    workgroupBarrier();
    s_sum[lane] = o${r};
    workgroupBarrier();
    if row0 + ${r}u < rows && lane < vecs {
        let m = row0 + ${r}u;
        var sum = vec4<f32>();
        for (var i = 0u; i < KEY_SHARES; i++) {
            sum += s_sum[i * COLUMNS + lane];
        }
        let row = (kv_head * p.group_size + m % p.group_size) * p.q_len + m / p.group_size;
        sums[p.sums_at + (row * p.splits + split) * vecs + lane] = sum;
    }
//@end
    workgroupBarrier();
    if my_row < ROWS {
        s_max[lane] = l;
    }
    workgroupBarrier();
    if my_row < ROWS && lane % 16u == 0u && row0 + my_row < rows {
        var sum = 0.0;
        for (var i = 0u; i < 16u; i++) {
            sum += s_max[lane + i];
        }
        let mine = row0 + my_row;
        let row = (kv_head * p.group_size + mine % p.group_size) * p.q_len + mine / p.group_size;
        stats[p.stats_at + row * p.splits + split] = vec2<f32>(m, sum);
    }
}
