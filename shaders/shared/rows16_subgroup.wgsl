// A group of 128 as 16 columns x 8 rows of invocations, and reductions along the 16, by shuffles: for subgroups of 16 or
// more. Each invocation brings ROWS values, one for each of its rows, and gets the results for them. ABREAST rows take turns,
// one lane each: 2 where 32 lanes are sure to be together. Neighbours then read the same column from workgroup memory, which
// costs half the banks (H100: 1.5 % of the attention).
const SPAN: u32 = 16u * ABREAST;

// Column and row of an invocation, from its subgroup: that lanes follow the invocation index is not promised. From the lane
// first: compilers know its bound.
fn tile_place(at: Invocation) -> vec2<u32> {
    let row = at.subgroup * (at.subgroup_size / SPAN) + at.subgroup_lane / SPAN;
    return vec2<u32>(at.subgroup_lane % SPAN / ABREAST, row * ABREAST + at.subgroup_lane % ABREAST);
}

fn row_max(at: Invocation, values: array<f32, ROWS>) -> array<f32, ROWS> {
    var result: array<f32, ROWS>;
//@for i 0 ROWS
    var x${i} = values[${i}];
//@for s 0 4
    x${i} = max(x${i}, subgroupShuffleXor(x${i}, ABREAST << ${s}u));
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
    x${i} += subgroupShuffleXor(x${i}, ABREAST << ${s}u);
//@end
    result[${i}] = x${i};
//@end
    return result;
}
