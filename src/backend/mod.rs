//! A device with one in-order queue, and the operations that a decoder and a sparse pre-fill need.
//!
//! This layer knows buffers and [`params`] only: no tensors, no models, no patterns. [`crate::ops`] is its checked
//! front; nothing else calls it. Operations enqueue and return; only [`Backend::download`] and
//! [`Backend::synchronize`] wait. Every operation has one stem everywhere: `Backend::rope`, `ops::rope`,
//! `backend/cpu/rope.rs`, `shaders/rope.wgsl`, `shaders/cuda/rope.cu`.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod params;
pub mod traced;
mod warm_up;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::{DType, Result};
use params::*;
use std::ops::Range;

pub(crate) use warm_up::warm_up;

/// What a device is and can do.
#[derive(Clone, Debug, Default)]
pub struct DeviceInfo {
    /// As `--device` names it: `cpu`, `wgpu:0`, `cuda:0`.
    pub id: String,
    /// `cpu`, `wgpu` or `cuda`.
    pub backend: &'static str,
    /// The interface beneath: `vulkan`, `metal`, `dx12`, `cuda`, `rayon`.
    pub api: String,
    /// The vendor's name for it.
    pub name: String,
    /// Memory of the device, or what the backend may use of it, in bytes; 0 where the driver does not tell.
    pub memory_bytes: u64,
    /// The longest part of a buffer that a kernel can bind, in bytes; 0 where there is no limit.
    pub max_binding_bytes: u64,
    /// Whether the device computes on this machine's CPU (a software adapter included).
    pub is_cpu: bool,
    /// Lanes of a subgroup, 0 where there are none.
    pub subgroup: u32,
    /// Whether shaders have 16-bit floats.
    pub f16: bool,
    /// Shape and types of the cooperative matrices in use, empty where there are none.
    pub cooperative_matrix: String,
    /// The kernel tier in use: `coop16`, `coop8`, `subgroup`, `plain`; `cpu`; `sm_80`, `sm_90a`.
    pub tier: String,
}

/// Bytes allocated through a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Live now.
    pub current: u64,
    /// Most ever live since the last [`Backend::reset_peak`].
    pub peak: u64,
}

/// A part of a buffer to read.
pub struct Slice<'a, B: Backend> {
    /// The buffer.
    pub buffer: &'a B::Buffer,
    /// Where the part begins, in bytes.
    pub byte_offset: usize,
    /// How long it is, in bytes.
    pub byte_len: usize,
    /// Its elements.
    pub dtype: DType,
}

impl<B: Backend> Clone for Slice<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for Slice<'_, B> {}

impl<B: Backend> Slice<'_, B> {
    /// Without its first elements.
    pub fn skip(self, elements: usize) -> Self {
        let skipped = self.dtype.bytes(elements);
        Self { byte_offset: self.byte_offset + skipped, byte_len: self.byte_len - skipped, ..self }
    }
}

/// A part of a buffer to write.
pub struct SliceMut<'a, B: Backend> {
    /// The buffer.
    pub buffer: &'a mut B::Buffer,
    /// Where the part begins, in bytes.
    pub byte_offset: usize,
    /// How long it is, in bytes.
    pub byte_len: usize,
    /// Its elements.
    pub dtype: DType,
}

impl<B: Backend> SliceMut<'_, B> {
    /// Without its first elements.
    pub fn skip(self, elements: usize) -> Self {
        let skipped = self.dtype.bytes(elements);
        Self { byte_offset: self.byte_offset + skipped, byte_len: self.byte_len - skipped, ..self }
    }

    /// The same part for a shorter time.
    pub fn reborrow(&mut self) -> SliceMut<'_, B> {
        SliceMut {
            buffer: &mut *self.buffer,
            byte_offset: self.byte_offset,
            byte_len: self.byte_len,
            dtype: self.dtype,
        }
    }
}

/// What the patterns chose, as [`Backend::build_index`] reads it. Parts that no head of the call uses hold one element.
pub struct IndexChoice<'a, B: Backend> {
    /// `[n_heads]` of [`HeadPlan`], u32 x 4.
    pub plan: Slice<'a, B>,
    /// u32 `[n_heads, 64 * column_tiles]`, ascending, padded with `u32::MAX`.
    pub columns: Slice<'a, B>,
    /// u32 `[n_heads, offset_capacity]`, ascending, padded with `u32::MAX`.
    pub offsets: Slice<'a, B>,
    /// u32 `[n_heads]`: how many of `offsets` are real.
    pub offset_count: Slice<'a, B>,
    /// u32 `[n_heads, row_blocks, block_words]`: bit `c % 32` of word `c / 32` is set where key block `c` is chosen.
    pub block_mask: Slice<'a, B>,
}

