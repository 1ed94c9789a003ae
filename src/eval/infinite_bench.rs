//! InfiniteBench's twelve tasks (Zhang et al. 2024): six made here, six read from its files.
//!
//! The made ones (passkey, number_string, kv_retrieval, code_run, math_find, math_calc) fill the length asked for, where
//! the benchmark's own have about 100K tokens whatever the model; with its files (`--data DIR`) those are taken instead.
//! Prompts of files that are too long lose their middle, as in the benchmark. `math_calc` asks for the first
//! [`CALC_VALUES`] intermediate values only: the benchmark wants up to 30,000 tokens of answer, hours of decoding.
//! Instructions are worded by us.

use super::data::Data;
use super::rng::Rng;
use super::runner::{Cell, Row, Skip, Suite};
use super::{Asked, Draft, Form, Metric, Question, Sample, Size, ask};
use crate::backend::Backend;
use crate::engine::{Engine, Progress};
use crate::pattern::AttentionMode;
use crate::text::Text;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The tasks, in the order of the paper's table, and the two that it leaves out.
pub const TASKS: [&str; 12] = [
    "longbook_sum_eng",
    "longbook_qa_eng",
    "longbook_choice_eng",
    "longdialogue_qa_eng",
    "longbook_qa_chn",
    "code_debug",
    "math_find",
    "passkey",
    "number_string",
    "kv_retrieval",
    "code_run",
    "math_calc",
];

/// Those that need no file.
pub const MADE: [&str; 6] = ["math_find", "passkey", "number_string", "kv_retrieval", "code_run", "math_calc"];

/// Intermediate values of `math_calc` that are asked for and scored.
pub const CALC_VALUES: usize = 40;

/// Noise around a key.
const NOISE: &str = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// The suite.
pub struct InfiniteBench {
    form: Form,
    files: BTreeMap<String, Vec<Value>>,
    tasks: Vec<String>,
    lengths: Vec<usize>,
    samples: usize,
    seed: u64,
    /// Units of a task at a length, as far as known.
    sizes: Mutex<BTreeMap<(String, usize), usize>>,
}

impl InfiniteBench {
    /// For a model.
    pub fn new(
        text: Arc<Text>,
        data: &Data,
        tasks: Vec<String>,
        lengths: Vec<usize>,
        samples: usize,
        seed: u64,
    ) -> Result<Self> {
        super::known(&tasks, &TASKS)?;
        let mut files = BTreeMap::new();
        for task in &tasks {
            if let Some(path) = data.jsonl.get(task) {
                files.insert(task.clone(), lines(path, samples)?);
            }
        }
        Ok(Self { form: Form::new(text)?, files, tasks, lengths, samples, seed, sizes: Mutex::default() })
    }

    /// Tasks that are asked for and lack their file.
    pub fn missing(&self) -> Vec<Skip> {
        let lacks = |task: &&String| !self.files.contains_key(*task) && !MADE.contains(&task.as_str());
        let skip = |task: &String| Skip {
            task: task.clone(),
            length: 0,
            attention: String::new(),
            why: format!("needs {task}.jsonl of InfiniteBench: --data DIR"),
        };
        self.tasks.iter().filter(lacks).map(skip).collect()
    }

    /// A made prompt of so many units.
    pub fn draft(&self, task: &str, sample: usize, units: usize, rng: &mut Rng) -> Result<Draft> {
        let (context, text, stem, references) = match task {
            "passkey" | "number_string" => key_in_noise(task, sample, units, rng),
            "kv_retrieval" => kv(sample, units, rng),
            "math_find" => math_find(sample, units, rng),
            "math_calc" => math_calc(units, rng),
            "code_run" => code_run(sample, units, rng),
            other => return Err(Error::invalid(format!("InfiniteBench task {other:?} cannot be made"))),
        };
        let (metric, max_new) = scoring(task);
        Ok(Draft { context, questions: vec![Question { text, stem, references }], metric, max_new })
    }

