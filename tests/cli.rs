//! The built program: what it prints, where, and with which status; and what it says to bad input.
#![cfg(feature = "cli")]

mod gguf_writer;

use gguf_writer::GgufWriter;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const QUESTION: &str =
    "The secret code of Eve is 493821.\nQuestion: What is the secret code of Eve? Answer: The secret code of Eve is ";

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minference"));
    // Mesa's device-select layer speaks to stderr where no desktop session is; it is not us.
    command.env("NODEVICE_SELECT", "1").env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command
}

fn run(args: &[&str]) -> Output {
    program().args(args).stdin(Stdio::null()).output().expect("the program starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is UTF-8")
}

/// The one JSON object that a successful run prints.
fn json_of(args: &[&str]) -> Value {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    let text = stdout(&output);
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// Status 2, nothing on stdout, and one line that says all of this.
fn refused(args: &[&str], says: &[&str]) {
    let output = run(args);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    assert_eq!(stdout(&output), "", "{args:?}");
    let lines: Vec<&str> = error.lines().filter(|line| !line.starts_with("device: ")).collect();
    assert_eq!(lines.len(), 1, "{args:?}: {error}");
    assert!(lines[0].starts_with("error: "), "{args:?}: {error}");
    for words in says {
        assert!(lines[0].contains(words), "{args:?}: {words:?} is not in {}", lines[0]);
    }
}

fn field(value: &Value, name: &str) {
    assert!(value.get(name).is_some(), "{name} is missing in {value}");
}

/// The embedded model's files in a directory of their own, for spoiling one of them.
fn needle_dir(dir: &Path) -> PathBuf {
    let to = dir.join("model");
    std::fs::create_dir_all(&to).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/needle/model");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    to
}

/// A safetensors file of tensors that hold `value(i)`.
fn write_tensors(path: &Path, tensors: &[(&str, &str, &[usize])], value: impl Fn(usize) -> f32) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape) in tensors {
        let start = data.len();
        for i in 0..shape.iter().product() {
            match *dtype {
                "F32" => data.extend(value(i).to_le_bytes()),
                "F16" => data.extend(half::f16::from_f32(value(i)).to_le_bytes()),
                "I32" => data.extend((value(i) as i32).to_le_bytes()),
                other => panic!("no {other} here"),
            }
        }
        header.insert(name.to_string(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
}

fn wave(i: usize) -> f32 {
    ((i * 37 + i * i % 101) % 97) as f32 / 48.0 - 1.0
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

// ---- what it does ----

#[test]
fn an_evaluation_runs_draws_and_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (out, plot) = (dir.path().join("r.json"), dir.path().join("r.svg"));
    let base = ["eval", "needle", "--model", "needle", "--device", "cpu", "--depths", "2", "--tasks", "code,multi"];
    let files = ["--out", text(&out), "--plot", text(&plot), "--json"];
    let run = |more: &[&str]| json_of(&[&base[..], &files, more].concat());
    let first = run(&["--lengths", "1K", "--attention", "a_shape:64:256"]);
    for name in ["eval", "model", "settings", "devices", "commands", "skipped", "rows", "summary"] {
        field(&first, name);
    }
    let rows = |value: &Value| value["rows"].as_array().unwrap().clone();
    assert_eq!(rows(&first).len(), 2 * 2 * 2);
    for row in rows(&first).iter().filter(|row| row["attention"] == "dense") {
        assert_eq!((row["score"].as_f64(), row["first_token"].as_bool()), (Some(1.0), Some(true)), "{row}");
        assert!(row["tokens"].as_u64().unwrap() <= 1024);
    }
    assert!(std::fs::read_to_string(&plot).unwrap().contains("a_shape:64:256"));
    // Another length is added, what is there stays; what cannot be done is told.
    let second = run(&["--lengths", "1K,1200,4194304", "--attention", "a_shape:64:256"]);
    assert_eq!(rows(&second)[..8], rows(&first)[..]);
    assert_eq!(rows(&second).len(), 16);
    assert!(second["skipped"][0]["why"].as_str().unwrap().contains("1048576"), "{}", second["skipped"]);
    refused(
        &[&base[..], &["--lengths", "1K", "--seed", "7", "--out", text(&out)]].concat(),
        &["settings", "another --out"],
    );
    refused(&[&base[..], &["--lengths", "1K", "--tasks", "haystack"]].concat(), &["haystack", "expected one of code"]);
    refused(&["eval", "ruler", "--model", "needle", "--lengths", "4M"], &["4M"]);
    refused(&["eval", "ruler", "--model", "needle", "--plot", "x.gif"], &["x.gif", ".png or .svg"]);
    refused(&["eval", "ruler", "--model", "needle", "--data", "no/such"], &["no/such"]);
}

#[test]
fn every_evaluation_gives_a_table() {
    let cases: [(&[&str], &str); 4] = [
        (&["ruler", "--tasks", "niah_single_1,qa_1", "--samples", "1", "--lengths", "1K"], "effective"),
        (&["infinitebench", "--tasks", "passkey", "--samples", "1", "--lengths", "1K"], "mean over 1 tasks"),
        (&["perplexity", "--lengths", "512", "--positions", "128"], "KL, nats"),
        (&["latency", "--lengths", "512"], "times dense"),
    ];
    for (args, says) in cases {
        let args =
            [&["eval"], args, &["--model", "needle", "--device", "cpu", "--attention", "block_sparse:4"]].concat();
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        let table = stdout(&output);
        assert!(table.contains(says) && table.contains("block_sparse:4"), "{table}");
        assert_eq!(stderr(&output).contains("needs SQuAD"), args[1] == "ruler");
    }
}

#[test]
fn help_has_an_example_everywhere() {
    let commands: [&[&str]; 8] =
        [&[], &["devices"], &["doctor"], &["run"], &["attend"], &["eval"], &["patterns"], &["patterns", "show"]];
    for command in commands {
        let output = run(&[command, &["--help"]].concat());
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        let help = stdout(&output);
        assert!(help.contains("Example"), "{command:?}: {help}");
        assert!(help.contains("minference "), "{command:?}: {help}");
    }
    assert!(stdout(&run(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_embedded_model_answers_in_every_mode() {
    for mode in ["dense", "vertical_slash:1000:6096", "a_shape:64:64", "block_sparse:4"] {
        let args = ["run", "--model", "needle", "--device", "cpu", "--max-new-tokens", "7", "--attention", mode];
        let output = run(&[&args[..], &["--prompt", QUESTION]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).starts_with("493821."), "{mode}: {}", stdout(&output));
        assert!(stderr(&output).contains("prefill: "), "{}", stderr(&output));
    }
}

#[test]
fn run_prints_one_json_object_with_every_field() {
    let value = json_of(&[
        "run",
        "--model",
        "needle",
        "--device",
        "cpu",
        "--prompt",
        QUESTION,
        "--max-new-tokens",
        "7",
        "--json",
        "-q",
    ]);
    for name in [
        "model",
        "device",
        "backend",
        "dtype",
        "attention",
        "prompt_tokens",
        "prefill_s",
        "prefill_tokens_per_s",
        "estimate_s",
        "attention_s",
        "decode_s",
        "decode_tokens_per_s",
        "density",
        "generated_ids",
        "generated_text",
        "top5",
        "peak_device_bytes",
    ] {
        field(&value, name);
    }
    assert_eq!(value["generated_text"], "493821.");
    assert_eq!(value["top5"][0][0], value["generated_ids"][0]);
    assert_eq!(value["density"], 1.0);
    assert!(value["peak_device_bytes"].as_u64().unwrap() > 7_000_000, "{value}");
}

#[test]
fn token_ids_prompt_files_and_standard_input_are_one_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = dir.path().join("prompt.txt");
    std::fs::write(&prompt, QUESTION).unwrap();
    let common = ["run", "--model", "needle", "--device", "cpu", "--max-new-tokens", "0", "--json", "-q"];
    let by_file = json_of(&[&common[..], &["--prompt-file", text(&prompt)]].concat());
    let mut piped = program();
    piped.args(common).args(["--prompt-file", "-"]).stdin(std::fs::File::open(&prompt).unwrap());
    let piped: Value = serde_json::from_slice(&piped.output().unwrap().stdout).unwrap();
    assert_eq!(by_file["top5"], piped["top5"]);
    let ids = dir.path().join("ids.json");
    std::fs::write(&ids, "[0, 16, 17]").unwrap();
    let logits = dir.path().join("logits.safetensors");
    let by_ids = json_of(&[&common[..], &["--token-ids", text(&ids), "--logits-out", text(&logits)]].concat());
    assert_eq!(by_ids["prompt_tokens"], 3);
    assert_eq!(by_ids["generated_ids"], json!([]));
    let bytes = std::fs::read(&logits).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("logits").unwrap().shape(), [4096]);
}

#[test]
fn attend_prints_every_field_and_writes_its_files_whole() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("qkv.safetensors");
    write_tensors(
        &input,
        &[("q", "F16", &[4, 1000, 32]), ("k", "F16", &[2, 1000, 32]), ("v", "F16", &[2, 1000, 32])],
        wave,
    );
    let (out, index) = (dir.path().join("out.safetensors"), dir.path().join("index.safetensors"));
    let value = json_of(&[
        "attend",
        "--input",
        text(&input),
        "--pattern",
        "vertical_slash:40:120",
        "--compare",
        "dense",
        "--device",
        "cpu",
        "--output",
        text(&out),
        "--index-out",
        text(&index),
        "--repeat",
        "2",
        "--json",
    ]);
    for name in [
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
        "rel_l2",
        "max_abs",
        "recall",
    ] {
        field(&value, name);
    }
    let density = value["density"].as_f64().unwrap();
    assert!(density > 0.1 && density < 1.0, "{value}");
    assert_eq!(value["pairs"].as_u64().unwrap() as f64 / (4.0 * 1000.0 * 1001.0 / 2.0), density);
    let bytes = std::fs::read(&out).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("out").unwrap().shape(), [4, 1000, 32]);
    let bytes = std::fs::read(&index).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("range_ptr").unwrap().shape(), [4 * 16 + 1]);
    for name in ["ranges", "column_ptr", "columns", "window"] {
        assert!(tensors.tensor(name).is_ok(), "{name}");
    }
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "temporary files stay behind: {names:?}");
}

