//! [`Checkpoint`]: everything that a model's files hold, opened together.

use crate::chat::{ChatTemplate, Message};
use crate::model::Model;
use crate::tokenizer::Tokenizer;
use crate::weights::WeightFile;
use crate::{Error, Result};
use std::path::Path;

/// A model with its tokenizer and chat template.
///
/// ```no_run
/// use minference::checkpoint::Checkpoint;
/// let checkpoint = Checkpoint::open("SmolLM2-135M-Instruct".as_ref())?;
/// let ids = checkpoint.encode_chat("Why is the sky blue?")?;
/// # Ok::<(), minference::Error>(())
/// ```
pub struct Checkpoint {
    /// Config and weights; [`crate::engine::Engine::new`] takes it.
    pub model: Model,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// The form of a conversation, where the model has one.
    pub chat: Option<ChatTemplate>,
}

impl Checkpoint {
    /// Opens a Hugging Face directory, a `.gguf` file, or a directory with one `.gguf` file.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Io`] name the file that is missing or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let model = Model::open(path)?;
        if path.join("config.json").is_file() {
            return Ok(Self { model, tokenizer: Tokenizer::from_dir(path)?, chat: ChatTemplate::from_dir(path)? });
        }
        let file = WeightFile::open(path)?;
        let Some(gguf) = file.gguf() else {
            return Err(Error::file(path, "expected a .gguf file or the directory of a checkpoint"));
        };
        Ok(Self { model, tokenizer: Tokenizer::from_gguf(gguf)?, chat: ChatTemplate::from_gguf(gguf)? })
    }

    /// Tokens of a plain text, with the model's begin token where it wants one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, true)
    }

    /// Tokens of one user message in the model's chat template, with the assistant's turn opened.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the model has no chat template.
    pub fn encode_chat(&self, text: &str) -> Result<Vec<u32>> {
        let Some(chat) = &self.chat else {
            return Err(Error::invalid(format!("{} has no chat template: give the whole prompt", self.model.name)));
        };
        self.tokenizer.encode(&chat.render(&[Message::user(text)], true)?, false)
    }
}
