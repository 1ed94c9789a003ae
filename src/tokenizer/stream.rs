//! Decoding one token at a time.

use super::Tokenizer;

/// Most tokens of an unfinished character: UTF-8 has at most four bytes a character.
const MAX_PENDING: usize = 4;

/// Turns tokens into text as they are generated, and never shows half a character.
///
/// A byte-level token can end inside a character, and some tokenizers drop a space at the start of what they decode, so
/// tokens cannot be decoded one by one. Each is decoded together with the few before it, and only what is new is given.
///
/// ```no_run
/// # let tokenizer = minference::tokenizer::Tokenizer::from_dir(".".as_ref())?;
/// # let generated = [1, 2, 3];
/// let mut stream = tokenizer.stream();
/// for id in generated {
///     print!("{}", stream.push(id).unwrap_or_default());
/// }
/// print!("{}", stream.finish().unwrap_or_default());
/// # Ok::<(), minference::Error>(())
/// ```
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The tokens whose text was given last, then those still held back.
    ids: Vec<u32>,
    /// How many of them were given.
    given: usize,
    skip_special: bool,
}

impl<'a> TokenStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), given: 0, skip_special: true }
    }

    /// Writes special tokens out instead of dropping them.
    pub fn show_special(mut self) -> Self {
        self.skip_special = false;
        self
    }

    /// Takes the next token; gives text when there are whole characters of it.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.ids.push(id);
        self.advance(self.ids.len() - self.given >= MAX_PENDING)
    }

    /// What is still held back, incomplete characters as U+FFFD.
    pub fn finish(mut self) -> Option<String> {
        self.advance(true)
    }

    /// The text behind what was given; held back while it ends inside a character, unless `force`.
    fn advance(&mut self, force: bool) -> Option<String> {
        let before = self.decode(&self.ids[..self.given]);
        let whole = self.decode(&self.ids);
        let new = whole.get(before.len()..).filter(|new| !new.is_empty())?;
        if new.ends_with('\u{fffd}') && !force {
            return None;
        }
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Some(new.to_owned())
    }

    fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode_with(ids, self.skip_special)
    }
}
