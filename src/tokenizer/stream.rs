//! Decoding one token at a time.

use super::Tokenizer;

/// Fewest tokens behind a character's first byte that can be sure to hold the rest of it: UTF-8 has at most four bytes.
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
        if self.skip_special && self.tokenizer.is_special(id) {
            return None;
        }
        self.ids.push(id);
        let whole = (self.given + 1..=self.ids.len()).rev().find(|&end| !self.text(end).ends_with('\u{fffd}'));
        // With four tokens pending the first of them cannot be the start of a character: its bytes are no text.
        let stuck = self.ids.len() - self.given >= MAX_PENDING;
        self.give(whole.or(stuck.then_some(self.given + 1))?)
    }

    /// What is still held back, incomplete characters as U+FFFD.
    pub fn finish(mut self) -> Option<String> {
        self.give(self.ids.len())
    }

    /// The text of the tokens up to `end` that was not given yet.
    fn give(&mut self, end: usize) -> Option<String> {
        let (before, text) = (self.text(self.given), self.text(end));
        let same: usize = before.chars().zip(text.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        let new = text[same..].to_owned();
        // Tokens without text of their own are kept: a decoder that drops the first space must still see it.
        if new.is_empty() {
            return None;
        }
        self.ids.drain(..self.given);
        self.given = end - self.given;
        Some(new)
    }

    fn text(&self, end: usize) -> String {
        self.tokenizer.decode_with(&self.ids[..end], self.skip_special)
    }
}
