// Rotary position embedding in place: pair i of a head at position t turns by the fraction of t * turns[i] / 2^64.
//
// One invocation per pair of a head of a token. The product is taken in integers modulo 2^64, so that the angle is as
// exact at position 1,048,575 as at 1; sine and cosine are our own, because Vulkan allows an error of 2^-11 in its.
struct Params {
    n_tokens: u32,
    n_heads: u32,
    head_dim: u32,
    rotary_dim: u32,
    row_stride: u32,
    position_start: u32,
    interleaved: u32,
    attention_factor: f32,
    turns_at: u32,
    x_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> turns: array<u32>; // [rotary_dim / 2, 2], low word first
@group(0) @binding(1) var<storage, read_write> x: array<In>; // [n_tokens, row_stride]

// High word of a 32 x 32 bit product, from 16-bit halves.
fn multiply_high(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let mid = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let mid2 = (a & 0xffffu) * (b >> 16u) + (mid & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (mid >> 16u) + (mid2 >> 16u);
}

// Cosine and sine of a fraction of a turn in units of 2^-32. The nearest quarter turn is taken off exactly; the rest
// is at most pi/4, where the Taylor series to the 8th and 9th power are within 3e-8.
fn cos_sin(fraction: u32) -> vec2<f32> {
    let quarter = (fraction + 0x20000000u) >> 30u;
    let rest = f32(bitcast<i32>(fraction - (quarter << 30u))) * (6.283185307179586 / 4294967296.0);
    let s = rest * rest;
    let sine = rest * (1.0 + s * (-1.0 / 6.0 + s * (1.0 / 120.0 + s * (-1.0 / 5040.0 + s * (1.0 / 362880.0)))));
    let cosine = 1.0 + s * (-0.5 + s * (1.0 / 24.0 + s * (-1.0 / 720.0 + s * (1.0 / 40320.0))));
    switch quarter & 3u {
        case 1u: {
            return vec2<f32>(-sine, cosine);
        }
        case 2u: {
            return vec2<f32>(-cosine, -sine);
        }
        case 3u: {
            return vec2<f32>(sine, -cosine);
        }
        default: {
            return vec2<f32>(cosine, sine);
        }
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let pairs = p.rotary_dim / 2u;
    let i = linear_group(at) * WORKGROUP + at.lane;
    let pair = i % pairs;
    let head = (i / pairs) % p.n_heads;
    let token = i / (pairs * p.n_heads);
    if token >= p.n_tokens {
        return;
    }

    // angle
    let low = turns[p.turns_at + 2u * pair];
    let high = turns[p.turns_at + 2u * pair + 1u];
    let position = p.position_start + token;
    let turn = cos_sin(position * high + multiply_high(position, low)) * p.attention_factor;

    // rotate
    let base = p.x_at + token * p.row_stride + head * p.head_dim;
    let first = base + select(pair, 2u * pair, p.interleaved != 0u);
    let second = select(first + pairs, first + 1u, p.interleaved != 0u);
    let a = f32(x[first]);
    let b = f32(x[second]);
    x[first] = to_out(a * turn.x - b * turn.y);
    x[second] = to_out(a * turn.y + b * turn.x);
}
