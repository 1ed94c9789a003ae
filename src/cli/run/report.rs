//! What `--verify` and `--report` tell of a pre-fill.

use super::RunArgs;
use crate::cli::console::{self, Console};
use crate::engine::{HeadStats, Prefill};
use crate::insight::Insight;
use crate::{Result, files};
use serde_json::{Value, json};

/// `--verify` and `--report`.
pub(super) fn look(
    prefill: &Prefill,
    insight: &Insight,
    [model, attention]: [&str; 2],
    args: &RunArgs,
    console: &Console,
) -> Result<()> {
    if args.verify {
        console.note(&verdict(insight));
    }
    let Some(path) = &args.report else { return Ok(()) };
    let text = match path.extension().is_some_and(|e| e.eq_ignore_ascii_case("html")) {
        false => report_json(prefill, insight, [model, attention]).to_string(),
        true => report_page(prefill, insight, [model, attention]),
    };
    files::write(path, text.as_bytes())
}

/// The line of `--verify`: recall, and the layers that are worst.
fn verdict(insight: &Insight) -> String {
    let layers = &insight.layers;
    let worst = |of: &dyn Fn(usize) -> f64| (0..layers.len()).max_by(|a, b| of(*a).total_cmp(&of(*b))).unwrap_or(0);
    let error = |l: usize| layers[l].last_rows_error;
    let least = |l: usize| layers[l].recall.iter().copied().fold(1.0, f64::min);
    let (by_error, by_recall) = (worst(&error), worst(&|l| -least(l)));
    let all = layers.iter().flat_map(|l| &l.recall);
    let mean = all.sum::<f64>() / layers.iter().map(|l| l.recall.len()).sum::<usize>().max(1) as f64;
    format!(
        "verify: recall {mean:.4} in the mean, at least {:.4} (layer {by_recall}); last rows differ from dense by at most \
         {:.2e} (layer {by_error})",
        least(by_recall),
        error(by_error)
    )
}

/// `--report` as JSON: layers of heads.
fn report_json(prefill: &Prefill, insight: &Insight, [model, attention]: [&str; 2]) -> Value {
    let layers = prefill.heads.iter().zip(&insight.layers).map(|(heads, insight)| {
        let kept = insight.recall.iter().zip(&insight.error);
        let head = |(head, (recall, error)): (&HeadStats, (&f64, &f64))| {
            json!({"pattern": head.pattern.to_string(), "density": head.density, "recall": recall, "error": error})
        };
        let heads: Vec<Value> = heads.iter().zip(kept).map(head).collect();
        json!({"heads": heads, "last_rows_error": insight.last_rows_error})
    });
    json!({
        "model": model, "attention": attention, "tokens": prefill.tokens, "density": prefill.density,
        "layers": layers.collect::<Vec<Value>>(),
    })
}

/// `--report` as HTML: a table of layers x heads.
fn report_page(prefill: &Prefill, insight: &Insight, [model, attention]: [&str; 2]) -> String {
    let (model, attention) = (console::escape(model), console::escape(attention));
    let heads: String = (0..prefill.heads.first().map_or(0, Vec::len)).map(|head| format!("<th>{head}")).collect();
    let mut out = format!(
        "<!doctype html><meta charset=utf-8><title>{model}</title><style>body{{font:13px sans-serif;margin:1.5em}}\
         table{{border-collapse:collapse}}td,th{{padding:2px 6px;text-align:right;border:1px solid #ddd}}</style>\
         <h1>{model}, {attention}</h1><p>{} tokens, density {:.3}. A cell is a head: density, and below it the attention \
         mass that it keeps, red where that is less than 0.9. Point at it for its pattern. Behind each layer: how far its \
         last rows are from dense attention on the same input, relative.</p>\n<table><tr><th>layer{heads}<th>last rows</tr>\n",
        prefill.tokens, prefill.density
    );
    for (layer, insight) in insight.layers.iter().enumerate() {
        out += &format!("<tr><th>{layer}");
        for (head, recall) in prefill.heads[layer].iter().zip(&insight.recall) {
            let blue = 255.0 - 130.0 * head.density;
            let red = if *recall < 0.9 { "color:#b00" } else { "" };
            out += &format!(
                "<td title=\"{}\" style=\"background:rgb({blue:.0},{blue:.0},255);{red}\">{:.3}<br>{recall:.3}",
                head.pattern, head.density
            );
        }
        out += &format!("<td>{:.1e}</tr>\n", insight.last_rows_error);
    }
    out + "</table>\n"
}
