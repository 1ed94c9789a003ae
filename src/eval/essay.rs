//! [`Essay`]: any text as words and sentences, read in a circle, with facts put between the sentences.

use super::needle::sentences;
use crate::{Error, Result};

/// A text for haystacks.
pub struct Essay {
    words: Vec<String>,
    /// The word that each sentence begins with.
    starts: Vec<usize>,
}

impl Essay {
    /// Fails where the text holds no sentence.
    pub fn new(text: &str) -> Result<Self> {
        let (mut words, mut starts) = (Vec::new(), Vec::new());
        for sentence in sentences(text) {
            starts.push(words.len());
            words.extend(sentence.split(' ').map(str::to_string));
        }
        match words.is_empty() {
            true => Err(Error::invalid("essay: expected text of one sentence or more, found none")),
            false => Ok(Self { words, starts }),
        }
    }

    /// All words of one round.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// `n` words from the beginning of sentence `first` (modulo their number) on, sentence by sentence; the last one may
    /// be cut, and the text begins again at its end.
    pub fn read(&self, first: usize, n: usize) -> Vec<String> {
        let mut out = Vec::new();
        let (mut sentence, mut left) = (first % self.starts.len(), n);
        while left > 0 {
            let from = self.starts[sentence];
            let to = self.starts.get(sentence + 1).copied().unwrap_or(self.words.len()).min(from + left);
            out.push(self.words[from..to].join(" "));
            left -= to - from;
            sentence = (sentence + 1) % self.starts.len();
        }
        out
    }
}

/// Sentences with facts between them, each at the sentence end nearest to the share of the text that its depth in percent
/// says; facts of one depth keep their order.
pub fn hide(sentences: &[String], facts: &[(f64, String)]) -> String {
    let mut ends = vec![0usize];
    for sentence in sentences {
        ends.push(ends[ends.len() - 1] + sentence.len() + 1);
    }
    let total = ends[sentences.len()] as f64;
    let nearest = |depth: f64| {
        let target = total * depth / 100.0;
        let after = ends.partition_point(|&end| (end as f64) < target).min(sentences.len());
        let before = after.saturating_sub(1);
        if target - (ends[before] as f64) < ends[after] as f64 - target { before } else { after }
    };
    let mut places: Vec<(usize, &str)> = facts.iter().map(|(depth, fact)| (nearest(*depth), fact.as_str())).collect();
    places.sort_by_key(|(place, _)| *place);
    let mut places = places.into_iter().peekable();
    let mut out: Vec<&str> = Vec::with_capacity(sentences.len() + facts.len());
    for (i, sentence) in sentences.iter().enumerate() {
        while let Some((_, fact)) = places.next_if(|(place, _)| *place <= i) {
            out.push(fact);
        }
        out.push(sentence);
    }
    out.extend(places.map(|(_, fact)| fact));
    out.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_in_a_circle_from_a_sentence_on() {
        let essay = Essay::new("It was late. She went out. Nobody saw her.").unwrap();
        assert_eq!(essay.words().len(), 9);
        assert_eq!(essay.read(1, 5), ["She went out.", "Nobody saw"]);
        assert_eq!(essay.read(5, 7), ["Nobody saw her.", "It was late.", "She"]);
        assert!(Essay::new("  \n").is_err());
    }

    #[test]
    fn facts_stand_at_their_depth() {
        let sentences: Vec<String> = (0..4).map(|i| format!("S{i}.")).collect();
        let facts = [(100.0, "end".to_string()), (0.0, "a".to_string()), (50.0, "m".to_string()), (0.0, "b".into())];
        assert_eq!(hide(&sentences, &facts), "a b S0. S1. m S2. S3. end");
        assert_eq!(hide(&[], &facts[..1]), "end");
        let uneven = ["One.".to_string(), "This one is a long sentence of many words.".to_string(), "Two.".to_string()];
        assert!(hide(&uneven, &[(40.0, "m".to_string())]).starts_with("One. m This"));
        assert!(hide(&uneven, &[(60.0, "m".to_string())]).ends_with("words. m Two."));
    }
}
