//! The library in ten lines: a long prompt in, sparse pre-fill, an answer out.
//!
//! `cargo run --release --example prefill -- CHECKPOINT_DIR_OR_GGUF PROMPT_FILE`

use minference::backend::cpu::Cpu;
use minference::engine::{Engine, EngineOptions};
use minference::pattern::AttentionMode;
use minference::{Error, Result, model::Model, sample::Sampler};
use std::process::ExitCode;

fn main() -> ExitCode {
    run().map_or_else(|e| e.report(), |()| ExitCode::SUCCESS)
}

fn run() -> Result<()> {
    const USAGE: &str = "usage: prefill CHECKPOINT_DIR_OR_GGUF PROMPT_FILE";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|word| word == "-h" || word == "--help") {
        println!("{USAGE}");
        return Ok(());
    }
    let [checkpoint, prompt] = arguments.as_slice() else { return Err(Error::invalid(USAGE)) };
    let prompt = std::fs::read_to_string(prompt).map_err(|e| Error::io(prompt, e))?;

    let model = Model::open(checkpoint)?;
    let text = model.text()?.clone();
    let mut engine = Engine::new(Cpu::new(), model, EngineOptions::default())?;
    let mode = AttentionMode::Uniform("vertical_slash:1000:6096".parse()?);
    let ids = text.tokenizer.encode(&prompt, true)?;
    let prefill = engine.prefill(&ids, &mode, &mut |_| ())?;
    let answer = engine.generate(&prefill.logits, &mut Sampler::greedy(), 64, &mut |_| ())?;
    println!("{}", text.tokenizer.decode(&answer.ids));
    eprintln!("{} tokens, density {:.3}, pre-fill {:.2} s", ids.len(), prefill.density, prefill.seconds);
    Ok(())
}
