//! `minference search`: a pattern file for a model.

use super::console::{self, Console, escape, table};
use super::device::{DeviceArgs, DeviceTask, with_device};
use super::eval;
use super::prompt::read_prompt;
use super::run::open_model;
use crate::backend::Backend;
use crate::engine::{Engine, EngineOptions};
use crate::fnv::fnv;
use crate::model::{KvPlace, Model};
use crate::pattern::{AttentionMode, HeadPattern};
use crate::search::{Choice, LayerRecord, MAP_SIDE, Objective, Search, SearchOptions, choose, config};
use crate::splitmix::SplitMix64;
use crate::{Error, Result, files};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

pub(super) const EXAMPLES: &str = "\
Examples:
  minference search --model needle --length 8192 --output patterns.json --report report.html
  minference search --model model.gguf --prompt-file a.txt --prompt-file b.txt --length 32000 --objective recall \\
      --recall 0.97 --output patterns.json
  minference run --model model.gguf --prompt-file c.txt --attention config:patterns.json";

/// Arguments of `minference search`.
#[derive(Debug, Args)]
pub struct SearchArgs {
    /// A directory, a .gguf file, its directory, or `needle`, the embedded model.
    #[arg(long, value_name = "PATH")]
    pub model: String,
    /// A text to calibrate on; repeat it for several. Without any: a list of keys and values, and a question for one.
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Vec<PathBuf>,
    /// Tokens of each prompt, as 8192 or 8K: a longer one is cut in its middle. 0 takes files whole, and 30000 tokens of keys
    /// and values.
    #[arg(long, value_name = "N", default_value = "0", value_parser = length)]
    pub length: usize,
    /// How patterns of one cost are compared: by the error of the head's output, or by recall (for very long prompts).
    #[arg(long, value_name = "output|recall", default_value = "output")]
    pub objective: Objective,
    /// The first cost that patterns are brought to, as a part of dense attention's; it doubles where it is not enough.
    #[arg(long, value_name = "PART", default_value_t = SearchOptions::default().budget)]
    pub budget: f64,
    /// The attention mass that a head must keep; 0 takes the best pattern of the first cost for every head.
    #[arg(long, value_name = "PART", default_value_t = SearchOptions::default().recall)]
    pub recall: f64,
    /// Where the pattern file goes. What is done so far is kept beside it (`p.partial` for `p.json`), and a search that was
    /// stopped goes on from there.
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// What was tried and chosen, head by head: .json or .html.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Writes every head as vertical-slash, as the official tool does, for its loader.
    #[arg(long)]
    pub official_names: bool,
    /// Replaces the checkpoint's RoPE scaling: none, linear:FACTOR, dynamic:FACTOR or yarn:FACTOR.
    #[arg(long, value_name = "SCALING")]
    pub rope_scaling: Option<String>,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// 0, or as `eval` takes lengths.
fn length(text: &str) -> std::result::Result<usize, String> {
    if text == "0" { Ok(0) } else { eval::length(text) }
}

/// How the name of the file ends that a search keeps beside its output until it is done.
const PARTIAL: &str = "partial";

/// What that file holds.
#[derive(Default, Serialize, Deserialize)]
struct Partial {
    /// The file.
    #[serde(skip)]
    path: PathBuf,
    /// Tells whether it belongs to this search.
    key: String,
    /// Of each prompt, by layer.
    prompts: Vec<BTreeMap<usize, LayerRecord>>,
}

/// Runs the subcommand.
pub fn search(args: &SearchArgs, console: &Console) -> Result<()> {
    for (name, value, most) in [("--budget", args.budget, 1.0), ("--recall", args.recall, 0.9999)] {
        let least = if name == "--budget" { f64::MIN_POSITIVE } else { 0.0 };
        if !(least..=most).contains(&value) {
            let from = if least > 0.0 { "above 0 and at most" } else { "from 0 to" };
            return Err(Error::invalid(format!("{name}: expected a part {from} {most}, found {value}")));
        }
    }
    let extension = |path: &Path| path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    if extension(&args.output).as_deref() == Some(PARTIAL) {
        return Err(Error::file(&args.output, "output: expected another ending, this is that of unfinished searches"));
    }
    if let Some(path) = &args.report
        && !matches!(extension(path).as_deref(), Some("json" | "html"))
    {
        return Err(Error::file(path, "report: expected a name that ends in .json or .html"));
    }
    for path in [Some(&args.output), args.report.as_ref()].into_iter().flatten() {
        files::check_place(path)?;
    }
    let mut model = open_model(&args.model)?;
    if let Some(scaling) = &args.rope_scaling {
        model.config.override_rope_scaling(scaling)?;
    }
    let most = model.config.max_positions;
    if args.length > most {
        let what = format!("--length: {} is made for at most {most} tokens, {} are asked for", model.name, args.length);
        return Err(Error::invalid(what));
    }
    let prompts = prompts(args, &model)?;
    with_device(&args.device, console, SearchTask { args, console, model, prompts })
}

/// Names and ids of the prompts.
fn prompts(args: &SearchArgs, model: &Model) -> Result<Vec<(String, Vec<u32>)>> {
    let text = model.text()?;
    if args.prompt_file.is_empty() {
        let length = if args.length == 0 { 30_000 } else { args.length };
        return Ok(vec![("keys and values".into(), keys_and_values(length, |t| text.encode(t))?)]);
    }
    let one = |path: &PathBuf| {
        let ids = text.encode(&read_prompt(path)?)?;
        if ids.is_empty() {
            return Err(Error::file(path, "the prompt is empty: expected some text"));
        }
        let length = if args.length == 0 { ids.len() } else { args.length };
        if ids.len() < length {
            let what = format!("prompt: expected at least --length {length} tokens, found {}", ids.len());
            return Err(Error::file(path, what));
        }
        Ok((path.display().to_string(), [&ids[..length / 2], &ids[ids.len() - (length - length / 2)..]].concat()))
    };
    args.prompt_file.iter().map(one).collect()
}

/// A JSON object of random keys and values of so many tokens with its instruction, and a question for one of the values:
/// the task that the official search calibrates on, in a form of our own.
fn keys_and_values(length: usize, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Vec<u32>> {
    let mut rng = SplitMix64::new(7);
    let mut word = || format!("{:016x}", rng.bits());
    let head = encode("Below is a list of keys and their values.\n")?;
    let (mut body, mut keys) = (Vec::new(), Vec::new());
    let mut tail = encode(&format!("\nWhat is the value of key {}? Value:", word()))?;
    while head.len() + body.len() + tail.len() < length {
        let (key, value) = (word(), word());
        body.extend(encode(&format!("\"{key}\": \"{value}\",\n"))?);
        keys.push(key);
    }
    if let Some(key) = keys.get(keys.len() / 2) {
        tail = encode(&format!("\nWhat is the value of key {key}? Value:"))?;
    }
    let room = length.saturating_sub(head.len() + tail.len());
    body.truncate(room);
    Ok([head, body, tail].concat())
}

struct SearchTask<'a> {
    args: &'a SearchArgs,
    console: &'a Console,
    model: Model,
    prompts: Vec<(String, Vec<u32>)>,
}

impl DeviceTask for SearchTask<'_> {
    type Output = ();

