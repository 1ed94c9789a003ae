//! Block-quantised weights to f32, with the arithmetic of ggml's reference (`ggml-quants.c`, `gguf-py`): the same
//! operations in the same order, so results agree bit for bit.
//!
//! Each block is unpacked by loops over arrays of known length, which the compiler turns into vector code for the best
//! instruction set found at run time (`pulp`). It never fuses a multiplication with an addition by itself, so the
//! results do not depend on the machine.

use crate::{DType, Error, Result};
use half::f16;

/// All elements of a tensor as f32.
///
/// # Errors
/// As [`dequantize_into`].
pub fn dequantize(dtype: DType, bytes: &[u8], elements: usize) -> Result<Vec<f32>> {
    // Checked before anything of that size is allocated.
    check(dtype, bytes.len(), elements)?;
    let mut out = vec![0.0; elements];
    dequantize_into(dtype, bytes, &mut out)?;
    Ok(out)
}

/// `out.len()` elements as f32, from whole blocks.
///
/// A row of a quantised matrix is a whole number of blocks, so any range of rows can be unpacked alone: `bytes` is then
/// that range's part, `dtype.bytes(columns)` a row.
///
/// # Errors
/// [`Error::Shape`] where `bytes` does not hold exactly `out.len()` elements or these end inside a block;
/// [`Error::Unsupported`] for u32.
pub fn dequantize_into(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    check(dtype, bytes.len(), out.len())?;
    match dtype {
        DType::F32 => bytemuck::cast_slice_mut(out).copy_from_slice(bytes),
        DType::F16 => blocks(bytes, out, half),
        DType::BF16 => blocks(bytes, out, bfloat),
        DType::U32 => return Err(Error::Unsupported("u32 values are not weights".into())),
        DType::Q4_0 => blocks(bytes, out, q4_0),
        DType::Q4_1 => blocks(bytes, out, q4_1),
        DType::Q5_0 => blocks(bytes, out, q5_0),
        DType::Q8_0 => blocks(bytes, out, q8_0),
        DType::Q4K => blocks(bytes, out, q4_k),
        DType::Q5K => blocks(bytes, out, q5_k),
        DType::Q6K => blocks(bytes, out, q6_k),
    }
    Ok(())
}

/// Refuses byte counts and lengths that do not belong together.
fn check(dtype: DType, bytes: usize, elements: usize) -> Result<()> {
    let want = (elements / dtype.block_len()).checked_mul(dtype.block_bytes());
    if !elements.is_multiple_of(dtype.block_len()) || want != Some(bytes) {
        return Err(Error::Shape {
            op: "dequantize",
            what: "bytes",
            expected: format!(
                "whole {dtype} blocks of {} elements, {} bytes each",
                dtype.block_len(),
                dtype.block_bytes()
            ),
            got: format!("{bytes} bytes for {elements} elements"),
        });
    }
    Ok(())
}

/// Runs `unpack` over blocks of `B` bytes and `L` elements, compiled for the vector instructions found.
fn blocks<const B: usize, const L: usize>(bytes: &[u8], out: &mut [f32], unpack: impl Fn(&[u8; B], &mut [f32; L])) {
    let (blocks, out) = (bytes.as_chunks::<B>().0, out.as_chunks_mut::<L>().0);
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            // A closure given to `for_each` would be compiled without the vector instructions: three times slower.
            for (block, out) in blocks.iter().zip(out) {
                unpack(block, out);
            }
        },
    );
}

/// Shifted into place, an f16 is an f32 too small by 2^112, subnormals included; infinities and NaN get their exponent.
#[inline(always)]
fn half(block: &[u8; 2], out: &mut [f32; 1]) {
    let h = u32::from(u16::from_le_bytes(*block));
    let magnitude = (f32::from_bits((h & 0x7fff) << 13) * 2f32.powi(112)).to_bits();
    let special = if h & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    out[0] = f32::from_bits(magnitude | special | (h & 0x8000) << 16);
}

/// A bf16 is the upper half of an f32.
#[inline(always)]
fn bfloat(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16);
}

