//! Recording: one encoder is open, kernels go into one compute pass after another, and copies between them.
//!
//! wgpu orders everything within and between submissions by itself. Work is handed over every [`FLUSH_EVERY`] kernels,
//! so that the device starts early, and the host never runs more than [`MAX_AHEAD`] submissions ahead, so that buffers
//! dropped meanwhile are really given back.

use super::Wgpu;
use super::buffer::{Binding, Buffer};
use super::context::{Context, MAX_IMMEDIATES, lock};
use super::link::Specialisation;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::ops::Range;

/// Kernels per submission. A submission costs tens of microseconds; 32 kernels of a decoder layer cost more than that.
const FLUSH_EVERY: usize = 32;

/// Bytes of uploads that may wait in host memory for a submission.
const FLUSH_BYTES: u64 = 256 << 20;

/// Submissions in flight.
const MAX_AHEAD: usize = 8;

/// How long the report of a finished copy may take, from a thread that only has to be scheduled.
const CALLBACK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// Bytes per step of a download.
const DOWNLOAD_STEP: u64 = 256 << 20;

/// Groups in one dimension of a grid: WebGPU's limit.
const MAX_GROUPS: u64 = 65535;

#[derive(Default)]
pub(super) struct Recorder {
    // The pass before the encoder, so that it ends first when both are dropped.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
    kernels: usize,
    staged_bytes: u64,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
}

impl Recorder {
    /// The encoder outside of a pass.
    fn encoder(&mut self, context: &Context) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        open(&mut self.encoder, context)
    }

    fn pass(&mut self, context: &Context) -> &mut wgpu::ComputePass<'static> {
        let Self { pass, encoder, .. } = self;
        pass.get_or_insert_with(|| open(encoder, context).begin_compute_pass(&Default::default()).forget_lifetime())
    }

    fn submit(&mut self, context: &Context) -> Result<()> {
        self.pass = None;
        self.kernels = 0;
        self.staged_bytes = 0;
        let encoder = self.encoder.take();
        let index = context.guarded("submitting work", || context.queue.submit(encoder.map(|e| e.finish())))?;
        self.in_flight.push_back(index);
        if self.in_flight.len() > MAX_AHEAD {
            context.wait(self.in_flight.pop_front())?;
        }
        context.check()
    }
}

fn open<'a>(encoder: &'a mut Option<wgpu::CommandEncoder>, context: &Context) -> &'a mut wgpu::CommandEncoder {
    encoder.get_or_insert_with(|| context.device.create_command_encoder(&Default::default()))
}

/// A grid of so many groups, folded into y where x alone cannot count them. Kernels read `linear_group`, and compare it
/// with their own bound: the last row of groups may pass it.
pub(super) fn fold(groups: u64) -> [u32; 3] {
    let y = groups.div_ceil(MAX_GROUPS).max(1);
    [groups.div_ceil(y) as u32, y as u32, 1]
}

