//! Evaluations: what a model still knows when its pre-fill is sparse. The paper's benchmarks, made anew from their
//! definitions with generators of our own.
//!
//! | paper | here | what it needs from outside |
//! | --- | --- | --- |
//! | Needle in a haystack (4.2, figures 6 and 9) | [`grid`], [`needle`] | nothing: the novel in the crate |
//! | RULER (4.2, table 3) | [`ruler`] | SQuAD and HotpotQA for its two question tasks |
//! | InfiniteBench (4.2, table 2) | [`infinite_bench`] | its JSONL files for six of twelve tasks |
//! | PG-19 perplexity (4.2, figure 5) | [`perplexity`] | nothing, or books |
//! | latency (figure 1b) | [`latency`] | nothing |
//!
//! A [`runner::Suite`] lists its cells, makes a cell's prompt once, and measures one attention mode on it; the
//! [`runner`] does dense first and then every other mode, writes each result down as it comes, and goes on from there
//! after an interruption. [`report`] makes tables, and pairs each mode's samples with dense's.
//!
//! A prompt begins as a [`Draft`] in words. [`Form`] puts it into the model's chat template, with the beginning of the
//! answer behind it. That beginning ends where the value's first token begins, so that **pre-fill's last row predicts
//! it**: for digits that most tokenizers split off, behind the space. Otherwise the model would generate the space, and
//! everything would be found by dense decoding, whatever the sparse pre-fill lost.
//!
//! To make a prompt fails with [`Error::Invalid`] where task, length or data do not allow one, which skips its cell; to ask
//! it as [`crate::engine::Engine::prefill`] and [`crate::engine::Engine::generate`] do; to keep a result with [`Error::Io`].

pub mod ask;
pub mod data;
pub mod essay;
pub mod grid;
pub mod infinite_bench;
pub mod latency;
pub mod metrics;
pub mod needle;
pub mod perplexity;
pub mod report;
pub mod rng;
pub mod ruler;
pub mod runner;
pub mod words;

pub use metrics::Metric;

use crate::chat::Message;
use crate::fnv::fnv;
use crate::text::Text;
use crate::{Error, Result};
use rng::Rng;
use runner::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A prompt in words: a document, and one or more questions on it.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Instruction and document.
    pub context: String,
    /// Each asked by itself behind the document.
    pub questions: Vec<Question>,
    /// How answers are scored.
    pub metric: Metric,
    /// Tokens that an answer may take.
    pub max_new: usize,
}

/// What is asked behind a document.
#[derive(Clone, Debug)]
pub struct Question {
    /// The question.
    pub text: String,
    /// The beginning of the answer, put into the model's mouth. May be empty.
    pub stem: String,
    /// What is right.
    pub references: Vec<String>,
}

/// A prompt as token ids.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Each a whole prompt; those after the first begin with the same document.
    pub questions: Vec<Asked>,
    /// How answers are scored.
    pub metric: Metric,
    /// Tokens that an answer may take.
    pub max_new: usize,
}

/// A question as token ids.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Document, question and the beginning of the answer.
    pub ids: Vec<u32>,
    /// What is right.
    pub references: Vec<String>,
}

impl Sample {
    /// Tokens of the longest prompt.
    pub fn tokens(&self) -> usize {
        self.questions.iter().map(|q| q.ids.len()).max().unwrap_or(0)
    }

    /// A fingerprint of every token: two prompts with the same one are the same.
    pub fn fingerprint(&self) -> u64 {
        let bytes: Vec<u8> = self.questions.iter().flat_map(|q| &q.ids).flat_map(|id| id.to_le_bytes()).collect();
        fnv(&bytes)
    }
}

/// How one model is asked.
pub struct Form {
    text: Arc<Text>,
    /// The chat template before and after the user's message; none: the question is put plainly.
    chat: Option<(String, String)>,
}

impl Form {
    /// Of a model's tokenizer and chat template.
    pub fn new(text: Arc<Text>) -> Result<Self> {
        let chat = match text.chat()? {
            None => None,
            Some(chat) => {
                let rendered = chat.render(&[Message::user(needle::DOCUMENT)], true)?;
                let Some((before, after)) = rendered.split_once(needle::DOCUMENT) else {
                    return Err(Error::invalid(format!(
                        "chat template: expected it to hold the user's message, found {rendered:?}"
                    )));
                };
                Some((before.to_string(), after.to_string()))
            }
        };
        Ok(Self { text, chat })
    }

    /// The model's tokenizer.
    pub fn text(&self) -> &Arc<Text> {
        &self.text
    }

    /// Whether the model has a chat template.
    pub fn is_chat(&self) -> bool {
        self.chat.is_some()
    }

    /// The whole prompt in words.
    pub fn words(&self, context: &str, question: &Question) -> Result<String> {
        let stem = &question.stem;
        let space = if self.splits_space(question)? { " " } else { "" };
        Ok(match &self.chat {
            Some((before, after)) => {
                let gap = if question.text.is_empty() { "" } else { "\n\n" };
                format!("{before}{context}{gap}{}{after}{stem}{space}", question.text)
            }
            None if question.text.is_empty() => format!("{context}\n{stem}{space}"),
            None => format!("{context}\nQuestion: {} Answer: {stem}{space}", question.text),
        })
    }

