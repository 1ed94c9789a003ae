//! `out += x`.

use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::AddParams;
use crate::backend::{Slice, SliceMut};
use crate::{DType, Result};

const WORKGROUP: u32 = 256;

fn specialisation(traits: &Traits, x: DType) -> Specialisation {
    Specialisation::new("add", traits).alias("In", traits.scalar(x)).constant("WORKGROUP", WORKGROUP).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.extend(traits.act_or_f32().map(|x| specialisation(traits, x)));
}

pub(super) fn add(b: &Wgpu, p: &AddParams, x: Slice<Wgpu>, out: SliceMut<Wgpu>) -> Result<()> {
    let (x, out) = (super::Binding::from(x), super::Binding::from(out));
    let specialisation = specialisation(&b.context.traits, x.dtype);
    // Bands of what one binding holds; `out` has the wider elements.
    let band = b.band_bytes() / 4;
    for first in (0..u64::from(p.len)).step_by(band as usize) {
        let len = band.min(u64::from(p.len) - first);
        let parts =
            [x.part(first * x.dtype.bytes(1) as u64, len * x.dtype.bytes(1) as u64), out.part(first * 4, len * 4)];
        let groups = len.div_ceil(u64::from(WORKGROUP));
        b.dispatch(&specialisation, &AddParams { len: len as u32 }, &parts, fold(groups))?;
    }
    Ok(())
}
