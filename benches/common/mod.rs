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

/// The devices, or why they are not there.
struct Devices {
    cpu: Cpu,
    #[cfg(feature = "wgpu")]
    wgpu: Option<minference::backend::wgpu::Wgpu>,
    #[cfg(feature = "cuda")]
    cuda: Option<minference::backend::cuda::Cuda>,
}

impl Devices {
    fn open(name: &str) -> Self {
        let absent = |device: &str, why: &dyn Display| println!("{name}/{device}: not run: {why}");
        #[cfg(not(feature = "wgpu"))]
        absent("wgpu", &"built without it");
        #[cfg(not(feature = "cuda"))]
        absent("cuda", &"built without it");
        Self {
            cpu: Cpu::new(),
            #[cfg(feature = "wgpu")]
            wgpu: {
                use minference::backend::wgpu::{Options, Wgpu};
                // A software adapter would take minutes to say what the CPU's row says better.
                match Wgpu::new(None, Options::default()) {
                    Ok(b) if !b.info().is_cpu => Some(b),
                    Ok(b) => {
                        absent("wgpu", &format!("no GPU here, only {}", b.info().name));
                        None
                    }
                    Err(e) => {
                        absent("wgpu", &e);
                        None
                    }
                }
            },
            #[cfg(feature = "cuda")]
            cuda: minference::backend::cuda::Cuda::new(0, Default::default()).map_err(|e| absent("cuda", &e)).ok(),
        }
    }
}

/// One group a size: every device on the sizes of `small`, GPUs on those of `large` too. Throughput is in elements of a size.
pub fn run(c: &mut Criterion, name: &str, small: &[usize], large: &[usize], bench: &impl Bench) {
    let devices = Devices::open(name);
    for (size, with_cpu) in small.iter().map(|n| (*n, true)).chain(large.iter().map(|n| (*n, false))) {
        let mut group = c.benchmark_group(format!("{name}/{size}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(500)).throughput(Throughput::Elements(size as u64));
        if with_cpu {
            bench.rows(&mut group, &devices.cpu, size);
        }
        #[cfg(feature = "wgpu")]
        if let Some(b) = &devices.wgpu {
            bench.rows(&mut group, b, size);
        }
        #[cfg(feature = "cuda")]
        if let Some(b) = &devices.cuda {
            bench.rows(&mut group, b, size);
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
