//! `minference run`: a prompt in, an answer out.

mod report;

use super::console::{self, Console};
use super::device::{DeviceArgs, DeviceTask, with_device};
use super::mode::{BudgetArgs, ExtraArgs, attention_mode};
use super::prompt::{read_ids, read_prompt};
use super::random::{RandomArgs, random_ids};
use crate::backend::Backend;
use crate::backend::traced::{Timing, Traced};
use crate::engine::{Answer, Engine, EngineOptions, Prefill, StopReason};
use crate::insight::Insight;
use crate::model::{KvPlace, KvType, Model, presets};
use crate::pattern::AttentionMode;
use crate::sample::{self, Sampler, SamplerOptions};
use crate::tensor_file::{TensorOut, write_tensors};
use crate::{Error, Result, files};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub(super) const EXAMPLES: &str = "\
Examples:
  minference run --model needle --prompt 'The secret code of Eve is 493821. Question: What is the secret code of Eve? Answer: The secret code of Eve is '
  minference run --model SmolLM2-135M-Instruct --chat --prompt 'Why is the sky blue?'
  minference run --model model.gguf --chat --prompt-file long.txt --attention vertical_slash:1000:6096 --timings
  minference run --model model.gguf --prompt-file book.txt --question 'Who is Eve?' --question 'Where?' --kv-out book.kv
  minference run --model DIR --token-ids ids.json --max-new-tokens 0 --logits-out logits.safetensors --json
  minference run --model llama-3-8b-1m --random-weights --weight-type q4_k --layers 4 --prompt-tokens 131072 --max-new-tokens 0 --attention config --json";

/// Arguments of `minference run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A directory (config.json, *.safetensors, tokenizer.json), a .gguf file, its directory, or `needle`, the embedded
    /// model; with --random-weights a directory with a config.json, or the name of an embedded config.
    #[arg(long, value_name = "PATH")]
    pub model: String,
    /// The prompt.
    #[arg(long, value_name = "TEXT", group = "input")]
    pub prompt: Option<String>,
    /// The prompt from a UTF-8 file; `-` is standard input.
    #[arg(long, value_name = "FILE", group = "input")]
    pub prompt_file: Option<PathBuf>,
    /// The prompt as a JSON list of token ids.
    #[arg(long, value_name = "FILE", group = "input", conflicts_with = "chat")]
    pub token_ids: Option<PathBuf>,
    /// So many token ids drawn by --seed, for latency only: the answer means nothing.
    #[arg(long, value_name = "N", group = "input", conflicts_with = "chat", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub prompt_tokens: Option<u32>,
    /// Weights made up from the config, for latency.
    #[command(flatten)]
    pub random: RandomArgs,
    /// Puts the prompt into the model's chat template.
    #[arg(long)]
    pub chat: bool,
    /// Tokens to generate; 0 pre-fills only.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = new_tokens)]
    pub max_new_tokens: usize,
    /// One pattern for all heads (`auto` is dense on short prompts and threshold:0.01:256 on long ones), `config` with --patterns (without: the patterns that the checkpoint brings, else the
    /// official file of this model), or `config:FILE`.
    #[arg(long, value_name = "PATTERN", default_value = "auto")]
    pub attention: String,
    /// An official pattern file, for `--attention config`.
    #[arg(long, value_name = "FILE")]
    pub patterns: Option<PathBuf>,
    /// How much flex heads take.
    #[command(flatten)]
    pub budget: BudgetArgs,
    /// What is added to any attention.
    #[command(flatten)]
    pub extras: ExtraArgs,
    /// Pre-fills in chunks of so many tokens, a multiple of 64; 0 takes the prompt whole.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub chunk: usize,
    /// Where keys and values stay: device, host (each layer's are brought when it runs), or none (pre-fill only).
    #[arg(long, value_name = "PLACE", default_value = "device")]
    pub kv: KvPlace,
    /// How keys and values are stored: f16 (as activations are), or q8_0, about half of that.
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub kv_type: KvType,
    /// Replaces the checkpoint's RoPE scaling: none, linear:FACTOR, dynamic:FACTOR or yarn:FACTOR.
    #[arg(long, value_name = "SCALING")]
    pub rope_scaling: Option<String>,
    /// Divides the logits before sampling; 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Samples from the fewest tokens whose probabilities reach this sum.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Samples from so many of the most probable tokens; 0 is all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Chooses the random numbers of sampling, of --prompt-tokens and of --random-weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Writes `logits`, f32, one a token of the vocabulary, of the prompt's last position.
    #[arg(long, value_name = "FILE")]
    pub logits_out: Option<PathBuf>,
    /// Writes the prompt's keys and values, to go on from with --kv-in.
    #[arg(long, value_name = "FILE")]
    pub kv_out: Option<PathBuf>,
    /// Goes on from a context that --kv-out wrote: the prompt, if any, comes behind it.
    #[arg(long, value_name = "FILE")]
    pub kv_in: Option<PathBuf>,
    /// A question about the prompt, which is read once: repeat it for several. Each is put behind the prompt as it is and
    /// answered by itself.
    #[arg(long, value_name = "TEXT", conflicts_with = "chat")]
    pub question: Vec<String>,
    /// Writes pattern, density and recall of each head: .json or .html. Computes attention a second time.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Compares each layer's last rows with dense attention on the same queries, keys and values. Computes attention a
    /// second time.
    #[arg(long)]
    pub verify: bool,
    /// Times each operation (waiting for the device after each, so the whole takes longer) and prints the table.
    #[arg(long)]
    pub timings: bool,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Opens what `--model` names.
