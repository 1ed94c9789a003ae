//! `attend` on files of every shape, and what it says about bad ones: file, tensor, and both values.

mod common;

use common::for_each_backend;
use minference::attend::{AttendOptions, AttendReport, attend_file};
use minference::pattern::{AttentionMode, HeadPattern, PatternConfig, Score};
use minference::tensor::encode_f32;
use minference::{DType, Result};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

/// A folder and the files of one test.
struct Files(tempfile::TempDir);

type Part<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, parts: &[Part]) -> PathBuf {
        let views = parts
            .iter()
            .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        std::fs::write(self.path(name), safetensors::serialize(views, None).unwrap()).unwrap();
        self.path(name)
    }
}

fn floats(shape: &[usize], seed: u64) -> (Vec<usize>, Vec<f32>) {
    (shape.to_vec(), common::Rng(seed).normals(shape.iter().product()))
}

fn f32_part<'a>(name: &'a str, (shape, values): &(Vec<usize>, Vec<f32>)) -> Part<'a> {
    (name, Dtype::F32, shape.clone(), bytemuck::cast_slice(values).to_vec())
}

fn i32_part<'a>(name: &'a str, shape: &[usize], values: &[i32]) -> Part<'a> {
    (name, Dtype::I32, shape.to_vec(), bytemuck::cast_slice(values).to_vec())
}

/// q of two heads, k and v of one, 70 tokens of 16 elements.
fn layer() -> [(Vec<usize>, Vec<f32>); 3] {
    [floats(&[2, 70, 16], 1), floats(&[1, 70, 16], 2), floats(&[1, 70, 16], 3)]
}

fn parts(layer: &[(Vec<usize>, Vec<f32>); 3]) -> Vec<Part<'static>> {
    ["q", "k", "v"].into_iter().zip(layer).map(|(name, tensor)| f32_part(name, tensor)).collect()
}

fn options(input: PathBuf, pattern: &str) -> AttendOptions {
    AttendOptions {
        input,
        mode: AttentionMode::Uniform(pattern.parse().unwrap()),
        layer: 0,
        index_in: None,
        compare_dense: false,
        repeat: 1,
        output: None,
        index_out: None,
    }
}

fn read_out(path: &Path) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let out = tensors.tensor("out").unwrap();
    (out.shape().to_vec(), bytemuck::pod_collect_to_vec(out.data()))
}

/// That the input is refused as the caller's fault, in one line with all of these parts.
#[track_caller]
fn assert_refused(result: Result<AttendReport>, expected: &[&str]) {
    let error = result.map(|_| ()).expect_err(expected[0]);
    let text = error.to_string();
    assert!(expected.iter().all(|part| text.contains(part)), "{text} does not say {expected:?}");
    assert!(!text.contains('\n') && error.exit_code() == 2, "{text}");
}

for_each_backend!(queries_may_be_those_of_the_last_keys, |b| {
    let files = Files::new();
    let layer = layer();
    let whole = files.write("whole", &parts(&layer));
    let last: Vec<f32> = layer[0].1.chunks(70 * 16).flat_map(|head| head[30 * 16..].to_vec()).collect();
    let part = files.write("part", &parts(&[(vec![2, 40, 16], last), layer[1].clone(), layer[2].clone()]));
    for pattern in ["dense", "a_shape:3:20"] {
        let run = |input: &Path, output: &Path| {
            attend_file(b, &AttendOptions { output: Some(output.into()), ..options(input.into(), pattern) }).unwrap()
        };
        let (all, some) = (run(&whole, &files.path("a")), run(&part, &files.path("b")));
        assert_eq!((all.tokens, all.kv_tokens, some.tokens, some.kv_tokens), (70, 70, 40, 70));
        let (want, got) = (read_out(&files.path("a")), read_out(&files.path("b")));
        assert_eq!((want.0, got.0), (vec![2, 70, 16], vec![2, 40, 16]));
        let want: Vec<f64> = want.1.chunks(70 * 16).flat_map(|head| &head[30 * 16..]).map(|&x| f64::from(x)).collect();
        common::assert_close(pattern, common::roundoff(b.activation()), &got.1, &want);
        if pattern == "dense" {
            assert_eq!((all.density, some.density), (1., 1.));
            assert_eq!(some.pairs, 2 * (40 * 30 + 40 * 41 / 2));
        }
    }
});

