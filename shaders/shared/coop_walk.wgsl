// What the attention kernels on cooperative matrices share: parameters and bindings, the walk over a row block's tiles,
// masks. How tiles come from storage is in coop_stage.wgsl and coop_stage_words.wgsl, single columns in columns_direct.wgsl.
//
// One group of SUBGROUPS x SG invocations: one head and BLOCKS row blocks of 64 queries; TEAM subgroups share RM x CM of the
// rows. Row blocks of a group walk their ranges together: a tile of BC keys begins where the first of them needs one, and
// serves all that begin within it. Neighbours share most of their tiles, because their diagonals are 64 keys apart, as
// their queries are. After the ranges come the tiles of single columns that any of the row blocks keeps.
//
// Why no index needs a check: see attention.wgsl, whose bounds these are, with 16 bytes of a head for 8. The second row
// block of a group may not exist; it has no ranges then, and its rows are neither read beyond q_len - 1 nor written.
struct Params {
    // heads of this dispatch; query heads per KV head, and the first head's place among those of its KV head
    heads: u32,
    group_size: u32,
    head_in_group: u32,
    head_dim: u32,
    q_len: u32,
    kv_len: u32,
    q_start: u32,
    // first query of this dispatch, a multiple of 64 * BLOCKS, and how many groups of row blocks it has
    row_first: u32,
    row_tiles: u32,
    row_blocks: u32,
    column_tiles: u32,
    scale: f32,
    write_lse: u32,
    q_row_stride: u32,
    q_head_stride: u32,
    k_row_stride: u32,
    k_head_stride: u32,
    v_row_stride: u32,
    v_head_stride: u32,
    out_row_stride: u32,
    out_head_stride: u32,
    // a tile is skipped whose scores lie so far below the running maxima (natural logarithm); the least f32: never
    skip_below: f32,
    // where the slices begin in their bindings, in elements, those of vec4s in vec4s
    q_at: u32,
    k_at: u32,
    v_at: u32,
    row_ranges_at: u32,
    ranges_at: u32,
    columns_at: u32,
    keep_at: u32,
    window_at: u32,
    out_at: u32,
    lse_at: u32,
}
var<immediate> p: Params;

@group(0) @binding(3) var<storage, read> row_ranges: array<u32>; // [heads, row_blocks, 2]
@group(0) @binding(4) var<storage, read> ranges: array<u32>; // [_, 2]
@group(0) @binding(6) var<storage, read> keep: array<u32>; // [heads, row_blocks, 2 * column_tiles]
@group(0) @binding(7) var<storage, read> window: array<u32>; // [heads, 2]
@group(0) @binding(8) var<storage, read_write> out: array<Out>; // [heads, rows, head_dim] under strides
@group(0) @binding(9) var<storage, read_write> lse: array<f32>; // [heads, q_len]

alias FragmentA = coop_mat${CM}x${CM}<f16, A>;
alias FragmentB = coop_mat${CM}x${CM}<f16, B>;
alias FragmentC = coop_mat${CM}x${CM}<f32, C>;

const THREADS: u32 = SG * SUBGROUPS;
// Rows of a team, and of the group.
const TEAM_ROWS: u32 = RM * CM;
const ROWS: u32 = SUBGROUPS / TEAM * TEAM_ROWS;
// Units of 16 bytes in a row of q, k and v.
const EIGHTS: u32 = HEAD_DIM / 8u;
const GROWTH: f32 = 8.0;
const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// Masked scores lie so far below the lowest maximum that their exponential is zero before a row has met any key.
const MASKED: f32 = -3e38;
const LOWEST: f32 = -1e30;
const NONE: u32 = 0xffffffffu;

// The log-sum-exp of no key. A variable, because WGSL has no infinite constants.
var<private> negative_infinity: u32 = 0xff800000u;

// Where each row block is in its ranges: [cur, end) of the open one is still to do.
//@for g 0 BLOCKS
var<private> cur${g}: u32;
var<private> end${g}: u32;
var<private> next${g}: u32;
var<private> last${g}: u32;
var<private> limit${g}: u32;
var<private> keep${g}: u32;
//@end
var<private> next_column: u32;
var<private> column_base: u32;

