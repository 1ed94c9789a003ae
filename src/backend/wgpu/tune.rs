//! Which form of a kernel a device runs: chosen by a small timed run at first use, and kept on disk.
//!
//! Every form computes the same results within the tolerances, so only time hangs on the choice. A [`Subject`] is what is
//! chosen for: a kind of attention launch of a head dim, or products with a type of weight. Until a subject is tried, and
//! wherever trying is off or fails, its first form runs, which is a guess from other devices.
//!
//! Trying ends after [`BUDGET`] in a process, compilation included. Forms that came too late are tried by the next
//! process, which finds them in the pipeline cache.

use super::Wgpu;
use super::context::{PendingPipeline, lock, user_cache};
use super::link::{self, Specialisation};
use crate::{DType, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Time that trying may take in a process, beside a kernel that is running when it ends.
const BUDGET: Duration = Duration::from_millis(1800);

/// A form has to take at most so much of the first one's time to be chosen over it: less is noise.
const CLEARLY_FASTER: f64 = 0.97;

/// How far results of two forms may lie apart (relative L2) before the later one counts as broken on this device.
const SAME_RESULTS: f64 = 1e-2;

/// Whether a device tries forms of its kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Autotune {
    /// On GPUs; not on software adapters, and not on devices that a caller made.
    #[default]
    Auto,
    /// Never: the first form of everything.
    Off,
    /// Everywhere: for tests.
    On,
}

impl Autotune {
    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::On => "on",
        }
    }
}

impl std::str::FromStr for Autotune {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = [Self::Auto, Self::Off, Self::On].into_iter().find(|mode| mode.name() == name);
        found.ok_or_else(|| Error::invalid(format!("autotune: expected auto, on or off, got {name}")))
    }
}

/// How the row blocks of an attention launch get their keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Walk {
    /// At most one range each: dense and A-shape heads.
    Ranges,
    /// Many ranges: block-sparse heads.
    Blocks,
    /// Single columns besides ranges: vertical-slash heads.
    Columns,
}

impl Walk {
    pub(super) const ALL: [Self; 3] = [Self::Ranges, Self::Blocks, Self::Columns];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ranges => "ranges",
            Self::Blocks => "blocks",
            Self::Columns => "columns",
        }
    }
}

/// What a form is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// Attention launches of a kernel head dim.
    Attention { head_dim: u32, walk: Walk },
    /// Products with weights of a type.
    Product { weights: DType, size: ProductSize },
}

/// How much of a device a product occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProductSize {
    /// Up to 128 rows: the weights are what is read.
    FewRows,
    /// Fewer large tiles than a large device has processors.
    Small,
    /// All others.
    Large,
}

impl ProductSize {
    const fn name(self) -> &'static str {
        match self {
            Self::FewRows => "few-rows",
            Self::Small => "small",
            Self::Large => "large",
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Attention { head_dim, walk } => write!(f, "attention-{head_dim}-{}", walk.name()),
            Self::Product { weights, size } => write!(f, "product-{weights}-{}", size.name()),
        }
    }
}

/// What was found for a subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Choice {
    /// The form's name.
    pub(super) form: String,
    /// Milliseconds of each form that was tried.
    pub(super) ms: BTreeMap<String, f64>,
    /// Whether all were.
    pub(super) complete: bool,
}

/// The file: choices, and for which device, driver and shaders they hold.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    key: String,
    choices: BTreeMap<String, Choice>,
}

#[derive(Default)]
struct State {
    file: File,
    /// Subjects that this process tried, or will not try.
    settled: Vec<String>,
    spent: Duration,
}

/// The choices of a device.
pub(super) struct Tuner {
    on: bool,
    path: Option<PathBuf>,
    notice: Option<fn(&str)>,
    state: Mutex<State>,
}

