// Runs one CUDA thread block on the CPU, a fiber per thread, so that a kernel of this folder can be checked without a GPU.
// Warp and warpgroup operations meet at rendezvous points; TMA copies land late and in random order; wgmma results
// appear (and wgmma reads shared memory) only at the wait: what the hardware may do late, is done late here.
// It checks logic, layouts and protocols as this file understands them. It knows nothing of memory models or speed.
#pragma once
#include <ucontext.h>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#define EMULATE 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __restrict__
#define __shared__ static
struct int2 { int x, y; };
struct float2 { float x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct dim3e { unsigned x, y, z; };
static dim3e threadIdx, blockIdx, blockDim, gridDim;
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline int2 make_int2(int a, int b) { return {a, b}; }
static inline uint2 make_uint2(unsigned a, unsigned b) { return {a, b}; }
static inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) { return {a, b, c, d}; }
static inline int4 make_int4(int a, int b, int c, int d) { return {a, b, c, d}; }
static inline float2 make_float2(float a, float b) { return {a, b}; }
template <class T> static T min(T a, T b) { return b < a ? b : a; }
template <class T> static T max(T a, T b) { return a < b ? b : a; }
static inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }

// ------------------------------------------------------------------------------------------------ fibers
namespace emu {
alignas(1024) static unsigned char shared[256 * 1024];
struct Fiber { ucontext_t c; std::vector<char> stack; bool done; };
static std::vector<Fiber> fibers;
static ucontext_t home;
static int current, live;
static long progress;
static std::mt19937 rng(getenv("EMU_SEED") ? atoi(getenv("EMU_SEED")) : 7);
static std::function<void()> body;
struct Pending { std::function<void()> run; };
static std::vector<Pending> pending;                     // TMA copies under way
static void yield() { int me = current; swapcontext(&fibers[me].c, &home); current = me; threadIdx.x = me; }
template <class F> static void wait_for(F ready) { while (!ready()) yield(); progress++; }
struct Rendezvous {                                      // n threads meet, twice round as often as wanted
    int n = 0, arrived = 0; long generation = 0;
    void meet(int count) { long g = generation; if (++arrived == count) { arrived = 0; generation++; progress++; } else wait_for([&] { return generation != g; }); }
};
static Rendezvous block_barrier, named[16], warp_barrier[64], group_barrier[16];
static void* warp_slot[64][32];
static void entry() { body(); fibers[current].done = true; live--; progress++; swapcontext(&fibers[current].c, &home); }
static void run_block(unsigned bx, unsigned by, unsigned bz, unsigned threads) {
    blockIdx = {bx, by, bz}; blockDim = {threads, 1, 1};
    if (fibers.size() != threads) { fibers.clear(); fibers.resize(threads); }
    block_barrier = {}; for (auto& x : named) x = {}; for (auto& x : warp_barrier) x = {}; for (auto& x : group_barrier) x = {};
    for (unsigned i = 0; i < threads; i++) {
        Fiber& f = fibers[i];
        f.done = false;
        if (f.stack.empty()) f.stack.resize(96 * 1024);
        getcontext(&f.c); f.c.uc_stack.ss_sp = f.stack.data(); f.c.uc_stack.ss_size = f.stack.size(); f.c.uc_link = &home;
        makecontext(&f.c, entry, 0);
    }
    live = threads;
    int idle = 0;
    while (live) {
        long before = progress;
        for (unsigned i = 0; i < threads && live; i++)
            if (!fibers[i].done) { current = i; threadIdx = {i, 0, 0}; swapcontext(&home, &fibers[i].c); }
        while (!pending.empty() && (rng() % 4 || progress == before)) {
            size_t at = rng() % pending.size(); auto r = pending[at].run; pending.erase(pending.begin() + at); r(); progress++;
        }
        idle = progress == before ? idle + 1 : 0;
        if (idle > 3) { fprintf(stderr, "DEADLOCK block %u,%u live %d\n", bx, by, live); abort(); }
    }
    if (!pending.empty()) { fprintf(stderr, "copies left behind\n"); abort(); }
}
template <class F> static void launch(unsigned gx, unsigned gy, unsigned threads, F f) {
    gridDim = {gx, gy, 1}; body = f;
    for (unsigned y = 0; y < gy; y++) for (unsigned x = 0; x < gx; x++) run_block(x, y, 0, threads);
}
static int warp() { return current >> 5; }
static int lane() { return current & 31; }
// f(all 32 argument pointers) runs in every lane between two meetings
template <class T, class F> static auto exchange(T& mine, F f) {
    int w = warp(); warp_slot[w][lane()] = &mine; warp_barrier[w].meet(32);
    auto r = f((T**)warp_slot[w]);
    warp_barrier[w].meet(32);
    return r;
}
static float half_to_float(uint16_t h) {
#if BF16
    uint32_t u = (uint32_t)h << 16; float f; memcpy(&f, &u, 4); return f;
#else
    _Float16 x; memcpy(&x, &h, 2); return (float)x;
#endif
}
static uint16_t float_to_half(float f) {
#if BF16
    uint32_t u; memcpy(&u, &f, 4); u += 0x7fff + ((u >> 16) & 1); return u >> 16;
#else
    _Float16 x = (_Float16)f; uint16_t h; memcpy(&h, &x, 2); return h;
#endif
}
}  // namespace emu

