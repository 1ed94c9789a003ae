// Tiles of K and V for attention_coop: both from storage through registers to workgroup memory.
@group(0) @binding(0) var<storage, read> q: array<vec4<f16>>; // [heads, rows, head_dim] under strides
@group(0) @binding(1) var<storage, read> k: array<vec4<f16>>; // [kv_heads, kv_len, head_dim] under strides
@group(0) @binding(2) var<storage, read> v: array<vec4<f16>>; // [kv_heads, kv_len, head_dim] under strides

// Rows that a subgroup has in the softmax at a time, and lanes of a row.
const SOFTMAX_ROWS: u32 = SG / LANES_ROW;
// f16 of a row of K or V, f32 of a row of scores, f16 of a row of P: so that rows that are read together lie in
// different banks.
const KV_PITCH: u32 = HEAD_DIM + 8u;
const S_PITCH: u32 = BC + 8u;
const P_PITCH: u32 = BC + 8u;

// By how much each row's output shrinks; in the end 1 / its sum.
var<workgroup> s_shrink: array<f32, ROWS>;
// What each subgroup tells its team.
var<workgroup> s_vote: array<u32, SUBGROUPS>;

// What this invocation copies of a tile: 16 bytes of a key and of a value, STAGE times.
//@for i 0 STAGE
var<private> k${i}_0: vec4<f16>;
var<private> k${i}_1: vec4<f16>;
var<private> v${i}_0: vec4<f16>;
var<private> v${i}_1: vec4<f16>;
//@end

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

// Writes what `fetch` read to workgroup memory.
fn stage_tile(thread: u32) {
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
}

// Copies BC queries from row `first` on to the place of K; rows beyond the last repeat it, and are not written in the end.
fn stage_queries(thread: u32, head: u32, first: u32) {
    let base = p.q_at / 2u + head * (p.q_head_stride / 8u);
    for (var x = thread; x < BC * EIGHTS; x += THREADS) {
        let row = min(first + x / EIGHTS, p.q_len - 1u) - p.row_first;
        let d = x % EIGHTS;
        var low = vec4<f16>();
        var high = vec4<f16>();
        if d < p.head_dim / 8u {
            let place = base + row * (p.q_row_stride / 8u) + d;
            low = q[2u * place];
            high = q[2u * place + 1u];
        }
        put_k(x / EIGHTS * KV_PITCH + 8u * d, low);
        put_k(x / EIGHTS * KV_PITCH + 8u * d + 4u, high);
    }
}
