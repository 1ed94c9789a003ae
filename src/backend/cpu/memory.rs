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
pub fn available_memory() -> Option<u64> {
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

#[cfg(test)]
mod tests {
    use crate::Error;
    use crate::backend::{Backend, MemoryStats, cpu::Cpu};

    #[test]
    fn bytes_are_counted_and_limited() {
        let cpu = Cpu::with_memory_limit(1000);
        let (a, b) = (cpu.alloc(600).unwrap(), cpu.upload(&[1; 300]).unwrap());
        assert_eq!(cpu.memory(), MemoryStats { current: 900, peak: 900 });
        let refused = cpu.alloc(101).err().map(|e| e.to_string());
        assert_eq!(
            refused.as_deref(),
            Some(
                "out of memory: cpu: asked for 101 bytes, 100 of 1000 are free; a shorter prompt or smaller --chunk needs less"
            )
        );
        drop(a);
        assert_eq!(cpu.memory(), MemoryStats { current: 300, peak: 900 });
        cpu.reset_peak();
        assert_eq!(cpu.memory(), MemoryStats { current: 300, peak: 300 });
        drop(b);
        assert_eq!(cpu.memory().current, 0);
        assert!(matches!(Cpu::with_memory_limit(0).alloc(usize::MAX / 2), Err(Error::OutOfMemory(_))));
    }

    #[test]
    fn copies_stay_inside_buffers() {
        let cpu = Cpu::new();
        let mut buffer = cpu.upload(&[1, 2, 3, 4]).unwrap();
        cpu.write(&mut buffer, 1, &[9, 8]).unwrap();
        assert_eq!(pollster::block_on(cpu.download(&buffer, 0..4)).unwrap(), [1, 9, 8, 4]);
        assert!(cpu.write(&mut buffer, 3, &[0, 0]).is_err());
        assert!(pollster::block_on(cpu.download(&buffer, 2..5)).is_err());
    }
}
