//! Rotary position embedding in place: angles from integers, exact at any position.

use crate::backend::params::RopeParams;
use rayon::prelude::*;
use std::f32::consts::TAU;

/// `turns[i]`: the low and the high word of pair `i`'s frequency, a 64-bit fraction of a turn per position.
pub(super) fn rope(p: &RopeParams, turns: &[[u32; 2]], x: &mut [f32]) {
    let (d, half, heads) = (p.head_dim as usize, p.rotary_dim as usize / 2, p.n_heads as usize);
    let turns: Vec<u64> = turns[..half].iter().map(|t| u64::from(t[1]) << 32 | u64::from(t[0])).collect();
    let rows = x.par_chunks_mut(p.row_stride as usize).take(p.n_tokens as usize).enumerate();
    rows.for_each_init(
        || (vec![0.0; half], vec![0.0; half]),
        |(cos, sin), (t, row)| {
            let position = u64::from(p.position_start) + t as u64;
            for ((turn, cos), sin) in turns.iter().zip(cos.iter_mut()).zip(sin.iter_mut()) {
                let (s, c) = sin_cos_turns(turn.wrapping_mul(position));
                (*sin, *cos) = (s * p.attention_factor, c * p.attention_factor);
            }
            for head in row.chunks_exact_mut(d).take(heads) {
                if p.interleaved == 1 {
                    for ((pair, c), s) in head.chunks_exact_mut(2).zip(&*cos).zip(&*sin) {
                        (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s);
                    }
                } else {
                    let (low, high) = head[..2 * half].split_at_mut(half);
                    for (((a, b), c), s) in low.iter_mut().zip(high).zip(&*cos).zip(&*sin) {
                        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                    }
                }
            }
        },
    );
}

/// Sine and cosine of a 64-bit fraction of a turn, to 1e-7: quarter turns come off in integers, which loses nothing, so
/// that only an angle within an eighth of a turn is ever rounded to f32.
fn sin_cos_turns(turn: u64) -> (f32, f32) {
    let quarter = turn.wrapping_add(1 << 61) >> 62;
    let rest = turn.wrapping_sub(quarter << 62) as i64;
    let (s, c) = ((rest >> 32) as f32 * (TAU / 4_294_967_296.0)).sin_cos();
    match quarter {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

#[cfg(test)]
mod tests {
    use super::sin_cos_turns;
    use crate::ops::turns_from_frequency;

    #[test]
    fn angles_hold_to_a_million_positions() {
        for frequency in [1.0, 0.75, 1.0 / 3.0, 1e-2, 1.3e-5, 2.2e-10] {
            let turns = turns_from_frequency(frequency);
            for position in [0u64, 1, 2, 3, 4095, 131_071, 999_983, 1_048_575] {
                let (s, c) = sin_cos_turns(turns.wrapping_mul(position));
                // The f64 product of a frequency below 1 and a position below 2^20 is right to 1e-10 radians.
                let (ws, wc) = (frequency * position as f64).sin_cos();
                assert!((f64::from(s) - ws).abs() < 2e-7, "sin {frequency} {position}: {s} {ws}");
                assert!((f64::from(c) - wc).abs() < 2e-7, "cos {frequency} {position}: {c} {wc}");
            }
        }
    }
}
