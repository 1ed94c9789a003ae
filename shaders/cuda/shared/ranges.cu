// The walk over the key ranges of two neighbouring row blocks, in tiles of 64 keys that begin anywhere: the union of
// both, each tile with one 64-bit mask per row block of the keys that its rows see.
#define NO_KEY 0x7fffffff

struct Ranges {                                         // of one row block, taken from the front, one read ahead
    u32 next, end;                                      // in ranges[]
    uint2 ahead;                                        // ranges[next]
    int at, stop;                                       // the next key, NO_KEY behind the last; end of the open range
    int limit;                                          // the row block sees no key from here on
};
__device__ __forceinline__ void next_range(Ranges& r, const uint2* __restrict__ ranges) {
    while (r.next < r.end) {
        const uint2 x = r.ahead;
        if (++r.next < r.end) r.ahead = ranges[r.next];
        r.at = (int)x.x;
        r.stop = (int)min(x.y, (u32)r.limit);
        if (r.at < r.stop) return;
    }
    r.at = NO_KEY;
}
// row: (first, count) of the row block, or count 0 where there is none.
__device__ __forceinline__ void open_ranges(Ranges& r, uint2 row, int limit, const uint2* __restrict__ ranges) {
    r.next = row.x;
    r.end = row.x + row.y;
    r.ahead = make_uint2(0, 0);
    r.limit = limit;
    if (r.next < r.end) r.ahead = ranges[r.next];
    next_range(r, ranges);
}
__device__ __forceinline__ u64 bits(int lo, int hi) {   // bits lo .. hi - 1, 0 <= lo < hi <= 64
    return (~0ull >> (64 - (hi - lo))) << lo;
}
// The keys of r in the tile that begins at `start`, taken from r.
__device__ __forceinline__ u64 take_tile(Ranges& r, int start, const uint2* __restrict__ ranges) {
    if (r.at == start && r.stop - start > 64) {         // inside a range: as a rule
        r.at = start + 64;
        return ~0ull;
    }
    u64 keep = 0;
    // Two ranges of a row block may begin within one tile (official ranges are at least 64 long, others need not be).
    while (r.at != NO_KEY && r.at - start < 64) {
        const int hi = min(r.stop - start, 64);
        keep |= bits(r.at - start, hi);
        r.at = start + hi;
        if (r.at == r.stop) next_range(r, ranges);
        if (hi == 64) break;
    }
    return keep;
}
