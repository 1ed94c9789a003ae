//! A fact hidden in a novel, asked for at the end: dense pre-fill beside the sparse patterns.
//!
//! ```sh
//! cargo run --release --example needle
//! cargo run --release --example needle -- --grid --plot needle.png
//! cargo run --release --example needle -- --model DIR --length 16384 --attention dense --attention vertical_slash:1000:6096
//! ```
//!
//! Without flags: the model built into the crate, the best device, and a length that this device finishes within a
//! minute. The answer's first digit comes from pre-fill's last row ([`minference::eval::needle`] says why that matters).

mod length;

use clap::Parser;
use indicatif::ProgressBar;
use minference::attention::HeadGroup;
use minference::backend::Backend;
use minference::cli::console::{self, Console};
use minference::cli::device::{DeviceArgs, DeviceTask, with_device};
use minference::cli::{mode::attention_mode, run::open_model, usage};
use minference::embedded::NOVEL;
use minference::engine::{Engine, EngineOptions};
use minference::estimate::estimate;
use minference::eval::needle::{ANSWER_TOKENS, Needle, NeedleTest, Outcome};
use minference::index::HostIndex;
use minference::model::{AttentionCall, Model, Watch};
use minference::pattern::AttentionMode;
use minference::plot::{self, HeatMap};
use minference::{Error, Result};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// The paper's patterns: a window that cannot see far, vertical-slash at a small and at the official budget, and blocks at
/// the official number.
const DEFAULT_MODES: [&str; 5] =
    ["dense", "a_shape:128:1024", "vertical_slash:100:800", "vertical_slash:1000:6096", "block_sparse:100"];

/// Most depths, and most needles for each cell of the grid.
const MOST: u64 = 1000;

/// Cells on a side of the pictures in the terminal.
const PICTURE: usize = 24;

/// Needle in a haystack: a fact hidden in a novel, dense pre-fill beside the sparse patterns.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "needle",
    after_help = "\
Examples:
  needle
  needle --length 65536 --depth 25 --seed 7
  needle --grid --plot needle.png"
)]
struct Args {
    /// A directory, a .gguf file, or `needle`, the embedded model.
    #[arg(long, value_name = "PATH", default_value = "needle")]
    model: String,
    #[command(flatten)]
    device: DeviceArgs,
    /// Tokens of the prompt; without it, what this device finishes within a minute.
    #[arg(long, value_name = "N")]
    length: Option<usize>,
    /// Where the needle lies, in percent of the haystack.
    #[arg(long, value_name = "0..100", default_value_t = 50.0)]
    depth: f64,
    /// A pattern for all heads, or config:FILE; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    attention: Vec<String>,
    /// Draws name, digits and place in the novel.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Lengths x depths, as the paper's figure.
    #[arg(long)]
    grid: bool,
    /// Lengths of the grid; without them, doubling from 2048 (or less) up to --length.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', requires = "grid", conflicts_with = "length")]
    lengths: Vec<usize>,
    /// Depths of the grid, evenly from 0 to 100 (one: --depth).
    #[arg(long, value_name = "N", default_value_t = 5, requires = "grid")]
    depths: usize,
    /// Needles for each cell of the grid: seeds --seed, --seed + 1 ...
    #[arg(long, value_name = "N", default_value_t = 1, requires = "grid")]
    rounds: u64,
    /// Draws the answers as a heat map, .png or .svg.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    console: Console,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => return usage(&e),
    };
    console::catch_interrupts(args.console);
    run(&args).map_or_else(|e| e.report(), |()| ExitCode::SUCCESS)
}

impl Args {
    /// Refuses numbers beyond reason, and a place that cannot be written, before any work.
    fn check(&self, model: &Model) -> Result<()> {
        let most = model.config.max_positions;
        if let Some(length) = self.length.iter().chain(&self.lengths).find(|n| !(1..=most).contains(*n)) {
            let what = format!("length: expected 1 to {most}, what {} is made for, found {length}", model.name);
            return Err(Error::invalid(what));
        }
        if !(0.0..=100.0).contains(&self.depth) {
            return Err(Error::invalid(format!("--depth: expected 0 to 100, found {}", self.depth)));
        }
        for (name, value) in [("--depths", self.depths as u64), ("--rounds", self.rounds)] {
            if !(1..=MOST).contains(&value) {
                return Err(Error::invalid(format!("{name}: expected 1 to {MOST}, found {value}")));
            }
        }
        self.plot.as_deref().map_or(Ok(()), plot::check_place)
    }
}

