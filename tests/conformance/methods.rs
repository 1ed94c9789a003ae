//! The adaptive methods of the CPU twin against the plain statement of each paper in `common/methods.rs`, which was written
//! by someone else than the implementer. Over lengths that are no multiple of a block, chunks behind a prefix, GQA groups,
//! seeds. What other backends choose is compared with the CPU twin elsewhere.

use crate::attention::{Call, Layout, Lengths};
use crate::common;
use crate::common::methods::{self, BLOCK, Head, Scores, Verdict};
use minference::DType;
use minference::backend::cpu::Cpu;
use minference::estimate::{AttentionOptions, choose, estimate_with};
use minference::index::HostIndex;
use minference::model::AttentionCall;
use minference::ops;
use minference::pattern::{AttentionMode, Extras, HeadPattern};
use minference::search::{self, Objective, OneLayer, Rates, SearchOptions};
use minference::tensor::Tensor;
use std::collections::BTreeMap;

/// (q_len, kv_len, q_start, heads, kv_heads, head_dim).
const CASES: [Lengths; 7] = [
    (64, 64, 0, 2, 2, 64),
    (1024, 1024, 0, 4, 2, 64),
    (1117, 1117, 0, 4, 1, 32),
    (999, 999, 0, 3, 3, 96),
    (512, 2048, 1536, 4, 1, 64),
    (700, 2899, 2199, 2, 2, 32),
    (37, 1500, 1463, 2, 1, 128),
];

fn head<'a>(call: &'a Call<Cpu>, h: usize) -> Head<'a> {
    let (q, k, _) = call.head(h);
    Head { q, k, d: call.shape.head_dim, scale: f64::from(call.shape.scale), start: call.shape.q_start }
}

/// Each case with some seeds.
fn each_call(mut test: impl FnMut(&Call<Cpu>, &str)) {
    for (c, case) in CASES.iter().enumerate() {
        for seed in 0..2 {
            let call = Call::new(common::cpu(), *case, Layout::HeadMajor, 7000 + 10 * c as u64 + seed);
            test(&call, &format!("{case:?} seed {seed}"));
        }
    }
}

fn index_of(call: &Call<Cpu>, patterns: &[HeadPattern]) -> HostIndex {
    index_with(call, patterns, Extras::NONE)
}

fn index_with(call: &Call<Cpu>, patterns: &[HeadPattern], extras: Extras) -> HostIndex {
    let (b, options) = (common::cpu(), AttentionOptions { extras, ..AttentionOptions::EXACT });
    let index = estimate_with(b, patterns, &call.shape, call.q.view(), call.k.view(), options).unwrap();
    let index = index.to_host(b).unwrap();
    index.validate().unwrap();
    index
}

/// The query heads that share the keys of a head.
fn group(call: &Call<Cpu>, h: usize) -> std::ops::Range<usize> {
    let len = call.shape.n_heads / call.shape.n_kv_heads;
    h / len * len..(h / len + 1) * len
}

const SHARED: Extras = Extras { skip_softmax: 0.0, share_groups: true };

/// That a head of the index computes the blocks of the verdicts and no others.
#[track_caller]
fn check_blocks(what: &str, index: &HostIndex, h: usize, head: &Head, verdicts: &[Vec<Verdict>]) -> usize {
    let mut ties = 0;
    for (r, verdicts) in verdicts.iter().enumerate() {
        let keys = index.row(h, r).keys(head.span(r).1);
        for (c, verdict) in verdicts.iter().enumerate() {
            let (from, to) = (c * BLOCK, ((c + 1) * BLOCK).min(head.span(r).1 + 1));
            let taken = (from..to).filter(|j| keys.iter().any(|range| range.contains(j))).count();
            assert!(taken == 0 || taken == to - from, "{what}: head {h} row block {r}: part of block {c}");
            assert!(verdict.allows(taken > 0), "{what}: head {h} row block {r}: block {c} is {verdict:?}, not so here");
            ties += usize::from(*verdict == Verdict::Tied);
        }
    }
    ties
}