// The tile at hand: keys from tile_key on, or the columns from tile_column on; and of those, the part of this subgroup's
// row block: [tile_from, tile_to), or bits.
var<private> is_columns: bool;
var<private> tile_key: u32;
var<private> tile_column: u32;
var<private> tile_from: u32;
var<private> tile_to: u32;
//@for w 0 WORDS
var<private> tile_bits${w}: u32;
//@end

// Half of a place in vec4s: in 16 bytes. Places may lie before their binding, as negative numbers, where only later keys
// are bound.
fn half_of(place: u32) -> u32 {
    return bitcast<u32>(bitcast<i32>(place) >> 1u);
}

// Opens the walk of a head's row blocks from `first_block` on.
fn start_walk(head: u32, first_block: u32) {
    column_base = p.columns_at + head * p.column_tiles * 64u;
    is_columns = false;
    next_column = 0u;
//@for g 0 BLOCKS
    cur${g} = 0u;
    end${g} = 0u;
    next${g} = 0u;
    last${g} = 0u;
    limit${g} = 0u;
    keep${g} = NONE;
    if first_block + ${g}u < p.row_blocks {
        let row = head * p.row_blocks + first_block + ${g}u;
        next${g} = row_ranges[p.row_ranges_at + 2u * row];
        last${g} = next${g} + row_ranges[p.row_ranges_at + 2u * row + 1u];
        limit${g} = min(p.q_start + min(64u * (first_block + ${g}u) + 64u, p.q_len), p.kv_len);
        keep${g} = p.keep_at + row * p.column_tiles * 2u;
    }
//@end
}

// Goes to the next tile, for a subgroup of row block `block`. False after the last.
fn advance(block: u32) -> bool {
//@for g 0 BLOCKS
    while cur${g} >= end${g} && next${g} < last${g} {
        cur${g} = ranges[p.ranges_at + 2u * next${g}];
        end${g} = min(ranges[p.ranges_at + 2u * next${g} + 1u], limit${g});
        next${g}++;
    }
//@end
    tile_key = NONE;
//@for g 0 BLOCKS
    tile_key = min(tile_key, select(NONE, cur${g}, cur${g} < end${g}));
//@end
    tile_from = 0u;
    tile_to = 0u;
    if tile_key != NONE {
//@for g 0 BLOCKS
        let to${g} = min(end${g}, tile_key + BC);
        if cur${g} < to${g} {
            if block == ${g}u {
                tile_from = cur${g} - tile_key;
                tile_to = to${g} - tile_key;
            }
            cur${g} = to${g};
        }
//@end
        return true;
    }
    is_columns = true;
    while next_column < 64u * p.column_tiles {
        var any = 0u;
//@for w 0 WORDS
        tile_bits${w} = 0u;
//@end
//@for g 0 BLOCKS
        if keep${g} != NONE {
            // BC is 64, 32 or 16, and next_column a multiple of it.
//@for w 0 WORDS
            let bits${w} = (keep[keep${g} + next_column / 32u + ${w}u] >> (next_column % 32u)) & (NONE >> (32u - min(BC, 32u)));
            any |= bits${w};
            tile_bits${w} = select(tile_bits${w}, bits${w}, block == ${g}u);
//@end
        }
//@end
        tile_column = column_base + next_column;
        next_column += BC;
        if any != 0u {
            return true;
        }
    }
    return false;
}

// The key in place `i` of a tile of neighbours; places beyond its end repeat a key that exists, because 0 * NaN is not 0.
fn range_key(i: u32) -> u32 {
    return min(tile_key + i, p.kv_len - 1u);
}

// Bits [from, to) of a word, for from and to up to 32.
fn interval(first: u32, end: u32) -> u32 {
    if first >= end {
        return 0u;
    }
    return (NONE >> (32u - (end - first))) << first;
}

// Bits of the tile's keys that a query at `position` computes, of places [first, end).
fn seen(tile_start: u32, first: u32, end: u32, position: u32, n_init: u32, n_local: u32) -> u32 {
    let reach = position + 1u;
    // Places in the tile: the end by causality, the end of the first n_init keys, the start of the last n_local.
    let keys = vec3<u32>(reach, n_init, reach - min(reach, n_local));
    let places = min(keys - min(keys, vec3<u32>(tile_start)), vec3<u32>(32u));
    return interval(first, min(end, places.x)) & (interval(0u, places.y) | interval(places.z, 32u));
}
