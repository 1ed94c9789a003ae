// Hopper's own instructions (sm_90a): mbarriers, the bulk tensor copy engine (TMA), register hand-over, wgmma.
struct __align__(64) TensorMap { u64 opaque[16]; };     // CUtensorMap

__device__ __forceinline__ void mbarrier_init(u32 bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(bar), "r"(count) : "memory");
}
__device__ __forceinline__ void mbarrier_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void mbarrier_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(bar) : "memory");
}
__device__ __forceinline__ void mbarrier_expect(u32 bar, int bytes) {       // one arrival, and `bytes` more to come
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbarrier_wait(u32 bar, u32 parity) {        // until the phase of that parity is over
    asm volatile("{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra WAIT;\nDONE:\n}"
                 :: "r"(bar), "r"(parity) : "memory");
}
// Named barriers 1 .. 15: `threads` threads in all, of which some only arrive.
__device__ __forceinline__ void barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
__device__ __forceinline__ void barrier_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory"); }

__device__ __forceinline__ void tma_prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory");
}
__device__ __forceinline__ void tma_load(u32 to, const TensorMap* map, u32 bar, int column, int row, int head) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
                 :: "r"(to), "l"(map), "r"(bar), "r"(column), "r"(row), "r"(head) : "memory");
}
template <int N> __device__ __forceinline__ void registers_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(N)); }
template <int N> __device__ __forceinline__ void registers_down() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(N)); }

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory"); }

#define D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(d, i) D4(d, i), D4(d, i + 4), D4(d, i + 8), D4(d, i + 12)
#define D32(d, i) D16(d, i), D16(d, i + 16)
#define N32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define N48 N32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define N64 N48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
// D[64, N] = A[64, 16] B[16, N] (+ D where `accumulate`), 4 warps; lane holds D as mma.sync does, d[4 j ..] of columns 8 j ...
// A: registers (_r) or a descriptor (_s); B: a descriptor, K-major ("0": Q K^T) or N-major ("1": P V).
#define WGMMA_R(shape, outs, a, b, acc, major) "{\n.reg .pred p;\nsetp.ne.b32 p, " acc ", 0;\n" \
    "wgmma.mma_async.sync.aligned." shape ".f32." HALF "." HALF " {" outs "}, {" a "}, " b ", p, 1, 1, " major ";\n}"
#define WGMMA_S(shape, outs, a, b, acc) "{\n.reg .pred p;\nsetp.ne.b32 p, " acc ", 0;\n" \
    "wgmma.mma_async.sync.aligned." shape ".f32." HALF "." HALF " {" outs "}, " a ", " b ", p, 1, 1, 0, 0;\n}"
#define A_IN(a, b, acc) "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)(acc))
__device__ __forceinline__ void wgmma_k_r(float (&d)[64], const u32 (&a)[4], u64 b, bool accumulate) {
    asm volatile(WGMMA_R("m64n128k16", N64, "%64,%65,%66,%67", "%68", "%69", "0") : D32(d, 0), D32(d, 32) : A_IN(a, b, accumulate));
}
__device__ __forceinline__ void wgmma_k_s(float (&d)[64], u64 a, u64 b, bool accumulate) {
    asm volatile(WGMMA_S("m64n128k16", N64, "%64", "%65", "%66") : D32(d, 0), D32(d, 32) : "l"(a), "l"(b), "r"((int)accumulate));
}
__device__ __forceinline__ void wgmma_v(float (&d)[32], const u32 (&a)[4], u64 b, bool accumulate) {
    asm volatile(WGMMA_R("m64n64k16", N32, "%32,%33,%34,%35", "%36", "%37", "1") : D32(d, 0) : A_IN(a, b, accumulate));
}
__device__ __forceinline__ void wgmma_v(float (&d)[48], const u32 (&a)[4], u64 b, bool accumulate) {
    asm volatile(WGMMA_R("m64n96k16", N48, "%48,%49,%50,%51", "%52", "%53", "1") : D32(d, 0), D16(d, 32) : A_IN(a, b, accumulate));
}
__device__ __forceinline__ void wgmma_v(float (&d)[64], const u32 (&a)[4], u64 b, bool accumulate) {
    asm volatile(WGMMA_R("m64n128k16", N64, "%64,%65,%66,%67", "%68", "%69", "1") : D32(d, 0), D32(d, 32) : A_IN(a, b, accumulate));
}
// Keeps the compiler from moving reads or writes of accumulators across a wait or a fence.
template <int N> __device__ __forceinline__ void pin(float (&d)[N]) {
    #pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}
// Shared-memory descriptor of a tile with 128-byte swizzle: atoms of 8 rows are 1024 bytes apart, slabs of 64 elements
// `slab` bytes (read where the slabs run along N, that is for V).
__device__ __forceinline__ u64 descriptor(u32 address, int slab) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(slab >> 4) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}
