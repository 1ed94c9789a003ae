//! Every CUDA kernel through NVRTC for every architecture, without a GPU: it compiles, shared memory fits, the attention
//! kernels do not spill, and their parameter structs are the Rust ones. Where libnvrtc is missing the compile tests print
//! `not run`; `pip install nvidia-cuda-nvrtc` and its lib folder on LD_LIBRARY_PATH is all they need.
#![cfg(feature = "cuda")]

use minference::backend::cuda::Library;
use minference::backend::cuda::compile::compile;
use minference::backend::cuda::kernels::{self, Kernel, shared_memory};
use minference::backend::params;
use rayon::prelude::*;

/// Architecture and the shared memory that a block may have there, in bytes.
const ARCHITECTURES: [(&str, usize); 6] = [
    ("sm_80", 163 << 10),
    ("sm_86", 99 << 10),
    ("sm_89", 99 << 10),
    ("sm_90a", 227 << 10),
    ("sm_100", 227 << 10),
    ("sm_120", 99 << 10),
];

/// A specialisation, what it asks for at launch, and whether spills are an error.
struct Case {
    kernel: Kernel,
    shared_bytes: usize,
    no_spills: bool,
}

fn case(kernel: Kernel) -> Case {
    Case { kernel, shared_bytes: 0, no_spills: false }
}

fn attention_sm80(head_dim: usize, row_blocks: usize, bf16: u32, out: &str) -> Case {
    let bytes = shared_memory::attention_sm80(head_dim, row_blocks);
    let defines: [(&str, &dyn ToString); 5] =
        [("HEAD_DIM", &head_dim), ("BF16", &bf16), ("OUT", &out), ("ROW_BLOCKS", &row_blocks), ("SMEM_BYTES", &bytes)];
    Case { kernel: kernels::ATTENTION_SM80.with(&defines), shared_bytes: bytes, no_spills: true }
}

fn attention_sm90a(head_dim: usize, bf16: u32, out: &str) -> Case {
    let bytes = shared_memory::attention_sm90a(head_dim);
    let defines: [(&str, &dyn ToString); 4] =
        [("HEAD_DIM", &head_dim), ("BF16", &bf16), ("OUT", &out), ("SMEM_BYTES", &bytes)];
    Case { kernel: kernels::ATTENTION_SM90A.with(&defines), shared_bytes: bytes, no_spills: true }
}

