// A group of 128 as 16 columns x 8 rows of invocations, and reductions along the 16, by shuffles: for subgroups of 16 or
// more. Each invocation brings ROWS values, one for each of its rows, and gets the results for them.

// Column and row of an invocation, from its subgroup: that lanes follow the invocation index is not promised.
fn tile_place(at: Invocation) -> vec2<u32> {
    return vec2<u32>(at.subgroup_lane % 16u, (at.subgroup * at.subgroup_size + at.subgroup_lane) / 16u);
}

fn row_max(at: Invocation, values: array<f32, ROWS>) -> array<f32, ROWS> {
    var result: array<f32, ROWS>;
//@for i 0 ROWS
    var x${i} = values[${i}];
//@for s 0 4
    x${i} = max(x${i}, subgroupShuffleXor(x${i}, 1u << ${s}u));
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
    x${i} += subgroupShuffleXor(x${i}, 1u << ${s}u);
//@end
    result[${i}] = x${i};
//@end
    return result;
}
