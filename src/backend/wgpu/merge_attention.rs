//! Attention over some keys and attention over others as attention over both.

use super::buffer::Binding;
use super::launch::MergeBand;
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::Result;
use crate::backend::params::MergeAttentionParams;
use crate::backend::{Slice, SliceMut};

const WORKGROUP: u32 = 256;

fn specialisation(traits: &Traits) -> Specialisation {
    let act = traits.activation();
    let kernel = Specialisation::new("merge_attention", traits).constant("WORKGROUP", WORKGROUP);
    kernel.read("In", act, 4).write(act, 4).lanes(4).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.push(specialisation(traits));
}

pub(super) fn merge_attention(
    b: &Wgpu,
    p: &MergeAttentionParams,
    part: Slice<Wgpu>,
    [lse, part_lse]: [Slice<Wgpu>; 2],
    out: SliceMut<Wgpu>,
    merged_lse: SliceMut<Wgpu>,
) -> Result<()> {
    let (part, out) = (Binding::from(part).with_lanes(4), Binding::from(out).with_lanes(4));
    let (lse, part_lse) = (Binding::from(lse), Binding::from(part_lse));
    let merged = Binding::from(merged_lse);
    let vectors = u64::from(p.n_heads) * u64::from(p.head_dim / 4);
    let row_bytes = u64::from(p.row_stride / 4) * out.unit();
    for (first, count) in b.row_bands(p.rows, row_bytes) {
        let band = MergeBand {
            rows: count as u32,
            row_first: first as u32,
            all_rows: p.rows,
            n_heads: p.n_heads,
            head_dim: p.head_dim / 4,
            row_stride: p.row_stride / 4,
        };
        let [part, out] = [part, out].map(|x| x.rows(first, count, row_bytes));
        let groups = fold((count * vectors).div_ceil(u64::from(WORKGROUP)));
        b.dispatch(&specialisation(&b.context.traits), &band, &[part, part_lse, lse, out, merged], groups)?;
    }
    Ok(())
}
