//! The portable GPU backend: WGSL compute shaders through wgpu on Vulkan, Metal and DX12.
//!
//! | file | holds |
//! | --- | --- |
//! | `context.rs` | adapters, limits, tier, compiled pipelines |
//! | `queue.rs` | recording kernels and copies, waiting, reading back |
//! | `link.rs` | shaders by concatenation, and the list of all of them |
//! | `buffer.rs` | device memory and its account |
//! | `tune.rs` | forms of kernels tried at first use, the choice kept on disk |
//! | one per operation | which specialisation, which grid, which bands |
//!
//! Every device runs one [`Tier`], chosen from what it has. Operations split what exceeds the device's binding limit into
//! bands, so that a 128 MiB limit gives the same results as 2 GiB.

mod add;
mod antidiagonals;
mod append_kv;
mod attention;
mod attention_coop;
mod attention_rows;
mod bands;
mod blocks;
mod buffer;
mod build_index;
mod cast;
mod clip_index;
mod context;
mod decode_attention;
mod elements;
mod embed;
pub mod launch;
pub mod link;
mod mass;
mod matmul;
mod merge_attention;
mod pack_kv;
mod queue;
mod rms_norm;
mod rope;
mod score_last_queries;
mod select_top_k;
mod silu_mul;
mod tune;
mod unroll;

pub use attention::AttentionKernel;
pub use attention_coop::CoopVariant;
pub use attention_rows::RowsVariant;
pub use buffer::Buffer;
pub use tune::Autotune;

use super::params::*;
use super::{Backend, DeviceInfo, IndexChoice, IndexSlices, IndexSlicesMut, MemoryStats, Slice, SliceMut};
use crate::{DType, Error, Result};
use context::Context;
use link::Specialisation;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

/// Which kernels a device runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// The best that the device can run.
    #[default]
    Auto,
    /// f32 storage, no subgroups: every device.
    Plain,
    /// f16 storage, subgroup operations, f32 arithmetic.
    Subgroup,
    /// The same, with 8 x 8 cooperative matrices, f16 into f32 (Apple).
    Coop8,
    /// The same, with 16 x 16 cooperative matrices, f16 into f32 (NVIDIA, AMD).
    Coop16,
}

impl Tier {
    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Plain => "plain",
            Self::Subgroup => "subgroup",
            Self::Coop8 => "coop8",
            Self::Coop16 => "coop16",
        }
    }
}

impl std::str::FromStr for Tier {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        let all = [Self::Auto, Self::Plain, Self::Subgroup, Self::Coop8, Self::Coop16];
        let found = all.into_iter().find(|tier| tier.name() == name);
        found
            .ok_or_else(|| Error::invalid(format!("tier: expected auto, plain, subgroup, coop8 or coop16, got {name}")))
    }
}

/// How to open a device. The default is the best it can do; the rest is for tests and for narrowing down a fault.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Forces a tier; an error where the device cannot run it.
    pub tier: Tier,
    /// Pretends that a binding holds at most so many bytes (a multiple of 4).
    pub max_binding_bytes: Option<u64>,
    /// Pretends that a workgroup has at most so many bytes of shared memory.
    pub max_workgroup_bytes: Option<u32>,
    /// Keeps the run-time checks of indexes, loops and divisions in the shaders.
    pub checked_shaders: bool,
    /// Whether forms of kernels are tried at first use.
    pub autotune: Autotune,
    /// Told in a line what takes a moment, and what was found broken.
    pub notice: Option<fn(&str)>,
}

/// What a device has that decides which specialisation of a shader it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Never [`Tier::Auto`].
    pub tier: Tier,
    /// Fewest lanes of a subgroup, 0 where there are no subgroups.
    pub subgroup_min: u32,
    /// Most lanes of a subgroup.
    pub subgroup_max: u32,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Invocations that a workgroup may have.
    pub workgroup_invocations: u32,
    /// Whether SPIR-V can be given as it is: Vulkan.
    pub passthrough: bool,
}

