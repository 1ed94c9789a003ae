// Attention over some keys (out, lse) and over others (part, part_lse) as attention over both: the mean, weighted by the
// exponentials of the log-sum-exps under their maximum.
//
// One invocation per vector of four elements; the first of a head's writes its merged log-sum-exp.
struct Params {
    rows: u32,
    row_first: u32,
    all_rows: u32,
    n_heads: u32,
    head_dim: u32, // in vectors
    head_stride: u32, // in vectors
    row_stride: u32, // in vectors
    part_at: u32,
    part_lse_at: u32,
    lse_at: u32,
    out_at: u32,
    merged_lse_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> part: array<In>; // [rows, row_stride]
@group(0) @binding(1) var<storage, read> part_lse: array<f32>; // [n_heads, all_rows]
@group(0) @binding(2) var<storage, read> lse: array<f32>; // [n_heads, all_rows]
@group(0) @binding(3) var<storage, read_write> out: array<Out>; // [rows, row_stride]
@group(0) @binding(4) var<storage, read_write> merged_lse: array<f32>; // [n_heads, all_rows]

const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// Below every score: rows without keys come as -inf, which WGSL's arithmetic may not meet.
const LOWEST: f32 = -1e30;
var<private> negative_infinity: u32 = 0xff800000u;

// The bits tell -inf: compilers may take comparisons with it for never true.
fn finite(x: f32) -> f32 {
    return select(x, LOWEST, bitcast<u32>(x) == negative_infinity);
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let i = linear_group(at) * WORKGROUP + at.lane;
    let head_of = i / p.head_dim;
    let row = head_of / p.n_heads;
    if row >= p.rows {
        return;
    }
    let slot = head_of % p.n_heads * p.all_rows + p.row_first + row;
    let a = finite(lse[p.lse_at + slot]);
    let b = finite(part_lse[p.part_lse_at + slot]);
    let top = max(a, b);
    let a_share = exp2((a - top) * LOG2_E);
    let b_share = exp2((b - top) * LOG2_E);
    let sum = a_share + b_share;
    let place = row * p.row_stride + head_of % p.n_heads * p.head_stride + i % p.head_dim;
    let mine = Wide(out[p.out_at + place]);
    let other = Wide(part[p.part_at + place]);
    out[p.out_at + place] = to_out(mine * (a_share / sum) + other * (b_share / sum));
    if i % p.head_dim == 0u {
        merged_lse[p.merged_lse_at + slot] = select(top + log2(sum) * LN_2, bitcast<f32>(negative_infinity), top <= LOWEST);
    }
}
