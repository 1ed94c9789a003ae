//! Choices by cumulated mass, and flex heads as a whole. Weights within 1/64 of each other may be taken together, so a choice
//! is held between the fewest that the method asks for and those a little lighter.

use crate::attention::{Call, Layout};
use crate::common::naive::{self, BLOCK};
use crate::common::{Rng, assert_close, for_each_backend, roundoff};
use crate::{f32s, u32s};
use minference::DType;
use minference::backend::params::{HeadBudget, HeadPlan};
use minference::estimate::{choose, estimate};
use minference::ops::{self, BlockBand, Undecided, WEIGHT_BINS};
use minference::pattern::HeadPattern;
use minference::tensor::Tensor;

/// The least weight that must be taken, and the least that may be.
fn bounds(weights: &[f64], forced: impl Fn(usize) -> bool + Copy, part: f64) -> [f64; 2] {
    let least = |part| naive::least_of_mass(weights, forced, part);
    [least(part - 2e-4) * 1.001, least(part + 2e-4) / 1.032]
}

/// That a choice holds what it must and no more than it may.
#[track_caller]
fn check_choice(
    what: &str,
    weights: &[f64],
    forced: impl Fn(usize) -> bool + Copy,
    part: f64,
    taken: impl Fn(usize) -> bool,
) {
    let [must, may] = bounds(weights, forced, part);
    for (i, &weight) in weights.iter().enumerate() {
        assert!(taken(i) || (weight < must && !forced(i)), "{what}: {i} of weight {weight} is out, {must} must be in");
        assert!(!taken(i) || forced(i) || weight >= may, "{what}: {i} of weight {weight} is in, at least {may} may be");
    }
}

/// Scores like attention's, of sum `64`: a few large ones, a long tail.
fn tail(rng: &mut Rng, len: usize, steep: f64) -> Vec<f32> {
    let raw: Vec<f64> = (0..len).map(|_| (steep * rng.normal()).exp()).collect();
    let total: f64 = raw.iter().sum();
    raw.iter().map(|x| (64.0 * x / total) as f32).collect()
}

for_each_backend!(count_by_mass, |b| {
    let mut rng = Rng(31);
    for (len, forced) in [(1, 0), (50, 100), (700, 30), (20_000, 100)] {
        let steep = [0.0, 1.0, 2.5, 4.0];
        let rows: Vec<Vec<f32>> = steep.iter().map(|&steep| tail(&mut rng, len, steep)).collect();
        let of = |mass: f32, least: u32| HeadBudget { mass, tau: 0.0, least, most: 0 };
        let budgets = [of(0.9, 0), of(0.95, 40), of(0.0, 0), HeadBudget { most: 120, ..of(0.6, 0) }];
        let budget = u32s(b, [4, 4], bytemuck::cast_slice(&budgets));
        let mut counts = u32s(b, [4], &[77; 4]);
        let scores = f32s(b, [4, len], &rows.concat());
        ops::count_by_mass(b, budget.view(), scores.view(), forced, 1.0 / 64.0, counts.view_mut()).unwrap();
        let counts = counts.to_u32(b).unwrap();
        for (r, (row, budget)) in rows.iter().zip(&budgets).enumerate() {
            if budget.mass == 0.0 {
                assert_eq!(counts[r], 77, "a row without budget");
                continue;
            }
            let weights: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
            let [must, may] = bounds(&weights, |i| i < forced, f64::from(budget.mass));
            let count = |least: f64| (0..len).filter(|&i| i < forced || weights[i] >= least).count();
            let clamp = |n: usize| {
                let most = if budget.most > 0 { budget.most } else { u32::MAX };
                (n as u32).max(budget.least).min(most).min(len as u32)
            };
            let (fewest, most) = (clamp(count(must)), clamp(count(may)));
            let got = counts[r];
            assert!(fewest <= got && got <= most, "row {r} of {len}: expected {fewest} to {most}, got {got}");
        }
    }
});

