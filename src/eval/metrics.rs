//! How an answer is scored: every metric of the benchmarks, each from 0 to 1.

use std::collections::HashMap;

/// A metric. Its definition is the benchmark's; the score of a text never depends on the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The code, and then no further digit (`needle::judge`, which also wants the first digit from pre-fill).
    Code,
    /// RULER: share of the references found anywhere, letter case aside.
    All,
    /// RULER's questions: whether any reference is found, letter case aside.
    Any,
    /// InfiniteBench passkey, number string: the first run of digits is the reference.
    FirstInteger,
    /// InfiniteBench math_find: the first number, with its decimals, equals the reference.
    FirstNumber,
    /// InfiniteBench code_run: the last word is the reference as a number.
    LastInteger,
    /// InfiniteBench math_calc: share of the references that stand first and in order among the answer's numbers.
    Leading,
    /// InfiniteBench kv_retrieval: the reference is one of the words.
    Word,
    /// InfiniteBench longdialogue: a reference's words stand in the answer in this order, letter case aside.
    Name,
    /// InfiniteBench choice: references are the option's text and its letter, A to D.
    Choice,
    /// InfiniteBench code_debug: references are the function's name and its letter.
    Debug,
    /// SQuAD's F1 over words, the best of the references.
    F1English,
    /// The same over characters, for Chinese.
    F1Chinese,
    /// ROUGE-L over sentences on lines, union of common subsequences (`rougeLsum`), without stemming.
    RougeLSum,
}

impl Metric {
    /// The score of an answer, 0 to 1.
    pub fn score(self, answer: &str, references: &[String]) -> f64 {
        let yes = |right: bool| f64::from(u8::from(right));
        let first = references.first().map_or("", String::as_str);
        match self {
            Self::Code => yes(answer.strip_prefix(first).is_some_and(|rest| !rest.starts_with(is_digit))),
            Self::All => {
                let answer = answer.to_lowercase();
                let found = references.iter().filter(|r| answer.contains(&r.to_lowercase())).count();
                found as f64 / references.len().max(1) as f64
            }
            Self::Any => {
                let answer = answer.to_lowercase();
                yes(references.iter().any(|r| answer.contains(&r.to_lowercase())))
            }
            Self::FirstInteger => yes(answer.split(|c| !is_digit(c)).find(|run| !run.is_empty()) == Some(first)),
            Self::FirstNumber => yes(match (first_number(answer), first.parse::<f64>()) {
                (Some(found), Ok(wanted)) => found == wanted,
                _ => false,
            }),
            Self::LastInteger => {
                let words = answer.replace(['\n', '.', '`', '\'', '"', ':'], " ");
                let last = words.split_whitespace().last().and_then(|word| word.parse::<i64>().ok());
                yes(last.is_some() && last == first.parse().ok())
            }
            Self::Leading => {
                let numbers = answer.split(|c| !is_digit(c)).filter(|run| !run.is_empty());
                let same = numbers.zip(references).take_while(|(found, wanted)| found.parse::<u64>() == wanted.parse());
                same.count() as f64 / references.len().max(1) as f64
            }
            Self::Word => yes(words_of(answer).iter().any(|word| word == first)),
            Self::Name => {
                let answer = words_of(&answer.to_uppercase());
                let holds = |name: &String| {
                    let name = words_of(&name.to_uppercase());
                    !name.is_empty() && answer.windows(name.len()).any(|window| window == name)
                };
                yes(references.iter().any(holds))
            }
            Self::Choice => yes(chosen(answer, references)),
            Self::Debug => yes(debugged(answer, references)),
            Self::F1English => best(references, |r| f1(&squad_words(answer), &squad_words(r))),
            Self::F1Chinese => best(references, |r| f1(&chinese_characters(answer), &chinese_characters(r))),
            Self::RougeLSum => best(references, |r| rouge_l_sum(answer, r)),
        }
    }

