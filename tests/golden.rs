//! Every golden case of the three patterns on every backend: scores, chosen sets, index and output.
//!
//! The cases come from a numpy float64 reference that was checked against the official code. `../shared/golden` has all of
//! them; `tests/data/golden` is what a public clone has. Query head `h` reads KV head `h / (H / Hkv)`; `R = ceil(N / 64)`.
//!
//! | tensor | what |
//! | --- | --- |
//! | `q`; `k`, `v` | f16 `[H, N, D]`; `[Hkv, N, D]` |
//! | `est/column_score`, `est/offset_score`; `est/block_score` | f32 `[H, N]`; `[H, R, R]` |
//! | `vs{i}/v_idx`, `s_idx` | i32 `[H, V]` ascending, `[H, S]` descending; `vx{i}`: given, not estimated, padded with -1 |
//! | `vs{i}/block_count`, `block_offset`, `column_count`, `column_index` | per row block: first keys of 64-wide blocks, columns |
//! | `bs{i}/block_count`, `block_index` | chosen key blocks |
//! | `*/out` | f32 `[H, N, D]` |
//!
//! Tolerances (the set's own): index sets exactly, scores 1e-4, outputs by the backend's activation type: relative L2 1e-5
//! for f32, 1e-3 and 4e-3 at most for f16, 1e-2 for bf16.

mod common;

use common::for_each_backend;
use minference::attend::{AttendOptions, attend_file};
use minference::attention::attend;
use minference::backend::Backend;
use minference::backend::params::{BLOCK, HeadPlan};
use minference::estimate::{self, effective_counts, from_sets};
use minference::index::HostIndex;
use minference::ops::{self, AttentionShape, BlockBand};
use minference::pattern::{AttentionMode, HeadPattern};
use minference::tensor::{Tensor, decode_f32};
use minference::{DType, Error};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::{Path, PathBuf};

for_each_backend!(conversions, |b| { conversion_cases(b) });
for_each_backend!(attention, |b| { attention_cases(b, b.activation()) });
// What a device in bf16 is judged by, where there is none.
for_each_backend!(attention_of_bf16_inputs, only cpu, |b| { attention_cases(b, DType::BF16) });
for_each_backend!(attention_through_attend, |b| { attend_cases(b) });

/// Every file of cases: the committed part, and where the full set lies, all of it. Both are counted, so that nothing is
/// left out in silence.
fn files() -> Vec<(PathBuf, Value)> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let part = (here.join("tests/data/golden"), (3, 10, 18));
    let full = (here.join("../shared/golden"), (13, 61, 23));
    let folders = [Some(part), full.0.is_dir().then_some(full)];
    let mut all = Vec::new();
    for (folder, expected) in folders.into_iter().flatten() {
        let text = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_str(&text).unwrap();
        let files = manifest["files"].as_array().unwrap();
        let cases = |attention: bool| -> usize {
            let of_kind = files.iter().filter(|f| is_attention(f) == attention);
            of_kind.map(|f| f["cases"].as_array().unwrap().len()).sum()
        };
        assert_eq!((files.len(), cases(true), cases(false)), expected, "{}", folder.display());
        all.extend(files.iter().map(|file| (folder.clone(), file.clone())));
    }
    all
}

/// The attention files, or those of the conversion alone.
fn golden(attention: bool) -> Vec<Golden> {
    files()
        .iter()
        .filter(|(_, f)| is_attention(f) == attention)
        .map(|(folder, file)| Golden::read(folder, file))
        .collect()
}

fn is_attention(file: &Value) -> bool {
    file["n"].is_u64()
}

/// One file of cases, wholly in memory.
struct Golden {
    bytes: Vec<u8>,
    path: PathBuf,
    n: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
    cases: Vec<Value>,
}

impl Golden {
    fn read(folder: &Path, file: &Value) -> Self {
        let path = folder.join(file["file"].as_str().unwrap());
        let number = |name: &str| file[name].as_u64().unwrap_or(0) as usize;
        Self {
            bytes: std::fs::read(&path).unwrap(),
            path,
            n: number("n"),
            heads: number("heads"),
            kv_heads: number("kv_heads"),
            d: number("head_dim"),
            cases: file["cases"].as_array().unwrap().clone(),
        }
    }

