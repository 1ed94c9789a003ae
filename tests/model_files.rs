//! Real model files: tokenizers against transformers' ids, and every tensor through its dequantiser.
//!
//! `tests/models.sh` fetches the files and runs this; `MINFERENCE_MODELS` is the directory they lie in.

use minference::tokenizer::Tokenizer;
use minference::weights::WeightFile;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn models() -> PathBuf {
    std::env::var_os("MINFERENCE_MODELS").expect("MINFERENCE_MODELS: the directory of the model files").into()
}

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../shared/model-golden/{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The texts of `tokenizer_cases` and all prompts, there and back.
fn check_tokenizer(name: &str) {
    let golden = golden(name);
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
