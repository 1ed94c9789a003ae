//! [`Text`]: how a model reads and writes text.

use crate::chat::{ChatTemplate, Message};
use crate::tokenizer::Tokenizer;
use crate::weights::Gguf;
use crate::{Error, Result};
use std::path::Path;

/// A model's tokenizer and chat template.
///
/// ```no_run
/// use minference::model::Model;
/// let model = Model::open("SmolLM2-135M-Instruct")?;
/// let ids = model.text()?.encode_chat("Why is the sky blue?")?;
/// # Ok::<(), minference::Error>(())
/// ```
pub struct Text {
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// The form of a conversation, `None` where the model has none, or what is wrong with it.
    chat: Result<Option<ChatTemplate>, String>,
}

impl Text {
    /// Of a tokenizer, for a model without a chat template.
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, chat: Ok(None) }
    }

    /// Of a Hugging Face directory.
    ///
    /// # Errors
    /// As [`Tokenizer::from_dir`].
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let chat = ChatTemplate::from_dir(dir).map_err(|e| e.to_string());
        Ok(Self { tokenizer: Tokenizer::from_dir(dir)?, chat })
    }

    /// Of a GGUF file's metadata.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`].
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let chat = ChatTemplate::from_gguf(gguf).map_err(|e| e.to_string());
        Ok(Self { tokenizer: Tokenizer::from_gguf(gguf)?, chat })
    }

    /// The chat template, where there is one.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it is damaged.
    pub fn chat(&self) -> Result<Option<&ChatTemplate>> {
        self.chat.as_ref().map(Option::as_ref).map_err(Error::invalid)
    }

    /// Tokens of a plain text, with the model's begin token where it wants one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, true)
    }

    /// Tokens of one user message in the chat template, with the assistant's turn opened.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no chat template.
    pub fn encode_chat(&self, text: &str) -> Result<Vec<u32>> {
        let Some(chat) = self.chat()? else {
            return Err(Error::invalid("the model has no chat template: give the whole prompt instead"));
        };
        self.tokenizer.encode(&chat.render(&[Message::user(text)], true)?, false)
    }
}