    fn name(&self) -> &str {
        self.path.file_name().unwrap().to_str().unwrap()
    }

    fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).is_ok()
    }

    fn f32s(&self, name: &str) -> Vec<f32> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let dtype = if tensor.dtype() == Dtype::F16 { DType::F16 } else { DType::F32 };
        decode_f32(dtype, tensor.data()).unwrap()
    }

    /// Values and the length of the last dimension.
    fn i32s(&self, name: &str) -> (Vec<i32>, usize) {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::I32, "{name}");
        (bytemuck::pod_collect_to_vec(tensor.data()), *tensor.shape().last().unwrap())
    }

    /// The rows of an i32 tensor without their padding of -1.
    fn lists(&self, name: &str) -> Vec<Vec<i32>> {
        let (values, width) = self.i32s(name);
        values.chunks(width).map(|row| row.iter().copied().filter(|&v| v != -1).collect()).collect()
    }

    fn shape(&self) -> AttentionShape {
        shape(self.heads, self.kv_heads, self.n, self.d)
    }

    /// q, k or v as a device that stores activations in `stored` holds it.
    fn upload<B: Backend>(&self, b: &B, name: &str, stored: DType) -> Tensor<B> {
        let heads = if name == "q" { self.heads } else { self.kv_heads };
        Tensor::activation(b, [heads, self.n, self.d], &common::rounded(stored, &self.f32s(name))).unwrap()
    }
}

/// Head-major tensors, all queries.
fn shape(n_heads: usize, n_kv_heads: usize, n: usize, d: usize) -> AttentionShape {
    let stride = [d, n * d];
    AttentionShape {
        n_heads,
        n_kv_heads,
        head_dim: d,
        q_len: n,
        kv_len: n,
        q_start: 0,
        scale: 1. / (d as f32).sqrt(),
        q_stride: stride,
        k_stride: stride,
        v_stride: stride,
        out_stride: stride,
    }
}

/// The pattern that a case of the manifest asks for, if it is one.
fn pattern(case: &Value) -> Option<HeadPattern> {
    let number = |name: &str| case[name].as_u64().unwrap() as usize;
    match case["kind"].as_str().unwrap() {
        "vertical_slash" => {
            Some(HeadPattern::VerticalSlash { columns: number("vertical_size"), offsets: number("slash_size") })
        }
        "block_sparse" => Some(HeadPattern::BlockSparse { top_k: number("top_k") }),
        "a_shape" => Some(HeadPattern::AShape { n_init: number("n_init"), n_local: number("n_local") }),
        "vertical_slash_given" => None,
        other => panic!("unknown kind {other}"),
    }
}

/// A head's row block as the golden files tell it: first keys of 64-wide blocks, and columns.
fn blocks_and_columns(index: &HostIndex, head: usize, block: usize) -> (Vec<i32>, Vec<i32>) {
    let row = index.row(head, block);
    let blocks = row.ranges.iter().flat_map(|&[start, end]| (start..end).step_by(BLOCK)).collect();
    (blocks, row.columns.to_vec())
}

/// That an index has the given blocks and columns in every row block. Blocks that begin at or after `N` are left out: the
/// official code lists them, masked whole.
fn assert_index(what: &str, index: &HostIndex, blocks: &[Vec<i32>], columns: &[Vec<i32>]) {
    index.validate().unwrap_or_else(|e| panic!("{what}: {e}"));
    let rows = index.row_blocks();
    assert_eq!((blocks.len(), columns.len()), (index.n_heads * rows, index.n_heads * rows), "{what}");
    for row in 0..index.n_heads * rows {
        let want: Vec<i32> = blocks[row].iter().copied().filter(|&b| (b as usize) < index.kv_len).collect();
        let (got, got_columns) = blocks_and_columns(index, row / rows, row % rows);
        assert_eq!(got, want, "{what}: blocks of head {}, row block {}", row / rows, row % rows);
        assert_eq!(got_columns, columns[row], "{what}: columns of head {}, row block {}", row / rows, row % rows);
    }
}

