//! Key blocks by antidiagonal sums, and scores that the query heads of a KV head share.

use super::attention::vectors;
use super::bands::parts;
use super::buffer::Binding;
use super::link::Specialisation;
use super::mass::by_mass;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::{FoldRowsParams, HeadPlan, ShareScoresParams, WeighAntidiagonalsParams};
use crate::backend::{Slice, SliceMut};
use crate::{Error, Result};

fn folding(traits: &Traits) -> Specialisation {
    Specialisation::new("fold_rows", traits).with("invocation")
}

fn weighing(traits: &Traits) -> Specialisation {
    by_mass(traits, "weigh_antidiagonals")
        .constant("BLOCK_SPARSE", HeadPlan::BLOCK_SPARSE)
        .constant("ROW_MASS", HeadPlan::ROW_MASS)
}

fn sharing(traits: &Traits) -> Specialisation {
    Specialisation::new("share_scores", traits).constant("DENSE", HeadPlan::DENSE).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.extend([folding(traits), weighing(traits), sharing(traits)]);
}

pub(super) fn fold_rows(b: &Wgpu, p: &FoldRowsParams, x: Slice<Wgpu>, out: SliceMut<Wgpu>) -> Result<()> {
    let x = vectors("fold_rows", "x", x, [p.row_stride, p.head_stride])?;
    let out = vectors("fold_rows", "out", out, [p.head_dim; 2])?;
    // Head by head where one binding does not hold all.
    let (elem, groups) = (x.element_bytes(), u64::from(p.len.div_ceil(p.fold)));
    let out_head = groups * u64::from(p.fold * p.head_dim) * elem;
    let x_head = (u64::from(p.len - 1) * u64::from(p.row_stride) + u64::from(p.head_dim)) * elem;
    for h in 0..u64::from(p.n_heads) {
        let part = FoldRowsParams { n_heads: 1, ..*p };
        let bindings = [x.part(h * u64::from(p.head_stride) * elem, x_head), out.part(h * out_head, out_head)];
        let vec4s = groups * u64::from(p.fold * p.head_dim / 4);
        b.dispatch(&folding(&b.context.traits), &part, &bindings, fold(vec4s.div_ceil(256)))?;
    }
    Ok(())
}

pub(super) fn weigh_antidiagonals(
    b: &Wgpu,
    p: &WeighAntidiagonalsParams,
    [plan, products]: [Slice<Wgpu>; 2],
    scores: SliceMut<Wgpu>,
) -> Result<()> {
    let groups = fold(u64::from(p.n_heads) * u64::from(p.band_len));
    b.dispatch(&weighing(&b.context.traits), p, &[plan.into(), products.into(), scores.into()], groups)
}

pub(super) fn share_scores(b: &Wgpu, p: &ShareScoresParams, plan: Slice<Wgpu>, scores: SliceMut<Wgpu>) -> Result<()> {
    let (plan, scores) = (Binding::from(plan), Binding::from(scores));
    let together = 4 * u64::from(p.share) * u64::from(p.len);
    if together > b.band_bytes() {
        return Err(Error::Unsupported(format!(
            "share_scores: {} rows of {} scores are above what {} binds",
            p.share, p.len, b.context.info.name
        )));
    }
    for (first, n) in b.row_bands(p.rows / p.share, together) {
        let some = first as u32..(first + n) as u32;
        let bindings = [parts(plan, &some, 16 * u64::from(p.share)), parts(scores, &some, together)];
        let part = ShareScoresParams { rows: n as u32 * p.share, ..*p };
        b.dispatch(&sharing(&b.context.traits), &part, &bindings, fold((n * u64::from(p.len)).div_ceil(256)))?;
    }
    Ok(())
}
