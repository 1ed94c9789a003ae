//! The thirteen tasks' prompts in words.

use super::super::essay::hide;
use super::super::rng::Rng;
use super::super::{Draft, Metric, Question, words};
use super::{Ruler, max_new};
use crate::{Error, Result};

/// One line of noise.
pub(super) const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// What a needle task hides, and in what.
struct Niah {
    haystack: Haystack,
    uuid_keys: bool,
    uuid_values: bool,
    keys: usize,
    values: usize,
    queries: usize,
}

enum Haystack {
    Noise,
    Essay,
    Needles,
}

fn niah(task: &str) -> Option<Niah> {
    let plain =
        Niah { haystack: Haystack::Essay, uuid_keys: false, uuid_values: false, keys: 1, values: 1, queries: 1 };
    Some(match task {
        "niah_single_1" => Niah { haystack: Haystack::Noise, ..plain },
        "niah_single_2" => plain,
        "niah_single_3" => Niah { uuid_values: true, ..plain },
        "niah_multikey_1" => Niah { keys: 4, ..plain },
        "niah_multikey_2" => Niah { haystack: Haystack::Needles, ..plain },
        "niah_multikey_3" => Niah { haystack: Haystack::Needles, uuid_keys: true, uuid_values: true, ..plain },
        "niah_multivalue" => Niah { values: 4, ..plain },
        "niah_multiquery" => Niah { keys: 4, queries: 4, ..plain },
        _ => return None,
    })
}

impl Ruler {
    /// A task's prompt of so many units, drawn by `rng`.
    pub fn draft(&self, task: &str, length: usize, units: usize, rng: &mut Rng) -> Result<Draft> {
        let max_new = max_new(task);
        let (context, question, stem, references, metric) = match task {
            "vt" => vt(units, rng),
            "cwe" => self.cwe(length, units, rng),
            "fwe" => fwe(length, units, rng),
            "qa_1" | "qa_2" => self.qa(task, units, rng)?,
            _ => self.niah(task, units, rng)?,
        };
        let questions = vec![Question { text: question, stem, references }];
        Ok(Draft { context, questions, metric, max_new })
    }

