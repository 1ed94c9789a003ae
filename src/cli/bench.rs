//! `minference bench`: attention and whole pre-fills, timed; dense is always a row.

use super::console::{self, Console, table};
use super::device::{DeviceArgs, DeviceChoice, DeviceTask, DtypeChoice, WgpuArgs, with_device};
use super::mode::{ExtraArgs, attention_mode, with_patterns};
use super::random::RandomArgs;
use super::run::open_model;
use crate::backend::Backend;
use crate::bench::{self, AttentionBench, AttentionInput, PrefillBench, Row, Sets};
use crate::engine::EngineOptions;
use crate::model::{KvPlace, KvType, Model, presets};
use crate::pattern::{AttentionMode, HeadPattern};
use crate::{Error, Result};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::path::{Path, PathBuf};

pub(super) const EXAMPLES: &str = "\
Examples:
  minference bench attention --lengths 8192,32768 --index bands --pattern vertical_slash:1000:6096
  minference bench attention --input qkv.safetensors --device wgpu --device cuda --format md
  minference bench prefill --model llama-3-8b-262k --layers 4 --weight-type q4_k --lengths 8192 --attention config";

/// Arguments of `minference bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Attention of one layer: estimation, index and kernel, by pattern and length.
    #[command(after_help = with_patterns(EXAMPLES))]
    Attention(AttentionArgs),
    /// Whole pre-fills of a model, by attention and length.
    #[command(after_help = with_patterns(EXAMPLES))]
    Prefill(Box<PrefillArgs>),
}

/// Flags that both have.
#[derive(Clone, Debug, Args)]
struct Common {
    /// How rows are printed.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// auto, cpu, wgpu, wgpu:N, cuda or cuda:N; repeatable: rows of each, `not run` where it is absent.
    #[arg(long, default_value = "auto", value_name = "DEVICE", help_heading = "Device")]
    device: Vec<DeviceChoice>,
    /// How activations, keys and values are stored: auto, f32 (cpu), f16 or bf16. auto on CUDA is f16 for a checkpoint in
    /// f16, else bf16.
    #[arg(long, default_value = "auto", value_name = "TYPE", help_heading = "Device")]
    dtype: DtypeChoice,
    #[command(flatten)]
    wgpu: WgpuArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// A Markdown table.
    Md,
    /// Comma-separated values with a head.
    Csv,
    /// One JSON object, as --json.
    Json,
}