pub fn open_model(name: &str) -> Result<Model> {
    // Before any file of that name: the name always means the embedded model, and `./needle` the file.
    if name == "needle" {
        return crate::embedded::needle();
    }
    let path = Path::new(name);
    if !path.exists() {
        let hint = match name.split_once('/') {
            Some(("" | "." | "..", _)) => "",
            // ORG/NAME, or a directory that is not there.
            Some((_, model)) if !model.contains('/') => {
                "; a model of the Hugging Face hub is to be downloaded first (`hf download NAME --local-dir DIR`)"
            }
            None if presets::names().any(|preset| preset == name) => {
                "; as an embedded config it needs --random-weights"
            }
            _ => "",
        };
        return Err(Error::file(path, format!("expected a directory, a .gguf file or `needle`, found nothing{hint}")));
    }
    Model::open(path)
}

/// What a run without a prompt is told.
const NO_PROMPT: &str = "expected --prompt, --prompt-file, --token-ids, --prompt-tokens or --kv-in, found none";

/// Most tokens of an answer: more than any model has positions for.
const MOST_NEW_TOKENS: usize = 1 << 31;

fn new_tokens(text: &str) -> std::result::Result<usize, String> {
    let number = text.parse().ok().filter(|n| *n <= MOST_NEW_TOKENS);
    number.ok_or_else(|| format!("expected a number from 0 to {MOST_NEW_TOKENS}, found {text:?}"))
}

impl RunArgs {
    /// Whether the answer means nothing.
    fn is_latency_only(&self) -> bool {
        self.random.random_weights || self.prompt_tokens.is_some()
    }

    /// Refuses flags that do not go together, and places that cannot be written, before any work.
    fn check(&self) -> Result<()> {
        if !self.has_prompt() && self.kv_in.is_none() {
            return Err(Error::invalid(NO_PROMPT));
        }
        if self.kv_type != KvType::F16 && (self.kv_in.is_some() || self.kv_out.is_some()) {
            return Err(Error::Unsupported("--kv-in and --kv-out with --kv-type q8_0".into()));
        }
        if self.kv == KvPlace::None && self.max_new_tokens > 1 {
            let found = self.max_new_tokens;
            let what = "--kv none keeps nothing to decode from: expected --max-new-tokens 0 or 1";
            return Err(Error::invalid(format!("{what}, found {found}")));
        }
        if self.kv == KvPlace::None && (self.kv_in.is_some() || self.kv_out.is_some() || !self.question.is_empty()) {
            return Err(Error::invalid(
                "--kv none keeps nothing: it does not go with --kv-in, --kv-out and --question",
            ));
        }
        let of_the_prompt = self.kv_out.is_some() || self.logits_out.is_some() || self.report.is_some() || self.verify;
        if of_the_prompt && !self.has_prompt() {
            let what = "--kv-out, --logits-out, --report and --verify are of a prompt: expected one behind --kv-in";
            return Err(Error::invalid(format!("{what}, found only questions")));
        }
        if let Some(path) = &self.report
            && !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json") || e.eq_ignore_ascii_case("html"))
        {
            return Err(Error::file(path, "report: expected a name that ends in .json or .html"));
        }
        for path in [&self.logits_out, &self.kv_out, &self.report].into_iter().flatten() {
            files::check_place(path)?;
        }
        match self.question.iter().find(|q| q.trim().is_empty()) {
            Some(question) => Err(Error::invalid(format!("--question {question:?}: expected some text"))),
            None => Ok(()),
        }
    }

