//! `--attention` and `--pattern` as an [`AttentionMode`].

use crate::model::Model;
use crate::pattern::{AttentionMode, Extras, GRAMMAR, HeadPattern, PatternConfig};
use crate::{Error, Result};
use std::path::Path;

/// The patterns as the help lists them.
const PATTERNS: &str = "\
Patterns:
  dense                            every earlier token
  a_shape:N_INIT:N_LOCAL           the first N_INIT tokens and the last N_LOCAL
  tri_shape:N_INIT:N_LOCAL:N_LAST  a_shape, and every token for the last N_LAST queries
  vertical_slash:V:S               the V best columns and S best diagonals
  block_sparse:TOP_K               the TOP_K best blocks of 64 keys for each block of 64 queries
  flex:GAMMA[:TAU]                 columns and diagonals, or blocks, until they hold GAMMA of the attention
  threshold:ALPHA[:N_LAST]         blocks that weigh ALPHA times the heaviest of their row; all for the last N_LAST queries
  recall:FLOOR[:ALPHA[:N_LAST]]    the same with a threshold for each head, so that it keeps FLOOR of the attention
  xattention:STRIDE:THRESHOLD      blocks by their antidiagonals, until they hold THRESHOLD of the attention
  triangle_mix:START_LAYER[+MODE]  tri_shape from a layer on, below it MODE (dense)
  config, config:FILE              each head's own, of --patterns or FILE
  auto                             dense on short prompts, threshold:0.01:256 on long ones";

/// What stands behind the options of commands that take patterns.
pub fn with_patterns(examples: &str) -> String {
    format!("{PATTERNS}\n\n{examples}")
}

/// `--min-budget` and `--max-budget`.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct BudgetArgs {
    /// Fewest columns and fewest diagonals of a flex head (and keys of nearest blocks); 128 unless said.
    #[arg(long, value_name = "N")]
    pub min_budget: Option<usize>,
    /// Most columns and most diagonals of a flex head; 0 is as many as it needs.
    #[arg(long, value_name = "N")]
    pub max_budget: Option<usize>,
}

/// What can be added to any mode.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ExtraArgs {
    /// Skip-softmax over any attention: a tile of scores that are all below FACTOR / keys of their rows' running maxima gives
    /// nothing (`--attention skip_softmax:FACTOR+PATTERN` is the same); 0 is off.
    #[arg(long, value_name = "FACTOR", default_value_t = 0.0, value_parser = factor)]
    pub skip_softmax: f32,
    /// Estimates the query heads of a KV head together, by the mean of their scores (`--attention share_groups+PATTERN` is the
    /// same).
    #[arg(long)]
    pub share_groups: bool,
}

fn factor(text: &str) -> std::result::Result<f32, String> {
    let number = text.parse::<f32>().ok().filter(|x| *x >= 0.0 && x.is_finite());
    number.ok_or_else(|| format!("expected a number from 0 on, found {text:?}"))
}

impl ExtraArgs {
    fn extras(self) -> Extras {
        Extras { skip_softmax: self.skip_softmax, share_groups: self.share_groups }
    }

    /// The mode with what is added.
    pub fn apply(self, mode: AttentionMode) -> AttentionMode {
        let (own, more) = (mode.extras(), self.extras());
        let skip_softmax = if more.skip_softmax > 0.0 { more.skip_softmax } else { own.skip_softmax };
        mode.with(Extras { skip_softmax, share_groups: own.share_groups || more.share_groups })
    }

    /// What goes before a mode's name.
    pub fn prefix(self) -> String {
        self.extras().to_string()
    }
}

impl BudgetArgs {
    /// The mode with these budgets; an error where nothing in it has any.
    pub fn apply(self, mode: AttentionMode) -> Result<AttentionMode> {
        match (self.min_budget, self.max_budget, mode) {
            (None, None, mode) => Ok(mode),
            (least, most, AttentionMode::Uniform(pattern @ HeadPattern::Flex { .. })) => {
                Ok(AttentionMode::Uniform(pattern.with_budget([least, most])?))
            }
            (_, _, mode) => {
                Err(Error::invalid(format!("--min-budget and --max-budget go with flex, found {}", mode.name())))
            }
        }
    }
}

