//! `minference eval`: the paper's evaluations, dense beside each mode.

use super::console::{self, Console, table};
use super::device::{DeviceArgs, DeviceTask, with_device};
use super::mode::attention_mode;
use super::run::open_model;
use crate::backend::Backend;
use crate::embedded::NOVEL;
use crate::engine::{Engine, EngineOptions};
use crate::eval::data::Data;
use crate::eval::grid::{self, GridOptions, NeedleGrid};
use crate::eval::infinite_bench::{self, InfiniteBench};
use crate::eval::latency::Latency;
use crate::eval::perplexity::Perplexity;
use crate::eval::report::{self, Score, in_order, mean, median};
use crate::eval::ruler::{self, Ruler};
use crate::eval::runner::{Column, Header, Journal, Row, Skip, Suite, run};
use crate::model::{KvPlace, Model};
use crate::pattern::{AttentionMode, HeadPattern};
use crate::plot::{self, Curves, HeatMap};
use crate::{Error, Result};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub(super) const EXAMPLES: &str = "\
Examples:
  minference eval needle --model needle --lengths 4096 --depths 5 --attention vertical_slash:1000:6096
  minference eval ruler --model DIR --lengths 4K,8K,16K,32K --samples 25 --data squad.json --out ruler.json --plot ruler.svg
  minference eval infinitebench --model DIR --lengths 32K --tasks passkey,kv_retrieval --samples 10
  minference eval perplexity --model DIR --lengths 1K,4K,16K --data books/ --attention config --plot ppl.png
  minference eval latency --model DIR --lengths 8K,32K,128K --rounds 3

Tasks:
  needle         code, kamradt, minference, multi (default: minference, or code for a model without a chat template)
  ruler          niah_single_1..3, niah_multikey_1..3, niah_multivalue, niah_multiquery, vt, cwe, fwe, qa_1, qa_2
  infinitebench  longbook_sum_eng, longbook_qa_eng, longbook_choice_eng, longdialogue_qa_eng, longbook_qa_chn, code_debug,
                 math_find, passkey, number_string, kv_retrieval, code_run, math_calc

Ctrl-C loses nothing: the same command with the same --out goes on. A file of another model or setting is not added to.";

/// What is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// A fact hidden in a text, by length and depth.
    Needle,
    /// RULER's 13 tasks.
    Ruler,
    /// InfiniteBench's 12 tasks.
    #[value(name = "infinitebench")]
    InfiniteBench,
    /// Perplexity of books, and the divergence of the next token's distribution from dense.
    Perplexity,
    /// Seconds of a whole pre-fill.
    Latency,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Needle => "needle",
            Self::Ruler => "ruler",
            Self::InfiniteBench => "infinitebench",
            Self::Perplexity => "perplexity",
            Self::Latency => "latency",
        }
    }
}

/// Arguments of `minference eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// What is evaluated.
    #[arg(value_enum)]
    pub what: What,
    /// A directory (config.json, *.safetensors, tokenizer.json), a .gguf file, its directory, or `needle`, the embedded model.
    #[arg(long, value_name = "PATH")]
    pub model: String,
    /// Tokens of prompt and answer, as 4096 or 4K; without it doubling from 4K (perplexity: 1K) to what the model is made
    /// for, at most 128K.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', value_parser = length)]
    pub lengths: Vec<usize>,
    /// needle: depths, evenly from 0 to 100 percent.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub depths: usize,
    /// Some of the tasks below.
    #[arg(long, value_name = "TASK,..", value_delimiter = ',')]
    pub tasks: Vec<String>,
    /// ruler, infinitebench: prompts for each task and length.
    #[arg(long, value_name = "N", default_value_t = 25)]
    pub samples: usize,
    /// needle: prompts for each length and depth; latency: timed runs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub rounds: usize,
    /// perplexity: positions to score, in blocks of 64 spread evenly; 0 scores all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub positions: usize,
    /// Draws the prompts: the same seed makes the same ones.
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// A pattern for all heads, `config`, or `config:FILE`; may be repeated. Dense is always the first column. Without it:
    /// vertical_slash:1000:6096.
    #[arg(long, value_name = "PATTERN")]
    pub attention: Vec<String>,
    /// An official pattern file, for `--attention config`.
    #[arg(long, value_name = "FILE")]
    pub patterns: Option<PathBuf>,
    /// A file or directory: texts (.txt; default the novel in the program), SQuAD or HotpotQA (.json), InfiniteBench
    /// (.jsonl); may be repeated.
    #[arg(long, value_name = "PATH")]
    pub data: Vec<PathBuf>,
    /// Writes every result as it comes, and goes on from what is there.
    #[arg(long, value_name = "FILE.json")]
    pub out: Option<PathBuf>,
    /// Draws the results, .png or .svg.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Pre-fills in chunks of so many tokens, a multiple of 64; 0 takes a prompt whole.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub chunk: usize,
    /// Replaces the checkpoint's RoPE scaling: none, linear:FACTOR, dynamic:FACTOR or yarn:FACTOR.
    #[arg(long, value_name = "SCALING")]
    pub rope_scaling: Option<String>,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// `4096`, or `4K`.
