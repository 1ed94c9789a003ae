// What the patterns chose -> a SparseIndex: ranges, keep masks, windows and pair counts of all heads.
//
//   slash_gaps    grid (n_heads), 1024 threads: where the offsets next leave a gap
//   slash_runs    grid (offsets / 256, n_heads), 256 threads, one an offset: the run that this offset opens
//   link_runs     grid (n_heads), 1024 threads: how many runs follow each, and the head's main chain of runs
//   count_ranges  grid (row blocks / 32, n_heads), 1024 threads, a warp a row block: row_ranges[h, r].y = how many ranges;
//                 totals[..] of the 32
//   place_rows    grid (parts of 1024 row blocks), 1024 threads: row_ranges[h, r].x = where they go
//   fill_rows     grid (row blocks / 8, n_heads), 256 threads, a warp a row block: ranges, keep masks, windows, pairs
//
// The merge of slash offsets is the official one (csrc/vertical_slash_index.cu), but not made row by row. Seen from its
// end b, a row block's run is [b - s - 64, b - s - 64 + 64 length), with s the offset that opened it, and neither its
// length nor the offset that opens the next run depends on b: so there is one run an offset (slash_runs), each points to
// its follower, and a row block's ranges are the chain from the largest offset below b. Only the first run may differ,
// where the block before it would begin below key 0. Chains from different rows soon meet (after every gap of more than
// 128 offsets at the latest); the one from the head's largest offset is kept as a list, `chain`, and the keys that it
// covers, counted back from b, as a bitmap, `cover`. A row walks until it meets the chain, and copies from there on.
//
// A row that would pass the budget becomes one dense range in the slot kept for it, and so does a row that computes more
// than dense_above 256ths of its causal pairs. The prefix sum (and not an atomic counter) makes the placement, and with it
// any overflow, the same in every run.
struct BuildIndexParams { u32 n_heads, q_len, kv_len, q_start, row_blocks, column_tiles, offset_capacity, block_words, range_budget, dense_above; };
#define DENSE 0                                         // HeadPlan kinds; a plan is (kind, a, b, c)
#define A_SHAPE 1
#define VERTICAL_SLASH 2
#define BLOCK_SPARSE 3
#define TRI_SHAPE 4
#define EXACT 256                                       // dense_above from which on no row is made dense
#define ON_CHAIN 0x80000000u                            // bit of Slashes::depth
#define PLACE 1024                                      // row blocks of a block of place_rows
#define COUNTED 32                                      // row blocks of a block of count_ranges

// What slash_runs and link_runs know of the offsets, [n_heads, offset_capacity] each.
struct Slashes {
    uint2* runs;                                        // of the run that an offset opens: the index that opens the next (NONE: the last), length in blocks
    uint2* links;                                       // [2, ..] scratch of link_runs
    u32* depth;                                         // runs from this one to the last; ON_CHAIN
    uint2* chain;                                       // the main chain from its last run on: offset, length in blocks
    u32* cover;                                         // [n_heads, cover_words]: bit o is set where the main chain has the key b - o
    u32* gaps;                                          // the nearest index at or below with no other offset less than 65 below it
    u32 cover_words;
};

__device__ __forceinline__ u32 offsets_of(const BuildIndexParams& p, u32 head, const u32* __restrict__ offset_count) {
    return min(offset_count[head], p.offset_capacity);
}

