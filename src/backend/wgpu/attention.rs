//! Attention over a sparse index, all heads of a layer in one dispatch where the bindings hold them.

use super::attention_coop::CoopVariant;
use super::attention_rows::{self, RowsVariant};
use super::bands::{Band, Extent, parts};
use super::buffer::{Binding, lanes};
use super::clip_index::clip_bindings;
use super::context::lock;
use super::launch::{AttentionBand, ClampColumns};
use super::link::Specialisation;
use super::merge_attention::merge_bindings;
use super::queue::fold;
use super::tune::{Candidate, Subject, Trial, Walk, decoded, values};
use super::{Traits, Wgpu};
use crate::backend::params::{AttentionParams, ClipIndexParams, MergeAttentionParams, SKIP_NOTHING};
use crate::backend::{IndexSlices, Slice, SliceMut};
use crate::{DType, Error, Result};
use std::ops::Range;

/// Head dims that kernels are made for. Others run as the next one, the missing elements as zeros: four more forms of
/// every kernel would buy little for sizes that few models have.
pub(super) const HEAD_DIMS: [u32; 6] = [32, 64, 96, 128, 192, 256];

/// The head dim of the kernel that runs this one. `ops` lets at most 256 pass.
pub(super) fn kernel_head_dim(head_dim: u32) -> u32 {
    HEAD_DIMS.into_iter().find(|d| *d >= head_dim).unwrap_or(HEAD_DIMS[HEAD_DIMS.len() - 1])
}

/// What one workgroup of 128 holds: 8 x `rows` queries against `tiles` times 64 keys, 16 elements of both at a time, then
/// the probabilities of 64 keys and some of their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    /// Queries of an invocation.
    rows: u32,
    /// Tiles of 64 keys at a time; 1 for head dims above 128, whose outputs take more registers.
    tiles: u32,
    /// vec4s of values at a time.
    value_vecs: u32,
    /// Times 4 elements, or 4 keys, whose products are one piece of straight code.
    unroll: u32,
}

impl Tile {
    fn tiles(&self, head_dim: u32) -> u32 {
        if head_dim > 128 { 1 } else { self.tiles }
    }

    /// vec4s of a part of queries and keys, or of the probabilities, which take turns.
    fn vecs(&self, head_dim: u32) -> u32 {
        let part = 4 * STEP * (2 * self.rows + 2) + 4 * STEP * (16 * self.tiles(head_dim) + 2);
        part.max(16 * (8 * self.rows + 2))
    }

    /// vec4s between two values: as many as the 16 invocations of a row have places for, or more.
    fn value_pitch(head_dim: u32) -> u32 {
        (16 * head_dim.div_ceil(64)).next_power_of_two()
    }

    /// Values at a time.
    fn values(&self, head_dim: u32) -> u32 {
        (self.value_vecs / Self::value_pitch(head_dim)).min(64)
    }

    /// Bytes of workgroup memory, as the arrays of `attention.wgsl` add up.
    fn bytes(&self, head_dim: u32) -> u32 {
        let vecs = self.vecs(head_dim) + self.values(head_dim) * Self::value_pitch(head_dim);
        let keys = 2 * 64 * self.tiles(head_dim);
        16 * vecs + 4 * keys + 4
    }

    /// The first that fits.
    fn choose(traits: &Traits) -> Self {
        Self::all(traits).next().unwrap_or(SMALLEST)
    }

    /// The first that fits of half as many queries, where there is another one: fewer registers, more groups.
    fn small(traits: &Traits) -> Option<Self> {
        Self::all(traits).find(|tile| tile.rows < 8 && *tile != Self::choose(traits))
    }

    fn all(traits: &Traits) -> impl Iterator<Item = Self> + use<> {
        let limit = traits.workgroup_bytes;
        let bytes = |tile: &Self| HEAD_DIMS.map(|head_dim| tile.bytes(head_dim)).into_iter().max();
        TILES.into_iter().filter(move |tile| bytes(tile) <= Some(limit))
    }
}

/// vec4s of each query and key that are multiplied at a time.
const STEP: u32 = 4;

