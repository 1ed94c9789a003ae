//! The tokenizer in a GGUF's metadata (`tokenizer.ggml.*`).

use super::sentencepiece::{Pieces, kind};
use super::{Added, Tokenizer, assemble, bpe};
use crate::weights::Gguf;
use crate::{Error, Result};
use serde_json::{Value, json};

/// Control tokens that end an answer whatever the metadata calls its end token: files name only one, yet a chat model
/// may end a turn with another (the list is of the families read here; llama.cpp has a like one).
const TURN_ENDS: [&str; 10] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|user|>",
    "<|observation|>",
    "<end_of_turn>",
    "</s>",
];

pub(super) fn tokenizer(gguf: &Gguf) -> Result<Tokenizer> {
    let tokens = required(gguf, "tokenizer.ggml.tokens", gguf.strings("tokenizer.ggml.tokens")?)?;
    super::check_unique(gguf.path(), &tokens)?;
    let kinds = gguf.ints("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![kind::NORMAL; tokens.len()]);
    check_len(gguf, "token_type", kinds.len(), tokens.len())?;
    let model = required(gguf, "tokenizer.ggml.model", gguf.str("tokenizer.ggml.model")?)?;
    let (inner, add_bos) = match model {
        "gpt2" => byte_level(gguf, &tokens, &kinds)?,
        "llama" => (pieces(gguf, &tokens, &kinds)?, true),
        other => {
            let what = format!("{}: tokenizer.ggml.model {other:?}", gguf.path().display());
            return Err(Error::Unsupported(format!("{what}: expected \"gpt2\" or \"llama\"")));
        }
    };
    let id = |key: &str| match gguf.uint(&format!("tokenizer.ggml.{key}_token_id"))? {
        Some(id) if id >= tokens.len() as u64 => {
            let what = format!("tokenizer.ggml.{key}_token_id: {id}, but there are {} tokens", tokens.len());
            Err(Error::file(gguf.path(), what))
        }
        other => Ok(other.map(|id| id as u32)),
    };
    let bos = id("bos")?;
    let mut eos: Vec<u32> = Vec::new();
    for key in ["eos", "eot", "eom"] {
        eos.extend(id(key)?.filter(|id| !eos.contains(id)));
    }
    let ends = tokens.iter().zip(&kinds).zip(0..).filter(|((text, k), _)| **k == kind::CONTROL && is_end(gguf, text));
    for (_, end) in ends {
        eos.extend(Some(end).filter(|end| !eos.contains(end)));
    }
    let add_bos = gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
    let add_eos = gguf.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let before = Some(add_bos).filter(|add| *add).and(bos).into_iter().collect();
    let after = Some(add_eos).filter(|add| *add).and(id("eos")?).into_iter().collect();
    Ok(Tokenizer { inner, around: Some((before, after)), bos, eos })
}

/// Whether a control token ends an answer. Phi-3's `<|user|>` only opens a turn; GLM-4's also ends the one before.
fn is_end(gguf: &Gguf, token: &str) -> bool {
    let glm = gguf.architecture().is_ok_and(|a| a.contains("glm"));
    TURN_ENDS.contains(&token) && (glm || !matches!(token, "<|user|>" | "<|observation|>"))
}

fn required<T>(gguf: &Gguf, key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| gguf.missing(key))
}

fn check_len(gguf: &Gguf, key: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let what = format!("metadata tokenizer.ggml.{key}: expected {expected} elements as in tokens, found {found}");
    Err(Error::file(gguf.path(), what))
}

