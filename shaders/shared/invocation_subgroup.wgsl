// What an invocation knows of itself, with subgroups.
struct Invocation {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
    @builtin(subgroup_size) subgroup_size: u32,
}

// The group's number in a grid that was folded into y because x ends at 65535.
fn linear_group(at: Invocation) -> u32 {
    return at.group.y * at.groups.x + at.group.x;
}
