//! Keys and values in blocks of 32: a word with the scale as f16, eight words of signed bytes.

use crate::backend::params::PackKvParams;
use half::f16;
use rayon::prelude::*;

/// Words of a block of 32 elements.
const WORDS: usize = 9;

fn rows(p: &PackKvParams, width: usize) -> (usize, std::ops::Range<usize>) {
    let first = p.position as usize * width;
    (p.capacity as usize * width, first..first + p.n_tokens as usize * width)
}

/// `x [n_kv_heads, capacity, head_dim]` into `packed [n_kv_heads, capacity, head_dim / 32, 9]`, and back into `x`.
pub(super) fn pack(p: &PackKvParams, x: &mut [f32], packed: &mut [u32]) {
    let (head, part) = rows(p, p.head_dim as usize);
    let (packed_head, packed_part) = rows(p, p.head_dim as usize / 32 * WORDS);
    let heads = x.par_chunks_mut(head).zip(packed.par_chunks_mut(packed_head)).take(p.n_kv_heads as usize);
    heads.for_each(|(x, packed)| {
        let blocks = packed[packed_part.clone()].as_chunks_mut::<WORDS>().0;
        for (x, words) in x[part.clone()].as_chunks_mut::<32>().0.iter_mut().zip(blocks) {
            let most = x.iter().fold(0f32, |most, x| most.max(x.abs()));
            let scale = f16::from_f32(most / 127.);
            let inverse = if most > 0. { 127. / most } else { 0. };
            words[0] = u32::from(scale.to_bits());
            for (x, word) in x.as_chunks_mut::<4>().0.iter_mut().zip(&mut words[1..]) {
                let quants = x.map(|x| (x * inverse).round_ties_even().clamp(-127., 127.));
                *word = u32::from_le_bytes(quants.map(|q| q as i8 as u8));
                *x = quants.map(|q| scale.to_f32() * q);
            }
        }
    });
}

/// The rows that [`pack`] made.
pub(super) fn unpack(p: &PackKvParams, packed: &[u32], out: &mut [f32]) {
    let (head, part) = rows(p, p.head_dim as usize);
    let (packed_head, packed_part) = rows(p, p.head_dim as usize / 32 * WORDS);
    let heads = out.par_chunks_mut(head).zip(packed.par_chunks(packed_head)).take(p.n_kv_heads as usize);
    heads.for_each(|(out, packed)| {
        let blocks = packed[packed_part.clone()].as_chunks::<WORDS>().0;
        for (out, words) in out[part.clone()].as_chunks_mut::<32>().0.iter_mut().zip(blocks) {
            let scale = f16::from_bits(words[0] as u16).to_f32();
            let quants = words[1..].iter().flat_map(|word| word.to_le_bytes());
            out.iter_mut().zip(quants).for_each(|(out, q)| *out = scale * f32::from(q as i8));
        }
    });
}
