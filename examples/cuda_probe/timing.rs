//! Device time by events, and the rows of the report.

use minference::Error;
use minference::Result;
use minference::backend::Backend;
use minference::backend::cuda::Cuda;
use minference::backend::cuda::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use std::time::Instant;

/// Milliseconds of the device: median, least and most.
#[derive(Clone, Copy)]
pub struct Times {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

/// Runs `work` twice to warm up, then 10 to 20 times (three where one takes more than a second), each between events: as
/// often as the rivals' script does, because a hot device is a slower one.
pub fn time(b: &Cuda, mut work: impl FnMut() -> Result<()>) -> Result<Times> {
    let device = |e| Error::Device(format!("event: {e}"));
    work()?;
    b.synchronize()?;
    let start = Instant::now();
    work()?;
    b.synchronize()?;
    let one = start.elapsed().as_secs_f64().max(1e-6);
    let repeats = if one > 1.0 { 3 } else { ((0.5 / one) as usize).clamp(10, 20) };
    let mut events = Vec::new();
    for _ in 0..repeats {
        let begin = b.stream().record_event(Some(CU_EVENT_DEFAULT)).map_err(device)?;
        work()?;
        let end = b.stream().record_event(Some(CU_EVENT_DEFAULT)).map_err(device)?;
        events.push((begin, end));
    }
    b.synchronize()?;
    let mut ms = Vec::new();
    for (begin, end) in &events {
        ms.push(f64::from(begin.elapsed_ms(end).map_err(device)?));
    }
    ms.sort_by(f64::total_cmp);
    Ok(Times { median: ms[ms.len() / 2], least: ms[0], most: ms[ms.len() - 1] })
}

/// One line: what was timed, how long it took, and what that means.
pub fn row(what: &str, t: Times, rate: String) {
    println!("{what:<52} {:>10.4} ms ({:.4} .. {:.4})  {rate}", t.median, t.least, t.most);
}

/// TFLOP/s.
pub fn tflops(flop: f64, t: Times) -> String {
    format!("{:.1} TFLOP/s", flop / t.median / 1e9)
}

/// GB/s.
pub fn gbps(bytes: f64, t: Times) -> String {
    format!("{:.0} GB/s", bytes / t.median / 1e6)
}

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Mean 0, deviation 1.
    pub fn normal(&mut self) -> f32 {
        let uniform = |x: u64| (x >> 11) as f64 / (1u64 << 53) as f64;
        let (a, b) = (uniform(self.next()), uniform(self.next()));
        ((-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
}