fn length(text: &str) -> std::result::Result<usize, String> {
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let number = digits.parse::<usize>().ok().and_then(|n| n.checked_mul(factor)).filter(|n| (1..1 << 24).contains(n));
    number.ok_or_else(|| format!("expected tokens as 4096 or 4K, found {text:?}"))
}

/// Runs the subcommand.
pub fn eval(args: &EvalArgs, console: &Console) -> Result<()> {
    for (name, value) in [("--depths", args.depths), ("--samples", args.samples), ("--rounds", args.rounds)] {
        if value == 0 {
            return Err(Error::invalid(format!("{name}: expected at least 1, found 0")));
        }
    }
    if let Some(path) = &args.plot
        && !matches!(path.extension().and_then(|e| e.to_str()), Some("png" | "svg"))
    {
        return Err(Error::invalid(format!("--plot {}: expected .png or .svg", path.display())));
    }
    let mut model = open_model(&args.model)?;
    if let Some(scaling) = &args.rope_scaling {
        model.config.override_rope_scaling(scaling)?;
    }
    let columns = columns(args, &model)?;
    let data = Data::read(&args.data)?;
    with_device(&args.device, console, EvalTask { args, console, model, columns, data })
}

/// Dense, and each mode that is asked for, once.
fn columns(args: &EvalArgs, model: &Model) -> Result<Vec<Column>> {
    let mut columns = vec![Column { label: "dense".into(), mode: AttentionMode::Uniform(HeadPattern::Dense) }];
    let default = vec![HeadPattern::FALLBACK.to_string()];
    for label in if args.attention.is_empty() { &default } else { &args.attention } {
        let patterns = args.patterns.as_deref().filter(|_| label == "config");
        let mode = attention_mode(label, patterns, Some(model))?;
        mode.check_model(model.config.n_layers, model.config.n_heads)?;
        if !columns.iter().any(|column| column.label == *label) {
            columns.push(Column { label: label.clone(), mode });
        }
    }
    Ok(columns)
}

struct EvalTask<'a> {
    args: &'a EvalArgs,
    console: &'a Console,
    model: Model,
    columns: Vec<Column>,
    data: Data,
}

