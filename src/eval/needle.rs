//! Needle in a haystack: one fact hidden in a novel, asked for at the end (paper, section 4.2).
//!
//! A prompt is `head · haystack with the needle in it · tail`, where head and tail come from the model's chat template,
//! or from the plain question of `examples/needle/model/README.md` where it has none. It has exactly the tokens asked for.
//!
//! The tail ends with `The secret code of NAME is ` and its space, so that the **first digit is predicted by pre-fill's
//! last row**. Without that space the model would first generate it, and every digit would be retrieved by dense decode:
//! a sparse pre-fill could lose the needle in the last rows and still pass.
//!
//! ```
//! use minference::eval::needle::{Haystack, Needle, judge};
//!
//! let words = |text: &str| Ok(text.split_inclusive(' ').map(|w| w.len() as u32).collect());
//! let haystack = Haystack::new("It was late. She went out. Nobody saw her.", words)?;
//! let needle = Needle::draw(7);
//! let prompt = needle.hide(&haystack, &Default::default(), 40, 50.0, words)?;
//! assert_eq!(prompt.ids.len(), 40);
//! assert!(judge(&prompt.expected, &needle.digits[..1], &format!("{}.", needle.digits)));
//! # Ok::<(), minference::Error>(())
//! ```

use super::rng::Rng;
use crate::backend::Backend;
use crate::chat::Message;
use crate::engine::{Engine, Progress};
use crate::model::Watch;
use crate::pattern::AttentionMode;
use crate::sample::{Sampler, argmax};
use crate::text::Text;
use crate::{Error, Result};
use std::sync::Arc;

/// First names, none of which the needle model met in training.
const FIRST: [&str; 32] = [
    "Bob", "Charlie", "David", "Eve", "Frank", "Ivy", "Judy", "Kate", "Leo", "Mallory", "Nina", "Peggy", "Quincy",
    "Rupert", "Sybil", "Trent", "Ulla", "Wesley", "Xena", "Yolanda", "Zane", "Aurora", "Basil", "Celeste", "Duncan",
    "Edith", "Fergus", "Gwen", "Hector", "Iris", "Jasper", "Lionel",
];
/// Family names, likewise.
const LAST: [&str; 16] = [
    "Adler",
    "Barlow",
    "Castillo",
    "Delgado",
    "Eriksen",
    "Fontaine",
    "Grimaldi",
    "Hawthorne",
    "Ingram",
    "Keller",
    "Lindgren",
    "Moreau",
    "Norwood",
    "Pemberton",
    "Quigley",
    "Sorensen",
];
/// Digits of a code. Six leave a guess one chance in a million.
const DIGITS: usize = 6;
/// Tokens that an answer may take: the digits, one each at most, the dot, and one to see that no digit follows.
pub const ANSWER_TOKENS: usize = DIGITS + 2;
/// Stands for the document while a chat template is rendered, to find where it goes.
pub const DOCUMENT: &str = "<<<DOCUMENT>>>";

/// A text as token ids of its sentences, read in a circle.
pub struct Haystack {
    /// All tokens, each sentence with its leading space.
    tokens: Vec<u32>,
    /// Where each sentence begins.
    starts: Vec<usize>,
}