impl Traits {
    /// Devices to validate every shader for, named after the kind of machine: what the tests go through.
    pub const KNOWN: &'static [(&'static str, Traits)] = &[
        ("plain", Self::of(Tier::Plain, 0, 0, 16384)),
        ("lavapipe", Self::of(Tier::Subgroup, 8, 8, 32768)),
        ("intel", Self::of(Tier::Subgroup, 8, 32, 32768)),
        ("amd", Self::of(Tier::Subgroup, 32, 64, 65536)),
        ("nvidia", Self::of(Tier::Subgroup, 32, 32, 49152)),
        ("apple-coop8", Self::of(Tier::Coop8, 32, 32, 32768)),
        ("lavapipe-coop8", Self { passthrough: true, ..Self::of(Tier::Coop8, 8, 8, 32768) }),
        ("nvidia-coop16", Self::of(Tier::Coop16, 32, 32, 49152)),
    ];

    const fn of(tier: Tier, subgroup_min: u32, subgroup_max: u32, workgroup_bytes: u32) -> Self {
        let passthrough = matches!(tier, Tier::Coop16);
        // What every WebGPU device has, and what those named have.
        let workgroup_invocations = if matches!(tier, Tier::Plain) { 256 } else { 1024 };
        Self { tier, subgroup_min, subgroup_max, workgroup_bytes, workgroup_invocations, passthrough }
    }

    /// Whether activations are f16: every tier but the plain one.
    pub fn f16(&self) -> bool {
        self.tier != Tier::Plain
    }

    /// Whether kernels may use subgroup operations.
    pub fn subgroups(&self) -> bool {
        self.tier != Tier::Plain
    }

    /// The type of activations.
    pub fn activation(&self) -> DType {
        if self.f16() { DType::F16 } else { DType::F32 }
    }

    /// The size of cooperative matrices, 0 where there are none.
    pub fn matrix(&self) -> u32 {
        match self.tier {
            Tier::Coop16 => 16,
            Tier::Coop8 => 8,
            _ => 0,
        }
    }

    /// The types that an operand "act or f32" can have, each once.
    fn act_or_f32(&self) -> impl Iterator<Item = DType> + use<> {
        let f16 = self.f16().then_some(DType::F16);
        std::iter::once(DType::F32).chain(f16)
    }
}

/// Every shader in every form that a device of these traits can run, each once: what the tests validate for every API,
/// and the only ones that pipelines are made from.
pub fn specialisations(traits: &Traits) -> Vec<Specialisation> {
    let mut list = Vec::new();
    add::specialisations(traits, &mut list);
    append_kv::specialisations(traits, &mut list);
    attention::specialisations(traits, &mut list);
    attention_coop::specialisations(traits, &mut list);
    attention_rows::specialisations(traits, &mut list);
    blocks::specialisations(traits, &mut list);
    build_index::specialisations(traits, &mut list);
    cast::specialisations(traits, &mut list);
    clip_index::specialisations(traits, &mut list);
    decode_attention::specialisations(traits, &mut list);
    embed::specialisations(traits, &mut list);
    mass::specialisations(traits, &mut list);
    antidiagonals::specialisations(traits, &mut list);
    matmul::specialisations(traits, &mut list);
    merge_attention::specialisations(traits, &mut list);
    pack_kv::specialisations(traits, &mut list);
    rms_norm::specialisations(traits, &mut list);
    rope::specialisations(traits, &mut list);
    score_last_queries::specialisations(traits, &mut list);
    select_top_k::specialisations(traits, &mut list);
    silu_mul::specialisations(traits, &mut list);
    list.sort();
    list.dedup();
    list
}

/// Every adapter of this machine, as `minference devices` lists them. Empty where no driver is installed.
pub fn devices() -> Vec<DeviceInfo> {
    context::devices()
}

