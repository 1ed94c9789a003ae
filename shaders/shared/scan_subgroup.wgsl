// Exclusive prefix sums over a group of WORKGROUP invocations, by subgroups of any size.
//
// Lanes of the group are numbered by `scan_lane`, subgroup after subgroup: that a subgroup holds neighbouring invocation
// indices is not promised. The smallest subgroup has SUBGROUP_MIN lanes.
var<workgroup> s_scan: array<u32, WORKGROUP / SUBGROUP_MIN>;

// Sum of `value` over the invocations before this one in the order of `scan_lane`, and over all.
fn scan_exclusive(at: Invocation, value: u32) -> vec2<u32> {
    let before = subgroupExclusiveAdd(value);
    // Before: readers of the last scan are done.
    workgroupBarrier();
    if at.subgroup_lane == at.subgroup_size - 1u {
        s_scan[at.subgroup] = before + value;
    }
    workgroupBarrier();
    var sums = vec2<u32>(before, 0u);
    for (var s = 0u; s < at.subgroups; s++) {
        let sum = s_scan[s];
        sums += vec2<u32>(select(0u, sum, s < at.subgroup), sum);
    }
    return sums;
}

// An invocation's place in the order of the sums.
fn scan_lane(at: Invocation) -> u32 {
    return at.subgroup * at.subgroup_size + at.subgroup_lane;
}
