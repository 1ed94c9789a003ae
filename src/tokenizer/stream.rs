//! Decoding one token at a time.

use super::Tokenizer;

/// Tokens that are held back at the most: so many without a whole character at their end are no text.
const MAX_PENDING: usize = 64;

/// Replacement characters at the end that later tokens may still turn into a character: UTF-8 has at most four bytes, and a
/// byte piece that waits for others decodes to one of them.
const MAX_UNFINISHED: usize = 3;

/// Turns tokens into text as they are generated, and never shows half a character.
///
/// A byte-level token can end inside a character, and some tokenizers drop a space at the start of what they decode, so
/// tokens cannot be decoded one by one. Each is decoded together with the few before it, and only what is new is given. What is
/// given ends with a character, not with a token: one token may hold the end of a character and the start of the next.
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
    /// The tokens of the last text that ended whole, then those since.
    ids: Vec<u32>,
    /// How many the first of them are.
    whole: usize,
    /// What of their text was given.
    shown: String,
    skip_special: bool,
}

impl<'a> TokenStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), whole: 0, shown: String::new(), skip_special: true }
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
        let text = self.text();
        let unfinished = text.chars().rev().take_while(|&c| c == '\u{fffd}').take(MAX_UNFINISHED).count();
        let end = text.len() - unfinished * '\u{fffd}'.len_utf8();
        if self.ids.len() - self.whole >= MAX_PENDING {
            return self.give(&text, text.len());
        }
        // A run of SentencePiece's byte pieces decodes to U+FFFD as a whole while its last character is incomplete, what was
        // text before included: that is waited for.
        if !text[..end].starts_with(&self.shown) {
            return None;
        }
        self.give(&text, end)
    }

    /// What is still held back, incomplete characters as U+FFFD.
    pub fn finish(mut self) -> Option<String> {
        let text = self.text();
        self.give(&text, text.len())
    }

    /// What of the tokens' text up to `end` was not given yet.
    fn give(&mut self, text: &str, end: usize) -> Option<String> {
        let settled = &text[..end];
        let common = self.shown.chars().zip(settled.chars()).take_while(|(a, b)| a == b);
        let new = settled[common.map(|(a, _)| a.len_utf8()).sum()..].to_owned();
        // Tokens without text of their own are kept: a decoder that drops the first space must still see it.
        if new.is_empty() {
            return None;
        }
        if end == text.len() {
            self.ids.drain(..self.whole);
            self.whole = self.ids.len();
            self.shown = self.text();
        } else {
            settled.clone_into(&mut self.shown);
        }
        Some(new)
    }

    fn text(&self) -> String {
        self.tokenizer.decode_with(&self.ids, self.skip_special)
    }
}