#[derive(Debug, Args)]
struct AttentionArgs {
    /// A row behind dense; repeatable. Without: a_shape:1024:4096, vertical_slash:1000:6096, block_sparse:100, or with
    /// sets in --input none.
    #[arg(long, value_name = "PATTERN")]
    pattern: Vec<HeadPattern>,
    /// Tokens.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [8192, 32768], conflicts_with = "input")]
    lengths: Vec<usize>,
    /// Query heads.
    #[arg(long, value_name = "N", default_value_t = 32, conflicts_with = "input")]
    heads: usize,
    /// KV heads.
    #[arg(long, value_name = "N", default_value_t = 8, conflicts_with = "input")]
    kv_heads: usize,
    /// Elements of a head.
    #[arg(long, value_name = "N", default_value_t = 128, conflicts_with = "input")]
    head_dim: usize,
    /// safetensors with q [H, N, D], k and v [Hkv, N, D] instead of made ones; sets v_idx and s_idx in it are a row `given`.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Sets of vertical-slash patterns: est (estimated from q and k) or bands (a fixed recipe, by the pattern's budgets).
    #[arg(long, value_name = "SETS", default_value = "est")]
    index: Sets,
    /// Timed runs of each row, after one to warm up; the median is printed.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeat: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct PrefillArgs {
    /// A checkpoint (as `run --model`), or the name of an embedded config or the directory of a config.json for random
    /// weights.
    #[arg(long, value_name = "PATH|NAME")]
    model: String,
    /// Makes weights of this type up (f16, q8_0, q4_k and what else `run` takes); without it, an embedded config gets f16.
    #[arg(long, value_name = "TYPE")]
    weight_type: Option<String>,
    /// Only so many layers of a config with random weights.
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Tokens.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [8192])]
    lengths: Vec<usize>,
    /// Tokens already cached.
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// A row behind dense: a pattern, `config`, `config:FILE`; repeatable.
    #[arg(long, value_name = "PATTERN")]
    attention: Vec<String>,
    /// An official pattern file, for `--attention config`.
    #[arg(long, value_name = "FILE")]
    patterns: Option<PathBuf>,
    /// Sets of vertical-slash heads: est (estimated), bands (a fixed recipe, by the config's budgets), or structured
    /// (estimated on made q and k with slashes and columns, which the heads of random weights lack).
    #[arg(long, value_name = "SETS", default_value = "est")]
    index: Sets,
    /// What is added to every attention but the dense rows'.
    #[command(flatten)]
    extras: ExtraArgs,
    /// Pre-fills in chunks of so many tokens, a multiple of 64; 0 takes the prompt whole.
    #[arg(long, value_name = "N", default_value_t = 0)]
    chunk: usize,
    /// Where keys and values stay: device, host or none.
    #[arg(long, value_name = "PLACE", default_value = "device")]
    kv: KvPlace,
    /// How keys and values are stored: f16 (as activations are) or q8_0.
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    kv_type: KvType,
    /// Timed runs of each row, after one to warm up; the median is printed.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeat: u32,
    #[command(flatten)]
    common: Common,
}

/// Runs the subcommand.
pub fn bench(args: &BenchArgs, console: &Console) -> Result<()> {
    let (common, rows) = match &args.command {
        BenchCommand::Attention(args) => (&args.common, attention(args, console)?),
        BenchCommand::Prefill(args) => (&args.common, prefill(args, console)?),
    };
    let format = if console.json { Format::Json } else { common.format };
    match format {
        Format::Json => console.print_json(&json!({ "rows": rows })),
        Format::Table => console.print(&table(&HEAD, &rows.iter().map(cells).collect::<Vec<_>>())),
        Format::Md => console.print(&markdown(&rows)),
        Format::Csv => console.print(&csv(&rows)),
    }
    Ok(())
}

