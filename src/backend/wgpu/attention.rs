//! Attention over a sparse index, all heads of a layer in one dispatch where the bindings hold them.

use super::attention_coop::CoopVariant;
use super::attention_rows::{self, RowsVariant};
use super::bands::{Band, Extent, parts};
use super::buffer::{Binding, lanes};
use super::context::lock;
use super::launch::AttentionBand;
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::AttentionParams;
use crate::backend::{IndexSlices, Slice, SliceMut};
use crate::{DType, Error, Result};

/// Head dims that kernels are made for. Others run as the next one, the missing elements as zeros: four more forms of
/// every kernel would buy little for sizes that few models have.
pub(super) const HEAD_DIMS: [u32; 6] = [32, 64, 96, 128, 192, 256];

/// The head dim of the kernel that runs this one. `ops` lets at most 256 pass.
pub(super) fn kernel_head_dim(head_dim: u32) -> u32 {
    HEAD_DIMS.into_iter().find(|d| *d >= head_dim).unwrap_or(HEAD_DIMS[HEAD_DIMS.len() - 1])
}

/// What one workgroup of 128 holds: 8 x `rows` queries against 16 x `keys` keys, `step` vec4s of both at a time, and 64
/// elements of `values` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    rows: u32,
    keys: u32,
    step: u32,
    values: u32,
    /// Whether tiles and probabilities are kept as f16.
    half: bool,
}

impl Tile {
    /// vec4s of the place where K and V take turns.
    fn kv_vecs(&self) -> u32 {
        (16 * self.keys * (self.step + 1)).max(self.values * 17)
    }

    /// Bytes of workgroup memory, as the arrays of `attention.wgsl` and `rows16_workgroup.wgsl` add up.
    fn bytes(&self, shuffles: bool) -> u32 {
        let queries = 8 * self.rows;
        let elem = if self.half { 2 } else { 4 };
        let probabilities = queries * 17 * self.keys * elem;
        let reductions = if shuffles { 0 } else { 128 * self.rows * 4 };
        (queries * (self.step + 1) + self.kv_vecs()) * 4 * elem + probabilities + reductions
    }

    /// The first that fits: 64 queries x 64 keys from 32 KiB on with f16 tiles, from 48 KiB on without.
    fn choose(traits: &Traits) -> Self {
        // Measured on an H100, D 128: the first 24 TFLOP/s at 8192 and 32,768 tokens, the second 13 at 32,768, whole heads at a
        // time 15 to 21 at 8192.
        let all = [
            (8, 4, 8, 64, true),
            (8, 4, 8, 64, false),
            (8, 4, 8, 32, true),
            (4, 4, 8, 32, false),
            (4, 2, 4, 16, false),
        ];
        let tiles = all.map(|(rows, keys, step, values, half)| Self { rows, keys, step, values, half });
        let fits = |t: &Self| (traits.f16() || !t.half) && t.bytes(shuffles(traits)) <= traits.workgroup_bytes;
        tiles.into_iter().find(fits).unwrap_or(Self { rows: 2, keys: 2, step: 2, values: 8, half: false })
    }
}

/// How attention over an index runs: all forms give the same results, some faster on one device, some on another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKernel {
    /// f32 arithmetic on tiles in workgroup memory: every device.
    Tiles,
    /// Cooperative matrices.
    Coop(CoopVariant),
    /// Cooperative matrices of known layout.
    Rows(RowsVariant),
}

impl std::fmt::Display for AttentionKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tiles => f.pad("tiles"),
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
            _ => text.parse().map(Self::Coop),
        }
    }
}

impl AttentionKernel {
    /// The shader, and queries of a workgroup.
    fn form(&self, traits: &Traits, head_dim: u32, out: DType) -> (Specialisation, u32) {
        match self {
            Self::Tiles => (specialisation(traits, head_dim, out), 8 * Tile::choose(traits).rows),
            Self::Coop(variant) => (variant.specialisation(traits, head_dim, out), variant.rows(traits)),
            Self::Rows(variant) => (variant.specialisation(traits, head_dim, out), variant.rows()),
        }
    }
}

impl Wgpu {
    /// The kernels that can run attention of this head dim here, best guess first.
    pub fn attention_kernels(&self, head_dim: usize) -> Vec<AttentionKernel> {
        let variants = CoopVariant::all(&self.context.traits, kernel_head_dim(head_dim as u32));
        let rows = match self.has_rows() {
            true => RowsVariant::all(&self.context.traits, kernel_head_dim(head_dim as u32)),
            false => vec![],
        };
        let rows = rows.into_iter().map(AttentionKernel::Rows);
        rows.chain(variants.into_iter().map(AttentionKernel::Coop)).chain([AttentionKernel::Tiles]).collect()
    }

    /// Whether fragments lie as `coop_rows.wgsl` says; asked once.
    pub(super) fn has_rows(&self) -> bool {
        *self.has_rows.get_or_init(|| attention_rows::has_rows(self))
    }

    /// Runs this kernel from now on, for the head dims that it can run; `None` goes back to the best guess.
    pub fn use_attention_kernel(&self, kernel: Option<AttentionKernel>) {
        *lock(&self.attention) = kernel;
    }

    pub(super) fn attention_kernel(&self, head_dim: u32) -> AttentionKernel {
        let all = self.attention_kernels(head_dim as usize);
        let chosen = lock(&self.attention).filter(|kernel| all.contains(kernel));
        chosen.unwrap_or(all[0])
    }
}

