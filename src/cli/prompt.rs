//! Prompts from files: text, or token ids.

use crate::{Error, Result, files};
use std::path::Path;

/// The text of a file, or of standard input for `-`.
pub fn read_prompt(path: &Path) -> Result<String> {
    let bytes = match path == Path::new("-") {
        true => files::read_from(path, std::io::stdin(), files::MOST)?,
        false => files::read(path)?,
    };
    files::utf8(path, bytes)
}

/// A JSON list of ids below the vocabulary's size.
pub fn read_ids(path: &Path, vocab: usize) -> Result<Vec<u32>> {
    let text = files::read(path)?;
    let list: Vec<serde_json::Value> = serde_json::from_slice(&text)
        .map_err(|e| Error::file(path, format!("expected a JSON list of token ids: {e}")))?;
    if list.is_empty() {
        return Err(Error::file(path, "the prompt is empty: expected at least one token id, found 0"));
    }
    let id = |(at, value): (usize, &serde_json::Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab);
        id.ok_or_else(|| {
            Error::file(path, format!("token {at}: expected an id from 0 to {}, found {value}", vocab - 1))
        })
    };
    list.iter().enumerate().map(id).collect()
}
