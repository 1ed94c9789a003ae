//! The needle model inside the binary: 3.8M parameters that retrieve a planted fact over 131,072 tokens.
//!
//! `--model needle` and `examples/needle` use it, so that both work offline. How it was made and what it can do is in
//! `examples/needle/model/README.md`.

use crate::Result;
use crate::model::Model;
use crate::text::Text;
use crate::tokenizer::Tokenizer;
use std::path::Path;

/// *Northanger Abbey*, one paragraph a line. The model never saw it in training.
pub const NOVEL: &str = include_str!("../examples/needle/northanger_abbey.txt");

/// f16, 7.6 MB.
const WEIGHTS: &[u8] = include_bytes!("../examples/needle/model/model.safetensors");
const CONFIG: &str = include_str!("../examples/needle/model/config.json");
const TOKENIZER: &[u8] = include_bytes!("../examples/needle/model/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../examples/needle/model/tokenizer_config.json");

/// The model and its tokenizer; it has no chat template.
///
/// # Errors
/// None but a lack of memory: the files are those of the build.
pub fn needle() -> Result<Model> {
    let tokenizer = Tokenizer::from_bytes(Path::new("needle/tokenizer.json"), TOKENIZER, Some(TOKENIZER_CONFIG))?;
    Ok(Model::from_parts("needle", CONFIG, WEIGHTS)?.with_text(Ok(Text::new(tokenizer))))
}