    fn checkpoint(&self) -> Option<crate::DType> {
        Some(self.model.dtype())
    }

    fn run<B: Backend>(self, backend: B) -> Result<()> {
        let Self { args, console, model, prompts } = self;
        let options = SearchOptions {
            objective: args.objective,
            budget: args.budget,
            recall: args.recall,
            ..SearchOptions::default()
        };
        let (name, device, layers) = (model.name.clone(), backend.info().id.clone(), model.config.n_layers);
        let lengths: Vec<usize> = prompts.iter().map(|(_, ids)| ids.len()).collect();
        let sums: Vec<u64> = prompts.iter().map(|(_, ids)| fnv(bytemuck::cast_slice(ids))).collect();
        let key = json!([name, layers, model.fingerprint(), options, lengths, sums, device]).to_string();
        let mut partial = Partial::resume(args.output.with_extension(PARTIAL), &key, prompts.len())?;
        let engine_options = EngineOptions {
            kv: KvPlace::None,
            interrupt: console::interrupt(),
            capacity: lengths.iter().copied().max().unwrap_or(1),
            ..Default::default()
        };
        let mut engine = Engine::new(backend, model, engine_options)?;
        search_prompts(&mut engine, args, console, options, &prompts, &mut partial)?;

        let choices = choose(&partial.prompts, &options)?;
        config(&choices, args.official_names)?.write(&args.output)?;
        if let Some(path) = &args.report {
            let text = match path.extension().is_some_and(|e| e.eq_ignore_ascii_case("html")) {
                true => html_report(&name, &prompts, &choices, &partial.prompts[0]),
                false => json!({
                    "model": name, "device": device, "options": options,
                    "prompts": prompts.iter().map(|(n, ids)| json!({"name": n, "tokens": ids.len()})).collect::<Vec<_>>(),
                    "choices": choices, "records": partial.prompts,
                })
                .to_string(),
            };
            files::write(path, text.as_bytes())?;
        }
        partial.remove()?;
        tell(args, console, [&name, &device], &choices);
        Ok(())
    }
}

