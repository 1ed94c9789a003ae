//! `out[i, :] = table[ids[i], :]`.

use super::matmul::row_bytes;
use crate::backend::params::EmbedParams;
use crate::weights::dequantize_into;
use crate::{DType, Error, Result};
use rayon::prelude::*;

/// Ids beyond the table are refused: nothing above can look at ids that live on a device.
pub(super) fn embed(p: &EmbedParams, ids: &[u32], dtype: DType, table: &[u8], out: &mut [f32]) -> Result<()> {
    let hidden = p.hidden as usize;
    let row = row_bytes("embed", dtype, hidden)?;
    out.par_chunks_mut(hidden).zip(&ids[..p.n_tokens as usize]).try_for_each(|(out, &id)| {
        if id >= p.vocab {
            return Err(Error::invalid(format!("token id {id} is not below the vocabulary's {}", p.vocab)));
        }
        dequantize_into(dtype, &table[id as usize * row..][..row], out)
    })
}
