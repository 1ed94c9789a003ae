//! `out += x`.

use super::buffer::{Binding, lanes};
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::AddParams;
use crate::backend::{Slice, SliceMut};
use crate::{DType, Result};

const WORKGROUP: u32 = 256;

fn specialisation(traits: &Traits, x: DType, lanes: u64) -> Specialisation {
    let kernel = Specialisation::new("add", traits).constant("WORKGROUP", WORKGROUP);
    kernel.read("In", x, lanes).lanes(lanes).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.extend(traits.act_or_f32().flat_map(|x| [1, 4].map(|lanes| specialisation(traits, x, lanes))));
}

pub(super) fn add(b: &Wgpu, p: &AddParams, x: Slice<Wgpu>, out: SliceMut<Wgpu>) -> Result<()> {
    let (x, out) = (Binding::from(x), Binding::from(out));
    let lanes = lanes(&[x, out], &[p.len]);
    let specialisation = specialisation(&b.context.traits, x.dtype, lanes);
    // Rows of one vector; those of `out` are never the narrower ones.
    let (x, out) = (x.with_lanes(lanes), out.with_lanes(lanes));
    for (first, count) in b.row_bands(p.len / lanes as u32, out.unit()) {
        let bindings = [x.rows(first, count, x.unit()), out.rows(first, count, out.unit())];
        let groups = fold(count.div_ceil(u64::from(WORKGROUP)));
        b.dispatch(&specialisation, &AddParams { len: count as u32 }, &bindings, groups)?;
    }
    Ok(())
}
