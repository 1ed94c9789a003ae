//! Inputs that any program can make again: values from counters, the `bands` sets, and layers with the structure of real
//! heads.

use crate::backend::Backend;
use crate::ops::AttentionShape;
use crate::splitmix::{STEP, SplitMix64, mix};
use crate::tensor::Tensor;
use crate::{DType, Result};
use half::f16;
use rayon::prelude::*;
use std::collections::BTreeSet;

/// SplitMix64 of a counter: the same values in any order.
pub fn hash(seed: u64, i: u64) -> u64 {
    mix((seed.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ i).wrapping_add(STEP))
}

/// Value `i` of a seed, roughly normal: the sum of four even ones.
fn normal(seed: u64, i: u64) -> f32 {
    let z = hash(seed, i);
    let sum: f32 = (0..4).map(|k| (z >> (16 * k) & 0xffff) as f32 / 65536. - 0.5).sum();
    sum * 3f32.sqrt()
}

/// Evenly in [0, 1).
fn uniform(seed: u64, i: u64) -> f64 {
    (hash(seed, i) >> 11) as f64 / (1u64 << 53) as f64
}

/// Roughly normal values of deviation 1, rounded to f16.
pub fn normals(n: usize, seed: u64) -> Vec<f16> {
    (0..n).into_par_iter().map(|i| f16::from_f32(normal(seed, i as u64))).collect()
}

/// The `bands` sets of a head of `n` keys, ascending: the first 30 columns and single ones at random places; half of the
/// offsets next to the diagonal and the rest in bands of 32 to 256 at random places. Exactly `columns` and `offsets` of
/// them, but never more than `n`.
pub fn bands(n: usize, columns: usize, offsets: usize, head: usize) -> (Vec<u32>, Vec<u32>) {
    let mut rng = SplitMix64::new(1_000_003 + head as u64);
    let mut next = |below: usize| (rng.bits() % below as u64) as usize;
    let (columns, offsets) = (columns.min(n), offsets.min(n));
    let mut vertical: BTreeSet<usize> = (0..columns.min(30)).collect();
    while vertical.len() < columns {
        vertical.insert(next(n));
    }
    let base = (offsets / 2).max(offsets.min(100));
    let mut slash: BTreeSet<usize> = (0..base).collect();
    while slash.len() < offsets {
        let width = 32 + next(225);
        let first = base + next((n - base).max(1));
        for offset in first..n.min(first + width) {
            if slash.len() < offsets {
                slash.insert(offset);
            }
        }
    }
    let list = |set: BTreeSet<usize>| set.into_iter().map(|x| x as u32).collect();
    (list(vertical), list(slash))
}

/// q, k and v of one layer in host memory: queries token-major as a decoder has them, keys and values head-major.
pub struct Inputs {
    /// Heads, lengths and strides.
    pub shape: AttentionShape,
    /// `[q_len, H, D]`.
    pub q: Vec<f16>,
    /// `[KV, kv_len, D]`.
    pub k: Vec<f16>,
    /// `[KV, kv_len, D]`.
    pub v: Vec<f16>,
}

impl Inputs {
    fn shape(n_heads: usize, n_kv_heads: usize, head_dim: usize, q_len: usize, q_start: usize) -> AttentionShape {
        let kv_len = q_start + q_len;
        AttentionShape {
            n_heads,
            n_kv_heads,
            head_dim,
            q_len,
            kv_len,
            q_start,
            scale: 1.0 / (head_dim as f32).sqrt(),
            q_stride: [n_heads * head_dim, head_dim],
            k_stride: [head_dim, kv_len * head_dim],
            v_stride: [head_dim, kv_len * head_dim],
            out_stride: [n_heads * head_dim, head_dim],
        }
    }

    /// Normal values: no key matters more than another.
    pub fn random(n_heads: usize, n_kv_heads: usize, head_dim: usize, q_len: usize, q_start: usize) -> Self {
        let shape = Self::shape(n_heads, n_kv_heads, head_dim, q_len, q_start);
        let keys = n_kv_heads * shape.kv_len * head_dim;
        Self { shape, q: normals(n_heads * q_len * head_dim, 1), k: normals(keys, 2), v: normals(keys, 3) }
    }

