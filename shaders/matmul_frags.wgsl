// out[r, c] (+)= sum_k x[r, k] * w[c, k] + bias[c] on cooperative matrices of known layout (shared/coop_rows.wgsl,
// shared/coop_words.wgsl), f16 into f32.
//
// A workgroup computes TILE_M x TILE_N of out with SUBGROUPS_M x SUBGROUPS_N subgroups; each owns FRAGMENTS_M x
// FRAGMENTS_N accumulators. BLOCK_K elements of k of both operands go from memory through registers into workgroup memory
// while the previous ones are multiplied; packed weights are unpacked on that way. With two STAGES one barrier a step is
// enough, with one there are two.
//
// In workgroup memory lie, in units of 16 bytes, the words that each lane holds of operands: 32 lanes' units are
// neighbours, so that one read gives a lane its part of one left matrix, or of two half right ones. Sums do not ask for
// the order of k: a lane takes eight neighbours of k for two steps. Columns of out are mixed within a matrix such that a
// lane has four neighbours.
//
// Relies on k a multiple of BLOCK_K and rows at multiples of 16 bytes; m and n may be anything: rows past the end repeat
// the last one and are not stored.
struct Params {
    m: u32,
    n: u32,
    k: u32,
    x_stride: u32,
    out_stride: u32,
    accumulate: u32,
    x_at: u32,
    w_at: u32,
    bias_at: u32,
    out_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<In>; // [m, x_stride]
@group(0) @binding(1) var<storage, read> w: array<Weight>; // [n, k]
@group(0) @binding(2) var<storage, read> bias: array<f32>; // [n]
@group(0) @binding(3) var<storage, read_write> out: array<Out>; // [m, out_stride]

alias FragmentA = coop_mat16x16<f16, A>;
alias FragmentB = coop_mat16x16<f16, B>;
alias FragmentC = coop_mat16x16<f32, C>;
alias Eight = vec4<u32>;

const THREADS = 32u * SUBGROUPS_M * SUBGROUPS_N;
const TILE_M = FRAGMENTS_M * 16u * SUBGROUPS_M;
const TILE_N = FRAGMENTS_N * 16u * SUBGROUPS_N;
// Steps of 32 elements of k; units of the tiles, and of 16 rows of one.
const STEPS = BLOCK_K / 32u;
const X_UNITS = TILE_M * BLOCK_K / 8u;
const W_UNITS = TILE_N * BLOCK_K / 8u;
const FRAGMENT = 64u * STEPS;
var<workgroup> s_tiles: array<vec4<u32>, STAGES * (X_UNITS + W_UNITS)>;

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let tiles = vec2<u32>((p.n + TILE_N - 1u) / TILE_N, (p.m + TILE_M - 1u) / TILE_M);
    let tile = linear_group(at);
    if tile >= tiles.x * tiles.y {
        return;
    }
    let origin = tile_of(tile, tiles) * vec2<u32>(TILE_N, TILE_M);
    let lane = at.subgroup_lane;
    let thread = at.subgroup * 32u + lane;

    // what this lane stages of x: eights of two rows, of w: eights of one
    //@for i 0 X_PASSES
    let x_item${i} = thread + ${i}u * THREADS;
    let x_row${i} = origin.y + x_item${i} / (32u * STEPS) * 16u + lane / 4u;
    let x_k${i} = x_item${i} / 32u % STEPS * 32u + lane % 4u * 8u;
    let x_low${i} = min(x_row${i}, p.m - 1u) * p.x_stride + x_k${i};
    let x_high${i} = min(x_row${i} + 8u, p.m - 1u) * p.x_stride + x_k${i};
    let x_place${i} = x_item${i} / 32u * 64u + lane;
    var low${i} = load_x8(x_low${i});
    var high${i} = load_x8(x_high${i});
    //@end
    //@for i 0 W_PASSES
    let w_unit${i} = thread + ${i}u * THREADS;
    let w_column${i} = origin.x + w_unit${i} / FRAGMENT * 16u + lane / 8u * 4u + w_unit${i} / 32u % 2u * 2u + lane / 4u % 2u;
    let w_first${i} = min(w_column${i}, p.n - 1u) * p.k + w_unit${i} / 64u % STEPS * 32u + lane % 4u * 8u;
    var w${i} = fetch_w8(w_first${i});
    //@end

    // what its subgroup multiplies
    let x_first = (at.subgroup / SUBGROUPS_N) * FRAGMENTS_M * FRAGMENT + lane;
    let w_first = X_UNITS + (at.subgroup % SUBGROUPS_N) * FRAGMENTS_N * FRAGMENT + lane;
    //@for i 0 FRAGMENTS_M
    //@for j 0 FRAGMENTS_N
    var c${i}_${j} = FragmentC();
    //@end
    //@end

    var stage = 0u;
    for (var k = 0u; k < p.k; k += BLOCK_K) {
        // stage
        if STAGES == 1u {
            workgroupBarrier();
        }
        //@for i 0 X_PASSES
        s_tiles[stage + x_place${i}] = vec4<u32>(low${i}.x, high${i}.x, low${i}.y, high${i}.y);
        s_tiles[stage + x_place${i} + 32u] = vec4<u32>(low${i}.z, high${i}.z, low${i}.w, high${i}.w);
        //@end
        //@for i 0 W_PASSES
        s_tiles[stage + X_UNITS + w_unit${i}] = decode_w8(w${i});
        //@end
        workgroupBarrier();

        // the next tiles
        let next = k + BLOCK_K;
        if next < p.k {
            //@for i 0 X_PASSES
            low${i} = load_x8(x_low${i} + next);
            high${i} = load_x8(x_high${i} + next);
            //@end
            //@for i 0 W_PASSES
            w${i} = fetch_w8(w_first${i} + next);
            //@end
        }

        // multiply
        //@for s 0 BLOCK_K/32
        {
            //@for i 0 FRAGMENTS_M
            let a${i} = left_of(s_tiles[stage + x_first + ${i}u * FRAGMENT + ${64*s}u].xzyw);
            let b${i} = left_of(s_tiles[stage + x_first + ${i}u * FRAGMENT + ${64*s+32}u].xzyw);
            //@end
            //@for j 0 FRAGMENTS_N
            {
                let low = s_tiles[stage + w_first + ${j}u * FRAGMENT + ${64*s}u];
                let high = s_tiles[stage + w_first + ${j}u * FRAGMENT + ${64*s+32}u];
                let first = right_of(vec4<u32>(low.xy, high.xy));
                let second = right_of(vec4<u32>(low.zw, high.zw));
                //@for i 0 FRAGMENTS_M
                c${i}_${j} = coopMultiplyAdd(a${i}, first, c${i}_${j});
                //@end
                //@for i 0 FRAGMENTS_M
                c${i}_${j} = coopMultiplyAdd(b${i}, second, c${i}_${j});
                //@end
            }
            //@end
        }
        //@end
        if STAGES == 2u {
            stage = X_UNITS + W_UNITS - stage;
        }
    }

    // store
    let row = origin.y + (at.subgroup / SUBGROUPS_N) * FRAGMENTS_M * 16u + lane / 4u;
    let column = origin.x + (at.subgroup % SUBGROUPS_N) * FRAGMENTS_N * 16u + lane % 4u * 4u;
    //@for i 0 FRAGMENTS_M
    //@for j 0 FRAGMENTS_N
    {
        let e = elements_of(c${i}_${j});
        finish4(row + ${16*i}u, column + ${16*j}u, e.low);
        finish4(row + ${16*i+8}u, column + ${16*j}u, e.high);
    }
    //@end
    //@end
}
