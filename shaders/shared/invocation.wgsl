// What an invocation knows of itself, without subgroups. The subgroup twin has more members; kernels that use neither
// reductions nor subgroups link this one in every tier.
struct Invocation {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
}

// The group's number in a grid that was folded into y because x ends at 65535.
fn linear_group(at: Invocation) -> u32 {
    return at.group.y * at.groups.x + at.group.x;
}
