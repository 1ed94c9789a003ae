// Eight weights on their way to workgroup memory: as they are stored.
alias Fetched = Eight;

fn fetch_w8(i: u32) -> Fetched {
    return load_w8(i);
}

fn decode_w8(fetched: Fetched) -> Eight {
    return fetched;
}
