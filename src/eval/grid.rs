//! Needle in a haystack: lengths x depths x rounds, in four forms.
//!
//! | task | the fact | scored |
//! | --- | --- | --- |
//! | `code` | the secret code of a name, as the embedded model learned it ([`super::needle`]) | the whole code |
//! | `kamradt` | the best thing to do in a city: two activities and a day, after the first test of this kind | share of the three found, by text, where that test asked a judge |
//! | `minference` | the special magic number of a city on a line of its own, as in the paper's experiments | the number found |
//! | `multi` | four codes, spread evenly from the depth to the end, asked one by one on one document | share of the four |

use super::ask::Questions;
use super::essay::{Essay, hide};
use super::needle::{ANSWER_TOKENS, Needle, NeedleTest};
use super::rng::Rng;
use super::runner::Cell;
use super::words::{CITIES, list};
use super::{Asked, Draft, Form, Metric, Question, Sample, Size};
use crate::text::Text;
use crate::{Error, Result};
use std::sync::Arc;

/// The forms of the test.
pub const TASKS: [&str; 4] = ["code", "kamradt", "minference", "multi"];

/// Facts of `multi`.
const FACTS: usize = 4;

/// What one may do in a city.
const ACTIVITIES: [&str; 14] = [
    "eat a sandwich",
    "drink a cup of coffee",
    "read an old book",
    "take a long walk",
    "listen to the music",
    "feed the ducks",
    "paint a picture",
    "climb the tower",
    "visit the museum",
    "buy fresh bread",
    "play a game of chess",
    "sail a small boat",
    "look at the stars",
    "fly a kite",
];
/// And when.
const DAYS: [&str; 6] = ["sunny day", "rainy day", "cold morning", "warm evening", "windy afternoon", "summer night"];

/// Lengths, depths and rounds of the test.
#[derive(Clone, Debug)]
pub struct GridOptions {
    /// Of [`TASKS`].
    pub tasks: Vec<String>,
    /// Tokens of prompt and answer.
    pub lengths: Vec<usize>,
    /// In percent.
    pub depths: Vec<f64>,
    /// Prompts for each length and depth.
    pub rounds: usize,
    /// Draws facts and places in the text.
    pub seed: u64,
}

/// The suite.
pub struct NeedleGrid {
    form: Form,
    essay: Essay,
    test: NeedleTest,
    options: GridOptions,
}

impl NeedleGrid {
    /// For a model, in a text.
    pub fn new(text: Arc<Text>, essay: &str, options: GridOptions) -> Result<Self> {
        super::known(&options.tasks, &TASKS)?;
        Ok(Self {
            form: Form::new(text.clone())?,
            essay: Essay::new(essay)?,
            test: NeedleTest::new(text, essay)?,
            options,
        })
    }

    /// `n` depths evenly from 0 to 100 percent; one is the middle.
    pub fn depths(n: usize) -> Vec<f64> {
        match n {
            1 => vec![50.0],
            n => (0..n).map(|i| 100.0 * i as f64 / (n - 1) as f64).collect(),
        }
    }

    /// The cell's prompt in words, of so many words of the text; not for `code`, which counts tokens.
    pub fn draft(&self, cell: &Cell, words: usize) -> Result<Draft> {
        let depth = cell.depth.unwrap_or(50.0);
        let mut rng = Rng::of(self.options.seed, &cell.task, &[cell.length, cell.sample, depth.to_bits() as usize]);
        let first_sentence = rng.below(1 << 20);
        let question = |text, stem, references| Question { text, stem, references };
        let mut facts = Vec::new();
        let (mut questions, mut metric, mut max_new) = (Vec::new(), Metric::All, 32);
        let mut intro = "Here is a long document. Answer the question at its end by what it says.\n\n";
        match cell.task.as_str() {
            "kamradt" => {
                let city = rng.pick(&list(CITIES)).to_string();
                let [a, b] = rng.distinct(ACTIVITIES.len(), 2)[..] else {
                    return Err(Error::invalid("two activities were to be drawn"));
                };
                let (a, b, day) = (ACTIVITIES[a], ACTIVITIES[b], *rng.pick(&DAYS));
                facts.push((depth, format!("The best thing to do in {city} is {a} and {b} on a {day}.")));
                questions.push(question(
                    format!("What is the best thing to do in {city}?"),
                    format!("The best thing to do in {city} is"),
                    [a, b, day].map(String::from).to_vec(),
                ));
            }
            "minference" => {
                intro =
                    "Answer the question well, from the search results below alone; some of them may not matter.\n\n";
                let city = rng.pick(&list(CITIES)).to_string();
                let number = rng.digits(7);
                facts.push((depth, format!("\nThe special magic {city} number is: {number}\n")));
                questions.push(question(
                    format!("What is the special magic {city} number? Keep to the document, and be short and direct."),
                    format!("The special magic {city} number is:"),
                    vec![number],
                ));
            }
            "multi" => {
                let mut needles: Vec<Needle> = Vec::new();
                while needles.len() < FACTS {
                    let needle = Needle::draw(rng.bits());
                    // One name may not be the beginning of another.
                    let apart = |old: &Needle| old.name.split(' ').next() != needle.name.split(' ').next();
                    if needles.iter().all(apart) {
                        needles.push(needle);
                    }
                }
                for (i, needle) in needles.iter().enumerate() {
                    facts.push((depth + (100.0 - depth) * i as f64 / FACTS as f64, needle.sentence()));
                    let stem = format!("The secret code of {} is", needle.name);
                    questions.push(question(needle.question(), stem, vec![needle.digits.clone()]));
                }
                (metric, max_new) = (Metric::Code, ANSWER_TOKENS);
            }
            other => return Err(Error::invalid(format!("needle task {other:?} has no draft"))),
        }
        let intro = if self.form.is_chat() { intro } else { "" };
        let context = format!("{intro}{}", hide(&self.essay.read(first_sentence, words), &facts));
        Ok(Draft { context, questions, metric, max_new })
    }