/// Every stem in its specialisations; of the attention kernels' many, those that differ in code or in registers.
fn cases(arch: &str, limit: usize) -> Vec<Case> {
    let bf16: &dyn ToString = &1;
    let mut all = vec![
        case(kernels::ROPE.with(&[("BF16", bf16), ("VECTOR", &8)])),
        case(kernels::ROPE.with(&[("BF16", &0), ("VECTOR", &1)])),
        case(kernels::PACK_KV.with(&[("BF16", bf16)])),
        case(kernels::SILU_MUL.with(&[("BF16", bf16), ("VECTOR", &8)])),
        case(kernels::SILU_MUL.with(&[("BF16", bf16), ("VECTOR", &1)])),
        case(kernels::APPEND_KV.with(&[("BF16", bf16)])),
        case(kernels::SELECT_TOP_K.with(&[("BF16", bf16)])),
        case(kernels::POOL_BLOCKS.with(&[("BF16", bf16)])),
        case(kernels::SCORE_BLOCKS.with(&[("BF16", bf16)])),
        case(kernels::SELECT_BLOCKS.with(&[("BF16", bf16)])),
        case(kernels::BUILD_INDEX.with(&[("BF16", bf16)])),
        case(kernels::COUNT_BY_MASS.with(&[("BF16", bf16)])),
        case(kernels::GROUP_OFFSETS.with(&[("BF16", bf16)])),
        case(kernels::SETTLE_HEADS.with(&[("BF16", bf16)])),
        case(kernels::WEIGH_BLOCKS.with(&[("BF16", bf16)])),
        case(kernels::SELECT_WEIGHED_BLOCKS.with(&[("BF16", bf16)])),
        case(kernels::FOLD_ROWS.with(&[("BF16", bf16)])),
        case(kernels::WEIGH_ANTIDIAGONALS.with(&[("BF16", bf16)])),
        case(kernels::SHARE_SCORES.with(&[("BF16", bf16)])),
        case(kernels::GATHER_COLUMNS.with(&[("BF16", bf16)])),
        case(kernels::ORDER_WORK.with(&[("BF16", bf16)])),
        case(kernels::MERGE_ATTENTION.with(&[("BF16", bf16)])),
        case(kernels::MERGE_ATTENTION.with(&[("BF16", &0)])),
        case(kernels::CLIP_INDEX.with(&[("BF16", bf16)])),
    ];
    for out in ["float", "act"] {
        all.push(case(kernels::ADD.with(&[("BF16", bf16), ("X", &out)])));
        all.push(case(kernels::ADD_BIAS.with(&[("BF16", bf16), ("OUT", &out)])));
        for (vector, x) in [(4, "float"), (1, "float"), (4, "act")] {
            let defines: [(&str, &dyn ToString); 4] = [("BF16", bf16), ("VECTOR", &vector), ("X", &x), ("OUT", &out)];
            all.push(case(kernels::RMS_NORM.with(&defines)));
        }
        all.extend([0, 1, 2].map(|from| case(kernels::CAST.with(&[("BF16", bf16), ("FROM", &from), ("OUT", &out)]))));
    }
    for weight in 0..10 {
        let defines: [(&str, &dyn ToString); 3] = [("BF16", bf16), ("WEIGHT", &weight), ("OUT", &"act")];
        all.push(case(kernels::MATVEC.with(&defines)));
        all.push(case(kernels::EMBED.with(&defines[..2])));
        all.push(case(kernels::DEQUANTIZE.with(&defines[..2])));
    }
    for (head_dim, rows) in [(64, 1), (96, 2), (128, 4), (128, 8), (256, 8)] {
        let defines: [(&str, &dyn ToString); 4] =
            [("BF16", &0), ("HEAD_DIM", &head_dim), ("ROWS", &rows), ("OUT", &"float")];
        all.push(case(kernels::DECODE_ATTENTION.with(&defines)));
    }
    for head_dim in [40, 64, 96, 128, 256] {
        let bytes = shared_memory::score_last_queries(head_dim);
        let defines: [(&str, &dyn ToString); 3] = [("BF16", bf16), ("HEAD_DIM", &head_dim), ("SMEM_BYTES", &bytes)];
        all.push(Case { shared_bytes: bytes, ..case(kernels::SCORE_LAST_QUERIES.with(&defines)) });
    }
    all.extend([32, 40, 64, 80, 96, 112, 128, 192, 256].map(|d| attention_sm80(d, 1, 1, "act")));
    if limit > 100 << 10 {
        // Two row blocks only where two such blocks share a multiprocessor.
        all.extend([64, 96, 112, 128].map(|d| attention_sm80(d, 2, 1, "act")));
        all.extend([attention_sm80(128, 2, 0, "float"), attention_sm80(80, 2, 0, "act")]);
    }
    if arch == "sm_90a" {
        all.extend([64, 96, 128].map(|d| attention_sm90a(d, 1, "act")));
        all.extend([attention_sm90a(128, 0, "float"), attention_sm90a(64, 0, "act")]);
    }
    all
}

