//! Keys and values into blocks of 32 elements, and back.

use super::buffer::Binding;
use super::link::Specialisation;
use super::queue::fold;
use super::{Traits, Wgpu};
use crate::Result;
use crate::backend::params::PackKvParams;
use crate::backend::{Slice, SliceMut};

const WORKGROUP: u32 = 256;

fn specialisation(traits: &Traits, kernel: &'static str) -> Specialisation {
    Specialisation::new(kernel, traits).constant("WORKGROUP", WORKGROUP).with("packed").with("invocation")
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.extend(["pack_kv", "unpack_kv"].map(|kernel| specialisation(traits, kernel)));
}

pub(super) fn pack_kv(b: &Wgpu, p: &PackKvParams, x: SliceMut<Wgpu>, packed: SliceMut<Wgpu>) -> Result<()> {
    launch(b, p, "pack_kv", [x.into(), packed.into()], 32)
}

pub(super) fn unpack_kv(b: &Wgpu, p: &PackKvParams, packed: Slice<Wgpu>, out: SliceMut<Wgpu>) -> Result<()> {
    launch(b, p, "unpack_kv", [packed.into(), out.into()], 4)
}

/// One launch for all heads where both caches can be bound whole; else head by head, only the rows concerned.
fn launch(b: &Wgpu, p: &PackKvParams, kernel: &'static str, caches: [Binding; 2], elements: u64) -> Result<()> {
    let specialisation = specialisation(&b.context.traits, kernel);
    let [heads, capacity] = [p.n_kv_heads, p.capacity].map(u64::from);
    let bytes = caches.map(|cache| cache.byte_len / (heads * capacity));
    let launch = |p: &PackKvParams, caches: &[Binding]| {
        let threads = u64::from(p.n_tokens) * u64::from(p.n_kv_heads) * (u64::from(p.head_dim) / elements);
        b.dispatch(&specialisation, p, caches, fold(threads.div_ceil(u64::from(WORKGROUP))))
    };
    if caches.iter().all(|cache| cache.byte_len <= b.band_bytes()) {
        return launch(p, &caches);
    }
    for head in 0..heads {
        for (first, count) in b.row_bands(p.n_tokens, bytes[0].max(bytes[1])) {
            let row = head * capacity + u64::from(p.position) + first;
            let mut part = caches;
            part.iter_mut().zip(bytes).for_each(|(cache, bytes)| *cache = cache.part(row * bytes, count * bytes));
            let count = count as u32;
            launch(&PackKvParams { n_tokens: count, n_kv_heads: 1, capacity: count, position: 0, ..*p }, &part)?;
        }
    }
    Ok(())
}
