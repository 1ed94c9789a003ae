//! [`HeadPattern`]: how one head is sparse, and [`PatternConfig`]: the pattern of every head of a model.
//!
//! ```
//! use minference::pattern::{AttentionMode, HeadPattern, PatternConfig};
//!
//! let one: HeadPattern = "vertical_slash:1000:6096".parse()?;
//! assert_eq!(AttentionMode::Uniform(one).patterns(0, 32), vec![one; 32]);
//!
//! // The official JSON: a list of layers, each a map of query head -> [pattern, a, b, score].
//! let config = PatternConfig::from_json(r#"[{"0": ["vertical_and_slash", 30, 800, 0.98]}]"#)?;
//! assert_eq!(config.pattern(0, 0).to_string(), "vertical_slash:30:800");
//! assert_eq!(config.pattern(0, 1), HeadPattern::FALLBACK);
//! # Ok::<(), minference::Error>(())
//! ```

mod config;
mod official;

pub use config::{Entry, PatternConfig, Score};
pub use official::{OFFICIAL, OfficialFile};

use crate::{Error, Result};
use std::str::FromStr;

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
    /// An A-shape whose last queries see everything (tri-shape). Computed by row blocks of 64 queries: the window of a row
    /// block is that of all its queries together, and a row block that holds one of the last `n_last` queries is dense,
    /// so that up to 63 more keys and queries are in than the published mask has, and none fewer.
    TriShape {
        /// Leading keys.
        n_init: usize,
        /// Trailing keys.
        n_local: usize,
        /// Last queries, which are dense.
        n_last: usize,
    },
    /// As many columns and diagonals, or blocks, as hold a part of the attention mass (FlexPrefill); see
    /// [`crate::estimate`] for what of the published method this is.
    Flex {
        /// The part of the mass, above 0, at most 1.
        gamma: f32,
        /// Block means are trusted where they come closer than this to the attention of the last queries; 0 never does.
        tau: f32,
        /// Fewest and most columns, and fewest and most diagonals; no most where it is 0. Blocks: so many nearest keys
        /// are always in.
        budget: [usize; 2],
    },
    /// For each block of 64 queries the key blocks that weigh at least `alpha` times as much as the heaviest, by the softmax
    /// of block means (the selection of FlashPrefill; its scoring is another).
    Threshold {
        /// Above 0, at most 1.
        alpha: f32,
        /// A row block that holds one of so many last queries of a prompt is dense (FlashPrefill V2 has 8 blocks so): at most
        /// 65,535. Of a prompt in chunks only the last chunk has them.
        n_last: usize,
    },
    /// [`Self::Threshold`] with each head's own threshold: the largest, of at most `alpha`, whose blocks hold `floor` of the
    /// last 64 queries' attention. A head for which that is nearly all blocks is dense.
    Recall {
        /// The part of the last queries' attention, above 0, at most 1.
        floor: f32,
        /// The largest threshold.
        alpha: f32,
        /// As [`Self::Threshold`]'s.
        n_last: usize,
    },
    /// For each block of 64 queries the heaviest key blocks that hold a part of its attention, as the antidiagonals of each
    /// block say, `stride` keys apart (XAttention); see [`crate::estimate`] for what of the published method this is.
    XAttention {
        /// Keys from one antidiagonal to the next: 4, 8, 16, 32 or 64.
        stride: usize,
        /// The part of the mass, above 0, at most 1. The first block and the diagonal come on top of it.
        threshold: f32,
    },
    /// Dense on prompts too short for sparsity to pay on the device, and [`Self::AUTO`] on longer ones. With an engine's
    /// `exact_index` off, row blocks that come out too dense to pay are computed whole, head by head.
    Auto,
}

/// The patterns of the command line, as `--attention` and `--pattern` take them.
pub const GRAMMAR: &str = "dense | a_shape:N_INIT:N_LOCAL | tri_shape:N_INIT:N_LOCAL:N_LAST | vertical_slash:V:S | \
    block_sparse:TOP_K | flex:GAMMA[:TAU] | threshold:ALPHA[:N_LAST] | recall:FLOOR[:ALPHA[:N_LAST]] | xattention:STRIDE:THRESHOLD | \
    auto";

