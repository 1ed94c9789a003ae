//! Tokenizers of every file format against the libraries that define them (`tests/data/make_tokenizers.py`), streaming,
//! and damaged files.

mod gguf_writer;

use gguf_writer::GgufWriter;
use minference::tokenizer::Tokenizer;
use minference::weights::WeightFile;
use minference::{Error, Result};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers").join(name)
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data(name)).unwrap()).unwrap()
}

static CASES: LazyLock<Value> = LazyLock::new(|| read_json("cases.json"));

fn ids(json: &Value) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Compares every text of the cases that `wanted` accepts with `expected`, a list of lists of ids.
#[track_caller]
fn check(tokenizer: &Tokenizer, expected: &Value, wanted: impl Fn(&str) -> bool) {
    let texts = CASES["texts"].as_array().unwrap();
    assert_eq!(texts.len(), expected.as_array().unwrap().len());
    for (text, want) in texts.iter().zip(expected.as_array().unwrap()) {
        let text = text.as_str().unwrap();
        if wanted(text) {
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(want), "{text:?}");
        }
    }
}

/// A directory with these files.
fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| std::fs::write(dir.path().join(name), bytes).unwrap());
    dir
}

fn from_gguf(bytes: Vec<u8>) -> Result<Tokenizer> {
    Tokenizer::from_gguf(WeightFile::from_bytes("m.gguf", bytes)?.gguf().unwrap())
}

/// The message of an error that is the input's fault.
#[track_caller]
fn said(result: Result<Tokenizer>) -> String {
    let error = result.err().expect("must be refused");
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    error.to_string()
}

#[track_caller]
fn assert_says(message: &str, part: &str) {
    assert!(message.contains(part), "{message:?} does not say {part:?}");
}

/// Metadata of a byte-level GGUF with the vocabulary of `byte_bpe/tokenizer.json`.
fn byte_level_gguf(pre: &str) -> GgufWriter {
    let json = read_json("byte_bpe/tokenizer.json");
    let mut vocab: Vec<(String, usize)> = Vec::new();
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        vocab.push((token.clone(), id.as_u64().unwrap() as usize));
    }
    let mut kinds = vec![1; vocab.len()];
    for token in json["added_tokens"].as_array().unwrap() {
        vocab.push((token["content"].as_str().unwrap().into(), token["id"].as_u64().unwrap() as usize));
        kinds.push(if token["special"].as_bool().unwrap() { 3 } else { 4 });
    }
    vocab.sort_by_key(|(_, id)| *id);
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()))
        .collect();
    let tokens: Vec<&String> = vocab.iter().map(|(token, _)| token).collect();
    let id = |text: &str| tokens.iter().position(|t| *t == text).unwrap() as u32;
    GgufWriter::default()
        .str("general.architecture", "llama")
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre)
        .u32("tokenizer.ggml.bos_token_id", id("<s>"))
        .u32("tokenizer.ggml.eos_token_id", id("</s>"))
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strings("tokenizer.ggml.merges", &merges)
}

/// Metadata of a SentencePiece GGUF with the pieces of `sp_bpe/tokenizer.model`.
fn pieces_gguf() -> GgufWriter {
    let pieces = CASES["sp_bpe"]["pieces"].as_array().unwrap();
    let texts: Vec<&str> = pieces.iter().map(|p| p[0].as_str().unwrap()).collect();
    let scores: Vec<f32> = pieces.iter().map(|p| p[1].as_f64().unwrap() as f32).collect();
    let kinds: Vec<i32> = pieces.iter().map(|p| p[2].as_i64().unwrap() as i32).collect();
    GgufWriter::default()
        .str("general.architecture", "llama")
        .str("tokenizer.ggml.model", "llama")
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .strings("tokenizer.ggml.tokens", &texts)
        .f32s("tokenizer.ggml.scores", &scores)
        .i32s("tokenizer.ggml.token_type", &kinds)
}

