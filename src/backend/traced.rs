//! Any backend, with each operation counted, sized and timed: what `--timings` prints.
//!
//! ```
//! use minference::backend::{cpu::Cpu, traced::Traced};
//! use minference::{DType, ops, tensor::Tensor};
//! let b = Traced::new(Cpu::new());
//! let x = Tensor::from_slice(&b, DType::F32, [3], &[1.0f32, 2.0, 3.0])?;
//! let mut out = Tensor::from_slice(&b, DType::F32, [3], &[0.0f32; 3])?;
//! ops::add(&b, x.view(), out.view_mut())?;
//! assert_eq!(b.timings()[0].name, "add");
//! println!("{}", b.report());
//! # Ok::<(), minference::Error>(())
//! ```

use super::params::*;
use super::{Backend, DeviceInfo, IndexChoice, IndexSlices, IndexSlicesMut, MemoryStats, Slice, SliceMut};
use crate::{DType, Result};
use std::fmt::Write;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

/// All calls of one operation so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// The operation's stem, as everywhere.
    pub name: &'static str,
    /// How often it ran.
    pub calls: u64,
    /// Time of its kernels by the device's time stamps, or where it has none, wall-clock time from its call to the device's
    /// last step of it.
    pub seconds: f64,
    /// Length of the tensor parts it was given, read or written.
    pub bytes: u64,
}

/// A backend that waits after each operation and keeps account of it. Waiting costs overlap: a whole run takes somewhat
/// longer than without.
pub struct Traced<B> {
    inner: B,
    timings: Mutex<Vec<Timing>>,
}

impl<B: Backend> Traced<B> {
    /// Around a backend; nothing is counted yet.
    pub fn new(inner: B) -> Self {
        inner.take_device_seconds();
        Self { inner, timings: Mutex::default() }
    }

    /// The backend inside.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// The account so far, longest first.
    pub fn timings(&self) -> Vec<Timing> {
        let mut timings = self.lock().clone();
        timings.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        timings
    }

    /// Starts a new account.
    pub fn reset(&self) {
        self.lock().clear();
    }

    /// The account as a table: operation, calls, seconds, share of the time, GiB per second of tensors given.
    pub fn report(&self) -> String {
        let timings = self.timings();
        let total: f64 = timings.iter().map(|t| t.seconds).sum();
        let mut table = format!("{:<20}{:>8}{:>12}{:>8}{:>10}\n", "operation", "calls", "seconds", "share", "GiB/s");
        let mut line = |name: &str, calls: u64, seconds: f64, bytes: u64| {
            let share = if total > 0.0 { 100.0 * seconds / total } else { 0.0 };
            let rate = if seconds > 0.0 { bytes as f64 / seconds / (1u64 << 30) as f64 } else { 0.0 };
            // Writing to a String cannot fail.
            let _ = writeln!(table, "{name:<20}{calls:>8}{seconds:>12.6}{share:>7.1}%{rate:>10.2}");
        };
        for t in &timings {
            line(t.name, t.calls, t.seconds, t.bytes);
        }
        line("total", timings.iter().map(|t| t.calls).sum(), total, timings.iter().map(|t| t.bytes).sum());
        table
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Timing>> {
        self.timings.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Runs one operation to its end.
    fn time(&self, name: &'static str, sizes: &[usize], run: impl FnOnce(&B) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        run(&self.inner)?;
        self.inner.synchronize()?;
        let elapsed = start.elapsed().as_secs_f64();
        self.count(name, self.inner.take_device_seconds().unwrap_or(elapsed), sizes);
        Ok(())
    }

    fn count(&self, name: &'static str, seconds: f64, sizes: &[usize]) {
        let bytes = sizes.iter().sum::<usize>() as u64;
        let mut timings = self.lock();
        match timings.iter_mut().find(|t| t.name == name) {
            Some(t) => (t.calls, t.seconds, t.bytes) = (t.calls + 1, t.seconds + seconds, t.bytes + bytes),
            None => timings.push(Timing { name, calls: 1, seconds, bytes }),
        }
    }
}

impl<'a, B: Backend> Slice<'a, Traced<B>> {
    fn inner(self) -> Slice<'a, B> {
        Slice { buffer: self.buffer, byte_offset: self.byte_offset, byte_len: self.byte_len, dtype: self.dtype }
    }
}

impl<'a, B: Backend> SliceMut<'a, Traced<B>> {
    fn inner(self) -> SliceMut<'a, B> {
        SliceMut { buffer: self.buffer, byte_offset: self.byte_offset, byte_len: self.byte_len, dtype: self.dtype }
    }
}

