//! Keys and values of every layer.

use super::DecoderConfig;
use crate::backend::Backend;
use crate::backend::params::BLOCK;
use crate::tensor::Tensor;
use crate::{DType, Error, Result, ops};
use std::ops::Range;
use std::str::FromStr;

/// Where keys and values stay after their layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvPlace {
    /// In device memory.
    #[default]
    Device,
    /// In host memory: the device holds one layer's, and every layer's are brought there for its attention and the new
    /// ones taken away after it. For contexts whose keys and values the device cannot hold; decoding moves all of them
    /// once for each token.
    Host,
    /// Nowhere: every layer overwrites the last one's. Pre-fill of one chunk only, as in the paper's latency figures.
    None,
}

impl FromStr for KvPlace {
    type Err = Error;

    /// As on the command line.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "device" => Ok(Self::Device),
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            other => Err(Error::invalid(format!("--kv: expected device, host or none, found {other:?}"))),
        }
    }
}

/// How keys and values are stored between layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// As activations are: f16 on wgpu, f32 on the CPU, bf16 or f16 on CUDA.
    #[default]
    F16,
    /// In blocks of 32 elements as signed bytes under an f16 scale, 9 bits an element with padding. The device holds one
    /// layer's as activations for its attention.
    Q8_0,
}

impl FromStr for KvType {
    type Err = Error;

    /// As on the command line.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f16" => Ok(Self::F16),
            "q8_0" => Ok(Self::Q8_0),
            other => Err(Error::invalid(format!("--kv-type: expected f16 or q8_0, found {other:?}"))),
        }
    }
}

/// Keys and values of one layer, head-major, so that a head's keys lie side by side.
pub struct LayerKv<B: Backend> {
    /// act `[KV, capacity, D]`, or packed ([`ops::pack_kv`]).
    pub k: Tensor<B>,
    /// As `k`.
    pub v: Tensor<B>,
}

/// Keys and values of all layers, for one sequence.
pub struct KvCache<B: Backend> {
    /// On the device: all layers', or one that they share.
    layers: Vec<LayerKv<B>>,
    /// Where `layers` are packed: the layer at work, as activations.
    unpacked: Option<LayerKv<B>>,
    /// Bytes of k and of v of each layer, as on the device, where they stay in host memory.
    host: Vec<[Vec<u8>; 2]>,
    place: KvPlace,
    capacity: usize,
    len: usize,
    first_position: usize,
}

impl<B: Backend> KvCache<B> {
    /// Room for `capacity` tokens, rounded up to whole blocks of 64.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Unsupported`] for packed heads whose dimension is no multiple of 32.
    pub fn new(backend: &B, config: &DecoderConfig, capacity: usize, place: KvPlace, kv_type: KvType) -> Result<Self> {
        let capacity = capacity.next_multiple_of(BLOCK);
        let (heads, d, act) = (config.n_kv_heads, config.head_dim, backend.activation());
        let stored = if place == KvPlace::Device { config.n_layers } else { 1 };
        let alloc = |dtype, width| Tensor::alloc(backend, dtype, [heads, capacity, width]);
        let layer = |dtype, width| Ok(LayerKv { k: alloc(dtype, width)?, v: alloc(dtype, width)? });
        let (dtype, width) = match kv_type {
            KvType::F16 => (act, d),
            KvType::Q8_0 if d % 32 != 0 => {
                let what = format!("--kv-type q8_0: expected a head_dim that is a multiple of 32, found {d}");
                return Err(Error::Unsupported(what));
            }
            KvType::Q8_0 => (DType::U32, d / 32 * ops::PACKED_KV_WORDS),
        };
        let layers = (0..stored).map(|_| layer(dtype, width)).collect::<Result<_>>()?;
        let unpacked = if kv_type == KvType::Q8_0 { Some(layer(act, d)?) } else { None };
        let bytes = dtype.bytes(heads * capacity * width);
        let host = match place {
            KvPlace::Host => (0..config.n_layers).map(|_| [vec![0; bytes], vec![0; bytes]]).collect(),
            _ => Vec::new(),
        };
        Ok(Self { layers, unpacked, host, place, capacity, len: 0, first_position: 0 })
    }

    /// Brings a layer's keys and values to the device, where they stay in host memory, and unpacks them where they are packed.
    pub(super) fn bring(&mut self, b: &B, layer: usize) -> Result<()> {
        if let Some(host) = self.host.get(layer) {
            let LayerKv { k, v } = &mut self.layers[0];
            for (tensor, bytes) in [k, v].into_iter().zip(host) {
                for span in spans(tensor, 0..self.len) {
                    tensor.write_bytes(b, span.start, &bytes[span])?;
                }
            }
        }
        let stored = layer.min(self.layers.len() - 1);
        if let Some(unpacked) = &mut self.unpacked {
            let LayerKv { k, v } = &self.layers[stored];
            ops::unpack_kv(b, k.view(), unpacked.k.view_mut(), 0, self.len)?;
            ops::unpack_kv(b, v.view(), unpacked.v.view_mut(), 0, self.len)?;
        }
        Ok(())
    }