#[test]
fn tokenizer_json() {
    let tokenizer = Tokenizer::from_dir(&data("byte_bpe")).unwrap();
    // The file keeps what was set last when it was made.
    check(&tokenizer, &CASES["byte_bpe"]["llama-bpe"], |_| true);
    let (bos, eos, end) =
        (tokenizer.id("<s>").unwrap(), tokenizer.id("</s>").unwrap(), tokenizer.id("<|end|>").unwrap());
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(bos), &[eos][..]));
    assert_eq!(tokenizer.vocab_size(), 704);
    assert!(tokenizer.is_special(end) && !tokenizer.is_special(tokenizer.id("<think>").unwrap()));

    let plain = tokenizer.encode("Hello<|end|>", false).unwrap();
    let marked = tokenizer.encode("Hello<|end|>", true).unwrap();
    assert_eq!((marked[0], &marked[1..], plain.last()), (bos, &plain[..], Some(&end)));
    assert_eq!(tokenizer.decode(&marked), "Hello");
    assert_eq!(tokenizer.decode_with(&marked, false), "<s>Hello<|end|>");
    assert_eq!(tokenizer.decode(&[u32::MAX, plain[0]]), tokenizer.decode(&plain[..1]));
}

#[test]
fn decoding_returns_the_text() {
    let gguf = |writer: GgufWriter| from_gguf(writer.finish()).unwrap();
    for tokenizer in [
        Tokenizer::from_dir(&data("byte_bpe")).unwrap(),
        Tokenizer::from_dir(&data("tiktoken")).unwrap(),
        Tokenizer::from_dir(&data("sp_bpe")).unwrap(),
        gguf(byte_level_gguf("smollm")),
        gguf(pieces_gguf()),
    ] {
        for text in CASES["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()) {
            // SentencePiece cannot tell a mark in the text from a space, and puts a space behind each special token.
            if tokenizer.id("\u{2581}the").is_some() && (text.contains('\u{2581}') || text.contains('<')) {
                continue;
            }
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode_with(&ids, false), text);
        }
    }
}

