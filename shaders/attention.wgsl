// Attention over a sparse index without cooperative matrices, one online softmax per query:
//
//     out[i] = sum_j softmax_j(scale * q[i] . k[j]) v[j]     over the keys j that the index gives query i
//
// One group: one head and TILE_Q queries of one row block; 16 x 8 invocations, ROWS queries x 4 keys of each tile each. The
// group walks its row block's ranges in tiles of 64 keys from wherever they start, then the tiles of single columns whose
// keep mask is not empty, TILES of them at a time. Later row blocks have more keys and come first, all heads of a row block
// together.
//
// All arithmetic is f32, on parts in workgroup memory: 4 STEP elements of queries and keys, turned, so that an element of
// all is a row and one read serves 4 of them; then the probabilities of a tile, turned as well, and VALUES of its values.
// Each part is read from storage while the one before is multiplied, without a branch or a conversion at the load: compilers
// wait for a value where it is first looked at (that alone took a third of the time). Loops over parts end where a launch
// says, not where a constant does: unrolled by the driver, the kernel outgrows the instruction cache.
//
// Staged as f32, the products need no conversions (with f16, 128 of 685 instructions): a part of 16 elements is 1241
// instructions, 1024 of them multiply, one of 8 values 640 and 512. That pays only where two groups fit into a
// multiprocessor's workgroup memory: alone, a group of 4 warps waits (H100, D 128: 1.3 times as long for two groups as for
// one where both fit, 1.9 where they do not). 238 registers let no third in. What did not help: groups of 256 with 4
// queries an invocation (32 TFLOP/s at 174 registers, 36 where 512 invocations in step leave 123: a third more reads
// of workgroup memory a product), 16 values at a time with the probabilities in parts (34 to 37), one copy of the second
// product for both tiles, the next element's vectors held in registers. Sums of P V in f16: of 8 products 5.4e-4 wrong
// (relative L2), of 4 no faster, of 4 and 4 whose sums meet in f32 neither.
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
@group(0) @binding(5) var<storage, read> columns: array<u32>; // [heads, 64 * column_tiles]
@group(0) @binding(6) var<storage, read> keep: array<u32>; // [heads, row_blocks, 2 * column_tiles]
@group(0) @binding(7) var<storage, read> window: array<u32>; // [heads, 2]
@group(0) @binding(8) var<storage, read_write> out: array<Out>; // [heads, rows, head_dim] under strides
@group(0) @binding(9) var<storage, read_write> lse: array<f32>; // [heads, q_len]

const THREADS: u32 = 128u;
const TILE_Q: u32 = 8u * ROWS;
// vec4s between rows of queries, rows of keys, and blocks of 4 keys' probabilities: two more than are used, so that what 8
// invocations put down at a time lies in different banks.
const Q_PITCH: u32 = TILE_Q / 4u + 2u;
const K_PITCH: u32 = 16u * TILES + 2u;
const P_PITCH: u32 = TILE_Q + 2u;
// Where the keys of a part begin, behind its queries.
const K_AT: u32 = 4u * STEP * Q_PITCH;
// Blocks of 4 elements of 4 queries, or of 4 keys, in a part: at most one an invocation.
const Q_BLOCKS: u32 = TILE_Q / 4u * STEP;
const K_BLOCKS: u32 = 16u * TILES * STEP;

const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// Masked scores lie so far below the lowest maximum that their exponential is zero before a row has met any key.
const MASKED: f32 = -3e38;
const LOWEST: f32 = -1e30;
const SKIP_NOTHING: f32 = -3.4028234e38;

// The keys of the tiles at hand and of the next ones.
var<workgroup> s_keys: array<u32, 128u * TILES>;
// A part of the queries and behind it one of the keys; then the probabilities of a tile.
var<workgroup> s_tile: array<vec4<f32>, TILE_VECS>;
// A part of the values.
var<workgroup> s_v: array<vec4<f32>, VALUES * V_PITCH>;
// Skip-softmax: whether any row of the tile at hand is loud enough to be computed.
var<workgroup> s_loud: atomic<u32>;

