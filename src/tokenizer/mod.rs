//! Text to token ids and back, from whatever a model's files hold: `tokenizer.json`, a GGUF's metadata, or a
//! `tokenizer.model` (SentencePiece, or the tiktoken ranks of GLM-4).
//!
//! The `tokenizers` crate does the work; the modules beneath translate the other formats into it.

mod base64;
mod bpe;
mod charsmap;
mod gguf;
mod sentencepiece;
mod stream;
mod tiktoken;

pub use stream::TokenStream;

use crate::weights::{Gguf, WeightFile};
use crate::{Error, Result, files};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// A model's tokenizer, with its rules for the tokens around a text.
///
/// ```no_run
/// use minference::tokenizer::Tokenizer;
/// let tokenizer = Tokenizer::from_dir("SmolLM2-135M-Instruct".as_ref())?;
/// let ids = tokenizer.encode("Call me Ishmael.", true)?;
/// assert_eq!(tokenizer.decode(&ids), "Call me Ishmael.");
/// # Ok::<(), minference::Error>(())
/// ```
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Tokens put before and after a text; `None` leaves that to the post-processor of `tokenizer.json`.
    around: Option<(Vec<u32>, Vec<u32>)>,
    bos: Option<u32>,
    eos: Vec<u32>,
}

impl Tokenizer {
    /// The tokenizer of a model: of a `.gguf` file, or of a directory, whose `tokenizer.json` or `tokenizer.model` goes
    /// before that of a `.gguf` file in it.
    ///
    /// # Errors
    /// As [`Tokenizer::from_dir`] and [`Tokenizer::from_gguf`].
    pub fn open(path: &Path) -> Result<Self> {
        match gguf_of(path, &["tokenizer.json", "tokenizer.model"])? {
            Some(file) => Self::from_gguf(file.gguf().ok_or_else(|| Error::file(path, "expected a .gguf file"))?),
            None => Self::from_dir(path),
        }
    }

