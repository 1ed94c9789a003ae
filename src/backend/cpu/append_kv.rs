//! Token-major rows into a head-major cache.

use crate::backend::params::AppendKvParams;
use rayon::prelude::*;

/// `x [n_tokens, n_kv_heads, head_dim]` under a row stride, `cache [n_kv_heads, capacity, head_dim]`.
pub(super) fn append(p: &AppendKvParams, x: &[f32], cache: &mut [f32]) {
    let (d, stride) = (p.head_dim as usize, p.row_stride as usize);
    let heads = cache.par_chunks_mut(p.capacity as usize * d).take(p.n_kv_heads as usize);
    heads.enumerate().for_each(|(h, cache)| {
        let rows = cache[p.position as usize * d..].chunks_exact_mut(d).take(p.n_tokens as usize);
        for (t, row) in rows.enumerate() {
            row.copy_from_slice(&x[t * stride + h * d..][..d]);
        }
    });
}