/// The f16 at `at`.
#[inline(always)]
fn scale(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// d f16, 16 bytes of nibbles: the low ones are elements 0 to 15. `x = d (q - 8)`.
#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for i in 0..16 {
        let q = block[2 + i];
        out[i] = d * f32::from((q & 15) as i8 - 8);
        out[i + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// d, m f16, 16 bytes of nibbles. `x = d q + m`.
#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    for i in 0..16 {
        let q = block[4 + i];
        out[i] = d * f32::from(q & 15) + m;
        out[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// d f16, 32 fifth bits, 16 bytes of nibbles. `x = d (q - 16)`.
#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for i in 0..16 {
        let q = block[6 + i];
        let [low_bit, high_bit] = [high >> i, high >> (i + 16)].map(|h| ((h & 1) as u8) << 4);
        out[i] = d * f32::from((q & 15 | low_bit) as i8 - 16);
        out[i + 16] = d * f32::from((q >> 4 | high_bit) as i8 - 16);
    }
}

/// d f16, 32 signed bytes. `x = q d`.
#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for i in 0..32 {
        out[i] = f32::from(block[2 + i] as i8) * d;
    }
}

/// Scale and minimum, 6 bits each, of sub-block `j` of 8: the first four lie whole in bytes 0 to 7, the others' low four
/// bits in bytes 8 to 11 and their high two bits above the first four's.
#[inline(always)]
fn scale_min(s: &[u8; 12], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4)
    };
    (scale.into(), min.into())
}

/// d, dmin f16, 12 bytes of scales and minima, 128 bytes of nibbles: each 32 bytes hold two sub-blocks of 32.
/// `x = d scale q - dmin min`.
#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let scales: &[u8; 12] = part(block, 4);
    for (g, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let qs: &[u8; 32] = part(block, 16 + 32 * g);
        let [low, high] = [2 * g, 2 * g + 1].map(|j| scale_min(scales, j)).map(|(s, m)| (d * s, dmin * m));
        for i in 0..32 {
            out[i] = low.0 * f32::from(qs[i] & 15) - low.1;
            out[i + 32] = high.0 * f32::from(qs[i] >> 4) - high.1;
        }
    }
}

/// As Q4_K, with a fifth bit: bit `j` of 32 bytes belongs to sub-block `j`.
#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let scales: &[u8; 12] = part(block, 4);
    let fifth: &[u8; 32] = part(block, 16);
    for (g, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let qs: &[u8; 32] = part(block, 48 + 32 * g);
        let [low, high] = [2 * g, 2 * g + 1].map(|j| scale_min(scales, j)).map(|(s, m)| (d * s, dmin * m));
        for i in 0..32 {
            let [a, b] = [2 * g, 2 * g + 1].map(|j| (fifth[i] >> j & 1) << 4);
            out[i] = low.0 * f32::from(qs[i] & 15 | a) - low.1;
            out[i + 32] = high.0 * f32::from(qs[i] >> 4 | b) - high.1;
        }
    }
}

/// 128 bytes of low nibbles, 64 of high two bits, 16 signed scales, d f16. `x = d scale (q - 32)`.
///
/// Each half of 128 elements has 64 + 32 + 8 bytes; its four runs of 32 take low nibbles from bytes 0 to 31, 32 to 63,
/// then the high nibbles of the same, and bits 0-1, 2-3, 4-5, 6-7 of the 32.
#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = scale(block, 208);
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let low: &[u8; 64] = part(block, 64 * half);
        let high: &[u8; 32] = part(block, 128 + 32 * half);
        let scales: &[u8; 8] = part(block, 192 + 8 * half);
        for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low: &[u8; 32] = part(low, 32 * (run % 2));
            let (shift, high_shift) = (4 * (run / 2), 2 * run);
            let [first, second] = [2 * run, 2 * run + 1].map(|s| d * f32::from(scales[s] as i8));
            for i in 0..32 {
                let q = low[i] >> shift & 15 | (high[i] >> high_shift & 3) << 4;
                out[i] = if i < 16 { first } else { second } * f32::from(q as i8 - 32);
            }
        }
    }
}

/// `N` bytes of a block. The places above are constants of the formats, so this cannot fail and costs no check.
#[inline(always)]
fn part<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    &block[at..at + N].as_chunks().0[0]
}