// The log-sum-exp of no key. A variable, because WGSL has no infinite constants.
var<private> negative_infinity: u32 = 0xff800000u;

// Of this invocation's queries: scores, then probabilities, with 4 keys of each tile; the maximum, the sum, the output.
//@for i 0 ROWS
//@for t 0 TILES
var<private> s${i}_${t}: vec4<f32>;
//@end
var<private> m${i}: f32;
var<private> l${i}: f32;
//@for n 0 OUT_VECS
var<private> o${i}_${n}: vec4<f32>;
//@end
//@end

// Where the walk is: keys [walk_key, walk_end) of a range, or the columns from walk_column on, and what is left.
var<private> walk_key: u32;
var<private> walk_end: u32;
var<private> next_range: u32;
var<private> range_end: u32;
var<private> next_column: u32;
// The tiles at hand: keys [first, end) of a range, or columns from `first` on, and which of this invocation's are kept.
//@for t 0 TILES
var<private> first${t}: u32;
var<private> end${t}: u32;
var<private> is_columns${t}: bool;
// Whether keys are masked by the bits of `kept`, not by their position: columns, and places past the last tile.
var<private> by_bits${t}: bool;
var<private> kept${t}: u32;
// Keys to multiply values of, from the first on.
var<private> places${t}: u32;
//@end

// Goes to the next tile: false after the last.
fn advance(key_limit: u32, keep_base: u32) -> bool {
    walk_key += 64u;
    while walk_key >= walk_end && next_range < range_end {
        walk_key = ranges[p.ranges_at + 2u * next_range];
        walk_end = min(ranges[p.ranges_at + 2u * next_range + 1u], key_limit);
        next_range++;
    }
    if walk_key < walk_end {
        return true;
    }
    while next_column < p.column_tiles && (keep[keep_base + 2u * next_column] | keep[keep_base + 2u * next_column + 1u]) == 0u {
        next_column++;
    }
    next_column++;
    return next_column <= p.column_tiles;
}

// Takes the next TILES tiles: false where there is none. Places past the last one repeat the tile before, masked.
fn take_tiles(tx: u32, key_limit: u32, keep_base: u32, column_base: u32) -> bool {
    if !advance(key_limit, keep_base) {
        return false;
    }
    take0(tx, keep_base, column_base);
//@for t 1 TILES
    if advance(key_limit, keep_base) {
        take${t}(tx, keep_base, column_base);
    } else {
        first${t} = first${t-1};
        end${t} = end${t-1};
        is_columns${t} = is_columns${t-1};
        by_bits${t} = true;
        kept${t} = 0u;
        places${t} = 0u;
    }
//@end
    return true;
}

//@for t 0 TILES
fn take${t}(tx: u32, keep_base: u32, column_base: u32) {
    is_columns${t} = walk_key >= walk_end;
    by_bits${t} = is_columns${t};
    first${t} = walk_key;
    end${t} = walk_end;
    places${t} = min(64u, walk_end - walk_key);
    if is_columns${t} {
        places${t} = 64u;
        let tile = next_column - 1u;
        first${t} = column_base + 64u * tile;
        kept${t} = keep[keep_base + 2u * tile + tx / 8u] >> (4u * (tx % 8u));
    }
}
//@end

// Writes down the keys of the tiles that were taken, in the other half of `s_keys`. Places beyond the end of a tile repeat
// a key that exists, because 0 * NaN is not 0.
fn write_keys(lane: u32) {
    keys_at = 64u * TILES - keys_at;
    let i = lane % 64u;
//@for t 0 TILES
    if is_columns${t} {
        s_keys[keys_at + ${64*t}u + i] = min(columns[first${t} + i], p.kv_len - 1u);
    } else {
        s_keys[keys_at + ${64*t}u + i] = min(first${t} + i, end${t} - 1u);
    }
//@end
}

