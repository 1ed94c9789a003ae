//! What the test files share: one backend of each kind per process, deterministic inputs, and a tolerance that is derived
//! from how a backend stores activations. [`naive`] is the judge.

#![allow(dead_code, unused_imports, unused_macros, reason = "each test file uses a part of it")]

pub mod methods;
pub mod naive;

use minference::DType;
use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use std::sync::OnceLock;

/// Stamps a test for each backend: `name::cpu`, `name::wgpu` (the adapter's best tier), `name::wgpu_plain`, both under small
/// limits (`name::wgpu_small`, `name::wgpu_plain_small`), `name::cuda`
/// (bf16), `name::cuda_f16`, `name::cuda_sm80` (f16, without the kernels for Hopper).
///
/// `for_each_backend!(rope, |b| { ... })` makes a module `rope` whose tests run the block with `b: &impl Backend`.
/// `for_each_backend!(rope, only cpu, |b| { ... })` leaves the others out, for what they do not have yet.
macro_rules! for_each_backend {
    ($name:ident, only cpu, |$b:ident| $body:block) => {
        mod $name {
            use super::*;

            fn body<B: minference::backend::Backend>($b: &B) $body

            #[test]
            fn cpu() {
                body($crate::common::cpu());
            }
        }
    };
    ($name:ident, |$b:ident| $body:block) => {
        mod $name {
            use super::*;

            fn body<B: minference::backend::Backend>($b: &B) $body

            #[test]
            fn cpu() {
                body($crate::common::cpu());
            }

            #[cfg(feature = "wgpu")]
            #[test]
            fn wgpu() {
                $crate::common::wgpu(minference::backend::wgpu::Tier::Auto).map(body);
            }

            #[cfg(feature = "wgpu")]
            #[test]
            fn wgpu_plain() {
                $crate::common::wgpu(minference::backend::wgpu::Tier::Plain).map(body);
            }

            #[cfg(feature = "wgpu")]
            #[test]
            fn wgpu_small() {
                $crate::common::small_wgpu(minference::backend::wgpu::Tier::Auto).map(body);
            }

            #[cfg(feature = "wgpu")]
            #[test]
            fn wgpu_plain_small() {
                $crate::common::small_wgpu(minference::backend::wgpu::Tier::Plain).map(body);
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda() {
                $crate::common::cuda($crate::common::CudaKind::Bf16).map(body);
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda_f16() {
                $crate::common::cuda($crate::common::CudaKind::F16).map(body);
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda_sm80() {
                $crate::common::cuda($crate::common::CudaKind::Sm80).map(body);
            }
        }
    };
}
pub(crate) use for_each_backend;

/// The CPU twin.
pub fn cpu() -> &'static Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    CPU.get_or_init(Cpu::new)
}

/// The best adapter at this tier. Panics where there is no adapter, because a suite that skips in silence proves nothing;
/// `MINFERENCE_ALLOW_NO_ADAPTER=1` says that this machine has none.
#[cfg(feature = "wgpu")]
pub fn wgpu(tier: minference::backend::wgpu::Tier) -> Option<&'static minference::backend::wgpu::Wgpu> {
    opened_wgpu(minference::backend::wgpu::Options { tier, ..Default::default() })
}

/// Bytes of a binding that few keys and values of the suites fit, and of workgroup memory as small devices have.
pub const SMALL_LIMITS: (u64, u32) = (640 << 10, 32 << 10);

/// The same under [`SMALL_LIMITS`], in place of the 128 MiB and 32 KiB that smaller devices have.
#[cfg(feature = "wgpu")]
pub fn small_wgpu(tier: minference::backend::wgpu::Tier) -> Option<&'static minference::backend::wgpu::Wgpu> {
    let (binding, workgroup) = SMALL_LIMITS;
    let limits = (Some(binding), Some(workgroup));
    opened_wgpu(minference::backend::wgpu::Options {
        tier,
        max_binding_bytes: limits.0,
        max_workgroup_bytes: limits.1,
        ..Default::default()
    })
}

#[cfg(feature = "wgpu")]
fn opened_wgpu(options: minference::backend::wgpu::Options) -> Option<&'static minference::backend::wgpu::Wgpu> {
    use minference::backend::wgpu::{Tier, Wgpu};
    static OPENED: [OnceLock<Option<Wgpu>>; 4] = [const { OnceLock::new() }; 4];
    let device =
        &OPENED[2 * usize::from(options.tier == Tier::Plain) + usize::from(options.max_binding_bytes.is_some())];
    let open = || match Wgpu::new(None, options) {
        Ok(device) => Some(device),
        Err(error) if std::env::var_os("MINFERENCE_ALLOW_NO_ADAPTER").is_some_and(|v| v == "1") => {
            println!("not run: {error}");
            None
        }
        Err(error) => panic!("{error} (MINFERENCE_ALLOW_NO_ADAPTER=1 leaves wgpu out)"),
    };
    device.get_or_init(open).as_ref()
}

/// How a suite opens the CUDA device.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum CudaKind {
    /// bf16 activations, the best kernels.
    Bf16,
    /// f16 activations, the best kernels.
    F16,
    /// f16 activations, mma.sync kernels.
    Sm80,
}