    /// The tokenizer of a Hugging Face directory: `tokenizer.json`, or else `tokenizer.model`, with what
    /// `tokenizer_config.json`, `generation_config.json` and `config.json` say about the begin and end tokens.
    ///
    /// # Errors
    /// [`Error::File`] that names the file to get where there is neither, and for damaged files.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let read = |name: &str| files::read_if_there(&dir.join(name));
        let config = match read("tokenizer_config.json")? {
            Some(bytes) => Config::parse(&dir.join("tokenizer_config.json"), &bytes)?,
            None => Config::default(),
        };
        let mut tokenizer = if let Some(json) = read("tokenizer.json")? {
            Self::from_json(&dir.join("tokenizer.json"), &json)?.with_config(&config)?
        } else if let Some(model) = read("tokenizer.model")? {
            Self::from_model_file(&dir.join("tokenizer.model"), &model, &config)?
        } else {
            return Err(Error::file(
                dir,
                "no tokenizer.json or tokenizer.model in it: both lie in the model's repository on Hugging Face, \
                 for example `hf download ORG/NAME tokenizer.json tokenizer_config.json`",
            ));
        };
        for name in ["generation_config.json", "config.json"] {
            let Some(bytes) = read(name)? else { continue };
            let json: Value = parse_json(&dir.join(name), &bytes)?;
            tokenizer.add_eos_ids(&json["eos_token_id"]);
        }
        Ok(tokenizer)
    }

    /// A `tokenizer.json` alone; its own post-processor says what goes around a text.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] for what is no tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_json(path, &files::read(path)?)
    }

    /// The bytes of a `tokenizer.json` and, where there is one, of its `tokenizer_config.json`, such as those built
    /// into the program; `path` is the name that errors give them.
    ///
    /// # Errors
    /// [`Error::File`] for what is no tokenizer.
    pub fn from_bytes(path: &Path, tokenizer_json: &[u8], tokenizer_config: Option<&[u8]>) -> Result<Self> {
        let tokenizer = Self::from_json(path, tokenizer_json)?;
        match tokenizer_config {
            Some(bytes) => tokenizer.with_config(&Config::parse(&path.with_file_name("tokenizer_config.json"), bytes)?),
            None => Ok(tokenizer),
        }
    }

    /// The tokenizer inside a GGUF file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a kind that is not known: another one's splitting rules would give other tokens.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        gguf::tokenizer(gguf)
    }

    fn from_json(path: &Path, bytes: &[u8]) -> Result<Self> {
        bpe::check_json(path, bytes)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| Error::file(path, e.to_string()))?;
        // A file saved from a training run may say "cut at 512 tokens" or "pad to 512"; prompts must stay whole.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(path, e.to_string()))?;
        Ok(Self { inner, around: None, bos: None, eos: Vec::new() })
    }

    fn from_model_file(path: &Path, bytes: &[u8], config: &Config) -> Result<Self> {
        if tiktoken::is_tiktoken(bytes) {
            tiktoken::tokenizer(path, bytes, config)
        } else {
            sentencepiece::tokenizer(path, bytes, config)
        }
    }

    /// Takes begin and end tokens, and whether they are added, from `tokenizer_config.json`.
    fn with_config(mut self, config: &Config) -> Result<Self> {
        let id =
            |key: &str, token: &Option<String>| match token {
                None => Ok(None),
                Some(token) => self.inner.token_to_id(token).map(Some).ok_or_else(|| {
                    Error::file(&config.path, format!("{key}: token {token:?} is not in the vocabulary"))
                }),
            };
        let (bos, eos) = (id("bos_token", &config.bos_token)?, id("eos_token", &config.eos_token)?);
        let wanted = |key: &str, wanted: bool, id: Option<u32>| match (wanted, id) {
            (false, _) => Ok(vec![]),
            (true, Some(id)) => Ok(vec![id]),
            (true, None) => Err(Error::file(&config.path, format!("{key} is true, but there is no such token"))),
        };
        if config.add_bos_token.is_some() || config.add_eos_token.is_some() {
            self.around = Some((
                wanted("add_bos_token", config.add_bos_token.unwrap_or(false), bos)?,
                wanted("add_eos_token", config.add_eos_token.unwrap_or(false), eos)?,
            ));
        }
        self.bos = bos;
        self.eos = eos.into_iter().collect();
        Ok(self)
    }

    /// Adds one id or a list of ids to the end tokens; others than ids of the vocabulary are left out.
    fn add_eos_ids(&mut self, ids: &Value) {
        let list = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
        for id in list.iter().filter_map(Value::as_u64) {
            let id = u32::try_from(id).ok().filter(|&id| self.inner.id_to_token(id).is_some());
            self.eos.extend(id.filter(|id| !self.eos.contains(id)));
        }
    }

    /// Token ids of a text. Special tokens written in it (`<|im_start|>`) become their ids, as in a rendered chat
    /// template. `add_special` puts the model's begin token (and what else it wants) around it: leave it off for chat
    /// templates, which write these themselves.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a part of the text has no token and the vocabulary no unknown one.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let own = self.around.is_none() && add_special;
        let encoding = self.inner.encode_fast(text, own).map_err(|e| Error::invalid(format!("tokenizer: {e}")))?;
        let ids = encoding.get_ids();
        Ok(match &self.around {
            Some((before, after)) if add_special => [before, ids, after].concat(),
            _ => ids.to_vec(),
        })
    }

    /// The text of some tokens, without special tokens. Bytes that are no UTF-8 become U+FFFD, and ids outside the
    /// vocabulary nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, true)
    }

    /// As [`Tokenizer::decode`]; special tokens are written out where `skip_special` is false.
    pub fn decode_with(&self, ids: &[u32], skip_special: bool) -> String {
        // The decoders in use are text replacements that cannot fail; were one to, the raw tokens still tell something.
        self.inner
            .decode(ids, skip_special)
            .unwrap_or_else(|_| ids.iter().filter_map(|&id| self.inner.id_to_token(id)).collect())
    }

    /// Text as it is generated: see [`TokenStream`].
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream::new(self)
    }

    /// Number of ids: one more than the largest. An embedding may have more rows, for padding.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// The id of a token as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as the vocabulary writes it (`Ġthe`, `▁the`, `<|im_end|>`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The begin token, where the model has one; whether it is added to a text is another matter.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether a token is a mark (`<|im_end|>`) rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    /// The tokens that end an answer.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }
}

