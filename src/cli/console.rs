//! Where words go: results to stdout, everything else to stderr.

use crate::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Flags that every command takes.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Console {
    /// One JSON object on stdout and nothing else.
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// No progress and no notes on stderr.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    pub quiet: bool,
    /// More notes on stderr: what was chosen and why.
    #[arg(short, long, global = true, help_heading = "Output")]
    pub verbose: bool,
}

/// A text within HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Console {
    /// A part of the result, as it comes. A reader that has gone (`| head`) ends the program quietly: that is how the
    /// reader says that it has enough.
    pub fn print(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        if let Err(e) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            if e.kind() != std::io::ErrorKind::BrokenPipe {
                eprintln!("error: stdout: {e}");
                std::process::exit(1);
            }
            std::process::exit(0);
        }
    }

    /// The one JSON object.
    pub fn print_json(&self, value: &serde_json::Value) {
        self.print(&format!("{value}\n"));
    }

    /// A note on stderr, unless quiet.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// A note on stderr, whatever the flags.
    pub fn tell(text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// A note on stderr for those who asked for more.
    pub fn explain(&self, text: &str) {
        if self.verbose {
            self.line(text);
        }
    }

    /// stderr may be closed; that is no reason to stop.
    fn line(&self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Whether results may be coloured: a terminal reads them and `NO_COLOR` is not set.
    pub fn colours(&self) -> bool {
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
    }

    /// A bar on stderr with the time left; hidden when quiet or where stderr is no terminal.
    pub fn bar(&self, len: u64, what: &str) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(len);
        // The template is a constant, and a test draws it.
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    }
}

const BAR: &str = "{msg:<28} [{bar:30}] {percent:>3}%  {elapsed} elapsed, {eta} left";

/// Set by Ctrl-C; long work looks at it between steps.
static INTERRUPT: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Makes Ctrl-C ask for an orderly end, which may take as long as a layer of a long prompt, and a second one end at once.
pub fn catch_interrupts(console: Console) {
    // Fails only where a handler exists already (a program that embeds this one): then that one decides.
    let _ = ctrlc::set_handler(move || {
        if INTERRUPT.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        console.note("stopping after the layer or step at work; Ctrl-C again stops at once");
    });
}

/// The flag that Ctrl-C sets, for [`crate::engine::EngineOptions::interrupt`].
pub fn interrupt() -> Arc<AtomicBool> {
    INTERRUPT.clone()
}

/// [`Error::Interrupted`] after Ctrl-C.
pub fn check_interrupt() -> Result<()> {
    match INTERRUPT.load(Ordering::SeqCst) {
        true => Err(Error::Interrupted),
        false => Ok(()),
    }
}

/// Columns of text with a rule under the head: the first and those without a head left-aligned, the others right-aligned.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width =
        |c: usize| rows.iter().map(|r| r[c].chars().count()).chain([head[c].chars().count()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (c, cell) in cells.enumerate() {
            let pad = " ".repeat(widths[c].saturating_sub(cell.chars().count()));
            let gap = if c == 0 { "" } else { "  " };
            out += &match c == 0 || head[c].is_empty() {
                true => format!("{gap}{cell}{pad}"),
                false => format!("{gap}{pad}{cell}"),
            };
        }
        out.trim_end().to_string() + "\n"
    };
    let rule: Vec<String> = widths.iter().map(|&w| "-".repeat(w)).collect();
    let mut out = line(&mut head.iter().copied()) + &line(&mut rule.iter().map(String::as_str));
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = vec![vec!["dense".into(), "1.00".into()], vec!["block_sparse:8".into(), "0.1".into()]];
        let text = table(&["mode", "density"], &rows);
        assert_eq!(
            text,
            "mode            density\n--------------  -------\ndense              1.00\nblock_sparse:8      0.1\n"
        );
    }

    #[test]
    fn the_bar_template_is_valid() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }
}