/// Searches every prompt that is not done, and keeps what is found as it comes.
fn search_prompts<B: Backend>(
    engine: &mut Engine<B>,
    args: &SearchArgs,
    console: &Console,
    options: SearchOptions,
    prompts: &[(String, Vec<u32>)],
    partial: &mut Partial,
) -> Result<()> {
    let layers = engine.config().n_layers;
    let found: usize = partial.prompts.iter().map(BTreeMap::len).sum();
    if found > 0 {
        console.note(&format!("going on from {}: {found} layers are there", partial.path.display()));
    }
    let dense = AttentionMode::Uniform(HeadPattern::Dense);
    let bar = console.bar((prompts.len() * layers) as u64, "search");
    bar.set_position(found as u64);
    bar.reset_eta();
    for (i, (_, ids)) in prompts.iter().enumerate() {
        if partial.prompts[i].len() == layers {
            continue;
        }
        engine.reset();
        let mut records = std::mem::take(&mut partial.prompts[i]);
        let done = &mut |_: usize, records: &BTreeMap<usize, LayerRecord>| {
            bar.inc(1);
            partial.prompts[i] = records.clone();
            partial.write()
        };
        let map = i == 0 && args.report.is_some();
        let mut search = Search { options, map, rates: None, records: &mut records, done };
        engine.prefill_watched(ids, &dense, &mut |_| (), &mut search)?;
        partial.prompts[i] = records;
    }
    bar.finish_and_clear();
    Ok(())
}

/// What was chosen, on stdout.
fn tell(args: &SearchArgs, console: &Console, [model, device]: [&str; 2], choices: &[Vec<Choice>]) {
    let all: Vec<&Choice> = choices.iter().flatten().collect();
    let mean = |of: fn(&Choice) -> f64| all.iter().map(|c| of(c)).sum::<f64>() / all.len().max(1) as f64;
    let (density, cost, recall) = (mean(|c| c.density), mean(|c| c.cost), mean(|c| c.recall));
    if console.json {
        return console.print_json(&json!({
            "model": model, "device": device, "output": args.output, "layers": choices.len(),
            "density": density, "cost": cost, "recall": recall, "choices": choices,
        }));
    }
    console.print(&summary(choices));
    let output = args.output.display();
    console.print(&format!("\n{output}: mean density {density:.3}, cost {cost:.3} of dense, recall {recall:.4}\n"));
}

impl Partial {
    /// What an earlier run of the same search left.
    fn resume(path: PathBuf, key: &str, prompts: usize) -> Result<Self> {
        let Some(text) = files::read_if_there(&path)? else {
            return Ok(Self { path, key: key.to_owned(), prompts: vec![BTreeMap::new(); prompts] });
        };
        let found: Self = serde_json::from_slice(&text)
            .map_err(|e| Error::file(&path, format!("expected what an earlier search left, or nothing: {e}")))?;
        match found.key == key && found.prompts.len() == prompts {
            true => Ok(Self { path, ..found }),
            false => {
                Err(Error::file(path, "belongs to a search of other settings: remove it, or name another --output"))
            }
        }
    }

    fn write(&self) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|e| Error::invalid(format!("records: {e}")))?;
        files::write(&self.path, &text)
    }

    /// Once the pattern file is there, what it was made of is not needed any more.
    fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|e| Error::io(&self.path, e))
    }
}

