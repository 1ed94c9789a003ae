// Rows gathered by `fold`, each group one long row: out[h, u, i] = x[h, u * fold + i], or row u * fold + fold - 1 - i; zeros
// behind the last row. One thread 16 bytes.
struct FoldRowsParams { u32 n_heads, len, head_dim, row_stride, head_stride, fold, reverse; };

extern "C" __global__ void __launch_bounds__(256)
fold_rows(const FoldRowsParams p, const act* __restrict__ x, act* __restrict__ out) {
    const u32 width = p.head_dim / 8, rows = (p.len + p.fold - 1) / p.fold * p.fold;
    const u64 id = (u64)blockIdx.x * 256 + threadIdx.x;
    if (id >= (u64)rows * width) return;
    const u32 at = id / width, place = at % p.fold, row = p.reverse ? at - place + p.fold - 1 - place : at;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (row < p.len) value = *(const uint4*)(x + (u64)blockIdx.y * p.head_stride + (u64)row * p.row_stride + id % width * 8);
    *(uint4*)(out + (u64)blockIdx.y * rows * p.head_dim + id * 8) = value;
}
