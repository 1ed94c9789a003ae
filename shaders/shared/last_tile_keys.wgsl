// Scores of 16 keys against 64 queries for score_last_queries on cooperative matrices of known layout (coop_rows.wgsl,
// coop_words.wgsl): keys are the rows. A subgroup has keys of its own, each of which is read by the lane that multiplies it;
// queries lie in workgroup memory as lanes hold them of right operands.
@group(0) @binding(1) var<storage, read> q: array<vec4<u32>>; // f16 [heads, last_q, head_dim] under strides
@group(0) @binding(2) var<storage, read> k: array<vec4<u32>>; // f16 [kv_heads, kv_len, head_dim] under strides

alias FragmentA = coop_mat16x16<f16, A>;
alias FragmentB = coop_mat16x16<f16, B>;
alias FragmentC = coop_mat16x16<f32, C>;

const EIGHTS: u32 = HEAD_DIM / 8u;
const NG: u32 = HEAD_DIM / 32u;

var<workgroup> s_queries: array<vec4<u32>, 64u * EIGHTS>;

// Eights of this lane's two keys.
//@for g 0 HEAD_DIM/32
var<private> low${g}: vec4<u32>;
var<private> high${g}: vec4<u32>;
//@end

// Queries past the last are zero, and so are elements past the head's: keys repeat theirs there.
fn stage_queries(thread: u32, base: u32) {
    for (var x = thread; x < 64u * EIGHTS; x += 128u) {
        let row = x / (16u * EIGHTS) * 16u + x / 32u % 2u * 8u + x % 32u / 4u;
        let d = x / 64u % NG * 4u + x % 4u;
        var value = vec4<u32>();
        if row < p.last_q && d < p.head_dim / 8u {
            value = q[base + row * (p.q_row_stride / 8u) + d];
        }
        s_queries[x] = value;
    }
}

// Reads keys first + lane / 4 and first + lane / 4 + 8; keys from `end` on repeat the one before it.
fn fetch_keys(lane: u32, base: u32, first: u32, end: u32) {
    let low = base + min(first + lane / 4u, end - 1u) * (p.k_row_stride / 8u);
    let high = base + min(first + lane / 4u + 8u, end - 1u) * (p.k_row_stride / 8u);
//@for g 0 HEAD_DIM/32
    low${g} = k[low + min(${4*g}u + lane % 4u, p.head_dim / 8u - 1u)];
    high${g} = k[high + min(${4*g}u + lane % 4u, p.head_dim / 8u - 1u)];
//@end
}

// Scores of those two keys: elements 2 b and 2 b + 1 are the first's and the second's with queries 16 b + query_of(lane).
fn score_keys(lane: u32) -> array<vec4<f32>, 8> {
//@for b 0 4
    var s${b} = FragmentC();
//@end
//@for g 0 HEAD_DIM/32
    {
        let first = left_of(vec4<u32>(low${g}.xy, high${g}.xy));
        let second = left_of(vec4<u32>(low${g}.zw, high${g}.zw));
//@for b 0 4
        let a${b} = s_queries[${64*(b*HEAD_DIM/32+g)}u + lane];
        let b${b} = s_queries[${64*(b*HEAD_DIM/32+g)+32}u + lane];
        s${b} = coopMultiplyAdd(first, right_of(vec4<u32>(a${b}.xy, b${b}.xy)), s${b});
//@end
//@for b 0 4
        s${b} = coopMultiplyAdd(second, right_of(vec4<u32>(a${b}.zw, b${b}.zw)), s${b});
//@end
    }
//@end
    var result: array<vec4<f32>, 8>;
//@for b 0 4
    {
        let e = elements_of(s${b});
        result[${2*b}] = e.low;
        result[${2*b+1}] = e.high;
    }
//@end
    return result;
}

// Of 16 queries those of a vector's elements.
fn query_of(lane: u32) -> vec4<u32> {
    return vec4<u32>(2u * (lane % 4u)) + vec4<u32>(0u, 1u, 8u, 9u);
}