for_each_backend!(group_offsets, |b| {
    let mut rng = Rng(43);
    for len in [1, 64, 65, 1000] {
        let rows: Vec<Vec<f32>> = (0..2).map(|_| tail(&mut rng, len, 2.0)).collect();
        let of = |mass: f32| HeadBudget { mass, ..HeadBudget::default() };
        let budget = u32s(b, [2, 4], bytemuck::cast_slice(&[of(0.9), of(0.0)]));
        let mut scores = f32s(b, [2, len], &rows.concat());
        ops::group_offsets(b, budget.view(), scores.view_mut()).unwrap();
        let got = scores.to_f32(b).unwrap();
        let want = naive::group_offsets(&rows[0].iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        assert_close(&format!("{len} offsets"), roundoff(DType::F32), &got[..len], &want);
        assert_eq!(got[len..], rows[1], "a row without budget");
    }
});

for_each_backend!(settle_heads, |b| {
    let mut rng = Rng(37);
    for kv_len in [64, 1000, 20_000] {
        let (heads, blocks) = (5, usize::div_ceil(kv_len, BLOCK));
        let columns: Vec<f32> = (0..heads).flat_map(|_| tail(&mut rng, kv_len, 1.5)).collect();
        // What the scores must be for the real attention, and somewhat more or less wrong ones.
        let score = |h: usize, c: usize, noise: f64| {
            let keys = &columns[h * kv_len + c * BLOCK..h * kv_len + kv_len.min((c + 1) * BLOCK)];
            let real: f64 = keys.iter().map(|x| f64::from(*x) / 64.0).sum();
            (real.ln() / 0.125 + noise) as f32
        };
        let mut scores: Vec<f32> = vec![];
        for h in 0..heads {
            scores.extend((0..blocks).map(|c| score(h, c, [0.0, 5.0, 9.0, 0.0, 9.0][h] * rng.normal())));
        }
        let budget = |h: usize| HeadBudget { mass: 0.9, tau: 0.1, least: 100, most: [0, 0, 500, 0, 300][h] };
        let budgets: Vec<_> = (0..heads).map(budget).collect();
        let room = |h: usize| [9000, 9000, 9000, 9000, 200][h];
        let mut plans: Vec<_> =
            (0..heads).map(|h| HeadPlan { kind: HeadPlan::FLEX, a: room(h), b: kv_len as u32, c: 0 }).collect();
        plans[3].kind = HeadPlan::DENSE;
        let mut plan = u32s(b, [heads, 4], bytemuck::cast_slice(&plans));
        let mut column_count = u32s(b, [heads], &[400, 600, 600, 600, 600]);
        let mut offset_count = u32s(b, [heads], &[300; 5]);
        let budget = u32s(b, [heads, 4], bytemuck::cast_slice(&budgets));
        let (column_score, block_score) = (f32s(b, [heads, kv_len], &columns), f32s(b, [heads, 1, blocks], &scores));
        let undecided = Undecided {
            budget: budget.view(),
            column_score: column_score.view(),
            block_score: block_score.view(),
            unit: 1.0 / 64.0,
            scale: 0.125,
            plan: plan.view_mut(),
            column_count: column_count.view_mut(),
            offset_count: offset_count.view_mut(),
        };
        ops::settle_heads(b, undecided).unwrap();
        let plan: Vec<HeadPlan> = bytemuck::pod_collect_to_vec(&plan.to_u32(b).unwrap());
        let counts = [column_count.to_u32(b).unwrap(), offset_count.to_u32(b).unwrap()];
        assert_eq!(plan[3], plans[3], "a head that is not flex");
        assert_eq!([counts[0][3], counts[1][3]], [600, 300], "its counts");
        for h in [0, 1, 2, 4] {
            let estimated: Vec<f64> = scores[h * blocks..][..blocks].iter().map(|x| f64::from(*x)).collect();
            let sum = |keys: &[f32]| keys.iter().map(|x| f64::from(*x) / 64.0).sum::<f64>();
            let real: Vec<f64> = columns[h * kv_len..][..kv_len].chunks(BLOCK).map(sum).collect();
            let distance = naive::js_distance(&naive::softmax(&estimated, 0.125), &real);
            assert!((distance - 0.1).abs() > 1e-3 || blocks == 1, "the case is on the edge: {distance}");
            let (vertical, slash) = ([400, 600, 600, 600, 600][h], 300);
            let want = if distance < 0.1 {
                HeadPlan { kind: HeadPlan::BLOCK_SPARSE, a: 0.9f32.to_bits(), b: 2, c: HeadPlan::HEAD_MASS }
            } else if vertical > room(h) || slash as usize >= kv_len {
                HeadPlan { kind: HeadPlan::DENSE, a: 0, b: 0, c: 0 }
            } else {
                HeadPlan { kind: HeadPlan::VERTICAL_SLASH, a: vertical, b: slash, c: 0 }
            };
            assert_eq!(plan[h], want, "{kv_len} keys, head {h}, distance {distance}");
            let kept = want.kind == HeadPlan::VERTICAL_SLASH;
            let want = if kept { [vertical, slash] } else { [0, 0] };
            assert_eq!([counts[0][h], counts[1][h]], want, "{kv_len} keys, head {h}");
            assert!(kv_len < 1000 || (h == 0) == (distance < 0.1), "head {h}: {distance}");
        }
    }
});

for_each_backend!(fit_heads, |b| {
    let mut rng = Rng(47);
    let (mut limited, mut fitted, mut dense) = (0, 0, 0);
    for kv_len in [500, 3000, 20_000] {
        let (heads, blocks, scale, window) = (6, usize::div_ceil(kv_len, BLOCK), 0.125, 3);
        let columns: Vec<f32> = (0..heads).flat_map(|_| tail(&mut rng, kv_len, 1.5)).collect();
        let real = |h: usize, c: usize| -> f64 {
            let keys = &columns[h * kv_len + c * BLOCK..h * kv_len + kv_len.min((c + 1) * BLOCK)];
            keys.iter().map(|x| f64::from(*x) / 64.0).sum()
        };
        // Scores that are right, somewhat wrong, and that tell nothing at all.
        let mut scores: Vec<f32> = vec![];
        for h in 0..heads {
            let noise = [0.0, 4.0, 9.0, 0.0, 0.0, 60.0][h];
            scores.extend((0..blocks).map(|c| ((real(h, c).ln()) / scale + noise * rng.normal()) as f32));
        }
        let floor = |h: usize| [0.5f32, 0.8, 0.9, 0.9, 0.97, 0.995][h];
        let most = |h: usize| [0.02f32, 1.0, 1.0, 1.0, 1.0, 1.0][h];
        let plans: Vec<_> = (0..heads)
            .map(|h| HeadPlan {
                kind: if h == 3 { HeadPlan::VERTICAL_SLASH } else { HeadPlan::FIT },
                a: most(h).to_bits(),
                b: window,
                c: HeadPlan::OF_MAX,
            })
            .collect();
        let mut plan = u32s(b, [heads, 4], bytemuck::cast_slice(&plans));
        let mut counts = [u32s(b, [heads], &[7; 6]), u32s(b, [heads], &[8; 6])];
        let budgets: Vec<_> = (0..heads).map(|h| HeadBudget { mass: floor(h), ..HeadBudget::default() }).collect();
        let budget = u32s(b, [heads, 4], bytemuck::cast_slice(&budgets));
        let (column_score, block_score) = (f32s(b, [heads, kv_len], &columns), f32s(b, [heads, 1, blocks], &scores));
        let [column_count, offset_count] = &mut counts;
        let undecided = Undecided {
            budget: budget.view(),
            column_score: column_score.view(),
            block_score: block_score.view(),
            unit: 1.0 / 64.0,
            scale: scale as f32,
            plan: plan.view_mut(),
            column_count: column_count.view_mut(),
            offset_count: offset_count.view_mut(),
        };
        ops::settle_heads(b, undecided).unwrap();
        let plan: Vec<HeadPlan> = bytemuck::pod_collect_to_vec(&plan.to_u32(b).unwrap());
        let counts = counts.map(|x| x.to_u32(b).unwrap());
        assert_eq!((plan[3], counts[0][3], counts[1][3]), (plans[3], 7, 8), "a head that is decided");
        for h in [0, 1, 2, 4, 5] {
            let what = format!("{kv_len} keys, head {h}");
            assert_eq!([counts[0][h], counts[1][h]], [0, 0], "{what}");
            let scores = &scores[h * blocks..][..blocks];
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let ratio = |c: usize| (f64::from(scores[c] - max) * scale).exp();
            let held = |alpha: f64| -> f64 {
                let taken = |c: &usize| *c == 0 || c + window as usize >= blocks || ratio(*c) >= alpha;
                (0..blocks).filter(taken).map(|c| real(h, c)).sum()
            };
            let floor = f64::from(floor(h));
            if plan[h].kind == HeadPlan::DENSE {
                dense += 1;
                assert!(held(2f64.powi(-10) * 1.02) < floor + 2e-4, "{what} need not be dense");
                continue;
            }
            let alpha = f64::from(f32::from_bits(plan[h].a));
            let same = HeadPlan { a: plan[h].a, kind: HeadPlan::BLOCK_SPARSE, ..plans[h] };
            assert_eq!(plan[h], same, "{what}");
            assert!(held(alpha * 0.999) > floor - 2e-4, "{what}: {} at {alpha}", held(alpha));
            if alpha < f64::from(most(h)) * 0.999 {
                fitted += 1;
                assert!(held(alpha * 1.02) < floor + 2e-4, "{what}: a larger threshold than {alpha} serves");
            } else {
                limited += 1;
            }
        }
    }
    assert!(limited > 1 && fitted > 3 && dense > 0, "{limited} at the most, {fitted} fitted, {dense} dense");
});

for_each_backend!(weigh_and_select_blocks, |b| {
    let mut rng = Rng(41);
    for (q_len, kv_len, q_start) in [(64usize, 64usize, 0), (700, 2900, 2200), (300, 429, 129), (1500, 1500, 0)] {
        let (rows, blocks, heads) = (q_len.div_ceil(BLOCK), kv_len.div_ceil(BLOCK), 6);
        let words = blocks.div_ceil(32);
        let seen = |r: usize| (q_start + q_len.min((r + 1) * BLOCK) - 1) / BLOCK + 1;
        let scale = 0.25;
        let rules = [
            (HeadPlan::HEAD_MASS, 0.8f32, 1usize),
            (HeadPlan::ROW_MASS, 0.7, 0),
            (HeadPlan::OF_MAX, 0.2, 3),
            (HeadPlan::TOP_K, 0.0, 0),
            (HeadPlan::HEAD_MASS, 0.95, 0),
            (HeadPlan::OF_MAX, 0.3, 2),
        ];
        // Row blocks with one of the last 90 queries take all, in the last head.
        let n_last = |h: usize| if h + 1 == rules.len() { 90 } else { 0 };
        let plan: Vec<_> = rules
            .iter()
            .enumerate()
            .map(|(h, &(c, number, nearest))| {
                let b = HeadPlan::nearest_and_last(nearest, n_last(h));
                HeadPlan { kind: HeadPlan::BLOCK_SPARSE, a: number.to_bits(), b, c }
            })
            .collect();
        let plan_table = u32s(b, [heads, 4], bytemuck::cast_slice(&plan));
        let mut values = vec![f32::NEG_INFINITY; heads * rows * blocks];
        for (i, row) in values.chunks_exact_mut(blocks).enumerate() {
            let wide = if rules[i / rows].0 == HeadPlan::ROW_MASS { 2.0 } else { 8.0 };
            row[..seen(i % rows)].iter_mut().for_each(|x| *x = (wide * rng.normal()) as f32);
        }
        let mut mask = u32s(b, [heads, rows, words], &vec![0xaaaa_aaaa; heads * rows * words]);
        let mut mass = u32s(b, [heads, WEIGHT_BINS], &vec![0; heads * WEIGHT_BINS]);
        let band_len = rows.div_ceil(2) + usize::from(rows > 2);
        let bands: Vec<(BlockBand, Tensor<_>)> = (0..rows)
            .step_by(band_len)
            .map(|start| {
                let len = band_len.min(rows - start);
                let part = |h: usize| values[(h * rows + start) * blocks..][..len * blocks].to_vec();
                let part: Vec<f32> = (0..heads).flat_map(part).collect();
                (BlockBand { q_len, start, q_start }, f32s(b, [heads, len, blocks], &part))
            })
            .collect();
        for (band, scores) in &bands {
            ops::weigh_blocks(b, *band, scale, plan_table.view(), scores.view(), mass.view_mut()).unwrap();
        }
        for (band, scores) in &bands {
            let (scores, mass) = (scores.view(), mass.view());
            ops::select_weighed_blocks(b, *band, scale, plan_table.view(), scores, mass, mask.view_mut()).unwrap();
        }
        let mask = mask.to_u32(b).unwrap();
        let bit = |h: usize, r: usize, c: usize| mask[(h * rows + r) * words + c / 32] >> (c % 32) & 1 == 1;
        let always = |h: usize, r: usize, c: usize| {
            let own = (q_start + r * BLOCK) / BLOCK;
            let whole = n_last(h) > 0 && q_len.min((r + 1) * BLOCK) + n_last(h) > q_len;
            whole || c == 0 || c >= own || own - c < rules[h].2
        };
        for h in 0..heads {
            let (rule, number) = (rules[h].0, f64::from(rules[h].1));
            let scale = if rule == HeadPlan::ROW_MASS { 1.0 } else { f64::from(scale) };
            let weights = |r: usize| {
                let scores = &values[(h * rows + r) * blocks..][..seen(r)];
                naive::softmax(&scores.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), scale)
            };
            let what = |r: usize| format!("{q_len} of {kv_len}: head {h} row block {r}");
            if rule == HeadPlan::TOP_K {
                assert!(mask[h * rows * words..][..rows * words].iter().all(|w| *w == 0xaaaa_aaaa), "head {h}");
                continue;
            }
            for r in 0..rows {
                assert!((seen(r)..32 * words).all(|c| !bit(h, r, c)), "{}: future blocks", what(r));
                assert!((0..seen(r)).all(|c| bit(h, r, c) || !always(h, r, c)), "{}: a block left out", what(r));
            }
            if rule == HeadPlan::HEAD_MASS {
                // All blocks of all row blocks together.
                let all: Vec<(usize, usize, f64)> =
                    (0..rows).flat_map(|r| weights(r).into_iter().enumerate().map(move |(c, w)| (r, c, w))).collect();
                let flat: Vec<f64> = all.iter().map(|x| x.2).collect();
                let [must, may] = bounds(&flat, |_| false, number);
                for (r, c, weight) in all {
                    assert!(bit(h, r, c) || weight < must, "{}: {c} of {weight}, {must} must be in", what(r));
                    let may = always(h, r, c) || weight >= may;
                    assert!(!bit(h, r, c) || may, "{}: {c} of {weight} is in", what(r));
                }
                continue;
            }
            for r in 0..rows {
                let weights = weights(r);
                let most = weights.iter().copied().fold(0.0, f64::max);
                let [must, may] = match rule {
                    HeadPlan::ROW_MASS => bounds(&weights, |_| false, number),
                    _ => [most * number * 1.001, most * number * 0.999],
                };
                for (c, &weight) in weights.iter().enumerate() {
                    assert!(bit(h, r, c) || weight < must, "{}: {c} of {weight}, {must} must be in", what(r));
                    let may = always(h, r, c) || weight >= may;
                    assert!(!bit(h, r, c) || may, "{}: {c} of {weight} is in", what(r));
                }
            }
        }
    }
});

