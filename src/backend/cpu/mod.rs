//! The reference twins: every operation on the CPU, in f32, on the threads of rayon's pool.
//!
//! One file per operation, each a plain statement of what the device kernels compute; `tile` and `simd` hold the two
//! loops whose speed matters (64 queries against a tile of keys, and dot products), `gemm` the product of matrices.
//! Activations, K and V are f32. Weights stay as stored, packed ones included, and become f32 a panel at a time.
//!
//! ```
//! use minference::backend::{Backend, cpu::Cpu};
//! let cpu = Cpu::new();
//! let buffer = cpu.alloc(1024)?;
//! assert_eq!(cpu.memory().current, 1024);
//! drop(buffer);
//! assert_eq!(cpu.memory().current, 0);
//! # Ok::<(), minference::Error>(())
//! ```

mod add;
mod antidiagonals;
mod append_kv;
mod attention;
mod build_index;
mod cast;
mod clip_index;
mod count_by_mass;
mod decode_attention;
mod embed;
mod gemm;
mod group_offsets;
mod mass;
mod matmul;
mod memory;
mod merge_attention;
mod pack_kv;
mod pool_blocks;
mod rms_norm;
mod rope;
mod score_blocks;
mod score_last_queries;
mod select_top_k;
mod settle_heads;
mod share_scores;
mod silu_mul;
mod simd;
mod tile;
mod weigh_blocks;

pub use memory::{Buffer, available_memory};

use super::params::*;
use super::{Backend, DeviceInfo, IndexChoice, IndexSlices, IndexSlicesMut, MemoryStats, Slice, SliceMut};
use crate::{DType, Result};
use memory::Meter;
use std::ops::Range;
use std::sync::Arc;

/// This machine's processor.
pub struct Cpu {
    info: DeviceInfo,
    meter: Arc<Meter>,
}

impl Cpu {
    /// With whatever memory the system says is available now.
    pub fn new() -> Self {
        Self::with_memory_limit(available_memory().unwrap_or(0))
    }

    /// Refuses to hold more than this many bytes; 0 sets no limit.
    pub fn with_memory_limit(bytes: u64) -> Self {
        let info = DeviceInfo {
            id: "cpu".into(),
            backend: "cpu",
            api: "rayon".into(),
            name: format!("{} threads, {}", rayon::current_num_threads(), simd::name()),
            memory_bytes: bytes,
            is_cpu: true,
            tier: "cpu".into(),
            ..DeviceInfo::default()
        };
        Self { info, meter: Arc::new(Meter::new(bytes)) }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Slice<'a, Cpu> {
    /// The elements. Panics where the part does not lie in the buffer or is not aligned, as slices do.
    fn read<T: bytemuck::Pod>(self) -> &'a [T] {
        bytemuck::cast_slice(&self.buffer.bytes()[self.byte_offset..self.byte_offset + self.byte_len])
    }
}

impl<'a> SliceMut<'a, Cpu> {
    /// The elements. Panics where the part does not lie in the buffer or is not aligned, as slices do.
    fn write<T: bytemuck::Pod>(self) -> &'a mut [T] {
        bytemuck::cast_slice_mut(&mut self.buffer.bytes_mut()[self.byte_offset..self.byte_offset + self.byte_len])
    }
}

impl Backend for Cpu {
    type Buffer = Buffer;
    type Recording = std::convert::Infallible;

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn activation(&self) -> DType {
        DType::F32
    }

    fn accepts_weight(&self, dtype: DType) -> bool {
        dtype != DType::U32
    }

    fn memory(&self) -> MemoryStats {
        self.meter.stats()
    }

    fn reset_peak(&self) {
        self.meter.reset_peak();
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        Buffer::zeroed(&self.meter, bytes)
    }

    fn upload(&self, bytes: &[u8]) -> Result<Buffer> {
        let mut buffer = self.alloc(bytes.len())?;
        buffer.bytes_mut().copy_from_slice(bytes);
        Ok(buffer)
    }

    fn write(&self, buffer: &mut Buffer, byte_offset: usize, bytes: &[u8]) -> Result<()> {
        let len = buffer.bytes().len();
        match buffer.bytes_mut().get_mut(byte_offset..byte_offset + bytes.len()) {
            Some(part) => part.copy_from_slice(bytes),
            None => return Err(memory::out_of_bounds("write", byte_offset, bytes.len(), len)),
        }
        Ok(())
    }

