//! Attention over some keys and attention over others as attention over both.

use super::buffer::Binding;
use super::launch::MergeBand;
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::MergeAttentionParams;
use crate::backend::{Slice, SliceMut};
use crate::{DType, Result};

const WORKGROUP: u32 = 256;

fn specialisation(traits: &Traits, dtype: DType) -> Specialisation {
    let kernel = Specialisation::new("merge_attention", traits).constant("WORKGROUP", WORKGROUP);
    kernel.read("In", dtype, 4).write(dtype, 4).lanes(4).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.extend(traits.act_or_f32().map(|dtype| specialisation(traits, dtype)));
}

pub(super) fn merge_attention(
    b: &Wgpu,
    p: &MergeAttentionParams,
    part: Slice<Wgpu>,
    [lse, part_lse]: [Slice<Wgpu>; 2],
    out: SliceMut<Wgpu>,
    merged_lse: SliceMut<Wgpu>,
) -> Result<()> {
    merge_bindings(b, p, p.head_dim, part.into(), [lse.into(), part_lse.into()], out.into(), merged_lse.into())
}

/// The same with any distance between heads of `part` and `out`, both act or both f32.
pub(super) fn merge_bindings(
    b: &Wgpu,
    p: &MergeAttentionParams,
    head_stride: u32,
    part: Binding,
    [lse, part_lse]: [Binding; 2],
    out: Binding,
    merged: Binding,
) -> Result<()> {
    let (part, out) = (part.with_lanes(4), out.with_lanes(4));
    if p.n_heads > 1 && head_stride > p.row_stride {
        // Head-major: one after another, each in bands of its rows.
        let head_bytes = u64::from(head_stride / 4) * out.unit();
        let one_bytes = u64::from((p.rows - 1) * (p.row_stride / 4) + p.head_dim / 4) * out.unit();
        for head in 0..u64::from(p.n_heads) {
            let [part, out] = [part, out].map(|x| x.part(head * head_bytes, one_bytes));
            let rows = 4 * u64::from(p.rows);
            let [lse, part_lse, merged] = [lse, part_lse, merged].map(|x| x.part(head * rows, rows));
            merge_bindings(
                b,
                &MergeAttentionParams { n_heads: 1, ..*p },
                p.head_dim,
                part,
                [lse, part_lse],
                out,
                merged,
            )?;
        }
        return Ok(());
    }
    let vectors = u64::from(p.n_heads) * u64::from(p.head_dim / 4);
    let row_bytes = u64::from(p.row_stride / 4) * out.unit();
    for (first, count) in b.row_bands(p.rows, row_bytes) {
        let band = MergeBand {
            rows: count as u32,
            row_first: first as u32,
            all_rows: p.rows,
            n_heads: p.n_heads,
            head_dim: p.head_dim / 4,
            head_stride: head_stride / 4,
            row_stride: p.row_stride / 4,
        };
        let [part, out] = [part, out].map(|x| x.rows(first, count, row_bytes));
        let groups = fold((count * vectors).div_ceil(u64::from(WORKGROUP)));
        b.dispatch(&specialisation(&b.context.traits, out.dtype), &band, &[part, part_lse, lse, out, merged], groups)?;
    }
    Ok(())
}