    fn has_prompt(&self) -> bool {
        let files = [&self.prompt_file, &self.token_ids];
        self.prompt.is_some() || self.prompt_tokens.is_some() || files.iter().any(|file| file.is_some())
    }
}

/// Runs the subcommand.
pub fn run(args: &RunArgs, console: &Console) -> Result<()> {
    let sampler = Sampler::new(SamplerOptions {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        seed: args.seed,
    })?;
    args.check()?;
    let mut model = match args.random.weight_type()? {
        Some(dtype) => args.random.open(&args.model, dtype, args.seed)?,
        None => open_model(&args.model)?,
    };
    if let Some(scaling) = &args.rope_scaling {
        model.config.override_rope_scaling(scaling)?;
    }
    let mut mode = attention_mode(&args.attention, args.patterns.as_deref(), Some(&model))?;
    if args.attention == "config" && args.patterns.is_none() {
        console.note(&format!("patterns: {}", model.patterns()?.0));
    }
    args.random.cut(&mut model, &mut mode);
    let config = &model.config;
    mode = args.extras.apply(args.budget.apply(mode)?);
    mode.check_model(config.n_layers, config.n_heads)?;
    let ids = prompt_ids(args, &model)?;
    console.explain(&format!("{}: {} tokens, attention {}", model.name, ids.len(), mode.name()));
    with_device(&args.device, console, RunTask { args, console, model, mode, ids, sampler })
}

fn prompt_ids(args: &RunArgs, model: &Model) -> Result<Vec<u32>> {
    if let Some(path) = &args.token_ids {
        return read_ids(path, model.config.vocab);
    }
    if let Some(tokens) = args.prompt_tokens {
        return Ok(random_ids(tokens as usize, model.config.vocab, args.seed));
    }
    if args.kv_in.is_some() && !args.has_prompt() {
        return match args.question.is_empty() {
            true => Err(Error::invalid("--kv-in: expected a --prompt or a --question behind the context, found none")),
            false => Ok(Vec::new()),
        };
    }
    let (source, text) = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => ("--prompt".to_string(), text.clone()),
        (None, Some(path)) => (path.display().to_string(), read_prompt(path)?),
        (None, None) => return Err(Error::invalid(NO_PROMPT)),
    };
    if text.trim().is_empty() {
        let found = if text.is_empty() { "nothing" } else { "only white space" };
        return Err(Error::invalid(format!("{source}: the prompt is empty: expected some text, found {found}")));
    }
    if args.chat { model.text()?.encode_chat(&text) } else { model.text()?.encode(&text) }
}

struct RunTask<'a> {
    args: &'a RunArgs,
    console: &'a Console,
    model: Model,
    mode: AttentionMode,
    ids: Vec<u32>,
    sampler: Sampler,
}

impl DeviceTask for RunTask<'_> {
    type Output = ();

    fn checkpoint(&self) -> Option<crate::DType> {
        Some(self.model.dtype())
    }

    fn run<B: Backend>(self, backend: B) -> Result<()> {
        // On the CPU every operation ends before the next begins, so that timing them costs nothing.
        match self.args.timings || backend.info().backend == "cpu" {
            true => self.answer(Traced::new(backend), Traced::timings, Traced::report),
            false => self.answer(backend, |_| Vec::new(), |_| String::new()),
        }
    }
}

/// Operations that decide what to compute; `attention` computes it.
const ESTIMATION: [&str; 14] = [
    "score_last_queries",
    "select_top_k",
    "pool_blocks",
    "score_blocks",
    "select_blocks",
    "count_by_mass",
    "group_offsets",
    "settle_heads",
    "weigh_blocks",
    "fold_rows",
    "weigh_antidiagonals",
    "share_scores",
    "select_weighed_blocks",
    "build_index",
];