    /// Whether nothing that may still follow can change the score: then an answer need not be decoded to its end.
    pub fn settled(self, answer: &str, references: &[String]) -> bool {
        let complete_run = || {
            let from = answer.find(is_digit)?;
            answer[from..].find(|c| !is_digit(c)).map(|_| ())
        };
        match self {
            Self::All | Self::Any => self.score(answer, references) == 1.0,
            Self::Code => answer.len() > references.first().map_or(0, String::len),
            Self::FirstInteger => complete_run().is_some(),
            Self::FirstNumber => {
                let tail = answer.find(is_digit).map(|from| &answer[from..]);
                tail.is_some_and(|tail| tail.contains(|c: char| !is_digit(c) && c != '.'))
            }
            // A word is whole once something stands behind it.
            Self::Word => {
                let whole = answer.char_indices().next_back().map_or("", |(last, _)| &answer[..last]);
                let ended = answer.ends_with(|c: char| c.is_whitespace() || SEPARATORS.contains(&c));
                ended && self.score(whole, references) == 1.0
            }
            Self::Choice => {
                let mut letters = answer.trim_start().chars();
                matches!(letters.next(), Some('A'..='D')) && letters.next().is_some_and(|c| !c.is_alphanumeric())
            }
            Self::Leading => {
                let runs = answer.split(|c| !is_digit(c)).filter(|run| !run.is_empty()).count();
                runs > references.len()
            }
            Self::LastInteger | Self::Name | Self::Debug => false,
            Self::F1English | Self::F1Chinese | Self::RougeLSum => false,
        }
    }
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

/// What InfiniteBench replaces by spaces before it looks at words.
const SEPARATORS: [char; 10] = ['\n', ':', '"', '\'', '.', ',', '?', '!', '{', '}'];

fn words_of(text: &str) -> Vec<String> {
    text.replace(SEPARATORS, " ").split_whitespace().map(str::to_string).collect()
}

fn best(references: &[String], score: impl Fn(&str) -> f64) -> f64 {
    references.iter().map(|r| score(r)).fold(0.0, f64::max)
}

/// Digits, and a dot with digits behind it.
fn first_number(text: &str) -> Option<f64> {
    let tail = &text[text.find(is_digit)?..];
    let whole = tail.find(|c| !is_digit(c)).unwrap_or(tail.len());
    let decimals = tail[whole..].strip_prefix('.').map_or(0, |rest| rest.find(|c| !is_digit(c)).unwrap_or(rest.len()));
    tail[..whole + if decimals > 0 { 1 + decimals } else { 0 }].parse().ok()
}

/// The first letter; else what stands behind a phrase that announces the answer; else the first lone A, B, C or D.
fn chosen(answer: &str, references: &[String]) -> bool {
    let right = |text: &str| references.iter().any(|r| text == r);
    let answer = answer.trim();
    match answer.chars().next() {
        None => return false,
        Some(letter @ 'A'..='D') if !answer.chars().nth(1).is_some_and(char::is_alphanumeric) => {
            return right(&letter.to_string());
        }
        _ => {}
    }
    if right(answer) {
        return true;
    }
    let words = answer.replace(SEPARATORS, " ").split_whitespace().collect::<Vec<_>>().join(" ");
    for announced in ["answer is", "answer", "option is"] {
        if let Some((_, rest)) = words.split_once(announced) {
            let rest = rest.trim_start();
            // A letter must stand alone: "answer is Doubtful" chooses no D.
            let begins = |r: &String| {
                rest.strip_prefix(r.as_str()).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
            };
            return references.iter().any(begins);
        }
    }
    words.split(' ').find(|word| matches!(*word, "A" | "B" | "C" | "D")).is_some_and(right)
}

/// The last lone letter A to J; without one the function's name, at the beginning or behind an announcing phrase.
fn debugged(answer: &str, references: &[String]) -> bool {
    let answer = answer.trim();
    let lone = answer.split(|c: char| !c.is_alphanumeric() && c != '_').rfind(|word| {
        let mut letters = word.chars();
        letters.next().is_some_and(|c| ('A'..='J').contains(&c)) && letters.next().is_none()
    });
    if let Some(letter) = lone {
        return references.iter().any(|r| r == letter);
    }
    let begins = |text: &str| {
        let text = text.trim_start_matches([' ', '`', '\'', '"', '(']);
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        references.iter().any(|r| !r.is_empty() && text.strip_prefix(r.as_str()).is_some_and(ends))
    };
    begins(answer)
        || ["answer is:", "error is:", "answer:", "option is:"]
            .iter()
            .filter_map(|announced| answer.split_once(announced))
            .any(|(_, rest)| begins(rest))
}

/// SQuAD's normal form: lower case, no punctuation, no articles.
fn squad_words(text: &str) -> Vec<String> {
    let bare: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    bare.split_whitespace().filter(|word| !matches!(*word, "a" | "an" | "the")).map(str::to_string).collect()
}

/// Characters without white space and punctuation, Chinese or not.
fn chinese_characters(text: &str) -> Vec<String> {
    let is_mark = |c: char| {
        c.is_whitespace()
            || c.is_ascii_punctuation()
            || ('\u{3000}'..='\u{303f}').contains(&c)
            || ('\u{2010}'..='\u{2027}').contains(&c)
            || ('\u{ff01}'..='\u{ff0f}').contains(&c)
            || ('\u{ff1a}'..='\u{ff20}').contains(&c)
            || ('\u{ff3b}'..='\u{ff40}').contains(&c)
            || ('\u{ff5b}'..='\u{ff65}').contains(&c)
    };
    text.to_lowercase().chars().filter(|&c| !is_mark(c)).map(String::from).collect()
}

fn f1(answer: &[String], reference: &[String]) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    reference.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let mut same = 0;
    for word in answer {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            same += 1;
        }
    }
    harmonic(same, answer.len(), reference.len())
}

