//! The arrows of the architecture point one way: a module uses only what stands before it in `ORDER`.
//!
//! So a kernel cannot come to know a pattern, nor a pattern a model, without this test naming the line.

use std::path::{Path, PathBuf};

/// Modules of `src/`, from what is used to what uses; those on one line may not use each other.
const ORDER: &[&[&str]] = &[
    &["dtype", "error"],
    &["files", "fnv", "splitmix"],
    &["tensor_file"],
    &["tensor_file"],
    // Leaves that know only bytes and text. `backend` dequantises matrices through `weights`.
    &["weights", "sample"],
    &["backend", "tokenizer"],
    &["chat"],
    &["text"],
    &["tensor", "pattern"],
    &["index"],
    &["ops"],
    &["estimate", "plot"],
    &["attention"],
    &["attend"],
    &["attend"],
    &["model"],
    &["embedded"],
    &["engine"],
    &["search", "insight", "eval", "bench"],
    &["cli"],
];

/// Names that `lib.rs` lifts to the crate root, and where they live.
const RE_EXPORTS: &[(&str, &str)] = &[("DType", "dtype"), ("Error", "error"), ("Result", "error")];

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|level| level.contains(&module))
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, out),
            false if path.extension().is_some_and(|e| e == "rs") => out.push(path),
            false => {}
        }
    }
}

/// The first path segments after each `crate::` in a line of code, groups `{a, b::c}` included.
fn used(code: &str) -> Vec<String> {
    let mut out = Vec::new();
    for after in code.split("crate::").skip(1) {
        let group = after.strip_prefix('{').map(|g| {
            let (mut depth, mut end) = (1, g.len());
            for (i, c) in g.char_indices() {
                depth += match c {
                    '{' => 1,
                    '}' => -1,
                    _ => 0,
                };
                if depth == 0 {
                    end = i;
                    break;
                }
            }
            &g[..end]
        });
        let mut depth = 0;
        let items = group.unwrap_or(after).split(|c: char| {
            depth += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            c == ',' && depth == 0 && group.is_some()
        });
        for item in items {
            let name: String = item.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            out.extend((!name.is_empty()).then_some(name));
            if group.is_none() {
                break;
            }
        }
    }
    out
}

/// Code without comments, lines joined, up to the file's own tests.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    body.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join(" ")
}

#[test]
fn modules_use_only_what_stands_before_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    let mut arrows = 0;
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let first = relative.iter().next().unwrap().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if matches!(module, "lib" | "main") {
            continue;
        }
        let Some(own) = rank(module) else {
            wrong.push(format!("src/{}: module {module} has no place in ORDER", relative.display()));
            continue;
        };
        for name in used(&code(&std::fs::read_to_string(&file).unwrap())) {
            let target = RE_EXPORTS.iter().find(|(export, _)| *export == name).map_or(name.as_str(), |(_, home)| home);
            arrows += 1;
            if target != module && rank(target).is_none_or(|r| r >= own) {
                wrong.push(format!("src/{}: {module} uses crate::{name}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows the wrong way:\n{}", wrong.join("\n"));
    assert!(arrows > 10, "only {arrows} arrows found: does the test still read the sources?");
}

#[test]
fn the_reader_of_arrows_reads_them() {
    assert_eq!(used("use crate::{DType, backend::{Slice, params::*}, ops};"), ["DType", "backend", "ops"]);
    assert_eq!(used("let x: crate::Result<()> = crate::tensor::f(a, b);"), ["Result", "tensor"]);
    assert!(
        used(&code(
            "/// See [`crate::cli`].\n// crate::engine\nfn f() {}\n#[cfg(test)]\nmod tests { use crate::cli; }"
        ))
        .is_empty()
    );
}
