//! [`run`]: every cell of a [`Suite`] in every attention mode, written down as it comes.

use crate::backend::Backend;
use crate::engine::{Engine, Progress};
use crate::fnv::fnv;
use crate::pattern::AttentionMode;
use crate::{Error, Result, files};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// One prompt of a suite.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The task.
    pub task: String,
    /// Tokens that prompt and answer may take.
    pub length: usize,
    /// The how-manieth of its kind, from 0.
    pub sample: usize,
    /// Where the fact lies, in percent, where the suite varies that.
    pub depth: Option<f64>,
}

/// One prompt in one mode.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The task.
    pub task: String,
    /// Tokens that prompt and answer may take.
    pub length: usize,
    /// The how-manieth of its kind, from 0.
    pub sample: usize,
    /// Where the fact lies, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    /// The mode, as the user wrote it.
    pub attention: String,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// A score of 0 to 1, a perplexity, or seconds: what the suite measures.
    pub score: f64,
    /// Computed pairs over causal pairs, mean over layers and heads.
    pub density: f64,
    /// Seconds of pre-fill.
    pub prefill_s: f64,
    /// A fingerprint of the prompt's token ids, hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prompt: String,
    /// Whether pre-fill's own token begins the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token: Option<bool>,
    /// What is right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// What the model said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<String>,
    /// Mean divergence of this mode's next-token distribution from dense's, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Share of positions whose likeliest token is dense's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// Positions whose loss was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<usize>,
}

impl Row {
    /// A row of a cell, to be filled.
    pub fn of(cell: &Cell) -> Self {
        let Cell { task, length, sample, depth } = cell.clone();
        Self { task, length, sample, depth, ..Self::default() }
    }

    /// Whether this is the cell's row in a mode.
    pub fn answers(&self, cell: &Cell, attention: &str) -> bool {
        self.task == cell.task
            && (self.length, self.sample, self.depth) == (cell.length, cell.sample, cell.depth)
            && self.attention == attention
    }
}

/// What was not done, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Skip {
    /// The task, empty for all.
    pub task: String,
    /// The length, 0 for all.
    pub length: usize,
    /// The mode, empty for all.
    pub attention: String,
    /// The reason.
    pub why: String,
}

impl Skip {
    /// A cell that cannot be done in a mode, or in none where that is empty.
    fn of(cell: &Cell, attention: &str, why: &Error) -> Self {
        Self { task: cell.task.clone(), length: cell.length, attention: attention.into(), why: why.to_string() }
    }
}

/// A mode, and what the user called it.
#[derive(Clone, Debug)]
pub struct Column {
    /// As on the command line: two pattern files are two columns.
    pub label: String,
    /// The mode.
    pub mode: AttentionMode,
}

/// An evaluation.
pub trait Suite: Sync {
    /// What is made once for a cell and given to all modes.
    type Prompt: Send;

    /// All cells, in the order in which they are done.
    fn cells(&self) -> Vec<Cell>;

    /// The cell's prompt, the same whatever was made before. An error that says that it cannot be made (too short a
    /// length, a missing file) skips the cell.
    fn prompt(&self, cell: &Cell) -> Result<Self::Prompt>;

    /// Of the prompt's token ids: another one is another prompt.
    fn fingerprint(prompt: &Self::Prompt) -> u64;

    /// The prompt in a mode. Dense comes first, but may have been measured in an earlier run.
    fn measure<B: Backend>(
        &mut self,
        engine: &mut Engine<B>,
        cell: &Cell,
        prompt: &Self::Prompt,
        mode: &AttentionMode,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Row>;
}

/// What a results file is about. Another run may only add to it if all of this is the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The evaluation.
    pub eval: String,
    /// The model.
    pub model: String,
    /// What else decides results: seed, data, RoPE scaling, chunk.
    pub settings: Map<String, Value>,
}

/// Results, in memory and in a file that is whole at every moment.
pub struct Journal {
    header: Header,
    path: Option<PathBuf>,
    rows: Vec<Row>,
    skipped: BTreeSet<Skip>,
    commands: Vec<String>,
    devices: Vec<String>,
    /// Rows that an earlier run left.
    resumed: usize,
    /// Rows that the file holds.
    saved: usize,
    done: HashSet<u64>,
}

