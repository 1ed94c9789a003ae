// Four elements of the input on their way to workgroup memory, as values: where they cannot be read in one piece.
alias RawX = vec4<f32>;

fn raw_x4(i: u32, valid: u32) -> RawX {
    return load_x4(i, valid);
}

fn staged_x(raw: RawX) -> Stage {
    return Stage(raw);
}
