//! RULER's 13 tasks (Hsieh et al. 2024): retrieval, tracing, aggregation and questions, at any length.
//!
//! Sizes, counts, forms of the facts, answer beginnings and metrics are the benchmark's; word lists, noise text and the
//! wording of the instructions are our own. A length counts prompt and answer in the model's tokens. A prompt has the most
//! lines, words or documents that fit, where the benchmark goes in steps of 500 words: at 4K tokens those leave up to a
//! sixth of the length empty. Essays begin at a sentence drawn for each sample.

mod draft;

use super::ask::Questions;
use super::data::{Data, QuestionSet};
use super::essay::Essay;
use super::runner::{Cell, Skip};
use super::words;
use super::{Form, Sample, Sizes};
use crate::Result;
use crate::text::Text;
use std::sync::Arc;

/// The tasks, in the benchmark's order.
pub const TASKS: [&str; 13] = [
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
];

/// The mean that counts as mastering a length: Llama-2-7B's at 4K.
pub const EFFECTIVE: f64 = 85.6;

/// Tokens of an answer.
fn max_new(task: &str) -> usize {
    match task {
        "vt" => 30,
        "cwe" => 120,
        "fwe" => 50,
        "qa_1" | "qa_2" => 32,
        _ => 128,
    }
}

/// The suite.
pub struct Ruler {
    form: Form,
    essay: Essay,
    squad: Option<QuestionSet>,
    hotpot: Option<QuestionSet>,
    tasks: Vec<String>,
    lengths: Vec<usize>,
    samples: usize,
    seed: u64,
    sizes: Sizes,
}

impl Ruler {
    /// For a model. Essays are the data's texts, or `novel` where it has none; question tasks need its question sets.
    pub fn new(
        text: Arc<Text>,
        novel: &str,
        data: &Data,
        tasks: Vec<String>,
        lengths: Vec<usize>,
        samples: usize,
        seed: u64,
    ) -> Result<Self> {
        super::known(&tasks, &TASKS)?;
        let texts: Vec<&str> = data.texts.iter().map(|(_, text)| text.as_str()).collect();
        let essay = Essay::new(&if texts.is_empty() { novel.to_string() } else { texts.join("\n") })?;
        let (squad, hotpot) = (data.squad.clone(), data.hotpot.clone());
        let form = Form::new(text)?;
        Ok(Self { form, essay, squad, hotpot, tasks, lengths, samples, seed, sizes: Sizes::default() })
    }

    /// Tasks that are asked for and lack their data.
    pub fn missing(&self) -> Vec<Skip> {
        let lacks = |task: &&String| self.questions(task).is_some_and(|set| set.is_none());
        let skip = |task: &String| Skip {
            task: task.clone(),
            length: 0,
            attention: String::new(),
            why: match task.as_str() {
                "qa_1" => "needs SQuAD: --data dev-v2.0.json".into(),
                _ => "needs HotpotQA: --data hotpot_dev_distractor_v1.json".into(),
            },
        };
        self.tasks.iter().filter(lacks).map(skip).collect()
    }

    /// The question set of a question task.
    #[expect(clippy::option_option, reason = "no question task, no data, data")]
    fn questions(&self, task: &str) -> Option<Option<&QuestionSet>> {
        match task {
            "qa_1" => Some(self.squad.as_ref()),
            "qa_2" => Some(self.hotpot.as_ref()),
            _ => None,
        }
    }

    /// The most units that a task can have.
    fn most(&self, task: &str) -> usize {
        match self.questions(task) {
            Some(set) => set.map_or(1, |set| set.documents.len()),
            None if task == "niah_multikey_2" => {
                words::list(words::ADJECTIVES).len() * words::list(words::NOUNS).len() - 1
            }
            None if task == "cwe" => 40_000,
            None => 1 << 24,
        }
    }

    fn made(&self, cell: &Cell) -> Result<Sample> {
        let (task, length) = (cell.task.as_str(), cell.length);
        let least = if task == "cwe" { 11 } else { 1 };
        self.sizes.fill(&self.form, cell, self.seed, [least, self.most(task)], &|_, units, rng| {
            self.draft(task, length, units, rng)
        })
    }
}