impl HeadPattern {
    /// What a head without an entry gets, as in the official loader.
    pub const FALLBACK: Self = Self::VerticalSlash { columns: 1000, offsets: 6096 };

    /// The largest argument a pattern may have: sixteen times the longest prompt of the paper, and far below where
    /// sums of positions would leave 32 bits.
    pub const MAX_ARGUMENT: usize = 1 << 24;

    /// FlexPrefill's threshold where none is given.
    pub const FLEX_TAU: f32 = 0.1;

    /// Fewest and most columns and diagonals of flex heads where nothing is said.
    pub const FLEX_BUDGET: [usize; 2] = [128, 0];

    /// The largest threshold of [`Self::Recall`] where none is given.
    pub const RECALL_ALPHA: f32 = 0.02;

    /// What [`Self::Auto`] does on long prompts. Qwen2.5-Coder-1.5B on an H100, beside dense: the next token's KL 0.007 nats at 16K,
    /// 0.011 at 32,000 tokens (the bar: 0.02), whole pre-fills 1.04 at 8K, 1.19 at 16K, 1.43 at 32,000, 2.41 at 128K. Without
    /// dense rows for the last queries five hard tasks of RULER at 16K lose 39 points; with them they lose none, nor do they
    /// by [`Self::Recall`] at 0.9, which is slower from 16K on (`benches/results/README.md`).
    ///
    /// The floor of its recall, on novels: 95 of 100 heads keep at least 0.88 of their attention at 8K, 0.84 at 16K, 0.79 at 32,000 and
    /// 0.65 at 128K; all heads together 0.96, 0.94, 0.91 and 0.84. A floor that holds on every prompt is [`Self::Recall`]'s.
    pub const AUTO: Self = Self::Threshold { alpha: 0.01, n_last: 256 };

    /// [`Self::Auto`] as what it is for so many keys, on a device where sparsity pays from `sparse_from` keys on; any other
    /// pattern as it is.
    pub fn resolved(self, keys: usize, sparse_from: usize) -> Self {
        match self {
            Self::Auto if keys < sparse_from => Self::Dense,
            Self::Auto => Self::AUTO,
            other => other,
        }
    }

    /// This pattern with no row block dense for the sake of the last queries.
    pub(crate) fn without_last(self) -> Self {
        match self {
            Self::TriShape { n_init, n_local, .. } => Self::TriShape { n_init, n_local, n_last: 0 },
            Self::Threshold { alpha, .. } => Self::Threshold { alpha, n_last: 0 },
            Self::Recall { floor, alpha, .. } => Self::Recall { floor, alpha, n_last: 0 },
            other => other,
        }
    }

