//! What the program says to files of other models, other prompts and other places than it can use: one clear line before
//! any long work, never a panic, and never an answer from what does not belong together.
#![cfg(feature = "cli")]

mod program;

use program::{json_of, refused, run, stderr, text};
use serde_json::Value;
use std::path::{Path, PathBuf};

const RUN: [&str; 6] = ["run", "--model", "needle", "--device", "cpu", "-q"];

/// A copy of the needle model's directory with another config field, or another byte in the middle of its weights.
fn needle_with(at: PathBuf, field: Option<(&str, Value)>, byte: bool) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/needle/model");
    std::fs::create_dir_all(&at).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), at.join(name)).unwrap();
    }
    if let Some((key, value)) = field {
        let mut config: Value = serde_json::from_slice(&std::fs::read(at.join("config.json")).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(at.join("config.json"), config.to_string()).unwrap();
    }
    if byte {
        let path = at.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.len() - 1;
        bytes[end] ^= 0x40;
        std::fs::write(path, bytes).unwrap();
    }
    at
}

#[test]
fn a_context_of_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // All of one name and shape.
    let first = needle_with(at("a/model"), None, false);
    let same = needle_with(at("b/model"), None, false);
    let trained = needle_with(at("c/model"), None, true);
    let turned = needle_with(at("d/model"), Some(("rope_theta", 5e9.into())), false);
    let kv = at("c.kv");
    let call = |model: &Path, more: &[&str], works: bool| {
        let args = ["run", "--model", text(model), "--device", "cpu", "--max-new-tokens", "1", "-q", "--prompt", "It"];
        let args = [&args[..], more].concat();
        match works {
            true => drop(json_of(&[&args[..], &["--json"]].concat())),
            false => refused(&args, &["c.kv", "context: expected one of model"]),
        }
    };
    call(&first, &["--kv-out", text(&kv)], true);
    call(&same, &["--kv-in", text(&kv)], true);
    for other in [&trained, &turned] {
        call(other, &["--kv-in", text(&kv)], false);
    }
    call(&first, &["--kv-in", text(&kv), "--rope-scaling", "yarn:4"], false);
}

#[test]
fn places_that_cannot_be_written_are_refused_before_work_begins() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no/such/file.json");
    let (missing, dir) = (text(&missing), text(dir.path()));
    // Prompts that would take minutes.
    let long = ["--prompt-tokens", "200000"];
    for flag in ["--logits-out", "--kv-out", "--report"] {
        refused(&[&RUN[..], &long, &[flag, missing]].concat(), &["no/such", "there is no directory"]);
    }
    refused(&[&RUN[..], &long, &["--kv-out", dir]].concat(), &["found a directory"]);
    let eval = ["eval", "needle", "--model", "needle", "--device", "cpu", "--lengths", "512K"];
    refused(&[&eval[..], &["--out", missing]].concat(), &["there is no directory"]);
    refused(&[&eval[..], &["--plot", "no/such/map.svg"]].concat(), &["no/such/map.svg", "there is no directory"]);
    let search = ["search", "--model", "needle", "--device", "cpu", "--length", "500000"];
    refused(&[&search[..], &["--output", missing]].concat(), &["there is no directory"]);
    refused(
        &["attend", "--input", "x.safetensors", "--pattern", "dense", "--output", missing],
        &["there is no directory"],
    );
}

#[test]
fn numbers_beyond_reason_are_refused_at_once() {
    let search = ["search", "--model", "needle", "--device", "cpu", "--output", "never-written.json"];
    refused(&[&search[..], &["--length", "99999999999"]].concat(), &["--length", "1 to 16777216", "99999999999"]);
    refused(&[&search[..], &["--length", "2048K"]].concat(), &["--length", "at most 1048576", "2097152"]);
    let eval = ["eval", "needle", "--model", "needle", "--device", "cpu", "--lengths", "1K"];
    for flag in ["--depths", "--samples", "--rounds"] {
        refused(&[&eval[..], &[flag, "99999999"]].concat(), &[flag, "1 to 100000", "99999999"]);
    }
    refused(&[&RUN[..], &["--prompt", "It was", "--question", " "]].concat(), &["--question", "expected some text"]);
    for many in ["18446744073709551615", "2147483649"] {
        let args = [&RUN[..], &["--prompt", "It was", "--max-new-tokens", many]].concat();
        refused(&args, &["--max-new-tokens", "0 to 2147483648", many]);
    }
    let heads = ["bench", "attention", "--device", "cpu", "--lengths", "4096", "--heads", "4294967296"];
    refused(&heads, &["out of memory", "4294967296 heads"]);
    let scaled = [&RUN[..], &["--prompt", "It was", "--rope-scaling", "yarn:1e300"]].concat();
    refused(&scaled, &["expected a factor from 1 to 4096"]);
}