    fn niah(&self, task: &str, units: usize, rng: &mut Rng) -> Result<Words> {
        let Some(niah) = niah(task) else {
            return Err(Error::invalid(format!("no RULER task {task:?}")));
        };
        let distractors = if matches!(niah.haystack, Haystack::Needles) { units } else { 0 };
        let what = if niah.uuid_values { "uuid" } else { "number" };
        let mut keys = match niah.uuid_keys {
            true => (0..niah.keys + distractors).map(|_| rng.uuid()).collect(),
            false => words::keys(rng, niah.keys + distractors),
        };
        let fact = |key: &str, value: &str| format!("One of the special magic {what}s for {key} is: {value}.");
        let value = |rng: &mut Rng| if niah.uuid_values { rng.uuid() } else { rng.digits(7) };
        let others = keys.split_off(niah.keys);
        let mut facts = Vec::new();
        let mut answers = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            for _ in 0..niah.values {
                let value = value(rng);
                facts.push(fact(key, &value));
                if i < niah.queries {
                    answers.push(value);
                }
            }
        }
        rng.shuffle(&mut facts);
        let text = match niah.haystack {
            Haystack::Essay => {
                let sentences = self.essay.read(rng.below(1 << 20), units);
                // Forty depths, none twice.
                let depths = rng.distinct(40, facts.len()).into_iter().map(|d| (100.0 * d as f64 / 39.0).round());
                hide(&sentences, &depths.zip(facts).collect::<Vec<_>>())
            }
            Haystack::Noise => lines_with(vec![NOISE.to_string(); units], facts, rng),
            Haystack::Needles => {
                let others: Vec<String> = others.iter().map(|key| fact(key, &value(rng))).collect();
                lines_with(others, facts, rng)
            }
        };
        let asked = listed(&keys[..niah.queries]);
        let (hidden, them, ask, stem) = match answers.len() {
            1 => (
                format!("A special magic {what} is hidden"),
                what.to_string(),
                format!("What is the special magic {what} for {asked} mentioned in the provided text?"),
                format!("The special magic {what} for {asked} mentioned in the provided text is"),
            ),
            _ => (
                format!("Some special magic {what}s are hidden"),
                format!("{what}s"),
                format!("What are all the special magic {what}s for {asked} mentioned in the provided text?"),
                format!("The special magic {what}s for {asked} mentioned in the provided text are"),
            ),
        };
        let context =
            format!("{hidden} in the text below. Keep it in mind: there will be a question about the {them}.\n{text}");
        Ok((context, ask, stem, answers, Metric::All))
    }

    fn cwe(&self, length: usize, units: usize, rng: &mut Rng) -> Words {
        let (often, seldom) = if length < 4096 { (6, 1) } else { (30, 3) };
        let example = word_list(&words::vocabulary(rng, self.essay.words(), 40), 10, 3, rng);
        let (text, common) = word_list(&words::vocabulary(rng, self.essay.words(), units), often, seldom, rng);
        let ask = "Which 10 words appear most often in the list above?";
        let stem = "The 10 words that appear most often in the list are:";
        let numbered = |words: &[String]| {
            words.iter().enumerate().map(|(i, word)| format!("{}. {word}", i + 1)).collect::<Vec<_>>().join(" ")
        };
        let intro =
            "Below is a numbered list of words. Some of them appear more often than others. Keep those in mind.\n";
        let context =
            format!("{intro}{}\nQuestion: {ask} Answer: {stem} {}\n\n{intro}{text}", example.0, numbered(&example.1));
        (context, ask.into(), stem.into(), common, Metric::All)
    }

    fn qa(&self, task: &str, units: usize, rng: &mut Rng) -> Result<Words> {
        let Some(Some(set)) = self.questions(task) else {
            return Err(Error::invalid(format!("{task} lacks its data")));
        };
        if set.questions.is_empty() {
            return Err(Error::invalid(format!("{task}: expected questions with answers in the data, found none")));
        }
        let question = rng.pick(&set.questions);
        let mut chosen: Vec<usize> = question.near.iter().copied().take(units.max(question.gold)).collect();
        let mut rest: Vec<usize> = (0..set.documents.len()).filter(|d| !question.near.contains(d)).collect();
        rng.shuffle(&mut rest);
        chosen.extend(rest.into_iter().take(units.saturating_sub(chosen.len())));
        rng.shuffle(&mut chosen);
        let documents = chosen.iter().enumerate();
        let text: Vec<String> =
            documents.map(|(i, &at)| format!("Document {}:\n{}", i + 1, set.documents[at])).collect();
        let rule = "Answer the question from the documents. Give the answer alone, without any other words.";
        let context = format!("{rule}\n\nThese are the documents.\n\n{}\n\n{rule}", text.join("\n\n"));
        Ok((context, question.question.clone(), "Answer:".into(), question.answers.clone(), Metric::Any))
    }
}

/// Context, question, beginning of the answer, references, metric.
type Words = (String, String, String, Vec<String>, Metric);

/// `a`, `a and b`, `a, b, and c`.
fn listed(keys: &[String]) -> String {
    match keys {
        [] => String::new(),
        [one] => one.clone(),
        [one, other] => format!("{one} and {other}"),
        [first @ .., last] => format!("{}, and {last}", first.join(", ")),
    }
}