/// A GPU through wgpu.
pub struct Wgpu {
    context: Arc<Context>,
    recorder: Mutex<queue::Recorder>,
    /// The tile that `matmul` was told to use.
    matmul_tile: Mutex<Option<&'static str>>,
    /// Where `matmul` unpacks weights for products of many rows.
    expanded: Mutex<Option<Buffer>>,
    /// Bound where an operation has no operand for a binding.
    placeholder: Buffer,
    /// What [`Wgpu::use_attention_kernel`] set.
    attention: Mutex<Option<AttentionKernel>>,
    /// Whether fragments lie as `attention_rows` expects, once asked.
    has_rows: OnceLock<bool>,
}

impl Wgpu {
    /// Opens adapter `wgpu:number`, or the best one.
    ///
    /// [`Error::Unavailable`] where there is none, saying how to install a driver, or where it cannot run the tier asked.
    pub fn new(number: Option<usize>, options: Options) -> Result<Self> {
        Self::over(Context::open(number, &options)?)
    }

    /// Works on a device and queue that the caller made: an operator embedded in another engine, over the caller's buffers
    /// ([`Buffer::wrap`]). The device needs `Features::IMMEDIATES` with 128 bytes; with `SHADER_F16`, `SUBGROUP` and
    /// `SUBGROUP_BARRIER` it runs tier `subgroup`, else `plain`; a cooperative tier is named in the options.
    ///
    /// Work is recorded in command buffers of its own and handed over by [`Backend::flush`]. Its error handlers and
    /// those of the caller do not meet.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue, options: Options) -> Result<Self> {
        let info = device.adapter_info();
        Self::over(Context::adopt(device, queue, info, &options)?)
    }

    fn over(context: Context) -> Result<Self> {
        let placeholder = Buffer::unaccounted(context.create_buffer(16, false)?, 16);
        Ok(Self {
            matmul_tile: Mutex::new(matmul::tile_from_env(&context.traits)?),
            context: Arc::new(context),
            recorder: Mutex::default(),
            expanded: Mutex::default(),
            placeholder,
            attention: Mutex::default(),
            has_rows: OnceLock::new(),
        })
    }

    fn placeholder(&self) -> buffer::Binding<'_> {
        buffer::Binding { buffer: &self.placeholder, byte_offset: 0, byte_len: 16, dtype: DType::F32, lanes: 1 }
    }

    /// Types that matrices can keep.
    const WEIGHTS: &[DType] = &[DType::F32, DType::F16, DType::Q4_0, DType::Q8_0, DType::Q4K, DType::Q6K];

    /// An error where packed weights do not begin as their kernels read them: Q4_K 16 bytes at a time.
    fn check_packed(op: &'static str, w: &buffer::Binding) -> Result<()> {
        let align = if w.dtype == DType::Q4K { 16 } else { 2 };
        match w.dtype.is_quantized() && !w.start().is_multiple_of(align) {
            true => Err(Error::Unsupported(format!(
                "{op}: {} blocks that begin at byte {} of a buffer",
                w.dtype,
                w.start()
            ))),
            false => Ok(()),
        }
    }

    /// What decides which shaders run.
    pub fn traits(&self) -> &Traits {
        &self.context.traits
    }

    /// Names of the tile shapes that products on cooperative matrices can have here, the default first.
    pub fn matmul_tiles(&self) -> Vec<&'static str> {
        matmul::Tile::offered(self, DType::F16).map(|tile| tile.name).collect()
    }

    /// The same for products with packed weights.
    pub fn packed_matmul_tiles(&self) -> Vec<&'static str> {
        matmul::Tile::offered(self, DType::Q4K).map(|tile| tile.name).collect()
    }

    /// Makes products use one of [`Wgpu::matmul_tiles`] wherever its inner length allows, or the default again.
    pub fn use_matmul_tile(&self, name: Option<&'static str>) {
        *context::lock(&self.matmul_tile) = name;
    }
}

impl Backend for Wgpu {
    type Buffer = Buffer;
    type Recording = std::convert::Infallible;

    fn info(&self) -> &DeviceInfo {
        &self.context.info
    }

    fn activation(&self) -> DType {
        self.context.traits.activation()
    }

