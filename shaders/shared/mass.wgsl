// Sums of weights by their size (backend/cpu/mass.rs): 64 bins to a factor of two, down to 2^-32, in whole numbers, so that
// the order of addition does not matter.
const BINS: u32 = 2048u;
const BINS_EACH: u32 = BINS / WORKGROUP;
// What a weight of 1 counts.
const ONE: f32 = 1073741824.0;

var<workgroup> s_mass: array<atomic<u32>, BINS>;
var<workgroup> s_taken: u32;
var<workgroup> s_reduce: array<f32, WORKGROUP>;

fn bin_of(weight: f32) -> u32 {
    return u32(clamp(8128 - i32(bitcast<u32>(weight) >> 17u), 0, i32(BINS) - 1));
}

fn clear_mass(at: Invocation) {
    for (var b = at.lane; b < BINS; b += WORKGROUP) {
        atomicStore(&s_mass[b], 0u);
    }
    workgroupBarrier();
}

fn add_mass(weight: f32, one: f32) {
    atomicAdd(&s_mass[bin_of(weight)], u32(weight * one + 0.5));
}

// How many bins, from the largest weights on, hold `part` of the sum of `credit` and all bins, `credit` counted first.
fn bins_taken(at: Invocation, part: f32, credit: u32) -> u32 {
    workgroupBarrier();
    let lane = scan_lane(at);
    var mine = 0u;
    for (var b = 0u; b < BINS_EACH; b++) {
        mine += atomicLoad(&s_mass[lane * BINS_EACH + b]);
    }
    let sums = scan_exclusive(at, mine);
    let wanted = u32(f32(sums.y + credit) * part);
    let need = wanted - min(wanted, credit);
    if lane == 0u {
        s_taken = select(BINS, 0u, need == 0u);
    }
    workgroupBarrier();
    if need > 0u && sums.x < need && need <= sums.x + mine {
        var sum = sums.x;
        for (var b = 0u; b < BINS_EACH; b++) {
            sum += atomicLoad(&s_mass[lane * BINS_EACH + b]);
            if sum >= need {
                s_taken = lane * BINS_EACH + b + 1u;
                break;
            }
        }
    }
    return workgroupUniformLoad(&s_taken);
}

// The largest of, and the sum over, the values of all invocations.
fn group_max(at: Invocation, x: f32) -> f32 {
    workgroupBarrier();
    s_reduce[at.lane] = x;
    workgroupBarrier();
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        if at.lane < width {
            s_reduce[at.lane] = max(s_reduce[at.lane], s_reduce[at.lane + width]);
        }
        workgroupBarrier();
    }
    return s_reduce[0];
}

fn group_sum(at: Invocation, x: f32) -> f32 {
    workgroupBarrier();
    s_reduce[at.lane] = x;
    workgroupBarrier();
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        if at.lane < width {
            s_reduce[at.lane] += s_reduce[at.lane + width];
        }
        workgroupBarrier();
    }
    return s_reduce[0];
}
