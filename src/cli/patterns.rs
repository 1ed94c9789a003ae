//! `minference patterns show`: what a file of head patterns holds.

use super::console::{Console, table};
use crate::Result;
use crate::pattern::{HeadPattern, PatternConfig};
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
}

/// Runs the subcommand.
pub fn patterns(args: &PatternsArgs, console: &Console) -> Result<()> {
    let PatternsCommand::Show { file } = &args.command;
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
