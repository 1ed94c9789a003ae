//! A sequence's keys and values in a file, to go on with another time.
//!
//! safetensors: `ids` i32 `[tokens]`, and for each layer `k.N` and `v.N` `[KV, tokens, D]` as the device stores them; the
//! metadata tells the model and for how long a sequence the keys were rotated.

use super::Engine;
use crate::backend::Backend;
use crate::model::{KvCache, KvPlace, KvType, Step};
use crate::tensor_file::{TensorFile, TensorOut, write_tensors};
use crate::{DType, Error, Result};
use safetensors::Dtype;
use std::path::Path;

impl<B: Backend> Engine<B> {
    /// What tells whether a context belongs to this model.
    fn context_key(&self) -> String {
        let (c, name, print) = (self.config(), &self.model.name, self.model.fingerprint());
        let [layers, kv, dim, vocab] = [c.n_layers, c.n_kv_heads, c.head_dim, c.vocab];
        format!("{name} layers {layers} kv {kv} dim {dim} vocab {vocab} fingerprint {print:016x}")
    }

    fn stored(&self) -> Result<Dtype> {
        if self.options.kv_type != KvType::F16 {
            return Err(Error::Unsupported("contexts in files with --kv-type q8_0".into()));
        }
        match self.backend.activation() {
            DType::F32 => Ok(Dtype::F32),
            DType::F16 => Ok(Dtype::F16),
            DType::BF16 => Ok(Dtype::BF16),
            other => Err(Error::invalid(format!("context: keys of {other}"))),
        }
    }

    /// Writes the tokens in the cache with their keys and values.
    ///
    /// # Errors
    /// [`Error::Invalid`] where no keys and values are kept, [`Error::Unsupported`] where they are packed,
    /// [`Error::Io`].
    pub fn save_context(&self, path: impl AsRef<Path>) -> Result<()> {
        let Some(cache) = self.cache.as_ref().filter(|c| !c.is_empty() && c.place() != KvPlace::None) else {
            return Err(Error::invalid("context: no keys and values are kept to save"));
        };
        let (c, dtype) = (self.config(), self.stored()?);
        let layers = (0..c.n_layers).map(|layer| cache.read_layer(&self.backend, layer)).collect::<Result<Vec<_>>>()?;
        let names: Vec<[String; 2]> =
            (0..c.n_layers).map(|layer| [format!("k.{layer}"), format!("v.{layer}")]).collect();
        let shape = vec![c.n_kv_heads, cache.len(), c.head_dim];
        let ids = TensorOut {
            name: "ids",
            dtype: Dtype::I32,
            shape: vec![cache.len()],
            bytes: bytemuck::cast_slice(&self.ids),
        };
        let mut tensors = vec![ids];
        for (names, parts) in names.iter().zip(&layers) {
            for (name, bytes) in names.iter().zip(parts) {
                tensors.push(TensorOut { name, dtype, shape: shape.clone(), bytes });
            }
        }
        let notes = [("model", self.context_key()), ("rotated_for", self.rotated_for.to_string())];
        write_tensors(path.as_ref(), &notes, &tensors)
    }

    /// Reads what [`Self::save_context`] wrote, in place of what is in the cache, with room for `room` more tokens. Gives
    /// the number of tokens.
    ///
    /// # Errors
    /// [`Error::File`] for a file of another model, device type or shape, [`Error::Invalid`] for more tokens than the
    /// model or the cache is made for, [`Error::Unsupported`] where keys and values are packed. The cache may be left
    /// empty.
    pub fn load_context(&mut self, path: impl AsRef<Path>, room: usize) -> Result<usize> {
        let path = path.as_ref();
        if self.options.kv == KvPlace::None {
            return Err(Error::invalid("context: keys and values are not kept (--kv none)"));
        }
        let mut file = TensorFile::open(path)?;
        let (want, found) = (self.context_key(), file.note("model").unwrap_or("none").to_owned());
        if want != found {
            return Err(Error::file(path, format!("context: expected one of {want}, found one of {found}")));
        }
        let rotated_for = file.note("rotated_for").and_then(|n| n.parse().ok()).unwrap_or(0);
        let ids: Vec<u32> = file.i32s("ids")?.1.into_iter().map(|id| id as u32).collect();
        self.check_ids(&ids)?;
        self.reset();
        let tokens = ids.len().saturating_add(room);
        self.check_length(tokens)?;
        let (layers, dtype) = (self.config().n_layers, self.stored()?);
        let shape = [self.config().n_kv_heads, ids.len(), self.config().head_dim];
        let capacity = self.capacity_for(tokens);
        if capacity < tokens {
            let what = format!("the KV cache is made for {capacity} tokens, {tokens} are asked for");
            return Err(Error::invalid(what));
        }
        if self.cache.as_ref().is_none_or(|c| c.capacity() < capacity) {
            (self.step, self.cache) = (Step::First, None);
            self.cache =
                Some(KvCache::new(&self.backend, &self.model.config, capacity, self.options.kv, self.options.kv_type)?);
        }
        let Some(cache) = &mut self.cache else { return Err(Error::invalid("context: no cache")) };
        for layer in 0..layers {
            let mut part = |name: String| {
                let (stored, found) = file.info(&name)?;
                if stored != dtype || *found != shape {
                    let what = format!("expected {dtype} {shape:?}, found {stored} {found:?}");
                    return Err(file.error(&name, what));
                }
                file.bytes(&name)
            };
            let (k, v) = (part(format!("k.{layer}"))?, part(format!("v.{layer}"))?);
            cache.write_layer(&self.backend, layer, ids.len(), [&k, &v])?;
        }
        cache.advance(ids.len());
        (self.ids, self.rotated_for) = (ids, rotated_for);
        Ok(self.ids.len())
    }
}