/// Choices by layer.
fn summary(choices: &[Vec<Choice>]) -> String {
    let rows: Vec<Vec<String>> = choices
        .iter()
        .enumerate()
        .map(|(layer, heads)| {
            let kind = |prefix: &str| heads.iter().filter(|c| c.pattern.starts_with(prefix)).count().to_string();
            let mean = |of: fn(&Choice) -> f64| heads.iter().map(of).sum::<f64>() / heads.len().max(1) as f64;
            vec![
                layer.to_string(),
                kind("vertical_slash"),
                kind("block_sparse"),
                kind("a_shape"),
                kind("dense"),
                format!("{:.3}", mean(|c| c.density)),
                format!("{:.4}", mean(|c| c.recall)),
            ]
        })
        .collect();
    table(&["layer", "vertical_slash", "block_sparse", "a_shape", "dense", "density", "recall"], &rows)
}

/// Every head's map and choice on one page, without anything from elsewhere.
fn html_report(
    model: &str,
    prompts: &[(String, Vec<u32>)],
    choices: &[Vec<Choice>],
    records: &BTreeMap<usize, LayerRecord>,
) -> String {
    let names: Vec<String> =
        prompts.iter().map(|(name, ids)| format!("{} ({} tokens)", escape(name), ids.len())).collect();
    let mut out = format!(
        "<!doctype html><meta charset=utf-8><title>{0}: patterns</title><style>body{{font:14px sans-serif;margin:1.5em}}\
         .h{{display:inline-block;width:190px;margin:4px;vertical-align:top}}.h canvas{{width:180px;height:180px;\
         image-rendering:pixelated;border:1px solid #ccc}}small{{color:#555}}summary{{cursor:pointer}}\
         table{{border-collapse:collapse;font-size:11px}}td{{padding:0 4px}}</style><h1>{0}</h1><p>{1}. Queries run \
         downwards, keys to the right; darker is more attention, by powers of two.</p>\n",
        escape(model),
        names.join(", ")
    );
    for (layer, heads) in choices.iter().enumerate() {
        let _ = writeln!(out, "<h2>Layer {layer}</h2>");
        for (head, choice) in heads.iter().enumerate() {
            let record = records.get(&layer).and_then(|l| l.heads.get(head)).cloned().unwrap_or_default();
            let error = choice.error.map_or(String::new(), |e| format!(", error {e:.3}"));
            let _ = write!(
                out,
                "<div class=h><canvas width={MAP_SIDE} height={MAP_SIDE} data-m={}></canvas><br><b>{head}</b> {}<br><small>\
                 recall {:.4}, density {:.3}{error}</small><details><summary>{} tried</summary><table>",
                record.map,
                escape(&choice.pattern),
                choice.recall,
                choice.density,
                record.tried.iter().chain(&record.narrowed).count()
            );
            for tried in record.tried.iter().chain(&record.narrowed) {
                let error = tried.error.map_or(String::new(), |e| format!("{e:.3}"));
                let _ = write!(
                    out,
                    "<tr><td>{}<td>{:.3}<td>{:.4}<td>{error}</tr>",
                    escape(&tried.pattern),
                    tried.cost,
                    tried.recall
                );
            }
            out += "</table></details></div>\n";
        }
    }
    out += "<script>document.querySelectorAll('canvas').forEach(c=>{const m=c.dataset.m||'',n=c.width,x=c.getContext('2d');\
            for(let i=0;i<m.length;i++){const v=255-17*(m.charCodeAt(i)-97);x.fillStyle=`rgb(${v},${v},${Math.min(255,v+40)})`;\
            x.fillRect(i%n,Math.floor(i/n),1,1)}})</script>\n";
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_have_the_length_and_end_with_the_question() {
        let words = |text: &str| Ok(text.bytes().map(u32::from).collect());
        let ids = keys_and_values(3000, words).unwrap();
        assert_eq!(ids.len(), 3000);
        let text: String = ids.iter().map(|&b| char::from(b as u8)).collect();
        let key = &text[text.find("of key ").unwrap() + 7..][..16];
        assert_eq!(text.matches(key).count(), 2, "asked for and listed");
        assert!(text.ends_with("? Value:"));
    }
}
