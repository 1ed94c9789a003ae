//! `minference eval`: the paper's evaluations, dense beside each mode.

mod results;

use super::console::{self, Console};
use super::device::{DeviceArgs, DeviceTask, with_device};
use super::mode::{ExtraArgs, attention_mode};
use super::run::open_model;
use crate::backend::Backend;
use crate::embedded::NOVEL;
use crate::engine::{Engine, EngineOptions};
use crate::eval::data::Data;
use crate::eval::grid::{self, GridOptions, NeedleGrid};
use crate::eval::infinite_bench::{self, InfiniteBench};
use crate::eval::latency::Latency;
use crate::eval::perplexity::Perplexity;
use crate::eval::report;
use crate::eval::ruler::{self, Ruler};
use crate::eval::runner::{Column, Header, Journal, Skip, Suite, check_prompts, run};
use crate::model::{KvPlace, Model};
use crate::pattern::{AttentionMode, HeadPattern};
use crate::{Error, Result, files, plot};
use clap::{Args, ValueEnum};
use results::Report;
use serde_json::{Value, json};
use std::path::PathBuf;

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

    /// As pictures call it.
    fn title(self) -> &'static str {
        match self {
            Self::Needle => "Needle in a haystack",
            Self::Ruler => "RULER",
            Self::InfiniteBench => "InfiniteBench",
            Self::Perplexity => "Perplexity",
            Self::Latency => "Latency",
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
    /// What is added to every attention but the dense column's.
    #[command(flatten)]
    pub extras: ExtraArgs,
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
pub(super) fn length(text: &str) -> std::result::Result<usize, String> {
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1024),
        None => (text, 1),
    };
    let number =
        digits.parse::<usize>().ok().and_then(|n| n.checked_mul(factor)).filter(|n| (1..=MOST_TOKENS).contains(n));
    number.ok_or_else(|| format!("expected 1 to {MOST_TOKENS} tokens, as 4096 or 4K, found {text:?}"))
}

/// Longest prompt that can be asked for.
const MOST_TOKENS: usize = 1 << 24;

/// Most depths, samples and rounds: more would take years, and memory to list them.
const MOST: usize = 100_000;

/// Runs the subcommand.
pub fn eval(args: &EvalArgs, console: &Console) -> Result<()> {
    for (name, value) in [("--depths", args.depths), ("--samples", args.samples), ("--rounds", args.rounds)] {
        if !(1..=MOST).contains(&value) {
            return Err(Error::invalid(format!("{name}: expected 1 to {MOST}, found {value}")));
        }
    }
    args.out.as_deref().map_or(Ok(()), files::check_place)?;
    args.plot.as_deref().map_or(Ok(()), plot::check_place)?;
    if !args.tasks.is_empty() && matches!(args.what, What::Perplexity | What::Latency) {
        return Err(Error::invalid(format!("--tasks: {} has none, found {}", args.what.name(), args.tasks.join(","))));
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
        let mode = args.extras.apply(mode);
        mode.check_model(model.config.n_layers, model.config.n_heads)?;
        let label = args.extras.prefix() + label;
        if !columns.iter().any(|column| column.label == label) {
            columns.push(Column { label, mode });
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
            "weights": format!("{:016x}", model.fingerprint()), "data": format!("{:016x}", data.fingerprint()), "dtype": backend.activation().to_string(),
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

/// Those that are asked for, each once, or the usual ones.
fn tasks(args: &EvalArgs, is_chat: bool) -> Vec<String> {
    let all: &[&str] = match args.what {
        _ if !args.tasks.is_empty() => {
            let first = |(i, task): &(usize, &String)| !args.tasks[..*i].contains(task);
            return args.tasks.iter().enumerate().filter(first).map(|(_, task)| task.clone()).collect();
        }
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
        check_prompts(&suite, journal)?;
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
        let shown = self.show();
        ended.and(shown)?;
        match (self.journal.rows().is_empty(), self.journal.skipped().next()) {
            (true, Some(skip)) => Err(Error::invalid(format!("nothing could be measured: {}", skip.why))),
            _ => Ok(()),
        }
    }

    fn show(&self) -> Result<()> {
        let Self { args, console, journal, .. } = self;
        let report = Report::new(args.what, journal.rows());
        if console.json {
            let mut all: Value = serde_json::from_str(&journal.to_json())
                .map_err(|e| Error::invalid(format!("results as JSON: {e}")))?;
            all["summary"] = report.json();
            console.print_json(&all);
        } else if !journal.rows().is_empty() {
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
            && !journal.rows().is_empty()
        {
            report.plot(path, &format!("{} on {}", self.engine.model().name, self.engine.backend().info().name))?;
            console.note(&format!("wrote {}", path.display()));
        }
        if let Some(path) = &args.out {
            console.note(&format!("{} holds {} of {} results", path.display(), journal.saved(), journal.rows().len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_numbers_or_thousands() {
        assert_eq!((length("4096"), length("4K"), length("128k")), (Ok(4096), Ok(4096), Ok(131_072)));
        for wrong in ["", "K", "4M", "-1", "0", "99999999999999999999"] {
            assert!(length(wrong).unwrap_err().ends_with(&format!("found {wrong:?}")));
        }
    }
}