    fn accepts_weight(&self, dtype: DType) -> bool {
        Self::WEIGHTS.contains(&dtype)
    }

    fn kernel_choice(&self, head_dim: usize) -> String {
        let head_dim = attention::kernel_head_dim(head_dim as u32);
        let forms = tune::Walk::ALL.map(|walk| (walk.name(), self.attention_kernel(head_dim, walk, true)));
        let attention = forms.map(|(walk, form)| format!("{walk} {form}")).join(", ");
        format!("attention {attention}; products {}", matmul::choices(self))
    }

    /// 0.65: columns gathered one by one, the slowest of the patterns, run at 0.64 of the rate of dense attention on an H100
    /// (133 of 207 TFLOP/s), ranges at 0.78 and more.
    fn dense_above(&self) -> u32 {
        167
    }

    /// Whole pre-fills of an 8B shape with its official settings on an H100, sparse over dense: 0.94 at 2048 tokens, 0.97
    /// at 4096, 0.98 at 8192: attention is too small a part of the shorter ones.
    fn estimate_from(&self) -> usize {
        8192
    }

    fn take_device_seconds(&self) -> Option<f64> {
        self.take_seconds()
    }

    fn memory(&self) -> MemoryStats {
        self.context.account.stats()
    }

    fn reset_peak(&self) {
        self.context.account.reset_peak();
    }

    fn buffer_bytes(buffer: &Buffer) -> usize {
        buffer.len as usize
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        self.create_buffer(bytes, false)
    }

    fn upload(&self, bytes: &[u8]) -> Result<Buffer> {
        self.upload_bytes(bytes)
    }

    fn write(&self, buffer: &mut Buffer, byte_offset: usize, bytes: &[u8]) -> Result<()> {
        self.write_bytes(buffer, byte_offset, bytes)
    }

    async fn download(&self, buffer: &Buffer, bytes: Range<usize>) -> Result<Vec<u8>> {
        self.download_bytes(buffer, bytes)
    }

    async fn download_all(&self, parts: &[(&Buffer, Range<usize>)]) -> Result<Vec<Vec<u8>>> {
        self.download_parts(parts)
    }

    fn flush(&self) -> Result<()> {
        self.submit()
    }

    fn synchronize(&self) -> Result<()> {
        self.wait()
    }

    fn embed(&self, p: &EmbedParams, ids: Slice<Self>, table: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        embed::embed(self, p, ids, table, out)
    }

    fn rms_norm(&self, p: &RmsNormParams, x: Slice<Self>, weight: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        rms_norm::rms_norm(self, p, x, weight, out)
    }

    fn matmul(
        &self,
        p: &MatmulParams,
        x: Slice<Self>,
        w: Slice<Self>,
        bias: Option<Slice<Self>>,
        out: SliceMut<Self>,
    ) -> Result<()> {
        matmul::matmul(self, p, x, w, bias, out)
    }

    fn rope(&self, p: &RopeParams, turns: Slice<Self>, x: SliceMut<Self>) -> Result<()> {
        rope::rope(self, p, turns, x)
    }

    fn silu_mul(&self, p: &SiluMulParams, gate_up: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        silu_mul::silu_mul(self, p, gate_up, out)
    }

    fn add(&self, p: &AddParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        add::add(self, p, x, out)
    }

    fn cast(&self, p: &CastParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        cast::cast(self, p, x, out)
    }

    fn append_kv(
        &self,
        p: &AppendKvParams,
        k: Slice<Self>,
        v: Slice<Self>,
        k_cache: SliceMut<Self>,
        v_cache: SliceMut<Self>,
    ) -> Result<()> {
        append_kv::append_kv(self, p, k, v, k_cache, v_cache)
    }

    fn pack_kv(&self, p: &PackKvParams, x: SliceMut<Self>, packed: SliceMut<Self>) -> Result<()> {
        pack_kv::pack_kv(self, p, x, packed)
    }

    fn unpack_kv(&self, p: &PackKvParams, packed: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        pack_kv::unpack_kv(self, p, packed, out)
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
        score_last_queries::score_last_queries(self, p, [plan, q, k], [column_score, offset_score])
    }

