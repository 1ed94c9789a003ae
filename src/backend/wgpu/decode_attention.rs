//! Few queries over all their keys: one dispatch over splits of the keys, one that merges them.

use super::attention::{HEAD_DIMS, kernel_head_dim, strided, strided_extent, vectors};
use super::buffer::Binding;
use super::launch::{DecodeBand, DecodeMerge};
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::AttentionParams;
use crate::backend::{Slice, SliceMut};
use crate::{DType, Result};

/// Groups to keep a large GPU busy with: eight or so for each of its cores.
const GROUPS: u32 = 1024;

/// Most splits of a row: what the merge goes through one by one.
const MAX_SPLITS: u32 = 256;

/// What one workgroup of 128 holds: `rows` queries, `tile` keys at a time, scores of `span` keys.
#[derive(Clone, Copy, Debug)]
struct Tile {
    tile: u32,
    rows: u32,
    span: u32,
}

impl Tile {
    /// Bytes of workgroup memory, as the arrays of `decode_attention.wgsl` add up.
    fn bytes(&self, elem: u32, head_dim: u32) -> u32 {
        let columns = head_dim / 4;
        let queries = self.rows * columns * 16;
        let scores = self.rows * (self.span + 16 + 1) * 4;
        queries + self.tile * (columns + 1) * 4 * elem + scores + 128 * 16
    }

    /// The largest that fits.
    fn choose(traits: &Traits, head_dim: u32) -> Self {
        let all = [(64, 8, 256), (32, 8, 256), (16, 8, 256), (16, 4, 128), (8, 4, 128), (8, 2, 128)];
        let elem = if traits.f16() { 2 } else { 4 };
        let mut tiles = all.map(|(tile, rows, span)| Self { tile, rows, span }).into_iter();
        tiles.find(|t| t.bytes(elem, head_dim) <= traits.workgroup_bytes).unwrap_or(Self { tile: 8, rows: 1, span: 64 })
    }

    /// The same for fewer rows, if there are no more.
    fn for_rows(self, rows: u32) -> Self {
        Self { rows: self.rows.min(rows.next_power_of_two()), ..self }
    }
}

fn splitting(traits: &Traits, head_dim: u32, tile: Tile) -> Specialisation {
    Specialisation::new("decode_attention", traits)
        .constant("HEAD_DIM", head_dim)
        .constant("ROWS", tile.rows)
        .constant("TILE", tile.tile)
        .constant("SPAN", tile.span)
        .with("invocation")
}

fn merging(traits: &Traits, out: DType) -> Specialisation {
    Specialisation::new("decode_attention_merge", traits).write(out, 4).lanes(4).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    for head_dim in HEAD_DIMS {
        let tile = Tile::choose(traits, head_dim);
        list.extend([1, 2, 4, 8].map(|rows| splitting(traits, head_dim, tile.for_rows(rows))));
    }
    list.extend(traits.act_or_f32().map(|out| merging(traits, out)));
}