// The half of `s_keys` that was written last, and the half with the tiles that are multiplied.
var<private> keys_at: u32;
var<private> tile_keys_at: u32;

// What this invocation copies of a part, on its way from storage to workgroup memory while the part before is multiplied:
// 4 elements of 4 queries and of 4 keys, and where these begin.
//@for i 0 4
var<private> q_part${i}: vec4<Elem>;
var<private> k_part${i}: vec4<Elem>;
var<private> q_row${i}: u32;
var<private> k_row${i}: u32;
//@end
//@for i 0 V_STAGE
var<private> v_part${i}: vec4<Elem>;
var<private> v_row${i}: u32;
//@end
// The place whose values' rows are known.
var<private> v_place: u32;

fn place_keys(lane: u32, k_base: u32) {
    let slot = keys_at + lane % K_BLOCKS / STEP * 4u;
//@for i 0 4
    k_row${i} = k_base + s_keys[slot + ${i}u] * (p.k_row_stride / 4u);
//@end
}

// Rows beyond the last repeat it and are not written.
fn place_queries(lane: u32, q_base: u32, row0: u32) {
    let row = row0 + lane % Q_BLOCKS / STEP * 4u;
//@for i 0 4
    q_row${i} = q_base + (min(row + ${i}u, p.q_len - 1u) - p.row_first) * (p.q_row_stride / 4u);
//@end
}

// Reads STEP vec4s of each query and each key, from vec4 `first` on; past the head dim, the last ones again.
fn fetch_qk(lane: u32, first: u32) {
    let d = min(first + lane % STEP, p.head_dim / 4u - 1u);
//@for i 0 4
    q_part${i} = q[q_row${i} + d];
    k_part${i} = k[k_row${i} + d];
//@end
}

// Puts them down turned, with zeros past the head dim in the queries: keys are real numbers there too. Whole vectors,
// because writing a component may write the others. Row c STEP + i is element 4 i + c: the order is free, and in this one
// no two of 8 invocations meet in a bank.
fn put_qk(lane: u32, first: u32) {
    let d = lane % STEP;
    let there = first + d < p.head_dim / 4u;
    if lane < Q_BLOCKS {
        let at = d * Q_PITCH + lane / STEP;
//@for c 0 4
        s_tile[at + ${c}u * STEP * Q_PITCH] = vec4<f32>(select(vec4<Elem>(), vec4<Elem>(q_part0[${c}], q_part1[${c}], q_part2[${c}], q_part3[${c}]), there));
//@end
    }
    if lane < K_BLOCKS {
        let at = K_AT + d * K_PITCH + lane / STEP;
//@for c 0 4
        s_tile[at + ${c}u * STEP * K_PITCH] = vec4<f32>(vec4<Elem>(k_part0[${c}], k_part1[${c}], k_part2[${c}], k_part3[${c}]));
//@end
    }
}

// Finds the rows of VALUES values, from place `v_place` on.
fn place_v(lane: u32, v_base: u32) {
    let d = min(lane % V_PITCH, p.head_dim / 4u - 1u);
//@for i 0 V_STAGE
    v_row${i} = v_base + s_keys[tile_keys_at + v_place + lane / V_PITCH + ${i*128}u / V_PITCH] * (p.v_row_stride / 4u) + d;
//@end
}

// Reads the values whose rows are known, then finds those of the next part: behind the `first_end` places of the first tile
// comes the last one, behind the last part nothing new. Rows are known a part ahead, because an address that waits for a
// key would hold its load back to the end of a product.
fn fetch_v(lane: u32, v_base: u32, first_end: u32) {
//@for i 0 V_STAGE
    v_part${i} = v[v_row${i}];
//@end
    v_place = min(v_place + VALUES, 64u * TILES - VALUES);
    if v_place == first_end {
        v_place = 64u * (TILES - 1u);
    }
    place_v(lane, v_base);
}

fn put_v(lane: u32) {
//@for i 0 V_STAGE
    s_v[lane + ${i}u * THREADS] = vec4<f32>(v_part${i});
//@end
}

