//! Weights onto the device: element types kept where the backend takes them, shapes checked against the config.

use super::family::Names;
use super::{DecoderConfig, Model, Weights};
use crate::backend::Backend;
use crate::tensor::{Tensor, View, ViewMut, encode_f32};
use crate::weights::{dequantize, random_blocks};
use crate::{DType, Result, ops};
use std::borrow::Cow;

/// A matrix that writes a band of columns of the output.
pub struct Part<B: Backend> {
    /// Any weight type `[rows, cols]`.
    pub weight: Tensor<B>,
    /// f32 `[rows]`.
    pub bias: Option<Tensor<B>>,
    /// First column of the output.
    pub column: usize,
}

/// A linear layer in one or more parts, side by side in the output: a GGUF file may keep q, k and v in different types.
pub struct Linear<B: Backend> {
    /// Ascending by column.
    pub parts: Vec<Part<B>>,
}

/// One layer's weights.
pub struct Layer<B: Backend> {
    /// f32 `[hidden]`.
    pub attn_norm: Tensor<B>,
    /// `[(H + 2 KV) * D, hidden]`: rows q, k, v.
    pub qkv: Linear<B>,
    /// f32 `[D]`, for q and for k.
    pub qk_norms: Option<[Tensor<B>; 2]>,
    /// `[hidden, H * D]`.
    pub o: Linear<B>,
    /// f32 `[hidden]`.
    pub ffn_norm: Tensor<B>,
    /// `[2 * ffn, hidden]`: rows gate, up.
    pub gate_up: Linear<B>,
    /// `[hidden, ffn]`.
    pub down: Linear<B>,
    /// f32 `[hidden]`, after attention and after the MLP.
    pub post_norms: Option<[Tensor<B>; 2]>,
}

impl<B: Backend> Part<B> {
    /// `out[:, column..] (+)= x w^T + bias`: x act `[n, cols]`, out act or f32 `[n, _]`.
    pub fn apply(&self, b: &B, x: View<B>, out: ViewMut<B>, accumulate: bool) -> Result<()> {
        let bias = self.bias.as_ref().map(Tensor::view);
        ops::matmul(b, x, self.weight.view(), bias, out, ops::MatmulInto { column: self.column, accumulate })
    }
}

impl<B: Backend> Linear<B> {
    /// All parts of `out (+)= x w^T + bias`: x act `[n, cols]`, out act or f32 `[n, rows]`.
    pub fn apply(&self, b: &B, x: View<B>, mut out: ViewMut<B>, accumulate: bool) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.apply(b, x, out.reborrow(), accumulate))
    }
}

/// Reads the tensors of one model for one backend.
pub(super) struct Loader<'a, B: Backend> {
    pub backend: &'a B,
    pub model: &'a Model,
}

/// A matrix on its way to the device: `[rows, cols]` in a type that the backend takes.
struct Matrix<'a> {
    dtype: DType,
    bytes: Cow<'a, [u8]>,
    rows: usize,
    bias: Vec<f32>,
}

