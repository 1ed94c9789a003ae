//! `--device`: which backend, which of its devices. [`with_device`] is the program's one match over backends.

use super::console::Console;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, DeviceInfo};
use crate::{DType, Error, Result};
use std::str::FromStr;

/// What `--device` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA if built and present, else the best wgpu adapter that is not this machine's CPU, else the CPU backend.
    #[default]
    Auto,
    /// This machine's CPU.
    Cpu,
    /// A wgpu adapter by number, or the best one.
    Wgpu(Option<usize>),
    /// A CUDA device by number, or the first.
    Cuda(Option<usize>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, number) = match text.split_once(':') {
            None => (text, None),
            Some((name, number)) => (name, Some(number.parse().map_err(|_| expected(text))?)),
        };
        match (name, number) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("wgpu", number) => Ok(Self::Wgpu(number)),
            ("cuda", number) => Ok(Self::Cuda(number)),
            _ => Err(expected(text)),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, number) = match self {
            Self::Auto => ("auto", None),
            Self::Cpu => ("cpu", None),
            Self::Wgpu(number) => ("wgpu", *number),
            Self::Cuda(number) => ("cuda", *number),
        };
        match number {
            None => f.write_str(name),
            Some(number) => write!(f, "{name}:{number}"),
        }
    }
}

/// What `--dtype` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DtypeChoice {
    /// On CUDA f16 for a checkpoint in f16, else bf16; elsewhere what the device computes in.
    #[default]
    Auto,
    /// This type and no other.
    Is(DType),
}

impl FromStr for DtypeChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = [DType::F32, DType::F16, DType::BF16].into_iter().find(|dtype| dtype.name() == text);
        match (text, known) {
            ("auto", _) => Ok(Self::Auto),
            (_, Some(dtype)) => Ok(Self::Is(dtype)),
            _ => Err(format!("expected auto, f32, f16 or bf16, found {text:?}")),
        }
    }
}

impl std::fmt::Display for DtypeChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Is(dtype) => dtype.name(),
        })
    }
}

fn expected(found: &str) -> String {
    format!("expected auto, cpu, wgpu, wgpu:N, cuda or cuda:N, found {found:?}")
}

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// auto, cpu, wgpu, wgpu:N, cuda or cuda:N (`minference devices` lists them).
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
    /// How activations, keys and values are stored: auto, f32 (cpu), f16 or bf16. auto on CUDA is f16 for a checkpoint in
    /// f16, else bf16.
    #[arg(long, default_value = "auto", value_name = "TYPE")]
    pub dtype: DtypeChoice,
    /// How a wgpu device is opened.
    #[command(flatten)]
    pub wgpu: WgpuArgs,
}

/// What wgpu devices can be told.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
#[command(next_help_heading = "Device")]
pub struct WgpuArgs {
    /// Forces a wgpu kernel tier: auto, plain, subgroup, coop8 or coop16.
    #[cfg(feature = "wgpu")]
    #[arg(long, default_value = "auto", value_name = "TIER")]
    pub tier: crate::backend::wgpu::Tier,
    /// Pretends that a wgpu binding holds at most so many bytes: what a smaller device would do.
    #[cfg(feature = "wgpu")]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1 << 20..))]
    pub max_binding_bytes: Option<u64>,
    /// Pretends that a wgpu workgroup has at most so many bytes of memory.
    #[cfg(feature = "wgpu")]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(16384..))]
    pub max_workgroup_bytes: Option<u32>,
    /// Tries forms of kernels at first use and keeps the choice for the next run: auto (on GPUs), on or off.
    #[cfg(feature = "wgpu")]
    #[arg(long, default_value = "auto", value_name = "WHEN")]
    pub autotune: crate::backend::wgpu::Autotune,
}

#[cfg(feature = "wgpu")]
impl WgpuArgs {
    fn options(&self, console: &Console) -> crate::backend::wgpu::Options {
        crate::backend::wgpu::Options {
            tier: self.tier,
            max_binding_bytes: self.max_binding_bytes.map(|bytes| bytes & !3),
            max_workgroup_bytes: self.max_workgroup_bytes,
            autotune: self.autotune,
            notice: (!console.quiet).then_some(Console::tell),
            ..Default::default()
        }
    }
}

/// Work that any backend can do: a closure cannot be generic, so a trait with one method.
pub trait DeviceTask {
    /// What comes out.
    type Output;
    /// The work.
    fn run<B: Backend>(self, backend: B) -> Result<Self::Output>;