impl RunTask<'_> {
    fn answer<B: Backend>(
        self,
        backend: B,
        timings: impl Fn(&B) -> Vec<Timing>,
        report: impl Fn(&B) -> String,
    ) -> Result<()> {
        let Self { args, console, model, mode, ids, mut sampler } = self;
        // With token ids in, ids may come out too: a model without a tokenizer still runs.
        let text = model.text().cloned().ok();
        let questions = match &text {
            Some(text) => args.question.iter().map(|q| text.encode(q)).collect::<Result<Vec<_>>>()?,
            None if args.question.is_empty() => Vec::new(),
            None => return Err(Error::invalid("--question: the model has no tokenizer")),
        };
        let room = questions.iter().map(Vec::len).max().unwrap_or(0) + args.max_new_tokens;
        let mut engine = Engine::new(backend, model, engine_options(args, room))?;
        if let Some(path) = &args.kv_in {
            let tokens = engine.load_context(path, ids.len() + room)?;
            console.note(&format!("context: {tokens} tokens from {}", path.display()));
        }
        let read = match ids.is_empty() {
            true => None,
            false => Some(read_and_keep(&mut engine, &ids, &mode, args, console)?),
        };
        match read {
            Some(read) if questions.is_empty() => {
                let stages = timings(engine.backend());
                let answer = stream_answer(&mut engine, &read.logits, &mut sampler, args.max_new_tokens, console)?;
                if console.json {
                    console.print_json(&run_json(&engine, args, &mode, &read, &answer, &stages));
                }
                tell(args, console, &mode, &read, &answer);
            }
            read => ask(&mut engine, args, console, &mode, &questions, &mut sampler, read.as_ref())?,
        }
        if args.timings {
            console.note(&report(engine.backend()));
        }
        Ok(())
    }
}

fn engine_options(args: &RunArgs, answer_room: usize) -> EngineOptions {
    EngineOptions {
        chunk: args.chunk,
        kv: args.kv,
        kv_type: args.kv_type,
        answer_room,
        exact_index: false,
        interrupt: console::interrupt(),
        ..EngineOptions::default()
    }
}

/// Pre-fills the prompt, and writes and tells what is asked for of it.
fn read_and_keep<B: Backend>(
    engine: &mut Engine<B>,
    ids: &[u32],
    mode: &AttentionMode,
    args: &RunArgs,
    console: &Console,
) -> Result<Prefill> {
    let mut insight = Insight::new(mode);
    let looks = args.verify || args.report.is_some();
    let read = prefill_watched(engine, ids, mode, console, looks.then_some(&mut insight))?;
    if looks {
        report::look(&read, &insight, [&engine.model().name, &mode.name()], args, console)?;
    }
    if let Some(path) = &args.kv_out {
        engine.save_context(path)?;
    }
    if let Some(path) = &args.logits_out {
        let bytes = bytemuck::cast_slice(&read.logits);
        let shape = vec![read.logits.len()];
        write_tensors(path, &[], &[TensorOut { name: "logits", dtype: safetensors::Dtype::F32, shape, bytes }])?;
    }
    Ok(read)
}

/// Generates an answer, and prints it as it comes, but for JSON.
fn stream_answer<B: Backend>(
    engine: &mut Engine<B>,
    logits: &[f32],
    sampler: &mut Sampler,
    max_new_tokens: usize,
    console: &Console,
) -> Result<Answer> {
    let text = engine.model().text().cloned().ok();
    let mut stream = text.as_ref().map(|text| text.tokenizer.stream());
    let answer = engine.generate(logits, sampler, max_new_tokens, &mut |id| {
        if !console.json {
            let text = stream.as_mut().map_or_else(|| Some(format!("{id} ")), |stream| stream.push(id));
            console.print(&text.unwrap_or_default());
        }
    })?;
    if !console.json && max_new_tokens > 0 {
        console.print(&(stream.and_then(|stream| stream.finish()).unwrap_or_default() + "\n"));
    }
    Ok(answer)
}

/// The JSON object of a run with one answer.
fn run_json<B: Backend>(
    engine: &Engine<B>,
    args: &RunArgs,
    mode: &AttentionMode,
    read: &Prefill,
    answer: &Answer,
    stages: &[Timing],
) -> Value {
    let seconds_of = |names: &[&str]| -> Option<f64> {
        let times = stages.iter().filter(|t| names.contains(&t.name)).map(|t| t.seconds);
        (!stages.is_empty()).then(|| times.sum())
    };
    let (info, model) = (engine.backend().info(), engine.model());
    let generated_text = model.text().ok().map(|text| text.tokenizer.decode(&answer.ids));
    json!({
        "model": model.name, "weights": model.weights.describe(), "latency_only": args.is_latency_only(),
        "device": info.id, "backend": info.backend, "dtype": engine.backend().activation().to_string(),
        "attention": mode.name(),
        "prompt_tokens": read.tokens, "prefill_s": read.seconds,
        "prefill_tokens_per_s": rate(read.tokens, read.seconds),
        "estimate_s": seconds_of(&ESTIMATION), "attention_s": seconds_of(&["attention"]),
        "decode_s": answer.seconds, "decode_tokens_per_s": rate(answer.steps, answer.seconds),
        "density": read.density,
        "generated_ids": answer.ids, "generated_text": generated_text,
        "stop": if answer.stop == StopReason::EndOfText { "end_of_text" } else { "length" },
        "top5": sample::top(&read.logits, 5),
        "peak_device_bytes": engine.backend().memory().peak,
    })
}

