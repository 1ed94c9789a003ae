//! `silu(gate) * up`.

use super::buffer::{Binding, lanes};
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::Result;
use crate::backend::params::SiluMulParams;
use crate::backend::{Slice, SliceMut};

const WORKGROUP: u32 = 256;

fn specialisation(traits: &Traits, lanes: u64) -> Specialisation {
    let act = traits.activation();
    let kernel = Specialisation::new("silu_mul", traits).constant("WORKGROUP", WORKGROUP);
    kernel.read("In", act, lanes).write(act, lanes).lanes(lanes).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.extend([1, 4].map(|lanes| specialisation(traits, lanes)));
}

pub(super) fn silu_mul(b: &Wgpu, p: &SiluMulParams, gate_up: Slice<Wgpu>, out: SliceMut<Wgpu>) -> Result<()> {
    let (gate_up, out) = (Binding::from(gate_up), Binding::from(out));
    let lanes = lanes(&[gate_up, out], &[p.ffn]);
    let specialisation = specialisation(&b.context.traits, lanes);
    let (gate_up, out) = (gate_up.with_lanes(lanes), out.with_lanes(lanes));
    let ffn = p.ffn / lanes as u32;
    let row_bytes = u64::from(ffn) * out.unit();
    for (first, count) in b.row_bands(p.rows, 2 * row_bytes) {
        let bindings = [gate_up.rows(first, count, 2 * row_bytes), out.rows(first, count, row_bytes)];
        let groups = fold((count * u64::from(ffn)).div_ceil(u64::from(WORKGROUP)));
        b.dispatch(&specialisation, &SiluMulParams { rows: count as u32, ffn }, &bindings, groups)?;
    }
    Ok(())
}