// ------------------------------------------------------------------------------------------------ CUDA builtins
static inline void __syncthreads() { emu::block_barrier.meet(blockDim.x); }
static inline void __syncwarp(unsigned = ~0u) { emu::warp_barrier[emu::warp()].meet(32); }
template <class T> static T __shfl_xor_sync(unsigned, T x, int m) { int l = emu::lane(); return emu::exchange(x, [&](T** a) { return *a[l ^ m]; }); }
template <class T> static T __shfl_sync(unsigned, T x, int s) { return emu::exchange(x, [&](T** a) { return *a[s & 31]; }); }
template <class T> static T __shfl_up_sync(unsigned, T x, int d) { int l = emu::lane(); return emu::exchange(x, [&](T** a) { return *a[l >= d ? l - d : l]; }); }
template <class T> static T __shfl_down_sync(unsigned, T x, int d) { int l = emu::lane(); return emu::exchange(x, [&](T** a) { return *a[l + d < 32 ? l + d : l]; }); }
static inline unsigned __ballot_sync(unsigned, int p) { return emu::exchange(p, [&](int** a) { unsigned r = 0; for (int i = 0; i < 32; i++) r |= (*a[i] ? 1u : 0u) << i; return r; }); }
static inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(unsigned long long x) { return __builtin_ffsll(x); }
static inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
template <class T, class U> static T atomicAdd(T* p, U v) { T o = *p; *p = o + (T)v; return o; }
template <class T, class U> static T atomicMax(T* p, U v) { T o = *p; if ((T)v > o) *p = v; return o; }
template <class T, class U> static T atomicOr(T* p, U v) { T o = *p; *p |= v; return o; }
static inline float __int_as_float(int u) { float f; memcpy(&f, &u, 4); return f; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }

// ------------------------------------------------------------------------------------------------ sm_80 primitives
#undef DYNAMIC_SMEM
#undef DYNAMIC_SMEM_1024
#define DYNAMIC_SMEM unsigned char* smem = emu::shared
#define DYNAMIC_SMEM_1024 unsigned char* smem = emu::shared
static inline unsigned smem_address(const void* p) { return (unsigned)((const unsigned char*)p - emu::shared); }
static inline void cp_async(unsigned dst, const void* src, bool take) {
    if (dst % 16) abort();
    if (take) memcpy(emu::shared + dst, src, 16); else memset(emu::shared + dst, 0, 16);
}
static inline void cp_async_commit() {}
template <int N> static void cp_async_wait() {}
static inline void ldmatrix_any(unsigned (&r)[4], unsigned address, bool trans) {
    int l = emu::lane();
    emu::exchange(address, [&](unsigned** a) {
        for (int m = 0; m < 4; m++) {
            uint16_t x[2];
            for (int e = 0; e < 2; e++) {
                int row = trans ? (l % 4) * 2 + e : l / 4, col = trans ? l / 4 : (l % 4) * 2 + e;
                memcpy(&x[e], emu::shared + *a[8 * m + row] + col * 2, 2);
            }
            r[m] = x[0] | (unsigned)x[1] << 16;
        }
        return 0;
    });
}
static inline void ldmatrix(unsigned (&r)[4], unsigned address) { ldmatrix_any(r, address, false); }
static inline void ldmatrix_trans(unsigned (&r)[4], unsigned address) { ldmatrix_any(r, address, true); }
static inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    struct Arg { const unsigned* a; unsigned b[2]; } mine{a, {b0, b1}};
    int l = emu::lane();
    emu::exchange(mine, [&](Arg** x) {
        for (int i = 0; i < 4; i++) {
            int row = l / 4 + 8 * (i / 2), col = (l % 4) * 2 + i % 2;
            float s = 0;
            for (int k = 0; k < 16; k++) {
                unsigned ra = x[(row % 8) * 4 + (k % 8) / 2]->a[row / 8 + 2 * (k / 8)], rb = x[col * 4 + (k % 8) / 2]->b[k / 8];
                s += emu::half_to_float(ra >> 16 * (k % 2)) * emu::half_to_float(rb >> 16 * (k % 2));
            }
            c[i] += s;
        }
        return 0;
    });
}
static inline unsigned pack2(float lo, float hi) { return emu::float_to_half(lo) | (unsigned)emu::float_to_half(hi) << 16; }
static inline float2 unpack2(unsigned x) { return {emu::half_to_float(x), emu::half_to_float(x >> 16)}; }
static inline float to_f32(act x) { return emu::half_to_float(x.bits); }
static inline act to_act(float x) { return {emu::float_to_half(x)}; }
static inline float __fmul_rn(float x, float y) { volatile float z = x * y; return z; }
static inline float exp2_fast(float x) { return exp2f(x); }

