//! The official JSON: a list of layers, each an object of query head -> `[pattern, a, b, score]`.

use super::HeadPattern;
use crate::{Error, Result};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Key blocks that the official code takes for a `block_sparse` head, whatever its numbers are.
const OFFICIAL_TOP_K: usize = 100;

/// The second number by which [`PatternConfig::set`] marks that the first one is the head's own `top_k`: the block size.
const OWN_TOP_K: usize = crate::backend::params::BLOCK;

/// The largest pattern file that is read: 150 times the largest official one.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What the search measured for a head. Never read when a model runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Score {
    /// By inference a count of output elements that differ (two official files).
    Integer(i64),
    /// Recall of the attention scores (the others).
    Float(f64),
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "{value}"),
            // Of two shortest texts for a value, `{value:?}` and Python's `repr` take different ones; this one is Python's.
            Self::Float(value) => Value::from(*value).fmt(f),
        }
    }
}

/// One head of a pattern file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    name: Name,
    a: usize,
    b: usize,
    /// What the search measured.
    pub score: Score,
}

/// Pattern names of the official files; `dense` is ours.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Name {
    VerticalAndSlash,
    StreamLlm,
    BlockSparse,
    Dense,
}

impl Name {
    const ALL: [(Self, &'static str); 4] = [
        (Self::VerticalAndSlash, "vertical_and_slash"),
        (Self::StreamLlm, "stream_llm"),
        (Self::BlockSparse, "block_sparse"),
        (Self::Dense, "dense"),
    ];

    fn text(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

impl Entry {
    /// How the head is sparse.
    pub fn pattern(&self) -> HeadPattern {
        match self.name {
            Name::VerticalAndSlash => HeadPattern::VerticalSlash { columns: self.a, offsets: self.b },
            Name::StreamLlm => HeadPattern::AShape { n_init: self.a, n_local: self.b },
            Name::BlockSparse if self.b == OWN_TOP_K => HeadPattern::BlockSparse { top_k: self.a },
            Name::BlockSparse => HeadPattern::BlockSparse { top_k: OFFICIAL_TOP_K },
            Name::Dense => HeadPattern::Dense,
        }
    }

    fn new(pattern: HeadPattern, score: Score) -> Result<Self> {
        let (name, a, b) = match pattern {
            HeadPattern::Dense => (Name::Dense, 0, 0),
            HeadPattern::AShape { n_init, n_local } => (Name::StreamLlm, n_init, n_local),
            HeadPattern::VerticalSlash { columns, offsets } => (Name::VerticalAndSlash, columns, offsets),
            HeadPattern::BlockSparse { top_k } => (Name::BlockSparse, top_k, OWN_TOP_K),
            other => return Err(Error::invalid(format!("{other} has no place in a pattern file"))),
        };
        Ok(Self { name, a, b, score })
    }

    /// From `[pattern, a, b, score]`.
    fn from_json(value: &Value) -> Result<Self, String> {
        const FORM: &str = "[pattern, a, b, score]";
        let list = value.as_array().ok_or_else(|| format!("expected {FORM}, got {}", excerpt(value)))?;
        let [name, a, b, score] = list.as_slice() else {
            return Err(format!("expected {FORM}, got {} values", list.len()));
        };
        let known = || Name::ALL.map(|(_, text)| text).join(", ");
        let name = Name::ALL
            .iter()
            .find(|(_, text)| name.as_str() == Some(text))
            .ok_or_else(|| format!("pattern: expected one of {}, got {}", known(), excerpt(name)))?
            .0;
        let number = |what: &str, value: &Value| {
            let fits = value.as_u64().filter(|&v| v <= HeadPattern::MAX_ARGUMENT as u64);
            let max = HeadPattern::MAX_ARGUMENT;
            fits.map(|v| v as usize)
                .ok_or_else(|| format!("{what}: expected an integer of 0 to {max}, got {}", excerpt(value)))
        };
        let (a, b) = (number("a", a)?, number("b", b)?);
        let score = match (score.as_i64(), score.as_f64()) {
            (Some(integer), _) => Score::Integer(integer),
            (None, Some(float)) => Score::Float(float),
            (None, None) => return Err(format!("score: expected a number, got {}", excerpt(score))),
        };
        let entry = Self { name, a, b, score };
        entry.pattern().checked().map_err(|e| e.to_string())?;
        Ok(entry)
    }
}

impl fmt::Display for Entry {
    /// As JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[\"{}\", {}, {}, {}]", self.name.text(), self.a, self.b, self.score)
    }
}

/// The start of a value, for messages about hostile input.
fn excerpt(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

/// The pattern of every head of a model, as found offline: reads and writes the official files.
///
/// Names: `vertical_and_slash` (a = columns, b = offsets), `stream_llm` (a = `n_init`, b = `n_local`), `block_sparse`,
/// and, as an addition of this crate that the official loader does not know, `dense` (a, b unused). The official loader
/// ignores a and b of `block_sparse` and takes 100 blocks; so does this one, unless b is 64, the mark of files written
/// here, which makes a the head's own `top_k`. Numbers and scores survive a round trip unchanged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PatternConfig {
    layers: Vec<BTreeMap<usize, Entry>>,
}

impl PatternConfig {
    /// No entries yet.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![BTreeMap::new(); layers] }
    }

    /// From the text of an official file. Errors name layer and head.
    ///
    /// # Errors
    /// [`Error::Invalid`] with layer, head and what was found.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|e| Error::invalid(format!("pattern file: {e}")))
    }