impl<B: Backend> Backend for Traced<B> {
    type Buffer = B::Buffer;
    /// None: what is replayed as one cannot be timed by operation.
    type Recording = std::convert::Infallible;

    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn buffer_bytes(buffer: &B::Buffer) -> usize {
        B::buffer_bytes(buffer)
    }

    fn dense_above(&self) -> u32 {
        self.inner.dense_above()
    }

    fn estimate_from(&self) -> usize {
        self.inner.estimate_from()
    }

    fn take_device_seconds(&self) -> Option<f64> {
        self.inner.take_device_seconds()
    }

    fn activation(&self) -> DType {
        self.inner.activation()
    }

    fn accepts_weight(&self, dtype: DType) -> bool {
        self.inner.accepts_weight(dtype)
    }

    fn memory(&self) -> MemoryStats {
        self.inner.memory()
    }

    fn reset_peak(&self) {
        self.inner.reset_peak();
    }

    fn alloc(&self, bytes: usize) -> Result<Self::Buffer> {
        self.inner.alloc(bytes)
    }

    fn upload(&self, bytes: &[u8]) -> Result<Self::Buffer> {
        self.inner.upload(bytes)
    }

    fn write(&self, buffer: &mut Self::Buffer, byte_offset: usize, bytes: &[u8]) -> Result<()> {
        self.inner.write(buffer, byte_offset, bytes)
    }

    async fn download(&self, buffer: &Self::Buffer, bytes: Range<usize>) -> Result<Vec<u8>> {
        let (start, len) = (Instant::now(), bytes.len());
        let content = self.inner.download(buffer, bytes).await?;
        self.count("download", start.elapsed().as_secs_f64(), &[len]);
        Ok(content)
    }

    async fn download_all(&self, parts: &[(&Self::Buffer, Range<usize>)]) -> Result<Vec<Vec<u8>>> {
        let (start, len) = (Instant::now(), parts.iter().map(|(_, bytes)| bytes.len()).sum());
        let all = self.inner.download_all(parts).await?;
        self.count("download", start.elapsed().as_secs_f64(), &[len]);
        Ok(all)
    }

    fn kernel_choice(&self, head_dim: usize) -> String {
        self.inner.kernel_choice(head_dim)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }

    fn sparse_from(&self) -> usize {
        self.inner.sparse_from()
    }

    fn embed(&self, p: &EmbedParams, ids: Slice<Self>, table: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        // Of the table only the rows asked for are read: as many bytes as `out` at most.
        let sizes = [ids.byte_len, out.byte_len];
        self.time("embed", &sizes, |b| b.embed(p, ids.inner(), table.inner(), out.inner()))
    }

    fn rms_norm(&self, p: &RmsNormParams, x: Slice<Self>, weight: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        let sizes = [x.byte_len, weight.byte_len, out.byte_len];
        self.time("rms_norm", &sizes, |b| b.rms_norm(p, x.inner(), weight.inner(), out.inner()))
    }

    fn matmul(
        &self,
        p: &MatmulParams,
        x: Slice<Self>,
        w: Slice<Self>,
        bias: Option<Slice<Self>>,
        out: SliceMut<Self>,
    ) -> Result<()> {
        let sizes = [x.byte_len, w.byte_len, out.byte_len];
        self.time("matmul", &sizes, |b| b.matmul(p, x.inner(), w.inner(), bias.map(|s| s.inner()), out.inner()))
    }

    fn rope(&self, p: &RopeParams, turns: Slice<Self>, x: SliceMut<Self>) -> Result<()> {
        let sizes = [turns.byte_len, x.byte_len];
        self.time("rope", &sizes, |b| b.rope(p, turns.inner(), x.inner()))
    }

    fn silu_mul(&self, p: &SiluMulParams, gate_up: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        let sizes = [gate_up.byte_len, out.byte_len];
        self.time("silu_mul", &sizes, |b| b.silu_mul(p, gate_up.inner(), out.inner()))
    }

    fn add(&self, p: &AddParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        let sizes = [x.byte_len, out.byte_len];
        self.time("add", &sizes, |b| b.add(p, x.inner(), out.inner()))
    }

    fn cast(&self, p: &CastParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        let sizes = [x.byte_len, out.byte_len];
        self.time("cast", &sizes, |b| b.cast(p, x.inner(), out.inner()))
    }

