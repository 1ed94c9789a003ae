//! What rows say together: means, tables, and each mode beside dense sample by sample.

use super::runner::Row;
use std::collections::BTreeMap;

/// A mode's samples paired with dense's on the same prompts.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Paired {
    /// Prompts that both answered.
    pub n: usize,
    /// Those on which the mode scored higher.
    pub wins: usize,
    /// Those on which it scored lower.
    pub losses: usize,
    /// Mean difference of the scores, mode less dense.
    pub difference: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// Pairs scores of 0 to 1, `(dense, mode)`.
///
/// The interval is Agresti and Min's for paired proportions (2005): half an observation is added to each of the four
/// outcomes, so that ten pairs without a difference do not claim certainty. For shares the two added differences of a
/// half are of full size, the widest case.
pub fn paired(pairs: &[(f64, f64)]) -> Paired {
    let differences: Vec<f64> = pairs.iter().map(|(dense, mode)| mode - dense).collect();
    let n = differences.len();
    let with = n as f64 + 2.0;
    let sum: f64 = differences.iter().sum();
    let squares = differences.iter().map(|d| d * d).sum::<f64>() + 1.0;
    let centre = sum / with;
    let half = 1.96 * (squares - sum * sum / with).max(0.0).sqrt() / with;
    Paired {
        n,
        wins: differences.iter().filter(|d| **d > 0.0).count(),
        losses: differences.iter().filter(|d| **d < 0.0).count(),
        difference: if n == 0 { 0.0 } else { sum / n as f64 },
        low: (centre - half).max(-1.0),
        high: (centre + half).min(1.0),
    }
}

/// Rows of a mode by what identifies their prompt.
fn by_prompt<'a>(rows: &'a [&'a Row], attention: &str) -> BTreeMap<(&'a str, usize, usize, u64), &'a Row> {
    let mine = rows.iter().filter(|row| row.attention == attention);
    mine.map(|row| ((row.task.as_str(), row.length, row.sample, row.depth.unwrap_or(0.0).to_bits()), *row)).collect()
}

/// `(dense, mode)` scores of the prompts that both have answered.
pub fn pairs(rows: &[&Row], attention: &str) -> Vec<(f64, f64)> {
    let (dense, mode) = (by_prompt(rows, "dense"), by_prompt(rows, attention));
    dense.iter().filter_map(|(prompt, row)| Some((row.score, mode.get(prompt)?.score))).collect()
}

/// Mean of some values, none of none.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.into_iter().fold((0.0, 0usize), |(sum, n), v| (sum + v, n + 1));
    (n > 0).then(|| sum / n as f64)
}

/// The middle one of some values, or the mean of the middle two.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => None,
        n => Some((values[(n - 1) / 2] + values[n / 2]) / 2.0),
    }
}

/// Scores of one task at one length in one mode.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Score {
    /// The task.
    pub task: String,
    /// The length.
    pub length: usize,
    /// The mode.
    pub attention: String,
    /// Prompts.
    pub n: usize,
    /// Mean score, 0 to 100.
    pub score: f64,
    /// Mean density.
    pub density: f64,
    /// Share of prompts on which pre-fill's own token begins the answer, 0 to 100.
    pub first_token: Option<f64>,
    /// Beside dense, but for dense.
    pub paired: Option<Paired>,
}

/// Modes in the order in which they first come, lengths and tasks likewise.
pub fn in_order<T: PartialEq>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut out = Vec::new();
    for value in values {
        if !out.contains(&value) {
            out.push(value);
        }
    }
    out
}

/// One [`Score`] for each task, length and mode that has rows.
pub fn scores(rows: &[Row]) -> Vec<Score> {
    let mut lengths = in_order(rows.iter().map(|row| row.length));
    lengths.sort_unstable();
    let tasks = in_order(rows.iter().map(|row| row.task.as_str()));
    let modes = in_order(rows.iter().map(|row| row.attention.as_str()));
    let mut out = Vec::new();
    for &length in &lengths {
        for &task in &tasks {
            let cell: Vec<&Row> = rows.iter().filter(|row| row.length == length && row.task == task).collect();
            for &attention in &modes {
                let mine: Vec<&&Row> = cell.iter().filter(|row| row.attention == attention).collect();
                let Some(score) = mean(mine.iter().map(|row| row.score)) else { continue };
                let first = mine.iter().filter_map(|row| row.first_token).map(|found| f64::from(u8::from(found)));
                out.push(Score {
                    task: task.to_string(),
                    length,
                    attention: attention.to_string(),
                    n: mine.len(),
                    score: 100.0 * score,
                    density: mean(mine.iter().map(|row| row.density)).unwrap_or(0.0),
                    first_token: mean(first).map(|share| 100.0 * share),
                    paired: (attention != "dense").then(|| paired(&pairs(&cell, attention))),
                });
            }
        }
    }
    out
}

/// Below this score of dense, a task at a length says nothing about a sparse mode: its own failures drown the difference.
pub const TELLING: f64 = 50.0;

/// Tasks and lengths at which dense scores under [`TELLING`].
pub fn not_telling(scores: &[Score]) -> Vec<(&str, usize, f64)> {
    let weak = scores.iter().filter(|s| s.attention == "dense" && s.score < TELLING);
    weak.map(|s| (s.task.as_str(), s.length, s.score)).collect()
}

/// A mode's mean over tasks at each length, as the benchmark's table.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Line {
    /// The mode.
    pub attention: String,
    /// Mean over tasks at each length of `lengths`, 0 to 100; none where a task that dense has is not done.
    pub means: Vec<Option<f64>>,
    /// Mean over the lengths.
    pub average: Option<f64>,
    /// The longest length up to which every mean is at least the threshold; 0 for none.
    pub effective: usize,
}