/// Tiles to choose from.
const TILES: [Tile; 3] = [TWO_GROUPS, Tile { rows: 4, tiles: 1, value_vecs: 512, unroll: 4 }, SMALLEST];

/// Small enough (22 KiB) that an H100 runs two groups on a multiprocessor: its driver gives one of 26 KiB or more a
/// multiprocessor to itself (measured: 24.3 KiB still share). Dense there, D 128, 16,384 tokens, TFLOP/s: this 40.7 with
/// subgroups and f16, 39.3 plain; `unroll` of 2 37.4; 16 values at a time, probabilities in two parts 34 to 38.
const TWO_GROUPS: Tile = Tile { rows: 8, tiles: 2, value_vecs: 256, unroll: 4 };

/// In the 16 KiB that every device has.
const SMALLEST: Tile = Tile { rows: 4, tiles: 1, value_vecs: 256, unroll: 1 };

/// How attention over an index runs: all forms give the same results, some faster on one device, some on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKernel {
    /// f32 arithmetic on tiles in workgroup memory: every device.
    Tiles,
    /// The same on smaller tiles, where there are any.
    SmallTiles,
    /// Cooperative matrices.
    Coop(CoopVariant),
    /// Cooperative matrices of known layout.
    Rows(RowsVariant),
}

impl std::fmt::Display for AttentionKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tiles => f.pad("tiles"),
            Self::SmallTiles => f.pad("small_tiles"),
            Self::Coop(variant) => f.pad(&variant.to_string()),
            Self::Rows(variant) => f.pad(&variant.to_string()),
        }
    }
}

impl std::str::FromStr for AttentionKernel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.chars().next() {
            Some('w') => text.parse().map(Self::Rows),
            _ if text == "tiles" => Ok(Self::Tiles),
            _ if text == "small_tiles" => Ok(Self::SmallTiles),
            _ => text.parse().map(Self::Coop),
        }
    }
}

impl AttentionKernel {
    /// The shader, and queries of a workgroup. Matrices have a form of its own for skip-softmax.
    fn shader(&self, traits: &Traits, head_dim: u32, out: DType, skips: bool) -> (Specialisation, u32) {
        let tiles = |tile: Tile| (specialisation(traits, tile, head_dim, out), 8 * tile.rows);
        match self {
            Self::Tiles => tiles(Tile::choose(traits)),
            Self::SmallTiles => tiles(Tile::small(traits).unwrap_or(Tile::choose(traits))),
            Self::Coop(variant) => (variant.specialisation(traits, head_dim, out, skips), variant.rows(traits)),
            Self::Rows(variant) => (variant.specialisation(traits, head_dim, out, skips), variant.rows()),
        }
    }
}

impl Wgpu {
    /// The kernels that can run attention of this head dim here, best guess first.
    pub fn attention_kernels(&self, head_dim: usize) -> Vec<AttentionKernel> {
        let traits = &self.context.traits;
        let head_dim = kernel_head_dim(head_dim as u32);
        let rows = if self.has_rows() { RowsVariant::all(traits, head_dim) } else { vec![] };
        let rows = rows.into_iter().map(AttentionKernel::Rows);
        let matrices = rows.chain(CoopVariant::all(traits, head_dim).into_iter().map(AttentionKernel::Coop));
        let small = Tile::small(traits).map(|_| AttentionKernel::SmallTiles);
        matrices.chain([AttentionKernel::Tiles]).chain(small).collect()
    }

    /// Whether fragments lie as `coop_rows.wgsl` and `coop_words.wgsl` say; asked once.
    pub(super) fn has_rows(&self) -> bool {
        *self.has_rows.get_or_init(|| attention_rows::has_rows(self))
    }

    /// Runs this kernel from now on, for the head dims that it can run; `None` goes back to the chosen one.
    pub fn use_attention_kernel(&self, kernel: Option<AttentionKernel>) {
        *lock(&self.attention) = kernel;
    }