    fn code(&self, cell: &Cell) -> Result<Sample> {
        let depth = cell.depth.unwrap_or(50.0);
        let numbers = [cell.length, cell.sample, depth.to_bits() as usize];
        let needle = Needle::draw(Rng::of(self.options.seed, "code", &numbers).bits());
        let Some(tokens) = cell.length.checked_sub(ANSWER_TOKENS) else {
            return Err(Error::invalid(format!("length {}: no room for a prompt", cell.length)));
        };
        let prompt = self.test.prompt(&needle, tokens, depth)?;
        let asked = Asked { ids: prompt.ids, references: vec![prompt.expected] };
        Ok(Sample { questions: vec![asked], metric: Metric::Code, max_new: ANSWER_TOKENS })
    }
}

impl Questions for NeedleGrid {
    fn cells(&self) -> Vec<Cell> {
        let GridOptions { tasks, lengths, depths, rounds, .. } = &self.options;
        let mut cells = Vec::new();
        // Round by round: an interrupted study has whole grids.
        for sample in 0..*rounds {
            for &length in lengths {
                for task in tasks {
                    let cell = |&depth| Cell { task: task.clone(), length, sample, depth: Some(depth) };
                    cells.extend(depths.iter().map(cell));
                }
            }
        }
        cells
    }

    fn prompt(&self, cell: &Cell) -> Result<Sample> {
        if cell.task == "code" {
            return self.code(cell);
        }
        let size = Size { least: 1, most: 1 << 24, guess: cell.length * 2 / 3 };
        Ok(self.form.fit(cell.length, size, &mut |words| self.draft(cell, words))?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{chat_form, form, novel};
    use super::*;

    fn grid(chat: bool) -> NeedleGrid {
        let options = GridOptions {
            tasks: TASKS.map(String::from).to_vec(),
            lengths: vec![2048, 4096],
            depths: NeedleGrid::depths(3),
            rounds: 2,
            seed: 42,
        };
        let mut grid = NeedleGrid::new(form().text().clone(), &novel(), options).unwrap();
        if chat {
            grid.form = chat_form();
        }
        grid
    }

    #[test]
    fn every_prompt_has_its_length_its_fact_at_its_depth_and_ends_before_the_value() {
        for chat in [false, true] {
            let grid = grid(chat);
            let cells = grid.cells();
            assert_eq!(cells.len(), 4 * 2 * 3 * 2);
            for cell in &cells {
                let sample = grid.prompt(cell).unwrap();
                let used = sample.tokens() + sample.max_new;
                assert!(used <= cell.length && used * 100 >= cell.length * 98, "{cell:?}: {used}");
                let facts = if cell.task == "multi" { FACTS } else { 1 };
                assert_eq!(sample.questions.len(), facts);
                for (i, asked) in sample.questions.iter().enumerate() {
                    let words = grid.form.text().tokenizer.decode(&asked.ids);
                    let value = &asked.references[0];
                    assert_eq!(words.matches(value.as_str()).count(), 1, "{cell:?}: {value}");
                    let hay = words.find("Question: ").or(words.find("<bot>")).unwrap();
                    let found = 100.0 * words.find(value.as_str()).unwrap() as f64 / hay as f64;
                    let depth = cell.depth.unwrap();
                    let depth = depth + (100.0 - depth) * i as f64 / facts as f64;
                    // The novel has sentences of half a page.
                    assert!((found - depth).abs() < 10.0, "{cell:?}: {found} for {depth}");
                    let last = words.chars().next_back().unwrap();
                    assert_eq!(last == ' ', value.starts_with(|c: char| c.is_ascii_digit()), "{cell:?}: {last:?}");
                }
                let documents: Vec<_> = sample.questions.iter().map(|q| &q.ids[..cell.length / 2]).collect();
                assert!(documents.windows(2).all(|w| w[0] == w[1]), "questions share their document");
            }
        }
    }

    #[test]
    fn a_seed_makes_the_same_prompts_in_any_order_and_cells_differ() {
        let (a, mut b) = (grid(false), grid(false));
        let cells = a.cells();
        let forwards: Vec<u64> = cells.iter().map(|c| a.prompt(c).unwrap().fingerprint()).collect();
        let mut backwards: Vec<u64> = cells.iter().rev().map(|c| b.prompt(c).unwrap().fingerprint()).collect();
        backwards.reverse();
        assert_eq!(forwards, backwards);
        let set: std::collections::BTreeSet<_> = forwards.iter().collect();
        assert_eq!(set.len(), forwards.len());
        b.options.seed = 43;
        assert_ne!(b.prompt(&cells[0]).unwrap().fingerprint(), forwards[0]);
    }

    #[test]
    fn unknown_tasks_are_refused_with_the_known_ones() {
        let mut options = grid(false).options;
        options.tasks.push("haystack".into());
        let error = NeedleGrid::new(form().text().clone(), &novel(), options).err().unwrap().to_string();
        assert_eq!(error, "task \"haystack\": expected one of code, kamradt, minference, multi");
    }
}