impl DeviceTask for EvalTask<'_> {
    type Output = ();

    fn checkpoint(&self) -> Option<crate::DType> {
        Some(self.model.dtype())
    }

    fn run<B: Backend>(self, backend: B) -> Result<()> {
        let Self { args, console, model, columns, data } = self;
        let text = model.text()?.clone();
        // What nobody decodes from needs no keys and values kept.
        let measures = matches!(args.what, What::Perplexity | What::Latency);
        let tasks = tasks(args, text.chat()?.is_some());
        let answer_room = if tasks.iter().any(|task| task == "longbook_sum_eng") { 1280 } else { 256 };
        let options = EngineOptions {
            chunk: args.chunk,
            kv: if measures && args.chunk == 0 { KvPlace::None } else { KvPlace::Device },
            answer_room,
            // Quality is that of the patterns as they are; time is that of what `run` does.
            exact_index: args.what != What::Latency,
            interrupt: console::interrupt(),
            ..EngineOptions::default()
        };
        let mut settings = json!({
            "seed": args.seed, "chunk": args.chunk, "rope_scaling": args.rope_scaling,
            "data": format!("{:016x}", data.fingerprint()), "dtype": backend.activation().to_string(),
        });
        if args.what == What::Perplexity {
            settings["positions"] = args.positions.into();
        }
        let settings = settings.as_object().cloned().unwrap_or_default();
        let header = Header { eval: args.what.name().into(), model: model.name.clone(), settings };
        let info = backend.info();
        let command: Vec<String> = std::env::args().skip(1).collect();
        let command = format!("minference {}", command.join(" "));
        let journal = Journal::open(header, args.out.as_deref(), &command, &format!("{} {}", info.backend, info.name))?;
        let engine = Engine::new(backend, model, options)?;
        let mut work = Work { args, console, columns: &columns, engine, journal };
        let lengths = work.lengths();
        let novel = match data.texts.first() {
            Some((_, text)) => text.as_str(),
            None => NOVEL,
        };
        match args.what {
            What::Needle => {
                let depths = NeedleGrid::depths(args.depths);
                let options = GridOptions { tasks, lengths, depths, rounds: args.rounds, seed: args.seed };
                work.all(NeedleGrid::new(text, novel, options)?)
            }
            What::Ruler => {
                let ruler = Ruler::new(text, NOVEL, &data, tasks, lengths, args.samples, args.seed)?;
                work.skip(ruler.missing());
                work.all(ruler)
            }
            What::InfiniteBench => {
                let bench = InfiniteBench::new(text, &data, tasks, lengths, args.samples, args.seed)?;
                work.skip(bench.missing());
                work.all(bench)
            }
            What::Perplexity => {
                let own = [("Northanger Abbey".to_string(), NOVEL.to_string())];
                let books = if data.texts.is_empty() { &own[..] } else { &data.texts };
                work.all(Perplexity::new(&text, books, lengths, args.positions)?)
            }
            What::Latency => work.all(Latency::new(&text, novel, lengths, args.rounds)?),
        }
    }
}

fn tasks(args: &EvalArgs, is_chat: bool) -> Vec<String> {
    let all: &[&str] = match args.what {
        _ if !args.tasks.is_empty() => return args.tasks.clone(),
        What::Needle if is_chat => &grid::TASKS[2..3],
        What::Needle => &grid::TASKS[..1],
        What::Ruler => &ruler::TASKS,
        What::InfiniteBench => &infinite_bench::TASKS,
        What::Perplexity | What::Latency => &[],
    };
    all.iter().map(|task| task.to_string()).collect()
}

struct Work<'a, B: Backend> {
    args: &'a EvalArgs,
    console: &'a Console,
    columns: &'a [Column],
    engine: Engine<B>,
    journal: Journal,
}

impl<B: Backend> Work<'_, B> {
    /// The lengths that this model and device can do; the others are noted.
    fn lengths(&mut self) -> Vec<usize> {
        let most = self.engine.config().max_positions;
        let first = if self.args.what == What::Perplexity { 1024 } else { 4096 };
        let mut lengths = self.args.lengths.clone();
        if lengths.is_empty() {
            lengths =
                std::iter::successors(Some(first), |n| Some(n * 2)).take_while(|&n| n <= most.min(131_072)).collect();
            if lengths.is_empty() {
                lengths.push(most);
            }
        }
        lengths.sort_unstable();
        lengths.dedup();
        lengths.retain(|&length| {
            let name = &self.engine.model().name;
            let why = match self.engine.plan(length).check() {
                _ if length > most => format!("{name} is made for at most {most} tokens"),
                Err(e) => e.to_string(),
                Ok(()) => return true,
            };
            self.journal.skip(Skip { task: String::new(), length, attention: String::new(), why });
            false
        });
        lengths
    }

    fn skip(&mut self, skips: Vec<Skip>) {
        skips.into_iter().for_each(|skip| self.journal.skip(skip));
    }

    /// Runs the suite, and reports on what there is, all of it or not.
    fn all<S: Suite>(&mut self, mut suite: S) -> Result<()> {
        let Self { args, console, columns, engine, journal } = self;
        let cells = suite.cells();
        let resumed = cells.iter().flat_map(|cell| columns.iter().filter(|c| journal.has(cell, &c.label))).count();
        let asked = cells.len() * columns.len();
        console.note(&format!(
            "{} of {}: {} prompts in {} modes{}",
            args.what.name(),
            engine.model().name,
            cells.len(),
            columns.len(),
            if resumed > 0 { format!(", {resumed} of {asked} results are there already") } else { String::new() }
        ));
        // Kernels compile before anything is timed.
        let warm: Vec<u32> = vec![0; 256];
        if resumed < asked {
            for column in columns.iter() {
                engine.reset();
                engine.prefill(&warm, &column.mode, &mut |_| ())?;
            }
        }
        let bar = console.bar(0, args.what.name());
        let ended = run(engine, &mut suite, columns, journal, &mut |step| {
            bar.set_length(step.total);
            bar.set_position(step.done);
            let depth = step.cell.depth.map_or(String::new(), |depth| format!(" at {depth:.0} %"));
            let length = report::tokens(step.cell.length);
            bar.set_message(format!("{} {length}{depth} {}", step.cell.task, step.attention));
        });
        bar.finish_and_clear();
        // Rows of earlier runs at other lengths or in other modes are shown, too.
        ended.and(self.show())
    }

    fn show(&self) -> Result<()> {
        let Self { args, console, journal, .. } = self;
        let report = Report::new(args.what, journal.rows());
        if console.json {
            let mut all: Value = serde_json::from_str(&journal.to_json())
                .map_err(|e| Error::invalid(format!("results as JSON: {e}")))?;
            all["summary"] = report.json();
            console.print_json(&all);
        } else {
            console.print(&report.text(console.colours()));
        }
        for skip in journal.skipped() {
            let or_all = |text: String, all: &str| if text.is_empty() { all.to_string() } else { text };
            let length = if skip.length > 0 { report::tokens(skip.length) } else { "any length".into() };
            let task = or_all(skip.task.clone(), "all tasks");
            let mode = or_all(skip.attention.clone(), "all modes");
            console.note(&format!("skipped {task}, {length}, {mode}: {}", skip.why));
        }
        if let Some(path) = &args.plot
            && !report.rows.is_empty()
        {
            report.plot(path, &format!("{} on {}", self.engine.model().name, self.engine.backend().info().name))?;
            console.note(&format!("wrote {}", path.display()));
        }
        if let Some(path) = &args.out {
            console.note(&format!("{} results in {}", journal.rows().len(), path.display()));
        }
        Ok(())
    }
}

