//! Element types converted.

use super::buffer::Binding;
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::CastParams;
use crate::backend::{Slice, SliceMut};
use crate::{DType, Result};

const WORKGROUP: u32 = 256;

fn specialisation(traits: &Traits, x: DType, out: DType) -> Specialisation {
    let kernel = Specialisation::new("cast", traits).constant("WORKGROUP", WORKGROUP);
    kernel.weight(x, 1).write(out, 1).lanes(1).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    for x in [DType::F32, DType::F16, DType::BF16] {
        list.extend(traits.act_or_f32().map(|out| specialisation(traits, x, out)));
    }
}

pub(super) fn cast(b: &Wgpu, p: &CastParams, x: Slice<Wgpu>, out: SliceMut<Wgpu>) -> Result<()> {
    let (x, out) = (Binding::from(x), Binding::from(out));
    let specialisation = specialisation(&b.context.traits, x.dtype, out.dtype);
    for (first, count) in b.row_bands(p.len, x.unit().max(out.unit())) {
        let bindings = [x.rows(first, count, x.unit()), out.rows(first, count, out.unit())];
        let groups = fold(count.div_ceil(4 * u64::from(WORKGROUP)));
        b.dispatch(&specialisation, &CastParams { len: count as u32 }, &bindings, groups)?;
    }
    Ok(())
}
