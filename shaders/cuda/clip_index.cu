// The part of an index within [key_start, key_end). A row block's ranges ascend, so those that remain are neighbours; they keep
// their places, and row_ranges tells the first and how many. Grid (row_blocks / 4, n_heads), a warp a row block.
struct ClipIndexParams { u32 n_heads, row_blocks, column_tiles, key_start, key_end; };

extern "C" __global__ void __launch_bounds__(128)
clip_index(const ClipIndexParams p, const uint2* __restrict__ whole_rows, const uint2* __restrict__ whole_ranges,
           const u32* __restrict__ columns, const u32* __restrict__ whole_keep, uint2* __restrict__ row_ranges,
           uint2* __restrict__ ranges, u32* __restrict__ keep) {
    const u32 row_block = blockIdx.x * 4 + threadIdx.x / 32, head = blockIdx.y, lane = threadIdx.x % 32;
    if (row_block >= p.row_blocks) return;
    const u64 row = (u64)head * p.row_blocks + row_block;

    // ranges
    const uint2 own = whole_rows[row];
    u32 before = 0, kept = 0;
    for (u32 base = 0; base < own.y; base += 32) {
        u32 start = 0, end = 0, i = base + lane;
        if (i < own.y) {
            const uint2 range = whole_ranges[own.x + i];
            start = max(range.x, p.key_start);
            end = min(range.y, p.key_end);
            if (start < end) ranges[own.x + i] = make_uint2(start, end);
        }
        const u32 there = __ballot_sync(~0u, start < end);
        if (kept == 0 && there) before = base + __ffs(there) - 1;
        kept += __popc(there);
    }
    if (lane == 0) row_ranges[row] = make_uint2(own.x + before, kept);

    // columns
    columns += (u64)head * p.column_tiles * 64;
    for (u32 word = 0; word < 2 * p.column_tiles; word++) {
        const u32 column = columns[word * 32 + lane];
        const u32 inside = __ballot_sync(~0u, column >= p.key_start && column < p.key_end);
        const u64 at = row * p.column_tiles * 2 + word;
        if (lane == 0) keep[at] = whole_keep[at] & inside;
    }
}