    fn select_top_k(
        &self,
        p: &SelectTopKParams,
        scores: Slice<Self>,
        counts: Slice<Self>,
        indices: SliceMut<Self>,
    ) -> Result<()> {
        select_top_k::select_top_k(self, p, [scores, counts], indices)
    }

    fn pool_blocks(&self, p: &PoolBlocksParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        blocks::pool_blocks(self, p, x, out)
    }

    fn score_blocks(
        &self,
        p: &ScoreBlocksParams,
        plan: Slice<Self>,
        pooled_q: Slice<Self>,
        pooled_k: Slice<Self>,
        scores: SliceMut<Self>,
    ) -> Result<()> {
        blocks::score_blocks(self, p, [plan, pooled_q, pooled_k], scores)
    }

    fn select_blocks(
        &self,
        p: &ScoreBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        block_mask: SliceMut<Self>,
    ) -> Result<()> {
        blocks::select_blocks(self, p, [plan, scores], block_mask)
    }

    fn count_by_mass(
        &self,
        p: &CountByMassParams,
        budget: Slice<Self>,
        scores: Slice<Self>,
        counts: SliceMut<Self>,
    ) -> Result<()> {
        mass::count_by_mass(self, p, [budget, scores], counts)
    }

    fn group_offsets(&self, p: &GroupOffsetsParams, budget: Slice<Self>, scores: SliceMut<Self>) -> Result<()> {
        mass::group_offsets(self, p, budget, scores)
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
        mass::settle_heads(self, p, [budget, column_score, block_score], [plan, column_count, offset_count])
    }

    fn fold_rows(&self, p: &FoldRowsParams, x: Slice<Self>, out: SliceMut<Self>) -> Result<()> {
        antidiagonals::fold_rows(self, p, x, out)
    }

    fn weigh_antidiagonals(
        &self,
        p: &WeighAntidiagonalsParams,
        plan: Slice<Self>,
        products: Slice<Self>,
        scores: SliceMut<Self>,
    ) -> Result<()> {
        antidiagonals::weigh_antidiagonals(self, p, [plan, products], scores)
    }

    fn share_scores(&self, p: &ShareScoresParams, plan: Slice<Self>, scores: SliceMut<Self>) -> Result<()> {
        antidiagonals::share_scores(self, p, plan, scores)
    }

    fn weigh_blocks(
        &self,
        p: &WeighBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        mass: SliceMut<Self>,
    ) -> Result<()> {
        mass::weigh_blocks(self, p, [plan, scores], mass)
    }

    fn select_weighed_blocks(
        &self,
        p: &WeighBlocksParams,
        plan: Slice<Self>,
        scores: Slice<Self>,
        mass: Slice<Self>,
        block_mask: SliceMut<Self>,
    ) -> Result<()> {
        mass::select_weighed_blocks(self, p, [plan, scores, mass], block_mask)
    }

    fn build_index(&self, p: &BuildIndexParams, choice: IndexChoice<Self>, out: IndexSlicesMut<Self>) -> Result<()> {
        build_index::build_index(self, p, choice, out)
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
        attention::attention(self, p, [q, k, v], index, out, lse)
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
        decode_attention::decode_attention(self, p, [q, k, v], out, lse)
    }

    fn merge_attention(
        &self,
        p: &MergeAttentionParams,
        part: Slice<Self>,
        lse: [Slice<Self>; 2],
        out: SliceMut<Self>,
        merged_lse: SliceMut<Self>,
    ) -> Result<()> {
        merge_attention::merge_attention(self, p, part, lse, out, merged_lse)
    }

    fn clip_index(
        &self,
        p: &ClipIndexParams,
        index: IndexSlices<Self>,
        row_ranges: SliceMut<Self>,
        ranges: SliceMut<Self>,
        keep: SliceMut<Self>,
    ) -> Result<()> {
        clip_index::clip_index(self, p, index, row_ranges, ranges, keep)
    }
}