    /// Whether the space between the stem and the value is a token of its own. Then the prompt must end with it.
    fn splits_space(&self, question: &Question) -> Result<bool> {
        let value = question.references.first().map_or("", String::as_str);
        // A prompt that ends otherwise for `-5` than for `5` would tell the sign.
        let value = if value.starts_with('-') { "4" } else { value };
        if question.stem.is_empty() || value.is_empty() {
            return Ok(false);
        }
        let encode = |text: &str| self.text.tokenizer.encode(text, false);
        let (alone, with) = (encode(&format!("{} ", question.stem))?, encode(&format!("{} {value}", question.stem))?);
        Ok(with.starts_with(&alone))
    }

    /// Token ids of a question's prompt.
    pub fn encode(&self, context: &str, question: &Question) -> Result<Vec<u32>> {
        self.text.tokenizer.encode(&self.words(context, question)?, self.chat.is_none())
    }

    /// A draft as token ids.
    pub fn sample(&self, draft: &Draft) -> Result<Sample> {
        let asked = |q: &Question| Ok(Asked { ids: self.encode(&draft.context, q)?, references: q.references.clone() });
        let questions = draft.questions.iter().map(asked).collect::<Result<_>>()?;
        Ok(Sample { questions, metric: draft.metric, max_new: draft.max_new })
    }

    /// The prompt of the most units that fits with its answer into `length` tokens: `draft` makes one of a number of units
    /// (lines, words, documents), and `size` is a guess. Gives the units, too.
    pub fn fit(
        &self,
        length: usize,
        size: Size,
        draft: &mut dyn FnMut(usize) -> Result<Draft>,
    ) -> Result<(usize, Sample)> {
        let mut kept: Option<(usize, Sample)> = None;
        let mut max_new = 0;
        let units = largest(length, size, &mut |units| {
            let made = self.sample(&draft(units)?)?;
            max_new = made.max_new;
            let tokens = made.tokens() + made.max_new;
            if tokens <= length && kept.as_ref().is_none_or(|(most, _)| *most < units) {
                kept = Some((units, made));
            }
            Ok(tokens)
        });
        match (units?, kept) {
            (Some(_), Some(kept)) => Ok(kept),
            _ => Err(Error::invalid(format!(
                "length {length}: the question and {max_new} tokens of answer leave no room for a document"
            ))),
        }
    }
}

/// Units of a task at a length, as far as known.
#[derive(Default)]
struct Sizes(Mutex<BTreeMap<(String, usize), usize>>);

impl Sizes {
    /// The cell's prompt that fills its length: `draft` makes one of a sample and so many units, from `least` to `most`.
    fn fill(
        &self,
        form: &Form,
        cell: &Cell,
        seed: u64,
        [least, most]: [usize; 2],
        draft: &dyn Fn(usize, usize, &mut Rng) -> Result<Draft>,
    ) -> Result<Sample> {
        let (task, length) = (cell.task.as_str(), cell.length);
        let fit = |sample: usize, guess: usize, numbers: &[usize]| {
            let mut of = |units: usize| draft(sample, units, &mut Rng::of(seed, task, numbers));
            form.fit(length, Size { least, most, guess }, &mut of)
        };
        let place = (task.to_string(), length);
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&place).copied();
        let guess = match known {
            Some(units) => units,
            None => {
                // Found on a prompt that is no sample, so that samples do not depend on which came first.
                let (units, _) = fit(0, (length / 40).max(least), &[length])?;
                self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(place, units);
                units
            }
        };
        Ok(fit(cell.sample, guess, &[length, cell.sample])?.1)
    }
}

/// Refuses names of tasks that are not there.
pub fn known(tasks: &[String], all: &[&str]) -> Result<()> {
    match tasks.iter().find(|task| !all.contains(&task.as_str())) {
        None => Ok(()),
        Some(task) => Err(Error::invalid(format!("task {task:?}: expected one of {}", all.join(", ")))),
    }
}

/// Where a search for a size begins, and within what.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Fewest units.
    pub least: usize,
    /// Most units.
    pub most: usize,
    /// A guess; the search is short where it is good.
    pub guess: usize,
}

/// Below the length by at most this share, a size is good enough: the last units would cost many more encodings.
const CLOSE: f64 = 0.004;

