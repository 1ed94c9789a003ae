//! New keys and values into the caches.

use super::buffer::{Binding, lanes};
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::Result;
use crate::backend::params::AppendKvParams;
use crate::backend::{Slice, SliceMut};

const WORKGROUP: u32 = 256;

fn specialisation(traits: &Traits, lanes: u64) -> Specialisation {
    let kernel = Specialisation::new("append_kv", traits).constant("WORKGROUP", WORKGROUP);
    kernel.read("In", traits.activation(), lanes).with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.extend([1, 4].map(|lanes| specialisation(traits, lanes)));
}

pub(super) fn append_kv(
    b: &Wgpu,
    p: &AppendKvParams,
    k: Slice<Wgpu>,
    v: Slice<Wgpu>,
    k_cache: SliceMut<Wgpu>,
    v_cache: SliceMut<Wgpu>,
) -> Result<()> {
    let all: [Binding; 4] = [k.into(), v.into(), k_cache.into(), v_cache.into()];
    let lanes = lanes(&all, &[p.head_dim, p.row_stride]);
    let [k, v, k_cache, v_cache] = all.map(|binding| binding.with_lanes(lanes));
    let specialisation = specialisation(&b.context.traits, lanes);
    let element = k.element_bytes();
    let (row, head_row) = (u64::from(p.row_stride) * element, u64::from(p.head_dim) * element);
    let cache = u64::from(p.n_kv_heads) * u64::from(p.capacity) * head_row;
    // One launch for all heads where a cache can be bound whole; else head by head, only the rows that are written.
    let whole = cache <= b.band_bytes();
    let heads = if whole { 1 } else { u64::from(p.n_kv_heads) };
    for head in 0..heads {
        let skip = head * head_row;
        let [k, v] = [k, v].map(|x| x.part(skip, x.byte_len - skip));
        for (first, count) in b.row_bands(p.n_tokens, row) {
            let position = u64::from(p.position) + first;
            let [k, v] = [k, v].map(|x| x.rows(first, count, row));
            let (n_kv_heads, capacity, position, caches) = if whole {
                (p.n_kv_heads, p.capacity, position as u32, [k_cache, v_cache])
            } else {
                let start = (head * u64::from(p.capacity) + position) * head_row;
                (1, count as u32, 0, [k_cache, v_cache].map(|cache| cache.part(start, count * head_row)))
            };
            let band = AppendKvParams {
                n_tokens: count as u32,
                n_kv_heads,
                head_dim: p.head_dim / lanes as u32,
                row_stride: p.row_stride / lanes as u32,
                capacity,
                position,
            };
            let vectors = count * u64::from(n_kv_heads) * u64::from(band.head_dim);
            let groups = fold(vectors.div_ceil(u64::from(WORKGROUP)));
            b.dispatch(&specialisation, &band, &[k, v, caches[0], caches[1]], groups)?;
        }
    }
    Ok(())
}
