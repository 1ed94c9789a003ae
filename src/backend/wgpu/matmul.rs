//! Products with a weight matrix: decoding rows by `matvec`, everything else in tiles by `matmul`.

use super::buffer::{Binding, lanes};
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::MatmulParams;
use crate::backend::{Slice, SliceMut};
use crate::{DType, Result};

/// Up to so many rows the weights are better read once a row: `matvec` is bound by memory, and a tile would be mostly empty.
const MATVEC_ROWS: u32 = 4;

/// Lanes of a `matvec` group.
fn matvec_workgroup(traits: &Traits) -> u32 {
    if traits.subgroups() { 256.max(traits.subgroup_max) } else { 64 }
}

/// Teams of a `matvec` group, four columns each.
fn matvec_teams(traits: &Traits) -> u32 {
    if traits.subgroups() { matvec_workgroup(traits) / traits.subgroup_max } else { 1 }
}

/// Columns of a tile.
const BLOCK_N: u32 = 128;

/// What decides the form of a product, besides the device.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Operands {
    w: DType,
    x_lanes: u64,
    w_lanes: u64,
    bias: bool,
    out: DType,
}

impl Operands {
    /// What all product kernels define alike.
    fn link(&self, kernel: &'static str, traits: &Traits) -> Specialisation {
        let input = if self.x_lanes == 4 { "input_vec4" } else { "input_scalar" };
        Specialisation::new(kernel, traits)
            .read("In", traits.activation(), self.x_lanes)
            .with(input)
            .weight(self.w, self.w_lanes)
            .constant("BIAS", u32::from(self.bias))
            .write(self.out, 1)
            .lanes(1)
            .with("matmul_out")
    }

    fn matvec(&self, traits: &Traits) -> Specialisation {
        let team = if traits.subgroups() { "team_subgroup" } else { "team_workgroup" };
        let invocation = if traits.subgroups() { "invocation_subgroup" } else { "invocation" };
        self.link("matvec", traits)
            .constant("WORKGROUP", matvec_workgroup(traits))
            .constant("TEAMS", matvec_teams(traits))
            .with(team)
            .with(invocation)
    }

    /// `rows` of 4 or 8 per lane: tiles of 64 or 128 rows.
    fn tiled(&self, traits: &Traits, rows: u32) -> Specialisation {
        // Staged as they are stored where both are f16: half the traffic of workgroup memory.
        let half = traits.f16() && self.w == DType::F16;
        // 20 KiB of f32 with four vectors of k a row, 12 KiB with two.
        let quads = if !half && traits.workgroup_bytes < 20480 { 2 } else { 4 };
        self.link("matmul", traits)
            .alias("Stage", if half { "vec4<f16>" } else { "vec4<f32>" })
            .constant("ROWS", rows)
            .constant("QUADS", quads)
            .with("tile_order")
            .with("invocation")
    }
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    for w in Wgpu::WEIGHTS {
        for out in traits.act_or_f32() {
            for (x_lanes, w_lanes) in [(1, 1), (1, 4), (4, 1), (4, 4)] {
                for bias in [false, true] {
                    let operands = Operands { w: *w, x_lanes, w_lanes, bias, out };
                    list.push(operands.matvec(traits));
                    list.extend([4, 8].map(|rows| operands.tiled(traits, rows)));
                }
            }
        }
    }
}

pub(super) fn matmul(
    b: &Wgpu,
    p: &MatmulParams,
    x: Slice<Wgpu>,
    w: Slice<Wgpu>,
    bias: Option<Slice<Wgpu>>,
    out: SliceMut<Wgpu>,
) -> Result<()> {
    let (x, w, out) = (Binding::from(x), Binding::from(w), Binding::from(out));
    let bias = bias.map(Binding::from);
    let x_row = u64::from(p.x_stride) * x.element_bytes();
    let w_row = w.dtype.bytes(p.k as usize) as u64;
    let out_row = u64::from(p.out_stride) * out.element_bytes();
    let operands = Operands {
        w: w.dtype,
        x_lanes: lanes(&[x], &[p.k, p.x_stride]),
        w_lanes: lanes(&[w], &[p.k]),
        bias: bias.is_some(),
        out: out.dtype,
    };
    let (x, w) = (x.with_lanes(operands.x_lanes), w.with_lanes(operands.w_lanes));
    for (column, n) in b.row_bands(p.n, w_row) {
        let skip = column * out.element_bytes();
        let w = w.rows(column, n, w_row);
        let bias = bias.map(|bias| bias.part(4 * column, 4 * n));
        let out = out.part(skip, out.byte_len - skip);
        for (row, m) in b.row_bands(p.m, x_row.max(out_row)) {
            let band = MatmulParams { m: m as u32, n: n as u32, ..*p };
            let bindings = [x.rows(row, m, x_row), w, bias.unwrap_or(b.placeholder()), out.rows(row, m, out_row)];
            launch(b, &band, &operands, &bindings)?;
        }
    }
    Ok(())
}

/// One product whose operands can be bound whole.
fn launch(b: &Wgpu, p: &MatmulParams, operands: &Operands, bindings: &[Binding; 4]) -> Result<()> {
    let traits = &b.context.traits;
    if p.m <= MATVEC_ROWS {
        let columns = 4 * matvec_teams(traits);
        let groups = u64::from(p.n.div_ceil(columns)) * u64::from(p.m);
        return b.dispatch(&operands.matvec(traits), p, bindings, fold(groups));
    }
    let rows = if p.m <= 64 { 4 } else { 8 };
    let tiles = u64::from(p.n.div_ceil(BLOCK_N)) * u64::from(p.m.div_ceil(16 * rows));
    b.dispatch(&operands.tiled(traits, rows), p, bindings, fold(tiles))
}
