// Attention of all heads of a layer over a SparseIndex, for Hopper (sm_90a): wgmma, TMA, mbarriers; persistent.
//
//   out[h, i, :] = softmax_j(scale q[h, i] . k[h / group, j]) v[h / group, j],  j in the index, j <= q_start + i < kv_len
//
// One work item = two neighbouring blocks of 64 queries of one head, one for each of two consumer warpgroups. Warp 1 of
// the first warpgroup (the planner) walks the union of the two blocks' key ranges in tiles of 64 keys that begin
// anywhere, then the head's gathered columns, and puts two tiles together to a pair; tiles that only one block uses are
// paired with their like, so that the other block skips whole pairs. Warp 0 (the loader) streams the pairs' K and V
// through a ring. A pair carries the position of each tile's first key and one 64-bit mask per tile and block.
//
// A consumer runs 128 keys at a time:  S(next) = Q K^T  and  O += P V(current)  are issued together, and the softmax of
// `next` runs under the latter. So it goes on from one item to the next: Q lies in registers and is free after the
// item's last scores, so the next item's first scores run with the last values of this one. Where both blocks use a pair they take turns to issue, so that one's softmax meets the
// other's products (PINGPONG).
//
// Relies on: order_work.cu for `order` and for a counter of zero; columns lie before their row block, so they need no
// causal test; rows of K and V past kv_len read as zero (the tensor maps end there).
struct AttentionParams {
    u32 n_heads, n_kv_heads, head_dim, q_len, kv_len, q_start, row_blocks, column_tiles;
    float scale;
    u32 q_row_stride, q_head_stride, k_row_stride, k_head_stride, v_row_stride, v_head_stride, out_row_stride, out_head_stride;
    u32 write_lse;
    float skip_below;
};

#ifndef Q_SHARED
#define Q_SHARED 0                                      // Q as the wgmma operand: from registers (0) or from shared memory (1)
#endif
#ifndef PINGPONG
#define PINGPONG 1
#endif
#ifndef SKIP_SOFTMAX
#define SKIP_SOFTMAX 0                                  // 1: exponentials far below the running maxima are skipped
#endif
#define SLABS ((HEAD_DIM + 63) / 64)                    // of 64 elements = 128 bytes, the width of the swizzle
#define BOX_BYTES 8192                                  // 64 rows of a slab: what one copy brings
#define SLAB_BYTES (2 * BOX_BYTES)                      // 128 keys
#define PAIR_BYTES (SLABS * SLAB_BYTES)                 // K or V of a pair
#define BLOCK_BYTES (SLABS * BOX_BYTES)                 // Q of a row block
#define STAGES (SLABS == 1 ? 6 : 3)
#define PLANS 16                                        // pairs that the planner may be ahead
#define CONSUMER_WARPS 8
#define PLANNER_REGISTERS 40
#define CONSUMER_REGISTERS 232
#define MASKED -1e38f                                   // a score that is not there; below every first maximum,
#define FIRST_MAXIMUM -1e30f                            // and both finite: a row without a key yet gets exp2(-huge) = 0

// shared memory: Q of both blocks, K ring, V ring, then records and barriers
#define Q_AT 0
#define K_AT (2 * BLOCK_BYTES)
#define V_AT (K_AT + STAGES * PAIR_BYTES)
#define PAIRS_AT (V_AT + STAGES * PAIR_BYTES)
#define PLAN_AT (PAIRS_AT + STAGES * 64)
#define WAITING_AT (PLAN_AT + PLANS * 64)
#define PLACES_AT (WAITING_AT + 3 * 24 + 8)
#define BARS_AT (PLACES_AT + CONSUMER_WARPS * 16)
#define BARS (2 + 4 * STAGES + 2 * PLANS)
static_assert(BARS_AT + BARS * 8 + 1024 <= SMEM_BYTES, "shared memory");        // 1024: the base is aligned by hand