#[test]
fn flex_is_the_papers_cpu() {
    let b = common::cpu();
    let (mut lines, mut blocks, mut entries, mut ties) = (0, 0, 0, 0);
    each_call(|call, what| {
        let heads = call.shape.n_heads;
        let scores: Vec<Scores> = (0..heads).map(|h| Scores::of(&head(call, h))).collect();
        for (gamma, least) in [(0.9f32, 0), (0.95, 128), (0.6, 200)] {
            let statements: Vec<_> = scores.iter().map(|s| methods::flex(s, f64::from(gamma), least)).collect();
            for tau in [0.0f32, 0.1, 0.3, 1.0] {
                let pattern = HeadPattern::Flex { gamma, tau, budget: [least, 0] };
                let chosen = choose(b, &vec![pattern; heads], &call.shape, call.q.view(), call.k.view()).unwrap();
                let (columns, offsets) = (chosen.columns(b).unwrap(), chosen.offsets(b).unwrap());
                let index = index_of(call, &vec![pattern; heads]);
                for (h, statement) in statements.iter().enumerate() {
                    let what = format!("{what}: {pattern} from {least}, distance {}", statement.distance);
                    if (statement.distance - f64::from(tau)).abs() < 1e-4 {
                        continue;
                    }
                    if statement.distance < f64::from(tau) {
                        blocks += 1;
                        ties += check_blocks(&what, &index, h, &head(call, h), &statement.blocks);
                        entries += statement.blocks.iter().map(Vec::len).sum::<usize>();
                        continue;
                    }
                    if columns[h].is_empty() {
                        assert!(call.shape.kv_len < 256, "{what}: head {h} is dense");
                        continue;
                    }
                    lines += 1;
                    let pairs = [(&statement.columns, &columns[h]), (&statement.diagonals, &offsets[h])];
                    for (kind, (want, got)) in ["column", "offset"].iter().zip(pairs) {
                        for (i, verdict) in want.verdicts.iter().enumerate() {
                            let taken = got.binary_search(&(i as u32)).is_ok();
                            assert!(verdict.allows(taken), "{what}: head {h}: {kind} {i} is {verdict:?}, not so here");
                        }
                        let (least, count) = (want.count, got.len());
                        assert!(count >= least, "{what}: head {h}: {count} {kind}s, expected at least {least}");
                        ties += want.verdicts.iter().filter(|v| **v == Verdict::Tied).count();
                        entries += want.verdicts.len();
                    }
                }
            }
        }
    });
    assert!(lines > 100 && blocks > 100, "{lines} heads by lines, {blocks} by blocks");
    assert!(ties * 10 < entries, "{ties} ties of {entries}");
}

#[test]
fn threshold_is_the_papers_cpu() {
    let (mut entries, mut ties, mut dropped) = (0, 0, 0);
    each_call(|call, what| {
        let scores: Vec<Scores> = (0..call.shape.n_heads).map(|h| Scores::of(&head(call, h))).collect();
        for (alpha, n_last) in [(0.02f32, 0), (0.1, 0), (0.5, 0), (0.1, 1), (0.5, 70)] {
            let index = index_of(call, &vec![HeadPattern::Threshold { alpha, n_last }; call.shape.n_heads]);
            for (h, scores) in scores.iter().enumerate() {
                let verdicts = methods::threshold(scores, f64::from(alpha), 4, n_last);
                ties += check_blocks(&format!("{what}: alpha {alpha}"), &index, h, &head(call, h), &verdicts);
                entries += verdicts.iter().map(Vec::len).sum::<usize>();
                dropped += verdicts.iter().flatten().filter(|v| **v == Verdict::Out).count();
            }
        }
    });
    assert!(ties * 100 < entries && dropped * 5 > entries, "{ties} ties, {dropped} out of {entries}");
}

