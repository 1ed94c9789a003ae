// Eight packed weights on their way to workgroup memory: unpacked as they come, which keeps four registers: unpacked only
// when they are put there they were slower (see the tiles of `matmul.rs`).
alias Fetched = Eight;

fn fetch_w8(i: u32) -> Fetched {
    let values = values_of(raw_w8(i));
    return eight_of(values.low, values.high);
}

fn decode_w8(fetched: Fetched) -> Eight {
    return fetched;
}
