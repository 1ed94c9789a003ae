//! Keys and values of every layer.

use super::DecoderConfig;
use crate::backend::Backend;
use crate::backend::params::BLOCK;
use crate::tensor::Tensor;
use crate::{DType, Error, Result};
use std::str::FromStr;

/// Where keys and values stay after their layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvPlace {
    /// In device memory.
    #[default]
    Device,
    /// Nowhere: every layer overwrites the last one's. Pre-fill of one chunk only, as in the paper's latency figures.
    None,
}

impl FromStr for KvPlace {
    type Err = Error;

    /// As on the command line.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "device" => Ok(Self::Device),
            "none" => Ok(Self::None),
            "host" => Err(Error::Unsupported("--kv host: keys and values in host memory are not built yet".into())),
            other => Err(Error::invalid(format!("--kv: expected device, host or none, found {other:?}"))),
        }
    }
}

/// Keys and values of one layer, head-major, so that a head's keys lie side by side.
pub struct LayerKv<B: Backend> {
    /// act `[KV, capacity, D]`.
    pub k: Tensor<B>,
    /// act `[KV, capacity, D]`.
    pub v: Tensor<B>,
}

/// Keys and values of all layers, for one sequence.
pub struct KvCache<B: Backend> {
    layers: Vec<LayerKv<B>>,
    place: KvPlace,
    capacity: usize,
    len: usize,
    first_position: usize,
}

impl<B: Backend> KvCache<B> {
    /// Room for `capacity` tokens, rounded up to whole blocks of 64.
    pub fn new(backend: &B, config: &DecoderConfig, capacity: usize, place: KvPlace) -> Result<Self> {
        let capacity = capacity.next_multiple_of(BLOCK);
        let (shape, act) = ([config.n_kv_heads, capacity, config.head_dim], backend.activation());
        let stored = match place {
            KvPlace::Device => config.n_layers,
            KvPlace::None => 1,
        };
        let layer = |_| Ok(LayerKv { k: Tensor::alloc(backend, act, shape)?, v: Tensor::alloc(backend, act, shape)? });
        let layers = (0..stored).map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, place, capacity, len: 0, first_position: 0 })
    }

    /// One layer's keys and values.
    pub fn layer(&self, layer: usize) -> &LayerKv<B> {
        &self.layers[layer.min(self.layers.len() - 1)]
    }

    /// One layer's keys and values, to write.
    pub fn layer_mut(&mut self, layer: usize) -> &mut LayerKv<B> {
        let last = self.layers.len() - 1;
        &mut self.layers[layer.min(last)]
    }

    /// Where keys and values stay.
    pub fn place(&self) -> KvPlace {
        self.place
    }

    /// Tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Position of the first token: 0 but for a segment that begins elsewhere.
    pub fn first_position(&self) -> usize {
        self.first_position
    }

    /// Empties it for a segment that begins at this position.
    pub fn restart_at(&mut self, first_position: usize) {
        (self.len, self.first_position) = (0, first_position);
    }

    /// Counts tokens that every layer now holds.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Forgets all tokens after the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

/// Bytes that [`KvCache::new`] allocates.
pub fn bytes(config: &DecoderConfig, act: DType, capacity: usize, place: KvPlace) -> u64 {
    let stored = if place == KvPlace::None { 1 } else { config.n_layers };
    let elements = config.n_kv_heads * config.head_dim * 2 * stored;
    act.bytes(elements) as u64 * capacity.next_multiple_of(BLOCK) as u64
}
