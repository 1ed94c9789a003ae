//! Choices by cumulated mass: counts of columns and diagonals, what flex heads become, blocks by weight.

use super::bands::parts;
use super::buffer::Binding;
use super::link::Specialisation;
use super::queue::fold;
use super::select_top_k::scanning;
use super::{Traits, Wgpu};
use crate::backend::params::{CountByMassParams, GroupOffsetsParams, HeadPlan, SettleHeadsParams, WeighBlocksParams};
use crate::backend::{Slice, SliceMut};
use crate::{Error, Result};

pub(super) fn by_mass(traits: &Traits, kernel: &'static str) -> Specialisation {
    scanning(traits, kernel, 256).with("mass")
}

fn grouping(traits: &Traits) -> Specialisation {
    Specialisation::new("group_offsets", traits).with("invocation")
}

fn settling(traits: &Traits) -> Specialisation {
    by_mass(traits, "settle_heads")
        .constant("DENSE", HeadPlan::DENSE)
        .constant("VERTICAL_SLASH", HeadPlan::VERTICAL_SLASH)
        .constant("BLOCK_SPARSE", HeadPlan::BLOCK_SPARSE)
        .constant("FLEX", HeadPlan::FLEX)
        .constant("FIT", HeadPlan::FIT)
        .constant("HEAD_MASS", HeadPlan::HEAD_MASS)
}

fn weighing(traits: &Traits) -> Specialisation {
    by_mass(traits, "weigh_blocks")
        .constant("BLOCK_SPARSE", HeadPlan::BLOCK_SPARSE)
        .constant("HEAD_MASS", HeadPlan::HEAD_MASS)
}

fn choosing(traits: &Traits) -> Specialisation {
    by_mass(traits, "select_weighed_blocks")
        .constant("BLOCK_SPARSE", HeadPlan::BLOCK_SPARSE)
        .constant("TOP_K", HeadPlan::TOP_K)
        .constant("HEAD_MASS", HeadPlan::HEAD_MASS)
        .constant("ROW_MASS", HeadPlan::ROW_MASS)
        .constant("OF_MAX", HeadPlan::OF_MAX)
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.extend([
        by_mass(traits, "count_by_mass"),
        grouping(traits),
        settling(traits),
        weighing(traits),
        choosing(traits),
    ]);
}

pub(super) fn count_by_mass(
    b: &Wgpu,
    p: &CountByMassParams,
    [budget, scores]: [Slice<Wgpu>; 2],
    counts: SliceMut<Wgpu>,
) -> Result<()> {
    let (budget, scores, counts) = (Binding::from(budget), Binding::from(scores), Binding::from(counts));
    let score_row = 4 * u64::from(p.len);
    if score_row > b.band_bytes() {
        return Err(Error::Unsupported(format!(
            "count_by_mass: a row of {} scores is above what {} binds",
            p.len, b.context.info.name
        )));
    }
    let specialisation = by_mass(&b.context.traits, "count_by_mass");
    for (first, n) in b.row_bands(p.rows, score_row) {
        let some = first as u32..(first + n) as u32;
        let bindings = [parts(budget, &some, 16), parts(scores, &some, score_row), parts(counts, &some, 4)];
        b.dispatch(&specialisation, &CountByMassParams { rows: n as u32, ..*p }, &bindings, fold(n))?;
    }
    Ok(())
}

pub(super) fn group_offsets(
    b: &Wgpu,
    p: &GroupOffsetsParams,
    budget: Slice<Wgpu>,
    scores: SliceMut<Wgpu>,
) -> Result<()> {
    let (budget, scores) = (Binding::from(budget), Binding::from(scores));
    let row = 4 * u64::from(p.len);
    for (first, n) in b.row_bands(p.rows, row) {
        let some = first as u32..(first + n) as u32;
        let groups = (n * u64::from(p.len.div_ceil(64))).div_ceil(64);
        let bindings = [parts(budget, &some, 16), parts(scores, &some, row)];
        b.dispatch(
            &grouping(&b.context.traits),
            &GroupOffsetsParams { rows: n as u32, ..*p },
            &bindings,
            fold(groups),
        )?;
    }
    Ok(())
}

pub(super) fn settle_heads(
    b: &Wgpu,
    p: &SettleHeadsParams,
    inputs: [Slice<Wgpu>; 3],
    results: [SliceMut<Wgpu>; 3],
) -> Result<()> {
    let [budget, column_score, block_score] = inputs.map(Binding::from);
    let [plan, column_count, offset_count] = results.map(Binding::from);
    let specialisation = settling(&b.context.traits);
    let widest = 4 * u64::from(p.kv_len);
    for (first, n) in b.row_bands(p.n_heads, widest) {
        let some = first as u32..(first + n) as u32;
        let bindings = [
            parts(budget, &some, 16),
            parts(column_score, &some, widest),
            parts(block_score, &some, 4 * u64::from(p.key_blocks)),
            parts(plan, &some, 16),
            parts(column_count, &some, 4),
            parts(offset_count, &some, 4),
        ];
        b.dispatch(&specialisation, &SettleHeadsParams { n_heads: n as u32, ..*p }, &bindings, fold(n))?;
    }
    Ok(())
}

pub(super) fn weigh_blocks(
    b: &Wgpu,
    p: &WeighBlocksParams,
    [plan, scores]: [Slice<Wgpu>; 2],
    mass: SliceMut<Wgpu>,
) -> Result<()> {
    let groups = fold(u64::from(p.n_heads) * u64::from(p.band_len));
    b.dispatch(&weighing(&b.context.traits), p, &[plan.into(), scores.into(), mass.into()], groups)
}

pub(super) fn select_weighed_blocks(
    b: &Wgpu,
    p: &WeighBlocksParams,
    [plan, scores, mass]: [Slice<Wgpu>; 3],
    block_mask: SliceMut<Wgpu>,
) -> Result<()> {
    let groups = fold(u64::from(p.n_heads) * u64::from(p.band_len));
    let bindings = [plan.into(), scores.into(), mass.into(), block_mask.into()];
    b.dispatch(&choosing(&b.context.traits), p, &bindings, groups)
}
