//! Records of the benchmark's files as prompts.

use super::super::{Draft, Metric, Question};
use super::made::{CALC_INTRO, CODE_INTRO, KEY_INTRO, KV_INTRO, key_stem};
use super::{CALC_VALUES, scoring};
use crate::{Error, Result};
use serde_json::Value;

/// A record of the data set as a prompt.
pub(super) fn draft_of(task: &str, record: &Value) -> Result<Draft> {
    let text = |key: &str| record[key].as_str().unwrap_or_default().to_string();
    let (context, input) = (text("context"), text("input"));
    let mut references: Vec<String> = match &record["answer"] {
        Value::Array(list) => list.iter().flat_map(flat).collect(),
        one => flat(one),
    };
    let options: Vec<String> = record["options"].as_array().into_iter().flatten().flat_map(flat).collect();
    let lettered: Vec<String> =
        options.iter().zip('A'..).map(|(option, letter)| format!("{letter}. {option}")).collect();
    let lettered = lettered.join("\n");
    if !options.is_empty() {
        // The right option's letter is as right as its text.
        let letter = options.iter().zip('A'..).find(|(option, _)| references.first() == Some(option));
        references.extend(letter.map(|(_, letter)| letter.to_string()));
    }
    if references.is_empty() || (context.is_empty() && input.is_empty()) {
        let found: String = record.to_string().chars().take(200).collect();
        let what = format!("{task}: expected context, input and answer in its record, found {found}");
        return Err(Error::invalid(what));
    }
    let (intro, question, stem) = match task {
        "passkey" | "number_string" => (KEY_INTRO, input, key_stem(task)),
        "kv_retrieval" => (KV_INTRO, input, "The value is:"),
        "longbook_sum_eng" => ("Read this book.", "Summarise the book in a few paragraphs.".into(), "Summary:"),
        "longbook_qa_eng" => ("Read the book, then answer the question as briefly as you can.", input, "Answer:"),
        "longbook_choice_eng" => (
            "Read the book, then answer the question.",
            format!("{input}\n{lettered}"),
            "The letter of the right answer is",
        ),
        "longdialogue_qa_eng" => (
            "In the script below one name is replaced by \"$$MASK$$\". Find out whose name it is.",
            input,
            "The name behind $$MASK$$ is probably",
        ),
        "longbook_qa_chn" => ("请读下面的书，然后尽量简短地回答问题。", input, "答案："),
        "code_debug" => (
            "In the Python code below exactly one function has a planted error that makes it crash.",
            format!("{input}\n{lettered}"),
            "The right option is:",
        ),
        "code_run" => (CODE_INTRO, input, "It returns"),
        "math_find" => ("", format!("{}\n{input}", text("prompt")), "The number is"),
        _ => (CALC_INTRO, input, "The values are:"),
    };
    let context = if intro.is_empty() { context } else { format!("{intro}\n\n{context}") };
    let (metric, max_new) = scoring(task);
    if metric == Metric::Leading {
        references.truncate(CALC_VALUES);
    }
    let questions = vec![Question { text: question.trim().to_string(), stem: stem.into(), references }];
    Ok(Draft { context, questions, metric, max_new })
}

/// Texts and numbers of a JSON value, lists within lists too; an empty text, which any answer holds, is none.
fn flat(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().flat_map(flat).collect(),
        Value::Null => Vec::new(),
        Value::String(text) if text.trim().is_empty() => Vec::new(),
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    }
}
