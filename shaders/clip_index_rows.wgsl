// The ranges of each row block cut to [key_start, key_end). They ascend, so those that remain are neighbours, and keep their
// places; row_ranges tells the first and how many.
//
// One invocation a row block of a head.
struct Params {
    n_heads: u32,
    row_blocks: u32,
    column_tiles: u32,
    key_start: u32,
    key_end: u32,
    // where the slices begin in their bindings, in elements
    whole_row_ranges_at: u32,
    whole_ranges_at: u32,
    row_ranges_at: u32,
    ranges_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> whole_row_ranges: array<u32>; // [n_heads, row_blocks, 2]
@group(0) @binding(1) var<storage, read> whole_ranges: array<u32>; // [range_budget + n_heads * row_blocks, 2]
@group(0) @binding(2) var<storage, read_write> row_ranges: array<u32>; // [n_heads, row_blocks, 2]
@group(0) @binding(3) var<storage, read_write> ranges: array<u32>; // [range_budget + n_heads * row_blocks, 2]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let row = linear_group(at) * WORKGROUP + at.lane;
    if row >= p.n_heads * p.row_blocks {
        return;
    }
    let first = whole_row_ranges[p.whole_row_ranges_at + 2u * row];
    let count = whole_row_ranges[p.whole_row_ranges_at + 2u * row + 1u];
    var left = 0u;
    var kept = 0u;
    for (var i = first; i < first + count; i++) {
        let start = max(whole_ranges[p.whole_ranges_at + 2u * i], p.key_start);
        let end = min(whole_ranges[p.whole_ranges_at + 2u * i + 1u], p.key_end);
        if start < end {
            left = select(left, i - first, kept == 0u);
            kept++;
            ranges[p.ranges_at + 2u * i] = start;
            ranges[p.ranges_at + 2u * i + 1u] = end;
        }
    }
    row_ranges[p.row_ranges_at + 2u * row] = first + left;
    row_ranges[p.row_ranges_at + 2u * row + 1u] = kept;
}
