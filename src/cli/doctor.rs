//! `minference doctor`: does it work here, and if not, what is missing.

use super::console::{Console, check_interrupt};
use super::device::{DeviceArgs, DeviceChoice, DeviceTask, devices, with_device};
use crate::attention::attend;
use crate::backend::{Backend, DeviceInfo};
use crate::ops::AttentionShape;
use crate::pattern::HeadPattern;
use crate::tensor::Tensor;
use crate::{DType, Error, Result};
use serde_json::json;

/// Heads, tokens and head dimension of the small computation: more than one tile each way, none a whole number of tiles.
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const LEN: usize = 333;
const DIM: usize = 64;

/// Where f16 storage and another order of sums may differ from the CPU's f32: the conformance suite's bound for a whole
/// attention layer is 1e-3; ten times that means a fault and not rounding.
const TOLERANCE: f64 = 1e-2;

/// One line of the examination.
struct Finding {
    what: String,
    ok: bool,
    detail: String,
    advice: String,
}

/// Runs the subcommand. Fails where a device computes wrong numbers; a device that is missing is only reported.
pub fn doctor(console: &Console) -> Result<()> {
    let quiet = Console { quiet: true, ..*console };
    let (reference, _) = with_device(&on(DeviceChoice::Cpu), &quiet, Sample)?;
    let mut findings = vec![builds()];
    let all = devices();
    for device in &all {
        check_interrupt()?;
        // Ids parse: they are what `--device` takes.
        let Ok(choice) = device.id.parse() else { continue };
        let what = format!("{} {} ({})", device.id, device.name, device.api);
        let result = with_device(&on(choice), &quiet, Sample);
        findings.push(match result {
            Ok((values, kernels)) => {
                let error = relative_l2(&values, &reference);
                let ok = error <= TOLERANCE;
                let kernels = if kernels.is_empty() { kernels } else { format!("; kernels: {kernels}") };
                let tier = &device.tier;
                let detail = format!("tier {tier}, sparse attention against the CPU: rel. L2 {error:.1e}{kernels}");
                let advice =
                    if ok { "" } else { "wrong results: update the driver, or use --device cpu, and report it" };
                Finding { what, ok, detail, advice: advice.into() }
            }
            Err(e) => {
                Finding { what, ok: false, detail: e.to_string(), advice: "update or reinstall its driver".into() }
            }
        });
    }
    findings.extend(missing(&all));
    findings.extend(missing_cuda(&all, &quiet));
    report(&findings, console);
    match findings.iter().filter(|f| !f.ok && f.advice.starts_with("wrong")).count() {
        0 => Ok(()),
        n => Err(Error::Device(format!("{n} device(s) compute wrong results"))),
    }
}

fn on(device: DeviceChoice) -> DeviceArgs {
    DeviceArgs { device, ..DeviceArgs::default() }
}

fn builds() -> Finding {
    let built: Vec<_> = [("cpu", true), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))]
        .into_iter()
        .filter_map(|(name, built)| built.then_some(name))
        .collect();
    let detail = format!("version {}, backends {}", env!("CARGO_PKG_VERSION"), built.join(", "));
    Finding { what: "this program".into(), ok: true, detail, advice: String::new() }
}

/// What is not there at all for wgpu, and how to get it.
fn missing(devices: &[DeviceInfo]) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut adapters = devices.iter().filter(|d| d.backend == "wgpu").peekable();
    let software = adapters.peek().is_some();
    if cfg!(feature = "wgpu") && adapters.all(|d| d.is_cpu) {
        let detail = if software { "only a software adapter" } else { "no adapter" };
        let advice = if cfg!(target_os = "linux") {
            "install the GPU's Vulkan driver (mesa-vulkan-drivers for AMD and Intel, the vendor's for NVIDIA); in a \
             container, pass the device and the driver's files into it"
        } else {
            "install the GPU vendor's driver"
        };
        out.push(Finding { what: "GPU for wgpu".into(), ok: false, detail: detail.into(), advice: advice.into() });
    }
    out
}

/// Why there is no CUDA where there could be.
fn missing_cuda(devices: &[DeviceInfo], console: &Console) -> Option<Finding> {
    let finding = |detail: String, advice: &str| {
        Some(Finding { what: "GPU for CUDA".into(), ok: false, detail, advice: advice.into() })
    };
    if devices.iter().any(|d| d.backend == "cuda") {
        return None;
    }
    if !cfg!(feature = "cuda") {
        let nvidia = devices.iter().any(|d| d.backend == "wgpu" && d.name.to_ascii_lowercase().contains("nvidia"));
        let detail = "this program was built without CUDA";
        return if nvidia { finding(detail.into(), "build it with `--features cuda`") } else { None };
    }
    let why = with_device(&on(DeviceChoice::Cuda(None)), console, Sample).err()?;
    finding(why.to_string(), "install the NVIDIA driver and the CUDA toolkit's libraries (NVRTC, cuBLASLt)")
}

fn report(findings: &[Finding], console: &Console) {
    if console.json {
        let checks: Vec<_> = findings
            .iter()
            .map(|f| json!({ "what": f.what, "ok": f.ok, "detail": f.detail, "advice": f.advice }))
            .collect();
        console.print_json(&json!({ "ok": findings.iter().all(|f| f.ok), "checks": checks }));
        return;
    }
    for f in findings {
        console.print(&format!("{} {}: {}\n", if f.ok { "ok  " } else { "-   " }, f.what, f.detail));
        if !f.advice.is_empty() {
            console.print(&format!("     {}\n", f.advice));
        }
    }
}

/// A small sparse attention layer with every kind of head: its output as f32, and which kernels the device runs.
struct Sample;

impl DeviceTask for Sample {
    type Output = (Vec<f32>, String);

    fn run<B: Backend>(self, b: B) -> Result<Self::Output> {
        // Rounded to 1/64: exact in f16, so that every device estimates from the same numbers.
        let values = |seed: usize, n: usize| -> Vec<f32> {
            (0..n).map(|i| (((i + seed) * 7_919 + i * i % 1_009) % 257) as f32 / 64.0 - 2.0).collect()
        };
        let tensor = |seed, heads| Tensor::activation(&b, [heads, LEN, DIM], &values(seed, heads * LEN * DIM));
        let (q, k, v) = (tensor(1, HEADS)?, tensor(2, KV_HEADS)?, tensor(3, KV_HEADS)?);
        let mut out = Tensor::alloc(&b, DType::F32, [HEADS, LEN, DIM])?;
        let stride = [DIM, LEN * DIM];
        let shape = AttentionShape {
            n_heads: HEADS,
            n_kv_heads: KV_HEADS,
            head_dim: DIM,
            q_len: LEN,
            kv_len: LEN,
            q_start: 0,
            scale: 1.0 / (DIM as f32).sqrt(),
            q_stride: stride,
            k_stride: stride,
            v_stride: stride,
            out_stride: stride,
        };
        let patterns = [
            HeadPattern::Dense,
            HeadPattern::AShape { n_init: 32, n_local: 100 },
            HeadPattern::VerticalSlash { columns: 40, offsets: 110 },
            HeadPattern::BlockSparse { top_k: 3 },
        ];
        attend(&b, &patterns, &shape, q.view(), k.view(), v.view(), out.view_mut(), None)?;
        Ok((out.to_f32(&b)?, b.kernel_choice(128)))
    }
}

fn relative_l2(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    (difference / want.iter().map(|w| square(*w)).sum::<f64>()).sqrt()
}
