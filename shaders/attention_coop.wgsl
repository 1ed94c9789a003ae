// Attention over a sparse index on cooperative matrices; what it computes and what it relies on is in attention.wgsl.
//
// One group: one head and BLOCKS row blocks of 64 queries; TEAM subgroups of SG lanes share RM x CM of the rows. A tile of
// BC keys and values lies in workgroup memory. Scores come out of the matrices, which have no exponential and no row
// maximum, through f32 workgroup memory, go through the softmax a few lanes a row, and enter the second product as f16.
// In the first product a team divides the keys, in the second the elements of the head; the softmax by rows.
//
// Row blocks of a group walk their ranges together: a tile begins where the first of them needs one, and serves all that
// begin within it. Neighbours share most of their tiles, because their diagonals are 64 keys apart, as their queries are.
//
// The output is rescaled only when a row's maximum has grown by a factor of 2^GROWTH: P and the sums use the same
// reference, so this is exact, and 2^GROWTH = 256 keeps P far inside f16. It replaces a trip through workgroup memory a
// tile, which per-row scaling of a matrix costs, by a vote.
struct Params {
    // heads of this dispatch; query heads per KV head, and the first head's place among those of its KV head
    heads: u32,
    group_size: u32,
    head_in_group: u32,
    head_dim: u32,
    q_len: u32,
    kv_len: u32,
    q_start: u32,
    // first query of this dispatch, a multiple of 64 * BLOCKS, and how many groups of row blocks it has
    row_first: u32,
    row_tiles: u32,
    row_blocks: u32,
    column_tiles: u32,
    scale: f32,
    write_lse: u32,
    q_row_stride: u32,
    q_head_stride: u32,
    k_row_stride: u32,
    k_head_stride: u32,
    v_row_stride: u32,
    v_head_stride: u32,
    out_row_stride: u32,
    out_head_stride: u32,
    // where the slices begin in their bindings, in elements, those of vec4s in vec4s
    q_at: u32,
    k_at: u32,
    v_at: u32,
    row_ranges_at: u32,
    ranges_at: u32,
    columns_at: u32,
    keep_at: u32,
    window_at: u32,
    out_at: u32,
    lse_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<vec4<f16>>; // [heads, rows, head_dim] under strides
@group(0) @binding(1) var<storage, read> k: array<vec4<f16>>; // [kv_heads, kv_len, head_dim] under strides
@group(0) @binding(2) var<storage, read> v: array<vec4<f16>>; // [kv_heads, kv_len, head_dim] under strides
@group(0) @binding(3) var<storage, read> row_ranges: array<u32>; // [heads, row_blocks, 2]
@group(0) @binding(4) var<storage, read> ranges: array<u32>; // [_, 2]
@group(0) @binding(5) var<storage, read> columns: array<u32>; // [heads, 64 * column_tiles]
@group(0) @binding(6) var<storage, read> keep: array<u32>; // [heads, row_blocks, 2 * column_tiles]
@group(0) @binding(7) var<storage, read> window: array<u32>; // [heads, 2]
@group(0) @binding(8) var<storage, read_write> out: array<Out>; // [heads, rows, head_dim] under strides
@group(0) @binding(9) var<storage, read_write> lse: array<f32>; // [heads, q_len]

alias FragmentA = coop_mat${CM}x${CM}<f16, A>;
alias FragmentB = coop_mat${CM}x${CM}<f16, B>;
alias FragmentC = coop_mat${CM}x${CM}<f32, C>;

const THREADS: u32 = SG * SUBGROUPS;
// Rows of a team, and of the group.
const TEAM_ROWS: u32 = RM * CM;
const ROWS: u32 = SUBGROUPS / TEAM * TEAM_ROWS;
// Rows that a subgroup has in the softmax at a time, and lanes of a row.
const SOFTMAX_ROWS: u32 = SG / LANES_ROW;
// Units of 16 bytes in a row of q, k and v.
const EIGHTS: u32 = HEAD_DIM / 8u;
// f16 of a row of K or V, f32 of a row of scores, f16 of a row of P: so that rows that are read together lie in
// different banks.
const KV_PITCH: u32 = HEAD_DIM + 8u;
const S_PITCH: u32 = BC + 8u;
const P_PITCH: u32 = BC + 8u;

const GROWTH: f32 = 8.0;
const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// Masked scores lie so far below the lowest maximum that their exponential is zero before a row has met any key.
const MASKED: f32 = -3e38;
const LOWEST: f32 = -1e30;
const NONE: u32 = 0xffffffffu;

// By how much each row's output shrinks; in the end 1 / its sum.
var<workgroup> s_shrink: array<f32, ROWS>;
// Whether any row of a subgroup has grown.
var<workgroup> s_vote: array<u32, SUBGROUPS>;

// The log-sum-exp of no key. A variable, because WGSL has no infinite constants.
var<private> negative_infinity: u32 = 0xff800000u;

// Where each row block is in its ranges: [cur, end) of the open one is still to do.
//@for g 0 BLOCKS
var<private> cur${g}: u32;
var<private> end${g}: u32;
var<private> next${g}: u32;
var<private> last${g}: u32;
var<private> limit${g}: u32;
var<private> keep${g}: u32;
//@end
var<private> next_column: u32;
var<private> column_base: u32;

// The tile at hand: keys from tile_key on, or the columns from tile_column on; and of those, the part of this subgroup's
// row block: [tile_from, tile_to), or bits.
var<private> is_columns: bool;
var<private> tile_key: u32;
var<private> tile_column: u32;
var<private> tile_from: u32;
var<private> tile_to: u32;
var<private> tile_bits: u32;

// What this invocation copies of a tile: 16 bytes of a key and of a value, STAGE times.
//@for i 0 STAGE
var<private> k${i}_0: vec4<f16>;
var<private> k${i}_1: vec4<f16>;
var<private> v${i}_0: vec4<f16>;
var<private> v${i}_1: vec4<f16>;
//@end

// Goes to the next tile, for a subgroup of row block `block`. False after the last.
fn advance(block: u32) -> bool {
//@for g 0 BLOCKS
    while cur${g} >= end${g} && next${g} < last${g} {
        cur${g} = ranges[p.ranges_at + 2u * next${g}];
        end${g} = min(ranges[p.ranges_at + 2u * next${g} + 1u], limit${g});
        next${g}++;
    }
//@end
    tile_key = NONE;
//@for g 0 BLOCKS
    tile_key = min(tile_key, select(NONE, cur${g}, cur${g} < end${g}));
//@end
    tile_from = 0u;
    tile_to = 0u;
    if tile_key != NONE {
//@for g 0 BLOCKS
        let to${g} = min(end${g}, tile_key + BC);
        if cur${g} < to${g} {
            if block == ${g}u {
                tile_from = cur${g} - tile_key;
                tile_to = to${g} - tile_key;
            }
            cur${g} = to${g};
        }
//@end
        return true;
    }
    is_columns = true;
    while next_column < 64u * p.column_tiles {
        var any = 0u;
        tile_bits = 0u;
//@for g 0 BLOCKS
        if keep${g} != NONE {
            // BC is 32 or 16, and next_column a multiple of it.
            let bits = (keep[keep${g} + next_column / 32u] >> (next_column % 32u)) & (NONE >> (32u - BC));
            any |= bits;
            tile_bits = select(tile_bits, bits, block == ${g}u);
        }
//@end
        tile_column = column_base + next_column;
        next_column += BC;
        if any != 0u {
            return true;
        }
    }
    return false;
}

// The key in place `i` of the tile; places beyond its end repeat a key that exists, because 0 * NaN is not 0.
fn key_at(i: u32) -> u32 {
    if is_columns {
        return min(columns[tile_column + i], p.kv_len - 1u);
    }
    return min(tile_key + i, p.kv_len - 1u);
}

// Bits [from, to) of a word, for from and to up to 32.
fn interval(first: u32, end: u32) -> u32 {
    if first >= end {
        return 0u;
    }
    return (NONE >> (32u - (end - first))) << first;
}

// Bits of the tile's keys that a query at `position` computes, of places [first, end).
fn seen(tile_start: u32, first: u32, end: u32, position: u32, n_init: u32, n_local: u32) -> u32 {
    let reach = position + 1u;
    // Places in the tile: the end by causality, the end of the first n_init keys, the start of the last n_local.
    let keys = vec3<u32>(reach, n_init, reach - min(reach, n_local));
    let places = min(keys - min(keys, vec3<u32>(tile_start)), vec3<u32>(32u));
    return interval(first, min(end, places.x)) & (interval(0u, places.y) | interval(places.z, 32u));
}

// Orders workgroup memory within a team.
fn team_barrier() {
    if TEAM == 1u {
        subgroupBarrier();
    } else {
        workgroupBarrier();
    }
}

// Reads a tile of K and V from storage, in pairs of vec4s that drivers can join to 16 bytes.
fn fetch(thread: u32, k_base: u32, v_base: u32) {
//@for i 0 STAGE
    {
        let x = thread + ${i}u * THREADS;
        let d = x % EIGHTS;
        if x < BC * EIGHTS && d < p.head_dim / 8u {
            let key = key_at(x / EIGHTS);
            let k_place = k_base + key * (p.k_row_stride / 8u) + d;
            let v_place = v_base + key * (p.v_row_stride / 8u) + d;
            k${i}_0 = k[2u * k_place];
            k${i}_1 = k[2u * k_place + 1u];
            v${i}_0 = v[2u * v_place];
            v${i}_1 = v[2u * v_place + 1u];
        }
    }
//@end
}

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let id = linear_group(at);
    if id >= p.heads * p.row_tiles {
        return;
    }
    let lane = at.subgroup_lane;
    let thread = at.subgroup * SG + lane;
    let team_row = at.subgroup / TEAM * TEAM_ROWS;
    let member = at.subgroup % TEAM;
    let block = team_row / 64u;
    let head = id % p.heads;
    let row0 = p.row_first + (p.row_tiles - 1u - id / p.heads) * ROWS;
    let kv_head = (p.head_in_group + head) / p.group_size;
    let k_base = p.k_at / 2u + kv_head * (p.k_head_stride / 8u);
    let v_base = p.v_at / 2u + kv_head * (p.v_head_stride / 8u);