#[test]
fn recall_is_as_stated_cpu() {
    let (mut sparse, mut dense, mut ties, mut entries) = (0, 0, 0, 0);
    each_call(|call, what| {
        let scores: Vec<Scores> = (0..call.shape.n_heads).map(|h| Scores::of(&head(call, h))).collect();
        for (floor, alpha, n_last) in [(0.9f32, 0.02f32, 0), (0.7, 0.5, 65), (0.97, 1.0, 0)] {
            let index = index_of(call, &vec![HeadPattern::Recall { floor, alpha, n_last }; call.shape.n_heads]);
            for (h, scores) in scores.iter().enumerate() {
                let what = format!("{what}: recall {floor} alpha {alpha} head {h}");
                let pairs: u64 = (0..index.row_blocks()).map(|r| index.row(h, r).pairs()).sum();
                match methods::recall(scores, f64::from(floor), f64::from(alpha), 4, n_last) {
                    Some(verdicts) if pairs < call.shape.causal_pairs() => {
                        sparse += 1;
                        ties += check_blocks(&what, &index, h, &head(call, h), &verdicts);
                        entries += verdicts.iter().map(Vec::len).sum::<usize>();
                    }
                    // Dense is never less than what was asked for, but must have its reason.
                    Some(verdicts) => {
                        dense += 1;
                        let out = verdicts.iter().flatten().filter(|v| **v == Verdict::Out).count();
                        let few = call.shape.kv_len <= 5 * BLOCK;
                        assert!(few || out * 4 < verdicts.iter().flatten().count(), "{what} is dense, {out} are out");
                    }
                    None => {
                        dense += 1;
                        assert_eq!(pairs, call.shape.causal_pairs(), "{what} needs all");
                    }
                }
            }
        }
    });
    assert!(sparse > 50 && ties * 10 < entries, "{sparse} sparse, {dense} dense, {ties} ties of {entries}");
}

#[test]
fn xattention_is_the_papers_cpu() {
    let (mut entries, mut ties, mut dropped) = (0, 0, 0);
    each_call(|call, what| {
        for (stride, part, extras) in
            [(8, 0.9f32, Extras::NONE), (16, 0.6, Extras::NONE), (64, 0.8, Extras::NONE), (16, 0.7, SHARED)]
        {
            let pattern = HeadPattern::XAttention { stride, threshold: part };
            let index = index_with(call, &vec![pattern; call.shape.n_heads], extras);
            for h in 0..call.shape.n_heads {
                let heads = if extras.share_groups { group(call, h) } else { h..h + 1 };
                let heads: Vec<Head> = heads.map(|h| head(call, h)).collect();
                let verdicts = methods::xattention(&heads, stride, f64::from(part));
                let what = format!("{what}: {extras}{pattern}");
                ties += check_blocks(&what, &index, h, &head(call, h), &verdicts);
                entries += verdicts.iter().map(Vec::len).sum::<usize>();
                dropped += verdicts.iter().flatten().filter(|v| **v == Verdict::Out).count();
            }
        }
    });
    assert!(ties * 5 < entries && dropped * 5 > entries, "{ties} ties, {dropped} out of {entries}");
}

#[test]
fn heads_that_share_keys_choose_by_their_mean_cpu() {
    let mut lines = 0;
    each_call(|call, what| {
        let heads = call.shape.n_heads;
        let own: Vec<Scores> = (0..heads).map(|h| Scores::of(&head(call, h))).collect();
        let alpha = 0.1f32;
        let index = index_with(call, &vec![HeadPattern::Threshold { alpha, n_last: 0 }; heads], SHARED);
        let flex = HeadPattern::Flex { gamma: 0.9, tau: 0.0, budget: [128, 0] };
        let options = AttentionOptions { extras: SHARED, ..AttentionOptions::EXACT };
        let (q, k) = (call.q.view(), call.k.view());
        let chosen = minference::estimate::choose_with(common::cpu(), &vec![flex; heads], &call.shape, q, k, options);
        let columns = chosen.unwrap().columns(common::cpu()).unwrap();
        for h in 0..heads {
            let shared = Scores::mean(&own[group(call, h)]);
            let what = format!("{what}: shared");
            check_blocks(&what, &index, h, &head(call, h), &methods::threshold(&shared, f64::from(alpha), 4, 0));
            if columns[h].is_empty() {
                continue;
            }
            lines += 1;
            for (j, verdict) in methods::flex(&shared, f64::from(0.9f32), 128).columns.verdicts.iter().enumerate() {
                let taken = columns[h].binary_search(&(j as u32)).is_ok();
                assert!(verdict.allows(taken), "{what}: head {h}: column {j} is {verdict:?}, not so here");
            }
        }
    });
    assert!(lines > 20, "{lines} heads by lines");
}