    /// How the checkpoint that it reads stores its matrices, if it reads one.
    fn checkpoint(&self) -> Option<DType> {
        None
    }
}

/// Every device of this machine, the CPU first.
pub fn devices() -> Vec<DeviceInfo> {
    let mut all = vec![Cpu::new().info().clone()];
    #[cfg(feature = "wgpu")]
    all.extend(crate::backend::wgpu::devices());
    #[cfg(feature = "cuda")]
    all.extend(crate::backend::cuda::devices());
    all
}

/// Opens the device asked for and does the work on it; says on stderr which one it is.
pub fn with_device<T: DeviceTask>(args: &DeviceArgs, console: &Console, task: T) -> Result<T::Output> {
    match resolve(args.device) {
        DeviceChoice::Auto | DeviceChoice::Cpu => announced(Cpu::new(), args, console, task),
        #[cfg(feature = "wgpu")]
        DeviceChoice::Wgpu(number) => {
            announced(crate::backend::wgpu::Wgpu::new(number, args.wgpu.options(console))?, args, console, task)
        }
        #[cfg(not(feature = "wgpu"))]
        DeviceChoice::Wgpu(_) => Err(not_in_build("wgpu")),
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda(number) => {
            use crate::backend::cuda::{Cuda, CudaOptions};
            let activation = match (args.dtype, task.checkpoint()) {
                (DtypeChoice::Is(dtype), _) => dtype,
                (DtypeChoice::Auto, Some(DType::F16)) => DType::F16,
                (DtypeChoice::Auto, _) => DType::BF16,
            };
            let options = CudaOptions { activation, ..CudaOptions::default() };
            announced(Cuda::new(number.unwrap_or(0), options)?, args, console, task)
        }
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Cuda(_) => Err(not_in_build("cuda")),
    }
}

fn announced<B: Backend, T: DeviceTask>(
    backend: B,
    args: &DeviceArgs,
    console: &Console,
    task: T,
) -> Result<T::Output> {
    let (info, dtype) = (backend.info(), backend.activation());
    if let DtypeChoice::Is(wanted) = args.dtype
        && wanted != dtype
    {
        return Err(Error::Unsupported(format!("--dtype {wanted}: {} computes in {dtype} ({})", info.id, info.tier)));
    }
    console.note(&format!("device: {} {} ({}, {}, {dtype})", info.id, info.name, info.api, info.tier));
    task.run(backend)
}

/// `auto` as one of the others. A software adapter (lavapipe, WARP) is this machine's CPU by a longer way: 10 to 50
/// times slower than the CPU backend, so only a real GPU is preferred to it.
fn resolve(choice: DeviceChoice) -> DeviceChoice {
    if choice != DeviceChoice::Auto {
        return choice;
    }
    let all = devices();
    let best = |backend: &str| all.iter().filter(|d| d.backend == backend && !d.is_cpu).count() > 0;
    if best("cuda") {
        DeviceChoice::Cuda(None)
    } else if best("wgpu") {
        DeviceChoice::Wgpu(None)
    } else {
        DeviceChoice::Cpu
    }
}

#[cfg(not(all(feature = "wgpu", feature = "cuda")))]
fn not_in_build(backend: &str) -> Error {
    Error::Unavailable(format!("device {backend}: this program was built without it: add `--features {backend}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn element_types_parse_and_others_are_refused() {
        for name in ["auto", "f32", "f16", "bf16"] {
            assert_eq!(name.parse::<DtypeChoice>().unwrap().to_string(), name);
        }
        for wrong in ["", "q8_0", "F16", "float"] {
            assert!(wrong.parse::<DtypeChoice>().unwrap_err().ends_with(&format!("found {wrong:?}")));
        }
    }

    #[test]
    fn device_names_parse_and_others_are_refused() {
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert_eq!("wgpu".parse(), Ok(DeviceChoice::Wgpu(None)));
        assert_eq!("wgpu:2".parse(), Ok(DeviceChoice::Wgpu(Some(2))));
        assert_eq!("cuda:0".parse(), Ok(DeviceChoice::Cuda(Some(0))));
        for name in ["auto", "cpu", "wgpu", "wgpu:3", "cuda:0"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        for wrong in ["", "gpu", "cpu:1", "wgpu:", "wgpu:-1", "cuda:x", "auto:0"] {
            let error = wrong.parse::<DeviceChoice>().unwrap_err();
            assert!(error.ends_with(&format!("found {wrong:?}")), "{error}");
        }
    }
}
