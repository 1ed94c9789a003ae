//! Decoders of the Llama kind on any backend.
//!
//! Families are data: [`family`] holds their configuration keys, tensor names and switches, [`DecoderConfig`] what a
//! checkpoint says, and [`decoder`] the one forward pass that serves them all. A new family of this kind is a row of
//! [`family::FAMILIES`].

pub mod config;
pub mod decoder;
pub mod family;
mod fields;
mod gguf;
pub mod kv_cache;
pub mod load;
pub mod presets;
pub mod rope;

pub use config::{DecoderConfig, DualChunk};
pub use decoder::{AttentionCall, Chunk, Decoder, Watch, Workspace};
pub use kv_cache::{KvCache, KvPlace};

use crate::backend::Backend;
use crate::text::Text;
use crate::weights::{Bytes, TensorInfo, WeightFile};
use crate::{DType, Error, Result};
use family::Names;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where weights come from.
#[expect(clippy::large_enum_variant, reason = "there is one of them to a model")]
pub enum Weights {
    /// Files, mapped into memory.
    File(WeightFile),
    /// Made up tensor by tensor as they are uploaded: latency runs of any shape without a checkpoint. The same seed gives
    /// the same weights.
    Random {
        /// How matrices are stored. Rows that are no whole number of its blocks are kept in Q8_0.
        dtype: DType,
        /// Chooses the weights.
        seed: u64,
    },
}

impl Weights {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::File(file) => file.info(name).is_some(),
            Self::Random { .. } => true,
        }
    }
}

/// A checkpoint: what it is, and where its weights are.
pub struct Model {
    /// For people: the directory or file it came from.
    pub name: String,
    /// What it is.
    pub config: DecoderConfig,
    /// Where its weights are.
    pub weights: Weights,
    /// Ids that end an answer, from every file that states some.
    pub eos: Vec<u32>,
    names: &'static Names,
    /// Tokenizer and chat template, or why there are none: a prompt of token ids needs none. Shared, because an answer is
    /// decoded while the engine, which owns the model, generates it.
    text: Result<Arc<Text>, String>,
}

impl Model {
    /// Opens a directory with `config.json` and `*.safetensors`, a `.gguf` file, or a directory with one `.gguf` file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let config_path = path.join("config.json");
        let name = file_name(path);
        if !config_path.is_file() {
            let file = WeightFile::open(path)?;
            return match file.gguf() {
                Some(metadata) => {
                    let config = gguf::read(&file, metadata)?;
                    let text = Text::from_gguf(metadata);
                    let model = Self::new(name, config, Weights::File(file), &family::GGUF_NAMES);
                    Ok(model.with_text(text))
                }
                None if path.is_dir() => Err(Error::file(config_path, "not there, and no .gguf file beside it")),
                None => Err(Error::file(path, "expected a .gguf file or the directory of a checkpoint")),
            };
        }
        let config = DecoderConfig::from_json(&config_path, &read_text(&config_path)?)?;
        let names = config.family.names;
        let mut model = Self::new(name, config, Weights::File(WeightFile::open(path)?), names);
        let generation = path.join("generation_config.json");
        if generation.is_file() {
            model.add_eos(&config::eos_of(&generation, &read_text(&generation)?)?);
        }
        Ok(model.with_text(Text::from_dir(path)))
    }

    /// A checkpoint in memory: the text of its `config.json` and the bytes of its `.safetensors` file. It has no tokenizer
    /// until [`Model::with_text`].
    pub fn from_parts(name: &str, config_json: &str, weights: impl Into<Bytes>) -> Result<Self> {
        let config = DecoderConfig::from_json(&PathBuf::from(format!("{name}/config.json")), config_json)?;
        let weights = WeightFile::from_bytes(format!("{name}/model.safetensors"), weights)?;
        let names = config.family.names;
        Ok(Self::new(name.into(), config, Weights::File(weights), names))
    }

    /// A model of this shape with random weights.
    pub fn random(name: &str, config: DecoderConfig, dtype: DType, seed: u64) -> Self {
        let names = config.family.names;
        Self::new(name.into(), config, Weights::Random { dtype, seed }, names)
    }

    fn new(name: String, config: DecoderConfig, weights: Weights, names: &'static Names) -> Self {
        let text = Err(format!("{name}: no tokenizer was given"));
        Self { name, eos: config.eos.clone(), config, weights, names, text }
    }

    /// With this tokenizer and chat template, or the reason why there are none, and with the end tokens that it knows.
    pub fn with_text(mut self, text: Result<Text>) -> Self {
        if let Ok(text) = &text {
            self.add_eos(text.tokenizer.eos());
        }
        self.text = text.map(Arc::new).map_err(|e| e.to_string());
        self
    }

    /// Its tokenizer and chat template.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the reason why there are none.
    pub fn text(&self) -> Result<&Arc<Text>> {
        self.text.as_ref().map_err(Error::invalid)
    }

    /// What its tensors are called.
    pub fn names(&self) -> &'static Names {
        self.names
    }

    /// Bytes of all weights as a backend keeps them: types that it does not take become f16, or f32 where it takes no f16.
    pub fn weight_bytes<B: Backend>(&self, backend: &B) -> u64 {
        let other = load::stand_in(backend, 1.0);
        let kept = |dtype: DType| if backend.accepts_weight(dtype) { dtype } else { other };
        match &self.weights {
            Weights::Random { dtype, .. } => kept(*dtype).bytes(self.config.parameters() as usize) as u64,
            Weights::File(file) => {
                let of = |info: &TensorInfo| match info.shape.len() {
                    0 | 1 => DType::F32.bytes(info.elements()) as u64,
                    _ => kept(info.dtype).bytes(info.elements()) as u64,
                };
                file.names().filter_map(|name| file.info(name)).map(of).sum()
            }
        }
    }

    fn add_eos(&mut self, ids: &[u32]) {
        self.eos.extend(ids);
        self.eos.sort_unstable();
        self.eos.dedup();
    }
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io(path, e))
}

/// The last part of a path as a person would call the model.
fn file_name(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.into());
    full.file_stem().unwrap_or(full.as_os_str()).to_string_lossy().into_owned()
}
