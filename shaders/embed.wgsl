// out[i, :] = w[ids[i], :].
//
// One invocation per four columns of a token. The table may be bound in bands of rows: a token whose id lies outside
// [first_id, first_id + vocab) is another band's.
struct Params {
    n_tokens: u32,
    hidden: u32,
    vocab: u32, // rows of this band
    first_id: u32,
    ids_at: u32,
    w_at: u32,
    out_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> ids: array<u32>; // [n_tokens]
@group(0) @binding(1) var<storage, read> w: array<Weight>; // [vocab, hidden]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [n_tokens, hidden]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let quads = (p.hidden + 3u) / 4u;
    let i = linear_group(at) * WORKGROUP + at.lane;
    let token = i / quads;
    let column = 4u * (i % quads);
    if token >= p.n_tokens {
        return;
    }
    // an id below first_id wraps to a large number
    let row = ids[p.ids_at + token] - p.first_id;
    if row >= p.vocab {
        return;
    }
    let valid = p.hidden - column;
    let values = load_w4(row * p.hidden + column, valid);
    for (var j = 0u; j < min(4u, valid); j++) {
        out[p.out_at + token * p.hidden + column + j] = values[j];
    }
}
