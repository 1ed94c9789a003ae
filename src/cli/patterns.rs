//! `minference patterns`: what a file of head patterns holds, and what a pattern computes of a head.

use super::console::{Console, table};
use super::device::{DeviceArgs, DeviceTask, with_device};
use super::mode::attention_mode;
use crate::Result;
use crate::attend::{AttendOptions, head_map};
use crate::backend::Backend;
use crate::pattern::{HeadPattern, PatternConfig};
use crate::plot;
use clap::{Args, Subcommand};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(super) const EXAMPLES: &str =
    "Example:\n  minference patterns show Llama_3_8B_Instruct_262k_kv_out_v32_fit_o_best_pattern.json";

/// Arguments of `minference patterns`.
#[derive(Debug, Args)]
pub struct PatternsArgs {
    #[command(subcommand)]
    command: PatternsCommand,
}

#[derive(Debug, Subcommand)]
enum PatternsCommand {
    /// A histogram of patterns and budgets, by layer.
    #[command(after_help = EXAMPLES)]
    Show {
        /// An official pattern file.
        file: PathBuf,
    },
    /// Draws a head's attention and what a pattern computes of it.
    #[command(
        after_help = "Example:\n  minference patterns plot --input qkv.safetensors --head 3 --pattern flex:0.95 --output head.png"
    )]
    Plot(PlotArgs),
}

/// Arguments of `minference patterns plot`.
#[derive(Debug, Args)]
struct PlotArgs {
    /// safetensors with q [H, N, D], k and v [Hkv, N, D] (or [N, D]), in f16, bf16 or f32.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The pattern, as `attend --pattern` takes it.
    #[arg(long, value_name = "PATTERN", default_value = "vertical_slash:1000:6096")]
    pattern: String,
    /// The layer of a pattern file.
    #[arg(long, value_name = "N", default_value_t = 0)]
    layer: usize,
    /// Which head.
    #[arg(long, value_name = "N", default_value_t = 0)]
    head: usize,
    /// Cells of a side.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(8..=1024))]
    side: u16,
    /// .png or .svg.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Where to compute.
    #[command(flatten)]
    device: DeviceArgs,
}

struct PlotTask<'a>(&'a PlotArgs, AttendOptions);

impl DeviceTask for PlotTask<'_> {
    type Output = f64;

    fn run<B: Backend>(self, backend: B) -> Result<f64> {
        let side = usize::from(self.0.side);
        let map = head_map(&backend, &self.1, self.0.head, side)?;
        plot::save_head(&self.0.output, &map.attention, &plot::index_map(&map.index, 0, side))?;
        Ok(map.index.density())
    }
}

fn plot(args: &PlotArgs, console: &Console) -> Result<()> {
    plot::check_place(&args.output)?;
    let options = AttendOptions {
        input: args.input.clone(),
        mode: attention_mode(&args.pattern, None, None)?,
        layer: args.layer,
        index_in: None,
        compare_dense: false,
        repeat: 1,
        output: None,
        index_out: None,
    };
    let density = with_device(&args.device, console, PlotTask(args, options))?;
    match console.json {
        true => console.print_json(&json!({
            "output": args.output, "head": args.head, "pattern": args.pattern, "density": density,
        })),
        false => console.print(&format!("{}: {}, density {density:.4}\n", args.output.display(), args.pattern)),
    }
    Ok(())
}

/// Runs the subcommand.
pub fn patterns(args: &PatternsArgs, console: &Console) -> Result<()> {
    let file = match &args.command {
        PatternsCommand::Plot(args) => return plot(args, console),
        PatternsCommand::Show { file } => file,
    };
    let config = PatternConfig::read(file)?;
    let heads = config.n_heads();
    let layers: Vec<BTreeMap<String, usize>> = (0..config.n_layers())
        .map(|layer| {
            let mut counts = BTreeMap::new();
            for head in 0..heads {
                *counts.entry(config.pattern(layer, head).to_string()).or_default() += 1;
            }
            counts
        })
        .collect();
    let mut total: BTreeMap<String, usize> = BTreeMap::new();
    for (pattern, count) in layers.iter().flatten() {
        *total.entry(pattern.clone()).or_default() += count;
    }
    if console.json {
        let without: usize = (0..config.n_layers())
            .flat_map(|layer| (0..heads).map(move |head| (layer, head)))
            .filter(|&(layer, head)| config.entry(layer, head).is_none())
            .count();
        console.print_json(&json!({
            "file": file, "layers": config.n_layers(), "heads": heads, "heads_without_entry": without,
            "fallback": HeadPattern::FALLBACK.to_string(), "patterns": total, "by_layer": layers,
        }));
        return Ok(());
    }
    let mut rows: Vec<(String, usize)> = total.into_iter().collect();
    rows.sort_by_key(|(pattern, count)| (std::cmp::Reverse(*count), pattern.clone()));
    let all = (config.n_layers() * heads).max(1);
    let bar = |count: usize| "#".repeat((count * 40).div_ceil(all));
    let lines: Vec<_> = rows.iter().map(|(p, c)| vec![p.clone(), c.to_string(), bar(*c)]).collect();
    let mut out = format!("{}: {} layers x {heads} heads\n\n", file.display(), config.n_layers());
    out += &table(&["pattern", "heads", ""], &lines);
    out += "\nby layer:\n";
    for (layer, counts) in layers.iter().enumerate() {
        let mut counts: Vec<_> = counts.iter().collect();
        counts.sort_by_key(|(pattern, count)| (std::cmp::Reverse(**count), pattern.to_string()));
        let text: Vec<_> = counts.iter().map(|(pattern, count)| format!("{count} x {pattern}")).collect();
        out += &format!("{layer:>4}  {}\n", text.join(", "));
    }
    console.print(&out);
    Ok(())
}
