//! The built program on models that are described rather than stored: random weights, embedded configs, the patterns that
//! a model's name or its own files find, and checkpoints that are refused.
#![cfg(feature = "cli")]

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minference"));
    // Mesa's device-select layer speaks to stderr where no desktop session is; it is not us.
    command.env("NODEVICE_SELECT", "1").env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command.args(["run", "--device", "cpu", "--max-new-tokens", "0"]).args(args);
    command.stdin(Stdio::null()).output().expect("the program starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is UTF-8")
}

/// The one JSON object of a successful run, and what stood on stderr.
fn json_of(args: &[&str]) -> (Value, String) {
    let output = run(&[args, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    (serde_json::from_slice(&output.stdout).expect("one JSON object"), stderr(&output))
}

/// Status 2, nothing on stdout, and one line that says all of this.
fn refused(args: &[&str], says: &[&str]) {
    let output = run(args);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    for words in says {
        assert!(error.contains(words), "{args:?}: {words:?} is not in {error}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A directory with nothing but the `config.json` of a small Phi-3 of 32 layers x 32 heads, with these fields changed.
fn directory(at: PathBuf, changes: Value) -> PathBuf {
    let mut config = json!({
        "model_type": "phi3", "num_hidden_layers": 32, "hidden_size": 64, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 8, "intermediate_size": 32, "vocab_size": 100, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    std::fs::create_dir_all(&at).unwrap();
    std::fs::write(at.join("config.json"), config.to_string()).unwrap();
    at
}

const RANDOM: [&str; 4] = ["--random-weights", "--weight-type", "f32", "--prompt-tokens"];

#[test]
fn the_official_patterns_are_found_by_name_and_size() {
    let temp = tempfile::tempdir().unwrap();
    let by_dir = directory(temp.path().join("Phi-3-mini-128k-instruct"), json!({}));
    let cached = directory(temp.path().join("models--microsoft--Phi-3-mini-128k-instruct/snapshots/3f5b"), json!({}));
    let stated = directory(temp.path().join("a"), json!({"_name_or_path": "microsoft/Phi-3-mini-128k-instruct"}));
    let mut densities = Vec::new();
    for dir in [&by_dir, &cached, &stated] {
        let (value, notes) =
            json_of(&[&["--model", text(dir)], &RANDOM[..], &["1500", "--attention", "config"]].concat());
        assert!(notes.contains("patterns: Phi_3_mini_128k_instruct_kv_out_v32_fit_o_best_pattern.json"), "{notes}");
        assert_eq!(value["attention"], "config");
        densities.push(value["density"].as_f64().unwrap());
    }
    // Its heads of (500, 700) and (100, 800) leave some of 1500 tokens out, those of (1000, 6096) nothing.
    assert!(densities[0] > 0.5 && densities[0] < 0.99, "{densities:?}");
    assert!(densities.iter().all(|d| (d - densities[0]).abs() < 1e-2), "{densities:?}");
}

#[test]
fn official_patterns_of_another_size_or_name_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let config = |dir: &Path, says: &[&str]| {
        refused(&[&["--model", text(dir)], &RANDOM[..], &["100", "--attention", "config"]].concat(), says);
    };
    let layers = directory(temp.path().join("phi-3-mini-128k"), json!({"num_hidden_layers": 31}));
    config(&layers, &["Phi_3_mini_128k", "32 layers x 32 heads", "31 x 32"]);
    let heads = directory(temp.path().join("Yi-9B-200K"), json!({"num_hidden_layers": 48, "num_attention_heads": 16}));
    config(&heads, &["Yi_9B_200k", "48 layers x 32 heads", "48 x 16"]);
    let other = directory(temp.path().join("another"), json!({}));
    config(&other, &["no official pattern file", "32 layers x 32 heads", "--patterns", "Llama_3_8B_Instruct_262k"]);
}

/// Qwen2.5-1M's checkpoints bring a file; others may have it in their `config.json`. Both go before the official one.
#[test]
fn the_checkpoints_own_patterns_are_taken_first() {
    let temp = tempfile::tempdir().unwrap();
    let layers = |n: usize, heads: usize| -> Value {
        let layer = (0..heads).map(|h| (h.to_string(), json!(["vertical_and_slash", 30, 60, 1.0])));
        Value::Array(vec![Value::Object(layer.collect()); n])
    };
    let own = |name: &str, patterns: &str| {
        let dir = directory(temp.path().join(name).join("phi-3-mini-128k"), json!({}));
        std::fs::write(dir.join("sparse_attention_config.json"), patterns).unwrap();
        dir
    };
    let dir = own("file", &layers(32, 32).to_string());
    let args = |dir: &Path| -> Vec<String> {
        let args = [&["--model", text(dir)], &RANDOM[..], &["1500", "--attention", "config"]].concat();
        args.iter().map(|arg| arg.to_string()).collect()
    };
    let with = |dir: &Path| json_of(&args(dir).iter().map(String::as_str).collect::<Vec<_>>());
    let (value, notes) = with(&dir);
    assert!(notes.contains("sparse_attention_config.json"), "{notes}");
    assert!(value["density"].as_f64().unwrap() < 0.5, "{value}");

    let dual = json!({"chunk_size": 4096, "local_size": 1024, "sparse_attention_config": layers(32, 32)});
    let inline = directory(temp.path().join("inline"), json!({"dual_chunk_attention_config": dual}));
    let (value, notes) = with(&inline);
    assert!(notes.contains("config.json"), "{notes}");
    assert!(value["density"].as_f64().unwrap() < 0.5, "{value}");

    for (name, patterns, says) in [
        (
            "layers",
            layers(30, 32).to_string(),
            &["sparse_attention_config.json", "30 layers x 32 heads", "32 x 32"][..],
        ),
        ("heads", layers(32, 28).to_string(), &["sparse_attention_config.json", "32 layers x 28 heads", "32 x 32"]),
        (
            "damaged",
            "[{\"0\": [\"vertical_and_slash\", 30]}]".into(),
            &["sparse_attention_config.json", "layer 0, head 0"],
        ),
    ] {
        let args = args(&own(name, &patterns));
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), says);
    }
}

#[test]
fn every_embedded_config_runs_on_random_weights() {
    for name in minference::model::presets::names() {
        let args =
            ["--model", name, "--random-weights", "--weight-type", "q4_k", "--layers", "1", "--prompt-tokens", "65"];
        // There is no official pattern file for this one.
        let mode = if name == "yi-6b-200k" { "vertical_slash:30:100" } else { "config" };
        let (value, notes) = json_of(&[&args[..], &["--attention", mode]].concat());
        assert_eq!((&value["model"], &value["weights"]), (&json!(name), &json!("random q4_k")));
        assert_eq!((&value["latency_only"], &value["prompt_tokens"]), (&json!(true), &json!(65)));
        assert!(
            notes.contains("patterns: ") == (mode == "config") && notes.contains("the answer does not"),
            "{name}: {notes}"
        );
        let best = value["top5"][0][1].as_f64().unwrap();
        assert!(
            best > 1.0 && best < 100.0,
            "{name}: a residual stream of an ordinary size gives ordinary logits: {best}"
        );
    }
}

#[test]
fn random_weights_follow_the_seed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = directory(temp.path().join("model"), json!({}));
    let top = |seed: &str, dtype: &str| {
        let args = ["--model", text(&dir), "--random-weights", "--weight-type", dtype, "--prompt-tokens", "70"];
        json_of(&[&args[..], &["--seed", seed]].concat()).0["top5"].clone()
    };
    for dtype in ["f32", "f16", "bf16", "q8_0"] {
        assert_eq!(top("1", dtype), top("1", dtype), "{dtype}");
        assert_ne!(top("1", dtype), top("2", dtype), "{dtype}");
    }
    // Drawn ids with the stored weights of a real model are for latency too.
    let args = ["--model", "needle", "--prompt-tokens", "80"];
    let (value, _) = json_of(&args);
    assert_eq!((&value["weights"], &value["latency_only"]), (&json!("checkpoint"), &json!(true)));
}

#[test]
fn random_weights_are_asked_for_rightly() {
    let temp = tempfile::tempdir().unwrap();
    let dir = directory(temp.path().join("model"), json!({}));
    let with = |more: &[&str], says: &[&str]| refused(&[&["--random-weights"], more].concat(), says);
    with(
        &["--model", "llama-3-8b-2m", "--prompt-tokens", "9"],
        &["\"llama-3-8b-2m\"", "llama-3-8b-1m, ", "phi-3-mini-128k"],
    );
    with(&["--model", "yi-9b-200k", "--layers", "49", "--prompt-tokens", "9"], &["--layers", "1 to 48", "49"]);
    with(&["--model", text(&dir), "--layers", "0", "--prompt-tokens", "9"], &["--layers", "1 to 32", "found 0"]);
    with(
        &["--model", text(&dir), "--weight-type", "q3_k", "--prompt-tokens", "9"],
        &["--weight-type", "q8_0", "\"q3_k\""],
    );
    with(&["--model", text(&dir), "--prompt-tokens", "0"], &["--prompt-tokens", "0"]);
    with(&["--model", "yi-9b-200k", "--prompt", "words"], &["yi-9b-200k", "no tokenizer", "token ids"]);
    with(&["--model", text(temp.path()), "--prompt-tokens", "9"], &["config.json"]);
    with(&["--model", text(&dir.join("config.json")), "--prompt-tokens", "9"], &["expected the directory"]);
    refused(&["--model", text(&dir), "--layers", "3", "--prompt-tokens", "9"], &["--random-weights"]);
    refused(&["--model", text(&dir), "--prompt-tokens", "9"], &["no model.safetensors"]);
}

/// What a checkpoint needs and is not built is named before anything runs, with the families that are.
#[test]
fn checkpoints_that_need_what_is_not_built_are_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    for name in [
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "gemma2",
        "gemma3_text",
        "deepseek_v3",
        "phi",
        "phimoe",
        "gpt2",
        "mamba",
        "llama4",
    ] {
        let dir = directory(temp.path().join(name), json!({"model_type": name}));
        let supported = minference::model::family::FAMILIES.iter().map(|f| f.model_type).collect::<Vec<_>>();
        refused(
            &["--model", text(&dir), "--prompt", "x"],
            &[&[&format!("architecture {name:?}"), "not supported"], &supported[..]].concat(),
        );
    }
    for (i, (changes, named)) in [
        (json!({"model_type": "mistral", "sliding_window": 1024}), "sliding_window = 1024"),
        (json!({"sliding_window": 2047}), "sliding_window = 2047"),
        (
            json!({"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": true, "max_window_layers": 3}),
            "sliding_window = 512",
        ),
        (json!({"model_type": "llama", "num_local_experts": 8}), "num_local_experts = 8"),
        (json!({"model_type": "qwen3", "num_experts": 128}), "num_experts = 128"),
        (json!({"hidden_act": "gelu_new"}), "\"gelu_new\""),
        (json!({"rope_scaling": {"type": "mrope", "factor": 2.0}}), "\"mrope\""),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = directory(temp.path().join(i.to_string()), changes);
        refused(&["--model", text(&dir), "--prompt", "x"], &["not supported", named]);
    }
}
