//! What the benches share: the devices of this machine as rows of each group, on the same inputs.

#![allow(dead_code, reason = "each bench uses a part of it")]

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use std::fmt::Display;
use std::time::Duration;

pub const HEADS: usize = 8;
pub const KV_HEADS: usize = 2;
pub const DIM: usize = 128;

/// What one group measures, on any device.
pub trait Bench {
    /// Rows named `<case>/<device>` of one size.
    fn rows<B: Backend>(&self, group: &mut Group, b: &B, size: usize);
}

pub type Group<'a> = BenchmarkGroup<'a, WallTime>;

#[cfg(feature = "wgpu")]
fn wgpu() -> Result<minference::backend::wgpu::Wgpu, String> {
    use minference::backend::wgpu::{Options, Wgpu};
    // A software adapter would take minutes to say what the CPU's row says better.
    match Wgpu::new(None, Options::default()) {
        Ok(b) if b.info().is_cpu => Err(format!("no GPU here, only {}", b.info().name)),
        other => other.map_err(|e| e.to_string()),
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<minference::backend::cuda::Cuda, String> {
    minference::backend::cuda::Cuda::new(0, Default::default()).map_err(|e| e.to_string())
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Result<Cpu, String> {
    Err("built without it".to_owned())
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Result<Cpu, String> {
    Err("built without it".to_owned())
}

/// One group a size: every device on the sizes of `small`, GPUs on those of `large` too. Every group says which devices it
/// is without, and why. Throughput is in elements of a size.
pub fn run(c: &mut Criterion, name: &str, small: &[usize], large: &[usize], bench: &impl Bench) {
    let (cpu, wgpu, cuda) = (Cpu::new(), wgpu(), cuda());
    for (size, with_cpu) in small.iter().map(|n| (*n, true)).chain(large.iter().map(|n| (*n, false))) {
        let not_run = |device: &str, why: &str| println!("{name}/{size}/*/{device}: not run: {why}");
        let mut group = c.benchmark_group(format!("{name}/{size}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(500)).throughput(Throughput::Elements(size as u64));
        match with_cpu {
            true => bench.rows(&mut group, &cpu, size),
            false => not_run("cpu", "minutes a row at this size"),
        }
        match &wgpu {
            Ok(b) => bench.rows(&mut group, b, size),
            Err(why) => not_run("wgpu", why),
        }
        match &cuda {
            Ok(b) => bench.rows(&mut group, b, size),
            Err(why) => not_run("cuda", why),
        }
        group.finish();
    }
}

/// A row: a call, and the device idle again.
pub fn row<B: Backend>(group: &mut Group, b: &B, case: impl Display, mut call: impl FnMut() -> minference::Result<()>) {
    group.bench_function(format!("{case}/{}", b.info().backend), |bencher| {
        bencher.iter(|| {
            call().unwrap();
            b.synchronize().unwrap();
        });
    });
}