/// The causal pairs of 64-wide blocks and columns, as a mask `[N, N]`.
fn mask_of(n: usize, blocks: &[Vec<i32>], columns: &[Vec<i32>]) -> Vec<bool> {
    let mut mask = vec![false; n * n];
    for query in 0..n {
        let line = &mut mask[query * n..][..query + 1];
        for &block in &blocks[query / BLOCK] {
            let start = (block as usize).min(line.len());
            let end = (block as usize + BLOCK).min(line.len());
            line[start..end].fill(true);
        }
        columns[query / BLOCK].iter().for_each(|&c| line[c as usize] = true);
    }
    mask
}

fn assert_output(stored: DType, what: &str, got: &[f32], want: &[f32]) {
    let (rel, max) = match stored {
        DType::F32 => (1e-5, 1e-4),
        DType::F16 => (1e-3, 4e-3),
        _ => (1e-2, 4e-2),
    };
    let (mut difference, mut norm, mut max_abs) = (0., 0., 0f64);
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        let delta = f64::from(*got) - f64::from(*want);
        difference += delta * delta;
        norm += f64::from(*want).powi(2);
        max_abs = if delta.is_nan() { f64::NAN } else { max_abs.max(delta.abs()) };
    }
    let rel_l2 = (difference / norm).sqrt();
    assert!(
        rel_l2 <= rel && max_abs <= max,
        "{what}: relative L2 {rel_l2:.2e} of {rel:.0e}, max {max_abs:.2e} of {max:.0e}"
    );
}

/// Scores within 1e-4 of the larger of themselves and `floor`, infinities equal.
fn assert_scores(what: &str, got: &[f32], want: &[f32], floor: impl Fn(usize) -> f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let close = (got - want).abs() <= 1e-4 * want.abs().max(floor(i));
        assert!(got == want || close, "{what}: element {i}: {got:e}, expected {want:e}");
    }
}

fn conversion_cases<B: Backend>(b: &B) {
    for golden in golden(false) {
        for case in &golden.cases {
            let (name, n) = (case["name"].as_str().unwrap(), case["n"].as_u64().unwrap() as usize);
            let what = format!("{name} ({})", case["what"].as_str().unwrap());
            let set = |part: &str| vec![golden.i32s(&format!("{name}/{part}")).0.iter().map(|&v| v as u32).collect()];
            let csr = |part: &str| -> Vec<Vec<i32>> {
                let ptr = golden.i32s(&format!("{name}/{part}_ptr")).0;
                let values = golden.i32s(&format!("{name}/{part}_val")).0;
                ptr.windows(2).map(|p| values[p[0] as usize..p[1] as usize].to_vec()).collect()
            };
            let index = from_sets(b, &set("v_idx"), &set("s_idx"), &shape(1, 1, n, 64)).unwrap();
            let host = index.to_host(b).unwrap();
            assert_index(&what, &host, &csr("block"), &csr("column"));
            assert_eq!(host.density(), index.density(b).unwrap(), "{what}: pairs counted on the device");
        }
    }
}