    fn made(&self, cell: &Cell) -> Result<Sample> {
        let (task, length) = (cell.task.as_str(), cell.length);
        let place = (task.to_string(), length);
        // Two functions and a chain of ten, values enough to order: fewer units say nothing.
        let (least, most) = (12, 1 << 24);
        let known = self.sizes.lock().unwrap_or_else(PoisonError::into_inner).get(&place).copied();
        let guess = match known {
            Some(units) => units,
            None => {
                let size = Size { least, most, guess: (length / 40).max(least) };
                let (units, _) = self.form.fit(length, size, &mut |units| {
                    self.draft(task, 0, units, &mut Rng::of(self.seed, task, &[length]))
                })?;
                self.sizes.lock().unwrap_or_else(PoisonError::into_inner).insert(place, units);
                units
            }
        };
        let (_, sample) = self.form.fit(length, Size { least, most, guess }, &mut |units| {
            self.draft(task, cell.sample, units, &mut Rng::of(self.seed, task, &[length, cell.sample]))
        })?;
        Ok(sample)
    }

    fn read(&self, cell: &Cell, record: &Value) -> Result<Sample> {
        let draft = draft_of(&cell.task, record)?;
        let question = &draft.questions[0];
        let ids = self.form.encode(&draft.context, question)?;
        let Some(room) = cell.length.checked_sub(draft.max_new).filter(|room| *room > 0) else {
            return Err(Error::invalid(format!("length {}: no room for a prompt", cell.length)));
        };
        let asked = Asked { ids: without_middle(ids, room), references: question.references.clone() };
        Ok(Sample { questions: vec![asked], metric: draft.metric, max_new: draft.max_new })
    }
}

/// The first and the last half of what fits.
pub fn without_middle(ids: Vec<u32>, room: usize) -> Vec<u32> {
    if ids.len() <= room {
        return ids;
    }
    let first = room / 2;
    [&ids[..first], &ids[ids.len() - (room - first)..]].concat()
}

fn lines(path: &Path, most: usize) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let line = |(i, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| Error::file(path, format!("line {}: {e}", i + 1)))
    };
    text.lines().filter(|line| !line.trim().is_empty()).take(most).enumerate().map(line).collect()
}

/// Metric, and tokens of an answer as the paper's experiments allow them.
fn scoring(task: &str) -> (Metric, usize) {
    match task {
        "passkey" => (Metric::FirstInteger, 15),
        "number_string" => (Metric::FirstInteger, 20),
        "kv_retrieval" => (Metric::Word, 80),
        "longbook_sum_eng" => (Metric::RougeLSum, 1200),
        "longbook_qa_eng" => (Metric::F1English, 40),
        "longbook_choice_eng" => (Metric::Choice, 40),
        "longdialogue_qa_eng" => (Metric::Name, 40),
        "longbook_qa_chn" => (Metric::F1Chinese, 40),
        "code_debug" => (Metric::Debug, 5),
        "code_run" => (Metric::LastInteger, 5),
        "math_find" => (Metric::FirstNumber, 3),
        _ => (Metric::Leading, 4 * CALC_VALUES),
    }
}

/// A record of the data set as a prompt.
fn draft_of(task: &str, record: &Value) -> Result<Draft> {
    let text = |key: &str| record[key].as_str().unwrap_or_default().to_string();
    let (context, input) = (text("context"), text("input"));
    let mut references: Vec<String> = match &record["answer"] {
        Value::Array(list) => list.iter().flat_map(flat).collect(),
        one => flat(one),
    };
    let options: Vec<String> = record["options"].as_array().into_iter().flatten().flat_map(flat).collect();
    let lettered: Vec<String> =
        options.iter().zip('A'..).map(|(option, letter)| format!("{letter}. {option}")).collect();
    let lettered = lettered.join("\n");
    if !options.is_empty() {
        // The right option's letter is as right as its text.
        let letter = options.iter().zip('A'..).find(|(option, _)| references.first() == Some(option));
        references.extend(letter.map(|(_, letter)| letter.to_string()));
    }
    if references.is_empty() || (context.is_empty() && input.is_empty()) {
        return Err(Error::invalid(format!(
            "{task}: expected context, input and answer in its record, found {record:.200}"
        )));
    }
    let (intro, question, stem) = match task {
        "passkey" | "number_string" => (KEY_INTRO, input, key_stem(task)),
        "kv_retrieval" => (KV_INTRO, input, "The value is:"),
        "longbook_sum_eng" => ("Read this book.", "Summarise the book in a few paragraphs.".into(), "Summary:"),
        "longbook_qa_eng" => ("Read the book, then answer the question as briefly as you can.", input, "Answer:"),
        "longbook_choice_eng" => (
            "Read the book, then answer the question.",
            format!("{input}\n{lettered}"),
            "The letter of the right answer is",
        ),
        "longdialogue_qa_eng" => (
            "In the script below one name is replaced by \"$$MASK$$\". Find out whose name it is.",
            input,
            "The name behind $$MASK$$ is probably",
        ),
        "longbook_qa_chn" => ("请读下面的书，然后尽量简短地回答问题。", input, "答案："),
        "code_debug" => (
            "In the Python code below exactly one function has a planted error that makes it crash.",
            format!("{input}\n{lettered}"),
            "The right option is:",
        ),
        "code_run" => (CODE_INTRO, input, "It returns"),
        "math_find" => ("", format!("{}\n{input}", text("prompt")), "The number is"),
        _ => (CALC_INTRO, input, "The values are:"),
    };
    let context = if intro.is_empty() { context } else { format!("{intro}\n\n{context}") };
    let (metric, max_new) = scoring(task);
    if metric == Metric::Leading {
        references.truncate(CALC_VALUES);
    }
    let questions = vec![Question { text: question.trim().to_string(), stem: stem.into(), references }];
    Ok(Draft { context, questions, metric, max_new })
}

