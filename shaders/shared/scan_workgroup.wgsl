// Exclusive prefix sums over a group of WORKGROUP invocations, through workgroup memory.
var<workgroup> s_scan: array<u32, 2u * WORKGROUP>;

// Sum of `value` over the lanes before this one, and over all.
fn scan_exclusive(at: Invocation, value: u32) -> vec2<u32> {
    // Before: readers of the last scan are done. Two halves in turn save a second barrier a step.
    workgroupBarrier();
    var half = 0u;
    s_scan[at.lane] = value;
    workgroupBarrier();
    for (var step = 1u; step < WORKGROUP; step *= 2u) {
        let place = half * WORKGROUP + at.lane;
        var sum = s_scan[place];
        if at.lane >= step {
            sum += s_scan[place - step];
        }
        half = 1u - half;
        s_scan[half * WORKGROUP + at.lane] = sum;
        workgroupBarrier();
    }
    let inclusive = s_scan[half * WORKGROUP + at.lane];
    return vec2<u32>(inclusive - value, s_scan[half * WORKGROUP + WORKGROUP - 1u]);
}

// An invocation's place in the order of the sums.
fn scan_lane(at: Invocation) -> u32 {
    return at.lane;
}
