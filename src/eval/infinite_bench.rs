//! InfiniteBench's twelve tasks (Zhang et al. 2024): six made here, six read from its files.
//!
//! The made ones (passkey, number_string, kv_retrieval, code_run, math_find, math_calc) fill the length asked for, where
//! the benchmark's own have about 100K tokens whatever the model; with its files (`--data DIR`) those are taken instead.
//! Prompts of files that are too long lose their middle, as in the benchmark. `math_calc` asks for the first
//! [`CALC_VALUES`] intermediate values only: the benchmark wants up to 30,000 tokens of answer, hours of decoding.
//! Instructions are worded by us.

mod made;
mod record;

use super::ask::Questions;
use super::data::Data;
use super::rng::Rng;
use super::runner::{Cell, Skip};
use super::{Asked, Draft, Form, Metric, Question, Sample, Sizes};
use crate::text::Text;
use crate::{Error, Result, files};
use made::{code_run, key_in_noise, kv, math_calc, math_find};
use record::draft_of;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

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

/// The suite.
pub struct InfiniteBench {
    form: Form,
    files: BTreeMap<String, Vec<Value>>,
    tasks: Vec<String>,
    lengths: Vec<usize>,
    samples: usize,
    seed: u64,
    sizes: Sizes,
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
        if let Some((_, path)) = data.jsonl.iter().find(|(name, _)| !TASKS.contains(&name.as_str())) {
            return Err(Error::file(path, format!("expected the name of a task, one of {}", TASKS.join(", "))));
        }
        let mut files = BTreeMap::new();
        for task in &tasks {
            if let Some(path) = data.jsonl.get(task) {
                files.insert(task.clone(), lines(path, samples)?);
            }
        }
        Ok(Self { form: Form::new(text)?, files, tasks, lengths, samples, seed, sizes: Sizes::default() })
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
        // Two functions and a chain of ten, values enough to order: fewer units say nothing.
        self.sizes.fill(&self.form, cell, self.seed, [12, 1 << 24], &|sample, units, rng| {
            self.draft(&cell.task, sample, units, rng)
        })
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
    let text = files::utf8(path, files::read(path)?)?;
    let line = |(i, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| Error::file(path, format!("line {}: {e}", i + 1)))
    };
    let numbered = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let records: Vec<Value> = numbered.take(most).map(line).collect::<Result<_>>()?;
    match records.is_empty() {
        true => Err(Error::file(path, "expected a JSON object on each line, found none")),
        false => Ok(records),
    }
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

impl Questions for InfiniteBench {
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
}

#[cfg(test)]
mod tests {
    use super::super::tests::form;
    use super::made::spread;
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
        let refused = |name: &str, text: &str| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(name), text).unwrap();
            let data = Data::read(&[dir.path().to_path_buf()]).unwrap();
            let tasks = vec!["code_debug".to_string()];
            InfiniteBench::new(form().text().clone(), &data, tasks, vec![4096], 3, 42).err().unwrap().to_string()
        };
        assert!(refused("code-debug.jsonl", "{}").contains("code-debug.jsonl: expected the name of a task, one of"));
        assert!(refused("code_debug.jsonl", "\n").contains("expected a JSON object on each line, found none"));
        assert!(refused("code_debug.jsonl", "{}\n\n{").contains("code_debug.jsonl: line 3"));
    }
}