/// Between dense attention and what the finest tile would keep, and nowhere less than `1 - factor` of the mass: each key that
/// is dropped weighs less than `factor / keys` of the heaviest.
#[test]
fn skip_softmax_is_the_papers_cpu() {
    let b = common::cpu();
    let (mut rows, mut skipped) = (0, 0);
    each_call(|call, what| {
        let s = &call.shape;
        let dense = index_of(call, &vec![HeadPattern::Dense; s.n_heads]).upload(b).unwrap();
        let lse = |factor: f32| {
            let mut out = Tensor::alloc(b, DType::F32, [s.q_len * s.n_heads * s.head_dim]).unwrap();
            let mut lse = Tensor::alloc(b, DType::F32, [s.n_heads, s.q_len]).unwrap();
            let qkv = [call.q.view(), call.k.view(), call.v.view()];
            ops::attention_skipping(b, s, qkv, &dense, out.view_mut(), Some(lse.view_mut()), factor).unwrap();
            lse.to_f32(b).unwrap()
        };
        let all = lse(0.0);
        for factor in [0.5f32, 30.0, 300.0] {
            let kept = lse(factor);
            for h in 0..s.n_heads {
                let finest = methods::skip_softmax_lse(&head(call, h), f64::from(factor));
                for (i, finest) in finest.iter().enumerate() {
                    let (all, kept) = (f64::from(all[h * s.q_len + i]), f64::from(kept[h * s.q_len + i]));
                    let what =
                        format!("{what}: factor {factor} head {h} query {i}: {kept}, dense {all}, finest {finest}");
                    assert!(kept <= all + 1e-4 && kept >= finest - 1e-4, "{what}");
                    let lost = 1.0 - (kept - all).exp();
                    assert!(lost <= f64::from(factor) + 1e-4, "{what}: {lost} of the mass is lost");
                    rows += 1;
                    skipped += usize::from(lost > 1e-5);
                }
            }
        }
    });
    assert!(skipped * 200 > rows, "{skipped} of {rows} queries lost something");
}

#[test]
fn tri_shape_is_the_papers_cpu() {
    for case in CASES {
        let call = Call::new(common::cpu(), case, Layout::HeadMajor, 1);
        let (n, m, start) = (case.0, case.1, case.2);
        for sizes in [[8, 512, 128], [0, 1, 1], [64, 100, 64], [130, 64, 65], [5, 4000, 3]] {
            let [n_init, n_local, n_last] = sizes;
            let pattern = HeadPattern::TriShape { n_init, n_local, n_last };
            let mask = index_of(&call, &vec![pattern; case.3]).to_mask(case.3 - 1);
            let what = format!("{case:?} {pattern}");
            check_tri_shape(&what, &mask, sizes, n, start);
            for (i, j) in (0..n).flat_map(|i| (0..m).map(move |j| (i, j))) {
                let published = methods::tri_shape(sizes, n, start, i, j);
                assert!(mask[i * m + j] || !published, "{what}: query {i} key {j}: the paper's mask has it");
            }
        }
    }
}