impl Journal {
    /// Begins, or goes on where a file of the same evaluation is.
    ///
    /// # Errors
    /// [`Error::File`] where the file is of another evaluation, model or setting: nothing is overwritten.
    pub fn open(header: Header, path: Option<&Path>, command: &str, device: &str) -> Result<Self> {
        let mut journal = Self {
            header,
            path: path.map(Path::to_path_buf),
            rows: Vec::new(),
            skipped: BTreeSet::new(),
            commands: Vec::new(),
            devices: Vec::new(),
            resumed: 0,
            saved: 0,
            done: HashSet::new(),
        };
        if let Some(path) = path.filter(|path| path.exists()) {
            journal.read(path)?;
        }
        for (list, text) in [(&mut journal.commands, command), (&mut journal.devices, device)] {
            if !list.iter().any(|old| old == text) {
                list.push(text.to_string());
            }
        }
        Ok(journal)
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let bytes = files::read_from(path, files::open(path)?, u64::MAX - 1)?;
        let damaged = |e: &dyn std::fmt::Display| Error::file(path, format!("expected results of `eval`: {e}"));
        let value: Value = serde_json::from_slice(&bytes).map_err(|e| damaged(&e))?;
        let mut expected = vec![("eval", json!(self.header.eval)), ("model", json!(self.header.model))];
        expected.push(("settings", Value::Object(self.header.settings.clone())));
        for (key, expected) in expected {
            let found = &value[key];
            if *found != expected {
                let what = format!("{key}: expected {expected} to add to it, found {found}: give another --out");
                return Err(Error::file(path, what));
            }
        }
        let strings = |key: &str| -> Vec<String> {
            let list = value[key].as_array().into_iter().flatten();
            list.filter_map(|v| v.as_str().map(str::to_string)).collect()
        };
        (self.commands, self.devices) = (strings("commands"), strings("devices"));
        self.rows = Vec::<Row>::deserialize(&value["rows"]).map_err(|e| damaged(&e))?;
        (self.resumed, self.saved) = (self.rows.len(), self.rows.len());
        self.done = self.rows.iter().map(|row| key(row, &row.attention)).collect();
        Ok(())
    }

    /// All rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// What was not done.
    pub fn skipped(&self) -> impl Iterator<Item = &Skip> {
        self.skipped.iter()
    }

    /// Rows that were there before this run.
    pub fn resumed(&self) -> usize {
        self.resumed
    }

    /// Rows that the file holds: fewer than there are where it could not be written.
    pub fn saved(&self) -> usize {
        self.saved
    }

    /// Whether a cell has its row in a mode.
    pub fn has(&self, cell: &Cell, attention: &str) -> bool {
        self.done.contains(&key(&Row::of(cell), attention))
    }

    /// Notes what is not done.
    pub fn skip(&mut self, skip: Skip) {
        self.skipped.insert(skip);
    }

    /// Adds a row and saves.
    pub fn push(&mut self, row: Row) -> Result<()> {
        self.done.insert(key(&row, &row.attention));
        self.rows.push(row);
        self.save()
    }

    /// Writes the file, where there is one.
    pub fn save(&mut self) -> Result<()> {
        if let Some(path) = &self.path {
            files::write(path, format!("{}\n", self.to_json()).as_bytes())?;
            self.saved = self.rows.len();
        }
        Ok(())
    }

    /// All of it, one row a line.
    pub fn to_json(&self) -> String {
        let list = |lines: Vec<String>| match lines.is_empty() {
            true => "[]".to_string(),
            false => format!("[\n{}\n]", lines.join(",\n")),
        };
        let lines = |values: Vec<Value>| list(values.iter().map(Value::to_string).collect());
        format!(
            "{{\"eval\":{},\"model\":{},\"settings\":{},\n\"devices\":{},\n\"commands\":{},\n\"skipped\":{},\n\"rows\":{}}}",
            json!(self.header.eval),
            json!(self.header.model),
            Value::Object(self.header.settings.clone()),
            json!(self.devices),
            json!(self.commands),
            lines(self.skipped.iter().map(|skip| json!(skip)).collect()),
            lines(self.rows.iter().map(|row| json!(row)).collect()),
        )
    }
}

/// A row's place.
fn key(row: &Row, attention: &str) -> u64 {
    fnv(format!("{}\n{}\n{}\n{:?}\n{attention}", row.task, row.length, row.sample, row.depth).as_bytes())
}

/// How far a run is.
pub struct Step<'a> {
    /// The cell at work.
    pub cell: &'a Cell,
    /// The mode at work.
    pub attention: &'a str,
    /// Work done, of `total`.
    pub done: u64,
    /// All work of this run.
    pub total: u64,
}

/// Work of a cell in a mode, roughly: attention outgrows the rest around 8K tokens.
fn weight(cell: &Cell) -> u64 {
    (cell.length + cell.length * cell.length / 8192) as u64
}