    /// From an official file. Errors name file, layer and head.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] with layer, head and what was found.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = std::fs::File::open(path).map_err(|e| Error::io(path, e))?;
        let bytes = crate::files::read_from(path, file, MAX_FILE_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::file(path, format!("pattern file: {e}")))
    }

    /// As the text of an official file: the layout of Python's `json.dump`, heads in ascending order.
    pub fn to_json(&self) -> String {
        let layers: Vec<String> = self
            .layers
            .iter()
            .map(|heads| {
                let heads: Vec<String> = heads.iter().map(|(head, entry)| format!("\"{head}\": {entry}")).collect();
                format!("{{{}}}", heads.join(", "))
            })
            .collect();
        format!("[{}]\n", layers.join(", "))
    }

    /// Writes [`Self::to_json`], whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        crate::files::write(path, self.to_json().as_bytes())
    }

    /// Only the first `layers` layers, for a model cut to as many.
    pub fn first_layers(mut self, layers: usize) -> Self {
        self.layers.truncate(layers);
        self
    }

    /// Layers in the file.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// One more than the highest head with an entry in any layer.
    pub fn n_heads(&self) -> usize {
        self.layers.iter().filter_map(|heads| heads.last_key_value()).map(|(head, _)| head + 1).max().unwrap_or(0)
    }

    /// What the file says about a head, if anything.
    pub fn entry(&self, layer: usize, head: usize) -> Option<&Entry> {
        self.layers.get(layer)?.get(&head)
    }

    /// The head's pattern; [`HeadPattern::FALLBACK`] where the file has none.
    pub fn pattern(&self, layer: usize, head: usize) -> HeadPattern {
        self.entry(layer, head).map_or(HeadPattern::FALLBACK, Entry::pattern)
    }

    /// Writes a head's entry, adding layers up to it.
    ///
    /// # Errors
    /// As [`HeadPattern::checked`]; [`Error::Invalid`] for a score that is not finite, and for a pattern that the file
    /// has no form for.
    pub fn set(&mut self, layer: usize, head: usize, pattern: HeadPattern, score: Score) -> Result<()> {
        let pattern = pattern.checked()?;
        if matches!(score, Score::Float(x) if !x.is_finite()) {
            return Err(Error::invalid(format!("layer {layer}, head {head}: score: expected a number, got {score:?}")));
        }
        let entry = Entry::new(pattern, score)?;
        if layer >= self.layers.len() {
            self.layers.resize_with(layer + 1, BTreeMap::new);
        }
        self.layers[layer].insert(head, entry);
        Ok(())
    }

    /// That the model has at least the layers and heads of the file.
    ///
    /// # Errors
    /// [`Error::Invalid`] with both numbers where the file has more.
    pub fn check_model(&self, layers: usize, heads: usize) -> Result<()> {
        let (file_layers, file_heads) = (self.n_layers(), self.n_heads());
        if file_layers > layers || file_heads > heads {
            return Err(Error::invalid(format!(
                "pattern file: {file_layers} layers x {file_heads} heads do not fit the model's {layers} x {heads}"
            )));
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for PatternConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Layers)
    }
}