// Adds what a part of the queries and keys gives to the scores.
fn multiply_qk(tx: u32, ty: u32) {
    for (var d = 0u; d < 4u * STEP; d += 4u * UNROLL) {
//@for u 0 4*UNROLL
        {
//@for t 0 TILES
            let k${t} = s_tile[K_AT + (d + ${u}u) * K_PITCH + ${16*t}u + tx];
//@end
//@for i 0 ROWS/4
            let q${i} = s_tile[(d + ${u}u) * Q_PITCH + ty * ${ROWS/4}u + ${i}u];
//@end
//@for i 0 ROWS
//@for t 0 TILES
            s${i}_${t} = fma(vec4<f32>(q${i/4}[${i%4}]), k${t}, s${i}_${t});
//@end
//@end
        }
//@end
    }
}

// Adds what VALUES values from place `place` on give to the output.
fn multiply_pv(tx: u32, ty: u32, place: u32) {
    for (var c = 0u; c < VALUES / 4u; c += V_UNROLL) {
        let at = (place / 4u + c) * P_PITCH + ty;
//@for u 0 V_UNROLL
//@for j 0 4
        {
//@for i 0 ROWS/4
            let p${i} = s_tile[at + ${u}u * P_PITCH + ${j}u * (TILE_Q / 4u) + ${8*i}u];
//@end
//@for n 0 OUT_VECS
            let v${n} = s_v[(c * 4u + ${j+4*u}u) * V_PITCH + ${16*n}u + tx];
//@end
//@for i 0 ROWS
//@for n 0 OUT_VECS
            o${i}_${n} = fma(vec4<f32>(p${i/4}[${i%4}]), v${n}, o${i}_${n});
//@end
//@end
        }
//@end
//@end
    }
}

// Writes down the probabilities of a tile, turned like the queries: a key is a row, of the first 4 queries of all `ty`, then
// the next 4.
//@for t 0 TILES
fn put_p${t}(tx: u32, ty: u32) {
    let at = tx * P_PITCH + ty;
//@for j 0 4
//@for i 0 ROWS/4
    s_tile[at + ${j}u * (TILE_Q / 4u) + ${8*i}u] = vec4<f32>(s${4*i}_${t}[${j}], s${4*i+1}_${t}[${j}], s${4*i+2}_${t}[${j}], s${4*i+3}_${t}[${j}]);
//@end
//@end
}
//@end

