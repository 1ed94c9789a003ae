// A group of 128 as 16 columns x 8 rows of invocations, and reductions along the 16, through workgroup memory.
// Each invocation brings ROWS values, one for each of its rows, and gets the results for them.
var<workgroup> s_rows16: array<f32, 128u * ROWS>;

// Column and row of an invocation.
fn tile_place(at: Invocation) -> vec2<u32> {
    return vec2<u32>(at.lane % 16u, at.lane / 16u);
}

fn share_rows(at: Invocation, values: array<f32, ROWS>) {
    // Before: readers of the last reduction are done. The 16 of a row block write [ROWS, 16] floats.
    workgroupBarrier();
    let base = (at.lane / 16u) * 16u * ROWS + at.lane % 16u;
//@for i 0 ROWS
    s_rows16[base + ${16*i}u] = values[${i}];
//@end
    workgroupBarrier();
}

fn row_max(at: Invocation, values: array<f32, ROWS>) -> array<f32, ROWS> {
    share_rows(at, values);
    var result = values;
    let base = (at.lane / 16u) * 16u * ROWS;
//@for i 0 ROWS
    for (var x = 0u; x < 16u; x++) {
        result[${i}] = max(result[${i}], s_rows16[base + ${16*i}u + x]);
    }
//@end
    return result;
}

fn row_sum(at: Invocation, values: array<f32, ROWS>) -> array<f32, ROWS> {
    share_rows(at, values);
    var result: array<f32, ROWS>;
    let base = (at.lane / 16u) * 16u * ROWS;
//@for i 0 ROWS
    result[${i}] = 0.0;
    for (var x = 0u; x < 16u; x++) {
        result[${i}] += s_rows16[base + ${16*i}u + x];
    }
//@end
    return result;
}
