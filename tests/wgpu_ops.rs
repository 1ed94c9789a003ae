//! The wgpu backend's own behaviour: recording, copies, memory. Operations are compared with the CPU in `conformance.rs`.
#![cfg(feature = "wgpu")]

use minference::backend::Backend;
use minference::backend::wgpu::{Options, Tier, Wgpu};
use minference::tensor::Tensor;
use minference::{DType, Error, ops};

/// A device per tier that runs here; none where no driver is installed, as CI has one everywhere.
fn devices() -> Vec<Wgpu> {
    let open = |tier| match Wgpu::new(None, Options { tier, ..Options::default() }) {
        Ok(device) => Some(device),
        Err(Error::Unavailable(why)) => {
            eprintln!("skipped: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    };
    [Tier::Plain, Tier::Subgroup].into_iter().filter_map(open).collect()
}

#[test]
fn add_accumulates_from_both_types() {
    for b in devices() {
        let x: Vec<f32> = (0..1000).map(|i| i as f32 * 0.5).collect();
        for dtype in [DType::F32, b.activation()] {
            let bytes = minference::tensor::encode_f32(dtype, &x).unwrap();
            let from = Tensor::from_bytes(&b, dtype, [1000], &bytes).unwrap();
            let mut out = Tensor::from_slice(&b, DType::F32, [1000], &vec![1.0f32; 1000]).unwrap();
            ops::add(&b, from.view(), out.view_mut()).unwrap();
            ops::add(&b, from.view().rows(3..1000), out.view_mut().rows(3..1000)).unwrap();
            let got = out.to_f32(&b).unwrap();
            for (i, got) in got.iter().enumerate() {
                let times = if i < 3 { 1.0 } else { 2.0 };
                assert_eq!(*got, 1.0 + times * i as f32 * 0.5, "element {i}, {dtype}");
            }
        }
    }
}