    fn append_kv(
        &self,
        p: &AppendKvParams,
        k: Slice<Self>,
        v: Slice<Self>,
        k_cache: SliceMut<Self>,
        v_cache: SliceMut<Self>,
    ) -> Result<()> {
        // What is copied, not the caches' whole length.
        let copied = k.dtype.bytes(p.n_tokens as usize * p.n_kv_heads as usize * p.head_dim as usize);
        let (k, v, k_cache, v_cache) = (k.inner(), v.inner(), k_cache.inner(), v_cache.inner());
        self.time("append_kv", &[2 * copied, 2 * copied], |b| b.append_kv(p, k, v, k_cache, v_cache))
    }

    fn pack_kv(&self, p: &PackKvParams, x: SliceMut<Self>, packed: SliceMut<Self>) -> Result<()> {
        let elements = p.n_tokens as usize * p.n_kv_heads as usize * p.head_dim as usize;
        let sizes = [2 * x.dtype.bytes(elements), elements / 32 * 36];
        let (x, packed) = (x.inner(), packed.inner());
        self.time("pack_kv", &sizes, |b| b.pack_kv(p, x, packed))
    }

    fn unpack_kv(&self, p: &PackKvParams, packed: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        let elements = p.n_tokens as usize * p.n_kv_heads as usize * p.head_dim as usize;
        let sizes = [elements / 32 * 36, out.dtype.bytes(elements)];
        let (packed, out) = (packed.inner(), out.inner());
        self.time("unpack_kv", &sizes, |b| b.unpack_kv(p, packed, out))
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
        let sizes = [k.byte_len, column_score.byte_len, offset_score.byte_len];
        let (plan, q, k) = (plan.inner(), q.inner(), k.inner());
        self.time("score_last_queries", &sizes, |b| {
            b.score_last_queries(p, plan, q, k, column_score.inner(), offset_score.inner())
        })
    }

    fn select_top_k(
        &self,
        p: &SelectTopKParams,
        scores: Slice<Self>,
        counts: Slice<Self>,
        indices: SliceMut<Self>,
    ) -> Result<()> {
        let sizes = [scores.byte_len, counts.byte_len, indices.byte_len];
        self.time("select_top_k", &sizes, |b| b.select_top_k(p, scores.inner(), counts.inner(), indices.inner()))
    }

    fn pool_blocks(&self, p: &PoolBlocksParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        let sizes = [x.byte_len, out.byte_len];
        self.time("pool_blocks", &sizes, |b| b.pool_blocks(p, x.inner(), out.inner()))
    }

    fn score_blocks(
        &self,
        p: &ScoreBlocksParams,
        plan: Slice<Self>,
        pooled_q: Slice<Self>,
        pooled_k: Slice<Self>,
        scores: SliceMut<Self>,
    ) -> Result<()> {
        let sizes = [pooled_q.byte_len, pooled_k.byte_len, scores.byte_len];
        let (plan, pooled_q, pooled_k) = (plan.inner(), pooled_q.inner(), pooled_k.inner());
        self.time("score_blocks", &sizes, |b| b.score_blocks(p, plan, pooled_q, pooled_k, scores.inner()))
    }

    fn select_blocks(
        &self,
        p: &ScoreBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        block_mask: SliceMut<Self>,
    ) -> Result<()> {
        let sizes = [scores.byte_len, block_mask.byte_len];
        self.time("select_blocks", &sizes, |b| b.select_blocks(p, plan.inner(), scores.inner(), block_mask.inner()))
    }

    fn count_by_mass(
        &self,
        p: &CountByMassParams,
        budget: Slice<Self>,
        scores: Slice<Self>,
        counts: SliceMut<Self>,
    ) -> Result<()> {
        let sizes = [scores.byte_len, counts.byte_len];
        self.time("count_by_mass", &sizes, |b| b.count_by_mass(p, budget.inner(), scores.inner(), counts.inner()))
    }

    fn group_offsets(&self, p: &GroupOffsetsParams, budget: Slice<Self>, scores: SliceMut<Self>) -> Result<()> {
        let sizes = [scores.byte_len];
        self.time("group_offsets", &sizes, |b| b.group_offsets(p, budget.inner(), scores.inner()))
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
        let sizes = [column_score.byte_len, block_score.byte_len];
        let (budget, column_score, block_score) = (budget.inner(), column_score.inner(), block_score.inner());
        let (plan, columns, offsets) = (plan.inner(), column_count.inner(), offset_count.inner());
        self.time("settle_heads", &sizes, |b| {
            b.settle_heads(p, budget, column_score, block_score, plan, columns, offsets)
        })
    }

    fn fold_rows(&self, p: &FoldRowsParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        let sizes = [x.byte_len, out.byte_len];
        self.time("fold_rows", &sizes, |b| b.fold_rows(p, x.inner(), out.inner()))
    }