/// The rows of every device; where one is absent, a row for each length that says why.
fn on_each<T: DeviceTask<Output = Vec<Row>>>(
    common: &Common,
    console: &Console,
    absent: &[Row],
    mut task: impl FnMut() -> Result<T>,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &device in &common.device {
        let args = DeviceArgs { device, dtype: common.dtype, wgpu: common.wgpu };
        match with_device(&args, console, task()?) {
            Ok(more) => rows.extend(more),
            Err(Error::Unavailable(why)) => {
                console.note(&format!("{device}: not run: {why}"));
                let note = Some(format!("not run: {why}"));
                let row = |row: &Row| Row { device: device.to_string(), note: note.clone(), ..row.clone() };
                rows.extend(absent.iter().map(row));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

/// Tells of a row as it comes.
fn tell(console: &Console, row: &Row) {
    console.explain(&cells(row).join("  "));
}

fn attention(args: &AttentionArgs, console: &Console) -> Result<Vec<Row>> {
    let input = match &args.input {
        Some(path) => AttentionInput::File(path.clone()),
        None => AttentionInput::Made {
            lengths: args.lengths.clone(),
            heads: args.heads,
            kv_heads: args.kv_heads,
            head_dim: args.head_dim,
        },
    };
    let mut patterns = args.pattern.clone();
    if patterns.is_empty() && args.input.is_none() {
        let usual = ["a_shape:1024:4096", "vertical_slash:1000:6096", "block_sparse:100"];
        patterns = usual.iter().map(|p| p.parse()).collect::<Result<_>>()?;
    }
    let bench = AttentionBench {
        input,
        patterns,
        sets: args.index,
        repeat: args.repeat as usize,
        interrupt: console::interrupt(),
    };
    let absent = |tokens: &usize| Row {
        what: "attention",
        pattern: "dense".into(),
        tokens: *tokens,
        heads: args.heads,
        kv_heads: args.kv_heads,
        head_dim: args.head_dim,
        ..Row::default()
    };
    let absent: Vec<Row> = match &args.input {
        None => args.lengths.iter().map(absent).collect(),
        Some(_) => vec![Row { what: "attention", pattern: "dense".into(), ..Row::default() }],
    };
    on_each(&args.common, console, &absent, || Ok(AttentionTask { bench: &bench, console }))
}

struct AttentionTask<'a> {
    bench: &'a AttentionBench,
    console: &'a Console,
}

impl DeviceTask for AttentionTask<'_> {
    type Output = Vec<Row>;

    fn run<B: Backend>(self, backend: B) -> Result<Vec<Row>> {
        let head_dim = match self.bench.input {
            AttentionInput::Made { head_dim, .. } => head_dim,
            AttentionInput::File(_) => 128,
        };
        tell_kernels(&backend, head_dim, self.console);
        bench::attention(&backend, self.bench, &mut |row| tell(self.console, row))
    }
}

fn tell_kernels<B: Backend>(b: &B, head_dim: usize, console: &Console) {
    let choice = b.kernel_choice(head_dim);
    if !choice.is_empty() {
        console.note(&format!("kernels: {choice}"));
    }
}

impl PrefillArgs {
    /// The type of made-up weights, if they are to be made up.
    fn made_up(&self) -> Option<&str> {
        let embedded = || !Path::new(&self.model).exists() && presets::names().any(|name| name == self.model);
        self.weight_type.as_deref().or_else(|| embedded().then_some("f16"))
    }

    /// The model and the modes behind dense, cut to `--layers`.
    fn open(&self) -> Result<(Model, Vec<AttentionMode>)> {
        let random = RandomArgs::of(self.made_up(), self.layers);
        let mut model = match random.weight_type()? {
            Some(dtype) => random.open(&self.model, dtype, 0)?,
            None if self.layers.is_some() => {
                return Err(Error::invalid("--layers goes with random weights: name a --weight-type"));
            }
            None => open_model(&self.model)?,
        };
        let modes = self.attention.iter().map(|text| {
            let patterns = self.patterns.as_deref().filter(|_| text == "config");
            attention_mode(text, patterns, Some(&model))
        });
        let mut modes = modes.collect::<Result<Vec<_>>>()?;
        modes.iter_mut().for_each(|mode| random.cut(&mut model, mode));
        modes = modes.into_iter().map(|mode| self.extras.apply(mode)).collect();
        random.cut(&mut model, &mut AttentionMode::Uniform(HeadPattern::Dense));
        modes.iter().try_for_each(|mode| mode.check_model(model.config.n_layers, model.config.n_heads))?;
        Ok((model, modes))
    }
}

fn prefill(args: &PrefillArgs, console: &Console) -> Result<Vec<Row>> {
    let (model, modes) = args.open()?;
    let bench = PrefillBench {
        lengths: args.lengths.clone(),
        depth: args.depth,
        modes,
        sets: args.index,
        repeat: args.repeat as usize,
        weight_type: args.made_up().unwrap_or("checkpoint").into(),
        options: EngineOptions {
            chunk: args.chunk,
            kv: args.kv,
            kv_type: args.kv_type,
            exact_index: false,
            interrupt: console::interrupt(),
            ..EngineOptions::default()
        },
    };
    let c = &model.config;
    let absent = |tokens: &usize| Row {
        what: "prefill",
        pattern: "dense".into(),
        tokens: *tokens,
        heads: c.n_heads,
        kv_heads: c.n_kv_heads,
        head_dim: c.head_dim,
        dtype: bench.weight_type.clone(),
        ..Row::default()
    };
    let absent: Vec<Row> = args.lengths.iter().map(absent).collect();
    let mut first = Some(model);
    on_each(&args.common, console, &absent, || {
        let model = match first.take() {
            Some(model) => model,
            None => args.open()?.0,
        };
        Ok(PrefillTask { model, bench: &bench, console })
    })
}

struct PrefillTask<'a> {
    model: Model,
    bench: &'a PrefillBench,
    console: &'a Console,
}

impl DeviceTask for PrefillTask<'_> {
    type Output = Vec<Row>;

    fn checkpoint(&self) -> Option<crate::DType> {
        Some(self.model.dtype())
    }

    fn run<B: Backend>(self, backend: B) -> Result<Vec<Row>> {
        tell_kernels(&backend, self.model.config.head_dim, self.console);
        bench::prefill(backend, self.model, self.bench, &mut |row| tell(self.console, row))
    }
}