#define FIRST 1                                         // flags of a pair: the item's first, its last, no more items
#define LAST 2
#define STOP 4
struct Pair {
    u64 keep[2][2];                                     // [row block][tile]: the keys of the tile that the block's rows see
    int key[2];                                         // [tile] position of the first key; < 0: columns, no causal test
    int source[2];                                      // [tile] first row in K, V, or in the gathered columns (key < 0)
    int head, first_block;
    u32 flags, unused;
};
struct Tile { u64 keep[2]; int key, source; };

// One row of O, `inverse` times: this lane has columns 8 j + 2 (lane % 4) and the next, in o[4 j + 2 h ..]. The four lanes
// of a row change columns among themselves, so that each stores 16 bytes.
__device__ __forceinline__ void store_row(float* to, const float (&o)[HEAD_DIM / 2], int h, float inverse, bool real, int lane) {
    #pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; j++)
        if (real) *(float2*)(to + 8 * j + 2 * (lane & 3)) = make_float2(o[4 * j + 2 * h] * inverse, o[4 * j + 2 * h + 1] * inverse);
}
__device__ __forceinline__ void store_row(act* to, const float (&o)[HEAD_DIM / 2], int h, float inverse, bool real, int lane) {
    const bool odd = lane & 1, high = lane & 2;
    #pragma unroll
    for (int g = 0; g < HEAD_DIM / 32; g++) {
        u32 x[4];                                       // x[i]: columns of chunk 4 g + i
        #pragma unroll
        for (int i = 0; i < 4; i++) x[i] = pack2(o[4 * (4 * g + i) + 2 * h] * inverse, o[4 * (4 * g + i) + 2 * h + 1] * inverse);
        // a 4 x 4 transposition over the lanes of the row
        #pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const u32 y = __shfl_xor_sync(~0u, odd ? x[i] : x[i + 1], 1);
            if (odd) x[i] = y; else x[i + 1] = y;
        }
        #pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 y = __shfl_xor_sync(~0u, high ? x[i] : x[i + 2], 2);
            if (high) x[i] = y; else x[i + 2] = y;
        }
        if (real) *(uint4*)(to + 32 * g + 8 * (lane & 3)) = make_uint4(x[0], x[1], x[2], x[3]);
    }
}

