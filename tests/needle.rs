//! The needle test as the example runs it, small: the embedded model, the novel, three modes.
#![cfg(feature = "cli")]

use minference::backend::cpu::Cpu;
use minference::embedded::{NOVEL, needle};
use minference::engine::{Engine, EngineOptions};
use minference::eval::needle::{Needle, NeedleTest};
use minference::pattern::AttentionMode;

#[test]
fn prompts_end_before_the_first_digit_and_hold_the_needle_once() {
    let text = needle().unwrap().text().unwrap().clone();
    let test = NeedleTest::new(text.clone(), NOVEL).unwrap();
    let space = text.tokenizer.id("Ġ").unwrap();
    for seed in 0..20 {
        let hidden = Needle::draw(seed);
        for (len, depth) in [(256, 0.0), (1000, 37.0), (4096, 100.0)] {
            let prompt = test.prompt(&hidden, len, depth).unwrap();
            assert_eq!(prompt.ids.len(), len);
            assert_eq!((prompt.ids[0], prompt.ids[len - 1]), (0, space), "begin token and lone space");
            let words = text.tokenizer.decode(&prompt.ids);
            assert_eq!(words.matches(&hidden.sentence()).count(), 1, "{words}");
            assert_eq!(words.matches(&hidden.digits).count(), 1);
            // Tokens of the parts are those of the whole: the model sees what it would see of one text.
            let body = text.tokenizer.decode(&prompt.ids[1..]);
            assert_eq!(text.tokenizer.encode(&body, true).unwrap(), prompt.ids);
        }
    }
}

/// 2048 tokens, the needle at 30 %: far outside a window of 256.
#[test]
fn dense_and_vertical_slash_find_it_and_a_window_does_not() {
    let model = needle().unwrap();
    let test = NeedleTest::new(model.text().unwrap().clone(), NOVEL).unwrap();
    let mut engine = Engine::new(Cpu::new(), model, EngineOptions::default()).unwrap();
    let mut right = |mode: &str| {
        let mode = AttentionMode::Uniform(mode.parse().unwrap());
        let ask = |seed: u64| {
            let prompt = test.prompt(&Needle::draw(seed), 2048, 30.0).unwrap();
            test.ask(&mut engine, &prompt, &mode, &mut |_| (), &mut ()).unwrap()
        };
        (0..6).map(ask).filter(|outcome| outcome.correct).count()
    };
    assert_eq!(right("dense"), 6);
    assert!(right("vertical_slash:100:800") >= 5);
    assert!(right("a_shape:64:256") <= 1);
}