/// F1 of `same` hits: precision over `answer`, recall over `reference`.
fn harmonic(same: usize, answer: usize, reference: usize) -> f64 {
    if same == 0 { 0.0 } else { 2.0 * same as f64 / (answer + reference) as f64 }
}

/// ROUGE-L at the level of a summary: for each reference line the union of its longest common subsequences with all
/// lines of the answer, each word of either side counted once.
fn rouge_l_sum(answer: &str, reference: &str) -> f64 {
    let lines = |text: &str| -> Vec<Vec<String>> {
        let words = |line: &str| -> Vec<String> {
            let plain: String =
                line.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { ' ' }).collect();
            plain.split_whitespace().map(str::to_string).collect()
        };
        text.lines().map(words).filter(|words| !words.is_empty()).collect()
    };
    let (answer, reference) = (lines(answer), lines(reference));
    let counts = |lines: &[Vec<String>]| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        lines.iter().flatten().for_each(|word| *counts.entry(word.clone()).or_default() += 1);
        counts
    };
    let (mut left_answer, mut left_reference) = (counts(&answer), counts(&reference));
    let mut hits = 0;
    for line in &reference {
        let mut union = vec![false; line.len()];
        for other in &answer {
            common_subsequence(line, other).into_iter().for_each(|at| union[at] = true);
        }
        for (word, _) in line.iter().zip(&union).filter(|(_, hit)| **hit) {
            if let (Some(a @ 1..), Some(r @ 1..)) = (left_answer.get_mut(word), left_reference.get_mut(word)) {
                (*a, *r) = (*a - 1, *r - 1);
                hits += 1;
            }
        }
    }
    harmonic(hits, answer.iter().map(Vec::len).sum(), reference.iter().map(Vec::len).sum())
}

