// Keys and values of single columns from a copy in their order (gather_columns.wgsl): neighbours of a tile are neighbours
// in memory, and nothing waits for a column's number. KV_LANES elements of a head come at a time.
@group(0) @binding(5) var<storage, read> columns: array<KvUnit>; // [heads, 64 * column_tiles, 2 (key, value), head_dim]

fn k_unit(base: u32, i: u32, d: u32) -> KvUnit {
    if is_columns {
        return columns[(tile_column + i) * 2u * (p.head_dim / KV_LANES) + d];
    }
    return k[base + range_key(i) * (p.k_row_stride / KV_LANES) + d];
}

fn v_unit(base: u32, i: u32, d: u32) -> KvUnit {
    if is_columns {
        return columns[((tile_column + i) * 2u + 1u) * (p.head_dim / KV_LANES) + d];
    }
    return v[base + range_key(i) * (p.v_row_stride / KV_LANES) + d];
}