impl Haystack {
    /// Splits a text (paragraphs on lines or not) into sentences and encodes each with a space before it.
    /// `encode` must add no special tokens. Fails where the text holds no sentence.
    pub fn new(text: &str, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Self> {
        let (mut tokens, mut starts) = (Vec::new(), Vec::new());
        for sentence in sentences(text) {
            starts.push(tokens.len());
            tokens.extend(encode(&format!(" {sentence}"))?);
        }
        match tokens.is_empty() {
            true => Err(Error::invalid("haystack: expected text of one sentence or more, found none")),
            false => Ok(Self { tokens, starts }),
        }
    }

    /// Tokens of one round.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Never: a haystack has a sentence.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// `len` tokens from the start of sentence `first` on, and the sentence end nearest to `depth` percent of them.
    fn read(&self, first: usize, len: usize, depth: f64) -> (impl Iterator<Item = u32> + '_, usize) {
        let start = self.starts[first % self.starts.len()];
        let round = self.tokens.len();
        let target = len as f64 * depth / 100.0;
        let ends = (0..=len / round).flat_map(|turn| self.starts.iter().map(move |s| turn * round + s));
        // Ends count from `start`; those of the first round that lie before it come again one round later.
        let ends = ends.chain(self.starts.iter().map(|s| (len / round + 1) * round + s));
        let at = ends
            .filter_map(|end| end.checked_sub(start).filter(|&end| end <= len))
            .min_by(|a, b| (*a as f64 - target).abs().total_cmp(&(*b as f64 - target).abs()))
            .unwrap_or(0);
        (self.tokens.iter().copied().cycle().skip(start).take(len), at)
    }
}

/// The sentences of a text: a full stop, question or exclamation mark, closing quotes, then a space and a capital or a
/// quote. Titles (`Mr. Allen`) end no sentence.
pub(super) fn sentences(text: &str) -> Vec<String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut out = Vec::new();
    let mut from = 0;
    for i in 0..words.len() {
        let closed = words[i].trim_end_matches(['"', '\'', ')']).ends_with(['.', '!', '?']);
        let title = matches!(words[i].trim_start_matches(['"', '\'', '(']), "Mr." | "Mrs." | "Dr." | "St." | "Esq.");
        let opens = words.get(i + 1).is_none_or(|next| next.starts_with(|c: char| c.is_uppercase() || c == '"'));
        if (closed && !title && opens) || i + 1 == words.len() {
            out.push(words[from..=i].join(" "));
            from = i + 1;
        }
    }
    out
}

/// What is hidden and where reading begins: everything that a seed draws.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needle {
    /// Whose code it is.
    pub name: String,
    /// The code.
    pub digits: String,
    /// Sentence of the novel, modulo their number, at which the haystack begins.
    pub first_sentence: usize,
}

/// What goes around the document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Before it: the begin token, and with a chat template the user header.
    pub head: Vec<u32>,
    /// After the question: the template's assistant header. Empty for the plain question of the needle model.
    pub after: String,
}

impl Frame {
    /// Splits a rendered template whose user message was [`Frame::message`].
    pub fn split(rendered: &str, needle: &Needle, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Self> {
        let message = Self::message(needle);
        let Some((before, after)) = rendered.split_once(&message) else {
            let what = format!("chat template: expected it to hold the user message {message:?}, found {rendered:?}");
            return Err(Error::invalid(what));
        };
        Ok(Self { head: encode(before)?, after: after.into() })
    }

    /// The user message to render, with [`DOCUMENT`] for the haystack.
    pub fn message(needle: &Needle) -> String {
        format!("{DOCUMENT}{}", needle.request())
    }
}

/// Token ids to pre-fill, and what the answer must be.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The prompt.
    pub ids: Vec<u32>,
    /// The depth asked for, in percent.
    pub depth: f64,
    /// Where the needle's first token lies.
    pub needle_at: usize,
    /// The digits.
    pub expected: String,
}

impl Needle {
    /// Name, digits and first sentence by a seed.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut name = FIRST[rng.below(FIRST.len())].to_string();
        if rng.below(10) >= 7 {
            name = format!("{name} {}", LAST[rng.below(LAST.len())]);
        }
        let digits = (0..DIGITS).map(|_| char::from(b'0' + rng.below(10) as u8)).collect();
        Self { name, digits, first_sentence: rng.below(1 << 20) }
    }

    /// The needle.
    pub fn sentence(&self) -> String {
        format!("The secret code of {} is {}.", self.name, self.digits)
    }

    /// The question.
    pub fn question(&self) -> String {
        format!("What is the secret code of {}?", self.name)
    }

    /// What a chat model is asked after the document.
    fn request(&self) -> String {
        format!("\n\n{} Answer with the number only.", self.question())
    }

    /// The beginning of the answer, with the space before the first digit.
    fn stem(&self) -> String {
        format!("The secret code of {} is ", self.name)
    }

    /// A prompt of exactly `len` tokens with the needle after the sentence end nearest to `depth` percent.
    ///
    /// `encode` must add no special tokens. Fails where `len` leaves no room for the needle and the question, or `depth`
    /// is not in 0..=100.
    pub fn hide(
        &self,
        haystack: &Haystack,
        frame: &Frame,
        len: usize,
        depth: f64,
        encode: impl Fn(&str) -> Result<Vec<u32>>,
    ) -> Result<Prompt> {
        if !(0.0..=100.0).contains(&depth) {
            return Err(Error::invalid(format!("depth: expected 0 to 100, found {depth}")));
        }
        let head = frame.head.clone();
        let needle = encode(&format!(" {}", self.sentence()))?;
        let tail = encode(&match frame.after.as_str() {
            "" => format!("\nQuestion: {} Answer: {}", self.question(), self.stem()),
            after => format!("{}{after}{}", self.request(), self.stem()),
        })?;
        let fixed = head.len() + needle.len() + tail.len();
        let Some(hay) = len.checked_sub(fixed).filter(|&hay| hay > 0) else {
            return Err(Error::invalid(format!(
                "a prompt of {len} tokens is too short: needle and question alone take {fixed}"
            )));
        };
        let (tokens, at) = haystack.read(self.first_sentence, hay, depth);
        let mut ids = head;
        let needle_at = ids.len() + at;
        ids.extend(tokens);
        ids.splice(needle_at..needle_at, needle);
        ids.extend(tail);
        Ok(Prompt { ids, depth, needle_at, expected: self.digits.clone() })
    }
}