const HEAD: [&str; 15] = [
    "device", "pattern", "tokens", "heads", "D", "dtype", "ms", "min", "max", "TFLOP/s", "density", "estimate",
    "index", "tokens/s", "speed-up",
];

/// A row as text; what does not apply is empty.
fn cells(row: &Row) -> Vec<String> {
    let number = |value: Option<f64>, digits: usize| value.map_or(String::new(), |v| format!("{v:.digits$}"));
    vec![
        row.device.clone(),
        row.pattern.clone(),
        row.tokens.to_string(),
        format!("{} on {}", row.heads, row.kv_heads),
        row.head_dim.to_string(),
        row.dtype.clone(),
        if row.note.is_some() { "not run".to_owned() } else { number(row.ms, 3) },
        number(row.ms_min, 3),
        number(row.ms_max, 3),
        number(row.tflops, 2),
        number(row.density, 4),
        number(row.estimate_ms, 3),
        number(row.index_ms, 3),
        number(row.tokens_per_s, 0),
        number(row.speedup_vs_dense, 2),
    ]
}

fn markdown(rows: &[Row]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head = HEAD.map(str::to_owned);
    let rule = HEAD.map(|_| "---".to_owned());
    line(&head) + &line(&rule) + &rows.iter().map(|row| line(&cells(row))).collect::<String>()
}

/// The fields of the JSON rows, in their names.
fn csv(rows: &[Row]) -> String {
    const FIELDS: [&str; 20] = [
        "what",
        "device",
        "pattern",
        "tokens",
        "heads",
        "kv_heads",
        "head_dim",
        "dtype",
        "ms",
        "ms_min",
        "ms_max",
        "tflops",
        "density",
        "speedup_vs_dense",
        "estimate_ms",
        "index_ms",
        "tokens_per_s",
        "depth",
        "peak_device_bytes",
        "note",
    ];
    let line = |row: &Row| {
        let values = serde_json::to_value(row).unwrap_or_default();
        let field = |name: &&str| match values.get(name) {
            None | Some(serde_json::Value::Null) => String::new(),
            Some(serde_json::Value::String(text)) if text.contains([',', '"', '\n']) => {
                format!("\"{}\"", text.replace('"', "\"\""))
            }
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        FIELDS.iter().map(field).collect::<Vec<_>>().join(",") + "\n"
    };
    FIELDS.join(",") + "\n" + &rows.iter().map(line).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_every_form() {
        let run = Row { what: "attention", device: "cpu".into(), ms: Some(1.5), density: Some(0.25), ..Row::default() };
        let absent =
            Row { what: "attention", device: "cuda".into(), note: Some("not run: a, b".into()), ..Row::default() };
        let rows = [run, absent];
        assert!(markdown(&rows).lines().nth(3).unwrap().contains("| not run |"), "{}", markdown(&rows));
        let csv = csv(&rows);
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("attention,cpu,,0,0,0,0,,1.5,"), "{csv}");
        assert!(lines[2].ends_with("\"not run: a, b\""), "{csv}");
        assert_eq!(cells(&rows[0]).len(), HEAD.len());
    }
}
