//! `out[r, c] = silu(gate_up[r, c]) * gate_up[r, ffn + c]`, silu(x) = x / (1 + exp(-x)).

use super::simd;
use crate::backend::params::SiluMulParams;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

pub(super) fn silu_mul(p: &SiluMulParams, gate_up: &[f32], out: &mut [f32]) {
    let ffn = p.ffn as usize;
    let arch = Arch::new();
    out.par_chunks_mut(ffn).zip(gate_up.par_chunks(2 * ffn)).for_each(|(out, row)| {
        let (gate, up) = row.split_at(ffn);
        arch.dispatch(SiluMul { gate, up, out });
    });
}

struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (gate, gate_tail) = S::as_simd_f32s(self.gate);
        let (up, up_tail) = S::as_simd_f32s(self.up);
        let (out, out_tail) = S::as_mut_simd_f32s(self.out);
        let (one, log2_e) = (simd.splat_f32s(1.0), simd.splat_f32s(-std::f32::consts::LOG2_E));
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            let e = simd::exp2(simd, simd.mul_f32s(gate, log2_e));
            *out = simd.mul_f32s(simd.div_f32s(gate, simd.add_f32s(one, e)), up);
        }
        for ((out, gate), up) in out_tail.iter_mut().zip(gate_tail).zip(up_tail) {
            *out = gate / (1.0 + (-gate).exp()) * up;
        }
    }
}
