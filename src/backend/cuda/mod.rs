//! CUDA: kernels of our own compiled by NVRTC for the device found, and cuBLASLt for matrix products.
//!
//! Builds and starts without CUDA: the libraries are loaded when a device is opened, and what is missing is said by name
//! ([`Library`]). One context, one stream; activations are bf16 or f16, sums f32.
//!
//! | concept | file |
//! |---|---|
//! | driver, memory, launches, tensor maps (`unsafe`) | `device.rs` |
//! | NVRTC and the cubins kept on disk (`unsafe`) | `compile.rs` |
//! | sources, linking, specialisations | `kernels.rs`, `shaders/cuda/` |
//! | cuBLASLt (`unsafe`), quantised and one-row products | `gemm.rs`, `matmul.rs` |
//! | the operations | `elementwise.rs`, `estimate.rs`, `attention.rs` |
//!
//! To work inside another engine, open it on that engine's stream ([`Cuda::on_stream`]) and wrap its tensors
//! ([`CudaBuffer::from_raw`], [`crate::tensor::Tensor::from_buffer`]): `examples/embed_cuda.rs`.

mod attention;
pub mod compile;
mod device;
mod elementwise;
mod estimate;
mod gemm;
pub mod kernels;
mod matmul;

pub use cudarc;
pub use device::{CudaBuffer, Library};

use crate::backend::params::*;
use crate::backend::{Backend, DeviceInfo, IndexChoice, IndexSlices, IndexSlicesMut, MemoryStats, Slice, SliceMut};
use crate::{DType, Error, Result};
use compile::DiskCache;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream};
use cudarc::nvrtc::Ptx;
use device::{Arg, Device, Graph, Launch, driver_error};
use gemm::Gemm;
use kernels::Kernel;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// The CUDA devices here; none where the driver is missing. Loads no more than the driver.
pub fn devices() -> Vec<DeviceInfo> {
    let describe = |ordinal| Some(describe(&*CudaContext::new(ordinal).ok()?).ok()?.0);
    (0..Cuda::count().unwrap_or(0)).filter_map(describe).collect()
}

/// How to open a device.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// How activations, K and V are stored: [`DType::BF16`] or [`DType::F16`]. bf16 suits models published in bf16 (their
    /// activations may pass 65504), f16 is eight times as precise.
    pub activation: DType,
    /// Where compiled kernels are kept; by default the platform's cache folder.
    pub cache: Option<PathBuf>,
    /// Which attention kernel: by default the best for the device.
    pub attention: AttentionKernel,
    /// Whether decoding steps are recorded as CUDA graphs.
    pub graphs: bool,
    /// Macro definitions added to the attention kernel, to measure its variants (`Q_SHARED`, `PINGPONG`, `ROW_BLOCKS`).
    pub attention_defines: Vec<(&'static str, u32)>,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            activation: DType::BF16,
            cache: None,
            attention: AttentionKernel::Auto,
            graphs: true,
            attention_defines: Vec::new(),
        }
    }
}

/// Which attention kernel to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionKernel {
    /// wgmma and TMA on Hopper for head_dim 64, 96 and 128, mma.sync otherwise.
    #[default]
    Auto,
    /// mma.sync everywhere.
    Sm80,
}

/// [`Backend::dense_above`] of `attention_sm90a` and of `attention_sm80`. On an H100 at 32K keys, offsets at random and 30
/// to 2000 columns took 0.84 to 0.96 of the time of dense at a density of 0.66, 0.99 to 1.04 at 0.79 (`cuda_probe`,
/// crossover_default), and sm_80's 0.93 to 0.99 at 0.66, 1.06 to 1.09 at 0.79; blocks at random break even at 0.95 only,
/// but have few rows between the two.
const DENSE_ABOVE: [u32; 2] = [176, 168];

/// What of a device the launches depend on.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Streaming multiprocessors.
    processors: u32,
    /// Shared memory that one block may ask for, in bytes.
    shared_per_block: usize,
    /// Shared memory of a multiprocessor.
    shared_per_processor: usize,
    /// Compute capability 9.0.
    hopper: bool,
}

/// A CUDA device as a [`Backend`].
pub struct Cuda {
    device: Arc<Device>,
    gemm: Gemm,
    info: DeviceInfo,
    options: CudaOptions,
    limits: Limits,
    arch: String,
    compiler: (i32, i32),
    cache: DiskCache,
    modules: Mutex<HashMap<String, Arc<CudaModule>>>,
    functions: Mutex<HashMap<String, CudaFunction>>,
    /// Partial results of `decode_attention`, shared with recordings.
    scratch: Mutex<Option<Arc<CudaBuffer>>>,
    /// u32: by how much a replay moves positions and lengths on.
    shift: CudaBuffer,
    /// While work is recorded: keys of its longest `decode_attention`.
    recording: Mutex<Option<u32>>,
}

