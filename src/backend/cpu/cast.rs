//! f32, f16 and bf16 to f32.

use super::add::STEP;
use crate::weights::dequantize_into;
use crate::{DType, Result};
use rayon::prelude::*;

pub(super) fn cast(dtype: DType, x: &[u8], out: &mut [f32]) -> Result<()> {
    let parts = x.par_chunks(dtype.bytes(STEP));
    out.par_chunks_mut(STEP).zip(parts).try_for_each(|(out, x)| dequantize_into(dtype, x, out))
}