/// Whether an answer is right: the first token, from pre-fill's last row, begins the digits, and the whole answer is the
/// digits and then no further one.
pub fn judge(expected: &str, first_token: &str, answer: &str) -> bool {
    let prefill_right = !first_token.is_empty() && expected.starts_with(first_token);
    let rest = answer.strip_prefix(expected);
    prefill_right && rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The test for one model: the haystack in its tokens, the question in its form.
pub struct NeedleTest {
    text: Arc<Text>,
    haystack: Haystack,
}

/// What a mode answered.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Outcome {
    /// The mode.
    pub attention: String,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// The depth asked for, in percent.
    pub depth: f64,
    /// Where the needle's first token lies.
    pub needle_at: usize,
    /// The digits.
    pub expected: String,
    /// The greedy answer.
    pub answer: String,
    /// By [`judge`].
    pub correct: bool,
    /// Computed pairs over causal pairs, mean over layers and heads.
    pub density: f64,
    /// Seconds of pre-fill, logits on the host included.
    pub prefill_s: f64,
    /// Tokens of the prompt over these seconds.
    pub tokens_per_s: f64,
}

impl NeedleTest {
    /// For a model's tokenizer and chat template (without one the question is put plainly), in a novel.
    pub fn new(text: Arc<Text>, novel: &str) -> Result<Self> {
        let haystack = Haystack::new(novel, |sentence| text.tokenizer.encode(sentence, false))?;
        Ok(Self { text, haystack })
    }

    /// The prompt of [`Needle::hide`] in the model's form.
    pub fn prompt(&self, needle: &Needle, len: usize, depth: f64) -> Result<Prompt> {
        let encode = |text: &str| self.text.tokenizer.encode(text, false);
        let frame = match self.text.chat()? {
            Some(chat) => Frame::split(&chat.render(&[Message::user(Frame::message(needle))], true)?, needle, encode)?,
            // An empty text with the special tokens around it: the begin token where the model wants one.
            None => Frame { head: self.text.encode("")?, after: String::new() },
        };
        needle.hide(&self.haystack, &frame, len, depth, encode)
    }