for_each_backend!(every_float_type_and_one_head_without_a_dimension, |b| {
    let files = Files::new();
    // Values that all three types hold exactly.
    let values = |seed| -> Vec<f32> { floats(&[70, 16], seed).1.iter().map(|x| (x * 8.).round() / 8.).collect() };
    let mut outputs = Vec::new();
    for (dtype, stored) in [(Dtype::F32, DType::F32), (Dtype::F16, DType::F16), (Dtype::BF16, DType::BF16)] {
        let part = |name, seed| (name, dtype, vec![70, 16], encode_f32(stored, &values(seed)).unwrap());
        let input = files.write("in", &[part("q", 1), part("k", 2), part("v", 3)]);
        let options = AttendOptions { output: Some(files.path("out")), repeat: 2, ..options(input, "a_shape:4:30") };
        let report = attend_file(b, &options).unwrap();
        assert_eq!((report.heads, report.kv_heads, report.tokens, report.head_dim), (1, 1, 70, 16));
        assert!(report.attention_ms > 0. && report.tflops > 0. && report.comparison.is_none());
        let json = serde_json::to_value(&report).unwrap();
        for field in [
            "device",
            "pattern",
            "heads",
            "kv_heads",
            "tokens",
            "head_dim",
            "density",
            "pairs",
            "estimate_ms",
            "index_ms",
            "attention_ms",
            "tflops",
        ] {
            assert!(!json[field].is_null(), "{field}: {json}");
        }
        outputs.push(read_out(&files.path("out")));
    }
    assert_eq!(outputs[0].0, [1, 70, 16]);
    assert!(outputs[0] == outputs[1] && outputs[0] == outputs[2]);
});

for_each_backend!(values_beyond_the_activation_type_are_refused, |b| {
    let files = Files::new();
    let mut layer = layer();
    layer[1].1[5 * 16 + 2] = 1e38;
    let options = options(files.write("in", &parts(&layer)), "dense");
    let result = attend_file(b, &AttendOptions { output: Some(files.path("out")), ..options });
    match b.activation() {
        DType::F16 => assert_refused(result, &["tensor k: head 0, row 5, element 2", "beyond f16", &b.info().id]),
        // The other types hold it, and the scores it makes stay finite.
        _ => {
            result.unwrap();
            assert!(read_out(&files.path("out")).1.iter().all(|x| x.is_finite()));
        }
    }
});

fn refused_files(change: impl FnOnce(&mut Vec<Part>)) -> Result<AttendReport> {
    let files = Files::new();
    let mut parts = parts(&layer());
    change(&mut parts);
    attend_file(common::cpu(), &options(files.write("in.safetensors", &parts), "dense"))
}

#[test]
fn shapes_and_types_that_do_not_fit() {
    let shaped = |at: usize, shape: &[usize]| {
        let name = ["q", "k", "v"][at];
        let part = f32_part(name, &floats(shape, 9));
        refused_files(|parts| parts[at] = part)
    };
    let missing = refused_files(|parts| parts.truncate(2));
    assert_refused(missing, &["in.safetensors", "tensor v: missing", "k, q"]);
    let integers = refused_files(|parts| parts[0] = i32_part("q", &[70, 16], &[0; 1120]));
    assert_refused(integers, &["in.safetensors", "tensor q", "expected F16, BF16 or F32, found I32"]);
    assert_refused(shaped(0, &[70]), &["tensor q", "[heads, tokens, head_dim]", "[70]"]);
    assert_refused(shaped(0, &[1, 2, 70, 16]), &["tensor q", "[1, 2, 70, 16]"]);
    assert_refused(shaped(0, &[2, 0, 16]), &["tensor q", "[2, 0, 16]"]);
    assert_refused(shaped(1, &[1, 70, 24]), &["tensor k", "head_dim 16", "24"]);
    assert_refused(shaped(2, &[1, 71, 16]), &["tensor v", "[1, 70, 16]", "[1, 71, 16]"]);
    assert_refused(shaped(0, &[2, 71, 16]), &["tensor k", "q's 71 tokens", "70"]);
    let heads = refused_files(|parts| {
        parts[1] = f32_part("k", &floats(&[3, 70, 16], 4));
        parts[2] = f32_part("v", &floats(&[3, 70, 16], 4));
    });
    assert_refused(heads, &["tensor k", "3 KV heads", "2 query heads"]);
    let odd = refused_files(|parts| {
        for (at, name) in ["q", "k", "v"].into_iter().enumerate() {
            parts[at] = f32_part(name, &floats(&[1, 70, 12], 4));
        }
    });
    assert_refused(odd, &["head_dim", "multiple of 8", "12"]);
}

#[test]
fn values_that_are_not_finite() {
    for (tensor, head, row, value, name) in
        [(0, 1, 33, f32::NAN, "NaN"), (1, 0, 69, f32::INFINITY, "inf"), (2, 0, 0, f32::NEG_INFINITY, "-inf")]
    {
        let files = Files::new();
        let mut layer = layer();
        layer[tensor].1[(head * 70 + row) * 16 + 7] = value;
        let result = attend_file(common::cpu(), &options(files.write("in.safetensors", &parts(&layer)), "dense"));
        let place = format!("head {head}, row {row}, element 7");
        assert_refused(result, &["in.safetensors", &format!("tensor {}", ["q", "k", "v"][tensor]), &place, name]);
    }
}