/// The files' inputs are f16. Stored in bf16 they are others, whose scores and sets are others too: those are judged by the
/// CPU twin on what the device holds. Outputs are the files' within the tolerance of that type.
fn attention_cases<B: Backend>(b: &B, stored: DType) {
    for golden in golden(true) {
        let shape = golden.shape();
        let [q, k, v] = ["q", "k", "v"].map(|name| golden.upload(b, name, stored));
        check_vertical_slash_scores(b, &golden, &q, &k, stored);
        check_block_scores(b, &golden, &q, &k, stored);

        let run = |what: &str, patterns: &[HeadPattern], want: &[f32]| {
            let mut out = Tensor::alloc(b, DType::F32, [golden.heads, golden.n, golden.d]).unwrap();
            let computed = attend(b, patterns, &shape, q.view(), k.view(), v.view(), out.view_mut(), None).unwrap();
            assert_output(stored, what, &out.to_f32(b).unwrap(), want);
            computed.density(b).unwrap()
        };
        if golden.has("dense/out") {
            let density = run(
                &format!("{} dense", golden.name()),
                &vec![HeadPattern::Dense; golden.heads],
                &golden.f32s("dense/out"),
            );
            assert_eq!(density, 1.);
        }
        for case in &golden.cases {
            let name = case["name"].as_str().unwrap();
            let what = format!("{} {name}", golden.name());
            let want = golden.f32s(&format!("{name}/out"));
            let Some(pattern) = pattern(case) else {
                check_given_sets(b, &golden, name, [&q, &k, &v], &want, stored);
                continue;
            };
            let patterns = vec![pattern; golden.heads];
            match stored {
                DType::BF16 => check_chosen_of_bf16(b, &golden, &patterns, &q, &k),
                _ => check_chosen(b, &golden, name, &patterns, &q, &k),
            }
            run(&what, &patterns, &want);
        }
    }
}

/// Column and offset scores `[h, n]`.
fn vertical_slash_scores<B: Backend>(b: &B, golden: &Golden, q: &Tensor<B>, k: &Tensor<B>) -> [Tensor<B>; 2] {
    let (h, n) = (golden.heads, golden.n);
    let plan = vec![HeadPlan { kind: HeadPlan::VERTICAL_SLASH, a: 1, b: 1, c: 0 }; h];
    let plan = Tensor::from_bytes(b, DType::U32, [h, 4], bytemuck::cast_slice(&plan)).unwrap();
    let mut columns = Tensor::alloc(b, DType::F32, [h, n]).unwrap();
    let mut offsets = Tensor::alloc(b, DType::F32, [h, n]).unwrap();
    let out = (columns.view_mut(), offsets.view_mut());
    ops::score_last_queries(b, &golden.shape(), plan.view(), q.view(), k.view(), out.0, out.1).unwrap();
    [columns, offsets]
}

/// Column and offset scores, and the sets that every case of the file takes from them.
fn check_vertical_slash_scores<B: Backend>(b: &B, golden: &Golden, q: &Tensor<B>, k: &Tensor<B>, stored: DType) {
    let (h, n) = (golden.heads, golden.n);
    let [columns, offsets] = vertical_slash_scores(b, golden, q, k);
    let wanted = match stored {
        DType::BF16 => {
            let twin = common::cpu();
            let [q, k] = ["q", "k"].map(|name| golden.upload(twin, name, stored));
            vertical_slash_scores(twin, golden, &q, &k).map(|scores| scores.to_f32(twin).unwrap())
        }
        _ => ["column", "offset"].map(|name| golden.f32s(&format!("est/{name}_score"))),
    };
    // A score is a sum of up to 64 probabilities: those far below their mean of 64 / N are noise of the exponential.
    let floor = 1e-3 * n.min(BLOCK) as f32 / n as f32;
    for ((name, got), want) in [("column_score", &columns), ("offset_score", &offsets)].into_iter().zip(&wanted) {
        assert_scores(&format!("{} {name}", golden.name()), &got.to_f32(b).unwrap(), want, |_| floor);
    }
    for case in golden.cases.iter().filter(|c| c["kind"] == "vertical_slash") {
        let name = case["name"].as_str().unwrap();
        let number = |name: &str| case[name].as_u64().unwrap() as usize;
        let (a, s) = effective_counts(n, number("vertical_size"), number("slash_size"));
        assert_eq!((a, s), (number("vertical_used"), number("slash_used")), "{} {name}", golden.name());
        for (part, scores, count, forced) in [("v_idx", &columns, a, 30), ("s_idx", &offsets, s, 100)] {
            let counts = Tensor::from_slice(b, DType::U32, [h], &vec![count as u32; h]).unwrap();
            let mut chosen = Tensor::alloc(b, DType::U32, [h, count]).unwrap();
            ops::select_top_k(b, scores.view(), counts.view(), forced.min(n), chosen.view_mut()).unwrap();
            let mut want = golden.lists(&format!("{name}/{part}"));
            if stored == DType::BF16 {
                let best = |row: &[f32]| common::naive::top_k(row, forced.min(n), count);
                let rows = scores.to_f32(b).unwrap();
                want = rows.chunks(n).map(|row| best(row).into_iter().map(|i| i as i32).collect()).collect();
            }
            want.iter_mut().for_each(|list| list.sort_unstable());
            let got: Vec<i32> = chosen.to_u32(b).unwrap().iter().map(|&i| i as i32).collect();
            assert_eq!(got, want.concat(), "{} {name} {part}", golden.name());
        }
    }
}