    async fn download(&self, buffer: &Buffer, bytes: Range<usize>) -> Result<Vec<u8>> {
        let all = buffer.bytes();
        match all.get(bytes.clone()) {
            Some(part) => Ok(part.to_vec()),
            None => Err(memory::out_of_bounds("download", bytes.start, bytes.len(), all.len())),
        }
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn sparse_from(&self) -> usize {
        // `bench prefill` of the embedded model on 2 cores, HeadPattern::AUTO over dense: 1.09 at 2K, 1.25 at 4K, 1.58 at 8K.
        // Products take a larger part of larger models.
        4096
    }

    fn embed(&self, p: &EmbedParams, ids: Slice<Self>, table: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        embed::embed(p, ids.read(), table.dtype, table.read(), out.write())
    }

    fn rms_norm(&self, p: &RmsNormParams, x: Slice<Self>, weight: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        rms_norm::rms_norm(p, x.read(), weight.read(), out.write());
        Ok(())
    }

    fn matmul(
        &self,
        p: &MatmulParams,
        x: Slice<Self>,
        w: Slice<Self>,
        bias: Option<Slice<Self>>,
        out: SliceMut<Self>,
    ) -> Result<()> {
        matmul::matmul(p, x.read(), w.dtype, w.read(), bias.map(|b| b.read()), out.write())
    }

    fn rope(&self, p: &RopeParams, turns: Slice<Self>, x: SliceMut<Self>) -> Result<()> {
        rope::rope(p, turns.read(), x.write());
        Ok(())
    }

    fn silu_mul(&self, p: &SiluMulParams, gate_up: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        silu_mul::silu_mul(p, gate_up.read(), out.write());
        Ok(())
    }

    fn add(&self, _: &AddParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        add::add(x.read(), out.write());
        Ok(())
    }

    fn cast(&self, _: &CastParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        cast::cast(x.dtype, x.read(), out.write())
    }

    fn append_kv(
        &self,
        p: &AppendKvParams,
        k: Slice<Self>,
        v: Slice<Self>,
        k_cache: SliceMut<Self>,
        v_cache: SliceMut<Self>,
    ) -> Result<()> {
        append_kv::append(p, k.read(), k_cache.write());
        append_kv::append(p, v.read(), v_cache.write());
        Ok(())
    }

    fn pack_kv(&self, p: &PackKvParams, x: SliceMut<Self>, packed: SliceMut<Self>) -> Result<()> {
        pack_kv::pack(p, x.write(), packed.write());
        Ok(())
    }

    fn unpack_kv(&self, p: &PackKvParams, packed: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        pack_kv::unpack(p, packed.read(), out.write());
        Ok(())
    }

    fn score_last_queries(
        &self,
        p: &ScoreLastQueriesParams,
        plan: Slice<Self>,
        q: Slice<Self>,
        k: Slice<Self>,
        column_score: SliceMut<Self>,
        offset_score: SliceMut<Self>,
    ) -> Result<()> {
        let (columns, offsets) = (column_score.write(), offset_score.write());
        score_last_queries::score_last_queries(p, plan.read(), q.read(), k.read(), columns, offsets);
        Ok(())
    }

    fn select_top_k(
        &self,
        p: &SelectTopKParams,
        scores: Slice<Self>,
        counts: Slice<Self>,
        indices: SliceMut<Self>,
    ) -> Result<()> {
        select_top_k::select_top_k(p, scores.read(), counts.read(), indices.write());
        Ok(())
    }

    fn pool_blocks(&self, p: &PoolBlocksParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        pool_blocks::pool_blocks(p, x.read(), out.write());
        Ok(())
    }

    fn score_blocks(
        &self,
        p: &ScoreBlocksParams,
        plan: Slice<Self>,
        pooled_q: Slice<Self>,
        pooled_k: Slice<Self>,
        scores: SliceMut<Self>,
    ) -> Result<()> {
        score_blocks::score_blocks(p, plan.read(), pooled_q.read(), pooled_k.read(), scores.write());
        Ok(())
    }

    fn select_blocks(
        &self,
        p: &ScoreBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        block_mask: SliceMut<Self>,
    ) -> Result<()> {
        score_blocks::select_blocks(p, plan.read(), scores.read(), block_mask.write());
        Ok(())
    }

    fn count_by_mass(
        &self,
        p: &CountByMassParams,
        budget: Slice<Self>,
        scores: Slice<Self>,
        counts: SliceMut<Self>,
    ) -> Result<()> {
        count_by_mass::count_by_mass(p, budget.read(), scores.read(), counts.write());
        Ok(())
    }

    fn group_offsets(&self, p: &GroupOffsetsParams, budget: Slice<Self>, scores: SliceMut<Self>) -> Result<()> {
        group_offsets::group_offsets(p, budget.read(), scores.write());
        Ok(())
    }

    fn settle_heads(
        &self,
        p: &SettleHeadsParams,
        budget: Slice<Self>,
        column_score: Slice<Self>,
        block_score: Slice<Self>,
        plan: SliceMut<Self>,
        column_count: SliceMut<Self>,
        offset_count: SliceMut<Self>,
    ) -> Result<()> {
        let counts = [column_count.write(), offset_count.write()];
        settle_heads::settle_heads(p, budget.read(), column_score.read(), block_score.read(), plan.write(), counts);
        Ok(())
    }

    fn fold_rows(&self, p: &FoldRowsParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        antidiagonals::fold_rows(p, x.read(), out.write());
        Ok(())
    }

    fn weigh_antidiagonals(
        &self,
        p: &WeighAntidiagonalsParams,
        plan: Slice<Self>,
        products: Slice<Self>,
        scores: SliceMut<Self>,
    ) -> Result<()> {
        antidiagonals::weigh_antidiagonals(p, plan.read(), products.read(), scores.write());
        Ok(())
    }

    fn share_scores(&self, p: &ShareScoresParams, plan: Slice<Self>, scores: SliceMut<Self>) -> Result<()> {
        share_scores::share_scores(p, plan.read(), scores.write());
        Ok(())
    }

    fn weigh_blocks(
        &self,
        p: &WeighBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        mass: SliceMut<Self>,
    ) -> Result<()> {
        weigh_blocks::weigh_blocks(p, plan.read(), scores.read(), mass.write());
        Ok(())
    }

    fn select_weighed_blocks(
        &self,
        p: &WeighBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        mass: Slice<Self>,
        block_mask: SliceMut<Self>,
    ) -> Result<()> {
        weigh_blocks::select_weighed_blocks(p, plan.read(), scores.read(), mass.read(), block_mask.write());
        Ok(())
    }

    fn build_index(&self, p: &BuildIndexParams, choice: IndexChoice<Self>, out: IndexSlicesMut<Self>) -> Result<()> {
        let choice = build_index::Choice {
            plan: choice.plan.read(),
            columns: choice.columns.read(),
            offsets: choice.offsets.read(),
            offset_count: choice.offset_count.read(),
            block_mask: choice.block_mask.read(),
        };
        let out = build_index::IndexMut {
            row_ranges: out.row_ranges.write(),
            ranges: out.ranges.write(),
            keep: out.keep.write(),
            window: out.window.write(),
            pairs: out.pairs.write(),
        };
        build_index::build_index(p, choice, out);
        Ok(())
    }

    fn attention(
        &self,
        p: &AttentionParams,
        q: Slice<Self>,
        k: Slice<Self>,
        v: Slice<Self>,
        index: IndexSlices<Self>,
        out: SliceMut<Self>,
        lse: Option<SliceMut<Self>>,
    ) -> Result<()> {
        let index = attention::Index {
            row_ranges: index.row_ranges.read(),
            ranges: index.ranges.read(),
            columns: index.columns.read(),
            keep: index.keep.read(),
            window: index.window.read(),
        };
        attention::attention(p, q.read(), k.read(), v.read(), index, out.write(), lse.map(|l| l.write()));
        Ok(())
    }

    fn decode_attention(
        &self,
        p: &AttentionParams,
        q: Slice<Self>,
        k: Slice<Self>,
        v: Slice<Self>,
        out: SliceMut<Self>,
        lse: Option<SliceMut<Self>>,
    ) -> Result<()> {
        let lse = lse.map(|l| l.write());
        decode_attention::decode_attention(p, q.read(), k.read(), v.read(), out.write(), lse);
        Ok(())
    }

    fn merge_attention(
        &self,
        p: &MergeAttentionParams,
        part: Slice<Self>,
        lse: [Slice<Self>; 2],
        out: SliceMut<Self>,
        merged_lse: SliceMut<Self>,
    ) -> Result<()> {
        merge_attention::merge_attention(p, part.read(), lse.map(|l| l.read()), out.write(), merged_lse.write());
        Ok(())
    }

    fn clip_index(
        &self,
        p: &ClipIndexParams,
        index: IndexSlices<Self>,
        row_ranges: SliceMut<Self>,
        ranges: SliceMut<Self>,
        keep: SliceMut<Self>,
    ) -> Result<()> {
        let index = attention::Index {
            row_ranges: index.row_ranges.read(),
            ranges: index.ranges.read(),
            columns: index.columns.read(),
            keep: index.keep.read(),
            window: index.window.read(),
        };
        clip_index::clip_index(p, index, row_ranges.write(), ranges.write(), keep.write());
        Ok(())
    }
}