impl Wgpu {
    /// Records one kernel.
    ///
    /// The kernel's immediates are `params`, then one u32 per binding: where its slice begins within what is bound, in
    /// the units of [`Binding::unit`], because bindings begin at multiples of 256 bytes and slices do not.
    pub(super) fn dispatch(
        &self,
        specialisation: &Specialisation,
        params: &impl bytemuck::Pod,
        bindings: &[Binding],
        groups: [u32; 3],
    ) -> Result<()> {
        if groups.contains(&0) {
            return Ok(());
        }
        let context = &self.context;
        let pipeline = context.pipeline(specialisation)?;
        let mut immediates = bytemuck::bytes_of(params).to_vec();
        let mut entries = Vec::with_capacity(bindings.len());
        for (index, binding) in bindings.iter().enumerate() {
            let (entry, at) = self.bind(specialisation, index as u32, binding)?;
            entries.push(entry);
            immediates.extend_from_slice(&at.to_ne_bytes());
        }
        if pipeline.bindings != bindings.len() || pipeline.immediate_size as usize != immediates.len() {
            return Err(Error::Device(format!(
                "shader {}: {} bindings and {} bytes of immediates, called with {} and {}",
                specialisation.label(),
                pipeline.bindings,
                pipeline.immediate_size,
                bindings.len(),
                immediates.len()
            )));
        }
        debug_assert!(immediates.len() <= MAX_IMMEDIATES as usize);
        let group = context.guarded(specialisation.kernel(), || {
            context.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &pipeline.layout,
                entries: &entries,
            })
        })?;
        let mut recorder = lock(&self.recorder);
        let pass = recorder.pass(context);
        pass.set_pipeline(&pipeline.raw);
        pass.set_bind_group(0, &group, &[]);
        pass.set_immediates(0, &immediates);
        pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
        recorder.kernels += 1;
        if recorder.kernels >= FLUSH_EVERY { recorder.submit(context) } else { Ok(()) }
    }

    /// The aligned range that holds a slice, and where the slice begins in it.
    fn bind<'a>(
        &self,
        specialisation: &Specialisation,
        index: u32,
        binding: &Binding<'a>,
    ) -> Result<(wgpu::BindGroupEntry<'a>, u32)> {
        let limits = &self.context.limits;
        let align = u64::from(limits.min_storage_buffer_offset_alignment);
        let start = binding.start();
        let offset = start - start % align;
        let size = (start + binding.byte_len - offset).next_multiple_of(4).max(4);
        if size > limits.max_storage_buffer_binding_size {
            return Err(Error::Unsupported(format!(
                "{}: binding {index} has {size} bytes, {} binds at most {}",
                specialisation.kernel(),
                self.context.info.name,
                limits.max_storage_buffer_binding_size
            )));
        }
        let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &binding.buffer.raw,
            offset,
            size: wgpu::BufferSize::new(size),
        });
        Ok((wgpu::BindGroupEntry { binding: index, resource }, ((start - offset) / binding.unit()) as u32))
    }

    /// The most bytes of one slice that a kernel can bind wherever the slice begins: bands are cut to this.
    pub(super) fn band_bytes(&self) -> u64 {
        let limits = &self.context.limits;
        limits.max_storage_buffer_binding_size - 2 * u64::from(limits.min_storage_buffer_offset_alignment)
    }

    /// Runs of rows such that no slice binds more than the device can: their first row and number. `row_bytes` is the
    /// distance between rows of the widest slice.
    pub(super) fn row_bands(&self, rows: u32, row_bytes: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        let rows = u64::from(rows);
        let band = (self.band_bytes() / row_bytes.max(1)).max(1);
        (0..rows).step_by(band as usize).map(move |first| (first, band.min(rows - first)))
    }

    pub(super) fn create_buffer(&self, bytes: usize, mapped_at_creation: bool) -> Result<Buffer> {
        let raw = self.context.create_buffer(bytes, mapped_at_creation)?;
        Ok(Buffer::owned(raw, bytes as u64, &self.context.account))
    }

    /// Notes bytes that wait in host memory until the next submission, and submits when they are many.
    fn staged(&self, bytes: u64) -> Result<()> {
        let mut recorder = lock(&self.recorder);
        recorder.staged_bytes += bytes;
        if recorder.staged_bytes >= FLUSH_BYTES { recorder.submit(&self.context) } else { Ok(()) }
    }

    pub(super) fn upload_bytes(&self, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.create_buffer(bytes.len(), true)?;
        fill(&buffer.raw, bytes)?;
        self.staged(bytes.len() as u64)?;
        Ok(buffer)
    }

    /// A copy from a staging buffer, recorded where it belongs: `Queue::write_buffer` would run before all kernels of
    /// the open encoder.
    pub(super) fn write_bytes(&self, buffer: &mut Buffer, byte_offset: usize, bytes: &[u8]) -> Result<()> {
        let (offset, len) = (byte_offset as u64, bytes.len() as u64);
        if offset.checked_add(len).is_none_or(|end| end > buffer.len) {
            return Err(Error::invalid(format!("write of {len} bytes at {offset} into {} bytes", buffer.len)));
        }
        // Copies move whole words. Beyond the last byte of a buffer there is its own padding.
        let tail = offset + len == buffer.len;
        if !(buffer.offset + offset).is_multiple_of(4) || (!len.is_multiple_of(4) && !tail) {
            return Err(Error::invalid(format!(
                "write of {len} bytes at {offset}: both must be multiples of 4 on wgpu"
            )));
        }
        if bytes.is_empty() {
            return Ok(());
        }
        let context = &self.context;
        let descriptor = wgpu::BufferDescriptor {
            label: None,
            size: len.next_multiple_of(4),
            usage: wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        };
        let staging = context.guarded("a staging buffer", || context.device.create_buffer(&descriptor))?;
        fill(&staging, bytes)?;
        lock(&self.recorder).encoder(context).copy_buffer_to_buffer(
            &staging,
            0,
            &buffer.raw,
            buffer.offset + offset,
            descriptor.size,
        );
        self.staged(len)
    }

    pub(super) fn submit(&self) -> Result<()> {
        lock(&self.recorder).submit(&self.context)
    }

    pub(super) fn wait(&self) -> Result<()> {
        let mut recorder = lock(&self.recorder);
        recorder.submit(&self.context)?;
        recorder.in_flight.clear();
        self.context.wait(None)
    }

    pub(super) fn download_bytes(&self, buffer: &Buffer, range: Range<usize>) -> Result<Vec<u8>> {
        let (first, end) = (range.start as u64, range.end as u64);
        if first > end || end > buffer.len {
            return Err(Error::invalid(format!("download of bytes {first}..{end} of {}", buffer.len)));
        }
        let mut out = Vec::with_capacity(range.len());
        let mut from = first;
        while from < end {
            let to = (from - from % 4 + DOWNLOAD_STEP).min(end);
            self.download_step(buffer, from..to, &mut out)?;
            from = to;
        }
        self.context.check()?;
        Ok(out)
    }

    /// Copies the words that hold some bytes, and appends those bytes.
    fn download_step(&self, buffer: &Buffer, bytes: Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        let context = &self.context;
        let start = buffer.offset + bytes.start;
        let word = start - start % 4;
        let size = (buffer.offset + bytes.end - word).next_multiple_of(4);
        let descriptor = wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let staging = context.guarded("a read-back buffer", || context.device.create_buffer(&descriptor))?;
        {
            let mut recorder = lock(&self.recorder);
            recorder.encoder(context).copy_buffer_to_buffer(&buffer.raw, word, &staging, 0, size);
            recorder.submit(context)?;
        }
        let (report, mapped) = std::sync::mpsc::channel();
        // Nobody listens any more only where this function has already failed.
        staging.map_async(wgpu::MapMode::Read, .., move |result| drop(report.send(result)));
        context.wait(None)?;
        let failed = |why: String| Error::Device(format!("reading back {size} bytes: {why}"));
        // The copy is done, but where several threads wait at a time, another one may be about to run our callback.
        match mapped.recv_timeout(CALLBACK_TIMEOUT) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed("the device did not answer".to_string())),
        }
        let view = staging.get_mapped_range(..).map_err(|e| failed(e.to_string()))?;
        let skip = (start - word) as usize;
        out.extend_from_slice(&view[skip..skip + (bytes.end - bytes.start) as usize]);
        Ok(())
    }
}

/// Copies bytes into a buffer that was created mapped, and gives it to the device.
fn fill(buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<()> {
    if !bytes.is_empty() {
        let size = (bytes.len() as u64).next_multiple_of(4);
        let mut view = buffer
            .get_mapped_range_mut(..size)
            .map_err(|e| Error::OutOfMemory(format!("no host memory to upload {} bytes: {e}", bytes.len())))?;
        view.slice(..bytes.len()).copy_from_slice(bytes);
    }
    buffer.unmap();
    Ok(())
}