/// Texts and numbers of a JSON value, lists within lists too.
fn flat(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().flat_map(flat).collect(),
        Value::String(text) => vec![text.clone()],
        Value::Null => Vec::new(),
        other => vec![other.to_string()],
    }
}

/// Context, question, beginning of the answer, references.
type Words = (String, String, String, Vec<String>);

/// A place among `of` for a sample: few samples spread over all of them, and many go through each.
fn spread(sample: usize, of: usize) -> usize {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    (((sample as f64 + 0.5) * GOLDEN).fract() * of as f64) as usize
}

const KEY_INTRO: &str = "An important fact is hidden in much text that does not matter. Find it and keep it in mind: there will \
                         be a question about it.";

fn key_stem(task: &str) -> &'static str {
    if task == "passkey" { "The pass key is" } else { "The sequence of digits is" }
}

/// One of 59 places, as in the benchmark.
fn key_in_noise(task: &str, sample: usize, units: usize, rng: &mut Rng) -> Words {
    let (key, fact, ask) = if task == "passkey" {
        let key = rng.digits(5);
        let fact = format!("The pass key is {key}. Remember it. {key} is the pass key.");
        (key, fact, "What is the pass key?")
    } else {
        // Five digits, five of them doubled at random: a string that is easily copied wrongly.
        let mut key: Vec<u8> = rng.digits(5).into_bytes();
        while key.len() < 10 {
            let at = rng.below(key.len());
            key.insert(at, key[at]);
        }
        let key = String::from_utf8_lossy(&key).into_owned();
        let fact = format!("The sequence of digits is {key}. Remember it. {key} is the sequence of digits.");
        (key, fact, "What is the sequence of digits?")
    };
    let mut lines = vec![NOISE; units];
    lines.insert(spread(sample, 59) * units / 58, &fact);
    (format!("{KEY_INTRO}\n\n{}", lines.join("\n")), ask.into(), key_stem(task).into(), vec![key])
}

const KV_INTRO: &str = "Find the value of a key in the JSON object below.";

fn kv(sample: usize, units: usize, rng: &mut Rng) -> Words {
    let pairs: Vec<(String, String)> = (0..units).map(|_| (rng.uuid(), rng.uuid())).collect();
    let (key, value) = pairs[spread(sample, units)].clone();
    let body: Vec<String> = pairs.iter().map(|(key, value)| format!("\"{key}\": \"{value}\"")).collect();
    let context = format!("{KV_INTRO}\n\nJSON data:\n{{{}}}", body.join(", "));
    // Without the marks around it: a model that repeats them would begin its answer with one, and decoding would find the
    // value.
    (context, format!("Key: {key}\nWhat is its value?"), format!("The value of {key} is:"), vec![value])
}