    /// The kernel of a kernel head dim: as told, as tried (now, if it pays), or the best guess.
    pub(super) fn attention_kernel(&self, head_dim: u32, walk: Walk, try_now: bool) -> AttentionKernel {
        let all = self.attention_kernels(head_dim as usize);
        if let Some(kernel) = lock(&self.attention).filter(|kernel| all.contains(kernel)) {
            return kernel;
        }
        let subject = Subject::Attention { head_dim, walk };
        let tried = match try_now {
            true => self.form_of(
                subject,
                || self.candidates(&all, head_dim, walk),
                |b, size| trial(b, head_dim, walk, size),
            ),
            false => self.context.tuner.chosen(subject),
        };
        let tried = tried.and_then(|name| name.parse().ok());
        tried.filter(|kernel| all.contains(kernel)).unwrap_or_else(|| best_guess(&all, walk))
    }

    /// The best guess, which stands if time runs out, and others, [`MOST_KERNELS`] in all; those of matrices alone where
    /// there are any.
    fn candidates(&self, all: &[AttentionKernel], head_dim: u32, walk: Walk) -> Vec<Candidate> {
        let tiles = |kernel: &AttentionKernel| matches!(kernel, AttentionKernel::Tiles | AttentionKernel::SmallTiles);
        let only_tiles = all.iter().all(tiles);
        let traits = &self.context.traits;
        let candidate = |kernel: &AttentionKernel| {
            let shader = kernel.shader(traits, head_dim, traits.activation(), false).0;
            Candidate { name: kernel.to_string(), specialisations: vec![shader] }
        };
        let guess = best_guess(all, walk);
        let others = all.iter().filter(|kernel| **kernel != guess && (only_tiles || !tiles(kernel)));
        [&guess].into_iter().chain(others).take(MOST_KERNELS).map(candidate).collect()
    }
}

/// The first, but for chosen blocks the first of 64 rows: two row blocks in one group both pay for what either chose
/// (H100, block-sparse 100 at 32K: `w4r1k32` 184 TFLOP/s, `w8r1k64` 156).
fn best_guess(all: &[AttentionKernel], walk: Walk) -> AttentionKernel {
    let single = |kernel: &&AttentionKernel| matches!(kernel, AttentionKernel::Rows(variant) if variant.rows() == 64);
    let blocks = all.iter().find(single).filter(|_| walk == Walk::Blocks);
    *blocks.unwrap_or(&all[0])
}

/// Kernels that are tried.
const MOST_KERNELS: usize = 4;

/// Whether 16 neighbouring lanes are always in one subgroup.
fn shuffles(traits: &Traits) -> bool {
    traits.subgroups() && traits.subgroup_min >= 16
}

/// The fragment with what an invocation knows of itself and, with subgroups, of its place in one.
pub(super) fn invocation(traits: &Traits) -> &'static str {
    if traits.subgroups() { "invocation_subgroup" } else { "invocation" }
}

const WORKGROUP: u32 = 256;

/// Invocations of a group of `attention`.
const THREADS: u32 = 128;

fn clamping(traits: &Traits) -> Specialisation {
    Specialisation::new("clamp_columns", traits).constant("WORKGROUP", WORKGROUP).with("invocation")
}

fn specialisation(traits: &Traits, tile: Tile, head_dim: u32, out: DType) -> Specialisation {
    let (tiles, values, pitch) = (tile.tiles(head_dim), tile.values(head_dim), Tile::value_pitch(head_dim));
    Specialisation::new("attention", traits)
        .constant("HEAD_DIM", head_dim)
        .constant("ROWS", tile.rows)
        .constant("TILES", tiles)
        .constant("STEP", STEP)
        .constant("VALUES", values)
        .constant("TILE_VECS", tile.vecs(head_dim))
        .constant("V_PITCH", pitch)
        .constant("UNROLL", tile.unroll)
        .constant("V_UNROLL", tile.unroll.min(values / 4))
        .constant("V_STAGE", values * pitch / THREADS)
        .constant("OUT_VECS", head_dim.div_ceil(64))
        .constant("ABREAST", if traits.subgroup_min >= 32 { 2 } else { 1 })
        .write(out, 4)
        .lanes(4)
        .with(invocation(traits))
        .with(if shuffles(traits) { "rows16_subgroup" } else { "rows16_workgroup" })
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.push(clamping(traits));
    for tile in [Some(Tile::choose(traits)), Tile::small(traits)].into_iter().flatten() {
        for head_dim in HEAD_DIMS {
            list.extend(traits.act_or_f32().map(|out| specialisation(traits, tile, head_dim, out)));
        }
    }
}

