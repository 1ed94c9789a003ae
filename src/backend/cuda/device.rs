//! The CUDA driver: a device with its stream and memory pool, kernel launches and tensor maps.
//!
//! Everything of the backend that is `unsafe` towards the driver is here; the operations above pass plain values.
#![allow(unsafe_code, reason = "calls into the CUDA driver: allocation, copies, launches, tensor maps")]

use crate::{Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaGraph, CudaStream, DriverError, result, sys};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One device, one stream, one pool. Everything enqueues on the stream, in order.
pub(super) struct Device {
    pub(super) stream: Arc<CudaStream>,
    pool: Option<Pool>,
    current: AtomicU64,
    peak: AtomicU64,
}

/// A stream-ordered memory pool of our own: a caller's default pool stays as it is.
struct Pool(sys::CUmemoryPool);

// SAFETY: a pool handle may be used from any thread; the driver locks.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

/// Device memory: from the backend's pool, freed in stream order when dropped, or a caller's own.
pub struct CudaBuffer {
    address: u64,
    bytes: usize,
    owner: Option<Arc<Device>>,
}

impl CudaBuffer {
    /// A caller's device memory, not freed here: the operators work in place on another engine's tensors.
    ///
    /// # Safety
    ///
    /// `address` must be device memory of the backend's context, at least `bytes` long and a multiple of 16, that lives
    /// until every operation given this buffer has finished on the stream, with no conflicting work outside it.
    pub unsafe fn from_raw(address: u64, bytes: usize) -> Self {
        Self { address, bytes, owner: None }
    }

    /// Where it lies on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How long it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        if let Some(device) = &self.owner {
            device.free(self.address, self.bytes);
        }
    }
}

/// A graph that was captured from the stream, to be launched as one.
pub(super) struct Graph(CudaGraph);

// SAFETY: graphs may be used from any thread, one at a time; launching takes `&mut`.
unsafe impl Send for Graph {}

impl Graph {
    /// Enqueues it.
    pub(super) fn launch(&mut self) -> Result<()> {
        self.0.launch().map_err(|e| driver_error("cuGraphLaunch", e))
    }
}

/// One argument of a kernel: a value that lives until the launch returns, when the driver has copied it.
pub(super) struct Arg<'a>(*mut c_void, PhantomData<&'a ()>);

/// Plain values whose bytes are the kernel's argument.
pub(super) trait KernelArg {}
impl KernelArg for u32 {}
impl KernelArg for u64 {}
impl KernelArg for TensorMap {}
impl KernelArg for Slashes {}
macro_rules! kernel_args {
    ($($name:ident),*) => { $(impl KernelArg for crate::backend::params::$name {})* };
}
kernel_args!(
    EmbedParams,
    MergeAttentionParams,
    ClipIndexParams,
    CountByMassParams,
    GroupOffsetsParams,
    SettleHeadsParams,
    WeighBlocksParams,
    FoldRowsParams,
    WeighAntidiagonalsParams,
    ShareScoresParams,
    RmsNormParams,
    MatmulParams,
    RopeParams,
    SiluMulParams,
    AddParams,
    CastParams,
    AppendKvParams,
    PackKvParams,
    ScoreLastQueriesParams,
    SelectTopKParams,
    PoolBlocksParams,
    ScoreBlocksParams,
    BuildIndexParams,
    AttentionParams
);

/// `Slashes` of build_index.cu: six pointers and a length.
#[repr(C)]
pub(super) struct Slashes {
    pub(super) addresses: [u64; 6],
    pub(super) cover_words: u32,
    pub(super) padding: u32,
}

/// `&value` as an argument.
pub(super) fn arg<T: KernelArg>(value: &T) -> Arg<'_> {
    Arg(value as *const T as *mut c_void, PhantomData)
}

/// Grid, threads and dynamic shared memory of a launch.
#[derive(Clone, Copy)]
pub(super) struct Launch {
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared_bytes: u32,
}

impl Launch {
    pub(super) fn new(grid: [u32; 3], threads: u32) -> Self {
        Self { grid, threads, shared_bytes: 0 }
    }

    pub(super) fn shared(self, bytes: usize) -> Self {
        Self { shared_bytes: bytes as u32, ..self }
    }
}

/// What to tell about a driver error while doing `what`.
pub(super) fn driver_error(what: &str, e: DriverError) -> Error {
    Error::Device(format!("{what}: {e}"))
}

impl Device {
    /// On a stream of ours or of a caller's.
    pub(super) fn new(stream: Arc<CudaStream>) -> Result<Self> {
        let pool = match stream.context().has_async_alloc() {
            true => Some(Pool::new(stream.context()).map_err(|e| driver_error("cuMemPoolCreate", e))?),
            false => None,
        };
        Ok(Self { stream, pool, current: AtomicU64::new(0), peak: AtomicU64::new(0) })
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        self.stream.context()
    }

