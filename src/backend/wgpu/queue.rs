//! Recording: launches and copies wait in a list, and are encoded when it is handed over.
//!
//! Until then the pipelines of launches compile on other threads, so that those of a model's first layer, which may take
//! a second each where no cache has them, compile together. wgpu orders everything within and between submissions by
//! itself. Work is handed over every [`FLUSH_EVERY`] launches, so that the device starts early, and the host never runs
//! more than [`MAX_AHEAD`] submissions ahead, so that buffers dropped meanwhile are really given back.

use super::Wgpu;
use super::buffer::{Binding, Buffer};
use super::context::{Context, MAX_IMMEDIATES, PendingPipeline, Pipeline, lock};
use super::link::Specialisation;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

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

/// A part of a buffer as it is bound.
struct Bound {
    buffer: wgpu::Buffer,
    offset: u64,
    size: u64,
}

enum Command {
    Launch { pipeline: PendingPipeline, bindings: Vec<Bound>, immediates: Vec<u8>, groups: [u32; 3] },
    Copy { source: wgpu::Buffer, source_offset: u64, target: wgpu::Buffer, target_offset: u64, size: u64 },
}

#[derive(Default)]
pub(super) struct Recorder {
    commands: Vec<Command>,
    launches: usize,
    staged_bytes: u64,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
    /// Kernels and their seconds on the device, while somebody wants to know.
    times: Option<Vec<(String, f64)>>,
}

impl Recorder {
    fn launch(&mut self, context: &Context, command: Command) -> Result<()> {
        self.commands.push(command);
        self.launches += 1;
        if self.launches >= FLUSH_EVERY { self.submit(context) } else { Ok(()) }
    }

    fn submit(&mut self, context: &Context) -> Result<()> {
        self.launches = 0;
        self.staged_bytes = 0;
        let commands = std::mem::take(&mut self.commands);
        let pipelines: Vec<Option<Arc<Pipeline>>> = commands
            .iter()
            .map(|command| match command {
                Command::Launch { pipeline, bindings, immediates, .. } => {
                    let compiled = context.compiled(pipeline)?;
                    compiled.check(bindings.len(), immediates.len())?;
                    Ok(Some(compiled))
                }
                Command::Copy { .. } => Ok(None),
            })
            .collect::<Result<_>>()?;
        let clock = match self.times {
            Some(_) if pipelines.iter().any(Option::is_some) => {
                Some(Clock::new(context, pipelines.iter().flatten().count() as u32)?)
            }
            _ => None,
        };
        let index = context.guarded("submitting work", || {
            let encoded = (!commands.is_empty()).then(|| encode(context, &commands, &pipelines, clock.as_ref()));
            context.queue.submit(encoded)
        })?;
        if let (Some(clock), Some(times)) = (clock, &mut self.times) {
            let seconds = clock.read(context)?;
            let labels = pipelines.iter().flatten().map(|pipeline| pipeline.label.clone());
            times.extend(labels.zip(seconds));
        }
        self.in_flight.push_back(index);
        if self.in_flight.len() > MAX_AHEAD {
            context.wait(self.in_flight.pop_front())?;
        }
        context.check()
    }
}

/// Time stamps around launches.
struct Clock {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    launches: u32,
}

impl Clock {
    fn new(context: &Context, launches: u32) -> Result<Self> {
        let size = 16 * u64::from(launches);
        let buffer = |usage| wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        context.guarded("time stamps", || Self {
            queries: context.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2 * launches,
            }),
            resolved: context
                .device
                .create_buffer(&buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC)),
            staging: context.device.create_buffer(&buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)),
            launches,
        })
    }

    /// Seconds of each launch.
    fn read(&self, context: &Context) -> Result<Vec<f64>> {
        let bytes = mapped(context, &self.staging)?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
        let period = f64::from(context.queue.get_timestamp_period()) * 1e-9;
        Ok(ticks.chunks_exact(2).map(|t| t[1].saturating_sub(t[0]) as f64 * period).collect())
    }
}

/// Waits for the device and reads a whole staging buffer.
fn mapped(context: &Context, staging: &wgpu::Buffer) -> Result<Vec<u8>> {
    let (report, mapped) = std::sync::mpsc::channel();
    // Nobody listens any more only where this function has already failed.
    context.guarded("a read-back", || {
        staging.map_async(wgpu::MapMode::Read, .., move |result| drop(report.send(result)));
    })?;
    context.wait(None)?;
    let failed = |why: String| Error::Device(format!("reading back {} bytes: {why}", staging.size()));
    // The copy is done, but where several threads wait at a time, another one may be about to run our callback.
    match mapped.recv_timeout(CALLBACK_TIMEOUT) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed("the device did not answer".to_string())),
    }
    let view = staging.get_mapped_range(..).map_err(|e| failed(e.to_string()))?;
    Ok(view.to_vec())
}