/// The table of RULER: a line for each mode, and the lengths. `telling` leaves out tasks of [`not_telling`].
pub fn lines(scores: &[Score], threshold: f64, telling: bool) -> (Vec<usize>, Vec<Line>) {
    let lengths = in_order(scores.iter().map(|s| s.length));
    let modes = in_order(scores.iter().map(|s| s.attention.as_str()));
    let weak = not_telling(scores);
    let at = |attention: &str, length: usize| -> Vec<&Score> {
        let here = scores.iter().filter(|s| s.attention == attention && s.length == length);
        here.filter(|s| !telling || !weak.iter().any(|(task, l, _)| *task == s.task && *l == length)).collect()
    };
    let line = |attention: &&str| {
        let means: Vec<Option<f64>> = lengths
            .iter()
            .map(|&length| {
                let (mine, dense) = (at(attention, length), at("dense", length));
                let whole = mine.len() >= dense.len();
                mean(mine.iter().map(|s| s.score)).filter(|_| whole)
            })
            .collect();
        let passed = means.iter().take_while(|mean| mean.is_some_and(|mean| mean >= threshold)).count();
        Line {
            attention: attention.to_string(),
            average: mean(means.iter().flatten().copied()),
            effective: passed.checked_sub(1).map_or(0, |last| lengths[last]),
            means,
        }
    };
    let lines = modes.iter().map(line).collect();
    (lengths, lines)
}

/// All telling prompts of each mode beside dense's: [`paired`] over tasks and lengths together.
pub fn overall(rows: &[Row]) -> Vec<(String, Paired)> {
    let scores = scores(rows);
    let weak = not_telling(&scores);
    let telling: Vec<&Row> =
        rows.iter().filter(|row| !weak.iter().any(|(task, l, _)| *task == row.task && *l == row.length)).collect();
    let modes = in_order(rows.iter().map(|row| row.attention.as_str()));
    let others = modes.into_iter().filter(|mode| *mode != "dense");
    others.map(|mode| (mode.to_string(), paired(&pairs(&telling, mode)))).collect()
}

/// `131072` as `128K`.
pub fn tokens(n: usize) -> String {
    if n.is_multiple_of(1024) { format!("{}K", n / 1024) } else { n.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(task: &str, length: usize, sample: usize, attention: &str, score: f64) -> Row {
        Row { task: task.into(), length, sample, attention: attention.into(), score, ..Row::default() }
    }

    #[test]
    fn the_interval_is_that_of_agresti_and_min() {
        // 10 pairs, 3 lost, 1 won: with half added to each cell 1.5 and 3.5 of 12.
        let mut scores = vec![(1.0, 1.0); 6];
        scores.extend([(1.0, 0.0), (1.0, 0.0), (1.0, 0.0), (0.0, 1.0)]);
        let found = paired(&scores);
        assert_eq!((found.n, found.wins, found.losses, found.difference), (10, 1, 3, -0.2));
        let (b, c, n) = (1.5f64, 3.5, 12.0);
        let centre = (b - c) / n;
        let half = 1.96 * ((b + c) - (b - c) * (b - c) / n).sqrt() / n;
        assert!((found.low - (centre - half)).abs() < 1e-12 && (found.high - (centre + half)).abs() < 1e-12);
        let same = paired(&[(1.0, 1.0); 10]);
        assert!(same.low < -0.1 && same.high > 0.1 && same.difference == 0.0, "{same:?}");
        assert_eq!(paired(&[]).n, 0);
    }

    #[test]
    fn only_prompts_that_both_answered_are_paired() {
        let rows = [
            row("a", 1, 0, "dense", 1.0),
            row("a", 1, 1, "dense", 1.0),
            row("a", 1, 1, "flex", 0.5),
            row("a", 1, 2, "flex", 0.0),
        ];
        assert_eq!(pairs(&rows.iter().collect::<Vec<_>>(), "flex"), [(1.0, 0.5)]);
    }

    #[test]
    fn the_table_gives_means_and_the_effective_length() {
        let mut rows = Vec::new();
        for (length, dense, mode) in [(4096, 1.0, 0.9), (8192, 0.9, 0.8), (16384, 0.9, 0.9)] {
            rows.extend([row("a", length, 0, "dense", dense), row("a", length, 0, "flex", mode)]);
            rows.extend([row("b", length, 0, "dense", dense), row("b", length, 0, "flex", mode)]);
            // A task that dense fails.
            rows.extend([row("c", length, 0, "dense", 0.0), row("c", length, 0, "flex", 1.0)]);
        }
        rows.push(row("a", 16384, 0, "half", 1.0));
        let scores = scores(&rows);
        assert_eq!(not_telling(&scores).iter().map(|(task, ..)| *task).collect::<Vec<_>>(), ["c", "c", "c"]);
        let (lengths, all) = lines(&scores, 85.6, true);
        assert_eq!(lengths, [4096, 8192, 16384]);
        assert_eq!((all[0].effective, all[1].effective, all[2].effective), (16384, 4096, 0));
        assert!((all[1].average.unwrap() - 86.666).abs() < 0.01);
        assert_eq!(all[2].means, [None, None, None], "half of the tasks are no mean");
        let (_, all) = lines(&scores, 85.6, false);
        assert!((all[0].means[0].unwrap() - 66.666).abs() < 0.01);
        let overall = overall(&rows);
        assert_eq!((overall[0].0.as_str(), overall[0].1.n, overall[0].1.losses), ("flex", 6, 4));
    }

    #[test]
    fn small_helpers() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
        assert_eq!((median(vec![]), mean([])), (None, None));
        assert_eq!((tokens(131_072), tokens(1000)), ("128K".into(), "1000".into()));
    }
}
