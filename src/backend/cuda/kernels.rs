//! The sources in `shaders/cuda`, how they are linked, and which specialisations exist.
//!
//! Linking is concatenation: the shared parts that a stem names, then the stem itself, each under a `#line` of its own.
//! Specialisation is by macro definitions on the compiler's command line.

use std::fmt::Write;

/// A stem: its own text and the shared parts before it.
pub struct Source {
    /// File name in `shaders/cuda`, without `.cu`.
    pub stem: &'static str,
    parts: &'static [(&'static str, &'static str)],
    text: &'static str,
}

/// A source with the macros that specialise it.
#[derive(Clone)]
pub struct Kernel {
    /// What is compiled.
    pub source: &'static Source,
    /// Macro definitions, in a fixed order: they are part of the cache key.
    pub defines: Vec<(&'static str, String)>,
}

macro_rules! text {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/cuda/", $name, ".cu"))
    };
}
macro_rules! sources {
    ($($(#[$doc:meta])* $name:ident = $stem:literal [$($part:literal),*];)*) => {
        $($(#[$doc])* pub static $name: Source = Source {
            stem: $stem,
            parts: &[("shared/types", text!("shared/types")), ("shared/ptx", text!("shared/ptx")), $(($part, text!($part))),*],
            text: text!($stem),
        };)*
        /// Every stem.
        pub static SOURCES: &[&Source] = &[$(&$name),*];
    };
}

sources! {
    /// `Backend::embed`.
    EMBED = "embed" ["shared/weights"];
    /// `Backend::rms_norm`.
    RMS_NORM = "rms_norm" ["shared/values"];
    /// `Backend::matmul` of one row.
    MATVEC = "matvec" ["shared/values", "shared/weights"];
    /// Packed weights to activations, for cuBLASLt.
    DEQUANTIZE = "dequantize" ["shared/weights"];
    /// The bias of a product where cuBLASLt does not take it.
    ADD_BIAS = "add_bias" ["shared/values"];
    /// `Backend::rope`.
    ROPE = "rope" [];
    /// `Backend::silu_mul`.
    SILU_MUL = "silu_mul" [];
    /// `Backend::add`.
    ADD = "add" ["shared/values"];
    /// `Backend::cast`.
    CAST = "cast" ["shared/values"];
    /// `Backend::append_kv`.
    APPEND_KV = "append_kv" [];
    /// `Backend::pack_kv` and `Backend::unpack_kv`.
    PACK_KV = "pack_kv" [];
    /// `Backend::score_last_queries`.
    SCORE_LAST_QUERIES = "score_last_queries" ["shared/tile"];
    /// `Backend::select_top_k`.
    SELECT_TOP_K = "select_top_k" [];
    /// `Backend::pool_blocks`.
    POOL_BLOCKS = "pool_blocks" [];
    /// `Backend::score_blocks`.
    SCORE_BLOCKS = "score_blocks" [];
    /// `Backend::select_blocks`.
    SELECT_BLOCKS = "select_blocks" [];
    /// `Backend::count_by_mass`.
    COUNT_BY_MASS = "count_by_mass" ["shared/mass"];
    /// `Backend::group_offsets`.
    GROUP_OFFSETS = "group_offsets" [];
    /// `Backend::settle_heads`.
    SETTLE_HEADS = "settle_heads" ["shared/mass"];
    /// `Backend::weigh_blocks`.
    WEIGH_BLOCKS = "weigh_blocks" ["shared/mass"];
    /// `Backend::select_weighed_blocks`.
    SELECT_WEIGHED_BLOCKS = "select_weighed_blocks" ["shared/mass"];
    /// `Backend::fold_rows`.
    FOLD_ROWS = "fold_rows" [];
    /// `Backend::weigh_antidiagonals`.
    WEIGH_ANTIDIAGONALS = "weigh_antidiagonals" ["shared/mass"];
    /// `Backend::share_scores`.
    SHARE_SCORES = "share_scores" [];
    /// `Backend::build_index`.
    BUILD_INDEX = "build_index" [];
    /// The chosen columns' K and V in one piece.
    GATHER_COLUMNS = "gather_columns" [];
    /// Which work item the attention kernels take next.
    ORDER_WORK = "order_work" [];
    /// `Backend::attention`, compute capability 8.0 and later.
    ATTENTION_SM80 = "attention_sm80" ["shared/values", "shared/ranges", "shared/tile"];
    /// `Backend::attention` on Hopper.
    ATTENTION_SM90A = "attention_sm90a" ["shared/values", "shared/ranges", "shared/ptx_sm90a"];
    /// `Backend::decode_attention`.
    DECODE_ATTENTION = "decode_attention" ["shared/values"];
    /// `Backend::merge_attention`.
    MERGE_ATTENTION = "merge_attention" [];
    /// `Backend::clip_index`.
    CLIP_INDEX = "clip_index" [];
}

impl Source {
    /// The text that the compiler gets.
    pub fn linked(&self) -> String {
        let mut out = String::new();
        for (name, text) in self.parts.iter().chain([&(self.stem, self.text)]) {
            // Writing to a String does not fail.
            let _ = write!(out, "#line 1 \"{name}.cu\"\n{text}\n");
        }
        out
    }

    /// With macro definitions.
    pub fn with(&'static self, defines: &[(&'static str, &dyn ToString)]) -> Kernel {
        Kernel { source: self, defines: defines.iter().map(|(name, value)| (*name, value.to_string())).collect() }
    }
}

impl Kernel {
    /// The compiler's command line for an architecture.
    pub fn options(&self, arch: &str) -> Vec<String> {
        let mut options = vec![format!("--gpu-architecture={arch}"), "--std=c++17".into(), "-default-device".into()];
        options.extend(self.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        options
    }

    /// What tells this specialisation from the others of its stem.
    pub fn name(&self) -> String {
        let mut name = self.source.stem.to_string();
        for (define, value) in &self.defines {
            let _ = write!(name, " {define}={value}");
        }
        name
    }
}

/// Shared memory of the kernels that ask for it at launch, in bytes. They get it as `SMEM_BYTES` and assert that their
/// layout fits.
pub mod shared_memory {
    /// Bytes of 64 rows in `shared/tile.cu`.
    pub fn tile(head_dim: usize) -> usize {
        let chunks = head_dim.div_ceil(16) * 2;
        64 * 16 * if chunks.is_multiple_of(4) { chunks } else { chunks + 1 }
    }

    /// `attention_sm80`: Q of its row blocks, one tile of K and of V, the cursors.
    pub fn attention_sm80(head_dim: usize, row_blocks: usize) -> usize {
        (row_blocks + 2) * tile(head_dim) + 256
    }

    /// `attention_sm90a`: Q of two row blocks, the rings of K and V, records, barriers, alignment.
    pub fn attention_sm90a(head_dim: usize) -> usize {
        let slabs = head_dim.div_ceil(64);
        let stages = if slabs == 1 { 6 } else { 3 };
        let records = (stages + 16) * 64 + 3 * 24 + 8 + 8 * 16;
        2 * slabs * 8192 + 2 * stages * slabs * 16384 + records + (2 + 4 * stages + 2 * 16) * 8 + 1024
    }

    /// `score_last_queries`: two tiles of K, P, column halves, diagonals.
    pub fn score_last_queries(head_dim: usize) -> usize {
        2 * tile(head_dim) + (64 * 72 + 128 + 64) * 4
    }
}