/// That the suite still makes the prompts that the journal's rows are of: a change of wording, data or tokenizer would mix
/// two evaluations. One prompt of each task and length is made anew.
pub fn check_prompts<S: Suite>(suite: &S, journal: &Journal) -> Result<()> {
    let rows = journal.rows.iter().filter(|row| !row.prompt.is_empty());
    let rows: HashMap<u64, &Row> = rows.map(|row| (key(row, ""), row)).collect();
    let mut seen = HashSet::new();
    for cell in suite.cells() {
        let Some(row) = rows.get(&key(&Row::of(&cell), "")) else { continue };
        if !seen.insert((&row.task, row.length)) {
            continue;
        }
        let Ok(prompt) = suite.prompt(&cell) else { continue };
        let made = hexadecimal(S::fingerprint(&prompt));
        if made != row.prompt {
            let what = format!(
                "{} at {} tokens: expected rows of prompt {made}, found {}: wording, data or tokenizer changed: give \
                 another --out",
                cell.task, cell.length, row.prompt
            );
            return Err(Error::file(journal.path.as_deref().unwrap_or(Path::new("results")), what));
        }
    }
    Ok(())
}

fn hexadecimal(fingerprint: u64) -> String {
    format!("{fingerprint:016x}")
}

/// Does what the journal does not hold yet: each cell's prompt once, dense first, then the other modes.
///
/// # Errors
/// [`Error::Interrupted`] and failures of the device end the run; what was measured before is in the journal. Cells that
/// cannot be done (too long for the model or the memory, data missing) are skipped and noted.
pub fn run<B: Backend, S: Suite>(
    engine: &mut Engine<B>,
    suite: &mut S,
    columns: &[Column],
    journal: &mut Journal,
    step: &mut dyn FnMut(Step),
) -> Result<()> {
    let cells = suite.cells();
    let open = |journal: &Journal, cell: &Cell| -> Vec<Column> {
        columns.iter().filter(|column| !journal.has(cell, &column.label)).cloned().collect()
    };
    let total: u64 = cells.iter().map(|cell| weight(cell) * open(journal, cell).len() as u64).sum();
    let mut done = 0;
    // Once known to be impossible, not tried again: task, length, mode, all modes where it is empty.
    let mut hopeless: HashSet<(String, usize, String)> = HashSet::new();
    let place = |cell: &Cell, attention: &str| (cell.task.clone(), cell.length, attention.to_string());
    let cells: Vec<&Cell> = cells.iter().filter(|cell| !open(journal, cell).is_empty()).collect();
    // To encode a long prompt takes as long as its pre-fill on a fast device: as many at a time as there are threads.
    for some in cells.chunks(rayon::current_num_threads()) {
        step(Step { cell: some[0], attention: "prompts", done, total });
        let made = some.par_iter().map(|cell| match hopeless.contains(&place(cell, "")) {
            true => None,
            false => Some(suite.prompt(cell)),
        });
        let made: Vec<Option<Result<S::Prompt>>> = made.collect();
        for (cell, prompt) in some.iter().zip(made) {
            let (open, work) = (open(journal, cell), weight(cell));
            let prompt = match prompt {
                Some(Ok(prompt)) => Some(prompt),
                Some(Err(e)) if is_hopeless_error(&e) => {
                    hopeless.insert(place(cell, ""));
                    journal.skip(Skip::of(cell, "", &e));
                    None
                }
                Some(Err(e)) => return Err(e),
                None => None,
            };
            for column in &open {
                let attention = column.label.as_str();
                if let Some(prompt) = prompt.as_ref().filter(|_| !hopeless.contains(&place(cell, attention))) {
                    step(Step { cell, attention, done, total });
                    let mut progress = |p: Progress| {
                        let part = (work as f64 * p.done as f64 / p.total.max(1) as f64) as u64;
                        step(Step { cell, attention, done: done + part, total });
                    };
                    match suite.measure(engine, cell, prompt, &column.mode, &mut progress) {
                        Ok(row) => {
                            let prompt = hexadecimal(S::fingerprint(prompt));
                            journal.push(Row { attention: attention.into(), prompt, ..row })?;
                        }
                        Err(e) if is_hopeless_error(&e) => {
                            hopeless.insert(place(cell, attention));
                            journal.skip(Skip::of(cell, attention, &e));
                        }
                        Err(e) => return Err(e),
                    }
                }
                done += work;
            }
        }
    }
    journal.save()
}