    /// This pattern, if its arguments make sense. A window without leading keys (`n_init` 0) does; anything else that
    /// is 0, or above [`Self::MAX_ARGUMENT`], does not.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the argument, what is allowed and what was found.
    pub fn checked(self) -> Result<Self> {
        let last = |n_last: usize| match n_last {
            0..=0xffff => Ok(()),
            _ => Err(Error::invalid(format!("{self}: n_last: expected at most 65535, got {n_last}"))),
        };
        let count = |what: &str, value: usize, least: usize| match (least..=Self::MAX_ARGUMENT).contains(&value) {
            true => Ok(()),
            false => {
                let max = Self::MAX_ARGUMENT;
                Err(Error::invalid(format!("{self}: {what}: expected {least} to {max}, got {value}")))
            }
        };
        let part = |what: &str, value: f32| match value > 0.0 && value <= 1.0 {
            true => Ok(()),
            false => Err(Error::invalid(format!("{self}: {what}: expected above 0 and at most 1, got {value}"))),
        };
        match self {
            Self::Dense | Self::Auto => {}
            Self::AShape { n_init, n_local } => {
                count("n_local", n_local, 1)?;
                count("n_init", n_init, 0)?;
            }
            Self::TriShape { n_init, n_local, n_last } => {
                count("n_local", n_local, 1)?;
                count("n_init", n_init, 0)?;
                count("n_last", n_last, 1)?;
            }
            Self::VerticalSlash { columns, offsets } => {
                count("columns", columns, 1)?;
                count("offsets", offsets, 1)?;
            }
            Self::BlockSparse { top_k } => count("top_k", top_k, 1)?,
            Self::Flex { gamma, tau, budget: [least, most] } => {
                part("gamma", gamma)?;
                if !(0.0..=1.0).contains(&tau) {
                    return Err(Error::invalid(format!("{self}: tau: expected 0 to 1, got {tau}")));
                }
                count("min budget", least, 0)?;
                count("max budget", most, 0)?;
                if most != 0 && most < least {
                    let what = format!("{self}: max budget: expected at least the min budget {least}, got {most}");
                    return Err(Error::invalid(what));
                }
            }
            Self::Threshold { alpha, n_last } => {
                part("alpha", alpha)?;
                last(n_last)?;
            }
            Self::Recall { floor, alpha, n_last } => {
                part("floor", floor)?;
                part("alpha", alpha)?;
                last(n_last)?;
            }
            Self::XAttention { stride, threshold } => {
                if !matches!(stride, 4 | 8 | 16 | 32 | 64) {
                    return Err(Error::invalid(format!("{self}: stride: expected 4, 8, 16, 32 or 64, got {stride}")));
                }
                part("threshold", threshold)?;
            }
        }
        Ok(self)
    }

    /// The same with other fewest and most, where the pattern has them.
    ///
    /// # Errors
    /// As [`HeadPattern::checked`].
    pub fn with_budget(self, [fewest, most_of_all]: [Option<usize>; 2]) -> Result<Self> {
        match self {
            Self::Flex { gamma, tau, budget: [least, most] } => {
                let budget = [fewest.unwrap_or(least), most_of_all.unwrap_or(most)];
                Self::Flex { gamma, tau, budget }.checked()
            }
            other => Ok(other),
        }
    }
}

impl std::fmt::Display for HeadPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dense => f.write_str("dense"),
            Self::Auto => f.write_str("auto"),
            Self::AShape { n_init, n_local } => write!(f, "a_shape:{n_init}:{n_local}"),
            Self::VerticalSlash { columns, offsets } => write!(f, "vertical_slash:{columns}:{offsets}"),
            Self::BlockSparse { top_k } => write!(f, "block_sparse:{top_k}"),
            Self::TriShape { n_init, n_local, n_last } => write!(f, "tri_shape:{n_init}:{n_local}:{n_last}"),
            Self::Flex { gamma, tau, .. } if *tau == Self::FLEX_TAU => write!(f, "flex:{gamma}"),
            Self::Flex { gamma, tau, .. } => write!(f, "flex:{gamma}:{tau}"),
            Self::Threshold { alpha, n_last: 0 } => write!(f, "threshold:{alpha}"),
            Self::Threshold { alpha, n_last } => write!(f, "threshold:{alpha}:{n_last}"),
            Self::Recall { floor, alpha, n_last: 0 } if *alpha == Self::RECALL_ALPHA => write!(f, "recall:{floor}"),
            Self::Recall { floor, alpha, n_last: 0 } => write!(f, "recall:{floor}:{alpha}"),
            Self::Recall { floor, alpha, n_last } => write!(f, "recall:{floor}:{alpha}:{n_last}"),
            Self::XAttention { stride, threshold } => write!(f, "xattention:{stride}:{threshold}"),
        }
    }
}

impl FromStr for HeadPattern {
    type Err = Error;