/// A second's share of tokens.
fn rate(tokens: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

/// How long a run with one answer took, on stderr.
fn tell(args: &RunArgs, console: &Console, mode: &AttentionMode, read: &Prefill, answer: &Answer) {
    let per_second = rate(read.tokens, read.seconds);
    let (tokens, seconds, density) = (read.tokens, read.seconds, read.density);
    let name = mode.name();
    console.note(&format!(
        "prefill: {tokens} tokens in {seconds:.2} s, {per_second:.0} tokens/s, attention {name}, density {density:.3}"
    ));
    if answer.ids.is_empty() && answer.stop == StopReason::EndOfText {
        console.note("the model ended its answer before the first token");
    }
    if args.is_latency_only() {
        console.note("random weights or tokens: times mean something, the answer does not");
    }
    if answer.steps > 0 {
        let (steps, seconds) = (answer.steps, answer.seconds);
        let per_second = rate(steps, seconds);
        console.note(&format!("decode: {steps} steps in {seconds:.2} s, {per_second:.1} tokens/s"));
    }
}

/// Answers each question behind what the engine holds, one by one.
fn ask<B: Backend>(
    engine: &mut Engine<B>,
    args: &RunArgs,
    console: &Console,
    mode: &AttentionMode,
    questions: &[Vec<u32>],
    sampler: &mut Sampler,
    document: Option<&Prefill>,
) -> Result<()> {
    let context = engine.ids().len();
    let text = engine.model().text()?.clone();
    let mut answers = Vec::new();
    for (question, ids) in args.question.iter().zip(questions) {
        engine.truncate(context);
        console.note(&format!("question: {}", question.trim()));
        let read = prefill(engine, ids, mode, console)?;
        let answer = stream_answer(engine, &read.logits, sampler, args.max_new_tokens, console)?;
        let words = text.tokenizer.decode(&answer.ids);
        let (tokens, seconds) = (read.tokens, read.seconds);
        console.note(&format!("{tokens} tokens behind {context} in {seconds:.2} s"));
        answers.push(json!({
            "question": question, "prompt_tokens": tokens, "prefill_s": seconds, "density": read.density,
            "decode_s": answer.seconds, "generated_ids": answer.ids, "generated_text": words,
            "top5": sample::top(&read.logits, 5),
        }));
    }
    if console.json {
        let info = engine.backend().info();
        console.print_json(&json!({
            "model": engine.model().name, "device": info.id, "backend": info.backend,
            "dtype": engine.backend().activation().to_string(), "attention": mode.name(), "context_tokens": context,
            "prompt_tokens": document.map_or(0, |d| d.tokens), "prefill_s": document.map(|d| d.seconds),
            "density": document.map(|d| d.density), "questions": answers,
            "peak_device_bytes": engine.backend().memory().peak,
        }));
    }
    Ok(())
}

/// Pre-fills with a progress bar and, maybe, a watcher.
fn prefill_watched<B: Backend>(
    engine: &mut Engine<B>,
    ids: &[u32],
    mode: &AttentionMode,
    console: &Console,
    watch: Option<&mut Insight>,
) -> Result<Prefill> {
    let Some(watch) = watch else { return prefill(engine, ids, mode, console) };
    let bar = console.bar(ids.len() as u64 * engine.config().n_layers as u64, &mode.name());
    let result = engine.prefill_watched(ids, mode, &mut |p| bar.set_position(p.done), watch);
    bar.finish_and_clear();
    result
}

/// Pre-fills with a progress bar.
pub fn prefill<B: Backend>(
    engine: &mut Engine<B>,
    ids: &[u32],
    mode: &AttentionMode,
    console: &Console,
) -> Result<Prefill> {
    let layers = engine.config().n_layers as u64;
    let bar = console.bar(ids.len() as u64 * layers, &mode.name());
    let result = engine.prefill(ids, mode, &mut |p| bar.set_position(p.done));
    bar.finish_and_clear();
    result
}
