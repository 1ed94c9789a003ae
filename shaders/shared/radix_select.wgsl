// The key of rank `count` among `len` keys, without sorting: three histograms of 11, 11 and 10 bits, high digits first.
//
// The kernel defines `key_at(i) -> u32`, the i-th key; `sortable` makes one of an f32.
const BINS: u32 = 2048u;
const BINS_EACH: u32 = BINS / WORKGROUP;

var<workgroup> s_bins: array<atomic<u32>, BINS>;
var<workgroup> s_digit: vec2<u32>;

// u32 in the order of f32 values, above 0: NaN below -inf, both zeros equal. By bits, because compilers may take
// comparisons of floats for free of NaN.
fn sortable(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return 1u;
    }
    return select(0x80000000u + magnitude, 0x80000000u - magnitude, (bits >> 31u) != 0u);
}

// Which keys are the `count` largest: all above `key`, and the first `equal` of those that equal it.
struct Threshold {
    key: u32,
    equal: u32,
}

// 1 <= count <= len.
fn select_threshold(at: Invocation, len: u32, count: u32) -> Threshold {
    let lane = scan_lane(at);
    var result = Threshold(0u, count);
    var known = 0u;
    for (var round = 0u; round < 3u; round++) {
        // Shifts 21, 10, 0.
        let shift = select(21u - 11u * round, 0u, round == 2u);
        let digits = select(2047u, 1023u, round == 2u);

        // histogram of this digit among the keys that share the digits before
        workgroupBarrier();
        for (var b = lane; b < BINS; b += WORKGROUP) {
            atomicStore(&s_bins[b], 0u);
        }
        workgroupBarrier();
        for (var i = lane; i < len; i += 4u * WORKGROUP) {
            // Four loads in flight: the groups are too few to hide a load's way otherwise.
//@for j 0 4
            let key${j} = key_at(min(i + ${j}u * WORKGROUP, len - 1u));
//@end
//@for j 0 4
            if (key${j} & known) == result.key && i + ${j}u * WORKGROUP < len {
                atomicAdd(&s_bins[(key${j} >> shift) & digits], 1u);
            }
//@end
        }
        workgroupBarrier();

        // the bin that holds the rank, counted from the highest: each invocation has BINS_EACH neighbouring bins
        let high = BINS - 1u - lane * BINS_EACH;
        var mine = 0u;
        for (var b = 0u; b < BINS_EACH; b++) {
            mine += atomicLoad(&s_bins[high - b]);
        }
        var above = scan_exclusive(at, mine).x;
        if above < result.equal && result.equal <= above + mine {
            for (var b = 0u; b < BINS_EACH; b++) {
                let here = atomicLoad(&s_bins[high - b]);
                if result.equal <= above + here {
                    s_digit = vec2<u32>(high - b, above);
                    break;
                }
                above += here;
            }
        }
        let digit = workgroupUniformLoad(&s_digit);
        result.key |= digit.x << shift;
        result.equal -= digit.y;
        known |= digits << shift;
    }
    return result;
}