impl Tuner {
    /// Of a device that `key` tells from all others, driver and tier included.
    pub(super) fn new(on: bool, key: &str, notice: Option<fn(&str)>) -> Self {
        let key = format!("{} {key} {:016x}", env!("CARGO_PKG_VERSION"), link::sources_hash());
        let name = format!("tune-{:016x}.json", link::fnv(key.as_bytes()));
        let path = user_cache().filter(|_| on).map(|dir| dir.join("minference").join(name));
        let file = path.as_deref().map_or(Ok(None), |path| read(path, &key));
        let file = file.unwrap_or_else(|why| {
            if let Some(notice) = notice {
                notice(&format!("kernel choices are made anew: {why}"));
            }
            None
        });
        let file = file.unwrap_or(File { key, choices: BTreeMap::new() });
        let settled = file.choices.iter().filter(|(_, choice)| choice.complete).map(|(what, _)| what.clone()).collect();
        Self { on, path, notice, state: Mutex::new(State { file, settled, spent: Duration::ZERO }) }
    }

    /// The form chosen for a subject, if it was tried.
    pub(super) fn chosen(&self, subject: Subject) -> Option<String> {
        lock(&self.state).file.choices.get(&subject.to_string()).map(|choice| choice.form.clone())
    }

    /// All choices: what for, and what.
    pub(super) fn choices(&self) -> Vec<(String, Choice)> {
        lock(&self.state).file.choices.iter().map(|(what, choice)| (what.clone(), choice.clone())).collect()
    }

    /// Whether a subject waits to be tried. Asking counts as trying, so that no thread begins while another one is at it.
    fn begin(&self, subject: Subject) -> Option<Duration> {
        let mut state = lock(&self.state);
        let what = subject.to_string();
        let left = BUDGET.checked_sub(state.spent).filter(|left| !left.is_zero());
        if !self.on || state.settled.contains(&what) || left.is_none() {
            return None;
        }
        state.settled.push(what);
        left
    }

    fn finish(&self, subject: Subject, choice: Option<Choice>, spent: Duration) {
        let mut state = lock(&self.state);
        state.spent += spent;
        if let Some(choice) = choice {
            state.file.choices.insert(subject.to_string(), choice);
            if let Some(path) = &self.path {
                write(path, &state.file);
            }
        }
    }

    fn say(&self, text: &str) {
        if let Some(notice) = self.notice {
            notice(text);
        }
    }
}

/// Nothing where there is no file; an error where there is one that says something else.
fn read(path: &Path, key: &str) -> std::result::Result<Option<File>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let file: File = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    match file.key == key {
        true => Ok(Some(file)),
        false => Err(format!("{}: it is of {:?}, not of {key:?}", path.display(), file.key)),
    }
}

fn write(path: &Path, file: &File) {
    if let Ok(text) = serde_json::to_vec_pretty(file) {
        crate::files::keep(path, &text);
    }
}

/// One form to try.
pub(super) struct Candidate {
    pub(super) name: String,
    /// Its kernels.
    pub(super) specialisations: Vec<Specialisation>,
}

/// A small piece of work that any form can do.
pub(super) trait Trial {
    /// Records it in a form.
    fn launch(&self, b: &Wgpu, form: &str) -> Result<()>;
    /// What it computes, as f32.
    fn results(&self, b: &Wgpu) -> Result<Vec<f32>>;
}

impl Wgpu {
    /// The form of a subject: tried now, if it never was, from the candidates and a trial of a size from 0 to
    /// [`LARGEST`]. Nothing where nothing was tried.
    pub(super) fn form_of(
        &self,
        subject: Subject,
        candidates: impl FnOnce() -> Vec<Candidate>,
        trial: impl Fn(&Wgpu, usize) -> Result<Box<dyn Trial>>,
    ) -> Option<String> {
        let tuner = &self.context.tuner;
        if let Some(left) = tuner.begin(subject) {
            let start = Instant::now();
            let choice = self.try_forms(subject, &candidates(), trial, start + left);
            let choice = choice.unwrap_or_else(|error| {
                tuner.say(&format!("{subject}: no form was tried: {error}"));
                None
            });
            tuner.finish(subject, choice, start.elapsed());
        }
        tuner.chosen(subject)
    }