// Masks the scores of keys that are not there and of those that a query does not see, only where a tile needs it.
fn mask(tx: u32, position: u32, first_position: u32, last_position: u32, n_init: u32, n_local: u32) {
//@for t 0 TILES
    {
        let ragged = by_bits${t} || first${t} + 64u > end${t};
        let diagonal = first${t} + 64u > first_position + 1u;
        let windowed = end${t} > n_init && last_position - first${t} >= n_local;
        if ragged || diagonal || windowed {
//@for i 0 ROWS
//@for j 0 4
            {
                let key = first${t} + 4u * tx + ${j}u;
                let query = position + ${i}u;
                let seen = key < end${t} && key <= query && (query - key < n_local || key < n_init);
                let shown = select(seen, (kept${t} >> ${j}u & 1u) != 0u, by_bits${t});
                s${i}_${t}[${j}] = select(MASKED, s${i}_${t}[${j}], shown);
            }
//@end
//@end
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
    let lane = at.lane;
    let tx = tile_place(at).x;
    let ty = tile_place(at).y;
    let head = id % p.heads;
    let row0 = p.row_first + (p.row_tiles - 1u - id / p.heads) * TILE_Q;
    let row_end = min(row0 + TILE_Q, p.q_len);
    let kv_head = (p.head_in_group + head) / p.group_size;
    let q_base = p.q_at + head * (p.q_head_stride / 4u);
    let k_base = p.k_at + kv_head * (p.k_head_stride / 4u);
    let v_base = p.v_at + kv_head * (p.v_head_stride / 4u);

    let row = head * p.row_blocks + row0 / 64u;
    next_range = row_ranges[p.row_ranges_at + 2u * row];
    range_end = next_range + row_ranges[p.row_ranges_at + 2u * row + 1u];
    let keep_base = p.keep_at + row * p.column_tiles * 2u;
    let column_base = p.columns_at + head * p.column_tiles * 64u;
    let n_init = window[p.window_at + 2u * head];
    let n_local = window[p.window_at + 2u * head + 1u];
    let first_position = p.q_start + row0;
    let last_position = p.q_start + row_end - 1u;
    let key_limit = min(last_position + 1u, p.kv_len);
    let scale = p.scale * LOG2_E;

//@for i 0 ROWS
    m${i} = LOWEST;
//@end
    keys_at = 0u;
    var more = take_tiles(tx, key_limit, keep_base, column_base);
    if more {
        write_keys(lane);
    }
    workgroupBarrier();
    place_queries(lane, q_base, row0);
    if more {
        place_keys(lane, k_base);
        fetch_qk(lane, 0u);
    }
    while more {
        // scores
//@for i 0 ROWS
//@for t 0 TILES
        s${i}_${t} = vec4<f32>();
//@end
//@end
        tile_keys_at = keys_at;
        for (var first = 0u; first < p.head_dim / 4u; first += STEP) {
            put_qk(lane, first);
            workgroupBarrier();
            fetch_qk(lane, first + STEP);
            multiply_qk(tx, ty);
            workgroupBarrier();
        }
//@for t 0 TILES
        let n${t} = places${t};
//@end
        let first_end = (n0 + VALUES - 1u) / VALUES * VALUES;
        v_place = 0u;
        place_v(lane, v_base);
        fetch_v(lane, v_base, first_end);
        mask(tx, first_position + ty * ROWS, first_position, last_position, n_init, n_local);
        more = take_tiles(tx, key_limit, keep_base, column_base);
        if more {
            write_keys(lane);
        }

        // online softmax
        var top: array<f32, ROWS>;
//@for i 0 ROWS
        top[${i}] = max(max(s${i}_0.x, s${i}_0.y), max(s${i}_0.z, s${i}_0.w));
//@for t 1 TILES
        top[${i}] = max(top[${i}], max(max(s${i}_${t}.x, s${i}_${t}.y), max(s${i}_${t}.z, s${i}_${t}.w)));
//@end
//@end
        top = row_max(at, top);
//@for i 0 ROWS
        top[${i}] *= scale;
//@end
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
                place_keys(lane, k_base);
                fetch_qk(lane, 0u);
                continue;
            }
        }
//@for i 0 ROWS
        {
            let m = max(m${i}, top[${i}]);
            let shrink = exp2(m${i} - m);
            m${i} = m;
            var sum = 0.0;
//@for t 0 TILES
            s${i}_${t} = exp2(fma(s${i}_${t}, vec4<f32>(scale), vec4<f32>(-m)));
            sum += (s${i}_${t}.x + s${i}_${t}.y) + (s${i}_${t}.z + s${i}_${t}.w);
//@end
            l${i} = fma(l${i}, shrink, sum);
//@for n 0 OUT_VECS
            o${i}_${n} *= shrink;
//@end
        }
//@end

        // accumulate
//@for t 0 TILES
        if n${t} > 0u {
            put_p${t}(tx, ty);
        }
        for (var place = 0u; place < n${t}; place += VALUES) {
            put_v(lane);
            workgroupBarrier();
            fetch_v(lane, v_base, first_end);
//@for u 0 (t+1)/TILES
            if place == 0u {
                place_keys(lane, k_base);
                fetch_qk(lane, 0u);
            }
//@end
            multiply_pv(tx, ty, place);
            workgroupBarrier();
        }
//@end
        if n${TILES-1} == 0u {
            place_keys(lane, k_base);
            fetch_qk(lane, 0u);
        }
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
