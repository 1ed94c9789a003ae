//! What a user gives with `--data`: texts, question sets, InfiniteBench's files. Told apart by their endings, `.json` by its
//! content, `.jsonl` by its name, which is that of its task.

use crate::fnv::Fnv;
use crate::{Error, Result, files};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A set of questions with the documents that answer them.
#[derive(Clone, Debug, Default)]
pub struct QuestionSet {
    /// All documents, none twice.
    pub documents: Vec<String>,
    /// The questions.
    pub questions: Vec<Answerable>,
}

/// A question of a [`QuestionSet`].
#[derive(Clone, Debug)]
pub struct Answerable {
    /// The question.
    pub question: String,
    /// Right answers.
    pub answers: Vec<String>,
    /// Documents that answer it, and then others that came with them.
    pub near: Vec<usize>,
    /// How many of `near` answer it.
    pub gold: usize,
}

/// All data of a run.
#[derive(Default)]
pub struct Data {
    /// Plain texts with their names: essays, books.
    pub texts: Vec<(String, String)>,
    /// SQuAD (version 1 or 2) JSON.
    pub squad: Option<QuestionSet>,
    /// HotpotQA (distractor) JSON.
    pub hotpot: Option<QuestionSet>,
    /// InfiniteBench JSONL files by task, the file's name without its ending.
    pub jsonl: BTreeMap<String, PathBuf>,
    /// Of everything that was read.
    fingerprint: u64,
}

impl Data {
    /// Reads files and directories, each by its ending and content.
    ///
    /// # Errors
    /// [`Error::File`] for a JSON file of another form, for a second file of one kind or task, and for a text that is no
    /// UTF-8.
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        let mut data = Self::default();
        for path in paths {
            if path.is_dir() {
                let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
                let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
                files.retain(|file| matches!(ending(file), "txt" | "json" | "jsonl"));
                files.sort();
                if files.is_empty() {
                    return Err(Error::file(path, "expected .txt, .json or .jsonl files, found none"));
                }
                files.iter().try_for_each(|file| data.add(file))?;
            } else {
                data.add(path)?;
            }
        }
        Ok(data)
    }

    /// Of everything that was read; 0 for nothing.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if ending(path) == "jsonl" {
            self.note(content(path, Fnv::new().add(name.as_bytes()))?);
            return match self.jsonl.insert(name, path.to_path_buf()) {
                Some(other) => {
                    Err(Error::file(path, format!("a second file of its task: {} is there", other.display())))
                }
                None => Ok(()),
            };
        }
        let bytes = files::read(path)?;
        self.note(Fnv::new().add(&bytes));
        if ending(path) == "json" {
            return self.add_questions(path, &bytes);
        }
        self.texts.push((name, files::utf8(path, bytes)?));
        Ok(())
    }

    fn add_questions(&mut self, path: &Path, bytes: &[u8]) -> Result<()> {
        let json: Value = serde_json::from_slice(bytes).map_err(|e| Error::file(path, e.to_string()))?;
        let (kind, set, place) = if json["data"].is_array() {
            ("SQuAD", squad(&json), &mut self.squad)
        } else if json[0]["context"].is_array() {
            ("HotpotQA", hotpot(&json), &mut self.hotpot)
        } else {
            let form = "expected SQuAD (an object with `data`) or HotpotQA (a list with `question` and `context`)";
            return Err(Error::file(path, form));
        };
        if set.questions.is_empty() {
            return Err(Error::file(path, "expected questions with answers, found none"));
        }
        match place.replace(set) {
            Some(_) => Err(Error::file(path, format!("a second {kind} file: expected one"))),
            None => Ok(()),
        }
    }

    fn note(&mut self, read: Fnv) {
        self.fingerprint = self.fingerprint.rotate_left(1) ^ read.finish();
    }
}

/// `print` with a file's bytes added, which need not fit into memory together.
fn content(path: &Path, mut print: Fnv) -> Result<Fnv> {
    let mut file = files::open(path)?;
    let mut part = vec![0; 1 << 16];
    loop {
        match file.read(&mut part).map_err(|e| Error::io(path, e))? {
            0 => return Ok(print),
            n => print = print.add(&part[..n]),
        }
    }
}

fn ending(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or("")
}

fn strings<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// Right answers; an empty one, which any words hold, is none.
fn answers_of<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut answers: Vec<String> = texts.filter(|text| !text.trim().is_empty()).map(str::to_owned).collect();
    answers.sort();
    answers.dedup();
    answers
}

/// Answerable questions; near documents are the article's other paragraphs.
fn squad(json: &Value) -> QuestionSet {
    let mut set = QuestionSet::default();
    for article in items(json, "data") {
        let first = set.documents.len();
        let paragraphs: Vec<&Value> = items(article, "paragraphs").collect();
        set.documents.extend(paragraphs.iter().map(|p| strings(p, "context").to_string()));
        for (i, paragraph) in paragraphs.iter().enumerate() {
            for qa in items(paragraph, "qas") {
                let answers = answers_of(items(qa, "answers").map(|a| strings(a, "text")));
                if qa["is_impossible"].as_bool() == Some(true) || answers.is_empty() {
                    continue;
                }
                let others = (first..set.documents.len()).filter(|&d| d != first + i);
                let near = std::iter::once(first + i).chain(others).collect();
                set.questions.push(Answerable { question: strings(qa, "question").into(), answers, near, gold: 1 });
            }
        }
    }
    set
}

