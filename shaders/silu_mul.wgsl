// out[r, c] = silu(gate_up[r, c]) * gate_up[r, ffn + c], silu(x) = x / (1 + exp(-x)).
//
// One invocation per vector of one or four elements.
struct Params {
    rows: u32,
    ffn: u32, // in vectors
    gate_up_at: u32,
    out_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> gate_up: array<In>; // [rows, 2 ffn]
@group(0) @binding(1) var<storage, read_write> out: array<Out>; // [rows, ffn]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let i = linear_group(at) * WORKGROUP + at.lane;
    let row = i / p.ffn;
    let column = i % p.ffn;
    if row >= p.rows {
        return;
    }
    let source = p.gate_up_at + 2u * row * p.ffn + column;
    let gate = Wide(gate_up[source]);
    let up = Wide(gate_up[source + p.ffn]);
    // of |x|, because exp(-x) overflows below -88 and an infinity is undefined behaviour in WGSL
    let decay = exp(-abs(gate));
    let sigmoid = select(decay, Wide(1.0), gate >= Wide(0.0)) / (1.0 + decay);
    out[p.out_at + i] = to_out(gate * sigmoid * up);
}
