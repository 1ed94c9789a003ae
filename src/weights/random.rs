//! Random weights, for latency runs of shapes without a checkpoint.

use crate::{DType, Error, Result};
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements made by one generator: a multiple of every block length, so that the result does not depend on how the work
/// is split.
const CHUNK: usize = 1 << 16;

/// Bytes of `elements` random weights with mean 0 and about this standard deviation, the same for the same seed.
///
/// Values are uniform rather than normal: timing does not care, and every bit pattern of a quantised block is then used.
///
/// # Errors
/// [`Error::Invalid`] where `elements` is no whole number of blocks, or the type is u32.
pub fn random_blocks(dtype: DType, elements: usize, seed: u64, std: f32) -> Result<Vec<u8>> {
    if !elements.is_multiple_of(dtype.block_len()) {
        let block = dtype.block_len();
        return Err(Error::invalid(format!("{elements} random {dtype} weights: not a multiple of {block}")));
    }
    let fill: fn(&mut [u8], &mut Rng, f32) = match dtype {
        DType::F32 => |block, rng, std| block.copy_from_slice(&rng.uniform(std).to_le_bytes()),
        DType::F16 => |block, rng, std| block.copy_from_slice(&f16::from_f32(rng.uniform(std)).to_le_bytes()),
        DType::BF16 => |block, rng, std| block.copy_from_slice(&bf16::from_f32(rng.uniform(std)).to_le_bytes()),
        DType::U32 => return Err(Error::invalid("random weights of type u32")),
        DType::Q4_0 => |block, rng, std| {
            rng.bytes(block);
            put(block, 0, std / spread(16));
        },
        DType::Q4_1 => |block, rng, std| {
            let d = std / spread(16);
            rng.bytes(block);
            put(block, 0, d);
            put(block, 2, -7.5 * d);
        },
        DType::Q5_0 => |block, rng, std| {
            rng.bytes(block);
            put(block, 0, std / spread(32));
        },
        DType::Q8_0 => |block, rng, std| {
            rng.bytes(block);
            put(block, 0, std / spread(256));
        },
        // Scale 32 and minimum 60 in every sub-block: 32 d (q - 7.5) where 60 dmin = 32 * 7.5 d.
        DType::Q4K => |block, rng, std| {
            let d = std / spread(16) / 32.0;
            rng.bytes(block);
            put(block, 0, d);
            put(block, 2, 4.0 * d);
            block[4..16].copy_from_slice(&scales(32, 60));
        },
        // 32 d (q - 15.5) where 62 dmin = 32 * 15.5 d.
        DType::Q5K => |block, rng, std| {
            let d = std / spread(32) / 32.0;
            rng.bytes(block);
            put(block, 0, d);
            put(block, 2, 8.0 * d);
            block[4..16].copy_from_slice(&scales(32, 62));
        },
        DType::Q6K => |block, rng, std| {
            rng.bytes(block);
            block[192..208].fill(64);
            put(block, 208, std / spread(64) / 64.0);
        },
    };
    let mut out = vec![0; dtype.bytes(elements)];
    out.par_chunks_mut(dtype.bytes(CHUNK)).enumerate().for_each(|(i, chunk)| {
        let mut rng = Rng(seed ^ (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        chunk.chunks_exact_mut(dtype.block_bytes()).for_each(|block| fill(block, &mut rng, std));
    });
    Ok(out)
}

/// Standard deviation of an integer drawn evenly from `levels` neighbouring ones.
fn spread(levels: u32) -> f32 {
    (((levels * levels - 1) as f32) / 12.0).sqrt()
}

fn put(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// The 12 bytes of a K-quant block whose eight sub-blocks have one scale and one minimum, both below 64.
fn scales(scale: u8, min: u8) -> [u8; 12] {
    let [s, m] = [scale, min].map(|x| x | (x >> 4) << 6);
    let low = scale & 15 | (min & 15) << 4;
    [s, s, s, s, m, m, m, m, low, low, low, low]
}

/// splitmix64: a counter through a mixing function, so any start value is a good one.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn bytes(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }

    /// Mean 0 and standard deviation `std`: even over `std * sqrt(3)` on both sides.
    fn uniform(&mut self, std: f32) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1u32 << 24) as f32;
        (2.0 * unit - 1.0) * 3f32.sqrt() * std
    }
}
