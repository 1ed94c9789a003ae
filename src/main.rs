//! The `minference` program. Everything is in [`minference::cli`].

fn main() -> std::process::ExitCode {
    minference::cli::main()
}
