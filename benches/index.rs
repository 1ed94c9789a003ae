//! From given sets to an index: the `bands` sets of each head, uploaded and turned into ranges and keep masks; a dense
//! index as a row.

mod common;

use common::{Bench, DIM, Group, HEADS, KV_HEADS, row, run};
use criterion::{Criterion, criterion_group, criterion_main};
use minference::backend::Backend;
use minference::bench::{Inputs, bands};
use minference::estimate::{estimate, from_sets};
use minference::pattern::HeadPattern;

struct Index;

impl Bench for Index {
    fn rows<B: Backend>(&self, group: &mut Group, b: &B, len: usize) {
        let inputs = Inputs::random(HEADS, KV_HEADS, DIM, len, 0);
        let [q, k, _] = inputs.upload(b).unwrap();
        let dense = vec![HeadPattern::Dense; HEADS];
        row(group, b, "dense", || estimate(b, &dense, &inputs.shape, q.view(), k.view()).map(drop));
        for (columns, offsets) in [(100, 800), (1000, 6096), (3500, 100)] {
            let (v, s): (Vec<_>, Vec<_>) = (0..HEADS).map(|head| bands(len, columns, offsets, head)).unzip();
            row(group, b, format!("bands {columns}:{offsets}"), || from_sets(b, &v, &s, &inputs.shape).map(drop));
        }
    }
}

fn index(c: &mut Criterion) {
    run(c, "index", &[4096], &[8192, 32768, 131072], &Index);
}

criterion_group!(benches, index);
criterion_main!(benches);
