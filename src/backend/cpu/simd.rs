//! Vector pieces that the twins share. `pulp` picks the widest instructions the processor has when the program runs.

use pulp::{Arch, Simd, WithSimd};

/// The instructions in use, for reports.
pub(super) fn name() -> String {
    format!("{:?}", Arch::new()).split(['(', ' ', '{']).next().unwrap_or("scalar").to_lowercase()
}

/// `2^x` to 1e-7, for `x` below 128; 0 below -126.5 (no subnormals), NaN for NaN.
///
/// `2^x = 2^n 2^r`, n the nearest integer. 2^r on [-1/2, 1/2] is `1 + r p(r)`, p interpolating `(2^r - 1) / r` at the
/// six Chebyshev nodes: error 9e-9 before rounding, and exactly 1 at 0, so that a row's largest score weighs 1.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const P: [f32; 6] =
        [std::f32::consts::LN_2, 0.240_226_5, 0.055_503_57, 0.009_618_083, 0.001_339_086_3, 0.000_154_531_63];
    // Adding 1.5 * 2^23 leaves n in the low bits of the sum.
    let round = simd.splat_f32s(12_582_912.0);
    let low = simd.splat_f32s(-127.0);
    // A plain maximum would swallow NaN on some processors.
    let x = select(simd, simd.less_than_f32s(x, low), low, x);
    let shifted = simd.add_f32s(x, round);
    let r = simd.sub_f32s(x, simd.sub_f32s(shifted, round));
    let mut p = simd.splat_f32s(P[5]);
    for c in [P[4], P[3], P[2], P[1], P[0], 1.0] {
        p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(c));
    }
    let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(n, simd.splat_u32s(127 << 23)));
    simd.mul_f32s(p, power)
}

/// `if_true` where `mask` is set. (The trait's own for f32 is not always inlined: a call for each vector.)
#[inline(always)]
pub(super) fn select<S: Simd>(simd: S, mask: S::m32s, if_true: S::f32s, if_false: S::f32s) -> S::f32s {
    let (a, b) = (simd.transmute_u32s_f32s(if_true), simd.transmute_u32s_f32s(if_false));
    simd.transmute_f32s_u32s(simd.select_u32s(mask, a, b))
}

/// The dot product of two rows of one length.
pub(super) struct Dot<'a>(pub &'a [f32], pub &'a [f32]);

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        dot(simd, self.0, self.1)
    }
}

/// Four accumulators, because one would wait for its own sum four cycles at each step.
#[inline(always)]
pub(super) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_tail) = S::as_simd_f32s(a);
    let (b, b_tail) = S::as_simd_f32s(b);
    let mut sums = [simd.splat_f32s(0.0); 4];
    let (a4, a_rest) = a.as_chunks::<4>();
    let (b4, b_rest) = b.as_chunks::<4>();
    for (a, b) in a4.iter().zip(b4) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum = simd.mul_add_e_f32s(a, b, *sum);
        }
    }
    for ((sum, &a), &b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = simd.mul_add_e_f32s(a, b, *sum);
    }
    let sum = simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3]));
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(sum) + tail
}

/// `y += a x`.
#[inline(always)]
pub(super) fn add_scaled<S: Simd>(simd: S, a: f32, x: &[f32], y: &mut [f32]) {
    let (x, x_tail) = S::as_simd_f32s(x);
    let (y, y_tail) = S::as_mut_simd_f32s(y);
    let scale = simd.splat_f32s(a);
    for (y, &x) in y.iter_mut().zip(x) {
        *y = simd.mul_add_e_f32s(scale, x, *y);
    }
    for (y, x) in y_tail.iter_mut().zip(x_tail) {
        *y += a * x;
    }
}

/// Replaces each `x` by `2^(x - shift)` and returns the sum.
#[inline(always)]
pub(super) fn exp2_sum<S: Simd>(simd: S, shift: f32, xs: &mut [f32]) -> f32 {
    let (xs, tail) = S::as_mut_simd_f32s(xs);
    let (shifts, mut sum) = (simd.splat_f32s(shift), simd.splat_f32s(0.0));
    for x in xs {
        *x = exp2(simd, simd.sub_f32s(*x, shifts));
        sum = simd.add_f32s(sum, *x);
    }
    let mut total = simd.reduce_sum_f32s(sum);
    for x in tail {
        *x = (*x - shift).exp2();
        total += *x;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp2<'a>(&'a mut [f32]);

    impl WithSimd for Exp2<'_> {
        type Output = f32;
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            exp2_sum(simd, 0.0, self.0)
        }
    }

    #[test]
    fn powers_of_two() {
        for i in -126_000..1_000 {
            let x = i as f32 * 1e-3;
            let mut out = [x; 64];
            Arch::new().dispatch(Exp2(&mut out));
            let want = f64::from(x).exp2();
            assert!((f64::from(out[0]) / want - 1.0).abs() < 2e-7, "2^{x}: {} {want}", out[0]);
        }
        for (x, want) in [(0.0, 1.0), (-3.0, 0.125), (-127.0, 0.0), (-1e30, 0.0), (f32::NEG_INFINITY, 0.0)] {
            let mut out = [x; 64];
            Arch::new().dispatch(Exp2(&mut out));
            assert_eq!(out[0], want, "2^{x}");
        }
        let mut out = [f32::NAN; 64];
        Arch::new().dispatch(Exp2(&mut out));
        assert!(out[0].is_nan());
    }
}
