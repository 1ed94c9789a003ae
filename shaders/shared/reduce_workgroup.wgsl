// Sums over a workgroup of WORKGROUP lanes (a power of two), without subgroups: a tree in workgroup memory.
var<workgroup> partial_sums: array<f32, WORKGROUP>;

fn reduce_sum(x: f32, at: Invocation) -> f32 {
    partial_sums[at.lane] = x;
    workgroupBarrier();
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        if at.lane < width {
            partial_sums[at.lane] += partial_sums[at.lane + width];
        }
        workgroupBarrier();
    }
    let sum = partial_sums[0];
    workgroupBarrier();
    return sum;
}
