//! Buffers, and the count of their bytes.

use crate::backend::MemoryStats;
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A cache line: buffers begin on one, so that vector loads of their rows seldom straddle two.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Memory of a [`Cpu`](super::Cpu), counted from its making to its drop.
pub struct Buffer {
    lines: Box<[Line]>,
    len: usize,
    meter: Arc<Meter>,
}

impl Buffer {
    /// Zeros: the system hands out fresh pages zeroed, so this costs nothing until they are touched.
    pub(super) fn zeroed(meter: &Arc<Meter>, len: usize) -> Result<Self> {
        meter.take(len as u64)?;
        match bytemuck::allocation::try_zeroed_slice_box(len.div_ceil(size_of::<Line>())) {
            Ok(lines) => Ok(Self { lines, len, meter: meter.clone() }),
            Err(()) => {
                meter.give(len as u64);
                Err(Error::OutOfMemory(format!("cpu: the system refused {len} bytes")))
            }
        }
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// The content, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.meter.give(self.len as u64);
    }
}

/// Counts live bytes, exactly, whatever thread allocates or frees.
pub(super) struct Meter {
    limit: u64,
    current: AtomicU64,
    peak: AtomicU64,
}

impl Meter {
    /// `limit` 0 means none.
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, current: AtomicU64::new(0), peak: AtomicU64::new(0) }
    }

    pub(super) fn stats(&self) -> MemoryStats {
        MemoryStats { current: self.current.load(Ordering::Relaxed), peak: self.peak.load(Ordering::Relaxed) }
    }

    pub(super) fn reset_peak(&self) {
        self.peak.store(self.current.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> Result<()> {
        let before = self.current.fetch_add(bytes, Ordering::Relaxed);
        let now = before.saturating_add(bytes);
        if self.limit > 0 && now > self.limit {
            self.give(bytes);
            let free = self.limit.saturating_sub(before);
            return Err(Error::OutOfMemory(format!(
                "cpu: asked for {bytes} bytes, {free} of {} are free; a shorter prompt or smaller --chunk needs less",
                self.limit
            )));
        }
        self.peak.fetch_max(now, Ordering::Relaxed);
        Ok(())
    }

    fn give(&self, bytes: u64) {
        self.current.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Bytes that programs can still get on this system, where it tells (Linux: available memory, and the control
/// group's limit where one is set).
pub(super) fn available() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|s| s.trim().parse().ok());
    Some((kib * 1024).min(group.unwrap_or(u64::MAX)))
}

/// Bytes beyond the end of a buffer.
pub(super) fn out_of_bounds(op: &'static str, offset: usize, len: usize, buffer: usize) -> Error {
    Error::Shape {
        op,
        what: "bytes",
        expected: format!("within a buffer of {buffer}"),
        got: format!("{offset}..{}", offset.saturating_add(len)),
    }
}