/// Rows as tables and pictures.
struct Report<'a> {
    what: What,
    rows: &'a [Row],
    modes: Vec<&'a str>,
    lengths: Vec<usize>,
    tasks: Vec<&'a str>,
    scores: Vec<Score>,
}

impl<'a> Report<'a> {
    fn new(what: What, rows: &'a [Row]) -> Self {
        let mut lengths = in_order(rows.iter().map(|row| row.length));
        lengths.sort_unstable();
        Self {
            what,
            rows,
            modes: in_order(rows.iter().map(|row| row.attention.as_str())),
            lengths,
            tasks: in_order(rows.iter().map(|row| row.task.as_str())),
            scores: report::scores(rows),
        }
    }

    fn here(&self, attention: &str, length: usize) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.attention == attention && row.length == length)
    }

    fn json(&self) -> Value {
        match self.what {
            What::Perplexity | What::Latency => {
                let point = |mode: &str, length: usize| {
                    let mut point = json!({
                        "attention": mode, "length": length, "n": self.here(mode, length).count(),
                        "density": mean(self.here(mode, length).map(|r| r.density)),
                    });
                    if self.what == What::Latency {
                        point["seconds"] = json!(median(self.here(mode, length).map(|r| r.score).collect()));
                    } else {
                        point["perplexity"] = json!(mean(self.here(mode, length).map(|r| r.score)));
                        point["kl"] = json!(mean(self.here(mode, length).filter_map(|r| r.kl)));
                        point["agreement"] = json!(mean(self.here(mode, length).filter_map(|r| r.agreement)));
                    }
                    point
                };
                let points = self.modes.iter().flat_map(|mode| self.lengths.iter().map(|&length| point(mode, length)));
                Value::Array(points.collect())
            }
            _ => {
                let (lengths, lines) = report::lines(&self.scores, ruler::EFFECTIVE, false);
                let weak: Vec<Value> = report::not_telling(&self.scores)
                    .into_iter()
                    .map(|(task, length, score)| json!({"task": task, "length": length, "dense": score}))
                    .collect();
                let overall: Vec<Value> = report::overall(self.rows)
                    .into_iter()
                    .map(|(attention, paired)| json!({"attention": attention, "paired": paired}))
                    .collect();
                json!({"scores": self.scores, "lengths": lengths, "lines": lines, "dense_under_50": weak, "overall": overall})
            }
        }
    }

    fn text(&self, colours: bool) -> String {
        if self.rows.is_empty() {
            return "no results\n".into();
        }
        match self.what {
            What::Perplexity => self.perplexity_table(),
            What::Latency => self.latency_table(),
            What::Needle => {
                let maps: String = self.maps().iter().map(|map| map.terminal(colours) + "\n").collect();
                maps + &self.beside_dense()
            }
            What::Ruler | What::InfiniteBench => self.means() + "\n" + &self.by_task() + "\n" + &self.beside_dense(),
        }
    }

    /// A line for each mode, a column for each length.
    fn means(&self) -> String {
        let weak = report::not_telling(&self.scores);
        let mut out = String::new();
        for telling in [false, true] {
            if telling && weak.is_empty() {
                continue;
            }
            let (lengths, lines) = report::lines(&self.scores, ruler::EFFECTIVE, telling);
            let mut head = vec!["attention".to_string()];
            head.extend(lengths.iter().map(|&n| report::tokens(n)));
            head.push("average".into());
            if self.what == What::Ruler {
                head.push("effective".into());
            }
            let rows: Vec<Vec<String>> = lines
                .iter()
                .map(|line| {
                    let mut row = vec![line.attention.clone()];
                    row.extend(line.means.iter().map(|mean| number(*mean, 1)));
                    row.push(number(line.average, 1));
                    if self.what == What::Ruler {
                        row.push(match (line.effective, lengths.first()) {
                            (0, Some(&least)) => format!("<{}", report::tokens(least)),
                            (n, _) => report::tokens(n),
                        });
                    }
                    row
                })
                .collect();
            let head: Vec<&str> = head.iter().map(String::as_str).collect();
            out += &match telling {
                false => format!("mean over {} tasks\n", self.tasks.len()),
                true => {
                    let list =
                        weak.iter().map(|(task, n, score)| format!("{task} {} ({score:.0})", report::tokens(*n)));
                    let list = list.collect::<Vec<_>>().join(", ");
                    format!("\nthe same without tasks where dense scores under {:.0}: {list}\n", report::TELLING)
                }
            };
            out += &table(&head, &rows);
        }
        out
    }

    fn by_task(&self) -> String {
        let mut head = vec!["task", "tokens", "n"];
        head.extend(&self.modes);
        let mut rows = Vec::new();
        for &length in &self.lengths {
            for &task in &self.tasks {
                let cell: Vec<&Score> = self.scores.iter().filter(|s| s.task == task && s.length == length).collect();
                let Some(n) = cell.iter().map(|s| s.n).min() else { continue };
                let mut row = vec![task.to_string(), report::tokens(length), n.to_string()];
                let score = |mode: &&str| cell.iter().find(|s| s.attention == *mode).map(|s| s.score);
                row.extend(self.modes.iter().map(|mode| number(score(mode), 1)));
                rows.push(row);
            }
        }
        table(&head, &rows)
    }

    /// Wins and losses of each mode, in points.
    fn beside_dense(&self) -> String {
        let overall = report::overall(self.rows);
        let row = |mode: &&str| {
            let mine = || self.rows.iter().filter(|row| row.attention == **mode);
            let first = mine().filter_map(|row| row.first_token).map(|found| 100.0 * f64::from(u8::from(found)));
            let mut row = vec![
                mode.to_string(),
                number(mean(mine().map(|row| 100.0 * row.score)), 1),
                number(mean(first), 1),
                number(mean(mine().map(|row| row.density)), 3),
            ];
            match overall.iter().find(|(name, _)| name == mode) {
                Some((_, p)) => row.extend([
                    p.n.to_string(),
                    p.wins.to_string(),
                    p.losses.to_string(),
                    format!("{:+.1}", 100.0 * p.difference),
                    format!("{:+.1} to {:+.1}", 100.0 * p.low, 100.0 * p.high),
                ]),
                None => row.extend(["", "", "", "", ""].map(String::from)),
            }
            row
        };
        let rows: Vec<Vec<String>> = self.modes.iter().map(row).collect();
        let head = [
            "attention",
            "score",
            "first token",
            "density",
            "pairs",
            "wins",
            "losses",
            "points to dense",
            "95 % interval",
        ];
        let note = match report::not_telling(&self.scores).is_empty() {
            true => String::new(),
            false => format!("pairs leave out tasks and lengths where dense scores under {:.0}\n", report::TELLING),
        };
        table(&head, &rows) + &note
    }

    fn perplexity_table(&self) -> String {
        let head = ["attention", "tokens", "books", "perplexity", "to dense", "KL, nats", "same top", "density"];
        let mut rows = Vec::new();
        for &length in &self.lengths {
            let dense = mean(self.here("dense", length).map(|row| row.score));
            for mode in &self.modes {
                let n = self.here(mode, length).count();
                let Some(score) = mean(self.here(mode, length).map(|row| row.score)) else { continue };
                rows.push(vec![
                    mode.to_string(),
                    report::tokens(length),
                    n.to_string(),
                    format!("{score:.3}"),
                    dense.map_or(String::new(), |dense| format!("{:+.2} %", 100.0 * (score / dense - 1.0))),
                    number(mean(self.here(mode, length).filter_map(|row| row.kl)), 4),
                    number(mean(self.here(mode, length).filter_map(|row| row.agreement)), 3),
                    number(mean(self.here(mode, length).map(|row| row.density)), 3),
                ]);
            }
        }
        table(&head, &rows)
    }

    fn latency_table(&self) -> String {
        let head = ["attention", "tokens", "runs", "seconds", "least", "most", "tokens/s", "times dense", "density"];
        let seconds = |mode: &str, length| -> Vec<f64> { self.here(mode, length).map(|row| row.score).collect() };
        let mut rows = Vec::new();
        for &length in &self.lengths {
            let dense = median(seconds("dense", length));
            for mode in &self.modes {
                let all = seconds(mode, length);
                let Some(middle) = median(all.clone()) else { continue };
                rows.push(vec![
                    mode.to_string(),
                    report::tokens(length),
                    all.len().to_string(),
                    format!("{middle:.3}"),
                    format!("{:.3}", all.iter().copied().fold(f64::INFINITY, f64::min)),
                    format!("{:.3}", all.iter().copied().fold(0.0, f64::max)),
                    format!("{:.0}", length as f64 / middle),
                    number(dense.map(|dense| dense / middle), 2),
                    number(mean(self.here(mode, length).map(|row| row.density)), 3),
                ]);
            }
        }
        table(&head, &rows)
    }

    /// Needle: depths by lengths for each task and mode. InfiniteBench: tasks by modes for each length.
    fn maps(&self) -> Vec<HeatMap> {
        let columns: Vec<String> = self.lengths.iter().map(|&n| report::tokens(n)).collect();
        if self.what == What::InfiniteBench {
            return self.lengths.iter().map(|&length| self.map_of_tasks(length)).collect();
        }
        let mut depths: Vec<f64> = in_order(self.rows.iter().filter_map(|row| row.depth));
        depths.sort_by(f64::total_cmp);
        let mut maps = Vec::new();
        for task in &self.tasks {
            for mode in &self.modes {
                let mine = || self.rows.iter().filter(|row| row.task == *task && row.attention == *mode);
                let Some(score) = mean(mine().map(|row| row.score)) else { continue };
                let cell = |depth: f64, length: usize| {
                    let here = mine().filter(|row| row.depth == Some(depth) && row.length == length);
                    mean(here.map(|row| row.score)).unwrap_or(f64::NAN)
                };
                let density = mean(mine().map(|row| row.density)).unwrap_or(0.0);
                maps.push(HeatMap {
                    title: format!(
                        "{task}, {mode}: {:.1} % of {}, density {density:.2}",
                        100.0 * score,
                        mine().count()
                    ),
                    x_label: "tokens".into(),
                    y_label: "depth %".into(),
                    columns: columns.clone(),
                    rows: depths.iter().map(|depth| format!("{depth:.0}")).collect(),
                    values: depths.iter().map(|&d| self.lengths.iter().map(|&n| cell(d, n)).collect()).collect(),
                });
            }
        }
        maps
    }

    fn map_of_tasks(&self, length: usize) -> HeatMap {
        let score = |task: &str, mode: &str| {
            let found = self.scores.iter().find(|s| s.task == task && s.attention == mode && s.length == length);
            found.map_or(f64::NAN, |s| s.score / 100.0)
        };
        HeatMap {
            title: report::tokens(length),
            x_label: "attention".into(),
            y_label: "task".into(),
            columns: self.modes.iter().map(|mode| mode.to_string()).collect(),
            rows: self.tasks.iter().map(|task| task.to_string()).collect(),
            values: self.tasks.iter().map(|task| self.modes.iter().map(|mode| score(task, mode)).collect()).collect(),
        }
    }

    fn plot(&self, path: &Path, about: &str) -> Result<()> {
        let y_label = match self.what {
            What::Needle => return plot::save(path, &format!("Needle in a haystack: {about}"), &self.maps()),
            What::InfiniteBench => return plot::save(path, &format!("InfiniteBench: {about}"), &self.maps()),
            What::Ruler => "mean score",
            What::Perplexity => "perplexity",
            What::Latency => "seconds of pre-fill",
        };
        let (lengths, lines) = report::lines(&self.scores, ruler::EFFECTIVE, false);
        let value = |mode: &str, length: usize| match self.what {
            What::Ruler => {
                let line = lines.iter().find(|line| line.attention == mode)?;
                line.means[lengths.iter().position(|&n| n == length)?]
            }
            What::Perplexity => mean(self.here(mode, length).map(|row| row.score)),
            _ => median(self.here(mode, length).map(|row| row.score).collect()),
        };
        let line = |mode: &&str| {
            let points = self.lengths.iter().filter_map(|&n| Some((n as f64, value(mode, n)?)));
            (mode.to_string(), points.collect())
        };
        plot::save_curves(
            path,
            &Curves {
                title: about.to_string(),
                x_label: "tokens".into(),
                y_label: y_label.into(),
                lines: self.modes.iter().map(line).collect(),
                log_y: self.what == What::Latency,
            },
        )
    }
}