    /// Pre-fills the prompt in a mode and judges the greedy answer.
    pub fn ask<B: Backend>(
        &self,
        engine: &mut Engine<B>,
        prompt: &Prompt,
        mode: &AttentionMode,
        progress: &mut dyn FnMut(Progress),
        watch: &mut dyn Watch<B>,
    ) -> Result<Outcome> {
        engine.reset();
        let prefill = engine.prefill_watched(&prompt.ids, mode, progress, watch)?;
        let first = self.text.tokenizer.decode(&[argmax(&prefill.logits)]);
        let ids = engine.generate(&prefill.logits, &mut Sampler::greedy(), ANSWER_TOKENS, &mut |_| ())?.ids;
        let answer = self.text.tokenizer.decode(&ids);
        Ok(Outcome {
            attention: mode.name(),
            tokens: prefill.tokens,
            depth: prompt.depth,
            needle_at: prompt.needle_at,
            correct: judge(&prompt.expected, &first, &answer),
            expected: prompt.expected.clone(),
            answer,
            density: prefill.density,
            prefill_s: prefill.seconds,
            tokens_per_s: prefill.tokens as f64 / prefill.seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token per byte: decoding is exact.
    fn bytes(text: &str) -> Result<Vec<u32>> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn text(ids: &[u32]) -> String {
        ids.iter().map(|&id| id as u8 as char).collect()
    }

    const NOVEL: &str = "It was late. \"Where is Mr. Allen?\" she asked him.\nNobody knew. He came at last!";

    #[test]
    fn sentences_end_where_a_reader_ends_them() {
        let found = sentences(NOVEL);
        assert_eq!(
            found,
            ["It was late.", "\"Where is Mr. Allen?\" she asked him.", "Nobody knew.", "He came at last!"]
        );
    }

    #[test]
    fn prompts_have_the_length_and_the_needle_after_a_sentence_at_every_depth() {
        let haystack = Haystack::new(NOVEL, bytes).unwrap();
        for seed in 0..50 {
            for depth in [0.0, 10.0, 50.0, 90.0, 100.0] {
                let needle = Needle::draw(seed);
                let len = 300 + 7 * seed as usize;
                let frame = Frame { head: vec![u32::from(b'^')], after: String::new() };
                let prompt = needle.hide(&haystack, &frame, len, depth, bytes).unwrap();
                assert_eq!(prompt.ids.len(), len);
                let before = text(&prompt.ids[..prompt.needle_at]);
                assert!(before == "^" || before.ends_with(['.', '!', '?', '"']), "{before:?}");
                assert!(text(&prompt.ids[prompt.needle_at..]).starts_with(&format!(" {}", needle.sentence())));
                assert!(text(&prompt.ids).ends_with(&needle.stem()));
                let hay = len - 1 - needle.sentence().len() - 1;
                let tail = text(&prompt.ids).find("\nQuestion").map_or(0, |at| len - at);
                let found = 100.0 * (prompt.needle_at - 1) as f64 / (hay - tail) as f64;
                // The longest sentence of this little novel: near the end only the one before it has room.
                assert!((found - depth).abs() <= 100.0 * 38.0 / (hay - tail) as f64, "{found} for {depth}");
            }
        }
    }

    #[test]
    fn a_chat_frame_goes_around_document_and_question() {
        let needle = Needle::draw(1);
        let rendered = format!("<user>{}<end><bot>", Frame::message(&needle));
        let frame = Frame::split(&rendered, &needle, bytes).unwrap();
        assert_eq!(frame, Frame { head: bytes("<user>").unwrap(), after: "<end><bot>".into() });
        let haystack = Haystack::new(NOVEL, bytes).unwrap();
        let prompt = text(&needle.hide(&haystack, &frame, 300, 0.0, bytes).unwrap().ids);
        assert!(prompt.starts_with(&format!("<user> {}", needle.sentence())), "{prompt}");
        assert!(prompt.ends_with(&format!("Answer with the number only.<end><bot>{}", needle.stem())), "{prompt}");
        assert!(Frame::split("nothing of it", &needle, bytes).is_err());
    }

    #[test]
    fn seeds_draw_different_needles_and_the_same_one_again() {
        let drawn: Vec<_> = (0..100).map(Needle::draw).collect();
        assert_eq!(drawn[3], Needle::draw(3));
        let mut digits: Vec<_> = drawn.iter().map(|n| &n.digits).collect();
        digits.sort();
        digits.dedup();
        assert_eq!(digits.len(), 100);
    }

    #[test]
    fn only_the_whole_code_with_its_first_digit_from_prefill_is_right() {
        assert!(judge("493821", "4", "493821."));
        assert!(judge("493821", "493", "493821"));
        assert!(!judge("493821", " ", " 493821."));
        assert!(!judge("493821", "", "493821."));
        assert!(!judge("493821", "4", "493822."));
        assert!(!judge("493821", "4", "4938215."));
        assert!(!judge("493821", "4", "49382"));
    }

    #[test]
    fn too_short_and_too_deep_are_refused_with_both_values() {
        let haystack = Haystack::new(NOVEL, bytes).unwrap();
        let error = Needle::draw(0).hide(&haystack, &Frame::default(), 20, 50.0, bytes).unwrap_err();
        assert!(error.to_string().starts_with("a prompt of 20 tokens is too short"), "{error}");
        let error = Needle::draw(0).hide(&haystack, &Frame::default(), 400, 101.0, bytes).unwrap_err();
        assert_eq!(error.to_string(), "depth: expected 0 to 100, found 101");
        assert!(Haystack::new(" \n", bytes).is_err());
    }
}