/// The first CUDA device. Panics where there is none; `MINFERENCE_ALLOW_NO_CUDA=1` says that this machine has none.
#[cfg(feature = "cuda")]
pub fn cuda(kind: CudaKind) -> Option<&'static minference::backend::cuda::Cuda> {
    use minference::backend::cuda::{AttentionKernel, Cuda, CudaOptions};
    static OPENED: [OnceLock<Option<Cuda>>; 3] = [const { OnceLock::new() }; 3];
    let open = || {
        let activation = if kind == CudaKind::Bf16 { DType::BF16 } else { DType::F16 };
        let attention = if kind == CudaKind::Sm80 { AttentionKernel::Sm80 } else { AttentionKernel::Auto };
        match Cuda::new(0, CudaOptions { activation, attention, ..CudaOptions::default() }) {
            Ok(device) => Some(device),
            Err(error) if std::env::var_os("MINFERENCE_ALLOW_NO_CUDA").is_some_and(|v| v == "1") => {
                println!("not run: {error}");
                None
            }
            Err(error) => panic!("{error} (MINFERENCE_ALLOW_NO_CUDA=1 leaves CUDA out)"),
        }
    };
    OPENED[kind as usize].get_or_init(open).as_ref()
}

/// SplitMix64: a few lines, the same numbers everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Evenly in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Mean 0, deviation 1.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal() as f32).collect()
    }

    /// `count` different numbers of 0..n, ascending.
    pub fn choose(&mut self, n: usize, count: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        for i in 0..count {
            let j = i + self.below(n - i);
            all.swap(i, j);
        }
        all.truncate(count);
        all.sort_unstable();
        all
    }
}

/// Queries, keys and values of one layer, head-major: q `[heads, len, dim]`, k and v `[kv_heads, len, dim]`.
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub len: usize,
    pub dim: usize,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
}

/// Inputs with the structure of real heads: sink tokens, strong columns, slashes that come from rotary embedding.
pub fn heads(heads: usize, kv_heads: usize, len: usize, dim: usize, seed: u64) -> Heads {
    let mut rng = Rng(seed);
    let (half, low, root) = (dim / 2, (dim / 16).max(1), (dim as f64).sqrt());
    let inv: Vec<f64> = (0..half).map(|i| 10000f64.powf(-(i as f64) / half as f64)).collect();
    let rotate = |x: &[f64], position: usize| {
        let angle = |i: usize| (position as f64 * inv[i]).sin_cos();
        let first = (0..half).map(|i| x[i] * angle(i).1 - x[half + i] * angle(i).0);
        let second = (0..half).map(|i| x[half + i] * angle(i).1 + x[i] * angle(i).0);
        first.chain(second).map(|x| x as f32).collect::<Vec<_>>()
    };
    let (mut q, mut k) = (vec![], vec![]);
    for _ in 0..kv_heads {
        let mut weight: Vec<f64> =
            (0..half).map(|i| if i + low < half { rng.uniform().powi(2) } else { 0.0 }).collect();
        let total: f64 = weight.iter().sum::<f64>().max(1e-9);
        weight.iter_mut().for_each(|w| *w = (4.0 * root * *w / total).sqrt());
        let far = 1 + rng.below((len / 2).max(1)) as u64;
        let phase: Vec<f64> = inv.iter().map(|f| if rng.uniform() < 0.3 { far as f64 * f } else { 0.0 }).collect();
        let mut strength = vec![0.0; len];
        for column in rng.choose(len, (len / 20).max(1)) {
            strength[column as usize] = 3.0 * rng.uniform();
        }
        strength[..len.min(4)].fill(4.0);
        for (position, strength) in strength.iter().enumerate() {
            let mut x: Vec<f64> = (0..dim).map(|_| rng.normal()).collect();
            (0..half).for_each(|i| x[i] += weight[i]);
            (half - low..half).for_each(|i| x[i] += (root / low as f64).sqrt() * strength);
            k.extend(rotate(&x, position));
        }
        for _ in 0..heads / kv_heads {
            for position in 0..len {
                let mut x: Vec<f64> = (0..dim).map(|_| rng.normal()).collect();
                (0..half).for_each(|i| x[i] += weight[i] * phase[i].cos());
                (0..half).for_each(|i| x[half + i] -= weight[i] * phase[i].sin());
                (half - low..half).for_each(|i| x[i] += (root / low as f64).sqrt());
                q.extend(rotate(&x, position));
            }
        }
    }
    let v = rng.normals(kv_heads * len * dim);
    Heads { heads, kv_heads, len, dim, q, k, v }
}

/// Half the distance between neighbours at 1: the relative error of storing a value.
pub fn roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}

/// Values as a backend stores them.
pub fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
    let bytes = minference::tensor::encode_f32(dtype, values).unwrap();
    minference::tensor::decode_f32(dtype, &bytes).unwrap()
}

/// Whether `got` is what a computation in f32, with inputs and results stored at roundoff `u`, may give for `want`.
///
/// Storing makes a relative error of `u`; a plain kernel of that precision rounds its weights once and its result once,
/// and the bound is twice a single rounding in the mean and eight in the worst element, plus 1e-5 for f32 sums.
#[track_caller]
pub fn assert_close(what: &str, u: f64, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let largest = want.iter().filter(|w| w.is_finite()).fold(1.0f64, |m, w| m.max(w.abs()));
    let (mut error, mut norm) = (0.0, 0.0);
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        if want.is_infinite() {
            assert_eq!(f64::from(got), want, "{what}: element {i}");
            continue;
        }
        let e = f64::from(got) - want;
        assert!(e.abs() <= (8.0 * u + 2e-5) * largest, "{what}: element {i}: expected {want}, got {got}");
        (error, norm) = (error + e * e, norm + want * want);
    }
    let relative = if norm > 0.0 { (error / norm).sqrt() } else { error.sqrt() };
    assert!(
        relative <= 2.0 * u + 1e-5,
        "{what}: relative L2 error {relative:.2e} exceeds {:.2e}; expected {:?}.., got {:?}..",
        2.0 * u + 1e-5,
        &want[..want.len().min(4)],
        &got[..got.len().min(4)]
    );
}