    fn try_forms(
        &self,
        subject: Subject,
        candidates: &[Candidate],
        trial: impl Fn(&Wgpu, usize) -> Result<Box<dyn Trial>>,
        deadline: Instant,
    ) -> Result<Option<Choice>> {
        let [first, _, ..] = candidates else { return Ok(None) };
        self.context.tuner.say(&format!("{}: trying {} forms of {subject}", self.context.info.id, candidates.len()));
        let pending: Vec<Vec<PendingPipeline>> = candidates
            .iter()
            .map(|candidate| candidate.specialisations.iter().map(|s| self.context.start_compiling(s)).collect())
            .collect();
        // The first form runs anyway: it is waited for, and says how large a trial may be.
        let (trial, want) = self.sized(&first.name, trial, deadline)?;
        let (mut right, mut complete) = (vec![&first.name], true);
        for (candidate, pending) in candidates.iter().zip(&pending).skip(1) {
            match self.compiled_before(pending, deadline) {
                Some(true) => {}
                // A form that does not compile here is not tried again.
                Some(false) => continue,
                None => {
                    complete = false;
                    continue;
                }
            }
            trial.launch(self, &candidate.name)?;
            if !alike(&trial.results(self)?, &want) {
                self.context.tuner.say(&format!("{subject}: form {} computes something else here", candidate.name));
                continue;
            }
            right.push(&candidate.name);
        }
        // In turns: a device that was idle clocks up while the first ones run (`backend::warm_up`), which would favour the last.
        let mut ms = BTreeMap::new();
        for name in right.iter().chain(&right) {
            let time = self.milliseconds(&*trial, name, deadline)?;
            ms.entry(name.to_string()).and_modify(|best: &mut f64| *best = best.min(time)).or_insert(time);
        }
        let form = fastest(&first.name, &ms);
        Ok(Some(Choice { form, ms, complete }))
    }

    /// The largest trial whose first form takes about 25 ms or less, and what it computes.
    fn sized(
        &self,
        first: &str,
        trial: impl Fn(&Wgpu, usize) -> Result<Box<dyn Trial>>,
        deadline: Instant,
    ) -> Result<(Box<dyn Trial>, Vec<f32>)> {
        let mut size = 0;
        let mut made = trial(self, size)?;
        made.launch(self, first)?;
        self.wait()?;
        while size < LARGEST && self.milliseconds(&*made, first, deadline)? * GROWTH < 25.0 {
            size += 1;
            made = trial(self, size)?;
            made.launch(self, first)?;
            self.wait()?;
        }
        let results = made.results(self)?;
        Ok((made, results))
    }

    /// Time of one launch: alone, or in a batch if that is shorter.
    fn milliseconds(&self, trial: &dyn Trial, form: &str, deadline: Instant) -> Result<f64> {
        let batch = |launches: usize| -> Result<f64> {
            let start = Instant::now();
            (0..launches).try_for_each(|_| trial.launch(self, form))?;
            self.wait()?;
            Ok(start.elapsed().as_secs_f64() * 1e3 / launches as f64)
        };
        let alone = batch(1)?;
        if Instant::now() >= deadline {
            return Ok(alone);
        }
        Ok(alone.min(batch(((3.0 / alone) as usize).clamp(1, 16))?))
    }