/// A strided tensor for kernels that read vectors of four; refuses what they cannot.
pub(super) fn vectors<'a>(
    op: &'static str,
    what: &'static str,
    binding: impl Into<Binding<'a>>,
    strides: [u32; 2],
) -> Result<Binding<'a>> {
    let binding = binding.into();
    if lanes(&[binding], &strides) == 4 {
        return Ok(binding.with_lanes(4));
    }
    Err(Error::Shape {
        op,
        what,
        expected: format!(
            "strides and first element at multiples of 4 elements ({} bytes)",
            4 * binding.element_bytes()
        ),
        got: format!("strides {strides:?}, first byte {}", binding.start()),
    })
}

/// The part of a strided tensor that some heads and rows take.
pub(super) fn strided<'a>(
    binding: Binding<'a>,
    [row_stride, head_stride]: [u32; 2],
    heads: std::ops::Range<u32>,
    rows: std::ops::Range<u32>,
    head_dim: u32,
) -> Binding<'a> {
    let elem = binding.element_bytes();
    let at = |head: u32, row: u32| u64::from(head) * u64::from(head_stride) + u64::from(row) * u64::from(row_stride);
    let (first, end) = (at(heads.start, rows.start), at(heads.end - 1, rows.end - 1) + u64::from(head_dim));
    binding.part(first * elem, (end - first) * elem)
}

/// Whether rows of f16 lie at multiples of 16 bytes.
pub(super) fn eighths(tensors: &[Binding], strides: &[[u32; 2]]) -> bool {
    strides.iter().flatten().all(|s| s % 8 == 0) && tensors.iter().all(|x| x.start().is_multiple_of(16))
}

/// What a launch reads and writes.
#[derive(Clone, Copy)]
struct Operands<'a> {
    q: Binding<'a>,
    k: Binding<'a>,
    v: Binding<'a>,
    row_ranges: Binding<'a>,
    ranges: Binding<'a>,
    columns: Binding<'a>,
    keep: Binding<'a>,
    window: Binding<'a>,
    out: Binding<'a>,
    lse: Option<Binding<'a>>,
}

/// Row and head strides of a call's tensors.
struct Strides {
    q: [u32; 2],
    k: [u32; 2],
    v: [u32; 2],
    out: [u32; 2],
}

impl Strides {
    fn of(p: &AttentionParams) -> Self {
        Self {
            q: [p.q_row_stride, p.q_head_stride],
            k: [p.k_row_stride, p.k_head_stride],
            v: [p.v_row_stride, p.v_head_stride],
            out: [p.out_row_stride, p.out_head_stride],
        }
    }
}

const OP: &str = "attention";

/// Pairs from which on it pays to try forms: a launch of about a millisecond on a large device.
const WORTH_TRYING: u64 = 1 << 26;

pub(super) fn attention(
    b: &Wgpu,
    p: &AttentionParams,
    [q, k, v]: [Slice<Wgpu>; 3],
    index: IndexSlices<Wgpu>,
    out: SliceMut<Wgpu>,
    lse: Option<SliceMut<Wgpu>>,
) -> Result<()> {
    let strides = Strides::of(p);
    let operands = Operands {
        q: vectors(OP, "q", q, strides.q)?,
        k: vectors(OP, "k", k, strides.k)?,
        v: vectors(OP, "v", v, strides.v)?,
        row_ranges: index.row_ranges.into(),
        ranges: index.ranges.into(),
        columns: index.columns.into(),
        keep: index.keep.into(),
        window: index.window.into(),
        out: vectors(OP, "out", out, strides.out)?,
        lse: lse.map(Binding::from),
    };
    let o = &operands;
    let kernel = if eighths(&[o.q, o.k, o.v], &[strides.q, strides.k, strides.v]) {
        let pairs = u64::from(p.n_heads) * u64::from(p.q_len) * u64::from(p.kv_len);
        b.attention_kernel(kernel_head_dim(p.head_dim), walk(p, o), pairs >= WORTH_TRYING)
    } else {
        AttentionKernel::Tiles
    };
    let most = b.keys_bound(&[(o.k, strides.k[0]), (o.v, strides.v[0])], p.head_dim, 64);
    match p.kv_len <= most {
        true => launch(b, p, kernel, o, 0..p.kv_len),
        false => in_windows(b, p, kernel, o, most),
    }
}

