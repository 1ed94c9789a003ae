//! Seconds of a whole pre-fill by length, as the paper's figure 1(b): from the call to the last position's logits on the
//! host. The first pre-fill of each length and mode is thrown away; the official script keeps it, and with it the
//! compilation of its kernels. The text is a novel, where the official script repeats one short prompt, on which sparsity
//! says little about real ones.

use super::runner::{Cell, Row, Suite};
use crate::backend::{Backend, warm_up};
use crate::engine::{Engine, Progress};
use crate::fnv::fnv;
use crate::pattern::AttentionMode;
use crate::text::Text;
use crate::{Error, Result};
use std::collections::HashSet;
use std::sync::Arc;

/// The suite.
pub struct Latency {
    ids: Vec<u32>,
    lengths: Vec<usize>,
    rounds: usize,
    /// Lengths and modes that have had their warm-up.
    warm: HashSet<(usize, String)>,
}

impl Latency {
    /// Each length `rounds` times, on a text that begins again where it ends.
    pub fn new(text: &Arc<Text>, essay: &str, lengths: Vec<usize>, rounds: usize) -> Result<Self> {
        let ids = text.encode(essay)?;
        match ids.is_empty() {
            true => Err(Error::invalid("latency: the text has no tokens")),
            false => Ok(Self { ids, lengths, rounds, warm: HashSet::new() }),
        }
    }
}

impl Suite for Latency {
    type Prompt = Vec<u32>;

    fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &length in &self.lengths {
            cells.extend((0..self.rounds).map(|sample| Cell { task: "prefill".into(), length, sample, depth: None }));
        }
        cells
    }

    fn prompt(&self, cell: &Cell) -> Result<Vec<u32>> {
        Ok(self.ids.iter().copied().cycle().take(cell.length).collect())
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
        if self.warm.insert((cell.length, mode.name())) {
            let is_cpu = engine.backend().info().is_cpu;
            warm_up(is_cpu, || {
                engine.reset();
                engine.prefill(ids, mode, progress)
            })?;
        }
        engine.reset();
        let prefill = engine.prefill(ids, mode, progress)?;
        let (seconds, density) = (prefill.seconds, prefill.density);
        Ok(Row { tokens: ids.len(), score: seconds, density, prefill_s: seconds, ..Row::of(cell) })
    }
}
