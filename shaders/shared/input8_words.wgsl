// Eight elements of the input x from element i on, a multiple of eight; read as four words.
fn load_x8(i: u32) -> Eight {
    return x[p.x_at + i / 8u];
}