/// Errors of this cell alone.
fn is_hopeless_error(error: &Error) -> bool {
    matches!(error, Error::Invalid(_) | Error::OutOfMemory(_) | Error::Unsupported(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::engine::EngineOptions;
    use crate::model::Model;

    fn model() -> Model {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/needle/model");
        Model::open(&file).unwrap()
    }

    fn header(seed: u64) -> Header {
        let settings = json!({ "seed": seed }).as_object().unwrap().clone();
        Header { eval: "test".into(), model: "m".into(), settings }
    }

    fn columns() -> Vec<Column> {
        ["dense", "a_shape:1:1"]
            .map(|label| Column { label: label.into(), mode: AttentionMode::Uniform(label.parse().unwrap()) })
            .to_vec()
    }

    /// Counts what it is asked to do, and fails on demand.
    #[derive(Default)]
    struct Fake {
        prompts: std::sync::Mutex<Vec<usize>>,
        measured: Vec<(usize, String)>,
        stop_after: usize,
    }

    impl Suite for Fake {
        type Prompt = usize;

        fn cells(&self) -> Vec<Cell> {
            (0..4).map(|sample| Cell { task: "t".into(), length: 10 + sample, sample, depth: Some(12.5) }).collect()
        }

        fn prompt(&self, cell: &Cell) -> Result<usize> {
            self.prompts.lock().unwrap().push(cell.sample);
            match cell.sample {
                2 => Err(Error::invalid("no data")),
                sample => Ok(sample),
            }
        }

        fn fingerprint(prompt: &usize) -> u64 {
            *prompt as u64
        }

        fn measure<B: Backend>(
            &mut self,
            _engine: &mut Engine<B>,
            cell: &Cell,
            prompt: &usize,
            mode: &AttentionMode,
            progress: &mut dyn FnMut(Progress),
        ) -> Result<Row> {
            if self.measured.len() == self.stop_after {
                return Err(Error::Interrupted);
            }
            progress(Progress { done: 1, total: 2, layer: 1, n_layers: 2, tokens: 0 });
            self.measured.push((*prompt, mode.name()));
            match (*prompt, mode.name().as_str()) {
                (3, "a_shape:1:1") => Err(Error::OutOfMemory("large".into())),
                (score, _) => Ok(Row { score: score as f64, ..Row::of(cell) }),
            }
        }
    }

    impl Fake {
        /// The prompts that were made, each once, in any order.
        fn made(&self) -> Vec<usize> {
            let mut made = self.prompts.lock().unwrap().clone();
            made.sort_unstable();
            made
        }
    }

    #[test]
    fn an_interrupted_run_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        let mut engine = Engine::new(Cpu::new(), model(), EngineOptions::default()).unwrap();
        let open = || Journal::open(header(1), Some(&path), "cmd", "cpu").unwrap();

        let mut fake = Fake { stop_after: 3, ..Fake::default() };
        let mut journal = open();
        let error = run(&mut engine, &mut fake, &columns(), &mut journal, &mut |_| ()).unwrap_err();
        assert!(matches!(error, Error::Interrupted));
        assert!(fake.made().starts_with(&[0, 1]));

        let mut journal = open();
        assert_eq!((journal.rows().len(), journal.resumed()), (3, 3));
        let mut fake = Fake { stop_after: 99, ..Fake::default() };
        let mut seen = Vec::new();
        run(&mut engine, &mut fake, &columns(), &mut journal, &mut |s| seen.push((s.done, s.total))).unwrap();
        // Each prompt once, dense before the other, nothing twice.
        assert_eq!(fake.made(), [1, 2, 3]);
        let measured: Vec<_> = fake.measured.iter().map(|(p, m)| (*p, m.as_str())).collect();
        assert_eq!(measured, [(1, "a_shape:1:1"), (3, "dense"), (3, "a_shape:1:1")]);
        assert!(seen.windows(2).all(|w| w[0].0 <= w[1].0) && seen.iter().all(|(done, total)| done <= total));

        let why: Vec<_> = journal.skipped().map(|s| (s.length, s.attention.as_str(), s.why.as_str())).collect();
        assert_eq!(why, [(12, "", "no data"), (13, "a_shape:1:1", "out of memory: large")]);
        let file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(file["rows"].as_array().unwrap().len(), 5);
        assert_eq!(file["skipped"].as_array().unwrap().len(), 2);
        assert_eq!(file["commands"], json!(["cmd"]));
        // What was skipped is tried again.
        let mut fake = Fake { stop_after: 99, ..Fake::default() };
        run(&mut engine, &mut fake, &columns(), &mut open(), &mut |_| ()).unwrap();
        assert_eq!(fake.made(), [2, 3]);
    }

    #[test]
    fn results_of_something_else_are_not_added_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        let mut journal = Journal::open(header(1), Some(&path), "cmd", "cpu").unwrap();
        journal.push(Row { kl: Some(0.1), depth: Some(1.0 / 3.0), ..Row::default() }).unwrap();
        let error = |header| Journal::open(header, Some(&path), "cmd", "cpu").err().unwrap().to_string();
        assert!(error(header(2)).contains("settings: expected {\"seed\":2} to add to it, found {\"seed\":1}"));
        assert!(error(Header { model: "other".into(), ..header(1) }).contains("expected \"other\""));
        let again = Journal::open(header(1), Some(&path), "more", "cpu").unwrap();
        assert_eq!(again.rows(), journal.rows());
        std::fs::write(&path, "{\"eval\": \"te").unwrap();
        assert!(error(header(1)).contains("expected results of `eval`"));
        drop(dir);
        assert!(journal.push(Row::default()).is_err());
        assert_eq!((journal.rows().len(), journal.saved()), (2, 1));
    }
}