/// `tokenizer_config.json` decides about the begin token where it speaks of it, the post-processor where it does not.
#[test]
fn begin_and_end_tokens() {
    let json = std::fs::read(data("byte_bpe/tokenizer.json")).unwrap();
    let mut with_processor: Value = serde_json::from_slice(&json).unwrap();
    let bos = with_processor["added_tokens"][0]["id"].clone();
    with_processor["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}},
    });
    let with_processor = serde_json::to_vec(&with_processor).unwrap();
    let around = |json: &[u8], config: Value| {
        let config = serde_json::to_vec(&config).unwrap();
        let dir = directory(&[("tokenizer.json", json), ("tokenizer_config.json", &config)]);
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        tokenizer.decode_with(&tokenizer.encode("x", true).unwrap(), false)
    };
    let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let with = |key: &str, on: bool| {
        let mut config = tokens.clone();
        config[key] = on.into();
        config
    };
    assert_eq!(around(&json, tokens.clone()), "x");
    assert_eq!(around(&json, with("add_bos_token", true)), "<s>x");
    assert_eq!(around(&json, with("add_eos_token", true)), "x</s>");
    assert_eq!(around(&with_processor, tokens.clone()), "<s>x");
    assert_eq!(around(&with_processor, json!({})), "<s>x");
    assert_eq!(around(&with_processor, with("add_bos_token", false)), "x");

    // Every file that names end tokens counts; ids that are no tokens do not.
    let dir = directory(&[
        ("tokenizer.json", &json),
        ("tokenizer_config.json", br#"{"eos_token": "</s>"}"#),
        ("generation_config.json", br#"{"eos_token_id": [702, 701, 99999]}"#),
        ("config.json", br#"{"eos_token_id": 700}"#),
    ]);
    assert_eq!(Tokenizer::from_dir(dir.path()).unwrap().eos(), [701, 702, 700]);
}

#[test]
fn tiktoken_ranks() {
    let tokenizer = Tokenizer::from_dir(&data("tiktoken")).unwrap();
    check(&tokenizer, &CASES["tiktoken"], |_| true);
    let prefix = [tokenizer.id("[gMASK]").unwrap(), tokenizer.id("<sop>").unwrap()];
    assert_eq!(tokenizer.encode("", true).unwrap(), prefix);
    assert_eq!(tokenizer.eos(), [tokenizer.id("<|endoftext|>").unwrap()]);
}

#[test]
fn sentencepiece_models() {
    let no_marks = |text: &str| !text.contains('<') || text.contains("<<");
    check(&Tokenizer::from_dir(&data("sp_bpe")).unwrap(), &CASES["sp_bpe"]["ids"], no_marks);
    // The library strips a trailing mark like a trailing space, where the text itself has one.
    let wanted = |text: &str| no_marks(text) && !text.ends_with('\u{2581}');
    check(&Tokenizer::from_dir(&data("sp_unigram")).unwrap(), &CASES["sp_unigram"]["ids"], wanted);

    // `legacy: false` puts the word-start mark before the whole text only, as the library itself does; transformers
    // leaves it out before a space, which the library does not.
    let model = std::fs::read(data("sp_bpe/tokenizer.model")).unwrap();
    let config = br#"{"legacy": false, "bos_token": "<s>", "add_bos_token": true}"#;
    let dir = directory(&[("tokenizer.model", &model), ("tokenizer_config.json", config)]);
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    check(&tokenizer, &CASES["sp_bpe"]["ids"], |text| !text.contains("<s>") && !text.starts_with([' ', '\u{2581}']));
    assert_eq!(tokenizer.encode("a", true).unwrap()[0], 1);

    // A token that the configuration adds, and one that takes the space behind it along.
    let added = br#"{"added_tokens_decoder": {"3": {"content": "<|end|>", "special": true, "rstrip": true}, "700": {"content": "<new>"}}}"#;
    let dir = directory(&[("tokenizer.model", &model), ("tokenizer_config.json", added)]);
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let want = [&[3, 700][..], &tokenizer.encode("he", false).unwrap()].concat();
    assert_eq!(tokenizer.encode("<|end|>  <new>he", false).unwrap(), want);
}

#[test]
fn gguf_byte_level() {
    let all = CASES["byte_bpe"].as_object().unwrap();
    assert!(all.len() >= 8);
    for (pre, expected) in all {
        check(&from_gguf(byte_level_gguf(pre).finish()).unwrap(), expected, |_| true);
    }
    let tokenizer = from_gguf(byte_level_gguf("qwen2").finish()).unwrap();
    let marks = ["<s>", "</s>", "<|end|>"].map(|t| tokenizer.id(t).unwrap());
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(marks[0]), &marks[1..]));
    // Whether the begin token is added: Qwen2 no, Llama 3 yes, unless the file says otherwise.
    let first = |gguf: GgufWriter| from_gguf(gguf.finish()).unwrap().encode("x", true).unwrap()[0];
    assert_ne!(first(byte_level_gguf("qwen2")), marks[0]);
    assert_eq!(first(byte_level_gguf("qwen2").bool("tokenizer.ggml.add_bos_token", true)), marks[0]);
    assert_eq!(first(byte_level_gguf("llama-bpe")), marks[0]);
    assert_ne!(first(byte_level_gguf("llama-bpe").bool("tokenizer.ggml.add_bos_token", false)), marks[0]);
    let ended = from_gguf(byte_level_gguf("qwen2").bool("tokenizer.ggml.add_eos_token", true).finish()).unwrap();
    assert_eq!(ended.encode("x", true).unwrap().last(), Some(&marks[1]));
}

