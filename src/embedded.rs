//! The needle model inside the binary: 3.8M parameters that retrieve a planted fact over 131,072 tokens.
//!
//! `--model needle` and `examples/needle` use it, so that both work offline. How it was made and what it can do is in
//! `examples/needle/model/README.md`.

/// `config.json`.
pub const CONFIG: &str = include_str!("../examples/needle/model/config.json");
/// `model.safetensors`, f16, 7.6 MB.
pub const WEIGHTS: &[u8] = include_bytes!("../examples/needle/model/model.safetensors");
/// `tokenizer.json`: byte-level BPE, 4096 tokens, every digit its own.
pub const TOKENIZER: &str = include_str!("../examples/needle/model/tokenizer.json");
/// `tokenizer_config.json`.
pub const TOKENIZER_CONFIG: &str = include_str!("../examples/needle/model/tokenizer_config.json");
/// *Northanger Abbey*, one paragraph a line. The model never saw it in training.
pub const NOVEL: &str = include_str!("../examples/needle/northanger_abbey.txt");
