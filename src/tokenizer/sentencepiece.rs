//! SentencePiece models: the protobuf file `tokenizer.model`, and the same pieces in GGUF metadata.
//!
//! Reference: `sentencepiece_model.proto` of SentencePiece 0.2, and `SpmConverter` of transformers for how its rules
//! are said in the terms of `tokenizers`.

use super::{Added, Config, Tokenizer, assemble, base64, bpe, charsmap};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::models::unigram::Unigram;

/// What stands for a space.
const SPACE: char = '\u{2581}';

/// `SentencePiece.Type`, which GGUF's `tokenizer.ggml.token_type` repeats.
pub(super) mod kind {
    pub const NORMAL: i64 = 1;
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const BYTE: i64 = 6;
}

/// A SentencePiece model, wherever it was read from.
pub(super) struct Pieces {
    /// Text, score and kind of each id.
    pub pieces: Vec<(String, f32, i64)>,
    /// Unigram language model; otherwise byte-pair encoding.
    pub unigram: bool,
    /// A space before the text, so that its first word is like the others.
    pub add_dummy_prefix: bool,
    /// That space before the whole text only, not after every special token.
    pub prefix_first_only: bool,
    /// Leading, trailing and repeated spaces go.
    pub remove_extra_whitespaces: bool,
    /// Compiled character replacements (NFKC and the like); empty for none.
    pub charsmap: Vec<u8>,
}

impl Pieces {
    /// The tokenizer of these pieces, with tokens that are matched before all else.
    pub fn build(
        self,
        path: &Path,
        added: impl IntoIterator<Item = tokenizers::AddedToken>,
    ) -> Result<tokenizers::Tokenizer> {
        let parts = self.parts();
        let byte_fallback = self.pieces.iter().any(|p| p.2 == kind::BYTE);
        let unknown = self.pieces.iter().position(|p| p.2 == kind::UNKNOWN);
        if self.unigram {
            if !byte_fallback && unknown.is_none() {
                return Err(Error::file(path, "tokenizer: neither an unknown piece nor byte pieces"));
            }
            let scores = self.pieces.into_iter().map(|(text, score, _)| (text, score.into())).collect();
            let model = Unigram::from(scores, unknown, byte_fallback).map_err(|e| Error::file(path, e.to_string()))?;
            return assemble(path, model, parts, added);
        }
        // Only these can come from text; a control token is made from its own name alone.
        let usable = |k: i64| matches!(k, kind::NORMAL | kind::USER_DEFINED);
        let mut ranked: Vec<_> = self.pieces.iter().filter(|p| usable(p.2)).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let ids: HashMap<&str, u32> =
            self.pieces.iter().zip(0..).filter(|(p, _)| usable(p.2)).map(|(p, id)| (p.0.as_str(), id)).collect();
        let merges = bpe::merges_by_rank(ranked.into_iter().map(|p| p.0.as_str()), &ids);
        let tokens: Vec<String> = self.pieces.into_iter().map(|p| p.0).collect();
        let model = bpe::model(path, &tokens, merges, |builder| {
            let builder = builder.byte_fallback(byte_fallback).fuse_unk(true);
            match unknown {
                Some(id) => builder.unk_token(tokens[id].clone()),
                None => builder,
            }
        })?;
        assemble(path, model, parts, added)
    }

    /// Normaliser, splitter and decoder as `tokenizer.json` writes them.
    fn parts(&self) -> Value {
        let space = SPACE.to_string();
        let mut steps = Vec::new();
        if !self.charsmap.is_empty() {
            steps.push(json!({"type": "Precompiled", "precompiled_charsmap": base64::encode(&self.charsmap)}));
        }
        if self.remove_extra_whitespaces {
            steps.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
            steps.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
        }
        let mut splitter = Value::Null;
        if self.prefix_first_only && self.add_dummy_prefix {
            splitter = json!({"type": "Metaspace", "replacement": space, "prepend_scheme": "first", "split": false});
        } else {
            if self.add_dummy_prefix {
                steps.push(json!({"type": "Prepend", "prepend": space}));
            }
            steps.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": space}));
        }
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": space}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.add_dummy_prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json!({
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": splitter,
            "decoder": {"type": "Sequence", "decoders": decoders},
        })
    }

    /// Control pieces, which are special, and user-defined ones, which are matched before all else.
    pub fn added(&self) -> Vec<Added> {
        let wanted = self.pieces.iter().filter(|p| matches!(p.2, kind::CONTROL | kind::USER_DEFINED | kind::UNKNOWN));
        wanted
            .map(|(text, _, k)| Added {
                content: text.clone(),
                special: *k != kind::USER_DEFINED,
                lstrip: false,
                rstrip: false,
            })
            .collect()
    }
}

