// Four weights on their way to workgroup memory, as values: where they cannot be read in one piece.
alias RawW = vec4<f32>;

fn raw_w4(i: u32, valid: u32) -> RawW {
    return load_w4(i, valid);
}

fn staged_w(raw: RawW) -> Stage {
    return Stage(raw);
}
