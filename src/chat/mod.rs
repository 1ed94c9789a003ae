//! Chat templates: the Jinja text with which a model's files say how a conversation becomes a prompt.
//!
//! Rendering agrees with transformers' `apply_chat_template`: the same whitespace rules, Python's string methods,
//! `raise_exception`, `strftime_now`, its `tojson`, loop controls, `{% generation %}`.

mod python;

use crate::weights::Gguf;
use crate::{Error, Result, files};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value as Jinja, context};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// What one rendering may do: a million fuel is a million steps or 64 MB of text. Enough for a book in a message, and
/// an endless loop in a file from a stranger ends after a few seconds.
const FUEL: u64 = 16_000_000;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of the given role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }
}

/// A model's chat template.
///
/// ```
/// use minference::chat::{ChatTemplate, Message};
/// let source = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}{% endfor %}\
///               {% if add_generation_prompt %}<|assistant|>\n{% endif %}";
/// let template = ChatTemplate::new("template".as_ref(), source, "", "</s>")?;
/// assert_eq!(template.render(&[Message::user("Hello")], true)?, "<|user|>\nHello</s><|assistant|>\n");
/// # Ok::<(), minference::Error>(())
/// ```
pub struct ChatTemplate {
    environment: Environment<'static>,
    names: Vec<String>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// From the template's text and the tokens that it may write; `path` is the name that errors give it.
    ///
    /// # Errors
    /// [`Error::File`] with the line where the template is not Jinja.
    pub fn new(path: &Path, source: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        Self::named(path, BTreeMap::from([("default".into(), source.into())]), bos_token, eos_token)
    }

