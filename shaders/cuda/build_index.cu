// What the patterns chose -> a SparseIndex: ranges, keep masks, windows and pair counts of all heads.
//
//   count_ranges   grid (parts, n_heads), 128 threads, one a row block: row_ranges[h, r].y = how many ranges; totals[part]
//   scan_totals    one block of 1024: exclusive prefix sum over the parts, in place
//   fill_ranges    as count_ranges: the ranges, row_ranges[h, r] = (first, count), window[h]
//   keep_columns   grid (row blocks / 4, n_heads), one warp a row block: keep masks, pairs[h, r]
//
// The merge of slash offsets is the official one (csrc/vertical_slash_index.cu), walked in jumps instead of element by
// element: a row block that ends at b has at most min(offsets, b / 65 + 1) ranges, since two of them start 65 apart or
// more. A row that would pass the budget becomes one dense range in the slot kept for it. The prefix sum (and not an
// atomic counter) makes the placement, and with it any overflow, the same in every run.
struct BuildIndexParams { u32 n_heads, q_len, kv_len, q_start, row_blocks, column_tiles, offset_capacity, block_words, range_budget, dense_above; };
#define DENSE 0                                         // HeadPlan kinds; a plan is (kind, a, b, c)
#define A_SHAPE 1
#define VERTICAL_SLASH 2
#define BLOCK_SPARSE 3
#define TRI_SHAPE 4
#define ROWS 128                                        // row blocks a block

// The ranges of the row block that ends at `end`, ascending: emit(lo, hi). Offsets are `n` ascending numbers.
// Taken from the largest below `end` on: a range begins as [e - 64, e), e = max(end - offset, 64); while an offset ends
// behind hi, by no more than 64, the range grows by 64.
template <class Emit> __device__ __forceinline__ void merge_offsets(const u32* __restrict__ offsets, int n, int end, Emit emit) {
    auto s = [&](int i) { return (int)offsets[n - 1 - i]; };        // descending
    int i = 0, step = n;
    while (step > 0) {                                  // first offset below end
        const int half = step / 2;
        if (s(i + half) >= end) { i += half + 1; step -= half + 1; } else step = half;
    }
    if (i == n) {                                       // no offset reaches this row: its own keys stand in
        emit(end - 64, end);
        return;
    }
    int hi = max(end - s(i), 64), lo = hi - 64;
    for (;;) {
        // first offset that ends behind hi: s < end - hi; gallop, then bisect
        const int bound = end - hi;
        int jump = 1;
        while (i < n && s(i) >= bound) { i += jump; jump *= 2; }
        int low = jump == 1 ? i : i - jump / 2 + 1;     // s(low - 1) >= bound is known
        if (i > n) i = n;
        while (low < i) {
            const int middle = (low + i) / 2;
            if (s(middle) >= bound) low = middle + 1; else i = middle;
        }
        if (i == n) break;
        const int e = end - s(i);
        if (e > hi + 64) {
            emit(lo, hi);
            hi = e;
            lo = e - 64;
        } else {
            hi += 64;
        }
    }
    emit(lo, hi);
}

