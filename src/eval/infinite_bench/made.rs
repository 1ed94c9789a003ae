//! Prompts of the six tasks that need no file, in words.

use super::super::rng::Rng;
use super::CALC_VALUES;

/// Noise around a key.
const NOISE: &str = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// Context, question, beginning of the answer, references.
pub(super) type Words = (String, String, String, Vec<String>);

/// A place among `of` for a sample: few samples spread over all of them, and many go through each.
pub(super) fn spread(sample: usize, of: usize) -> usize {
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    (((sample as f64 + 0.5) * GOLDEN).fract() * of as f64) as usize
}

pub(super) const KEY_INTRO: &str = "An important fact is hidden in much text that does not matter. Find it and keep it in mind: there will \
                         be a question about it.";

pub(super) fn key_stem(task: &str) -> &'static str {
    if task == "passkey" { "The pass key is" } else { "The sequence of digits is" }
}

/// One of 59 places, as in the benchmark.
pub(super) fn key_in_noise(task: &str, sample: usize, units: usize, rng: &mut Rng) -> Words {
    let (key, fact, ask) = if task == "passkey" {
        let key = rng.digits(5);
        let fact = format!("The pass key is {key}. Remember it. {key} is the pass key.");
        (key, fact, "What is the pass key?")
    } else {
        // Five digits, five of them doubled at random: a string that is easily copied wrongly.
        let mut key: Vec<u8> = rng.digits(5).into_bytes();
        while key.len() < 10 {
            let at = rng.below(key.len());
            key.insert(at, key[at]);
        }
        let key = String::from_utf8_lossy(&key).into_owned();
        let fact = format!("The sequence of digits is {key}. Remember it. {key} is the sequence of digits.");
        (key, fact, "What is the sequence of digits?")
    };
    let mut lines = vec![NOISE; units];
    lines.insert(spread(sample, 59) * units / 58, &fact);
    (format!("{KEY_INTRO}\n\n{}", lines.join("\n")), ask.into(), key_stem(task).into(), vec![key])
}

pub(super) const KV_INTRO: &str = "Find the value of a key in the JSON object below.";

pub(super) fn kv(sample: usize, units: usize, rng: &mut Rng) -> Words {
    let pairs: Vec<(String, String)> = (0..units).map(|_| (rng.uuid(), rng.uuid())).collect();
    let (key, value) = pairs[spread(sample, units)].clone();
    let body: Vec<String> = pairs.iter().map(|(key, value)| format!("\"{key}\": \"{value}\"")).collect();
    let context = format!("{KV_INTRO}\n\nJSON data:\n{{{}}}", body.join(", "));
    // Without the marks around it: a model that repeats them would begin its answer with one, and decoding would find the
    // value.
    (context, format!("Key: {key}\nWhat is its value?"), format!("The value of {key} is:"), vec![value])
}

/// The seven kinds in turn. The range of the values is drawn, so that the answer cannot be guessed.
pub(super) fn math_find(sample: usize, units: usize, rng: &mut Rng) -> Words {
    // An odd number of values has a middle one.
    let n = units | 1;
    let (low, high) = (rng.between(0, 40), rng.between(60, 99));
    let mut values: Vec<i64> = (0..n).map(|_| rng.between(low, high)).collect();
    let mut sorted = values.clone();
    sorted.sort_unstable();
    let median = sorted[n / 2];
    sorted.dedup();
    let (what, answer) = match sample % 7 {
        0 => ("largest number", sorted[sorted.len() - 1]),
        1 => ("second largest number (different from the largest)", sorted[sorted.len().saturating_sub(2)]),
        2 => ("third largest number (of different ones)", sorted[sorted.len().saturating_sub(3)]),
        3 => ("smallest number", sorted[0]),
        4 => ("second smallest number (different from the smallest)", sorted[1.min(sorted.len() - 1)]),
        5 => ("third smallest number (of different ones)", sorted[2.min(sorted.len() - 1)]),
        _ => ("median", median),
    };
    rng.shuffle(&mut values);
    let list: Vec<String> = values.iter().map(i64::to_string).collect();
    let context = format!("Here is a list of numbers. There will be a question about it.\n\n[{}]", list.join(", "));
    let short = what.split(" (").next().unwrap_or(what);
    (
        context,
        format!("What is the {what} of the list? Say the number only."),
        format!("The {short} is"),
        vec![answer.to_string()],
    )
}

pub(super) const CALC_INTRO: &str = "Work through the long expression below from left to right, and give the value after each operation. \
                          For 1 + 3 - 2 the values are 1, 4, 2.";

pub(super) fn math_calc(units: usize, rng: &mut Rng) -> Words {
    let mut value = rng.between(0, 99);
    let mut values = vec![value];
    let mut expression = value.to_string();
    for _ in 1..units.max(2) {
        // Never out of 0 to 99: the answer is not about large numbers.
        let next = rng.between(0, 99);
        let (sign, term) = if next >= value { ('+', next - value) } else { ('-', value - next) };
        expression += &format!(" {sign} {term}");
        value = next;
        values.push(value);
    }
    let references: Vec<String> = values.iter().take(CALC_VALUES).map(i64::to_string).collect();
    let ask = format!("Give the first {} values, the first number included.", references.len());
    (format!("{CALC_INTRO}\n\n{expression}"), ask, "The values are:".into(), references)
}

pub(super) const CODE_INTRO: &str = "Here are Python functions. There will be a question about one of them.";

/// Functions that add a constant to another function's value; the one asked for goes 2 to 10 calls deep.
pub(super) fn code_run(sample: usize, units: usize, rng: &mut Rng) -> Words {
    let depth = [2, 4, 6, 8, 10][sample % 5];
    let n = units.max(depth);
    let mut names: Vec<usize> = (0..n).collect();
    rng.shuffle(&mut names);
    let x = rng.between(-10, 10);
    let mut result = x;
    let mut bodies = Vec::new();
    for i in 0..n {
        let constant = rng.between(-12, 17);
        // The chain comes first; the others call any function before them, so that none calls itself.
        let callee = match i {
            0 => None,
            i if i < depth => Some(i - 1),
            i => (rng.below(4) > 0).then(|| rng.below(i)),
        };
        if i < depth {
            result += constant;
        }
        let called = callee.map_or("x".to_string(), |callee| format!("func_{}(x)", names[callee]));
        let sign = if constant < 0 { '-' } else { '+' };
        bodies.push(format!("def func_{}(x):\n    return {called} {sign} {}", names[i], constant.abs()));
    }
    rng.shuffle(&mut bodies);
    let call = format!("func_{}({x})", names[depth - 1]);
    let ask = format!("What does {call} return? Say the number only.");
    (format!("{CODE_INTRO}\n\n{}", bodies.join("\n\n")), ask, format!("{call} returns"), vec![result.to_string()])
}