fn run(args: &Args) -> Result<()> {
    let model = open_model(&args.model)?;
    args.check(&model)?;
    let size = (model.name.as_str(), model.config.n_layers, model.config.n_heads);
    let names: Vec<&str> = match args.attention.is_empty() {
        true => DEFAULT_MODES.to_vec(),
        false => args.attention.iter().map(String::as_str).collect(),
    };
    let modes = names.iter().map(|name| attention_mode(name, None, Some(&model))).collect::<Result<Vec<_>>>()?;
    modes.iter().try_for_each(|mode| mode.check_model(size.1, size.2))?;
    with_device(&args.device, &args.console, NeedleTask { args, model, modes })
}

struct NeedleTask<'a> {
    args: &'a Args,
    model: Model,
    modes: Vec<AttentionMode>,
}

/// One prompt to build.
struct Cell {
    length: usize,
    depth: f64,
    seed: u64,
}

impl DeviceTask for NeedleTask<'_> {
    type Output = ();

    fn checkpoint(&self) -> Option<minference::DType> {
        Some(self.model.dtype())
    }

    fn run<B: Backend>(self, backend: B) -> Result<()> {
        let Self { args, model, modes } = self;
        let console = &args.console;
        let test = NeedleTest::new(model.text()?.clone(), NOVEL)?;
        let options =
            EngineOptions { answer_room: ANSWER_TOKENS, interrupt: console::interrupt(), ..EngineOptions::default() };
        let mut engine = Engine::new(backend, model, options)?;
        warm_up(&mut engine, &test, &modes)?;
        let cells = cells(args, &mut engine, &test, modes.len())?;
        // A length too short for the needle is told before anything is shown.
        if let Some(cell) = cells.iter().min_by_key(|cell| cell.length) {
            test.prompt(&Needle::draw(cell.seed), cell.length, cell.depth)?;
        }
        if !console.json {
            console.print(&heading(args, &engine, &cells));
        }
        let mut runs = Vec::new();
        let ended = ask_all(args, &mut engine, &test, &modes, &cells, &mut runs);
        // What was answered before an interruption is shown all the same.
        report(args, &engine, &modes, &runs)?;
        ended
    }
}

/// A short prompt in each mode, so that no run's time holds the compilation of its kernels.
fn warm_up<B: Backend>(engine: &mut Engine<B>, test: &NeedleTest, modes: &[AttentionMode]) -> Result<()> {
    let prompt = test.prompt(&Needle::draw(0), 512, 50.0)?;
    for mode in modes {
        test.ask(engine, &prompt, mode, &mut |_| (), &mut ())?;
    }
    Ok(())
}

fn cells<B: Backend>(args: &Args, engine: &mut Engine<B>, test: &NeedleTest, modes: usize) -> Result<Vec<Cell>> {
    let longest = match (args.length, args.lengths.is_empty()) {
        (Some(length), _) => length,
        (None, false) => 0,
        (None, true) => length::choose(engine, test, modes, &args.console)?,
    };
    if !args.grid {
        return Ok(vec![Cell { length: longest, depth: args.depth, seed: args.seed }]);
    }
    let lengths: Vec<usize> = match args.lengths.is_empty() {
        true => std::iter::successors(Some(longest.min(2048)), |n| Some(n * 2)).take_while(|&n| n <= longest).collect(),
        false => args.lengths.clone(),
    };
    let depths: Vec<f64> = match args.depths {
        1 => vec![args.depth],
        n => (0..n).map(|i| 100.0 * i as f64 / (n - 1) as f64).collect(),
    };
    let mut cells = Vec::new();
    for &length in &lengths {
        for &depth in &depths {
            cells.extend((0..args.rounds).map(|round| Cell { length, depth, seed: args.seed.wrapping_add(round) }));
        }
    }
    Ok(cells)
}

