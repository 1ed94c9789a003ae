//! Weight files: what is read from good ones, and one clear line for each kind of bad one.

mod gguf_writer;

use gguf_writer::{GgufWriter, text};
use minference::weights::{WeightFile, dequantize, dequantize_into, random_blocks, unpermute_rows};
use minference::{DType, Error};
use proptest::prelude::*;
use std::path::Path;

/// A safetensors file of a header and a data section.
fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Two tensors, `a` f32 [2, 3] = 0..6 and `b` f16 [2].
fn good_safetensors() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"F16","shape":[2],"data_offsets":[24,28]}}"#;
    let mut data: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    data.extend([0x00, 0x3c, 0x00, 0xc0]);
    safetensors(header, &data)
}

/// Metadata of every type, `a` f32 [2, 3] and `b` q8_0 [1, 32].
fn good_gguf() -> Vec<u8> {
    let q8 = [&[0x00, 0x38][..], &(0..32).collect::<Vec<u8>>()].concat();
    GgufWriter::default()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .bool("flag", true)
        .raw("tiny", 1, &[0xff])
        .raw("big", 10, &u64::MAX.to_le_bytes())
        .raw("double", 12, &0.25f64.to_le_bytes())
        .strings("words", &["one", "", "drei"])
        .i32s("types", &[1, -2, 3])
        .f32s("scores", &[0.5, -1.0])
        .array("nested", 9, &[[&5u32.to_le_bytes()[..], &1u64.to_le_bytes(), &7i32.to_le_bytes()].concat()])
        .tensor("a", &[2, 3], 0, (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect())
        .tensor("b", &[1, 32], 8, q8)
        .finish()
}

fn open(name: &str, bytes: impl Into<Vec<u8>>) -> minference::Result<WeightFile> {
    WeightFile::from_bytes(name, bytes.into())
}

/// The message of a file that must be refused as bad input.
fn refusal(name: &str, bytes: impl Into<Vec<u8>>) -> String {
    let error = open(name, bytes).err().expect("the file must be refused");
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    assert!(!message.contains('\n'), "{message:?} is more than one line");
}

#[test]
fn safetensors_file() {
    let file = open("m.safetensors", good_safetensors()).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
    let info = file.info("a").unwrap();
    assert_eq!((info.dtype, &info.shape[..], info.elements()), (DType::F32, &[2, 3][..], 6));
    assert_eq!(file.tensor("a").unwrap().to_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(file.require("b", &[2]).unwrap().to_f32().unwrap(), [1.0, -2.0]);
    assert!(file.info("c").is_none() && file.gguf().is_none());
    let error = file.tensor("c").unwrap_err().to_string();
    assert_eq!(error, "m.safetensors: tensor c: not in the file");
    let error = file.require("a", &[3, 2]).unwrap_err().to_string();
    assert_eq!(error, "m.safetensors: tensor a: expected [3, 2], found [2, 3]");
}

#[test]
fn safetensors_integer_buffers_are_no_weights() {
    let file = safetensors(r#"{"p":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]);
    let file = open("m.safetensors", file).unwrap();
    assert_eq!(file.names().len(), 0);
    assert!(file.info("p").is_none());
    assert!(matches!(file.bytes("p"), Err(Error::Unsupported(text)) if text.contains("tensor p: type I64")));
}

#[test]
fn safetensors_bad_files() {
    let good = good_safetensors();
    let of = |bytes: &[u8]| refusal("m.safetensors", bytes);
    assert_says(&of(&[]), &["m.safetensors: header length: expected 8 bytes, the file has 0"]);
    assert_says(&of(&good[..20]), &["header length:", "only 12 follow"]);
    assert_says(&of(&good[..good.len() - 5]), &["tensor a: offsets [0, 24] outside the data, which has 23 bytes"]);
    assert_says(&of(&[&good[..], &[0]].concat()), &["tensors end at byte"]);
    let mut oversized = good.clone();
    oversized[..8].copy_from_slice(&(1u64 << 62).to_le_bytes());
    assert_says(&of(&oversized), &["header length: expected at most 100000000 bytes, found 4611686018427387904"]);

    let of = |header: &str, data: usize| refusal("m.safetensors", safetensors(header, &vec![0; data]));
    let tensor = |dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let one = |dtype: &str, shape: &str, begin: u64, end: u64| {
        of(&format!(r#"{{"a":{}}}"#, tensor(dtype, shape, begin, end)), 8)
    };
    assert_says(&of("[1]", 0), &["header:", "expected an object of tensors"]);
    assert_says(&of("{\"a\"", 0), &["header: tensor a: EOF"]);
    assert_says(&one("F31", "[2]", 0, 8), &["tensor a", "unknown variant `F31`"]);
    assert_says(&one("F64", "[1]", 0, 8), &["tensor a: type F64: expected F32, F16 or BF16"]);
    assert_says(&one("F32", "[3]", 0, 8), &["tensor a: [3] of F32 takes 12 bytes", "[0, 8] hold 8"]);
    assert_says(&one("F32", "[2]", 8, 0), &["tensor a: offsets [8, 0]"]);
    assert_says(&one("F32", "[2]", 8, 16), &["tensor a: offsets [8, 16] outside the data, which has 8 bytes"]);
    assert_says(&one("F32", "[4294967296,4294967296]", 0, 8), &["tensor a: shape [4294967296, 4294967296]"]);
    assert_says(&one("F32", "[9223372036854775807]", 0, 8), &["tensor a: shape [9223372036854775807]"]);
    assert_says(&one("F4", "[3]", 0, 8), &["tensor a", "no whole number of bytes"]);
    assert_says(&one("F32", "[-2]", 0, 8), &["tensor a", "-2"]);
    let twice = tensor("F32", "[1]", 0, 4);
    assert_says(&of(&format!(r#"{{"a":{twice},"a":{twice}}}"#), 4), &["tensor a: appears twice"]);
    let overlap = format!(r#"{{"a":{},"b":{}}}"#, tensor("F32", "[2]", 0, 8), tensor("F32", "[1]", 4, 8));
    assert_says(&of(&overlap, 8), &["tensor b: begins at byte", "but tensor a ends at"]);
}

#[test]
fn safetensors_directory() {
    let dir = tempfile::tempdir().unwrap();
    let of = |names: &[(&str, &[u8])]| {
        for old in std::fs::read_dir(dir.path()).unwrap() {
            std::fs::remove_file(old.unwrap().path()).unwrap();
        }
        names.iter().for_each(|(name, bytes)| std::fs::write(dir.path().join(name), bytes).unwrap());
        WeightFile::open(dir.path())
    };
    let said = |names: &[(&str, &[u8])]| of(names).err().expect("the directory must be refused").to_string();
    let one = |name: &str| {
        safetensors(&format!(r#"{{"{name}":{{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}}}"#), &[0; 2])
    };
    let (a, b) = (one("a"), one("b"));

    assert_eq!(of(&[("model.safetensors", &good_safetensors())]).unwrap().names().len(), 2);
    assert_eq!(of(&[("odd.gguf", &good_gguf())]).unwrap().gguf().unwrap().architecture().unwrap(), "llama");
    assert_says(&said(&[]), &["no model.safetensors"]);
    assert_says(&said(&[("x.gguf", b""), ("y.gguf", b"")]), &["2 weight files, among them x.gguf and y.gguf"]);

    let index = br#"{"metadata":{},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let sharded = [("model.safetensors.index.json", &index[..]), ("1.safetensors", &a), ("2.safetensors", &b)];
    assert_eq!(of(&sharded).unwrap().names().collect::<Vec<_>>(), ["a", "b"]);
    assert_says(&said(&sharded[..2]), &["2.safetensors: "]);
    let swapped = [sharded[0], ("1.safetensors", &b), ("2.safetensors", &a)];
    assert_says(&said(&swapped), &["tensor a: expected in 1.safetensors, found", "2.safetensors"]);
    let same = [sharded[0], ("1.safetensors", &a), ("2.safetensors", &a)];
    assert_says(&said(&same), &["2.safetensors: tensor a: is in", "1.safetensors"]);
    let outside = br#"{"weight_map":{"a":"../1.safetensors"}}"#;
    assert_says(&said(&[("model.safetensors.index.json", outside)]), &["weight_map", "not a plain file name"]);
    assert_says(&said(&[("model.safetensors.index.json", b"{}")]), &["index.json: missing field `weight_map`"]);
    assert!(matches!(WeightFile::open(dir.path().join("absent")), Err(Error::Io { .. })));
}

#[test]
fn gguf_file() {
    let file = open("m.gguf", good_gguf()).unwrap();
    let gguf = file.gguf().unwrap();
    assert_eq!(gguf.architecture().unwrap(), "llama");
    assert_eq!(gguf.uint("llama.block_count").unwrap(), Some(2));
    assert_eq!(gguf.uint("big").unwrap(), Some(u64::MAX));
    assert_eq!(gguf.uint("absent").unwrap(), None);
    assert_eq!(gguf.float("llama.attention.layer_norm_rms_epsilon").unwrap(), Some(f64::from(1e-5f32)));
    assert_eq!(gguf.float("double").unwrap(), Some(0.25));
    assert_eq!(gguf.float("tiny").unwrap(), Some(-1.0));
    assert_eq!(gguf.bool("flag").unwrap(), Some(true));
    assert_eq!(gguf.strings("words").unwrap().unwrap(), ["one", "", "drei"]);
    assert_eq!(gguf.ints("types").unwrap().unwrap(), [1, -2, 3]);
    assert_eq!(gguf.floats("scores").unwrap().unwrap(), [0.5, -1.0]);
    assert_eq!((gguf.keys().len(), gguf.keys().next()), (11, Some("general.architecture")));
    let error = gguf.uint("tiny").unwrap_err().to_string();
    assert_eq!(error, "m.gguf: metadata tiny: expected an integer from 0 up, found I8");
    let error = gguf.strings("types").unwrap_err().to_string();
    assert_eq!(error, "m.gguf: metadata types: expected an array of strings, found an array of 3 I32");

    assert_eq!(file.require("a", &[2, 3]).unwrap().to_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let b = file.require("b", &[1, 32]).unwrap();
    assert_eq!(b.dtype, DType::Q8_0);
    assert_eq!(b.to_f32().unwrap(), (0..32).map(|i| i as f32 * 0.5).collect::<Vec<_>>());
}

#[test]
fn gguf_bad_files() {
    let good = good_gguf();
    let of = |bytes: &[u8]| refusal("m.gguf", bytes);
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        refusal("m.gguf", file)
    };
    assert_says(&of(b"PK\x03\x04"), &["m.gguf: magic: expected \"GGUF\", found \"PK\\x03\\x04\""]);
    assert_says(&of(b"GGUF"), &["version: 4 bytes at byte 4, but only 0 are left"]);
    assert_says(&with(4, &1u32.to_le_bytes()), &["version: expected 2 or 3, found 1"]);
    assert_says(&with(4, &3u32.to_be_bytes()), &["a big-endian file"]);
    assert_says(&with(8, &u64::MAX.to_le_bytes()), &["tensor count: 18446744073709551615 of at least 32 bytes"]);
    assert_says(&with(16, &(1u64 << 40).to_le_bytes()), &["metadata count: 1099511627776"]);
    assert_says(
        &with(24, &(1u64 << 63).to_le_bytes()),
        &["metadata key: expected at most 65535 bytes, found 9223372036854775808"],
    );
    assert_says(&of(&good[..good.len() - 64]), &["tensor b: 34 bytes at offset 32", "cut short?"]);

    let one = |key: &str, kind: u32, bytes: &[u8]| of(&GgufWriter::default().raw(key, kind, bytes).finish());
    let huge = (1u64 << 63).to_le_bytes();
    assert_says(&one("k", 8, &huge), &["k: 9223372036854775808 bytes at byte"]);
    assert_says(&one("k", 13, &[0; 8]), &["metadata k: type: expected 0 to 12, found 13"]);
    let array = |of: u32, len: u64, rest: &[u8]| [&of.to_le_bytes()[..], &len.to_le_bytes(), rest].concat();
    assert_says(&one("k", 9, &array(8, 1 << 60, &[])), &["metadata k: elements: 1152921504606846976"]);
    assert_says(&one("k", 9, &array(12, u64::MAX, &[])), &["metadata k: elements: 18446744073709551615"]);
    let mut nested = array(0, 0, &[]);
    for _ in 0..6 {
        nested = array(9, 1, &nested);
    }
    assert_says(&one("k", 9, &nested), &["metadata k: arrays nested more than 4 deep"]);
    let not_utf8 = [&text("xx")[..8], &[0xff, 0xfe]].concat();
    let odd_key = [&GgufWriter::default().finish()[..16], &1u64.to_le_bytes(), &not_utf8, &[0; 8]].concat();
    assert_says(&of(&odd_key), &["metadata key: not UTF-8"]);
    let file = open("m.gguf", GgufWriter::default().raw("k", 8, &not_utf8).finish()).unwrap();
    assert_says(&file.gguf().unwrap().str("k").unwrap_err().to_string(), &["m.gguf: k: not UTF-8"]);
    let twice = GgufWriter::default().u32("k", 1).u32("k", 1);
    assert_says(&of(&twice.finish()), &["metadata k: appears twice"]);
    for alignment in [0, 24, 1 << 30] {
        let file = GgufWriter::default().u32("general.alignment", alignment).finish();
        assert_says(&of(&file), &[&format!("general.alignment: expected a power of two, found {alignment}")]);
    }

    let tensor = |shape: &[u64], kind: u32, bytes: usize| {
        GgufWriter::default().tensor("w", shape, kind, vec![0; bytes]).finish()
    };
    assert_says(&of(&tensor(&[1, 1, 1, 1, 1], 0, 4)), &["tensor w: expected at most 4 dimensions, found 5"]);
    assert_says(&of(&tensor(&[1 << 40, 1 << 40], 0, 4)), &["tensor w: shape [1099511627776, 1099511627776]"]);
    assert_says(&of(&tensor(&[2, 33], 8, 68)), &["tensor w: 33 columns of q8_0 are not a multiple of 32"]);
    assert_says(&of(&tensor(&[2, 64], 8, 96)), &["tensor w: 136 bytes at offset 0", "cut short?"]);
    assert_says(&of(&tensor(&[1, 256], 10, 84)), &["not supported: m.gguf: tensor w: type Q2_K; readable are F32"]);
    assert_says(&of(&tensor(&[1, 256], 99, 84)), &["tensor w: type number 99"]);
    let same = GgufWriter::default().tensor("w", &[1], 0, vec![0; 4]).tensor("w", &[1], 0, vec![0; 4]);
    assert_says(&of(&same.finish()), &["tensor w: appears twice"]);

    // The offset of the second tensor is the last 8 bytes of the directory, which ends where the padding begins.
    let two = GgufWriter::default().tensor("v", &[16], 0, vec![0; 64]).tensor("w", &[8], 0, vec![0; 32]).finish();
    let at = two.windows(8).rposition(|w| w == 64u64.to_le_bytes()).unwrap();
    let moved = |offset: u64| {
        let mut file = two.clone();
        file[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        refusal("m.gguf", file)
    };
    assert_says(&moved(32), &["tensor w: begins at byte", "but tensor v ends at"]);
    assert_says(&moved(68), &["tensor w: offset 68 is not a multiple of 32"]);
    assert_says(&moved(u64::MAX - 31), &["tensor w: 32 bytes at offset 18446744073709551584"]);
}

#[test]
fn gguf_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let part = |i: u32, name: &str| {
        let file = GgufWriter::default().u32("split.count", 2).u32("split.no", i - 1);
        let file = file.tensor(name, &[1], 0, (i as f32).to_le_bytes().to_vec()).finish();
        std::fs::write(dir.path().join(format!("m-{i:05}-of-00002.gguf")), file).unwrap();
    };
    part(1, "a");
    let first = dir.path().join("m-00001-of-00002.gguf");
    let second = dir.path().join("m-00002-of-00002.gguf");
    assert_says(&WeightFile::open(&first).err().unwrap().to_string(), &["m-00002-of-00002.gguf: "]);
    part(2, "b");
    for path in [first.as_path(), dir.path()] {
        let file = WeightFile::open(path).unwrap();
        assert_eq!(file.tensor("b").unwrap().to_f32().unwrap(), [2.0]);
        assert_eq!(file.gguf().unwrap().uint("split.no").unwrap(), Some(0));
    }
    assert_says(&WeightFile::open(&second).err().unwrap().to_string(), &["part 2 of 2: open the first part"]);
    std::fs::rename(&first, dir.path().join("m.gguf")).unwrap();
    let error = WeightFile::open(dir.path().join("m.gguf")).err().unwrap().to_string();
    assert_says(&error, &["split.count is 2: expected a file name that ends with -00001-of-00002.gguf"]);
}

const ALL: [DType; 10] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q8_0,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
];

/// One block of each type, worked out by hand from the layouts.
#[test]
fn dequantize_by_hand() {
    let half = |x: f32| half::f16::from_f32(x).to_le_bytes().to_vec();
    let of = |dtype, block: Vec<u8>| dequantize(dtype, &block, DType::block_len(dtype)).unwrap();

    // Byte i of the nibbles is i + 16 * (15 - i): elements i and 16 + i are i and 15 - i.
    let nibbles: Vec<u8> = (0..16).map(|i| i + 16 * (15 - i)).collect();
    let q4_0 = of(DType::Q4_0, [half(0.5), nibbles.clone()].concat());
    assert_eq!((q4_0[0], q4_0[15], q4_0[16], q4_0[31]), (-4.0, 3.5, 3.5, -4.0));
    let q4_1 = of(DType::Q4_1, [half(0.5), half(-1.0), nibbles.clone()].concat());
    assert_eq!((q4_1[0], q4_1[15], q4_1[16], q4_1[31]), (-1.0, 6.5, 6.5, -1.0));
    // Fifth bits of elements 0 and 31 only.
    let q5_0 = of(DType::Q5_0, [half(2.0), vec![1, 0, 0, 0x80], nibbles].concat());
    assert_eq!((q5_0[0], q5_0[1], q5_0[16], q5_0[31]), (0.0, -30.0, -2.0, 0.0));
    let q8_0 = of(DType::Q8_0, [half(0.25), (0..32).map(|i| i * 8 + 4).collect()].concat());
    assert_eq!((q8_0[0], q8_0[15], q8_0[16], q8_0[31]), (1.0, 31.0, -31.0, -1.0));

    // Sub-block 1 has scale 3, minimum 5; sub-block 6 scale 33 = 0b10_0001, minimum 50 = 0b11_0010. In sub-block 6 the
    // quants are 9, in sub-block 1 they are 4.
    let mut scales = vec![0u8; 12];
    (scales[1], scales[5]) = (3, 5);
    (scales[2], scales[6], scales[10]) = (0b10 << 6, 0b11 << 6, 0b0010 << 4 | 0b0001);
    let mut qs = vec![0u8; 128];
    qs[..32].fill(4 << 4);
    qs[96..].fill(9);
    let head = [half(0.5), half(0.25), scales].concat();
    let q4_k = of(DType::Q4K, [head.clone(), qs.clone()].concat());
    assert_eq!((q4_k[0], q4_k[32], q4_k[63]), (0.0, 0.5 * 3.0 * 4.0 - 0.25 * 5.0, 4.75));
    assert_eq!((q4_k[192], q4_k[223], q4_k[224]), (0.5 * 33.0 * 9.0 - 0.25 * 50.0, 136.0, 0.0));
    // The fifth bit of element 0 of sub-block 6 and of element 31 of sub-block 1.
    let mut high = vec![0u8; 32];
    (high[0], high[31]) = (1 << 6, 1 << 1);
    let q5_k = of(DType::Q5K, [head, high, qs].concat());
    assert_eq!((q5_k[192], q5_k[193]), (0.5 * 33.0 * 25.0 - 12.5, 136.0));
    assert_eq!((q5_k[62], q5_k[63]), (4.75, 0.5 * 3.0 * 20.0 - 1.25));

    // Element 32 + 16 + 3 of the second half: low nibble of byte 64 + 32 + 19, bits 2-3 of high byte 32 + 19, scale 8 + 3.
    let mut q6_k = vec![0u8; 210];
    q6_k[64 + 32 + 19] = 0xa5;
    q6_k[128 + 32 + 19] = 0b1101_1000;
    q6_k[192 + 8 + 3] = -7i8 as u8;
    q6_k[192 + 8 + 7] = 2;
    q6_k[208..].copy_from_slice(&half(0.5));
    let q6_k = of(DType::Q6K, q6_k);
    assert_eq!(q6_k[128 + 51], 0.5 * -7.0 * (0x25 - 32) as f32);
    assert_eq!(q6_k[128 + 96 + 19], 0.5 * 2.0 * (0x3a - 32) as f32);
    assert_eq!(q6_k[128 + 50], 0.5 * -7.0 * -32.0);
    assert_eq!(q6_k[0], 0.0);
}

/// Random blocks against gguf-py (`tests/data/make_dequant.py`), bit for bit.
#[test]
fn dequantize_as_gguf_py() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dequant.safetensors");
    let bytes = std::fs::read(file).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for dtype in ALL.into_iter().skip(1) {
        let [packed, want] = ["bytes", "values"].map(|part| file.tensor(&format!("{dtype}.{part}")).unwrap().data());
        let want: Vec<f32> = bytemuck::pod_collect_to_vec(want);
        let got = dequantize(dtype, packed, want.len()).unwrap();
        let differ = got.iter().zip(&want).position(|(g, w)| g.to_bits() != w.to_bits());
        assert!(differ.is_none(), "{dtype}: element {differ:?}");
    }
}

#[test]
fn dequantize_refuses_wrong_lengths() {
    for dtype in ALL {
        let block = vec![0u8; dtype.block_bytes()];
        assert_eq!(dequantize(dtype, &block, dtype.block_len()).unwrap(), vec![0.0; dtype.block_len()]);
        assert!(dequantize(dtype, &block[1..], dtype.block_len()).is_err());
        assert!(dequantize_into(dtype, &[], &mut [0.0; 256]).is_err());
        assert!(dequantize(dtype, &block, usize::MAX).is_err());
        if dtype.is_quantized() {
            assert!(dequantize(dtype, &block, dtype.block_len() - 1).is_err());
        }
    }
    assert!(dequantize(DType::U32, &[0; 4], 1).is_err());
}

#[test]
fn random_blocks_have_the_asked_spread() {
    for dtype in ALL {
        let n = 256 * 1024;
        let bytes = random_blocks(dtype, n, 7, 0.02).unwrap();
        let x = dequantize(dtype, &bytes, n).unwrap();
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let std = (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64).sqrt();
        assert!(x.iter().all(|x| x.is_finite()), "{dtype}");
        assert!((std - 0.02).abs() < 4e-4 && mean.abs() < 3e-3, "{dtype}: mean {mean}, standard deviation {std}");
        assert_eq!(bytes, random_blocks(dtype, n, 7, 0.02).unwrap(), "{dtype}: same seed");
        assert_ne!(bytes, random_blocks(dtype, n, 8, 0.02).unwrap(), "{dtype}: other seed");
        assert_eq!(bytes[..dtype.bytes(512)], random_blocks(dtype, 512, 7, 0.02).unwrap(), "{dtype}: shorter");
    }
    assert!(random_blocks(DType::Q4K, 100, 0, 0.02).is_err());
}

/// Rows numbered in Hugging Face order, permuted as llama.cpp's converter does, come back in order.
#[test]
fn unpermute_rows_inverts_the_converter() {
    let (n_heads, head_dim, row_bytes) = (3, 8, 5);
    let row = |i: usize| vec![i as u8; row_bytes];
    // reshape(n_heads, 2, head_dim / 2).swapaxes(1, 2): row 2i + j of a head is its row j * head_dim / 2 + i.
    let mut permuted = Vec::new();
    for head in 0..n_heads {
        for i in 0..head_dim / 2 {
            (0..2).for_each(|j| permuted.extend(row(head * head_dim + j * head_dim / 2 + i)));
        }
    }
    let want: Vec<u8> = (0..n_heads * head_dim).flat_map(row).collect();
    assert_eq!(unpermute_rows(&permuted, row_bytes, n_heads).unwrap(), want);
    for (row_bytes, n_heads) in [(0, 3), (5, 0), (5, 24), (7, 3)] {
        assert!(unpermute_rows(&permuted, row_bytes, n_heads).is_err(), "{row_bytes} {n_heads}");
    }
    assert!(unpermute_rows(&[], row_bytes, n_heads).unwrap().is_empty());
}

/// Reads everything that a file offers.
fn touch(file: &WeightFile) {
    for name in file.names() {
        let _ = file.tensor(name).and_then(|t| t.to_f32());
    }
    if let Some(gguf) = file.gguf() {
        for key in gguf.keys() {
            let _ = (gguf.str(key), gguf.bool(key), gguf.uint(key), gguf.float(key));
            let _ = (gguf.strings(key), gguf.ints(key), gguf.floats(key));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    /// Whatever is done to a file, opening and reading it ends in values or in an error.
    #[test]
    fn mutated_files_never_panic(
        gguf in any::<bool>(),
        cut in any::<prop::sample::Index>(),
        keep_whole in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(0), Just(0xff), Just(0x7f), any::<u8>()], 1usize..9), 0..4),
    ) {
        let mut file = if gguf { good_gguf() } else { good_safetensors() };
        for (at, byte, run) in changes {
            let at = at.index(file.len());
            let end = (at + run).min(file.len());
            file[at..end].fill(byte);
        }
        if !keep_whole {
            file.truncate(cut.index(file.len()));
        }
        if let Ok(file) = WeightFile::from_bytes("x", file) {
            touch(&file);
        }
    }
}
