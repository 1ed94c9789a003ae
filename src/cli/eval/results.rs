//! Results as tables and pictures.

use super::What;
use crate::Result;
use crate::cli::console::table;
use crate::eval::report::{self, Score, in_order, mean, median};
use crate::eval::ruler;
use crate::eval::runner::Row;
use crate::plot::{self, Curves, HeatMap};
use serde_json::{Value, json};
use std::path::Path;

/// Rows as tables and pictures.
pub struct Report<'a> {
    what: What,
    rows: &'a [Row],
    modes: Vec<&'a str>,
    lengths: Vec<usize>,
    tasks: Vec<&'a str>,
    scores: Vec<Score>,
}

impl<'a> Report<'a> {
    pub fn new(what: What, rows: &'a [Row]) -> Self {
        let mut lengths = in_order(rows.iter().map(|row| row.length));
        lengths.sort_unstable();
        Self {
            what,
            rows,
            modes: in_order(rows.iter().map(|row| row.attention.as_str())),
            lengths,
            tasks: in_order(rows.iter().map(|row| row.task.as_str())),
            scores: report::scores(rows),
        }
    }

    fn here(&self, attention: &str, length: usize) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.attention == attention && row.length == length)
    }

    pub fn json(&self) -> Value {
        match self.what {
            What::Perplexity | What::Latency => {
                let point = |mode: &str, length: usize| {
                    let mut point = json!({
                        "attention": mode, "length": length, "n": self.here(mode, length).count(),
                        "density": mean(self.here(mode, length).map(|r| r.density)),
                    });
                    if self.what == What::Latency {
                        point["seconds"] = json!(median(self.here(mode, length).map(|r| r.score).collect()));
                    } else {
                        point["perplexity"] = json!(mean(self.here(mode, length).map(|r| r.score)));
                        point["kl"] = json!(mean(self.here(mode, length).filter_map(|r| r.kl)));
                        point["agreement"] = json!(mean(self.here(mode, length).filter_map(|r| r.agreement)));
                    }
                    point
                };
                let points = self.modes.iter().flat_map(|mode| self.lengths.iter().map(|&length| point(mode, length)));
                Value::Array(points.collect())
            }
            _ => {
                let (lengths, lines) = report::lines(&self.scores, ruler::EFFECTIVE, false);
                let weak: Vec<Value> = report::not_telling(&self.scores)
                    .into_iter()
                    .map(|(task, length, score)| json!({"task": task, "length": length, "dense": score}))
                    .collect();
                let overall: Vec<Value> = report::overall(self.rows)
                    .into_iter()
                    .map(|(attention, paired)| json!({"attention": attention, "paired": paired}))
                    .collect();
                json!({"scores": self.scores, "lengths": lengths, "lines": lines, "dense_under_50": weak, "overall": overall})
            }
        }
    }

    pub fn text(&self, colours: bool) -> String {
        if self.rows.is_empty() {
            return "no results\n".into();
        }
        match self.what {
            What::Perplexity => self.perplexity_table(),
            What::Latency => self.latency_table(),
            What::Needle => {
                let maps: String = self.maps().iter().map(|map| map.terminal(colours) + "\n").collect();
                maps + &self.beside_dense()
            }
            What::Ruler | What::InfiniteBench => self.means() + "\n" + &self.by_task() + "\n" + &self.beside_dense(),
        }
    }

    /// A line for each mode, a column for each length.
    fn means(&self) -> String {
        let weak = report::not_telling(&self.scores);
        let mut out = String::new();
        for telling in [false, true] {
            if telling && weak.is_empty() {
                continue;
            }
            let (lengths, lines) = report::lines(&self.scores, ruler::EFFECTIVE, telling);
            let mut head = vec!["attention".to_string()];
            head.extend(lengths.iter().map(|&n| report::tokens(n)));
            head.push("average".into());
            if self.what == What::Ruler {
                head.push("effective".into());
            }
            let rows: Vec<Vec<String>> = lines
                .iter()
                .map(|line| {
                    let mut row = vec![line.attention.clone()];
                    row.extend(line.means.iter().map(|mean| number(*mean, 1)));
                    row.push(number(line.average, 1));
                    if self.what == What::Ruler {
                        row.push(match (line.effective, lengths.first()) {
                            (0, Some(&least)) => format!("<{}", report::tokens(least)),
                            (n, _) => report::tokens(n),
                        });
                    }
                    row
                })
                .collect();
            let head: Vec<&str> = head.iter().map(String::as_str).collect();
            out += &match telling {
                false => format!("mean over {} tasks\n", self.tasks.len()),
                true => {
                    let list =
                        weak.iter().map(|(task, n, score)| format!("{task} {} ({score:.0})", report::tokens(*n)));
                    let list = list.collect::<Vec<_>>().join(", ");
                    format!("\nthe same without tasks where dense scores under {:.0}: {list}\n", report::TELLING)
                }
            };
            out += &table(&head, &rows);
        }
        out
    }

    fn by_task(&self) -> String {
        let mut head = vec!["task", "tokens", "n"];
        head.extend(&self.modes);
        let mut rows = Vec::new();
        for &length in &self.lengths {
            for &task in &self.tasks {
                let cell: Vec<&Score> = self.scores.iter().filter(|s| s.task == task && s.length == length).collect();
                let Some(n) = cell.iter().map(|s| s.n).min() else { continue };
                let mut row = vec![task.to_string(), report::tokens(length), n.to_string()];
                let score = |mode: &&str| cell.iter().find(|s| s.attention == *mode).map(|s| s.score);
                row.extend(self.modes.iter().map(|mode| number(score(mode), 1)));
                rows.push(row);
            }
        }
        table(&head, &rows)
    }

    /// Wins and losses of each mode, in points.
    fn beside_dense(&self) -> String {
        let overall = report::overall(self.rows);
        let row = |mode: &&str| {
            let mine = || self.rows.iter().filter(|row| row.attention == **mode);
            let first = mine().filter_map(|row| row.first_token).map(|found| 100.0 * f64::from(u8::from(found)));
            let mut row = vec![
                mode.to_string(),
                number(mean(mine().map(|row| 100.0 * row.score)), 1),
                number(mean(first), 1),
                number(mean(mine().map(|row| row.density)), 3),
            ];
            match overall.iter().find(|(name, _)| name == mode) {
                Some((_, p)) => row.extend([
                    p.n.to_string(),
                    p.wins.to_string(),
                    p.losses.to_string(),
                    format!("{:+.1}", 100.0 * p.difference),
                    format!("{:+.1} to {:+.1}", 100.0 * p.low, 100.0 * p.high),
                ]),
                None => row.extend(["", "", "", "", ""].map(String::from)),
            }
            row
        };
        let rows: Vec<Vec<String>> = self.modes.iter().map(row).collect();
        let head = [
            "attention",
            "score",
            "first token",
            "density",
            "pairs",
            "wins",
            "losses",
            "points to dense",
            "95 % interval",
        ];
        let note = match report::not_telling(&self.scores).is_empty() {
            true => String::new(),
            false => format!("pairs leave out tasks and lengths where dense scores under {:.0}\n", report::TELLING),
        };
        table(&head, &rows) + &note
    }

    fn perplexity_table(&self) -> String {
        let head = ["attention", "tokens", "books", "perplexity", "to dense", "KL, nats", "same top", "density"];
        let mut rows = Vec::new();
        for &length in &self.lengths {
            let dense = mean(self.here("dense", length).map(|row| row.score));
            for mode in &self.modes {
                let n = self.here(mode, length).count();
                let Some(score) = mean(self.here(mode, length).map(|row| row.score)) else { continue };
                rows.push(vec![
                    mode.to_string(),
                    report::tokens(length),
                    n.to_string(),
                    format!("{score:.3}"),
                    dense.map_or(String::new(), |dense| format!("{:+.2} %", 100.0 * (score / dense - 1.0))),
                    number(mean(self.here(mode, length).filter_map(|row| row.kl)), 4),
                    number(mean(self.here(mode, length).filter_map(|row| row.agreement)), 3),
                    number(mean(self.here(mode, length).map(|row| row.density)), 3),
                ]);
            }
        }
        table(&head, &rows)
    }

    fn latency_table(&self) -> String {
        let head = ["attention", "tokens", "runs", "seconds", "least", "most", "tokens/s", "times dense", "density"];
        let seconds = |mode: &str, length| -> Vec<f64> { self.here(mode, length).map(|row| row.score).collect() };
        let mut rows = Vec::new();
        for &length in &self.lengths {
            let dense = median(seconds("dense", length));
            for mode in &self.modes {
                let all = seconds(mode, length);
                let Some(middle) = median(all.clone()) else { continue };
                rows.push(vec![
                    mode.to_string(),
                    report::tokens(length),
                    all.len().to_string(),
                    format!("{middle:.3}"),
                    format!("{:.3}", all.iter().copied().fold(f64::INFINITY, f64::min)),
                    format!("{:.3}", all.iter().copied().fold(0.0, f64::max)),
                    format!("{:.0}", length as f64 / middle),
                    number(dense.map(|dense| dense / middle), 2),
                    number(mean(self.here(mode, length).map(|row| row.density)), 3),
                ]);
            }
        }
        table(&head, &rows)
    }

    /// Needle: depths by lengths for each task and mode. InfiniteBench: tasks by modes for each length.
    fn maps(&self) -> Vec<HeatMap> {
        let columns: Vec<String> = self.lengths.iter().map(|&n| report::tokens(n)).collect();
        if self.what == What::InfiniteBench {
            return self.lengths.iter().map(|&length| self.map_of_tasks(length)).collect();
        }
        let mut depths: Vec<f64> = in_order(self.rows.iter().filter_map(|row| row.depth));
        depths.sort_by(f64::total_cmp);
        let mut maps = Vec::new();
        for task in &self.tasks {
            for mode in &self.modes {
                let mine = || self.rows.iter().filter(|row| row.task == *task && row.attention == *mode);
                let Some(score) = mean(mine().map(|row| row.score)) else { continue };
                let cell = |depth: f64, length: usize| {
                    let here = mine().filter(|row| row.depth == Some(depth) && row.length == length);
                    mean(here.map(|row| row.score)).unwrap_or(f64::NAN)
                };
                let density = mean(mine().map(|row| row.density)).unwrap_or(0.0);
                maps.push(HeatMap {
                    title: format!(
                        "{task}, {mode}: {:.1} % of {}, density {density:.2}",
                        100.0 * score,
                        mine().count()
                    ),
                    x_label: "tokens".into(),
                    y_label: "depth %".into(),
                    columns: columns.clone(),
                    rows: depths.iter().map(|depth| format!("{depth:.0}")).collect(),
                    values: depths.iter().map(|&d| self.lengths.iter().map(|&n| cell(d, n)).collect()).collect(),
                });
            }
        }
        maps
    }

    fn map_of_tasks(&self, length: usize) -> HeatMap {
        let score = |task: &str, mode: &str| {
            let found = self.scores.iter().find(|s| s.task == task && s.attention == mode && s.length == length);
            found.map_or(f64::NAN, |s| s.score / 100.0)
        };
        HeatMap {
            title: report::tokens(length),
            x_label: "attention".into(),
            y_label: "task".into(),
            columns: self.modes.iter().map(|mode| mode.to_string()).collect(),
            rows: self.tasks.iter().map(|task| task.to_string()).collect(),
            values: self.tasks.iter().map(|task| self.modes.iter().map(|mode| score(task, mode)).collect()).collect(),
        }
    }

    pub fn plot(&self, path: &Path, about: &str) -> Result<()> {
        let title = format!("{}: {about}", self.what.title());
        let y_label = match self.what {
            What::Needle | What::InfiniteBench => return plot::save(path, &title, &self.maps()),
            What::Ruler => "mean score",
            What::Perplexity => "perplexity",
            What::Latency => "seconds of pre-fill",
        };
        let (lengths, lines) = report::lines(&self.scores, ruler::EFFECTIVE, false);
        let value = |mode: &str, length: usize| match self.what {
            What::Ruler => {
                let line = lines.iter().find(|line| line.attention == mode)?;
                line.means[lengths.iter().position(|&n| n == length)?]
            }
            What::Perplexity => mean(self.here(mode, length).map(|row| row.score)),
            _ => median(self.here(mode, length).map(|row| row.score).collect()),
        };
        let line = |mode: &&str| {
            let points = self.lengths.iter().filter_map(|&n| Some((n as f64, value(mode, n)?)));
            (mode.to_string(), points.collect())
        };
        plot::save_curves(
            path,
            &Curves {
                title,
                x_label: "tokens".into(),
                y_label: y_label.into(),
                lines: self.modes.iter().map(line).collect(),
                log_y: self.what == What::Latency,
            },
        )
    }
}

