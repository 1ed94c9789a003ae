//! Shaders by concatenation: a generated prelude (`const`, `alias`), the kernel, and the shared fragments it was given.
//!
//! Variants that need other code, not other numbers, are other fragments that define the same functions
//! (`reduce_subgroup` and `reduce_workgroup`), because a subgroup operation does not even validate where the device
//! lacks it. A [`Specialisation`] is the key of a pipeline, and [`super::specialisations`] lists all of them without a
//! device: the tests compile exactly that list for every API, and the context builds pipelines for nothing else.

use super::Traits;
use super::elements::{matrices_of_words, splice};
use super::unroll::unroll;
use crate::{DType, Error, Result};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use std::fmt::Write;

macro_rules! sources {
    ($dir:literal: $($stem:literal)*) => {
        &[$(($stem, include_str!(concat!("../../../", $dir, $stem, ".wgsl")))),*]
    };
}

/// Kernels by stem. Every file of `shaders/` is here: a test compares.
const KERNELS: &[(&str, &str)] = sources!("shaders/":
    "add" "append_kv" "attention" "attention_coop" "attention_rows" "build_index_dense" "build_index_keep"
    "build_index_place" "build_index_rows" "cast" "clamp_columns" "clip_index_keep" "clip_index_rows" "coop_layout"
    "count_by_mass" "decode_attention" "decode_attention_merge" "embed" "expand" "fold_rows" "group_offsets"
    "matmul" "matmul_coop" "matmul_frags" "matvec" "merge_attention" "pack_kv" "pool_blocks" "rms_norm" "rope"
    "score_blocks" "score_last_queries_merge" "score_last_queries_rows" "score_last_queries_rows_coop"
    "score_last_queries_sums" "score_last_queries_sums_coop" "select_blocks" "select_top_k" "select_weighed_blocks"
    "settle_heads" "share_scores" "silu_mul" "unpack_kv" "weigh_antidiagonals" "weigh_blocks");

/// Fragments by stem: every file of `shaders/shared/`.
const FRAGMENTS: &[(&str, &str)] = sources!("shaders/shared/":
    "columns_direct" "coop_rows" "coop_stage" "coop_stage_words" "coop_tiles_scalar"
    "coop_tiles_vec4" "coop_walk" "coop_words" "dot_tile" "eight_f16" "eight_words" "input8_vec4" "input8_wide"
    "input8_words" "input_scalar" "input_vec4" "invocation" "invocation_subgroup" "lanes_1" "lanes_4"
    "last_tile_dot" "last_tile_keys" "mass" "matmul_out" "matmul_out4_scalar" "matmul_out4_vec4" "out_f16" "out_f32"
    "packed" "packed_q4_0" "packed_q4_k" "packed_q6_k" "packed_q8_0" "packed_words" "radix_select" "raw_w_f16_packed" "raw_w_stored"
    "raw_w_values" "raw_x_stored" "raw_x_values" "reduce_subgroup"
    "reduce_workgroup" "rows16_subgroup" "rows16_workgroup" "scan_subgroup" "scan_workgroup" "stage_scalar"
    "stage_vec4" "stage_words" "team_subgroup" "team_workgroup" "tile_order" "unpack"
    "unpack_none" "weight8_vec4" "weight8_wide" "weight8_words" "weight_bf16" "weight_f16_packed"
    "weight_f16_packed_vec4" "weight_scalar" "weight_vec4");

