// Where the elements of a tile of 64 rows of head_dim elements lie in shared memory (mma.sync kernels).
//
// A row is CHUNKS chunks of 16 bytes (head_dim rounded up to 16 elements, the surplus zero). Chunks are placed so that
// the eight rows of an 8x8 matrix fall into different banks: by an exclusive-or where a row is a multiple of 64 bytes,
// by one chunk of padding a row otherwise.
#define CHUNKS ((HEAD_DIM + 15) / 16 * 2)
#define STEPS (CHUNKS / 2)                              // of 16 elements: the inner length of one mma
#define PITCH_CHUNKS (CHUNKS % 4 == 0 ? CHUNKS : CHUNKS + 1)
#define TILE_BYTES (64 * PITCH_CHUNKS * 16)
__device__ __forceinline__ u32 chunk_offset(int row, int chunk) {
    const int x = CHUNKS % 8 == 0 ? row & 7 : CHUNKS % 4 == 0 ? (row >> 1) & 3 : 0;
    return (u32)(row * PITCH_CHUNKS + (chunk ^ x)) * 16;
}
// chunk_offset(row, chunk + 2 * step), given the address of (row, chunk) with chunk 0 or 1: one instruction a step, where
// working it out anew costs the mma kernels registers that they do not have.
__device__ __forceinline__ u32 at_step(u32 address, int step) {
    if (CHUNKS % 8 == 0) return (address ^ (step % 4 * 32)) + step / 4 * 128;
    if (CHUNKS % 4 == 0) return (address ^ (step % 2 * 32)) + step / 2 * 64;
    return address + step * 32;
}
#define ROW_BYTES (PITCH_CHUNKS * 16)
// ROWS rows of a tile, `threads` threads together: row r is at from + r * stride where r < rows, zero elsewhere.
template <int ROWS, int THREADS> __device__ __forceinline__ void load_rows(u32 to, const act* from, u32 stride, int rows, int thread) {
    if constexpr (THREADS % (8 * CHUNKS) == 0) {        // a thread stays in one column: addresses only step
        const int row = thread / CHUNKS, chunk = thread % CHUNKS, step = THREADS / CHUNKS;
        const bool column = chunk < HEAD_DIM / 8;
        to += chunk_offset(row, chunk);
        from += column ? (u64)row * stride + chunk * 8 : 0;
        #pragma unroll
        for (int i = 0; i < ROWS / step; i++)
            cp_async(to + i * step * ROW_BYTES, from + (u64)(i * step) * stride, column && row + i * step < rows);
    } else {
        #pragma unroll 1                                // two at a time spill at head_dim 112 (sm_100, NVRTC 13.5)
        for (int i = thread; i < ROWS * CHUNKS; i += THREADS) {
            const int row = i / CHUNKS, chunk = i % CHUNKS;
            const bool take = row < rows && chunk < HEAD_DIM / 8;
            cp_async(to + chunk_offset(row, chunk), from + (take ? (u64)row * stride + chunk * 8 : 0), take);
        }
    }
}