#[test]
fn damaged_files() {
    let files = Files::new();
    let input = files.write("in.safetensors", &parts(&layer()));
    let good = std::fs::read(&input).unwrap();
    let refused = |bytes: &[u8], expected: &[&str]| {
        std::fs::write(&input, bytes).unwrap();
        assert_refused(attend_file(common::cpu(), &options(input.clone(), "dense")), expected);
    };
    refused(&good[..good.len() - 4], &["in.safetensors", &good.len().to_string(), &(good.len() - 4).to_string()]);
    refused(&good[..5], &["at least 8 bytes, found 5"]);
    refused(&good[..40], &["header of", "in a file of 40"]);
    refused(&[&u64::MAX.to_le_bytes(), &good[8..]].concat(), &["header of 18446744073709551615"]);
    refused(&[&good[..8], b"[", &good[9..]].concat(), &["in.safetensors", "header"]);
    let at = good.windows(9).position(|w| w == b"[2,70,16]").unwrap();
    refused(&[&good[..at], b"[2,70,99]", &good[at + 9..]].concat(), &["in.safetensors", "header", "shape"]);
    let none = attend_file(common::cpu(), &options(files.path("none.safetensors"), "dense"));
    assert_refused(none, &["none.safetensors"]);
}

#[test]
fn given_sets_that_are_none() {
    let files = Files::new();
    let input = files.write("in", &parts(&layer()));
    let attend = |v_idx: Part<'static>, s_idx: Part<'static>| {
        let index_in = files.write("sets.safetensors", &[v_idx, s_idx]);
        attend_file(common::cpu(), &AttendOptions { index_in: Some(index_in), ..options(input.clone(), "dense") })
    };
    let v = || i32_part("v_idx", &[2, 3], &[0, 5, 9, 1, -1, -1]);
    let s = || i32_part("s_idx", &[2, 2], &[8, 0, 0, -1]);
    let report = attend(v(), s()).unwrap();
    assert_eq!((report.pattern.as_str(), report.estimate_ms), ("given", 0.));
    assert!(report.density < 1., "{}", report.density);

    let v_of = |values: &[i32]| attend(i32_part("v_idx", &[2, 3], values), s());
    assert_refused(v_of(&[0, 9, 5, 1, -1, -1]), &["sets.safetensors", "v_idx", "head 0", "ascending", "9 before 5"]);
    assert_refused(v_of(&[0, 5, 5, 1, -1, -1]), &["v_idx", "head 0", "5 before 5"]);
    assert_refused(v_of(&[0, 5, 9, -1, 1, -1]), &["v_idx", "head 1", "padding with -1, found 1"]);
    assert_refused(v_of(&[0, 5, -7, 1, -1, -1]), &["v_idx", "head 0", "found -7"]);
    assert_refused(v_of(&[0, 5, 70, 1, -1, -1]), &["head 0", "column", "below 70, got 70"]);
    let s_of = |values: &[i32]| attend(v(), i32_part("s_idx", &[2, 2], values));
    assert_refused(s_of(&[0, 8, 0, -1]), &["s_idx", "head 0", "descending", "0 before 8"]);
    assert_refused(s_of(&[8, 0, -1, -1]), &["head 1", "offset below 64, got none"]);
    assert_refused(attend(i32_part("v_idx", &[3, 2], &[0; 6]), s()), &["v_idx", "[2, _]", "[3, 2]"]);
    let wide = ("v_idx", Dtype::I64, vec![2, 1], vec![0; 16]);
    assert_refused(attend(wide, s()), &["v_idx", "expected I32, found I64"]);
}

#[test]
fn pattern_files_that_do_not_fit() {
    let files = Files::new();
    let input = files.write("in", &parts(&layer()));
    let mut config = PatternConfig::new(2);
    config.set(1, 1, HeadPattern::AShape { n_init: 1, n_local: 8 }, Score::Integer(0)).unwrap();
    let attend = |config: &PatternConfig, layer| {
        let mode = AttentionMode::Config(config.clone());
        attend_file(common::cpu(), &AttendOptions { mode, layer, ..options(input.clone(), "dense") })
    };
    let report = attend(&config, 1).unwrap();
    assert_eq!(report.pattern, "config");
    // Head 0 has no entry: vertical-slash 1000:6096, which at 70 tokens is every pair.
    assert_eq!(report.head_pairs[0], 70 * 71 / 2);
    assert!(report.head_pairs[1] < 70 * 9, "{:?}", report.head_pairs);
    assert_refused(attend(&config, 2), &["layer 2", "2 layers"]);
    config.set(0, 5, HeadPattern::Dense, Score::Integer(0)).unwrap();
    assert_refused(attend(&config, 0), &["2 layers x 6 heads", "2 x 2"]);
}

#[test]
fn results_are_written_whole_or_not_at_all() {
    let files = Files::new();
    let input = files.write("in", &parts(&layer()));
    let nowhere = files.path("no/such/folder/out");
    let result =
        attend_file(common::cpu(), &AttendOptions { output: Some(nowhere), ..options(input.clone(), "dense") });
    assert_refused(result, &["no/such/folder"]);
    attend_file(common::cpu(), &AttendOptions { output: Some(files.path("out")), ..options(input, "dense") }).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(files.0.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["in", "out"]);
}
