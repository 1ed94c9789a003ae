//! Typed reading of a JSON object, where every error names the file, the field and both values.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The fields of one object of a file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    /// The file, for errors.
    pub path: &'a Path,
    /// What stands before a key in an error: `rope_scaling.` or a GGUF architecture and a dot.
    pub prefix: &'a str,
    /// The object.
    pub object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// A complaint about one field.
    pub fn error(&self, key: &str, expected: &str, got: impl std::fmt::Display) -> Error {
        Error::file(self.path, format!("{}{key}: expected {expected}, found {got}", self.prefix))
    }

    /// The value, with `null` as missing.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(&self, key: &str, expected: &str, convert: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| self.error(key, expected, shorten(value))),
        }
    }

    /// A count. Whole floats are read too: some tools write 4096.0.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number of at least 0", |v| {
            let from_float = || v.as_f64().filter(|f| *f >= 0.0 && f.fract() == 0.0 && *f < 1e15).map(|f| f as u64);
            v.as_u64().or_else(from_float).and_then(|n| usize::try_from(n).ok())
        })
    }

    /// A count that must be there, within bounds.
    pub fn required_count(&self, key: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize> {
        let expected = || format!("a whole number from {} to {}", range.start(), range.end());
        let value = self.count(key)?.ok_or_else(|| self.error(key, &expected(), "nothing"))?;
        if range.contains(&value) { Ok(value) } else { Err(self.error(key, &expected(), value)) }
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a finite number", |v| v.as_f64().filter(|f| f.is_finite()))
    }

    /// A number that must be there and positive.
    pub fn required_positive(&self, key: &str) -> Result<f64> {
        let value = self.number(key)?.ok_or_else(|| self.error(key, "a positive number", "nothing"))?;
        if value > 0.0 { Ok(value) } else { Err(self.error(key, "a positive number", value)) }
    }

    /// A yes or no.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// A list of positive numbers.
    pub fn positives(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "a list of positive numbers", |v| {
            v.as_array()?.iter().map(|x| x.as_f64().filter(|f| *f > 0.0 && f.is_finite())).collect()
        })
    }

    /// One token id or a list of them.
    pub fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = self.typed(key, "a token id or a list of them", |v| match v.as_array() {
            Some(list) => list.iter().map(id).collect(),
            None => id(v).map(|one| vec![one]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// An object within.
    pub fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.typed(key, "an object", Value::as_object)
    }
}

/// A value as an error shows it: whole where short.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
