//! Real model files: tokenizers against transformers' ids, chat templates, and every tensor against gguf-py.
//!
//! `tests/models.sh` fetches the files and runs this; `MINFERENCE_MODELS` is the directory they lie in.

use minference::chat::ChatTemplate;
use minference::tokenizer::Tokenizer;
use minference::weights::WeightFile;
use minference::{DType, Error};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn models() -> PathBuf {
    std::env::var_os("MINFERENCE_MODELS").expect("MINFERENCE_MODELS: the directory of the model files").into()
}

fn read_json(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The texts of `tokenizer_cases` and all prompts, there and back.
fn check_tokenizer(name: &str) {
    let golden = read_json(&format!("../shared/model-golden/{name}.json"));
    let file = WeightFile::open(models().join(golden["gguf"].as_str().unwrap())).unwrap();
    let tokenizer = Tokenizer::from_gguf(file.gguf().unwrap()).unwrap();
    for case in golden["tokenizer_cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids"]), "{name}: {text:?}");
        assert_eq!(tokenizer.decode_with(&ids(&case["ids"]), false), text, "{name}");
    }
    for case in golden["cases"].as_array().unwrap() {
        let label = case["case"].as_str().unwrap();
        let (text, want) = (case["prompt_text"].as_str().unwrap(), ids(&case["prompt_ids"]));
        let got = tokenizer.encode(text, true).unwrap();
        let at = got.iter().zip(&want).position(|(a, b)| a != b);
        assert!(got == want, "{name}: {label}: first difference at {at:?} of {}, {}", got.len(), want.len());
        let mut stream = tokenizer.stream().show_special();
        let mut shown: String = want.iter().filter_map(|&id| stream.push(id)).collect();
        shown.extend(stream.finish());
        assert_eq!(shown, tokenizer.decode_with(&want, false), "{name}: {label}");
    }
}

#[test]
fn smollm2_tokenizer() {
    check_tokenizer("smollm2-135m");
}

#[test]
fn qwen_coder_tokenizer() {
    check_tokenizer("qwen2.5-coder-1.5b");
}

/// SentencePiece scores in a GGUF; the architecture itself is not one that the engine runs.
#[test]
fn gemma3_tokenizer() {
    check_tokenizer("gemma3-270m");
}

/// The ids of rendered conversations, by the `tokenizer.json` files that the published models have.
#[test]
fn chat_template_ids() {
    let cases = read_json("../shared/family-golden/chat-templates.json");
    for (family, dir) in [("llama3", "llama3"), ("llama3.1", "llama3_1"), ("qwen3", "qwen3")] {
        let dir = models().join("tokenizers").join(dir);
        let tokenizer = Tokenizer::open(&dir).unwrap();
        let template = ChatTemplate::open(&dir).unwrap().unwrap();
        for case in cases[family]["cases"].as_array().unwrap() {
            let mut more = Map::new();
            for key in ["tools", "enable_thinking"] {
                more.extend(case.get(key).map(|value| (key.to_owned(), value.clone())));
            }
            let prompt = case["add_generation_prompt"].as_bool().unwrap();
            let text = template.render_with(&case["messages"], prompt, &more).unwrap();
            assert_eq!(tokenizer.encode(&text, false).unwrap(), ids(&case["ids"]), "{family}: {}", case["name"]);
        }
    }
}

/// Every tensor of every file, bit for bit: `tests/data/make_gguf_sums.py`.
#[test]
fn tensors_as_gguf_py() {
    for (name, want) in read_json("tests/data/gguf-sums.json").as_object().unwrap() {
        let file = WeightFile::open(models().join(name)).unwrap();
        let mut sums: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
        for tensor in file.names().map(|name| file.tensor(name).unwrap()) {
            let values = tensor.to_f32().unwrap();
            let (n, elements, sum) = sums.entry(tensor.dtype.name()).or_default();
            (*n, *elements) = (*n + 1, *elements + values.len() as u64);
            for (x, weight) in values.iter().zip((1u64..).step_by(2)) {
                *sum = sum.wrapping_add(u64::from(x.to_bits()).wrapping_mul(weight));
            }
        }
        let got: BTreeMap<&str, Value> =
            sums.into_iter().map(|(dtype, (n, e, s))| (dtype, serde_json::json!([n, e, s.to_string()]))).collect();
        assert_eq!(serde_json::to_value(got).unwrap(), *want, "{name}");
    }
}

/// A real file cut anywhere, in its header or its data, is refused; a wrong shape is named with both.
#[test]
fn damaged_files_are_refused() {
    let path = models().join("smollm2-135m-instruct-q4_1.gguf");
    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 3, 24, 1000, 500_000, 1_700_000, 5_000_000, bytes.len() - 1] {
        let error = WeightFile::from_bytes("cut.gguf", bytes[..cut].to_vec()).err().expect("cut short");
        assert!(matches!(error, Error::File { .. }), "{cut}: {error}");
    }
    let file = WeightFile::open(&path).unwrap();
    let info = file.info("token_embd.weight").unwrap();
    assert_eq!((info.dtype, &info.shape[..]), (DType::Q8_0, &[49152, 576][..]));
    let error = file.require("token_embd.weight", &[576, 49152]).unwrap_err().to_string();
    assert!(error.ends_with("tensor token_embd.weight: expected [576, 49152], found [49152, 576]"), "{error}");
}