/// With so many decimals, or a dash for what there is not.
fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::runner::Cell;

    fn row(task: &str, length: usize, depth: Option<f64>, attention: &str, score: f64) -> Row {
        let cell = Cell { task: task.into(), length, sample: 0, depth };
        Row { attention: attention.into(), score, density: 0.5, kl: Some(0.25), ..Row::of(&cell) }
    }

    #[test]
    fn tables_say_what_was_measured() {
        let rows = [
            row("vt", 4096, None, "dense", 1.0),
            row("vt", 4096, None, "flex:0.9", 0.8),
            row("cwe", 4096, None, "dense", 0.3),
            row("cwe", 4096, None, "flex:0.9", 0.9),
        ];
        let text = Report::new(What::Ruler, &rows).text(false);
        assert!(text.contains("mean over 2 tasks") && text.contains("dense scores under 50: cwe 4K (30)"), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["attention", "4K", "average", "effective"]);
        assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["dense", "65.0", "65.0", "<4K"]);
        assert!(text.contains("-20.0"), "{text}");

        let rows = [row("b", 1000, None, "dense", 10.0), row("b", 1000, None, "flex:0.9", 11.0)];
        let text = Report::new(What::Perplexity, &rows).text(false);
        assert!(text.contains("+10.00 %") && text.contains("0.2500"), "{text}");
        let text = Report::new(What::Latency, &rows).text(false);
        assert!(text.contains("0.91"), "{text}");
        assert_eq!(Report::new(What::Latency, &[]).text(false), "no results\n");
    }

    #[test]
    fn pictures_have_a_map_for_each_mode_and_a_line_for_each() {
        let dir = tempfile::tempdir().unwrap();
        let mut rows = Vec::new();
        for (depth, mode, score) in [(0.0, "dense", 1.0), (50.0, "dense", 1.0), (0.0, "flex:0.9", 0.0)] {
            rows.extend([4096, 8192].map(|length| row("code", length, Some(depth), mode, score)));
        }
        let report = Report::new(What::Needle, &rows);
        let maps = report.maps();
        assert_eq!((maps.len(), maps[1].values[0].as_slice()), (2, [0.0, 0.0].as_slice()));
        assert!(maps[1].values[1][0].is_nan(), "not done is not wrong");
        for (what, name) in [(What::Needle, "n.svg"), (What::InfiniteBench, "i.png"), (What::Ruler, "r.svg")] {
            let path = dir.path().join(name);
            Report::new(what, &rows).plot(&path, "model on device").unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() > 1000);
        }
    }
}