impl<'a, B: Backend> Loader<'a, B> {
    fn config(&self) -> &'a DecoderConfig {
        &self.model.config
    }

    fn names(&self) -> &'static Names {
        self.model.names()
    }

    /// The embedding `[vocab, hidden]`.
    pub fn embed(&self) -> Result<Tensor<B>> {
        self.table(self.names().embed)
    }

    /// The output matrix `[vocab, hidden]`, where it is not the embedding.
    pub fn lm_head(&self) -> Result<Option<Tensor<B>>> {
        if self.config().tied { Ok(None) } else { Ok(Some(self.table(self.names().lm_head)?)) }
    }

    /// The last norm, f32 `[hidden]`.
    pub fn final_norm(&self) -> Result<Tensor<B>> {
        self.vector(self.names().final_norm, self.config().hidden)
    }

    /// The weights of one layer.
    pub fn layer(&self, index: usize) -> Result<Layer<B>> {
        let (c, names) = (self.config(), self.names());
        let prefix = names.layer.replace("{}", &index.to_string());
        let vector = |name: &str, len| self.vector(&format!("{prefix}{name}"), len);
        let pair = |names: [&str; 2], len| Ok([vector(names[0], len)?, vector(names[1], len)?]);
        let (q, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let qkv_forms = if c.qk_norm { &names.qkv[..1] } else { names.qkv };
        Ok(Layer {
            attn_norm: vector(names.attn_norm, c.hidden)?,
            // Where q and k have norms of their own, v goes another way than they: three matrices, not merged.
            qkv: self.linear(&prefix, qkv_forms, &[q, kv, kv], c.hidden, c.qkv_bias, !c.qk_norm)?,
            qk_norms: if c.qk_norm { Some(pair(names.qk_norms, c.head_dim)?) } else { None },
            o: self.linear(&prefix, &[&[names.o]], &[c.hidden], q, c.o_bias, true)?,
            ffn_norm: vector(names.ffn_norm, c.hidden)?,
            gate_up: self.linear(&prefix, names.gate_up, &[c.ffn; 2], c.hidden, c.mlp_bias, true)?,
            down: self.linear(&prefix, &[&[names.down]], &[c.hidden], c.ffn, c.mlp_bias, true)?,
            post_norms: if c.post_norms { Some(pair(names.post_norms, c.hidden)?) } else { None },
        })
    }

    fn table(&self, name: &str) -> Result<Tensor<B>> {
        let shape = [self.config().vocab, self.config().hidden];
        let (dtype, bytes) = self.read(name, shape)?;
        Tensor::from_bytes(self.backend, dtype, shape, &bytes)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor<B>> {
        Tensor::from_slice(self.backend, DType::F32, [len], &self.values(name, len)?)
    }

    fn values(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        match &self.model.weights {
            Weights::File(file) => file.require(name, &[len])?.to_f32(),
            // Norms of 1 and biases of 0 keep the residual stream of a random model at an ordinary size.
            Weights::Random { .. } => Ok(vec![if name.ends_with(".bias") { 0.0 } else { 1.0 }; len]),
        }
    }

    /// A linear layer of bands of `widths` rows. Each of `forms` names one matrix a band, or one for all of them. Where
    /// `merge`, neighbours of the same type become one matrix: one launch, and a wider one.
    fn linear(
        &self,
        prefix: &str,
        forms: &[&[&str]],
        widths: &[usize],
        cols: usize,
        bias: bool,
        merge: bool,
    ) -> Result<Linear<B>> {
        let name = |stem: &str, end: &str| format!("{prefix}{stem}.{end}");
        let present = |form: &&&[&str]| form.iter().all(|stem| self.model.weights.has(&name(stem, "weight")));
        // Where the file has none of the forms, the first one's missing tensor is named.
        let form = forms.iter().find(present).unwrap_or(&forms[0]);
        let whole = [widths.iter().sum()];
        let widths = if form.len() == 1 { &whole } else { widths };

        let mut matrices: Vec<Matrix> = Vec::new();
        for (stem, &rows) in form.iter().zip(widths) {
            let (dtype, bytes) = self.read(&name(stem, "weight"), [rows, cols])?;
            let bias = if bias { self.values(&name(stem, "bias"), rows)? } else { Vec::new() };
            match matrices.last_mut() {
                Some(last) if merge && last.dtype == dtype => {
                    last.bytes.to_mut().extend_from_slice(&bytes);
                    last.bias.extend(bias);
                    last.rows += rows;
                }
                _ => matrices.push(Matrix { dtype, bytes, rows, bias }),
            }
        }

        let mut column = 0;
        let part = |m: Matrix| {
            let weight = Tensor::from_bytes(self.backend, m.dtype, [m.rows, cols], &m.bytes)?;
            let bias = if bias { Some(Tensor::from_slice(self.backend, DType::F32, [m.rows], &m.bias)?) } else { None };
            column += m.rows;
            Ok(Part { weight, bias, column: column - m.rows })
        };
        Ok(Linear { parts: matrices.into_iter().map(part).collect::<Result<_>>()? })
    }

    /// A matrix in a type that the backend takes.
    fn read(&self, name: &str, [rows, cols]: [usize; 2]) -> Result<(DType, Cow<'a, [u8]>)> {
        let (dtype, bytes) = match &self.model.weights {
            Weights::File(file) => {
                let raw = file.require(name, &[rows, cols])?;
                (raw.dtype, Cow::Borrowed(raw.bytes))
            }
            Weights::Random { dtype, seed } => {
                let dtype = whole_blocks(*dtype, cols);
                let seed = name.bytes().fold(*seed, |s, byte| (s ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
                (dtype, Cow::Owned(random_blocks(dtype, rows * cols, seed, 1.0 / (cols as f32).sqrt())?))
            }
        };
        if self.backend.accepts_weight(dtype) {
            return Ok((dtype, bytes));
        }
        let values = dequantize(dtype, &bytes, rows * cols)?;
        let wanted = stand_in(self.backend, values.iter().fold(0.0, |max, v| v.abs().max(max)));
        Ok((wanted, Cow::Owned(encode_f32(wanted, &values)?)))
    }
}

/// The type in which a matrix is kept that the backend does not take as it is: bf16 where activations are bf16, else f16
/// where its largest value fits (an f16 has all bits of a bf16 but for values under 6e-5, which round to within 3e-8),
/// else f32.
pub(super) fn stand_in<B: Backend>(backend: &B, largest: f32) -> DType {
    if backend.activation() == DType::BF16 {
        return DType::BF16;
    }
    let fits = largest <= f32::from(half::f16::MAX);
    if fits && backend.accepts_weight(DType::F16) { DType::F16 } else { DType::F32 }
}

/// GLM-4's MLP is 53.5 blocks of 256 wide: such rows of a K-quant are kept in Q8_0, as converters do.
pub(super) fn whole_blocks(dtype: DType, cols: usize) -> DType {
    let fitting = |dtype: &DType| cols.is_multiple_of(dtype.block_len());
    [dtype, DType::Q8_0].into_iter().find(fitting).unwrap_or(DType::F16)
}
