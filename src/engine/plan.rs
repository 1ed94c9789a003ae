//! What a pre-fill takes, before it starts.

use super::EngineOptions;
use crate::backend::Backend;
use crate::backend::params::BLOCK;
use crate::model::decoder::workspace_bytes;
use crate::model::{DecoderConfig, KvPlace, Model, dual_chunk_bytes, kv_cache};
use crate::{DType, Error, Result};

/// Of the device's memory, what is planned with: drivers, pipelines and fragments take the rest.
const USABLE: f64 = 0.95;

/// Most bytes of an index with the scores that it is made from, but for those that grow with the prompt
/// ([`crate::estimate::IndexLimits`]).
const INDEX_BYTES: u64 = 512 << 20;

/// Chunks that an error proposes, longest first.
const CHUNKS: [usize; 3] = [32768, 8192, 2048];

/// Bytes of a pre-fill on a device.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Tokens that the KV cache is made for.
    pub capacity: usize,
    /// All matrices as the device keeps them.
    pub weights: u64,
    /// Keys and values.
    pub kv: u64,
    /// Activations of one chunk.
    pub workspace: u64,
    /// At most, the sparse index of a layer and the scores that it is made from.
    pub index: u64,
    /// What the device has, 0 where it does not tell.
    pub available: u64,
    device: String,
    act: DType,
    options: EngineOptions,
    config: DecoderConfig,
}

impl MemoryPlan {
    /// For a prompt of `tokens` behind what a cache of `capacity` tokens may hold already.
    pub(super) fn new<B: Backend>(
        backend: &B,
        model: &Model,
        options: &EngineOptions,
        tokens: usize,
        capacity: usize,
    ) -> Self {
        let info = backend.info();
        let mut plan = Self {
            tokens,
            capacity,
            weights: model.weight_bytes(backend),
            kv: 0,
            workspace: 0,
            index: 0,
            available: info.memory_bytes,
            device: info.id.clone(),
            act: backend.activation(),
            options: options.clone(),
            config: model.config.clone(),
        };
        plan.count();
        plan
    }

    /// Fills the counts from tokens, capacity and options.
    fn count(&mut self) {
        let c = &self.config;
        let chunk = if self.options.chunk == 0 { self.tokens } else { self.options.chunk.min(self.tokens) };
        let logits = 4 * c.vocab as u64;
        // On short prompts at most a bit for each column and 8 bytes for each range of 64 keys, a row block and head.
        let row_blocks = (chunk.div_ceil(BLOCK) * c.n_heads) as u64;
        let sets = (row_blocks * (self.capacity as u64 / 4 + 64)).min(INDEX_BYTES);
        self.kv = kv_cache::bytes(c, self.act, self.capacity, self.options.kv, self.options.kv_type);
        self.workspace = workspace_bytes(c, self.act, chunk) + logits;
        self.workspace += dual_chunk_bytes(c, self.act, chunk, self.capacity, sets);
        self.index = sets + 8 * (c.n_heads * self.capacity) as u64;
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.workspace + self.index
    }

    fn limit(&self) -> u64 {
        (self.available as f64 * USABLE) as u64
    }

    /// Whether the device has enough, as far as it tells.
    pub fn fits(&self) -> bool {
        self.available == 0 || self.total() <= self.limit()
    }

    /// The longest prompt that would fit under these options, with `chunk` in place of theirs.
    pub fn longest(&self, chunk: usize) -> usize {
        let behind = self.capacity.saturating_sub(self.tokens);
        let fits = |tokens: usize| {
            let options = EngineOptions { chunk, ..self.options.clone() };
            let mut plan = Self { tokens, capacity: tokens + behind, options, ..self.clone() };
            plan.count();
            plan.fits()
        };
        let (mut good, mut bad) = (0, self.config.max_positions / BLOCK + 1);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if fits(middle * BLOCK) { good = middle } else { bad = middle }
        }
        good * BLOCK
    }

    /// # Errors
    /// [`Error::OutOfMemory`] with what is needed, what is there and what would fit.
    pub fn check(&self) -> Result<()> {
        if self.fits() {
            return Ok(());
        }
        let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64);
        let parts = format!(
            "weights {}, keys and values {}, activations {}, index {}",
            gib(self.weights),
            gib(self.kv),
            gib(self.workspace),
            gib(self.index)
        );
        let (total, limit) = (gib(self.total()), gib(self.limit()));
        let need = format!("{} tokens need {total} ({parts}), {} has {limit} usable", self.tokens, self.device);
        let fitting = match self.longest(self.options.chunk) {
            0 => "nothing fits".to_owned(),
            tokens => format!("{tokens} tokens fit"),
        };
        let keeps = self.options.kv != KvPlace::None;
        let chunks = CHUNKS.iter().filter(|c| keeps && (self.options.chunk == 0 || **c < self.options.chunk));
        let helps = chunks.map(|c| (*c, self.longest(*c))).find(|(_, tokens)| *tokens >= self.tokens);
        let chunked = helps.map_or(String::new(), |(chunk, _)| format!("; with chunk {chunk} all of it fits"));
        Err(Error::OutOfMemory(format!("{need}; {fitting}{chunked}")))
    }
}