    column_base = p.columns_at + head * p.column_tiles * 64u;
    is_columns = false;
    next_column = 0u;
//@for g 0 BLOCKS
    {
        let row_block = row0 / 64u + ${g}u;
        cur${g} = 0u;
        end${g} = 0u;
        next${g} = 0u;
        last${g} = 0u;
        keep${g} = NONE;
        if row_block < p.row_blocks {
            let row = head * p.row_blocks + row_block;
            next${g} = row_ranges[p.row_ranges_at + 2u * row];
            last${g} = next${g} + row_ranges[p.row_ranges_at + 2u * row + 1u];
            limit${g} = min(p.q_start + min(64u * row_block + 64u, p.q_len), p.kv_len);
            keep${g} = p.keep_at + row * p.column_tiles * 2u;
        }
    }
//@end
    let n_init = window[p.window_at + 2u * head];
    let n_local = window[p.window_at + 2u * head + 1u];
    let scale = p.scale * LOG2_E;

    // queries, through the place of K, BC rows at a time; rows beyond the last repeat it and are not written
    let q_base = p.q_at / 2u + head * (p.q_head_stride / 8u);
//@for r 0 RM
//@for d 0 ND
    var q${r}_${d} = FragmentA();
//@end
//@end
    for (var row_pass = 0u; row_pass < ROWS; row_pass += BC) {
        workgroupBarrier();
        for (var x = thread; x < BC * EIGHTS; x += THREADS) {
            let row = min(row0 + row_pass + x / EIGHTS, p.q_len - 1u) - p.row_first;
            let d = x % EIGHTS;
            var low = vec4<f16>();
            var high = vec4<f16>();
            if d < p.head_dim / 8u {
                let place = q_base + row * (p.q_row_stride / 8u) + d;
                low = q[2u * place];
                high = q[2u * place + 1u];
            }
            put_k(x / EIGHTS * KV_PITCH + 8u * d, low);
            put_k(x / EIGHTS * KV_PITCH + 8u * d + 4u, high);
        }
        workgroupBarrier();
//@for r 0 RM
        if (team_row + ${r*CM}u) / BC * BC == row_pass {
            let place = ((team_row + ${r*CM}u) % BC * KV_PITCH) / UNIT;
//@for d 0 ND
            q${r}_${d} = coopLoadT<FragmentA>(&s_k[place + ${d*CM}u / UNIT], KV_PITCH / UNIT);
//@end
        }
//@end
    }

//@for r 0 RM
//@for n 0 ND_MEMBER
    var o${r}_${n} = FragmentC();
//@end
//@end
    // This lane's row in the softmax and its share of it, in a step of SOFTMAX_ROWS rows; and its part of output fragments.
    let softmax_row = team_row + member * SOFTMAX_TILES * SOFTMAX_ROWS + lane / LANES_ROW;
    let share = lane % LANES_ROW;
    let out_row = lane / LANES_OUT;
    let out_share = lane % LANES_OUT;
    let out_scratch = team_row * S_PITCH + member * (BC / TEAM);
//@for x 0 SOFTMAX_TILES
    var m${x} = LOWEST;
    var l${x} = 0.0;
//@end
    var fresh = true;
    // Positions of the first and the last query of this subgroup in the softmax: what decides whether masks are needed.
    let first_position = p.q_start + row0 + team_row + member * SOFTMAX_TILES * SOFTMAX_ROWS;
    let last_position = first_position + SOFTMAX_TILES * SOFTMAX_ROWS - 1u;

//@for i 0 STAGE
    k${i}_0 = vec4<f16>();
    k${i}_1 = vec4<f16>();
    v${i}_0 = vec4<f16>();
    v${i}_1 = vec4<f16>();
//@end
    var more = advance(block);
    if PREFETCH != 0u && more {
        fetch(thread, k_base, v_base);
    }
    while more {
        // stage this tile, and fetch the next
        if PREFETCH == 0u {
            fetch(thread, k_base, v_base);
        }
        workgroupBarrier();
//@for i 0 STAGE
        {
            let x = thread + ${i}u * THREADS;
            if x < BC * EIGHTS {
                let place = x / EIGHTS * KV_PITCH + 8u * (x % EIGHTS);
                put_k(place, k${i}_0);
                put_k(place + 4u, k${i}_1);
                put_v(place, v${i}_0);
                put_v(place + 4u, v${i}_1);
            }
        }
//@end
        let in_columns = is_columns;
        let tile_start = tile_key;
        let tile_first = tile_from;
        let tile_end = tile_to;
        let column_bits = tile_bits;
        let busy = select(tile_first < tile_end, column_bits != 0u, in_columns);
        workgroupBarrier();
        more = advance(block);
        if PREFETCH != 0u && more {
            fetch(thread, k_base, v_base);
        }

        // scores
        if busy {
//@for r 0 RM
//@for j 0 NB_MEMBER
            var s${r}_${j} = FragmentC();
//@end
//@end
            let keys = member * (NB_MEMBER * CM * KV_PITCH / UNIT);
//@for d 0 ND
//@for j 0 NB_MEMBER
            {
                let b = coopLoad<FragmentB>(&s_k[keys + (${j*CM}u * KV_PITCH + ${d*CM}u) / UNIT], KV_PITCH / UNIT);
//@for r 0 RM
                s${r}_${j} = coopMultiplyAdd(q${r}_${d}, b, s${r}_${j});
//@end
            }
//@end
//@end
            // naga 30 needs the operands of a store as values of their own.
            let scores = (team_row * S_PITCH + member * (NB_MEMBER * CM)) / UNIT;
//@for r 0 RM
//@for j 0 NB_MEMBER
            let value${r}_${j} = s${r}_${j};
            let place${r}_${j} = scores + (${r*CM}u * S_PITCH + ${j*CM}u) / UNIT;
            coopStoreT(value${r}_${j}, &s_s[place${r}_${j}], S_PITCH / UNIT);
//@end
//@end
        }
        team_barrier();

        // masks, only where the tile needs them, and online softmax
        var grown = false;
        if busy {
            let ragged = tile_first > 0u || tile_end < BC;
            let diagonal = tile_start + tile_end > first_position + 1u;
            let windowed = tile_start + tile_end > n_init && last_position - min(last_position, tile_start) >= n_local;
            let masked = in_columns || ragged || diagonal || windowed;
//@for x 0 SOFTMAX_TILES
            {
                let row = softmax_row + ${x}u * SOFTMAX_ROWS;
//@for c 0 VECS_ROW
                var e${c} = get_s(row * S_PITCH + 4u * (${c*LANES_ROW}u + share)) * scale;
//@end
                if masked {
                    let position = p.q_start + row0 + row;
                    var bits = column_bits;
                    if !in_columns {
                        bits = seen(tile_start, tile_first, tile_end, position, n_init, n_local);
                    }
//@for c 0 VECS_ROW
                    {
                        let nibble = bits >> (4u * (${c*LANES_ROW}u + share));
                        e${c} = select(vec4<f32>(MASKED), e${c}, (vec4<u32>(nibble) & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>(0u));
                    }
//@end
                }
                var top = e0;
//@for c 1 VECS_ROW
                top = max(top, e${c});
//@end
                var highest = max(max(top.x, top.y), max(top.z, top.w));
//@for s 0 LOG_LANES_ROW
                highest = max(highest, subgroupShuffleXor(highest, 1u << ${s}u));
//@end
                let grows = subgroupAny(highest > m${x} + GROWTH);
                grown = grown || grows;
                let m = select(m${x}, max(m${x}, highest), grows);
                let shrink = exp2(m${x} - m);
                m${x} = m;
                if share == 0u {
                    s_shrink[row] = shrink;
                }
                var sum = vec4<f32>();
//@for c 0 VECS_ROW
                {
                    let h = vec4<f16>(exp2(e${c} - m));
                    sum += vec4<f32>(h);
                    put_p(row * P_PITCH + 4u * (${c*LANES_ROW}u + share), h);
                }
//@end
                l${x} = l${x} * shrink + (sum.x + sum.y + sum.z + sum.w);
            }
//@end
            // Nothing to rescale yet.
            grown = grown && !fresh;
            fresh = false;
            if TEAM > 1u && lane == 0u {
                s_vote[at.subgroup] = u32(grown);
            }
        }
        team_barrier();

        if busy {
            if TEAM > 1u {
                grown = false;
//@for t 0 TEAM
                grown = grown || s_vote[at.subgroup - member + ${t}u] != 0u;
//@end
            }
            // rescale, OUT_GROUP fragments at a time through this subgroup's part of the scores
            if grown {
//@for r 0 RM
//@for g 0 OUT_GROUPS
//@for i 0 OUT_GROUP
                {
                    let value = o${r}_${g*OUT_GROUP+i};
                    let place = (out_scratch + ${r*CM}u * S_PITCH + ${i*CM}u) / UNIT;
                    coopStoreT(value, &s_s[place], S_PITCH / UNIT);
                }
//@end
                subgroupBarrier();
//@for c 0 VECS_OUT
                {
                    let place = out_scratch + (${r*CM}u + out_row) * S_PITCH + 4u * (${c*LANES_OUT}u + out_share);
                    put_s(place, get_s(place) * s_shrink[team_row + ${r*CM}u + out_row]);
                }
//@end
                subgroupBarrier();
//@for i 0 OUT_GROUP
                o${r}_${g*OUT_GROUP+i} = coopLoadT<FragmentC>(&s_s[(out_scratch + ${r*CM}u * S_PITCH + ${i*CM}u) / UNIT], S_PITCH / UNIT);
//@end
                subgroupBarrier();
//@end
//@end
            }

            // accumulate
            let values = member * (ND_MEMBER * CM / UNIT);
//@for x 0 NB
            {
//@for r 0 RM
                let a${r} = coopLoadT<FragmentA>(&s_p[((team_row + ${r*CM}u) * P_PITCH + ${x*CM}u) / UNIT], P_PITCH / UNIT);
//@end
//@for n 0 ND_MEMBER
                {
                    let b = coopLoadT<FragmentB>(&s_v[values + (${x*CM}u * KV_PITCH + ${n*CM}u) / UNIT], KV_PITCH / UNIT);
//@for r 0 RM
                    o${r}_${n} = coopMultiplyAdd(a${r}, b, o${r}_${n});
//@end
                }
//@end
            }
//@end
        }
    }

    // output
//@for x 0 SOFTMAX_TILES
    {
        let row = softmax_row + ${x}u * SOFTMAX_ROWS;
        var sum = l${x};
//@for s 0 LOG_LANES_ROW
        sum += subgroupShuffleXor(sum, 1u << ${s}u);
//@end
        if share == 0u {
            s_shrink[row] = select(0.0, 1.0 / sum, sum > 0.0);
            if p.write_lse != 0u && row0 + row < p.q_len {
                lse[p.lse_at + head * p.q_len + row0 + row] =
                    select(bitcast<f32>(negative_infinity), (m${x} + log2(sum)) * LN_2, sum > 0.0);
            }
        }
    }
//@end
    team_barrier();
    let out_base = p.out_at + head * (p.out_head_stride / 4u);
//@for r 0 RM
//@for g 0 OUT_GROUPS
//@for i 0 OUT_GROUP
    {
        let value = o${r}_${g*OUT_GROUP+i};
        let place = (out_scratch + ${r*CM}u * S_PITCH + ${i*CM}u) / UNIT;
        coopStoreT(value, &s_s[place], S_PITCH / UNIT);
    }
//@end
    subgroupBarrier();
    {
        let row = team_row + ${r*CM}u + out_row;
        if row0 + row < p.q_len {
            let row_base = out_base + (row0 + row - p.row_first) * (p.out_row_stride / 4u);
//@for c 0 VECS_OUT
            {
                let d = member * (ND_MEMBER * CM / 4u) + ${g*OUT_GROUP*CM/4}u + ${c*LANES_OUT}u + out_share;
                if d < p.head_dim / 4u {
                    let place = out_scratch + (${r*CM}u + out_row) * S_PITCH + 4u * (${c*LANES_OUT}u + out_share);
                    out[row_base + d] = to_out(get_s(place) * s_shrink[row]);
                }
            }
//@end
        }
    }
    subgroupBarrier();
//@end
//@end
}