fn heading<B: Backend>(args: &Args, engine: &Engine<B>, cells: &[Cell]) -> String {
    let info = engine.backend().info();
    let parameters = engine.config().parameters() as f64 / 1e6;
    let mut out = format!(
        "model     {} ({parameters:.1}M parameters)\ndevice    {} {} ({})\n",
        engine.model().name,
        info.id,
        info.name,
        info.tier
    );
    if let [cell] = cells {
        let needle = Needle::draw(cell.seed);
        out += &format!(
            "haystack  Northanger Abbey, {} tokens with the question\nneedle    {} (at {} %)\nquestion  {}\n",
            cell.length,
            needle.sentence(),
            cell.depth,
            needle.question()
        );
    } else {
        let seeds = format!("seeds {} to {}", args.seed, args.seed.wrapping_add(args.rounds - 1));
        out += &format!("haystack  Northanger Abbey, {} prompts, {seeds}\n", cells.len());
    }
    out + "\n"
}

/// All cells in all modes, into `runs` as they come.
fn ask_all<B: Backend>(
    args: &Args,
    engine: &mut Engine<B>,
    test: &NeedleTest,
    modes: &[AttentionMode],
    cells: &[Cell],
    runs: &mut Vec<Run>,
) -> Result<()> {
    let console = &args.console;
    // Attention outgrows the rest around 8K tokens: with this weight the time left is about right for mixed lengths.
    let weight = |cell: &Cell| (cell.length + cell.length * cell.length / 8192) as u64;
    let bar = console.bar(cells.iter().map(weight).sum::<u64>() * modes.len() as u64, "pre-fill");
    let width = modes.iter().map(|m| m.name().len()).max().unwrap_or(0).max("attention".len());
    let say = |bar: &ProgressBar, text: &str| {
        if !console.json && !args.grid {
            bar.suspend(|| console.print(text));
        }
    };
    say(&bar, &row(width, ["attention", "answer", "right", "density", "prefill s", "tokens/s"].map(String::from)));
    let mut done = 0;
    for cell in cells {
        let prompt = test.prompt(&Needle::draw(cell.seed), cell.length, cell.depth)?;
        for mode in modes {
            bar.set_message(mode.name());
            let mut picture = Picture {
                mode,
                wanted: !args.grid && !console.json,
                layers: engine.config().n_layers,
                seconds: 0.0,
                lines: Vec::new(),
            };
            let mut progress =
                |p: minference::engine::Progress| bar.set_position(done + weight(cell) * p.done / p.total);
            let mut outcome = test.ask(engine, &prompt, mode, &mut progress, &mut picture)?;
            outcome.prefill_s -= picture.seconds;
            outcome.tokens_per_s = outcome.tokens as f64 / outcome.prefill_s;
            done += weight(cell);
            // Padded before it is painted: escapes have no width.
            let verdict = format!("{:<5}", if outcome.correct { "right" } else { "wrong" });
            let painted = plot::painted(&verdict, f64::from(u8::from(outcome.correct)), console.colours());
            say(&bar, &row(width, columns(&outcome)).replacen(&verdict, &painted, 1));
            runs.push(Run { seed: cell.seed, outcome, picture: picture.lines });
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// An answer, and the picture of what was computed for it.
struct Run {
    seed: u64,
    outcome: Outcome,
    picture: Vec<String>,
}

fn columns(o: &Outcome) -> [String; 6] {
    [
        o.attention.clone(),
        o.answer.trim().replace('\n', " "),
        if o.correct { "right" } else { "wrong" }.into(),
        format!("{:.3}", o.density),
        format!("{:.2}", o.prefill_s),
        format!("{:.0}", o.tokens_per_s),
    ]
}

fn row(width: usize, [mode, answer, right, density, seconds, rate]: [String; 6]) -> String {
    format!("{mode:<width$}  {answer:<10}  {right:<5}  {density:>7}  {seconds:>9}  {rate:>9}\n")
}

/// Looks at the last layer on the way, and draws what the pattern computes in its sparsest head.
struct Picture<'a> {
    mode: &'a AttentionMode,
    wanted: bool,
    layers: usize,
    /// What looking took: it is no part of the pre-fill.
    seconds: f64,
    lines: Vec<String>,
}

impl<B: Backend> Watch<B> for Picture<'_> {
    fn attention(&mut self, b: &B, layer: usize, call: &AttentionCall<B>) -> Result<()> {
        if !self.wanted || layer + 1 < self.layers {
            return Ok(());
        }
        b.synchronize()?;
        let start = Instant::now();
        let patterns = self.mode.patterns(layer, call.shape.n_heads);
        let mut sparsest: Option<HostIndex> = None;
        for head in 0..call.shape.n_heads {
            let part = HeadGroup::new(&call.shape, head..head + 1);
            let index = estimate(b, &patterns[head..=head], &part.shape, part.q(call.q), part.k(call.k))?.to_host(b)?;
            if sparsest.as_ref().is_none_or(|s| index.pairs() < s.pairs()) {
                sparsest = Some(index);
            }
        }
        if let Some(index) = sparsest {
            self.lines = plot::terminal_map(&plot::index_map(&index, 0, PICTURE), Console::default().colours());
        }
        self.seconds += start.elapsed().as_secs_f64();
        Ok(())
    }
}

fn report<B: Backend>(args: &Args, engine: &Engine<B>, modes: &[AttentionMode], runs: &[Run]) -> Result<()> {
    let console = &args.console;
    let maps = heat_maps(modes, runs);
    if console.json {
        let row = |run: &Run| {
            let mut row = json!(run.outcome);
            row["seed"] = run.seed.into();
            row
        };
        console.print_json(&json!({
            "device": engine.backend().info().id, "model": engine.model().name,
            "runs": runs.iter().map(row).collect::<Vec<_>>(),
        }));
    } else if args.grid {
        for map in &maps {
            console.print(&format!("{}\n", map.terminal(console.colours())));
        }
    } else {
        console.print(&pictures(runs));
    }
    if let (Some(path), false) = (&args.plot, maps.is_empty()) {
        let title = format!("Needle in a haystack: {} on {}", engine.model().name, engine.backend().info().name);
        plot::save(path, &title, &maps)?;
        console.note(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// The modes' pictures, three side by side.
fn pictures(runs: &[Run]) -> String {
    let mut out = String::from(
        "\nWhat the last layer's sparsest head computes (queries downwards, keys to the right; bright = all):\n",
    );
    for three in runs.chunks(3) {
        let titles = three.iter().map(|run| format!("{:<width$}", run.outcome.attention, width = PICTURE + 3));
        out += &format!("\n{}\n", titles.collect::<String>().trim_end());
        for line in 0..PICTURE / 2 {
            let lines = three.iter().filter_map(|run| run.picture.get(line)).map(|l| format!("{l}   "));
            out += &format!("{}\n", lines.collect::<String>().trim_end());
        }
        // Where the needle lies among the keys.
        let marks = three.iter().map(|run| {
            let at = run.outcome.needle_at * PICTURE / run.outcome.tokens;
            format!("{:<width$}", format!("{}^ needle", " ".repeat(at)), width = PICTURE + 3)
        });
        out += &format!("{}\n", marks.collect::<String>().trim_end());
    }
    out
}

/// For each mode the share of right answers by depth and length, with the mean density.
fn heat_maps(modes: &[AttentionMode], runs: &[Run]) -> Vec<HeatMap> {
    let mut lengths: Vec<usize> = runs.iter().map(|run| run.outcome.tokens).collect();
    let mut depths: Vec<f64> = runs.iter().map(|run| run.outcome.depth).collect();
    lengths.sort_unstable();
    lengths.dedup();
    depths.sort_by(f64::total_cmp);
    depths.dedup();
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let names = modes.iter().map(AttentionMode::name);
    let of_mode = |name: String| {
        let mine: Vec<&Outcome> = runs.iter().map(|run| &run.outcome).filter(|o| o.attention == name).collect();
        let cell = |depth: f64, length: usize| {
            let here = mine.iter().filter(|o| o.depth == depth && o.tokens == length);
            mean(here.map(|o| f64::from(u8::from(o.correct))).collect())
        };
        let density = mean(mine.iter().map(|o| o.density).collect());
        let right = mine.iter().filter(|o| o.correct).count();
        (!mine.is_empty()).then(|| HeatMap {
            title: format!("{name}: {right} of {} right, density {density:.2}", mine.len()),
            x_label: "tokens".into(),
            y_label: "depth %".into(),
            columns: lengths
                .iter()
                .map(|n| if n % 1024 == 0 { format!("{}K", n / 1024) } else { n.to_string() })
                .collect(),
            rows: depths.iter().map(|d| format!("{d:.0}")).collect(),
            values: depths.iter().map(|&d| lengths.iter().map(|&n| cell(d, n)).collect()).collect(),
        })
    };
    names.filter_map(of_mode).collect()
}
