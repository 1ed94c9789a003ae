//! Words that keys and lists are made of.

use super::rng::Rng;
use std::collections::BTreeSet;

/// Adjectives of keys.
pub const ADJECTIVES: &str = "able amber ample ancient arctic azure bold brave brief bright brisk broad bronze calm candid \
    careful cheerful chilly clean clear clever cloudy common coral cosmic crisp curious daily damp daring dark deep dense \
    distant double dry dusty eager early eastern elder elegant empty endless even exact fair faithful famous fancy fast \
    fearless final fine firm flat fluent foggy fond formal fragile free fresh frosty frugal full gentle giant glad golden \
    graceful grand green handy happy hardy hollow honest humble icy idle inner ivory jolly keen kind large late lazy level \
    light little lively local lonely long loud lowly loyal lucky magic main mellow merry mighty mild misty modern modest \
    narrow native neat new nimble noble northern novel odd olive open orange outer pale patient peaceful placid plain polite \
    proud prudent pure purple quick quiet rapid rare ready royal rural rustic salty secret serene shady sharp shiny short \
    silent silver simple sleepy slim small smooth snowy soft solar solid southern spare steady stormy strong sturdy subtle \
    sudden sunny swift tall tame tender tidy tiny trim true upper urban vast velvet violet vivid warm wary western wide \
    wild wise witty wooden young";

/// Nouns of keys.
pub const NOUNS: &str = "acorn anchor apple apron arch arrow attic badge bakery balcony ballad bamboo barley barn barrel \
    basin basket beacon beaver bell bench berry bishop blanket blossom bonnet bottle boulder branch bread brick bridge broom \
    brush bucket button cabin candle canyon canoe cape carpet carriage castle cedar cellar chain chalk chapel cherry chest \
    chimney circle cliff cloak clock cloud clover coast coin comet compass copper cottage cotton cradle crane creek cricket \
    crown cup curtain daisy desk diamond dome donkey door dragon drum duck eagle easel echo elm engine falcon farmer feather \
    fern ferry fiddle field finch flag flame flint flute forest forge fountain fox frame garden garlic gate geese ginger \
    glacier globe glove granite grape grove guitar hammer harbor harp hat hazel hedge helmet heron hill hinge honey horn \
    horse inlet island ivy jacket jar jewel kettle key kite ladder lagoon lake lamp lantern lark leaf ledger lemon lens \
    letter lily linen lion lizard lock locket lumber maple marble market meadow medal melon mill mirror mitten moon moss \
    mountain mule needle nest nickel oak oar oasis ocean olive onion orchard otter oven owl oyster paddle palace panther \
    paper parcel parrot path peach pearl pebble pencil pepper piano pigeon pillow pine pirate pitcher planet plaza plum \
    pocket pond poplar porch prairie puzzle quail quarry quill quilt rabbit raft raven reef ribbon ridge river robin rocket \
    rope rose saddle sail salmon sand satin saucer scarf shell shepherd ship shore shovel signal silk sparrow spice spoon \
    spruce squirrel stable star statue stone stream summit swan table temple thimble thistle thread thunder tiger timber \
    torch tower trail train trunk tulip tunnel turnip turtle valley vase vessel village vine violin wagon walnut walrus \
    water wheat wheel whistle willow window wing winter wolf wool wreath yarn zebra";

/// Verbs, for lists of words.
pub const VERBS: &str = "accept adjust admire answer arrive assemble balance borrow bounce breathe build calculate carry \
    celebrate choose climb collect compare complete consider correct count dance decide deliver describe discover divide \
    drift enjoy examine explain explore finish follow gather govern guess hesitate hurry imagine improve include invent \
    invite listen manage measure mention notice observe offer organise polish practise prepare promise protect provide \
    publish reason receive remember repair repeat replace rescue reveal scatter search settle sketch solve spread stumble \
    suggest supply travel understand untangle visit wander wonder";