extern "C" __global__ void __launch_bounds__(384, 1)
attention_sm90a(const AttentionParams p,
                const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
                const __grid_constant__ TensorMap k_columns_map, const __grid_constant__ TensorMap v_columns_map,
                OUT* __restrict__ out, float* __restrict__ lse,                     // lse: [n_heads, q_len], natural log
                const u32* __restrict__ order, u32 items, u32* __restrict__ counter,        // order: head * groups + group
                const uint2* __restrict__ row_ranges, const uint2* __restrict__ ranges,
                const u64* __restrict__ keep, const uint2* __restrict__ window) {
    DYNAMIC_SMEM_1024;
    const u32 base = smem_address(smem);
    Pair* pairs = (Pair*)(smem + PAIRS_AT);
    Pair* plans = (Pair*)(smem + PLAN_AT);
    Tile* waiting = (Tile*)(smem + WAITING_AT);         // the planner's own
    const u32 q_full = base + BARS_AT, q_empty = q_full + 8;
    const u32 k_full = q_full + 16, v_full = k_full + STAGES * 8, k_empty = v_full + STAGES * 8, v_empty = k_empty + STAGES * 8;
    const u32 plan_full = v_empty + STAGES * 8, plan_empty = plan_full + PLANS * 8;
    // The shuffles tell the compiler that these are the same in a whole warp; without it wgmma is serialised (C7520).
    const int group = __shfl_sync(~0u, (int)threadIdx.x / 128, 0), warp = __shfl_sync(~0u, ((int)threadIdx.x >> 5) & 3, 0), lane = threadIdx.x & 31;

    if (threadIdx.x == 0) {
        mbarrier_init(q_full, 1);
        mbarrier_init(q_empty, CONSUMER_WARPS);
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(k_full + s * 8, 1);
            mbarrier_init(v_full + s * 8, 1);
            mbarrier_init(k_empty + s * 8, CONSUMER_WARPS);
            mbarrier_init(v_empty + s * 8, CONSUMER_WARPS);
        }
        for (int s = 0; s < PLANS; s++) {
            mbarrier_init(plan_full + s * 8, 1);
            mbarrier_init(plan_empty + s * 8, 1);
        }
        mbarrier_fence_init();
    }
    __syncthreads();

    if (group == 0) {
        registers_down<PLANNER_REGISTERS>();
        if (warp == 1) {
            // ---------------------------------------------------------------------------------------- planner
            const int groups = (p.row_blocks + 1) / 2;
            u32 made = 0;                               // pairs begun in this launch; those before it are handed over
            // A pair is handed over when the next one is begun, so that the item's last one can be marked.
            auto hand_over = [&]() { if (made) mbarrier_arrive(plan_full + (made - 1) % PLANS * 8); };
            auto begin = [&](int head, int first_block, u32 flags) -> Pair& {
                hand_over();
                mbarrier_wait(plan_empty + made % PLANS * 8, (made / PLANS & 1) ^ 1);
                Pair& x = plans[made++ % PLANS];
                x.head = head;
                x.first_block = first_block;
                x.flags = flags;
                return x;
            };
            for (;;) {
                u32 item = 0;
                if (lane == 0) item = atomicAdd(counter, 1u);
                item = __shfl_sync(~0u, item, 0);       // by the whole warp: with one lane alone the cursors below spill 8 bytes
                if (item >= items) break;
                const int work = order[item], head = work / groups, first_block = work % groups * 2;
                const u64 row = (u64)head * p.row_blocks + first_block;
                const bool two = first_block + 1 < (int)p.row_blocks;
                const uint2 a = row_ranges[row], b = two ? row_ranges[row + 1] : make_uint2(0, 0);
                __syncwarp();
                if (lane > 0) continue;
                Ranges r0, r1;
                {
                    const int limit = p.q_start + 64 * first_block + 64;
                    open_ranges(r0, a, min((int)p.kv_len, limit), ranges);
                    open_ranges(r1, b, min((int)p.kv_len, limit + 64), ranges);
                }
                u32 flags = FIRST, held = 0;            // held: bit u - 1 is set where a tile of use u is waiting for its like
                auto put = [&](Pair& x, int tile, u64 keep0, u64 keep1, int key, int source) {
                    x.keep[0][tile] = keep0;
                    x.keep[1][tile] = keep1;
                    x.key[tile] = key;
                    x.source[tile] = source;
                };
                auto tile = [&](u64 keep0, u64 keep1, int key, int source) {
                    const int use = (keep0 != 0) + 2 * (keep1 != 0);
                    Tile& t = waiting[use - 1];
                    if (held >> (use - 1) & 1) {
                        Pair& x = begin(head, first_block, flags);
                        put(x, 0, t.keep[0], t.keep[1], t.key, t.source);
                        put(x, 1, keep0, keep1, key, source);
                        flags = 0;
                    } else {
                        t = {{keep0, keep1}, key, source};
                    }
                    held ^= 1u << (use - 1);
                };
                for (;;) {
                    const int start = min(r0.at, r1.at);
                    if (start == NO_KEY) break;
                    const u64 keep0 = take_tile(r0, start, ranges), keep1 = take_tile(r1, start, ranges);
                    tile(keep0, keep1, start, start);
                }
                for (u32 c = 0; c < p.column_tiles; c++) {
                    const u64 keep0 = keep[row * p.column_tiles + c], keep1 = two ? keep[(row + 1) * p.column_tiles + c] : 0;
                    if (keep0 | keep1) tile(keep0, keep1, -64, 64 * c);
                }
                // What is left: at most one tile of each use. Two to a pair; one alone is paired with itself, masked.
                Pair* open = nullptr;
                for (int use = 3; use > 0; use--) {
                    if (!(held >> (use - 1) & 1)) continue;
                    const Tile t = waiting[use - 1];
                    if (open) {
                        put(*open, 1, t.keep[0], t.keep[1], t.key, t.source);
                        open = nullptr;
                    } else {
                        open = &begin(head, first_block, flags);
                        put(*open, 0, t.keep[0], t.keep[1], t.key, t.source);
                        put(*open, 1, 0, 0, t.key, t.source);
                        flags = 0;
                    }
                }
                if (flags) {                            // no key at all: an item needs a pair to be seen
                    Pair& x = begin(head, first_block, flags);
                    put(x, 0, 0, 0, -64, 0);
                    put(x, 1, 0, 0, -64, 0);
                }
                plans[(made - 1) % PLANS].flags |= LAST;
            }
            if (lane == 0) {
                begin(0, 0, STOP);
                hand_over();
            }
        } else if (warp == 0 && lane == 0) {
            // ----------------------------------------------------------------------------------------- loader
            tma_prefetch_map(&q_map);
            tma_prefetch_map(&k_map);
            tma_prefetch_map(&v_map);
            int slot = 0;
            u32 phase = 1, item = 0;                    // parity to wait for on an empty barrier: passes at once at first
            for (u32 n = 0;; n++) {
                mbarrier_wait(plan_full + n % PLANS * 8, n / PLANS & 1);
                const Pair x = plans[n % PLANS];
                mbarrier_arrive(plan_empty + n % PLANS * 8);
                if (x.flags & FIRST) {
                    mbarrier_wait(q_empty, (item++ & 1) ^ 1);
                    mbarrier_expect(q_full, 2 * BLOCK_BYTES);
                    #pragma unroll
                    for (int b = 0; b < 2; b++)
                        #pragma unroll
                        for (int s = 0; s < SLABS; s++)
                            tma_load(base + Q_AT + b * BLOCK_BYTES + s * BOX_BYTES, &q_map, q_full, 64 * s, 64 * (x.first_block + b), x.head);
                }
                mbarrier_wait(k_empty + slot * 8, phase);
                pairs[slot] = x;
                if (x.flags & STOP) {
                    mbarrier_arrive(k_full + slot * 8);
                    break;
                }
                const int kv_head = x.head / (int)(p.n_heads / p.n_kv_heads);
                auto load = [&](u32 at, u32 bar, const TensorMap* map, const TensorMap* columns) {
                    mbarrier_expect(bar, PAIR_BYTES);
                    #pragma unroll
                    for (int t = 0; t < 2; t++) {
                        const bool keys = x.key[t] >= 0;
                        #pragma unroll
                        for (int s = 0; s < SLABS; s++)
                            tma_load(at + s * SLAB_BYTES + t * BOX_BYTES, keys ? map : columns, bar, 64 * s, x.source[t], keys ? kv_head : x.head);
                    }
                };
                load(base + K_AT + slot * PAIR_BYTES, k_full + slot * 8, &k_map, &k_columns_map);
                mbarrier_wait(v_empty + slot * 8, phase);
                load(base + V_AT + slot * PAIR_BYTES, v_full + slot * 8, &v_map, &v_columns_map);
                if (++slot == STAGES) { slot = 0; phase ^= 1; }
            }
        }
        return;
    }

    // ------------------------------------------------------------------------------------------------ consumers
    registers_up<CONSUMER_REGISTERS>();
    const int mine = group - 1;                         // row block of this warpgroup
    const float scale = p.scale * LOG2_E;
    const float slack = 8.f / scale;                    // the maximum may lag by 2^8 before O is rescaled
    if (PINGPONG && mine == 1) barrier_arrive(1, 256);  // the first turn is the first warpgroup's
    int slot = 0;
    u32 phase = 0;                                      // parity of the full barriers at `slot`
    u32 seen = 0;                                       // pairs looked at
    // Slots as the compiler sees them must be uniform, or it moves every descriptor over register by register.
    auto uniform = [&](int x) { return __shfl_sync(~0u, x, 0); };
    auto release = [&](u32 bar) { __syncwarp(); if (lane == 0) mbarrier_arrive(bar); };

    // The item at work. O and the sums of the last one are finished under the first products of this one.
    u32 started = 0;                                    // items
    int row_position = 0, n_init = NO_KEY, n_local = NO_KEY;       // position of the first of this lane's rows
    // Head and position of the row block, of this item and the last: in shared memory, for registers are few. All lanes
    // write the same, so each may read without a barrier.
    int2* places = (int2*)(smem + PLACES_AT) + 2 * (4 * mine + warp);
    u32 qf[HEAD_DIM / 16][4];
    bool last = false, both = false;                    // of the pair in `next`: the item's last; the other block uses it too
    u64 mask[2];
    int key[2], next = 0, held = 0;                     // slots: of the pair to be scored, of the one whose V is still to be used
    u32 held_phase = 0, next_phase = 0;
    // Reads the next item's place and Q; false where there is no more.
    auto start = [&]() -> bool {
        mbarrier_wait(k_full + slot * 8, phase);
        if (pairs[slot].flags & STOP) return false;
        last = false;
        const int head = pairs[slot].head;
        row_position = (int)p.q_start + (pairs[slot].first_block + mine) * 64 + warp * 16 + (lane >> 2);
        n_init = n_local = NO_KEY;
        { const uint2 x = window[head]; if (x.x != NONE) { n_init = x.x; n_local = x.y; } }
        places[started & 1] = make_int2(head, row_position - (warp * 16 + (lane >> 2)));
        mbarrier_wait(q_full, started++ & 1);
#if !Q_SHARED
        #pragma unroll
        for (int i = 0; i < HEAD_DIM / 16; i++) {
            const int row = warp * 16 + (lane & 15), chunk = 2 * (i % 4) + (lane >> 4);
            ldmatrix(qf[i], base + Q_AT + mine * BLOCK_BYTES + i / 4 * BOX_BYTES + row * 128 + ((chunk ^ (row & 7)) << 4));
        }
        release(q_empty);
#endif
        return true;
    };
