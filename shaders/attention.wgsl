// Attention over a sparse index without cooperative matrices, one online softmax per query:
//
//     out[i] = sum_j softmax_j(scale * q[i] . k[j]) v[j]     over the keys j that the index gives query i
//
// One group: one head and TILE_Q queries of one row block; 16 x 8 invocations, ROWS queries x KEYS keys each. The group
// walks its row block's ranges in tiles of TILE_K keys from wherever they start, then the tiles of single columns whose
// keep mask is not empty. Later row blocks have more keys and come first, all heads of a row block together.
//
// All arithmetic is f32. Tiles of Q, K and V lie in workgroup memory as f16 where they come as f16: that costs three
// conversions to 8 multiplications, but f32 would take twice its traffic, and on an H100 twice the time. They come in
// parts, STEP vec4s of Q and K at a time for the scores, 64 elements of VALUES values for the output; each part is read from
// storage while the one before is multiplied.
// Relies on build_index: ranges and columns of a row are disjoint, columns lie before the row block.
//
// Why no index needs a check: heads and row blocks are below those of the index (the guard on `id`); the ranges of a row
// block are the (first, count) that build_index wrote; a key is below its range's end or at most kv_len - 1; rows read are
// at most q_len - 1, rows written are below q_len; columns and masks end at 64 * column_tiles; vec4s of a head stop at
// head_dim / 4; places in workgroup memory are bounded by constants.
struct Params {
    // heads of this dispatch; query heads per KV head, and the first head's place among those of its KV head
    heads: u32,
    group_size: u32,
    head_in_group: u32,
    head_dim: u32,
    q_len: u32,
    kv_len: u32,
    q_start: u32,
    // first query of this dispatch, a multiple of 64, and how many tiles of queries it has
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
    // a tile is skipped whose scores lie so far below the running maxima (natural logarithm); the least f32: never
    skip_below: f32,
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

@group(0) @binding(0) var<storage, read> q: array<vec4<Elem>>; // [heads, rows, head_dim] under strides
@group(0) @binding(1) var<storage, read> k: array<vec4<Elem>>; // [kv_heads, kv_len, head_dim] under strides
@group(0) @binding(2) var<storage, read> v: array<vec4<Elem>>; // [kv_heads, kv_len, head_dim] under strides
@group(0) @binding(3) var<storage, read> row_ranges: array<u32>; // [heads, row_blocks, 2]
@group(0) @binding(4) var<storage, read> ranges: array<u32>; // [_, 2]
@group(0) @binding(6) var<storage, read> keep: array<u32>; // [heads, row_blocks, 2 * column_tiles]
@group(0) @binding(7) var<storage, read> window: array<u32>; // [heads, 2]
@group(0) @binding(8) var<storage, read_write> out: array<Out>; // [heads, rows, head_dim] under strides
@group(0) @binding(9) var<storage, read_write> lse: array<f32>; // [heads, q_len]

const THREADS: u32 = 128u;
const TILE_Q: u32 = 8u * ROWS;
const TILE_K: u32 = 16u * KEYS;
const HEAD_VECS: u32 = HEAD_DIM / 4u;
// One vec4 more than a row, so that rows begin in different banks.
const PITCH: u32 = STEP + 1u;
const V_PITCH: u32 = 17u;
const P_PITCH: u32 = 17u;

const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// Masked scores lie so far below the lowest maximum that their exponential is zero before a row has met any key.
const MASKED: f32 = -3e38;
const LOWEST: f32 = -1e30;
const SKIP_NOTHING: f32 = -3.4028234e38;

var<workgroup> s_q: array<Staged, TILE_Q * PITCH>;
// A part of K, or of V.
var<workgroup> s_kv: array<Staged, KV_VECS>;
// Skip-softmax: whether any row of the tile at hand is loud enough to be computed.
var<workgroup> s_loud: atomic<u32>;
var<workgroup> s_p: array<vec${KEYS}<Probability>, TILE_Q * P_PITCH>;

// The log-sum-exp of no key. A variable, because WGSL has no infinite constants.
var<private> negative_infinity: u32 = 0xff800000u;

// The tile at hand: keys [key0, key_end) of a range, or the columns from tile_column on. Bit j of `allowed`: whether key j of
// this invocation may be computed at all.
var<private> key0: u32;
var<private> key_end: u32;
var<private> is_columns: bool;
var<private> tile_column: u32;
var<private> allowed: u32;
// What is left of the row block: ranges, columns.
var<private> next_range: u32;
var<private> range_end: u32;
var<private> next_column: u32;

// The key in place `i` of a tile of neighbours; places beyond its end repeat a key that exists, because 0 * NaN is not 0.
fn range_key(i: u32) -> u32 {
    return min(key0 + i, key_end - 1u);
}

// What this invocation copies of a part, on its way from storage to workgroup memory while the part before is multiplied.
//@for i 0 Q_STAGE
var<private> q_part${i}: vec4<Elem>;
//@end
//@for i 0 K_STAGE
var<private> k_part${i}: vec4<Elem>;
//@end
//@for i 0 V_STAGE
var<private> v_part${i}: vec4<Elem>;
//@end

// Reads STEP vec4s of each query and each key, from vec4 `first` on; rows beyond the last repeat it and are not written.
// Slot i takes key (i % 16) * KEYS + i / 16, so that an invocation owns neighbouring keys and its reads hit different
// banks.
fn fetch_qk(lane: u32, q_base: u32, k_base: u32, row0: u32, first: u32) {
//@for i 0 Q_STAGE
    {
        let x = lane + ${i}u * THREADS;
        let d = first + x % STEP;
        let row = min(row0 + x / STEP, p.q_len - 1u) - p.row_first;
        q_part${i} = vec4<Elem>();
        if d < p.head_dim / 4u {
            q_part${i} = q[q_base + row * (p.q_row_stride / 4u) + d];
        }
    }
//@end
//@for i 0 K_STAGE
    {
        let x = lane + ${i}u * THREADS;
        let slot = x / STEP;
        let d = first + x % STEP;
        k_part${i} = vec4<Elem>();
        if x < TILE_K * STEP && d < p.head_dim / 4u {
            k_part${i} = k_unit(k_base, (slot % 16u) * KEYS + slot / 16u, d);
        }
    }
//@end
}

fn put_qk(lane: u32) {
//@for i 0 Q_STAGE
    {
        let x = lane + ${i}u * THREADS;
        if x < TILE_Q * STEP {
            s_q[x / STEP * PITCH + x % STEP] = Staged(q_part${i});
        }
    }
//@end
//@for i 0 K_STAGE
    {
        let x = lane + ${i}u * THREADS;
        if x < TILE_K * STEP {
            s_kv[x / STEP * PITCH + x % STEP] = Staged(k_part${i});
        }
    }
//@end
}

// Reads 16 vec4s of VALUES values, from vec4 `first` and place `place` on.
fn fetch_v(lane: u32, base: u32, first: u32, place: u32) {
//@for i 0 V_STAGE
    {
        let x = lane + ${i}u * THREADS;
        let d = first + x % 16u;
        v_part${i} = vec4<Elem>();
        if d < p.head_dim / 4u {
            v_part${i} = v_unit(base, place + x / 16u, d);
        }
    }
//@end
}

fn put_v(lane: u32) {
//@for i 0 V_STAGE
    {
        let x = lane + ${i}u * THREADS;
        s_kv[x / 16u * V_PITCH + x % 16u] = Staged(v_part${i});
    }
//@end
}

// The keep bits of columns [first, first + TILE_K) of a row block whose mask begins at `base`: 0 where the tile can be skipped.
fn kept(base: u32, first: u32) -> u32 {
    let word = keep[base + first / 32u];
    if TILE_K == 64u {
        return word | keep[base + first / 32u + 1u];
    }
    return (word >> (first % 32u)) & (0xffffffffu >> (32u - min(TILE_K, 32u)));
}

// Goes to the next tile: false after the last. `tx` is the invocation's place among the keys.
fn advance(tx: u32, key_limit: u32, keep_base: u32, column_base: u32) -> bool {
    key0 += TILE_K;
    while key0 >= key_end && next_range < range_end {
        key0 = ranges[p.ranges_at + 2u * next_range];
        key_end = min(ranges[p.ranges_at + 2u * next_range + 1u], key_limit);
        next_range++;
    }
    if key0 < key_end {
        let mine = key0 + tx * KEYS;
        allowed = 0u;
//@for j 0 KEYS
        allowed |= select(0u, 1u << ${j}u, mine + ${j}u < key_end);
//@end
        return true;
    }
    is_columns = true;
    while next_column < 64u * p.column_tiles && kept(keep_base, next_column) == 0u {
        next_column += TILE_K;
    }
    if next_column >= 64u * p.column_tiles {
        return false;
    }
    tile_column = column_base + next_column;
    let bit = next_column + tx * KEYS;
    allowed = keep[keep_base + bit / 32u] >> (bit % 32u);
    next_column += TILE_K;
    return true;
}

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let id = linear_group(at);
    if id >= p.heads * p.row_tiles {
        return;
    }
    let lane = at.lane;
    let tx = tile_place(at).x;
    let ty = tile_place(at).y;
    let head = id % p.heads;
    let row0 = p.row_first + (p.row_tiles - 1u - id / p.heads) * TILE_Q;
    let row_end = min(row0 + TILE_Q, p.q_len);
    let row_block = row0 / 64u;
    let kv_head = (p.head_in_group + head) / p.group_size;
    let k_base = p.k_at + kv_head * (p.k_head_stride / 4u);
    let v_base = p.v_at + kv_head * (p.v_head_stride / 4u);