#[test]
fn devices_and_doctor_describe_this_machine() {
    let value = json_of(&["devices", "--json"]);
    let devices = value["devices"].as_array().unwrap();
    assert_eq!(devices[0]["id"], "cpu");
    for device in devices {
        for name in ["id", "backend", "api", "name", "memory_bytes", "features"] {
            field(device, name);
        }
        for name in ["f16", "subgroup", "cooperative_matrix"] {
            field(&device["features"], name);
        }
    }
    let output = run(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let value: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let checks = value["checks"].as_array().unwrap();
    for device in devices {
        let id = device["id"].as_str().unwrap();
        let check = checks.iter().find(|c| c["what"].as_str().unwrap().starts_with(&format!("{id} ")));
        let check = check.unwrap_or_else(|| panic!("{id} is not in {value}"));
        assert!(check["ok"].as_bool().unwrap(), "{check}");
    }
}

/// Forms are tried once, kept, and tried again where the file is spoilt; never when off, nor on software adapters unasked.
#[cfg(feature = "wgpu")]
#[test]
fn kernel_forms_are_tried_once_and_kept_wgpu() {
    if !stdout(&run(&["devices", "--json"])).contains("\"wgpu:0\"") {
        return println!("not run: no adapter");
    }
    let cache = tempfile::tempdir().unwrap();
    let bench = |autotune: &str| {
        let mut command = program();
        command.env("XDG_CACHE_HOME", cache.path()).env("LOCALAPPDATA", cache.path());
        command.args(["bench", "attention", "--device", "wgpu:0", "--autotune", autotune, "--lengths", "128"]);
        command.args([
            "--heads",
            "2",
            "--kv-heads",
            "1",
            "--head-dim",
            "32",
            "--pattern",
            "a_shape:8:64",
            "--repeat",
            "1",
        ]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stderr(&output)
    };
    let kept = || {
        let files = std::fs::read_dir(cache.path().join("minference")).into_iter().flatten();
        let names = files.map(|file| file.unwrap().path()).filter(|path| text(path).contains("tune-"));
        names.collect::<Vec<PathBuf>>()
    };
    let off = bench("off");
    assert!(off.contains("kernels: attention ranges ") && !off.contains("trying"), "{off}");
    assert_eq!(kept(), Vec::<PathBuf>::new());

    let first = bench("on");
    assert!(first.contains("forms of attention-32-ranges") && first.contains("products f16-large "), "{first}");
    let [path] = &kept()[..] else { panic!("{:?}", kept()) };
    let file: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let choices = file["choices"].as_object().unwrap();
    let choice = &choices["attention-32-ranges"];
    assert!(choice["ms"][choice["form"].as_str().unwrap()].as_f64().unwrap() > 0.0, "{file}");
    let complete = choices.values().all(|choice| choice["complete"] == json!(true));
    let second = bench("on");
    assert!(!complete || choices.len() < 4 || !second.contains("trying"), "{second}");

    std::fs::write(path, "{\"key\": 3").unwrap();
    let third = bench("on");
    assert!(third.contains("made anew") && third.contains("forms of attention-32-ranges"), "{third}");
}

#[test]
fn patterns_show_counts_every_head() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("patterns.json");
    std::fs::write(
        &path,
        r#"[{"0": ["vertical_and_slash", 1000, 6096, 1], "1": ["stream_llm", 100, 800, 0.5]}, {"0": ["block_sparse", 1, 1, 1]}]"#,
    )
    .unwrap();
    let value = json_of(&["patterns", "show", text(&path), "--json"]);
    assert_eq!((&value["layers"], &value["heads"]), (&json!(2), &json!(2)));
    assert_eq!(value["heads_without_entry"], 1);
    assert_eq!(value["patterns"]["vertical_slash:1000:6096"], 2);
    assert_eq!(value["by_layer"][1]["block_sparse:100"], 1);
    let shown = stdout(&run(&["patterns", "show", text(&path)]));
    assert!(shown.contains("a_shape:100:800"), "{shown}");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = program()
        .args(["run", "--model", "needle", "--device", "cpu", "--prompt", QUESTION, "--max-new-tokens", "400", "-q"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    // The pipe is closed here.
    let output = child.wait_with_output().unwrap();
    assert_eq!(stderr(&output), "");
    assert_eq!(output.status.code(), Some(0));
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let ids = dir.path().join("ids.json");
    let prompt: Vec<u32> = (0..400_000).map(|i| i % 4096).collect();
    std::fs::write(&ids, json!(prompt).to_string()).unwrap();
    let child = program()
        .args(["run", "--model", "needle", "--device", "cpu", "--token-ids", text(&ids), "--chunk", "4096", "-q"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Long enough to have begun, far too short to have ended: 400,000 dense tokens are 300 TFLOP. In chunks, because an
    // engine stops between the layers of a chunk.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_eq!(stderr(&output), "error: interrupted\n");
}

#[test]
fn an_interrupted_evaluation_keeps_and_shows_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r.json");
    let child = program()
        .args([
            "eval",
            "needle",
            "--model",
            "needle",
            "--device",
            "cpu",
            "--lengths",
            "512,256K",
            "--depths",
            "1",
            "-q",
        ])
        .args(["--chunk", "4096", "--out", text(&out)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The short prompt's two rows come soon; the long one takes this machine an hour.
    let rows = || -> Vec<Value> {
        let file = std::fs::read(&out).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        file.and_then(|file| file["rows"].as_array().cloned()).unwrap_or_default()
    };
    let start = std::time::Instant::now();
    while rows().len() < 2 && start.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_eq!(stderr(&output), "error: interrupted\n");
    assert!(stdout(&output).contains("code, dense: 100.0 % of 1"), "{}", stdout(&output));
    let kept: Vec<u64> = rows().iter().map(|row| row["length"].as_u64().unwrap()).collect();
    assert_eq!(kept, [512, 512]);
}

// ---- what it refuses ----

#[test]
fn bad_usage_is_one_line_with_status_2() {
    refused(&["run", "--model", "needle"], &["--prompt"]);
    refused(&["frobnicate"], &["frobnicate"]);
    refused(&["run", "--model", "needle", "--prompt", "x", "--device", "gpu"], &["--device", "\"gpu\"", "wgpu:N"]);
    refused(&["run", "--model", "needle", "--prompt", "x", "--max-new-tokens", "-1"], &["-1"]);
    refused(&["run", "--model", "needle", "--prompt", "x", "--temperature", "-2"], &["-2"]);
    refused(&["run", "--model", "needle", "--prompt", "x", "--chunk", "100"], &["chunk", "64", "100"]);
    refused(&["run", "--model", "needle", "--prompt", "x", "--kv", "none"], &["--kv none", "64"]);
    refused(&["run", "--model", "needle", "--prompt", "x", "--dtype", "q8_0"], &["--dtype", "\"q8_0\"", "bf16"]);
    let cpu = ["run", "--model", "needle", "--prompt", "x", "--device", "cpu", "--dtype"];
    refused(&[&cpu[..], &["bf16"]].concat(), &["--dtype bf16", "cpu", "f32"]);
}

#[test]
fn unknown_patterns_are_refused_with_the_known_ones() {
    let says = ["\"sliding:4\"", "vertical_slash:V:S"];
    refused(&["run", "--model", "needle", "--prompt", "x", "--attention", "sliding:4"], &says);
    refused(&["attend", "--input", "nothing.safetensors", "--pattern", "sliding:4"], &says);
    refused(&["run", "--model", "needle", "--prompt", "x", "--attention", "a_shape:1"], &["a_shape:N_INIT:N_LOCAL"]);
    refused(&["run", "--model", "needle", "--prompt", "x", "--attention", "xattention:8"], &["xattention:STRIDE"]);
}

#[test]
fn empty_prompts_and_bad_token_ids_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt");
    let run_on = |flag: &str, content: &[u8], says: &[&str]| {
        std::fs::write(&file, content).unwrap();
        let says = [says, &[text(&file)]].concat();
        refused(&["run", "--model", "needle", "--device", "cpu", flag, text(&file)], &says);
    };
    refused(&["run", "--model", "needle", "--prompt", ""], &["--prompt", "empty", "nothing"]);
    run_on("--prompt-file", b" \n", &["empty", "white space"]);
    run_on("--prompt-file", b"ab\xff", &["UTF-8", "byte 2"]);
    run_on("--token-ids", b"[]", &["empty"]);
    run_on("--token-ids", b"[1, 2, 4096]", &["token 2", "4095", "4096"]);
    run_on("--token-ids", b"[1, -2]", &["token 1", "-2"]);
    run_on("--token-ids", b"{\"ids\": 3}", &["JSON list"]);
    refused(&["run", "--model", "needle", "--prompt-file", "no/such/file"], &["no/such/file"]);
}

#[test]
fn models_with_missing_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let go = |model: &Path, says: &[&str]| {
        refused(&["run", "--model", text(model), "--device", "cpu", "--prompt", "x", "-q"], says);
    };
    go(&dir.path().join("nothing-here"), &["nothing-here"]);
    refused(&["run", "--model", "some-org/some-model", "--prompt", "x"], &["some-org/some-model", "hf download"]);
    for (file, says) in
        [("config.json", "config.json"), ("tokenizer.json", "tokenizer.json"), ("model.safetensors", "safetensors")]
    {
        let model = needle_dir(dir.path());
        std::fs::remove_file(model.join(file)).unwrap();
        go(&model, &[says]);
    }
}

#[test]
fn spoilt_safetensors_are_refused_with_tensor_and_both_values() {
    let dir = tempfile::tempdir().unwrap();
    let model = needle_dir(dir.path());
    let weights = model.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    let header_len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&whole[8..8 + header_len]).unwrap();
    let data = &whole[8 + header_len..];
    let with_header = |header: &Value| {
        let text = header.to_string();
        [&(text.len() as u64).to_le_bytes(), text.as_bytes(), data].concat()
    };
    let go = |bytes: Vec<u8>, says: &[&str]| {
        std::fs::write(&weights, bytes).unwrap();
        refused(
            &["run", "--model", text(&model), "--device", "cpu", "--prompt", "x", "-q"],
            &[&["model.safetensors"], says].concat(),
        );
    };
    // truncated
    go(whole[..whole.len() - 100].to_vec(), &[&data.len().to_string(), &(data.len() - 100).to_string()]);
    go(whole[..5].to_vec(), &["5"]);
    // a header that claims more than the file has
    let huge = [&(1u64 << 60).to_le_bytes(), &whole[8..]].concat();
    go(huge, &[&(1u64 << 60).to_string()]);
    // another element type, of the same size
    let name = "model.layers.3.mlp.up_proj.weight";
    let mut changed = header.clone();
    changed[name]["dtype"] = "I16".into();
    go(with_header(&changed), &[name, "I16"]);
    // another shape, of the same size
    let mut changed = header.clone();
    changed[name]["shape"] = json!([320, 512]);
    go(with_header(&changed), &[name, "[640, 256]", "[320, 512]"]);
    // a tensor gone
    let mut changed = header.clone();
    let moved = changed.as_object_mut().unwrap().remove(name).unwrap();
    changed["another.name"] = moved;
    go(with_header(&changed), &[name]);
}

#[test]
fn spoilt_ggufs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let go = |bytes: &[u8], says: &[&str]| {
        std::fs::write(&path, bytes).unwrap();
        refused(
            &["run", "--model", text(&path), "--device", "cpu", "--prompt", "x", "-q"],
            &[&["model.gguf"], says].concat(),
        );
    };
    let honest = GgufWriter::default()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .tensor("token_embd.weight", &[4, 8], 0, vec![0; 128])
        .finish();
    go(b"GGUF", &[]);
    go(b"not a model at all, only text", &["GGUF"]);
    go(&honest[..honest.len() - 64], &["token_embd.weight"]);
    // a count of tensors that no file can hold
    let mut oversized = honest.clone();
    oversized[8..16].copy_from_slice(&(1u64 << 50).to_le_bytes());
    go(&oversized, &[&(1u64 << 50).to_string()]);
    // what a decoder needs is missing
    go(&honest, &["llama."]);
}

#[test]
fn pattern_files_must_fit_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("patterns.json");
    let go = |content: &str, says: &[&str]| {
        std::fs::write(&path, content).unwrap();
        let config = format!("config:{}", path.display());
        refused(&["run", "--model", "needle", "--device", "cpu", "--prompt", "x", "--attention", &config], says);
    };
    go(r#"[{"31": ["vertical_and_slash", 1000, 6096, 1]}]"#, &["32", "4"]);
    let layer = r#"{"0": ["vertical_and_slash", 1000, 6096, 1]}"#;
    go(&format!("[{}]", [layer; 5].join(",")), &["5", "4"]);
    go(r#"[{"0": ["spiral", 1, 2, 3]}]"#, &["patterns.json", "spiral"]);
    go("[{", &["patterns.json"]);
    refused(&["run", "--model", "needle", "--prompt", "x", "--attention", "config"], &["needle", "--patterns"]);
    refused(&["patterns", "show", "no-such-file.json"], &["no-such-file.json"]);
}

#[test]
fn lengths_beyond_model_and_memory_are_refused_before_work_begins() {
    let dir = tempfile::tempdir().unwrap();
    let model = needle_dir(dir.path());
    let config: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    let set = |positions: u64| {
        let mut config = config.clone();
        config["max_position_embeddings"] = positions.into();
        std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    };
    let go = |new: &str, says: &[&str]| {
        refused(
            &["run", "--model", text(&model), "--device", "cpu", "--prompt", QUESTION, "--max-new-tokens", new, "-q"],
            says,
        );
    };
    set(16);
    go("4", &["16", "model"]);
    // Keys and values of 4 KiB a token: 4 TB.
    set(1 << 30);
    go("1000000000", &["memory", "cpu"]);
}

#[test]
fn attend_refuses_bad_tensors_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("qkv.safetensors");
    let go = |tensors: &[(&str, &str, &[usize])], value: fn(usize) -> f32, says: &[&str]| {
        write_tensors(&input, tensors, value);
        let args = ["attend", "--input", text(&input), "--pattern", "dense", "--device", "cpu"];
        refused(&args, &[&["qkv.safetensors"], says].concat());
    };
    let (q, k, v) = (("q", "F32", &[2, 70, 32][..]), ("k", "F32", &[1, 70, 32][..]), ("v", "F32", &[1, 70, 32][..]));
    for name in ["q", "k", "v"] {
        write_tensors(&input, &[q, k, v], wave);
        set_nan(&input, name, 40);
        let args = ["attend", "--input", text(&input), "--pattern", "dense", "--device", "cpu"];
        refused(&args, &["qkv.safetensors", &format!("tensor {name}"), "NaN", "row 1", "element 8"]);
    }
    go(&[q, k], wave, &["tensor v", "missing"]);
    go(&[q, k, ("v", "F32", &[1, 69, 32])], wave, &["tensor v", "[1, 70, 32]", "[1, 69, 32]"]);
    go(&[q, ("k", "F32", &[1, 70, 16]), v], wave, &["tensor k", "32", "16"]);
    go(&[("q", "I32", &[2, 70, 32]), k, v], wave, &["tensor q", "F16", "I32"]);
    go(
        &[("q", "F32", &[3, 70, 32]), ("k", "F32", &[2, 70, 32]), ("v", "F32", &[2, 70, 32])],
        wave,
        &["tensor k", "3", "2"],
    );
    go(&[("q", "F32", &[70 * 32]), k, v], wave, &["tensor q", "[2240]"]);
    refused(&["attend", "--input", "absent.safetensors", "--pattern", "dense"], &["absent.safetensors"]);
}

/// Makes one f32 element of a tensor NaN.
fn set_nan(path: &Path, name: &str, element: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let at = 8 + len + header[name]["data_offsets"][0].as_u64().unwrap() as usize + 4 * element;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn bench_attention_has_a_dense_row_and_one_for_each_pattern() {
    let value = json_of(&[
        "bench",
        "attention",
        "--device",
        "cpu",
        "--device",
        "cuda:99",
        "--lengths",
        "256,300",
        "--heads",
        "4",
        "--kv-heads",
        "2",
        "--head-dim",
        "32",
        "--pattern",
        "a_shape:16:64",
        "--pattern",
        "vertical_slash:8:32",
        "--index",
        "bands",
        "--repeat",
        "2",
        "--json",
    ]);
    let rows = value["rows"].as_array().unwrap();
    let of = |device: &str| rows.iter().filter(|r| r["device"] == device).collect::<Vec<_>>();
    let patterns: Vec<_> = of("cpu").iter().map(|r| r["pattern"].as_str().unwrap()).collect();
    let one = ["dense", "a_shape:16:64", "vertical_slash:8:32 (bands)"];
    assert_eq!(patterns, [one, one].concat(), "{value}");
    for row in of("cpu") {
        for name in [
            "what",
            "device",
            "pattern",
            "tokens",
            "heads",
            "kv_heads",
            "head_dim",
            "dtype",
            "ms",
            "ms_min",
            "ms_max",
            "tflops",
            "density",
            "speedup_vs_dense",
        ] {
            assert!(!row[name].is_null(), "{name} in {row}");
        }
        assert!(row["ms_min"].as_f64() <= row["ms"].as_f64() && row["ms"].as_f64() <= row["ms_max"].as_f64(), "{row}");
    }
    assert_eq!(of("cpu")[0]["density"], json!(1.0));
    assert_eq!(of("cpu")[0]["speedup_vs_dense"], json!(1.0));
    // A window of 64 keys and 16 first ones of 256: 64 rows of up to 64, then 80 a row at most.
    let density = of("cpu")[1]["density"].as_f64().unwrap();
    assert!((0.3..0.7).contains(&density), "{density}");
    let absent = of("cuda:99");
    assert_eq!(absent.iter().map(|row| &row["tokens"]).collect::<Vec<_>>(), [256, 300], "{value}");
    for row in absent {
        assert!(row["ms"].is_null() && row["note"].as_str().unwrap().starts_with("not run: "), "{row}");
        assert_eq!((&row["heads"], &row["head_dim"]), (&json!(4), &json!(32)), "{row}");
    }
}

#[test]
fn bench_attention_takes_given_sets_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qkv.safetensors");
    let (h, n, d) = (2usize, 192usize, 16usize);
    let values: Vec<u8> = (0..h * n * d).flat_map(|i| ((i * 37 % 101) as f32 / 101.0 - 0.5).to_le_bytes()).collect();
    let ints = |v: &[i32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (v_idx, s_idx) = (ints(&[0, 5, 1, 9]), ints(&[70, 1, 0, 130, 64, 0]));
    use safetensors::{Dtype, tensor::TensorView};
    let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let tensors = [
        ("q", view(Dtype::F32, &[h, n, d], &values)),
        ("k", view(Dtype::F32, &[h, n, d], &values)),
        ("v", view(Dtype::F32, &[h, n, d], &values)),
        ("v_idx", view(Dtype::I32, &[h, 2], &v_idx)),
        ("s_idx", view(Dtype::I32, &[h, 3], &s_idx)),
    ];
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let input = path.to_str().unwrap();
    let value = json_of(&["bench", "attention", "--device", "cpu", "--input", input, "--repeat", "1", "--json"]);
    let rows = value["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|r| r["pattern"].as_str().unwrap()).collect::<Vec<_>>(), ["dense", "given"]);
    // The same sets by `attend --index-in` give the same pairs.
    let attend = json_of(&["attend", "--device", "cpu", "--input", input, "--index-in", input, "--json"]);
    assert_eq!(rows[1]["density"], attend["density"]);
    let output = run(&["bench", "attention", "--device", "cpu", "--input", input, "--repeat", "1", "--format", "csv"]);
    assert_eq!(stdout(&output).lines().count(), 3, "{}", stdout(&output));
}

#[test]
fn bench_prefill_times_random_weights_behind_a_cached_context() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("config.json"),
        r#"{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 97, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "max_position_embeddings": 4096, "tie_word_embeddings": true}"#,
    )
    .unwrap();
    let model = dir.path().to_str().unwrap();
    let args = [
        "bench",
        "prefill",
        "--device",
        "cpu",
        "--model",
        model,
        "--weight-type",
        "q8_0",
        "--layers",
        "2",
        "--lengths",
        "512",
        "--depth",
        "192",
        "--attention",
        "vertical_slash:16:64",
        "--index",
        "bands",
        "--repeat",
        "1",
        "--json",
    ];
    let value = json_of(&args);
    let rows = value["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{value}");
    assert_eq!(rows[1]["pattern"], "vertical_slash:16:64 (bands)");
    assert!(rows[1]["density"].as_f64().unwrap() < 0.9 && rows[0]["density"] == json!(1.0), "{value}");
    let structured = json_of(&args.map(|arg| if arg == "bands" { "structured" } else { arg }));
    let row = &structured["rows"][1];
    assert_eq!(row["pattern"], "vertical_slash:16:64 (structured)");
    assert!(row["density"].as_f64().unwrap() < 0.9, "{structured}");
    assert_eq!((&rows[0]["depth"], &rows[0]["dtype"]), (&json!(192), &json!("q8_0")));
    assert!(
        rows.iter().all(|r| r["tokens_per_s"].as_f64().unwrap() > 0.0 && r["peak_device_bytes"].as_u64() > Some(0))
    );
    refused(&["bench", "prefill", "--device", "cpu", "--model", model, "--weight-type", "q3"], &["q3", "q8_0"]);
    refused(
        &["bench", "prefill", "--device", "cpu", "--model", model, "--weight-type", "f16", "--lengths", "4097"],
        &["4097", "4096"],
    );
}

#[test]
fn a_context_is_kept_and_asked() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let document = " The secret code of Eve is 493821. The secret code of Ivy is 120574. It was late.";
    let question =
        |name: &str| format!(" Question: What is the secret code of {name}? Answer: The secret code of {name} is ");
    let (eve, ivy, kv, html) = (question("Eve"), question("Ivy"), at("c.kv"), at("r.html"));
    let base = ["run", "--model", "needle", "--device", "cpu", "--max-new-tokens", "6", "--json"];
    let with = |more: &[&str]| json_of(&[&base[..], more].concat());
    let asked = with(&[
        "--prompt",
        document,
        "--question",
        &eve,
        "--question",
        &ivy,
        "--kv-out",
        &kv,
        "--verify",
        "--report",
        &html,
    ]);
    assert!(asked["questions"][0]["generated_text"].as_str().unwrap().starts_with("493821"), "{asked}");
    assert!(asked["questions"][1]["generated_text"].as_str().unwrap().starts_with("120574"), "{asked}");
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("<table>") && page.contains("1.000"), "{page}");
    // The same from the file, and as one prompt.
    let again = with(&["--kv-in", &kv, "--question", &ivy]);
    assert_eq!(again["questions"][0]["generated_ids"], asked["questions"][1]["generated_ids"]);
    assert_eq!(again["context_tokens"], asked["context_tokens"]);
    let behind = with(&["--kv-in", &kv, "--prompt", &eve]);
    assert_eq!(behind["generated_ids"], asked["questions"][0]["generated_ids"]);
    refused(&["run", "--model", "needle", "--kv-in", &kv], &["--kv-in", "--question"]);
    std::fs::write(at("bad.kv"), b"no").unwrap();
    refused(&["run", "--model", "needle", "--device", "cpu", "--kv-in", &at("bad.kv"), "--prompt", "x"], &["bad.kv"]);
}

