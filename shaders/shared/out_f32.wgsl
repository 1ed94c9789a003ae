// A kernel's result stored as f32, one element or four (`Wide`).
fn to_out(x: Wide) -> Out {
    return x;
}
