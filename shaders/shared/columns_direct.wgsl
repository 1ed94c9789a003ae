// Keys and values of single columns, read where they lie. KV_LANES elements of a head come at a time.
//
// Copying them into their order first, once a head, was tried on an H100 and lost: 16 heads, 2048 queries, 597 columns took
// 0.137 ms so, 0.212 ms from a copy (w8r1k64); with w4r1k32 0.166 and 0.197 ms.
@group(0) @binding(5) var<storage, read> columns: array<u32>; // [heads, 64 * column_tiles]

// The key in place `i` of the tile.
fn key_at(i: u32) -> u32 {
    if is_columns {
        return min(columns[tile_column + i], p.kv_len - 1u);
    }
    return range_key(i);
}

fn k_unit(base: u32, i: u32, d: u32) -> KvUnit {
    return k[base + key_at(i) * (p.k_row_stride / KV_LANES) + d];
}

fn v_unit(base: u32, i: u32, d: u32) -> KvUnit {
    return v[base + key_at(i) * (p.v_row_stride / KV_LANES) + d];
}