// The ranges of row block r of a head, ascending and disjoint: emit(lo, hi).
template <class Emit> __device__ __forceinline__ void row_of(const BuildIndexParams& p, u32 head, u32 r, uint4 plan, const u32* __restrict__ offsets,
                                                             const u32* __restrict__ offset_count, const u32* __restrict__ block_mask, Emit emit) {
    const int begin = p.q_start + 64 * r, end = begin + 64;
    if (plan.x == VERTICAL_SLASH) {
        // Blocks that begin past the last key are dropped; a range begins at or before the first query, so it stays.
        merge_offsets(offsets + (u64)head * p.offset_capacity, min(offset_count[head], p.offset_capacity), end,
                      [&](int lo, int hi) { emit(lo, min(hi, lo + ((int)p.kv_len - lo + 63) / 64 * 64)); });
    } else if (plan.x == BLOCK_SPARSE) {
        const u32* mask = block_mask + ((u64)head * p.row_blocks + r) * p.block_words;
        int open = -1;                                  // first key block of the open run
        bool none = true;
        for (u32 w = 0; w < p.block_words; w++) {
            u32 word = mask[w];
            if (open >= 0) word = ~word;                // look for the run's end
            int at = 0;
            while (word >> at) {                        // at < 32 here
                at += __ffs(word >> at) - 1;
                none = false;
                if (open < 0) open = 32 * w + at;
                else { emit(64 * open, 64 * (int)(32 * w + at)); open = -1; }
                word = ~word;
                if (at == 31) break;
                at++;
                word = word >> at << at;
            }
        }
        if (open >= 0) emit(64 * open, 64 * 32 * (int)p.block_words);
        // Never empty: a mask without a bit means the block of the first query.
        else if (none) emit(begin / 64 * 64, begin / 64 * 64 + 64);
    } else {
        int lo = 0;
        // A tri-shape is dense where a row block has one of its last queries.
        if (plan.x == A_SHAPE || (plan.x == TRI_SHAPE && min(64 * (r + 1), p.q_len) + plan.w <= p.q_len)) {
            lo = max(0, begin - (int)min(plan.z, (u32)begin + 1) + 1);
            const int n_init = (int)min(plan.y, (u32)end);
            if (n_init >= lo) lo = 0;
            else if (n_init > 0) emit(0, n_init);
        }
        emit(lo, end);
    }
}