    /// Whether kernels compile, or nothing when the deadline comes first.
    fn compiled_before(&self, pending: &[PendingPipeline], deadline: Instant) -> Option<bool> {
        loop {
            if Instant::now() >= deadline {
                return None;
            }
            let states: Option<Vec<bool>> = pending.iter().map(PendingPipeline::state).collect();
            if let Some(states) = states {
                return Some(states.into_iter().all(|compiled| compiled));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Sizes of trials go from 0 up, each at most about so many times the work of the one before.
pub(super) const GROWTH: f64 = 15.0;
/// The largest size.
pub(super) const LARGEST: usize = 3;

/// The first form, unless another one is clearly faster.
fn fastest(first: &str, ms: &BTreeMap<String, f64>) -> String {
    let bar = ms.get(first).copied().unwrap_or(f64::INFINITY) * CLEARLY_FASTER;
    let best = ms.iter().filter(|(_, ms)| **ms < bar).min_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(first, |(name, _)| name).to_owned()
}

fn alike(got: &[f32], want: &[f32]) -> bool {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    let norm: f64 = want.iter().map(|w| square(*w)).sum();
    error.is_finite() && error <= SAME_RESULTS * SAME_RESULTS * norm
}

/// Results stored as f16 or f32.
pub(super) fn decoded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F16 => bytemuck::pod_collect_to_vec::<u8, half::f16>(bytes).into_iter().map(half::f16::to_f32).collect(),
        _ => bytemuck::pod_collect_to_vec(bytes),
    }
}

/// So many values in [-1, 1) as they are stored, the same everywhere: 2^18 of them, over and over.
pub(super) fn values(dtype: DType, n: usize, seed: u32) -> Vec<u8> {
    let mix = |i: usize| {
        let mut x = (i as u32).wrapping_mul(0x9e37_79b9) ^ seed.wrapping_mul(0x85eb_ca6b);
        x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
        (x ^ (x >> 15)) >> 21
    };
    let some = (0..n.min(1 << 18)).map(|i| mix(i) as f32 / 1024.0 - 1.0);
    let bytes: Vec<u8> = match dtype {
        DType::F16 => some.flat_map(|x| half::f16::from_f32(x).to_ne_bytes()).collect(),
        _ => some.flat_map(f32::to_ne_bytes).collect(),
    };
    bytes.iter().copied().cycle().take(dtype.bytes(n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(form: &str, complete: bool) -> Choice {
        Choice { form: form.into(), ms: BTreeMap::from([(form.into(), 1.5)]), complete }
    }

    #[test]
    fn files_are_read_as_written_and_refused_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep").join("tune.json");
        assert!(read(&path, "a").unwrap().is_none());
        let choices = BTreeMap::from([("product-f16-large".to_string(), choice("128x128", true))]);
        write(&path, &File { key: "a".into(), choices: choices.clone() });
        assert_eq!(read(&path, "a").unwrap().unwrap().choices, choices);
        assert!(read(&path, "b").unwrap_err().contains("not of"));
        let text = std::fs::read_to_string(&path).unwrap();
        for broken in ["", "{", &text[..text.len() / 2], &text.replace("1.5", "\"x\"")] {
            std::fs::write(&path, broken).unwrap();
            assert!(read(&path, "a").unwrap_err().contains("tune.json"), "{broken}");
        }
    }

    #[test]
    fn a_form_has_to_be_clearly_faster() {
        let ms = |list: &[(&str, f64)]| list.iter().map(|(name, ms)| (name.to_string(), *ms)).collect();
        assert_eq!(fastest("a", &ms(&[("a", 1.0), ("b", 0.99)])), "a");
        assert_eq!(fastest("a", &ms(&[("a", 1.0), ("b", 0.9), ("c", 0.8)])), "c");
        assert_eq!(fastest("a", &ms(&[("a", 1.0)])), "a");
    }

    #[test]
    fn values_are_what_is_decoded_and_repeat() {
        for dtype in [DType::F16, DType::F32] {
            let bytes = values(dtype, (1 << 18) + 3, 1);
            let found = decoded(dtype, &bytes);
            assert_eq!((found.len(), &found[..3]), ((1 << 18) + 3, &found[1 << 18..]));
            assert!(found.iter().all(|x| (-1.0..1.0).contains(x)) && found[0] != found[1]);
        }
    }

    #[test]
    fn results_apart_are_told() {
        assert!(alike(&[1.0, 2.0], &[1.001, 2.0]));
        assert!(!alike(&[1.0, 2.0], &[1.1, 2.0]));
        assert!(!alike(&[f32::NAN, 2.0], &[1.0, 2.0]));
    }

    #[test]
    fn a_subject_is_tried_once_and_never_when_off() {
        let subject = Subject::Attention { head_dim: 128, walk: Walk::Columns };
        let tuner = Tuner { on: true, path: None, notice: None, state: Mutex::default() };
        assert!(tuner.begin(subject).is_some());
        assert!(tuner.begin(subject).is_none());
        tuner.finish(subject, Some(choice("w8", false)), BUDGET);
        assert_eq!(tuner.chosen(subject).as_deref(), Some("w8"));
        let other = Subject::Product { weights: DType::F16, size: ProductSize::Small };
        assert!(tuner.begin(other).is_none(), "the time is spent");
        let off = Tuner { on: false, path: None, notice: None, state: Mutex::default() };
        assert!(off.begin(subject).is_none());
    }
}
