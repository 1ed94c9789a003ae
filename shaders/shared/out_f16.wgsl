// A kernel's result stored as f16, saturating: an activation beyond 65504 would become an infinity and then, through
// the next norm or softmax, a row of NaN. NaN stays NaN, so that bad input is seen.
alias Out = f16;

fn to_out(x: f32) -> Out {
    return f16(select(clamp(x, -65504.0, 65504.0), x, x != x));
}
