// Four weights on their way to workgroup memory, as they are stored: what turns them waits for the memory, so it is done
// only where they are put down.
alias RawW = Weight;

fn raw_w4(i: u32, valid: u32) -> RawW {
    return w[p.w_at + i / 4u];
}

fn staged_w(raw: RawW) -> Stage {
    return Stage(raw);
}
