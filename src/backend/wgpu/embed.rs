//! Rows of the embedding table by token id.

use super::buffer::{Binding, lanes};
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::backend::params::EmbedParams;
use crate::backend::{Slice, SliceMut};
use crate::{DType, Result};
use bytemuck::{Pod, Zeroable};

const WORKGROUP: u32 = 256;

/// The kernel's numbers: those of the operation, for a band of the table.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Band {
    params: EmbedParams,
    first_id: u32,
}

fn specialisation(traits: &Traits, table: DType, lanes: u64) -> Specialisation {
    Specialisation::new("embed", traits).constant("WORKGROUP", WORKGROUP).weight(table, lanes).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    for table in Wgpu::WEIGHTS {
        list.extend([1, 4].map(|lanes| specialisation(traits, *table, lanes)));
    }
}

pub(super) fn embed(
    b: &Wgpu,
    p: &EmbedParams,
    ids: Slice<Wgpu>,
    table: Slice<Wgpu>,
    out: SliceMut<Wgpu>,
) -> Result<()> {
    let (ids, table, out) = (Binding::from(ids), Binding::from(table), Binding::from(out));
    Wgpu::check_packed("embed", &table)?;
    let lanes = if table.dtype.is_quantized() { 1 } else { lanes(&[table], &[p.hidden]) };
    let specialisation = specialisation(&b.context.traits, table.dtype, lanes);
    let table_row = table.dtype.bytes(p.hidden as usize) as u64;
    let table = table.with_lanes(lanes);
    let out_row = 4 * u64::from(p.hidden);
    for (first_id, vocab) in b.row_bands(p.vocab, table_row) {
        for (first, count) in b.row_bands(p.n_tokens, out_row) {
            let band = Band {
                params: EmbedParams { n_tokens: count as u32, hidden: p.hidden, vocab: vocab as u32 },
                first_id: first_id as u32,
            };
            let bindings =
                [ids.rows(first, count, 4), table.rows(first_id, vocab, table_row), out.rows(first, count, out_row)];
            let quads = count * u64::from(p.hidden.div_ceil(4));
            b.dispatch(&specialisation, &band, &bindings, fold(quads.div_ceil(u64::from(WORKGROUP))))?;
        }
    }
    Ok(())
}
