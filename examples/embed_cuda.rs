//! The sparse attention operator inside another CUDA program: on the program's own context and stream, over its own device
//! memory, in its own layout.
//!
//! ```sh
//! cargo run --release --features cuda --example embed_cuda
//! ```

use minference::attention;
use minference::backend::Backend;
use minference::backend::cuda::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError};
use minference::backend::cuda::{Cuda, CudaBuffer, CudaOptions};
use minference::ops::AttentionShape;
use minference::pattern::HeadPattern;
use minference::tensor::{Tensor, encode_f32};
use minference::{DType, Error, Result};
use std::process::ExitCode;
use std::sync::Arc;

fn failed(e: DriverError) -> Error {
    Error::Device(e.to_string())
}

/// What stands for the program: it made its context and stream long ago. A program in C or Python has raw handles instead:
/// `CudaContext::from_raw_context` and `wrap_borrowed_stream` take them.
fn own_stream() -> Result<Arc<CudaStream>> {
    Cuda::count()?; // says what is missing where there is no driver
    CudaContext::new(0).and_then(|context| context.new_stream()).map_err(failed)
}

/// The program's memory as a buffer of ours, `skip` bytes in.
fn borrowed(memory: &CudaSlice<u8>, stream: &CudaStream, skip: usize) -> CudaBuffer {
    let address = memory.device_ptr(stream).0 + skip as u64;
    // SAFETY: the memory outlives the stream's work: `main` waits for it before it ends, and everything else on these
    // bytes is enqueued on the same stream. Bands begin at multiples of 16 bytes.
    unsafe { CudaBuffer::from_raw(address, memory.len() - skip) }
}

fn main() -> ExitCode {
    run().map_or_else(|e| e.report(), |()| ExitCode::SUCCESS)
}

fn run() -> Result<()> {
    let stream = own_stream()?;
    let b = Cuda::on_stream(stream.clone(), CudaOptions::default())?;
    let info = b.info();
    println!("operator on {} ({}), activations {}", info.name, info.tier, b.activation());

    // The program's tensor: q, k and v of each token side by side, 8 query heads on 2 KV heads of 128.
    let (heads, kv_heads, dim, len) = (8, 2, 128, 8192);
    let row = (heads + 2 * kv_heads) * dim;
    let values: Vec<f32> = (0..len * row).map(|i| ((i * 2_654_435_761) % 2001) as f32 / 1000.0 - 1.0).collect();
    let qkv = stream.clone_htod(&encode_f32(b.activation(), &values)?).map_err(failed)?;
    let result = stream.alloc_zeros::<u8>(DType::F32.bytes(len * heads * dim)).map_err(failed)?;

    // Each band of a row, seen through strides: between tokens a row, between heads one head.
    let band = |column: usize| {
        let buffer = borrowed(&qkv, &stream, b.activation().bytes(column));
        Tensor::<Cuda>::from_buffer(buffer, b.activation(), [len * row - column])
    };
    let (q, k, v) = (band(0), band(heads * dim), band((heads + kv_heads) * dim));
    let mut out = Tensor::from_buffer(borrowed(&result, &stream, 0), DType::F32, [len, heads * dim]);
    let shape = AttentionShape {
        n_heads: heads,
        n_kv_heads: kv_heads,
        head_dim: dim,
        q_len: len,
        kv_len: len,
        q_start: 0,
        scale: 1.0 / (dim as f32).sqrt(),
        q_stride: [row, dim],
        k_stride: [row, dim],
        v_stride: [row, dim],
        out_stride: [heads * dim, dim],
    };
    // Half of the heads vertical-slash, half block-sparse: one call, one launch per stage.
    let mut patterns = vec![HeadPattern::VerticalSlash { columns: 100, offsets: 800 }; heads / 2];
    patterns.resize(heads, HeadPattern::BlockSparse { top_k: 16 });
    let index = attention::attend(&b, &patterns, &shape, q.view(), k.view(), v.view(), out.view_mut(), None)?;

    // The program's own next work on the stream sees the result; here that is a copy to the host.
    let bytes = stream.clone_dtoh(&result).map_err(failed)?;
    let values: Vec<f32> = bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
    let norm = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    println!("density {:.3}, {} values out, norm {norm:.3}", index.density(&b)?, values.len());
    Ok(())
}
