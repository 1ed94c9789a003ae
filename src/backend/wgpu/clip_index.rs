//! The part of an index that lies within some keys: its ranges, then its columns.

use super::buffer::Binding;
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::Result;
use crate::backend::params::ClipIndexParams;
use crate::backend::{IndexSlices, SliceMut};

/// Invocations of a group: one a row block, or one a row block and tile of columns.
const WORKGROUP: u32 = 64;

fn rows(traits: &Traits) -> Specialisation {
    Specialisation::new("clip_index_rows", traits).constant("WORKGROUP", WORKGROUP).with("invocation")
}

fn keep(traits: &Traits) -> Specialisation {
    Specialisation::new("clip_index_keep", traits).constant("WORKGROUP", WORKGROUP).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.extend([rows(traits), keep(traits)]);
}

pub(super) fn clip_index(
    b: &Wgpu,
    p: &ClipIndexParams,
    index: IndexSlices<Wgpu>,
    row_ranges: SliceMut<Wgpu>,
    ranges: SliceMut<Wgpu>,
    kept: SliceMut<Wgpu>,
) -> Result<()> {
    let traits = &b.context.traits;
    let n_rows = u64::from(p.n_heads) * u64::from(p.row_blocks);
    let bindings: [Binding; 4] = [index.row_ranges.into(), index.ranges.into(), row_ranges.into(), ranges.into()];
    b.dispatch(&rows(traits), p, &bindings, fold(n_rows.div_ceil(u64::from(WORKGROUP))))?;
    if p.column_tiles == 0 {
        return Ok(());
    }
    let bindings: [Binding; 3] = [index.columns.into(), index.keep.into(), kept.into()];
    let groups = (n_rows * u64::from(p.column_tiles)).div_ceil(u64::from(WORKGROUP));
    b.dispatch(&keep(traits), p, &bindings, fold(groups))
}