/// What is read of `tokenizer_config.json`.
#[derive(Default)]
struct Config {
    path: std::path::PathBuf,
    bos_token: Option<String>,
    eos_token: Option<String>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    /// SentencePiece: `false` puts the word-start mark before the whole text only, not after each special token.
    legacy: Option<bool>,
    added: BTreeMap<u32, Added>,
}

/// A token outside the model's own vocabulary, or one of it that is matched before all else.
struct Added {
    content: String,
    special: bool,
    lstrip: bool,
    rstrip: bool,
}

impl Added {
    fn token(&self) -> tokenizers::AddedToken {
        tokenizers::AddedToken::from(self.content.clone(), self.special)
            .normalized(false)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
    }
}

impl Config {
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let json: Value = parse_json(path, bytes)?;
        // A token is written plainly or as an object with flags.
        let token = |key: &str| json[key].as_str().or(json[key]["content"].as_str()).map(str::to_owned);
        let mut added = BTreeMap::new();
        for (id, token) in json["added_tokens_decoder"].as_object().into_iter().flatten() {
            let bad = || Error::file(path, format!("added_tokens_decoder {id}: expected an id and its content"));
            let flag = |key: &str| token[key].as_bool().unwrap_or(false);
            let content = token["content"].as_str().ok_or_else(bad)?.to_owned();
            let [special, lstrip, rstrip] = ["special", "lstrip", "rstrip"].map(flag);
            added.insert(id.parse().map_err(|_| bad())?, Added { content, special, lstrip, rstrip });
        }
        Ok(Self {
            path: path.to_path_buf(),
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            add_bos_token: json["add_bos_token"].as_bool(),
            add_eos_token: json["add_eos_token"].as_bool(),
            legacy: json["legacy"].as_bool(),
            added,
        })
    }
}

fn parse_json(path: &Path, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::file(path, e.to_string()))
}

/// Joins a model with the parts around it, given as `tokenizer.json` writes them, and its special tokens.
fn assemble(
    path: &Path,
    model: impl Into<tokenizers::models::ModelWrapper>,
    parts: Value,
    added: impl IntoIterator<Item = tokenizers::AddedToken>,
) -> Result<tokenizers::Tokenizer> {
    let bad = |e: &dyn std::fmt::Display| Error::file(path, format!("tokenizer: {e}"));
    let mut inner = tokenizers::Tokenizer::new(model);
    let part = |key: &str| Some(parts[key].clone()).filter(|p| !p.is_null());
    let normalizer = part("normalizer").map(serde_json::from_value::<tokenizers::NormalizerWrapper>);
    let splitter = part("pre_tokenizer").map(serde_json::from_value::<tokenizers::PreTokenizerWrapper>);
    let decoder = part("decoder").map(serde_json::from_value::<tokenizers::DecoderWrapper>);
    inner.with_normalizer(normalizer.transpose().map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
    inner.with_pre_tokenizer(splitter.transpose().map_err(|e| bad(&e))?);
    inner.with_decoder(decoder.transpose().map_err(|e| bad(&e))?);
    inner.add_tokens(added).map_err(|e| bad(&e))?;
    Ok(inner)
}

/// The GGUF file that `path` is or, as long as none of `before` lies there, holds.
pub(crate) fn gguf_of(path: &Path, before: &[&str]) -> Result<Option<WeightFile>> {
    if path.is_dir() {
        let is_gguf = |path: std::path::PathBuf| path.extension().is_some_and(|e| e == "gguf");
        let mut entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
        if before.iter().any(|name| path.join(name).exists()) || !entries.any(|e| e.is_ok_and(|e| is_gguf(e.path()))) {
            return Ok(None);
        }
    }
    WeightFile::open(path).map(Some)
}

/// Refuses a vocabulary in which two ids have one text: encoding would depend on which is found first.
fn check_unique<S: AsRef<str>>(path: &Path, tokens: &[S]) -> Result<()> {
    let mut seen = HashSet::with_capacity(tokens.len());
    match tokens.iter().position(|t| !seen.insert(t.as_ref())) {
        None => Ok(()),
        Some(id) => {
            Err(Error::file(path, format!("tokenizer: token {:?} (id {id}) appears twice", tokens[id].as_ref())))
        }
    }
}
