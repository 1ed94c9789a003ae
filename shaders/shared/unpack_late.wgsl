// Eight packed weights on their way to workgroup memory: unpacked when they are put there, so that nothing waits for
// memory before the product of the previous tiles.
alias Fetched = Raw;

fn fetch_w8(i: u32) -> Fetched {
    return raw_w8(i);
}

fn decode_w8(fetched: Fetched) -> Eight {
    let values = values_of(fetched);
    return eight_of(values.low, values.high);
}
