//! Matrix products through cuBLASLt: `out = x w^T (+ bias) (+ out)`, 16-bit operands, f32 sums.
#![allow(unsafe_code, reason = "calls into cuBLASLt, which takes raw pointers")]

use super::device::{CudaBuffer, Device, Library};
use crate::backend::params::MatmulParams;
use crate::{Error, Result};
use cudarc::cublaslt::{result, result::CublasError, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

/// What cuBLASLt recommends for Hopper; a quarter of it would do before.
const WORKSPACE_BYTES: usize = 32 << 20;

/// A handle, its workspace and the algorithms it chose so far.
pub(super) struct Gemm {
    device: Arc<Device>,
    handle: Handle,
    workspace: CudaBuffer,
    plans: Mutex<HashMap<Problem, Plan>>,
}

struct Handle(sys::cublasLtHandle_t);
// SAFETY: a cuBLASLt handle may be used by several threads at once (its documentation, thread safety).
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// What an algorithm is chosen for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    m: u32,
    n: u32,
    k: u32,
    x_stride: u32,
    out_stride: u32,
    accumulate: bool,
    /// bf16 operands, else f16.
    bf16: bool,
    /// f32 output, else the operands' type.
    out_f32: bool,
    bias: bool,
    /// Whether all addresses are multiples of 16.
    aligned: bool,
}

#[derive(Clone, Copy)]
struct Plan {
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// The bias is added in the epilogue; otherwise the caller adds it.
    fused_bias: bool,
}

/// Addresses of one product.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) x: u64,
    pub(super) w: u64,
    pub(super) bias: Option<u64>,
    pub(super) out: u64,
}

/// A descriptor that is destroyed with this value.
struct Descriptor<T: Copy>(T, unsafe fn(T) -> Result<(), CublasError>);
impl<T: Copy> Drop for Descriptor<T> {
    fn drop(&mut self) {
        // SAFETY: created by the matching constructor, destroyed once. A failure leaks a few bytes.
        let _ = unsafe { (self.1)(self.0) };
    }
}

impl Gemm {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self> {
        Library::CublasLt.require()?;
        let handle = result::create_handle().map_err(|e| failure("cublasLtCreate", e))?;
        let workspace = device.alloc(WORKSPACE_BYTES)?;
        Ok(Self { device: device.clone(), handle: Handle(handle), workspace, plans: Mutex::default() })
    }

    /// Enqueues the product. Returns whether the bias, if any, is still to be added.
    pub(super) fn run(&self, p: &MatmulParams, bf16: bool, out_f32: bool, at: Operands) -> Result<bool> {
        let problem = Problem {
            m: p.m,
            n: p.n,
            k: p.k,
            x_stride: p.x_stride,
            out_stride: p.out_stride,
            accumulate: p.accumulate != 0,
            bf16,
            out_f32,
            bias: at.bias.is_some(),
            aligned: (at.x | at.w | at.out | at.bias.unwrap_or(0)).is_multiple_of(16),
        };
        let known = self.plans.lock().unwrap_or_else(|e| e.into_inner()).get(&problem).copied();
        let plan = match known {
            Some(plan) => plan,
            None => {
                let plan = self.choose(&problem, at)?;
                self.plans.lock().unwrap_or_else(|e| e.into_inner()).insert(problem, plan);
                plan
            }
        };
        let set = Descriptors::new(&problem, at.bias.filter(|_| plan.fused_bias)).map_err(|e| problem.failure(e))?;
        let (alpha, beta) = (1f32, if problem.accumulate { 1f32 } else { 0f32 });
        // SAFETY: descriptors are live; the operands were checked against their buffers by `ops`; C and D are the same matrix.
        unsafe {
            result::matmul(
                self.handle.0,
                set.product.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                at.w as *const c_void,
                set.w.0,
                at.x as *const c_void,
                set.x.0,
                at.out as *const c_void,
                set.out.0,
                at.out as *mut c_void,
                set.out.0,
                &plan.algorithm,
                self.workspace.address() as *mut c_void,
                WORKSPACE_BYTES,
                self.device.stream.cu_stream().cast(),
            )
        }
        .map_err(|e| problem.failure(e))?;
        Ok(problem.bias && !plan.fused_bias)
    }