pub(super) fn tokenizer(path: &Path, bytes: &[u8], config: &Config) -> Result<Tokenizer> {
    let mut pieces = parse(bytes).map_err(|what| Error::file(path, format!("as a SentencePiece model: {what}")))?;
    pieces.prefix_first_only = config.legacy == Some(false);
    let mut added: Vec<_> = pieces.added().iter().map(Added::token).collect();
    // The configuration may add tokens past the end, or give flags (Phi-3's `rstrip`) to those of the file.
    for (&id, token) in &config.added {
        match pieces.pieces.get(id as usize) {
            Some((text, ..)) if *text == token.content => {}
            Some((text, ..)) => {
                let what = format!("added_tokens_decoder {id}: expected {text:?}, found {:?}", token.content);
                return Err(Error::file(&config.path, what));
            }
            None if id as usize == pieces.pieces.len() => {
                pieces.pieces.push((token.content.clone(), 0.0, kind::CONTROL));
            }
            None => {
                let what = format!("added_tokens_decoder {id}: expected id {}", pieces.pieces.len());
                return Err(Error::file(&config.path, what));
            }
        }
        added.retain(|a| a.content != token.content);
        added.push(token.token());
    }
    let texts: Vec<&str> = pieces.pieces.iter().map(|p| p.0.as_str()).collect();
    super::check_unique(path, &texts)?;
    let inner = pieces.build(path, added)?;
    Tokenizer { inner, around: None, bos: None, eos: Vec::new() }.with_config(config)
}

/// A protobuf field's value, as far as its wire type tells.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
    Fixed64,
}

/// The fields of a protobuf message, in order.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Field<'_>), String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = field(&mut bytes);
        if field.is_err() {
            bytes = &[];
        }
        Some(field)
    })
}

fn field<'a>(bytes: &mut &'a [u8]) -> Result<(u64, Field<'a>), String> {
    let cut = || "cut short".to_owned();
    let tag = varint(bytes).ok_or_else(cut)?;
    let value = match tag & 7 {
        0 => Field::Number(varint(bytes).ok_or_else(cut)?),
        1 => {
            bytes.split_off(..8).ok_or_else(cut)?;
            Field::Fixed64
        }
        2 => {
            let len = usize::try_from(varint(bytes).ok_or_else(cut)?).map_err(|_| cut())?;
            Field::Bytes(bytes.split_off(..len).ok_or_else(cut)?)
        }
        5 => Field::Fixed32(bytes.split_off(..4).and_then(|b| b.try_into().ok()).ok_or_else(cut)?),
        other => return Err(format!("field {}: wire type {other}", tag >> 3)),
    };
    Ok((tag >> 3, value))
}

/// A number of up to ten bytes, seven bits in each.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 127).checked_shl(shift).unwrap_or(0);
        if byte < 128 {
            return Some(value);
        }
    }
    None
}

/// Reads `ModelProto`.
fn parse(bytes: &[u8]) -> Result<Pieces, String> {
    // Defaults are the proto's.
    let mut model = Pieces {
        pieces: Vec::new(),
        unigram: true,
        add_dummy_prefix: true,
        prefix_first_only: false,
        remove_extra_whitespaces: true,
        charsmap: Vec::new(),
    };
    for field in fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => {
                let piece = parse_piece(piece).map_err(|e| format!("piece {}: {e}", model.pieces.len()))?;
                model.pieces.push(piece);
            }
            (2, Field::Bytes(trainer)) => {
                for field in fields(trainer) {
                    match field? {
                        (3, Field::Number(1)) => model.unigram = true,
                        (3, Field::Number(2)) => model.unigram = false,
                        (3, Field::Number(other)) => return Err(format!("model type {other}: expected 1 or 2")),
                        (24, Field::Number(1)) => return Err("spaces as suffixes are not supported".into()),
                        _ => {}
                    }
                }
            }
            (3, Field::Bytes(normalizer)) => {
                for field in fields(normalizer) {
                    match field? {
                        (2, Field::Bytes(map)) => model.charsmap = map.to_vec(),
                        (3, Field::Number(x)) => model.add_dummy_prefix = x != 0,
                        (4, Field::Number(x)) => model.remove_extra_whitespaces = x != 0,
                        (5, Field::Number(0)) => return Err("unescaped spaces are not supported".into()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if model.pieces.is_empty() {
        return Err("no pieces in it".into());
    }
    if !model.charsmap.is_empty() {
        charsmap::check(&model.charsmap)?;
    }
    Ok(model)
}

fn parse_piece(bytes: &[u8]) -> Result<(String, f32, i64), String> {
    let mut piece = (String::new(), 0.0, kind::NORMAL);
    for field in fields(bytes) {
        match field? {
            (1, Field::Bytes(text)) => piece.0 = String::from_utf8(text.to_vec()).map_err(|e| e.to_string())?,
            (2, Field::Fixed32(score)) => piece.1 = f32::from_le_bytes(score),
            (3, Field::Number(kind)) => piece.2 = i64::try_from(kind).unwrap_or(0),
            _ => {}
        }
    }
    Ok(piece)
}
