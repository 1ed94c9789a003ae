// out[r, c] (+)= sum_k x[r, k] * w[c, k] + bias[c] on cooperative matrices, f16 into f32.
//
// A workgroup computes TILE_M x TILE_N of out with SUBGROUPS_M x SUBGROUPS_N subgroups; each owns FRAGMENTS_M x
// FRAGMENTS_N accumulators. BLOCK_K elements of k of both operands go from memory through registers into workgroup memory,
// 16 bytes at a time, while the previous ones are multiplied; packed weights are
// unpacked on that way. Rows there are padded by 8 elements, which puts the rows that
// one matrix load touches into different banks. With two STAGES one barrier a step is enough, with one there are two.
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

alias MatrixA = coop_mat${MATRIX}x${MATRIX}<f16, A>;
alias MatrixB = coop_mat${MATRIX}x${MATRIX}<f16, B>;
alias MatrixC = coop_mat${MATRIX}x${MATRIX}<f32, C>;

const THREADS = SUBGROUP * SUBGROUPS_M * SUBGROUPS_N;
const TILE_M = FRAGMENTS_M * MATRIX * SUBGROUPS_M;
const TILE_N = FRAGMENTS_N * MATRIX * SUBGROUPS_N;
// in units of Stage: rows of the tiles, the tiles, a fragment of rows, a step of k
const ROW = (BLOCK_K + 8u) / STAGE_LANES;
const X_TILE = TILE_M * ROW;
const W_TILE = TILE_N * ROW;
const X_FRAGMENT = MATRIX * ROW;
const W_FRAGMENT = MATRIX * ROW;
const K_FRAGMENT = MATRIX / STAGE_LANES;
// lanes stage 8 elements of rows STEP apart, in X_PASSES and W_PASSES passes
const STEP = THREADS * 8u / BLOCK_K;
var<workgroup> x_tile: array<Stage, STAGES * X_TILE>;
var<workgroup> w_tile: array<Stage, STAGES * W_TILE>;

// where a subgroup spreads one accumulator
const SPREAD = MATRIX * MATRIX;
var<workgroup> spread: array<f32, SUBGROUPS_M * SUBGROUPS_N * SPREAD>;

// An accumulator to `out`.
fn drain(c: MatrixC, row: u32, column: u32, at: Invocation) {
    let first = at.subgroup * SPREAD;
    // naga 30 does not emit the operands of a store: each is a let
    let stride = MATRIX;
    let matrix = c;
    subgroupBarrier();
    coopStoreT(matrix, &spread[first], stride);
    subgroupBarrier();
    for (var i = at.subgroup_lane; i < SPREAD / 4u; i += SUBGROUP) {
        let source = first + 4u * i;
        let values = vec4<f32>(spread[source], spread[source + 1u], spread[source + 2u], spread[source + 3u]);
        finish4(row + 4u * i / MATRIX, column + 4u * i % MATRIX, values);
    }
}

@compute @workgroup_size(THREADS)
fn main(at: Invocation) {
    let tiles = vec2<u32>((p.n + TILE_N - 1u) / TILE_N, (p.m + TILE_M - 1u) / TILE_M);
    let tile = linear_group(at);
    if tile >= tiles.x * tiles.y {
        return;
    }
    let origin = tile_of(tile, tiles) * vec2<u32>(TILE_N, TILE_M);

    // what this lane stages: 8 elements of rows stage_row + i STEP
    let stage_row = at.lane * 8u / BLOCK_K;
    let stage_k = at.lane * 8u % BLOCK_K;
    let slot = stage_row * ROW + stage_k / STAGE_LANES;
    //@for i 0 X_PASSES
    let x_row${i} = min(origin.y + stage_row + ${i}u * STEP, p.m - 1u) * p.x_stride + stage_k;
    var x${i} = load_x8(x_row${i});
    //@end
    //@for i 0 W_PASSES
    let w_row${i} = min(origin.x + stage_row + ${i}u * STEP, p.n - 1u) * p.k + stage_k;
    var w${i} = fetch_w8(w_row${i});
    //@end

    // what its subgroup multiplies
    let x_first = (at.subgroup / SUBGROUPS_N) * FRAGMENTS_M * X_FRAGMENT;
    let w_first = (at.subgroup % SUBGROUPS_N) * FRAGMENTS_N * W_FRAGMENT;
    //@for i 0 FRAGMENTS_M
    //@for j 0 FRAGMENTS_N
    var c${i}_${j} = MatrixC();
    //@end
    //@end

    var x_stage = 0u;
    var w_stage = 0u;
    for (var k = 0u; k < p.k; k += BLOCK_K) {
        // stage
        if STAGES == 1u {
            workgroupBarrier();
        }
        //@for i 0 X_PASSES
        put_x(x_stage + slot + ${i}u * STEP * ROW, x${i});
        //@end
        //@for i 0 W_PASSES
        put_w(w_stage + slot + ${i}u * STEP * ROW, decode_w8(w${i}));
        //@end
        workgroupBarrier();

        // the next tiles
        let next = k + BLOCK_K;
        if next < p.k {
            //@for i 0 X_PASSES
            x${i} = load_x8(x_row${i} + next);
            //@end
            //@for i 0 W_PASSES
            w${i} = fetch_w8(w_row${i} + next);
            //@end
        }

        // multiply
        //@for s 0 BLOCK_K/MATRIX
        {
            let x_step = x_stage + x_first + ${s}u * K_FRAGMENT;
            let w_step = w_stage + w_first + ${s}u * K_FRAGMENT;
            //@for i 0 FRAGMENTS_M
            let a${i} = coopLoadT<MatrixA>(&x_tile[x_step + ${i}u * X_FRAGMENT], ROW);
            //@end
            //@for j 0 FRAGMENTS_N
            {
                let b = coopLoad<MatrixB>(&w_tile[w_step + ${j}u * W_FRAGMENT], ROW);
                //@for i 0 FRAGMENTS_M
                c${i}_${j} = coopMultiplyAdd(a${i}, b, c${i}_${j});
                //@end
            }
            //@end
        }
        //@end
        if STAGES == 2u {
            x_stage = X_TILE - x_stage;
            w_stage = W_TILE - w_stage;
        }
    }

    // store
    let row = origin.y + (at.subgroup / SUBGROUPS_N) * FRAGMENTS_M * MATRIX;
    let column = origin.x + (at.subgroup % SUBGROUPS_N) * FRAGMENTS_N * MATRIX;
    //@for i 0 FRAGMENTS_M
    //@for j 0 FRAGMENTS_N
    drain(c${i}_${j}, row + ${i}u * MATRIX, column + ${j}u * MATRIX, at);
    //@end
    //@end
}