/// The largest number of units whose `tokens` are at most `length`, or one within [`CLOSE`] of it; `None` where even the
/// fewest are too many. Token counts need to grow with the units only roughly.
fn largest(length: usize, size: Size, tokens: &mut dyn FnMut(usize) -> Result<usize>) -> Result<Option<usize>> {
    let Size { least, most, guess } = size;
    // Units and their tokens: the most that fit and the fewest that do not.
    let mut low: Option<(usize, usize)> = None;
    let mut high: Option<(usize, usize)> = None;
    let mut next = guess.clamp(least, most);
    for _ in 0..40 {
        let count = tokens(next)?;
        match count <= length {
            true => low = Some((next, count)),
            false => high = Some((next, count)),
        }
        next = match (low, high) {
            (Some((units, count)), None) if units >= most || close(count, length) => return Ok(Some(units)),
            (Some((units, count)), None) => {
                // By the tokens of a unit so far, all of them counted; a little less, so as to bracket it soon.
                let by_unit = count as f64 / (units + 1) as f64;
                let more = ((length - count) as f64 / by_unit.max(1e-3)).ceil() as usize + 1;
                (units + more.max(1)).min(most)
            }
            (None, Some((units, _))) if units <= least => return Ok(None),
            (None, Some((units, count))) => {
                ((units as f64 * length as f64 / count as f64 * 0.98) as usize).clamp(least, units - 1)
            }
            (None, None) => return Ok(None),
            (Some((low, a)), Some((high, _))) if high <= low + 1 || close(a, length) => return Ok(Some(low)),
            (Some((low, a)), Some((high, b))) => {
                let share = (length - a) as f64 / (b - a) as f64;
                (low + ((high - low) as f64 * share) as usize).clamp(low + 1, high - 1)
            }
        };
    }
    Ok(low.map(|(units, _)| units))
}

fn close(tokens: usize, length: usize) -> bool {
    (length - tokens) as f64 <= CLOSE * length as f64
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    /// The embedded model's tokenizer: digits are tokens, and the space before them too.
    pub(crate) fn form() -> Form {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/needle/model");
        Form::new(Arc::new(Text::new(Tokenizer::from_dir(&file).unwrap()))).unwrap()
    }

    pub(crate) fn novel() -> String {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/needle/northanger_abbey.txt");
        std::fs::read_to_string(file).unwrap()
    }

    /// With a chat template of the usual kind, over the same tokenizer.
    pub(crate) fn chat_form() -> Form {
        Form { chat: Some(("<user>".into(), "<bot>".into())), ..form() }
    }

    fn draft(stem: &str, value: &str) -> Draft {
        let question = Question { text: "What is it?".into(), stem: stem.into(), references: vec![value.to_string()] };
        Draft { context: "It was late.".into(), questions: vec![question], metric: Metric::All, max_new: 8 }
    }

    #[test]
    fn a_prompt_ends_where_the_value_begins() {
        let form = form();
        let words = |stem, value| {
            let draft = draft(stem, value);
            form.words(&draft.context, &draft.questions[0]).unwrap()
        };
        // Digits are tokens of their own here, so the space must come from the prompt; a word holds its space.
        assert!(words("The number is", "493").ends_with("Answer: The number is "));
        assert!(words("The word is", "garden").ends_with("Answer: The word is"));
        assert_eq!(words("It is", "-5"), words("It is", "5"));
        assert!(words("", "5").ends_with("Answer: "));
        let ids = form.sample(&draft("The number is", "493")).unwrap().questions[0].ids.clone();
        let all = form.text.tokenizer.encode(&(words("The number is", "493") + "493"), true).unwrap();
        assert_eq!(all[..ids.len()], ids);
        assert_eq!(form.text.tokenizer.decode(&all[ids.len()..]), "493");
    }

    #[test]
    fn a_chat_template_goes_around_the_question_and_not_the_stem() {
        let form = chat_form();
        let draft = draft("It is", "garden");
        let words = form.words(&draft.context, &draft.questions[0]).unwrap();
        assert_eq!(words, "<user>It was late.\n\nWhat is it?<bot>It is");
    }

    #[test]
    fn the_search_finds_the_largest_that_fits_in_few_steps() {
        for (per_unit, fixed) in [(1, 30), (7, 100), (25, 12), (90, 200), (400, 50)] {
            for length in [1000, 4096, 131_072] {
                for guess in [1, 20, 100_000] {
                    let mut steps = 0;
                    let size = Size { least: 1, most: 1 << 20, guess };
                    let found = largest(length, size, &mut |units| {
                        steps += 1;
                        // Units of uneven size.
                        Ok(fixed + units * per_unit + units % 3)
                    });
                    let units = found.unwrap().unwrap();
                    let count = |units: usize| fixed + units * per_unit + units % 3;
                    assert!(count(units) <= length);
                    assert!(count(units + 1) > length || close(count(units), length), "{per_unit} {length} {units}");
                    assert!(steps <= 12, "{steps} steps for {per_unit} {length} from {guess}");
                }
            }
        }
        let none = largest(100, Size { least: 2, most: 50, guess: 9 }, &mut |units| Ok(60 * units)).unwrap();
        assert_eq!(none, None);
        let all = largest(1000, Size { least: 2, most: 50, guess: 9 }, &mut |units| Ok(units)).unwrap();
        assert_eq!(all, Some(50));
    }

    #[test]
    fn too_short_a_length_is_refused_with_what_is_needed() {
        let size = Size { least: 1, most: 10, guess: 1 };
        let error = form().fit(10, size, &mut |_| Ok(draft("It is", "5"))).unwrap_err();
        assert!(error.to_string().starts_with("length 10: the question and 8 tokens"), "{error}");
    }
}