// Inclusive sum over the block of 128.
__device__ __forceinline__ u32 block_scan(u32 x, u32& total) {
    __shared__ u32 part[ROWS / 32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    #pragma unroll
    for (int d = 1; d < 32; d *= 2) { const u32 y = __shfl_up_sync(~0u, x, d); if (lane >= d) x += y; }
    if (lane == 31) part[warp] = x;
    __syncthreads();
    u32 before = 0;
    total = 0;
    #pragma unroll
    for (u32 w = 0; w < ROWS / 32; w++) { before += w < warp ? part[w] : 0; total += part[w]; }
    return x + before;
}

extern "C" __global__ void __launch_bounds__(ROWS)
count_ranges(const BuildIndexParams p, const uint4* __restrict__ plan, const u32* __restrict__ offsets, const u32* __restrict__ offset_count,
             const u32* __restrict__ block_mask, uint2* __restrict__ row_ranges, u32* __restrict__ totals) {
    const u32 r = blockIdx.x * ROWS + threadIdx.x, head = blockIdx.y;
    u32 count = 0, total;
    if (r < p.row_blocks) {
        row_of(p, head, r, plan[head], offsets, offset_count, block_mask, [&](int, int) { count++; });
        row_ranges[(u64)head * p.row_blocks + r] = make_uint2(0, count);
    }
    block_scan(count, total);
    if (threadIdx.x == 0) totals[head * gridDim.x + blockIdx.x] = total;
}

extern "C" __global__ void __launch_bounds__(1024)
scan_totals(u32* __restrict__ totals, u32 n) {
    __shared__ u32 part[32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 carry = 0;
    for (u32 base = 0; base < n; base += 1024) {
        const u32 i = base + threadIdx.x, own = i < n ? totals[i] : 0;
        u32 x = own;
        #pragma unroll
        for (int d = 1; d < 32; d *= 2) { const u32 y = __shfl_up_sync(~0u, x, d); if (lane >= d) x += y; }
        if (lane == 31) part[warp] = x;
        __syncthreads();
        u32 before = carry, total = 0;
        for (u32 w = 0; w < 32; w++) { before += w < warp ? part[w] : 0; total += part[w]; }
        if (i < n) totals[i] = before + x - own;
        carry += total;
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(ROWS)
fill_ranges(const BuildIndexParams p, const uint4* __restrict__ plan, const u32* __restrict__ offsets, const u32* __restrict__ offset_count,
            const u32* __restrict__ block_mask, const u32* __restrict__ totals, uint2* __restrict__ row_ranges, uint2* __restrict__ ranges, uint2* __restrict__ window) {
    const u32 r = blockIdx.x * ROWS + threadIdx.x, head = blockIdx.y;
    const u64 row = (u64)head * p.row_blocks + r;
    const u32 count = r < p.row_blocks ? row_ranges[row].y : 0;
    u32 total;
    const u32 first = totals[head * gridDim.x + blockIdx.x] + block_scan(count, total) - count;
    if (r == 0) window[head] = plan[head].x == A_SHAPE ? make_uint2(plan[head].y, plan[head].z) : make_uint2(NONE, NONE);
    if (r >= p.row_blocks) return;
    if (first + count > p.range_budget || first + count < first) {
        row_ranges[row] = make_uint2(p.range_budget + (u32)row, 1);
        ranges[p.range_budget + row] = make_uint2(0, p.q_start + 64 * r + 64);
        return;
    }
    row_ranges[row] = make_uint2(first, count);
    u32 to = first;
    row_of(p, head, r, plan[head], offsets, offset_count, block_mask, [&](int lo, int hi) { ranges[to++] = make_uint2(lo, hi); });
}

// Pairs (i, j) with begin <= i < end, from <= j <= i.
__device__ __forceinline__ u32 triangle(int begin, int end, int from) {
    if (end <= from) return 0;
    const u64 top = end - from, bottom = max(begin - from, 0);         // top^2 passes 32 bits, the result does not
    return (u32)((top * (top + 1) - bottom * (bottom + 1)) / 2);
}

extern "C" __global__ void __launch_bounds__(128)
keep_columns(const BuildIndexParams p, const uint4* __restrict__ plan, const u32* __restrict__ columns, const uint2* __restrict__ row_ranges,
             const uint2* __restrict__ ranges, u64* __restrict__ keep, u32* __restrict__ pairs) {
    const u32 lane = threadIdx.x % 32, r = blockIdx.x * 4 + threadIdx.x / 32, head = blockIdx.y;
    if (r >= p.row_blocks) return;
    const u64 row = (u64)head * p.row_blocks + r;
    const uint2 own = row_ranges[row], *a = ranges + own.x;
    const int count = own.y, begin = p.q_start + 64 * r, end = p.q_start + min(64 * r + 64, p.q_len);
    const uint4 pattern = plan[head];

    // A column is kept where it lies before the last range, before the first query, and in no range. Without offset 0 the
    // last range may begin past the first query: columns there would need a causal test.
    const u32 limit = pattern.x == VERTICAL_SLASH && count ? min(a[count - 1].x, (u32)begin) : 0;
    columns += (u64)head * p.column_tiles * 64;
    u32 kept = 0;
    for (u32 t = 0; t < p.column_tiles; t++) {
        u64 mask = 0;
        if (columns[64 * t] < limit)                    // the same in the whole warp
            #pragma unroll
            for (int half = 0; half < 2; half++) {
                const u32 c = columns[64 * t + 32 * half + lane];
                bool in = c < limit;
                if (in) {
                    int low = 0, high = count - 1;      // first range that ends behind c; the last one does
                    while (low < high) { const int middle = (low + high) / 2; if (a[middle].y <= c) low = middle + 1; else high = middle; }
                    in = c < a[low].x;
                }
                mask |= (u64)__ballot_sync(~0u, in) << 32 * half;
            }
        kept += __popcll(mask);
        if (lane == 0) keep[row * p.column_tiles + t] = mask;
    }

    u32 sum = 0;
    if (pattern.x == A_SHAPE) {                         // the window is exact: query by query, over two ranges at most
        for (int i = begin + lane; i < end; i += 32)
            for (int x = 0; x < count; x++) {
                const int from = a[x].x, to = min((int)a[x].y, i + 1), init = (int)min(pattern.y, (u32)to), local = max(from, i + 1 - (int)min(pattern.z, (u32)i + 1));
                sum += max(init - from, 0) + max(to - max(local, max(init, from)), 0);
            }
    } else {
        for (int x = lane; x < count; x += 32) sum += triangle(begin, end, a[x].x) - triangle(begin, end, a[x].y);
    }
    #pragma unroll
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (lane == 0) pairs[row] = sum + kept * (end - begin);
}
