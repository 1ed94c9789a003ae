//! The longest prompt that a device finishes within a minute in all modes.

use minference::Result;
use minference::backend::Backend;
use minference::cli::console::Console;
use minference::engine::Engine;
use minference::eval::needle::{Needle, NeedleTest};
use minference::pattern::{AttentionMode, HeadPattern};

/// Seconds for all modes together: a minute, less what probing takes and what a busy machine adds.
const BUDGET: f64 = 42.0;
/// A probe this long says enough about longer ones.
const PROBE: f64 = 1.5;
/// Longest by default: what the embedded model was trained for.
const LONGEST: usize = 131_072;

/// Times dense pre-fills of doubling length until one takes [`PROBE`] seconds, and goes on from there by
/// `a n + b n^2`. Sparse modes are taken to cost as much as dense: a promise kept early is no harm.
pub fn choose<B: Backend>(engine: &mut Engine<B>, test: &NeedleTest, modes: usize, console: &Console) -> Result<usize> {
    let dense = AttentionMode::Uniform(HeadPattern::Dense);
    let fits = |engine: &Engine<B>, n: usize| n <= engine.config().max_positions && engine.plan(n).check().is_ok();
    let mut points: Vec<(f64, f64)> = Vec::new();
    let mut n = 1024;
    while n <= LONGEST && fits(engine, n) {
        engine.reset();
        let prompt = test.prompt(&Needle::draw(0), n, 50.0)?;
        let seconds = engine.prefill(&prompt.ids, &dense, &mut |_| ())?.seconds;
        points.push((n as f64, seconds));
        if seconds > PROBE {
            break;
        }
        n *= 2;
    }
    engine.reset();
    let (a, b) = fit(&points);
    let all_modes = |n: usize| modes as f64 * (a * n as f64 + b * (n as f64).powi(2));
    let info = engine.backend().info();
    // On a GPU shorter prompts do not show what sparsity is for; two CPU cores take two seconds for 8192 tokens of a
    // model of this size, whatever a moment of load made the probe say.
    let floor = match (info.is_cpu, info.backend) {
        (false, _) => 32_768,
        (true, "cpu") if engine.config().parameters() < 10_000_000 => 8192,
        _ => 1024,
    };
    let mut chosen = 1024;
    while chosen < LONGEST && fits(engine, chosen * 2) && (all_modes(chosen * 2) <= BUDGET || chosen < floor) {
        chosen *= 2;
    }
    console.explain(&format!("length {chosen}: about {:.0} s in {modes} modes", all_modes(chosen)));
    Ok(chosen)
}

/// Seconds a token and seconds a pair, from the last two points.
fn fit(points: &[(f64, f64)]) -> (f64, f64) {
    match points {
        [.., (n, s), (m, t)] => {
            // On a fast device both may be mostly the same fixed cost: then no share grows with the square.
            let b = ((t / m - s / n) / (m - n)).max(0.0);
            (t / m - b * m, b)
        }
        [(n, s)] => (s / n, 0.0),
        [] => (0.0, 0.0),
    }
}