/// A flag that would be left out in silence is an answer to another question.
#[test]
fn flags_that_have_nothing_to_work_on_are_refused() {
    for flag in [&["--kv-out", "x.kv"][..], &["--logits-out", "x.st"], &["--report", "x.json"], &["--verify"]] {
        let args = [&RUN[..], &["--kv-in", "x.kv", "--question", "Who?"], flag].concat();
        refused(&args, &["are of a prompt"]);
    }
    let none = [&RUN[..], &["--prompt", "It was", "--kv", "none", "--max-new-tokens", "1"]].concat();
    refused(&[&none[..], &["--kv-out", "x.kv"]].concat(), &["--kv none"]);
    let latency = ["eval", "latency", "--model", "needle", "--device", "cpu", "--lengths", "64", "--tasks", "code"];
    refused(&latency, &["--tasks", "latency has none", "code"]);
    refused(
        &[&RUN[..], &["--prompt", "It", "--attention", "skip_softmax:9"]].concat(),
        &["skip_softmax:FACTOR+PATTERN"],
    );
}

#[test]
fn an_input_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("qkv.safetensors");
    std::fs::write(&file, "what a user has").unwrap();
    for flag in ["--output", "--index-out"] {
        let args = ["attend", "--input", text(&file), "--pattern", "dense", flag, text(&file)];
        refused(&args, &["qkv.safetensors", "another file than --input"]);
    }
}

/// Logits beside questions are written, and a link that a result goes to stays one.
#[cfg(unix)]
#[test]
fn results_beside_questions_go_where_links_lead() {
    let dir = tempfile::tempdir().unwrap();
    let [link, file] = ["link", "logits.safetensors"].map(|name| dir.path().join(name));
    std::os::unix::fs::symlink(&file, &link).unwrap();
    std::fs::write(&file, "").unwrap();
    let more = ["--prompt", "It was", "--question", " late and", "--max-new-tokens", "1", "--logits-out", text(&link)];
    json_of(&[&RUN[..], &more, &["--json"]].concat());
    assert!(link.is_symlink() && std::fs::metadata(&file).unwrap().len() > 4 * 4096);
}

/// To open a pipe would wait for a writer that may never come.
#[cfg(unix)]
#[test]
fn pipes_and_devices_are_no_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe.gguf");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for place in [text(&pipe), "/dev/zero"] {
        let says = ["expected a file, found a pipe or a device"];
        refused(&["run", "--model", place, "--device", "cpu", "--prompt", "x", "-q"], &says);
        refused(&["attend", "--input", place, "--pattern", "dense", "--device", "cpu", "-q"], &says);
        refused(&[&RUN[..], &["--prompt", "x", "--kv-in", place]].concat(), &says);
        let eval = ["eval", "needle", "--model", "needle", "--device", "cpu", "--lengths", "512", "--out", place];
        refused(&eval, &says);
    }
    refused(&[&RUN[..], &["--attention", "config:/dev/zero", "--prompt", "x"]].concat(), &["expected at most"]);
}

#[test]
fn an_answer_ends_where_the_models_positions_end() {
    let dir = tempfile::tempdir().unwrap();
    let model = needle_with(dir.path().join("short"), Some(("max_position_embeddings", 40.into())), false);
    let args = ["run", "--model", text(&model), "--device", "cpu", "--max-new-tokens", "1000", "--json"];
    let value = json_of(&[&args[..], &["--prompt", "It was late, and"]].concat());
    let all = value["prompt_tokens"].as_u64().unwrap() + value["generated_ids"].as_array().unwrap().len() as u64;
    assert_eq!((value["stop"].as_str(), all), (Some("length"), 41), "{value}");
    let long = "It was late. ".repeat(20);
    refused(&[&args[..7], &["--prompt", &long]].concat(), &["short is made for at most 40"]);
}

#[test]
fn question_sets_without_questions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("squad.json");
    let args =
        ["eval", "ruler", "--model", "needle", "--device", "cpu", "--lengths", "1K", "--tasks", "qa_1", "--data"];
    let empty = r#"{"data":[{"paragraphs":[{"context":"x","qas":[{"question":"y","answers":[{"text":" "}]}]}]}]}"#;
    let hotpot = r#"[{"question":"y","answer":"","context":[["x",["z"]]],"supporting_facts":[["x",0]]}]"#;
    for set in [r#"{"data":[]}"#, r#"{"data":[{"paragraphs":[{"context":"x","qas":[]}]}]}"#, empty, hotpot] {
        std::fs::write(&path, set).unwrap();
        refused(&[&args[..], &[text(&path)]].concat(), &["squad.json", "expected questions with answers, found none"]);
    }
}