/// What kind of launch it is, by what the index has room for.
fn walk(p: &AttentionParams, o: &Operands) -> Walk {
    let rows = u64::from(p.n_heads) * u64::from(p.row_blocks);
    match p.column_tiles {
        0 if o.ranges.byte_len <= 8 * rows => Walk::Ranges,
        0 => Walk::Blocks,
        _ => Walk::Columns,
    }
}

/// Attention over so many keys at a time, whose parts are merged by their log-sum-exps: where the keys of one head are
/// longer than a binding.
fn in_windows(b: &Wgpu, p: &AttentionParams, kernel: AttentionKernel, o: &Operands, keys: u32) -> Result<()> {
    let windows = p.kv_len.div_ceil(keys);
    let scratch = |like: Binding| b.create_buffer(like.byte_len as usize, false);
    let [row_ranges, ranges, columns, keep] = [o.row_ranges, o.ranges, o.columns, o.keep].map(scratch);
    let (row_ranges, ranges, columns, keep) = (row_ranges?, ranges?, columns?, keep?);
    let out_part = scratch(o.out)?;
    let lse_bytes = 4 * p.n_heads as usize * p.q_len as usize;
    let lses =
        [b.create_buffer(lse_bytes, false)?, b.create_buffer(lse_bytes, false)?, b.create_buffer(lse_bytes, false)?];
    let like = |buffer, like: Binding<'_>| Binding { buffer, byte_offset: 0, ..like };
    let lse = |i: usize| Binding {
        buffer: &lses[i],
        byte_offset: 0,
        byte_len: lse_bytes as u64,
        dtype: DType::F32,
        lanes: 1,
    };
    let part = Operands {
        row_ranges: like(&row_ranges, o.row_ranges),
        ranges: like(&ranges, o.ranges),
        columns: like(&columns, o.columns),
        keep: like(&keep, o.keep),
        ..*o
    };
    for window in 0..windows {
        let keys = window * keys..p.kv_len.min((window + 1) * keys);
        let clip = ClipIndexParams {
            n_heads: p.n_heads,
            row_blocks: p.row_blocks,
            column_tiles: p.column_tiles,
            key_start: keys.start,
            key_end: keys.end,
        };
        clip_bindings(
            b,
            &clip,
            [o.row_ranges, o.ranges, o.columns, o.keep],
            [part.row_ranges, part.ranges, part.keep],
        )?;
        let count = 64 * p.n_heads * p.column_tiles;
        let numbers = ClampColumns { count, key_start: keys.start, key_end: keys.end };
        let groups = fold(u64::from(count.div_ceil(WORKGROUP)));
        b.dispatch(&clamping(&b.context.traits), &numbers, &[o.columns, part.columns], groups)?;
        let p = AttentionParams { kv_len: keys.end, ..*p };
        if window == 0 {
            launch(b, &p, kernel, &Operands { lse: Some(lse(0)), ..part }, keys)?;
            continue;
        }
        let out = like(&out_part, o.out);
        launch(b, &p, kernel, &Operands { out, lse: Some(lse(2)), ..part }, keys)?;
        let [before, after] = if window % 2 == 1 { [0, 1] } else { [1, 0] };
        let after = match o.lse {
            Some(lse) if window + 1 == windows => lse,
            _ => lse(after),
        };
        let merge = MergeAttentionParams {
            rows: p.q_len,
            n_heads: p.n_heads,
            head_dim: p.head_dim,
            row_stride: p.out_row_stride,
        };
        merge_bindings(b, &merge, p.out_head_stride, out, [lse(before), lse(2)], o.out, after)?;
    }
    Ok(())
}

