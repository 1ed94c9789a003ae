// A team of lanes that works on one thing together, without subgroups: the whole workgroup (a power of two).
var<workgroup> team_partial: array<vec4<f32>, WORKGROUP>;

fn team(at: Invocation) -> u32 {
    return 0u;
}

fn team_lane(at: Invocation) -> u32 {
    return at.lane;
}

fn team_size(at: Invocation) -> u32 {
    return WORKGROUP;
}

fn team_sum(x: vec4<f32>, at: Invocation) -> vec4<f32> {
    team_partial[at.lane] = x;
    workgroupBarrier();
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        if at.lane < width {
            team_partial[at.lane] += team_partial[at.lane + width];
        }
        workgroupBarrier();
    }
    return team_partial[0];
}
