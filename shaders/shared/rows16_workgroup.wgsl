// A group of 128 as 16 columns x 8 rows of invocations, and reductions along the 16, through the workgroup memory of the
// values, which is free at that time: memory of its own would keep a second group from a multiprocessor (H100: a third
// of the speed). Each invocation brings ROWS values, one for each of its rows, and gets the results for them.

// Column and row of an invocation: two rows take turns, as in `rows16_subgroup.wgsl`.
fn tile_place(at: Invocation) -> vec2<u32> {
    return vec2<u32>(at.lane % 32u / 2u, at.lane / 32u * 2u + at.lane % 2u);
}

// Puts down the values of all: those of a row's 16 invocations, ROWS of each, follow each other.
fn share_rows(at: Invocation, values: array<f32, ROWS>) {
    let place = tile_place(at);
//@for g 0 ROWS/4
    s_v[(place.y * 16u + place.x) * ${ROWS/4}u + ${g}u] = vec4<f32>(values[${4*g}], values[${4*g+1}], values[${4*g+2}], values[${4*g+3}]);
//@end
    workgroupBarrier();
}

fn row_max(at: Invocation, values: array<f32, ROWS>) -> array<f32, ROWS> {
    share_rows(at, values);
    let base = tile_place(at).y * ${4*ROWS}u;
//@for g 0 ROWS/4
    var x${g} = s_v[base + ${g}u];
//@end
    for (var x = 1u; x < 16u; x++) {
//@for g 0 ROWS/4
        x${g} = max(x${g}, s_v[base + x * ${ROWS/4}u + ${g}u]);
//@end
    }
    // Values come next.
    workgroupBarrier();
    var result: array<f32, ROWS>;
//@for i 0 ROWS
    result[${i}] = x${i/4}[${i%4}];
//@end
    return result;
}

fn row_sum(at: Invocation, values: array<f32, ROWS>) -> array<f32, ROWS> {
    share_rows(at, values);
    let base = tile_place(at).y * ${4*ROWS}u;
//@for g 0 ROWS/4
    var x${g} = vec4<f32>();
//@end
    for (var x = 0u; x < 16u; x++) {
//@for g 0 ROWS/4
        x${g} += s_v[base + x * ${ROWS/4}u + ${g}u];
//@end
    }
    var result: array<f32, ROWS>;
//@for i 0 ROWS
    result[${i}] = x${i/4}[${i%4}];
//@end
    return result;
}