    /// The heuristic's first choice, with the bias in the epilogue where cuBLASLt has a kernel for that.
    fn choose(&self, problem: &Problem, at: Operands) -> Result<Plan> {
        if let Some(bias) = at.bias
            && let Ok(algorithm) = self.heuristic(problem, Some(bias))
        {
            return Ok(Plan { algorithm, fused_bias: true });
        }
        let algorithm = self.heuristic(problem, None).map_err(|e| problem.failure(e))?;
        Ok(Plan { algorithm, fused_bias: false })
    }

    fn heuristic(&self, problem: &Problem, bias: Option<u64>) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        let set = Descriptors::new(problem, bias)?;
        let preference = Descriptor(result::create_matmul_pref()?, result::destroy_matmul_pref);
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let alignment: u32 = if problem.aligned { 16 } else { 2 };
        // SAFETY: descriptors are live; each attribute gets its documented type.
        unsafe {
            let set_preference = |which, value: *const c_void, bytes| {
                result::set_matmul_pref_attribute(preference.0, which, value, bytes)
            };
            let workspace = WORKSPACE_BYTES;
            set_preference(
                Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of::<usize>(),
            )?;
            for which in [
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ] {
                set_preference(which, (&raw const alignment).cast(), size_of::<u32>())?;
            }
            let found = result::get_matmul_algo_heuristic(
                self.handle.0,
                set.product.0,
                set.w.0,
                set.x.0,
                set.out.0,
                set.out.0,
                preference.0,
            )?;
            Ok(found.algo)
        }
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: created by us, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle.0) };
    }
}

/// The product in cuBLASLt's column-major words: `out^T [n, m] = w [k, n]^T x^T [k, m]`.
struct Descriptors {
    product: Descriptor<sys::cublasLtMatmulDesc_t>,
    w: Descriptor<sys::cublasLtMatrixLayout_t>,
    x: Descriptor<sys::cublasLtMatrixLayout_t>,
    out: Descriptor<sys::cublasLtMatrixLayout_t>,
}

impl Descriptors {
    fn new(p: &Problem, bias: Option<u64>) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        use sys::cudaDataType_t as Type;
        let half = if p.bf16 { Type::CUDA_R_16BF } else { Type::CUDA_R_16F };
        let out = if p.out_f32 { Type::CUDA_R_32F } else { half };
        let layout = |dtype, rows: u32, columns: u32, stride: u32| {
            result::create_matrix_layout(dtype, rows as u64, columns as u64, stride as i64)
                .map(|d| Descriptor(d, result::destroy_matrix_layout as unsafe fn(_) -> _))
        };
        let product = Descriptor(
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F)?,
            result::destroy_matmul_desc as unsafe fn(_) -> _,
        );
        let set = |which, value: *const c_void, bytes| {
            // SAFETY: the descriptor is live and each attribute gets its documented type.
            unsafe { result::set_matmul_desc_attribute(product.0, which, value, bytes) }
        };
        let transpose: i32 = 1; // CUBLAS_OP_T
        set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, (&raw const transpose).cast(), size_of::<i32>())?;
        if let Some(bias) = bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            let dtype = Type::CUDA_R_32F;
            set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, (&raw const epilogue).cast(), size_of_val(&epilogue))?;
            set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, (&raw const bias).cast(), size_of::<u64>())?;
            set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, (&raw const dtype).cast(), size_of_val(&dtype))?;
        }
        let w = layout(half, p.k, p.n, p.k)?;
        let x = layout(half, p.k, p.m, p.x_stride)?;
        let out = layout(out, p.n, p.m, p.out_stride)?;
        Ok(Self { product, w, x, out })
    }
}

impl Problem {
    fn failure(&self, e: CublasError) -> Error {
        let Self { m, n, k, .. } = self;
        failure(&format!("cublasLtMatmul [{m}, {k}] x [{n}, {k}]^T"), e)
    }
}

fn failure(what: &str, e: CublasError) -> Error {
    Error::Device(format!("{what}: {e}"))
}