// ------------------------------------------------------------------------------------------------ sm_90a primitives
struct TensorMap { const act* base; long long dim[3], stride[3]; int box[3]; };      // 3-D, innermost first, elements
namespace emu {
struct Barrier { int count = 0, left = 0; long tx = 0; int phase = 0; void check() { while (left == 0 && tx == 0) { left = count; phase ^= 1; progress++; break; } } };
static Barrier barriers[256];                            // by (address - barrier_base) / 8
static Barrier& barrier(unsigned a) { static unsigned base = 0; (void)base; return barriers[(a / 8) % 256]; }
struct Product { std::function<void()> run; };
static std::vector<std::vector<std::vector<std::function<void()>>>> groups;       // [thread][committed group][product]
static std::vector<std::vector<std::function<void()>>> open_group;
}
static inline void mbarrier_init(unsigned a, int n) { emu::barrier(a) = {}; emu::barrier(a).count = emu::barrier(a).left = n; }
static inline void mbarrier_fence_init() {}
static inline void mbarrier_arrive(unsigned a) { auto& b = emu::barrier(a); if (b.left <= 0) { fprintf(stderr, "arrive past count\n"); abort(); } b.left--; b.check(); emu::progress++; }
static inline void mbarrier_expect(unsigned a, int bytes) { auto& b = emu::barrier(a); b.tx += bytes; b.left--; b.check(); emu::progress++; }
static inline void mbarrier_wait(unsigned a, unsigned parity) { emu::wait_for([&] { return emu::barrier(a).phase != (int)(parity & 1); }); }
static inline void tma_load(unsigned dst, const TensorMap* map, unsigned bar, int c0, int c1, int c2) {
    if (dst % 1024) abort();
    const TensorMap m = *map;
    // nothing may read the destination before it has landed
    for (int r = 0; r < m.box[1]; r++) for (int c = 0; c < m.box[0]; c++) { uint16_t nan = 0x7fff; memcpy(emu::shared + dst + r * 128 + c * 2, &nan, 2); }
    emu::pending.push_back({[=] {
        for (int r = 0; r < m.box[1]; r++)
            for (int c = 0; c < m.box[0]; c++) {
                uint16_t x = 0;
                if (c0 + c < m.dim[0] && c1 + r >= 0 && c1 + r < m.dim[1] && c2 < m.dim[2]) x = m.base[(c0 + c) + (c1 + r) * m.stride[1] + c2 * m.stride[2]].bits;
                unsigned at = dst + r * 128 + c * 2;
                at ^= ((at >> 7) & 7) << 4;
                memcpy(emu::shared + at, &x, 2);
            }
        auto& b = emu::barrier(bar); b.tx -= m.box[0] * m.box[1] * 2; b.check();
    }});
}
static inline void tma_prefetch_map(const TensorMap*) {}
template <int N> static void registers_up() {}
template <int N> static void registers_down() {}
// Named barriers: whoever brings a generation to `threads` ends it; only those who sync wait for it.
static inline void barrier_arrive(int id, int threads) { auto& b = emu::named[id]; if (++b.arrived == threads) { b.arrived = 0; b.generation++; emu::progress++; } }
static inline void barrier_sync(int id, int threads) { auto& b = emu::named[id]; long g = b.generation; barrier_arrive(id, threads); emu::wait_for([&] { return b.generation != g; }); }
static inline void wgmma_fence() {}
static inline uint16_t emu_b(unsigned long long desc, int k, int n, bool mn_major) {
    unsigned base = (desc & 0x3fff) << 4, lbo = ((desc >> 16) & 0x3fff) << 4, sbo = ((desc >> 32) & 0x3fff) << 4;
    if ((desc >> 62) != 1) abort();
    unsigned at = mn_major ? base + n / 64 * lbo + k / 8 * sbo + k % 8 * 128 + n % 64 * 2 : base + n / 8 * sbo + n % 8 * 128 + k * 2;
    at ^= ((at >> 7) & 7) << 4;
    uint16_t x; memcpy(&x, emu::shared + at, 2); return x;
}
// D[64, N] (+)= A[64, 16] (registers) * B[16, N]; runs at the wait
template <int N> static void wgmma_rs(float* d, const unsigned (&a)[4], unsigned long long desc, bool accumulate, bool mn_major) {
    struct Rows { float x[2][16]; } rows;
    int l = emu::lane();
    const unsigned* mine = a;
    emu::exchange(mine, [&](const unsigned*** x) {
        for (int h = 0; h < 2; h++) for (int k = 0; k < 16; k++)
            rows.x[h][k] = emu::half_to_float((*x[(l / 4) * 4 + (k % 8) / 2])[h + 2 * (k / 8)] >> 16 * (k % 2));
        return 0;
    });
    if (emu::open_group.size() < emu::fibers.size()) { emu::open_group.resize(emu::fibers.size()); emu::groups.resize(emu::fibers.size()); }
    emu::open_group[emu::current].push_back([=] {
        for (int j = 0; j < N / 8; j++) for (int c = 0; c < 2; c++) {
            float s0 = 0, s1 = 0; int n = 8 * j + 2 * (l % 4) + c;
            for (int k = 0; k < 16; k++) { float b = emu::half_to_float(emu_b(desc, k, n, mn_major)); s0 += rows.x[0][k] * b; s1 += rows.x[1][k] * b; }
            d[4 * j + c] = (accumulate ? d[4 * j + c] : 0) + s0; d[4 * j + 2 + c] = (accumulate ? d[4 * j + 2 + c] : 0) + s1;
        }
    });
}
// D[64, N] (+)= A[64, 16] (shared memory) * B[16, N], both K-major
template <int N> static void wgmma_ss(float* d, unsigned long long a, unsigned long long desc, bool accumulate) {
    int l = emu::lane(), row = emu::warp() % 4 * 16 + l / 4;
    __syncwarp();
    if (emu::open_group.size() < emu::fibers.size()) { emu::open_group.resize(emu::fibers.size()); emu::groups.resize(emu::fibers.size()); }
    emu::open_group[emu::current].push_back([=] {
        for (int j = 0; j < N / 8; j++) for (int c = 0; c < 2; c++) {
            float s0 = 0, s1 = 0; int n = 8 * j + 2 * (l % 4) + c;
            for (int k = 0; k < 16; k++) {
                float b = emu::half_to_float(emu_b(desc, k, n, false));
                s0 += emu::half_to_float(emu_b(a, k, row, false)) * b; s1 += emu::half_to_float(emu_b(a, k, row + 8, false)) * b;
            }
            d[4 * j + c] = (accumulate ? d[4 * j + c] : 0) + s0; d[4 * j + 2 + c] = (accumulate ? d[4 * j + 2 + c] : 0) + s1;
        }
    });
}
#define wgmma_k_r(d, a, b, acc) wgmma_rs<128>(d, a, b, acc, false)
#define wgmma_k_s(d, a, b, acc) wgmma_ss<128>(d, a, b, acc)
#define wgmma_v(d, a, b, acc) wgmma_rs<HEAD_DIM>(d, a, b, acc, true)
template <int N> static void pin(float (&)[N]) {}
static inline uint64_t descriptor(unsigned address, int slab) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(slab >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}
static inline void wgmma_commit() { if (emu::open_group.size() < emu::fibers.size()) { emu::open_group.resize(emu::fibers.size()); emu::groups.resize(emu::fibers.size()); }
    emu::groups[emu::current].push_back(emu::open_group[emu::current]); emu::open_group[emu::current].clear(); }
template <int N> static void wgmma_wait() {
    auto& g = emu::groups[emu::current];
    while ((int)g.size() > N) { for (auto& f : g.front()) f(); g.erase(g.begin()); }
    __syncwarp();
}
