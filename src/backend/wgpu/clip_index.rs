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
    let read = [index.row_ranges, index.ranges, index.columns, index.keep].map(Binding::from);
    clip_bindings(b, p, read, [row_ranges, ranges, kept].map(Binding::from))
}

/// The same from and into bindings.
pub(super) fn clip_bindings(
    b: &Wgpu,
    p: &ClipIndexParams,
    [whole_row_ranges, whole_ranges, columns, whole_keep]: [Binding; 4],
    [row_ranges, ranges, kept]: [Binding; 3],
) -> Result<()> {
    let traits = &b.context.traits;
    let n_rows = u64::from(p.n_heads) * u64::from(p.row_blocks);
    let bindings = [whole_row_ranges, whole_ranges, row_ranges, ranges];
    b.dispatch(&rows(traits), p, &bindings, fold(n_rows.div_ceil(u64::from(WORKGROUP))))?;
    if p.column_tiles == 0 {
        return Ok(());
    }
    let groups = (n_rows * u64::from(p.column_tiles)).div_ceil(u64::from(WORKGROUP));
    b.dispatch(&keep(traits), p, &[columns, whole_keep, kept], fold(groups))
}
