// Which tile (column, row) of an output of `tiles` (columns, rows) a group computes. Eight tile rows go together, so that
// the groups running at a time read a narrow band of w and eight bands of x, which the cache holds.
fn tile_of(group: u32, tiles: vec2<u32>) -> vec2<u32> {
    let band = group / (8u * tiles.x);
    let rows = min(8u, tiles.y - 8u * band);
    let within = group - band * 8u * tiles.x;
    return vec2<u32>(within / rows, 8u * band + within % rows);
}
