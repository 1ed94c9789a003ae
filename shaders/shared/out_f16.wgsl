// A kernel's result stored as f16, one element or four (`Wide`), saturating: an activation beyond 65504 would become an
// infinity and then, through the next norm or softmax, a row of NaN. NaN stays NaN, so that bad input is seen.
fn to_out(x: Wide) -> Out {
    return Out(select(clamp(x, Wide(-65504.0), Wide(65504.0)), x, x != x));
}