for_each_backend!(flex_heads, |b| {
    let (mut lines, mut blocks_chosen, mut dense) = (0, 0, 0);
    for (case, lengths) in
        [(1100, 1100, 0, 4, 2, 64), (700, 2900, 2200, 2, 1, 128), (500, 1629, 1129, 2, 2, 32)].iter().enumerate()
    {
        let &(q_len, _, q_start, heads, _, d) = lengths;
        let call = Call::new(b, *lengths, [Layout::HeadMajor, Layout::Engine][case % 2], case as u64 + 900);
        let shape = &call.shape;
        let gamma = [0.8f32, 0.95, 0.9][case];
        for tau in [0.0f32, 0.3, 1.0] {
            let flex = HeadPattern::Flex { gamma, tau, budget: [70, 0] };
            let patterns = vec![flex; heads];
            let chosen = choose(b, &patterns, shape, call.q.view(), call.k.view()).unwrap();
            let (columns, offsets) = (chosen.columns(b).unwrap(), chosen.offsets(b).unwrap());
            let index = estimate(b, &patterns, shape, call.q.view(), call.k.view()).unwrap().to_host(b).unwrap();
            index.validate().unwrap();
            for h in 0..heads {
                let (q, k, _) = call.head(h);
                let want = naive::flex(q, k, d, f64::from(shape.scale), q_start);
                let part = f64::from(gamma);
                let what = format!("case {case} head {h} tau {tau} distance {}", want.distance);
                if (want.distance - f64::from(tau)).abs() < 2e-3 {
                    continue;
                }
                if want.distance >= f64::from(tau) {
                    if columns[h].is_empty() {
                        dense += 1;
                        continue;
                    }
                    lines += 1;
                    let in_list = |list: &[u32], i: usize| list.binary_search(&(i as u32)).is_ok();
                    // At least so many, whatever they weigh.
                    let heaviest = |weights: &[f64], forced: usize, least: usize| {
                        let weights: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
                        naive::top_k(&weights, forced, least)
                    };
                    let first = heaviest(&want.columns, 30, 70);
                    let always = |i: usize| in_list(&first, i);
                    check_choice(&format!("{what}: columns"), &want.columns, always, part, |i| in_list(&columns[h], i));
                    let groups = naive::group_offsets(&want.offsets);
                    let first = heaviest(&groups, 100, 104);
                    let always = |i: usize| in_list(&first, i);
                    check_choice(&format!("{what}: offsets"), &groups, always, part, |i| in_list(&offsets[h], i));
                } else {
                    blocks_chosen += 1;
                    let flat: Vec<f64> = want.blocks.iter().flatten().copied().collect();
                    let [must, may] = bounds(&flat, |_| false, part);
                    for (r, weights) in want.blocks.iter().enumerate() {
                        let row = index.row(h, r);
                        let last = q_start + q_len.min((r + 1) * BLOCK) - 1;
                        let keys = row.keys(last);
                        let own = (q_start + r * BLOCK) / BLOCK;
                        for (c, &weight) in weights.iter().enumerate() {
                            let taken = keys.iter().any(|range| range.contains(&(c * BLOCK)));
                            let always = c == 0 || c >= own || own - c < 2;
                            assert!(taken || (weight < must && !always), "{what}: block {c} of row block {r} is out");
                            assert!(!taken || always || weight >= may, "{what}: block {c} of row block {r} is in");
                        }
                    }
                }
            }
        }
    }
    assert!(lines >= 6 && blocks_chosen >= 6, "{lines} by lines, {blocks_chosen} by blocks, {dense} dense");
});
