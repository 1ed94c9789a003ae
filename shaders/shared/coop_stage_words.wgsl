// Tiles of K and V for attention_rows, from storage through registers to workgroup memory, 16 bytes at a time all the way.
// The next tile of both is on its way from storage while one is multiplied.
@group(0) @binding(0) var<storage, read> q: array<vec4<u32>>; // f16 [heads, rows, head_dim] under strides
@group(0) @binding(1) var<storage, read> k: array<vec4<u32>>; // f16 [kv_heads, kv_len, head_dim] under strides
@group(0) @binding(2) var<storage, read> v: array<vec4<u32>>; // f16 [kv_heads, kv_len, head_dim] under strides

// 16 bytes of a row of a tile: one more than the head's, so that the rows that a matrix load touches lie in different banks.
const PITCH: u32 = EIGHTS + 1u;
// Places of K and V; queries lie at 0, for good or until they are in registers.
const K_PLACE: u32 = Q_STAYS * ROWS * PITCH;
const V_PLACE: u32 = K_PLACE + BC * PITCH;

var<workgroup> s_tiles: array<vec4<u32>, TILE_ROWS * PITCH>;

// What this invocation copies of a tile.
//@for i 0 STAGE
var<private> k_part${i}: vec4<u32>;
var<private> v_part${i}: vec4<u32>;
//@end

fn fetch_k(thread: u32, base: u32) {
//@for i 0 STAGE
    {
        let x = thread + ${i}u * THREADS;
        let d = min(x % EIGHTS, p.head_dim / 8u - 1u);
        k_part${i} = k_unit(base, x / EIGHTS, d);
    }
//@end
}

fn fetch_v(thread: u32, base: u32) {
//@for i 0 STAGE
    {
        let x = thread + ${i}u * THREADS;
        let d = min(x % EIGHTS, p.head_dim / 8u - 1u);
        v_part${i} = v_unit(base, x / EIGHTS, d);
    }
//@end
}

// Writes what was fetched; elements beyond the head as zeros, because 0 * NaN is not 0.
fn put_k(thread: u32) {
//@for i 0 STAGE
    {
        let x = thread + ${i}u * THREADS;
        let inside = x % EIGHTS < p.head_dim / 8u;
        s_tiles[K_PLACE + x / EIGHTS * PITCH + x % EIGHTS] = select(vec4<u32>(), k_part${i}, inside);
    }
//@end
}

fn put_v(thread: u32) {
//@for i 0 STAGE
    {
        let x = thread + ${i}u * THREADS;
        let inside = x % EIGHTS < p.head_dim / 8u;
        s_tiles[V_PLACE + x / EIGHTS * PITCH + x % EIGHTS] = select(vec4<u32>(), v_part${i}, inside);
    }
//@end
}

// All queries of the group; rows beyond the last repeat it, and are not written in the end.
fn stage_queries(thread: u32, head: u32, row0: u32) {
    let base = p.q_at / 2u + head * (p.q_head_stride / 8u);
    for (var x = thread; x < ROWS * EIGHTS; x += THREADS) {
        let row = min(row0 + x / EIGHTS, p.q_len - 1u) - p.row_first;
        let d = x % EIGHTS;
        var value = vec4<u32>();
        if d < p.head_dim / 8u {
            value = q[base + row * (p.q_row_stride / 8u) + d];
        }
        s_tiles[x / EIGHTS * PITCH + d] = value;
    }
}