#if Q_SHARED
    const u64 q_desc = descriptor(base + Q_AT + mine * BLOCK_BYTES, BOX_BYTES);
#endif
    float o[HEAD_DIM / 2], s[64], top[2], sum[2], fade[2];
    u32 pf[8][4];
    auto clear = [&]() {
        #pragma unroll
        for (int j = 0; j < HEAD_DIM / 2; j++) o[j] = 0.f;
    };
    auto fresh = [&]() { top[0] = top[1] = FIRST_MAXIMUM; sum[0] = sum[1] = 0.f; };

    // The next pair of the item that this block uses; the others are handed back. Looks at no pair numbered `reach` or above.
    auto next_pair = [&](u32 reach) -> bool {
        while (!last && seen != reach) {
            mbarrier_wait(k_full + slot * 8, phase);
            const Pair& x = pairs[slot];
            mask[0] = x.keep[mine][0];
            mask[1] = x.keep[mine][1];
            key[0] = x.key[0];
            key[1] = x.key[1];
            both = (x.keep[mine ^ 1][0] | x.keep[mine ^ 1][1]) != 0;
            last = x.flags & LAST;
            next = slot;
            next_phase = phase;
            if (++slot == STAGES) { slot = 0; phase ^= 1; }
            seen++;
            if (mask[0] | mask[1]) return true;
            // V must have come before it is handed back: an arrival while the other block still reads the last
            // pair of this slot would be counted for that one.
            mbarrier_wait(v_full + next * 8, next_phase);
            release(k_empty + next * 8);
            release(v_empty + next * 8);
        }
        return false;
    };
    auto turn = [&]() { if (PINGPONG && both) barrier_sync(1 + mine, 256); };
    auto pass = [&]() { if (PINGPONG && both) barrier_arrive(2 - mine, 256); };
    auto scores = [&]() {                               // issue S = Q K^T
        wgmma_fence();
        const u64 d = descriptor(base + K_AT + uniform(next) * PAIR_BYTES, SLAB_BYTES);
        #pragma unroll
        for (int i = 0; i < HEAD_DIM / 16; i++) {
#if Q_SHARED
            wgmma_k_s(s, q_desc + (i / 4 * BOX_BYTES + i % 4 * 32) / 16, d + (i / 4 * SLAB_BYTES + i % 4 * 32) / 16, i > 0);
#else
            wgmma_k_r(s, qf[i], d + (i / 4 * SLAB_BYTES + i % 4 * 32) / 16, i > 0);
#endif
        }
        wgmma_commit();
    };
    auto values = [&]() {                               // issue O += P V
        wgmma_fence();
        const u64 d = descriptor(base + V_AT + uniform(held) * PAIR_BYTES, SLAB_BYTES);
        #pragma unroll
        for (int i = 0; i < 8; i++) wgmma_v(o, pf[i], d + i * (16 * 128) / 16, true);
        wgmma_commit();
    };
    auto hold = [&]() {                                 // S is now P, in 16 bits
        #pragma unroll
        for (int i = 0; i < 8; i++)
            #pragma unroll
            for (int c = 0; c < 4; c++) pf[i][c] = pack2(s[8 * i + 2 * c], s[8 * i + 2 * c + 1]);
        held = next;
        held_phase = next_phase;
    };
    // Masks S, turns it into probabilities, updates top and sum; true where some row of the warp has a new maximum.
    auto softmax = [&]() -> bool {
        const int block_position = row_position - (warp * 16 + (lane >> 2));
        #pragma unroll
        for (int t = 0; t < 2; t++) {
            float* x = s + 32 * t;
            if (mask[t] != ~0ull) {
                const u64 m = mask[t] >> (2 * (lane & 3));
                #pragma unroll
                for (int j = 0; j < 8; j++)
                    #pragma unroll
                    for (int c = 0; c < 2; c++)
                        if (!((m >> (8 * j + c)) & 1)) x[4 * j + c] = x[4 * j + 2 + c] = MASKED;
            }
            if (key[t] + 63 > block_position) {         // causal
                const int past = row_position - key[t] - 2 * (lane & 3);
                #pragma unroll
                for (int j = 0; j < 8; j++)
                    #pragma unroll
                    for (int c = 0; c < 2; c++) {
                        if (8 * j + c > past) x[4 * j + c] = MASKED;
                        if (8 * j + c > past + 8) x[4 * j + 2 + c] = MASKED;
                    }
            }
            if (key[t] >= 0 && key[t] + 63 >= n_init && block_position + 63 - key[t] >= n_local) {
                #pragma unroll
                for (int j = 0; j < 8; j++)
                    #pragma unroll
                    for (int c = 0; c < 2; c++) {
                        const int at = key[t] + 8 * j + c + 2 * (lane & 3);
                        if (at >= n_init && row_position - at >= n_local) x[4 * j + c] = MASKED;
                        if (at >= n_init && row_position + 8 - at >= n_local) x[4 * j + 2 + c] = MASKED;
                    }
            }
        }
        bool moved = false;
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            float a = s[2 * h], b = s[2 * h + 1];       // two chains
            #pragma unroll
            for (int j = 1; j < 16; j++) {
                a = fmaxf(a, s[4 * j + 2 * h]);
                b = fmaxf(b, s[4 * j + 2 * h + 1]);
            }
            a = fmaxf(a, b);
            a = fmaxf(a, __shfl_xor_sync(~0u, a, 1));
            a = fmaxf(a, __shfl_xor_sync(~0u, a, 2));
            fade[h] = 1.f;
            if (a > top[h] + slack) {
                fade[h] = exp2_fast((top[h] - a) * scale);
                top[h] = a;
                moved = true;
            }
#if SKIP_SOFTMAX
            // Skip-softmax by the rows of a warp: exponentials become zeros. The product still runs, on them: one that not all
            // ways through the loop issue would serialise the others (C7519).
            const bool quiet = !__any_sync(~0u, a >= top[h] + p.skip_below / p.scale);
            if (quiet) {
                #pragma unroll
                for (int j = 0; j < 16; j++) s[4 * j + 2 * h] = s[4 * j + 2 * h + 1] = 0.f;
                continue;
            }
#endif
            const float shifted = top[h] * scale;
            float x = 0.f, y = 0.f;
            #pragma unroll
            for (int j = 0; j < 16; j++) {
                float& e = s[4 * j + 2 * h];
                float& f = s[4 * j + 2 * h + 1];
                e = exp2_fast(fmaf(e, scale, -shifted));
                f = exp2_fast(fmaf(f, scale, -shifted));
                x += e;
                y += f;
            }
            sum[h] = fmaf(sum[h], fade[h], x + y);
        }
        return __any_sync(~0u, moved);
    };
    auto rescale = [&]() {
        #pragma unroll
        for (int j = 0; j < HEAD_DIM / 8; j++) {
            o[4 * j] *= fade[0]; o[4 * j + 1] *= fade[0];
            o[4 * j + 2] *= fade[1]; o[4 * j + 3] *= fade[1];
        }
    };
    // O of item number `item` to memory: its maxima, and this lane's share of its sums.
    auto finish = [&](u32 item, const float (&top)[2], const float (&sum)[2]) {
        const int2 place = places[item & 1];
        const u32 head = place.x;
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            float l = sum[h];
            l += __shfl_xor_sync(~0u, l, 1);
            l += __shfl_xor_sync(~0u, l, 2);
            const int query = place.y - (int)p.q_start + warp * 16 + (lane >> 2) + 8 * h;
            const float inverse = l > 0.f ? 1.f / l : 0.f;
            store_row(out + (u64)head * p.out_head_stride + (u64)query * p.out_row_stride, o, h, inverse, query < (int)p.q_len, lane);
            if (p.write_lse && (lane & 3) == 0 && query < (int)p.q_len)
                lse[(u64)head * p.q_len + query] = l > 0.f ? (top[h] * scale + log2f(l)) * LN_2 : -INFINITY_F;
        }
    };

    for (bool more = start(); more;) {
        clear();
        fresh();
        while (next_pair(seen - 1)) {                   // seen - 1: no bound. Once an item, and again after every stop
            turn();
            scores();
            pass();
            wgmma_wait<0>();
            pin(s);
            release(k_empty + next * 8);
            if (softmax()) rescale();
            hold();
            // With a pair held, no further than the ring is long: a stretch that only the other block uses would
            // otherwise stop the loader for ever.
            u32 oldest = seen - 1;
            for (;;) {
                bool other = false;                     // the pair begins another item
                if (!next_pair(oldest + STAGES)) {
                    if (!last || Q_SHARED || seen == oldest + STAGES) break;
                    // The item ends with the held pair: go on with the next item, if it has a pair for this block.
                    more = start();
                    other = true;
                    if (!more || !next_pair(oldest + STAGES)) {
                        pin(o);
                        mbarrier_wait(v_full + held * 8, held_phase);
                        values();
                        wgmma_wait<0>();
                        pin(o);
                        release(v_empty + held * 8);
                        finish(more ? started - 2 : started - 1, top, sum);
                        goto next_item;
                    }
                }
                pin(s);
                pin(o);
                mbarrier_wait(v_full + held * 8, held_phase);
                turn();
                scores();
                values();
                pass();
                wgmma_wait<1>();
                pin(s);
                release(k_empty + next * 8);
                const float old_top[2] = {top[0], top[1]}, old_sum[2] = {sum[0], sum[1]};
                if (other) fresh();
                const bool moved = softmax() || other;
                pin(s);                                 // or the compiler sinks the whole softmax below the wait
                pin(sum);
                // The wait stands in both arms: a branch on the vote keeps ptxas from hoisting it above the softmax.
                if (moved) {
                    wgmma_wait<0>();
                    pin(o);
                    if (other) {
                        finish(started - 2, old_top, old_sum);
                        clear();
                    } else {
                        rescale();
                    }
                } else {
                    wgmma_wait<0>();
                    pin(o);
                }
                release(v_empty + held * 8);
                hold();
                oldest = seen - 1;
            }
            pin(o);
            mbarrier_wait(v_full + held * 8, held_phase);
            values();
            wgmma_wait<0>();
            pin(o);
            release(v_empty + held * 8);
        }
#if Q_SHARED
        release(q_empty);
#endif
        finish(started - 1, top, sum);
        more = start();
        continue;
    next_item:;                                         // `start` has run, and of the pairs looked at none is for this block
    }
}