#[test]
fn gguf_sentencepiece() {
    let tokenizer = from_gguf(pieces_gguf().finish()).unwrap();
    check(&tokenizer, &CASES["sp_bpe"]["ids"], |text| !text.contains('<') || text.contains("<<"));
    assert_eq!((tokenizer.encode("a", true).unwrap()[0], tokenizer.eos()), (1, &[2][..]));
    // Without the prefix a text begins inside a word.
    let bare = from_gguf(pieces_gguf().bool("tokenizer.ggml.add_space_prefix", false).finish()).unwrap();
    assert_eq!(bare.token(bare.encode("the", false).unwrap()[0]).unwrap(), "t");
    assert_eq!(tokenizer.token(tokenizer.encode("the", false).unwrap()[0]).unwrap(), "\u{2581}the");
}

#[test]
fn opens_what_a_path_holds() {
    let gguf = pieces_gguf().finish();
    let dir = directory(&[("m.gguf", &gguf)]);
    let of = |path: &Path| Tokenizer::open(path).unwrap().vocab_size();
    assert_eq!((of(dir.path()), of(&dir.path().join("m.gguf")), of(&data("byte_bpe"))), (700, 700, 704));
    std::fs::copy(data("byte_bpe/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    assert_eq!(of(dir.path()), 704);
    assert_says(&said(Tokenizer::open(&data("byte_bpe/tokenizer.json"))), "tokenizer.json: header");
}

/// Every token that the stream gives is whole characters, and together they are the text.
#[test]
fn stream_gives_whole_characters() {
    let tokenizer = Tokenizer::from_dir(&data("byte_bpe")).unwrap();
    // Characters outside the training text are one token a byte.
    let text = "naïve 你好 🙂 \u{10348}\u{10348}\u{fffd} Ωж ok";
    let ids = tokenizer.encode(text, true).unwrap();
    assert!(ids.len() > text.chars().count());
    let mut stream = tokenizer.stream();
    let given: Vec<Option<String>> = ids.iter().map(|&id| stream.push(id)).collect();
    assert!(given.iter().any(Option::is_none));
    let shown: String = given.into_iter().flatten().collect();
    assert_eq!(shown + &stream.finish().unwrap_or_default(), text);

    let mut stream = tokenizer.stream();
    let smile = tokenizer.encode("\u{10348}", false).unwrap();
    assert_eq!(smile.len(), 4);
    assert!(smile[..3].iter().all(|&id| stream.push(id).is_none()));
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");
}

/// The second token ends one character and starts another, and no token ends with one.
#[test]
fn characters_that_end_inside_tokens_stream() {
    let tokenizer = &TOKENIZERS[0];
    let ids = [126, 528, 222, 94];
    let mut stream = tokenizer.stream();
    let mut shown: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
    shown.extend(stream.finish());
    assert_eq!(collapse(&shown), collapse(&tokenizer.decode(&ids)));
}

/// Runs of U+FFFD, of which a lossy decoder may write one or more for the same bytes, as one.
fn collapse(text: &str) -> String {
    let mut out = String::new();
    text.chars().for_each(|c| {
        if c != '\u{fffd}' || !out.ends_with(c) {
            out.push(c)
        }
    });
    out
}

static TOKENIZERS: LazyLock<[Tokenizer; 3]> =
    LazyLock::new(|| ["byte_bpe", "sp_bpe", "sp_unigram"].map(|name| Tokenizer::from_dir(&data(name)).unwrap()));

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    /// Any ids, sense or not, stream to what they decode to at once. SentencePiece's byte pieces are left out: decoded at
    /// once, a run of them that is no text becomes U+FFFD whole, its text included.
    #[test]
    fn streams_equal_decoding(which in 0usize..3, mut ids in prop::collection::vec(0u32..704, 0..40)) {
        let tokenizer = &TOKENIZERS[which];
        ids.retain(|id| which != 1 || !(4..260).contains(id));
        let mut stream = tokenizer.stream();
        let mut shown: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        shown.extend(stream.finish());
        prop_assert_eq!(collapse(&shown), collapse(&tokenizer.decode(&ids)));
    }

    /// Text made of characters of all lengths streams without a replacement character.
    #[test]
    fn streams_of_text(which in 0usize..2, text in "[ -~αжλ你好🙂𐍈\n]{0,30}") {
        let tokenizer = &TOKENIZERS[which];
        let mut stream = tokenizer.stream();
        let ids = tokenizer.encode(&text, false).unwrap();
        let mut shown: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        shown.extend(stream.finish());
        prop_assert_eq!(shown, text);
    }

    /// A damaged tokenizer gives an error or a tokenizer, and no panic. The ends of the files are hit more often: there
    /// lies the character map of `sp_unigram`.
    #[test]
    fn mutated_files_never_panic(
        which in 0usize..4,
        cut in any::<prop::sample::Index>(),
        whole in 0..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<u8>()), 1..5),
    ) {
        let name = ["tiktoken", "sp_bpe", "sp_unigram", "byte_bpe"][which];
        let file = if which < 3 { "tokenizer.model" } else { "tokenizer.json" };
        let mut bytes = std::fs::read(data(name).join(file)).unwrap();
        let n = bytes.len();
        for (at, at_end, byte) in changes {
            let at = if at_end { n - 2600 + at.index(2600) } else { at.index(n) };
            bytes[at] = byte;
        }
        if whole == 0 {
            bytes.truncate(cut.index(n));
        }
        let config = std::fs::read(data(name).join("tokenizer_config.json")).unwrap_or(b"{}".to_vec());
        let dir = directory(&[(file, &bytes), ("tokenizer_config.json", &config)]);
        if let Ok(tokenizer) = Tokenizer::from_dir(dir.path()) {
            let _ = tokenizer.encode("Hello, World! 你好 \u{fb01}\t\u{ff21}e\u{301}", true).map(|ids| tokenizer.decode(&ids));
        }
    }
}