/// With so many decimals, or a dash for what there is not.
fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::runner::Cell;

    fn row(task: &str, length: usize, depth: Option<f64>, attention: &str, score: f64) -> Row {
        let cell = Cell { task: task.into(), length, sample: 0, depth };
        Row { attention: attention.into(), score, density: 0.5, kl: Some(0.25), ..Row::of(&cell) }
    }

    #[test]
    fn lengths_are_numbers_or_thousands() {
        assert_eq!((length("4096"), length("4K"), length("128k")), (Ok(4096), Ok(4096), Ok(131_072)));
        for wrong in ["", "K", "4M", "-1", "0", "99999999999999999999"] {
            assert!(length(wrong).unwrap_err().ends_with(&format!("found {wrong:?}")));
        }
    }

    #[test]
    fn tables_say_what_was_measured() {
        let rows = [
            row("vt", 4096, None, "dense", 1.0),
            row("vt", 4096, None, "flex:0.9", 0.8),
            row("cwe", 4096, None, "dense", 0.3),
            row("cwe", 4096, None, "flex:0.9", 0.9),
        ];
        let text = Report::new(What::Ruler, &rows).text(false);
        assert!(text.contains("mean over 2 tasks") && text.contains("dense scores under 50: cwe 4K (30)"), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["attention", "4K", "average", "effective"]);
        assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["dense", "65.0", "65.0", "<4K"]);
        assert!(text.contains("-20.0"), "{text}");

        let rows = [row("b", 1000, None, "dense", 10.0), row("b", 1000, None, "flex:0.9", 11.0)];
        let text = Report::new(What::Perplexity, &rows).text(false);
        assert!(text.contains("+10.00 %") && text.contains("0.2500"), "{text}");
        let text = Report::new(What::Latency, &rows).text(false);
        assert!(text.contains("0.91"), "{text}");
        assert_eq!(Report::new(What::Latency, &[]).text(false), "no results\n");
    }

    #[test]
    fn pictures_have_a_map_for_each_mode_and_a_line_for_each() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = Vec::new();
        for (depth, mode, score) in [(0.0, "dense", 1.0), (50.0, "dense", 1.0), (0.0, "flex:0.9", 0.0)] {
            rows.extend([4096, 8192].map(|length| row("code", length, Some(depth), mode, score)));
        }
        let report = Report::new(What::Needle, &rows);
        let maps = report.maps();
        assert_eq!((maps.len(), maps[1].values[0].as_slice()), (2, [0.0, 0.0].as_slice()));
        assert!(maps[1].values[1][0].is_nan(), "not done is not wrong");
        for (what, name) in [(What::Needle, "n.svg"), (What::InfiniteBench, "i.png"), (What::Ruler, "r.svg")] {
            let path = dir.path().join(name);
            Report::new(what, &rows).plot(&path, "model on device").unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() > 1000);
        }
    }
}
