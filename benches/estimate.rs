//! What a pattern costs before its kernel runs: scoring, selection and index, with dense attention as the row that they
//! are to be small beside.

mod common;

use common::{Bench, DIM, Group, HEADS, KV_HEADS, row, run};
use criterion::{Criterion, criterion_group, criterion_main};
use minference::attention::attend;
use minference::backend::Backend;
use minference::bench::Inputs;
use minference::estimate::{choose, estimate};
use minference::pattern::HeadPattern;
use minference::tensor::Tensor;

struct Estimate;

impl Bench for Estimate {
    fn rows<B: Backend>(&self, group: &mut Group, b: &B, len: usize) {
        let inputs = Inputs::structured(HEADS, KV_HEADS, DIM, len);
        let [q, k, v] = inputs.upload(b).unwrap();
        let mut out = Tensor::alloc(b, b.activation(), [len, HEADS * DIM]).unwrap();
        let dense = vec![HeadPattern::Dense; HEADS];
        row(group, b, "dense attention", || {
            attend(b, &dense, &inputs.shape, q.view(), k.view(), v.view(), out.view_mut(), None).map(drop)
        });
        for pattern in ["vertical_slash:100:800", "vertical_slash:1000:6096", "block_sparse:32"] {
            let patterns = vec![pattern.parse::<HeadPattern>().unwrap(); HEADS];
            row(group, b, format!("{pattern} choose"), || {
                choose(b, &patterns, &inputs.shape, q.view(), k.view()).map(drop)
            });
            row(group, b, format!("{pattern} choose and build"), || {
                estimate(b, &patterns, &inputs.shape, q.view(), k.view()).map(drop)
            });
        }
    }
}

fn estimation(c: &mut Criterion) {
    run(c, "estimate", &[4096], &[8192, 32768, 131072], &Estimate);
}

criterion_group!(benches, estimation);
criterion_main!(benches);