/// Lines with facts put in at random places, in their order.
fn lines_with(lines: Vec<String>, facts: Vec<String>, rng: &mut Rng) -> String {
    let mut places: Vec<usize> = facts.iter().map(|_| rng.below(lines.len() + 1)).collect();
    places.sort_unstable();
    let mut facts = places.into_iter().zip(facts).peekable();
    let mut out = Vec::with_capacity(lines.len());
    for (i, line) in lines.into_iter().enumerate() {
        while let Some((_, fact)) = facts.next_if(|(place, _)| *place <= i) {
            out.push(fact);
        }
        out.push(line);
    }
    out.extend(facts.map(|(_, fact)| fact));
    out.join("\n")
}

/// A chain of five variables with one value, in lines of noise; and a small one with its answer before it.
fn vt(units: usize, rng: &mut Rng) -> Words {
    const HOPS: usize = 4;
    let chain = |letters: usize, units: usize, rng: &mut Rng| {
        let mut names: Vec<String> = Vec::new();
        while names.len() < HOPS + 1 {
            let name = rng.letters(letters, 'A');
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let value = rng.digits(5);
        let mut steps = vec![format!("VAR {} = {value}", names[0])];
        steps.extend(names.windows(2).map(|pair| format!("VAR {} = VAR {} ", pair[1], pair[0])));
        (lines_with(vec![NOISE.to_string(); units], steps, rng), names, value)
    };
    let intro = "Follow the chain of variable assignments in the text below, and keep it in mind.\n\n";
    let ask = |value: &str| format!("Find all variables that are assigned the value {value} in the text above.");
    let stem = |value: &str| {
        format!(
            "By the chain of variable assignments in the text above, {} variables are assigned the value {value}, they are:",
            HOPS + 1
        )
    };
    let (text, names, value) = chain(3, 6, rng);
    let example = format!("{intro}{text}\nQuestion: {} Answer: {} {}\n\n", ask(&value), stem(&value), names.join(" "));
    let (text, names, value) = chain(5, units, rng);
    (format!("{example}{intro}{text}"), ask(&value), stem(&value), names, Metric::All)
}

/// A numbered list in which the first ten words appear often, and which they are.
fn word_list(words: &[String], often: usize, seldom: usize, rng: &mut Rng) -> (String, Vec<String>) {
    let common = words[..words.len().min(10)].to_vec();
    let mut all: Vec<&str> = Vec::new();
    for (i, word) in words.iter().enumerate() {
        all.extend(std::iter::repeat_n(word.as_str(), if i < common.len() { often } else { seldom }));
    }
    rng.shuffle(&mut all);
    let numbered: Vec<String> = all.iter().enumerate().map(|(i, word)| format!("{}. {word}", i + 1)).collect();
    (numbered.join(" "), common)
}

/// Words with counts that fall as a power law; the most frequent one is `...`, and the next three are asked for.
fn fwe(length: usize, units: usize, rng: &mut Rng) -> Words {
    const ALPHA: f64 = 2.0;
    const ZETA: f64 = std::f64::consts::PI * std::f64::consts::PI / 6.0;
    let mut vocabulary: Vec<String> = Vec::new();
    let mut known = std::collections::BTreeSet::new();
    while vocabulary.len() < (length / 50).max(5) {
        let word = rng.letters(6, 'a');
        if known.insert(word.clone()) {
            vocabulary.push(word);
        }
    }
    vocabulary[0] = "...".into();
    let mut all: Vec<&str> = Vec::new();
    for (i, word) in vocabulary.iter().enumerate() {
        let count = (units as f64 * ((i + 1) as f64).powf(-ALPHA) / ZETA) as usize;
        all.extend(std::iter::repeat_n(word.as_str(), count));
    }
    rng.shuffle(&mut all);
    let context = format!(
        "Read the coded text below and count how often each coded word appears. Find the three that appear most often.\n{}",
        all.join(" ")
    );
    let ask = "Do not explain anything, and leave the dots '....' aside. Which three coded words appear most often in the \
               coded text above?";
    let stem = "By the coded text above, the three words that appear most often are:";
    (context, ask.into(), stem.into(), vocabulary[1..4].to_vec(), Metric::All)
}
