// A kernel's result stored as f32.
alias Out = f32;

fn to_out(x: f32) -> Out {
    return x;
}