/// Byte-level BPE with its merges, and whether the begin token is added where the file does not say.
fn byte_level(gguf: &Gguf, tokens: &[&str], kinds: &[i64]) -> Result<(tokenizers::Tokenizer, bool)> {
    let path = gguf.path();
    let lines = required(gguf, "tokenizer.ggml.merges", gguf.strings("tokenizer.ggml.merges")?)?;
    let mut merges = Vec::with_capacity(lines.len());
    for (i, line) in lines.iter().enumerate() {
        // A token may be a space itself, so the one that parts the two is looked for behind the first byte.
        let at = line.bytes().skip(1).position(|b| b == b' ').map(|at| at + 1);
        let at = at.ok_or_else(|| Error::file(path, format!("merge {i} ({line:?}): expected two tokens")))?;
        merges.push((line[..at].to_owned(), line[at + 1..].to_owned()));
    }
    let rules = Rules::of(gguf)?;
    let tokens: Vec<String> = tokens.iter().map(|t| (*t).to_owned()).collect();
    let model = bpe::model(path, &tokens, merges, |builder| builder.ignore_merges(rules.ignore_merges))?;
    let parts = json!({
        "normalizer": if rules.nfc { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": bpe::byte_level_split(&rules.patterns),
        "decoder": bpe::byte_level_decoder(),
    });
    let added =
        tokens.iter().zip(kinds).filter(|(_, k)| matches!(**k, kind::CONTROL | kind::USER_DEFINED)).map(|(text, k)| {
            Added { content: text.clone(), special: *k == kind::CONTROL, lstrip: false, rstrip: false }.token()
        });
    Ok((assemble(path, model, parts, added)?, rules.add_bos))
}

/// SentencePiece pieces with scores.
fn pieces(gguf: &Gguf, tokens: &[&str], kinds: &[i64]) -> Result<tokenizers::Tokenizer> {
    let scores = required(gguf, "tokenizer.ggml.scores", gguf.floats("tokenizer.ggml.scores")?)?;
    check_len(gguf, "scores", scores.len(), tokens.len())?;
    let pieces = tokens.iter().zip(scores).zip(kinds).map(|((t, score), k)| ((*t).to_owned(), score, *k)).collect();
    let pieces = Pieces {
        pieces,
        unigram: false,
        add_dummy_prefix: gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
        prefix_first_only: false,
        remove_extra_whitespaces: gguf.bool("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false),
        charsmap: Vec::new(),
    };
    // Phi-3's special tokens take the white space behind them with them; GGUF has no field for that.
    let phi3 = gguf.architecture()? == "phi3";
    let keeps_space = ["<unk>", "<s>", "<|endoftext|>"];
    let mut added = pieces.added();
    for token in added.iter_mut().filter(|t| phi3 && t.special && !keeps_space.contains(&t.content.as_str())) {
        token.rstrip = true;
    }
    pieces.build(gguf.path(), added.iter().map(Added::token))
}

/// How a byte-level tokenizer treats text before it merges.
struct Rules {
    patterns: Vec<String>,
    nfc: bool,
    ignore_merges: bool,
    add_bos: bool,
}

impl Rules {
    /// By `tokenizer.ggml.pre`; files older than that key, and `default`, are judged by their architecture.
    fn of(gguf: &Gguf) -> Result<Self> {
        let pre = gguf.str("tokenizer.ggml.pre")?.filter(|pre| *pre != "default");
        let name = match (pre, gguf.architecture()?) {
            (Some(pre), _) => pre,
            (None, "qwen2" | "qwen3") => "qwen2",
            (None, "chatglm" | "glm4") => "glm4",
            (None, _) => "",
        };
        const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        let by = |patterns: &[&str]| Self {
            patterns: patterns.iter().map(|p| (*p).to_owned()).collect(),
            nfc: false,
            ignore_merges: false,
            add_bos: false,
        };
        let (one_digit, three_digits) = (bpe::gpt4_split(r"\p{N}"), bpe::gpt4_split(r"\p{N}{1,3}"));
        Ok(match name {
            "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "exaone4" => by(&[GPT2]),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
                by(&[r"\p{N}", GPT2])
            }
            "qwen2" => Self { nfc: true, ..by(&[&one_digit]) },
            "deepseek-r1-qwen" | "stablelm2" | "hunyuan" => by(&[&one_digit]),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" => {
                Self { ignore_merges: true, add_bos: true, ..by(&[&three_digits]) }
            }
            "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => by(&[&three_digits]),
            "tekken" => Self {
                ignore_merges: true,
                add_bos: true,
                ..by(&[concat!(
                    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
                    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
                    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                )])
            },
            "deepseek-coder" => by(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
            "deepseek-v3" => by(&[
                r"\p{N}{1,3}",
                "[一-龥぀-ゟ゠-ヿ]+",
                concat!(
                    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
                    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                ),
            ]),
            other => {
                let found = if other.is_empty() {
                    "no tokenizer.ggml.pre".into()
                } else {
                    format!("tokenizer.ggml.pre {other:?}")
                };
                return Err(Error::Unsupported(format!(
                    "{}: {found}: its rules for splitting text are not known here; convert the \
                     model anew with llama.cpp, or open its Hugging Face directory",
                    gguf.path().display()
                )));
            }
        })
    }
}
