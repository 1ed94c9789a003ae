//! Device memory, its account, and the parts of it that a kernel binds.

use super::context::lock;
use crate::backend::{MemoryStats, Slice, SliceMut};
use crate::{DType, Error, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::Wgpu;

/// Bytes allocated now and at most.
#[derive(Debug, Default)]
pub(super) struct Account {
    current: AtomicU64,
    peak: AtomicU64,
    pub(super) spares: Spares,
}

impl Account {
    pub(super) fn add(&self, bytes: u64) {
        let now = self.current.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    fn remove(&self, bytes: u64) {
        self.current.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> MemoryStats {
        MemoryStats { current: self.current.load(Ordering::Relaxed), peak: self.peak.load(Ordering::Relaxed) }
    }

    pub(super) fn reset_peak(&self) {
        self.peak.store(self.current.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Buffers that were given back, for the next ones of their size: making a large buffer and clearing it, as wgpu does,
/// takes longer than many kernels, and every layer of a pre-fill asks for the same sizes again.
#[derive(Debug, Default)]
pub(super) struct Spares {
    /// Oldest first.
    buffers: Mutex<VecDeque<wgpu::Buffer>>,
}

impl Spares {
    /// Bytes kept at most, besides those on the account.
    const MOST: u64 = 256 << 20;

    pub(super) fn take(&self, size: u64) -> Option<wgpu::Buffer> {
        let mut buffers = lock(&self.buffers);
        let at = buffers.iter().rposition(|buffer| buffer.size() == size)?;
        buffers.remove(at)
    }

    fn give(&self, buffer: wgpu::Buffer) {
        let mut buffers = lock(&self.buffers);
        buffers.push_back(buffer);
        while buffers.len() > 64 || buffers.iter().map(wgpu::Buffer::size).sum::<u64>() > Self::MOST {
            buffers.pop_front();
        }
    }

    /// Lets go of all of them.
    pub(super) fn clear(&self) {
        lock(&self.buffers).clear();
    }
}

/// Device memory: a buffer of this backend, or part of one that the caller made.
pub struct Buffer {
    pub(super) raw: wgpu::Buffer,
    /// Where it begins in `raw`, in bytes.
    pub(super) offset: u64,
    /// Its length in bytes, before rounding.
    pub(super) len: u64,
    /// Bytes to take off the account in the end; none for a caller's buffer.
    account: Option<(Arc<Account>, u64)>,
}

impl Buffer {
    /// A buffer that was just created, `raw.size()` bytes on the account.
    pub(super) fn owned(raw: wgpu::Buffer, len: u64, account: &Arc<Account>) -> Self {
        let size = raw.size();
        account.add(size);
        Self { raw, offset: 0, len, account: Some((account.clone(), size)) }
    }

    /// A buffer of the backend's own, which users do not see in their account.
    pub(super) fn unaccounted(raw: wgpu::Buffer, len: u64) -> Self {
        Self { raw, offset: 0, len, account: None }
    }

    /// `len` bytes from `offset` of a buffer that the caller made on the same device, with usage `STORAGE`, `COPY_SRC`
    /// and `COPY_DST`. The buffer's size and both numbers are multiples of 4, as every storage binding is.
    pub fn wrap(raw: wgpu::Buffer, offset: u64, len: u64) -> Result<Self> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        if !raw.usage().contains(usage) {
            return Err(Error::invalid(format!("a buffer to wrap needs usage {usage:?}, it has {:?}", raw.usage())));
        }
        if !offset.is_multiple_of(4)
            || !len.is_multiple_of(4)
            || offset.checked_add(len).is_none_or(|end| end > raw.size())
        {
            return Err(Error::invalid(format!(
                "a part to wrap needs offset and length in multiples of 4 within {} bytes, it has {offset} and {len}",
                raw.size()
            )));
        }
        Ok(Self { raw, offset, len, account: None })
    }

    /// The wgpu buffer beneath.
    pub fn raw(&self) -> &wgpu::Buffer {
        &self.raw
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((account, bytes)) = &self.account {
            account.remove(*bytes);
            account.spares.give(self.raw.clone());
        }
    }
}

/// A slice on its way into a kernel: like [`Slice`], read or written.
#[derive(Clone, Copy)]
pub(super) struct Binding<'a> {
    pub(super) buffer: &'a Buffer,
    pub(super) byte_offset: u64,
    pub(super) byte_len: u64,
    pub(super) dtype: DType,
    /// Elements that the kernel takes at a time: 1 or 4.
    pub(super) lanes: u64,
}

impl Binding<'_> {
    /// `byte_len` bytes from `byte_offset` of it.
    pub(super) fn part(self, byte_offset: u64, byte_len: u64) -> Self {
        Self { byte_offset: self.byte_offset + byte_offset, byte_len, ..self }
    }

    /// Where it begins in the wgpu buffer, in bytes.
    pub(super) fn start(&self) -> u64 {
        self.buffer.offset + self.byte_offset
    }

    #[allow(dead_code, reason = "operations landing next use it")]
    /// Bytes of one of its elements, where that is a whole number.
    pub(super) fn element_bytes(&self) -> u64 {
        self.dtype.bytes(1) as u64
    }

    /// `count` rows of `row_bytes` from the `first` on, or what there is of them: the last row may be short.
    pub(super) fn rows(self, first: u64, count: u64, row_bytes: u64) -> Self {
        let from = first * row_bytes;
        self.part(from, (count * row_bytes).min(self.byte_len - from))
    }

    /// The same for a kernel that reads vectors of so many elements.
    pub(super) fn with_lanes(self, lanes: u64) -> Self {
        Self { lanes, ..self }
    }

    /// Bytes of the unit in which the kernel counts: its vectors, or 2 for quantised blocks, all of which are an even
    /// number of bytes.
    pub(super) fn unit(&self) -> u64 {
        let element = if self.dtype.is_quantized() { 2 } else { self.element_bytes() };
        element * self.lanes
    }
}

/// How many elements a kernel may take at a time: 4 where all of these lengths and beginnings are multiples of it.
pub(super) fn lanes(bindings: &[Binding], lengths: &[u32]) -> u64 {
    let even = lengths.iter().all(|len| len % 4 == 0);
    let aligned = bindings.iter().all(|b| b.start().is_multiple_of(4 * b.element_bytes()));
    if even && aligned { 4 } else { 1 }
}

impl<'a> From<Slice<'a, Wgpu>> for Binding<'a> {
    fn from(s: Slice<'a, Wgpu>) -> Self {
        Self {
            buffer: s.buffer,
            byte_offset: s.byte_offset as u64,
            byte_len: s.byte_len as u64,
            dtype: s.dtype,
            lanes: 1,
        }
    }
}

impl<'a> From<SliceMut<'a, Wgpu>> for Binding<'a> {
    fn from(s: SliceMut<'a, Wgpu>) -> Self {
        Self {
            buffer: s.buffer,
            byte_offset: s.byte_offset as u64,
            byte_len: s.byte_len as u64,
            dtype: s.dtype,
            lanes: 1,
        }
    }
}