/// Scores of pooled blocks, -inf above the diagonal.
fn check_block_scores<B: Backend>(b: &B, golden: &Golden, q: &Tensor<B>, k: &Tensor<B>, stored: DType) {
    let r = golden.n.div_ceil(BLOCK);
    let want = match stored {
        DType::BF16 => {
            let twin = common::cpu();
            let [q, k] = ["q", "k"].map(|name| golden.upload(twin, name, stored));
            block_scores(twin, golden, &q, &k)
        }
        _ => golden.f32s("est/block_score"),
    };
    // Dot products cancel: they are as exact as the row's largest.
    let largest = |i: usize| {
        let row = &want[i / r * r..][..r];
        row.iter().filter(|s| s.is_finite()).fold(0f32, |most, s| most.max(s.abs()))
    };
    assert_scores(&format!("{} block_score", golden.name()), &block_scores(b, golden, q, k), &want, largest);
}

/// Scores of pooled blocks `[h, r, r]`.
fn block_scores<B: Backend>(b: &B, golden: &Golden, q: &Tensor<B>, k: &Tensor<B>) -> Vec<f32> {
    let (h, kv, n, d) = (golden.heads, golden.kv_heads, golden.n, golden.d);
    let r = n.div_ceil(BLOCK);
    let plan = vec![HeadPlan { kind: HeadPlan::BLOCK_SPARSE, a: 1, b: 0, c: 0 }; h];
    let plan = Tensor::from_bytes(b, DType::U32, [h, 4], bytemuck::cast_slice(&plan)).unwrap();
    let mut pooled_q = Tensor::alloc(b, DType::F32, [h, r, d]).unwrap();
    let mut pooled_k = Tensor::alloc(b, DType::F32, [kv, r, d]).unwrap();
    ops::pool_blocks(b, q.view(), n, [d, n * d], true, pooled_q.view_mut()).unwrap();
    ops::pool_blocks(b, k.view(), n, [d, n * d], true, pooled_k.view_mut()).unwrap();
    let mut scores = Tensor::alloc(b, DType::F32, [h, r, r]).unwrap();
    let band = BlockBand { q_len: n, start: 0, q_start: 0 };
    ops::score_blocks(b, band, plan.view(), pooled_q.view(), pooled_k.view(), scores.view_mut()).unwrap();
    scores.to_f32(b).unwrap()
}

/// What `estimate` makes of inputs that are not the file's: the index of the sets that were chosen, and as many blocks as
/// asked for.
fn check_chosen_of_bf16<B: Backend>(b: &B, golden: &Golden, patterns: &[HeadPattern], q: &Tensor<B>, k: &Tensor<B>) {
    let (what, shape, n) = (format!("{} {}", golden.name(), patterns[0]), golden.shape(), golden.n);
    let chosen = estimate::choose(b, patterns, &shape, q.view(), k.view()).unwrap();
    let host = estimate::estimate(b, patterns, &shape, q.view(), k.view()).unwrap().to_host(b).unwrap();
    host.validate().unwrap();
    match patterns[0] {
        HeadPattern::VerticalSlash { columns, offsets } if effective_counts(n, columns, offsets).1 < n => {
            let twin = common::cpu();
            let sets = [chosen.columns(b).unwrap(), chosen.offsets(b).unwrap()];
            let given = from_sets(twin, &sets[0], &sets[1], &shape).unwrap().to_host(twin).unwrap();
            for head in 0..golden.heads {
                assert!(host.to_mask(head) == given.to_mask(head), "{what}: mask of head {head}");
            }
        }
        HeadPattern::BlockSparse { top_k } => {
            for (head, block) in (0..golden.heads).flat_map(|h| (0..n.div_ceil(BLOCK)).map(move |r| (h, r))) {
                let keys: usize = host.row(head, block).ranges.iter().map(|r| (r[1] - r[0]) as usize).sum();
                assert_eq!(keys.div_ceil(BLOCK), top_k.min(block + 1), "{what}: row block {block} of head {head}");
            }
        }
        _ => {}
    }
}