/// Reads the list of layers; the position of an error comes from the parser, layer and head from here.
struct Layers;

impl<'de> Visitor<'de> for Layers {
    type Value = PatternConfig;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list with one object per layer")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<PatternConfig, A::Error> {
        let mut layers: Vec<BTreeMap<usize, Entry>> = Vec::new();
        while let Some(layer) = seq.next_element_seed(Layer { number: layers.len() })? {
            layers.push(layer);
        }
        if layers.is_empty() {
            return Err(A::Error::custom("expected at least one layer, got an empty list"));
        }
        Ok(PatternConfig { layers })
    }
}

/// Reads the heads of one layer. A map visitor instead of a `Value`, which would silently drop a head given twice.
struct Layer {
    number: usize,
}

impl<'de> serde::de::DeserializeSeed<'de> for Layer {
    type Value = BTreeMap<usize, Entry>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Layer {
    type Value = BTreeMap<usize, Entry>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "layer {}: an object of head -> [pattern, a, b, score]", self.number)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let layer = self.number;
        let mut heads = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            let head = key.parse::<usize>().ok().filter(|h| h.to_string() == key && *h <= u16::MAX as usize);
            let head = head.ok_or_else(|| {
                A::Error::custom(format!("layer {layer}: expected a head number as key, got {key:?}"))
            })?;
            let value = map.next_value::<Value>()?;
            let entry =
                Entry::from_json(&value).map_err(|e| A::Error::custom(format!("layer {layer}, head {head}: {e}")))?;
            if heads.insert(head, entry).is_some() {
                return Err(A::Error::custom(format!("layer {layer}, head {head}: given twice")));
            }
        }
        Ok(heads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        PatternConfig::from_json(json).expect_err(json).to_string()
    }

    #[test]
    fn scores_keep_their_kind_and_value() {
        let json = "[{\"0\": [\"vertical_and_slash\", 30, 800, 14994473], \"7\": [\"stream_llm\", 100, 800, \
                    0.607320249080658]}, {\"1\": [\"block_sparse\", 100, 1, 1.0]}]\n";
        let config = PatternConfig::from_json(json).unwrap();
        assert_eq!(config.entry(0, 0).unwrap().score, Score::Integer(14994473));
        assert_eq!(config.entry(0, 7).unwrap().score, Score::Float(0.607320249080658));
        assert_eq!(config.entry(1, 1).unwrap().score, Score::Float(1.0));
        assert_eq!(config.to_json(), json);
        assert_eq!((config.n_layers(), config.n_heads()), (2, 8));
    }

    #[test]
    fn official_block_sparse_takes_100_blocks_and_ours_its_own() {
        let config =
            PatternConfig::from_json(r#"[{"0": ["block_sparse", 1000, 6096, 1], "1": ["block_sparse", 7, 64, 1]}]"#);
        let config = config.unwrap();
        assert_eq!(config.pattern(0, 0), HeadPattern::BlockSparse { top_k: 100 });
        assert_eq!(config.pattern(0, 1), HeadPattern::BlockSparse { top_k: 7 });
        assert!(config.to_json().contains("[\"block_sparse\", 1000, 6096, 1]"));
    }

    #[test]
    fn set_and_read_back() {
        let patterns =
            ["dense", "a_shape:0:64", "vertical_slash:500:700", "block_sparse:12"].map(|p| p.parse().unwrap());
        let mut config = PatternConfig::new(1);
        for (head, pattern) in patterns.into_iter().enumerate() {
            config.set(2, head, pattern, Score::Float(0.25)).unwrap();
        }
        assert!(config.set(2, 0, patterns[0], Score::Float(f64::NAN)).is_err());
        assert!(config.set(2, 0, HeadPattern::BlockSparse { top_k: 0 }, Score::Integer(1)).is_err());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("patterns.json");
        config.write(&path).unwrap();
        let back = PatternConfig::read(&path).unwrap();
        assert_eq!(back, config);
        assert_eq!((0..4).map(|h| back.pattern(2, h)).collect::<Vec<_>>(), patterns);
        assert_eq!(back.pattern(0, 0), HeadPattern::FALLBACK);
        assert_eq!(back.pattern(9, 9), HeadPattern::FALLBACK);
    }

    #[test]
    fn a_file_larger_than_the_model_is_refused_with_both_sizes() {
        let mut config = PatternConfig::new(28);
        config.set(27, 27, HeadPattern::Dense, Score::Integer(0)).unwrap();
        assert!(config.check_model(28, 28).is_ok());
        assert!(config.check_model(30, 32).is_ok());
        for (layers, heads) in [(28, 12), (27, 28)] {
            let error = config.check_model(layers, heads).unwrap_err().to_string();
            assert!(
                error.contains("28 layers x 28 heads") && error.contains(&format!("{layers} x {heads}")),
                "{error}"
            );
        }
    }

    #[test]
    fn hostile_files_get_one_clear_line() {
        for (json, parts) in [
            ("", &["EOF"][..]),
            ("[]", &["at least one layer"]),
            ("{}", &["a list with one object per layer"]),
            ("[{}, 5]", &["layer 1", "an object"]),
            ("[{\"0\": [\"stream_llm\", 1, 1, 1]", &["line 1"]),
            (r#"[{}, {"x": 1}]"#, &["layer 1", "\"x\""]),
            (r#"[{"-1": 1}]"#, &["layer 0", "\"-1\""]),
            (r#"[{"00": 1}]"#, &["layer 0", "\"00\""]),
            (r#"[{"99999999": ["stream_llm", 1, 1, 1]}]"#, &["layer 0", "\"99999999\""]),
            (r#"[{"3": 1}]"#, &["layer 0, head 3", "[pattern, a, b, score]", "got 1"]),
            (r#"[{"3": ["stream_llm", 1, 1]}]"#, &["layer 0, head 3", "got 3 values"]),
            (r#"[{"3": ["foo", 1, 1, 1]}]"#, &["layer 0, head 3", "vertical_and_slash, stream_llm", "\"foo\""]),
            (r#"[{"3": [7, 1, 1, 1]}]"#, &["layer 0, head 3", "got 7"]),
            (r#"[{"3": ["stream_llm", -1, 1, 1]}]"#, &["layer 0, head 3", "a: ", "got -1"]),
            (r#"[{"3": ["stream_llm", 1, 1.5, 1]}]"#, &["layer 0, head 3", "b: ", "got 1.5"]),
            (r#"[{"3": ["stream_llm", 1, 1e30, 1]}]"#, &["layer 0, head 3", "b: ", "16777216"]),
            (r#"[{"3": ["stream_llm", 1, 0, 1]}]"#, &["layer 0, head 3", "n_local", "got 0"]),
            (r#"[{"3": ["stream_llm", 1, 1, "x"]}]"#, &["layer 0, head 3", "score", "\"x\""]),
            (r#"[{"3": ["stream_llm", 1, 1, NaN]}]"#, &["line 1"]),
            (r#"[{"3": ["stream_llm", 1, 1, 1], "3": ["stream_llm", 1, 1, 1]}]"#, &["layer 0, head 3", "twice"]),
        ] {
            let error = error(json);
            assert!(parts.iter().all(|part| error.contains(part)), "{json}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let deep = format!("[{{\"0\": {}", "[".repeat(100_000));
        assert!(error(&deep).contains("recursion limit"), "{}", error(&deep));
        let long = format!("[{{\"0\": \"{}\"}}]", "x".repeat(100_000));
        assert!(error(&long).len() < 300);
    }
}