/// A number that changes with any shader (64-bit FNV-1a).
pub(super) fn sources_hash() -> u64 {
    let all = KERNELS.iter().chain(FRAGMENTS);
    all.fold(FNV_BASIS, |hash, (stem, text)| fnv_on(fnv_on(hash, stem.as_bytes()), text.as_bytes()))
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// 64-bit FNV-1a: the same in every build.
pub(super) fn fnv(bytes: &[u8]) -> u64 {
    fnv_on(FNV_BASIS, bytes)
}

fn fnv_on(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Stems of all kernels that can be linked.
pub fn kernels() -> impl Iterator<Item = &'static str> {
    KERNELS.iter().map(|(stem, _)| *stem)
}

/// Stems of all fragments that can be linked.
pub fn fragments() -> impl Iterator<Item = &'static str> {
    FRAGMENTS.iter().map(|(stem, _)| *stem)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Definition {
    Const(u32),
    Alias(&'static str),
}

/// WGSL's name of one element, of four, or of eight f16.
fn wgsl(dtype: DType, lanes: u64) -> &'static str {
    match (dtype, lanes) {
        (DType::F16, 8) => "mat2x4<f16>",
        (DType::F16, 4) => "vec4<f16>",
        (DType::F16, _) => "f16",
        (DType::U32, 4) => "vec4<u32>",
        (DType::U32, _) => "u32",
        (_, 4) => "vec4<f32>",
        _ => "f32",
    }
}

/// One kernel in one form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Specialisation {
    kernel: &'static str,
    fragments: Vec<&'static str>,
    definitions: Vec<(&'static str, Definition)>,
    f16: bool,
    coop: bool,
    /// Elements of a fragment that a lane holds, where the kernel works on them; else 0.
    elements: u32,
    /// Whether it loads matrices of f16 from words.
    words: bool,
}

impl Specialisation {
    /// A kernel for devices of these traits: `Elem`, the activation type, is defined, and f16 enabled where there is one.
    pub fn new(kernel: &'static str, traits: &Traits) -> Self {
        let elem = Definition::Alias(if traits.f16() { "f16" } else { "f32" });
        Self {
            kernel,
            fragments: vec![],
            definitions: vec![("Elem", elem)],
            f16: traits.f16(),
            coop: false,
            elements: 0,
            words: false,
        }
    }

    /// Links a file of `shaders/shared/`.
    pub fn with(mut self, fragment: &'static str) -> Self {
        self.fragments.push(fragment);
        self
    }

    /// Defines `const name: u32`.
    pub fn constant(mut self, name: &'static str, value: u32) -> Self {
        self.definitions.push((name, Definition::Const(value)));
        self
    }

    /// Defines `alias name = type`.
    pub fn alias(mut self, name: &'static str, ty: &'static str) -> Self {
        self.definitions.push((name, Definition::Alias(ty)));
        self
    }

    /// Defines `alias name` for elements read as they are stored, `lanes` (1 or 4) at a time.
    pub(super) fn read(self, name: &'static str, dtype: DType, lanes: u64) -> Self {
        self.alias(name, wgsl(dtype, lanes))
    }

    /// Defines `alias Out` and `to_out`, which stores f32 results, `lanes` at a time.
    pub(super) fn write(self, dtype: DType, lanes: u64) -> Self {
        let fragment = if dtype == DType::F16 { "out_f16" } else { "out_f32" };
        self.alias("Out", wgsl(dtype, lanes)).with(fragment)
    }

    /// Links `Wide`, f32 values `lanes` at a time.
    pub(super) fn lanes(self, lanes: u64) -> Self {
        self.with(if lanes == 4 { "lanes_4" } else { "lanes_1" })
    }

    /// Defines `alias Weight` and `load_w4`, which reads four elements of `w` as f32. With `lanes` of 4, rows are
    /// multiples of four long and aligned.
    pub(super) fn weight(self, dtype: DType, lanes: u64) -> Self {
        if let Some(kernel) = self.clone().packed(dtype) {
            return kernel;
        }
        match (dtype, lanes) {
            (DType::BF16, _) => self.alias("Weight", "u32").with("weight_bf16"),
            (DType::F16, 4) if !self.f16 => self.alias("Weight", "vec2<u32>").with("weight_f16_packed_vec4"),
            (DType::F16, _) if !self.f16 => self.alias("Weight", "u32").with("weight_f16_packed"),
            (_, 4) => self.alias("Weight", wgsl(dtype, 4)).with("weight_vec4"),
            _ => self.alias("Weight", wgsl(dtype, 1)).with("weight_scalar"),
        }
    }

    /// For a packed type: `alias Weight`, `load_w4`, and `raw_w8` with `values_of`, which read eight elements in two steps.
    pub(super) fn packed(self, dtype: DType) -> Option<Self> {
        Some(match dtype {
            DType::Q4_0 => self.alias("Weight", "u32").with("packed").with("packed_words").with("packed_q4_0"),
            DType::Q8_0 => self.alias("Weight", "u32").with("packed").with("packed_words").with("packed_q8_0"),
            DType::Q6K => self.alias("Weight", "u32").with("packed").with("packed_words").with("packed_q6_k"),
            DType::Q4K => self.alias("Weight", "vec4<u32>").with("packed").with("packed_q4_k"),
            _ => return None,
        })
    }

    /// Uses cooperative matrices.
    pub fn cooperative(mut self) -> Self {
        self.coop = true;
        self
    }

    /// Works on the elements of 16 x 16 fragments of known layout: see [`Module::spirv`].
    pub(super) fn by_rows(mut self) -> Self {
        self.elements = 8;
        self.with("coop_rows")
    }

    /// Makes operands of words of known layout: see [`Module::spirv`].
    pub(super) fn by_words(self) -> Self {
        self.with("coop_words")
    }

    /// Loads matrices of f16 from words: see [`Module::spirv`].
    pub(super) fn matrices_of_words(mut self) -> Self {
        self.words = true;
        self
    }

    /// Whether it does what SPIR-V alone can say.
    pub fn is_spirv_only(&self) -> bool {
        self.elements > 0 || self.words
    }

    /// Whether it uses cooperative matrices, for which naga has no HLSL.
    pub fn is_cooperative(&self) -> bool {
        self.coop
    }

    /// The kernel's stem.
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// A name that tells it from all others.
    pub fn label(&self) -> String {
        let mut label = self.kernel.to_string();
        for (name, value) in &self.definitions {
            let _ = match value {
                Definition::Const(value) => write!(label, "-{name}_{value}"),
                Definition::Alias(ty) => write!(label, "-{name}_{ty}"),
            };
        }
        for fragment in &self.fragments {
            let _ = write!(label, "-{fragment}");
        }
        label
    }

    /// The linked WGSL, loops over registers unrolled.
    pub fn source(&self) -> Result<String> {
        let find = |table: &[(&str, &'static str)], stem: &str| {
            let file = table.iter().find(|(name, _)| *name == stem);
            file.map(|(_, text)| *text).ok_or_else(|| Error::invalid(format!("no shader source named {stem}")))
        };
        let mut text = String::new();
        if self.f16 {
            text.push_str("enable f16;\n");
        }
        if self.coop {
            // naga checks that cooperative operations are reached by all invocations under the rule of derivatives.
            text.push_str("enable wgpu_cooperative_matrix;\ndiagnostic(off, derivative_uniformity);\n");
        }
        for (name, value) in &self.definitions {
            let _ = match value {
                Definition::Const(value) => writeln!(text, "const {name}: u32 = {value}u;"),
                Definition::Alias(ty) => writeln!(text, "alias {name} = {ty};"),
            };
        }
        text.push_str(find(KERNELS, self.kernel)?);
        for fragment in &self.fragments {
            text.push_str(find(FRAGMENTS, fragment)?);
        }
        let constants = self.definitions.iter().filter_map(|(name, value)| match value {
            Definition::Const(value) => Some((name.to_string(), i64::from(*value))),
            Definition::Alias(_) => None,
        });
        unroll(&text, &constants.collect()).map_err(|e| Error::invalid(format!("shader {}: {e}", self.label())))
    }

    /// The linked WGSL, parsed and validated.
    pub fn module(&self) -> Result<Module> {
        let text = self.source()?;
        let explain = |message: String| Error::invalid(format!("shader {}: {message}", self.label()));
        let ir = naga::front::wgsl::parse_str(&text).map_err(|e| explain(e.emit_to_string(&text)))?;
        let info = Validator::new(ValidationFlags::all(), Capabilities::all())
            .validate(&ir)
            .map_err(|e| explain(e.emit_to_string(&text)))?;
        Ok(Module { ir, info, text, elements: self.elements, words: self.words })
    }
}

/// A parsed shader.
pub struct Module {
    /// naga's representation.
    pub ir: naga::Module,
    /// What the validator found.
    pub info: naga::valid::ModuleInfo,
    /// The WGSL it came from.
    pub text: String,
    elements: u32,
    words: bool,
}

/// One storage binding of a shader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingInfo {
    /// `@binding(index)`.
    pub index: u32,
    /// The variable's name.
    pub name: String,
    /// `read` and not `read_write`.
    pub read_only: bool,
}

impl Module {
    /// SPIR-V without run-time checks, with what exists in it only put in (`elements.rs`).
    pub fn spirv(&self) -> Result<Vec<u32>> {
        use naga::back::spv;
        let options = spv::Options {
            lang_version: (1, 3),
            // Names: by them functions are found.
            flags: spv::WriterFlags::DEBUG,
            force_loop_bounding: false,
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            ..Default::default()
        };
        let words = spv::write_vec(&self.ir, &self.info, &options, None)
            .map_err(|e| Error::Device(format!("writing SPIR-V: {e}")))?;
        let words = if self.elements > 0 { splice(&words, self.elements)? } else { words };
        if self.words { matrices_of_words(&words) } else { Ok(words) }
    }

    /// Storage bindings of group 0, by index.
    pub fn bindings(&self) -> Vec<BindingInfo> {
        let mut found: Vec<BindingInfo> = self
            .ir
            .global_variables
            .iter()
            .filter_map(|(_, var)| match (&var.binding, var.space) {
                (Some(binding), naga::AddressSpace::Storage { access }) => Some(BindingInfo {
                    index: binding.binding,
                    name: var.name.clone().unwrap_or_default(),
                    read_only: !access.contains(naga::StorageAccess::STORE),
                }),
                _ => None,
            })
            .collect();
        found.sort_by_key(|b| b.index);
        found
    }

    /// Members of the immediates' struct with their byte offsets, and its size.
    pub fn immediates(&self) -> (Vec<(String, u32)>, u32) {
        let var = self.ir.global_variables.iter().find(|(_, var)| var.space == naga::AddressSpace::Immediate);
        let Some((_, var)) = var else { return (vec![], 0) };
        match &self.ir.types[var.ty].inner {
            naga::TypeInner::Struct { members, span } => {
                (members.iter().map(|m| (m.name.clone().unwrap_or_default(), m.offset)).collect(), *span)
            }
            _ => (vec![], 0),
        }
    }
}

/// How `subgroupBarrier()` has to be spelled for a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubgroupBarrier {
    /// As naga writes it.
    Plain,
    /// With workgroup memory in its semantics. naga 30 writes SPIR-V with subgroup memory only, so that formally a
    /// subgroup could not pass data through workgroup memory with it. Not on Metal: there the plain one does that, and
    /// this one would add a barrier of the whole group.
    OrdersWorkgroupMemory,
    /// A memory barrier alone. lavapipe runs a subgroup as one vector, but counts a subgroup barrier as a workgroup's,
    /// which gives wrong results in a branch that only some subgroups take.
    MemoryOnly,
}