/// The numbers before each `what` in the compiler's log.
fn numbers_before(log: &str, what: &str) -> Vec<usize> {
    let before = log.match_indices(what).map(|(at, _)| &log[..at]);
    before.filter_map(|text| text.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).collect()
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    if let Err(missing) = Library::Nvrtc.require() {
        println!("not run: {missing}");
        return;
    }
    let work: Vec<_> = ARCHITECTURES
        .iter()
        .flat_map(|&(arch, limit)| cases(arch, limit).into_iter().map(move |c| (arch, limit, c)))
        .collect();
    let failures: Vec<String> = work
        .par_iter()
        .filter_map(|(arch, limit, case)| {
            let name = format!("{arch} {}", case.kernel.name());
            let mut options = case.kernel.options(arch);
            options.push("--ptxas-options=-v".into());
            let compiled = match compile(&case.kernel.name(), &case.kernel.source.linked(), &options) {
                Ok(compiled) => compiled,
                Err(e) => return Some(format!("{name}: {e}")),
            };
            let log = compiled.log;
            let fixed = numbers_before(&log, "bytes smem").into_iter().max().unwrap_or(0);
            let spills: usize = numbers_before(&log, "bytes spill stores").into_iter().sum();
            if compiled.cubin.is_empty() || !log.contains("Used ") {
                return Some(format!("{name}: no machine code\n{log}"));
            }
            if fixed + case.shared_bytes > *limit {
                return Some(format!("{name}: {} bytes of shared memory, {limit} allowed", fixed + case.shared_bytes));
            }
            if case.no_spills && (spills > 0 || log.contains("serialized") || log.contains("setmaxnreg ignored")) {
                return Some(format!("{name}: {spills} bytes spilled, or wgmma serialised\n{log}"));
            }
            None
        })
        .collect();
    println!("{} kernels compiled", work.len() - failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_broken_source_is_an_error_with_the_compilers_words() {
    if let Err(missing) = Library::Nvrtc.require() {
        println!("not run: {missing}");
        return;
    }
    let error = compile("broken", "__global__ void f() { undefined_name(); }", &["--gpu-architecture=sm_80".into()])
        .err()
        .expect("an undefined name does not compile");
    assert!(error.to_string().contains("undefined_name"), "{error}");
}

/// The fields of `struct Name { .. };` in a source, in order.
fn fields(source: &str, name: &str) -> Option<Vec<String>> {
    let at = source.find(&format!("struct {name} {{"))?;
    let body = source[at..].split_once('{')?.1.split_once("};")?.0;
    let fields = body.split(';').flat_map(|declaration| {
        let declaration = declaration.trim();
        let names = declaration.strip_prefix("u32 ").or_else(|| declaration.strip_prefix("float ")).unwrap_or("");
        names.split(',').map(|name| name.trim().to_string()).filter(|name| !name.is_empty()).collect::<Vec<_>>()
    });
    Some(fields.collect())
}

#[test]
fn parameter_structs_are_the_rust_ones() {
    let mut found = 0;
    macro_rules! compare {
        ($($name:ident),*) => { $({
            let holders: Vec<_> = kernels::SOURCES
                .iter()
                .filter_map(|s| Some((s.stem, fields(&s.linked(), stringify!($name))?)))
                .collect();
            assert!(!holders.is_empty(), "no source has {}", stringify!($name));
            for (stem, fields) in holders {
                assert_eq!(fields, params::$name::FIELDS, "{stem}.cu: {}", stringify!($name));
                found += 1;
            }
        })* };
    }
    compare!(
        EmbedParams,
        RmsNormParams,
        MatmulParams,
        RopeParams,
        SiluMulParams,
        AddParams,
        CastParams,
        AppendKvParams,
        PackKvParams,
        ScoreLastQueriesParams,
        SelectTopKParams,
        PoolBlocksParams,
        ScoreBlocksParams,
        BuildIndexParams,
        AttentionParams,
        MergeAttentionParams,
        ClipIndexParams,
        CountByMassParams,
        GroupOffsetsParams,
        SettleHeadsParams,
        WeighBlocksParams,
        FoldRowsParams,
        WeighAntidiagonalsParams,
        ShareScoresParams
    );
    let structs: usize = kernels::SOURCES.iter().map(|s| s.linked().matches("Params {").count()).sum();
    assert_eq!(found, structs, "a parameter struct that this test does not know");
}