#[test]
fn results_of_other_prompts_or_weights_are_not_added_to() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r.json");
    let model = needle_with(dir.path().join("model"), None, false);
    let args = ["eval", "needle", "--model", text(&model), "--device", "cpu", "--depths", "2", "--lengths", "600"];
    let args = [&args[..], &["--tasks", "code", "--attention", "a_shape:64:128", "--out", text(&out)]].concat();
    let first = json_of(&[&args[..], &["--json"]].concat());
    assert_eq!(first["rows"].as_array().unwrap().len(), 4);
    // As a version with other words would have left it.
    let mut other = first.clone();
    for row in other["rows"].as_array_mut().unwrap() {
        row["prompt"] = "00000000deadbeef".into();
    }
    other.as_object_mut().unwrap().remove("summary");
    std::fs::write(&out, other.to_string()).unwrap();
    refused(&args, &["r.json", "code at 600 tokens", "00000000deadbeef", "another --out"]);
    // Rows of versions that noted no prompt stay.
    for row in other["rows"].as_array_mut().unwrap() {
        row.as_object_mut().unwrap().remove("prompt");
    }
    std::fs::write(&out, other.to_string()).unwrap();
    json_of(&[&args[..], &["--json"]].concat());
    needle_with(dir.path().join("model"), None, true);
    refused(&args, &["r.json", "settings", "weights", "another --out"]);
}

#[test]
fn a_search_goes_on_only_from_its_own_part() {
    let dir = tempfile::tempdir().unwrap();
    let model = needle_with(dir.path().join("model"), None, false);
    let output = dir.path().join("p.json");
    let partial = dir.path().join("p.partial");
    let args = ["search", "--model", text(&model), "--device", "cpu", "--length", "512", "--output", text(&output)];
    std::fs::write(&partial, "{").unwrap();
    refused(&args, &["p.partial", "expected what an earlier search left"]);
    std::fs::write(&partial, r#"{"key":"[]","prompts":[{}]}"#).unwrap();
    refused(&args, &["p.partial", "other settings"]);
    std::fs::remove_file(&partial).unwrap();
    json_of(&[&args[..], &["--json"]].concat());
    assert!(output.exists() && !partial.exists());
    refused(&[&args[..args.len() - 1], &[text(&partial)]].concat(), &["p.partial", "expected another ending"]);
}

#[test]
fn what_is_not_there_is_told_with_what_to_do() {
    let prompt = ["--device", "cpu", "--prompt", "It was", "-q"];
    let model = |name: &str, says: &[&str]| refused(&[&["run", "--model", name], &prompt[..]].concat(), says);
    model("org/name", &["org/name", "found nothing", "hf download"]);
    model("llama-3-8b-1m", &["found nothing", "--random-weights"]);
    for name in ["/nowhere", "./nowhere", "a/b/c"] {
        let output = run(&[&["run", "--model", name], &prompt[..]].concat());
        let error = stderr(&output);
        assert!(error.ends_with("found nothing\n") && output.status.code() == Some(2), "{error}");
    }
    refused(&RUN, &["--prompt", "--prompt-file", "--token-ids", "--prompt-tokens"]);
    let spelt =
        |text: &str, says: &[&str]| refused(&[&RUN[..], &["--prompt", "It", "--attention", text]].concat(), says);
    spelt("vertical-slash:10:20", &["\"vertical-slash:10:20\"", "did you mean vertical_slash:V:S?"]);
    spelt("Dense", &["did you mean dense?"]);
    spelt("slash:3", &["unknown pattern", "config:FILE"]);
}

/// A table of nothing with status 0 would be taken for a result.
#[test]
fn an_evaluation_of_nothing_is_an_error() {
    let eval = ["eval", "--model", "needle", "--device", "cpu", "-q"];
    refused(
        &[&eval[..], &["needle", "--lengths", "12"]].concat(),
        &["a prompt of 4 tokens is too short", "alone take"],
    );
    refused(&[&eval[..], &["ruler", "--lengths", "1K", "--tasks", "qa_1"]].concat(), &["needs SQuAD"]);
    let twice = ["eval", "needle", "--model", "needle", "--device", "cpu", "--lengths", "512", "--depths", "1"];
    let output = run(&[&twice[..], &["--tasks", "code,code"]].concat());
    assert!(stderr(&output).contains("1 prompts in 2 modes") && output.status.success(), "{}", stderr(&output));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes.jsonl");
    std::fs::write(&file, "{}\n").unwrap();
    let tasks = ["infinitebench", "--lengths", "1K", "--tasks", "kv_retrieval", "--data", text(&file)];
    refused(&[&eval[..], &tasks].concat(), &["notes.jsonl", "name of a task", "kv_retrieval"]);
}

/// On the first Ctrl-C a user must see that it was heard: the layer at work may take minutes.
#[cfg(unix)]
#[test]
fn an_interrupt_is_acknowledged_and_a_second_one_ends_at_once() {
    use std::io::BufRead;
    let mut child = program::program()
        .args(["run", "--model", "needle", "--device", "cpu", "--prompt-tokens", "400000", "--max-new-tokens", "0"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("device: cpu"));
    let interrupt = |id: u32| std::process::Command::new("kill").args(["-INT", &id.to_string()]).status().unwrap();
    assert!(interrupt(child.id()).success());
    assert!(lines.next().unwrap().contains("Ctrl-C again stops at once"));
    assert!(interrupt(child.id()).success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
