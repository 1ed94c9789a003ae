// Attention of all heads of a layer over a SparseIndex, for compute capability 8.0 and later: mma.sync and cp.async.
//
//   out[h, i, :] = softmax_j(scale q[h, i] . k[h / group, j]) v[h / group, j],  j in the index, j <= q_start + i < kv_len
//
// One block of 128 threads takes ROW_BLOCKS (1 or 2) neighbouring blocks of 64 queries of one head. Each of its four
// warps holds 16 rows of every row block, so that a fragment of K or V, once read from shared memory, serves both: with
// 16 rows a warp the reads of K and V alone take all of shared memory's bandwidth.
// The block walks the union of the row blocks' key ranges in tiles of 64 keys, then the head's gathered columns
// (gather_columns.cu). A tile carries one 64-bit mask per row block; causality and the A-shape window are tested only on
// tiles that straddle them. K of the next tile loads while this one's softmax and P V run, V while Q K^T runs.
//
// Relies on: order_work.cu for `order`; columns lie before their row block, so they need no causal test.
struct AttentionParams {
    u32 n_heads, n_kv_heads, head_dim, q_len, kv_len, q_start, row_blocks, column_tiles;
    float scale;
    u32 q_row_stride, q_head_stride, k_row_stride, k_head_stride, v_row_stride, v_head_stride, out_row_stride, out_head_stride;
    u32 write_lse;
    float skip_below;
};

#ifndef SKIP_SOFTMAX
#define SKIP_SOFTMAX 0                                  // 1: tiles far below the running maxima are skipped
#endif
#define THREADS 128
#define Q_AT 0
#define K_AT (ROW_BLOCKS * TILE_BYTES)
#define V_AT (K_AT + TILE_BYTES)
#define WALK_AT (V_AT + TILE_BYTES)                     // then a Walk; SMEM_BYTES comes from the host
#define MASKED -1e38f                                   // a score that is not there; below every first maximum,
#define FIRST_MAXIMUM -1e30f                            // and both finite: a row without a key yet gets exp2(-huge) = 0

struct Tile {
    u64 keep[2];                                        // per row block: the keys of the tile that its rows see
    const act *k, *v;                                   // its first row
    u32 k_stride, v_stride;
    int key;                                            // position of the first key; < 0: gathered columns
    int rows;                                           // how many of its rows exist; 0: the end
};
struct Walk {                                           // in shared memory: only thread 0 walks
    Tile tiles[2];
    Ranges ranges[2];
    uint2 window;                                       // n_init, n_local
    const act *k, *v;                                   // of the head
    int column;
    int plain;                                          // so many tiles more go on behind the last one, whole in all row blocks
};

static_assert(WALK_AT + sizeof(Walk) <= SMEM_BYTES, "shared memory");

// Steps of Q K^T that are unrolled. Unrolled whole, head_dim 128 spills 8 bytes on sm_100 (NVRTC 13.0).
#define SCORE_STEPS (__CUDA_ARCH__ == 1000 && HEAD_DIM == 128 ? 4 : STEPS)

// What a row block carries from tile to tile, and its 16 rows of scores.
struct Rows {
    float o[2 * STEPS][4];
    float s[8][4];
    float top[2], sum[2];                               // of rows lane / 4 and lane / 4 + 8; sum: this lane's share
};