    pub(super) fn memory(&self) -> (u64, u64) {
        (self.current.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed))
    }

    pub(super) fn reset_peak(&self) {
        self.peak.store(self.current.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Uninitialised memory, at least 256-byte aligned.
    pub(super) fn alloc(self: &Arc<Self>, bytes: usize) -> Result<CudaBuffer> {
        self.bind()?;
        let size = bytes.max(16);
        let address = match self.try_alloc(size) {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                // Freed blocks still wait for the stream, or lie in pieces: give them back once, then ask again.
                self.synchronize()?;
                self.trim();
                self.try_alloc(size)
            }
            other => other,
        };
        let address = address.map_err(|e| match e {
            DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY) => self.out_of_memory(size),
            e => driver_error("cuMemAllocFromPoolAsync", e),
        })?;
        let now = self.current.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        self.peak.fetch_max(now, Ordering::Relaxed);
        Ok(CudaBuffer { address, bytes, owner: Some(self.clone()) })
    }

    fn try_alloc(&self, bytes: usize) -> Result<u64, DriverError> {
        let Some(pool) = &self.pool else {
            // SAFETY: the context is bound; the address is owned by the CudaBuffer made from it.
            return unsafe { result::malloc_sync(bytes) };
        };
        let mut address = 0;
        // SAFETY: pool and stream are live handles of this context, `address` is a valid place for the result.
        unsafe { sys::cuMemAllocFromPoolAsync(&mut address, bytes, pool.0, self.stream.cu_stream()) }.result()?;
        Ok(address)
    }

    fn free(&self, address: u64, bytes: usize) {
        self.current.fetch_sub(bytes as u64, Ordering::Relaxed);
        if self.bind().is_err() {
            return; // the context is lost, and its memory with it
        }
        // SAFETY: the address came from try_alloc and is freed once; work enqueued before on the stream is done with it by
        // then, and without a pool the stream is waited for first.
        let freed = unsafe {
            match self.pool {
                Some(_) => result::free_async(address, self.stream.cu_stream()),
                None => self.stream.synchronize().and_then(|()| result::free_sync(address)),
            }
        };
        self.context().record_err(freed);
    }

    fn trim(&self) {
        if let Some(pool) = &self.pool {
            // SAFETY: a live pool; a failure only means that nothing was given back.
            let _ = unsafe { sys::cuMemPoolTrimTo(pool.0, 0) };
        }
    }

    fn out_of_memory(&self, asked: usize) -> Error {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let (free, total) = self.context().mem_get_info().unwrap_or((0, 0));
        Error::OutOfMemory(format!(
            "asked the device for {:.3} GiB; {:.3} of {:.1} GiB are free, this backend holds {:.3}. To fit: a smaller --chunk, \
             --kv host, fewer tokens, or quantised weights",
            gib(asked as u64),
            gib(free as u64),
            gib(total as u64),
            gib(self.current.load(Ordering::Relaxed)),
        ))
    }

    fn bind(&self) -> Result<()> {
        self.context().bind_to_thread().map_err(|e| driver_error("the CUDA context", e))
    }

    /// Copies bytes to the device, in stream order; they may change once this returns.
    pub(super) fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller checked that the buffer holds the bytes; pageable memory is staged before the call returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }
            .map_err(|e| driver_error("copy to the device", e))
    }

    /// Waits for the stream and copies bytes back.
    pub(super) fn read(&self, from: u64, bytes: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; bytes];
        if bytes == 0 {
            return Ok(out);
        }
        self.bind()?;
        // SAFETY: the caller checked that the buffer holds the bytes; `out` lives until the stream is waited for.
        unsafe { result::memcpy_dtoh_async(&mut out, from, self.stream.cu_stream()) }
            .map_err(|e| driver_error("copy from the device", e))?;
        self.synchronize()?;
        Ok(out)
    }

    /// Zeroes memory, in stream order.
    pub(super) fn zero(&self, buffer: &CudaBuffer) -> Result<()> {
        self.bind()?;
        // SAFETY: the whole of a live buffer.
        unsafe { result::memset_d8_async(buffer.address, 0, buffer.bytes, self.stream.cu_stream()) }
            .map_err(|e| driver_error("memset", e))
    }

    /// What `work` enqueues, as a graph instead of at once; none where the stream cannot be captured (a caller's default
    /// stream) or the work did what a graph cannot hold.
    pub(super) fn capture(&self, work: &mut dyn FnMut() -> Result<()>) -> Option<Graph> {
        self.bind().ok()?;
        // Relaxed: another thread's allocations are its own affair.
        self.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED).ok()?;
        let worked = work();
        // Ends the capture whatever became of the work; an error here leaves the stream as it was before.
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0)).ok()??;
        worked.ok()?;
        graph.upload().ok()?;
        Some(Graph(graph))
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| driver_error("the stream", e))
    }

    /// Enqueues a kernel. `args` are its parameters in order: params structs by value, buffers as addresses.
    pub(super) fn launch(&self, name: &str, f: &CudaFunction, launch: Launch, args: &[Arg]) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.bind()?;
        let mut pointers: Vec<*mut c_void> = args.iter().map(|a| a.0).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: the operations pass what their kernel declares (shaders/cuda, same stem); the values outlive the call, the
        // buffers were checked by `ops` and are freed in stream order.
        unsafe {
            result::launch_kernel(
                f.cu_function(),
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared_bytes,
                self.stream.cu_stream(),
                &mut pointers,
            )
        }
        .map_err(|e| driver_error(name, e))
    }
}