    /// The template of a model: of a `.gguf` file, or of a directory, whose own files go before that of a `.gguf` file in
    /// it. `None` where there is none.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`], and for files that cannot be read.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let before = ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"];
        match crate::tokenizer::gguf_of(path, &before)? {
            Some(file) => file.gguf().map_or(Ok(None), Self::from_gguf),
            None => Self::from_dir(path),
        }
    }

    /// The template of a Hugging Face directory: `chat_template.jinja`, or else `chat_template` in
    /// `tokenizer_config.json` (a text, or a list of named ones) or in `chat_template.json`. `None` where there is none.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`], and for files that cannot be read.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>> {
        let config_path = dir.join("tokenizer_config.json");
        let config: Value = match read(&config_path)? {
            Some(text) => parse_json(&config_path, &text)?,
            None => Value::Null,
        };
        let token = |key: &str| config[key].as_str().or(config[key]["content"].as_str()).unwrap_or_default();
        let (bos, eos) = (token("bos_token"), token("eos_token"));

        let jinja_path = dir.join("chat_template.jinja");
        if let Some(source) = read(&jinja_path)? {
            return Self::new(&jinja_path, &source, bos, eos).map(Some);
        }
        let json_path = dir.join("chat_template.json");
        let json: Value = match read(&json_path)? {
            Some(text) => parse_json(&json_path, &text)?,
            None => Value::Null,
        };
        for (path, json) in [(&config_path, &config), (&json_path, &json)] {
            if let Some(sources) = templates_of(path, &json["chat_template"])? {
                return Self::named(path, sources, bos, eos).map(Some);
            }
        }
        Ok(None)
    }

    /// From the text of a `tokenizer_config.json`, such as one built into the program.
    ///
    /// # Errors
    /// [`Error::File`] where the text is not JSON; as [`ChatTemplate::new`].
    pub fn from_tokenizer_config(path: &Path, text: &str) -> Result<Option<Self>> {
        let config: Value = parse_json(path, text)?;
        let token = |key: &str| config[key].as_str().or(config[key]["content"].as_str()).unwrap_or_default();
        let sources = templates_of(path, &config["chat_template"])?;
        sources.map(|sources| Self::named(path, sources, token("bos_token"), token("eos_token"))).transpose()
    }

    /// The template in a GGUF's metadata (`tokenizer.chat_template`, and named ones beneath that key). `None` where
    /// there is none.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`]; [`Error::File`] where the metadata has another type.
    pub fn from_gguf(gguf: &Gguf) -> Result<Option<Self>> {
        const KEY: &str = "tokenizer.chat_template";
        let mut sources = BTreeMap::new();
        for key in gguf.keys() {
            let name = key
                .strip_prefix(KEY)
                .and_then(|rest| if rest.is_empty() { Some("default") } else { rest.strip_prefix('.') });
            if let (Some(name), Some(source)) = (name, gguf.str(key).ok().flatten()) {
                sources.insert(name.to_owned(), source.to_owned());
            }
        }
        if sources.is_empty() {
            return Ok(None);
        }
        let tokens = gguf.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        let token = |key: &str| -> Result<&str> {
            let id = gguf.uint(key)?.and_then(|id| usize::try_from(id).ok());
            Ok(id.and_then(|id| tokens.get(id)).copied().unwrap_or_default())
        };
        let (bos, eos) = (token("tokenizer.ggml.bos_token_id")?, token("tokenizer.ggml.eos_token_id")?);
        Self::named(gguf.path(), sources, bos, eos).map(Some)
    }

    fn named(path: &Path, sources: BTreeMap<String, String>, bos_token: &str, eos_token: &str) -> Result<Self> {
        let bad = |e: minijinja::Error| Error::file(path, format!("chat template: {e}"));
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(bad)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(python::format);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", python::to_json);
        environment.add_function("strftime_now", python::strftime_now);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let names = sources.keys().cloned().collect();
        for (name, source) in sources {
            environment.add_template_owned(name, python::without_generation_tags(&source)).map_err(bad)?;
        }
        Ok(Self { environment, names, bos_token: bos_token.into(), eos_token: eos_token.into() })
    }

    /// The prompt of a conversation. `add_generation_prompt` opens the assistant's turn at the end. Encode the result
    /// without adding special tokens: templates write those themselves.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the template's own words where it refuses the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let messages = messages.iter().map(|m| serde_json::json!({"role": m.role, "content": m.content})).collect();
        self.render_with(&Value::Array(messages), add_generation_prompt, &Map::new())
    }

    /// As [`ChatTemplate::render`], for messages of any form and with further variables: `tools`, `enable_thinking`,
    /// `documents`, whatever the template knows.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(
        &self,
        messages: &Value,
        add_generation_prompt: bool,
        more: &Map<String, Value>,
    ) -> Result<String> {
        let has_tools = more.get("tools").is_some_and(|t| t.as_array().is_some_and(|t| !t.is_empty()));
        let name = self.choose(has_tools)?;
        let bad = |e: minijinja::Error| Error::invalid(format!("chat template: {e}"));
        let template = self.environment.get_template(name).map_err(bad)?;
        let variables = context! {
            messages => Jinja::from(Serde(messages)),
            add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            tools => (),
            documents => (),
        };
        // Of two equal keys the first given counts.
        template.render(context! { ..Jinja::from(Serde(more)), ..variables }).map_err(bad)
    }

    /// As transformers chooses: `tool_use` where there are tools and such a template, `default`, or the only one.
    fn choose(&self, has_tools: bool) -> Result<&str> {
        let find = |wanted: &str| self.names.iter().find(|n| *n == wanted);
        let only = if let [only] = &self.names[..] { Some(only) } else { None };
        let chosen = find("tool_use").filter(|_| has_tools).or(find("default")).or(only);
        chosen.map(String::as_str).ok_or_else(|| {
            Error::invalid(format!("chat template: none is called default among {}", self.names.join(", ")))
        })
    }
}

/// `chat_template`: a text, or a list of `{"name", "template"}`.
fn templates_of(path: &Path, json: &Value) -> Result<Option<BTreeMap<String, String>>> {
    match json {
        Value::Null => Ok(None),
        Value::String(source) => Ok(Some(BTreeMap::from([("default".into(), source.clone())]))),
        Value::Array(list) if !list.is_empty() => {
            let entry = |t: &Value| Some((t["name"].as_str()?.to_owned(), t["template"].as_str()?.to_owned()));
            let entries: Option<_> = list.iter().map(entry).collect();
            entries
                .map(Some)
                .ok_or_else(|| Error::file(path, "chat_template: expected a name and a template in each entry"))
        }
        other => {
            let found: String = other.to_string().chars().take(40).collect();
            Err(Error::file(path, format!("chat_template: expected a text or a list of named ones, found {found}")))
        }
    }
}

/// A file's text; `None` where there is no such file.
fn read(path: &Path) -> Result<Option<String>> {
    files::read_if_there(path)?.map(|bytes| files::utf8(path, bytes)).transpose()
}

fn parse_json(path: &Path, text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::file(path, e.to_string()))
}