/// That a head's mask is the tri-shape by row blocks.
#[track_caller]
fn check_tri_shape(what: &str, mask: &[bool], sizes: [usize; 3], n: usize, start: usize) {
    let m = mask.len() / n;
    for (r, j) in (0..n.div_ceil(BLOCK)).flat_map(|r| (0..m).map(move |j| (r, j))) {
        let taken = methods::tri_shape_of_row_block(sizes, n, start, r, j);
        for i in r * BLOCK..n.min((r + 1) * BLOCK) {
            assert_eq!(mask[i * m + j], taken && j <= start + i, "{what}: query {i} key {j}");
        }
    }
}

#[test]
fn triangle_mix_is_the_papers_cpu() {
    let flex = AttentionMode::Uniform(HeadPattern::AUTO);
    let dense = AttentionMode::Uniform(HeadPattern::Dense);
    let case = CASES[2];
    let call = Call::new(common::cpu(), case, Layout::HeadMajor, 2);
    for below in [dense, flex] {
        let mode = AttentionMode::TriangleMix { start_layer: 2, below: Box::new(below.clone()) };
        for layer in 0..4 {
            let got = index_of(&call, &mode.patterns(layer, case.3));
            if layer < 2 {
                assert_eq!(got, index_of(&call, &below.patterns(layer, case.3)), "layer {layer}");
                continue;
            }
            // The published sizes.
            for h in 0..case.3 {
                check_tri_shape(&format!("layer {layer} head {h}"), &got.to_mask(h), [8, 512, 128], case.0, case.2);
            }
        }
    }
}

/// Every pattern that the search tried on a layer of four heads, with what it noted of each.
#[test]
fn search_is_the_papers_cpu() {
    let b = common::cpu();
    let case = (1000, 1000, 0, 4, 2, 32);
    let call = Call::new(b, case, Layout::HeadMajor, 77);
    // (recall, error, density) of each head under a pattern
    let mut known: BTreeMap<String, Vec<[f64; 3]>> = BTreeMap::new();
    let mut judge = |pattern: &str, h: usize| {
        let all = known.entry(pattern.to_owned()).or_insert_with(|| {
            let index = index_of(&call, &vec![pattern.parse().unwrap(); case.3]);
            let one = |h: usize| {
                let mask = index.to_mask(h);
                let (recall, error) = methods::recall_and_error(&head(&call, h), call.head(h).2, &mask);
                let pairs = mask.iter().filter(|x| **x).count();
                [recall, error, pairs as f64 / (case.0 * (case.0 + 1) / 2) as f64]
            };
            (0..case.3).map(one).collect()
        });
        all[h]
    };
    let mut narrower = 0;
    for objective in [Objective::Output, Objective::Recall] {
        let options = SearchOptions { objective, budget: 0.25, recall: 0.9, dense_from: 0.8 };
        let layer = AttentionCall {
            shape: call.shape,
            q: call.q.view(),
            k: call.k.view(),
            v: call.v.view(),
            options: AttentionOptions::EXACT,
        };
        let record = OneLayer::new(b, &layer).unwrap().search(b, &options, Rates::EVEN, false).unwrap();
        let choices = search::choose(&[[(0, record.clone())].into()], &options).unwrap();
        for (h, tried) in record.heads.iter().enumerate() {
            let mut passed = None;
            let mut choice = "dense".to_owned();
            for level in 0..=tried.tried.iter().map(|t| t.level).max().unwrap() {
                assert!(passed.is_none(), "head {h}: level {level} after one that passed");
                let (mut best, mut best_score, mut best_recall) = (String::new(), f64::NEG_INFINITY, 0.0);
                for t in tried.tried.iter().filter(|t| t.level == level) {
                    let what = format!("head {h} level {level} {}", t.pattern);
                    let [recall, error, density] = judge(&t.pattern, h);
                    assert!((t.recall - recall).abs() < 1e-5, "{what}: recall {recall}, noted {}", t.recall);
                    assert!((t.density - density).abs() < 1e-9, "{what}: density {density}, noted {}", t.density);
                    assert_eq!(t.cost, t.density, "{what}: every pair costs the same");
                    let score = match objective {
                        Objective::Output => {
                            let noted = t.error.unwrap();
                            assert!((noted - error).abs() < 1e-5, "{what}: error {error}, noted {noted}");
                            -error
                        }
                        Objective::Recall => recall,
                    };
                    if score > best_score {
                        (best, best_score, best_recall) = (t.pattern.clone(), score, recall);
                    }
                }
                if best_recall >= options.recall {
                    passed = Some(level);
                    choice = best;
                }
            }
            assert_eq!(tried.passed, passed, "head {h}");
            if let Some(narrowed) = &tried.narrowed {
                let [recall, _, density] = judge(&narrowed.pattern, h);
                let [_, _, aligned] = judge(&choice, h);
                assert!((narrowed.recall - recall).abs() < 1e-5, "head {h} {}: recall {recall}", narrowed.pattern);
                assert!(
                    recall >= options.recall - 1e-5 && density <= aligned,
                    "head {h} {}: {recall} at {density}, {choice} at {aligned}",
                    narrowed.pattern
                );
                narrower += usize::from(density < aligned);
                choice.clone_from(&narrowed.pattern);
            }
            assert_eq!(choices[0][h].pattern, choice, "head {h}");
        }
        check_alignment(&call, &options, &record);
    }
    assert!(narrower > 0, "nothing was narrowed");
}

