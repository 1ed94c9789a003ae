//! The state of a wgpu device: adapter choice, limits, tier, pipelines in memory and on disk, the first failure.
//!
//! This is the one file of the backend with `unsafe`: experimental features, shaders without run-time checks, and the
//! pipeline cache.
#![allow(unsafe_code)]

use super::buffer::Account;
use super::link::{Specialisation, SubgroupBarrier};
use super::tune::{Autotune, Tuner};
use super::{Options, Tier, Traits};
use crate::backend::DeviceInfo;
use crate::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Bytes of immediates that a kernel may use: what Vulkan promises everywhere.
pub(super) const MAX_IMMEDIATES: u32 = 128;

/// A lock whose holder panicked still guards consistent data here: every critical section is a few plain assignments.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A compiled kernel.
pub(super) struct Pipeline {
    pub(super) label: String,
    pub(super) raw: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    bindings: usize,
    immediate_size: u32,
}

impl Pipeline {
    /// An error where a launch does not have the kernel's bindings and immediates.
    pub(super) fn check(&self, bindings: usize, immediate_size: usize) -> Result<()> {
        let (want, got) = ((self.bindings, self.immediate_size as usize), (bindings, immediate_size));
        if want == got {
            return Ok(());
        }
        let label = &self.label;
        Err(Error::Device(format!(
            "shader {label}: (bindings, bytes of immediates) are {want:?}, launched with {got:?}"
        )))
    }
}

/// A kernel that may still be compiling.
pub(super) struct PendingPipeline {
    specialisation: Specialisation,
    slot: Slot,
}

impl PendingPipeline {
    /// Whether it compiled, once that is known.
    pub(super) fn state(&self) -> Option<bool> {
        self.slot.get().map(|compiled| compiled.is_ok())
    }
}

type Slot = Arc<OnceLock<Result<Arc<Pipeline>, String>>>;

/// Everything about a device except its recorded commands.
pub(super) struct Context {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) info: DeviceInfo,
    pub(super) traits: Traits,
    pub(super) limits: wgpu::Limits,
    pub(super) account: Arc<Account>,
    failure: Arc<Mutex<Option<String>>>,
    pipelines: Mutex<HashMap<Specialisation, Slot>>,
    listed: HashSet<Specialisation>,
    barrier: SubgroupBarrier,
    checked: bool,
    disk: Option<DiskCache>,
    pub(super) tuner: Tuner,
}

/// Adapters of the APIs this backend runs on, in the order of their `wgpu:N` names.
fn adapters() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    descriptor.flags = wgpu::InstanceFlags::from_env_or_default();
    let instance = wgpu::Instance::new(descriptor);
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
}

/// What to tell a user whose machine shows no adapter.
fn no_adapter() -> Error {
    let hint = if cfg!(target_os = "linux") {
        "install the GPU's Vulkan driver and libvulkan1 (mesa-vulkan-drivers for AMD, Intel and software rendering; the \
         vendor's package for NVIDIA)"
    } else if cfg!(target_os = "windows") {
        "install the GPU vendor's driver"
    } else {
        "Metal needs macOS 11 or newer"
    };
    Error::Unavailable(format!("no GPU adapter found through Vulkan, Metal or DX12: {hint}"))
}

/// Every adapter that this machine shows, described as the context would use it.
pub(super) fn devices() -> Vec<DeviceInfo> {
    adapters()
        .iter()
        .enumerate()
        .map(|(n, adapter)| describe(&Capabilities::of_adapter(adapter), n, Tier::Auto))
        .collect()
}

/// What an adapter or a device can do, from either.
struct Capabilities {
    info: wgpu::AdapterInfo,
    features: wgpu::Features,
    limits: wgpu::Limits,
    /// 16 or 8 where matrices of that size multiply f16 into f32, else 0.
    coop: u32,
    memory_bytes: u64,
}

impl Capabilities {
    fn of_adapter(adapter: &wgpu::Adapter) -> Self {
        let f16_to_f32 = |p: &&wgpu::CooperativeMatrixProperties| {
            p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
                && p.m_size == p.n_size
                && p.n_size == p.k_size
        };
        let sizes = adapter.cooperative_matrix_properties();
        let coop = sizes.iter().filter(f16_to_f32).map(|p| p.m_size).max().unwrap_or(0);
        Self {
            info: adapter.get_info(),
            features: adapter.features(),
            limits: adapter.limits(),
            coop,
            memory_bytes: vulkan_memory(adapter),
        }
    }

