//! [`HeadPattern`]: how one head is sparse, and [`PatternConfig`]: the pattern of every head of a model.

/// How one head is sparse (paper, section 3.1). Offline search chooses it; what it computes is decided per prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadPattern {
    /// Every causal pair.
    Dense,
    /// The first `n_init` keys and, for each query, its last `n_local` (itself included).
    AShape {
        /// Leading keys.
        n_init: usize,
        /// Trailing keys.
        n_local: usize,
    },
    /// The `columns` best key columns and the `offsets` best diagonals, estimated from the last 64 queries.
    VerticalSlash {
        /// Vertical lines.
        columns: usize,
        /// Slash lines.
        offsets: usize,
    },
    /// For each block of 64 queries the `top_k` best blocks of 64 keys, estimated from block means.
    BlockSparse {
        /// Key blocks per row block.
        top_k: usize,
    },
}
