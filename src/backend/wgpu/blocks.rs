//! Block-sparse estimation: means of blocks, their scores, the best key blocks of each row block.

use super::attention::{HEAD_DIMS, kernel_head_dim, vectors};
use super::buffer::Binding;
use super::link::Specialisation;
use super::queue::fold;
use super::select_top_k::selecting;
use super::{Traits, Wgpu};
use crate::Result;
use crate::backend::params::{HeadPlan, PoolBlocksParams, ScoreBlocksParams};
use crate::backend::{Slice, SliceMut};

fn pooling(traits: &Traits) -> Specialisation {
    Specialisation::new("pool_blocks", traits).with("invocation")
}

fn scoring(traits: &Traits, head_dim: u32) -> Specialisation {
    Specialisation::new("score_blocks", traits)
        .constant("HEAD_DIM", head_dim)
        .constant("BLOCK_SPARSE", HeadPlan::BLOCK_SPARSE)
        .with("invocation")
        .with("dot_tile")
}

fn choosing(traits: &Traits) -> Specialisation {
    selecting(traits, "select_blocks", 256).constant("BLOCK_SPARSE", HeadPlan::BLOCK_SPARSE)
}

pub(super) fn specialisations(traits: &Traits, list: &mut Vec<Specialisation>) {
    list.push(pooling(traits));
    list.extend(HEAD_DIMS.map(|head_dim| scoring(traits, head_dim)));
    list.push(choosing(traits));
}

pub(super) fn pool_blocks(b: &Wgpu, p: &PoolBlocksParams, x: Slice<Wgpu>, out: SliceMut<Wgpu>) -> Result<()> {
    let (x, out) = (vectors("pool_blocks", "x", x, [p.row_stride, p.head_stride])?, Binding::from(out));
    // Bands of blocks that one binding holds, head by head where `x` is too long for all heads.
    let bytes = |elements: u64| x.dtype.bytes(elements as usize) as u64;
    let (row, head) = (bytes(u64::from(p.row_stride)), bytes(u64::from(p.head_stride)));
    let whole = u64::from(p.n_heads - 1) * head + u64::from(p.len - 1) * row + bytes(u64::from(p.head_dim));
    let block_out = 4 * u64::from(p.head_dim);
    if whole <= b.band_bytes() && u64::from(p.n_heads) * u64::from(p.blocks) * block_out <= b.band_bytes() {
        let groups = (u64::from(p.n_heads) * u64::from(p.blocks) * u64::from(p.head_dim / 4)).div_ceil(256);
        return b.dispatch(&pooling(&b.context.traits), p, &[x, out], fold(groups));
    }
    let rows = (b.band_bytes() / row.max(1)).max(64) / 64 * 64;
    for h in 0..u64::from(p.n_heads) {
        for first in (0..u64::from(p.len)).step_by(rows as usize) {
            let len = rows.min(u64::from(p.len) - first);
            let blocks = len.div_ceil(64);
            let part = PoolBlocksParams { n_heads: 1, len: len as u32, blocks: blocks as u32, ..*p };
            let bindings = [
                x.part(h * head + first * row, (len - 1) * row + bytes(u64::from(p.head_dim))),
                out.part((h * u64::from(p.blocks) + first / 64) * block_out, blocks * block_out),
            ];
            let groups = (blocks * u64::from(p.head_dim / 4)).div_ceil(256);
            b.dispatch(&pooling(&b.context.traits), &part, &bindings, fold(groups))?;
        }
    }
    Ok(())
}

pub(super) fn score_blocks(
    b: &Wgpu,
    p: &ScoreBlocksParams,
    [plan, pooled_q, pooled_k]: [Slice<Wgpu>; 3],
    scores: SliceMut<Wgpu>,
) -> Result<()> {
    let specialisation = scoring(&b.context.traits, kernel_head_dim(p.head_dim));
    let groups = u64::from(p.n_heads) * u64::from(p.key_blocks.div_ceil(64)) * u64::from(p.band_len.div_ceil(64));
    b.dispatch(&specialisation, p, &[plan.into(), pooled_q.into(), pooled_k.into(), scores.into()], fold(groups))
}

pub(super) fn select_blocks(
    b: &Wgpu,
    p: &ScoreBlocksParams,
    [plan, scores]: [Slice<Wgpu>; 2],
    block_mask: SliceMut<Wgpu>,
) -> Result<()> {
    let groups = u64::from(p.n_heads) * u64::from(p.band_len);
    let bindings = [plan.into(), scores.into(), block_mask.into()];
    b.dispatch(&choosing(&b.context.traits), p, &bindings, fold(groups))
}