impl SubgroupBarrier {
    /// Rewrites every `subgroupBarrier()` of a module.
    pub fn apply(self, module: &mut naga::Module) {
        if self == Self::Plain {
            return;
        }
        module.functions.iter_mut().for_each(|(_, f)| self.rewrite(&mut f.body));
        module.entry_points.iter_mut().for_each(|e| self.rewrite(&mut e.function.body));
    }

    fn rewrite(self, block: &mut naga::Block) {
        use naga::{Barrier, Statement};
        let old = std::mem::take(block);
        for (mut statement, span) in old.span_into_iter() {
            match &mut statement {
                Statement::ControlBarrier(flags) if *flags == Barrier::SUB_GROUP => {
                    statement = match self {
                        Self::MemoryOnly => Statement::MemoryBarrier(Barrier::WORK_GROUP),
                        _ => Statement::ControlBarrier(Barrier::SUB_GROUP | Barrier::WORK_GROUP),
                    };
                }
                Statement::Block(inner) => self.rewrite(inner),
                Statement::If { accept, reject, .. } => {
                    self.rewrite(accept);
                    self.rewrite(reject);
                }
                Statement::Loop { body, continuing, .. } => {
                    self.rewrite(body);
                    self.rewrite(continuing);
                }
                Statement::Switch { cases, .. } => cases.iter_mut().for_each(|case| self.rewrite(&mut case.body)),
                _ => {}
            }
            block.push(statement, span);
        }
    }
}
