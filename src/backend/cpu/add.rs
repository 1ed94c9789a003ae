//! `out += x`.

use rayon::prelude::*;

/// Elements of one parallel step: 64 KiB, a cache's worth.
pub(super) const STEP: usize = 16384;

pub(super) fn add(x: &[f32], out: &mut [f32]) {
    out.par_chunks_mut(STEP).zip(x.par_chunks(STEP)).for_each(|(out, x)| {
        for (out, x) in out.iter_mut().zip(x) {
            *out += x;
        }
    });
}
