//! `out[r, g, c] = x[r, g, c] / sqrt(mean(x[r, g, :]^2) + eps) * weight[c]`.

use super::simd;
use crate::backend::params::RmsNormParams;
use pulp::Arch;
use rayon::prelude::*;

pub(super) fn rms_norm(p: &RmsNormParams, x: &[f32], weight: &[f32], out: &mut [f32]) {
    let cols = p.cols as usize;
    let arch = Arch::new();
    let rows = out.par_chunks_mut(p.out_stride as usize).zip(x.par_chunks(p.x_stride as usize));
    rows.take(p.rows as usize).for_each(|(out, x)| {
        for (out, x) in out.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).take(p.groups as usize) {
            let mean = arch.dispatch(simd::Dot(x, x)) / cols as f32;
            let scale = 1.0 / (mean + p.eps).sqrt();
            for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * w;
            }
        }
    });
}
