//! [`ask`]: a prompt through the engine in one attention mode, and its answers scored.

use super::runner::{Cell, Row, Suite};
use super::{Asked, Metric, Sample, needle};
use crate::backend::Backend;
use crate::engine::{Engine, Prefill, Progress};
use crate::pattern::AttentionMode;
use crate::sample::argmax;
use crate::{Error, Result};
use std::sync::atomic::Ordering;

/// An evaluation whose prompts are questions, answered and scored as [`ask`] does: a [`Suite`] but for that.
pub trait Questions: Sync {
    /// As [`Suite::cells`].
    fn cells(&self) -> Vec<Cell>;

    /// As [`Suite::prompt`].
    fn prompt(&self, cell: &Cell) -> Result<Sample>;
}

impl<T: Questions> Suite for T {
    type Prompt = Sample;

    fn cells(&self) -> Vec<Cell> {
        Questions::cells(self)
    }

    fn prompt(&self, cell: &Cell) -> Result<Sample> {
        Questions::prompt(self, cell)
    }

    fn fingerprint(prompt: &Sample) -> u64 {
        prompt.fingerprint()
    }

    fn measure<B: Backend>(
        &mut self,
        engine: &mut Engine<B>,
        cell: &Cell,
        prompt: &Sample,
        mode: &AttentionMode,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Row> {
        measure(engine, cell, prompt, mode, progress)
    }
}

/// What a mode made of a prompt.
#[derive(Clone, Debug)]
pub struct Answered {
    /// One a question.
    pub answers: Vec<String>,
    /// Mean over the questions, 0 to 1.
    pub score: f64,
    /// Whether pre-fill's own token begins a reference, for every question; none where the metric has no value to find.
    pub first_token: Option<bool>,
    /// Computed pairs over causal pairs of the first question's pre-fill.
    pub density: f64,
    /// Seconds of the first question's pre-fill.
    pub prefill_s: f64,
}

/// Greedy answers to all questions of a prompt. The keys and values of the document are computed once; questions after
/// the first are read behind them, in the same mode.
///
/// An answer ends with the model's end token, at [`Sample::max_new`] tokens, or where nothing that could follow would
/// change its score.
pub fn ask<B: Backend>(
    engine: &mut Engine<B>,
    sample: &Sample,
    mode: &AttentionMode,
    progress: &mut dyn FnMut(Progress),
) -> Result<Answered> {
    let text = engine.model().text()?.clone();
    let Some(first) = sample.questions.first() else {
        return Err(Error::invalid("a prompt without a question"));
    };
    engine.reset();
    let mut out = Answered { answers: Vec::new(), score: 0.0, first_token: None, density: 0.0, prefill_s: 0.0 };
    let mut found = true;
    for (i, asked) in sample.questions.iter().enumerate() {
        let prefill = match i {
            0 => engine.prefill(&asked.ids, mode, progress)?,
            _ => further(engine, first, asked, mode)?,
        };
        if i == 0 {
            (out.density, out.prefill_s) = (prefill.density, prefill.seconds);
        }
        let token = text.tokenizer.decode(&[argmax(&prefill.logits)]);
        let answer = answer(engine, prefill.logits, asked, sample, &|ids| text.tokenizer.decode(ids))?;
        found &= begins_a_reference(&token, &asked.references);
        out.score += match sample.metric {
            Metric::Code => {
                let judged = needle::judge(&asked.references[0], token.trim_start(), answer.trim_start());
                f64::from(u8::from(judged))
            }
            metric => metric.score(answer.trim(), &asked.references),
        };
        out.answers.push(answer);
    }
    out.score /= sample.questions.len() as f64;
    let has_value = !matches!(sample.metric, Metric::F1English | Metric::F1Chinese | Metric::RougeLSum);
    out.first_token = has_value.then_some(found);
    Ok(out)
}

/// [`ask`] as a row of its cell.
pub fn measure<B: Backend>(
    engine: &mut Engine<B>,
    cell: &Cell,
    sample: &Sample,
    mode: &AttentionMode,
    progress: &mut dyn FnMut(Progress),
) -> Result<Row> {
    let Answered { answers, score, first_token, density, prefill_s } = ask(engine, sample, mode, progress)?;
    Ok(Row {
        tokens: sample.tokens(),
        references: sample.questions.iter().flat_map(|q| q.references.clone()).collect(),
        score,
        density,
        prefill_s,
        first_token,
        answers,
        ..Row::of(cell)
    })
}

/// Another question behind the document that is in the cache.
fn further<B: Backend>(engine: &mut Engine<B>, first: &Asked, asked: &Asked, mode: &AttentionMode) -> Result<Prefill> {
    let same = first.ids.iter().zip(&asked.ids).take_while(|(a, b)| a == b).count();
    // Something must be left to pre-fill: its last row gives the first token.
    let keep = same.min(asked.ids.len() - 1);
    engine.truncate(keep);
    engine.prefill(&asked.ids[keep..], mode, &mut |_| ())
}

fn answer<B: Backend>(
    engine: &mut Engine<B>,
    mut logits: Vec<f32>,
    asked: &Asked,
    sample: &Sample,
    decode: &dyn Fn(&[u32]) -> String,
) -> Result<String> {
    let interrupt = engine.options().interrupt.clone();
    let mut ids = Vec::new();
    while ids.len() < sample.max_new {
        let id = argmax(&logits);
        if engine.model().eos.contains(&id) {
            break;
        }
        ids.push(id);
        if sample.metric.settled(decode(&ids).trim_start(), &asked.references) {
            break;
        }
        if interrupt.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        if ids.len() < sample.max_new {
            logits = engine.decode(id)?;
        }
    }
    Ok(decode(&ids))
}

fn begins_a_reference(token: &str, references: &[String]) -> bool {
    let token = token.trim_start().to_lowercase();
    let begins = |reference: &String| {
        let reference = reference.to_lowercase();
        reference.starts_with(&token) || token.starts_with(&reference)
    };
    !token.is_empty() && references.iter().any(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_begins_a_reference_or_holds_it() {
        let references = ["493".to_string(), "Abbey".to_string()];
        assert!(begins_a_reference("4", &references));
        assert!(begins_a_reference(" abbe", &references));
        assert!(begins_a_reference("4930", &references));
        assert!(!begins_a_reference(" ", &references) && !begins_a_reference("93", &references));
    }
}