    /// Packs the `n` tokens that a layer added, where they are packed: attention then sees them as they will be kept.
    pub(super) fn pack(&mut self, b: &B, layer: usize, n: usize) -> Result<()> {
        let stored = layer.min(self.layers.len() - 1);
        if let Some(unpacked) = &mut self.unpacked {
            let LayerKv { k, v } = &mut self.layers[stored];
            ops::pack_kv(b, unpacked.k.view_mut(), k.view_mut(), self.len, n)?;
            ops::pack_kv(b, unpacked.v.view_mut(), v.view_mut(), self.len, n)?;
        }
        Ok(())
    }

    /// Copies the `n` tokens that a layer added back to where they stay. Waits for the device.
    pub(super) fn take_away(&mut self, b: &B, layer: usize, n: usize) -> Result<()> {
        let Some(host) = self.host.get_mut(layer) else { return Ok(()) };
        let LayerKv { k, v } = &self.layers[0];
        for (tensor, bytes) in [k, v].into_iter().zip(host) {
            for span in spans(tensor, self.len..self.len + n) {
                bytes[span.clone()].copy_from_slice(&tensor.read_bytes(b, span)?);
            }
        }
        Ok(())
    }

    /// Keys and values of a layer's tokens as the device stores them, `[KV, len, D]` each: to be kept in a file.
    pub fn read_layer(&self, b: &B, layer: usize) -> Result<[Vec<u8>; 2]> {
        let tensors = self.layer(layer);
        let read = |part: usize, tensor: &Tensor<B>| {
            let mut out = Vec::new();
            for span in spans(tensor, 0..self.len) {
                match self.host.get(layer) {
                    Some(host) => out.extend_from_slice(&host[part][span]),
                    None => out.extend(tensor.read_bytes(b, span)?),
                }
            }
            Ok(out)
        };
        Ok([read(0, &tensors.k)?, read(1, &tensors.v)?])
    }

    /// Puts `len` tokens' keys and values, as [`Self::read_layer`] gave them, at the start of a layer. The cache counts
    /// them once [`Self::advance`] is told.
    pub fn write_layer(&mut self, b: &B, layer: usize, len: usize, parts: [&[u8]; 2]) -> Result<()> {
        let at = layer.min(self.layers.len() - 1);
        let LayerKv { k, v } = &mut self.layers[at];
        for (part, (tensor, bytes)) in [k, v].into_iter().zip(parts).enumerate() {
            let mut rest = bytes;
            for span in spans(tensor, 0..len) {
                let Some((head, after)) = rest.split_at_checked(span.len()) else {
                    return Err(Error::invalid(format!("layer {layer}: {} bytes are too few", bytes.len())));
                };
                match self.host.get_mut(layer) {
                    Some(host) => host[part][span].copy_from_slice(head),
                    None => tensor.write_bytes(b, span.start, head)?,
                }
                rest = after;
            }
        }
        Ok(())
    }

    /// One layer's keys and values as they are stored.
    pub fn layer(&self, layer: usize) -> &LayerKv<B> {
        &self.layers[layer.min(self.layers.len() - 1)]
    }

    /// The keys and values of the layer at work, as activations.
    pub(super) fn at_work(&mut self, layer: usize) -> &mut LayerKv<B> {
        let last = self.layers.len() - 1;
        self.unpacked.as_mut().unwrap_or(&mut self.layers[layer.min(last)])
    }

    /// Whether attention reads keys and values where they are kept, as activations on the device.
    pub(super) fn stays_on_device(&self) -> bool {
        self.unpacked.is_none() && self.host.is_empty()
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

/// The bytes of some tokens in a cache `[KV, capacity, D]`: one span for each head.
fn spans<B: Backend>(cache: &Tensor<B>, tokens: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<B> {
    let (shape, dtype) = (cache.shape(), cache.dtype());
    let [heads, capacity, d] = [0, 1, 2].map(|i| shape.dims()[i]);
    let at = move |head: usize, token: usize| dtype.bytes((head * capacity + token) * d);
    (0..heads).map(move |head| at(head, tokens.start)..at(head, tokens.end)).filter(|span| !span.is_empty())
}

/// Bytes that [`KvCache::new`] allocates on the device.
pub fn bytes(config: &DecoderConfig, act: DType, capacity: usize, place: KvPlace, kv_type: KvType) -> u64 {
    let stored = if place == KvPlace::Device { config.n_layers } else { 1 };
    let elements = config.n_kv_heads * config.head_dim * 2;
    let token = match kv_type {
        KvType::F16 => stored * act.bytes(elements),
        KvType::Q8_0 => stored * (elements / 32 * 4 * ops::PACKED_KV_WORDS) + act.bytes(elements),
    };
    token as u64 * capacity.next_multiple_of(BLOCK) as u64
}