    /// Reads [`GRAMMAR`].
    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let named = |name: &str| GRAMMAR.split(" | ").find(|form| form.split(':').next() == Some(name));
        let unknown = || match named(&name.to_ascii_lowercase().replace('-', "_")) {
            Some(form) => Error::invalid(format!("unknown pattern {text:?}: did you mean {form}?")),
            None => Error::invalid(format!("unknown pattern {text:?}: expected {GRAMMAR}")),
        };
        let form = named(name).ok_or_else(unknown)?;
        let given = Arguments { text, form, given: parts.collect() };
        given.check_count()?;
        match name {
            "dense" => Self::Dense,
            "auto" => Self::Auto,
            "a_shape" => Self::AShape { n_init: given.count(0)?, n_local: given.count(1)? },
            "tri_shape" => {
                Self::TriShape { n_init: given.count(0)?, n_local: given.count(1)?, n_last: given.count(2)? }
            }
            "vertical_slash" => Self::VerticalSlash { columns: given.count(0)?, offsets: given.count(1)? },
            "block_sparse" => Self::BlockSparse { top_k: given.count(0)? },
            "flex" => {
                Self::Flex { gamma: given.part(0)?, tau: given.part_or(1, Self::FLEX_TAU)?, budget: Self::FLEX_BUDGET }
            }
            "threshold" => Self::Threshold { alpha: given.part(0)?, n_last: given.count_or(1, 0)? },
            "recall" => Self::Recall {
                floor: given.part(0)?,
                alpha: given.part_or(1, Self::RECALL_ALPHA)?,
                n_last: given.count_or(2, 0)?,
            },
            "xattention" => Self::XAttention { stride: given.count(0)?, threshold: given.part(1)? },
            _ => return Err(unknown()),
        }
        .checked()
    }
}

/// What stands behind a pattern's name, and the form of [`GRAMMAR`] that it should have.
struct Arguments<'a> {
    text: &'a str,
    form: &'static str,
    given: Vec<&'a str>,
}

impl Arguments<'_> {
    fn check_count(&self) -> Result<()> {
        let most = self.form.matches(':').count();
        let least = most - self.form.matches('[').count();
        match self.given.len() {
            found if (least..=most).contains(&found) => Ok(()),
            found => {
                let Self { text, form, .. } = self;
                let expected = match most - least {
                    0 => most.to_string(),
                    1 => format!("{least} or {most}"),
                    _ => format!("{least} to {most}"),
                };
                let what = format!("pattern {text:?}: expected {form} ({expected} arguments), got {found}");
                Err(Error::invalid(what))
            }
        }
    }

    /// A decimal number.
    fn count(&self, at: usize) -> Result<usize> {
        self.number(at, |c| c.is_ascii_digit())
    }

    /// A decimal fraction.
    fn part(&self, at: usize) -> Result<f32> {
        self.number(at, |c| c.is_ascii_digit() || c == b'.')
    }

    fn count_or(&self, at: usize, default: usize) -> Result<usize> {
        if at < self.given.len() { self.count(at) } else { Ok(default) }
    }

    fn part_or(&self, at: usize, default: f32) -> Result<f32> {
        if at < self.given.len() { self.part(at) } else { Ok(default) }
    }

    /// A number of these characters: `parse` alone would take "inf", "1e3" and "+1" as well.
    fn number<T: FromStr>(&self, at: usize, allowed: fn(u8) -> bool) -> Result<T> {
        let (Self { text, form, .. }, argument) = (self, self.given[at]);
        let plain = !argument.is_empty() && argument.bytes().all(allowed);
        argument.parse().ok().filter(|_| plain).ok_or_else(|| {
            Error::invalid(format!("pattern {text:?}: expected {form}, got {argument:?} where a number belongs"))
        })
    }
}

/// How the heads of a model attend during pre-fill.
#[derive(Clone, Debug, PartialEq)]
pub enum AttentionMode {
    /// One pattern for all.
    Uniform(HeadPattern),
    /// A pattern for each, found offline.
    Config(PatternConfig),
    /// From a layer on [`Self::TRIANGLE`], below it another mode (TriangleMix).
    TriangleMix {
        /// The first layer of the triangles.
        start_layer: usize,
        /// What the layers below do.
        below: Box<AttentionMode>,
    },
    /// Another mode, with more added to all its patterns.
    Extra {
        /// What is added.
        extras: Extras,
        /// The mode.
        over: Box<AttentionMode>,
    },
}

