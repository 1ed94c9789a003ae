// Words of packed weights that begin at any multiple of two bytes.
fn half_at(at: u32) -> u32 {
    return (w[at / 2u] >> (16u * (at % 2u))) & 0xffffu;
}

fn word_at(at: u32) -> u32 {
    let first = w[at / 2u];
    let second = w[(at + 1u) / 2u];
    return select(first, (first >> 16u) | (second << 16u), at % 2u == 1u);
}

fn two_words_at(at: u32) -> vec2<u32> {
    let first = w[at / 2u];
    let second = w[at / 2u + 1u];
    let third = w[(at + 3u) / 2u];
    let shifted = vec2<u32>((first >> 16u) | (second << 16u), (second >> 16u) | (third << 16u));
    return select(vec2<u32>(first, second), shifted, at % 2u == 1u);
}
