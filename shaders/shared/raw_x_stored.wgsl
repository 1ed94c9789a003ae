// Four elements of the input on their way to workgroup memory, as they are stored: what turns them waits for the memory, so
// it is done only where they are put down.
alias RawX = In;

fn raw_x4(i: u32, valid: u32) -> RawX {
    return x[p.x_at + i / 4u];
}

fn staged_x(raw: RawX) -> Stage {
    return Stage(raw);
}
