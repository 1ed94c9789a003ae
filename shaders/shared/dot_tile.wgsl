// 64 x 64 dot products of HEAD_DIM elements by a group of 128, in f32: 8 x 4 for each invocation.
//
// The kernel defines `load_a(row, d)` and `load_b(column, d)`, the d-th vec4 of a row and of a column of the tile, zero
// past the true head_dim. STEP vec4s of both are in workgroup memory at a time, so that any HEAD_DIM fits in 10 KiB.
const STEP: u32 = 4u;
const STEP_PITCH: u32 = STEP + 1u;

var<workgroup> s_a: array<vec4<f32>, 64u * STEP_PITCH>;
var<workgroup> s_b: array<vec4<f32>, 64u * STEP_PITCH>;

// Rows 8 * (lane / 16) + i against columns 4 * (lane % 16) + j: element j of the i-th result.
fn dot_tile(lane: u32) -> array<vec4<f32>, 8> {
    let tx = lane % 16u;
    let ty = lane / 16u;
//@for i 0 8
    var s${i} = vec4<f32>();
//@end
    for (var first = 0u; first < HEAD_DIM / 4u; first += STEP) {
        workgroupBarrier();
        for (var x = lane; x < 64u * STEP; x += 128u) {
            let slot = x / STEP;
            let d = x % STEP;
            s_a[slot * STEP_PITCH + d] = load_a(slot, first + d);
            // Neighbouring columns of one invocation lie 16 slots apart: its reads then hit different banks.
            s_b[slot * STEP_PITCH + d] = load_b((slot % 16u) * 4u + slot / 16u, first + d);
        }
        workgroupBarrier();
        for (var d = 0u; d < STEP; d++) {
//@for j 0 4
            let b${j} = s_b[(tx + ${16*j}u) * STEP_PITCH + d];
//@end
//@for i 0 8
            let a${i} = s_a[(ty * 8u + ${i}u) * STEP_PITCH + d];
            s${i} += vec4<f32>(dot(a${i}, b0), dot(a${i}, b1), dot(a${i}, b2), dot(a${i}, b3));
//@end
        }
    }
    var result: array<vec4<f32>, 8>;
//@for i 0 8
    result[${i}] = s${i};
//@end
    return result;
}