    let q_base = p.q_at + head * (p.q_head_stride / 4u);

    let row = head * p.row_blocks + row_block;
    next_range = row_ranges[p.row_ranges_at + 2u * row];
    range_end = next_range + row_ranges[p.row_ranges_at + 2u * row + 1u];
    let keep_base = p.keep_at + row * p.column_tiles * 2u;
    let column_base = p.columns_at + head * p.column_tiles * 64u;
    let n_init = window[p.window_at + 2u * head];
    let n_local = window[p.window_at + 2u * head + 1u];
    let first_position = p.q_start + row0;
    let last_position = p.q_start + row_end - 1u;
    let key_limit = min(last_position + 1u, p.kv_len);
    let position = first_position + ty * ROWS;
    let scale = p.scale * LOG2_E;

//@for i 0 ROWS
    var m${i} = LOWEST;
    var l${i} = 0.0;
//@for j 0 OUT_VECS
    var o${i}_${j} = vec4<f32>();
//@end
//@end

    key0 = 0u;
    key_end = 0u;
    is_columns = false;
    next_column = 0u;
    var more = advance(tx, key_limit, keep_base, column_base);
    if more {
        fetch_qk(lane, q_base, k_base, row0, 0u);
    }
    while more {
        // scores
//@for i 0 ROWS
//@for j 0 KEYS
        var s${i}_${j} = 0.0;
//@end
//@end
        for (var first = 0u; first < HEAD_VECS; first += STEP) {
            workgroupBarrier();
            put_qk(lane);
            workgroupBarrier();
            if first + STEP < HEAD_VECS {
                fetch_qk(lane, q_base, k_base, row0, first + STEP);
            } else {
                fetch_v(lane, v_base, 0u, 0u);
            }
            for (var d = 0u; d < STEP; d++) {
//@for j 0 KEYS
                let k${j} = vec4<f32>(s_kv[(tx + ${16*j}u) * PITCH + d]);
//@end
//@for i 0 ROWS
                let q${i} = vec4<f32>(s_q[(ty * ROWS + ${i}u) * PITCH + d]);
//@for j 0 KEYS
                s${i}_${j} = fma(q${i}.x, k${j}.x, fma(q${i}.y, k${j}.y, fma(q${i}.z, k${j}.z, fma(q${i}.w, k${j}.w, s${i}_${j}))));
//@end
//@end
            }
        }
//@for i 0 ROWS
//@for j 0 KEYS
        s${i}_${j} *= scale;
//@end
//@end

        // masks, only where the tile needs them
        let ragged = is_columns || key0 + TILE_K > key_end;
        let diagonal = !is_columns && key0 + TILE_K > first_position + 1u;
        let windowed = !is_columns && key_end > n_init && last_position - key0 >= n_local;
        if ragged || diagonal || windowed {
            let mine = key0 + tx * KEYS;
//@for i 0 ROWS
//@for j 0 KEYS
            {
                let key = mine + ${j}u;
                let query = position + ${i}u;
                let seen = is_columns || (key <= query && (query - key < n_local || key < n_init));
                s${i}_${j} = select(MASKED, s${i}_${j}, seen && (allowed & (1u << ${j}u)) != 0u);
            }
//@end
//@end
        }

        // online softmax
        var top: array<f32, ROWS>;
//@for i 0 ROWS
        top[${i}] = s${i}_0;
//@for j 1 KEYS
        top[${i}] = max(top[${i}], s${i}_${j});
//@end
//@end
        top = row_max(at, top);
        if p.skip_below > SKIP_NOTHING {
            var loud = false;
//@for i 0 ROWS
            loud = loud || top[${i}] >= m${i} + p.skip_below * LOG2_E;
//@end
            if lane == 0u {
                atomicStore(&s_loud, 0u);
            }
            workgroupBarrier();
            if loud {
                atomicStore(&s_loud, 1u);
            }
            workgroupBarrier();
            if atomicLoad(&s_loud) == 0u {
                more = advance(tx, key_limit, keep_base, column_base);
                if more {
                    fetch_qk(lane, q_base, k_base, row0, 0u);
                }
                continue;
            }
        }
//@for i 0 ROWS
        {
            let m = max(m${i}, top[${i}]);
            let shrink = exp2(m${i} - m);
            m${i} = m;
            var e: vec${KEYS}<f32>;
//@for j 0 KEYS
            e[${j}] = exp2(s${i}_${j} - m);
//@end
            s_p[(ty * ROWS + ${i}u) * P_PITCH + tx] = vec${KEYS}<Probability>(e);
            l${i} = l${i} * shrink + dot(e, vec${KEYS}<f32>(1.0));
//@for j 0 OUT_VECS
            o${i}_${j} *= shrink;
//@end
        }
//@end

        // accumulate
//@for n 0 OUT_VECS
        for (var place = 0u; place < TILE_K; place += VALUES) {
            workgroupBarrier();
            put_v(lane);
            workgroupBarrier();
            let last = place + VALUES >= TILE_K && ${n+1}u >= OUT_VECS;
            if last {
                more = advance(tx, key_limit, keep_base, column_base);
            }
            if !last {
                let wraps = place + VALUES >= TILE_K;
                fetch_v(lane, v_base, select(${16*n}u, ${16*(n+1)}u, wraps), select(place + VALUES, 0u, wraps));
            } else if more {
                fetch_qk(lane, q_base, k_base, row0, 0u);
            }
            for (var i = 0u; i < VALUES / KEYS; i++) {
//@for i 0 ROWS
                let p${i} = vec${KEYS}<f32>(s_p[(ty * ROWS + ${i}u) * P_PITCH + place / KEYS + i]);
//@end
//@for j 0 KEYS
                {
                    let value = vec4<f32>(s_kv[(i * KEYS + ${j}u) * V_PITCH + tx]);
//@for i 0 ROWS
                    o${i}_${n} = fma(vec4<f32>(p${i}[${j}]), value, o${i}_${n});
//@end
                }
//@end
            }
        }
//@end
    }

    // output
    var sums: array<f32, ROWS>;
//@for i 0 ROWS
    sums[${i}] = l${i};
//@end
    sums = row_sum(at, sums);
    let out_base = p.out_at + head * (p.out_head_stride / 4u);
//@for i 0 ROWS
    {
        let query = row0 + ty * ROWS + ${i}u;
        if query < p.q_len {
            let sum = sums[${i}];
            let inverse = select(0.0, 1.0 / sum, sum > 0.0);
            let row_base = out_base + (query - p.row_first) * (p.out_row_stride / 4u);
//@for n 0 OUT_VECS
            if ${16*n}u + tx < p.head_dim / 4u {
                out[row_base + ${16*n}u + tx] = to_out(o${i}_${n} * inverse);
            }
//@end
            if p.write_lse != 0u && tx == 0u {
                lse[p.lse_at + head * p.q_len + query] = select(bitcast<f32>(negative_infinity), (m${i} + log2(sum)) * LN_2, sum > 0.0);
            }
        }
    }
//@end
}
