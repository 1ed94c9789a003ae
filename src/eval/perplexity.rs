//! Perplexity of books by length, as the paper measures it on PG-19: one pre-fill of a book's first tokens, the mean over
//! books of each book's perplexity. Beside it, how far a mode's next-token distribution is from dense's.
//!
//! The official script leaves out the tokens at the borders of its chunks of 10,000; here every position counts, or those
//! asked for, in blocks of 64 spread evenly.

use super::runner::{Cell, Row, Suite};
use crate::backend::Backend;
use crate::engine::{Engine, Progress, row_losses};
use crate::fnv::fnv;
use crate::pattern::{AttentionMode, HeadPattern};
use crate::text::Text;
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Positions at which distributions are compared: of 152K ids 608 MB are kept.
pub const COMPARED: usize = 1000;

/// Positions of a block, where not all are scored.
const BLOCK: usize = 64;

/// The suite.
pub struct Perplexity {
    /// Name and tokens.
    books: Vec<(String, Vec<u32>)>,
    lengths: Vec<usize>,
    positions: usize,
    /// Dense's distributions of the cell at work: log-probabilities `[compared, vocab]`.
    dense: Option<(Cell, Vec<f32>)>,
}

impl Perplexity {
    /// Of books with their names. `positions` is how many are scored, 0 for all.
    pub fn new(text: &Arc<Text>, books: &[(String, String)], lengths: Vec<usize>, positions: usize) -> Result<Self> {
        let encode =
            |(name, book): &(String, String)| Ok((name.clone(), text.encode(book.trim_start_matches('\u{feff}'))?));
        let books = books.iter().map(encode).collect::<Result<_>>()?;
        Ok(Self { books, lengths, positions, dense: None })
    }

    fn score<B: Backend>(
        &self,
        engine: &mut Engine<B>,
        ids: &[u32],
        mode: &AttentionMode,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Scored> {
        let rows = scored(ids.len(), self.positions);
        let compared = compared(&rows);
        let mut out = Scored { losses: Vec::new(), distributions: Vec::new(), density: 0.0, seconds: 0.0 };
        let vocab = engine.config().vocab;
        let prefill = engine.row_logits(ids, mode, &rows, progress, &mut |part, logits| {
            out.losses.extend(row_losses(logits, &ids[part.start + 1..part.end + 1]));
            let here = &compared[compared.partition_point(|&at| at < part.start)..];
            let here = &here[..here.partition_point(|&at| at < part.end)];
            let row = |at: &usize| log_softmax(&logits[(at - part.start) * vocab..][..vocab]);
            out.distributions.extend(here.par_iter().map(row).collect::<Vec<_>>().into_iter().flatten());
            Ok(())
        })?;
        (out.density, out.seconds) = (prefill.density, prefill.seconds);
        Ok(out)
    }
}

struct Scored {
    losses: Vec<f32>,
    distributions: Vec<f32>,
    density: f64,
    seconds: f64,
}

/// Rows of logits that are scored: all but the last token's, or blocks of [`BLOCK`] spread evenly.
fn scored(len: usize, positions: usize) -> Vec<Range<usize>> {
    let all = len.saturating_sub(1);
    if positions == 0 || positions >= all || all <= BLOCK {
        return std::iter::once(0..all).collect();
    }
    let blocks = positions.div_ceil(BLOCK);
    if blocks == 1 {
        return std::iter::once(all - BLOCK..all).collect();
    }
    let start = |block: usize| block * (all - BLOCK) / (blocks - 1);
    let mut rows: Vec<Range<usize>> = (0..blocks).map(|block| start(block)..start(block) + BLOCK).collect();
    // Many blocks of a short text touch: no row twice.
    for i in 1..rows.len() {
        rows[i].start = rows[i].start.max(rows[i - 1].end);
    }
    rows
}

/// At most [`COMPARED`] of the scored rows, spread evenly over them.
fn compared(rows: &[Range<usize>]) -> Vec<usize> {
    let all: Vec<usize> = rows.iter().cloned().flatten().collect();
    let n = all.len().min(COMPARED);
    (0..n).map(|i| all[(2 * i + 1) * all.len() / (2 * n)]).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    let shift = max + sum.ln() as f32;
    logits.iter().map(|l| l - shift).collect()
}

/// Mean divergence KL(p || q) in nats of log-probabilities `[n, vocab]`, and the share of rows whose likeliest token is
/// the same.
pub fn divergence(p: &[f32], q: &[f32], vocab: usize) -> (f64, f64) {
    let row = |(p, q): (&[f32], &[f32])| {
        let term =
            |(&p, &q): (&f32, &f32)| if p == f32::NEG_INFINITY { 0.0 } else { f64::from(p).exp() * f64::from(p - q) };
        let same = crate::sample::argmax(p) == crate::sample::argmax(q);
        [p.iter().zip(q).map(term).sum::<f64>(), f64::from(u8::from(same))]
    };
    // Collected first, so that the sum does not depend on who computed what.
    let rows: Vec<[f64; 2]> = p.par_chunks_exact(vocab).zip(q.par_chunks_exact(vocab)).map(row).collect();
    let mean = |i: usize| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len().max(1) as f64;
    (mean(0), mean(1))
}

impl Suite for Perplexity {
    type Prompt = Vec<u32>;

    fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &length in &self.lengths {
            let cell =
                |(i, (name, _)): (usize, &(String, _))| Cell { task: name.clone(), length, sample: i, depth: None };
            cells.extend(self.books.iter().enumerate().map(cell));
        }
        cells
    }

    fn prompt(&self, cell: &Cell) -> Result<Vec<u32>> {
        let ids = &self.books[cell.sample].1;
        match ids.get(..cell.length) {
            Some(ids) if cell.length > 1 => Ok(ids.to_vec()),
            _ => Err(Error::invalid(format!("the text has {} tokens, {} are asked for", ids.len(), cell.length))),
        }
    }

    fn fingerprint(ids: &Vec<u32>) -> u64 {
        fnv(bytemuck::cast_slice(ids))
    }

    fn measure<B: Backend>(
        &mut self,
        engine: &mut Engine<B>,
        cell: &Cell,
        ids: &Vec<u32>,
        mode: &AttentionMode,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Row> {
        let dense = AttentionMode::Uniform(HeadPattern::Dense);
        let is_dense = *mode == dense;
        if !is_dense && self.dense.as_ref().is_none_or(|(of, _)| of != cell) {
            // An earlier run measured it, but its distributions are gone.
            let scored = self.score(engine, ids, &dense, progress)?;
            self.dense = Some((cell.clone(), scored.distributions));
        }
        let scored = self.score(engine, ids, mode, progress)?;
        let mean = scored.losses.iter().copied().map(f64::from).sum::<f64>() / scored.losses.len() as f64;
        let mut row = Row {
            tokens: ids.len(),
            score: mean.exp(),
            density: scored.density,
            prefill_s: scored.seconds,
            positions: Some(scored.losses.len()),
            ..Row::of(cell)
        };
        if is_dense {
            self.dense = Some((cell.clone(), scored.distributions));
        } else if let Some((_, dense)) = &self.dense {
            let (kl, agreement) = divergence(dense, &scored.distributions, engine.config().vocab);
            (row.kl, row.agreement) = (Some(kl), Some(agreement));
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::form;
    use super::*;

    #[test]
    fn positions_are_all_or_spread_evenly_and_none_twice() {
        let one = |len, positions| match scored(len, positions).as_slice() {
            [rows] => rows.clone(),
            more => panic!("{more:?}"),
        };
        assert_eq!((one(1000, 0), one(50, 10), one(1000, 64)), (0..999, 0..49, 935..999));
        assert_eq!(scored(1000, 128), [0..64, 935..999]);
        for (len, positions) in [(1000, 500), (1000, 998), (70_000, 4096), (129, 100), (200, 64)] {
            let rows = scored(len, positions);
            assert!(rows.windows(2).all(|w| w[0].end <= w[1].start), "{rows:?}");
            assert_eq!(rows.last().unwrap().end, len - 1);
            let n: usize = rows.iter().map(Range::len).sum();
            assert!(n <= positions.next_multiple_of(64) && n * 4 >= positions * 3, "{n} of {positions}");
        }
        let rows = scored(5000, 0);
        let some = compared(&rows);
        assert_eq!(some.len(), COMPARED);
        assert!(some.windows(2).all(|w| w[0] < w[1]) && some[0] < 20 && some[COMPARED - 1] > 4970);
        assert_eq!(compared(&[3..5, 7..8]), [3, 4, 7]);
    }

    #[test]
    fn divergence_is_that_of_two_distributions() {
        let p = log_softmax(&[0.0, (3.0f32).ln()]); // 1/4, 3/4
        let q = log_softmax(&[0.0, 0.0]);
        let expected = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
        let (kl, same) = divergence(&p, &q, 2);
        assert!((kl - expected).abs() < 1e-6, "{kl} {expected}");
        assert_eq!(same, 0.0, "of equals the first is taken");
        assert_eq!(divergence(&p, &p, 2), (0.0, 1.0));
    }

    #[test]
    fn books_that_are_too_short_are_skipped_with_both_lengths() {
        let books = [("a".to_string(), "It was late. ".repeat(40))];
        let suite = Perplexity::new(form().text(), &books, vec![64, 9999], 0).unwrap();
        let cells = suite.cells();
        assert_eq!(suite.prompt(&cells[0]).unwrap().len(), 64);
        let error = suite.prompt(&cells[1]).unwrap_err().to_string();
        assert!(error.starts_with("the text has ") && error.ends_with("9999 are asked for"), "{error}");
    }
}
