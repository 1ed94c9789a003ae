//! What a pattern computes, drawn in the terminal: one picture per pattern, queries downwards, keys to the right.
//!
//! ```sh
//! cargo run --release --example inspect_index
//! ```
//!
//! The queries and keys are made so that a few keys draw attention from everywhere (columns) and a few distances do
//! (diagonals), as in real heads.

use minference::Result;
use minference::backend::Backend;
use minference::backend::cpu::Cpu;
use minference::estimate::estimate;
use minference::index::HostIndex;
use minference::ops::AttentionShape;
use minference::pattern::HeadPattern;
use minference::tensor::Tensor;
use std::process::ExitCode;

const LEN: usize = 2048;
const DIM: usize = 64;
/// Pairs on a side that one character column stands for; a character is two cells high.
const CELL: usize = 32;

/// q and k [1, LEN, DIM]: rotations give diagonals at the periods of the angles, and some keys a bias for all queries.
fn queries_and_keys() -> (Vec<f32>, Vec<f32>) {
    let angle = |token: usize, pair: usize| token as f32 * std::f32::consts::TAU / [701.0, 443.0, 97.0][pair % 3];
    let (mut q, mut k) = (vec![0.0; LEN * DIM], vec![0.0; LEN * DIM]);
    for token in 0..LEN {
        for pair in 0..DIM / 2 - 1 {
            let (sin, cos) = angle(token, pair).sin_cos();
            for x in [&mut q, &mut k] {
                x[token * DIM + 2 * pair] = 1.4 * cos;
                x[token * DIM + 2 * pair + 1] = 1.4 * sin;
            }
        }
        q[token * DIM + DIM - 1] = 6.0;
        k[token * DIM + DIM - 1] = if token < 4 || token % 613 == 0 { 14.0 } else { 0.0 };
    }
    (q, k)
}

/// Each cell's share of computed pairs as a shade, two cells to a character.
fn draw(index: &HostIndex) -> String {
    let mask = index.to_mask(0);
    let share = |row: usize, column: usize| {
        let cell = (0..CELL).flat_map(|i| (0..CELL).map(move |j| (row * CELL + i, column * CELL + j)));
        let computed = cell.filter(|(i, j)| mask[i * LEN + j]).count();
        computed as f64 / (CELL * CELL) as f64
    };
    let side = LEN / CELL;
    let mut out = String::new();
    for row in (0..side).step_by(2) {
        for column in 0..side {
            let dark = (share(row, column) + share(row + 1, column)) / 2.0;
            let empty = column > row + 1;
            out.push(if empty { ' ' } else { ['.', '░', '▒', '▓', '█'][(dark * 4.0).ceil() as usize] });
        }
        out.push('\n');
    }
    out
}

fn main() -> ExitCode {
    run().map_or_else(|e| e.report(), |()| ExitCode::SUCCESS)
}

fn run() -> Result<()> {
    let b = Cpu::new();
    let (q, k) = queries_and_keys();
    let (q, k) = (Tensor::activation(&b, [1, LEN, DIM], &q)?, Tensor::activation(&b, [1, LEN, DIM], &k)?);
    let stride = [DIM, LEN * DIM];
    let shape = AttentionShape {
        n_heads: 1,
        n_kv_heads: 1,
        head_dim: DIM,
        q_len: LEN,
        kv_len: LEN,
        q_start: 0,
        scale: 1.0 / (DIM as f32).sqrt(),
        q_stride: stride,
        k_stride: stride,
        v_stride: stride,
        out_stride: stride,
    };
    for pattern in ["a_shape:64:256", "vertical_slash:60:150", "block_sparse:6"] {
        let pattern: HeadPattern = pattern.parse()?;
        let index = estimate(&b, &[pattern], &shape, q.view(), k.view())?.to_host(&b)?;
        let (ranges, columns) = (index.ranges.len(), index.columns.len());
        println!("{pattern}: density {:.3}, {ranges} ranges, {columns} single columns", index.density());
        println!("{}", draw(&index));
    }
    println!("device: {}", b.info().name);
    Ok(())
}
