//! The `minference` program: arguments in, an exit status out.
//!
//! Results go to stdout, progress and notes to stderr. Exit status: 0 done, 1 failed, 2 bad usage or bad input, 130
//! stopped by Ctrl-C. The backend is picked in one place, [`device::with_device`].

mod attend;
mod bench;
pub mod console;
pub mod device;
mod devices;
mod doctor;
mod eval;
pub mod mode;
mod patterns;
mod prompt;
mod random;
pub mod run;
mod search;

use crate::Result;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use console::Console;
use std::process::ExitCode;

/// Sparse pre-fill for long prompts (MInference 1.0) on any GPU, and on the CPU.
#[derive(Debug, Parser)]
#[command(
    name = "minference",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  minference run --model needle --prompt 'The secret code of Eve is 493821. Question: What is the secret code of Eve? Answer: The secret code of Eve is '
  minference run --model DIR_OR_GGUF --chat --prompt-file long.txt --attention vertical_slash:1000:6096
  minference devices
  minference attend --input qkv.safetensors --pattern block_sparse:16 --compare dense

Exit status: 0 done, 1 failed, 2 bad usage or bad input, 130 stopped by Ctrl-C."
)]
struct Cli {
    #[command(flatten)]
    console: Console,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the devices that can run here.
    #[command(after_help = "Example:\n  minference devices --json")]
    Devices,
    /// Checks drivers and libraries, and computes a little on each device and compares it with the CPU.
    #[command(after_help = "Example:\n  minference doctor")]
    Doctor,
    /// Pre-fills a prompt and answers it.
    #[command(after_help = mode::with_patterns(run::EXAMPLES))]
    Run(Box<run::RunArgs>),
    /// One attention layer on q, k and v from a file.
    #[command(after_help = mode::with_patterns(attend::EXAMPLES))]
    Attend(Box<attend::AttendArgs>),
    /// Finds each head's pattern and budget offline, and writes a pattern file.
    #[command(after_help = search::EXAMPLES)]
    Search(search::SearchArgs),
    /// The paper's evaluations: needle, RULER, InfiniteBench, perplexity, latency; dense beside each mode.
    #[command(after_help = mode::with_patterns(eval::EXAMPLES))]
    Eval(Box<eval::EvalArgs>),
    /// Times attention and whole pre-fills.
    #[command(after_help = mode::with_patterns(bench::EXAMPLES))]
    Bench(Box<bench::BenchArgs>),
    /// Files of head patterns.
    #[command(after_help = patterns::EXAMPLES)]
    Patterns(patterns::PatternsArgs),
}

/// Parses the command line, runs the command, and reports its error on one line of stderr.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    console::catch_interrupts(cli.console);
    dispatch(cli).map_or_else(|e| e.report(), |()| ExitCode::SUCCESS)
}

fn dispatch(cli: Cli) -> Result<()> {
    let console = cli.console;
    match cli.command {
        Command::Devices => devices::devices(&console),
        Command::Doctor => doctor::doctor(&console),
        Command::Run(args) => run::run(&args, &console),
        Command::Attend(args) => attend::attend(&args, &console),
        Command::Search(args) => search::search(&args, &console),
        Command::Eval(args) => eval::eval(&args, &console),
        Command::Bench(args) => bench::bench(&args, &console),
        Command::Patterns(args) => patterns::patterns(&args, &console),
    }
}

/// Help and version as clap writes them; anything else on one line, as all our errors are.
pub fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A closed stdout is no failure of ours.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(2);
    }
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or(&text);
    eprintln!("{} (see --help)", first.split_whitespace().collect::<Vec<_>>().join(" "));
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