/// A sparse index on the device, to read: see [`crate::index::SparseIndex`] for the shapes.
pub struct IndexSlices<'a, B: Backend> {
    /// u32 `[n_heads, row_blocks, 2]`: first range and number of ranges of each row block.
    pub row_ranges: Slice<'a, B>,
    /// u32 `[range_budget + n_heads * row_blocks, 2]`: start and end (exclusive) of each range.
    pub ranges: Slice<'a, B>,
    /// u32 `[n_heads, 64 * column_tiles]`: each head's columns, ascending, padded with `u32::MAX`.
    pub columns: Slice<'a, B>,
    /// u32 `[n_heads, row_blocks, column_tiles, 2]`: which of them each row block computes (low word first).
    pub keep: Slice<'a, B>,
    /// u32 `[n_heads, 2]`: `n_init`, `n_local` of an element-exact window, `u32::MAX` twice where there is none.
    pub window: Slice<'a, B>,
}

impl<B: Backend> Clone for IndexSlices<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Backend> Copy for IndexSlices<'_, B> {}

/// The same, to write, with the pair counts that come out on the way.
pub struct IndexSlicesMut<'a, B: Backend> {
    /// As in [`IndexSlices`].
    pub row_ranges: SliceMut<'a, B>,
    /// As in [`IndexSlices`].
    pub ranges: SliceMut<'a, B>,
    /// As in [`IndexSlices`].
    pub keep: SliceMut<'a, B>,
    /// As in [`IndexSlices`].
    pub window: SliceMut<'a, B>,
    /// u32 `[n_heads, row_blocks]`: pairs computed by each row block, clipped to `j <= i < N`.
    pub pairs: SliceMut<'a, B>,
}