/// Work kept as a CUDA graph, with the memory of the backend's own that it uses.
pub struct Recording {
    graph: Graph,
    /// Keys of the longest `decode_attention` in it.
    kv_len: u32,
    _scratch: Option<Arc<CudaBuffer>>,
}

impl Cuda {
    /// How many CUDA devices are here.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the driver is missing or finds none.
    pub fn count() -> Result<usize> {
        Library::Driver.require()?;
        match CudaContext::device_count() {
            Ok(n) if n > 0 => Ok(n as usize),
            Ok(_) => Err(Error::Unavailable("CUDA: the driver is here, but no CUDA device".into())),
            Err(e) => Err(Error::Unavailable(format!("CUDA: the driver does not start: {e}"))),
        }
    }

    /// Opens device `ordinal` on a stream of its own.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where a library or the device is missing, [`Error::Unsupported`] below compute capability 8.0.
    pub fn new(ordinal: usize, options: CudaOptions) -> Result<Self> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(Error::Unavailable(format!("cuda:{ordinal}: this machine has cuda:0 to cuda:{}", count - 1)));
        }
        let context = CudaContext::new(ordinal).map_err(|e| driver_error("cuDevicePrimaryCtxRetain", e))?;
        let stream = context.new_stream().map_err(|e| driver_error("cuStreamCreate", e))?;
        Self::on_stream(stream, options)
    }

    /// On a caller's context and stream; `CudaContext::wrap_borrowed_stream` makes one of a raw handle.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn on_stream(stream: Arc<CudaStream>, options: CudaOptions) -> Result<Self> {
        Library::Nvrtc.require()?;
        if !matches!(options.activation, DType::BF16 | DType::F16) {
            return Err(Error::invalid(format!("CUDA activations are bf16 or f16, not {}", options.activation)));
        }
        let (mut info, limits, arch) = describe(stream.context())?;
        if options.attention == AttentionKernel::Sm80 {
            info.tier = "sm_80".into();
        }
        let device = Arc::new(Device::new(stream)?);
        Ok(Self {
            gemm: Gemm::new(&device)?,
            info,
            limits,
            arch,
            compiler: compile::version(),
            cache: DiskCache::new(options.cache.clone()),
            options,
            modules: Mutex::default(),
            functions: Mutex::default(),
            scratch: Mutex::default(),
            shift: device.alloc(16)?,
            recording: Mutex::default(),
            device,
        })
    }

    /// The stream that everything is enqueued on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.device.stream
    }

    fn bf16(&self) -> u32 {
        (self.options.activation == DType::BF16) as u32
    }

    /// `float` or `act`, as the kernels call an element type.
    fn c_type(&self, dtype: DType) -> &'static str {
        if dtype == DType::F32 { "float" } else { "act" }
    }

    /// A kernel ready to launch: from memory, from disk, or compiled now.
    fn function(&self, kernel: &Kernel, entry: &str, shared_bytes: usize) -> Result<CudaFunction> {
        let name = kernel.name();
        let key = format!("{entry} of {name}");
        if let Some(f) = lock(&self.functions).get(&key) {
            return Ok(f.clone());
        }
        let module = self.module(kernel, &name)?;
        let f = module.load_function(entry).map_err(|e| driver_error(&key, e))?;
        if shared_bytes > self.limits.shared_per_block {
            return Err(Error::Unsupported(format!(
                "{key}: needs {shared_bytes} bytes of shared memory, {} has {}",
                self.info.name, self.limits.shared_per_block
            )));
        }
        if shared_bytes > 48 << 10 {
            use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SHARED;
            f.set_attribute(SHARED, shared_bytes as i32).map_err(|e| driver_error(&key, e))?;
        }
        lock(&self.functions).insert(key, f.clone());
        Ok(f)
    }

    fn module(&self, kernel: &Kernel, name: &str) -> Result<Arc<CudaModule>> {
        if let Some(module) = lock(&self.modules).get(name) {
            return Ok(module.clone());
        }
        let (source, options) = (kernel.source.linked(), kernel.options(&self.arch));
        let key = format!("nvrtc {:?}\n{}\n{source}", self.compiler, options.join("\n"));
        let cubin = match self.cache.load(&key) {
            Some(cubin) => cubin,
            None => {
                let cubin = compile::compile(name, &source, &options)?.cubin;
                self.cache.store(&key, &cubin);
                cubin
            }
        };
        let module = self.device.context().load_module(Ptx::from_binary(cubin)).map_err(|e| {
            Error::Unavailable(format!(
                "CUDA: the driver refuses code from NVRTC {}.{} ({name}: {e}); update the driver, or use the NVRTC of its version",
                self.compiler.0, self.compiler.1
            ))
        })?;
        lock(&self.modules).insert(name.to_string(), module.clone());
        Ok(module)
    }

    /// Enqueues a kernel.
    fn launch(&self, kernel: &Kernel, entry: &str, launch: Launch, args: &[Arg]) -> Result<()> {
        let f = self.function(kernel, entry, launch.shared_bytes as usize)?;
        self.device.launch(entry, &f, launch, args)
    }

    fn alloc_buffer(&self, bytes: usize) -> Result<CudaBuffer> {
        self.device.alloc(bytes)
    }

    /// Where a kernel reads by how much to move positions on: null but while work is recorded. Attention over `kv_len` keys
    /// is noted with it.
    fn shift_address(&self, kv_len: Option<u32>) -> u64 {
        match &mut *lock(&self.recording) {
            None => 0,
            Some(longest) => {
                *longest = (*longest).max(kv_len.unwrap_or(0));
                self.shift.address()
            }
        }
    }

    /// At least so many bytes for the partial results of one `decode_attention`: the next one may overwrite them.
    fn decode_scratch(&self, bytes: usize) -> Result<Arc<CudaBuffer>> {
        let mut scratch = lock(&self.scratch);
        match &*scratch {
            Some(buffer) if buffer.bytes() >= bytes => Ok(buffer.clone()),
            _ => {
                *scratch = None;
                Ok(scratch.insert(Arc::new(self.alloc_buffer(bytes)?)).clone())
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The maps are valid after any panic: entries are whole.
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Where a slice begins on the device.
fn address(s: &Slice<Cuda>) -> u64 {
    s.buffer.address() + s.byte_offset as u64
}

/// The same of a slice to write.
fn address_mut(s: &SliceMut<Cuda>) -> u64 {
    s.buffer.address() + s.byte_offset as u64
}

/// What a device is, its limits, and the architecture to compile for.
fn describe(context: &CudaContext) -> Result<(DeviceInfo, Limits, String)> {
    let told = |e| driver_error("cuDeviceGetAttribute", e);
    let attribute = |which| context.attribute(which).map(|v| v as usize).map_err(told);
    let (major, minor) = context.compute_capability().map_err(told)?;
    let name = context.name().map_err(told)?;
    if major < 8 {
        return Err(Error::Unsupported(format!(
            "cuda:{}: {name} has compute capability {major}.{minor}; 8.0 (Ampere) or later is needed",
            context.ordinal()
        )));
    }
    let hopper = (major, minor) == (9, 0);
    let limits = Limits {
        processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        shared_per_processor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        hopper,
    };
    let info = DeviceInfo {
        id: format!("cuda:{}", context.ordinal()),
        backend: "cuda",
        api: "cuda".into(),
        name,
        memory_bytes: context.total_mem().map_err(told)? as u64,
        max_binding_bytes: 0,
        is_cpu: false,
        subgroup: 32,
        f16: true,
        cooperative_matrix: if hopper { "64x128x16 bf16,f16->f32" } else { "16x8x16 bf16,f16->f32" }.into(),
        tier: if hopper { "sm_90a" } else { "sm_80" }.into(),
    };
    // The `a` opens Hopper's own instructions; code for it runs on 9.0 alone, which is what it is compiled for here.
    let arch = format!("sm_{major}{minor}{}", if hopper { "a" } else { "" });
    Ok((info, limits, arch))
}

impl Backend for Cuda {
    type Buffer = CudaBuffer;
    type Recording = Recording;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn activation(&self) -> DType {
        self.options.activation
    }

    fn dense_above(&self) -> u32 {
        DENSE_ABOVE[usize::from(!self.limits.hopper || self.options.attention == AttentionKernel::Sm80)]
    }

    fn accepts_weight(&self, dtype: DType) -> bool {
        // The other 16-bit type becomes the activations' at load; f32 stays exact and is rounded on the way to cuBLASLt.
        dtype == self.options.activation || dtype == DType::F32 || dtype.is_quantized()
    }

    fn memory(&self) -> MemoryStats {
        let (current, peak) = self.device.memory();
        MemoryStats { current, peak }
    }

    fn reset_peak(&self) {
        self.device.reset_peak();
    }

    fn buffer_bytes(buffer: &CudaBuffer) -> usize {
        buffer.bytes()
    }

    fn alloc(&self, bytes: usize) -> Result<CudaBuffer> {
        self.alloc_buffer(bytes)
    }

    fn upload(&self, bytes: &[u8]) -> Result<CudaBuffer> {
        let buffer = self.alloc_buffer(bytes.len())?;
        self.device.write(buffer.address(), bytes)?;
        Ok(buffer)
    }

    fn write(&self, buffer: &mut CudaBuffer, byte_offset: usize, bytes: &[u8]) -> Result<()> {
        check_part("write", buffer, byte_offset..byte_offset.saturating_add(bytes.len()))?;
        self.device.write(buffer.address() + byte_offset as u64, bytes)
    }

    async fn download(&self, buffer: &CudaBuffer, bytes: Range<usize>) -> Result<Vec<u8>> {
        check_part("download", buffer, bytes.clone())?;
        self.device.read(buffer.address() + bytes.start as u64, bytes.len())
    }

    fn flush(&self) -> Result<()> {
        Ok(()) // the driver hands work over by itself
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Recording>> {
        if !self.options.graphs {
            return Ok(None);
        }
        *lock(&self.recording) = Some(0);
        let graph = self.device.capture(work);
        let kv_len = lock(&self.recording).take().unwrap_or(0);
        let recording = |graph| Recording { graph, kv_len, _scratch: lock(&self.scratch).clone() };
        Ok(graph.map(recording))
    }

    fn replay(&self, recording: &mut Recording, shift: i64) -> Result<bool> {
        // The grid of decode_attention is that of all lengths up to the same power of two.
        let serves =
            |now: u32| recording.kv_len == 0 || now.next_power_of_two() == recording.kv_len.next_power_of_two();
        if !u32::try_from(i64::from(recording.kv_len) + shift).is_ok_and(serves) {
            return Ok(false);
        }
        self.device.write(self.shift.address(), &(shift as u32).to_le_bytes())?;
        recording.graph.launch()?;
        Ok(true)
    }

    fn embed(&self, p: &EmbedParams, ids: Slice<Self>, table: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        elementwise::embed(self, p, ids, table, out)
    }

    fn rms_norm(&self, p: &RmsNormParams, x: Slice<Self>, weight: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        elementwise::rms_norm(self, p, x, weight, out)
    }

    fn matmul(
        &self,
        p: &MatmulParams,
        x: Slice<Self>,
        w: Slice<Self>,
        bias: Option<Slice<Self>>,
        out: SliceMut<Self>,
    ) -> Result<()> {
        matmul::matmul(self, p, x, w, bias, out)
    }

    fn rope(&self, p: &RopeParams, turns: Slice<Self>, x: SliceMut<Self>) -> Result<()> {
        elementwise::rope(self, p, turns, x)
    }

    fn silu_mul(&self, p: &SiluMulParams, gate_up: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        elementwise::silu_mul(self, p, gate_up, out)
    }

    fn add(&self, p: &AddParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        elementwise::add(self, p, x, out)
    }

    fn cast(&self, p: &CastParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        elementwise::cast(self, p, x, out)
    }

    fn append_kv(
        &self,
        p: &AppendKvParams,
        k: Slice<Self>,
        v: Slice<Self>,
        k_cache: SliceMut<Self>,
        v_cache: SliceMut<Self>,
    ) -> Result<()> {
        elementwise::append_kv(self, p, [k, v], [k_cache, v_cache])
    }

    fn pack_kv(&self, p: &PackKvParams, x: SliceMut<Self>, packed: SliceMut<Self>) -> Result<()> {
        elementwise::pack_kv(self, p, x, packed)
    }

    fn unpack_kv(&self, p: &PackKvParams, packed: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        elementwise::unpack_kv(self, p, packed, out)
    }

    fn score_last_queries(
        &self,
        p: &ScoreLastQueriesParams,
        plan: Slice<Self>,
        q: Slice<Self>,
        k: Slice<Self>,
        column_score: SliceMut<Self>,
        offset_score: SliceMut<Self>,
    ) -> Result<()> {
        estimate::score_last_queries(self, p, plan, [q, k], [column_score, offset_score])
    }

    fn select_top_k(
        &self,
        p: &SelectTopKParams,
        scores: Slice<Self>,
        counts: Slice<Self>,
        indices: SliceMut<Self>,
    ) -> Result<()> {
        estimate::select_top_k(self, p, scores, counts, indices)
    }

    fn pool_blocks(&self, p: &PoolBlocksParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        estimate::pool_blocks(self, p, x, out)
    }

    fn score_blocks(
        &self,
        p: &ScoreBlocksParams,
        plan: Slice<Self>,
        pooled_q: Slice<Self>,
        pooled_k: Slice<Self>,
        scores: SliceMut<Self>,
    ) -> Result<()> {
        estimate::score_blocks(self, p, plan, [pooled_q, pooled_k], scores)
    }

    fn select_blocks(
        &self,
        p: &ScoreBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        block_mask: SliceMut<Self>,
    ) -> Result<()> {
        estimate::select_blocks(self, p, plan, scores, block_mask)
    }

    fn count_by_mass(
        &self,
        p: &CountByMassParams,
        budget: Slice<Self>,
        scores: Slice<Self>,
        counts: SliceMut<Self>,
    ) -> Result<()> {
        estimate::count_by_mass(self, p, budget, scores, counts)
    }

    fn group_offsets(&self, p: &GroupOffsetsParams, budget: Slice<Self>, scores: SliceMut<Self>) -> Result<()> {
        estimate::group_offsets(self, p, budget, scores)
    }

    fn settle_heads(
        &self,
        p: &SettleHeadsParams,
        budget: Slice<Self>,
        column_score: Slice<Self>,
        block_score: Slice<Self>,
        plan: SliceMut<Self>,
        column_count: SliceMut<Self>,
        offset_count: SliceMut<Self>,
    ) -> Result<()> {
        estimate::settle_heads(self, p, [budget, column_score, block_score], [plan, column_count, offset_count])
    }

    fn fold_rows(&self, p: &FoldRowsParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        estimate::fold_rows(self, p, x, out)
    }

    fn weigh_antidiagonals(
        &self,
        p: &WeighAntidiagonalsParams,
        plan: Slice<Self>,
        products: Slice<Self>,
        scores: SliceMut<Self>,
    ) -> Result<()> {
        estimate::weigh_antidiagonals(self, p, plan, products, scores)
    }

    fn share_scores(&self, p: &ShareScoresParams, plan: Slice<Self>, scores: SliceMut<Self>) -> Result<()> {
        estimate::share_scores(self, p, plan, scores)
    }

    fn weigh_blocks(
        &self,
        p: &WeighBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        mass: SliceMut<Self>,
    ) -> Result<()> {
        estimate::weigh_blocks(self, p, plan, scores, mass)
    }

    fn select_weighed_blocks(
        &self,
        p: &WeighBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        mass: Slice<Self>,
        block_mask: SliceMut<Self>,
    ) -> Result<()> {
        estimate::select_weighed_blocks(self, p, [plan, scores, mass], block_mask)
    }

    fn build_index(&self, p: &BuildIndexParams, choice: IndexChoice<Self>, out: IndexSlicesMut<Self>) -> Result<()> {
        estimate::build_index(self, p, choice, out)
    }

    fn attention(
        &self,
        p: &AttentionParams,
        q: Slice<Self>,
        k: Slice<Self>,
        v: Slice<Self>,
        index: IndexSlices<Self>,
        out: SliceMut<Self>,
        lse: Option<SliceMut<Self>>,
    ) -> Result<()> {
        attention::attention(self, p, [q, k, v], index, out, lse)
    }

    fn decode_attention(
        &self,
        p: &AttentionParams,
        q: Slice<Self>,
        k: Slice<Self>,
        v: Slice<Self>,
        out: SliceMut<Self>,
        lse: Option<SliceMut<Self>>,
    ) -> Result<()> {
        attention::decode_attention(self, p, [q, k, v], out, lse)
    }

    fn merge_attention(
        &self,
        p: &MergeAttentionParams,
        part: Slice<Self>,
        lse: [Slice<Self>; 2],
        out: SliceMut<Self>,
        merged_lse: SliceMut<Self>,
    ) -> Result<()> {
        attention::merge_attention(self, p, part, lse, out, merged_lse)
    }

    fn clip_index(
        &self,
        p: &ClipIndexParams,
        index: IndexSlices<Self>,
        row_ranges: SliceMut<Self>,
        ranges: SliceMut<Self>,
        keep: SliceMut<Self>,
    ) -> Result<()> {
        estimate::clip_index(self, p, index, [row_ranges, ranges, keep])
    }
}

/// A part to copy must lie within its buffer: outside, the copy would touch other allocations.
fn check_part(op: &'static str, buffer: &CudaBuffer, part: Range<usize>) -> Result<()> {
    if part.start <= part.end && part.end <= buffer.bytes() {
        return Ok(());
    }
    Err(Error::Shape { op, what: "bytes", expected: format!("within 0..{}", buffer.bytes()), got: format!("{part:?}") })
}
