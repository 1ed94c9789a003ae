//! Attention of one layer by pattern and length: estimation, index and kernel together, dense as a row of each group.
//!
//! ```sh
//! cargo bench --bench attention
//! cargo bench --bench attention -- wgpu
//! ```

mod common;

use common::{Bench, DIM, Group, HEADS, KV_HEADS, row, run};
use criterion::{Criterion, criterion_group, criterion_main};
use minference::attention::attend;
use minference::backend::Backend;
use minference::bench::Inputs;
use minference::pattern::HeadPattern;
use minference::tensor::Tensor;

const PATTERNS: [&str; 5] =
    ["dense", "a_shape:128:1024", "vertical_slash:100:800", "vertical_slash:1000:6096", "block_sparse:32"];

struct Attention;

impl Bench for Attention {
    fn rows<B: Backend>(&self, group: &mut Group, b: &B, len: usize) {
        let inputs = Inputs::structured(HEADS, KV_HEADS, DIM, len);
        let [q, k, v] = inputs.upload(b).unwrap();
        let mut out = Tensor::alloc(b, b.activation(), [len, HEADS * DIM]).unwrap();
        for pattern in PATTERNS {
            let patterns = vec![pattern.parse::<HeadPattern>().unwrap(); HEADS];
            row(group, b, pattern, || {
                attend(b, &patterns, &inputs.shape, q.view(), k.view(), v.view(), out.view_mut(), None).map(drop)
            });
        }
    }
}

fn attention(c: &mut Criterion) {
    run(c, "attention", &[4096], &[8192, 32768, 131072], &Attention);
}

criterion_group!(benches, attention);
criterion_main!(benches);