/// The seven kinds in turn. The range of the values is drawn, so that the answer cannot be guessed.
fn math_find(sample: usize, units: usize, rng: &mut Rng) -> Words {
    // An odd number of values has a middle one.
    let n = units | 1;
    let (low, high) = (rng.between(0, 40), rng.between(60, 99));
    let mut values: Vec<i64> = (0..n).map(|_| rng.between(low, high)).collect();
    let mut sorted = values.clone();
    sorted.sort_unstable();
    let median = sorted[n / 2];
    sorted.dedup();
    let (what, answer) = match sample % 7 {
        0 => ("largest number", sorted[sorted.len() - 1]),
        1 => ("second largest number (different from the largest)", sorted[sorted.len().saturating_sub(2)]),
        2 => ("third largest number (of different ones)", sorted[sorted.len().saturating_sub(3)]),
        3 => ("smallest number", sorted[0]),
        4 => ("second smallest number (different from the smallest)", sorted[1.min(sorted.len() - 1)]),
        5 => ("third smallest number (of different ones)", sorted[2.min(sorted.len() - 1)]),
        _ => ("median", median),
    };
    rng.shuffle(&mut values);
    let list: Vec<String> = values.iter().map(i64::to_string).collect();
    let context = format!("Here is a list of numbers. There will be a question about it.\n\n[{}]", list.join(", "));
    let short = what.split(" (").next().unwrap_or(what);
    (
        context,
        format!("What is the {what} of the list? Say the number only."),
        format!("The {short} is"),
        vec![answer.to_string()],
    )
}

const CALC_INTRO: &str = "Work through the long expression below from left to right, and give the value after each operation. \
                          For 1 + 3 - 2 the values are 1, 4, 2.";

fn math_calc(units: usize, rng: &mut Rng) -> Words {
    let mut value = rng.between(0, 99);
    let mut values = vec![value];
    let mut expression = value.to_string();
    for _ in 1..units.max(2) {
        // Never out of 0 to 99: the answer is not about large numbers.
        let next = rng.between(0, 99);
        let (sign, term) = if next >= value { ('+', next - value) } else { ('-', value - next) };
        expression += &format!(" {sign} {term}");
        value = next;
        values.push(value);
    }
    let references: Vec<String> = values.iter().take(CALC_VALUES).map(i64::to_string).collect();
    let ask = format!("Give the first {} values, the first number included.", references.len());
    (format!("{CALC_INTRO}\n\n{expression}"), ask, "The values are:".into(), references)
}

const CODE_INTRO: &str = "Here are Python functions. There will be a question about one of them.";

/// Functions that add a constant to another function's value; the one asked for goes 2 to 10 calls deep.
fn code_run(sample: usize, units: usize, rng: &mut Rng) -> Words {
    let depth = [2, 4, 6, 8, 10][sample % 5];
    let n = units.max(depth);
    let mut names: Vec<usize> = (0..n).collect();
    rng.shuffle(&mut names);
    let x = rng.between(-10, 10);
    let mut result = x;
    let mut bodies = Vec::new();
    for i in 0..n {
        let constant = rng.between(-12, 17);
        // The chain comes first; the others call any function before them, so that none calls itself.
        let callee = match i {
            0 => None,
            i if i < depth => Some(i - 1),
            i => (rng.below(4) > 0).then(|| rng.below(i)),
        };
        if i < depth {
            result += constant;
        }
        let called = callee.map_or("x".to_string(), |callee| format!("func_{}(x)", names[callee]));
        let sign = if constant < 0 { '-' } else { '+' };
        bodies.push(format!("def func_{}(x):\n    return {called} {sign} {}", names[i], constant.abs()));
    }
    rng.shuffle(&mut bodies);
    let call = format!("func_{}({x})", names[depth - 1]);
    let ask = format!("What does {call} return? Say the number only.");
    (format!("{CODE_INTRO}\n\n{}", bodies.join("\n\n")), ask, format!("{call} returns"), vec![result.to_string()])
}

impl Suite for InfiniteBench {
    type Prompt = Sample;

    fn cells(&self) -> Vec<Cell> {
        let missing: Vec<String> = self.missing().into_iter().map(|skip| skip.task).collect();
        let mut cells = Vec::new();
        for sample in 0..self.samples {
            for &length in &self.lengths {
                let has = |task: &&String| {
                    !missing.contains(task) && self.files.get(*task).is_none_or(|records| sample < records.len())
                };
                let tasks = self.tasks.iter().filter(has);
                cells.extend(tasks.map(|task| Cell { task: task.clone(), length, sample, depth: None }));
            }
        }
        cells
    }

