// Sums over a workgroup of WORKGROUP lanes: within subgroups, then over the subgroups, in their order everywhere.
var<workgroup> partial_sums: array<f32, WORKGROUP>;

fn reduce_sum(x: f32, at: Invocation) -> f32 {
    let mine = subgroupAdd(x);
    if at.subgroup_lane == 0u {
        partial_sums[at.subgroup] = mine;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < at.subgroups; i++) {
        sum += partial_sums[i];
    }
    workgroupBarrier();
    return sum;
}