    fn subgroups(&self) -> bool {
        self.features.contains(wgpu::Features::SUBGROUP | wgpu::Features::SUBGROUP_BARRIER)
    }

    fn supports(&self, tier: Tier) -> bool {
        let f16 = self.features.contains(wgpu::Features::SHADER_F16);
        // Kernels share work among a known number of subgroups, and wgpu cannot ask for a size where a device has several.
        let coop = self.features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
            && self.info.subgroup_min_size == self.info.subgroup_max_size;
        match tier {
            Tier::Auto | Tier::Plain => true,
            Tier::Subgroup => f16 && self.subgroups(),
            Tier::Coop8 => f16 && self.subgroups() && coop && self.coop == 8,
            Tier::Coop16 => f16 && self.subgroups() && coop && self.coop == 16,
        }
    }

    fn resolve(&self, tier: Tier) -> Tier {
        match tier {
            Tier::Auto => [Tier::Coop16, Tier::Coop8, Tier::Subgroup]
                .into_iter()
                .find(|tier| self.supports(*tier))
                .unwrap_or(Tier::Plain),
            chosen => chosen,
        }
    }
}

/// The size of the largest device-local heap where Vulkan tells, else 0.
fn vulkan_memory(adapter: &wgpu::Adapter) -> u64 {
    // SAFETY: the guard is dropped here, nothing is destroyed, and the physical device belongs to that instance.
    let properties = unsafe {
        let Some(hal) = adapter.as_hal::<wgpu::hal::api::Vulkan>() else { return 0 };
        let instance = hal.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(hal.raw_physical_device())
    };
    // VK_MEMORY_HEAP_DEVICE_LOCAL_BIT is bit 0.
    let heaps = properties.memory_heaps.iter().take(properties.memory_heap_count as usize);
    heaps.filter(|heap| heap.flags.as_raw() & 1 != 0).map(|heap| heap.size).max().unwrap_or(0)
}

fn describe(c: &Capabilities, number: usize, tier: Tier) -> DeviceInfo {
    let cooperative = c.features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
    let coop = if cooperative { c.coop } else { 0 };
    DeviceInfo {
        id: format!("wgpu:{number}"),
        backend: "wgpu",
        api: c.info.backend.to_str().to_string(),
        name: c.info.name.clone(),
        memory_bytes: c.memory_bytes,
        max_binding_bytes: c.limits.max_storage_buffer_binding_size,
        is_cpu: c.info.device_type == wgpu::DeviceType::Cpu,
        subgroup: if c.subgroups() { c.info.subgroup_max_size } else { 0 },
        f16: c.features.contains(wgpu::Features::SHADER_F16),
        cooperative_matrix: if coop == 0 { String::new() } else { format!("{coop}x{coop}x{coop} f16->f32") },
        tier: c.resolve(tier).name().to_string(),
    }
}

/// The adapter of a number, or the best one: discrete before integrated before virtual before software, Vulkan first.
fn pick(mut adapters: Vec<wgpu::Adapter>, number: Option<usize>) -> Result<(usize, wgpu::Adapter)> {
    if adapters.is_empty() {
        return Err(no_adapter());
    }
    let rank = |adapter: &wgpu::Adapter| {
        let info = adapter.get_info();
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        };
        (kind, info.backend != wgpu::Backend::Vulkan)
    };
    let chosen = match number {
        Some(n) if n < adapters.len() => n,
        Some(n) => {
            let last = adapters.len() - 1;
            return Err(Error::Unavailable(format!("no adapter wgpu:{n}: this machine has wgpu:0 to wgpu:{last}")));
        }
        None => (0..adapters.len()).min_by_key(|n| rank(&adapters[*n])).unwrap_or(0),
    };
    Ok((chosen, adapters.swap_remove(chosen)))
}