pub(super) fn decode_attention(
    b: &Wgpu,
    p: &AttentionParams,
    [q, k, v]: [Slice<Wgpu>; 3],
    out: SliceMut<Wgpu>,
    lse: Option<SliceMut<Wgpu>>,
) -> Result<()> {
    const OP: &str = "decode_attention";
    let q_stride = [p.q_row_stride, p.q_head_stride];
    let k_stride = [p.k_row_stride, p.k_head_stride];
    let v_stride = [p.v_row_stride, p.v_head_stride];
    let out_stride = [p.out_row_stride, p.out_head_stride];
    let (q, k) = (vectors(OP, "q", q, q_stride)?, vectors(OP, "k", k, k_stride)?);
    let (v, out) = (vectors(OP, "v", v, v_stride)?, vectors(OP, "out", out, out_stride)?);
    let (lse, lse_head) = (lse.map(Binding::from), 4 * u64::from(p.q_len));

    let group = p.n_heads / p.n_kv_heads;
    let keys = p.q_start + p.q_len;
    let head_dim = kernel_head_dim(p.head_dim);
    let traits = &b.context.traits;
    // Where a KV head is longer than a binding, its splits go in several dispatches.
    let widest = Tile::choose(traits, head_dim).span;
    let most_keys = b.keys_bound(&[(k, k_stride[0]), (v, v_stride[0])], p.head_dim, widest);
    let bound = Some(keys.min(most_keys));
    let extents = [strided_extent(k, k_stride, p.head_dim, bound), strided_extent(v, v_stride, p.head_dim, bound)];
    for band in b.bands(OP, p.n_heads, group, [1, 1], &extents)? {
        let heads = band.heads.end - band.heads.start;
        let kv_heads = band.kv_heads(group);
        let n_kv_heads = kv_heads.end - kv_heads.start;
        let rows = heads / n_kv_heads * p.q_len;
        let tile = Tile::choose(traits, head_dim).for_rows(rows);
        let row_groups = rows.div_ceil(tile.rows);
        let most = (GROUPS / (n_kv_heads * row_groups)).clamp(1, MAX_SPLITS);
        let split_keys = keys.div_ceil(most).next_multiple_of(tile.span).min(most_keys);
        let splits = keys.div_ceil(split_keys);

        let n_rows = heads as usize * p.q_len as usize * splits as usize;
        let (sums, stats) =
            (b.create_buffer(n_rows * p.head_dim as usize * 4, false)?, b.create_buffer(n_rows * 8, false)?);
        let scratch =
            |buffer, lanes| Binding { buffer, byte_offset: 0, byte_len: buffer.len, dtype: DType::F32, lanes };
        let part = DecodeBand {
            kv_heads: n_kv_heads,
            group_size: heads / n_kv_heads,
            head_dim: p.head_dim,
            q_len: p.q_len,
            q_start: p.q_start,
            splits,
            split_keys,
            split_first: 0,
            split_count: splits,
            scale: p.scale,
            q_row_stride: p.q_row_stride,
            q_head_stride: p.q_head_stride,
            k_row_stride: p.k_row_stride,
            k_head_stride: p.k_head_stride,
            v_row_stride: p.v_row_stride,
            v_head_stride: p.v_head_stride,
        };
        let at_once = (most_keys / split_keys).max(1);
        for first in (0..splits).step_by(at_once as usize) {
            let count = at_once.min(splits - first);
            let part = DecodeBand { split_first: first, split_count: count, ..part };
            let here = first * split_keys..keys.min((first + count) * split_keys);
            let before = |x: Binding, [row, _]: [u32; 2]| u64::from(here.start) * u64::from(row) * x.element_bytes();
            let bindings = [
                strided(q, q_stride, band.heads.clone(), 0..p.q_len, p.head_dim),
                strided(k, k_stride, kv_heads.clone(), here.clone(), p.head_dim),
                strided(v, v_stride, kv_heads.clone(), here.clone(), p.head_dim),
                scratch(&sums, 4),
                scratch(&stats, 2),
            ];
            let behind = [(1, before(k, k_stride)), (2, before(v, v_stride))];
            let groups = fold(u64::from(n_kv_heads) * u64::from(count) * u64::from(row_groups));
            b.dispatch_behind(&splitting(traits, head_dim, tile), &part, &bindings, &behind, groups)?;
        }
        let merge = DecodeMerge {
            heads,
            q_len: p.q_len,
            head_dim: p.head_dim,
            splits,
            out_row_stride: p.out_row_stride,
            out_head_stride: p.out_head_stride,
            write_lse: u32::from(lse.is_some()),
        };
        let lse = match lse {
            Some(lse) => lse.part(u64::from(band.heads.start) * lse_head, u64::from(heads) * lse_head),
            None => b.placeholder(),
        };
        let out = strided(out, out_stride, band.heads, 0..p.q_len, p.head_dim);
        let bindings = [scratch(&sums, 4), scratch(&stats, 2), out, lse];
        b.dispatch(&merging(traits, out.dtype), &merge, &bindings, fold(u64::from(heads) * u64::from(p.q_len)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fit_every_known_device() {
        for (name, traits) in Traits::KNOWN {
            for head_dim in HEAD_DIMS {
                let tile = Tile::choose(traits, head_dim);
                let bytes = tile.bytes(if traits.f16() { 2 } else { 4 }, head_dim);
                assert!(bytes <= traits.workgroup_bytes, "{name}, head dim {head_dim}: {tile:?} takes {bytes}");
                assert!(
                    tile.span.is_multiple_of(tile.tile) && 128u32.is_multiple_of(tile.tile),
                    "{name}, head dim {head_dim}: {tile:?}"
                );
            }
        }
    }
}