/// A character map in a `tokenizer.json` that leads outside itself, which the `tokenizers` crate would follow.
#[test]
fn bad_character_maps() {
    let of = |map: &str| {
        let normalizer = json!({"type": "Precompiled", "precompiled_charsmap": map});
        let json = json!({
            "normalizer": {"type": "Sequence", "normalizers": [normalizer]},
            "model": {"type": "Unigram", "vocab": [["<unk>", 0.0]], "unk_id": 0},
        });
        said(Tokenizer::from_bytes("t.json".as_ref(), &serde_json::to_vec(&json).unwrap(), None))
    };
    assert_says(&of("?"), "t.json: precompiled_charsmap: expected base64");
    assert_says(&of("AAA="), "character map: expected at least 4 bytes, found 2");
    assert_says(&of("/////w=="), "character map: a trie of 4294967295 bytes, but only 0 follow");
    assert_says(&of("BAAAAAAAAAA="), "character map: unit 255 of 1");
}

#[test]
fn bad_directories() {
    let of = |files: &[(&str, &[u8])]| said(Tokenizer::from_dir(directory(files).path()));
    let good = std::fs::read(data("byte_bpe/tokenizer.json")).unwrap();
    assert_says(&of(&[]), "no tokenizer.json or tokenizer.model in it");
    assert_says(&of(&[("tokenizer.json", &good[..good.len() / 2])]), "tokenizer.json: ");
    assert_says(&of(&[("tokenizer.json", b"{}")]), "tokenizer.json: missing field `model`");
    assert_says(&of(&[("tokenizer.json", b"{\"model\":{\"type\":\"Magic\"}}")]), "tokenizer.json: ");
    let config = |text: &'static [u8]| of(&[("tokenizer.json", &good), ("tokenizer_config.json", text)]);
    assert_says(&config(b"{"), "tokenizer_config.json: EOF");
    assert_says(&config(br#"{"bos_token": "<x>"}"#), "bos_token: token \"<x>\" is not in the vocabulary");
    assert_says(&config(br#"{"add_bos_token": true}"#), "add_bos_token is true, but there is no such token");
    assert_says(&config(br#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#), "added_tokens_decoder x: expected");

    // Unions that are no token, one of them longer than every token.
    for merge in [r#"["a","zzz"]"#, r#"["a","a"]"#, r#""a""#, r#"["bbbbb","bbbbb"]"#] {
        let json = format!(r#"{{"model":{{"type":"BPE","vocab":{{"a":0,"bbbbb":1}},"merges":[{merge}]}}}}"#);
        assert_says(&of(&[("tokenizer.json", json.as_bytes())]), "is not in the vocabulary");
    }

    let ranks = std::fs::read(data("tiktoken/tokenizer.model")).unwrap();
    assert_says(&of(&[("tokenizer.model", &ranks)]), "added_tokens_decoder of tokenizer_config.json is missing");
    let config = std::fs::read(data("tiktoken/tokenizer_config.json")).unwrap();
    let ranks_of = |ranks: &[u8]| of(&[("tokenizer.model", ranks), ("tokenizer_config.json", &config)]);
    assert_says(&ranks_of(&[b"IQ== 0\nIg== 2\n", &ranks[..]].concat()), "line 2: expected rank 1, found 2");
    assert_says(&ranks_of(b"IQ== 0\n!!!! 1\n"), "line 2: expected base64 and a rank");
    assert_says(&ranks_of(b"IQ== 0\n"), "expected id 1");
    assert_says(&ranks_of(b"\x0a\x07\x0a\x01"), "as a SentencePiece model: cut short");
    assert_says(&ranks_of(b""), "as a SentencePiece model: no pieces in it");
    assert_says(&ranks_of(b"\x0a\x03\x0a\x01a"), "added_tokens_decoder 700: expected id 1");
}

#[test]
fn bad_gguf_metadata() {
    let of = |gguf: GgufWriter| said(from_gguf(gguf.finish()));
    let base = || GgufWriter::default().str("general.architecture", "llama");
    let tokens =
        |n: usize| base().strings("tokenizer.ggml.tokens", &(0..n).map(|i| format!("t{i}")).collect::<Vec<_>>());
    assert_says(&of(base()), "m.gguf: metadata tokenizer.ggml.tokens: not in the file");
    assert_says(&of(tokens(2)), "metadata tokenizer.ggml.model: not in the file");
    assert_says(&of(tokens(2).str("tokenizer.ggml.model", "bert")), "tokenizer.ggml.model \"bert\"");
    assert_says(
        &of(tokens(2).i32s("tokenizer.ggml.token_type", &[1])),
        "token_type: expected 2 elements as in tokens, found 1",
    );
    assert_says(&of(base().strings("tokenizer.ggml.tokens", &["a", "b", "a"])), "token \"a\" (id 2) appears twice");
    assert_says(&of(base().u32("tokenizer.ggml.tokens", 1)), "expected an array of strings, found U32");
    let pieces = || tokens(2).str("tokenizer.ggml.model", "llama");
    assert_says(&of(pieces()), "metadata tokenizer.ggml.scores: not in the file");
    assert_says(&of(pieces().f32s("tokenizer.ggml.scores", &[0.0])), "scores: expected 2 elements");
    let bytes = || tokens(2).str("tokenizer.ggml.model", "gpt2");
    assert_says(&of(bytes()), "metadata tokenizer.ggml.merges: not in the file");
    assert_says(&of(bytes().strings("tokenizer.ggml.merges", &["t0"])), "merge 0 (\"t0\"): expected two tokens");
    let merged = |pre: &str| bytes().strings("tokenizer.ggml.merges", &["t0 t1"]).str("tokenizer.ggml.pre", pre);
    assert_says(&of(merged("qwen2")), "merge 0 (\"t0\", \"t1\"): \"t0t1\" is not in the vocabulary");
    assert!(matches!(from_gguf(merged("klingon").finish()), Err(Error::Unsupported(_))));
    assert_says(&of(merged("klingon")), "m.gguf: tokenizer.ggml.pre \"klingon\"");
    assert_says(&of(merged("default")), "no tokenizer.ggml.pre");
    let bos = byte_level_gguf("qwen2").u32("tokenizer.ggml.eot_token_id", 704);
    assert_says(&of(bos), "eot_token_id: 704, but there are 704 tokens");
}