/// Attention over the keys of an index, all of which lie within `keys`, in bands of heads and rows that can be bound.
fn launch(b: &Wgpu, p: &AttentionParams, kernel: AttentionKernel, o: &Operands, keys: Range<u32>) -> Result<()> {
    let traits = &b.context.traits;
    let strides = Strides::of(p);
    let group = p.n_heads / p.n_kv_heads;
    let (specialisation, tile_rows) =
        kernel.shader(traits, kernel_head_dim(p.head_dim), o.out.dtype, p.skip_below > SKIP_NOTHING);

    // Bytes per head of the parts that are contiguous by head.
    let (row_ranges, columns) = (8 * u64::from(p.row_blocks), 256 * u64::from(p.column_tiles.max(1)));
    let keep = 8 * u64::from(p.row_blocks) * u64::from(p.column_tiles.max(1));
    let lse_head = 4 * u64::from(p.q_len);
    let n_keys = keys.end - keys.start;
    let extents = [
        strided_extent(o.q, strides.q, p.head_dim, None),
        strided_extent(o.out, strides.out, p.head_dim, None),
        strided_extent(o.k, strides.k, p.head_dim, Some(n_keys)),
        strided_extent(o.v, strides.v, p.head_dim, Some(n_keys)),
        by_head(row_ranges),
        by_head(columns),
        by_head(keep),
        by_head(lse_head),
    ];
    for band in b.bands(OP, p.n_heads, group, [p.q_len, tile_rows.max(64)], &extents)? {
        let Band { heads, rows } = band.clone();
        let kv_heads = band.kv_heads(group);
        let part = AttentionBand {
            heads: heads.end - heads.start,
            group_size: group,
            head_in_group: heads.start % group,
            head_dim: p.head_dim,
            q_len: p.q_len,
            kv_len: p.kv_len,
            q_start: p.q_start,
            row_first: rows.start,
            row_tiles: (rows.end - rows.start).div_ceil(tile_rows),
            row_blocks: p.row_blocks,
            column_tiles: p.column_tiles,
            scale: p.scale,
            write_lse: u32::from(o.lse.is_some()),
            q_row_stride: p.q_row_stride,
            q_head_stride: p.q_head_stride,
            k_row_stride: p.k_row_stride,
            k_head_stride: p.k_head_stride,
            v_row_stride: p.v_row_stride,
            v_head_stride: p.v_head_stride,
            out_row_stride: p.out_row_stride,
            out_head_stride: p.out_head_stride,
            skip_below: p.skip_below,
        };
        let k = strided(o.k, strides.k, kv_heads.clone(), keys.clone(), p.head_dim);
        let v = strided(o.v, strides.v, kv_heads, keys.clone(), p.head_dim);
        let bindings = [
            strided(o.q, strides.q, heads.clone(), rows.clone(), p.head_dim),
            k,
            v,
            parts(o.row_ranges, &heads, row_ranges),
            o.ranges,
            parts(o.columns, &heads, columns),
            parts(o.keep, &heads, keep),
            parts(o.window, &heads, 8),
            strided(o.out, strides.out, heads.clone(), rows, p.head_dim),
            o.lse.map_or(b.placeholder(), |lse| parts(lse, &heads, lse_head)),
        ];
        let before = |x: &Binding, [row, _]: [u32; 2]| u64::from(keys.start) * u64::from(row) * x.element_bytes();
        let behind = [(1, before(&k, strides.k)), (2, before(&v, strides.v))];
        let groups = fold(u64::from(part.heads) * u64::from(part.row_tiles));
        b.dispatch_behind(&specialisation, &part, &bindings, &behind, groups)?;
    }
    Ok(())
}

/// A small layer with an index of one kind.
struct AttentionTrial {
    p: AttentionParams,
    /// q, k, v, row_ranges, ranges, columns, keep, window, out.
    buffers: [super::Buffer; 9],
    dtype: DType,
}

