//! The index from what the patterns chose, in four dispatches: count ranges, place them, write them, keep columns; and a
//! fifth that makes the densest rows dense.

use super::buffer::Binding;
use super::link::Specialisation;
use super::queue::fold;
use super::select_top_k::{long_rows, scanning};
use super::{Traits, Wgpu};
use crate::Result;
use crate::backend::params::EXACT;
use crate::backend::params::{BuildIndexParams, HeadPlan};
use crate::backend::{IndexChoice, IndexSlicesMut};

/// Invocations of a group in the kernels that have one a row block, or one a row block and tile of columns.
const WORKGROUP: u64 = 64;

fn rows(traits: &Traits, write: bool) -> Specialisation {
    Specialisation::new("build_index_rows", traits)
        .constant("WRITE", u32::from(write))
        .constant("A_SHAPE", HeadPlan::A_SHAPE)
        .constant("TRI_SHAPE", HeadPlan::TRI_SHAPE)
        .constant("VERTICAL_SLASH", HeadPlan::VERTICAL_SLASH)
        .constant("BLOCK_SPARSE", HeadPlan::BLOCK_SPARSE)
        .with("invocation")
}

fn place(traits: &Traits) -> Specialisation {
    scanning(traits, "build_index_place", long_rows(traits))
}

fn keep(traits: &Traits) -> Specialisation {
    Specialisation::new("build_index_keep", traits)
        .constant("VERTICAL_SLASH", HeadPlan::VERTICAL_SLASH)
        .with("invocation")
}

fn dense(traits: &Traits) -> Specialisation {
    Specialisation::new("build_index_dense", traits)
        .constant("VERTICAL_SLASH", HeadPlan::VERTICAL_SLASH)
        .constant("BLOCK_SPARSE", HeadPlan::BLOCK_SPARSE)
        .with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.extend([rows(traits, false), place(traits), rows(traits, true), keep(traits), dense(traits)]);
}

pub(super) fn build_index(
    b: &Wgpu,
    p: &BuildIndexParams,
    choice: IndexChoice<Wgpu>,
    out: IndexSlicesMut<Wgpu>,
) -> Result<()> {
    let traits = &b.context.traits;
    let (plan, columns) = (Binding::from(choice.plan), Binding::from(choice.columns));
    let (row_ranges, ranges) = (Binding::from(out.row_ranges), Binding::from(out.ranges));
    let (window, pairs) = (Binding::from(out.window), Binding::from(out.pairs));
    let n_rows = u64::from(p.n_heads) * u64::from(p.row_blocks);
    let tiles = u64::from(p.column_tiles.max(1));

    let of_rows = [
        plan,
        choice.offsets.into(),
        choice.offset_count.into(),
        choice.block_mask.into(),
        row_ranges,
        ranges,
        window,
        pairs,
    ];
    let groups = fold(n_rows.div_ceil(WORKGROUP));
    b.dispatch(&rows(traits, false), p, &of_rows, groups)?;
    b.dispatch(&place(traits), p, &[row_ranges], [1; 3])?;
    b.dispatch(&rows(traits, true), p, &of_rows, groups)?;
    let kept = Binding::from(out.keep);
    let of_columns = [plan, columns, row_ranges, ranges, kept, pairs];
    b.dispatch(&keep(traits), p, &of_columns, fold((n_rows * tiles).div_ceil(WORKGROUP)))?;
    if p.dense_above >= EXACT {
        return Ok(());
    }
    b.dispatch(&dense(traits), p, &[plan, row_ranges, ranges, kept, pairs], fold(n_rows))
}
