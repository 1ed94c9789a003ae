//! The indices of the largest scores of each row, one workgroup a row.

use super::attention::invocation;
use super::bands::parts;
use super::buffer::Binding;
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::SelectTopKParams;
use crate::backend::{Slice, SliceMut};
use crate::{Error, Result};

/// Invocations of a group that works on long rows: as many as there may be, because the rows are few, up to what the packed
/// sums of `select_top_k.wgsl` hold.
pub(super) fn long_rows(traits: &Traits) -> u32 {
    if traits.subgroups() && traits.workgroup_invocations >= 1024 { 1024 } else { 256 }
}

/// A kernel that needs prefix sums over its group.
pub(super) fn scanning(traits: &Traits, kernel: &'static str, workgroup: u32) -> Specialisation {
    let specialisation = Specialisation::new(kernel, traits).constant("WORKGROUP", workgroup).with(invocation(traits));
    if traits.subgroups() {
        specialisation.constant("SUBGROUP_MIN", traits.subgroup_min).with("scan_subgroup")
    } else {
        specialisation.with("scan_workgroup")
    }
}

/// A kernel that selects with `radix_select`.
pub(super) fn selecting(traits: &Traits, kernel: &'static str, workgroup: u32) -> Specialisation {
    scanning(traits, kernel, workgroup).with("radix_select")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.push(selecting(traits, "select_top_k", long_rows(traits)));
}

pub(super) fn select_top_k(
    b: &Wgpu,
    p: &SelectTopKParams,
    [scores, counts]: [Slice<Wgpu>; 2],
    indices: SliceMut<Wgpu>,
) -> Result<()> {
    let (scores, counts, indices) = (Binding::from(scores), Binding::from(counts), Binding::from(indices));
    let (score_row, index_row) = (4 * u64::from(p.len), 4 * u64::from(p.capacity));
    let rows = (b.band_bytes() / score_row.max(index_row).max(1)).min(u64::from(p.rows)) as u32;
    if rows == 0 {
        return Err(Error::Unsupported(format!(
            "select_top_k: a row of {} scores is above what {} binds",
            p.len, b.context.info.name
        )));
    }
    let specialisation = selecting(&b.context.traits, "select_top_k", long_rows(&b.context.traits));
    for first in (0..p.rows).step_by(rows as usize) {
        let some = first..p.rows.min(first.saturating_add(rows));
        let n = some.end - some.start;
        let bindings = [parts(scores, &some, score_row), parts(counts, &some, 4), parts(indices, &some, index_row)];
        b.dispatch(&specialisation, &SelectTopKParams { rows: n, ..*p }, &bindings, fold(u64::from(n)))?;
    }
    Ok(())
}
