//! What a config may ask for that is not built.

use super::super::family::{Family, Window};
use super::super::fields::Fields;
use crate::{Error, Result};
use serde_json::Value;

/// What a supported family can ask for that this crate does not compute. Each would give wrong logits, not an error.
pub(super) fn refuse_what_is_not_built(f: &Fields, family: &Family) -> Result<()> {
    let refuse = |what: String| Err(Error::Unsupported(format!("{}: {what}", f.path.display())));
    if let Some(act) = f.text("hidden_act")?
        && !["silu", "swish"].contains(&act)
    {
        return refuse(format!("hidden_act {act:?}; the gated MLP here is silu"));
    }
    for key in ["num_local_experts", "num_experts", "n_routed_experts"] {
        if let Some(n) = f.count(key)?.filter(|n| *n > 1) {
            return refuse(format!("{key} = {n}; mixtures of experts are not built"));
        }
    }
    for (key, wanted) in [
        ("rmsnorm", true),
        ("post_layer_norm", true),
        ("apply_residual_connection_post_layernorm", false),
        ("original_rope", true),
        ("position_encoding_2d", false),
    ] {
        if let Some(found) = f.flag(key)?.filter(|v| *v != wanted) {
            return refuse(format!("{key} = {found}; only {wanted} is built"));
        }
    }
    if let Some(pre_seq) = f.count("pre_seq_len")?.filter(|n| *n > 0) {
        return refuse(format!("pre_seq_len = {pre_seq}; prefix tuning is not built"));
    }
    refuse_sliding_window(f, family)
}

/// A sliding window that some layer would apply within the model's positions is refused. Inert forms are common: Qwen2
/// ships one switched off, Phi-3-128k one that is longer than its positions.
fn refuse_sliding_window(f: &Fields, family: &Family) -> Result<()> {
    let Some(window) = f.count("sliding_window")? else { return Ok(()) };
    let layers = f.count(family.keys.n_layers)?.unwrap_or(0);
    let switched_on = match family.window {
        Window::WhenSet => f.flag("use_sliding_window")?.unwrap_or(true),
        Window::WhenSwitched => f.flag("use_sliding_window")?.unwrap_or(false),
    };
    let some_layer = match f.get("layer_types").and_then(Value::as_array) {
        Some(types) => types.iter().any(|t| t.as_str() != Some("full_attention")),
        None => f.count("max_window_layers")?.is_none_or(|first| first < layers),
    };
    let positions = f.count(family.keys.max_positions)?.unwrap_or(usize::MAX);
    if switched_on && some_layer && window < positions {
        let what = format!("sliding_window = {window} in use, below {} = {positions}", family.keys.max_positions);
        return Err(Error::Unsupported(format!("{}: {what}; only full attention is built", f.path.display())));
    }
    Ok(())
}