/// Each question comes with ten paragraphs; those named by its supporting facts answer it.
fn hotpot(json: &Value) -> QuestionSet {
    let mut set = QuestionSet::default();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for item in json.as_array().into_iter().flatten() {
        let supports: Vec<&str> = items(item, "supporting_facts").filter_map(|fact| fact[0].as_str()).collect();
        let mut places = Vec::new();
        for paragraph in items(item, "context") {
            let title = paragraph[0].as_str().unwrap_or_default();
            let sentences: Vec<&str> =
                paragraph[1].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let document = format!("{title}\n{}", sentences.join("").trim());
            let next = set.documents.len();
            let at = *known.entry(document.clone()).or_insert(next);
            if at == next {
                set.documents.push(document);
            }
            places.push((at, !supports.contains(&title)));
        }
        // Documents that answer it first.
        places.sort_by_key(|(_, other)| *other);
        let gold = places.iter().filter(|(_, other)| !other).count();
        let near = places.into_iter().map(|(at, _)| at).collect();
        let answers = answers_of(std::iter::once(strings(item, "answer")));
        if answers.is_empty() {
            continue;
        }
        set.questions.push(Answerable { question: strings(item, "question").into(), answers, near, gold });
    }
    set
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    pub(in super::super) fn squad_json(articles: usize) -> Value {
        let paragraph = |a: usize, p: usize| {
            json!({
                "context": format!("Town {a}-{p} lies at the river. Its founder was Person {a}x{p}, who came from the north."),
                "qas": [
                    {"question": format!("Who founded town {a}-{p}?"), "is_impossible": false,
                     "answers": [{"text": format!("Person {a}x{p}")}, {"text": format!("Person {a}x{p}")}]},
                    {"question": "What is unknown?", "is_impossible": true, "answers": []},
                ],
            })
        };
        let article = |a: usize| json!({"title": a, "paragraphs": (0..3).map(|p| paragraph(a, p)).collect::<Vec<_>>()});
        json!({"version": "v2.0", "data": (0..articles).map(article).collect::<Vec<_>>()})
    }

    pub(in super::super) fn hotpot_json(questions: usize) -> Value {
        let item = |i: usize| {
            let context: Vec<Value> = (0..4)
                .map(|p| json!([format!("Title {i}.{p}"), [format!("Fact {p} of {i}. "), "It is well known."]]))
                .collect();
            json!({"question": format!("What is asked {i}?"), "answer": format!("Fact 2 of {i}"), "context": context,
                   "supporting_facts": [[format!("Title {i}.2"), 0], [format!("Title {i}.1"), 0]]})
        };
        Value::Array((0..questions).map(item).collect())
    }

    #[test]
    fn question_sets_keep_what_answers_first() {
        let set = squad(&squad_json(2));
        assert_eq!((set.documents.len(), set.questions.len()), (6, 6));
        let question = &set.questions[4];
        assert_eq!(question.question, "Who founded town 1-1?");
        assert_eq!((question.answers.as_slice(), question.gold), (["Person 1x1".to_string()].as_slice(), 1));
        assert_eq!(question.near, [4, 3, 5]);

        let set = hotpot(&hotpot_json(2));
        assert_eq!((set.documents.len(), set.questions.len()), (8, 2));
        assert_eq!((set.questions[1].near.as_slice(), set.questions[1].gold), ([5, 6, 4, 7].as_slice(), 2));
        assert_eq!(set.documents[6], "Title 1.2\nFact 2 of 1. It is well known.");
    }

    #[test]
    fn files_are_known_by_ending_and_content() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("book.txt", "It was late.");
        write("squad.json", &squad_json(1).to_string());
        write("hotpot.json", &hotpot_json(1).to_string());
        write("passkey.jsonl", "{}\n");
        write("notes.md", "no data");
        let data = Data::read(&[dir.path().to_path_buf()]).unwrap();
        assert_eq!(data.texts, [("book".to_string(), "It was late.".to_string())]);
        assert!(data.squad.is_some() && data.hotpot.is_some() && data.jsonl.contains_key("passkey"));
        let before = data.fingerprint();
        // As long as before, and other data.
        write("passkey.jsonl", "[]\n");
        assert_ne!(Data::read(&[dir.path().to_path_buf()]).unwrap().fingerprint(), before);
        let second = |name: &str, text: &str| {
            let other = tempfile::tempdir().unwrap();
            let path = other.path().join(name);
            std::fs::write(&path, text).unwrap();
            Data::read(&[dir.path().to_path_buf(), path]).err().unwrap().to_string()
        };
        assert!(second("passkey.jsonl", "{}").contains("a second file of its task"));
        assert!(second("more.json", &squad_json(1).to_string()).contains("a second SQuAD file"));
        write("squad.json", "{\"version\": 1}");
        let error = Data::read(&[dir.path().to_path_buf()]).err().unwrap().to_string();
        assert!(error.contains("squad.json: expected SQuAD"), "{error}");
        assert!(Data::read(&[dir.path().join("none.txt")]).is_err());
    }
}