/// What `estimate` makes of a case: the golden blocks and columns, or every pair where the planner knows beforehand that
/// they are all taken.
fn check_chosen<B: Backend>(
    b: &B,
    golden: &Golden,
    name: &str,
    patterns: &[HeadPattern],
    q: &Tensor<B>,
    k: &Tensor<B>,
) {
    let what = format!("{} {name}", golden.name());
    let index = estimate::estimate(b, patterns, &golden.shape(), q.view(), k.view()).unwrap();
    let host = index.to_host(b).unwrap();
    assert_eq!(host.density(), index.density(b).unwrap(), "{what}: pairs counted on the device");
    let n = golden.n;
    let rows = n.div_ceil(BLOCK);
    match patterns[0] {
        HeadPattern::AShape { n_init, n_local } => {
            host.validate().unwrap();
            let want: Vec<bool> =
                (0..n * n).map(|at| (at / n, at % n)).map(|(i, j)| j <= i && (i - j < n_local || j < n_init)).collect();
            (0..golden.heads).for_each(|head| assert!(host.to_mask(head) == want, "{what}: mask of head {head}"));
        }
        HeadPattern::VerticalSlash { columns, offsets } => {
            let (blocks, singles) =
                (golden.lists(&format!("{name}/block_offset")), golden.lists(&format!("{name}/column_index")));
            if effective_counts(n, columns, offsets).1 < n {
                assert_index(&what, &host, &blocks, &singles);
            }
            for head in 0..golden.heads {
                let part = head * rows..(head + 1) * rows;
                let want = mask_of(n, &blocks[part.clone()], &singles[part]);
                assert!(host.to_mask(head) == want, "{what}: mask of head {head}");
            }
            let sets = ["v_idx", "s_idx"].map(|part| unsigned(golden.lists(&format!("{name}/{part}"))));
            let given = from_sets(b, &sets[0], &sets[1], &golden.shape()).unwrap();
            assert_index(&format!("{what} from its sets"), &given.to_host(b).unwrap(), &blocks, &singles);
        }
        HeadPattern::BlockSparse { top_k } => {
            let blocks = golden.lists(&format!("{name}/block_index"));
            let blocks: Vec<Vec<i32>> =
                blocks.iter().map(|row| row.iter().map(|b| b * BLOCK as i32).collect()).collect();
            let none = vec![Vec::new(); blocks.len()];
            if top_k < rows {
                assert_index(&what, &host, &blocks, &none);
            }
            for head in 0..golden.heads {
                let part = head * rows..(head + 1) * rows;
                assert!(
                    host.to_mask(head) == mask_of(n, &blocks[part.clone()], &none[part]),
                    "{what}: mask of head {head}"
                );
            }
        }
        HeadPattern::Dense => assert_eq!(host.density(), 1.),
        other => panic!("no golden case is {other}"),
    }
}

fn unsigned(lists: Vec<Vec<i32>>) -> Vec<Vec<u32>> {
    lists.into_iter().map(|list| list.into_iter().map(|v| v as u32).collect()).collect()
}