/// Neighbouring launches share a pass, unless they are timed.
fn encode(
    context: &Context,
    commands: &[Command],
    pipelines: &[Option<Arc<Pipeline>>],
    clock: Option<&Clock>,
) -> wgpu::CommandBuffer {
    let mut launches = 0;
    let mut encoder = context.device.create_command_encoder(&Default::default());
    let mut pass: Option<wgpu::ComputePass<'static>> = None;
    for (command, pipeline) in commands.iter().zip(pipelines) {
        match (command, pipeline) {
            (Command::Launch { bindings, immediates, groups, .. }, Some(pipeline)) => {
                if clock.is_some() {
                    pass = None;
                }
                let stamps = clock.map(|clock| wgpu::ComputePassTimestampWrites {
                    query_set: &clock.queries,
                    beginning_of_pass_write_index: Some(2 * launches),
                    end_of_pass_write_index: Some(2 * launches + 1),
                });
                launches += 1;
                let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: stamps };
                let pass = pass.get_or_insert_with(|| encoder.begin_compute_pass(&descriptor).forget_lifetime());
                pass.set_pipeline(&pipeline.raw);
                pass.set_bind_group(0, &bind_group(context, pipeline, bindings), &[]);
                pass.set_immediates(0, immediates);
                pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
            }
            (Command::Copy { source, source_offset, target, target_offset, size }, _) => {
                pass = None;
                encoder.copy_buffer_to_buffer(source, *source_offset, target, *target_offset, *size);
            }
            (Command::Launch { .. }, None) => {}
        }
    }
    drop(pass);
    if let Some(clock) = clock {
        encoder.resolve_query_set(&clock.queries, 0..2 * clock.launches, &clock.resolved, 0);
        encoder.copy_buffer_to_buffer(&clock.resolved, 0, &clock.staging, 0, clock.staging.size());
    }
    encoder.finish()
}

fn bind_group(context: &Context, pipeline: &Pipeline, bindings: &[Bound]) -> wgpu::BindGroup {
    let entries: Vec<_> = (0..)
        .zip(bindings)
        .map(|(binding, bound)| wgpu::BindGroupEntry {
            binding,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: &bound.buffer,
                offset: bound.offset,
                size: wgpu::BufferSize::new(bound.size),
            }),
        })
        .collect();
    let label = Some(pipeline.label.as_str());
    context.device.create_bind_group(&wgpu::BindGroupDescriptor { label, layout: &pipeline.layout, entries: &entries })
}

/// A grid of so many groups, folded into y where x alone cannot count them. Kernels read `linear_group`, and compare it
/// with their own bound: the last row of groups may pass it.
pub(super) fn fold(groups: u64) -> [u32; 3] {
    let y = groups.div_ceil(MAX_GROUPS).max(1);
    [groups.div_ceil(y) as u32, y as u32, 1]
}