/// A device with one in-order queue. Operations enqueue and return; only `download` and `synchronize` wait.
///
/// Shapes are documented with each operation's parameters. `act` stands for [`Backend::activation`].
///
/// Slices have been checked ([`crate::ops`]): an operation fails with [`OutOfMemory`](crate::Error::OutOfMemory) for want of
/// scratch memory, with [`Device`](crate::Error::Device) where the device failed or was lost (at this call or, since work is
/// only enqueued, at a later one), and with [`Unsupported`](crate::Error::Unsupported) for an element type or a size that
/// the backend has no kernel for.
pub trait Backend: Sized + Send + Sync + 'static {
    /// Device memory.
    type Buffer: Send + Sync;

    /// Work that [`Backend::record`] keeps; an empty type where a backend keeps none.
    type Recording: Send;

    /// What the device is.
    fn info(&self) -> &DeviceInfo;

    /// How activations, K and V are stored: f32 on the CPU, f16 or f32 on wgpu, f16 or bf16 on CUDA.
    /// The residual stream, norm weights, biases, scores and logits are f32 everywhere.
    fn activation(&self) -> DType;

    /// Whether matrices of this type can stay as they are; others are converted at load.
    fn accepts_weight(&self, dtype: DType) -> bool;

    /// Which of several forms of its kernels the device runs, for people; empty where there is no choice.
    fn kernel_choice(&self, _head_dim: usize) -> String {
        String::new()
    }

    /// Seconds that the device worked since the last call, by its own time stamps, once everything enqueued is done; the
    /// first call begins to take them. Nothing where there are none. Operations wait for each other meanwhile.
    fn take_device_seconds(&self) -> Option<f64> {
        None
    }

    /// Bytes allocated through this backend.
    fn memory(&self) -> MemoryStats;

    /// Starts a new peak from what is live now.
    fn reset_peak(&self);

    /// Length of a buffer, in bytes.
    fn buffer_bytes(buffer: &Self::Buffer) -> usize;
    /// Uninitialised device memory.
    fn alloc(&self, bytes: usize) -> Result<Self::Buffer>;

    /// Device memory with this content.
    fn upload(&self, bytes: &[u8]) -> Result<Self::Buffer>;

    /// Overwrites part of a buffer, in queue order.
    fn write(&self, buffer: &mut Self::Buffer, byte_offset: usize, bytes: &[u8]) -> Result<()>;

    /// Waits for everything enqueued and copies bytes back.
    fn download(&self, buffer: &Self::Buffer, bytes: Range<usize>) -> impl Future<Output = Result<Vec<u8>>> + Send;

    /// The same for several buffers, waiting once where the backend can.
    fn download_all(
        &self,
        parts: &[(&Self::Buffer, Range<usize>)],
    ) -> impl Future<Output = Result<Vec<Vec<u8>>>> + Send {
        async move {
            let mut all = Vec::with_capacity(parts.len());
            for (buffer, bytes) in parts {
                all.push(self.download(buffer, bytes.clone()).await?);
            }
            Ok(all)
        }
    }

    /// Hands enqueued work to the device.
    fn flush(&self) -> Result<()>;

    /// Waits for everything enqueued.
    fn synchronize(&self) -> Result<()>;

    /// Keeps what `work` enqueues, to be enqueued as one by [`Backend::replay`]; runs nothing of it now. None where the
    /// backend or the work does not allow it. The buffers of the work must outlive the recording, and it may enqueue only:
    /// neither write, nor download, nor wait.
    fn record(&self, _work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Recording>> {
        Ok(None)
    }

    /// Enqueues recorded work with every position and length of [`Backend::rope`], [`Backend::append_kv`] and
    /// [`Backend::decode_attention`] moved on by `shift` tokens. Gives false, and enqueues nothing, where the recording
    /// does not serve the sequence's length: record anew.
    fn replay(&self, _recording: &mut Self::Recording, _shift: i64) -> Result<bool> {
        Ok(false)
    }

    /// ids u32, table any weight type, out f32 `[n_tokens, hidden]`.
    fn embed(&self, p: &EmbedParams, ids: Slice<Self>, table: Slice<Self>, out: SliceMut<Self>) -> Result<()>;

    /// x f32 or act, weight f32, out act or f32.
    fn rms_norm(&self, p: &RmsNormParams, x: Slice<Self>, weight: Slice<Self>, out: SliceMut<Self>) -> Result<()>;

    /// x act, w any weight type `[n, k]`, bias f32 `[n]`, out act or f32.
    fn matmul(
        &self,
        p: &MatmulParams,
        x: Slice<Self>,
        w: Slice<Self>,
        bias: Option<Slice<Self>>,
        out: SliceMut<Self>,
    ) -> Result<()>;

    /// turns u32 `[rotary_dim / 2, 2]` (low word first), x act in place.
    fn rope(&self, p: &RopeParams, turns: Slice<Self>, x: SliceMut<Self>) -> Result<()>;

    /// gate_up act `[rows, 2 * ffn]`, out act `[rows, ffn]`.
    fn silu_mul(&self, p: &SiluMulParams, gate_up: Slice<Self>, out: SliceMut<Self>) -> Result<()>;

    /// x f32 or act, out f32.
    fn add(&self, p: &AddParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()>;

    /// f32, f16, bf16 to f32 or act.
    fn cast(&self, p: &CastParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()>;

    /// k, v act; caches act.
    fn append_kv(
        &self,
        p: &AppendKvParams,
        k: Slice<Self>,
        v: Slice<Self>,
        k_cache: SliceMut<Self>,
        v_cache: SliceMut<Self>,
    ) -> Result<()>;

    /// Blocks of 32 elements of x act into packed u32: the scale as f16 (largest magnitude / 127) in a word, the elements as
    /// signed bytes in eight more. x becomes what the blocks say.
    fn pack_kv(&self, p: &PackKvParams, x: SliceMut<Self>, packed: SliceMut<Self>) -> Result<()>;

    /// Rows that [`Backend::pack_kv`] packed: out act.
    fn unpack_kv(&self, p: &PackKvParams, packed: Slice<Self>, out: SliceMut<Self>) -> Result<()>;

    /// plan `[n_heads]`, q, k act; column_score, offset_score f32 `[n_heads, kv_len]`, written for vertical-slash heads only.
    fn score_last_queries(
        &self,
        p: &ScoreLastQueriesParams,
        plan: Slice<Self>,
        q: Slice<Self>,
        k: Slice<Self>,
        column_score: SliceMut<Self>,
        offset_score: SliceMut<Self>,
    ) -> Result<()>;

    /// scores f32 `[rows, len]`, counts u32 `[rows]` (0 skips the row: its scores are not read and its indices mean
    /// nothing), indices u32 `[rows, capacity]`, ascending, padded with `u32::MAX` to the capacity. Ties: higher value,
    /// then lower index. NaN comes after every number.
    fn select_top_k(
        &self,
        p: &SelectTopKParams,
        scores: Slice<Self>,
        counts: Slice<Self>,
        indices: SliceMut<Self>,
    ) -> Result<()>;

    /// x act, out f32 `[n_heads, blocks, head_dim]`.
    fn pool_blocks(&self, p: &PoolBlocksParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()>;

    /// pooled_q f32 `[n_heads, row_blocks, head_dim]`, pooled_k f32 `[n_kv_heads, key_blocks, head_dim]`,
    /// scores f32 `[n_heads, band_len, key_blocks]`: dot products, -inf at key blocks that begin after the row block's last query.
    /// Rows of heads that are not block-sparse are not written.
    fn score_blocks(
        &self,
        p: &ScoreBlocksParams,
        plan: Slice<Self>,
        pooled_q: Slice<Self>,
        pooled_k: Slice<Self>,
        scores: SliceMut<Self>,
    ) -> Result<()>;

    /// The best `plan.a` key blocks of each row block of the band, as bits: block_mask u32 `[n_heads, row_blocks, ceil(key_blocks / 32)]`.
    /// Where `q_start` is not a multiple of 64, the block that holds the row block's first query is always one of them.
    /// Ties and NaN as in [`Backend::select_top_k`]; only the band's rows of block-sparse heads are written.
    fn select_blocks(
        &self,
        p: &ScoreBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        block_mask: SliceMut<Self>,
    ) -> Result<()>;

    /// budget `[rows]` of [`HeadBudget`], scores f32 `[rows, len]`, counts u32 `[rows]`: the fewest scores, the first
    /// `forced` and then the largest, whose sum reaches `mass` times the row's, within `least` and `most`. Scores within 1/64 of
    /// each other count as equal, equal ones are taken together. Rows of `mass` 0 are neither read nor written.
    fn count_by_mass(
        &self,
        p: &CountByMassParams,
        budget: Slice<Self>,
        scores: Slice<Self>,
        counts: SliceMut<Self>,
    ) -> Result<()>;

    /// budget `[rows]` of [`HeadBudget`], scores f32 `[rows, len]` in place: the sum of 64 neighbouring offsets, halved, goes to
    /// the first and the last of them, which together ask for all keys that any of the 64 does; the others become 0. A
    /// diagonal block costs the same for one offset as for all 64. Rows of `mass` 0 are neither read nor written.
    fn group_offsets(&self, p: &GroupOffsetsParams, budget: Slice<Self>, scores: SliceMut<Self>) -> Result<()>;

    /// budget `[n_heads]` of [`HeadBudget`], column_score f32 `[n_heads, kv_len]`, block_score f32 `[n_heads, key_blocks]`
    /// (means of the scoring queries against means of key blocks, -inf for future ones); plan `[n_heads]`, column_count
    /// and offset_count u32 `[n_heads]` in place. Only flex and recall heads are read and written.
    #[allow(clippy::too_many_arguments, reason = "three inputs and three results")]
    fn settle_heads(
        &self,
        p: &SettleHeadsParams,
        budget: Slice<Self>,
        column_score: Slice<Self>,
        block_score: Slice<Self>,
        plan: SliceMut<Self>,
        column_count: SliceMut<Self>,
        offset_count: SliceMut<Self>,
    ) -> Result<()>;

    /// Rows of x act `[n_heads, len, head_dim]` under strides, gathered by `fold`: out act `[n_heads, ceil(len / fold), fold *
    /// head_dim]`.
    fn fold_rows(&self, p: &FoldRowsParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()>;

    /// Logarithms of the attention that each row block of a band gives each key block, by groups of `fold` queries and keys:
    /// products f32 `[n_heads, band_len * 64 / fold, groups]`, of which a group's softmax over the groups of keys that begin
    /// at or before its last query is taken; scores f32 `[n_heads, band_len, key_blocks]`: of the sum over the row block's
    /// groups and the key block's, -inf for blocks behind the row block. plan `[n_heads]`; heads of the rule `ROW_MASS` only.
    fn weigh_antidiagonals(
        &self,
        p: &WeighAntidiagonalsParams,
        plan: Slice<Self>,
        products: Slice<Self>,
        scores: SliceMut<Self>,
    ) -> Result<()>;

    /// Replaces each of `share` neighbouring rows of scores f32 `[rows, len]` by their mean, without those whose kind in plan
    /// `[rows]` is dense, which stay as they are.
    fn share_scores(&self, p: &ShareScoresParams, plan: Slice<Self>, scores: SliceMut<Self>) -> Result<()>;

    /// Adds the softmax weights of a band's blocks to `mass` u32 `[n_heads, 2048]`, by their size: bin `b` holds weights
    /// of `2^(-b / 64)` and somewhat more, in units of which `2^30` are the whole head. plan `[n_heads]`, scores f32
    /// `[n_heads, band_len, key_blocks]`; heads of the rule `HEAD_MASS` only.
    fn weigh_blocks(
        &self,
        p: &WeighBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        mass: SliceMut<Self>,
    ) -> Result<()>;

    /// The blocks of a band that the head's rule keeps, as bits: block_mask u32 `[n_heads, row_blocks, ceil(key_blocks /
    /// 32)]`. The first block, those that hold the row block's queries and the nearest are always in, and every block of row
    /// blocks that hold one of the last queries ([`HeadPlan::nearest_and_last`]). `mass` is that
    /// of [`Backend::weigh_blocks`] over all bands. Only the band's rows of block-sparse heads under a rule other than
    /// `TOP_K` are written.
    fn select_weighed_blocks(
        &self,
        p: &WeighBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        mass: Slice<Self>,
        block_mask: SliceMut<Self>,
    ) -> Result<()>;

    /// From which density on it pays to compute a row block whole, in 256ths of its causal pairs, by measurement:
    /// [`EXACT`] says what for.
    fn dense_above(&self) -> u32 {
        EXACT - 1
    }

    /// From how many keys on it can pay to estimate what a head needs: below, heads that would be estimated are dense, but
    /// where [`EXACT`] is asked for.
    fn estimate_from(&self) -> usize {
        0
    }

    /// From how many keys on a sparse pre-fill of real text is faster than a dense one: what [`HeadPlan`]s of
    /// automatic heads hang on.
    fn sparse_from(&self) -> usize {
        // Qwen2.5-Coder-1.5B on an H100 (CUDA), HeadPattern::AUTO over dense: 0.96 at 4K, 1.05 at 8K, 1.24 at 16K
        // (benches/results/qwen2.5-coder-1.5b-latency-auto-h100.json). Other devices: taken from there, not measured.
        8192
    }

    /// The official conversion for vertical-slash heads (`reference`: csrc/vertical_slash_index.cu), and the like for the others.
    fn build_index(&self, p: &BuildIndexParams, choice: IndexChoice<Self>, out: IndexSlicesMut<Self>) -> Result<()>;

    /// q, k, v act; out act or f32; lse f32 `[n_heads, q_len]`, natural logarithm. A row without any key gives zeros and -inf.
    fn attention(
        &self,
        p: &AttentionParams,
        q: Slice<Self>,
        k: Slice<Self>,
        v: Slice<Self>,
        index: IndexSlices<Self>,
        out: SliceMut<Self>,
        lse: Option<SliceMut<Self>>,
    ) -> Result<()>;

    /// Few queries (`q_len` of 1 as a rule) over all their causal keys, split along the keys. No index is read. lse as in
    /// [`Backend::attention`].
    fn decode_attention(
        &self,
        p: &AttentionParams,
        q: Slice<Self>,
        k: Slice<Self>,
        v: Slice<Self>,
        out: SliceMut<Self>,
        lse: Option<SliceMut<Self>>,
    ) -> Result<()>;

    /// part, out act, lse of `out`, of `part` and of both f32 `[n_heads, rows]`. A row without keys (-inf) in one of them is
    /// taken from the other.
    fn merge_attention(
        &self,
        p: &MergeAttentionParams,
        part: Slice<Self>,
        lse: [Slice<Self>; 2],
        out: SliceMut<Self>,
        merged_lse: SliceMut<Self>,
    ) -> Result<()>;

    /// The ranges and columns of `index` within `[key_start, key_end)`, for the same columns and windows. Ranges keep their
    /// places, so that `ranges` is as long as the index's; a row block may come out empty.
    fn clip_index(
        &self,
        p: &ClipIndexParams,
        index: IndexSlices<Self>,
        row_ranges: SliceMut<Self>,
        ranges: SliceMut<Self>,
        keep: SliceMut<Self>,
    ) -> Result<()>;
}