// Inclusive maximum over the block of 1024; `all` in every thread.
__device__ __forceinline__ u32 block_maximum(u32 x, u32& all) {
    __shared__ u32 part[32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    #pragma unroll
    for (int d = 1; d < 32; d *= 2) { const u32 y = __shfl_up_sync(~0u, x, d); if (lane >= d) x = max(x, y); }
    __syncthreads();
    if (lane == 31) part[warp] = x;
    __syncthreads();
    all = 0;
    for (u32 w = 0; w < 32; w++) { if (w < warp) x = max(x, part[w]); all = max(all, part[w]); }
    return x;
}

extern "C" __global__ void __launch_bounds__(1024)
slash_gaps(const BuildIndexParams p, const uint4* __restrict__ plan, const u32* __restrict__ offsets, const u32* __restrict__ offset_count, const Slashes slashes) {
    const u32 head = blockIdx.x, count = offsets_of(p, head, offset_count);
    if (plan[head].x != VERTICAL_SLASH) return;
    offsets += (u64)head * p.offset_capacity;
    u32 carry = 0, all;
    for (u32 base = 0; base < count; base += 1024) {
        const u32 i = base + threadIdx.x;
        const bool gap = i > 0 && i < count && offsets[i] - offsets[i - 1] > 64;
        const u32 x = max(carry, block_maximum(gap ? i : 0, all));
        if (i < count) slashes.gaps[(u64)head * p.offset_capacity + i] = x;
        carry = max(carry, all);
    }
}

// Follows a run that has come to u = b - its end; `below` is the index of the largest offset below u, or -1. Gives the
// index that opens the next run, and the blocks of this one: the largest offset below u opens a run where it lies more
// than 64 below, and lengthens this one by a block otherwise. Up to the next gap it lengthens it for certain, so one step
// goes behind that gap.
__device__ __forceinline__ uint2 follow(const u32* __restrict__ offsets, const u32* __restrict__ gaps, int below, int u) {
    u32 length = 1;
    while (below >= 0) {
        if ((int)offsets[below] < u - 64) return make_uint2(below, length);
        const int gap = gaps[below], blocks = (u - 1 - (int)offsets[gap]) / 64 + 1;
        u -= 64 * blocks;
        length += blocks;
        below = gap - 1;
    }
    return make_uint2(NONE, length);
}

extern "C" __global__ void __launch_bounds__(256)
slash_runs(const BuildIndexParams p, const uint4* __restrict__ plan, const u32* __restrict__ offsets, const u32* __restrict__ offset_count, const Slashes slashes) {
    const u32 head = blockIdx.y, i = blockIdx.x * 256 + threadIdx.x;
    if (plan[head].x != VERTICAL_SLASH || i >= offsets_of(p, head, offset_count)) return;
    offsets += (u64)head * p.offset_capacity;
    slashes.runs[(u64)head * p.offset_capacity + i] = follow(offsets, slashes.gaps + (u64)head * p.offset_capacity, (int)i - 1, offsets[i]);
}

extern "C" __global__ void __launch_bounds__(1024)
link_runs(const BuildIndexParams p, const uint4* __restrict__ plan, const u32* __restrict__ offsets, const u32* __restrict__ offset_count, const Slashes slashes) {
    __shared__ u32 going;
    const u32 head = blockIdx.x, count = offsets_of(p, head, offset_count);
    if (plan[head].x != VERTICAL_SLASH || count == 0) return;
    const u64 at = (u64)head * p.offset_capacity, other = (u64)p.n_heads * p.offset_capacity;
    offsets += at;
    const uint2* runs = slashes.runs + at;
    u32 *depth = slashes.depth + at, *cover = slashes.cover + (u64)head * slashes.cover_words;
    uint2 *from = slashes.links + at, *to = from + other, *chain = slashes.chain + at;

    // Each link doubles its reach: (where it leads, runs passed on the way). Marks spread along the chain likewise.
    for (u32 i = threadIdx.x; i < count; i += 1024) {
        from[i] = make_uint2(runs[i].x, 1);
        depth[i] = i == count - 1 ? ON_CHAIN : 0;
    }
    for (u32 i = threadIdx.x; i < slashes.cover_words; i += 1024) cover[i] = 0;
    for (;;) {
        __syncthreads();
        if (threadIdx.x == 0) going = 0;
        __syncthreads();
        bool mine = false;
        for (u32 i = threadIdx.x; i < count; i += 1024) {
            uint2 x = from[i];
            if (x.x != NONE) {
                if (depth[i]) depth[x.x] = ON_CHAIN;    // seen now or a round later: on the chain either way
                const uint2 y = from[x.x];
                x = make_uint2(y.x, x.y + y.y);
                mine = true;
            }
            to[i] = x;
        }
        if (mine) going = 1;
        uint2* swap = from;
        from = to;
        to = swap;
        __syncthreads();
        if (!going) break;
    }
    for (u32 i = threadIdx.x; i < count; i += 1024) {
        const u32 mark = depth[i], runs_left = from[i].y;
        depth[i] = mark | runs_left;
        if (!mark) continue;
        const u32 offset = offsets[i], length = runs[i].y;
        chain[runs_left - 1] = make_uint2(offset, length);
        // keys b - o of [b - offset - 64, b - offset - 64 + 64 length), o >= 1
        const int last = (int)offset + 64, first = max(1, last - 64 * (int)length + 1);
        for (int word = first / 32; word <= last / 32; word++) {
            const int low = max(first - 32 * word, 0), high = min(last - 32 * word, 31);
            atomicOr(&cover[word], (~0u >> (31 - (high - low))) << low);
        }
    }
}

// Whether the row block computes the first plan.y keys and the last plan.z only. A tri-shape is dense where a row block has
// one of its last queries.
__device__ __forceinline__ bool has_window(const BuildIndexParams& p, uint4 plan, u32 r) {
    return plan.x == A_SHAPE || (plan.x == TRI_SHAPE && min(64 * (r + 1), p.q_len) + plan.w <= p.q_len);
}

// The ranges of a vertical-slash row block, before they are written: `walked` runs of its own, then the main chain.
struct Start {
    u32 node;                                           // the offset that opens the first run
    uint2 run;                                          // that run
    int u;                                              // b - its first key - 64
    u32 count;                                          // ranges
};
__device__ __forceinline__ u32 runs_from(const u32* __restrict__ depth, u32 node) { return node == NONE ? 0 : depth[node] & ~ON_CHAIN; }

// By a whole warp. count 0: no offset reaches the row block.
__device__ __forceinline__ Start start_of(const BuildIndexParams& p, const u32* __restrict__ offsets, u32 n, int end, const Slashes& slashes, u64 at) {
    // how many offsets lie below `end`: 32 at a time, then one at a time
    const u32 lane = threadIdx.x % 32;
    u32 low = 0, high = n;                              // offsets[.. low] are below
    while (high > low) {
        const u32 step = (high - low + 31) / 32, i = low + lane * step;
        const u32 below = __popc(__ballot_sync(~0u, i < high && (int)offsets[i] < end));        // the first so many lanes
        if (below == 0) { high = low; break; }
        high = min(high, low + below * step);
        low = low + (below - 1) * step + 1;
    }
    Start x = {};
    if (low == 0) return x;
    x.node = low - 1;
    x.u = (int)offsets[x.node];
    if (x.u <= end - 64) {
        x.run = slashes.runs[at + x.node];
    } else {                                            // it would begin below key 0
        x.u = end - 64;
        int from = max(0, (int)x.node - 64), to = x.node;           // the first at or above x.u is among these
        while (from < to) { const int middle = (from + to) / 2; if ((int)offsets[middle] >= x.u) to = middle; else from = middle + 1; }
        x.run = follow(offsets, slashes.gaps + at, from - 1, x.u);
    }
    x.count = 1 + runs_from(slashes.depth + at, x.run.x);
    return x;
}

// Rising and falling edges of one word of a block mask: where runs of chosen key blocks begin, and where they are over.
__device__ __forceinline__ uint2 edges(const u32* __restrict__ mask, u32 w) {
    const u32 word = mask[w], before = word << 1 | (w ? mask[w - 1] >> 31 : 0);
    return make_uint2(word & ~before, ~word & before);
}

extern "C" __global__ void __launch_bounds__(32 * COUNTED)
count_ranges(const BuildIndexParams p, const uint4* __restrict__ plan, const u32* __restrict__ offsets, const u32* __restrict__ offset_count,
             const u32* __restrict__ block_mask, const Slashes slashes, uint2* __restrict__ row_ranges, u32* __restrict__ totals) {
    __shared__ u32 counts[COUNTED];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = blockIdx.x * COUNTED + warp, head = blockIdx.y;
    const uint4 pattern = plan[head];
    const u64 row = (u64)head * p.row_blocks + r;
    u32 count = 0;
    if (r < p.row_blocks) {
        const int begin = p.q_start + 64 * r;
        if (pattern.x == VERTICAL_SLASH) {
            const u64 at = (u64)head * p.offset_capacity;
            count = max(1u, start_of(p, offsets + at, offsets_of(p, head, offset_count), begin + 64, slashes, at).count);
        } else if (pattern.x == BLOCK_SPARSE) {
            for (u32 w = lane; w < p.block_words; w += 32) count += __popc(edges(block_mask + row * p.block_words, w).x);
            #pragma unroll
            for (int d = 16; d > 0; d /= 2) count += __shfl_xor_sync(~0u, count, d);
            count = max(1u, count);
        } else {
            const int local = begin - (int)min(pattern.z, (u32)begin + 1) + 1;
            count = has_window(p, pattern, r) && pattern.y > 0 && (int)min(pattern.y, (u32)begin + 64) < local ? 2 : 1;
        }
        if (lane == 0) row_ranges[row] = make_uint2(0, count);
    }
    if (lane == 0) counts[warp] = count;
    __syncthreads();
    if (warp == 0) {
        u32 total = counts[lane];
        #pragma unroll
        for (int d = 16; d > 0; d /= 2) total += __shfl_xor_sync(~0u, total, d);
        if (lane == 0) totals[head * gridDim.x + blockIdx.x] = total;
    }
}

// Inclusive sum over the block of 1024; `total` in every thread.
__device__ __forceinline__ u32 block_scan(u32 x, u32& total) {
    __shared__ u32 part[32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    #pragma unroll
    for (int d = 1; d < 32; d *= 2) { const u32 y = __shfl_up_sync(~0u, x, d); if (lane >= d) x += y; }
    __syncthreads();
    if (lane == 31) part[warp] = x;
    __syncthreads();
    u32 before = 0;
    total = 0;
    for (u32 w = 0; w < 32; w++) { before += w < warp ? part[w] : 0; total += part[w]; }
    return x + before;
}

// Rows are numbered over all heads here. A head's last totals[] is of fewer than 32 of them.
extern "C" __global__ void __launch_bounds__(PLACE)
place_rows(const BuildIndexParams p, const u32* __restrict__ totals, uint2* __restrict__ row_ranges) {
    const u32 rows = p.n_heads * p.row_blocks, first = blockIdx.x * PLACE, row = first + threadIdx.x;
    const u32 a_head = (p.row_blocks + COUNTED - 1) / COUNTED, parts = first / p.row_blocks * a_head + first % p.row_blocks / COUNTED;
    u32 before = 0, total, own = 0;
    for (u32 i = threadIdx.x; i < parts; i += PLACE) before += totals[i];
    // rows of the part that `first` is in the middle of
    const u32 left = first % p.row_blocks % COUNTED;
    if (threadIdx.x < left) before += row_ranges[first - left + threadIdx.x].y;
    block_scan(before, total);
    before = total;
    if (row < rows) own = row_ranges[row].y;
    const u32 upto = block_scan(own, total);
    if (row < rows) row_ranges[row].x = before + upto - own;
}

// Pairs (i, j) with begin <= i < end, from <= j <= i.
__device__ __forceinline__ u32 triangle(int begin, int end, int from) {
    if (end <= from) return 0;
    const u64 top = end - from, bottom = max(begin - from, 0);         // top^2 passes 32 bits, the result does not
    return (u32)((top * (top + 1) - bottom * (bottom + 1)) / 2);
}
// Of keys lo .. hi - 1.
__device__ __forceinline__ u32 pairs_of(int begin, int end, int lo, int hi) {
    return hi <= begin + 1 ? (hi - lo) * (end - begin) : triangle(begin, end, lo) - triangle(begin, end, hi);
}

extern "C" __global__ void __launch_bounds__(256)
fill_rows(const BuildIndexParams p, const uint4* __restrict__ plan, const u32* __restrict__ columns, const u32* __restrict__ offsets,
          const u32* __restrict__ offset_count, const u32* __restrict__ block_mask, const Slashes slashes, uint2* row_ranges, uint2* ranges,
          u64* __restrict__ keep, uint2* __restrict__ window, u32* __restrict__ pairs) {
    const u32 lane = threadIdx.x % 32, r = blockIdx.x * 8 + threadIdx.x / 32, head = blockIdx.y;
    if (r >= p.row_blocks) return;
    const u64 row = (u64)head * p.row_blocks + r;
    const uint4 pattern = plan[head];
    const uint2 own = row_ranges[row];
    const int begin = p.q_start + 64 * r, b = begin + 64, end = p.q_start + min(64 * r + 64, p.q_len);     // queries begin .. end - 1
    uint2* to = ranges + own.x;
    u64* kept = keep + row * p.column_tiles;
    if (r == 0 && lane == 0) window[head] = pattern.x == A_SHAPE ? make_uint2(pattern.y, pattern.z) : make_uint2(NONE, NONE);
    auto dense = [&]() {
        if (lane == 0) {
            row_ranges[row] = make_uint2(p.range_budget + (u32)row, 1);
            ranges[p.range_budget + row] = make_uint2(0, b);
        }
        for (u32 t = lane; t < p.column_tiles; t += 32) kept[t] = 0;
    };
    // The window of an A-shape is exact: query by query.
    auto windowed = [&](int lo, int hi) {
        u32 sum = 0;
        for (int i = begin + lane; i < end; i += 32) {
            const int stop = min(hi, i + 1), init = (int)min(pattern.y, (u32)stop), local = max(lo, i + 1 - (int)min(pattern.z, (u32)i + 1));
            sum += max(init - lo, 0) + max(stop - max(local, max(init, lo)), 0);
        }
        return sum;
    };
    auto joined = [&](u32 sum) {
        #pragma unroll
        for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
        return sum;
    };

    const bool fits = own.x + own.y <= p.range_budget && own.x + own.y >= own.x;
    u32 sum = 0, all_kept = 0;
    if (!fits) {
        dense();
        sum = joined(pattern.x == A_SHAPE ? windowed(0, b) : lane == 0 ? triangle(begin, end, 0) : 0);
        if (lane == 0) pairs[row] = sum;
        return;
    }
    if (pattern.x == VERTICAL_SLASH) {
        const u64 at = (u64)head * p.offset_capacity;
        offsets += at;
        const u32* depth = slashes.depth + at;
        const uint2* chain = slashes.chain + at;
        const Start x = start_of(p, offsets, offsets_of(p, head, offset_count), b, slashes, at);
        // Blocks that begin past the last key are dropped; a run begins at or before the first query, so it stays.
        auto clipped = [&](int u, u32 length) {
            const int lo = b - u - 64, hi = lo + 64 * (int)length;
            return make_uint2(lo, min(hi, lo + ((int)p.kv_len - lo + 63) / 64 * 64));
        };
        // the row's own runs, up to the main chain
        u32 walked = 0, node = x.node;
        if (x.count == 0) {                             // no offset reaches this row: its own keys stand in
            if (lane == 0) to[0] = clipped(0, 1);
            walked = 1;
        } else if (x.u != (int)offsets[node] || !(depth[node] & ON_CHAIN)) {
            if (lane == 0) to[0] = clipped(x.u, x.run.y);
            walked = 1;
            node = x.run.x;
            while (node != NONE && !(depth[node] & ON_CHAIN)) {     // the same in all lanes
                const uint2 run = slashes.runs[at + node];
                if (lane == 0) to[walked] = clipped((int)offsets[node], run.y);
                walked++;
                node = run.x;
            }
        }
        __syncwarp();
        for (u32 i = lane; i < walked; i += 32) sum += pairs_of(begin, end, to[i].x, to[i].y);
        for (u32 i = walked + lane; i < own.y; i += 32) {
            const uint2 run = chain[own.y - 1 - i], range = clipped((int)run.x, run.y);
            to[i] = range;
            sum += pairs_of(begin, end, range.x, range.y);
        }
        // A column is kept where it lies before the last range, before the first query, and in no range. Without offset 0
        // the last range may begin past the first query: columns there would need a causal test.
        const u32 last = walked < own.y ? b - (int)chain[0].x - 64 : to[walked - 1].x, limit = min(last, (u32)begin);
        const u32 meets = walked < own.y ? b - (int)chain[own.y - 1 - walked].x - 64 : NONE;        // first key of the main chain
        const u32* cover = slashes.cover + (u64)head * slashes.cover_words;
        columns += (u64)head * p.column_tiles * 64;
        for (u32 t = 0; t < p.column_tiles; t++) {
            u64 mask = 0;
            if (columns[64 * t] < limit)                // the same in the whole warp
                #pragma unroll
                for (int half = 0; half < 2; half++) {
                    const u32 c = columns[64 * t + 32 * half + lane];
                    bool in = c < limit;
                    if (in && c >= meets) {
                        const u32 back = b - c;
                        in = !(cover[back / 32] >> back % 32 & 1);
                    } else if (in && walked) {
                        u32 low = 0, high = walked;     // first range of its own that ends behind c
                        while (low < high) { const u32 middle = (low + high) / 2; if (to[middle].y <= c) low = middle + 1; else high = middle; }
                        in = low == walked || c < to[low].x;
                    }
                    mask |= (u64)__ballot_sync(~0u, in) << 32 * half;
                }
            all_kept += __popcll(mask);
            if (lane == 0) kept[t] = mask;
        }
    } else {
        for (u32 t = lane; t < p.column_tiles; t += 32) kept[t] = 0;
        if (pattern.x == BLOCK_SPARSE) {
            const u32* mask = block_mask + row * p.block_words;
            u32 begun = 0, ended = 0;                   // ranges of the words before
            for (u32 base = 0; base < p.block_words; base += 32) {
                const u32 w = base + lane;
                const uint2 edge = w < p.block_words ? edges(mask, w) : make_uint2(0, 0);
                u32 upto = __popc(edge.x) | __popc(edge.y) << 16;       // at most 512 each
                #pragma unroll
                for (int d = 1; d < 32; d *= 2) { const u32 y = __shfl_up_sync(~0u, upto, d); if (lane >= d) upto += y; }
                const u32 total = __shfl_sync(~0u, upto, 31);
                u32 i = begun + (upto & 0xffff) - __popc(edge.x), j = ended + (upto >> 16) - __popc(edge.y);
                for (u32 bits = edge.x; bits; bits &= bits - 1) to[i++].x = 64 * (32 * w + __ffs(bits) - 1);
                for (u32 bits = edge.y; bits; bits &= bits - 1) to[j++].y = 64 * (32 * w + __ffs(bits) - 1);
                begun += total & 0xffff;
                ended += total >> 16;
            }
            if (lane == 0) {
                if (ended < begun) to[begun - 1].y = 64 * 32 * p.block_words;
                // Never empty: a mask without a bit means the block of the first query.
                if (begun == 0) to[0] = make_uint2(begin / 64 * 64, begin / 64 * 64 + 64);
            }
            __syncwarp();
            for (u32 i = lane; i < own.y; i += 32) sum += pairs_of(begin, end, to[i].x, to[i].y);
        } else {
            int lo = 0;
            // The window of an A-shape cuts what the ranges hold.
            auto add = [&](int lo, int hi) { sum += pattern.x == A_SHAPE ? windowed(lo, hi) : lane == 0 ? pairs_of(begin, end, lo, hi) : 0; };
            if (has_window(p, pattern, r)) {
                lo = begin - (int)min(pattern.z, (u32)begin + 1) + 1;
                if (own.y == 2) {
                    if (lane == 0) to[0] = make_uint2(0, pattern.y);
                    add(0, pattern.y);
                } else if (pattern.y > 0) {
                    lo = 0;
                }
            }
            add(lo, b);
            if (lane == 0) to[own.y - 1] = make_uint2(lo, b);
        }
    }
    sum = joined(sum) + all_kept * (end - begin);
    const u32 causal = triangle(begin, end, 0);
    if (p.dense_above < EXACT && (pattern.x == VERTICAL_SLASH || pattern.x == BLOCK_SPARSE) && sum > causal / EXACT * p.dense_above) {
        sum = causal;
        __syncwarp();
        dense();
    }
    if (lane == 0) pairs[row] = sum;
}
