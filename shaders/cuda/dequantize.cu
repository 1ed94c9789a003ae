// out[r, :] = w[r, :] as act: packed weights on the way into cuBLASLt, a slice of rows at a time. Grid (columns / 2048, rows).
extern "C" __global__ void __launch_bounds__(256)
dequantize(u32 rows, u32 k, const u8* __restrict__ w, act* __restrict__ out) {
    const u32 i = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (i >= k) return;
    for (u32 row = blockIdx.y; row < rows; row += gridDim.y) {
        float x[8];
        load8(w + row * WEIGHT_ROW(k), i, x);
        *(uint4*)(out + (u64)row * k + i) = make_uint4(pack2(x[0], x[1]), pack2(x[2], x[3]), pack2(x[4], x[5]), pack2(x[6], x[7]));
    }
}