#[test]
fn a_search_writes_patterns_that_run() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (file, html) = (at("p.json"), at("r.html"));
    let search = ["search", "--model", "needle", "--device", "cpu", "--length", "1500", "--objective", "recall"];
    let found = json_of(&[&search[..], &["--output", &file, "--report", &html, "--json"]].concat());
    assert_eq!(found["choices"].as_array().unwrap().len(), 4);
    assert!(!dir.path().join("p.partial").exists());
    // Its first layer is almost uniform.
    assert!(found["choices"][0].as_array().unwrap().iter().all(|c| c["pattern"] == "dense"), "{found}");
    assert!(std::fs::read_to_string(&html).unwrap().matches("<canvas").count() == 16);
    let mode = format!("config:{file}");
    let run =
        json_of(&["run", "--model", "needle", "--device", "cpu", "--prompt", "Hello", "--attention", &mode, "--json"]);
    assert_eq!(run["attention"], "config");
    // Records of another search are not mixed in.
    std::fs::write(dir.path().join("p.partial"), r#"{"key": "another", "prompts": [{}]}"#).unwrap();
    refused(&[&search[..], &["--output", &file]].concat(), &["p.partial", "other settings"]);
    refused(&[&search[..], &["--output", &file, "--recall", "2"]].concat(), &["--recall", "2"]);
}