/// A pattern with its free number one step down or up, as the search counts.
fn neighbour(pattern: HeadPattern, up: bool) -> HeadPattern {
    let step = |number: usize, by: usize| if up { number + by } else { (number - by.min(number)).max(by) };
    match pattern {
        HeadPattern::AShape { n_init, n_local } => HeadPattern::AShape { n_init, n_local: step(n_local, BLOCK) },
        HeadPattern::VerticalSlash { columns, offsets: 100 } => {
            HeadPattern::VerticalSlash { columns: step(columns, 10), offsets: 100 }
        }
        HeadPattern::VerticalSlash { columns, offsets } => {
            HeadPattern::VerticalSlash { columns, offsets: step(offsets, 10) }
        }
        HeadPattern::BlockSparse { top_k } => HeadPattern::BlockSparse { top_k: step(top_k, 1) },
        other => other,
    }
}

/// The patterns of one level cost the same: in the mean over the heads that were still open, no neighbour of a pattern comes
/// nearer to the budget by more than the twentieth of it at which the search is content.
fn check_alignment(call: &Call<Cpu>, options: &SearchOptions, record: &search::LayerRecord) {
    let mean_cost = |pattern: HeadPattern, open: &[usize]| {
        let index = index_of(call, &vec![pattern; call.shape.n_heads]);
        let pairs = |h: usize| (0..index.row_blocks()).map(|r| index.row(h, r).pairs()).sum::<u64>();
        open.iter().map(|&h| pairs(h) as f64).sum::<f64>() / open.len() as f64 / call.shape.causal_pairs() as f64
    };
    for level in 0.. {
        let budget = (options.budget * 2f64.powi(level as i32)).min(options.dense_from);
        let tried_at = |h: &usize| record.heads[*h].tried.iter().filter(|t| t.level == level);
        let open: Vec<usize> = (0..record.heads.len()).filter(|h| tried_at(h).next().is_some()).collect();
        if open.is_empty() {
            assert!(level > 0, "nothing was tried");
            break;
        }
        let patterns: Vec<HeadPattern> = tried_at(&open[0]).map(|t| t.pattern.parse().unwrap()).collect();
        assert!(patterns.len() >= 3, "{patterns:?}");
        // Below 100 offsets the choice is among forced ones, and costs what it happens to.
        let free = |p: &HeadPattern| !matches!(p, HeadPattern::VerticalSlash { offsets: 0..100, .. });
        for pattern in patterns.into_iter().filter(free) {
            let miss = |pattern| (mean_cost(pattern, &open) - budget).abs();
            let best = miss(neighbour(pattern, false)).min(miss(neighbour(pattern, true)));
            let miss = miss(pattern);
            assert!(miss <= best + budget / 20.0, "level {level}: {pattern} misses {budget} by {miss}, not by {best}");
        }
    }
}