impl Questions for Ruler {
    fn cells(&self) -> Vec<Cell> {
        let missing: Vec<String> = self.missing().into_iter().map(|skip| skip.task).collect();
        let mut cells = Vec::new();
        // Sample by sample: an interrupted study has every length, of fewer samples.
        for sample in 0..self.samples {
            for &length in &self.lengths {
                let tasks = self.tasks.iter().filter(|task| !missing.contains(task));
                cells.extend(tasks.map(|task| Cell { task: task.clone(), length, sample, depth: None }));
            }
        }
        cells
    }

    fn prompt(&self, cell: &Cell) -> Result<Sample> {
        self.made(cell)
    }
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::{hotpot_json, squad_json};
    use super::super::rng::Rng;
    use super::super::tests::{form, novel};
    use super::super::{Draft, Metric};
    use super::draft::NOISE;
    use super::*;

    fn data() -> Data {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("s.json"), squad_json(60).to_string()).unwrap();
        std::fs::write(dir.path().join("h.json"), hotpot_json(60).to_string()).unwrap();
        Data::read(&[dir.path().to_path_buf()]).unwrap()
    }

    fn ruler(lengths: &[usize], data: &Data) -> Ruler {
        let tasks = TASKS.map(String::from).to_vec();
        Ruler::new(form().text().clone(), &novel(), data, tasks, lengths.to_vec(), 2, 42).unwrap()
    }

    fn cell(task: &str, length: usize, sample: usize) -> Cell {
        Cell { task: task.into(), length, sample, depth: None }
    }

    #[test]
    fn prompts_fill_their_length_and_repeat_by_seed() {
        let ruler = ruler(&[4096], &data());
        for cell in ruler.cells().into_iter().rev() {
            let sample = ruler.prompt(&cell).unwrap();
            let used = sample.tokens() + sample.max_new;
            assert!(used <= cell.length, "{cell:?}: {used}");
            // A pair of UUIDs, or a document, is more than 2 % of 4K; small data end before the length.
            let unit = match cell.task.as_str() {
                "niah_multikey_3" => 140,
                "qa_1" | "qa_2" => 4096,
                _ => cell.length / 50,
            };
            assert!(used + unit >= cell.length, "{cell:?}: {used}");
            let again = ruler.prompt(&cell).unwrap();
            assert_eq!(again.fingerprint(), sample.fingerprint());
        }
        // Another order, another instance: the same prompts.
        let other = super::tests::ruler(&[4096], &data());
        let one = cell("vt", 4096, 1);
        assert_eq!(other.prompt(&one).unwrap().fingerprint(), ruler.prompt(&one).unwrap().fingerprint());
        assert_ne!(
            other.prompt(&one).unwrap().fingerprint(),
            other.prompt(&cell("vt", 4096, 0)).unwrap().fingerprint()
        );
    }

    #[test]
    fn references_lie_in_the_text_and_score_right_and_wrong() {
        let ruler = ruler(&[4096], &data());
        for task in TASKS {
            for seed in 0..5 {
                let draft = ruler.draft(task, 4096, 60, &mut Rng::new(seed)).unwrap();
                let references = &draft.questions[0].references;
                for reference in references {
                    assert!(draft.context.contains(reference), "{task}: {reference}");
                }
                assert_eq!(draft.metric.score(&format!("It is {}.", references.join(", ")), references), 1.0);
                assert_eq!(draft.metric.score("nothing of that kind", references), 0.0);
            }
        }
    }

    #[test]
    fn needles_are_as_many_and_of_the_kind_that_the_task_says() {
        let ruler = ruler(&[4096], &Data::default());
        let one = |task: &str| ruler.draft(task, 4096, 60, &mut Rng::new(3)).unwrap();
        let needles = |draft: &Draft| draft.context.matches("One of the special magic ").count();
        let cases = [
            ("niah_single_1", 1, 1),
            ("niah_single_2", 1, 1),
            ("niah_single_3", 1, 1),
            ("niah_multikey_1", 4, 1),
            ("niah_multikey_2", 61, 1),
            ("niah_multikey_3", 61, 1),
            ("niah_multivalue", 4, 4),
            ("niah_multiquery", 4, 4),
        ];
        for (task, facts, answers) in cases {
            let draft = one(task);
            assert_eq!((needles(&draft), draft.questions[0].references.len()), (facts, answers), "{task}");
            assert_eq!(draft.max_new, 128);
        }
        let single = one("niah_single_2");
        assert!(single.context.starts_with("A special magic number is hidden in"), "{}", single.context);
        let question = &single.questions[0];
        let key = question.text.strip_prefix("What is the special magic number for ").unwrap();
        let key = key.strip_suffix(" mentioned in the provided text?").unwrap();
        assert!(single.context.contains(&format!(" numbers for {key} is: {}.", question.references[0])));
        assert!(question.stem.ends_with(&format!("number for {key} mentioned in the provided text is")));
        let many = one("niah_multiquery");
        let question = &many.questions[0];
        assert!(many.context.starts_with("Some special magic numbers are hidden"));
        assert_eq!(question.text.matches(", ").count(), 3);
        assert!(question.text.contains(", and ") && question.stem.ends_with("provided text are"));
        let values = one("niah_multivalue");
        let key = values.questions[0].text.split(" for ").nth(1).unwrap().split(" mentioned").next().unwrap();
        assert_eq!(values.context.matches(&format!("numbers for {key} is:")).count(), 4);
        let uuids = one("niah_multikey_3");
        assert_eq!(uuids.questions[0].references[0].len(), 36);
        assert!(one("niah_single_1").context.matches(NOISE).count() == 60);
    }

    #[test]
    fn chains_lists_and_codes_have_the_counts_of_the_benchmark() {
        let ruler = ruler(&[4096], &Data::default());
        let draft = |task: &str, length, units| ruler.draft(task, length, units, &mut Rng::new(9)).unwrap();

        let vt = draft("vt", 4096, 40);
        let names = &vt.questions[0].references;
        assert_eq!((names.len(), vt.max_new), (5, 30));
        let at = |line: String| vt.context.rfind(&line).unwrap_or_else(|| panic!("{line} in {}", vt.context));
        let value = vt.questions[0].stem.split("the value ").nth(1).unwrap().split(',').next().unwrap().to_string();
        let mut places = vec![at(format!("VAR {} = {value}", names[0]))];
        places.extend(names.windows(2).map(|pair| at(format!("VAR {} = VAR {}", pair[1], pair[0]))));
        assert!(places.windows(2).all(|w| w[0] < w[1]), "the chain keeps its order");
        assert_eq!(vt.context.matches("VAR ").count(), 2 * (5 + 4), "one example before it");

        for (length, often, seldom) in [(4096, 30, 3), (2048, 6, 1)] {
            let cwe = draft("cwe", length, 50);
            let list = cwe.context.rsplit("Keep those in mind.\n").next().unwrap();
            let count = |word: &str| list.split(' ').filter(|w| *w == word).count();
            let common = &cwe.questions[0].references;
            assert_eq!((common.len(), cwe.max_new), (10, 120));
            assert!(common.iter().all(|word| count(word) == often), "{list}");
            assert_eq!(list.split(' ').count(), 2 * (10 * often + 40 * seldom));
            assert!(list.starts_with("1. "));
        }

        let fwe = draft("fwe", 4096, 1000);
        let text = fwe.context.split('\n').nth(1).unwrap();
        let count = |word: &str| text.split(' ').filter(|w| *w == word).count();
        assert_eq!(count("..."), 607); // 1000 / zeta(2)
        let three: Vec<usize> = fwe.questions[0].references.iter().map(|word| count(word)).collect();
        assert_eq!(three, [151, 67, 37]);
        assert_eq!(fwe.max_new, 50);
    }

    #[test]
    fn questions_stand_among_other_documents_or_are_missing() {
        let with = ruler(&[4096], &data());
        let qa = with.draft("qa_2", 4096, 12, &mut Rng::new(1)).unwrap();
        assert_eq!(qa.context.matches("Document ").count(), 12);
        assert_eq!((qa.metric, qa.max_new), (Metric::Any, 32));
        assert_eq!(qa.context.matches("Answer the question from the documents.").count(), 2);
        assert!(with.missing().is_empty());
        let without = ruler(&[4096], &Data::default());
        let missing: Vec<_> = without.missing().into_iter().map(|skip| (skip.task, skip.why)).collect();
        assert_eq!(missing.len(), 2);
        assert!(missing[0].1.contains("SQuAD") && missing[1].1.contains("HotpotQA"));
        assert_eq!(without.cells().len(), 2 * 11);
    }
}
