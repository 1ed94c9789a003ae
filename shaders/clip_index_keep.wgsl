// The keep masks of each row block cut to the columns within [key_start, key_end).
//
// One invocation a row block of a head and tile of 64 columns.
struct Params {
    n_heads: u32,
    row_blocks: u32,
    column_tiles: u32,
    key_start: u32,
    key_end: u32,
    // where the slices begin in their bindings, in elements
    columns_at: u32,
    whole_keep_at: u32,
    keep_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> columns: array<u32>; // [n_heads, 64 * column_tiles], ascending
@group(0) @binding(1) var<storage, read> whole_keep: array<u32>; // [n_heads, row_blocks, column_tiles, 2]
@group(0) @binding(2) var<storage, read_write> keep: array<u32>; // [n_heads, row_blocks, column_tiles, 2]

@compute @workgroup_size(WORKGROUP)
fn main(at: Invocation) {
    let i = linear_group(at) * WORKGROUP + at.lane;
    if i >= p.n_heads * p.row_blocks * p.column_tiles {
        return;
    }
    let tile = i / (p.row_blocks * p.column_tiles) * p.column_tiles + i % p.column_tiles;
    for (var word = 0u; word < 2u; word++) {
        let kept = whole_keep[p.whole_keep_at + 2u * i + word];
        var inside = 0u;
        if kept != 0u {
            for (var bit = 0u; bit < 32u; bit++) {
                let column = columns[p.columns_at + 64u * tile + 32u * word + bit];
                if column >= p.key_start && column < p.key_end {
                    inside |= 1u << bit;
                }
            }
        }
        keep[p.keep_at + 2u * i + word] = kept & inside;
    }
}
