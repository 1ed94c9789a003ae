// Columns moved into the keys [key_start, key_end), for a launch that binds no others: those outside are masked there, but a
// tile reads all of its 64.
struct Params {
    count: u32,
    key_start: u32,
    key_end: u32,
    // where the slices begin in their bindings, in elements
    columns_at: u32,
    clamped_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> columns: array<u32>; // [columns]
@group(0) @binding(1) var<storage, read_write> clamped: array<u32>; // [columns]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let i = linear_group(at) * WORKGROUP + at.lane;
    if i < p.count {
        clamped[p.clamped_at + i] = clamp(columns[p.columns_at + i], p.key_start, p.key_end - 1u);
    }
}
