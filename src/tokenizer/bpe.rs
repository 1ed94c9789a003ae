//! What byte-pair encodings from different files have in common.

use super::{base64, charsmap};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use tokenizers::models::bpe::BPE;

/// A pair of tokens that become one.
pub(super) type Merge = (String, String);

/// Splitting as GPT-4 does it, with `digits` for runs of numbers. Llama 3 and GLM-4 take one to three digits at a time,
/// Qwen2 one.
pub(super) fn gpt4_split(digits: &str) -> String {
    format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// A splitter that cuts by each pattern in turn and keeps what it matches as pieces, then maps bytes to characters.
pub(super) fn byte_level_split(patterns: &[String]) -> Value {
    let splits = patterns
        .iter()
        .map(|p| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false}));
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({"type": "Sequence", "pretokenizers": splits.chain([bytes]).collect::<Vec<_>>()})
}

/// The inverse of the byte mapping.
pub(super) fn byte_level_decoder() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false})
}

/// The character that stands for a byte in byte-level vocabularies (GPT-2's `bytes_to_unicode`): printable Latin-1
/// stands for itself, the other 68 bytes for U+0100 and up in order.
pub(super) fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return byte.into();
    }
    let nth = (0..byte).filter(|&b| !printable(b)).count() as u32;
    // 256 + 67 at most, which is a letter.
    char::from_u32(256 + nth).unwrap_or_default()
}

/// All ways to make each token from two others, best tokens first.
///
/// Files that rank tokens instead of merges (tiktoken, SentencePiece) join, at every step, the neighbours whose union
/// ranks best. As a merge list that is every split of every token into two of the vocabulary, ordered by the token's
/// rank; within a token by the ids of the halves, as Hugging Face's converters do.
pub(super) fn merges_by_rank<'a>(ranked: impl IntoIterator<Item = &'a str>, ids: &HashMap<&str, u32>) -> Vec<Merge> {
    let mut merges = Vec::new();
    for token in ranked {
        let mut splits: Vec<_> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = token.split_at(at);
                Some((ids.get(left)?, ids.get(right)?, left, right))
            })
            .collect();
        splits.sort_unstable();
        merges.extend(splits.into_iter().map(|(_, _, left, right)| (left.to_owned(), right.to_owned())));
    }
    merges
}

/// A byte-pair model over `tokens`, whose places are their ids.
pub(super) fn model(
    path: &Path,
    tokens: &[String],
    merges: Vec<Merge>,
    settings: impl FnOnce(tokenizers::models::bpe::BpeBuilder) -> tokenizers::models::bpe::BpeBuilder,
) -> Result<BPE> {
    let ids: HashMap<&str, u32> = tokens.iter().zip(0..).map(|(t, id)| (t.as_str(), id)).collect();
    check_merges(path, |t| ids.contains_key(t), "", merges.iter().map(|(a, b)| (a.as_str(), b.as_str())))?;
    let vocab: tokenizers::models::bpe::Vocab = tokens.iter().cloned().zip(0..).collect();
    settings(BPE::builder().vocab_and_merges(vocab, merges)).build().map_err(|e| Error::file(path, e.to_string()))
}

/// Refuses merges of unknown tokens or into unknown tokens. `tokenizers` 0.23 refuses the first kind itself but panics
/// on some of the second (a union longer than every token).
fn check_merges<'a>(
    path: &Path,
    known: impl Fn(&str) -> bool,
    prefix: &str,
    merges: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<()> {
    for (i, (left, right)) in merges.enumerate() {
        let union = right.strip_prefix(prefix).map(|rest| format!("{left}{rest}"));
        let unknown = [Some(left), Some(right), union.as_deref()].into_iter().find(|t| !t.is_some_and(&known));
        if let Some(token) = unknown {
            let token = token.unwrap_or(right);
            return Err(Error::file(
                path,
                format!("merge {i} ({left:?}, {right:?}): {token:?} is not in the vocabulary"),
            ));
        }
    }
    Ok(())
}

/// Checks what `tokenizers` 0.23 takes for granted in a `tokenizer.json`, where it panics otherwise: that all of it is
/// JSON, its merges, and its character maps.
pub(super) fn check_json(path: &Path, bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct File<'a> {
        #[serde(borrow)]
        model: Model<'a>,
        /// The small parts: read whole, so that errors within them come up here.
        #[serde(flatten)]
        parts: HashMap<Cow<'a, str>, Value>,
    }
    #[derive(Deserialize)]
    struct Model<'a> {
        #[serde(borrow, default)]
        merges: Vec<MergeText<'a>>,
        #[serde(default)]
        continuing_subword_prefix: Option<String>,
        #[serde(borrow, default)]
        vocab: Vocab<'a>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum MergeText<'a> {
        Pair(#[serde(borrow)] Cow<'a, str>, #[serde(borrow)] Cow<'a, str>),
        Line(#[serde(borrow)] Cow<'a, str>),
    }
    /// A map of tokens to ids, or Unigram's list of tokens and scores, which has no merges to check.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Vocab<'a> {
        Ids(#[serde(borrow)] HashMap<Cow<'a, str>, serde::de::IgnoredAny>),
        Scores(serde::de::IgnoredAny),
    }
    impl Default for Vocab<'_> {
        fn default() -> Self {
            Self::Scores(serde::de::IgnoredAny)
        }
    }
    let file: File = serde_json::from_slice(bytes).map_err(|e| Error::file(path, e.to_string()))?;
    file.parts.get("normalizer").map_or(Ok(()), check_normalizer).map_err(|e| Error::file(path, e))?;
    let Vocab::Ids(ids) = &file.model.vocab else { return Ok(()) };
    let prefix = file.model.continuing_subword_prefix.as_deref().unwrap_or("");
    let merges = file.model.merges.iter().map(|merge| match merge {
        MergeText::Pair(left, right) => (left.as_ref(), right.as_ref()),
        MergeText::Line(line) => line.split_once(' ').unwrap_or((line, "")),
    });
    check_merges(path, |t| ids.contains_key(t), prefix, merges)
}

/// Whether a pattern finds nothing between two characters of a text.
fn matches_nothing(pattern: &str) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let pattern = tokenizers::utils::SysRegex::new(pattern)?;
    let found = pattern.find_iter("aa").any(|(start, end)| (start, end) == (1, 1));
    Ok(found)
}

/// Checks a normaliser, or those in a sequence: its character map, and that it puts in and looks for something. `tokenizers`
/// 0.23 loses count of its characters where nothing is put before a text, or something between all characters of it.
fn check_normalizer(normalizer: &Value) -> Result<(), String> {
    if normalizer.get("prepend").is_some_and(|text| text == "") {
        return Err("normalizer: prepend: expected some text, found \"\"".into());
    }
    if let Some(pattern) = normalizer["pattern"]["Regex"].as_str()
        && matches_nothing(pattern).map_err(|e| format!("normalizer: {pattern:?}: {e}"))?
    {
        return Err(format!("normalizer: pattern {pattern:?} matches between any two characters"));
    }
    if let Some(map) = normalizer.get("precompiled_charsmap") {
        let map = map.as_str().and_then(base64::decode).ok_or("precompiled_charsmap: expected base64")?;
        charsmap::check(&map)?;
    }
    normalizer["normalizers"].as_array().into_iter().flatten().try_for_each(check_normalizer)
}
