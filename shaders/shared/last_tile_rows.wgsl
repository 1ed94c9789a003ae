// Scores of 64 queries against 64 keys for score_last_queries on cooperative matrices of known layout (coop_rows.wgsl): each of
// four subgroups has 16 rows. Queries stay in workgroup memory, keys come 32 at a time.
@group(0) @binding(1) var<storage, read> q: array<vec4<u32>>; // f16 [heads, last_q, head_dim] under strides
@group(0) @binding(2) var<storage, read> k: array<vec4<u32>>; // f16 [kv_heads, kv_len, head_dim] under strides

alias FragmentA = coop_mat16x16<f16, A>;
alias FragmentB = coop_mat16x16<f16, B>;
alias FragmentC = coop_mat16x16<f32, C>;

// Lanes that share a row.
const LANES_ROW: u32 = 4u;
// 16 bytes of a row: one more than the head's, so that the rows that a matrix load touches lie in different banks.
const EIGHTS: u32 = HEAD_DIM / 8u;
const PITCH: u32 = EIGHTS + 1u;

var<workgroup> s_queries: array<vec4<u32>, 64u * PITCH>;
var<workgroup> s_keys: array<vec4<u32>, 32u * PITCH>;

fn tile_lane(at: Invocation) -> u32 {
    return 32u * at.subgroup + at.subgroup_lane;
}

fn start_tiles(at: Invocation) {
    for (var x = tile_lane(at); x < 64u * EIGHTS; x += 128u) {
        let row = x / EIGHTS;
        let d = x % EIGHTS;
        var value = vec4<u32>();
        if row < p.last_q && d < p.head_dim / 8u {
            value = q[q_base / 2u + row * (p.q_row_stride / 8u) + d];
        }
        s_queries[row * PITCH + d] = value;
    }
}

// The row of the i-th result, the columns of its x-th vector, and the lane's place among those of a row.
fn tile_row(lane: u32, i: u32) -> u32 {
    return lane / 32u * 16u + lane % 32u / 4u + 8u * i;
}

fn tile_columns(lane: u32, x: u32) -> vec4<u32> {
    return vec4<u32>(16u * x + 2u * (lane % 4u)) + vec4<u32>(0u, 1u, 8u, 9u);
}

fn tile_share(lane: u32) -> u32 {
    return lane % 4u;
}

// Keys from key0 on (k_base may lie before what is bound, as a negative number), those past the end repeating the last; four vectors a row.
fn score_tile(at: Invocation) -> array<vec4<f32>, 8> {
    let lane = tile_lane(at);
//@for h 0 2
//@for i 0 STAGE
    var x${h}_${i} = vec4<u32>();
    {
        let x = lane + ${i}u * 128u;
        if x % EIGHTS < p.head_dim / 8u {
            let key = min(key0 + ${32*h}u + x / EIGHTS, p.kv_len - 1u);
            x${h}_${i} = k[bitcast<u32>(bitcast<i32>(k_base) >> 1u) + key * (p.k_row_stride / 8u) + x % EIGHTS];
        }
    }
//@end
//@end
    var result: array<vec4<f32>, 8>;
    let rows = at.subgroup * 16u * PITCH;
//@for h 0 2
    workgroupBarrier();
//@for i 0 STAGE
    {
        let x = lane + ${i}u * 128u;
        s_keys[x / EIGHTS * PITCH + x % EIGHTS] = x${h}_${i};
    }
//@end
    workgroupBarrier();
//@for j 0 2
    var s${h}_${j} = FragmentC();
//@end
//@for d 0 ND
    {
        let a = coopLoadT<FragmentA>(&s_queries[rows + ${2*d}u], PITCH);
//@for j 0 2
        let b${j} = coopLoad<FragmentB>(&s_keys[${16*j}u * PITCH + ${2*d}u], PITCH);
        s${h}_${j} = coopMultiplyAdd(a, b${j}, s${h}_${j});
//@end
    }
//@end
//@for j 0 2
    {
        let e = elements_of(s${h}_${j});
        result[${2*h+j}] = e.low;
        result[${4+2*h+j}] = e.high;
    }
//@end
//@end
    return result;
}