/// What can be added to any mode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extras {
    /// Skip-softmax's factor: see [`crate::ops::attention_skipping`]. 0 is off.
    pub skip_softmax: f32,
    /// Whether the query heads of a KV head are estimated together: see [`crate::estimate`]. Where the index of so many does not
    /// fit ([`crate::estimate::head_groups`]), those of each part are.
    pub share_groups: bool,
}

impl Extras {
    /// Nothing.
    pub const NONE: Self = Self { skip_softmax: 0.0, share_groups: false };
}

/// As the command line takes them before a mode: each with a `+` behind it.
impl std::fmt::Display for Extras {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.skip_softmax > 0.0 {
            write!(f, "skip_softmax:{}+", self.skip_softmax)?;
        }
        if self.share_groups {
            f.write_str("share_groups+")?;
        }
        Ok(())
    }
}

impl AttentionMode {
    /// TriangleMix's published sizes: 8 first keys, the 512 nearest, the last 128 queries in full.
    pub const TRIANGLE: HeadPattern = HeadPattern::TriShape { n_init: 8, n_local: 512, n_last: 128 };

    /// The pattern of each query head of a layer.
    pub fn patterns(&self, layer: usize, n_heads: usize) -> Vec<HeadPattern> {
        match self {
            Self::Uniform(pattern) => vec![*pattern; n_heads],
            Self::Config(config) => (0..n_heads).map(|head| config.pattern(layer, head)).collect(),
            Self::TriangleMix { start_layer, .. } if layer >= *start_layer => vec![Self::TRIANGLE; n_heads],
            Self::TriangleMix { below, .. } => below.patterns(layer, n_heads),
            Self::Extra { over, .. } => over.patterns(layer, n_heads),
        }
    }

    /// As reports name it: the pattern, or `config`.
    pub fn name(&self) -> String {
        match self {
            Self::Uniform(pattern) => pattern.to_string(),
            Self::Config(_) => "config".to_owned(),
            Self::TriangleMix { start_layer, below } if **below == Self::Uniform(HeadPattern::Dense) => {
                format!("triangle_mix:{start_layer}")
            }
            Self::TriangleMix { start_layer, below } => format!("triangle_mix:{start_layer}+{}", below.name()),
            Self::Extra { extras, over } => format!("{extras}{}", over.name()),
        }
    }

    /// What is added to its patterns, in all layers.
    pub fn extras(&self) -> Extras {
        match self {
            Self::Uniform(_) | Self::Config(_) => Extras::NONE,
            Self::TriangleMix { below, .. } => below.extras(),
            Self::Extra { extras, .. } => *extras,
        }
    }

    /// The mode without what is added to it.
    pub fn plain(&self) -> &Self {
        match self {
            Self::Extra { over, .. } => over.plain(),
            other => other,
        }
    }

    /// This mode with more added to it.
    pub fn with(self, extras: Extras) -> Self {
        match self {
            _ if extras == Extras::NONE => self,
            Self::Extra { over, .. } => over.with(extras),
            over => Self::Extra { extras, over: Box::new(over) },
        }
    }