/// A `vx` case: given sets to index to output.
fn check_given_sets<B: Backend>(
    b: &B,
    golden: &Golden,
    name: &str,
    [q, k, v]: [&Tensor<B>; 3],
    want: &[f32],
    stored: DType,
) {
    let what = format!("{} {name}", golden.name());
    let part = |part: &str| golden.lists(&format!("{name}/{part}"));
    let index = from_sets(b, &unsigned(part("v_idx")), &unsigned(part("s_idx")), &golden.shape()).unwrap();
    let host = index.to_host(b).unwrap();
    assert_index(&what, &host, &part("block_offset"), &part("column_index"));
    assert_eq!(host.density(), index.density(b).unwrap(), "{what}: pairs counted on the device");
    let mut out = Tensor::alloc(b, DType::F32, [golden.heads, golden.n, golden.d]).unwrap();
    ops::attention(b, &golden.shape(), q.view(), k.view(), v.view(), &index, out.view_mut(), None).unwrap();
    assert_output(stored, &what, &out.to_f32(b).unwrap(), want);
}

/// The same files as a user gives them to `minference attend`.
fn attend_cases<B: Backend>(b: &B) {
    let directory = tempfile::tempdir().unwrap();
    let [output, index_out, sets] = ["out", "index", "sets"].map(|name| directory.path().join(name));
    for golden in golden(true) {
        for case in &golden.cases {
            let name = case["name"].as_str().unwrap();
            let what = format!("{} {name}", golden.name());
            let pattern = pattern(case);
            if pattern.is_none() {
                write_sets(&golden, name, &sets);
            }
            let options = AttendOptions {
                input: golden.path.clone(),
                mode: AttentionMode::Uniform(pattern.unwrap_or(HeadPattern::Dense)),
                layer: 0,
                index_in: pattern.is_none().then(|| sets.clone()),
                compare_dense: true,
                repeat: 1,
                output: Some(output.clone()),
                index_out: Some(index_out.clone()),
            };
            let report = attend_file(b, &options).unwrap();
            let bytes = std::fs::read(&output).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let out = tensors.tensor("out").unwrap();
            assert_eq!((out.dtype(), out.shape()), (Dtype::F32, &[golden.heads, golden.n, golden.d][..]));
            let out: Vec<f32> = bytemuck::pod_collect_to_vec(out.data());
            assert_output(b.activation(), &what, &out, &golden.f32s(&format!("{name}/out")));
            let index = HostIndex::load(&index_out).unwrap();
            assert_eq!((index.pairs(), index.density()), (report.pairs, report.density), "{what}");
            let comparison = report.comparison.unwrap();
            assert!(comparison.recall > 0. && comparison.recall <= 1.001, "{what}: {}", comparison.recall);
            // Kept mass is 1 exactly where everything is computed.
            assert_eq!(report.density == 1., (1. - comparison.recall).abs() < 1e-5, "{what}: {}", comparison.recall);
        }
    }
}

/// The sets of a `vx` case as `--index-in` takes them.
fn write_sets(golden: &Golden, name: &str, path: &Path) {
    let tensors = SafeTensors::deserialize(&golden.bytes).unwrap();
    let part = |part: &str| tensors.tensor(&format!("{name}/{part}")).unwrap();
    let bytes = safetensors::serialize([("v_idx", part("v_idx")), ("s_idx", part("s_idx"))], None).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn sets_that_are_no_sets_are_refused() {
    let b = minference::backend::cpu::Cpu::new();
    let shape = shape(1, 1, 33, 64);
    for (columns, offsets, expected) in [
        (vec![vec![0]], vec![vec![0], vec![0]], "offsets: expected 1 heads, got 2"),
        (vec![vec![0, 3, 3]], vec![vec![0]], "head 0: column 3 is given twice"),
        (vec![vec![0]], vec![vec![33, 0]], "head 0: offset: expected below 33, got 33"),
        (vec![vec![0]], vec![vec![]], "head 0: expected an offset below 64, got none"),
    ] {
        let error = from_sets(&b, &columns, &offsets, &shape).err().expect(expected);
        assert!(matches!(error, Error::Invalid(_)) && error.to_string().contains(expected), "{error}");
    }
}
