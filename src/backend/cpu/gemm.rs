//! The product of matrices: a checked front of the `gemm` crate, whose one entry takes raw pointers.
#![allow(unsafe_code)]

/// `out[i, j] (+)= sum_k x[i, k] w[j, k]` on all threads: x `[m, k]` under `x_stride`, w `[n, k]` dense, out `[m, n]`
/// under `out_stride`. Panics where a slice is shorter than that, or where rows of `out` overlap.
pub(super) fn matmul_transposed(
    [m, n, k]: [usize; 3],
    (x, x_stride): (&[f32], usize),
    w: &[f32],
    (out, out_stride): (&mut [f32], usize),
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(x.len() >= (m - 1) * x_stride + k, "x: {} elements for [{m}, {k}] under {x_stride}", x.len());
    assert!(w.len() >= n * k, "w: {} elements for [{n}, {k}]", w.len());
    assert!(out.len() >= (m - 1) * out_stride + n, "out: {} elements for [{m}, {n}]", out.len());
    assert!(out_stride >= n, "out: rows of {n} overlap under {out_stride}");
    // SAFETY: every address that the product touches lies in one of the three slices: row i, column j of x, w and out is
    // element i * stride + j, and the asserts above bound the last row's end by the slice's length. `out` is borrowed
    // mutably, so it overlaps neither input, and its rows do not overlap each other. f32 has no invalid values.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            accumulate,
            x.as_ptr(),
            1,
            x_stride as isize,
            w.as_ptr(),
            k as isize,
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::matmul_transposed;

    #[test]
    fn adds_into_a_band_of_wider_rows() {
        let (x, w) = ([1.0, 2.0, 9.0, 3.0, 4.0], [1.0, 1.0, 10.0, 100.0, 0.5, 0.0]);
        let mut out = [0.5; 9];
        matmul_transposed([2, 3, 2], (&x, 3), &w, (&mut out, 5), true);
        assert_eq!(out, [3.5, 210.5, 1.0, 0.5, 0.5, 7.5, 430.5, 2.0, 0.5]);
        matmul_transposed([2, 3, 2], (&x, 3), &w, (&mut out, 5), false);
        assert_eq!(out, [3.0, 210.0, 0.5, 0.5, 0.5, 7.0, 430.0, 1.5, 0.5]);
    }

    #[test]
    #[should_panic(expected = "w: 5 elements")]
    fn short_operands_are_refused() {
        matmul_transposed([1, 3, 2], (&[0.0; 2], 2), &[0.0; 5], (&mut [0.0; 3], 3), false);
    }
}