impl Pool {
    fn new(context: &CudaContext) -> Result<Self, DriverError> {
        context.bind_to_thread()?;
        let mut pool = std::ptr::null_mut();
        // SAFETY: zero is a valid value of every field; the three that matter are set. Both calls get live pointers.
        unsafe {
            let mut props: sys::CUmemPoolProps = std::mem::zeroed();
            props.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
            props.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
            props.location.id = context.ordinal() as i32;
            sys::cuMemPoolCreate(&mut pool, &props).result()?;
            // Keep what is freed: the default gives it back at every synchronisation, and takes milliseconds to get it again.
            let mut keep = u64::MAX;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut keep).cast()).result()?;
        }
        Ok(Self(pool))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: created by us, destroyed once; what is still in use is given back when it is freed.
        let _ = unsafe { sys::cuMemPoolDestroy(self.0) };
    }
}

/// A `CUtensorMap`: how the copy engine finds boxes of a `[heads, len, head_dim]` tensor of 16-bit elements.
#[derive(Clone)]
#[repr(transparent)]
pub(super) struct TensorMap(sys::CUtensorMap);

/// What a tensor map describes.
pub(super) struct TensorLayout {
    pub(super) address: u64,
    pub(super) bf16: bool,
    pub(super) heads: u32,
    pub(super) len: u32,
    pub(super) head_dim: u32,
    /// In elements; both multiples of 8.
    pub(super) head_stride: u32,
    pub(super) row_stride: u32,
}

impl TensorMap {
    /// Boxes of 64 rows of 64 elements with the 128-byte swizzle that wgmma reads. Rows past `len` and columns past
    /// `head_dim` read as zero.
    pub(super) fn new(t: &TensorLayout) -> Result<Self> {
        let dtype = match t.bf16 {
            true => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            false => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let mut map = std::mem::MaybeUninit::<sys::CUtensorMap>::zeroed();
        // SAFETY: every pointer is to a live array of the length that rank 3 asks for; the map is written on success.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                dtype,
                3,
                t.address as *mut c_void,
                [t.head_dim as u64, t.len as u64, t.heads as u64].as_ptr(),
                [2 * t.row_stride.max(8) as u64, 2 * t.head_stride.max(8) as u64].as_ptr(),
                [64u32, 64, 1].as_ptr(),
                [1u32, 1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
            .map_err(|e| driver_error("cuTensorMapEncodeTiled", e))?;
            Ok(Self(map.assume_init()))
        }
    }
}

/// Whether the library named by `which` can be loaded; cudarc panics where it cannot.
pub(super) fn library_present(which: Library) -> bool {
    // SAFETY: loading these libraries runs their initialisers only.
    unsafe {
        match which {
            Library::Driver => sys::is_culib_present(),
            Library::Nvrtc => cudarc::nvrtc::sys::is_culib_present(),
            Library::CublasLt => cudarc::cublaslt::sys::is_culib_present(),
        }
    }
}

/// The libraries that this backend loads when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// `libcuda`, part of NVIDIA's driver.
    Driver,
    /// `libnvrtc`, the run-time compiler.
    Nvrtc,
    /// `libcublasLt`, matrix products.
    CublasLt,
}

impl Library {
    /// What is missing and where to get it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Driver => {
                "CUDA: NVIDIA's driver (libcuda.so, nvcuda.dll) is not here; install it from nvidia.com/drivers or your \
                 distribution's packages (on Linux `nvidia-smi` then works)"
            }
            Self::Nvrtc => {
                "CUDA: the run-time compiler (libnvrtc) is not found; install the CUDA toolkit \
                 (developer.nvidia.com/cuda-downloads) or `pip install nvidia-cuda-nvrtc`, and put its lib folder on \
                 LD_LIBRARY_PATH (PATH on Windows)"
            }
            Self::CublasLt => {
                "CUDA: libcublasLt is not found; install the CUDA toolkit (developer.nvidia.com/cuda-downloads) or `pip \
                 install nvidia-cublas`, and put its lib folder on LD_LIBRARY_PATH (PATH on Windows)"
            }
        }
    }

    /// An error unless the library can be loaded.
    pub fn require(self) -> Result<()> {
        match library_present(self) {
            true => Ok(()),
            false => Err(Error::Unavailable(self.advice().into())),
        }
    }
}