    /// That this mode fits a model: a [`PatternConfig`] has no more layers and heads than it.
    ///
    /// # Errors
    /// [`Error::Invalid`] with both numbers where it does not.
    pub fn check_model(&self, layers: usize, heads: usize) -> Result<()> {
        match self {
            Self::Uniform(_) => Ok(()),
            Self::Config(config) => config.check_model(layers, heads),
            Self::TriangleMix { start_layer, .. } if *start_layer > layers => {
                Err(Error::invalid(format!("triangle_mix:{start_layer}: expected a layer of the model's {layers}")))
            }
            Self::TriangleMix { below, .. } => below.check_model(layers, heads),
            Self::Extra { over, .. } => over.check_model(layers, heads),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<HeadPattern>().expect_err(text).to_string()
    }

    #[test]
    fn grammar_round_trips() {
        for text in [
            "dense",
            "a_shape:1024:4096",
            "a_shape:0:64",
            "tri_shape:8:512:128",
            "vertical_slash:1000:6096",
            "block_sparse:100",
            "flex:0.95",
            "flex:0.9:0",
            "threshold:0.02",
            "threshold:0.01:256",
            "recall:0.95",
            "recall:0.9:0.1",
            "recall:0.9:0.02:256",
            "xattention:8:0.9",
            "auto",
        ] {
            assert_eq!(text.parse::<HeadPattern>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn unknown_pattern_lists_the_known_ones() {
        let error = error("sliding:4");
        assert!(error.contains("\"sliding:4\""), "{error}");
        for name in ["dense", "a_shape", "vertical_slash", "block_sparse"] {
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn arguments_are_counted_and_bounded() {
        assert!(error("vertical_slash:1000").contains("(2 arguments), got 1"));
        assert!(error("dense:1").contains("(0 arguments), got 1"));
        assert!(error("block_sparse:+5").contains("\"+5\""));
        assert!(error("block_sparse:").contains("\"\""));
        assert!(error("block_sparse:99999999999999999999999").contains("99999999999999999999999"));
        assert!(error("block_sparse:0").contains("expected 1 to 16777216, got 0"));
        assert!(error("a_shape:16:0").contains("n_local: expected 1 to 16777216, got 0"));
        assert!(error("vertical_slash:0:10").contains("columns"));
        assert!(error("vertical_slash:10:16777217").contains("offsets"));
        assert!(error("tri_shape:8:512").contains("(3 arguments), got 2"));
        assert!(error("flex").contains("(1 or 2 arguments), got 0"));
        assert!(error("flex:1.5").contains("gamma: expected above 0 and at most 1, got 1.5"));
        assert!(error("flex:0").contains("gamma"));
        assert!(error("flex:0.9:2").contains("tau: expected 0 to 1, got 2"));
        assert!(error("flex:nan").contains("\"nan\""));
        assert!(error("threshold:0").contains("alpha"));
        assert!(error("recall:1.5").contains("floor"));
        assert!(error("threshold:0.1:65536").contains("n_last"));
        assert!(error("recall:0.9:0.1:1:2").contains("(1 to 3 arguments), got 4"));
        assert!(error("xattention:8").contains("STRIDE:THRESHOLD"));
        assert!(error("xattention:7:0.9").contains("stride: expected 4, 8, 16, 32 or 64, got 7"));
        assert!(error("xattention:8:1.5").contains("threshold"));
    }

    #[test]
    fn triangles_lie_over_another_mode() {
        let config = PatternConfig::from_json(r#"[{"0": ["stream_llm", 100, 200, 1]}, {}]"#).unwrap();
        let below = Box::new(AttentionMode::Config(config));
        let mode = AttentionMode::TriangleMix { start_layer: 1, below };
        assert_eq!(mode.patterns(0, 1), [HeadPattern::AShape { n_init: 100, n_local: 200 }]);
        assert_eq!(mode.patterns(1, 1), [AttentionMode::TRIANGLE]);
        assert_eq!(mode.name(), "triangle_mix:1+config");
        assert!(mode.check_model(2, 1).is_ok());
        assert!(AttentionMode::TriangleMix { start_layer: 3, below: Box::new(mode) }.check_model(2, 1).is_err());
    }

    #[test]
    fn auto_is_dense_where_sparsity_does_not_pay() {
        assert_eq!(HeadPattern::Auto.resolved(999, 1000), HeadPattern::Dense);
        assert_eq!(HeadPattern::Auto.resolved(1000, 1000), HeadPattern::AUTO);
        assert_eq!(HeadPattern::FALLBACK.resolved(10, 1000), HeadPattern::FALLBACK);
    }

    #[test]
    fn budgets_apply_to_flex_alone() {
        let flex: HeadPattern = "flex:0.9".parse().unwrap();
        let changed = flex.with_budget([Some(64), Some(4096)]).unwrap();
        assert!(matches!(changed, HeadPattern::Flex { budget: [64, 4096], .. }));
        assert!(flex.with_budget([Some(64), Some(32)]).unwrap_err().to_string().contains("at least the min budget 64"));
        assert_eq!(HeadPattern::Dense.with_budget([Some(1), None]).unwrap(), HeadPattern::Dense);
    }
}
