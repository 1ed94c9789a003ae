//! Checks and times the CUDA backend on the device found: attention in every kernel variant, estimation, index, products,
//! row operations, decoding.
//!
//! ```sh
//! cargo run --release --features cuda --example cuda_probe -- [--only SECTION,..] [--lengths 8192,32768] [--what TEXT] [--json FILE]
//! ```
//!
//! Each section runs in a process of its own under a time limit, because a kernel that never ends cannot be stopped from
//! inside: the process is killed, the row says so, and the next section goes on. `--list` names the sections, `--what` picks
//! the attention rows whose name has the text.

mod attention;
mod checks;
mod layer;
mod timing;

use clap::Parser;
use minference::backend::Backend;
use minference::backend::cuda::{AttentionKernel, Cuda, CudaOptions};
use minference::{DType, Error, Result};
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What a section does.
type Run = Box<dyn Fn(&Arguments) -> Result<()>>;

/// A kernel variant: its name, which kernel, and the macros it adds.
type Variant = (&'static str, AttentionKernel, &'static [(&'static str, u32)]);

/// A section's name, its time limit in seconds, and what it does.
struct Section {
    name: String,
    seconds: u64,
    run: Run,
}

/// Checks and times the CUDA backend on the device found, section by section.
#[derive(Clone, Debug, Parser)]
#[command(name = "cuda_probe")]
pub struct Arguments {
    /// Only sections whose names begin so.
    #[arg(long, value_name = "SECTION,..", value_delimiter = ',')]
    only: Vec<String>,
    /// Tokens of what is timed.
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = [8192, 32768, 131072])]
    lengths: Vec<usize>,
    /// Only the attention rows whose name has this text.
    #[arg(long, value_name = "TEXT", default_value = "")]
    what: String,
    /// Writes all lines there.
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Names the sections.
    #[arg(long)]
    list: bool,
    /// The section that this process is for.
    #[arg(long, hide = true)]
    child: Option<String>,
}

/// Every variant that is checked and timed.
pub const VARIANTS: &[Variant] = &[
    ("default", AttentionKernel::Auto, &[]),
    ("no_pingpong", AttentionKernel::Auto, &[("PINGPONG", 0)]),
    ("q_shared", AttentionKernel::Auto, &[("Q_SHARED", 1)]),
    ("q_shared_no_pingpong", AttentionKernel::Auto, &[("Q_SHARED", 1), ("PINGPONG", 0)]),
    ("sm80", AttentionKernel::Sm80, &[]),
    ("sm80_one_block", AttentionKernel::Sm80, &[("ROW_BLOCKS", 1)]),
];

/// A device in a variant.
pub fn open(activation: DType, variant: usize) -> Result<Cuda> {
    let (_, attention, defines) = VARIANTS[variant];
    Cuda::new(0, CudaOptions { activation, attention, attention_defines: defines.to_vec(), ..CudaOptions::default() })
}

fn sections() -> Vec<Section> {
    let mut all = Vec::new();
    let mut add = |name: String, seconds, run: Run| {
        all.push(Section { name, seconds, run });
    };
    for (i, (name, ..)) in VARIANTS.iter().enumerate() {
        add(format!("check_{name}"), 60, Box::new(move |_| checks::attention(i)));
    }
    for (i, (name, ..)) in VARIANTS.iter().enumerate() {
        add(format!("attention_{name}"), 150, Box::new(move |a| attention::section(i, &a.lengths, &a.what)));
    }
    for i in [0, 4] {
        add(format!("crossover_{}", VARIANTS[i].0), 90, Box::new(move |a| attention::crossover(i, &a.lengths)));
    }
    add("estimate".into(), 90, Box::new(|_| layer::estimate()));
    add("layer".into(), 90, Box::new(|a| layer::layer(&a.lengths)));
    add("products".into(), 60, Box::new(|_| layer::products()));
    add("rows".into(), 60, Box::new(|_| layer::rows()));
    add("decode".into(), 60, Box::new(|_| layer::decode()));
    add("tokens".into(), 60, Box::new(|_| layer::tokens()));
    all
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => e.report(),
    }
}

/// Whether every section ended well.
fn run(a: &Arguments) -> Result<bool> {
    let sections = sections();
    if a.list {
        sections.iter().for_each(|s| println!("{}", s.name));
        return Ok(true);
    }
    if let Some(name) = &a.child {
        let section = sections.iter().find(|s| s.name == *name);
        let section = section.ok_or_else(|| Error::invalid(format!("no section {name}")))?;
        (section.run)(a)?;
        return Ok(true);
    }
    let b = open(DType::BF16, 0)?;
    let info = b.info();
    println!("{}: {}, {:.1} GiB, {}", info.id, info.name, info.memory_bytes as f64 / (1u64 << 30) as f64, info.tier);
    drop(b);
    let wanted = |name: &str| a.only.is_empty() || a.only.iter().any(|only| name.starts_with(only.as_str()));
    let (mut failed, mut lines) = (Vec::new(), Vec::new());
    for section in sections.iter().filter(|s| wanted(&s.name)) {
        match supervise(section, a, &mut lines)? {
            None => {}
            Some(why) => failed.push(format!("{}: {why}", section.name)),
        }
    }
    if let Some(path) = &a.json {
        std::fs::write(path, lines.join("\n")).map_err(|e| Error::io(path, e))?;
    }
    println!("{} of the sections failed{}", failed.len(), if failed.is_empty() { "" } else { ":" });
    failed.iter().for_each(|f| println!("  {f}"));
    Ok(failed.is_empty())
}

/// Runs a section in a child and kills it past its time; why it failed, if it did.
fn supervise(section: &Section, a: &Arguments, lines: &mut Vec<String>) -> Result<Option<String>> {
    println!("-- {}", section.name);
    let _ = std::io::stdout().flush();
    let exe = std::env::current_exe().map_err(|e| Error::io("the program", e))?;
    let lengths: Vec<String> = a.lengths.iter().map(usize::to_string).collect();
    let mut child = Command::new(exe)
        .args(["--child", &section.name, "--lengths", &lengths.join(","), "--what", &a.what])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| Error::io("a child process", e))?;
    let reader = child.stdout.take().map(|out| {
        std::thread::spawn(move || {
            use std::io::BufRead;
            let lines = std::io::BufReader::new(out).lines().map_while(std::result::Result::ok);
            lines.inspect(|line| println!("{line}")).collect::<Vec<_>>()
        })
    });
    let end = Instant::now() + Duration::from_secs(section.seconds);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| Error::io("a child process", e))? {
            break Some(status);
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    lines.extend(reader.and_then(|r| r.join().ok()).unwrap_or_default());
    Ok(match status {
        None => Some(format!("still running after {} s: killed", section.seconds)),
        Some(status) if status.success() => None,
        Some(status) => Some(status.to_string()),
    })
}
