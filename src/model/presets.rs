//! Shapes of well-known long-context models, for runs with random weights: what their `config.json` says that matters to
//! the forward pass.

use super::DecoderConfig;
use crate::{Error, Result};
use std::path::Path;

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("presets/", $name, ".json")))),*]
    };
}

static PRESETS: &[(&str, &str)] = presets![
    "llama-3-8b-262k",
    "llama-3-8b-1m",
    "llama-3.1-8b",
    "yi-6b-200k",
    "yi-9b-200k",
    "glm-4-9b-1m",
    "phi-3-mini-128k",
    "qwen2-7b-128k",
    "qwen2.5-7b-1m",
];

/// The names, in the order of the paper's table.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The config of a name.
///
/// # Errors
/// [`Error::Invalid`] with the names there are.
pub fn config(name: &str) -> Result<DecoderConfig> {
    match PRESETS.iter().find(|(known, _)| *known == name) {
        Some((_, json)) => DecoderConfig::from_json(Path::new(name), json),
        None => {
            let known = names().collect::<Vec<_>>().join(", ");
            Err(Error::invalid(format!("model {name:?}: no such preset; there are {known}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters of the published models, from their cards.
    #[test]
    fn presets_have_the_published_sizes() {
        let billions = |name| config(name).unwrap().parameters() as f64 / 1e9;
        for (name, size) in [
            ("llama-3-8b-262k", 8.03),
            ("llama-3-8b-1m", 8.03),
            ("llama-3.1-8b", 8.03),
            ("yi-6b-200k", 6.06),
            ("yi-9b-200k", 8.83),
            ("glm-4-9b-1m", 9.48),
            ("phi-3-mini-128k", 3.82),
            ("qwen2-7b-128k", 7.62),
            ("qwen2.5-7b-1m", 7.62),
        ] {
            assert!((billions(name) - size).abs() < 0.01, "{name}: {:.3}", billions(name));
        }
        assert_eq!(config("qwen2-7b-128k").unwrap().max_positions, 131_072);
        assert_eq!(config("qwen2.5-7b-1m").unwrap().dual_chunk.unwrap().chunk, 262_144);
        assert!(config("llama").unwrap_err().to_string().contains("phi-3-mini-128k"));
    }
}