impl Wgpu {
    /// Records the launch of one kernel.
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
        self.dispatch_behind(specialisation, params, bindings, &[], groups)
    }

    /// The same where some bindings (index, bytes) begin so far behind the place from which the kernel counts, and it
    /// reads nothing before them: the places that it is told are below zero then, and sums with them wrap to what is bound.
    pub(super) fn dispatch_behind(
        &self,
        specialisation: &Specialisation,
        params: &impl bytemuck::Pod,
        bindings: &[Binding],
        behind: &[(usize, u64)],
        groups: [u32; 3],
    ) -> Result<()> {
        if groups.contains(&0) {
            return Ok(());
        }
        let mut immediates = bytemuck::bytes_of(params).to_vec();
        let mut bound = Vec::with_capacity(bindings.len());
        for (index, binding) in bindings.iter().enumerate() {
            let (part, at) = self.bind(specialisation, index, binding)?;
            let before: u64 =
                behind.iter().filter(|(of, _)| *of == index).map(|(_, bytes)| bytes / binding.unit()).sum();
            let at = at.wrapping_sub(before as u32);
            bound.push(part);
            immediates.extend_from_slice(&at.to_ne_bytes());
        }
        debug_assert!(immediates.len() <= MAX_IMMEDIATES as usize);
        let pipeline = self.context.start_compiling(specialisation);
        let command = Command::Launch { pipeline, bindings: bound, immediates, groups };
        lock(&self.recorder).launch(&self.context, command)
    }

    /// The aligned range that holds a slice, and where the slice begins in it.
    fn bind(&self, specialisation: &Specialisation, index: usize, binding: &Binding) -> Result<(Bound, u32)> {
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
        let bound = Bound { buffer: binding.buffer.raw.clone(), offset, size };
        Ok((bound, ((start - offset) / binding.unit()) as u32))
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
        let spares = &self.context.account.spares;
        let spare = if mapped_at_creation { None } else { spares.take(Context::buffer_size(bytes)) };
        let raw = match spare {
            Some(raw) => raw,
            None => match self.context.create_buffer(bytes, mapped_at_creation) {
                Err(Error::OutOfMemory(_)) => {
                    // Those that wait for reuse may be what is missing.
                    spares.clear();
                    self.context.wait(None)?;
                    self.context.create_buffer(bytes, mapped_at_creation)?
                }
                other => other?,
            },
        };
        Ok(Buffer::owned(raw, bytes as u64, &self.context.account))
    }

    /// Notes bytes that wait in host memory until the next submission, and submits when they are many.
    fn staged(&self, bytes: u64) -> Result<()> {
        let mut recorder = lock(&self.recorder);
        recorder.staged_bytes += bytes;
        if recorder.staged_bytes >= FLUSH_BYTES { recorder.submit(&self.context) } else { Ok(()) }
    }

    /// Like [`Wgpu::upload_bytes`], off the account: for the backend's own purposes.
    pub(super) fn upload_unaccounted(&self, bytes: &[u8]) -> Result<Buffer> {
        let raw = self.context.create_buffer(bytes.len(), true)?;
        self.context.guarded("an upload", || fill(&raw, bytes))??;
        Ok(Buffer::unaccounted(raw, bytes.len() as u64))
    }

    pub(super) fn upload_bytes(&self, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.create_buffer(bytes.len(), true)?;
        self.context.guarded("an upload", || fill(&buffer.raw, bytes))??;
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
        context.guarded("a write", || fill(&staging, bytes))??;
        let (target, target_offset) = (buffer.raw.clone(), buffer.offset + offset);
        let copy = Command::Copy { source: staging, source_offset: 0, target, target_offset, size: descriptor.size };
        lock(&self.recorder).commands.push(copy);
        self.staged(len)
    }

    pub(super) fn submit(&self) -> Result<()> {
        lock(&self.recorder).submit(&self.context)
    }

    /// Runs something and tells how long each kernel that it launched took on the device, by time stamps, in the order of
    /// launches: for finding out where time goes. Names begin with the kernel's file. Everything runs by itself
    /// meanwhile. Empty where the device has no time stamps.
    pub fn time_launches(&self, call: impl FnOnce() -> Result<()>) -> Result<Vec<(String, f64)>> {
        self.wait()?;
        if self.context.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            lock(&self.recorder).times = Some(Vec::new());
        }
        let done = call().and_then(|()| self.submit());
        let times = lock(&self.recorder).times.take();
        done.map(|()| times.unwrap_or_default())
    }

    /// Device time of all launches that were handed over since the last call; the first one begins to keep it.
    pub(super) fn take_seconds(&self) -> Option<f64> {
        if !self.context.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return None;
        }
        let times = lock(&self.recorder).times.replace(Vec::new());
        times.map(|times| times.iter().map(|(_, seconds)| seconds).sum())
    }

    pub(super) fn wait(&self) -> Result<()> {
        let mut recorder = lock(&self.recorder);
        recorder.submit(&self.context)?;
        recorder.in_flight.clear();
        self.context.wait(None)
    }

    /// Several parts through one staging buffer, where it is not too long.
    pub(super) fn download_parts(&self, parts: &[(&Buffer, Range<usize>)]) -> Result<Vec<Vec<u8>>> {
        // The words that hold each part: where they begin in the buffer, how many bytes, and where they go.
        let mut end = 0;
        let words: Vec<(u64, u64, u64)> = parts
            .iter()
            .map(|(buffer, bytes)| {
                let [from, to] = [bytes.start, bytes.end].map(|at| buffer.offset + at as u64);
                let size = to.next_multiple_of(4).saturating_sub(from - from % 4);
                end += size;
                (from - from % 4, size, end - size)
            })
            .collect();
        let inside = parts.iter().all(|(buffer, bytes)| bytes.start < bytes.end && bytes.end as u64 <= buffer.len);
        if parts.len() < 2 || !inside || end > DOWNLOAD_STEP {
            return parts.iter().map(|(buffer, bytes)| self.download_bytes(buffer, bytes.clone())).collect();
        }
        let staging = self.read_back_buffer(end)?;
        {
            let mut recorder = lock(&self.recorder);
            for ((buffer, _), (from, size, target_offset)) in parts.iter().zip(&words) {
                let (source, target) = (buffer.raw.clone(), staging.clone());
                let [source_offset, size, target_offset] = [*from, *size, *target_offset];
                recorder.commands.push(Command::Copy { source, source_offset, target, target_offset, size });
            }
            recorder.submit(&self.context)?;
        }
        let view = mapped(&self.context, &staging)?;
        self.context.check()?;
        let part = |((buffer, bytes), (from, _, at)): (&(&Buffer, Range<usize>), &(u64, u64, u64))| {
            let first = (at + buffer.offset + bytes.start as u64 - from) as usize;
            view[first..first + bytes.len()].to_vec()
        };
        Ok(parts.iter().zip(&words).map(part).collect())
    }

    fn read_back_buffer(&self, size: u64) -> Result<wgpu::Buffer> {
        let descriptor = wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        self.context.guarded("a read-back buffer", || self.context.device.create_buffer(&descriptor))
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
        let staging = self.read_back_buffer(size)?;
        {
            let (source, target) = (buffer.raw.clone(), staging.clone());
            let mut recorder = lock(&self.recorder);
            recorder.commands.push(Command::Copy { source, source_offset: word, target, target_offset: 0, size });
            recorder.submit(context)?;
        }
        let view = mapped(context, &staging)?;
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
