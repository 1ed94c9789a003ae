//! Runs CUDA kernels on the CPU, without a GPU: `tests/cuda/emulate.h` gives every thread of a block a fiber, lets copies
//! land late and in random order into poisoned memory, and performs wgmma at its wait. The programs beside it judge the
//! kernels by the golden cases and by rules written out element by element. Needs a C++ compiler (`CXX`, else `g++`);
//! prints `not run` where there is none.
#![cfg(feature = "cuda")]

use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Builds `tests/cuda/check_{program}.cpp` around a kernel and runs it on files; None where there is no compiler.
fn check(stem: &str, program: &str, defines: &[(&str, &str)], files: &[PathBuf]) -> Option<()> {
    let folder = tempfile::tempdir().unwrap();
    let parts: &[&str] = match stem {
        "attention_sm80" => &["values", "ranges", "tile"],
        "attention_sm90a" => &["values", "ranges"],
        "score_last_queries" => &["tile"],
        "settle_heads" => &["mass"],
        _ => &[],
    };
    let mut text = "#include \"shaders/cuda/shared/types.cu\"\n#include \"tests/cuda/emulate.h\"\n".to_string();
    parts.iter().for_each(|part| text += &format!("#include \"shaders/cuda/shared/{part}.cu\"\n"));
    text += &format!("#include \"shaders/cuda/{stem}.cu\"\n#include \"tests/cuda/check_{program}.cpp\"\n");
    let (source, binary) = (folder.path().join("check.cpp"), folder.path().join("check"));
    std::fs::write(&source, text).unwrap();
    let compiler = std::env::var("CXX").unwrap_or("g++".into());
    let mut command = Command::new(&compiler);
    // Products and sums are fused as the compiler for the device fuses them.
    command
        .args(["-O2", "-std=c++17", "-march=native", "-ffp-contract=fast", "-w", "-I", ROOT])
        .arg(&source)
        .arg("-o")
        .arg(&binary);
    command.args(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    let built = match command.output() {
        Ok(output) => output,
        Err(e) => {
            println!("not run: {compiler}: {e}");
            return None;
        }
    };
    assert!(built.status.success(), "{stem}: {}", String::from_utf8_lossy(&built.stderr));
    let ran = Command::new(&binary).args(files).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{stem} {defines:?}:\n{said}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains(" ok"), "{stem} {defines:?} checked nothing:\n{said}");
    Some(())
}

/// A golden file of the shared data, or of the committed subset.
fn golden(name: &str) -> Option<PathBuf> {
    let places = ["../shared/golden", "tests/data/golden"];
    places.iter().map(|place| Path::new(ROOT).join(place).join(name)).find(|path| path.exists())
}

/// The attention kernels need golden inputs; where none are here, nothing is said to be checked.
fn attention(stem: &str, defines: &[(&str, &str)], names: &[&str]) {
    let files: Vec<PathBuf> = names.iter().filter_map(|name| golden(name)).collect();
    if files.is_empty() {
        println!("not run: no golden files");
        return;
    }
    let _ = check(stem, "attention", defines, &files);
}

const SMEM: (&str, &str) = ("SMEM_BYTES", "240000");
const F16: (&str, &str) = ("BF16", "0");

#[test]
fn attention_for_hopper() {
    let files = ["attn_n200_h4kv2_d64.safetensors", "attn_n33_h2kv2_d64.safetensors"];
    for (q_shared, pingpong) in [("0", "1"), ("1", "1"), ("0", "0")] {
        let defines = [
            ("KERNEL", "90"),
            ("HEAD_DIM", "64"),
            F16,
            ("OUT", "act"),
            SMEM,
            ("Q_SHARED", q_shared),
            ("PINGPONG", pingpong),
        ];
        attention("attention_sm90a", &defines, &files);
    }
    let defines = [("KERNEL", "90"), ("HEAD_DIM", "64"), F16, ("OUT", "act"), SMEM, ("SKIP_SOFTMAX", "1")];
    attention("attention_sm90a", &defines, &files);
    let defines = [("KERNEL", "90"), ("HEAD_DIM", "96"), F16, ("OUT", "float"), SMEM];
    attention("attention_sm90a", &defines, &["attn_n200_h2kv2_d96.safetensors", "attn_n200_h1kv1_d96.safetensors"]);
    let defines = [("KERNEL", "90"), ("HEAD_DIM", "128"), ("BF16", "1"), ("OUT", "act"), SMEM];
    attention("attention_sm90a", &defines, &["attn_n65_h2kv1_d128.safetensors", "attn_n64_h2kv2_d128.safetensors"]);
}

#[test]
fn attention_for_ampere() {
    let cases: [(&str, &str, &str, &[&str]); 3] = [
        ("64", "2", "act", &["attn_n200_h4kv2_d64.safetensors", "attn_n33_h2kv2_d64.safetensors"]),
        ("64", "1", "float", &["attn_n65_h2kv2_d64.safetensors", "attn_n33_h2kv2_d64.safetensors"]),
        ("96", "2", "float", &["attn_n200_h2kv2_d96.safetensors", "attn_n200_h1kv1_d96.safetensors"]),
    ];
    for &(head_dim, row_blocks, out, files) in &cases {
        let defines = [("KERNEL", "80"), ("HEAD_DIM", head_dim), F16, ("OUT", out), ("ROW_BLOCKS", row_blocks), SMEM];
        attention("attention_sm80", &defines, files);
    }
    let defines =
        [("KERNEL", "80"), ("HEAD_DIM", "64"), F16, ("OUT", "act"), ("ROW_BLOCKS", "2"), SMEM, ("SKIP_SOFTMAX", "1")];
    attention("attention_sm80", &defines, cases[0].3);
}

#[test]
fn index_of_random_plans_and_golden_conversions() {
    let files: Vec<PathBuf> = golden("convert.safetensors").into_iter().collect();
    let _ = check("build_index", "build_index", &[F16], &files);
}

#[test]
fn top_k_of_random_scores() {
    let _ = check("select_top_k", "select_top_k", &[F16], &[]);
}

#[test]
fn thresholds_of_recall_heads() {
    let _ = check("settle_heads", "settle_heads", &[F16], &[]);
}

#[test]
fn scores_of_the_last_queries() {
    let names = ["attn_n200_h4kv2_d64.safetensors", "attn_n65_h2kv2_d64.safetensors", "attn_n33_h2kv2_d64.safetensors"];
    let files: Vec<PathBuf> = names.iter().filter_map(|name| golden(name)).collect();
    if files.is_empty() {
        println!("not run: no golden files");
        return;
    }
    let _ = check("score_last_queries", "score_last_queries", &[F16, ("HEAD_DIM", "64"), SMEM], &files);
}