impl AttentionTrial {
    fn operands(&self) -> Operands<'_> {
        let binding = |i: usize, dtype, lanes| {
            let buffer = &self.buffers[i];
            Binding { buffer, byte_offset: 0, byte_len: buffer.len, dtype, lanes }
        };
        let (act, word) = (|i| binding(i, self.dtype, 4), |i| binding(i, DType::U32, 1));
        Operands {
            q: act(0),
            k: act(1),
            v: act(2),
            row_ranges: word(3),
            ranges: word(4),
            columns: word(5),
            keep: word(6),
            window: word(7),
            out: act(8),
            lse: None,
        }
    }
}

impl Trial for AttentionTrial {
    fn launch(&self, b: &Wgpu, form: &str) -> Result<()> {
        launch(b, &self.p, form.parse()?, &self.operands(), 0..self.p.kv_len)
    }

    fn results(&self, b: &Wgpu) -> Result<Vec<f32>> {
        let out = &self.buffers[8];
        Ok(decoded(self.dtype, &b.download_bytes(out, 0..out.len.min(4 << 20) as usize)?))
    }
}

/// The index of a trial, the same for each head: ranges of each row block, and columns that all row blocks keep.
fn trial_index(walk: Walk, q_start: u32, row_blocks: u32) -> (Vec<Vec<[u32; 2]>>, Vec<u32>) {
    let ranges = |row: u32| {
        let (first, end) = (q_start + 64 * row, q_start + 64 * row + 64);
        match walk {
            Walk::Ranges => vec![[0, end]],
            Walk::Blocks => (0..first / 128).map(|i| [128 * i, 128 * i + 64]).chain([[first, end]]).collect(),
            Walk::Columns => vec![[first - 256, end]],
        }
    };
    let columns = if walk == Walk::Columns { (0..(q_start - 256) / 3).map(|i| 3 * i).collect() } else { vec![] };
    ((0..row_blocks).map(ranges).collect(), columns)
}

fn trial(b: &Wgpu, head_dim: u32, walk: Walk, size: usize) -> Result<Box<dyn Trial>> {
    // On an H100 the third chose a kernel for dense heads that was 8 % slower at 32K tokens: all of its groups ran at a time.
    let sizes = [(8, 2, 128, 512), (16, 4, 256, 2048), (16, 4, 2048, 4096), (32, 8, 4096, 8192)];
    let (heads, kv_heads, q_len, kv_len) = sizes[size];
    let (row_blocks, q_start) = (q_len / 64, kv_len - q_len);
    let (rows, mut columns) = trial_index(walk, q_start, row_blocks);
    let column_tiles = (columns.len() as u32).div_ceil(64);
    let mut kept: Vec<u32> = (0..2 * column_tiles)
        .map(|word| (0..32).filter(|bit| 32 * word + bit < columns.len() as u32).map(|bit| 1 << bit).sum())
        .collect();
    // What is bound has room for one tile even where there is none.
    let tiles = column_tiles.max(1) as usize;
    columns.resize(64 * tiles, u32::MAX);
    kept.resize(2 * tiles, 0);

    let (mut row_ranges, mut ranges) = (vec![], vec![]);
    for row in (0..heads).flat_map(|_| &rows) {
        row_ranges.extend([ranges.len() as u32 / 2, row.len() as u32]);
        ranges.extend(row.as_flattened());
    }
    let all_heads = |one: &[u32], times: u32| one.repeat((heads * times) as usize);
    let words =
        |values: &[u32]| b.upload_unaccounted(bytemuck::cast_slice(if values.is_empty() { &[0] } else { values }));
    let dtype = b.context.traits.activation();
    let floats = |n: u32, seed| b.upload_unaccounted(&values(dtype, n as usize, seed));
    let buffers = [
        floats(q_len * heads * head_dim, 1)?,
        floats(kv_heads * kv_len * head_dim, 2)?,
        floats(kv_heads * kv_len * head_dim, 3)?,
        words(&row_ranges)?,
        words(&ranges)?,
        words(&all_heads(&columns, 1))?,
        words(&all_heads(&kept, row_blocks))?,
        words(&vec![u32::MAX; 2 * heads as usize])?,
        floats(q_len * heads * head_dim, 4)?,
    ];
    let p = AttentionParams {
        n_heads: heads,
        n_kv_heads: kv_heads,
        head_dim,
        q_len,
        kv_len,
        q_start,
        row_blocks,
        column_tiles,
        scale: 1.0 / (head_dim as f32).sqrt(),
        q_row_stride: heads * head_dim,
        q_head_stride: head_dim,
        k_row_stride: head_dim,
        k_head_stride: kv_len * head_dim,
        v_row_stride: head_dim,
        v_head_stride: kv_len * head_dim,
        out_row_stride: heads * head_dim,
        out_head_stride: head_dim,
        write_lse: 0,
        skip_below: SKIP_NOTHING,
    };
    Ok(Box::new(AttentionTrial { p, buffers, dtype }))
}

