// out[r, c] (+)= sum_k x[r, k] * w[c, k] + bias[c], without matrix units: blocks held in registers.
//
// A workgroup computes 16 ROWS x 128 of out, 256 lanes as 16 x 16; lane (tx, ty) has rows ty + 16 i, i < ROWS, and columns
// tx + 16 j, j < 8. Both operands lie in memory along k, so tiles of 4 QUADS elements of k are staged as
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

// Four elements of a row of x or w as they are stored; outside of it, others that exist.
fn x_at(row: u32, k: u32) -> RawX {
    let inside = min(k, (p.k - 1u) / 4u * 4u);
    return raw_x4(min(row, p.m - 1u) * p.x_stride + inside, p.k - inside);
}

fn w_at(row: u32, k: u32) -> RawW {
    let inside = min(k, (p.k - 1u) / 4u * 4u);
    return raw_w4(min(row, p.n - 1u) * p.k + inside, p.k - inside);
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

    // what this lane stages: four elements of rows stage_row + i STEP
    let quad = at.lane % QUADS;
    let stage_row = at.lane / QUADS;
    const STEP = 256u / QUADS;
    let slot = stage_row * STRIDE + quad;
    //@for i 0 16*ROWS*QUADS/256
    var x${i} = x_at(origin.y + stage_row + ${i}u * STEP, 4u * quad);
    //@end
    //@for i 0 128*QUADS/256
    var w${i} = w_at(origin.x + stage_row + ${i}u * STEP, 4u * quad);
    //@end

    let x_first = ty * STRIDE;
    let w_first = tx * STRIDE;
    //@for i 0 ROWS
    var left${i} = vec4<f32>();
    var right${i} = vec4<f32>();
    //@end
    for (var k = 0u; k < p.k; k += 4u * QUADS) {
        // stage, with zeros past the end of k
        let there = k + 4u * quad < p.k;
        workgroupBarrier();
        //@for i 0 16*ROWS*QUADS/256
        x_tile[slot + ${i}u * STEP * STRIDE] = select(Stage(), staged_x(x${i}), there);
        //@end
        //@for i 0 128*QUADS/256
        w_tile[slot + ${i}u * STEP * STRIDE] = select(Stage(), staged_w(w${i}), there);
        //@end
        workgroupBarrier();

        // the next tile
        let next = k + 4u * QUADS + 4u * quad;
        //@for i 0 16*ROWS*QUADS/256
        x${i} = x_at(origin.y + stage_row + ${i}u * STEP, next);
        //@end
        //@for i 0 128*QUADS/256
        w${i} = w_at(origin.x + stage_row + ${i}u * STEP, next);
        //@end

        // multiply
        for (var first = 0u; first < QUADS; first += 2u) {
        //@for u 0 2
        {
            let q = first + ${u}u;
            let left = columns(w_first + q);
            let right = columns(w_first + 64u * STRIDE + q);
            //@for i 0 ROWS
            let a${i} = vec4<f32>(x_tile[x_first + ${16*i}u * STRIDE + q]);
            left${i} = multiply(a${i}, left, left${i});
            right${i} = multiply(a${i}, right, right${i});
            //@end
        }
        //@end
        }
    }

    // store
    let row = origin.y + ty;
    let column = origin.x + tx;
    //@for i 0 ROWS
    //@for j 0 4
    finish(row + ${16*i}u, column + ${16*j}u, left${i}[${j}]);
    finish(row + ${16*i}u, column + ${16*j+64}u, right${i}[${j}]);
    //@end
    //@end
}
