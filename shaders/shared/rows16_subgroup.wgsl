// A group of 128 as 16 columns x 8 rows of invocations, and reductions along the 16, by shuffles: for subgroups of 16 or
// more. Each invocation brings ROWS values, one for each of its rows, and gets the results for them.

// Rows that 32 lanes take in turns, one lane each: what neighbours read from workgroup memory for a column is then the same,
// and a row of 16 columns costs half the banks (H100: 1.5 % of the attention).
fn rows_abreast(at: Invocation) -> u32 {
    return min(at.subgroup_size, 32u) / 16u;
}

// Column and row of an invocation, from its subgroup: that lanes follow the invocation index is not promised.
fn tile_place(at: Invocation) -> vec2<u32> {
    let i = at.subgroup * at.subgroup_size + at.subgroup_lane;
    let abreast = rows_abreast(at);
    return vec2<u32>(i % (16u * abreast) / abreast, i / (16u * abreast) * abreast + i % abreast);
}

fn row_max(at: Invocation, values: array<f32, ROWS>) -> array<f32, ROWS> {
    var result: array<f32, ROWS>;
//@for i 0 ROWS
    var x${i} = values[${i}];
//@for s 0 4
    x${i} = max(x${i}, subgroupShuffleXor(x${i}, rows_abreast(at) << ${s}u));
//@end
    result[${i}] = x${i};
//@end
    return result;
}

fn row_sum(at: Invocation, values: array<f32, ROWS>) -> array<f32, ROWS> {
    var result: array<f32, ROWS>;
//@for i 0 ROWS
    var x${i} = values[${i}];
//@for s 0 4
    x${i} += subgroupShuffleXor(x${i}, rows_abreast(at) << ${s}u);
//@end
    result[${i}] = x${i};
//@end
    return result;
}
