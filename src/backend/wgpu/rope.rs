//! Rotary position embedding.

use super::buffer::Binding;
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::Result;
use crate::backend::params::RopeParams;
use crate::backend::{Slice, SliceMut};

const WORKGROUP: u32 = 256;

fn specialisation(traits: &Traits) -> Specialisation {
    let act = traits.activation();
    let kernel = Specialisation::new("rope", traits).constant("WORKGROUP", WORKGROUP);
    kernel.read("In", act, 1).write(act, 1).lanes(1).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.push(specialisation(traits));
}

pub(super) fn rope(b: &Wgpu, p: &RopeParams, turns: Slice<Wgpu>, x: SliceMut<Wgpu>) -> Result<()> {
    let (turns, x) = (Binding::from(turns), Binding::from(x));
    let row_bytes = u64::from(p.row_stride) * x.element_bytes();
    for (first, count) in b.row_bands(p.n_tokens, row_bytes) {
        let band = RopeParams { n_tokens: count as u32, position_start: p.position_start + first as u32, ..*p };
        let pairs = count * u64::from(p.n_heads) * u64::from(p.rotary_dim / 2);
        let bindings = [turns, x.rows(first, count, row_bytes)];
        b.dispatch(&specialisation(&b.context.traits), &band, &bindings, fold(pairs.div_ceil(u64::from(WORKGROUP))))?;
    }
    Ok(())
}