extern "C" __global__ void __launch_bounds__(THREADS, 2)
attention_sm80(const AttentionParams p,
               const act* __restrict__ q, const act* __restrict__ k, const act* __restrict__ v,
               const act* __restrict__ k_columns, const act* __restrict__ v_columns,    // [n_heads, 64 column_tiles, head_dim]
               OUT* __restrict__ out, float* __restrict__ lse,                          // lse: [n_heads, q_len], natural log
               const u32* __restrict__ order,                                           // [n_heads * groups]: head * groups + group
               const uint2* __restrict__ row_ranges, const uint2* __restrict__ ranges,
               const u64* __restrict__ keep, const uint2* __restrict__ window) {
    DYNAMIC_SMEM;
    const u32 base = smem_address(smem);
    const int groups = (p.row_blocks + ROW_BLOCKS - 1) / ROW_BLOCKS;
    const int work = order[blockIdx.x], head = work / groups, first_block = work % groups * ROW_BLOCKS;
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const float scale = p.scale * LOG2_E;

    // Cursors and addresses live in shared memory: in every thread's registers they would not fit (255 in use).
    Walk& walk = *(Walk*)(smem + WALK_AT);
    auto next_tile = [&](const Tile& last, Tile& t) {
        if (walk.plain > 0) {
            walk.plain--;
            t = last;
            t.key += 64;
            t.rows -= 64;
            t.k += 64 * (u64)t.k_stride;
            t.v += 64 * (u64)t.v_stride;
            return;
        }
        const u64 row = (u64)head * p.row_blocks + first_block;
        t.keep[0] = t.keep[1] = 0;
        t.rows = 0;
        int start = walk.ranges[0].at;
        if (ROW_BLOCKS == 2) start = min(start, walk.ranges[ROW_BLOCKS - 1].at);
        if (start != NO_KEY) {
            t.key = start;
            t.rows = p.kv_len - start;
            t.k = walk.k + (u64)start * p.k_row_stride;
            t.v = walk.v + (u64)start * p.v_row_stride;
            t.k_stride = p.k_row_stride;
            t.v_stride = p.v_row_stride;
            int plain = NO_KEY;
            #pragma unroll
            for (int b = 0; b < ROW_BLOCKS; b++) {
                Ranges& r = walk.ranges[b];
                t.keep[b] = take_tile(r, start, ranges);
                plain = t.keep[b] == ~0ull && r.at == start + 64 ? min(plain, (r.stop - 1 - r.at) / 64) : 0;
            }
            walk.plain = plain;
            #pragma unroll
            for (int b = 0; b < ROW_BLOCKS; b++) walk.ranges[b].at += 64 * plain;
            return;
        }
        for (; t.rows == 0 && walk.column < (int)p.column_tiles; walk.column++) {
            #pragma unroll
            for (int b = 0; b < ROW_BLOCKS; b++)
                t.keep[b] = first_block + b < (int)p.row_blocks ? keep[(row + b) * p.column_tiles + walk.column] : 0;
            if ((t.keep[0] | t.keep[1]) == 0) continue;
            const u64 from = ((u64)head * p.column_tiles + walk.column) * 64 * HEAD_DIM;
            t.key = -64;
            t.rows = 64;
            t.k = k_columns + from;
            t.v = v_columns + from;
            t.k_stride = t.v_stride = HEAD_DIM;
        }
    };
    auto load_k = [&](const Tile& t) { load_rows<64, THREADS>(base + K_AT, t.k, t.k_stride, t.rows, thread); };
    auto load_v = [&](const Tile& t) { load_rows<64, THREADS>(base + V_AT, t.v, t.v_stride, t.rows, thread); };

    // Where this lane's rows of the 8x8 matrices lie; the bases are multiples of 128, which at_step asks for.
    const u32 q_at = base + Q_AT + chunk_offset(warp * 16 + (lane & 15), lane >> 4);
    const u32 k_at = base + K_AT + chunk_offset((lane >> 4) * 8 + (lane & 7), (lane >> 3) & 1);
    const u32 v_at = base + V_AT + chunk_offset(lane & 15, lane >> 4);

    Rows rows[ROW_BLOCKS];
    #pragma unroll
    for (int b = 0; b < ROW_BLOCKS; b++) {
        #pragma unroll
        for (int j = 0; j < 2 * STEPS; j++) rows[b].o[j][0] = rows[b].o[j][1] = rows[b].o[j][2] = rows[b].o[j][3] = 0.f;
        rows[b].top[0] = rows[b].top[1] = FIRST_MAXIMUM;
        rows[b].sum[0] = rows[b].sum[1] = 0.f;
    }

    // scores: S = Q K^T of the row blocks in USE (bit b: row block b)
    auto scores = [&](auto use) {
        constexpr int USE = decltype(use)::value;
        #pragma unroll
        for (int b = 0; b < ROW_BLOCKS; b++)
            if (USE >> b & 1)
                #pragma unroll
                for (int j = 0; j < 8; j++) rows[b].s[j][0] = rows[b].s[j][1] = rows[b].s[j][2] = rows[b].s[j][3] = 0.f;
        #pragma unroll SCORE_STEPS
        for (int i = 0; i < STEPS; i++) {
            u32 a[ROW_BLOCKS][4];
            #pragma unroll
            for (int b = 0; b < ROW_BLOCKS; b++)
                if (USE >> b & 1) ldmatrix(a[b], at_step(q_at, i) + b * TILE_BYTES);
            #pragma unroll
            for (int j = 0; j < 8; j += 2) {
                u32 kf[4];
                ldmatrix(kf, at_step(k_at, i) + j * 8 * ROW_BYTES);
                #pragma unroll
                for (int b = 0; b < ROW_BLOCKS; b++)
                    if (USE >> b & 1) {
                        mma(rows[b].s[j], a[b], kf[0], kf[1]);
                        mma(rows[b].s[j + 1], a[b], kf[2], kf[3]);
                    }
            }
        }
    };
    // what a row block does not see of the tile
    auto hide = [&](Rows& x, int b, const Tile& t) {
        const int block_position = (int)p.q_start + (first_block + b) * 64, row_position = block_position + warp * 16 + (lane >> 2);
        if (t.keep[b] != ~0ull) {
            const u64 m = t.keep[b] >> (2 * (lane & 3));
            #pragma unroll
            for (int j = 0; j < 8; j++)
                #pragma unroll
                for (int c = 0; c < 2; c++)
                    if (!((m >> (8 * j + c)) & 1)) x.s[j][c] = x.s[j][c + 2] = MASKED;
        }
        if (t.key + 63 > block_position) {              // causal
            const int past = row_position - t.key - 2 * (lane & 3);         // columns 8j + c > past lie in the future
            #pragma unroll
            for (int j = 0; j < 8; j++)
                #pragma unroll
                for (int c = 0; c < 2; c++) {
                    if (8 * j + c > past) x.s[j][c] = MASKED;
                    if (8 * j + c > past + 8) x.s[j][c + 2] = MASKED;
                }
        }
        if (t.key >= 0 && t.key + 63 >= (int)walk.window.x && block_position + 63 - t.key >= (int)walk.window.y) {
            const int n_init = walk.window.x, n_local = walk.window.y;
            #pragma unroll
            for (int j = 0; j < 8; j++)
                #pragma unroll
                for (int c = 0; c < 2; c++) {
                    const int key = t.key + 8 * j + c + 2 * (lane & 3);
                    if (key >= n_init && row_position - key >= n_local) x.s[j][c] = MASKED;
                    if (key >= n_init && row_position + 8 - key >= n_local) x.s[j][c + 2] = MASKED;
                }
        }
    };
    // Online softmax (base 2) of the row blocks in USE: S becomes P. All their rows side by side, for each is a long chain of
    // maxima, shuffles and a vote.
    auto softmax = [&](auto use, const Tile& t) {
        constexpr int USE = decltype(use)::value;
        float m[ROW_BLOCKS][2];
        bool moved = false;
        #pragma unroll
        for (int b = 0; b < ROW_BLOCKS; b++)
            if (USE >> b & 1) {
                Rows& x = rows[b];
                hide(x, b, t);
                #pragma unroll
                for (int h = 0; h < 2; h++) {
                    float even = x.s[0][2 * h], odd = x.s[0][2 * h + 1];
                    #pragma unroll
                    for (int j = 1; j < 8; j++) { even = fmaxf(even, x.s[j][2 * h]); odd = fmaxf(odd, x.s[j][2 * h + 1]); }
                    m[b][h] = fmaxf(x.top[h], fmaxf(even, odd));
                }
            }
        #pragma unroll
        for (int d = 1; d < 4; d *= 2)
            #pragma unroll
            for (int b = 0; b < ROW_BLOCKS; b++)
                if (USE >> b & 1)
                    #pragma unroll
                    for (int h = 0; h < 2; h++) m[b][h] = fmaxf(m[b][h], __shfl_xor_sync(~0u, m[b][h], d));
        #pragma unroll
        for (int b = 0; b < ROW_BLOCKS; b++)
            if (USE >> b & 1) moved |= m[b][0] > rows[b].top[0] || m[b][1] > rows[b].top[1];
        if (__any_sync(~0u, moved)) {                   // a new maximum is rare after the first tiles
            #pragma unroll
            for (int b = 0; b < ROW_BLOCKS; b++)
                if (USE >> b & 1)
                    #pragma unroll
                    for (int h = 0; h < 2; h++) {
                        Rows& x = rows[b];
                        // Not fused: what is left of -1e30 * scale after rounding is huge, where both maxima are the first.
                        const float fade = exp2_fast(__fmul_rn(x.top[h], scale) - __fmul_rn(m[b][h], scale));
                        x.sum[h] *= fade;
                        #pragma unroll
                        for (int j = 0; j < 2 * STEPS; j++) { x.o[j][2 * h] *= fade; x.o[j][2 * h + 1] *= fade; }
                        x.top[h] = m[b][h];
                    }
        }
        #pragma unroll
        for (int b = 0; b < ROW_BLOCKS; b++)
            if (USE >> b & 1)
                #pragma unroll
                for (int h = 0; h < 2; h++) {
                    Rows& x = rows[b];
                    const float shifted = __fmul_rn(x.top[h], scale);
                    float even = 0.f, odd = 0.f;
                    #pragma unroll
                    for (int j = 0; j < 8; j++) {
                        x.s[j][2 * h] = exp2_fast(fmaf(x.s[j][2 * h], scale, -shifted));
                        x.s[j][2 * h + 1] = exp2_fast(fmaf(x.s[j][2 * h + 1], scale, -shifted));
                        even += x.s[j][2 * h];
                        odd += x.s[j][2 * h + 1];
                    }
                    x.sum[h] += even + odd;
                }
    };
#if SKIP_SOFTMAX
    // Skip-softmax: whether all scores of this warp's rows are far below their running maxima.
    auto quiet = [&](auto use, const Tile& t) -> bool {
        constexpr int USE = decltype(use)::value;
        bool loud = false;
        #pragma unroll
        for (int b = 0; b < ROW_BLOCKS; b++)
            if (USE >> b & 1) {
                Rows& x = rows[b];
                hide(x, b, t);
                #pragma unroll
                for (int h = 0; h < 2; h++)
                    #pragma unroll
                    for (int j = 0; j < 8; j++) loud |= fmaxf(x.s[j][2 * h], x.s[j][2 * h + 1]) * scale >= x.top[h] * scale + p.skip_below * LOG2_E;
            }
        return !__any_sync(~0u, loud);
    };
#endif
    // values: O += P V
    auto values = [&](auto use) {
        constexpr int USE = decltype(use)::value;
        #pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 a[ROW_BLOCKS][4];
            #pragma unroll
            for (int b = 0; b < ROW_BLOCKS; b++)
                if (USE >> b & 1)
                    #pragma unroll
                    for (int c = 0; c < 4; c++) a[b][c] = pack2(rows[b].s[2 * i + c / 2][2 * (c & 1)], rows[b].s[2 * i + c / 2][2 * (c & 1) + 1]);
            #pragma unroll
            for (int j = 0; j < 2 * STEPS; j += 2) {
                u32 vf[4];
                ldmatrix_trans(vf, at_step(v_at, j / 2) + i * 16 * ROW_BYTES);
                #pragma unroll
                for (int b = 0; b < ROW_BLOCKS; b++)
                    if (USE >> b & 1) {
                        mma(rows[b].o[j], a[b], vf[0], vf[1]);
                        mma(rows[b].o[j + 1], a[b], vf[2], vf[3]);
                    }
            }
        }
    };

    load_rows<64 * ROW_BLOCKS, THREADS>(base + Q_AT, q + (u64)head * p.q_head_stride + (u64)first_block * 64 * p.q_row_stride,
                                        p.q_row_stride, (int)p.q_len - first_block * 64, thread);
    if (thread == 0) {
        #pragma unroll
        for (int b = 0; b < ROW_BLOCKS; b++) {
            const bool real = first_block + b < (int)p.row_blocks;
            const uint2 row = real ? row_ranges[(u64)head * p.row_blocks + first_block + b] : make_uint2(0, 0);
            open_ranges(walk.ranges[b], row, min((int)p.kv_len, (int)p.q_start + 64 * (first_block + b) + 64), ranges);
        }
        const u32 kv_head = head / (p.n_heads / p.n_kv_heads);
        walk.k = k + (u64)kv_head * p.k_head_stride;
        walk.v = v + (u64)kv_head * p.v_head_stride;
        walk.column = 0;
        walk.plain = 0;
        walk.window = window[head];
        if (walk.window.x == NONE) walk.window = make_uint2(NO_KEY, NO_KEY);
        next_tile(walk.tiles[0], walk.tiles[0]);
    }
    __syncthreads();
    if (walk.tiles[0].rows) load_k(walk.tiles[0]);
    cp_async_commit();
    for (int at = 0;; at ^= 1) {
        const Tile& now = walk.tiles[at];
        const Tile& next = walk.tiles[at ^ 1];
        if (now.rows == 0) break;
        cp_async_wait<0>();
        __syncthreads();                                // K of this tile is here, V of the last one is done with
        load_v(now);
        cp_async_commit();
        if (thread == 0) next_tile(walk.tiles[at], walk.tiles[at ^ 1]);
        const int use = (now.keep[0] != 0) + 2 * (now.keep[1] != 0);
        auto step = [&](auto use) {
            scores(use);
            cp_async_wait<0>();
            __syncthreads();                            // V of this tile is here, K is done with
            if (next.rows) load_k(next);
            cp_async_commit();
#if SKIP_SOFTMAX
            if (quiet(use, now)) return;
#endif
            softmax(use, now);
            values(use);
        };
        if (ROW_BLOCKS == 1 || use == 1) step(Use<1>());
        else if (use == 2) step(Use<2 % (1 << ROW_BLOCKS)>());
        else step(Use<(1 << ROW_BLOCKS) - 1>());
    }

    // epilogue
    #pragma unroll
    for (int b = 0; b < ROW_BLOCKS; b++)
        #pragma unroll
        for (int h = 0; h < 2; h++) {
            float l = rows[b].sum[h];
            l += __shfl_xor_sync(~0u, l, 1);
            l += __shfl_xor_sync(~0u, l, 2);
            const u32 query = (first_block + b) * 64 + warp * 16 + (lane >> 2) + 8 * h;
            if (query >= p.q_len) continue;
            const float inverse = l > 0.f ? 1.f / l : 0.f;
            OUT* to = out + (u64)head * p.out_head_stride + (u64)query * p.out_row_stride + 2 * (lane & 3);
            #pragma unroll
            for (int j = 0; j < HEAD_DIM / 8; j++) store2(to + 8 * j, rows[b].o[j][2 * h] * inverse, rows[b].o[j][2 * h + 1] * inverse);
            if (p.write_lse && (lane & 3) == 0) lse[(u64)head * p.q_len + query] = l > 0.f ? (rows[b].top[h] * scale + log2f(l)) * LN_2 : -INFINITY_F;
        }
}
