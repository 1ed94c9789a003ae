// out[r, c] (+)= sum_k x[r, k] * w[c, k] + bias[c], without matrix units: blocks held in registers.
//
// A workgroup computes 16 ROWS x 128 of out, 256 lanes as 16 x 16; lane (tx, ty) has rows ty + 16 i, i < ROWS (4 or 8),
// and columns tx + 16 j, j < 8. Both operands lie in memory along k, so tiles of 4 QUADS elements of k are staged as
// they lie, four elements to a vector; the rows are padded by one vector, which puts the 16 columns that lanes read
// together into different banks. The next tile is on its way into registers while this one is multiplied.
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

const BLOCK_M = 16u * ROWS;
const BLOCK_N = 128u;
const STRIDE = QUADS + 1u;
var<workgroup> x_tile: array<Stage, BLOCK_M * STRIDE>;
var<workgroup> w_tile: array<Stage, BLOCK_N * STRIDE>;

// Four elements of a row of x or w, zero outside of it.
fn x_at(row: u32, k: u32) -> Stage {
    var values = vec4<f32>();
    if row < p.m && k < p.k {
        values = load_x4(row * p.x_stride + k, p.k - k);
    }
    return Stage(values);
}

fn w_at(row: u32, k: u32) -> Stage {
    var values = vec4<f32>();
    if row < p.n && k < p.k {
        values = load_w4(row * p.k + k, p.k - k);
    }
    return Stage(values);
}

// Four elements of k of four columns, turned so that element i of k is column i.
fn columns(first: u32) -> mat4x4<f32> {
    return transpose(mat4x4<f32>(
        vec4<f32>(w_tile[first]),
        vec4<f32>(w_tile[first + 16u * STRIDE]),
        vec4<f32>(w_tile[first + 32u * STRIDE]),
        vec4<f32>(w_tile[first + 48u * STRIDE]),
    ));
}

fn multiply(a: vec4<f32>, b: mat4x4<f32>, c: vec4<f32>) -> vec4<f32> {
    let xy = fma(vec4<f32>(a.y), b[1], fma(vec4<f32>(a.x), b[0], c));
    return fma(vec4<f32>(a.w), b[3], fma(vec4<f32>(a.z), b[2], xy));
}

fn finish_row(row: u32, column: u32, a: vec4<f32>, b: vec4<f32>) {
    finish(row, column, a.x);
    finish(row, column + 16u, a.y);
    finish(row, column + 32u, a.z);
    finish(row, column + 48u, a.w);
    finish(row, column + 64u, b.x);
    finish(row, column + 80u, b.y);
    finish(row, column + 96u, b.z);
    finish(row, column + 112u, b.w);
}

@compute @workgroup_size(256)
fn main(at: Invocation) {
    let tiles = vec2<u32>((p.n + BLOCK_N - 1u) / BLOCK_N, (p.m + BLOCK_M - 1u) / BLOCK_M);
    let tile = linear_group(at);
    if tile >= tiles.x * tiles.y {
        return;
    }
    let origin = tile_of(tile, tiles) * vec2<u32>(BLOCK_N, BLOCK_M);
    let tx = at.lane % 16u;
    let ty = at.lane / 16u;

    // what this lane stages: vector `quad` of rows stage_row and stage_row + 256 / QUADS
    let quad = at.lane % QUADS;
    let stage_row = at.lane / QUADS;
    const STEP = 256u / QUADS;
    let slot = stage_row * STRIDE + quad;
    var x0 = x_at(origin.y + stage_row, 4u * quad);
    var x1 = Stage();
    if BLOCK_M > STEP {
        x1 = x_at(origin.y + stage_row + STEP, 4u * quad);
    }
    var w0 = w_at(origin.x + stage_row, 4u * quad);
    var w1 = Stage();
    if BLOCK_N > STEP {
        w1 = w_at(origin.x + stage_row + STEP, 4u * quad);
    }

    var c0a = vec4<f32>();
    var c0b = vec4<f32>();
    var c1a = vec4<f32>();
    var c1b = vec4<f32>();
    var c2a = vec4<f32>();
    var c2b = vec4<f32>();
    var c3a = vec4<f32>();
    var c3b = vec4<f32>();
    var c4a = vec4<f32>();
    var c4b = vec4<f32>();
    var c5a = vec4<f32>();
    var c5b = vec4<f32>();
    var c6a = vec4<f32>();
    var c6b = vec4<f32>();
    var c7a = vec4<f32>();
    var c7b = vec4<f32>();
    let x_first = ty * STRIDE;
    let w_first = tx * STRIDE;
    for (var k = 0u; k < p.k; k += 4u * QUADS) {
        // stage
        workgroupBarrier();
        if stage_row < BLOCK_M {
            x_tile[slot] = x0;
        }
        if BLOCK_M > STEP {
            x_tile[slot + STEP * STRIDE] = x1;
        }
        w_tile[slot] = w0;
        if BLOCK_N > STEP {
            w_tile[slot + STEP * STRIDE] = w1;
        }
        workgroupBarrier();

        // the next tile
        let next = k + 4u * QUADS + 4u * quad;
        x0 = x_at(origin.y + stage_row, next);
        if BLOCK_M > STEP {
            x1 = x_at(origin.y + stage_row + STEP, next);
        }
        w0 = w_at(origin.x + stage_row, next);
        if BLOCK_N > STEP {
            w1 = w_at(origin.x + stage_row + STEP, next);
        }

        // multiply
        for (var q = 0u; q < QUADS; q++) {
            let left = columns(w_first + q);
            let right = columns(w_first + 64u * STRIDE + q);
            var a: vec4<f32>;
            a = vec4<f32>(x_tile[x_first + 0u * STRIDE + q]);
            c0a = multiply(a, left, c0a);
            c0b = multiply(a, right, c0b);
            a = vec4<f32>(x_tile[x_first + 16u * STRIDE + q]);
            c1a = multiply(a, left, c1a);
            c1b = multiply(a, right, c1b);
            a = vec4<f32>(x_tile[x_first + 32u * STRIDE + q]);
            c2a = multiply(a, left, c2a);
            c2b = multiply(a, right, c2b);
            a = vec4<f32>(x_tile[x_first + 48u * STRIDE + q]);
            c3a = multiply(a, left, c3a);
            c3b = multiply(a, right, c3b);
            if ROWS == 8u {
                a = vec4<f32>(x_tile[x_first + 64u * STRIDE + q]);
                c4a = multiply(a, left, c4a);
                c4b = multiply(a, right, c4b);
                a = vec4<f32>(x_tile[x_first + 80u * STRIDE + q]);
                c5a = multiply(a, left, c5a);
                c5b = multiply(a, right, c5b);
                a = vec4<f32>(x_tile[x_first + 96u * STRIDE + q]);
                c6a = multiply(a, left, c6a);
                c6b = multiply(a, right, c6b);
                a = vec4<f32>(x_tile[x_first + 112u * STRIDE + q]);
                c7a = multiply(a, left, c7a);
                c7b = multiply(a, right, c7b);
            }
        }
    }

    // store
    let row = origin.y + ty;
    let column = origin.x + tx;
    finish_row(row + 0u, column, c0a, c0b);
    finish_row(row + 16u, column, c1a, c1b);
    finish_row(row + 32u, column, c2a, c2b);
    finish_row(row + 48u, column, c3a, c3b);
    if ROWS == 8u {
        finish_row(row + 64u, column, c4a, c4b);
        finish_row(row + 80u, column, c5a, c5b);
        finish_row(row + 96u, column, c6a, c6b);
        finish_row(row + 112u, column, c7a, c7b);
    }
}