impl Context {
    /// Opens an adapter of this machine with all its limits.
    pub(super) fn open(number: Option<usize>, options: &Options) -> Result<Self> {
        let (number, adapter) = pick(adapters(), number)?;
        let capabilities = Capabilities::of_adapter(&adapter);
        let mut limits = capabilities.limits.clone();
        if let Some(bytes) = options.max_binding_bytes {
            limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(bytes);
        }
        if let Some(bytes) = options.max_workgroup_bytes {
            limits.max_compute_workgroup_storage_size = limits.max_compute_workgroup_storage_size.min(bytes);
        }
        let wanted = wgpu::Features::IMMEDIATES
            | wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::SUBGROUP_BARRIER
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::PIPELINE_CACHE
            | wgpu::Features::PASSTHROUGH_SHADERS
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("minference"),
            required_features: capabilities.features & wanted,
            required_limits: limits.clone(),
            // SAFETY: of the experimental features only cooperative matrices are asked for; the kernels that use them
            // follow the rules in their headers, and the conformance suite checks their results.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        });
        let (device, queue) = pollster::block_on(request)
            .map_err(|e| Error::Unavailable(format!("adapter {} gives no device: {e}", capabilities.info.name)))?;
        let own = Options {
            autotune: match options.autotune {
                Autotune::Auto if capabilities.info.device_type == wgpu::DeviceType::Cpu => Autotune::Off,
                Autotune::Auto => Autotune::On,
                told => told,
            },
            ..*options
        };
        let context = Self::new(device, queue, Capabilities { limits, ..capabilities }, number, &own)?;
        context.watch();
        Ok(context)
    }

    /// Takes a device that the caller made. Its error handlers stay the caller's: failures are caught in scopes.
    pub(super) fn adopt(
        device: wgpu::Device,
        queue: wgpu::Queue,
        info: wgpu::AdapterInfo,
        options: &Options,
    ) -> Result<Self> {
        let capabilities = Capabilities {
            features: device.features(),
            limits: device.limits(),
            // A device does not tell the sizes of its cooperative matrices; the caller who wants them names the tier.
            coop: match options.tier {
                Tier::Coop16 => 16,
                Tier::Coop8 => 8,
                _ => 0,
            },
            memory_bytes: 0,
            info,
        };
        Self::new(device, queue, capabilities, 0, options)
    }

    fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        capabilities: Capabilities,
        number: usize,
        options: &Options,
    ) -> Result<Self> {
        let name = &capabilities.info.name;
        if !device.features().contains(wgpu::Features::IMMEDIATES)
            || device.limits().max_immediate_size < MAX_IMMEDIATES
        {
            return Err(Error::Unavailable(format!(
                "{name}: shaders need the feature IMMEDIATES, {MAX_IMMEDIATES} bytes"
            )));
        }
        if !capabilities.supports(options.tier) {
            return Err(Error::Unavailable(format!("{name} cannot run tier {}", options.tier.name())));
        }
        let tier = capabilities.resolve(options.tier);
        let vulkan = capabilities.info.backend == wgpu::Backend::Vulkan;
        let barrier = match (vulkan, capabilities.info.device_type) {
            (false, _) => SubgroupBarrier::Plain,
            (true, wgpu::DeviceType::Cpu) => SubgroupBarrier::MemoryOnly,
            (true, _) => SubgroupBarrier::OrdersWorkgroupMemory,
        };
        let traits = Traits {
            tier,
            subgroup_min: if capabilities.subgroups() { capabilities.info.subgroup_min_size } else { 0 },
            subgroup_max: if capabilities.subgroups() { capabilities.info.subgroup_max_size } else { 0 },
            workgroup_bytes: capabilities.limits.max_compute_workgroup_storage_size,
            workgroup_invocations: capabilities.limits.max_compute_invocations_per_workgroup,
            passthrough: vulkan && device.features().contains(wgpu::Features::PASSTHROUGH_SHADERS),
        };
        let key = tuner_key(&capabilities.info, &traits);
        let tuner = Tuner::new(options.autotune == Autotune::On, &key, options.notice);
        let disk = device
            .features()
            .contains(wgpu::Features::PIPELINE_CACHE)
            .then(|| DiskCache::open(&device, &capabilities.info))
            .flatten();
        Ok(Self {
            info: DeviceInfo {
                max_binding_bytes: device.limits().max_storage_buffer_binding_size,
                ..describe(&capabilities, number, tier)
            },
            limits: device.limits(),
            device,
            queue,
            listed: super::specialisations(&traits).into_iter().collect(),
            traits,
            account: Arc::default(),
            failure: Arc::default(),
            pipelines: Mutex::default(),
            barrier,
            checked: options.checked_shaders,
            disk,
            tuner,
        })
    }

    /// Keeps the first error that no scope catches, and the loss of the device, for [`Context::check`].
    fn watch(&self) {
        let failure = self.failure.clone();
        self.device.on_uncaptured_error(Arc::new(move |error| {
            lock(&failure).get_or_insert_with(|| error.to_string());
        }));
        let failure = self.failure.clone();
        self.device.set_device_lost_callback(move |reason, message| {
            // `Destroyed` is our own drop.
            if reason != wgpu::DeviceLostReason::Destroyed {
                lock(&failure).get_or_insert_with(|| format!("device lost: {message}"));
            }
        });
    }

    /// The first failure, if any: once a device failed, nothing it gives can be trusted.
    pub(super) fn check(&self) -> Result<()> {
        match &*lock(&self.failure) {
            Some(message) => Err(Error::Device(message.clone())),
            None => Ok(()),
        }
    }

    /// Runs wgpu calls and turns what they report into an error.
    pub(super) fn guarded<T>(&self, what: &str, f: impl FnOnce() -> T) -> Result<T> {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let [memory, internal, validation] =
            [OutOfMemory, Internal, Validation].map(|filter| self.device.push_error_scope(filter));
        let value = f();
        let errors = [validation, internal, memory].map(|scope| pollster::block_on(scope.pop()));
        match errors.into_iter().flatten().next() {
            None => Ok(value),
            Some(wgpu::Error::OutOfMemory { .. }) => Err(Error::OutOfMemory(format!(
                "{what} on {}: {} bytes are in use of {}",
                self.info.name,
                self.account.stats().current,
                self.info.memory_bytes
            ))),
            Some(error) => Err(Error::Device(format!("{what}: {error}"))),
        }
    }

    /// The size of a buffer for so many bytes.
    pub(super) fn buffer_size(bytes: usize) -> u64 {
        (bytes as u64).next_multiple_of(16).max(16)
    }

    /// A storage buffer of at least so many bytes.
    pub(super) fn create_buffer(&self, bytes: usize, mapped_at_creation: bool) -> Result<wgpu::Buffer> {
        self.check()?;
        let size = Self::buffer_size(bytes);
        if size > self.limits.max_buffer_size {
            return Err(Error::OutOfMemory(format!(
                "a buffer of {bytes} bytes was asked, {} makes them up to {}",
                self.info.name, self.limits.max_buffer_size
            )));
        }
        let descriptor = wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation,
        };
        self.guarded(&format!("a buffer of {bytes} bytes"), || self.device.create_buffer(&descriptor))
    }

    /// Waits until a submission, or all of them, are done.
    pub(super) fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let poll = || self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        // wgpu 30 panics in `poll` when the device is lost meanwhile.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll)) {
            Ok(Ok(_)) => self.check(),
            Ok(Err(error)) => Err(Error::Device(format!("waiting for {}: {error}", self.info.name))),
            Err(_) => Err(Error::Device(format!("{} was lost while working", self.info.name))),
        }
    }

    /// Makes sure that a kernel is compiled or being compiled, on another thread.
    pub(super) fn start_compiling(self: &Arc<Self>, specialisation: &Specialisation) -> PendingPipeline {
        let mut pipelines = lock(&self.pipelines);
        let slot = match pipelines.get(specialisation) {
            Some(slot) => slot.clone(),
            None => {
                let slot = pipelines.entry(specialisation.clone()).or_default().clone();
                let (context, pending) =
                    (self.clone(), PendingPipeline { specialisation: specialisation.clone(), slot: slot.clone() });
                // An error is kept in the slot, for the one who needs the kernel.
                rayon::spawn(move || drop(context.compiled(&pending)));
                slot
            }
        };
        PendingPipeline { specialisation: specialisation.clone(), slot }
    }

    /// The kernel, when it is compiled; compiled here, if no other thread has begun.
    pub(super) fn compiled(&self, pending: &PendingPipeline) -> Result<Arc<Pipeline>> {
        let compile = || self.compile(&pending.specialisation).map(Arc::new).map_err(|e| e.to_string());
        pending.slot.get_or_init(compile).clone().map_err(Error::Device)
    }

    fn compile(&self, specialisation: &Specialisation) -> Result<Pipeline> {
        let label = specialisation.label();
        if !self.listed.contains(specialisation) {
            return Err(Error::Unsupported(format!("shader {label} is not in the list that the tests validate")));
        }
        let mut module = specialisation.module()?;
        dump(specialisation, &module.text);
        let bindings = module.bindings();
        let (_, immediate_size) = module.immediates();
        self.barrier.apply(&mut module.ir);
        let entries: Vec<_> = bindings.iter().map(|b| storage_entry(b.index, b.read_only)).collect();
        let spirv = if specialisation.is_spirv_only() { Some(module.spirv()?) } else { None };
        let workgroup_size = module.ir.entry_points.first().map_or([0; 3], |entry| entry.workgroup_size);
        self.guarded(&format!("compiling {label}"), || {
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(&label),
                source: wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(module.ir)),
            };
            let shader = if let Some(words) = spirv {
                // SAFETY: naga's own SPIR-V of a module it validated, with the bodies of `elements.rs` put in that touch
                // nothing but their parameter; entry point and workgroup size are the module's, and the bindings the
                // layout's below. For what the kernel indexes, see below.
                unsafe {
                    self.device.create_shader_module_passthrough(wgpu::ShaderModuleDescriptorPassthrough {
                        label: Some(&label),
                        entry_points: std::borrow::Cow::Owned(vec![wgpu::PassthroughShaderEntryPoint {
                            name: "main".into(),
                            workgroup_size: workgroup_size.into(),
                        }]),
                        spirv: Some(words.into()),
                        ..Default::default()
                    })
                }
            } else if self.checked {
                self.device.create_shader_module(descriptor)
            } else {
                // SAFETY: the shaders are this crate's own. Their loops end, their divisors are not zero, and every
                // index is below a length that `ops` checked against the slices bound (each kernel's guards).
                unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
            };
            let layout = self
                .device
                .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&label), entries: &entries });
            let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(&label),
                bind_group_layouts: &[Some(&layout)],
                immediate_size,
            });
            let raw = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&label),
                layout: Some(&pipeline_layout),
                module: &shader,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &[],
                    // Kernels write workgroup memory before they read it.
                    zero_initialize_workgroup_memory: false,
                },
                cache: self.disk.as_ref().map(|disk| &disk.cache),
            });
            Pipeline { label: label.clone(), raw, layout, bindings: bindings.len(), immediate_size }
        })
    }
}