    fn weigh_antidiagonals(
        &self,
        p: &WeighAntidiagonalsParams,
        plan: Slice<Self>,
        products: Slice<Self>,
        scores: SliceMut<Self>,
    ) -> Result<()> {
        let sizes = [products.byte_len, scores.byte_len];
        let (plan, products) = (plan.inner(), products.inner());
        self.time("weigh_antidiagonals", &sizes, |b| b.weigh_antidiagonals(p, plan, products, scores.inner()))
    }

    fn share_scores(&self, p: &ShareScoresParams, plan: Slice<Self>, scores: SliceMut<Self>) -> Result<()> {
        let sizes = [2 * scores.byte_len];
        self.time("share_scores", &sizes, |b| b.share_scores(p, plan.inner(), scores.inner()))
    }

    fn weigh_blocks(
        &self,
        p: &WeighBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        mass: SliceMut<Self>,
    ) -> Result<()> {
        let sizes = [scores.byte_len, mass.byte_len];
        self.time("weigh_blocks", &sizes, |b| b.weigh_blocks(p, plan.inner(), scores.inner(), mass.inner()))
    }

    fn select_weighed_blocks(
        &self,
        p: &WeighBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        mass: Slice<Self>,
        block_mask: SliceMut<Self>,
    ) -> Result<()> {
        let sizes = [scores.byte_len, block_mask.byte_len];
        let (plan, scores, mass) = (plan.inner(), scores.inner(), mass.inner());
        self.time("select_weighed_blocks", &sizes, |b| {
            b.select_weighed_blocks(p, plan, scores, mass, block_mask.inner())
        })
    }

    fn build_index(&self, p: &BuildIndexParams, choice: IndexChoice<Self>, out: IndexSlicesMut<Self>) -> Result<()> {
        let sizes = [choice.columns.byte_len, choice.offsets.byte_len, out.keep.byte_len, out.ranges.byte_len];
        let choice = IndexChoice {
            plan: choice.plan.inner(),
            columns: choice.columns.inner(),
            offsets: choice.offsets.inner(),
            offset_count: choice.offset_count.inner(),
            block_mask: choice.block_mask.inner(),
        };
        let out = IndexSlicesMut {
            row_ranges: out.row_ranges.inner(),
            ranges: out.ranges.inner(),
            keep: out.keep.inner(),
            window: out.window.inner(),
            pairs: out.pairs.inner(),
        };
        self.time("build_index", &sizes, |b| b.build_index(p, choice, out))
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
        let sizes = [q.byte_len, k.byte_len, v.byte_len, out.byte_len];
        let index = IndexSlices {
            row_ranges: index.row_ranges.inner(),
            ranges: index.ranges.inner(),
            columns: index.columns.inner(),
            keep: index.keep.inner(),
            window: index.window.inner(),
        };
        let (q, k, v) = (q.inner(), k.inner(), v.inner());
        self.time("attention", &sizes, |b| b.attention(p, q, k, v, index, out.inner(), lse.map(|s| s.inner())))
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
        let sizes = [q.byte_len, k.byte_len, v.byte_len, out.byte_len];
        let (q, k, v) = (q.inner(), k.inner(), v.inner());
        self.time("decode_attention", &sizes, |b| b.decode_attention(p, q, k, v, out.inner(), lse.map(|s| s.inner())))
    }

    fn merge_attention(
        &self,
        p: &MergeAttentionParams,
        part: Slice<Self>,
        lse: [Slice<Self>; 2],
        out: SliceMut<Self>,
        merged_lse: SliceMut<Self>,
    ) -> Result<()> {
        let sizes = [part.byte_len, 2 * out.byte_len];
        let (part, lse) = (part.inner(), lse.map(|s| s.inner()));
        self.time("merge_attention", &sizes, |b| b.merge_attention(p, part, lse, out.inner(), merged_lse.inner()))
    }

    fn clip_index(
        &self,
        p: &ClipIndexParams,
        index: IndexSlices<Self>,
        row_ranges: SliceMut<Self>,
        ranges: SliceMut<Self>,
        keep: SliceMut<Self>,
    ) -> Result<()> {
        let sizes = [2 * ranges.byte_len, 2 * keep.byte_len];
        let index = IndexSlices {
            row_ranges: index.row_ranges.inner(),
            ranges: index.ranges.inner(),
            columns: index.columns.inner(),
            keep: index.keep.inner(),
            window: index.window.inner(),
        };
        self.time("clip_index", &sizes, |b| b.clip_index(p, index, row_ranges.inner(), ranges.inner(), keep.inner()))
    }
}