/// Reads one PATTERN for all heads (also behind `skip_softmax:FACTOR+` and `share_groups+`), `config` with `--patterns FILE`, or `config:FILE`. `config` alone takes the patterns
/// of the model ([`Model::patterns`]), where there are some.
pub fn attention_mode(text: &str, patterns: Option<&Path>, model: Option<&Model>) -> Result<AttentionMode> {
    if let Some(rest) = text.strip_prefix("skip_softmax:") {
        let (number, over) = rest.split_once('+').ok_or_else(|| {
            Error::invalid(format!("pattern {text:?}: expected skip_softmax:FACTOR+PATTERN, found no `+`"))
        })?;
        let skip_softmax = factor(number).map_err(|e| Error::invalid(format!("skip_softmax: {e}")))?;
        return Ok(ExtraArgs { skip_softmax, share_groups: false }.apply(attention_mode(over, patterns, model)?));
    }
    if let Some(over) = text.strip_prefix("share_groups+") {
        return Ok(ExtraArgs { skip_softmax: 0.0, share_groups: true }.apply(attention_mode(over, patterns, model)?));
    }
    let file = match text.strip_prefix("config:") {
        Some(path) => Some(Path::new(path)),
        None if text == "config" => patterns,
        None if patterns.is_some() => {
            return Err(Error::invalid(format!("--patterns goes with `config`, found the pattern {text:?}")));
        }
        None if text.starts_with("triangle_mix") => return triangle_mix(text, model),
        None => return Ok(AttentionMode::Uniform(one_pattern(text)?)),
    };
    match (file, model) {
        (Some(file), _) => Ok(AttentionMode::Config(PatternConfig::read(file)?)),
        (None, Some(model)) => Ok(AttentionMode::Config(model.patterns()?.1)),
        (None, None) => Err(Error::invalid("pattern `config` needs --patterns FILE (or write config:FILE)")),
    }
}

/// A pattern of all heads; where there is none of the name, the error says what else there is beside patterns.
fn one_pattern(text: &str) -> Result<HeadPattern> {
    text.parse().map_err(|e| match e {
        Error::Invalid(what) if what.ends_with(GRAMMAR) => {
            Error::invalid(format!("{what} | triangle_mix:START_LAYER[+MODE] | config | config:FILE"))
        }
        other => other,
    })
}

/// `triangle_mix:START_LAYER`, alone or with `+` and the mode of the layers below.
fn triangle_mix(text: &str, model: Option<&Model>) -> Result<AttentionMode> {
    let (own, below) = text.split_once('+').unwrap_or((text, "dense"));
    let start_layer = own.strip_prefix("triangle_mix:").and_then(|n| n.parse().ok());
    let start_layer = start_layer.ok_or_else(|| {
        Error::invalid(format!("pattern {text:?}: expected triangle_mix:START_LAYER or triangle_mix:START_LAYER+MODE"))
    })?;
    Ok(AttentionMode::TriangleMix { start_layer, below: Box::new(attention_mode(below, None, model)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_lists_every_pattern() {
        assert!(GRAMMAR.split(" | ").all(|form| PATTERNS.contains(&format!("\n  {form} "))), "{PATTERNS}");
    }

    #[test]
    fn patterns_and_files_are_told_apart() {
        assert_eq!(attention_mode("block_sparse:3", None, None).unwrap().name(), "block_sparse:3");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        std::fs::write(&path, r#"[{"0": ["stream_llm", 100, 200, 1]}]"#).unwrap();
        let by_flag = attention_mode("config", Some(&path), None).unwrap();
        let in_place = attention_mode(&format!("config:{}", path.display()), None, None).unwrap();
        assert_eq!(by_flag, in_place);
        let error = |text, file| attention_mode(text, file, None).unwrap_err().to_string();
        assert!(error("triangle_mix:x", None).contains("START_LAYER"));
        let mix = |text| attention_mode(text, None, None).unwrap().name();
        assert_eq!(mix("triangle_mix:16"), "triangle_mix:16");
        assert_eq!(mix("triangle_mix:16+flex:0.9"), "triangle_mix:16+flex:0.9");
        assert_eq!(mix("auto"), "auto");
        assert_eq!(mix("skip_softmax:500+flex:0.9"), "skip_softmax:500+flex:0.9");
        assert_eq!(mix("skip_softmax:0+flex:0.9"), "flex:0.9");
        assert_eq!(mix("share_groups+skip_softmax:9+flex:0.9"), "skip_softmax:9+share_groups+flex:0.9");
        assert!(error("skip_softmax:-1+dense", None).contains("from 0 on"));
        assert!(error("densest", None).ends_with("config | config:FILE"));
        assert!(error("dense", Some(path.as_path())).contains("\"dense\""));
        assert!(error("config", None).contains("--patterns"));
        let needle = crate::embedded::needle().unwrap();
        assert!(attention_mode("config", None, Some(&needle)).unwrap_err().to_string().contains("--patterns"));
    }
}
