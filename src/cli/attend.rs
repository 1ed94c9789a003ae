//! `minference attend`: one attention layer on tensors from a file.

use super::console::{Console, table};
use super::device::{DeviceArgs, DeviceTask, with_device};
use super::mode::{BudgetArgs, ExtraArgs, attention_mode};
use crate::attend::{AttendOptions, AttendReport, attend_file};
use crate::backend::Backend;
use crate::pattern::{AttentionMode, HeadPattern};
use crate::{Error, Result, files};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

pub(super) const EXAMPLES: &str = "\
Examples:
  minference attend --input qkv.safetensors --pattern vertical_slash:1000:6096 --compare dense
  minference attend --input qkv.safetensors --pattern block_sparse:16 --output out.safetensors --repeat 10 --json";

/// Arguments of `minference attend`.
#[derive(Debug, Args)]
pub struct AttendArgs {
    /// safetensors with q [H, N, D], k and v [Hkv, N, D] (or [N, D]), in f16, bf16 or f32.
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// One pattern for all heads, or `config:FILE`, or `config` with --patterns.
    #[arg(long, value_name = "PATTERN", required_unless_present = "index_in")]
    pub pattern: Option<String>,
    /// An official pattern file, for `--pattern config`.
    #[arg(long, value_name = "FILE")]
    pub patterns: Option<PathBuf>,
    /// How much flex heads take.
    #[command(flatten)]
    pub budget: BudgetArgs,
    /// What is added to any pattern.
    #[command(flatten)]
    pub extras: ExtraArgs,
    /// The layer of the pattern file.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub layer: usize,
    /// Given sets instead of estimated ones: v_idx [H, V] and s_idx [H, S], i32, padded with -1.
    #[arg(long, value_name = "FILE")]
    pub index_in: Option<PathBuf>,
    /// Writes what the kernel computes: range_ptr, ranges, column_ptr, columns, window.
    #[arg(long, value_name = "FILE")]
    pub index_out: Option<PathBuf>,
    /// Writes out [H, N, D], f32.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Adds errors and recall against this.
    #[arg(long, value_name = "MODE")]
    pub compare: Option<Compare>,
    /// Times so many runs after one more to warm up, and gives medians.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub repeat: u32,
    /// Where to compute.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// What `--compare` compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compare {
    /// Attention over all causal pairs, on the same device.
    Dense,
}

struct AttendTask(AttendOptions);

impl DeviceTask for AttendTask {
    type Output = AttendReport;

    fn run<B: Backend>(self, backend: B) -> Result<AttendReport> {
        attend_file(&backend, &self.0)
    }
}

/// Runs the subcommand.
pub fn attend(args: &AttendArgs, console: &Console) -> Result<()> {
    for path in [&args.output, &args.index_out].into_iter().flatten() {
        files::check_place(path)?;
        if path.canonicalize().is_ok_and(|place| args.input.canonicalize().is_ok_and(|input| input == place)) {
            return Err(Error::file(path, "expected another file than --input to write, found the same"));
        }
    }
    let mode = match &args.pattern {
        Some(text) => args.budget.apply(attention_mode(text, args.patterns.as_deref(), None)?)?,
        // Given sets: no pattern decides.
        None => AttentionMode::Uniform(HeadPattern::Dense),
    };
    let mode = args.extras.apply(mode);
    let options = AttendOptions {
        input: args.input.clone(),
        mode,
        layer: args.layer,
        index_in: args.index_in.clone(),
        compare_dense: args.compare == Some(Compare::Dense),
        repeat: args.repeat as usize,
        output: args.output.clone(),
        index_out: args.index_out.clone(),
    };
    let report = with_device(&args.device, console, AttendTask(options))?;
    if console.json {
        let value = serde_json::to_value(&report).map_err(|e| Error::invalid(format!("report: {e}")))?;
        console.print_json(&value);
    } else {
        console.print(&text(&report));
    }
    Ok(())
}

fn text(r: &AttendReport) -> String {
    let of = if r.kv_tokens == r.tokens { String::new() } else { format!(" of {}", r.kv_tokens) };
    let mut rows = vec![
        ("pattern", r.pattern.clone()),
        ("input", format!("{} heads on {}, {}{of} tokens, head_dim {}", r.heads, r.kv_heads, r.tokens, r.head_dim)),
        ("density", format!("{:.4} ({} pairs)", r.density, r.pairs)),
        ("estimate", format!("{:.3} ms", r.estimate_ms)),
        ("index", format!("{:.3} ms", r.index_ms)),
        ("attention", format!("{:.3} ms, {:.3} TFLOP/s", r.attention_ms, r.tflops)),
    ];
    if let Some(c) = &r.comparison {
        let total = r.estimate_ms + r.index_ms + r.attention_ms;
        rows.push(("dense", format!("{:.3} ms: {:.2}x the time of the three above", c.dense_ms, c.dense_ms / total)));
        rows.push((
            "against dense",
            format!("rel. L2 {:.3e}, max abs {:.3e}, recall {:.4}", c.rel_l2, c.max_abs, c.recall),
        ));
    }
    let mut out: String = rows.iter().map(|(name, value)| format!("{name:<14} {value}\n")).collect();
    if let Some(c) = r.comparison.as_ref().filter(|_| r.heads > 1) {
        let head = |h: usize| r.head_pairs[h] as f64 / r.pairs.max(1) as f64 * r.density * r.heads as f64;
        let lines: Vec<_> = (0..r.heads)
            .map(|h| vec![h.to_string(), format!("{:.4}", head(h)), format!("{:.4}", c.head_recall[h])])
            .collect();
        out += &format!("\n{}", table(&["head", "density", "recall"], &lines));
    }
    out
}
