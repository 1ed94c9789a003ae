//! Random weights, for latency runs of shapes without a checkpoint.

use crate::splitmix::{STEP, SplitMix64};
use crate::{DType, Error, Result};
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements made by one generator: a multiple of every block length, so that the result does not depend on how the work
/// is split.
const CHUNK: usize = 1 << 16;

/// Bytes of `elements` random weights with mean 0 and about this standard deviation, the same for the same seed.
///
/// Values are uniform rather than normal, plain types with 256 levels: timing does not care, every bit pattern of the
/// quants is used, and 8 billion weights are made in seconds.
///
/// # Errors
/// [`Error::Invalid`] where `elements` is no whole number of blocks, or the type is u32.
pub fn random_blocks(dtype: DType, elements: usize, seed: u64, std: f32) -> Result<Vec<u8>> {
    if !elements.is_multiple_of(dtype.block_len()) {
        let block = dtype.block_len();
        return Err(Error::invalid(format!("{elements} random {dtype} weights: not a multiple of {block}")));
    }
    let level = |byte: u8| (f32::from(byte) - 127.5) * (std / spread(256));
    let mut out = vec![0; dtype.bytes(elements)];
    match dtype {
        DType::F32 => plain(&mut out, seed, |byte| level(byte).to_le_bytes()),
        DType::F16 => plain(&mut out, seed, |byte| f16::from_f32(level(byte)).to_le_bytes()),
        DType::BF16 => plain(&mut out, seed, |byte| bf16::from_f32(level(byte)).to_le_bytes()),
        DType::U32 => return Err(Error::invalid("random weights of type u32")),
        _ => quantized(&mut out, seed, dtype, &fixed_parts(dtype, std)),
    }
    Ok(out)
}

/// Standard deviation of an integer drawn evenly from `levels` neighbouring ones.
fn spread(levels: u32) -> f32 {
    (((levels * levels - 1) as f32) / 12.0).sqrt()
}

/// Elements of `N` bytes, each one of the 256 that `level` gives.
fn plain<const N: usize>(out: &mut [u8], seed: u64, level: impl Fn(u8) -> [u8; N]) {
    let levels: [[u8; N]; 256] = std::array::from_fn(|i| level(i as u8));
    let elements = out.as_chunks_mut::<N>().0;
    elements.par_chunks_mut(CHUNK).enumerate().for_each(|(i, chunk)| {
        let mut rng = rng_of_chunk(seed, i);
        for run in chunk.chunks_mut(8) {
            let choice = rng.bits().to_le_bytes();
            run.iter_mut().zip(choice).for_each(|(element, byte)| *element = levels[usize::from(byte)]);
        }
    });
}

/// Blocks of random bytes with `fixed` written over them: places and bytes.
fn quantized(out: &mut [u8], seed: u64, dtype: DType, fixed: &[(usize, Vec<u8>)]) {
    out.par_chunks_mut(dtype.bytes(CHUNK)).enumerate().for_each(|(i, chunk)| {
        let mut rng = rng_of_chunk(seed, i);
        for run in chunk.chunks_mut(8) {
            run.copy_from_slice(&rng.bits().to_le_bytes()[..run.len()]);
        }
        for block in chunk.chunks_exact_mut(dtype.block_bytes()) {
            fixed.iter().for_each(|(at, bytes)| block[*at..*at + bytes.len()].copy_from_slice(bytes));
        }
    });
}

/// Scales and minima that give quants of any value the wanted spread around 0; layouts as in `dequant.rs`.
fn fixed_parts(dtype: DType, std: f32) -> Vec<(usize, Vec<u8>)> {
    let half = |x: f32| f16::from_f32(x).to_le_bytes().to_vec();
    match dtype {
        DType::Q4_0 => vec![(0, half(std / spread(16)))],
        DType::Q4_1 => vec![(0, half(std / spread(16))), (2, half(-7.5 * std / spread(16)))],
        DType::Q5_0 => vec![(0, half(std / spread(32)))],
        DType::Q8_0 => vec![(0, half(std / spread(256)))],
        // Scale 32 and minimum 60 in every sub-block: 32 d (q - 7.5) where 60 dmin = 32 * 7.5 d.
        DType::Q4K => {
            let d = std / spread(16) / 32.0;
            vec![(0, half(d)), (2, half(4.0 * d)), (4, scales(32, 60).to_vec())]
        }
        // 32 d (q - 15.5) where 62 dmin = 32 * 15.5 d.
        DType::Q5K => {
            let d = std / spread(32) / 32.0;
            vec![(0, half(d)), (2, half(8.0 * d)), (4, scales(32, 62).to_vec())]
        }
        DType::Q6K => vec![(192, vec![64; 16]), (208, half(std / spread(64) / 64.0))],
        DType::F32 | DType::F16 | DType::BF16 | DType::U32 => Vec::new(),
    }
}

/// The 12 bytes of a K-quant block whose eight sub-blocks have one scale and one minimum, both below 64.
fn scales(scale: u8, min: u8) -> [u8; 12] {
    let [s, m] = [scale, min].map(|x| x | (x >> 4) << 6);
    let low = scale & 15 | (min & 15) << 4;
    [s, s, s, s, m, m, m, m, low, low, low, low]
}

/// The draws of one chunk.
fn rng_of_chunk(seed: u64, chunk: usize) -> SplitMix64 {
    SplitMix64::new(seed ^ (chunk as u64 + 1).wrapping_mul(STEP))
}