/// A storage buffer of a compute kernel.
fn storage_entry(binding: u32, read_only: bool) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}

/// What a choice of kernel forms holds for: the device, its driver, and what it gives us.
fn tuner_key(adapter: &wgpu::AdapterInfo, traits: &Traits) -> String {
    let wgpu::AdapterInfo { name, backend, vendor, device, driver, driver_info, .. } = adapter;
    let (tier, bytes) = (traits.tier.name(), traits.workgroup_bytes);
    format!("{name}, {backend} {vendor:x}:{device:x}, {driver} {driver_info}, {tier} {bytes}")
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(disk) = &self.disk
            && !lock(&self.pipelines).is_empty()
        {
            disk.save();
        }
    }
}

/// Writes a linked shader to `$MINFERENCE_DUMP_SHADERS`, if set, under its kernel's name and a hash of its label, which
/// is the first line: labels are longer than file names may be. A failure is the debugging user's to see, not an error.
fn dump(specialisation: &Specialisation, text: &str) {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let Some(dir) = std::env::var_os("MINFERENCE_DUMP_SHADERS").map(PathBuf::from) else { return };
    let mut hash = DefaultHasher::new();
    specialisation.hash(&mut hash);
    let path = dir.join(format!("{}-{:016x}.wgsl", specialisation.kernel(), hash.finish()));
    let text = format!("// {}\n{text}", specialisation.label());
    if let Err(error) = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&path, text)) {
        eprintln!("{}: {error}", path.display());
    }
}

/// Compiled pipelines between runs, where the API gives them out: Vulkan.
struct DiskCache {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    read_bytes: usize,
}

impl DiskCache {
    fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo) -> Option<Self> {
        let path = user_cache()?.join("minference").join(wgpu::util::pipeline_cache_key(info)?);
        let data = std::fs::read(&path).ok();
        // SAFETY: the file holds what `get_data` gave to `save` for the same vendor and device; wgpu checks its header,
        // and the driver its own version, before use. A file that someone else damaged on purpose is outside of that,
        // as is anything else in the user's own cache directory.
        let cache = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("minference"),
                data: data.as_deref(),
                fallback: true,
            })
        };
        Some(Self { cache, path, read_bytes: data.map_or(0, |d| d.len()) })
    }

    fn save(&self) {
        if let Some(data) = self.cache.get_data().filter(|data| data.len() != self.read_bytes) {
            crate::files::keep(&self.path, &data);
        }
    }
}

/// The user's directory for files that can be made again.
pub(super) fn user_cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if cfg!(windows) {
        set("LOCALAPPDATA")
    } else {
        set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))
    }
}
