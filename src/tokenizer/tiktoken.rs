//! `tokenizer.model` as tiktoken writes it: a base64 token and its rank on each line. GLM-4's original repository has
//! this; its special tokens are in `tokenizer_config.json`.

use super::{Config, Tokenizer, assemble, base64, bpe};
use crate::{Error, Result};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;

/// Whether the first line is base64, a space and a number. SentencePiece files begin with a protobuf tag instead.
pub(super) fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    parse_line(line).is_some()
}

pub(super) fn tokenizer(path: &Path, bytes: &[u8], config: &Config) -> Result<Tokenizer> {
    if config.added.is_empty() {
        return Err(Error::file(
            path,
            "tiktoken ranks without special tokens: added_tokens_decoder of tokenizer_config.json is missing, get that \
             file from the same repository",
        ));
    }
    let mut tokens = Vec::new();
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let (token, rank) =
            parse_line(line).ok_or_else(|| Error::file(path, format!("line {}: expected base64 and a rank", i + 1)))?;
        if rank as usize != tokens.len() {
            return Err(Error::file(path, format!("line {}: expected rank {}, found {rank}", i + 1, tokens.len())));
        }
        tokens.push(token.into_iter().map(bpe::byte_char).collect::<String>());
    }
    let ranked = tokens.len();
    for (id, added) in &config.added {
        if *id as usize != tokens.len() {
            let what = format!("added_tokens_decoder {id} ({:?}): expected id {}", added.content, tokens.len());
            return Err(Error::file(&config.path, what));
        }
        tokens.push(added.content.clone());
    }
    super::check_unique(path, &tokens)?;
    let ids: HashMap<&str, u32> = tokens[..ranked].iter().zip(0..).map(|(t, id)| (t.as_str(), id)).collect();
    let merges = bpe::merges_by_rank(tokens[..ranked].iter().map(String::as_str), &ids);
    // tiktoken looks a whole piece up before it merges anything.
    let model = bpe::model(path, &tokens, merges, |builder| builder.ignore_merges(true))?;
    let parts = json!({
        "pre_tokenizer": bpe::byte_level_split(&[bpe::gpt4_split(r"\p{N}{1,3}")]),
        "decoder": bpe::byte_level_decoder(),
    });
    let inner = assemble(path, model, parts, config.added.values().map(super::Added::token))?;
    let mut tokenizer = Tokenizer { inner, around: None, bos: None, eos: Vec::new() }.with_config(config)?;
    // GLM-4's own class puts these two before every text (`get_prefix_tokens`).
    let prefix = ["[gMASK]", "<sop>"].map(|t| tokenizer.inner.token_to_id(t)).into_iter().collect::<Option<Vec<_>>>();
    tokenizer.around = tokenizer.around.or(prefix.map(|prefix| (prefix, Vec::new())));
    Ok(tokenizer)
}

fn parse_line(line: &[u8]) -> Option<(Vec<u8>, u32)> {
    let line = std::str::from_utf8(line).ok()?.trim_end();
    let (token, rank) = line.split_once(' ')?;
    Some((base64::decode(token).filter(|t| !t.is_empty())?, rank.parse().ok()?))
}
