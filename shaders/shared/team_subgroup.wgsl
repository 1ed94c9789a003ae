// A team of lanes that works on one thing together: a subgroup. Where subgroups come out smaller than the TEAMS that
// the host counted on, those with a higher number idle.
fn team(at: Invocation) -> u32 {
    return at.subgroup;
}

fn team_lane(at: Invocation) -> u32 {
    return at.subgroup_lane;
}

fn team_size(at: Invocation) -> u32 {
    return at.subgroup_size;
}

fn team_sum(x: vec4<f32>, at: Invocation) -> vec4<f32> {
    return subgroupAdd(x);
}
