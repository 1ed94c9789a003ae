//! Root-mean-square norm of each row, or of each group of columns in it.

use super::buffer::{Binding, lanes};
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::RmsNormParams;
use crate::backend::{Slice, SliceMut};
use crate::{DType, Result};

/// Lanes for a group: few for the heads of a q/k norm, many for a row of the residual stream.
const WORKGROUPS: [u32; 2] = [32, 256];

fn specialisation(traits: &Traits, x: DType, out: DType, lanes: u64, workgroup: u32) -> Specialisation {
    let kernel = Specialisation::new("rms_norm", traits).constant("WORKGROUP", workgroup);
    let kernel = kernel.read("In", x, lanes).write(out, lanes).lanes(lanes);
    if traits.subgroups() {
        kernel.with("invocation_subgroup").with("reduce_subgroup")
    } else {
        kernel.with("invocation").with("reduce_workgroup")
    }
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    for x in traits.act_or_f32() {
        for out in traits.act_or_f32() {
            for lanes in [1, 4] {
                list.extend(WORKGROUPS.map(|workgroup| specialisation(traits, x, out, lanes, workgroup)));
            }
        }
    }
}

pub(super) fn rms_norm(
    b: &Wgpu,
    p: &RmsNormParams,
    x: Slice<Wgpu>,
    weight: Slice<Wgpu>,
    out: SliceMut<Wgpu>,
) -> Result<()> {
    let (x, weight, out) = (Binding::from(x), Binding::from(weight), Binding::from(out));
    let lanes = lanes(&[x, weight, out], &[p.cols, p.x_stride, p.out_stride]);
    let (x, weight, out) = (x.with_lanes(lanes), weight.with_lanes(lanes), out.with_lanes(lanes));
    let vectors = |elements: u32| elements / lanes as u32;
    let workgroup = if p.cols <= 512 { WORKGROUPS[0] } else { WORKGROUPS[1] };
    let specialisation = specialisation(&b.context.traits, x.dtype, out.dtype, lanes, workgroup);
    let x_row = u64::from(p.x_stride) * x.element_bytes();
    let out_row = u64::from(p.out_stride) * out.element_bytes();
    for (first, count) in b.row_bands(p.rows, x_row.max(out_row)) {
        let band = RmsNormParams {
            rows: count as u32,
            cols: vectors(p.cols),
            x_stride: vectors(p.x_stride),
            out_stride: vectors(p.out_stride),
            ..*p
        };
        let bindings = [x.rows(first, count, x_row), weight, out.rows(first, count, out_row)];
        b.dispatch(&specialisation, &band, &bindings, fold(count * u64::from(p.groups)))?;
    }
    Ok(())
}
