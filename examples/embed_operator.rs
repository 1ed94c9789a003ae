//! The sparse attention operator inside another engine: on the engine's own `wgpu::Device` and `Queue`, over its own
//! buffers, in its own layout.
//!
//! ```sh
//! cargo run --release --example embed_operator
//! ```

use minference::attention;
use minference::backend::Backend;
use minference::backend::wgpu::{Buffer, Options, Wgpu};
use minference::ops::AttentionShape;
use minference::pattern::HeadPattern;
use minference::tensor::{Tensor, encode_f32};
use minference::{DType, Error, Result};
use std::process::ExitCode;

/// What stands for the engine: it opened a device long ago, with the features that the operator needs.
fn engine_device() -> Result<(wgpu::Device, wgpu::Queue)> {
    let unavailable = |e: &dyn std::fmt::Display| Error::Unavailable(e.to_string());
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..Default::default()
    }))
    .map_err(|e| unavailable(&e))?;
    let useful = wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP | wgpu::Features::SUBGROUP_BARRIER;
    pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("the engine's own"),
        required_features: wgpu::Features::IMMEDIATES | (adapter.features() & useful),
        required_limits: adapter.limits(),
        ..Default::default()
    }))
    .map_err(|e| unavailable(&e))
}

fn main() -> ExitCode {
    run().map_or_else(|e| e.report(), |()| ExitCode::SUCCESS)
}

fn run() -> Result<()> {
    let (device, queue) = engine_device()?;
    let b = Wgpu::from_device(device.clone(), queue.clone(), Options::default())?;
    let info = b.info();
    println!("operator on {} ({}, {}), activations {}", info.name, info.api, info.tier, b.activation());

    // The engine's tensor: q, k and v of each token side by side, 8 query heads on 2 KV heads of 64.
    let (heads, kv_heads, dim, len) = (8, 2, 64, 2048);
    let row = (heads + 2 * kv_heads) * dim;
    let values: Vec<f32> = (0..len * row).map(|i| ((i * 2_654_435_761) % 2001) as f32 / 1000.0 - 1.0).collect();
    let bytes = encode_f32(b.activation(), &values)?;
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let create = |label, size: usize| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: size as u64,
            usage,
            mapped_at_creation: false,
        })
    };
    let qkv = create("qkv", bytes.len());
    queue.write_buffer(&qkv, 0, &bytes);
    let result = create("attention output", DType::F32.bytes(len * heads * dim));

    // Each band of a row, seen through strides: between tokens a row, between heads one head.
    let band = |column: usize| -> Result<Tensor<Wgpu>> {
        let skip = b.activation().bytes(column) as u64;
        let elements = len * row - column;
        let part = Buffer::wrap(qkv.clone(), skip, bytes.len() as u64 - skip)?;
        Ok(Tensor::from_buffer(part, b.activation(), [elements]))
    };
    let (q, k, v) = (band(0)?, band(heads * dim)?, band((heads + kv_heads) * dim)?);
    let mut out = Tensor::from_buffer(Buffer::wrap(result.clone(), 0, result.size())?, DType::F32, [len, heads * dim]);
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
    let mut patterns = vec![HeadPattern::VerticalSlash { columns: 100, offsets: 200 }; heads / 2];
    patterns.resize(heads, HeadPattern::BlockSparse { top_k: 6 });
    let index = attention::attend(&b, &patterns, &shape, q.view(), k.view(), v.view(), out.view_mut(), None)?;
    b.flush()?; // From here on the engine's own commands see `result`.

    let values = out.to_f32(&b)?;
    let norm = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    println!("density {:.3}, {} values out, norm {norm:.3}", index.density(&b)?, values.len());
    Ok(())
}
