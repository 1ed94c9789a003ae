//! Decoders of the Llama kind on any backend.
//!
//! Families are data: [`family`] holds their configuration keys, tensor names and switches, [`DecoderConfig`] what a
//! checkpoint says, and [`decoder`] the one forward pass that serves them all. A new family of this kind is a row of
//! [`family::FAMILIES`].

pub mod config;
pub mod decoder;
mod dual_chunk;
pub mod family;
mod fields;
mod gguf;
pub mod kv_cache;
pub mod load;
pub mod presets;
pub mod rope;

pub use config::{DecoderConfig, DualChunk};
pub use decoder::{AttentionCall, Chunk, Decoder, Step, Watch, Workspace};
pub(crate) use dual_chunk::bytes as dual_chunk_bytes;
pub use kv_cache::{KvCache, KvPlace, KvType};

use crate::backend::Backend;
use crate::fnv::Fnv;
use crate::pattern::{OfficialFile, PatternConfig};
use crate::text::Text;
use crate::weights::{Bytes, TensorInfo, WeightFile};
use crate::{DType, Error, Result, files};
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
    /// As reports name them: `checkpoint`, or `random` and their type.
    pub fn describe(&self) -> String {
        match self {
            Self::File(_) => "checkpoint".to_owned(),
            Self::Random { dtype, .. } => format!("random {dtype}"),
        }
    }

    /// Adds what tells these weights from others of the same shapes: how they are made up, or names and a few bytes of each
    /// tensor, for training changes all of a matrix.
    fn mark(&self, mut sum: Fnv) -> Fnv {
        const FEW: usize = 64;
        let file = match self {
            Self::Random { dtype, seed } => return sum.add(format!("{dtype} {seed}").as_bytes()),
            Self::File(file) => file,
        };
        for name in file.names() {
            sum = sum.add(name.as_bytes());
            let Ok(bytes) = file.bytes(name) else { continue };
            for from in [0, bytes.len() / 2, bytes.len().saturating_sub(FEW)] {
                sum = sum.add(&bytes[from..bytes.len().min(from + FEW)]);
            }
        }
        sum
    }

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
    /// Other names that it may be known by, the best first: what its config or its GGUF metadata say, its whole path.
    also_known_as: Vec<String>,
    /// Head patterns that the checkpoint brings: the file that they stand in, and their JSON.
    own_patterns: Option<(PathBuf, String)>,
    /// Tokenizer and chat template, or why there are none: a prompt of token ids needs none. Shared, because an answer is
    /// decoded while the engine, which owns the model, generates it.
    text: Result<Arc<Text>, String>,
}

impl Model {
    /// Tells this model from others of its name and shape: other weights, other positions.
    pub fn fingerprint(&self) -> u64 {
        let (rope, eps) = (&self.config.rope, self.config.norm_eps);
        self.weights.mark(Fnv::new().add(format!("{rope:?} {eps:e}").as_bytes())).finish()
    }

