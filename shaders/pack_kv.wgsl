// Puts rows of a cache [n_kv_heads, capacity, head_dim] from `position` on into blocks of 32 elements: a word with the
// scale as f16, largest magnitude / 127, and eight words of signed bytes. The rows themselves become what the blocks say,
// so that attention sees the same whether it reads them now or unpacked later.
//
// One invocation a block.
struct Params {
    n_tokens: u32,
    n_kv_heads: u32,
    head_dim: u32,
    capacity: u32,
    position: u32,
    x_at: u32,
    packed_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> x: array<Elem>; // [n_kv_heads, capacity, head_dim]
@group(0) @binding(1) var<storage, read_write> packed: array<u32>; // [n_kv_heads, capacity, head_dim / 32, 9]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let blocks = p.head_dim / 32u;
    let i = linear_group(at) * WORKGROUP + at.lane;
    let row = i / blocks;
    if row >= p.n_tokens * p.n_kv_heads {
        return;
    }
    let block = (row / p.n_tokens * p.capacity + p.position + row % p.n_tokens) * blocks + i % blocks;
    let first = p.x_at + 32u * block;
    let words = p.packed_at + 9u * block;

    // scale
    var most = 0.0;
    for (var j = 0u; j < 32u; j++) {
        most = max(most, abs(f32(x[first + j])));
    }
    let scale = pack2x16float(vec2<f32>(most / 127.0, 0.0)) & 0xffffu;
    let stored = half_of(scale);
    let inverse = select(0.0, 127.0 / most, most > 0.0);
    packed[words] = scale;

    // quants
    for (var word = 0u; word < 8u; word++) {
        var bytes = 0u;
        for (var j = 0u; j < 4u; j++) {
            let place = first + 4u * word + j;
            let quant = clamp(round(f32(x[place]) * inverse), -127.0, 127.0);
            bytes |= (bitcast<u32>(i32(quant)) & 0xffu) << (8u * j);
            x[place] = Elem(stored * quant);
        }
        packed[words + 1u + word] = bytes;
    }
}