/// Cities of the needle test of the paper's experiments.
pub const CITIES: &str = "Accra Adelaide Algiers Amman Ankara Antwerp Athens Auckland Baku Bangkok Barcelona Basel Beirut \
    Belfast Belgrade Bergen Berlin Bern Bilbao Bogota Bologna Bordeaux Boston Bratislava Brisbane Brussels Bucharest \
    Budapest Cairo Calgary Canberra Caracas Casablanca Chicago Cologne Copenhagen Dakar Dallas Damascus Delhi Denver Dhaka \
    Doha Dresden Dublin Durban Edinburgh Florence Geneva Glasgow Granada Hamburg Hanoi Havana Helsinki Houston Istanbul \
    Jakarta Johannesburg Kabul Kampala Karachi Kathmandu Kigali Kingston Krakow Kyoto Lagos Leipzig Lima Lisbon Liverpool \
    Ljubljana London Lusaka Lyon Madrid Malaga Manila Marseille Melbourne Milan Minsk Montreal Moscow Mumbai Munich Nairobi \
    Naples Odessa Osaka Oslo Ottawa Panama Paris Perth Porto Prague Quito Reykjavik Riga Rome Santiago Seoul Seville \
    Shanghai Sofia Stockholm Sydney Tallinn Tokyo Toronto Tunis Valencia Vienna Vilnius Warsaw Zagreb Zurich";

/// The words of a list above.
pub fn list(words: &'static str) -> Vec<&'static str> {
    words.split_whitespace().collect()
}

/// `adjective-noun`, `n` different ones.
pub fn keys(rng: &mut Rng, n: usize) -> Vec<String> {
    let (adjectives, nouns) = (list(ADJECTIVES), list(NOUNS));
    let mut places = rng.distinct(adjectives.len() * nouns.len(), n);
    rng.shuffle(&mut places);
    places.into_iter().map(|at| format!("{}-{}", adjectives[at / nouns.len()], nouns[at % nouns.len()])).collect()
}

/// `n` different words in random order: of the lists and of a text, and where these are too few, two of them joined.
pub fn vocabulary(rng: &mut Rng, text: &[String], n: usize) -> Vec<String> {
    let plain = |word: &&str| (3..=12).contains(&word.len()) && word.bytes().all(|c| c.is_ascii_lowercase());
    let lists = [ADJECTIVES, NOUNS, VERBS].into_iter().flat_map(str::split_whitespace);
    let mut all: BTreeSet<String> = lists.map(str::to_string).collect();
    all.extend(text.iter().map(String::as_str).filter(plain).map(str::to_string));
    if all.len() < n {
        for adjective in list(ADJECTIVES) {
            all.extend(list(NOUNS).into_iter().map(|noun| format!("{adjective}{noun}")));
        }
    }
    let mut all: Vec<String> = all.into_iter().collect();
    rng.shuffle(&mut all);
    all.truncate(n);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hold_no_word_twice_and_enough_of_them() {
        for (words, least) in [(ADJECTIVES, 180), (NOUNS, 280), (VERBS, 70), (CITIES, 100)] {
            let words = list(words);
            assert!(words.len() >= least, "{}", words.len());
            let set: BTreeSet<_> = words.iter().collect();
            let twice: Vec<_> = words.iter().filter(|w| words.iter().filter(|x| x == w).count() > 1).collect();
            assert_eq!(set.len(), words.len(), "{twice:?}");
        }
    }

    #[test]
    fn keys_and_vocabularies_are_different_words() {
        let keys = keys(&mut Rng::new(1), 6000);
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 6000);
        assert!(keys[0].contains('-') && keys[0] != keys[1]);
        let text: Vec<String> = ["abbey", "Abbey", "it", "so-so"].map(String::from).to_vec();
        let words = vocabulary(&mut Rng::new(1), &text, 20_000);
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), 20_000);
        assert!(vocabulary(&mut Rng::new(1), &text, 100_000).contains(&"abbey".to_string()));
    }
}