    /// Opens a directory with `config.json` and `*.safetensors`, a `.gguf` file, or a directory with one `.gguf` file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`] for what is missing or damaged, [`Error::Unsupported`] for architectures that are
    /// not built. A missing tokenizer is told by [`Model::text`].
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
                    let stated = metadata.str("general.name").ok().flatten().map(str::to_owned);
                    let mut model = Self::new(name, config, Weights::File(file), &family::GGUF_NAMES);
                    model.also_known_as = stated.into_iter().chain(whole_path(path)).collect();
                    Ok(model.with_text(text))
                }
                None if path.is_dir() => Err(Error::file(config_path, "not there, and no .gguf file beside it")),
                None => Err(Error::file(path, "expected a .gguf file or the directory of a checkpoint")),
            };
        }
        let config_text = read_text(&config_path)?;
        let config = DecoderConfig::from_json(&config_path, &config_text)?;
        let mut model = Self::new_of_dir(name, path, &config_text, config, Weights::File(WeightFile::open(path)?))?;
        let generation = path.join("generation_config.json");
        if generation.is_file() {
            model.add_eos(&config::eos_of(&generation, &read_text(&generation)?)?);
        }
        Ok(model.with_text(Text::from_dir(path)))
    }

    /// A checkpoint in memory: the text of its `config.json` and the bytes of its `.safetensors` file. It has no tokenizer
    /// until [`Model::with_text`].
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_parts(name: &str, config_json: &str, weights: impl Into<Bytes>) -> Result<Self> {
        let config = DecoderConfig::from_json(&PathBuf::from(format!("{name}/config.json")), config_json)?;
        let weights = WeightFile::from_bytes(format!("{name}/model.safetensors"), weights)?;
        let names = config.family.names;
        Ok(Self::new(name.into(), config, Weights::File(weights), names))
    }

    /// The model that a directory's `config.json` describes, with random weights: nothing else of it is read but its
    /// tokenizer, where it has one.
    ///
    /// # Errors
    /// As [`Model::open`], of its `config.json`.
    pub fn open_random(dir: impl AsRef<Path>, dtype: DType, seed: u64) -> Result<Self> {
        let dir = dir.as_ref();
        let config_path = dir.join("config.json");
        let config_text = read_text(&config_path)?;
        let config = DecoderConfig::from_json(&config_path, &config_text)?;
        let model = Self::new_of_dir(file_name(dir), dir, &config_text, config, Weights::Random { dtype, seed })?;
        Ok(model.with_text(Text::from_dir(dir)))
    }

    /// A model of this shape with random weights.
    pub fn random(name: &str, config: DecoderConfig, dtype: DType, seed: u64) -> Self {
        let names = config.family.names;
        let model = Self::new(name.into(), config, Weights::Random { dtype, seed }, names);
        let what = format!("{name}: random weights have no tokenizer: give token ids instead of text");
        model.with_text(Err(Error::invalid(what)))
    }

    fn new(name: String, config: DecoderConfig, weights: Weights, names: &'static Names) -> Self {
        let text = Err(format!("{name}: no tokenizer was given"));
        let (also_known_as, own_patterns) = (Vec::new(), None);
        Self { name, eos: config.eos.clone(), config, weights, names, also_known_as, own_patterns, text }
    }

    /// Of a directory with a `config.json`, and with what else the directory says about the model.
    fn new_of_dir(
        name: String,
        dir: &Path,
        config_text: &str,
        config: DecoderConfig,
        weights: Weights,
    ) -> Result<Self> {
        let (config_path, patterns_path) = (dir.join("config.json"), dir.join("sparse_attention_config.json"));
        let remarks = config::Remarks::read(&config_path, config_text)?;
        let names = config.family.names;
        let mut model = Self::new(name, config, weights, names);
        model.also_known_as = remarks.name.into_iter().chain(whole_path(dir)).collect();
        model.own_patterns = match patterns_path.is_file() {
            true => Some((patterns_path.clone(), read_text(&patterns_path)?)),
            false => remarks.sparse_attention.map(|json| (config_path, json)),
        };
        Ok(model)
    }

    /// The head patterns for this model, and where they come from: those that the checkpoint brings (Qwen's
    /// `sparse_attention_config`), else the official file that its name and size find.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are none, or where their layers or heads are not the model's.
    pub fn patterns(&self) -> Result<(String, PatternConfig)> {
        let (layers, heads) = (self.config.n_layers, self.config.n_heads);
        if let Some((path, json)) = &self.own_patterns {
            let patterns = PatternConfig::from_json(json).map_err(|e| Error::file(path, e.to_string()))?;
            let found = (patterns.n_layers(), patterns.n_heads());
            if found != (layers, heads) {
                let (l, h) = found;
                let what = format!("sparse_attention_config: {l} layers x {h} heads do not match");
                return Err(Error::file(path, format!("{what} the model's {layers} x {heads}")));
            }
            return Ok((path.display().to_string(), patterns));
        }
        let also = self.also_known_as.iter().map(String::as_str).find(|name| OfficialFile::named(name).is_some());
        let name = match OfficialFile::named(&self.name) {
            Some(_) => &self.name,
            None => also.unwrap_or(&self.name),
        };
        let file = OfficialFile::find(name, layers, heads)?;
        Ok((file.file.to_owned(), file.config()?))
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

    /// How most of its weights are stored, by elements.
    pub fn dtype(&self) -> DType {
        match &self.weights {
            Weights::Random { dtype, .. } => *dtype,
            Weights::File(file) => {
                let mut elements: Vec<(DType, usize)> = Vec::new();
                for info in file.names().filter_map(|name| file.info(name)) {
                    match elements.iter_mut().find(|(dtype, _)| *dtype == info.dtype) {
                        Some((_, sum)) => *sum += info.elements(),
                        None => elements.push((info.dtype, info.elements())),
                    }
                }
                elements.into_iter().max_by_key(|(_, sum)| *sum).map_or(DType::F32, |(dtype, _)| dtype)
            }
        }
    }

    /// Bytes of all weights as a backend keeps them: types that it does not take become f16, or f32 where it takes no f16.
    pub fn weight_bytes<B: Backend>(&self, backend: &B) -> u64 {
        let other = load::stand_in(backend, 1.0);
        let kept = |dtype: DType| if backend.accepts_weight(dtype) { dtype } else { other };
        match &self.weights {
            Weights::Random { dtype, .. } => {
                let c = &self.config;
                let of = |rows: usize, cols: usize| kept(load::whole_blocks(*dtype, cols)).bytes(rows * cols) as u64;
                let mlp = of(2 * c.ffn, c.hidden) + of(c.hidden, c.ffn);
                let layer = of(c.qkv_width(), c.hidden) + of(c.hidden, c.n_heads * c.head_dim) + mlp;
                c.n_layers as u64 * layer + of(c.vocab, c.hidden) * if c.tied { 1 } else { 2 }
            }
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
    files::utf8(path, files::read(path)?)
}

/// A path from the root: in a hub's cache the model's name stands in the middle of it.
fn whole_path(path: &Path) -> Option<String> {
    Some(path.canonicalize().ok()?.to_string_lossy().into_owned())
}

/// The last part of a path as a person would call the model.
fn file_name(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.into());
    full.file_stem().unwrap_or(full.as_os_str()).to_string_lossy().into_owned()
}