/// How the binding of a strided tensor grows: with heads and rows, or with KV heads of so many keys.
pub(super) fn strided_extent(
    binding: Binding,
    [row_stride, head_stride]: [u32; 2],
    head_dim: u32,
    keys: Option<u32>,
) -> Extent {
    let elem = binding.element_bytes();
    let (row, head) = (u64::from(row_stride) * elem, u64::from(head_stride) * elem);
    let one = u64::from(head_dim) * elem;
    match keys {
        None => Extent { head, row, one, per_kv_head: false },
        Some(keys) => Extent { head, row: 0, one: u64::from(keys - 1) * row + one, per_kv_head: true },
    }
}

/// How a binding grows that holds so many bytes a head.
pub(super) fn by_head(bytes: u64) -> Extent {
    Extent { head: bytes, row: 0, one: bytes, per_kv_head: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::params::BLOCK;

    #[test]
    fn tiles_fit_every_known_device_and_divide_a_row_block() {
        for (name, traits) in Traits::KNOWN {
            let tiles = [Some(Tile::choose(traits)), Tile::small(traits)];
            for (tile, head_dim) in tiles.into_iter().flatten().flat_map(|tile| HEAD_DIMS.map(|dim| (tile, dim))) {
                let bytes = tile.bytes(head_dim);
                assert!(bytes <= traits.workgroup_bytes.min(32768), "{name}: {tile:?}, {head_dim} takes {bytes}");
                assert_eq!(BLOCK as u32 % (8 * tile.rows), 0, "{name}: {tile:?}");
                let (values, pitch) = (tile.values(head_dim), Tile::value_pitch(head_dim));
                assert_eq!((64 % values, values * pitch % THREADS), (0, 0), "{name}: {tile:?}, {head_dim}");
                assert!(values >= 4 && 8 * tile.rows / 4 * STEP <= THREADS, "{name}: {tile:?}, {head_dim}");
                assert_eq!(head_dim % (4 * STEP), 0, "{name}: {head_dim}");
                // `rows16_workgroup.wgsl` reduces through the values' memory.
                assert!(4 * values * pitch >= THREADS * tile.rows, "{name}: {tile:?}, {head_dim}");
            }
        }
    }

    /// Columns lie before every range of a trial, as the kernels rely on.
    #[test]
    fn trials_are_valid_indexes() {
        for (q_start, row_blocks) in [(384, 2), (1792, 4), (2048, 32), (4096, 64)] {
            for walk in Walk::ALL {
                let (rows, columns) = trial_index(walk, q_start, row_blocks);
                assert_eq!(rows.len() as u32, row_blocks);
                let first = rows.iter().flatten().map(|range| range[0]).min().unwrap();
                assert!(columns.is_sorted() && columns.last().is_none_or(|last| *last < first));
                for (row, ranges) in rows.iter().enumerate() {
                    assert_eq!(ranges.last().unwrap()[1], q_start + 64 * row as u32 + 64);
                    assert!(ranges.iter().all(|range| range[0] < range[1]));
                    assert!(ranges.windows(2).all(|pair| pair[0][1] <= pair[1][0]));
                }
            }
        }
    }

    #[test]
    fn kernels_cover_every_head_dim() {
        assert_eq!([8, 32, 40, 128, 136, 256].map(kernel_head_dim), [32, 32, 64, 128, 192, 256]);
    }
}
