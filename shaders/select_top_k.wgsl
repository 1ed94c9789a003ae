// indices[r] = the counts[r] largest scores of row r, ascending, padded with 0xffffffff. Ties go to the lower index; the
// first `forced` indices come before all others.
//
// One group a row: a radix select finds the smallest chosen key, then one walk over the row, PER_LANE scores an
// invocation at a time, places what is above it and the first of those equal, by prefix sums. At 131072 scores a row this
// reads 2 MiB a group, four times over.
struct Params {
    rows: u32,
    len: u32,
    capacity: u32,
    forced: u32,
    // where the slices begin in their bindings, in elements
    scores_at: u32,
    counts_at: u32,
    indices_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> scores: array<f32>; // [rows, len]
@group(0) @binding(1) var<storage, read> counts: array<u32>; // [rows]
@group(0) @binding(2) var<storage, read_write> indices: array<u32>; // [rows, capacity]

const PER_LANE: u32 = 4u;

var<private> row_base: u32;

fn key_at(i: u32) -> u32 {
    if i < p.forced {
        return 0xffffffffu;
    }
    return sortable(scores[row_base + i]);
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let row = linear_group(at);
    if row >= p.rows {
        return;
    }
    let count = min(counts[p.counts_at + row], min(p.len, p.capacity));
    let lane = scan_lane(at);
    let out_base = p.indices_at + row * p.capacity;
    for (var i = count + lane; i < p.capacity; i += WORKGROUP) {
        indices[out_base + i] = 0xffffffffu;
    }
    if count == 0u {
        return;
    }
    row_base = p.scores_at + row * p.len;
    let threshold = select_threshold(at, p.len, count);

    // above and equal so far
    var before = vec2<u32>();
    for (var block = 0u; block < p.len; block += PER_LANE * WORKGROUP) {
        let first = block + PER_LANE * lane;
        var keys = vec4<u32>();
        for (var j = 0u; j < PER_LANE; j++) {
            if first + j < p.len {
                keys[j] = key_at(first + j);
            }
        }
        // The 0 of places past the end passes no threshold: keys are above 0.
        let above = vec4<u32>(keys > vec4<u32>(threshold.key));
        let equal = vec4<u32>(keys == vec4<u32>(threshold.key));
        // Both counts of a block are below 2^16: one scan does for both.
        let mine = above + (equal << vec4<u32>(16u));
        let sums = scan_exclusive(at, mine.x + mine.y + mine.z + mine.w);
        var place = before + vec2<u32>(sums.x & 0xffffu, sums.x >> 16u);
        for (var j = 0u; j < PER_LANE; j++) {
            if above[j] != 0u || (equal[j] != 0u && place.y < threshold.equal) {
                indices[out_base + place.x + min(place.y, threshold.equal)] = first + j;
            }
            place += vec2<u32>(above[j], equal[j]);
        }
        before += vec2<u32>(sums.y & 0xffffu, sums.y >> 16u);
    }
}