    fn prompt(&self, cell: &Cell) -> Result<Sample> {
        match self.files.get(&cell.task) {
            Some(records) => self.read(cell, &records[cell.sample]),
            None => self.made(cell),
        }
    }

    fn measure<B: Backend>(
        &mut self,
        engine: &mut Engine<B>,
        cell: &Cell,
        prompt: &Sample,
        mode: &AttentionMode,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Row> {
        ask::measure(engine, cell, prompt, mode, progress)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::form;
    use super::*;
    use serde_json::json;

    fn bench(tasks: &[&str], data: &Data) -> InfiniteBench {
        let tasks = tasks.iter().map(|t| t.to_string()).collect();
        InfiniteBench::new(form().text().clone(), data, tasks, vec![4096], 3, 42).unwrap()
    }

    #[test]
    fn made_prompts_fill_their_length_and_repeat_by_seed() {
        let (a, b) = (bench(&MADE, &Data::default()), bench(&MADE, &Data::default()));
        let cells = a.cells();
        assert_eq!(cells.len(), 18);
        for cell in cells.iter().rev() {
            let sample = a.prompt(cell).unwrap();
            let used = sample.tokens() + sample.max_new;
            // A pair of UUIDs alone is more than 2 % of 4K.
            let unit = if cell.task == "kv_retrieval" { 160 } else { 82 };
            assert!(used <= 4096 && used + unit >= 4096, "{cell:?}: {used}");
        }
        for cell in &cells {
            assert_eq!(a.prompt(cell).unwrap().fingerprint(), b.prompt(cell).unwrap().fingerprint());
        }
    }

    fn made(task: &str, sample: usize, seed: u64) -> (String, Question, Draft) {
        let draft = bench(&[], &Data::default()).draft(task, sample, 201, &mut Rng::new(seed)).unwrap();
        (draft.context.clone(), draft.questions[0].clone(), draft)
    }

    #[test]
    fn keys_and_values_are_where_they_should_be() {
        let mut places = Vec::new();
        for sample in 0..8 {
            let (context, question, draft) = made("passkey", sample, 5);
            let key = &question.references[0];
            assert_eq!((key.len(), context.matches(key.as_str()).count(), draft.max_new), (5, 2, 15));
            places.push(100 * context.find(key.as_str()).unwrap() / context.len());
            let (context, question, draft) = made("number_string", sample, 5);
            let key = &question.references[0];
            assert_eq!((key.len(), context.matches(key.as_str()).count(), draft.max_new), (10, 2, 20));
            assert!(key.as_bytes().windows(2).filter(|w| w[0] == w[1]).count() >= 5, "{key}");
            let (context, question, draft) = made("kv_retrieval", sample, 5);
            let key = &question.text[5..41];
            assert!(question.stem.ends_with(&format!("{key} is:")), "{}", question.stem);
            assert!(context.contains(&format!("\"{key}\": \"{}\"", question.references[0])));
            assert_eq!((context.matches("\": \"").count(), draft.max_new), (201, 80));
        }
        places.sort_unstable();
        assert!(places[0] < 20 && places[7] > 80, "few samples go over the whole text: {places:?}");
        let all: std::collections::BTreeSet<usize> = (0..400).map(|sample| spread(sample, 59)).collect();
        assert_eq!(all.len(), 59);
    }

    #[test]
    fn numbers_are_found_by_their_definition() {
        for sample in 0..14 {
            let (context, question, _) = made("math_find", sample, sample as u64);
            let list = context.split('[').nth(1).unwrap().trim_end_matches(']');
            let mut values: Vec<i64> = list.split(", ").map(|v| v.parse().unwrap()).collect();
            values.sort_unstable();
            let median = values[values.len() / 2];
            values.dedup();
            let n = values.len();
            let expected = [values[n - 1], values[n - 2], values[n - 3], values[0], values[1], values[2], median];
            assert_eq!(question.references, [expected[sample % 7].to_string()], "{}", question.text);
        }
    }

    #[test]
    fn expressions_and_functions_have_the_values_that_they_compute() {
        for seed in 0..5 {
            let (context, question, draft) = made("math_calc", 0, seed);
            let expression = context.rsplit("\n\n").next().unwrap();
            let terms: Vec<&str> = expression.split(' ').collect();
            let mut value: i64 = terms[0].parse().unwrap();
            let mut values = vec![value];
            for pair in terms[1..].chunks(2) {
                let term: i64 = pair[1].parse().unwrap();
                value += if pair[0] == "+" { term } else { -term };
                assert!((0..=99).contains(&value));
                values.push(value);
            }
            assert_eq!(values.len(), 201);
            let first: Vec<String> = values.iter().take(CALC_VALUES).map(i64::to_string).collect();
            assert_eq!(question.references, first);
            assert_eq!((draft.max_new, draft.metric), (160, Metric::Leading));

            let (context, question, _) = made("code_run", seed as usize, seed);
            let bodies: BTreeMap<&str, &str> = context
                .split("def ")
                .skip(1)
                .map(|f| (f.split('(').next().unwrap(), f.split("return ").nth(1).unwrap().trim()))
                .collect();
            assert_eq!(bodies.len(), 201);
            let (mut name, x) = question.stem.strip_suffix(" returns").unwrap().split_once('(').unwrap();
            let mut value: i64 = x.trim_end_matches(')').parse().unwrap();
            let mut calls = 0;
            loop {
                let parts: Vec<&str> = bodies[name].split(' ').collect();
                let constant: i64 = parts[2].parse().unwrap();
                value += if parts[1] == "+" { constant } else { -constant };
                calls += 1;
                match parts[0].strip_suffix("(x)") {
                    Some(callee) => name = callee,
                    None => break,
                }
            }
            assert_eq!(calls, [2, 4, 6, 8, 10][seed as usize % 5]);
            assert_eq!(question.references, [value.to_string()]);
        }
    }

    #[test]
    fn records_of_the_data_set_become_prompts() {
        let choice =
            json!({"context": "The book.", "input": "Who?", "answer": ["Ann"], "options": ["Bob", "Ann", "Cy", "Di"]});
        let draft = draft_of("longbook_choice_eng", &choice).unwrap();
        assert_eq!(draft.questions[0].references, ["Ann", "B"]);
        assert!(draft.questions[0].text.ends_with("A. Bob\nB. Ann\nC. Cy\nD. Di"));
        assert_eq!((draft.metric, draft.max_new), (Metric::Choice, 40));
        let calc = json!({"context": "1 + 2", "input": "Go.", "answer": [1, 3]});
        assert_eq!(draft_of("math_calc", &calc).unwrap().questions[0].references, ["1", "3"]);
        let find = json!({"context": "[1, 2]", "prompt": "Find it.", "input": "Largest?", "answer": 2});
        assert_eq!(draft_of("math_find", &find).unwrap().questions[0].references, ["2"]);
        assert!(draft_of("longbook_qa_eng", &json!({"context": "x"})).is_err());
    }

    #[test]
    fn too_long_prompts_lose_their_middle_and_missing_files_are_named() {
        assert_eq!(without_middle(vec![1, 2, 3, 4, 5, 6], 3), [1, 5, 6]);
        assert_eq!(without_middle(vec![1, 2, 3], 3), [1, 2, 3]);
        let dir = tempfile::tempdir().unwrap();
        let book =
            json!({"context": "A sentence of the book. ".repeat(3000), "input": "Who?", "answer": ["Ann", "Bob"]});
        std::fs::write(dir.path().join("longbook_qa_eng.jsonl"), format!("{book}\n{book}\n")).unwrap();
        let data = Data::read(&[dir.path().to_path_buf()]).unwrap();
        let bench = bench(&["longbook_qa_eng", "code_debug"], &data);
        let cells = bench.cells();
        assert_eq!(cells.len(), 2, "as many as the file holds");
        let sample = bench.prompt(&cells[1]).unwrap();
        assert_eq!((sample.tokens(), sample.max_new), (4096 - 40, 40));
        let words = form().text().tokenizer.decode(&sample.questions[0].ids);
        assert!(words.starts_with("Read the book") && words.contains("Who?"), "{words}");
        let missing: Vec<_> = bench.missing().into_iter().map(|skip| skip.task).collect();
        assert_eq!(missing, ["code_debug"]);
    }
}