/// Whether 16 neighbouring lanes are always in one subgroup.
fn shuffles(traits: &Traits) -> bool {
    traits.subgroups() && traits.subgroup_min >= 16
}

/// The fragment with what an invocation knows of itself and, with subgroups, of its place in one.
pub(super) fn invocation(traits: &Traits) -> &'static str {
    if traits.subgroups() { "invocation_subgroup" } else { "invocation" }
}

fn specialisation(traits: &Traits, head_dim: u32, out: DType) -> Specialisation {
    let tile = Tile::choose(traits);
    Specialisation::new("attention", traits)
        .constant("HEAD_DIM", head_dim)
        .constant("ROWS", tile.rows)
        .constant("KEYS", tile.keys)
        .constant("STEP", tile.step)
        .constant("VALUES", tile.values)
        .constant("KV_VECS", tile.kv_vecs())
        .constant("Q_STAGE", (8 * tile.rows * tile.step).div_ceil(128))
        .constant("K_STAGE", (16 * tile.keys * tile.step).div_ceil(128))
        .constant("V_STAGE", tile.values * 16 / 128)
        .constant("OUT_VECS", head_dim.div_ceil(64))
        .alias("Probability", if tile.half { "f16" } else { "f32" })
        .alias("Staged", if tile.half { "vec4<f16>" } else { "vec4<f32>" })
        .write(out, 4)
        .lanes(4)
        .with(invocation(traits))
        .with(if shuffles(traits) { "rows16_subgroup" } else { "rows16_workgroup" })
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    for head_dim in HEAD_DIMS {
        list.extend(traits.act_or_f32().map(|out| specialisation(traits, head_dim, out)));
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

pub(super) fn attention(
    b: &Wgpu,
    p: &AttentionParams,
    [q, k, v]: [Slice<Wgpu>; 3],
    index: IndexSlices<Wgpu>,
    out: SliceMut<Wgpu>,
    lse: Option<SliceMut<Wgpu>>,
) -> Result<()> {
    const OP: &str = "attention";
    let q_stride = [p.q_row_stride, p.q_head_stride];
    let k_stride = [p.k_row_stride, p.k_head_stride];
    let v_stride = [p.v_row_stride, p.v_head_stride];
    let out_stride = [p.out_row_stride, p.out_head_stride];
    let (q, k) = (vectors(OP, "q", q, q_stride)?, vectors(OP, "k", k, k_stride)?);
    let (v, out) = (vectors(OP, "v", v, v_stride)?, vectors(OP, "out", out, out_stride)?);

    let lse = lse.map(Binding::from);
    let head_dim = kernel_head_dim(p.head_dim);
    let kernel = if eighths(&[q, k, v], &[q_stride, k_stride, v_stride]) {
        b.attention_kernel(head_dim)
    } else {
        AttentionKernel::Tiles
    };
    let (specialisation, tile_rows) = kernel.form(&b.context.traits, head_dim, out.dtype);
    let group = p.n_heads / p.n_kv_heads;

    // Bytes per head of the parts that are contiguous by head.
    let (row_ranges, columns) = (8 * u64::from(p.row_blocks), 256 * u64::from(p.column_tiles.max(1)));
    let keep = 8 * u64::from(p.row_blocks) * u64::from(p.column_tiles.max(1));
    let lse_head = 4 * u64::from(p.q_len);
    let extents = [
        strided_extent(q, q_stride, p.head_dim, None),
        strided_extent(out, out_stride, p.head_dim, None),
        strided_extent(k, k_stride, p.head_dim, Some(p.kv_len)),
        strided_extent(v, v_stride, p.head_dim, Some(p.kv_len)),
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
            write_lse: u32::from(lse.is_some()),
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
        let bindings = [
            strided(q, q_stride, heads.clone(), rows.clone(), p.head_dim),
            strided(k, k_stride, kv_heads.clone(), 0..p.kv_len, p.head_dim),
            strided(v, v_stride, kv_heads, 0..p.kv_len, p.head_dim),
            parts(index.row_ranges.into(), &heads, row_ranges),
            index.ranges.into(),
            parts(index.columns.into(), &heads, columns),
            parts(index.keep.into(), &heads, keep),
            parts(index.window.into(), &heads, 8),
            strided(out, out_stride, heads.clone(), rows, p.head_dim),
            lse.map_or(b.placeholder(), |lse| parts(lse, &heads, lse_head)),
        ];
        b.dispatch(&specialisation, &part, &bindings, fold(u64::from(part.heads) * u64::from(part.row_tiles)))?;
    }
    Ok(())
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
            let tile = Tile::choose(traits);
            let bytes = tile.bytes(shuffles(traits));
            assert!(bytes <= traits.workgroup_bytes, "{name}: {tile:?} takes {bytes}");
            assert_eq!(BLOCK as u32 % (8 * tile.rows), 0, "{name}: {tile:?}");
            assert_eq!((16 * tile.keys % tile.values, tile.values * 16 % 128), (0, 0), "{name}: {tile:?}");
        }
    }

    #[test]
    fn kernels_cover_every_head_dim() {
        assert_eq!([8, 32, 40, 128, 136, 256].map(kernel_head_dim), [32, 32, 64, 128, 192, 256]);
    }
}