    /// Values with what real heads have, so that estimation finds something: a constant part under rotary embedding
    /// (theta 500000) whose scores peak at the diagonal and at three far offsets, 3 % strong columns and four sink tokens
    /// that the slowest frequencies read, and normal noise. Each KV head has its own, its query heads share them.
    pub fn structured(n_heads: usize, n_kv_heads: usize, head_dim: usize, len: usize) -> Self {
        let shape = Self::shape(n_heads, n_kv_heads, head_dim, len, 0);
        let (d, half) = (head_dim, head_dim / 2);
        let low = (half / 8).max(1);
        let frequencies: Vec<f64> = (0..half).map(|i| 500_000f64.powf(-(i as f64) / half as f64)).collect();
        let angles: Vec<(f32, f32)> = (0..len * half)
            .into_par_iter()
            .map(|i| (((i / half) as f64 * frequencies[i % half]) % std::f64::consts::TAU).sin_cos())
            .map(|(sin, cos)| (sin as f32, cos as f32))
            .collect();
        let heads: Vec<Structure> =
            (0..n_kv_heads).map(|head| Structure::new(head, len, d, low, &frequencies)).collect();
        let column = ((d as f32).sqrt() / low as f32).sqrt();
        let rotate = |x: &[f32], position: usize, out: &mut [f16]| {
            for (i, (sin, cos)) in angles[position * half..][..half].iter().enumerate() {
                out[i] = f16::from_f32(x[i] * cos - x[half + i] * sin);
                out[half + i] = f16::from_f32(x[half + i] * cos + x[i] * sin);
            }
        };
        let noise =
            |seed: u64, row: usize| (0..d).map(move |i| normal(seed, (row * d + i) as u64)).collect::<Vec<f32>>();

        let mut q = vec![f16::ZERO; n_heads * len * d];
        q.par_chunks_mut(d).enumerate().for_each(|(row, out)| {
            let (position, head) = (row / n_heads, row % n_heads);
            let structure = &heads[head / (n_heads / n_kv_heads)];
            let mut x = noise(1, row);
            for i in 0..half {
                x[i] += structure.amplitude[i] * structure.phase[i].cos();
                x[half + i] -= structure.amplitude[i] * structure.phase[i].sin();
            }
            x[half - low..half].iter_mut().for_each(|x| *x += column);
            rotate(&x, position, out);
        });
        let mut k = vec![f16::ZERO; n_kv_heads * len * d];
        k.par_chunks_mut(d).enumerate().for_each(|(row, out)| {
            let (head, position) = (row / len, row % len);
            let structure = &heads[head];
            let mut x = noise(2, row);
            (0..half).for_each(|i| x[i] += structure.amplitude[i]);
            x[half - low..half].iter_mut().for_each(|x| *x += column * structure.strength(head, position));
            rotate(&x, position, out);
        });
        Self { shape, q, v: normals(n_kv_heads * len * d, 3), k }
    }

    /// q, k and v as a backend stores activations.
    pub fn upload<B: Backend>(&self, b: &B) -> Result<[Tensor<B>; 3]> {
        let upload = |x: &[f16]| match b.activation() {
            DType::F16 => Tensor::from_slice(b, DType::F16, [x.len()], x),
            _ => Tensor::activation(b, [x.len()], &x.iter().map(|x| x.to_f32()).collect::<Vec<_>>()),
        };
        Ok([upload(&self.q)?, upload(&self.k)?, upload(&self.v)?])
    }
}

/// What one KV head's keys and its queries share.
struct Structure {
    amplitude: Vec<f32>,
    phase: Vec<f32>,
}

impl Structure {
    fn new(head: usize, len: usize, d: usize, low: usize, frequencies: &[f64]) -> Self {
        let (seed, half) = (100 + head as u64, frequencies.len());
        let weight = |i: usize| if i + low < half { uniform(seed, i as u64).powi(2) } else { 0. };
        let total = (0..half).map(weight).sum::<f64>().max(1e-9);
        let amplitude = (0..half).map(|i| (8. * (d as f64).sqrt() * weight(i) / total).sqrt() as f32).collect();
        // A third of 0.3 of the frequencies each peak at one far offset.
        let (near, far) = (len / 16, (len / 2).max(2));
        let offset = |t: usize| near as f64 + uniform(seed, 1000 + t as u64) * (far - near) as f64;
        let phase = |i: usize| match (uniform(seed, 2000 + i as u64) * 10.) as usize {
            t @ 0..3 => (offset(t).floor() * frequencies[i] % std::f64::consts::TAU) as f32,
            _ => 0.,
        };
        Self { amplitude, phase: (0..half).map(phase).collect() }
    }

    /// How strong a key's column is.
    fn strength(&self, head: usize, position: usize) -> f32 {
        let seed = 10_000 + head as u64;
        match position {
            0..4 => 12.,
            _ if uniform(seed, position as u64) < 0.03 => 10. * uniform(seed + 1, position as u64) as f32,
            _ => 0.,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the recipe as written elsewhere: SplitMix64 of 1000003 + head.
    #[test]
    fn bands_are_the_recipe_of_the_baseline() {
        let (columns, offsets) = bands(8192, 100, 300, 2);
        assert_eq!((columns.len(), offsets.len()), (100, 300));
        assert_eq!(columns[..31].iter().filter(|&&c| c < 30).count(), 30);
        assert_eq!(offsets[..150], (0..150).collect::<Vec<u32>>());
        assert!(columns.is_sorted() && offsets.is_sorted() && offsets[299] < 8192);
        assert!(columns.contains(&((mix(STEP + 1_000_005) % 8192) as u32)));
        assert_eq!(bands(64, 1000, 6096, 0), ((0..64).collect(), (0..64).collect()));
    }

    #[test]
    fn structured_keys_have_sinks_that_queries_see() {
        let inputs = Inputs::structured(2, 1, 32, 512);
        let row = |x: &[f16], at: usize| x[at..at + 32].iter().map(|x| x.to_f32()).collect::<Vec<_>>();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let mean = |keys: std::ops::Range<usize>| {
            let n = keys.len() as f32;
            keys.map(|key| dot(&row(&inputs.q, 511 * 64), &row(&inputs.k, key * 32))).sum::<f32>() / n
        };
        assert!(mean(0..4) > 20. + mean(200..300), "{} {}", mean(0..4), mean(200..300));
    }
}