/// Places in `a` of a longest common subsequence with `b`.
fn common_subsequence(a: &[String], b: &[String]) -> Vec<usize> {
    let width = b.len() + 1;
    let mut length = vec![0u32; (a.len() + 1) * width];
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            length[i * width + j] = match a[i - 1] == b[j - 1] {
                true => length[(i - 1) * width + j - 1] + 1,
                false => length[(i - 1) * width + j].max(length[i * width + j - 1]),
            };
        }
    }
    let (mut i, mut j, mut places) = (a.len(), b.len(), Vec::new());
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            places.push(i - 1);
            (i, j) = (i - 1, j - 1);
        } else if length[i * width + j - 1] > length[(i - 1) * width + j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(metric: Metric, answer: &str, references: &[&str]) -> f64 {
        metric.score(answer, &references.iter().map(|r| r.to_string()).collect::<Vec<_>>())
    }

    fn settled(metric: Metric, answer: &str, references: &[&str]) -> bool {
        metric.settled(answer, &references.iter().map(|r| r.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn ruler_counts_references_found_in_any_case() {
        assert_eq!(score(Metric::All, "They are 123 and 456.", &["123", "456", "789", "555"]), 0.5);
        assert_eq!(score(Metric::All, "ABCDE abcde", &["aBcDe"]), 1.0);
        assert_eq!(score(Metric::All, "", &["1"]), 0.0);
        assert_eq!(score(Metric::Any, "in the city of Paris", &["London", "paris"]), 1.0);
        assert_eq!(score(Metric::Any, "Rome", &["London", "paris"]), 0.0);
        assert!(settled(Metric::All, "123, 456", &["456", "123"]) && !settled(Metric::All, "123", &["456", "123"]));
    }

    #[test]
    fn the_first_integer_is_the_first_run_of_digits() {
        assert_eq!(score(Metric::FirstInteger, "The pass key is 71432. 71432", &["71432"]), 1.0);
        assert_eq!(score(Metric::FirstInteger, "1. 71432", &["71432"]), 0.0);
        assert_eq!(score(Metric::FirstInteger, "714329", &["71432"]), 0.0);
        // Digits are compared as text: a leading zero counts.
        assert_eq!(score(Metric::FirstInteger, "071432", &["71432"]), 0.0);
        assert_eq!(score(Metric::FirstInteger, "none", &["71432"]), 0.0);
        assert!(settled(Metric::FirstInteger, " 71432.", &["71432"]) && !settled(Metric::FirstInteger, "7143", &["7"]));
    }

    #[test]
    fn numbers_have_decimals_and_words_may_be_numbers() {
        assert_eq!(score(Metric::FirstNumber, "It is 42.", &["42"]), 1.0);
        assert_eq!(score(Metric::FirstNumber, "42.5, not 42", &["42"]), 0.0);
        assert_eq!(score(Metric::FirstNumber, "42.50", &["42.5"]), 1.0);
        assert!(settled(Metric::FirstNumber, "42, ", &["42"]) && !settled(Metric::FirstNumber, "42.", &["42"]));
        assert_eq!(score(Metric::LastInteger, "func_1(3) returns: -7.", &["-7"]), 1.0);
        assert_eq!(score(Metric::LastInteger, "-7 is it", &["-7"]), 0.0);
        assert_eq!(score(Metric::LastInteger, "", &["-7"]), 0.0);
        assert_eq!(score(Metric::Leading, "[1, 4, 9, 2]", &["1", "4", "8", "2"]), 0.5);
        assert_eq!(score(Metric::Leading, "0, 1", &["1"]), 0.0);
        assert!(settled(Metric::Leading, "1, 4, 8", &["1", "4"]) && !settled(Metric::Leading, "1, 4", &["1", "4"]));
    }

    #[test]
    fn a_value_is_a_word_among_json_marks() {
        let (uuid, other) = ("2a8d601d-1d69-4e64-9f90-8ad825a74195", "9a8d601d-1d69-4e64-9f90-8ad825a74195");
        assert_eq!(score(Metric::Word, &format!("{{\"k\": \"{uuid}\"}}"), &[uuid]), 1.0);
        assert_eq!(score(Metric::Word, &format!("{uuid}x"), &[uuid]), 0.0);
        assert_eq!(score(Metric::Word, other, &[uuid]), 0.0);
        assert!(settled(Metric::Word, &format!("{uuid}\""), &[uuid]));
        assert!(!settled(Metric::Word, uuid, &[uuid]), "a letter may still follow");
    }

    #[test]
    fn choices_are_letters_wherever_they_stand() {
        let right = ["The lighthouse", "B"];
        for answer in ["B", "B. The lighthouse", "The answer is B", "The lighthouse", "I think B is it", "answer: B."] {
            assert_eq!(score(Metric::Choice, answer, &right), 1.0, "{answer}");
        }
        for answer in ["", "A", "C. The lighthouse", "The answer is Bad", "The correct answer is: D", "I say A or B"] {
            assert_eq!(score(Metric::Choice, answer, &right), 0.0, "{answer}");
        }
        assert!(settled(Metric::Choice, "B.", &right) && !settled(Metric::Choice, "B", &right));
        assert!(!settled(Metric::Choice, "Because", &right));
    }

    #[test]
    fn a_bug_is_named_by_letter_or_by_function() {
        let right = ["load_config", "C"];
        for answer in ["C", "C. load_config", "load_config", "The answer is: load_config", "It must be (C)"] {
            assert_eq!(score(Metric::Debug, answer, &right), 1.0, "{answer}");
        }
        for answer in ["A", "load_config_file", "The answer is: other", "C, no: A", ""] {
            assert_eq!(score(Metric::Debug, answer, &right), 0.0, "{answer}");
        }
    }

    #[test]
    fn f1_is_that_of_squad() {
        assert_eq!(score(Metric::F1English, "The Eiffel Tower!", &["eiffel tower"]), 1.0);
        // Two of three words against two of two.
        assert!((score(Metric::F1English, "in Eiffel Tower", &["the Eiffel tower"]) - 0.8).abs() < 1e-12);
        assert_eq!(score(Metric::F1English, "the", &["the"]), 0.0);
        assert_eq!(score(Metric::F1English, "b b b", &["b"]), 0.5);
        assert_eq!(score(Metric::F1English, "x", &["y", "x"]), 1.0);
        assert_eq!(score(Metric::F1Chinese, "北京。", &["北京"]), 1.0);
        assert!((score(Metric::F1Chinese, "在 北京", &["北京"]) - 0.8).abs() < 1e-12);
    }

    /// Lin 2004, sections 3.1 and 3.2: the examples of the paper that defines ROUGE-L.
    #[test]
    fn rouge_l_agrees_with_its_paper() {
        let reference = "police killed the gunman";
        assert_eq!(score(Metric::RougeLSum, "police kill the gunman", &[reference]), 0.75);
        assert_eq!(score(Metric::RougeLSum, "the gunman kill police", &[reference]), 0.5);
        assert_eq!(score(Metric::RougeLSum, "the gunman police killed", &[reference]), 0.5);
        // The union of w1 w2 and of w1 w3 w5 is four of five words; precision is over ten.
        let answer = "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5";
        let expected = 2.0 * 4.0 / (10.0 + 5.0);
        assert!((score(Metric::RougeLSum, answer, &["w1 w2 w3 w4 w5"]) - expected).abs() < 1e-12);
        assert_eq!(score(Metric::RougeLSum, "Same, here.\nAnd there", &["same here\n\nand THERE!"]), 1.0);
        assert_eq!(score(Metric::RougeLSum, "", &["x"]), 0.0);
    }

    #[test]
    fn names_are_whole_words_in_order() {
        assert_eq!(score(Metric::Name, "it is Mary-Ann Smith.", &["MARY-ANN SMITH"]), 1.0);
        assert_eq!(score(Metric::Name, "SMITHERS", &["SMITH"]), 0.0);
        assert_eq!(score(Metric::Name, "Smith, Mary", &["MARY SMITH"]), 0.0);
        assert_eq!(score(Metric::Code, "493821.", &["493821"]), 1.0);
        assert_eq!(score(Metric::Code, "4938210", &["493821"]), 0.0);
    }
}
