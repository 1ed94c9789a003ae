//! Products with a weight matrix `[4096, 4096]` by rows and by how the matrix is stored; the sizes are rows of x, 1 being
//! a decoding step.

mod common;

use common::{Bench, Group, row, run};
use criterion::{Criterion, criterion_group, criterion_main};
use minference::DType;
use minference::backend::Backend;
use minference::bench::normals;
use minference::ops::{self, MatmulInto};
use minference::tensor::Tensor;
use minference::weights::random_blocks;

const SIDE: usize = 4096;

struct Matmul;

impl Bench for Matmul {
    fn rows<B: Backend>(&self, group: &mut Group, b: &B, rows: usize) {
        let values: Vec<f32> = normals(rows * SIDE, 1).iter().map(|x| x.to_f32()).collect();
        let x = Tensor::activation(b, [rows, SIDE], &values).unwrap();
        let mut out = Tensor::alloc(b, b.activation(), [rows, SIDE]).unwrap();
        let types = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q6K, DType::Q4K, DType::Q4_0];
        for dtype in types.into_iter().filter(|&dtype| b.accepts_weight(dtype)) {
            let bytes = random_blocks(dtype, SIDE * SIDE, 2, 1.0 / 64.0).unwrap();
            let w = Tensor::from_bytes(b, dtype, [SIDE, SIDE], &bytes).unwrap();
            let into = MatmulInto::default();
            row(group, b, dtype, || ops::matmul(b, x.view(), w.view(), None, out.view_mut(), into));
        }
    }
}

fn matmul(c: &mut Criterion) {
    run(c, "matmul", &[1, 256], &[4096, 8192, 32768, 131072], &Matmul);
}

criterion_group!(benches, matmul);
criterion_main!(benches);
