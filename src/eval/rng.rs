//! Random draws for prompts.

use crate::fnv::fnv;
use crate::splitmix::SplitMix64;

/// SplitMix64, and what prompts need of it.
#[derive(Clone, Debug)]
pub struct Rng(SplitMix64);

impl Rng {
    /// From a seed; any is a good one.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    /// From what identifies a prompt: the user's seed, a task's name, and numbers such as length and sample. Prompts do
    /// not depend on which others were made before them, so a resumed run makes the same ones.
    pub fn of(seed: u64, name: &str, numbers: &[usize]) -> Self {
        let mut rng = Self::new(seed ^ fnv(name.as_bytes()));
        for &number in numbers {
            rng = Self::new(rng.bits() ^ number as u64);
        }
        Self::new(rng.bits())
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// In `0..n`. The bias of a remainder is below 1e-11 for the sizes here.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }

    /// In `low..=high`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as usize) as i64
    }

    /// One of a list.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// Shuffles in place.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }

    /// `k` different numbers of `0..n`, ascending; all of them where `k` reaches `n`.
    pub fn distinct(&mut self, n: usize, k: usize) -> Vec<usize> {
        if k >= n {
            return (0..n).collect();
        }
        // Floyd: k draws whatever n is.
        let mut set = std::collections::BTreeSet::new();
        for last in n - k..n {
            let drawn = self.below(last + 1);
            if !set.insert(drawn) {
                set.insert(last);
            }
        }
        set.into_iter().collect()
    }

    /// Decimal digits, the first not 0.
    pub fn digits(&mut self, n: usize) -> String {
        (0..n).map(|i| char::from(b'0' + if i == 0 { 1 + self.below(9) } else { self.below(10) } as u8)).collect()
    }

    /// A version 4 UUID.
    pub fn uuid(&mut self) -> String {
        let (high, low) = (self.bits() & !0xf000 | 0x4000, self.bits() & !(3 << 62) | 1 << 63);
        let (a, b, c) = (high >> 32, (high >> 16) & 0xffff, high & 0xffff);
        format!("{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff)
    }

    /// Letters from `first` on, 26 of them.
    pub fn letters(&mut self, n: usize, first: char) -> String {
        (0..n).map(|_| char::from(first as u8 + self.below(26) as u8)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_those_of_splitmix64() {
        // Published first outputs for seed 1234567.
        let mut rng = Rng::new(1_234_567);
        assert_eq!(rng.bits(), 6_457_827_717_110_365_317);
        assert_eq!(rng.bits(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn prompts_draw_alike_by_identity_and_differently_by_any_part_of_it() {
        let draw = |seed, name, numbers: &[usize]| Rng::of(seed, name, numbers).bits();
        assert_eq!(draw(1, "vt", &[4096, 3]), draw(1, "vt", &[4096, 3]));
        let others = [draw(2, "vt", &[4096, 3]), draw(1, "cwe", &[4096, 3]), draw(1, "vt", &[4096, 4])];
        assert!(others.iter().all(|&other| other != draw(1, "vt", &[4096, 3])));
    }

    #[test]
    fn shapes_of_what_is_drawn() {
        let mut rng = Rng::new(5);
        for _ in 0..200 {
            let uuid = rng.uuid();
            let parts: Vec<usize> = uuid.split('-').map(str::len).collect();
            assert_eq!(parts, [8, 4, 4, 4, 12]);
            assert_eq!(uuid.as_bytes()[14], b'4');
            assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
            assert_ne!(rng.digits(7).as_bytes()[0], b'0');
            assert!((-3..=4).contains(&rng.between(-3, 4)));
            let some = rng.distinct(9, 4);
            assert!(some.len() == 4 && some.windows(2).all(|w| w[0] < w[1]) && some[3] < 9, "{some:?}");
        }
        assert_eq!(rng.distinct(3, 5), [0, 1, 2]);
        let mut list: Vec<_> = (0..50).collect();
        rng.shuffle(&mut list);
        assert_ne!(list, (0..50).collect::<Vec<_>>());
        list.sort_unstable();
        assert_eq!(list, (0..50).collect::<Vec<_>>());
    }
}
